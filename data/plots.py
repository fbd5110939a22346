"""Pictures of runs: what was learned, and what it cost in tool calls; of one run, and of several side by side.

Made to be read from the back row: large letters, thick lines, colours that differ for everyone. "Tool calls" are
those that were really executed. Left out: how a tree is drawn.
"""

import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from data.tables import Line, summary

# Okabe and Ito's palette, whose colours differ for those who see fewer, too.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
LOOK = {
    "font.size": 16, "axes.titlesize": 18, "legend.fontsize": 15, "lines.linewidth": 2.5, "lines.markersize": 9,
    "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False, "axes.grid": True,
    "grid.alpha": 0.3, "savefig.bbox": "tight", "figure.dpi": 100,
}  # fmt: skip

# A run's pictures: title, unit, and metrics with what they are. Those of DEV are greedy, all others sampled.
PANELS = {
    "reward": (
        "Reward and accuracy",
        "mean over answers",
        {
            "reward": "reward, sampled in training",
            "accuracy": "accuracy, sampled in training",
            "dev_accuracy": "accuracy on dev questions, greedy",
        },
    ),
    "tool_calls": (
        "Executed tool calls",
        "calls",
        {
            "calls_per_question": "of a question's whole tree, shared ones once",
            "calls_per_leaf": "of one answer",
        },
    ),
    "entropy": (
        "Token entropy",
        "nats",
        {
            "initial_entropy": "first tokens of a trajectory",
            "entropy_after_tools": "first tokens after a tool result",
        },
    ),
    "branching": (
        "Branching",
        "number in a step",
        {
            "decisions": "results at which the rule was asked",
            "forks": "new paths there",
            "top_ups": "new paths from the prompt, in the end",
        },
    ),
    "forks": (
        "Where the forks went",
        "wave; share of the forks",
        {
            "fork_wave": "mean wave of a tree in which they began",
            "forks_differ": "share behind other tokens than a lot's",
        },
    ),
}
DEV = "dev_accuracy"


@contextmanager
def picture(file: Path, title: str, columns: int = 1) -> Iterator:
    """Axes (a list, for several columns) of a figure that is saved as a PNG file."""
    import matplotlib  # here, for it takes half a second to import

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with pyplot.rc_context(LOOK):
        figure, axes = pyplot.subplots(1, columns, figsize=(9 if columns == 1 else 7 * columns, 6), sharey=True)
        yield axes
        named = {name: mark for ax in figure.axes for mark, name in zip(*ax.get_legend_handles_labels())}
        figure.suptitle(title, fontsize=LOOK["axes.titlesize"])
        figure.legend(named.values(), named, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=columns)
        figure.tight_layout()
        figure.savefig(file)
        pyplot.close(figure)


def plot_run(folder: Path) -> list[Path]:
    """A PNG file for each of PANELS, from a run's metrics and settings."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    settings = json.loads((folder / "run.json").read_text(encoding="utf-8"))["settings"]
    (folder / "plots").mkdir(exist_ok=True)
    files = []
    for name, (title, unit, metrics) in PANELS.items():
        files.append(folder / "plots" / f"{name}.png")
        with picture(files[-1], f"{title}: {folder.name}") as axes:
            drawn = [
                plot_line(axes, [(row["step"], row[key]) for row in rows if key in row], label, colour, key == DEV)
                for (key, label), colour in zip(metrics.items(), COLOURS)
            ]
            if name == "branching":
                plot_budget(axes, settings)
            axes.set(xlabel=step_label(max(drawn)), ylabel=unit)
            axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
    return files


def plot_line(axes, points: list[tuple[float, float]], label: str, colour: str, greedy=False, thin=True) -> int:
    """Greedy points as marks; of many sampled ones a running mean, since questions differ from step to step.

    Returns over how many steps the mean goes. `thin`: each step is seen behind it.
    """
    if not points:
        return 1
    steps, values = map(np.array, zip(*points))
    window = 1 if greedy or len(points) < 20 else len(points) // 10
    if window > 1 and thin:
        axes.plot(steps, values, color=colour, alpha=0.25, linewidth=1)
    mean = np.convolve(values, np.ones(window) / window, "valid")
    axes.plot(steps[window - 1 :], mean, "o--" if greedy else "-", color=colour, label=label)
    return window


def step_label(window: int) -> str:
    return "training step" if window == 1 else f"training step (thick lines: mean of the last {window} steps)"


def plot_budget(axes, settings: dict) -> None:
    """What forks and paths from the prompt share: M - N new paths of each question."""
    leaves, questions = settings["num_generations"], settings["questions_per_step"]
    budget = (leaves - (settings["num_initial"] or leaves)) * questions
    axes.axhline(budget, color="black", linestyle=":", label=f"budget of new paths, (M − N) · Q = {budget}")


# ---------------------------------------------------------------------------------- several side by side


def plot_curves(lines: list[Line], file: Path) -> Path | None:
    """Accuracy by step, sampled in training and greedy on dev questions, of all that were trained."""
    colours, windows = colour_of(lines), [1]
    trained = {line.name: line.curves for line in lines if line.curves}
    if not trained:
        return None
    with picture(file, f"Learning curves{', mean over seeds' * seeds_in(lines)}", columns=2) as (sampled, greedy):
        for name, curves in trained.items():
            for key, axes in (("accuracy", sampled), (DEV, greedy)):
                points = averaged(curves, "step", key)
                windows.append(plot_line(axes, points, name, colours[name], key == DEV, thin=False))
        sampled.set(title="questions of training, sampled", xlabel=step_label(max(windows)), ylabel="accuracy")
        greedy.set(title="dev questions, greedy", xlabel="training step")
    return file


def plot_calls(lines: list[Line], file: Path) -> Path:
    """Accuracy against tool calls (the paper's figure 7): those of training so far, and those of an answer."""
    colours = colour_of(lines)
    with picture(file, "Accuracy and tool calls", columns=2) as (training, answering):
        for name, curves in {line.name: line.curves for line in lines if line.curves}.items():
            for curve in curves:
                training.plot(*zip(*averaged([curve], "calls", DEV)), color=colours[name], alpha=0.4, linewidth=1)
            training.plot(*zip(*averaged(curves, "calls", DEV)), "o--", color=colours[name])
        for line in lines:
            numbers, colour = summary(line.rows), colours[line.name]
            beside = [[numbers["accuracy"] - numbers["low"]], [numbers["high"] - numbers["accuracy"]]]
            answering.errorbar(
                numbers["calls"], numbers["accuracy"], beside, fmt="o" if line.greedy else "s", capsize=5,
                color=colour, markerfacecolor=colour if line.greedy else "white",
                label=f"{line.name}, {'greedy' if line.greedy else 'sampled'}",
            )  # fmt: skip
        training.set(
            title="dev questions, greedy",
            xlabel=f"tool calls in training{' (thin: each seed)' * seeds_in(lines)}",
            ylabel="accuracy",
        )
        answering.set(title="held-out questions, 95% intervals", xlabel="tool calls of an answer")
    return file


def seeds_in(lines: list[Line]) -> bool:
    return any(len(line.curves) > 1 for line in lines)


def colour_of(lines: list[Line]) -> dict[str, str]:
    return dict(zip(dict.fromkeys(line.name for line in lines), itertools.cycle(COLOURS)))


def averaged(curves: list[dict[str, list]], x: str, y: str) -> list[tuple[float, float]]:
    """The points of y over x, in the mean of the curves, at the steps where all have y."""
    points = [
        {step: (a, b) for step, a, b in zip(curve["step"], curve[x], curve[y]) if b is not None} for curve in curves
    ]
    common = sorted(set.intersection(*map(set, points)))
    return [tuple(np.mean([own[step] for own in points], axis=0)) for step in common]
