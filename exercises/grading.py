"""Judging a student's copy: right, a known mistake, an unknown one, an error, or still blank.

What is right is computed here, without the project's code; what the known mistakes answer, by the project's code with
a fragment replaced. The student's code answers in a process of its own (`child.py`). Left out: who the student is.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exercises.copies import Copy, version_of_sources
from exercises.course import Exercise, Mistake, close
from exercises.patches import ROOT

KNOWN = ROOT / "exercises" / ".known"  # what the known mistakes answer, by seed; no student needs to see it
SECONDS = 10  # of processor time for an exercise; the first needs some to load what the project stands on
PATIENCE = 300  # seconds by the clock, after which the student's process is ended


UNREADABLE = "SyntaxError", "IndentationError", "TabError"  # of one file, which others need


@dataclass(frozen=True)
class Verdict:
    number: int
    kind: str  # right, known, wrong, error, blank
    mistake: str = ""  # the name of a known one
    text: str = ""  # for the student

    @property
    def right(self) -> bool:
        return self.kind == "right"


def grade(copy: Copy, exercises: list[Exercise], seed: int) -> list[Verdict]:
    """Runs the copy's code on inputs drawn from the seed."""
    cases = {exercise.number: exercise.cases(seed) for exercise in exercises}
    found = run_student(copy.folder, exercises, cases)
    open_ones = [e for e in exercises if found[e.number].get("answers") and not found[e.number].get("error")]
    wrong = [e for e in open_ones if not close(found[e.number]["answers"], right_answers(e, seed))]
    known = mistakes_of(wrong, seed, KNOWN / f"{seed}.json" if seed == copy.seed else None) if wrong else {}
    return [judge(e, cases[e.number], found[e.number], known.get(e.number, {})) for e in exercises]


def right_answers(exercise: Exercise, seed: int) -> list[Any]:
    return [exercise.expected(case) for case in exercise.cases(seed)]


def judge(exercise: Exercise, cases: list[Any], found: dict, known: dict[str, list[Any]]) -> Verdict:
    """`found` is what the student's process said, `known` what the known mistakes answer to the same cases."""
    number, answers = exercise.number, found.get("answers", [])
    if "blank" in found:
        return Verdict(number, "blank", text=found["blank"])
    expected = [exercise.expected(case) for case in cases]
    wrong = [n for n, (a, b) in enumerate(zip(answers, expected)) if not close(a, b)]
    files = tuple(blank.file for blank in exercise.blanks)
    if found.get("error", "").startswith(UNREADABLE) and not found["at"].startswith(files):
        return Verdict(number, "blank", text=f"waits for {found['at']}")
    if "error" in found:
        case = f"\ninput: {show(cases[len(answers)])}" if len(answers) < len(cases) and found["at"] else ""
        asked = "\n".join(exercise.asks)
        return Verdict(number, "error", text=f"{found['error']}\n{found['at']}{case}\nasked for: {asked}")
    if not wrong:
        return Verdict(number, "right")
    for mistake, same in agreeing(exercise, answers, wrong, known):
        more = "" if same == wrong else "\nSomething else is wrong as well."
        differs = contrast(exercise, cases[same[0]], answers[same[0]], expected[same[0]])
        return Verdict(number, "known", mistake.name, f"{mistake.why}{more}\n{differs}")
    # Rounding is told last: where something is wrong to the eye, that is shown.
    first = next((n for n in wrong if not close(answers[n], expected[n], rel=1e-3, near=1e-3)), wrong[0])
    differs = contrast(exercise, cases[first], answers[first], expected[first])
    return Verdict(number, "wrong", text=f"This is none of the known mistakes.\n{differs}")


def agreeing(exercise: Exercise, answers: list, wrong: list[int], known: dict) -> list[tuple[Mistake, list[int]]]:
    """The mistakes that explain wrong answers, and which: all of them, or at least the largest, the most telling."""
    found = []
    for mistake in exercise.mistakes:
        if own := known.get(mistake.name):
            found.append((mistake, [n for n in wrong if close(answers[n], own[n])]))
    return sorted((pair for pair in found if wrong[-1] in pair[1]), key=lambda pair: -len(pair[1]))


def contrast(exercise: Exercise, case: Any, found: Any, expected: Any) -> str:
    """The smallest input that failed, and both answers; of a table of answers, only those that differ."""
    if isinstance(found, dict) and isinstance(expected, dict) and found.keys() == expected.keys():
        keys = [key for key in expected if not close(found[key], expected[key])]
        found, expected = ({key: answer[key] for key in keys} for answer in (found, expected))
    told = f"({exercise.told})\n" if exercise.told else ""
    return f"{told}smallest input: {show(case)}\nexpected: {show(expected)}\nfound:    {show(found)}"


def show(value: Any) -> str:
    """Plain values on a line, numbers to four digits."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return f"[{', '.join(map(show, value))}]"
    if isinstance(value, dict):
        return ", ".join(f"{key} {show(item)}" for key, item in value.items())
    return repr(value)


# ---------------------------------------------------------------------------------- running


def run_student(folder: Path, exercises: list[Exercise], cases: dict[int, list[Any]], seconds=SECONDS) -> dict:
    """For each exercise the answers of the code in `folder`, or an error, or that it is blank."""
    jobs = [{"probe": e.probe_text(), "cases": cases[e.number]} for e in exercises]
    job = json.dumps({"folder": str(folder.resolve()), "checkout": str(ROOT), "seconds": seconds, "exercises": jobs})
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-I", str(Path(__file__).with_name("child.py"))]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    try:
        out, said = process.communicate(job, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        out, said = process.communicate()
    found = [json.loads(line) for line in out.splitlines()]
    answers = {e.number: answer for e, answer in zip(exercises, found)}
    if rest := exercises[len(found) :]:  # the process ended at the first of these
        killed = "it took too long (an endless loop?) or too much memory"
        reason = killed if process.returncode < 0 else said.strip()[-300:]
        answers[rest[0].number] = {"error": f"the process ended: {reason}", "at": "", "answers": []}
        answers |= run_student(folder, rest[1:], cases, seconds) if rest[1:] else {}
    return answers


def mistakes_of(exercises: list[Exercise], seed: int, cache: Path | None) -> dict[int, dict[str, list[Any]]]:
    """What the known mistakes of exercises answer; kept in a file, since the project has to be loaded for them."""
    version = f"{version_of_sources()}/{seed}"
    kept = json.loads(cache.read_text(encoding="utf-8")) if cache and cache.exists() else {}
    kept = kept if kept.get("version") == version else {"version": version}
    lacking = [e for e in exercises if str(e.number) not in kept]
    for e in lacking:
        cases = e.cases(seed)
        kept[str(e.number)] = {mistake.name: e.answers(cases, mistake) for mistake in e.mistakes}
    if lacking and cache:
        cache.parent.mkdir(exist_ok=True)
        cache.write_text(json.dumps(kept), encoding="utf-8")
    return {e.number: kept[str(e.number)] for e in exercises}
