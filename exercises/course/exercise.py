"""What an exercise is.

A file `eNN_*.py` has three functions and a record. `cases(rng)` draws small inputs, the smallest first. What is right
`expected(case)` says, by loops or enumeration and without the project's code. `probe(case)` asks the code that is
graded; it does its own imports, since its text alone is sent to the process where a student's code runs. All three deal
in plain lists and numbers. Left out: running and judging (`grading.py`).
"""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

from exercises.patches import Blank, Swap, loaded, swapped


@dataclass(frozen=True)
class Mistake:
    """A known wrong answer: the change of the right code that makes it, and why it is wrong."""

    name: str  # in a few words, for the teacher's histogram
    old: str
    new: str
    why: str
    file: str = ""  # default: that of the exercise's first blank
    also: str = ""  # the same mistake in another way, in the place of `new`


@dataclass(frozen=True)
class Exercise:
    number: int
    title: str
    minutes: int
    core: bool  # part of the two hours' course
    task: str  # what to write
    idea: str  # what one understands afterwards
    misconception: str
    question: str  # to be asked aloud
    answer: str  # for the teacher
    blanks: tuple[Blank, ...]
    asks: tuple[str, ...]  # what each blank's error says
    modules: tuple[str, ...]  # that the probe needs anew, in the order of their imports
    hints: tuple[str, ...]
    mistakes: tuple[Mistake, ...]
    told: str = ""  # what the lists of inputs and answers hold
    hides: tuple[Blank, ...] = ()  # places that would give the answer away
    code: ModuleType | None = field(default=None, compare=False)

    @property
    def places(self) -> list[str]:
        """file:function of the blanks, each once."""
        return list(dict.fromkeys(f"{blank.file}:{blank.function}" for blank in self.blanks))

    @property
    def ways(self) -> dict[str, Mistake]:
        """All ways to make the mistakes, each by a name of its own."""
        others = {f"{m.name}, otherwise": replace(m, new=m.also) for m in self.mistakes if m.also}
        return {mistake.name: mistake for mistake in self.mistakes} | others

    def known(self, seed: int) -> dict[str, list[Any]]:
        """What the mistakes answer."""
        cases = self.cases(seed)
        return {name: self.answers(cases, mistake) for name, mistake in self.ways.items()}

    def cases(self, seed: int) -> list[Any]:
        return self.code.cases(Random(f"{seed}/{self.number}"))

    def expected(self, case: Any) -> Any:
        return self.code.expected(case)

    def probe_text(self) -> str:
        return inspect.getsource(self.code.probe)

    def swap(self, mistake: Mistake) -> Swap:
        return Swap(mistake.file or self.blanks[0].file, mistake.old, mistake.new)

    def answers(self, cases: list[Any], mistake: Mistake | None = None, texts: dict[str, str] | None = None) -> list:
        """What the project's own code says in this process, with one of the mistakes or with other texts of files."""
        texts = texts or (swapped([self.swap(mistake)]) if mistake else {})
        with loaded(texts, self.modules):
            return ask(self.probe_text(), cases)


def ask(text: str, cases: list[Any]) -> list[Any]:
    """The answers of the function `probe` in `text`, which does its own imports."""
    space: dict[str, Callable] = {}
    exec(compile(text, "probe", "exec"), space)
    return [space["probe"](case) for case in cases]


def load_course() -> list[Exercise]:
    names = sorted(file.stem for file in Path(__file__).parent.glob("e[0-9]*.py"))
    modules = [import_module(f"exercises.course.{name}") for name in names]
    return [replace(module.EXERCISE, code=module) for module in modules]


def close(a: Any, b: Any, rel: float = 1e-4, near: float = 1e-6) -> bool:
    """Whether two answers are the same, numbers within rounding."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(close(a[key], b[key], rel, near) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(close(x, y, rel, near) for x, y in zip(a, b))
    if isinstance(a, int | float) and isinstance(b, int | float):
        return math.isclose(a, b, rel_tol=rel, abs_tol=near) or math.isnan(a) and math.isnan(b)
    return type(a) is type(b) and a == b
