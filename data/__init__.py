"""The records that every other module speaks in, and where questions come from.

A `Question` has accepted answers and a metric (`grading.py`). It comes from the built-in world
(`world.py`: text generated from a seed) or from a JSONL file. Left out here: other file formats,
fetching anything by name, and every tool; running a `Step` is the business of `tools.py`.
"""

import json
from dataclasses import dataclass
from pathlib import Path

# Each split lives in a world of its own, so nothing in dev or test can be answered from memory.
# The cold start's demonstrations come from the seeds at and above DEMO_SEED, one world each.
WORLD_SEEDS = {"train": 1, "dev": 2, "test": 3}
DEMO_SEED = 1000

# How a file's answers are graded, by the name of the file; any other file is graded by "em".
FILE_METRICS = {
    "aime24": "math", "aime25": "math", "math500": "math", "gsm8k": "math",
    "hotpotqa": "f1", "2wiki": "f1", "musique": "f1", "bamboogle": "f1",
}  # fmt: skip


@dataclass(frozen=True)
class Question:
    id: str
    question: str
    answers: tuple[str, ...]  # any one of them is right
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
    """Questions of the built-in "world" (split: train, dev or test), or of a JSONL file by its path."""
    if name_or_path != "world":
        return _read_jsonl(Path(name_or_path))[:count]
    from data.world import World  # here, because world.py imports the records above

    if split not in WORLD_SEEDS:
        raise ValueError(f"unknown split {split!r} of the world: expected one of {', '.join(WORLD_SEEDS)}")
    seed = WORLD_SEEDS[split]
    return World(seed).questions(count or 1200, seed)


def repair(text: str) -> str:
    r"""Undo a well-known corruption of public sets: `\boxed` read as an escape, so backspace + "oxed"."""
    return text.replace("\x08oxed", r"\boxed")


def _read_jsonl(path: Path) -> list[Question]:
    questions = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line.strip():
            try:
                questions.append(_question(json.loads(line), f"{path.stem}-{number}", path.stem))
            except (ValueError, TypeError) as error:
                raise ValueError(f"{path}, line {number}: {error}") from None
    if not questions:
        raise ValueError(f"{path}: no questions in this file")
    return questions


def _question(record: dict, name: str, stem: str) -> Question:
    if not isinstance(record, dict):
        raise ValueError(f"expected a JSON object, found {type(record).__name__}")
    text = next((record[key] for key in ("question", "problem", "Question") if key in record), None)
    if not isinstance(text, str) or not text.strip():
        raise ValueError('expected a text under "question", "problem" or "Question"')
    gold = record.get("answer")
    golds = gold if isinstance(gold, list) else [gold]
    if not golds or not all(isinstance(g, str | int | float) and str(g).strip() for g in golds):
        raise ValueError('expected a text, a number or a list of them under "answer"')
    # GSM8K writes its reasoning first, and the answer after "####".
    answers = tuple(repair(str(g)).split("####")[-1].strip() for g in golds)
    return Question(str(record.get("id", name)), repair(text), answers, metric=FILE_METRICS.get(stem, "em"))
