"""The figures of RESULTS.md, from the cells of the grid. Left out: those of `criticality.py`, which draws its own."""

import math
from pathlib import Path

import numpy as np

from experiments.grid import ARMS, CONSTANTS, MAIN, METHODS, PLACES, SCORES, SHORT, VIEWS
from experiments.measures import (
    AXES,
    Cells,
    Pairs,
    alike,
    area_difference,
    averaged,
    compared,
    curve,
    forking,
    forks_of,
    mean_curve,
    paired,
    shared,
    there,
)  # fmt: skip


def draw(cells: Cells, folder: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder.mkdir(exist_ok=True)
    if not there(cells, MAIN):
        return
    pyplot.rcParams |= {"axes.spines.top": False, "axes.spines.right": False, "font.size": 9, "figure.dpi": 110}
    pairs = {
        "places": paired(cells, PLACES),
        "views": compared(cells, VIEWS),
        "methods": compared(cells, METHODS),
        "constants": compared(cells, CONSTANTS),
    }
    figures = {"curves": draw_curves(cells, pyplot), "forks": draw_forks(cells, pyplot)}
    for name, own in pairs.items():
        if differ := [pair for pair in own if not alike(cells, *pair)]:
            figures[name] = draw_differences(cells, differ, pyplot)
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", bbox_inches="tight")
        pyplot.close(figure)


def draw_curves(cells: Cells, pyplot):
    """Mean accuracy of the main arms on each axis; bands of one standard error."""
    figure, panels = pyplot.subplots(2, 2, figsize=(10, 7), sharey=True)
    for panel, (axis, name) in zip(panels.flat, AXES.items()):
        for arm in there(cells, SHORT):
            seeds = shared(cells, arm)
            x, y = mean_curve(cells, arm, seeds, axis)
            spread = np.std([curve(cells, arm, seed, axis)[1] for seed in seeds], axis=0)
            error = spread / math.sqrt(max(1, len(seeds) - 1))
            (line,) = panel.plot(x, y, "-" if ARMS[arm].base in ("", "grpo") else "--", label=arm, marker=".")
            panel.fill_between(x, y - error, y + error, color=line.get_color(), alpha=0.12, linewidth=0)
        panel.set(xlabel=name, xlim=(0, None))
    for panel in panels[:, 0]:
        panel.set_ylabel("dev accuracy, sampled, %")
    panels[0, 0].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    return figure


def draw_forks(cells: Cells, pyplot):
    """For each rule: the share of forks elsewhere than a lot's, and at which tool result they stand."""
    arms = [arm for arm in forking(cells) if arm in MAIN | SCORES]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 0.3 * len(arms) + 1), sharey=True)
    differ = lambda c: 100 * np.average(c["curve"]["forks_differ"], weights=forks_of(c))
    left.barh(arms, [averaged(cells, arm, differ) for arm in arms])
    left.set(xlabel="forks elsewhere than a lot's, %", xlim=(0, 100))
    deepest = max(len(cell["forks_by_depth"]) for arm in arms for cell in cells[arm].values())
    colours, before = pyplot.get_cmap("viridis", deepest), np.zeros(len(arms))
    for depth in range(1, deepest):
        at = lambda c: 100 * ([*c["forks_by_depth"], *[0] * deepest][depth]) / sum(c["forks_by_depth"])
        shares = np.array([averaged(cells, arm, at) for arm in arms])
        right.barh(arms, shares, left=before, color=colours(depth), label=str(depth))
        before += shares
    right.set(xlabel="forks at each tool result, % (1 is the first)", xlim=(0, 100))
    right.legend(frameon=False, fontsize=8, bbox_to_anchor=(1, 1))
    left.invert_yaxis()
    figure.tight_layout()
    return figure


def draw_differences(cells: Cells, pairs: Pairs, pyplot):
    """Paired differences in mean accuracy for equal tool calls and for equal gradient tokens, with their intervals."""
    figure, panel = pyplot.subplots(figsize=(8, 0.45 * len(pairs) + 1.2))
    for shift, axis in ((-0.12, "calls"), (0.12, "train_tokens")):
        found = [area_difference(cells, *pair, axis) for pair in pairs]
        half = np.nan_to_num([one.high - one.mean for one in found])
        means, heights = [one.mean for one in found], np.arange(len(pairs)) + shift
        panel.errorbar(means, heights, xerr=half, fmt="o", capsize=3, label=f"for equal {AXES[axis]}")
    panel.axvline(0, color="black", linewidth=0.8)
    panel.set_yticks(range(len(pairs)), [f"{arm} - {other}" for arm, other in pairs])
    panel.set(xlabel="difference in mean accuracy, points (95% interval)", ylim=(len(pairs) - 0.5, -0.5))
    panel.legend(frameon=False, fontsize=8)
    return figure
