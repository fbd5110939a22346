"""Makes RESULTS.md and its figures from the files that run.py left, and from nothing else.

    python experiments/report.py

Every interval is a 95% interval over paired seeds (`measures.py`). Whether one arm is called higher than another is
decided by it, in this file, for all arms alike; where it holds 0, the page says within how many points they agree.
"""

import json
import math
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from experiments.grid import ARMS, CLAIMS, COMMON, CONSTANTS, IDENTICAL, MAIN, METHODS, SAMPLES, SCORES, VIEWS
from experiments.measures import (
    Cells,
    Interval,
    area_difference,
    averaged,
    curve,
    end_difference,
    held_out,
    mean_curve,
    needed,
    pass_all,
    pass_at,
    read_cells,
    shared,
    signal,
    total,
)  # fmt: skip

HERE = Path(__file__).parent
FORKS = HERE / "forks.json"  # of forks.py
AXES = {
    "calls": "tool calls",
    "decoded": "sampled tokens",
    "train_tokens": "gradient tokens",
    "seconds": "processor seconds",
}
MARKS = "<!-- made by experiments/report.py -->", "<!-- to here -->"  # in the README, around its table
Pairs = list[tuple[str, str]]  # of an arm and what it is compared with
# The arms whose places entropy chose, and those of the same rule whose places something else chose.
BY_ENTROPY = ("threshold-entropy", "best-entropy", "coin-entropy")
PLACES = [(arm, name) for arm in BY_ENTROPY for name, other in (MAIN | SCORES).items() if other.base == arm]
# Arms that call less than `grpo`, and what has about as many calls without forks.
FEWER_LEAVES = [("arpo", "grpo-m6"), ("threshold-entropy", "grpo-m6"), ("best-entropy", "grpo-m4")]


def main() -> None:
    cells, probes = read_cells(HERE / "results"), read_probes(HERE / "criticality")
    (HERE / "RESULTS.md").write_text(page(cells, probes), encoding="utf-8")
    draw(cells, HERE / "figures")
    readme = HERE.parent / "README.md"
    readme.write_text(with_short_table(readme.read_text(encoding="utf-8"), cells), encoding="utf-8")
    print(f"{HERE / 'RESULTS.md'}, from {sum(map(len, cells.values()))} cells")


def read_probes(folder: Path) -> dict[str, dict]:
    return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))}


# ---------------------------------------------------------------------------------- the page


def page(cells: Cells, probes: dict[str, dict]) -> str:
    sections = (opening, knows, listens, learns, places, distracted, methods, constants, biased, repeated)
    return "\n\n".join(part for section in sections for part in section(cells, probes)) + "\n"


def with_short_table(text: str, cells: Cells) -> str:
    """The README with today's main arms between its two marks."""
    before, rest = text.split(MARKS[0])
    rows = []
    for arm in MAIN:
        if cells[arm]:
            trained = arm != "start"
            calls = f"{averaged(cells, arm, lambda cell: total(cell, 'calls')):,.0f}" if trained else "-"
            ends = [
                f"{averaged(cells, arm, lambda cell, way=way: held_out(cell, way)):.1f}%"
                for way in ("greedy", "sampled")
            ]
            gain = area_difference(cells, arm, "grpo", "calls").text() if arm not in ("start", "grpo") else "-"
            need = needed(cells, arm, "grpo", "calls").text(0) if arm not in ("start", "grpo") else "-"
            rows.append([f"`{arm}`", ARMS[arm].says, str(len(cells[arm])), calls, *ends, gain, need])
    head = "arm | what it is | seeds | tool calls in training | greedy, at the end | sampled, at the end"
    head += " | points, equal calls | calls for equal accuracy, %"
    return f"{before}{MARKS[0]}\n{table(head, rows)}\n{MARKS[1]}{rest.split(MARKS[1])[1]}"


def table(head: str, rows: list[list[str]]) -> str:
    columns = head.split(" | ")
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def there(cells: Cells, arms) -> list[str]:
    """Those arms that were trained and have a paired seed."""
    return [arm for arm in arms if ARMS[arm].start != arm and shared(cells, arm)]


def paired(cells: Cells, pairs: Pairs) -> Pairs:
    return [pair for pair in pairs if shared(cells, *pair)]


def compared(cells: Cells, arms) -> Pairs:
    """The arms with what they are compared with."""
    return paired(cells, [(arm, ARMS[arm].base) for arm in arms if ARMS[arm].base])


def opening(cells: Cells, probes) -> list[str]:
    done, declared = sum(map(len, cells.values())), sum(arm.seeds for arm in ARMS.values())
    gaps = {name: arm.seeds - len(cells[name]) for name, arm in ARMS.items()}
    missing = [f"`{name}` ({gap} of {ARMS[name].seeds} seeds)" for name, gap in gaps.items() if gap]
    kinds = {1: "the numbers support it", -1: "the numbers contradict it", 0: "not told apart"}
    rows = []
    for claim, (arm, other) in CLAIMS.items():
        found = area_difference(cells, arm, other, "calls")
        verdict = "too few seeds" if math.isnan(found.low) else kinds[found.verdict()]
        rows.append([claim, f"`{arm}` - `{other}`", found.text(), verdict])
    return [
        "# Where branching pays: what came out",
        "Made by `python experiments/report.py` from the files in `results/` and `criticality/`, which "
        "`python experiments/run.py` and `experiments/criticality.py` made. The sentences are chosen by the intervals: "
        "95%, Student's t, over paired seeds, all judged on the same questions, so they say nothing of other worlds. "
        f"Every arm is `python train.py {COMMON}` and its own flags (`python experiments/run.py --list`). Accuracy by "
        "step is that of one sampled answer to each dev question; no model was selected by it.",
        f"**{done} of {declared} cells are there.** Missing: {', '.join(missing) or 'none'}."
        + " They were left for want of processor time, none because it failed; `python experiments/run.py` makes them."
        * bool(missing),
        "## In short: what the paper claims or implies",
        "These comparisons were declared in `grid.py` before the runs. The measure is mean accuracy while both arms "
        "spend the same tool calls, in points; of twenty such intervals one is expected to miss its true value.",
        table("claim | arms | difference | verdict", rows),
    ]


def knows(cells: Cells, probes: dict[str, dict]) -> list[str]:
    """Policies as rows: what nested sampling found where they read tool results."""
    summaries = {f"`{name}`": probe["summary"] for name, probe in probes.items()}
    alone = lambda summary: {title: entry for title, entry in summary.items() if not isinstance(entry, dict)}
    of = lambda group, column: {
        name: {row: entry[column] for row, entry in summary[group].items() if column in entry}
        for name, summary in summaries.items()
    }
    heading = "## Does ΔH know anything?"
    if not probes:
        return [heading, "Not measured yet."]
    return [
        heading,
        "With frozen policies, no training. *Between* is the variance of the mean reward over the next turns that a "
        "policy may write after a tool result: how much that turn decides. It is measured by nested sampling at every "
        "result of trajectories without forks. *Total* is the variance of the reward below the result. Intervals are "
        "95%, by bootstrap over questions; the files hold the numbers of each result.",
        facts("policy", {name: alone(summary) for name, summary in summaries.items()}),
        "Rank correlation with *between*. The last column is how far the samples agree with themselves:",
        facts("policy", of("predictor", "rank correlation with between")),
        "Where the rules would fork: *between* at the results that they choose, as a share of what the best ones hold. "
        "These are known from the same noisy numbers, which flatters them; in the next column one half of the samples "
        "chooses and the other judges.",
        facts("policy", of("rule", "between held")),
        "What forks save is calls, so here is *between* for each call that the new leaves cost, over that of a lot:",
        facts("policy", of("rule", "per call, over a lot's")),
        "\n".join(f"- {name}: {per_call(summary['rule'])}" for name, summary in summaries.items()),
        "The same of *total*, since a fork above a decision samples that decision just as well, for more calls:",
        facts("policy", of("rule", "total per call, over a lot's")),
        *(f"`{name}`: `{probe['command']}`\n\n![{name}](criticality/{name}.png)" for name, probe in probes.items()),
    ]


def per_call(rules: dict[str, dict]) -> str:
    """The rules that find more criticality for their calls than a lot, and less; the intervals decide."""
    found: dict[str, list[str]] = {"more than a lot": [], "less": [], "not told apart": []}
    for name, row in rules.items():
        ratio = row["per call, over a lot's"]
        if ratio and name != "lot" and not name.startswith("best places"):
            word = "more than a lot" if ratio[1] > 1 else "less" if ratio[2] < 1 else "not told apart"
            found[word].append(name)
    return "; ".join(f"{word}: {', '.join(names)}" for word, names in found.items() if names)


def facts(title: str, entries: dict) -> str:
    """A table of what a summary holds: numbers, (value, low, high), or a row of these for each entry."""
    rows = {key: entry if isinstance(entry, dict) else {"value": entry} for key, entry in entries.items()}
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    body = [[key, *(shown(row.get(column)) for column in columns)] for key, row in rows.items()]
    return table(" | ".join([title, *columns]), body)


def shown(value) -> str:
    if isinstance(value, list) and len(value) == 3:
        return f"{value[0]:.2f} [{value[1]:.2f}, {value[2]:.2f}]"
    return f"{value:.4g}" if isinstance(value, int | float) else "-" if value is None else str(value)


def listens(cells: Cells, probes) -> list[str]:
    rows = []
    for arm in forking(cells):
        by_step = lambda name: f"{averaged(cells, arm, lambda c: np.mean(c['curve'][name])):.1f}"
        differ = averaged(cells, arm, lambda c: np.average(c["curve"]["forks_differ"], weights=forks_of(c)))
        depth = averaged(cells, arm, lambda c: np.average(range(len(c["forks_by_depth"])), weights=c["forks_by_depth"]))
        counts = [by_step(name) for name in ("decisions", "forks", "top_ups")]
        rows.append([f"`{arm}`", *counts, f"{100 * differ:.0f}%", f"{depth:.1f}"])
    return [
        "## Does the rule listen to it?",
        "A comparison of two rules says something only where they fork in different places. *Elsewhere* is the share "
        "of forks that start behind other tokens than if the same entropies had been dealt out by lot among the places "
        "that stood to choice; *depth* is the mean number of the tool result that they start at. Places by lot in a "
        "whole tree stand elsewhere than another lot's; places in one wave are mostly the same place.",
        "![forks](figures/forks.png)",
        table("arm | places a step | forks | top-ups | elsewhere | depth", rows),
        *apart(json.loads(FORKS.read_text(encoding="utf-8")) if FORKS.exists() else {}),
    ]


def apart(found: dict) -> list[str]:
    """On how many of their forks the arms differ that are compared for where they fork."""
    if not found:
        return []
    shares = {pair: {"forks elsewhere": share} for pair, share in found["pairs"].items()}
    columns = {"forks": "forks a tree", "depth": "depth", "results": "results a tree", "above": "share with ΔH > 0"}
    arms = {f"`{arm}`": {columns[key]: value for key, value in own.items()} for arm, own in found["arms"].items()}
    return [
        "Two arms against each other (`python experiments/forks.py`): trees of the start policy for the same "
        f"{found['questions']} questions, which begin with the same trajectories. *Forks elsewhere* are those of the "
        "first arm behind whose tokens the second starts no path; 0 means that the two are one method.",
        facts("arms", shares),
        facts("arm", arms),
    ]


def forks_of(cell: dict) -> np.ndarray:
    """Of each step, and never none at all, to weigh with."""
    return np.array(cell["curve"]["forks"]) + 1e-9


def forking(cells: Cells) -> list[str]:
    return [arm for arm in there(cells, ARMS) if averaged(cells, arm, lambda c: total(c, "forks"))]


def differences(cells: Cells, pairs: Pairs) -> list[str]:
    """A table of mean accuracy for equal budgets on each axis and of accuracy at the end, and a sentence for each."""
    rows, lines = [], []
    for arm, other in pairs:
        ends = [end_difference(cells, arm, other, answers).text() for answers in ("sampled", "greedy")]
        found = [area_difference(cells, arm, other, axis) for axis in (*AXES, "steps")]
        rows.append([f"`{arm}` - `{other}`", str(found[0].n), *(one.text() for one in found), *ends])
        lines.append(f"- {in_words(arm, other, found[0], 'mean accuracy for equal tool calls')}")
    head = ["arms", "seeds", *(f"equal {name}" for name in AXES.values()), "equal steps", "end, sampled", "end, greedy"]
    return [table(" | ".join(head), rows), "\n".join(lines)] if pairs else ["Not run yet."]


def in_words(arm: str, other: str, difference: Interval, measure: str, unit: str = "points") -> str:
    """One sentence, whose words the interval chooses."""
    if math.isnan(difference.low):
        return f"`{arm}` against `{other}`, {measure}: too few seeds ({difference.n}) to say."
    if not difference.verdict():
        bound = max(abs(difference.low), abs(difference.high))
        return (
            f"`{arm}` and `{other}` are not told apart in {measure}: {difference.text()} {unit}, "
            f"so they agree within ±{bound:.1f} {unit} ({difference.n} seeds)."
        )
    word = "higher" if difference.verdict() > 0 else "lower"
    return f"`{arm}` is **{word}** than `{other}` in {measure}: {difference.text()} {unit} ({difference.n} seeds)."


def learns(cells: Cells, probes) -> list[str]:
    pairs = paired(cells, [(arm, "grpo") for arm in MAIN if arm not in ("start", "grpo")] + FEWER_LEAVES)
    fewer = [[f"`{a}` against `{b}`", *(needed(cells, a, b, axis).text(0) for axis in AXES)] for a, b in pairs]
    spent = []
    for arm in there(cells, ARMS):
        a_step = [averaged(cells, arm, lambda c: np.mean(c["curve"][axis])) for axis in AXES]
        spent.append([f"`{arm}`", ARMS[arm].says, *(f"{value:,.0f}" for value in a_step[:-1]), f"{a_step[-1]:.2f}"])
    return [
        "## Does it learn faster per call, per token, per second?",
        "![curves](figures/curves.png)",
        "The bands are one standard error over seeds; paired differences are surer than they look. In points: mean "
        "accuracy while both arms spend the same (the area between the curves up to where the shorter one ends), and "
        "accuracy on held-out questions after the last step, whatever each had spent by then. An arm that calls less "
        "takes more optimizer steps for its calls, at one learning rate for all. So each is also compared by steps, "
        "whatever a step costs, and with fewer leaves without forks.",
        *differences(cells, pairs),
        "What an arm needs for equal accuracy, in percent more (+) or less (-) than the other, nine tenths of the way "
        "from the start to the lower of their best mean accuracies (the paper's figure 7; jackknife over seeds):",
        table(" | ".join(["arms", *AXES.values()]), fewer),
        "What a step costs. Seconds are the processor's, of the training process, rollouts and update together.",
        table(" | ".join(["arm", "what it is", *AXES.values()]), spent),
    ]


def places(cells: Cells, probes) -> list[str]:
    return [
        "## Is it entropy that chooses better places?",
        "Arms alike in N, Z and recursion: the same rule, with the same entropies dealt out in another order; or, for "
        "the threshold, as many forks at results by lot (`threshold-rate`).",
        "![places](figures/places.png)",
        *differences(cells, paired(cells, PLACES)),
    ]


def distracted(cells: Cells, probes) -> list[str]:
    against_grpo = [(arm, "views-grpo") for arm in ("views-rate", "views-lot")]
    return [
        "## And where most entropy decides nothing?",
        "The same with `--data trails:0.3`: at three in ten of the other posts the policy remarks on the view in a "
        "word of its own choice. How much of the entropy stands where nothing is decided, the first question's table "
        "says (`trails-with-views`). Curves begin with `views-start`.",
        *["![views](figures/views.png)"] * bool(compared(cells, VIEWS)),
        *differences(cells, compared(cells, VIEWS) + paired(cells, against_grpo)),
    ]


def methods(cells: Cells, probes) -> list[str]:
    return [
        "## Attribution, weights and other methods",
        "Each against the arm that differs from it in nothing else. With one optimizer step for its trees the ratio of "
        "new to old policy is 1, so clip ranges and surrogates cannot matter there: AEPO's is compared at two passes.",
        "![methods](figures/methods.png)",
        *differences(cells, compared(cells, METHODS)),
    ]


def constants(cells: Cells, probes) -> list[str]:
    same = []
    for arm, base in compared(cells, IDENTICAL):
        seeds = shared(cells, arm, base)
        alike = lambda seed: all(
            cells[arm][seed]["curve"][name] == cells[base][seed]["curve"][name] for name in ("reward", "calls", "forks")
        )
        told = f"are those of `{base}` in every digit on {sum(map(alike, seeds))} of {len(seeds)} seeds."
        same.append(f"- `{arm}`: reward, calls and forks of all steps {told}")
    return [
        "## What do the paper's constants do?",
        "With α = τ the threshold rule P = α + β·ΔH > τ is ΔH > 0, and the order of candidates is that of ΔH: the "
        "entropy weight β and the normaliser cannot matter there. Run all the same:",
        "\n".join(same) or "- not run yet",
        "They can matter under the coin, as can k, N, Z and M under any rule:",
        "![constants](figures/constants.png)",
        *differences(cells, compared(cells, CONSTANTS)),
    ]


def biased(cells: Cells, probes) -> list[str]:
    mixed = lambda arm: f"{100 * averaged(cells, arm, lambda c: np.mean(c['curve']['mixed'])):.0f}%"
    rows = [[f"`{arm}`", signal(cells, arm).text(2), mixed(arm)] for arm in there(cells, ARMS)]
    return [
        "## What is biased, and how noisy is it?",
        "Which parts of the estimator are biased, by how much and why is a matter of enumeration, not of runs: "
        "[docs/theory.md](../docs/theory.md). Noise is measured: *signal* is the square of the mean gradient over the "
        "trace of its covariance, at the start policy, for each 100 tool calls (jackknife over seeds); it says nothing "
        "of bias. *Mixed* is the share of training trees whose leaves differ in accuracy, so that they teach.",
        table("arm | signal per 100 calls | mixed", rows),
    ]


def repeated(cells: Cells, probes) -> list[str]:
    k, rows = SAMPLES, []
    for arm in (arm for arm in ARMS if cells[arm]):
        numbers = [
            averaged(cells, arm, lambda c: held_out(c, "greedy")),
            *(
                averaged(cells, arm, lambda c: measure(c, n))
                for measure, n in ((pass_at, 1), (pass_at, k), (pass_all, k))
            ),
        ]
        rows.append([f"`{arm}`", str(len(cells[arm])), *(f"{number:.1f}" for number in numbers)])
    return [
        "## pass@k and pass^k",
        f"Held-out questions after the last step, percent: the likeliest answer; one sampled answer; one of {k} right "
        f"(pass@{k}); all of {k} right (pass^{k}).",
        table(f"arm | seeds | greedy | pass@1 | pass@{k} | pass^{k}", rows),
    ]


# ---------------------------------------------------------------------------------- figures


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
    figures |= {name: draw_differences(cells, own, pyplot) for name, own in pairs.items() if own}
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", bbox_inches="tight")
        pyplot.close(figure)


def draw_curves(cells: Cells, pyplot):
    """Mean accuracy of the main arms on each axis; bands of one standard error."""
    figure, panels = pyplot.subplots(2, 2, figsize=(10, 7), sharey=True)
    for panel, (axis, name) in zip(panels.flat, AXES.items()):
        for arm in there(cells, MAIN):
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


if __name__ == "__main__":
    main()
