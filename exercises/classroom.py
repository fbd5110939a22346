"""For the teacher: what students hand in, graded again, summed up and pooled; and a page on each exercise.

A submission is one small JSON file: who, what was tried and when, the lines that the student wrote, and the numbers of
experiments. Nothing leaves a laptop unless the student hands this file in. The code in it is a stranger's: it is run in
a process with limits (`child.py`), which is no protection against malice; grade in a container or a throwaway account.
"""

import json
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from data.format import printable
from exercises import grading
from exercises.bugs import BUGS
from exercises.copies import ABOUT, NAME, Copy, blank_texts, checked_note, edited, version_of_sources, write_project
from exercises.course import Exercise, load_course
from exercises.experiments import EXPERIMENTS, checked_run, pooled
from exercises.hunt import Hunt


def submission(copy: Copy) -> dict:
    results = {}
    for file in sorted(copy.folder.glob("experiments/*.json")):
        try:
            results[file.stem] = checked_run(file.stem, json.loads(file.read_text(encoding="utf-8")), copy.seed)
        except ValueError as error:
            raise ValueError(f"{file}: {error}; delete it and run the experiment again") from None
    return {
        "name": copy.name,
        "seed": copy.seed,
        "version": copy.version,
        "attempts": copy.notes(),
        "changes": copy.changes(),
        "experiments": results,
    }


def read_submissions(files: Iterable[Path]) -> dict[str, dict]:
    """By name; of two by one student the later one. Raises ValueError for a file that is none, or two of one name."""
    found: dict[str, dict] = {}
    for file in files:
        try:
            handed_in = checked(json.loads(file.read_text(encoding="utf-8")))
        except ValueError as error:
            raise ValueError(f"{file}: expected a file that `submit` wrote: {error}") from None
        name = handed_in["name"]
        if name in found and found[name]["seed"] != handed_in["seed"]:
            raise ValueError(f"{file}: expected one student of each name, found two called {name}")
        if name not in found or len(handed_in["attempts"]) >= len(found[name]["attempts"]):
            found[name] = handed_in
    return found


def checked(handed_in: dict) -> dict:
    """What a file holds, if all of it is what a submission has. Raises ValueError."""
    kinds = {"name": str, "seed": int, "version": str, "attempts": list, "changes": dict, "experiments": dict}
    for key, kind in kinds.items():
        found = handed_in.get(key) if isinstance(handed_in, dict) else None
        if not isinstance(found, kind):
            raise ValueError(f"expected {key!r}, a {kind.__name__}, found {str(found)[:80]!r}")
    if not re.fullmatch(NAME, handed_in["name"]):
        raise ValueError(f"expected a student's name, found {handed_in['name']!r}")
    for note in handed_in["attempts"]:
        checked_note(note)
    for made in handed_in["changes"].values():
        if not isinstance(made, list) or not all(map(is_change, made)):
            raise ValueError(f"expected changes, each [first line, last line, new lines], found {str(made)[:80]}")
    for name, run in handed_in["experiments"].items():
        checked_run(name, run, handed_in["seed"])
    return handed_in


def is_change(made: object) -> bool:
    """Whether it is one of those that `Copy.changes` lists."""
    if not isinstance(made, list) or list(map(type, made)) != [int, int, list]:
        return False
    return 0 <= made[0] <= made[1] and all(isinstance(line, str) for line in made[2])


def pool(handed_in: dict[str, dict]) -> str:
    """A table for each experiment that anybody ran; who is missing is named."""
    parts = []
    for name in EXPERIMENTS:
        runs = {student: h["experiments"][name] for student, h in handed_in.items() if name in h["experiments"]}
        if not runs:
            continue
        seeds = Counter(run["seed"] for run in runs.values())
        if twice := [student for student, run in runs.items() if seeds[run["seed"]] > 1]:
            raise ValueError(f"{name}: expected a seed for each student, found one seed in {', '.join(twice)}")
        numbers = Counter(str(run["arms"]) for run in runs.values())
        if twice := [student for student, run in runs.items() if numbers[str(run["arms"])] > 1]:
            raise ValueError(f"{name}: expected a run of each student, found the same numbers in {', '.join(twice)}")
        missing = [student for student in handed_in if student not in runs]
        parts.append(pooled(name, runs) + (f"\nwithout this experiment: {', '.join(missing)}" if missing else ""))
    if not parts:
        raise ValueError("expected submissions with an experiment, found none (python -m exercises experiment NAME)")
    return "\n\n".join(parts)


# ---------------------------------------------------------------------------------- exercises


def summary(handed_in: dict[str, dict]) -> str:
    """Students by exercises, attempts until right; then which mistakes were made, by how many students."""
    course = load_course()
    lines = [f"{'':16s}" + "".join(f"{exercise.number:>6d}" for exercise in course) + "  hunt  hints  minutes"]
    made: dict[tuple[int, str], set[str]] = {}
    open_still: dict[tuple[int, str], set[str]] = {}
    for student, handed in handed_in.items():
        notes = handed["attempts"]
        tried = [note for note in notes if "exercise" in note]
        last = {note["exercise"]: note for note in tried}
        for note in tried:
            if note["kind"] in ("known", "wrong", "error"):
                what = (
                    note["exercise"],
                    note["mistake"] or {"wrong": "another mistake", "error": "an error"}[note["kind"]],
                )
                made.setdefault(what, set()).add(student)
                if last[note["exercise"]] == note:
                    open_still.setdefault(what, set()).add(student)
        times = [note["time"] for note in notes]
        minutes = (max(times) - min(times)) / 60 if times else 0
        cells = [attempts_of([note for note in tried if note["exercise"] == exercise.number]) for exercise in course]
        hints = sum("hint" in note for note in notes)
        hunt = max((len(note["hunt"]) for note in notes if "hunt" in note), default="")
        row = "".join(f"{cell:>6s}" for cell in cells) + f"{hunt:>6}{hints:7d}{minutes:9.0f}"
        lines.append(f"{student:16.16s}" + row)
    if len(versions := {handed["version"] for handed in handed_in.values()}) > 1:
        lines.append(f"These files are of {len(versions)} versions of the project: regrade and pool take one alone.")
    lines.append("A number: right at that attempt. x: tried and not right. Empty: not tried. hunt: of five points.\n")
    for (number, mistake), students in sorted(made.items(), key=lambda item: (-len(item[1]), item[0])):
        now = ", ".join(sorted(open_still.get((number, mistake), ())))
        still = f"; still open: {now}" if now else ""
        lines.append(f"{len(students):3d} of {len(handed_in)}  exercise {number}: {mistake}{still}")
    for student, handed in handed_in.items():
        for name, run in handed["experiments"].items():
            if run.get("predicted"):
                lines.append(f"{student} predicted for {name}: {printable(str(run['predicted'])[:500])}")
    return "\n".join(lines)


def attempts_of(notes: list[dict]) -> str:
    right = next((n for n, note in enumerate(notes, 1) if note["kind"] == "right"), None)
    return str(right) if right else "x" if notes else ""


def regrade(handed_in: dict[str, dict], seed: int) -> Iterator[str]:
    """Everybody's code on new inputs, a line for each student as it is done; * where it is not what it had been."""
    course = load_course()
    yield f"{'':16s}" + "".join(f"{exercise.number:>7d}" for exercise in course) + f"   with seed {seed}"
    for student, handed in handed_in.items():
        before = {note["exercise"]: note["kind"] for note in handed["attempts"] if "exercise" in note}
        try:
            verdicts = sorted(grade_again(handed, course, seed), key=lambda verdict: verdict.number)
        except ValueError as error:
            yield f"{student:16.16s}  {error}"
            continue
        kinds = [(v.kind, v.kind != before.get(v.number, "blank")) for v in verdicts]
        yield f"{student:16.16s}" + "".join(f"{kind + '*' * changed:>7s}" for kind, changed in kinds)
    yield "known: a known mistake. *: another verdict than the student's last one."


def grade_again(handed: dict, course: list[Exercise], seed: int) -> list[grading.Verdict]:
    """Raises ValueError if the submission is of another version of the project."""
    if handed["version"] != (own := version_of_sources()):
        raise ValueError(f"expected a submission of this version, {own}, found {handed['version']}")
    blank = blank_texts()
    texts = blank | {file: edited(blank[file], made) for file, made in handed["changes"].items() if file in blank}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "copy")
        write_project(folder, texts)
        about = {"name": handed["name"], "seed": handed["seed"], "version": handed["version"]}
        (folder / ABOUT).write_text(json.dumps(about), encoding="utf-8")
        return list(grading.grade(Copy.open(folder), course, seed, told=lambda text: None))


def rubric(exercises: list[Exercise], bugs: bool = False) -> str:
    """A page on each exercise: aim, misconception, known mistakes, points and the question to ask; then the bugs."""
    pages = []
    for exercise in exercises:
        mistakes = "\n".join(f"- **{mistake.name}.** {mistake.why}" for mistake in exercise.mistakes)
        places = ", ".join(f"`{place}`" for place in exercise.places)
        pages.append(
            f"# {exercise.number}. {exercise.title} ({exercise.minutes} minutes, {'core' if exercise.core else 'more'})"
            f"\n\n{places}\n\n{exercise.task}\n\nWhat is understood: {exercise.idea}\n\nThe misconception: "
            f"{exercise.misconception}.\n\n{mistakes}\n\nPoints: 2 if right, 1 with a hint, 1 more for the answer to: "
            f"{exercise.question} ({exercise.answer})\n"
        )
    if bugs:
        rows = "\n".join(f"| {b.name} | {b.level} | `{b.place}` | {b.shows} | `{b.caught_by}` |" for b in BUGS)
        seeds = "\n".join(f"`bug --seed {seed}`: {Hunt.planted(seed, 0)}" for seed in range(1, 10))
        rows += f"\n\n{seeds}"
        pages.append(f"# Bugs\n\n| bug | level | place | what shows it | caught by |\n|---|---|---|---|---|\n{rows}\n")
    return "\n".join(pages)
