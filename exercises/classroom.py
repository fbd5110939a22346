"""For the teacher: what students hand in, graded again, summed up and pooled; and a page on each exercise.

The code in a submission is a stranger's: it is run in a process with limits (`child.py`), which is no protection
against malice; grade in a container or a throwaway account. Left out: reading the files (`submissions.py`).
"""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

from data.format import printable
from exercises import grading
from exercises.bugs import BUGS
from exercises.copies import ABOUT, Copy, blank_texts, edited, version_of_sources, write_project
from exercises.course import Exercise, load_course
from exercises.experiments import EXPERIMENTS, fitting, pooled
from exercises.hunt import Hunt, points


def pool(handed_in: dict[str, dict], only: str = "") -> str:
    """A table for each experiment that anybody ran, or for one; below it who predicted what, and who is missing."""
    parts = []
    for name in [only] if only else EXPERIMENTS:
        runs = {student: h["experiments"][name] for student, h in handed_in.items() if name in h["experiments"]}
        if not runs:
            continue
        kept, lines = fitting(name, runs)
        for student, run in runs.items():
            if run.get("predicted"):
                lines.append(f"{student} predicted: {printable(str(run['predicted'])[:500])}")
        if missing := [student for student in handed_in if student not in runs]:
            lines.append(f"without this experiment: {', '.join(missing)}")
        parts.append("\n".join([pooled(name, kept), *lines]))
    if not parts:
        told = f"python -m exercises experiment {only or 'NAME'}"
        what = f"the experiment {only}" if only else "an experiment"
        raise ValueError(f"expected submissions with {what}, found none ({told})")
    return "\n\n".join(parts)


# ---------------------------------------------------------------------------------- exercises


def summary(handed_in: dict[str, dict]) -> str:
    """Students by exercises, attempts until right; then which mistakes were made, by how many students."""
    course, wide = load_course(), widest(handed_in)
    lines = [f"{'':{wide}s}" + "".join(f"{exercise.number:>8d}" for exercise in course) + "  hunt"]
    for student, handed in handed_in.items():
        cells = [attempts_of(handed["attempts"], exercise.number) for exercise in course]
        hunted = max((points(note["hunt"]) for note in handed["attempts"] if "hunt" in note), default="")
        lines.append(f"{student:{wide}s}" + "".join(f"{cell:>8s}" for cell in cells) + f"{hunted:>6}")
    if len(versions := {handed["version"] for handed in handed_in.values()}) > 1:
        lines.append(f"These files are of {len(versions)} versions of the project: regrade and pool take one alone.")
    lines.append(
        "A number: right at that attempt. x: tried and not right. ~: begun, a part still to write. Empty: not tried. "
        "2h: two hints. hunt: of five points.\n"
    )
    return "\n".join(lines + mistakes_made(handed_in))


def widest(handed_in: dict[str, dict]) -> int:
    return max(map(len, handed_in)) + 1


def attempts_of(notes: list[dict], number: int) -> str:
    """The cell of an exercise in a student's row."""
    tried = [note["kind"] for note in notes if note.get("exercise") == number]
    whole = [kind for kind in tried if kind != "begun"]
    state = str(whole.index("right") + 1) if "right" in whole else "x" if whole else "~" if tried else ""
    hints = sum(note.get("hint") == number for note in notes)
    return f"{state} {hints}h".strip() if hints else state


def mistakes_made(handed_in: dict[str, dict]) -> list[str]:
    """A line for each mistake, the most frequent first, with those with whom it is still open."""
    made: dict[tuple[int, str], dict[str, bool]] = {}
    for student, handed in handed_in.items():
        tried = [note for note in handed["attempts"] if note.get("kind") in ("known", "wrong", "error", "right")]
        last = {note["exercise"]: note for note in tried}
        for note in tried:
            if note["kind"] != "right":
                unnamed = {"wrong": "another mistake", "error": "an error"}
                what = "perhaps " * note.get("perhaps", False) + (note["mistake"] or unnamed.get(note["kind"], "?"))
                students = made.setdefault((note["exercise"], what), {})
                students[student] = students.get(student, False) or last[note["exercise"]] is note
    lines = []
    for (number, what), students in sorted(made.items(), key=lambda item: (-len(item[1]), item[0])):
        still = ", ".join(sorted(student for student, is_open in students.items() if is_open))
        told = f"; still open: {still}" if still else ""
        lines.append(f"{len(students):3d} of {len(handed_in)}  exercise {number}: {printable(what)}{told}")
    return lines


def hunts(handed_in: dict[str, dict]) -> str:
    """What everybody wrote in the bug hunt, to be marked."""
    found = [(student, file, text) for student, handed in handed_in.items()
             for file, text in handed.get("hunt", {}).items()]  # fmt: skip
    shown = lambda text: "\n".join(f"    {printable(line)}" for line in text.splitlines())
    return "\n\n".join(f"{student}, {file}:\n{shown(text)}" for student, file, text in found) or "no hunts handed in"


def regrade(handed_in: dict[str, dict], seed: int) -> Iterator[str]:
    """Everybody's code on new inputs, a line for each student as it is done; * where it is not what it had been."""
    course = load_course()
    wide = widest(handed_in)
    yield f"{'':{wide}s}" + "".join(f"{exercise.number:>7d}" for exercise in course) + f"   with seed {seed}"
    for student, handed in handed_in.items():
        before = {note["exercise"]: note["kind"] for note in handed["attempts"] if "exercise" in note}
        try:
            verdicts = sorted(grade_again(handed, course, seed), key=lambda verdict: verdict.number)
        except ValueError as error:
            yield f"{student:{wide}s}  {error}"
            continue
        kinds = [(v.kind, v.kind != before.get(v.number, "blank")) for v in verdicts]
        yield f"{student:{wide}s}" + "".join(f"{kind + '*' * changed:>7s}" for kind, changed in kinds)
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
