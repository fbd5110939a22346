"""What is read from the cells of the grid: paired intervals, areas under curves, calls for equal accuracy, noise.

A cell is what a file of `run.py` holds. Accuracies are in points, 0 to 100; a seed is what arms are paired by. Left
out: which arms are compared and how it is told (`report.py`).
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import mpmath
import numpy as np

from experiments.grid import ARMS, SAMPLES

Cells = dict[str, dict[int, dict]]  # by arm and seed
Pairs = list[tuple[str, str]]  # of an arm and what it is compared with
AXES = {
    "calls": "tool calls",
    "decoded": "sampled tokens",
    "train_tokens": "gradient tokens",
    "seconds": "processor seconds",
}


def read_cells(folder: Path) -> Cells:
    """Those of declared arms. Raises ValueError where two seeds of an arm were made by different settings."""
    found: Cells = {arm: {} for arm in ARMS}
    for file in sorted(folder.glob("*.json")):
        cell = read_cell(file)
        if cell["arm"] in found:
            found[cell["arm"]][cell["seed"]] = cell
    for arm, seeds in found.items():
        by_hash: dict[str, list[str]] = {}
        for seed, cell in seeds.items():
            by_hash.setdefault(cell["hash"], []).append(str(seed))
        if len(by_hash) > 1:
            told = ", ".join(f"{name} (seeds {', '.join(own)})" for name, own in by_hash.items())
            raise ValueError(f"{arm}: expected one settings hash, found {told}: run.py --only {arm} makes the old anew")
    return found


def read_cell(file: Path) -> dict:
    """Raises ValueError for a file that `run.py` did not leave there."""
    cell = read_json(file, "a cell of run.py", ("arm", "seed", "hash", "dev", "greedy", "sampled", "seconds"))
    if cell["arm"] in ARMS and ARMS[cell["arm"]].start != cell["arm"]:
        check_keys(file, "a cell of run.py", cell, ("gradients", "curve", "forks_by_depth"))
    if file.stem != (name := f"{cell['arm']}-{cell['seed']}"):
        raise ValueError(f"{file}: expected a cell of that name, found {name}")
    return cell


def read_json(file: Path, what: str, keys: tuple[str, ...]) -> dict:
    try:
        made = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: expected {what}, found no JSON ({error})") from None
    check_keys(file, what, made, keys)
    return made


def check_keys(file: Path, what: str, made, keys: tuple[str, ...]) -> None:
    missing = [key for key in keys if not isinstance(made, dict) or key not in made]
    if missing:
        raise ValueError(f"{file}: expected {what}, found no {', '.join(missing)}; move it away, or make it again")


def write_json(file: Path, made: dict) -> None:
    """A line for each entry, and never half a file under its name."""
    lines = [f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in made.items()]
    whole = file.with_name(f"{file.name}.new")
    whole.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    whole.replace(file)


# ---------------------------------------------------------------------------------- statistics


@dataclass(frozen=True)
class Interval:
    """A mean over n paired seeds and its 95% interval; nan where n is too small to have one."""

    mean: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: list[float]) -> "Interval":
        n = len(values)
        if n < 2:
            return cls(values[0] if values else math.nan, math.nan, math.nan, n)
        half = t_quantile(n - 1) * float(np.std(values, ddof=1)) / math.sqrt(n)
        return cls(float(np.mean(values)), float(np.mean(values)) - half, float(np.mean(values)) + half, n)

    @classmethod
    def jackknife(cls, statistic: Callable[[list[int]], float], seeds: list[int]) -> "Interval":
        """Of a number that is made from all seeds together: the seeds are left out in turn (Tukey's pseudo-values)."""
        n, whole = len(seeds), statistic(seeds)
        if n < 3:
            return cls(whole, math.nan, math.nan, n)
        parts = [statistic([other for other in seeds if other != seed]) for seed in seeds]
        spread = cls.of([n * whole - (n - 1) * part for part in parts])
        return cls(whole, whole + spread.low - spread.mean, whole + spread.high - spread.mean, n)

    def verdict(self) -> int:
        """1: above 0; -1: below 0; 0: not told apart."""
        return int(self.low > 0) - int(self.high < 0)

    def chance(self) -> float:
        """That as much is found, in either direction, where there is no effect (the p-value of a t test)."""
        if math.isnan(self.low) or self.high == self.low:
            return math.nan if math.isnan(self.low) else float(self.mean == 0)
        return float(beyond(t_quantile(self.n - 1) * self.mean / (self.high - self.mean), self.n - 1))

    def text(self, digits: int = 1) -> str:
        """In bold where it does not hold 0, and then no end reads as 0."""
        if math.isnan(self.mean):
            return "-"
        shown = lambda value: f"{round(value, digits) + 0:+.{digits}f}"
        # An end that would read as 0, and is not, has one digit that is not 0.
        end = lambda value: f"{value:+.1g}" if self.verdict() and not round(value, digits) else shown(value)
        mean, low, high = shown(self.mean), end(self.low), end(self.high)
        if math.isnan(self.low):
            return f"{mean} (n = {self.n})"
        return f"**{mean} [{low}, {high}]**" if self.verdict() else f"{mean} [{low}, {high}]"


@cache
def t_quantile(freedom: int, chance: float = 0.05) -> float:
    """What Student's t is farther from 0 than with this chance: 0.05 is its 97.5% point, 0.4 its 80% point."""
    return float(mpmath.findroot(lambda t: beyond(t, freedom) - chance, (0.8, 15), solver="anderson", tol=1e-12))


def beyond(t: float, freedom: int) -> float:
    """The chance that Student's t is farther from 0 than `t`."""
    return mpmath.betainc(freedom / 2, 0.5, 0, freedom / (freedom + t * t), regularized=True)


def holm(chances: list[float]) -> list[float]:
    """Chances of a finding without an effect, adjusted for their number (Holm 1979): of all findings below 5% even one
    is wrong with a chance of 5% at most. nan counts for nothing."""
    order = [int(i) for i in np.argsort(chances) if not math.isnan(chances[i])]
    adjusted, least = [math.nan] * len(chances), 0.0
    for rank, i in enumerate(order):
        adjusted[i] = least = max(least, min(1.0, (len(order) - rank) * chances[i]))
    return adjusted


# ---------------------------------------------------------------------------------- measures


def shared(cells: Cells, *arms: str) -> list[int]:
    """Seeds that all the arms have; the starts, which curves begin with, included."""
    return sorted(set.intersection(*(set(cells[arm]) & set(cells[ARMS[arm].start]) for arm in arms)))


def curve(cells: Cells, arm: str, seed: int, axis: str) -> tuple[np.ndarray, np.ndarray]:
    """What was spent until each evaluation, and accuracy there in points; both begin with the start."""
    cell, start = cells[arm][seed], cells[ARMS[arm].start][seed]["dev"]["accuracy"]
    if arm == ARMS[arm].start:
        return np.zeros(1), 100 * np.array(start)
    steps = np.array(cell["dev"]["step"])
    if axis == "steps":
        return np.array([0.0, *steps]), 100 * np.array([*start, *cell["dev"]["accuracy"]])
    spent = np.cumsum(cell["curve"][axis])[steps - 1]
    return np.array([0.0, *spent]), 100 * np.array([*start, *cell["dev"]["accuracy"]])


def area(x: np.ndarray, y: np.ndarray, until: float) -> float:
    """The mean of a curve from 0 to `until`, which is at most where it ends."""
    inside = x <= until  # where steps cost nothing, several points stand at one x
    x, y = np.append(x[inside], until), np.append(y[inside], np.interp(until, x, y))
    return float(np.trapezoid(y, x) / until)


def area_difference(cells: Cells, arm: str, other: str, axis: str) -> Interval:
    """Of mean accuracy, points, while both spend what the one that spent less had in the end."""
    values = []
    for seed in shared(cells, arm, other):
        one, two = curve(cells, arm, seed, axis), curve(cells, other, seed, axis)
        until = min(one[0][-1], two[0][-1])
        values.append(area(*one, until) - area(*two, until))
    return Interval.of(values)


def alike(cells: Cells, arm: str, other: str) -> bool:
    """Whether two arms had the same accuracy at every evaluation, on every seed that both have."""
    seeds = shared(cells, arm, other)
    return len(seeds) > 1 and all(cells[arm][seed]["dev"] == cells[other][seed]["dev"] for seed in seeds)


def end_difference(cells: Cells, arm: str, other: str, answers: str) -> Interval:
    """Of accuracy on held-out questions after the last step, points; `answers` is greedy or sampled."""
    return Interval.of(
        [held_out(cells[arm][s], answers) - held_out(cells[other][s], answers) for s in shared(cells, arm, other)]
    )


def held_out(cell: dict, answers: str) -> float:
    return 100 * float(np.mean([int(right) for right in cell[answers]])) / (SAMPLES if answers == "sampled" else 1)


def pass_at(cell: dict, k: int) -> float:
    """pass@k, in points: one of k sampled answers is right (unbiased: arXiv 2107.03374, equation 1)."""
    wrong = [SAMPLES - int(right) for right in cell["sampled"]]
    return 100 * float(np.mean([1 - math.comb(count, k) / math.comb(SAMPLES, k) for count in wrong]))


def pass_all(cell: dict, k: int) -> float:
    """pass^k, in points: all of k sampled answers are right (arXiv 2406.12045)."""
    return 100 * float(np.mean([math.comb(int(right), k) / math.comb(SAMPLES, k) for right in cell["sampled"]]))


def mean_curve(cells: Cells, arm: str, seeds: list[int], axis: str) -> tuple[np.ndarray, np.ndarray]:
    curves = [curve(cells, arm, seed, axis) for seed in seeds]
    return np.mean([x for x, _ in curves], axis=0), np.mean([y for _, y in curves], axis=0)


def needed(cells: Cells, arm: str, other: str, axis: str) -> Interval:
    """What the arm needs of an axis, as a percentage of what the other needs, less 100, to come nine tenths of the way
    from the start to the lower of their two best accuracies: the paper's figure 7 as a number."""

    def ratio(seeds: list[int]) -> float:
        (x1, y1), (x2, y2) = (mean_curve(cells, name, seeds, axis) for name in (arm, other))
        y1, y2 = np.maximum.accumulate(y1), np.maximum.accumulate(y2)
        goal = y1[0] + 0.9 * (min(y1[-1], y2[-1]) - y1[0])
        return 100 * math.log(reach(x1, y1, goal) / reach(x2, y2, goal)) if goal > y1[0] else math.nan

    seeds = shared(cells, arm, other)
    if not seeds or math.isnan(ratio(seeds)):
        return Interval(math.nan, math.nan, math.nan, len(seeds))
    log = Interval.jackknife(ratio, seeds)
    percent = lambda value: 100 * (math.exp(value / 100) - 1)
    return Interval(percent(log.mean), percent(log.low), percent(log.high), log.n)


def reach(x: np.ndarray, y: np.ndarray, goal: float) -> float:
    """Where a rising curve first has the height `goal`, which it has somewhere."""
    i = int(np.argmax(y >= goal))
    return float(x[i - 1] + (x[i] - x[i - 1]) * (goal - y[i - 1]) / (y[i] - y[i - 1]))


def signal(cells: Cells, arm: str) -> Interval:
    """|E g|² over the trace of g's covariance, for each 100 tool calls that g took, at the start policy.

    Scalar products of independent gradients estimate |E g|², their squared lengths that and the trace together.
    Passes over the same trees are no independent gradients: those of a batch are summed up.
    """

    def of_batches(cell: dict) -> np.ndarray:
        products, n = np.array(cell["gradients"]["products"]), len(cell["gradients"]["calls"])
        return products.reshape(n, len(products) // n, n, len(products) // n).sum(axis=(1, 3))

    def estimate(seeds: list[int]) -> float:
        products = [of_batches(cells[arm][seed]) for seed in seeds]
        n = len(products[0])
        length = np.mean([p.trace() / n for p in products])
        square = np.mean([(p.sum() - p.trace()) / (n * (n - 1)) for p in products])
        calls = np.mean([cells[arm][seed]["gradients"]["calls"] for seed in seeds])
        return float(square / (length - square) / calls * 100)

    return Interval.jackknife(estimate, sorted(cells[arm]))


def total(cell: dict, name: str) -> float:
    return float(np.sum(cell["curve"][name]))


def averaged(cells: Cells, arm: str, measure: Callable[[dict], float]) -> float:
    return float(np.mean([measure(cell) for cell in cells[arm].values()]))


def mean_depth(cells: Cells, arm: str) -> float:
    """Of the tool results that forks start at; the first is 1."""
    return averaged(cells, arm, lambda c: np.average(range(len(c["forks_by_depth"])), weights=c["forks_by_depth"]))


def forks_of(cell: dict) -> np.ndarray:
    """Of each step, and never none at all, to weigh with."""
    return np.array(cell["curve"]["forks"]) + 1e-9


def forking(cells: Cells) -> list[str]:
    return [arm for arm in there(cells, ARMS) if averaged(cells, arm, lambda c: total(c, "forks"))]


# ---------------------------------------------------------------------------------- arms that are there


def there(cells: Cells, arms) -> list[str]:
    """Those arms that were trained and have a paired seed."""
    return [arm for arm in arms if ARMS[arm].start != arm and shared(cells, arm)]


def paired(cells: Cells, pairs: Pairs) -> Pairs:
    return [pair for pair in pairs if shared(cells, *pair)]


def compared(cells: Cells, arms) -> Pairs:
    """The arms with what they are compared with."""
    return paired(cells, [(arm, ARMS[arm].base) for arm in arms if ARMS[arm].base])
