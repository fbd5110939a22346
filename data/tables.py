"""Tables of rows: accuracy with its interval, rewards, calls; by family; pass@k; differences in pairs.

Rows that are told together answer alike but for their seed. "Calls" are tool calls that were really
executed, and stand for one attempt. Left out: where rows come from (`results.py`), and pictures (`plots.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from data.results import Result, Row
from data.statistics import bootstrap, difference, pass_at_k, pass_hat_k, wilson


@dataclass
class Line:
    """A line of a table: one way of answering, its rows (one for each seed), and the curves of their training."""

    name: str
    data: str  # what the questions are from
    settings: dict[str, Any]  # of the first row
    rows: list[Row] = field(default_factory=list)
    curves: list[dict[str, list]] = field(default_factory=list)

    @property
    def method(self) -> str:
        return self.rows[0].method

    @property
    def greedy(self) -> bool:
        return self.rows[0].temperature == 0


def means(rows: list[Row], name: str) -> np.ndarray:
    """(runs, questions): the mean over a question's attempts of a field of `Score`."""
    return np.array([[result.mean(name) for result in row.results] for row in rows], dtype=float)


def is_judged(rows: list[Row]) -> bool:
    """Whether a language model has a word on every answer."""
    return all(attempt.label for row in rows for result in row.results for attempt in result.attempts)


def summary(rows: list[Row]) -> dict[str, float]:
    """The numbers of one line of the table."""
    right, attempts = means(rows, "accuracy"), [a for row in rows for result in row.results for a in result.attempts]
    single = len(attempts) == right.size
    low, high = wilson(right.sum(), right.size) if len(rows) == 1 and single else bootstrap(right)
    return {
        "accuracy": float(right.mean()),
        "low": float(low),
        "high": float(high),
        "reward": float(np.mean([a.reward for a in attempts])),
        "reward_without_bonus": float(np.mean([-1.0 if a.answer is None else a.accuracy for a in attempts])),
        "calls": float(np.mean([a.calls for a in attempts])),
        "tokens": float(np.mean([a.tokens for a in attempts])),
        "malformed": float(np.mean([a.answer is None for a in attempts])),
    }


def comparison_table(lines: dict[str, list[Row]]) -> str:
    """Accuracy with interval, rewards, calls; then accuracy (and calls) by family."""
    width = max(26, *map(len, lines))
    judged = any(map(is_judged, lines.values()))
    head = (
        "accuracy  95% interval     reward  without bonus  calls/answer  tokens/answer  malformed" + "  judged" * judged
    )
    texts = [f"{'':{width}s}  {head}"]
    for name, rows in lines.items():
        r = summary(rows)
        label = f"{means(rows, 'right').mean():6.1%}" if is_judged(rows) else "-"
        tokens = f"{r['tokens']:.0f}" if r["tokens"] else "-"  # an expert writes none
        texts.append(
            f"{name:{width}s}   {r['accuracy']:6.1%}  [{r['low']:5.1%}, {r['high']:6.1%}]  {r['reward']:+7.3f}"
            f"  {r['reward_without_bonus']:+13.3f}  {r['calls']:12.2f}  {tokens:>13s}  {r['malformed']:9.1%}"
            + f"  {label:>6s}"
            * judged
        )
    return "\n".join(texts + family_table(lines, width))


def family_table(lines: dict[str, list[Row]], width: int) -> list[str]:
    """Accuracy and calls by the questions' families, such as levels; nothing where there are none."""
    families = sorted({result.family for rows in lines.values() for result in rows[0].results if result.family})
    texts = [f"\n{'accuracy (calls) by family':{width}s}  " + "".join(f"{family:>14s}" for family in families)]
    for name, rows in lines.items():
        cells = []
        for family in families:
            own = [result for row in rows for result in row.results if result.family == family]
            if own:
                right, calls = (np.mean([result.mean(field) for result in own]) for field in ("accuracy", "calls"))
                cells.append(f"{right:7.0%} ({calls:.1f})")
            else:
                cells.append("-")
        texts.append(f"{name:{width}s}  " + "".join(f"{cell:>14s}" for cell in cells))
    return texts if families else []


def pass_table(rows: list[Row], ks: Sequence[int]) -> str:
    """pass@k and pass^k for each k, with intervals over questions; an answer counts if it is wholly right."""
    texts = []
    for k in ks:
        one, every = (
            np.array([[estimate(*counts(result), k) for result in row.results] for row in rows])
            for estimate in (pass_at_k, pass_hat_k)
        )
        told = (
            f"{values.mean():6.1%}  [{low:5.1%}, {high:5.1%}]"
            for values in (one, every)
            for low, high in [bootstrap(values)]
        )
        texts.append(f"pass@{k:<3d} {next(told)}    pass^{k:<3d} {next(told)}")
    return "\n".join(texts)


def counts(result: Result) -> tuple[int, int]:
    """(right, all) of a question's attempts."""
    return sum(attempt.right for attempt in result.attempts), len(result.attempts)


class Gain(NamedTuple):
    """A difference in accuracy, in points, with its 95% interval, on so many questions."""

    mean: float
    low: float
    high: float
    questions: int


def gain(rows: list[Row], base: list[Row]) -> Gain | None:
    """What rows have over others on the questions that both have; None where they have none in common.

    By the judge's word if it has been given on all of both, else by comparison with the gold answers.
    """
    shared = sorted(set.intersection(*({(r.id, r.asked) for r in row.results} for row in rows + base)))
    if not shared:
        return None
    name = "right" if is_judged(rows + base) else "accuracy"
    values, others = (100 * np.array([matched(row, shared, name) for row in side]) for side in (rows, base))
    same_runs = [row.seed for row in rows] == [row.seed for row in base]
    return Gain(values.mean() - others.mean(), *difference(values, others, same_runs), len(shared))


def matched(row: Row, questions: list[tuple[str, str]], name: str) -> list[float]:
    """A row's means of a field of `Score`, in the order of the questions, known by id and text."""
    own = {(result.id, result.asked): result.mean(name) for result in row.results}
    return [own[question] for question in questions]
