"""Intervals and estimators for tables. Left out: everything that needs more than numbers."""

import numpy as np


def wilson(successes: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """95% interval of a proportion."""
    p = successes / n
    centre, spread = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (centre - spread) / (1 + z * z / n), (centre + spread) / (1 + z * z / n)


def bootstrap(values: np.ndarray, draws: int = 2000) -> tuple[float, float]:
    """95% interval of a mean over questions; `values` (questions,)."""
    index = np.random.default_rng(0).integers(0, len(values), (draws, len(values)))
    low, high = np.percentile(values[index].mean(-1), [2.5, 97.5])
    return float(low), float(high)


def pass_at_k(correct: int, samples: int, k: int) -> float:
    """Unbiased estimate that one of k samples is right (Chen et al. 2021, arXiv 2107.03374, eq. 1)."""
    if samples - correct < k:
        return 1.0
    return 1.0 - float(np.prod(1 - k / np.arange(samples - correct + 1, samples + 1)))
