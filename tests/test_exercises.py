"""The course: selectors fit, blanks fail, the project passes, known mistakes are told apart, nothing leaks."""

import itertools
import json
import os

import pytest

from exercises import __main__ as command
from exercises import copies, grading
from exercises.course import close, load_course
from exercises.patches import ROOT, Blank, Swap, blanked, source, taken_out

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
        cases = exercise.cases(seed)
        known = {mistake.name: exercise.answers(cases, mistake) for mistake in exercise.mistakes}
        for mistake in exercise.mistakes:
            verdict = grading.judge(exercise, cases, {"answers": known[mistake.name]}, known)
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
    known = {mistake.name: exercise.answers(cases, mistake) for mistake in exercise.mistakes}
    verdict = grading.judge(exercise, cases, {"answers": answers}, known)
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
        "EXERCISES.md", "LICENSE", "requirements.txt", "student.json",
    }  # fmt: skip
    assert not list(copy.folder.rglob("__pycache__"))


def write(copy, number, text):
    """Puts a text in place of an exercise's first blank."""
    (exercise,) = [e for e in COURSE if e.number == number]
    file = copy.folder / exercise.blanks[0].file
    (line,) = [line for line in file.read_text().splitlines() if f"exercise {number}: " in line]
    file.write_text(file.read_text().replace(line.strip(), text))


def test_a_students_own_process(copy, monkeypatch, capsys):
    """As a student has it: the right, the wrong, the endless, the blank, and one who reads the solution."""
    write(copy, 6, "return rewards - rewards.median(-1, keepdim=True).values")
    write(copy, 7, "print('here I am')\n    while True:\n        pass")
    write(copy, 8, f"print(open({str(ROOT / 'advantage.py')!r}).read())")
    for file in ("rollout.py", "arpo.py", "eval.py", "data/grading.py"):
        (copy.folder / file).write_text(source(file))
    monkeypatch.setattr(grading, "SECONDS", 3)
    started = os.times().children_user
    assert command.main(["grade", "--copy", str(copy.folder)]) == 1
    assert os.times().children_user - started < 30  # the endless one takes 3 of them
    told = capsys.readouterr().out
    assert "exercise 6, Advantages of a group: not yet" in told and "You took the median." in told
    assert "your code did not come to an end" in told and ("while True" in told or "pass" in told)
    assert f"the exercises are to be solved in {copy.folder}" in told and "still blank: 5" in told
    kinds = {note["exercise"]: (note["kind"], note["mistake"]) for note in copy.notes()}
    found = {6: ("known", "median"), 7: ("error", ""), 8: ("error", "")}
    assert kinds == found | {number: ("right", "") for number in (1, 2, 3, 4, 9, 10, 11, 12)}


def test_what_a_student_changed_can_be_made_again(copy):
    made = json.loads(json.dumps(copy.changes()))
    assert set(made) == {"advantage.py", "arpo.py", "data/grading.py", "eval.py", "rollout.py"}
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
    (["grade", "99"], "expected exercises out of"),
    (["graed"], "invalid choice: 'graed'"),
    (["grade", "--copy", "nowhere"], "expected a copy made by `python -m exercises start NAME`, found no nowhere"),
    (["start", "ada", "--folder", str(ROOT)], "expected a new folder, found one that is not empty"),
]


@pytest.mark.parametrize("argv, told", WRONG)
def test_wrong_calls_get_one_line(argv, told, copy, capsys):
    argv = argv + ["--copy", str(copy.folder)] * (argv == ["grade", "99"])
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
