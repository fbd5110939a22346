"""The course: selectors fit, blanks fail, the project passes, known mistakes are told apart, nothing leaks."""

import itertools
import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import cache
from importlib import import_module
from pathlib import Path
from textwrap import indent

import pytest

from data.pages import read_page
from exercises import __main__ as command
from exercises import classroom, copies, grading, hunt
from exercises.bugs import BUGS, Bug
from exercises.child import plain
from exercises.course import close, load_course
from exercises.experiments import EXPERIMENTS, OUTCOMES, alike, detectable, pooled
from exercises.patches import ROOT, Blank, Swap, asking, blanked, loaded, source, swapped, taken_out
from exercises.submissions import LONGEST
from train import read_flags

COURSE = load_course()
by_number = pytest.mark.parametrize("exercise", COURSE, ids=lambda e: f"E{e.number}")
SEEDS = 1, 2, 3


@by_number
def test_the_project_is_right_and_a_blank_copy_is_not(exercise):
    """Selectors that fit no place or two are a LookupError here."""
    for seed in SEEDS:
        cases = exercise.cases(seed)
        assert grading.judge(exercise, cases, {"answers": exercise.answers(cases)}, {}).right
    texts = blanked(zip(exercise.blanks, exercise.asks))
    with pytest.raises(NotImplementedError, match=f"^exercise {exercise.number}: "):
        exercise.answers(cases, texts=texts)
    assert len(exercise.blanks) == len(exercise.asks) and len(exercise.mistakes) >= 4 and exercise.hints


@by_number
def test_every_mistake_is_recognised_by_what_it_answers(exercise):
    """Guards: a check that a known mistake passes, and two mistakes that no input tells apart."""
    assert len({mistake.why for mistake in exercise.mistakes}) == len(exercise.mistakes)
    for seed in SEEDS:
        cases, known = exercise.cases(seed), exercise.known(seed)
        for way, mistake in exercise.ways.items():
            verdict = grading.judge(exercise, cases, {"answers": known[way]}, known)
            assert (verdict.kind, verdict.mistake) == ("known", mistake.name), f"seed {seed}"
            assert verdict.text.startswith(mistake.why) and "smallest input: " in verdict.text
            assert "Something else" not in verdict.text
        right = grading.right_answers(exercise, seed)
        for (a, one), (b, other) in itertools.combinations([("right", right), *known.items()], 2):
            assert not close(one, other), f"seed {seed}: {a} and {b} answer alike"


@by_number
def test_another_seed_has_other_numbers(exercise):
    assert exercise.cases(1) == exercise.cases(1) != exercise.cases(2)


def test_an_unknown_mistake_is_shown_with_what_was_expected():
    (exercise,) = [e for e in COURSE if e.number == 6]
    cases = exercise.cases(1)
    answers = exercise.answers(cases, texts={"advantage.py": source("advantage.py").replace("mean(-1", "sum(-1")})
    verdict = grading.judge(exercise, cases, {"answers": answers}, exercise.known(1))
    assert verdict.kind == "wrong" and {"smallest input", "expected", "found"} <= {
        line.partition(":")[0] for line in verdict.text.splitlines()
    }


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    return copies.make_copy(tmp_path_factory.mktemp("class") / "arpo-ada", "ada", 5)


def test_a_copy_holds_nothing_that_gives_a_solution_away(copy):
    """Guards: a second copy of a line, tests, documents, history, and an exercise's own text."""
    lines = [line for exercise in COURSE for line in taken_out(exercise.blanks) if len(line) >= 25]
    assert len(lines) >= 25
    files = [file for file in copy.folder.rglob("*") if file.is_file() and file.suffix != ".safetensors"]
    found = [f"{file}: {line}" for file in files for line in lines if line in file.read_text(encoding="utf-8")]
    assert found == []
    top = {"advantage.py", "arpo.py", "data", "eval.py", "rollout.py", "sandbox.py", "tools.py", "train.py"}
    assert {file.name for file in copy.folder.iterdir()} == top | {
        "EXERCISES.md", "LICENSE", "exercises.py", "requirements.txt", "student.json",
    }  # fmt: skip
    assert not list(copy.folder.rglob("__pycache__"))


def write(copy, number, text):
    """Puts a text in place of an exercise's first blank."""
    (exercise,) = [e for e in COURSE if e.number == number]
    file = copy.folder / exercise.blanks[0].file
    line = asking(exercise.asks[0])
    assert file.read_text().count(line) == 1
    file.write_text(file.read_text().replace(line, text))


@pytest.mark.slow
def test_a_students_own_process(copy, monkeypatch, capsys):
    """As a student has it: the right, the wrong, the endless, the blank, and one who reads the solution."""
    write(copy, 5, "own += [1] * len(turn_ids) + [0] * len(result_ids)")
    write(copy, 6, "return rewards - rewards.median(-1, keepdim=True).values")
    write(copy, 7, "print('here I am')\n    while True:\n        pass")
    write(copy, 8, f"print(open({str(ROOT / 'advantage.py')!r}).read())")
    monkeypatch.setattr(grading, "SECONDS", 3)
    assert command.main(["grade", "5", "6", "7", "8", "--copy", str(copy.folder)]) == 1
    told = capsys.readouterr().out
    assert "exercise 6, Advantages of a group: not yet" in told and "You took the median." in told
    assert "your code did not come to an end" in told and ("while True" in told or "pass" in told)
    assert f"the exercises are to be solved in {copy.folder}" in told
    kinds = {note["exercise"]: (note["kind"], note["mistake"]) for note in copy.notes()}
    assert kinds == {5: ("right", ""), 6: ("known", "median"), 7: ("error", ""), 8: ("error", "")}
    assert "printed:  here I am" in told


@pytest.mark.slow
def test_code_that_does_not_end_or_takes_the_process_along(tmp_path, monkeypatch, capsys):
    """Guards: a loop that catches its own end, or is not Python's, and holds the class up for minutes; code that only
    waits; prints without end, which filled the memory; one that ends the process, and takes the next exercises along;
    a second process, whose answers would be taken for those of the next exercise; and a line among the answers."""
    monkeypatch.setattr(grading, "SECONDS", 6)
    monkeypatch.setattr(grading, "SILENCE", 3)
    monkeypatch.setattr(grading, "PATIENCE", 12)
    student = copies.make_copy(tmp_path / "arpo ü", "eve", 5)
    write(student, 1, "import itertools\n    sum(itertools.repeat(1))")
    write(student, 5, "import time\n        time.sleep(1000)")
    write(
        student,
        6,
        "while True:\n        try:\n            print('x' * 99999)\n        except OSError:\n            pass",
    )
    write(student, 7, "import os\n    os._exit(3)")
    write(student, 8, "import os\n    os.write(3, b'{}')\n    os.fork()")
    verdicts = {verdict.number: verdict for verdict in grading.grade(student, COURSE, 5)}
    for number, told in (
        (1, f"{grading.ENDLESS}\ndata/logits.py:"), (5, f"{grading.ENDLESS}\ndata/format.py:"),
        (6, grading.ENDLESS), (7, "your code ended the process, exit code 3"), (8, "need no other process"),
    ):  # fmt: skip
        assert verdicts[number].kind == "error" and told in verdicts[number].text, number
    assert {verdict.kind for number, verdict in verdicts.items() if number not in (1, 5, 6, 7, 8)} == {"blank"}
    assert "is still running; it is ended after 6 s of processor time" in capsys.readouterr().out


@pytest.mark.slow
def test_the_whole_course_is_graded_in_seconds(tmp_path):
    """Once blank, once right; each by itself in less than 10 seconds of processor time."""
    blank = copies.make_copy(tmp_path / "blank", "ada", 5)
    assert [verdict.kind for verdict in grading.grade(blank, COURSE, 5)] == ["blank"] * 12
    right = copies.make_copy(tmp_path / "right", "ada", 5)
    copies.write_project(right.folder, {})
    for exercise in COURSE:
        started = os.times().children_user
        (verdict,) = grading.grade(right, [exercise], 5)
        assert verdict.right and os.times().children_user - started < 10


@pytest.mark.slow  # after the one above, whose copy it looks at
def test_what_a_student_changed_can_be_made_again(copy):
    made = json.loads(json.dumps(copy.changes()))
    assert set(made) == {"advantage.py", "data/format.py"}
    for file, own in made.items():
        assert copies.edited(copies.blank_texts()[file], own) == (copy.folder / file).read_text()


def test_selectors_that_fit_no_place_or_two_are_refused():
    for blank in (Blank("advantage.py", "centred", "nothing"), Blank("advantage.py", "loss_weights", "return")):
        with pytest.raises(LookupError, match="expected one"):
            blank.lines(source("advantage.py"))
    for old in ("no such text", "torch"):
        with pytest.raises(LookupError, match="once, found it"):
            Swap("advantage.py", old, "").apply(source("advantage.py"))


WRONG = [
    (["grade", "99"], "expected one exercise, by its number or title, of 1 Entropy, 2 "),
    (["grade", "loss"], "of 8 Loss weights, 9 The clipped loss; found 'loss'"),
    (["graed"], "invalid choice: 'graed'"),
    (["start", "../ada"], "expected a name of letters, digits, points and dashes, such as ada, found '../ada'"),
    (["start", "José Peña!"], "such as José-Peña, found 'José Peña!'"),
    (["start", "--", "-"], "a name of letters, digits, points and dashes, found '-'"),
    (["grade", "--copy", "nowhere"], "expected a copy made by `python -m exercises start NAME`, found no nowhere"),
    (["start", "ada", "--folder", str(ROOT)], "expected a new folder, found one that is not empty"),
]


@pytest.mark.parametrize("argv, told", WRONG)
def test_wrong_calls_get_one_line(argv, told, copy, capsys):
    argv = argv + ["--copy", str(copy.folder)] * (argv[0] == "grade" and len(argv) == 2)
    try:
        code = command.main(argv)
    except SystemExit as error:
        code = error.code
    (line,) = capsys.readouterr().err.splitlines()
    assert code == 2 and told in line


def test_the_guide_names_every_command(capsys):
    assert command.main([]) == 0
    guide = capsys.readouterr().out
    for name in command.build_parser()._subparsers._group_actions[0].choices:
        assert f"python -m exercises {name}" in guide or f"  {name}" in guide, name


# ---------------------------------------------------------------------------------- the bug hunt

CHEAP = [
    ("statistics over the batch", ["group"]),
    ("entropy before the result", ["tokenizer", "after", 3.0]),
    ("one H_initial for all trees", ["tokenizer"]),
]


def planted(bug: Bug, folder, *tests: str):
    """The project as a hunt has it, with a bug, and some files of its tests."""
    copies.write_project(folder, swapped([hunt.UNGUARDED, bug.swap]))
    (folder / "tests").mkdir()
    for name in ("conftest.py", *tests):
        shutil.copy(ROOT / "tests" / name, folder / "tests")
    return folder


def caught(bugs, place) -> dict[str, int]:
    """The exit codes of each bug's own test, with the bug in the code."""
    files = [bug.caught_by.partition("::")[0].removeprefix("tests/") for bug in bugs]
    folders = [planted(bug, place / str(n), file) for n, (bug, file) in enumerate(zip(bugs, files))]
    codes = hunt.run_tests(folders, [bug.caught_by for bug in bugs])
    return {bug.name: code for bug, code in zip(bugs, codes)}


def test_bugs_have_one_place_and_a_name_each():
    """A fragment that fits no place or two is a LookupError; a bug that breaks the syntax is found here, too."""
    assert len(BUGS) >= 10 and len({bug.name for bug in BUGS}) == len({bug.swap for bug in BUGS}) == len(BUGS)
    for bug in BUGS:
        (text,) = swapped([bug.swap]).values()
        compile(text, bug.swap.file, "exec")
        file, _, function = bug.place.partition(":")
        first, last = Blank(file, function, "").lines(source(file))
        before = source(file)[: source(file).index(bug.swap.old)].count("\n") + 1
        assert first <= before <= last, bug.name


@pytest.mark.parametrize("name, arguments", CHEAP)
def test_bugs_are_caught(name, arguments, tokenizer, monkeypatch):
    """Some of them, in this process; the slow test below has all."""
    (bug,) = [bug for bug in BUGS if bug.name == name]
    file, _, test = bug.caught_by.removeprefix("tests/").partition("::")
    own = file.removesuffix(".py"), "conftest"  # made anew, since they import what the bug is in
    before = {module: sys.modules.pop(module, None) for module in own}
    try:
        with loaded(swapped([bug.swap]), [bug.swap.file.removesuffix(".py")]):
            check = getattr(import_module(own[0]), test)
            arguments = [tokenizer if value == "tokenizer" else value for value in arguments]
            with pytest.raises(AssertionError):
                check(*arguments)
    finally:
        for module, old in before.items():
            sys.modules.pop(module, None)
            if old:
                sys.modules[module] = old


def test_a_hunt_is_a_function_of_its_seed(copy):
    hunts = [hunt.Hunt.of(copy, seed, 0) for seed in range(60)]
    assert hunts == [hunt.Hunt.of(copy, seed, 0) for seed in range(60)]
    assert len({h.bug for h in hunts}) > 10 and {h.bugged for h in hunts} == {"A", "B"}
    assert {hunt.Hunt.of(copy, seed, 1).bug.level for seed in range(9)} == {1}


@pytest.mark.parametrize("said, right", [
    ("rollout.py:GrowingTree._branch", True), ("_branch()", True), ("in GrowingTree._branch, of rollout.py", True),
    ("rollout.py:LINE", True), ("rollout.py, line LINE or so", True), ("rollout.py:1", False), ("rollout.py", False),
    ("advantage.py:LINE", False), ("_branch or centred", False), ("", False),
])  # fmt: skip
def test_a_place_may_be_named_loosely_but_only_one(said, right):
    (bug,) = [bug for bug in BUGS if bug.name == "a sibling with its origin's randomness"]
    first, last = Blank("rollout.py", "GrowingTree._branch", "").lines(source("rollout.py"))
    assert hunt.names(said.replace("LINE", str(last + 3)), bug) == right


def test_one_who_has_the_file_is_told_so():
    (bug,) = [bug for bug in BUGS if bug.name == "a sibling with its origin's randomness"]
    assert hunt.names_file("rollout.py:GrowingTree.fork", bug) and not hunt.names_file("arpo or rollout", bug)
    told = hunt.lesson(hunt.Hunt(Path("hunt"), bug, "B"))
    assert "The bug was in GrowingTree._branch:" in told and f"{bug.name}: {bug.shows}." in told
    assert any(line.startswith("+ ") and bug.swap.new.strip() in line for line in told.splitlines()), told


@pytest.mark.slow
def test_a_test_that_hangs_or_is_right_by_chance_is_no_catch(copy, monkeypatch):
    """Guards: a test that never ends, and with it the check; and one that fails every other time."""
    monkeypatch.setattr(hunt, "SECONDS", 8)
    found = hunt.Hunt(copy.folder / "hunt2", BUGS[-3], "B")
    found.folder.mkdir()
    (found.folder / "answer.txt").write_bytes(b"run: B.\nplace: caf\xe9 centred\nsymptom: sums\n")
    chance = (
        f"import os\n\ndef test_it():\n    place = {str(copy.folder / 'tossed')!r}\n    seen = os.path.exists(place)\n"
    )
    chance += "    (os.remove(place) if seen else open(place, 'w').close())\n    assert seen\n"
    for text in (chance, "import time\n\n\ndef test_it():\n    time.sleep(999)\n"):
        (found.folder / "test_hunt.py").write_text(text)
        judged, said = hunt.check(found)
        assert list(judged.values()) == [True, True, True, False, False]
    assert "did not end within 8 s" in said


@pytest.mark.slow
def test_every_bug_is_caught_by_the_test_that_it_names(tmp_path):
    assert caught(BUGS, tmp_path) == {bug.name: 1 for bug in BUGS}


@pytest.mark.slow
def test_every_bug_survives_three_steps_of_training(tmp_path):
    """Silent: no error, and finite numbers."""
    flags = "--max_steps 3 --questions_per_step 2 --eval_questions 4 --eval_steps 9 --test_questions 4 --output_dir run"
    folders = [planted(bug, tmp_path / str(n)) for n, bug in enumerate(BUGS)]
    jobs = [
        {"folder": str(folder), "command": "train", "arguments": flags.split(), "log": str(folder / "log")}
        for folder in folders
    ]
    codes = hunt.run_jobs(jobs)
    assert {bug.name: code for bug, code in zip(BUGS, codes)} == {bug.name: 0 for bug in BUGS}
    for folder in folders:
        rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
        assert len(rows) == 4 and all(math.isfinite(value) for row in rows for value in row.values())


@pytest.mark.slow
def test_a_students_test_is_run_with_and_without_the_bug(copy, capsys):
    """Guards: a test that fails on both counted as a catch; and that the answer tells nothing of the bug by itself."""
    found = hunt.Hunt(copy.folder / "hunt", BUGS[-3], "B")
    assert found.bug.name == "statistics over the batch"
    found.folder.mkdir()
    shutil.copy(ROOT / "tests" / "test_advantage.py", found.folder / "test_hunt.py")
    (found.folder / "answer.txt").write_text("run: b\nplace: advantage.py:centred()\nsymptom: sums that are not 0\n")
    judged, said = hunt.check(found)
    assert all(judged.values()) and len(judged) == 5 and "failed" in said


@pytest.mark.slow
def test_a_hunt_from_beginning_to_end(copy, capsys):
    flags = ["--copy", str(copy.folder)]
    shutil.rmtree(copy.folder / "hunt", ignore_errors=True)
    assert command.main(["bug", *flags]) == 0
    place = copy.folder / "hunt"
    assert {file.name for file in place.iterdir()} == {"A", "B", "answer.txt", "test_hunt.py"}
    runs = [(place / run / "metrics.jsonl").read_text() for run in "AB"]
    assert runs[0] != runs[1]
    pages = [page for run in "AB" for page in (place / run / "trees").glob("*.html")]
    assert pages and all((page.parent / read_page(page)["index"]).exists() for page in pages)  # no link into the void
    assert command.main(["bug", "--check", *flags]) == 1
    told = capsys.readouterr().out
    assert "yes  the test passes without the bug" in told and "no   the test fails with the bug" in told
    assert command.main(["bug", *flags]) == 2


# ---------------------------------------------------------------------------------- the class


def handed(name, seed, **experiments):
    return {"name": name, "seed": seed, "version": "v", "attempts": [], "changes": {}, "experiments": experiments}


def class_of(folder, **handed_in):
    """Files of a class, by name."""
    folder.mkdir(exist_ok=True)
    for name, content in handed_in.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def class_run(seed, arpo, grpo, **changes):
    numbers = {"arpo": arpo, "grpo": grpo, "theory": grpo}
    arms = {arm: {"groups alike": share, "calls a leaf": 2.0} for arm, share in numbers.items()}
    return {"experiment": "variance", "seed": seed, "hash": "same", "arms": arms, "seconds": 20} | changes


def test_pooling_worked_by_hand():
    """Differences 1, 2 and 3: mean 2, standard error 1/√3, and Student's t with two degrees of freedom is 4.303."""
    runs = {"ada": class_run(1, 5.0, 4.0), "bob": class_run(2, 6.0, 4.0), "cid": class_run(3, 7.0, 4.0)}
    told = pooled("variance", runs)
    (line,) = [line for line in told.splitlines() if line.startswith("arpo - grpo")]
    assert line.split()[3:6] == ["2", "±", "2.48"]
    assert "not told from 0" in told and "3 runs" in told and EXPERIMENTS["variance"].lesson in told
    assert "by thirty" not in told  # three runs hardly know their spread
    assert "above 0" in pooled("variance", {name: class_run(n, 5.0 + n / 10, 4.0) for n, name in enumerate("abc")})
    told = pooled("variance", {"ada": class_run(1, 5.0, 4.0)})
    assert "1 run: no interval yet" in told
    assert not any(word in told for word in ("inf", "±", "1 runs", "95%", "nan", "not told"))


def test_what_could_be_seen_is_more_than_the_interval_is_wide():
    """Guards: the 2.8 of many runs for a few, by which four would see less than their interval's half width. By tables
    of Student's t: 3.1824 and 0.9785 with three degrees of freedom, 2.0452 and 0.8542 with 29; the spread is √(5/3)."""
    gaps, spread = [1.0, 2.0, 3.0, 4.0], math.sqrt(5 / 3)
    assert detectable(gaps, 4) == pytest.approx((3.1824 + 0.9785) * spread / 2, rel=1e-4)
    assert detectable(gaps, 30) == pytest.approx((2.0452 + 0.8542) * spread / math.sqrt(30), rel=1e-4)
    told = pooled("variance", {name: class_run(n, 5.0 + n, 4.0) for n, name in enumerate("abcd")})
    rows = [(line[:20].strip(), line.split()[-1]) for line in told.splitlines() if line[:20].strip()]
    first = lambda what: float(next(value for name, value in rows if name == what))
    seen, half = first("could be seen"), first("arpo - grpo")
    assert seen == pytest.approx(2.686, abs=0.01) and seen > half > first("by thirty")


def test_pool_names_who_is_missing_and_leaves_out_what_does_not_belong(tmp_path, capsys):
    """Guards: one old or copied run that stops a class's table, or that is counted in it."""
    runs = [class_run(n, 0.5 + n / 10, 0.4) for n in (0, 1, 2)]
    runs += [class_run(3, 0.6, 0.4), class_run(4, 0.9, 0.4, hash="old")]
    made = {f"s{n}": handed(f"s{n}", n, variance=run) for n, run in enumerate(runs)}
    made |= {"s0b": handed("s0b", 0, variance=class_run(0, 0.75, 0.4)), "none": handed("none", 9)}
    folder = class_of(tmp_path / "class", **made)
    assert command.main(["pool", str(folder)]) == 0
    told = capsys.readouterr().out
    assert "3 runs, " in told and "without this experiment: none" in told
    for line in (
        "s3 is left out: the very numbers of s1, which count once",
        "s4 is left out: a run of another version or command than most",
        "s0b is left out: the seed of s0, and a seed is one run",
    ):
        assert line in told.splitlines()
    assert command.main(["pool", str(folder / "none.json")]) == 2
    assert "expected submissions with an experiment, found none" in capsys.readouterr().err


def test_pool_shows_one_experiment_with_its_predictions_and_without_a_constant(tmp_path, capsys):
    variance = class_run(1, 0.5, 0.4, predicted="more\x1b[31m")
    numbers = dict.fromkeys(OUTCOMES[EXPERIMENTS["bonus"].measure], 0.5)
    arms = {arm: numbers | {"tokens sampled": n} for n, arm in enumerate(EXPERIMENTS["bonus"].arms)}
    bonus = {"experiment": "bonus", "seed": 1, "hash": "same", "arms": arms, "seconds": 1, "predicted": "up"}
    folder = class_of(tmp_path / "class", ada=handed("ada", 1, variance=variance, bonus=bonus))
    assert command.main(["pool", str(folder), "--only", "variance"]) == 0
    told = capsys.readouterr().out
    assert "ada predicted: more" in told and "\x1b" not in told and "Do you get what you pay for?" not in told
    assert "calls a leaf: 2 everywhere" in told and "calls a leaf, from" not in told
    assert command.main(["pool", str(folder)]) == 0
    assert "ada predicted: up" in capsys.readouterr().out.split("variance: ")[0]


def test_the_arms_of_experiments_are_commands_of_train():
    for experiment in EXPERIMENTS.values():
        configs = [
            read_flags(f"{experiment.flags} {flags} --output_dir none".split()) for flags in experiment.arms.values()
        ]
        assert len(set(map(str, configs))) == len(experiment.arms) >= 3
    for flags in (hunt.FLAGS, *(experiment.flags for experiment in EXPERIMENTS.values())):
        assert read_flags(f"{flags} --output_dir none --allow_unsafe_python".split()).allow_unsafe_python


@pytest.mark.slow
def test_an_experiment_measures_what_the_project_does():
    """Guards: functions of `train.py` and `eval.py` that have come to return something else."""
    small = dict(max_steps=1, questions_per_step=1, num_initial=4, test_questions=1)
    config = lambda name: replace(read_flags(f"{EXPERIMENTS[name].flags} --output_dir none".split()), **small)
    learned = EXPERIMENTS["bonus"].measure(config("bonus"))
    assert learned["tokens sampled"] > 20 and learned["calls in training"] >= 1
    assert {learned["held-out accuracy"]} <= {0.0, 1.0}
    assert learned.keys() == set(OUTCOMES[EXPERIMENTS["bonus"].measure])
    looked = EXPERIMENTS["variance"].measure(config("variance"))
    assert looked["groups alike"] in (0, 1) and 0 < looked["calls a leaf"] < 6
    assert looked.keys() == set(OUTCOMES[EXPERIMENTS["variance"].measure])


def test_alike_counts_all_ways_to_choose_leaves():
    for right in ([1, 1, 0, 1], [1, 1, 1, 1, 0, 0], [0.0] * 5):
        for size in (2, 3, 4):
            ways = list(itertools.combinations(right, size))
            assert alike(right, size) == pytest.approx(sum(len(set(way)) == 1 for way in ways) / len(ways))


def in_this_process(folder, exercises, cases, told):
    """`run_student` without a process of its own, to save the time of loading the libraries."""
    for exercise in exercises:
        texts = {blank.file: (folder / blank.file).read_text() for blank in exercise.blanks}
        yield exercise, {"answers": exercise.answers(cases[exercise.number], texts=texts)}


def test_from_submissions_to_a_summary_and_to_other_inputs(tmp_path, monkeypatch, capsys):
    """Two students, one file each: what they tried, and their code again with another seed."""
    monkeypatch.setattr(grading, "run_student", in_this_process)
    files = []
    for name, first, then in (
        (
            "ada",
            "own += [1] * len(turn_ids) + [1] * len(result_ids)",
            "own += [1] * len(turn_ids) + [0] * len(result_ids)",
        ),
        ("bob", "own += [1] * len(turn_ids) + [1] * len(result_ids)", "own += [0] * len(turn_ids + result_ids)"),
    ):
        copy = copies.make_copy(tmp_path / name, name, copies.seed_of(name))
        flags = ["--copy", str(copy.folder)]
        write(copy, 5, first)
        assert command.main(["grade", "5", *flags]) == 1
        file = copy.folder / "data" / "format.py"
        file.write_text(file.read_text().replace(first, then))
        command.main(["grade", "5", *flags])
        command.main(["hint", "5", *flags])
        assert command.main(["submit", *flags]) == 0
        files.append(str(copy.folder / f"submission-{name}.json"))
    capsys.readouterr()
    assert command.main(["summary", *files]) == 0
    told = capsys.readouterr().out
    assert "2 of 2  exercise 5: results are learned" in told
    row = lambda name: next(line for line in told.splitlines() if line.startswith(name)).split()
    assert row("ada") == ["ada", "2", "1h"] and row("bob") == ["bob", "x", "1h"]
    assert command.main(["regrade", "--seed", "77", *files]) == 0
    told = capsys.readouterr().out
    assert "seed 77" in told and row("ada")[1:] == ["blank"] * 4 + ["right"] + ["blank"] * 7
    assert row("bob")[5] == "wrong"
    # Guards: a student who wrote nothing and is given what the one before wrote.
    (tmp_path / "eve.json").write_text(
        json.dumps(json.loads(Path(files[0]).read_text()) | {"name": "eve", "changes": {}})
    )
    assert command.main(["regrade", "--seed", "77", files[0], str(tmp_path / "eve.json")]) == 0
    told = capsys.readouterr().out
    assert row("ada")[5] == "right" and row("eve")[5] == "blank*"
    assert command.main(["summary", files[0], files[0]]) == 0 and capsys.readouterr().out.count("\nada ") == 1
    (tmp_path / "two.json").write_text(json.dumps(json.loads(Path(files[1]).read_text()) | {"name": "ada"}))
    assert command.main(["summary", files[0], str(tmp_path / "two.json")]) == 0
    assert "\nada (2) " in capsys.readouterr().out
    assert command.main(["summary", str(tmp_path / "ada" / "train.py")]) == 2


def test_a_submission_of_another_version_is_told_and_the_others_are_graded(monkeypatch):
    """Guards: one old file that ends the grading of thirty."""
    monkeypatch.setattr(grading, "run_student", in_this_process)
    new = handed("bob", 2) | {"version": copies.version_of_sources()}
    lines = list(classroom.regrade({"ada": handed("ada", 1), "bob": new}, 5))
    assert "expected a submission of this version" in lines[1] and lines[2].split() == ["bob"] + ["blank"] * 12


UNREADABLE = {
    "truncated": (b'{"name": "ada", "seed"', "found no whole JSON"),
    "empty": (b"", "found an empty file"),
    "utf16": (json.dumps(handed("eve", 3)).encode("utf-16"), "found no text in UTF-8"),
    "other": (b"[1, 2]", "expected 'name', a str"),
    "deep": (b"[" * 100_000, "recursion"),
}


def test_a_damaged_file_does_not_stop_the_class(tmp_path, monkeypatch, capsys):
    """Guards: one truncated, empty or wrong file that takes the other twenty-nine along; a BOM; a folder for files."""
    monkeypatch.setattr(grading, "run_student", in_this_process)
    folder = class_of(tmp_path / "class", bob=handed("bob", 2, variance=class_run(2, 0.5, 0.4)))
    bom = handed("ada", 1, variance=class_run(1, 0.4, 0.4)) | {"version": copies.version_of_sources()}
    (folder / "ada.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(bom).encode())
    for name, (content, _) in UNREADABLE.items():
        (folder / f"{name}.json").write_bytes(content)
    for argv in (["pool"], ["summary"], ["regrade", "--seed", "3"]):
        assert command.main([*argv, str(folder), str(folder / "missing.json")]) == 1
        told = capsys.readouterr().out
        assert "ada" in told and "bob" in told or "2 runs, " in told
        for name, (_, why) in UNREADABLE.items():
            (line,) = [line for line in told.splitlines() if line.startswith(f"{folder / name}.json is left out: ")]
            assert why in line
        assert "missing.json is left out: expected a file that `submit` wrote: No such file" in told
    assert command.main(["summary", *(str(folder / f"{name}.json") for name in UNREADABLE)]) == 2
    out, err = capsys.readouterr()
    assert not out and len(err.splitlines()) == len(UNREADABLE)
    (tmp_path / "nothing").mkdir()
    assert command.main(["summary", str(tmp_path / "nothing")]) == 2
    assert f"no submissions in {tmp_path / 'nothing'}" in capsys.readouterr().err


def test_two_of_one_name_are_two_and_the_later_of_two_files_counts(tmp_path, capsys):
    """Guards: two students who are both called anna and become one, or one who loses what was done since the first
    file was handed in."""
    first, other = (copies.make_copy(tmp_path / laptop / "arpo-anna", "anna", 5) for laptop in "ab")
    assert first.id != other.id and first.seed == other.seed
    hinted = lambda *hints: [{"time": 10 + n, "hint": hint} for n, hint in enumerate(hints)]
    anna = handed("anna", 5) | {"id": first.id}
    files = {
        "new": anna | {"time": 300, "attempts": hinted(1)},
        "old": anna | {"time": 200, "attempts": hinted(2, 2, 2)},  # more attempts, and taken back
        "other": handed("anna", 5) | {"id": other.id, "time": 100, "attempts": hinted(3)},
        "undated": handed("bob", 6) | {"attempts": hinted(4)},
    }
    folder = class_of(tmp_path / "class", **files)
    assert command.main(["summary", str(folder)]) == 0
    told = capsys.readouterr().out
    place = lambda name, hint: next(line.index(hint) for line in told.splitlines() if line.startswith(name))
    assert place("anna ", "1h") < place("anna (2)", "1h") < place("bob", "1h")
    assert f"anna: 2 files, of which the latest is taken, {folder / 'new.json'}" in told
    assert f"anna (2): another copy than the first one called anna ({folder / 'other.json'})" in told


def test_what_was_written_in_a_hunt_is_handed_in(tmp_path, capsys):
    """Guards: a teacher who cannot mark a hunt; a text of any length; a point for a test that nobody touched."""
    student = copies.make_copy(tmp_path / "ada", "ada", 5)
    (student.folder / "hunt").mkdir()
    (student.folder / "hunt" / "answer.txt").write_text("run: B\nplace: centred\n")
    (student.folder / "hunt" / "test_hunt.py").write_text("assert 1\n" + "#" * 99_999)
    kept = "the test passes without the bug", "the test fails with the bug"
    student.note({"time": 1, "hunt": [kept[0]]})
    assert command.main(["submit", "--copy", str(student.folder)]) == 0
    file = student.folder / "submission-ada.json"
    assert len(json.loads(file.read_text())["hunt"]["test_hunt.py"]) == LONGEST
    assert command.main(["summary", str(file), "--hunts"]) == 0
    told = capsys.readouterr().out
    assert "ada, answer.txt:\n    run: B\n" in told and "    assert 1\n" in told
    assert next(line for line in told.splitlines() if line.startswith("ada")).split() == ["ada", "0"]
    assert [hunt.points(right) for right in ([], ["the run", kept[0]], ["the run", *kept])] == [0, 1, 3]


DAMAGED = [
    ({"attempts": [[]]}, "an attempt, a hint or a hunt"),
    ({"attempts": [{"exercise": 6, "time": 0}]}, "an attempt, a hint or a hunt"),
    ({"changes": {"arpo.py": [[0, 1, "x"]]}}, "expected changes"),
    ({"name": "a\x1b[31m"}, "expected a student's name"),
    ({"seed": "1"}, "expected 'seed', a int"),
    ({"experiments": {"bonus": {}}}, "expected a run of bonus with the student's own seed, 1"),
    ({"experiments": {"other": {}}}, "expected one of the experiments branching, bonus, variance"),
]


@pytest.mark.parametrize("change, told", DAMAGED)
def test_damaged_submissions_get_one_line(change, told, tmp_path, capsys):
    (tmp_path / "ada.json").write_text(json.dumps(handed("ada", 1) | change))
    for argv in (["pool"], ["summary"], ["regrade", "--seed", "3"]):
        assert command.main([*argv, str(tmp_path / "ada.json")]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert told in line and "ada.json" in line


@pytest.mark.parametrize("value, told", [(-1, "0 to 1"), (30, "0 to 1"), (math.nan, "0 to 1"), ("1", "0 to 1")])
def test_impossible_numbers_are_not_pooled(value, told, tmp_path, capsys):
    """Guards: a table of a class in which an accuracy is 3000 and calls are negative."""
    run = class_run(1, 0.5, 0.4)
    run["arms"]["grpo"]["groups alike"] = value
    file = tmp_path / "ada.json"
    file.write_text(json.dumps(handed("ada", 1, variance=run)))
    assert command.main(["pool", str(file)]) == 2
    assert f"variance, grpo, groups alike: expected a number from {told}" in capsys.readouterr().err
    del run["arms"]["theory"]
    file.write_text(json.dumps(handed("ada", 1, variance=run)))
    assert command.main(["pool", str(file)]) == 2 and "expected the arms arpo, grpo, theory" in capsys.readouterr().err


@pytest.mark.parametrize("name, text", [("student.json", "{}"), ("attempts.jsonl", "[]\n"), ("advantage.py", None)])
def test_a_damaged_copy_is_told_in_one_line(name, text, tmp_path, capsys):
    student = copies.make_copy(tmp_path / "a b", "ada", 5)
    file = student.folder / name
    file.write_bytes(b"# caf\xe9\n") if text is None else file.write_text(text)
    assert command.main(["submit", "--copy", str(student.folder)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(file) in line and "expected" in line


def test_a_verdict_is_told_where_it_cannot_be_noted(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(grading, "run_student", in_this_process)
    student = copies.make_copy(tmp_path / "ada", "ada", 5)
    (student.folder / "attempts.jsonl").mkdir()
    write(student, 5, "own += [True] * len(turn_ids) + [False] * len(result_ids)")
    assert command.main(["grade", "the", "mask", "--copy", str(student.folder)]) == 0
    out, err = capsys.readouterr()
    assert out == "exercise 5, The mask: right\n" and "this attempt is not noted" in err


def test_one_name_is_one_copy_whatever_its_capitals(tmp_path, monkeypatch, capsys):
    """Guards: two copies, one of them not the one that is written in, and on some disks one over the other."""
    monkeypatch.setattr(command, "ROOT", tmp_path / "checkout")
    assert command.main(["start", "Ann"]) == 0
    assert command.main(["start", "aNN"]) == 2
    assert f"found {tmp_path / 'arpo-Ann'}" in capsys.readouterr().err


@pytest.mark.parametrize("word, number", [("E2", 2), ("03", 3), ("entropy", 1), ("The mask", 5), ("clipped los", 9),
                                          ("branch_rule", 3), ("attribution", 7)])  # fmt: skip
def test_exercises_go_by_number_or_title(word, number):
    assert [exercise.number for exercise in command.chosen([word])] == [number]
    assert [exercise.number for exercise in command.chosen(word.split())] == [number]


def test_the_command_can_be_said_in_the_copy(tmp_path):
    student = copies.make_copy(tmp_path / "ada", "ada", 5)
    done = subprocess.run(
        [sys.executable, "-m", "exercises", "list", "6"], cwd=student.folder, capture_output=True, text=True
    )
    assert done.returncode == 0 and "advantage.py:centred" in done.stdout and not done.stderr
    (student.folder / "exercises.py").write_text(copies.FORWARD.format(checkout=str(tmp_path / "moved")))
    done = subprocess.run([sys.executable, "-m", "exercises"], cwd=student.folder, capture_output=True, text=True)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and str(tmp_path / "moved") in done.stderr


@cache
def known_of(number):
    (exercise,) = [e for e in COURSE if e.number == number]
    return exercise.known(3)


def graded(number, *codes):
    """The verdict on code in an exercise's blanks, in this process."""
    (exercise,) = [e for e in COURSE if e.number == number]
    texts = dict(copies.blank_texts())
    for blank, told, code in zip(exercise.blanks, exercise.asks, codes):
        (line,) = [line for line in texts[blank.file].splitlines() if asking(told) in line]
        texts[blank.file] = texts[blank.file].replace(line, indent(code, line[: len(line) - len(line.lstrip())]))
    cases, known = exercise.cases(3), known_of(number)
    answers = exercise.answers(cases, texts={blank.file: texts[blank.file] for blank in exercise.blanks})
    return grading.judge(exercise, cases, {"answers": json.loads(json.dumps(answers, default=plain))}, known)


OTHER_WAYS = [
    (1, "entropies = torch.distributions.Categorical(logits=logits.float()).entropy()[:, None]"),
    (2, "import torch\nrow.last_entropy = torch.tensor(turn.entropies[: self.config.entropy_tokens]).mean()\n"
        "if math.isnan(row.initial_entropy):\n    row.initial_entropy = row.last_entropy",
     "entropy = row.last_entropy"),
    (5, "import numpy as np\nown.extend(np.ones(len(turn_ids), int))\nown.extend(np.zeros(len(result_ids), int))"),
    (6, "shifted = rewards - rewards[..., :1]\nreturn (shifted - shifted.mean(-1, keepdim=True)).numpy()"),
    (7, "own = advantages * descends\nmean = own.sum(1, keepdim=True) / descends.sum(1, keepdim=True)\n"
        "if attribution in ('soft', 'hard'):\n    return own if attribution == 'soft' else mean * descends"),
    (8, "M, T = sum(map(len, lengths)), sum(L.sum() for L in lengths)\nby = {'token_mean': lambda L: T, "
        "'sequence_mean': lambda L: M * L}.get(loss_type, lambda L: M * max_length)\n"
        "return tuple(D / by(L) for D, L in zip(descends, lengths))"),
    (9, "ratio = (logprobs - old).exp().unsqueeze(1)\nclipped = ratio.clip(1 - config.epsilon, 1 + config.epsilon_high)"
        "\ngain = torch.where(A > 0, ratio.clip(max=1 + config.epsilon_high), ratio.clip(min=1 - config.epsilon)) * A"),
    (12, "worked = [n.call.tool for n in nodes if n.result and n.result.outcome == 'ok']",
         "import torch\nif not well_formed:\n    return torch.tensor(-1)\nboth = len({*tools_run}) > 1\n"
         "return torch.tensor(accuracy + bonus if accuracy > .5 and both else accuracy)"),
]  # fmt: skip


@pytest.mark.parametrize("number, codes", [(number, codes) for number, *codes in OTHER_WAYS])
def test_what_is_right_is_right_in_any_style(number, codes):
    """Guards: right answers that were refused: numbers that are tensors or NumPy's, and an attribution that is 0 where
    its weight is."""
    verdict = graded(number, *codes)
    assert verdict.right, verdict.text


DELTAS = "deltas = [round(p.entropy - p.start.initial_entropy, 6) / self.norm for p in places]"
ODDS = "return cfg.base_prob + cfg.entropy_weight * delta, bar"
GRANTS = """for i in sorted(range(len(places)), key=lambda i: {}):
    if odds[i][0] > odds[i][1]:
        granted[i] = min(cfg.fan_out, self.budget - sum(granted))"""
MEASURED = "row.last_entropy = float(torch.tensor(turn.entropies[: self.config.entropy_tokens]).mean())"
ONCE_RIGHT = [
    (7, "hard is a column",
     "if attribution == 'soft':\n    return advantages * torch.ones_like(descends)\n"
     "if attribution == 'hard':\n    return (descends @ advantages / descends.sum(1))[:, None]"),
    (7, "the mean of the children's means",
     "if attribution == 'soft':\n    return advantages.expand_as(descends)\nif attribution == 'hard':\n    below = {}\n"
     "    for n in reversed(range(len(parents))):\n        own = [below[c] for c, p in enumerate(parents) if p == n]\n"
     "        below[n] = sum(own) / len(own) if own else (descends[n] @ advantages).item()\n"
     "    return torch.tensor([below[n] for n in range(len(parents))])[:, None].expand_as(descends)"),
    (2, "only the first start",
     f"{MEASURED}\nif row.node == PROMPT and row.rank == 0:\n    row.initial_entropy = row.last_entropy",
     "entropy = row.last_entropy"),
    (2, "a fork's first turn is its beginning",
     f"{MEASURED}\nif not row.start:\n    row.initial_entropy = row.last_entropy", "entropy = row.last_entropy"),
    (3, "in the order of the margin", DELTAS, GRANTS.format("odds[i][1] - odds[i][0]"), ODDS),
    (3, "in the order of ΔH", DELTAS, GRANTS.format("-deltas[i]"), ODDS),
    (3, "more under the coin", DELTAS, GRANTS.format("-odds[i][0]")
     + "\nif cfg.branch_rule == 'coin':\n    granted = [g + 1 for g in granted]", ODDS),
    (3, "in turns", DELTAS, "for _ in range(cfg.fan_out):\n"
     "    for i in sorted(range(len(places)), key=lambda i: -odds[i][0]):\n"
     "        if odds[i][0] > odds[i][1] and sum(granted) < self.budget:\n            granted[i] += 1", ODDS),
    (6, "equal in the whole batch",
     "if (rewards == rewards[..., :1]).all():\n    return torch.zeros_like(rewards)\n"
     "return rewards - rewards.mean(-1, keepdim=True)"),
    (9, "clipped on one side at a time",
     "ratio = (logprobs - old).exp()[:, None]\nhigh, low = 1 + config.epsilon_high, 1 - config.epsilon\n"
     "clipped = torch.where(A > 0, ratio.clamp(max=high), ratio.clamp(min=low))\ngain = clipped * A"),
    (12, "a bonus for a perfect answer alone",
     "worked = {n.call.tool for n in nodes if n.result and n.result.outcome == 'ok'}",
     "return -1.0 if not well_formed else accuracy + bonus * (accuracy > 0.9 and {'search', 'python'} <= tools_run)"),
]  # fmt: skip


@pytest.mark.parametrize("number, name, codes", [(number, name, codes) for number, name, *codes in ONCE_RIGHT])
def test_what_was_once_taken_for_right_is_a_known_mistake(number, name, codes):
    """Guards: inputs that do not tell a wrong answer: one start, one rule, alike groups, a shape that broadcasts."""
    verdict = graded(number, *codes)
    assert (verdict.kind, verdict.mistake) == ("known", name), verdict.text


@pytest.mark.parametrize("number, told, codes", [
    (1, "That is the entropy at the sampling temperature|With --temperature",
     ["q = (logits.float() / temperature).log_softmax(-1)\nentropies = -(q.exp() * q).sum(-1, keepdim=True)"]),
    (6, "You divided by the deviation: ADVANTAGES does that",
     ["return (rewards - rewards.mean(-1, keepdim=True)) / (rewards.std(-1, keepdim=True) + 1e-8)"]),
    (6, "Your mean has lost its axis", ["return rewards - rewards.mean(-1)"]),
])  # fmt: skip
def test_mistakes_that_come_with_another_are_told(number, told, codes):
    """Guards: "none of the known mistakes" where one explains most answers and another the last."""
    verdict = graded(number, *codes)
    assert verdict.kind in ("known", "wrong") and any(text in verdict.text for text in told.split("|")), verdict.text


def test_a_message_says_what_its_numbers_are():
    """Guards: -0 beside an expected 0; an error whose expected answer has a number that nothing explains."""
    (exercise,) = [e for e in COURSE if e.number == 6]
    assert grading.show([-0.0, -0.5]) == "[0, -0.5]"
    found = {"error": "RuntimeError: a size", "at": "advantage.py:9: return", "answers": [0]}
    assert exercise.told in grading.judge(exercise, exercise.cases(1), found, {}).text
    changed = {"error": "ValueError: rewards is changed", "at": "", "answers": []}
    assert "loaded" not in grading.judge(exercise, exercise.cases(1), changed, {}).text


CHANGED_INPUTS = [
    (1, "entropies = torch.special.entr(logp.exp_()).sum(-1, keepdim=True)"),
    (6, "rewards -= rewards.mean(-1, keepdim=True)\nrewards[rewards.abs() < 1e-6] = 0\nreturn rewards"),
    (8, "for D in descends:\n    D /= torch.cat(lengths).sum()\nreturn descends"),
    (9, "A *= 1.5\nratio = (logprobs - old).exp()[:, None]\nclipped = ratio\ngain = ratio * A"),
]


@pytest.mark.parametrize("number, code", CHANGED_INPUTS)
def test_inputs_that_are_changed_are_told(number, code):
    """Guards: code that gives the right numbers and spoils those of the lines after it."""
    with pytest.raises(ValueError, match="is changed|are changed"):
        graded(number, code)


def test_a_known_mistake_is_told_for_sure_only_where_all_answers_are_its_own():
    """Guards: "you fork below the bar" to one who grants nothing."""
    same = "deltas = [round(p.entropy - p.start.initial_entropy, 6) / self.norm for p in places]"
    odds = "return cfg.base_prob + cfg.entropy_weight * delta, bar"
    assert graded(3, same, "pass", odds).kind == "wrong"
    once = "for i in range(len(places)):\n    granted[i] = int(odds[i][0] > odds[i][1])"
    verdict = graded(3, same, once, odds)
    assert verdict.kind == "wrong" and (not verdict.text.startswith("Perhaps") or "or instead" in verdict.text)


def test_what_mistakes_answer_is_kept_as_long_as_it_is_true(tmp_path, monkeypatch):
    """Guards: a file of old answers, or a broken one, after an exercise has got other inputs."""
    (exercise,), cache = [e for e in COURSE if e.number == 6], tmp_path / "known" / "3.json"
    first = grading.mistakes_of(exercise, 3, cache)
    kept = json.loads(cache.read_text())
    assert grading.mistakes_of(exercise, 3, cache) == first and first.keys() == exercise.ways.keys()
    read = grading.inspect.getsource
    monkeypatch.setattr(grading.inspect, "getsource", lambda code: read(code) + "# new" * (code is exercise.code))
    grading.mistakes_of(exercise, 3, cache)
    assert len(json.loads(cache.read_text())) == len(kept) + 1
    for text in ("[", "[]", "{}"):
        cache.write_text(text)
        assert grading.mistakes_of(exercise, 3, cache) == first


def test_errors_of_other_files_and_of_the_librarys_are_not_blanks():
    """Guards: a right answer called blank since another file cannot be read; and torch's own NotImplementedError."""
    (exercise,) = [e for e in COURSE if e.number == 9]
    judged = lambda error, at: grading.judge(exercise, exercise.cases(1), {"error": error, "at": at, "answers": []}, {})
    assert judged("SyntaxError: invalid syntax", "rollout.py:9: x ==").kind == "waits"
    assert judged("SyntaxError: invalid syntax", "rollout.py:9: x ==").text.startswith("rollout.py cannot be read: lin")
    assert judged("NotImplementedError: exercise 2: set it", "rollout.py:9").kind == "waits"
    begun = judged("NotImplementedError: exercise 9: set it", "arpo.py:219: raise NotImplementedError")
    assert (begun.kind, begun.text) == ("begun", "still to write: arpo.py:219")
    assert judged('NotImplementedError: "exp" not implemented for "Long"', "arpo.py:9: exp").kind == "error"


def test_the_rubric_has_a_page_on_each_exercise_and_the_bugs(capsys):
    assert command.main(["rubric"]) == 0
    told = capsys.readouterr().out
    assert all(f"# {e.number}. {e.title}" in told and e.question in told for e in COURSE)
    assert all(mistake.why in told for e in COURSE for mistake in e.mistakes)
    assert all(bug.caught_by in told for bug in BUGS)


def test_tests_that_catch_bugs_exist():
    for bug in BUGS:
        file, _, name = bug.caught_by.partition("::")
        assert f"def {name}(" in source(file), bug.name


def test_the_teachers_page_lists_what_there_is():
    page = source("docs/teaching.md")
    for e in COURSE:
        row = f"| {e.number}{' *' * e.core} | {e.title} | "
        (line,) = [line for line in page.splitlines() if line.startswith(row)]
        assert line.endswith(f" | {e.minutes} | {e.misconception} |")
        assert all(f"`{blank.file}:{blank.function}`" in line for blank in e.blanks)
    core, every = (sum(e.minutes for e in some) for some in ([e for e in COURSE if e.core], COURSE))
    assert f"takes {core} minutes by these estimates, all of it {every}" in page
    assert f"one of {len(BUGS)} bugs" in page and all(f"**{name}**" in page for name in EXPERIMENTS)


def test_commonest_mistakes_are_named_with_and_without_the_mask():
    """Guards: the plainest wrong answer, `return rewards`, of which nobody is told what it is."""
    for code in ("return rewards", "return rewards - rewards.mean()", "return rewards - rewards.mean(0, keepdim=True)"):
        verdict = graded(6, code)
        assert verdict.kind == "known" and not verdict.perhaps, code
    assert graded(6, "return rewards").mistake == "rewards as they are"
    assert graded(5, "own += [0] * len(turn_ids) + [1] * len(result_ids)").mistake == "the other way round"
    assert graded(7, "return advantages.expand_as(descends)").mistake == "always soft"


def test_a_mistake_that_is_perhaps_made_is_counted_as_such(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(grading, "run_student", in_this_process)
    student = copies.make_copy(tmp_path / "ada-of-a-long-name", "ada-of-a-long-name", 5)
    flags = ["--copy", str(student.folder)]
    write(student, 6, "return rewards - rewards.mean() if len(rewards) > 1 else rewards * 2")
    assert command.main(["grade", "6", *flags]) == 1 and "Perhaps: " in capsys.readouterr().out
    (note,) = student.notes()
    assert (note["kind"], note["perhaps"], note["mistake"]) == ("wrong", True, "mean over the batch")
    student.note({"time": 1, "exercise": 2, "kind": "begun", "mistake": "", "seed": 5})
    assert command.main(["submit", *flags]) == 0
    assert command.main(["summary", str(student.folder / f"submission-{student.name}.json")]) == 0
    told = capsys.readouterr().out
    assert "1 of 1  exercise 6: perhaps mean over the batch; still open: ada-of-a-long-name" in told
    row = next(line for line in told.splitlines() if line.startswith("ada"))
    assert row.split() == ["ada-of-a-long-name", "~", "x"]


def test_what_python_cannot_read_is_the_error_of_one_exercise(tmp_path):
    """Guards: one missing bracket in advantage.py that counts as three students' errors in a summary."""
    student = copies.make_copy(tmp_path / "ada", "ada", 5)
    write(student, 6, "return rewards - rewards.mean(-1, keepdim=True)")
    write(student, 7, "if attribution == 'soft'\n        return advantages")
    write(student, 8, "return [D for D in descends]")
    lines = (student.folder / "advantage.py").read_text().splitlines()
    line = next(n for n, text in enumerate(lines, 1) if text.endswith("'soft'"))
    found = {"error": "SyntaxError: expected ':'", "at": f"advantage.py:{line}: if", "answers": []}
    assert grading.owner(student, found) == 7 and grading.owner(student, found | {"error": "NameError: x"}) is None
    found |= {"owner": 7}
    verdicts = [
        grading.judge(exercise, exercise.cases(1), found, {}) for exercise in COURSE if 6 <= exercise.number < 9
    ]
    assert [verdict.kind for verdict in verdicts] == ["waits", "error", "waits"]
    assert verdicts[0].text.startswith(f"advantage.py cannot be read: line {line}")


def test_a_part_that_is_still_blank_is_named(tmp_path, monkeypatch):
    """Guards: "still blank" to one who wrote half of it, or who left the given line as a comment."""
    student = copies.make_copy(tmp_path / "ada", "ada", 5)
    (exercise,) = [e for e in COURSE if e.number == 3]
    assert len(grading.unwritten(exercise, student.folder)) == 3
    write(student, 3, f"pass  # {asking(exercise.asks[0])}")
    left = grading.unwritten(exercise, student.folder)
    lines = (student.folder / "rollout.py").read_text().splitlines()
    assert len(left) == 2 and all("exercise 3: " in lines[int(place.partition(":")[2]) - 1] for place in left)
    found = {"error": "NameError: deltas", "at": "rollout.py:238: deltas", "answers": []}
    monkeypatch.setattr(grading, "run_student", lambda folder, written, cases, told: [(e, found) for e in written])
    (verdict,) = grading.grade(student, [exercise], 5)
    assert verdict.kind == "begun" and verdict.text.startswith(f"still to write: {left[0]}, {left[1]}\nNameError")


def test_an_experiment_is_chosen_predicted_and_allowed(copy, monkeypatch, capsys):
    """Guards: usage in place of a list; a prediction that nobody was asked for; a machine without confinement."""
    asked = {}
    monkeypatch.setattr(
        command, "run_experiment", lambda name, seed, told, more: asked.update(more=more) or {"seconds": 1}
    )
    assert command.main(["experiment"]) == 0
    told = capsys.readouterr().out
    assert all(f"{name}: {e.title}" in told and e.question in told for name, e in EXPERIMENTS.items())
    assert all(f"  {arm} " in told for e in EXPERIMENTS.values() for arm in e.arms)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda text: "  less ")
    made = copy.folder / "experiments" / "bonus.json"
    try:
        assert command.main(["experiment", "bonus", "--allow_unsafe_python", "--copy", str(copy.folder)]) == 0
        assert asked["more"] == ("--allow_unsafe_python",) and json.loads(made.read_text())["predicted"] == "less"
        monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
        assert command.main(["experiment", "bonus", "--copy", str(copy.folder)]) == 0
        assert asked["more"] == () and json.loads(made.read_text())["predicted"] == ""
    finally:
        shutil.rmtree(made.parent)


def test_a_second_hunt_is_refused_before_anything_is_made(tmp_path, monkeypatch, capsys):
    student = copies.make_copy(tmp_path / "ada", "ada", 5)
    flags, made = ["--copy", str(student.folder)], []
    monkeypatch.setattr(hunt, "plant", lambda begun, flags: made.append(flags))
    assert command.main(["bug", "--seed", "4", "--allow_unsafe_python", *flags]) == 0
    assert made == [f"{hunt.FLAGS} --allow_unsafe_python"] and "two short runs" in capsys.readouterr().out
    (student.folder / "hunt").mkdir()
    assert command.main(["bug", "--seed", "4", *flags]) == 2
    assert not capsys.readouterr().out and len(made) == 1


@pytest.mark.parametrize("name, good", [("José", True), ("कविता", True), ("a.b-c_1", True), ("a b", False), ("", False),
                                        (".a", False), ("a/b", False), ("a\x1b", False)])  # fmt: skip
def test_names_in_any_script(name, good):
    assert copies.is_name(name) == good


def test_a_name_is_one_whatever_an_accent_is_made_of(tmp_path, monkeypatch, capsys):
    """Guards: é as e and an accent, as macOS stores it, that was refused, or would have another seed."""
    monkeypatch.setattr(command, "ROOT", tmp_path / "checkout")
    assert command.main(["start", "Jose\u0301"]) == 0
    student = copies.Copy.open(tmp_path / "arpo-Jos\u00e9")
    assert student.name == "Jos\u00e9" and student.seed == copies.seed_of("Jos\u00e9")
    assert command.main(["start", "Jos\u00e9"]) == 2
