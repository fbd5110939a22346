"""Rows of files and of sets on the hub: how they are found and read, and what is wrong with one, in a line.

JSON, JSON lines, parquet and CSV. Left out: what a row means (`benchmarks.py`, `conversations.py`).
"""

import ast
import csv
import difflib
import io
import json
import os
import re
import sys
from collections.abc import Iterable
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

DEV_ROWS = 500  # cut off the end of a training split, so that choosing a model does not see the test
MIXTURE = "expected one source, or name=weight,name=weight with weights above 0"

WORLDS = "world", "trails"  # names that mean no rows, but may have been meant

Rows = list[tuple[str, object]]  # (such as "line 3", the row)


@dataclass(frozen=True)
class Benchmark:
    """A set of questions on the hub."""

    hub: str  # id on the hub
    split: str  # what results are reported on
    size: int  # its rows; 0 where that is not known
    metric: str  # a key of grading.METRICS
    licence: str
    config: str | None = None
    train: str = ""  # the hub's split to train on; "" for sets that are for testing alone
    gated: bool = False


def path_of(name: str) -> Path | None:
    """The file that a name means, because it exists or because the name can mean nothing else."""
    path = Path(os.path.expanduser(name))  # Path's own raises for a user that does not exist
    looks = re.match("[/.~]|runs/|.*/$", name) or path.suffix.lower() in READERS or len(path.parts) > 2
    return path if looks or path.is_file() or (path.parent.name and path.parent.is_dir()) else None


def find_rows(name: str, hub_set: Benchmark | None, split: str, what: str, known: Iterable[str]) -> Rows:
    """The rows of a file or of a set on the hub; ValueError says what a name that is neither may have meant."""
    path = path_of(name)
    if path and path.is_file() and path.suffix.lower() in READERS:
        return READERS[path.suffix.lower()](path)
    if path and path.is_file():
        raise ValueError(
            f"{name}: expected a file that ends in {', '.join(READERS)}, found another: unpack or convert it"
        )
    if hub_set and not path:
        return hub_rows(hub_set, name, split)
    around = {other.name for other in path.parent.glob("*")} - {path.name} if path else {*known, *WORLDS}
    meant = difflib.get_close_matches(path.name if path else name, around, 1, 0.8)
    hint = f"; did you mean {meant[0]}?" if meant else f"; {MIXTURE}" if re.search("[=,]", name) else ""
    if path:
        found = "a folder" if path.is_dir() else "no such file"
        raise ValueError(f"{name}: expected a file, found {found}{hint}")
    files = ", ".join(READERS)
    expected = f"{', '.join(WORLDS)}, {', '.join(known)}, a hub id, or a {files} file"
    raise ValueError(f"unknown {what} {name!r}: expected {expected}{hint}")


def hub_rows(benchmark: Benchmark, name: str, split: str = "") -> Rows:
    """Rows of a set on the hub: those that train or dev are cut from, or else of the split that it names.

    Of a set that names none: its training split, or whatever it has.
    """
    if split == "train" and not benchmark.train:
        raise ValueError(f"{name}: expected a set with training questions, found one that is a test alone")
    parts = {"train": f"[:-{DEV_ROWS}]", "dev": f"[-{DEV_ROWS}:]"}
    wanted = benchmark.train + parts[split] if benchmark.train and split in parts else benchmark.split or None
    no_file = "" if benchmark.licence else f"; and there is no file {name}"
    try:
        from datasets import load_dataset
    except ImportError:
        raise ValueError(f"{name}: sets of the hub need the package datasets (pip install datasets){no_file}") from None
    try:
        found = load_dataset(benchmark.hub, benchmark.config, split=wanted)
    except Exception as error:  # the library raises its own, httpx's and fsspec's errors
        terms = f"accept its terms at huggingface.co/datasets/{benchmark.hub}, then run `hf auth login`"
        hint = f"; it is gated: {terms}" if benchmark.gated else ""
        raise ValueError(f"cannot load {benchmark.hub}: {_first_line(error)}{hint}{no_file}") from None
    rows = _numbered(found if wanted else found.get("train") or next(iter(found.values())))
    if wanted == benchmark.split and benchmark.size not in (0, len(rows)):
        print(f"{name}: expected {benchmark.size:,} rows, found {len(rows):,}", file=sys.stderr)
    return rows


def _jsonl_rows(path: Path) -> Rows:
    # Bytes: a text's splitlines() would also split at the line separators that JSON allows inside strings.
    lines = [(f"line {number}", line) for number, line in enumerate(path.read_bytes().splitlines(), 1) if line.strip()]
    if lines and lines[0][1].strip() in (b"[", b"{"):
        raise ValueError(f"{path}: expected an object on each line, found one over several; an array is named .json")
    return lines


def _json_rows(path: Path) -> Rows:
    with naming(str(path), "read as JSON"):
        try:
            rows = json.loads(path.read_bytes())
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{_first_line(error)}{'; lines of JSON are named .jsonl' * (error.msg == 'Extra data')}"
            ) from None
        if not isinstance(rows, list):
            lists = [key for key, value in rows.items() if isinstance(value, list)] if isinstance(rows, dict) else []
            inside = f" with a list under {', '.join(lists)}: save that alone" if lists else ""
            raise ValueError(f"expected an array, found {type(rows).__name__}{inside}")
    return _numbered(rows)


def _csv_rows(path: Path) -> Rows:
    """Lines under a heading, between commas, semicolons or tabs."""
    csv.field_size_limit(2**31 - 1)
    with naming(str(path), "read as CSV"):
        text = path.read_bytes().decode("utf-8-sig")
        delimiter = max(",;\t", key=text.partition("\n")[0].count)
        return _numbered(csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))


def _parquet_rows(path: Path) -> Rows:
    try:
        import pyarrow
        from pyarrow.parquet import read_table
    except ImportError:
        raise ValueError(f"{path}: parquet files need pyarrow (pip install pyarrow)") from None
    try:
        return _numbered(read_table(path.open("rb")).to_pylist())
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path}: expected parquet, found not a whole parquet file ({_first_line(error)})") from None


def _numbered(rows: Iterable) -> Rows:
    return [(f"row {number}", row) for number, row in enumerate(rows, start=1)]


READERS = {".json": _json_rows, ".jsonl": _jsonl_rows, ".parquet": _parquet_rows}
READERS |= {".csv": _csv_rows, ".tsv": _csv_rows}


def as_record(row) -> dict:
    """The object that a row is, or that its line of JSON says."""
    record = json.loads(row) if isinstance(row, bytes) else row
    if not isinstance(record, dict):
        hint = " (an array of rows is named .json)" if isinstance(record, list) else ""
        raise ValueError(f"expected an object, found {type(record).__name__}{hint}")
    if None in record:
        raise ValueError(f"expected {len(record) - 1} values as in the heading, found more: {record[None]!r:.40}")
    return record


def unpacked(value) -> object:
    """The list of texts or objects that a text writes down, in JSON or as Python does."""
    for read in (json.loads, ast.literal_eval) if isinstance(value, str) and re.match(r"\[\s*[\"'{]", value) else ():
        with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            return read(value)
    return value


def plain_text(content) -> object:
    """A message's text, also where it comes in parts."""
    parts = [part.get("text") for part in content if isinstance(part, dict)] if isinstance(content, list) else []
    whole = parts and len(parts) == len(content) and all(isinstance(part, str) for part in parts)
    return "".join(parts) if whole else content


@contextmanager
def naming(source: str, place: str):
    """What goes wrong inside with a row becomes a ValueError that says in one line which row it was."""
    try:
        yield
    except csv.Error as error:
        raise ValueError(f"{source}, {place}: expected rows between quotes that close, found {error}") from None
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise ValueError(f"{source}, {place}: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"expected text in UTF-8, found the byte {error.object[error.start]:#x} at {error.start}"
    if isinstance(error, json.JSONDecodeError):
        return f"expected JSON, found none ({error})"
    return (str(error).strip() or type(error).__name__).splitlines()[0]
