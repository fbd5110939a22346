"""The command line of the course. Without a command it prints how it goes."""

import argparse
import difflib
import json
import re
import shlex
import sys
import time
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path

from exercises import classroom, copies, grading, hunt
from exercises.copies import Copy
from exercises.course import Exercise, load_course
from exercises.experiments import EXPERIMENTS, listed
from exercises.experiments import run as run_experiment
from exercises.patches import ROOT
from exercises.submissions import read_submissions, submission

GUIDE = """\
Exercises about ARPO: you write the heart of it yourself, and are told in seconds what is right.

  python -m exercises start NAME      makes your own copy of the project in ../arpo-NAME, with statements taken out
  python -m exercises list            the exercises, their places in the copy, and how far you are
  python -m exercises grade           checks all that you wrote; `grade 3` or `grade branch` checks one exercise
  python -m exercises hint 3          a hint; once more, the next one
  python -m exercises bug             plants a bug, makes a run with it and one without, and lets you find it
  python -m exercises experiment NAME a class experiment with your own seed, one to two minutes: {names}
                                      (--copy FOLDER after any of these, where there is more than one copy)
  python -m exercises submit          writes what you did into one small file, to be handed in

For the teacher, with the files that were handed in (docs/teaching.md has a plan):

  python -m exercises rubric          a page on each exercise, the known mistakes and the bugs: not for students
  python -m exercises summary FILES   students by exercises, and who made which mistake; --hunts: their hunts as well
  python -m exercises regrade --seed 7 FILES   everybody's code on other inputs
  python -m exercises pool FILES      the experiments of a class, a table each; --only NAME: one of them
                                      (FILES may be a folder)

Run these here or in the copy; write in the copy, with your editor. Any order will do; the easiest are 1, 5 and 6.
Solutions are a file away, in this checkout: not looking is up to you.
""".format(names=", ".join(EXPERIMENTS))


def main(argv: list[str] | None = None) -> int:
    parser = build_parser()
    flags = parser.parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # what students' code says may hold anything
    if flags.command is None:
        print(GUIDE, end="")
        return 0
    try:
        return flags.run(flags)
    except (ValueError, OSError) as error:
        print(f"exercises: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("exercises: interrupted", file=sys.stderr)
        return 130


class Parser(argparse.ArgumentParser):
    def error(self, message: str):
        print(f"exercises: {message} (python -m exercises says what there is)", file=sys.stderr)
        raise SystemExit(2)


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m exercises", description=GUIDE, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(dest="command", parser_class=Parser)

    def command(name: str, run, copy: bool = True) -> argparse.ArgumentParser:
        own = commands.add_parser(name, help=run.__doc__, description=run.__doc__)
        own.set_defaults(run=run)
        if copy:
            own.add_argument("--copy", type=Path, help="the student's copy; default the only ../arpo-*")
        return own

    begin = command("start", start, copy=False)
    begin.add_argument("name", metavar="NAME")
    begin.add_argument("--folder", type=Path, help="default ../arpo-NAME")
    command("list", show_list).add_argument("numbers", metavar="N", nargs="*")
    check = command("grade", grade)
    check.add_argument("numbers", metavar="N", nargs="*", help="a number, or words of the title")
    check.add_argument("--seed", type=int, help="other inputs than those of the copy's own seed")
    command("hint", hint).add_argument("number", metavar="N")
    hunting = command("bug", bug)
    hunting.add_argument("--check", action="store_true", help="what of your answer is right, and of your test")
    hunting.add_argument("--level", type=int, choices=(1, 2, 3), default=0, help="1 is easy to find; default any")
    hunting.add_argument("--seed", type=int, help="default the copy's own; the same for all is one bug for a class")
    trial = command("experiment", experiment)
    trial.add_argument("name", choices=EXPERIMENTS, nargs="?", help="default: what there is to choose from")
    trial.add_argument("--predict", default="", help="what you expect, in a few words, before you see it")
    for own in (hunting, trial):
        own.add_argument("--allow_unsafe_python", action="store_true", help="where Python cannot be confined: macOS")
    command("submit", submit)
    command("rubric", rubric, copy=False).add_argument("numbers", metavar="N", nargs="*")
    for name, run in (("summary", summary), ("regrade", regrade), ("pool", pool)):
        own = command(name, run, copy=False)
        own.add_argument("files", metavar="FILE", nargs="+", type=Path, help="or a folder of them")
        if name == "regrade":
            own.add_argument("--seed", type=int, required=True, help="of the new inputs")
        if name == "summary":
            own.add_argument("--hunts", action="store_true", help="with what everybody wrote in the bug hunt")
        if name == "pool":
            own.add_argument("--only", choices=EXPERIMENTS, default="", help="this experiment alone")
    return parser


def the_copy(flags: argparse.Namespace) -> Copy:
    """The copy that is named, or the only one there is beside the checkout."""
    if flags.copy:
        return Copy.open(flags.copy)
    found = copies_beside()
    if len(found) != 1:
        names = ", ".join(file.parent.name for file in found) or "none (python -m exercises start NAME makes one)"
        raise ValueError(
            f"expected one copy beside the checkout, or --copy FOLDER such as --copy ../arpo-ann, found {names}"
        )
    return Copy.open(found[0].parent)


def copies_beside() -> list[Path]:
    return sorted(ROOT.parent.glob(f"arpo-*/{copies.ABOUT}"))


def chosen(words: list[str]) -> list[Exercise]:
    """The exercises of these numbers or titles; all of them where none is named. Raises ValueError."""
    course = load_course()
    together = fits(" ".join(words), course)
    wanted = course if not words else together if len(together) == 1 else [one(word, course) for word in words]
    return [exercise for exercise in course if exercise in wanted]


def one(word: str, course: list[Exercise]) -> Exercise:
    found = fits(word, course)
    if len(found) != 1:
        names = ", ".join(f"{exercise.number} {exercise.title}" for exercise in found or course)
        raise ValueError(f"expected one exercise, by its number or title, of {names}; found {word!r}")
    return found[0]


def fits(word: str, course: list[Exercise]) -> list[Exercise]:
    """Those of a number such as 3 or E3, of a title, of one that is nearly so, or of a part of a title."""
    if number := re.fullmatch(r"(?:e|ex|exercise ?)?0*(\d+)", word.lower()):
        return [exercise for exercise in course if exercise.number == int(number[1])]
    plain = lambda text: re.sub(r"[\W_]+|\bthe\b", " ", text.lower()).strip()
    titles = {plain(exercise.title): exercise for exercise in course}
    near = [plain(word)] if plain(word) in titles else difflib.get_close_matches(plain(word), titles, 1, 0.8)
    return [titles[title] for title in near or [title for title in titles if plain(word) and plain(word) in title]]


# ---------------------------------------------------------------------------------- for students


def start(flags) -> int:
    """makes a student's copy"""
    name = unicodedata.normalize("NFC", flags.name)  # an accent is typed as one character here, as two there
    if not copies.is_name(name):
        better = "".join(char if copies.is_name(f"x{char}") else " " for char in name).strip(" .-")
        such = f", such as {'-'.join(better.split())}" if better else ""
        raise ValueError(f"expected a name of letters, digits, points and dashes{such}, found {flags.name!r}")
    folder = flags.folder or ROOT.parent / f"arpo-{name}"
    plain = lambda path: unicodedata.normalize("NFC", path.name).casefold()
    alike = [file.parent for file in copies_beside() if plain(file.parent) == plain(folder)]
    if alike and not flags.folder:
        raise ValueError(f"expected a name that is not taken, found {alike[0]}: to begin anew, delete or rename it")
    copy = copies.make_copy(folder, name, copies.seed_of(name))
    print(f"{copy.folder} is yours: EXERCISES.md in it says what is to be written where.")
    print("Then, here or there: python -m exercises grade" + f" --copy {shlex.quote(str(folder))}" * bool(flags.folder))
    return 0


def show_list(flags) -> int:
    """the exercises and how far one is"""
    done = {}
    try:
        copy = the_copy(flags)
        for note in copy.notes():
            if note.get("kind") and done.get(note["exercise"]) != "right":
                done[note["exercise"]] = note["kind"]
    except ValueError as error:
        print(f"({error})")
    for exercise in chosen(flags.numbers):
        state = {"right": "right", None: ""}.get(done.get(exercise.number), "not yet")
        part = "core" if exercise.core else "more"
        head = f"{exercise.number:2d}  {exercise.title:26s} {exercise.minutes:2d} min  {part}  {state:8s}"
        print(head + ", ".join(exercise.places))
        if flags.numbers:
            print(f"\n{exercise.task}\n")
    return 0


def hint(flags) -> int:
    """the next hint to an exercise"""
    copy, exercise = the_copy(flags), one(flags.number, load_course())
    seen = sum(note.get("hint") == exercise.number for note in copy.notes())
    print("\n".join(exercise.hints[: seen + 1]))
    if seen < len(exercise.hints):
        keep(copy, hint=exercise.number)
    else:
        print("(That was the last one.)")
    return 0


def grade(flags) -> int:
    """checks what is written; exit code 0 if all of it is right"""
    copy, exercises = the_copy(flags), chosen(flags.numbers)
    if copy.version != copies.version_of_sources():
        print("note: the project has changed since your copy was made")
    seed = copy.seed if flags.seed is None else flags.seed
    kinds: dict[int, str] = {}
    for verdict in grading.grade(copy, exercises, seed):
        kinds[verdict.number] = verdict.kind
        if verdict.kind != "blank":
            (title,) = [exercise.title for exercise in exercises if exercise.number == verdict.number]
            told = {"right": "right", "waits": "waits", "begun": "begun"}.get(verdict.kind, "not yet")
            print(f"exercise {verdict.number}, {title}: {told}")
            print(f"{verdict.text}\n" if verdict.text else "", end="", flush=True)
        if verdict.kind not in ("blank", "waits"):
            named = {"mistake": verdict.mistake} | ({"perhaps": True} if verdict.perhaps else {})
            keep(copy, exercise=verdict.number, kind=verdict.kind, seed=seed, **named)
    if blank := [str(number) for number, kind in kinds.items() if kind == "blank"]:
        print(f"still blank: {', '.join(blank)}")
    return 0 if set(kinds.values()) == {"right"} else 1


def keep(copy: Copy, **entry) -> None:
    """Notes what was done. Where that cannot be written, the verdict is worth more."""
    try:
        copy.note({"time": round(time.time()), **entry})
    except OSError as error:
        print(f"exercises: this attempt is not noted: {error}", file=sys.stderr)


def bug(flags) -> int:
    """plants a bug and makes a run with it and one without; --check judges your answer and your test"""
    copy = the_copy(flags)
    about = copy.folder / "hunt.json"
    if not flags.check:
        seed = copy.seed if flags.seed is None else flags.seed
        begun = hunt.Hunt.of(copy, seed, flags.level)
        hunt.expect_none(begun)
        print("two short runs are made, which takes one to three minutes", flush=True)
        hunt.plant(begun, f"{hunt.FLAGS}{' --allow_unsafe_python' * flags.allow_unsafe_python}")
        about.write_text(json.dumps({"seed": seed, "level": flags.level}), encoding="utf-8")
        print(f"{copy.folder / 'hunt'} has the runs A and B, answer.txt and test_hunt.py, both for you to fill in.")
        print("Then: python -m exercises bug --check")
        return 0
    if not about.exists():
        raise ValueError(f"expected a hunt in {copy.folder}, found none: python -m exercises bug begins one")
    try:
        begun = hunt.Hunt.of(copy, **json.loads(about.read_text(encoding="utf-8")))
    except (ValueError, TypeError, LookupError):
        raise ValueError(f"{about}: expected a seed and a level, as `bug` wrote them") from None
    print(f"your test is run {2 * hunt.TIMES} times, which takes a while", flush=True)
    found, said = hunt.check(begun)
    for what, right in found.items():
        print(f"{'yes' if right else 'no ':3s}  {what}")
    if not (found["the test passes without the bug"] and found["the test fails with the bug"]):
        print(
            f"what pytest said {'without' if not found['the test passes without the bug'] else 'with'} the bug:\n{said}"
        )
    keep(copy, hunt=[what for what, right in found.items() if right])
    if all(found.values()):
        print(hunt.lesson(begun))
    return 0 if all(found.values()) else 1


def experiment(flags) -> int:
    """runs the arms of a class experiment with your seed"""
    if not flags.name:
        print(listed())
        return 0
    copy, name = the_copy(flags), flags.name
    print(f"{EXPERIMENTS[name].title}\nPredict first: {EXPERIMENTS[name].question}", flush=True)
    predicted = flags.predict or asked()
    more = ("--allow_unsafe_python",) * flags.allow_unsafe_python
    result = run_experiment(name, copy.seed, lambda text: print(text, flush=True), more) | {"predicted": predicted}
    (copy.folder / "experiments").mkdir(exist_ok=True)
    (copy.folder / "experiments" / f"{name}.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    print(f"{result['seconds']} s of processor time. One run says little: hand it in (python -m exercises submit).")
    return 0


def asked() -> str:
    """The prediction, from whoever sits at the terminal; "" where nobody does."""
    if not sys.stdin.isatty():
        return ""
    try:
        return input("Your prediction, in a few words: ").strip()
    except EOFError:
        return ""


def submit(flags) -> int:
    """writes the file to be handed in"""
    copy = the_copy(flags)
    file = copy.folder / f"submission-{copy.name}.json"
    file.write_text(json.dumps(submission(copy)) + "\n", encoding="utf-8")
    print(f"{file} holds your attempts, the lines you wrote, your hunt and your experiments; hand it in if you like.")
    return 0


# ---------------------------------------------------------------------------------- for the teacher


def rubric(flags) -> int:
    """a page on each exercise"""
    print(classroom.rubric(chosen(flags.numbers), bugs=not flags.numbers))
    return 0


def summary(flags) -> int:
    """students by exercises, and who made which mistake"""
    return of_a_class(flags.files, lambda s: [classroom.summary(s), *[classroom.hunts(s)] * flags.hunts])


def regrade(flags) -> int:
    """everybody's code on other inputs"""
    return of_a_class(flags.files, lambda students: classroom.regrade(students, flags.seed))


def pool(flags) -> int:
    """the experiments of a class in one table"""
    return of_a_class(flags.files, lambda students: [classroom.pool(students, flags.only)])


def of_a_class(files: list[Path], made: Callable[[dict], Iterable[str]]) -> int:
    """Prints what is made of the files that can be read, then which cannot; exit code 1 if there are such."""
    found = read_submissions(files)
    try:
        for text in made(found.students):
            print(text, flush=True)
    finally:
        for line in (*found.said, *found.left_out):
            print(line)
    return 1 if found.left_out else 0


if __name__ == "__main__":
    sys.exit(main())
