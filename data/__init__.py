"""The records that every other module speaks in: a question, a passage of text, an action of an expert.

A `Question` has accepted answers and a metric (`grading.py`). Where questions come from is the business of
`benchmarks.py`, and running an `Action` that of `tools.py`. This module imports nothing of the project.
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
class Action:
    """One turn of an expert: a thought, and then a tool call or the answer."""

    think: str
    tool: str  # the name of a tool, or ANSWER
    content: str


ANSWER = "answer"  # what `Action.tool` is in an expert's last turn
