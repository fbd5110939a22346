"""Intervals and estimators for tables. Left out: everything that needs more than numbers."""

import math

import numpy as np
from numpy.random import default_rng


def wilson(successes: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """95% interval of a proportion."""
    p = successes / n
    centre, spread = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (centre - spread) / (1 + z * z / n), (centre + spread) / (1 + z * z / n)


def bootstrap(values: np.ndarray, draws: int = 2000) -> tuple[float, float]:
    """95% interval of a mean over questions (questions,); of several runs (runs, questions) both are drawn anew."""
    values, rng = np.atleast_2d(values), default_rng(0)
    questions, runs = (rng.integers(0, size, (draws, size)) for size in reversed(values.shape))
    return interval([values[run][:, question].mean() for run, question in zip(runs, questions)])


def difference(values: np.ndarray, base: np.ndarray, same_runs: bool, draws: int = 2000) -> tuple[float, float]:
    """95% interval of the difference of two means (runs, questions) over the same questions.

    A draw has the same questions on both sides; the same runs, too, where those belong together by their seeds.
    """
    if same_runs:
        return bootstrap(values - base, draws)
    rng, means = default_rng(0), []
    for _ in range(draws):
        question = rng.integers(0, values.shape[1], values.shape[1])
        one, other = (side[rng.integers(0, len(side), len(side))][:, question].mean() for side in (values, base))
        means.append(one - other)
    return interval(means)


def interval(means: list[float]) -> tuple[float, float]:
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def pass_at_k(correct: int, samples: int, k: int) -> float:
    """Unbiased estimate that one of k samples is right (Chen et al. 2021, arXiv 2107.03374, eq. 1)."""
    return 1 - math.comb(samples - correct, k) / math.comb(samples, k)


def pass_hat_k(correct: int, samples: int, k: int) -> float:
    """Unbiased estimate that all of k samples are right, written pass^k (Yao et al. 2024, arXiv 2406.12045)."""
    return math.comb(correct, k) / math.comb(samples, k)
