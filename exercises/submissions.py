"""What a student hands in: one small JSON file; and reading those of a class.

It says who, what was tried and when, the lines that the student wrote, what was found in the hunt and the numbers of
experiments. A file that cannot be read is left out and told of; it does not hold up the others. Left out: what is made
of them (`classroom.py`).
"""

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from exercises.copies import Copy, checked_note, is_name
from exercises.experiments import checked_run

HUNTED = "answer.txt", "test_hunt.py"  # what a student writes in a hunt
LONGEST = 20_000  # characters of each that are handed in


def submission(copy: Copy) -> dict:
    results = {}
    for file in sorted(copy.folder.glob("experiments/*.json")):
        try:
            results[file.stem] = checked_run(file.stem, json.loads(file.read_text(encoding="utf-8")), copy.seed)
        except ValueError as error:
            raise ValueError(f"{file}: {error}; delete it and run the experiment again") from None
    hunted = {name: copy.folder / "hunt" / name for name in HUNTED}
    read = lambda file: file.read_text(encoding="utf-8", errors="replace")[:LONGEST]
    return {
        "name": copy.name,
        "id": copy.id,
        "time": round(time.time()),
        "seed": copy.seed,
        "version": copy.version,
        "attempts": copy.notes(),
        "changes": copy.changes(),
        "hunt": {name: read(file) for name, file in hunted.items() if file.is_file()},
        "experiments": results,
    }


@dataclass
class Class:
    students: dict[str, dict] = field(default_factory=dict)  # what each handed in, by a name of their own
    said: list[str] = field(default_factory=list)  # which names were told apart, which files taken
    left_out: list[str] = field(default_factory=list)  # files, and why


def read_submissions(places: Iterable[Path]) -> Class:
    """Those of files, and of folders' JSON files. Raises ValueError where none can be read."""
    found, by_student = Class(), {}
    for file in files_of(places, found.left_out):
        try:
            handed = checked(read(file))
        except (ValueError, OSError, RecursionError) as error:
            why = error.strerror if isinstance(error, OSError) else str(error)
            told = f"{', ' if why.startswith('found') else ': '}{why}"
            found.left_out.append(f"{file} is left out: expected a file that `submit` wrote{told}")
            continue
        by_student.setdefault((handed["name"], handed.get("id", ""), handed["seed"]), []).append((file, handed))
    if not by_student:
        raise ValueError("\n".join(found.left_out))
    for (name, *_), files in by_student.items():
        own = next(n for n in names(name) if n not in found.students)
        file, found.students[own] = latest(files)
        if own != name:
            found.said.append(f"{own}: another copy than the first one called {name} ({file})")
        if len(files) > 1:
            found.said.append(f"{own}: {len(files)} files, of which the latest is taken, {file}")
    return found


def files_of(places: Iterable[Path], left_out: list[str]) -> Iterable[Path]:
    for place in places:
        files = sorted(place.glob("*.json")) if place.is_dir() else [place]
        if not files:
            left_out.append(f"no submissions in {place}")
        yield from files


def names(name: str) -> Iterable[str]:
    """The name, then such as "anna (2)", which nobody can be called."""
    yield name
    n = 1
    while n := n + 1:
        yield f"{name} ({n})"


def latest(files: list[tuple[Path, dict]]) -> tuple[Path, dict]:
    """By the time of `submit`; files without one are of an older version, and dated by the last attempt."""
    when = lambda handed: handed.get("time") or max((note["time"] for note in handed["attempts"]), default=0)
    return max(reversed(files), key=lambda pair: when(pair[1]))


def read(file: Path) -> object:
    """Raises ValueError in words that a teacher can use."""
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError("found no text in UTF-8 (stored anew by an editor?)") from None
    if not text.strip():
        raise ValueError("found an empty file")
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"found no whole JSON ({error})") from None


def checked(handed: object) -> dict:
    """What a file holds, if all of it is what a submission has. Raises ValueError."""
    kinds = {"name": str, "seed": int, "version": str, "attempts": list, "changes": dict, "experiments": dict}
    later = {"id": str, "time": int, "hunt": dict}  # which older versions did not write
    for key, kind in (kinds | later).items():
        found = handed.get(key, kind() if key in later else None) if isinstance(handed, dict) else None
        if not isinstance(found, kind):
            raise ValueError(f"expected {key!r}, a {kind.__name__}, found {str(found)[:80]!r}")
    if not is_name(handed["name"]):
        raise ValueError(f"expected a student's name, found {handed['name']!r}")
    for note in handed["attempts"]:
        checked_note(note)
    for made in handed["changes"].values():
        if not isinstance(made, list) or not all(map(is_change, made)):
            raise ValueError(f"expected changes, each [first line, last line, new lines], found {str(made)[:80]}")
    if odd := [name for name, text in handed.get("hunt", {}).items() if not isinstance(text, str)]:
        raise ValueError(f"expected the hunt's texts, found none in {str(odd)[:80]}")
    for name, run in handed["experiments"].items():
        checked_run(name, run, handed["seed"])
    return handed


def is_change(made: object) -> bool:
    """Whether it is one of those that `Copy.changes` lists."""
    if not isinstance(made, list) or list(map(type, made)) != [int, int, list]:
        return False
    return 0 <= made[0] <= made[1] and all(isinstance(line, str) for line in made[2])
