"""The bug hunt: two runs, one of them with a planted bug, and a check of the test with which a student catches it.

The student sees what the two runs left, A and B, and not the code that made them; says which run has the bug, in which
function it must be, and what shows it; and writes a test that fails with the bug and passes without. Left out: the
bugs themselves (`bugs.py`).
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from difflib import unified_diff
from importlib.util import find_spec
from pathlib import Path
from random import Random

from data.pages import write_index
from exercises.bugs import BUGS, Bug
from exercises.copies import Copy, write_project
from exercises.patches import ROOT, Blank, Swap, source, swapped

SECONDS = 60  # by the clock, for a student's test
OFF = 5  # lines by which a place may be named wrong
TIMES = 2  # that a student's test is run, since chance is no catch
# One command for all bugs, so that it gives none away: with it each of them shows somewhere.
FLAGS = (
    "--max_steps 5 --questions_per_step 6 --temperature 0.8 --num_iterations 2 --save_trees_steps 1 --reward_bonus 0.3 "
    "--eval_steps 5 --eval_questions 20 --test_questions 20 --learning_rate 1e-3 --warmup_steps 0"
)
# Every run begins with a check that would refuse some of the bugs in one line; it is left out of both runs.
UNGUARDED = Swap("train.py", "    check_numbers(policy, train, config)\n", "")
SEEN = "metrics.jsonl", "run.json", "table.txt", "trees", "plots"  # of a run
ANSWER = """\
Two runs of one command, with one seed. One was made with a bug in the project's code.

    python train.py {flags}

Each run has a line of numbers a step in metrics.jsonl (docs/runs.md in the checkout says where they are explained), and
drawn trees. A table that is the same in both is no mistake: not every bug shows there after five steps.

Say here, behind the colons, what you found; then, in the checkout: python -m exercises bug --check

run:      (A or B, the one with the bug)
place:    (file:function where it must be, such as advantage.py:loss_weights)
symptom:  (what gave it away, in a sentence)
"""
TEST = '''\
"""A test that fails with the bug and passes without it. It is run as one of the project's tests: `tests/conftest.py` in
the checkout has small models (`random_model`), scripted ones (`ScriptedSampler`) and `grow`, which grows their
trees. A tree has `nodes`, each with `ids`, `parent`, `observation`; `leaves()` and `path(leaf)` are indices into them.
"""

from conftest import grow, random_model

from rollout import Sampler


def test_every_tree_has_its_leaves(tokenizer):
    trees = grow(Sampler(random_model(tokenizer), tokenizer), num_generations=8)
    assert [len(tree.leaves()) for tree in trees] == [8, 8]  # true with the bug as well: write something better
'''


@dataclass(frozen=True)
class Hunt:
    folder: Path
    bug: Bug
    bugged: str  # A or B

    @classmethod
    def of(cls, copy: Copy, seed: int, level: int) -> "Hunt":
        """The same for the same seed. Levels: 1 is easy to find, 0 is any."""
        return cls(copy.folder / "hunt", *cls._drawn(seed, level))

    @staticmethod
    def _drawn(seed: int, level: int) -> tuple[Bug, str]:
        rng = Random(f"{seed}/hunt")
        return rng.choice([bug for bug in BUGS if level in (0, bug.level)]), rng.choice("AB")

    @classmethod
    def planted(cls, seed: int, level: int) -> str:
        """For the teacher: which bug a seed means, and in which run."""
        bug, run = cls._drawn(seed, level)
        return f"{bug.name}, in run {run}"

    def texts(self, run: str) -> dict[str, str]:
        return swapped([UNGUARDED, self.bug.swap] if run == self.bugged else [UNGUARDED])


def say(text: str) -> None:
    print(text, flush=True)


def expect_none(hunt: Hunt) -> None:
    """Raises ValueError where there is a hunt already."""
    if hunt.folder.exists():
        raise ValueError(f"{hunt.folder}: expected no hunt yet, found one; delete the folder to begin another")


def plant(hunt: Hunt, flags: str = FLAGS, told: Callable[[str], None] = say) -> None:
    """Makes the two runs and what the student fills in."""
    with tempfile.TemporaryDirectory() as place:
        jobs = []
        for run in "AB":
            write_project(Path(place) / run, hunt.texts(run))
            arguments = [*flags.split(), "--output_dir", "run"]
            jobs.append({"folder": f"{place}/{run}", "command": "train", "arguments": arguments, "log": f"{place}/log"})
        files = [Path(job["folder"], "run", "metrics.jsonl") for job in jobs]
        if any(codes := run_jobs(jobs, lambda: progress(files), told)):
            raise ValueError(f"expected two runs, found exit codes {codes}: {Path(place, 'log').read_text()[-500:]}")
        for run in "AB":
            (hunt.folder / run).mkdir(parents=True)
            for name in SEEN:
                shutil.move(Path(place) / run / "run" / name, hunt.folder / run / name)
            write_index(hunt.folder / run)  # to which the trees' pages lead back
    (hunt.folder / "answer.txt").write_text(ANSWER.format(flags=flags), encoding="utf-8")
    (hunt.folder / "test_hunt.py").write_text(TEST, encoding="utf-8")


def progress(files: list[Path]) -> str:
    """How far runs are that are made one after the other, by their files of a line a step."""
    begun = [file for file in files if file.exists()]
    rows = begun[-1].read_text(encoding="utf-8").rpartition("\n")[0].splitlines() if begun else []
    return f"run {len(begun) or 1} of {len(files)}" + (f", step {json.loads(rows[-1])['step']}" if rows else "")


def points(right: list[str]) -> int:
    """Of five, by the names that `check` gives. A test that passes on both says nothing: it counts as a pair."""
    test = [what for what in right if str(what).startswith("the test ")]
    return len(right) - len(test) % 2


def check(hunt: Hunt) -> tuple[dict[str, bool], str]:
    """What of the student's answer is right, the test with and without the bug included; and what pytest said."""
    if not (hunt.folder / "answer.txt").exists():
        raise ValueError(f"expected a hunt in {hunt.folder}, found none: python -m exercises bug")
    if not find_spec("pytest"):
        raise ValueError("expected pytest, which runs your test, found none: pip install -r requirements-dev.txt")
    said = read_answer(hunt.folder / "answer.txt")
    with tempfile.TemporaryDirectory() as place:
        trees = {run: Path(place) / run for run in "AB"}
        for run, folder in trees.items():
            write_project(folder, hunt.texts(run))
            (folder / "tests").mkdir()
            shutil.copy(ROOT / "tests" / "conftest.py", folder / "tests")
            shutil.copy(hunt.folder / "test_hunt.py", folder / "tests")
        each = run_tests(list(trees.values()) * TIMES, ["tests/test_hunt.py"] * 2 * TIMES)
        codes = {run: set(each[n::2]) for n, run in enumerate(trees)}
        logs = {run: (folder / "log").read_text(encoding="utf-8", errors="replace") for run, folder in trees.items()}
    ended = f"\nit did not end within {SECONDS} s"
    logs = {run: log + ended * (-signal.SIGALRM in codes[run]) for run, log in logs.items()}
    near = names_file(said["place"], hunt.bug) and not names(said["place"], hunt.bug)
    clean = "A" if hunt.bugged == "B" else "B"
    found = {
        "the run": re.findall(r"\b[AB]\b", said["run"].upper()) == [hunt.bugged],
        "the place" + ": the file is right, the function is not" * near: names(said["place"], hunt.bug),
        "a symptom is named": bool(said["symptom"]) and not said["symptom"].startswith("("),
        "the test passes without the bug": codes[clean] == {0},
        "the test fails with the bug": codes[hunt.bugged] == {1},
    }
    return found, logs[hunt.bugged] if codes[clean] == {0} else logs[clean]


def names(said: str, bug: Bug) -> bool:
    """Whether an answer names the bug's function, or a line in it or near it, and no other bug's function."""
    function = lambda place: re.split(r"[:.]", place)[-1]
    words = set(re.findall(r"\w+", said))
    if functions := words & {function(other.place) for other in BUGS}:
        return functions == {function(bug.place)}
    file, _, whole = bug.place.partition(":")
    first, last = Blank(file, whole, "").lines(source(file))
    lines = [int(word) for word in words if word.isdecimal()]
    return file.rpartition("/")[2] in said and any(first - OFF <= line <= last + OFF for line in lines)


def names_file(said: str, bug: Bug) -> bool:
    """Whether an answer names the bug's file, and no other bug's."""
    files = {other.swap.file for other in BUGS}
    return {file for file in files if re.search(rf"\b{re.escape(Path(file).stem)}\b", said)} == {bug.swap.file}


def lesson(hunt: Hunt) -> str:
    """What was planted, for one who has found it."""
    file, _, function = hunt.bug.place.partition(":")
    before, after = (text.splitlines() for text in (source(file), hunt.bug.swap.apply(source(file))))
    changed = [line for line in unified_diff(before, after, file, f"{file} of run {hunt.bugged}", lineterm="", n=1)]
    return "\n".join([f"The bug was in {function}:", *changed, f"{hunt.bug.name}: {hunt.bug.shows}."])


def read_answer(file: Path) -> dict[str, str]:
    """What stands behind the colons. Raises ValueError."""
    said = {}
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        name, colon, text = line.partition(":")
        if colon and name in ("run", "place", "symptom"):
            said[name] = text.strip()
    if len(said) != 3:
        raise ValueError(f"{file}: expected lines that begin with run:, place: and symptom:, found {', '.join(said)}")
    return said


def run_tests(folders: list[Path], tests: list[str]) -> list[int]:
    """pytest's exit code in each folder: 0 passed, 1 failed, else it did not run. What it said is in the file `log`."""
    jobs = [
        {
            "folder": str(folder),
            "command": "pytest",
            "arguments": [test, "-p", "no:warnings"],
            "log": str(folder / "log"),
            "seconds": SECONDS,
        }
        for folder, test in zip(folders, tests)
    ]
    return run_jobs(jobs)


def run_jobs(jobs: list[dict], progress: Callable[[], str] = str, told: Callable[[str], None] = print) -> list[int]:
    """Exit codes, in the jobs' order. What `progress` says is told whenever it says something new."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-I", str(Path(__file__).with_name("forks.py"))]
    pipes, said = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE), ""
    with subprocess.Popen(command, text=True, env=environment, **pipes) as process:
        out, errors = None, ""
        given: str | None = json.dumps(jobs)
        while out is None:
            if (now := progress()) != said:
                told(said := now)
            with suppress(subprocess.TimeoutExpired):
                out, errors = process.communicate(given, timeout=1)
            given = None  # once is enough
    if process.returncode:
        raise ValueError(f"expected {len(jobs)} jobs to run, found: {errors.strip()[-500:]}")
    return [int(line) for line in out.split()]
