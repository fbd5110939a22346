"""Judging a student's copy: right, a known mistake, an unknown one, an error, or still blank.

What is right is computed here, without the project's code; what the known mistakes answer, by the project's code with
a fragment replaced. The student's code answers in a process of its own (`child.py`). Left out: who the student is.
"""

import inspect
import json
import os
import queue
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from threading import Thread
from typing import Any

from exercises.copies import Copy, blank_texts, version_of_sources
from exercises.course import Exercise, Mistake, close
from exercises.patches import ROOT, asking

KNOWN = ROOT / "exercises" / ".known"  # what the known mistakes answer, by seed; no student needs to see it
SECONDS = 10  # of processor time for an exercise; the first needs some to load what the project stands on
PATIENCE = 60  # seconds by the clock for an exercise
SILENCE = 5  # seconds of processor time after which it is said that something is still going on; or half the patience
LONGEST = 600  # characters of an answer that are shown
UNREADABLE = "SyntaxError", "IndentationError", "TabError"  # of one file, which others need
UNLOADED = *UNREADABLE, "ImportError", "ModuleNotFoundError"
ENDLESS = "your code did not come to an end (an endless loop?)"


@dataclass(frozen=True)
class Verdict:
    number: int
    kind: str  # right, known, wrong, error, begun (a part is still blank), waits (for another exercise), blank
    mistake: str = ""  # the name of a known one
    perhaps: bool = False  # which explains only some of the answers
    text: str = ""  # for the student

    @property
    def right(self) -> bool:
        return self.kind == "right"


def grade(copy: Copy, exercises: list[Exercise], seed: int, told: Callable[[str], None] = print) -> Iterator[Verdict]:
    """Runs the copy's code on inputs drawn from the seed, exercise by exercise, the blank ones first; tells of those
    that take long."""
    left = {exercise.number: unwritten(exercise, copy.folder) for exercise in exercises}
    written = [exercise for exercise in exercises if len(left[exercise.number]) < len(exercise.blanks)]
    yield from (Verdict(exercise.number, "blank") for exercise in exercises if exercise not in written)
    cases = {exercise.number: exercise.cases(seed) for exercise in written}
    cache = KNOWN / f"{seed}.json" if seed == copy.seed else None
    for exercise, found in run_student(copy.folder, written, cases, told):
        found |= {"owner": owner(copy, found)}
        done = "error" in found or close(found["answers"], right_answers(exercise, seed))
        known = {} if done else mistakes_of(exercise, seed, cache)
        yield begun(judge(exercise, cases[exercise.number], found, known), left[exercise.number])


def unwritten(exercise: Exercise, folder: Path) -> list[str]:
    """file:line of its blanks that are as they were given."""
    found = []
    for blank, told in zip(exercise.blanks, exercise.asks):
        file = folder / blank.file
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []
        at = [n for n, line in enumerate(lines, 1) if line.strip().startswith(asking(told))]
        found += [f"{blank.file}:{n}" for n in at[:1]]
    return found


def begun(verdict: Verdict, left: list[str]) -> Verdict:
    """That a part is still to write, before what can be said of the other part: an error, say, is worth knowing."""
    if not left or verdict.kind == "waits":
        return verdict
    said = verdict.text if verdict.kind == "error" else ""
    return Verdict(verdict.number, "begun", text=f"still to write: {', '.join(left)}\n{said}".strip())


def right_answers(exercise: Exercise, seed: int) -> list[Any]:
    return [exercise.expected(case) for case in exercise.cases(seed)]


def judge(exercise: Exercise, cases: list[Any], found: dict, known: dict[str, list[Any]]) -> Verdict:
    """`found` is what the student's process said, `known` what the known mistakes answer to the same cases."""
    number, answers = exercise.number, found.get("answers", [])
    if found.get("error", "").startswith(f"NotImplementedError: exercise {number}: "):
        return Verdict(number, "begun", text=f"still to write: {':'.join(found['at'].split(':')[:2])}")
    if "error" in found:
        return failed(exercise, cases, found)
    expected = [exercise.expected(case) for case in cases]
    wrong = [n for n, (a, b) in enumerate(zip(answers, expected)) if not close(a, b)]
    if not wrong:
        return Verdict(number, "right")
    for mistake, same, whole in agreeing(exercise, answers, wrong, known):
        differs = contrast(exercise, cases[same[0]], answers[same[0]], expected[same[0]]) + printed(found)
        if whole:
            return Verdict(number, "known", mistake.name, text=f"{mistake.why}\n{differs}")
        part = "\nOnly some of your answers are those of this mistake: something else is wrong as well, or instead."
        return Verdict(number, "wrong", mistake.name, True, f"Perhaps: {mistake.why}{part}\n{differs}")
    # Rounding is told last: where something is wrong to the eye, that is shown.
    first = next((n for n in wrong if not close(answers[n], expected[n], rel=1e-3, near=1e-3)), wrong[0])
    differs = contrast(exercise, cases[first], answers[first], expected[first])
    return Verdict(number, "wrong", text=f"This is none of the known mistakes.\n{differs}{printed(found)}")


def failed(exercise: Exercise, cases: list[Any], found: dict) -> Verdict:
    """Code that ended with an error, or gave something with which nothing could be done."""
    at, error = found["at"], found["error"]
    if other := re.match(r"NotImplementedError: (exercise \d+): ", error):
        return Verdict(exercise.number, "waits", text=f"This cannot be judged before {other[1]} is written.")
    if error.startswith(UNREADABLE) and at and found.get("owner") != exercise.number:
        file, _, line = at.partition(":")
        return Verdict(exercise.number, "waits", text=f"{file} cannot be read: line {line}")
    loaded = "answers" in found and not error.startswith(UNLOADED)
    if not at and not error.startswith("ValueError: "):  # which a check raises that says itself what it found
        at = "while what your code gave was read" if loaded else "while your files were loaded"
    lines = [error, *([at] if at else [])]
    if loaded:
        case = cases[len(found["answers"])]
        lines += [f"({exercise.told})"] * bool(exercise.told)
        lines += [f"input:    {show(case)}", f"expected: {show(exercise.expected(case))}"]
    lines += [f"asked for: {', and '.join(exercise.asks)}"]
    return Verdict(exercise.number, "error", text="\n".join(lines) + printed(found))


def owner(copy: Copy, found: dict) -> int | None:
    """The exercise in whose lines Python cannot read a file, by the nearest blank that is filled; None if that is not
    why, or no such line."""
    file, _, rest = found.get("at", "").partition(":")
    if not found.get("error", "").startswith(UNREADABLE) or file not in blank_texts():
        return None
    given, now = (
        text.splitlines() for text in (blank_texts()[file], (copy.folder / file).read_text("utf-8", "replace"))
    )
    line = int(re.match(r"\d*", rest)[0] or 0) - 1
    filled = {}
    for kind, i, j, k, m in SequenceMatcher(None, given, now).get_opcodes():
        for asked in re.findall(r"\(['\"]exercise (\d+): ", "\n".join(given[i:j])) if kind != "equal" else []:
            filled[int(asked)] = min(abs(k - line), abs(m - 1 - line)) if not k <= line < m else 0
    return min(filled, key=filled.get, default=None)


def printed(found: dict) -> str:
    lines = found.get("printed", "").splitlines()
    return "".join(f"\nprinted:  {line[:200]}" for line in lines[-10:])


def agreeing(exercise: Exercise, answers: list, wrong: list[int], known: dict) -> list[tuple[Mistake, list[int], bool]]:
    """The mistakes that explain wrong answers, the last and most telling one, or half of them; which of them; and
    whether it has all answers alike, the right ones, too."""
    found = []
    for name, mistake in exercise.ways.items():
        if own := known.get(name):
            same = [n for n in wrong if close(answers[n], own[n])]
            telling = wrong[-1] in same or 2 * len(same) >= max(4, len(wrong))
            found += [(mistake, same, close(answers, own))] if telling else []
    return sorted(found, key=lambda pair: (not pair[2], -len(pair[1])))


def contrast(exercise: Exercise, case: Any, found: Any, expected: Any) -> str:
    """The smallest input that failed, and both answers; of a table of answers, only those that differ."""
    if isinstance(found, dict) and isinstance(expected, dict) and found.keys() == expected.keys():
        keys = [key for key in expected if not close(found[key], expected[key])]
        found, expected = ({key: answer[key] for key in keys} for answer in (found, expected))
    told = f"({exercise.told})\n" if exercise.told else ""
    return f"{told}smallest input: {show(case)}\nexpected: {show(expected)}\nfound:    {short(show(found))}"


def short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}… ({len(text):,} characters)"


def show(value: Any) -> str:
    """Plain values on a line, numbers to four digits."""
    if isinstance(value, float):
        return f"{value + 0.0:.4g}"  # -0.0 is 0
    if isinstance(value, list):
        return f"[{', '.join(map(show, value))}]"
    if isinstance(value, dict):
        return ", ".join(f"{key} {show(item)}" for key, item in value.items())
    return repr(value)


# ---------------------------------------------------------------------------------- running


def run_student(
    folder: Path, exercises: list[Exercise], cases: dict, told: Callable
) -> Iterator[tuple[Exercise, dict]]:
    """For each exercise the answers of the code in `folder`, or an error, and what it printed. Where one ends the
    process, the next has a new one."""
    left = list(exercises)
    while left:
        with tempfile.TemporaryDirectory() as place:
            process, lines = begin(folder.resolve(), left, cases, Path(place))
            try:
                line, read = "more", 0
                while left and line:
                    line = next_line(process, lines, left[0].number, told)
                    found = json.loads(line) if line else ended(process, folder.resolve(), Path(place, "errors"))
                    said = Path(place, "printed").read_bytes() if Path(place, "printed").exists() else b""
                    until = found.get("until", len(said))
                    yield left.pop(0), found | {"printed": said[read:until][-4000:].decode("utf-8", "replace")}
                    read = until
            finally:
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)  # and whatever it started
                process.wait()


def begin(folder: Path, exercises: list[Exercise], cases: dict, place: Path) -> tuple[subprocess.Popen, queue.Queue]:
    """The process, and the lines that it writes; the last one is empty."""
    jobs = [{"probe": e.probe_text(), "cases": cases[e.number]} for e in exercises]
    token, about = secrets.token_hex(8), {"seconds": SECONDS, "printed": str(place / "printed"), "exercises": jobs}
    about |= {"folder": str(folder), "checkout": str(ROOT), "token": token}
    (place / "job").write_text(json.dumps(about), encoding="utf-8")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-I", str(Path(__file__).with_name("child.py"))]
    with (place / "job").open() as job, (place / "errors").open("w") as errors:
        process = subprocess.Popen(
            command, stdin=job, stdout=subprocess.PIPE, stderr=errors, env=environment, start_new_session=True
        )
    lines: queue.Queue = queue.Queue()
    Thread(target=listen, args=(process.stdout, f"{token} ".encode(), lines), daemon=True).start()
    return process, lines


def listen(stream, token: bytes, lines: queue.Queue) -> None:
    """Hands on what stands behind the token in each line; the rest is a student's own."""
    for _, mark, told in (line.partition(token) for line in stream):
        if mark:
            lines.put(told)
    lines.put(b"")


def next_line(process: subprocess.Popen, lines: queue.Queue, number: int, told: Callable) -> bytes:
    """Ends a process that only waits; one that computes ends itself."""
    begun, used, said = time.monotonic(), processor_time(process.pid), False
    while (waited := time.monotonic() - begun) < PATIENCE:
        with suppress(queue.Empty):
            return lines.get(timeout=min(0.5, PATIENCE - waited))
        if not said and (processor_time(process.pid) - used > SILENCE or waited > PATIENCE / 2):
            told(
                f"exercise {number} is still running; it is ended after {SECONDS} s of processor time, or {PATIENCE} s"
            )
            said = True
    process.send_signal(signal.SIGXCPU)
    with suppress(queue.Empty):
        return lines.get(timeout=SILENCE)
    return b""


def processor_time(pid: int) -> float:
    """Seconds that a process has computed; 0 where the system does not say, or the process is no more."""
    with suppress(OSError, ValueError, LookupError):
        numbers = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(numbers[11]) + int(numbers[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def ended(process: subprocess.Popen, folder: Path, errors: Path) -> dict:
    """Why a process is no more, and the line of the student's own at which it was, if that is known."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(SILENCE)
    said = errors.read_text(encoding="utf-8", errors="replace")
    own = re.findall(rf'File "{re.escape(ascii(str(folder))[1:-1])}/(.+)", line (\d+)', said)
    at = ":".join(own[0]) if own else "It is not known where."
    code = process.returncode
    if code in (None, -signal.SIGXCPU):
        why = ENDLESS
    elif code < 0:
        why = f"your code ended the process with {signal.Signals(-code).name} (endless recursion, or too much memory?)"
    else:
        why = f"your code ended the process, exit code {code} {said.strip().rpartition(chr(10))[2][:300]}".strip()
    return {"error": why, "at": at}


def mistakes_of(exercise: Exercise, seed: int, cache: Path | None) -> dict[str, list[Any]]:
    """What the known mistakes of an exercise answer; kept in a file, since the project has to be loaded for them."""
    version, kept = f"{version_of_sources()}/{seed}", {}
    number = f"{exercise.number}/{zlib.crc32(inspect.getsource(exercise.code).encode())}"  # inputs may have changed
    with suppress(OSError, ValueError):
        kept = json.loads(cache.read_text(encoding="utf-8")) if cache else {}
    kept = kept if isinstance(kept, dict) and kept.get("version") == version else {"version": version}
    if number not in kept:
        kept[number] = exercise.known(seed)
        with suppress(OSError):  # such as a checkout that may only be read
            if cache:
                cache.parent.mkdir(exist_ok=True)
                cache.write_text(json.dumps(kept), encoding="utf-8")
    return kept[number]
