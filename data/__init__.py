"""The records that every other module speaks in, and the one door to questions: `load_questions`.

A `Question` has accepted answers and a metric (`grading.py`). It comes from the built-in world
(`world.py`: text generated from a seed), from a public benchmark or from a file (`benchmarks.py`).
Left out here: every tool; running a `Step` is the business of `tools.py`.
"""

from dataclasses import dataclass

# Each split lives in a world of its own, so nothing in dev or test can be answered from memory.
# The cold start's demonstrations come from the seeds at and above DEMO_SEED, one world each.
WORLD_SEEDS = {"train": 1, "dev": 2, "test": 3}
DEMO_SEED = 1000


@dataclass(frozen=True)
class Question:
    id: str
    question: str
    answers: tuple[str, ...]  # any one of them is right; none where no answer is known
    family: str = ""
    metric: str = "em"  # a key of grading.METRICS
    plan: tuple = ()  # world questions only: the goals that World.expert works through


@dataclass(frozen=True)
class Passage:
    title: str
    address: str  # what the browser opens, such as "town/217"
    text: str  # the snippet that a search shows


@dataclass(frozen=True)
class Step:
    think: str
    tool: str  # "python", "search", "browse" or "answer"
    content: str


def load_questions(name_or_path: str, split: str, count: int | None = None) -> list[Question]:
    """Questions of the built-in "world", a benchmark, a hub set "owner/name", or a JSONL or parquet file.

    `split` is train, dev or test, which share no question; or "all", to be judged on: the test split of a set,
    and the whole of a file. ValueError or OSError says in one line what is wrong.
    """
    from data.benchmarks import load  # here, because these two import the records above
    from data.world import World

    if split not in (*WORLD_SEEDS, "all"):
        raise ValueError(f"unknown split {split!r}: expected one of {', '.join(WORLD_SEEDS)}, all")
    if name_or_path != "world":
        return load(name_or_path, split)[:count]
    seed = WORLD_SEEDS.get(split, WORLD_SEEDS["test"])
    return World(seed).questions(1200 if count is None else count, seed)
