"""The built-in worlds by name: "world" (`world.py`), and "trails" or "trails:SHARE" (`trails.py`).

A world is a function of its seed. It has passages, pages, `questions(count, seed)`, and an expert that answers them.
Left out: what is searched and run (`tools.py`), and how demonstrations are encoded (`demonstrations.py`).
"""

import random
import re
from collections.abc import Iterator

from data import DEMO_SEED, WORLD_SEEDS, Action, Question
from data.trails import Trails
from data.world import World

BuiltInWorld = World | Trails
MOST_QUESTIONS = 1200  # of a split
DEMONSTRATED_VIEWS = 0.3  # share of views in the trails that demonstrations are about: the model must know them


def is_world(source: str) -> bool:
    return source.partition(":")[0] in ("world", "trails")


def make_world(source: str, seed: int) -> BuiltInWorld:
    """The world of a name and a seed. Raises ValueError for a share that is none."""
    if source == "world":
        return World(seed)
    share = re.fullmatch(r"trails(?::(0|1|[01]?\.\d+))?", source)
    if not share or float(share[1] or 0) > 1:
        raise ValueError(f"expected world, trails, or trails:SHARE with a share of views from 0 to 1, found {source!r}")
    return Trails(seed, float(share[1] or 0))


def world_of(source: str, split: str) -> BuiltInWorld:
    """The world that a split's questions are about; the test world for "all"."""
    return make_world(source, WORLD_SEEDS.get(split, WORLD_SEEDS["test"]))


def questions_of(source: str, split: str, count: int | None = None) -> list[Question]:
    """A split's questions: the first `count`, or as many as a world is meant to have."""
    world = world_of(source, split)
    return world.questions(MOST_QUESTIONS if count is None else count, world.seed)


def find_question(source: str, text: str, seed: int) -> tuple[Question, str]:
    """The question of this text and its split; one without a known answer, about the test world, where there is none.

    An empty text means one of the test split's, chosen by the seed.
    """
    if not text:
        questions = questions_of(source, "test")
        return questions[seed % len(questions)], "test"
    for split in WORLD_SEEDS:
        for question in questions_of(source, split):
            if question.question == text:
                return question, split
    return Question("asked", text, ()), "test"


def strange_words(source: str, text: str) -> list[str]:
    """The words of a text that stand in none of a world's questions."""
    words = lambda text: re.findall(r"[^\W\d_]+", text)
    known = {word for split in WORLD_SEEDS for q in questions_of(source, split) for word in words(q.question)}
    return [word for word in words(text) if word not in known]


def demonstrations(
    source: str, worlds: int, each: int, flawed: float = 1.0
) -> Iterator[tuple[BuiltInWorld, Question, list[Action]]]:
    """Questions of many worlds with an expert's steps: copying names never seen before is what they teach.

    A share `flawed` of the questions is answered by the expert with flaws, the others by the one without.
    """
    for seed in range(DEMO_SEED, DEMO_SEED + worlds):
        world = make_world(f"trails:{DEMONSTRATED_VIEWS}" if source.startswith("trails") else source, seed)
        flaws, turns = random.Random(f"flaws {seed}"), random.Random(f"turns {seed}")
        for question in world.questions(each, seed):
            yield world, question, world.expert(question, flaws if turns.random() < flawed else None)
