"""A student's copy of the project: the asked statements taken out, and nothing in it that gives them away.

It holds the modules, the built-in models and the requirements; no tests, documents, history or exercises. Left out:
grading (`grading.py`).
"""

import hashlib
import json
import secrets
import shutil
import unicodedata
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cache
from pathlib import Path

from exercises.course import Exercise, load_course
from exercises.patches import ROOT, blanked, project_modules, source

KEPT = "LICENSE", "requirements.txt"  # beside the modules and the built-in models
ABOUT, ATTEMPTS = "student.json", "attempts.jsonl"
# So that `python -m exercises` can be said in the copy as well.
FORWARD = '''"""Says the command in the checkout, which has the exercises, for this copy."""

import subprocess
import sys
from pathlib import Path

checkout = Path({checkout!r})
if not (checkout / "exercises").is_dir():
    print(f"exercises: expected the checkout in {{checkout}}, found none: say this in the checkout", file=sys.stderr)
    raise SystemExit(2)
here = ["--copy", str(Path(__file__).parent)] if sys.argv[1:] else []
raise SystemExit(subprocess.call([sys.executable, "-m", "exercises", *sys.argv[1:], *here], cwd=checkout))
'''
HIDDEN = "left out of this copy, since it would give exercise {} away"


@dataclass(frozen=True)
class Copy:
    """A student's folder. `seed` draws all that is random in the exercises; it comes from the name."""

    folder: Path
    name: str
    seed: int
    version: str  # of the sources that it was made of
    id: str = ""  # drawn by chance, to tell two of one name apart; copies of an older version have none

    @classmethod
    def open(cls, folder: Path) -> "Copy":
        file = folder / ABOUT
        if not file.is_file():
            raise ValueError(f"expected a copy made by `python -m exercises start NAME`, found no {file}")
        try:
            about = json.loads(file.read_text(encoding="utf-8"))
            own = str(about["name"]), int(about["seed"]), str(about["version"]), str(about.get("id", ""))
            return cls(folder.resolve(), *own)
        except (ValueError, LookupError, TypeError) as error:
            told = f"expected what `start` wrote, a name, a seed and a version, found {type(error).__name__}: {error}"
            raise ValueError(f"{file}: {told}") from None

    def note(self, entry: dict) -> None:
        with (self.folder / ATTEMPTS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def notes(self) -> list[dict]:
        file, found = self.folder / ATTEMPTS, []
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines() if file.exists() else [], 1):
            try:
                found.append(checked_note(json.loads(line)))
            except ValueError:
                told = f"expected what `grade` notes, found {line[:80]!r}; delete that line to go on"
                raise ValueError(f"{file}:{number}: {told}") from None
        return found

    def changes(self) -> dict[str, list]:
        """What the student changed in each file: [first line, last line, new lines] of the file as it was given."""
        return {file: made for file, text in blank_texts().items() if (made := edits(text, self._text(file)))}

    def _text(self, file: str) -> str:
        try:
            return (self.folder / file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{self.folder / file}: expected a text in UTF-8, found {error}") from None


def checked_note(note: dict) -> dict:
    """A line of the attempts. Raises ValueError."""
    kinds = {"time": int, "exercise": int, "kind": str, "mistake": str, "seed": int, "hint": int, "hunt": list}
    kinds["perhaps"] = bool  # the mistake explains only some of the answers
    graded = {"exercise", "kind", "mistake"}
    right = isinstance(note, dict) and "time" in note and (not graded & set(note) or graded <= set(note))
    if not right or any(not isinstance(value, kinds.get(name, object)) for name, value in note.items()):
        raise ValueError(f"expected an attempt, a hint or a hunt with its time, found {str(note)[:80]}")
    return note


def is_name(text: str) -> bool:
    """Letters, with their marks, and digits, points, dashes; none that could lead out of a folder."""
    fits = lambda char: char.isalnum() or char in "_.-" or unicodedata.category(char).startswith("M")
    return bool(text) and (text[0].isalnum() or text[0] == "_") and all(map(fits, text))


def seed_of(name: str) -> int:
    """A class of thirty has two of one seed once in two thousand times."""
    return zlib.crc32(name.encode()) % 1_000_000


def version_of_sources() -> str:
    return hashlib.sha256("".join(source(file) for file in project_files()).encode()).hexdigest()[:12]


def project_files() -> list[str]:
    return [str(path.relative_to(ROOT)) for path in project_modules().values()]


@cache
def blank_texts() -> dict[str, str]:
    """The files of the project that the exercises change."""
    asked = [(blank, told) for exercise in load_course() for blank, told in zip(exercise.blanks, exercise.asks)]
    hidden = [(blank, HIDDEN.format(exercise.number)) for exercise in load_course() for blank in exercise.hides]
    return blanked(asked + hidden)


def write_project(folder: Path, texts: dict[str, str]) -> None:
    """The project in a folder, with some of its files' texts replaced."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "data", folder / "data", ignore=ignored, dirs_exist_ok=True)  # the built-in models among it
    for file in project_files():
        (folder / file).write_text(texts.get(file) or source(file), encoding="utf-8")
    for name in KEPT:
        shutil.copy(ROOT / name, folder / name)


def make_copy(folder: Path, name: str, seed: int) -> Copy:
    """Raises ValueError where there is something already."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(
            f"{folder}: expected a new folder, found one that is not empty; choose another name or --folder"
        )
    write_project(folder, blank_texts())
    about = {"name": name, "seed": seed, "version": version_of_sources(), "id": secrets.token_hex(6)}
    (folder / ABOUT).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    (folder / "exercises.py").write_text(FORWARD.format(checkout=str(ROOT)), encoding="utf-8")
    (folder / "EXERCISES.md").write_text(worksheet(load_course(), name), encoding="utf-8")
    return Copy.open(folder)


def worksheet(course: Iterable[Exercise], name: str) -> str:
    lines = [
        f"# Exercises of {name}\n",
        "Each place below raises an error until it is written: search for `exercise 3:` to find it. Work on them in "
        "any order, in this folder. Whether they are right is said in seconds, here or in the checkout "
        f"({ROOT}), by\n",
        "    python -m exercises grade\n",
        "When all are, what works here is ARPO, yours: `python train.py`. Until then it stops at what is missing.\n",
    ]
    for exercise in course:
        places = ", ".join(f"`{place}`" for place in exercise.places)
        lines.append(
            f"## {exercise.number}. {exercise.title} ({exercise.minutes} minutes)\n\n{places}\n\n{exercise.task}\n"
        )
    return "\n".join(lines)


def edits(before: str, after: str) -> list[list]:
    old, new = before.splitlines(), after.splitlines()
    found = SequenceMatcher(None, old, new).get_opcodes()
    return [[i, j, new[k:m]] for kind, i, j, k, m in found if kind != "equal"]


def edited(before: str, made: list[list]) -> str:
    lines = before.splitlines()
    for i, j, new in sorted(made, reverse=True):
        lines[i:j] = new
    return "\n".join(lines) + "\n"
