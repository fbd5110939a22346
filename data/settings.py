"""Settings: frozen records whose fields are the flags of a command.

A record is a subclass of `Settings`. A field's comment is its help, its type says which numbers it takes (`Positive`,
`Natural`, …), and records are joined by inheritance, so one that has all the fields of another is handed on as it is.
`dataclasses.replace` makes a changed copy; nothing writes into a record. `parse` reads a command line with tyro and
makes one line of every error. Left out: which defaults belong together (`models.py`, `train.py`).
"""

import contextlib
import functools
import inspect
import io
import linecache
import math
import os
import re
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, make_dataclass
from typing import Annotated, Any, Literal, NoReturn, TypeVar, get_args, get_origin, get_type_hints

import tyro


@dataclass(frozen=True)
class Limits:
    """The least and the most that a number may be."""

    least: float
    most: float = math.inf


MOST = 2**31 - 1  # of whole numbers: what they go into ends there, or a little above
Positive = Annotated[int, Limits(1, MOST)]
Natural = Annotated[int, Limits(0, MOST)]
NonNegative = Annotated[float, Limits(0)]
Share = Annotated[float, Limits(0, 1)]
Questions = Annotated[int, Limits(1, 100_000)]  # more than anybody waits for

# Flags and values of version 0.1 that are called otherwise now. They are accepted for one more release.
RENAMED = {"beta": "kl_coef", "shuffle_entropy": "score"}
RENAMED_VALUES = {
    "loss_type": {"dapo": "token_mean", "grpo": "sequence_mean", "dr_grpo": "constant"},
    "score": {True: "lot", False: "entropy"},
}


@dataclass(frozen=True)
class Settings:
    """What all records have: help from their comments, and numbers within their limits."""

    def __init_subclass__(cls):
        # Read from the file that is being executed: under a profiler `inspect` cannot find a command's own classes.
        source = "".join(linecache.getlines(sys._getframe(1).f_code.co_filename))
        comments = dict(re.findall(r"^    (\w+): [^#\n]*# (.*)$", source, re.MULTILINE))
        cls.__annotations__ = {
            name: Annotated[kind, tyro.conf.arg(help=comments[name])]
            for name, kind in inspect.get_annotations(cls).items()
        }

    def __post_init__(self):
        for name, hint in hints(type(self)).items():
            value, (kind, *notes) = getattr(self, name), get_args(hint)
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"--{name}: expected a finite number, found {value}")
            if get_origin(kind) is Literal and value not in get_args(kind):
                raise ValueError(f"--{name}: expected one of {', '.join(get_args(kind))}, found {value!r}")
            if kind in (int, float) and not isinstance(value, int | float):
                raise ValueError(f"--{name}: expected a number, found {value!r}")
            for limits in (note for note in notes if isinstance(note, Limits)):
                if not limits.least <= value <= limits.most:
                    bound = f"at least {limits.least}" if value < limits.least else f"at most {limits.most:,}"
                    raise ValueError(f"--{name}: expected {bound}, found {value}")


@functools.cache
def hints(record: type[Settings]) -> dict[str, Any]:
    """The annotated type of each field."""
    return get_type_hints(record, include_extras=True)


def known(record: type[Settings], settings: dict[str, Any]) -> dict[str, Any]:
    """Those settings of a run that the record has a field for, in today's names; an older run may have had others."""
    names = {field.name for field in fields(record)}
    settings = {RENAMED.get(name, name): value for name, value in settings.items()}
    return {name: current_value(name, value) for name, value in settings.items() if name in names}


def current_value(name: str, value: Any) -> Any:
    return RENAMED_VALUES[name].get(value, value) if name in RENAMED_VALUES else value


Record = TypeVar("Record", bound=Settings)


def parse(record: type[Record], argv: Sequence[str], prog: str, description: str, defaults: dict) -> Record:
    """The record that a command line asks for. Raises ValueError with one line.

    `defaults` replace those of the fields. They are taken as they are: limits hold for what comes out in the end.
    """
    base = object.__new__(record)
    for field in fields(record):
        object.__setattr__(base, field.name, defaults.get(field.name, field.default))
    read = functools.partial(tyro.cli, record, default=base, prog=prog, description=description, use_underscores=True)
    words = current_names(record, argv)
    for name, count in given(record, argv).items():
        if count > 1:
            raise ValueError(f"--{name}: expected once, found {count} times")
    for name in (name for name in RENAMED if any(re.fullmatch(f"--{name}(=.*)?", word) for word in argv)):
        print(f"--{name} is called --{RENAMED[name]} now", file=sys.stderr)
    return read(args=words) if {"-h", "--help"} & set(words) else _or_one_line(lambda: read(args=words))


def first_look(record: type[Settings], argv: Sequence[str], names: Sequence[str], settings=None) -> dict[str, Any]:
    """What a command line says of a few flags, over `settings`; the defaults of the others may depend on them."""
    defaults = {field.name: field.default for field in fields(record)} | (settings or {})
    few = make_dataclass("Few", [(name, hints(record)[name], defaults[name]) for name in names])
    words = [word for word in current_names(record, argv) if word not in ("-h", "--help")]
    read = functools.partial(tyro.cli, few, args=words, return_unknown_args=True, use_underscores=True)
    return vars(_or_one_line(read)[0])


def given(record: type[Settings], argv: Sequence[str]) -> Counter[str]:
    """How often each flag stands on a command line, in today's names; --no_x is --x."""
    names = {field.name for field in fields(record)}
    flags = (word[2:].partition("=")[0] for word in current_names(record, argv) if word.startswith("--"))
    return Counter(flag if flag in names else flag.removeprefix("no_") for flag in flags)


def current_names(record: type[Settings], argv: Sequence[str]) -> list[str]:
    """The command line in today's names, with a value after each flag that may stand alone."""
    kind = lambda name: next(iter(get_args(hints(record).get(name))), None)
    words, flag = [], ""
    for word, following in zip(argv, [*argv[1:], "--"]):
        if not word.startswith("--"):
            words.append(current_value(flag, word))
            continue
        flag, *value = word[2:].split("=", 1)
        flag = flag.replace("-", "_")
        flag = RENAMED.get(flag, flag)
        if value:
            words.append(f"--{flag}={current_value(flag, value[0])}")
        elif flag.startswith("no_") and kind(flag[3:]) == (bool | None):
            words += [f"--{flag[3:]}", "False"]
        elif kind(flag) == (bool | None) and following not in ("True", "False", "None"):
            words += [f"--{flag}", "True"]
        elif kind(flag) == (str | None) and following.startswith("--"):
            words += [f"--{flag}", ""]
        else:
            words.append(f"--{flag}")
    return words


# tyro's messages in ours: what was expected, and what was found.
MESSAGES = {
    r"Error parsing (--\w+): invalid literal for int.. with base 10: (.*)": r"\1: expected a whole number, found \2",
    r"Error parsing (--\w+): could not convert string to float: (.*)": r"\1: expected a number, found \2",
    r"invalid choice '(.*)' for argument '(--\w+)'. Expected one of \((.*)\)\.": r"\2: expected one of \3, found '\1'",
    r"Error parsing (--\w+): Could not find valid parse for arguments: (.*)": r"\1: expected other values, found \2",
    r"Missing value for argument '(--\w+)'.*": r"\1: expected a value, found none",
    r"Unrecognized options:(?: (.*))?": r"expected flags and their values (--help lists them), found \1",
    r"Error parsing \w+: (.*)": r"\1",
}


def _or_one_line(read):
    """What `read` returns; its complaint, which tyro draws as a box, as a ValueError with one line."""
    width, said = os.environ.get("COLUMNS"), io.StringIO()
    os.environ["COLUMNS"] = "10000"  # so that no message is broken
    try:
        with contextlib.redirect_stderr(said), warnings.catch_warnings(action="ignore"):
            return read()
    except SystemExit:
        lines = [
            re.sub(r"^[ │╭╮╰╯─-]+(?=--\w)|^[ │╭╮╰╯─-]+|[ │╭╮╰╯─]+$", "", line) for line in said.getvalue().splitlines()
        ]
        message = next(line for line in list(filter(None, lines))[1:])
        for theirs, ours in MESSAGES.items():
            message = re.sub(f"^{theirs}$", ours, message)
        meant = [line.split()[0].rstrip(",") for line in lines if line.startswith("--")]
        raise ValueError(message + (f" (perhaps {meant[0]}?)" if "Perhaps you meant:" in lines else "")) from None
    finally:
        os.environ.pop("COLUMNS") if width is None else os.environ.update(COLUMNS=width)


@contextlib.contextmanager
def one_line_errors(prog: str, *expected: type[Exception]) -> Iterator[None]:
    """Around a command: what was wrong becomes one line and exit code 2, Ctrl-C one line and 130.

    Nobody need read the output: a closed pipe ends no run, and what a console cannot show is written as an escape.
    """
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(Unbroken, streams)
    try:
        yield
    except ImportError as error:
        missing = f": pip install {error.name}" if error.name else ""
        complain(prog, f"{error}{missing}")
    except (ValueError, OSError, MemoryError, *expected) as error:
        complain(prog, error)
    except KeyboardInterrupt:
        complain(prog, "interrupted", 130)
    finally:
        sys.stdout, sys.stderr = streams


class Unbroken:
    """A stream that may lose its reader."""

    def __init__(self, stream):
        self.stream = stream
        with contextlib.suppress(AttributeError, ValueError, io.UnsupportedOperation):
            stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        with contextlib.suppress(BrokenPipeError):
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self.stream.flush()


def complain(prog: str, error: Exception | str, code: int = 2) -> NoReturn:
    """Ends a command with one line."""
    print(f"{prog}: error: {' '.join(str(error).split())}", file=sys.stderr)
    raise SystemExit(code)
