"""Makes RESULTS.md and its figures from the files that run.py, criticality.py and forks.py left, and from nothing else.

    python experiments/report.py

Every interval of a difference is over paired seeds (`measures.py`). Whether one arm is called higher than another is
decided by it, in this file, for all arms alike; where it holds 0, the page says within how many points they agree.
"""

import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from data.settings import Settings, one_line_errors, parse
from experiments.drawing import draw
from experiments.grid import (
    AFTERWARDS,
    ARMS,
    CLAIMS,
    COMMON,
    CONSTANTS,
    IDENTICAL,
    MAIN,
    METHODS,
    NOISE_BATCHES,
    PLACES,
    RATES,
    SAMPLES,
    SCORES,
    SHORT,
    VIEWS,
)  # fmt: skip
from experiments.measures import (
    AXES,
    Cells,
    Interval,
    Pairs,
    alike,
    area_difference,
    averaged,
    compared,
    end_difference,
    forking,
    forks_of,
    held_out,
    holm,
    mean_depth,
    needed,
    paired,
    pass_all,
    pass_at,
    read_cells,
    read_json,
    shared,
    signal,
    there,
    total,
)  # fmt: skip
from experiments.probes import knows, read_probes, shown, table

HERE = Path(__file__).parent
FORKS = HERE / "forks.json"  # of forks.py
MARKS = "<!-- made by experiments/report.py -->", "<!-- to here -->"  # in the README, around its table
# Arms that call less than `grpo`, and what has about as many calls without forks.
FEWER_LEAVES = [
    (arm, fewer) for arm in ("arpo", "threshold-entropy", "best-entropy") for fewer in ("grpo-m6", "grpo-m4")
]
NEED = "calls for equal accuracy, %"


@dataclass(frozen=True)
class ReportConfig(Settings):
    """Nothing can be set: the page is made from all files, in one way."""


def main() -> None:
    with one_line_errors("report.py"):
        parse(ReportConfig, sys.argv[1:], "report.py", __doc__, {})
        readme = HERE.parent / "README.md"
        cells, probes = read_cells(HERE / "results"), read_probes(HERE / "criticality")
        if not any(cells.values()):
            raise ValueError(f"{HERE / 'results'}: expected cells of run.py, found none: the page would be empty")
        short = with_short_table(readme.read_text(encoding="utf-8"), cells)
        made = page(cells, probes)
        draw(cells, HERE / "figures")
        (HERE / "RESULTS.md").write_text(made, encoding="utf-8")
        readme.write_text(short, encoding="utf-8")
        print(f"{HERE / 'RESULTS.md'}, from {sum(map(len, cells.values()))} cells")


# ---------------------------------------------------------------------------------- the page


def page(cells: Cells, probes: dict[str, dict]) -> str:
    sections = (
        opening,
        claims,
        limits,
        knows,
        listens,
        learns,
        places,
        distracted,
        methods,
        constants,
        biased,
        every_arm,
    )
    return "\n\n".join(part for section in sections for part in section(cells, probes)) + "\n"


def with_short_table(text: str, cells: Cells) -> str:
    """The README with today's main arms between its two marks."""
    if any(text.count(mark) != 1 for mark in MARKS):
        raise ValueError(f"README.md: expected one {MARKS[0]} and one {MARKS[1]}, between which its table goes")
    before, rest = text.split(MARKS[0])
    rows = []
    for arm in (arm for arm in SHORT if cells[arm]):
        trained, compared_with = arm != "start", arm not in ("start", "grpo")
        calls = f"{averaged(cells, arm, lambda cell: total(cell, 'calls')):,.0f}" if trained else "-"
        end = f"{averaged(cells, arm, lambda cell: held_out(cell, 'sampled')):.1f}%"
        found = (area_difference(cells, arm, "grpo", axis).text() for axis in ("calls", "steps"))
        gain = [*found, needed(cells, arm, "grpo", "calls").text(0)] if compared_with else ["-"] * 3
        rows.append([f"`{arm}`", ARMS[arm].says, str(len(cells[arm])), calls, end, *gain])
    head = "arm | what it is | seeds | tool calls in training | accuracy at the end"
    head += " | points, equal calls | points, equal steps | calls for equal accuracy, %"
    return f"{before}{MARKS[0]}\n{table(head, rows)}\n{MARKS[1]}{rest.split(MARKS[1])[1]}"


def opening(cells: Cells, probes) -> list[str]:
    done, declared = sum(map(len, cells.values())), sum(arm.seeds for arm in ARMS.values())
    gaps: dict[str, list[str]] = {}
    for name, arm in ARMS.items():
        if len(cells[name]) < arm.seeds:
            gaps.setdefault(f"{len(cells[name])} of {arm.seeds} seeds", []).append(f"`{name}`")
    short = "; ".join(f"{seeds} of {', '.join(arms)}" for seeds, arms in gaps.items())
    missing = (
        f" There are {short}; of all others, all. The rest was left for want of processor time, whatever came out: "
    )
    missing += "`python experiments/run.py` makes it."
    return [
        "# Where branching pays: what came out",
        "Made by `python experiments/report.py` from the files in `results/` (`python experiments/run.py`), "
        "`criticality/` (`python experiments/criticality.py`) and `forks.json` (`python experiments/forks.py`). "
        "Intervals of differences are 95%, Student's t, over paired seeds. They choose the words, and stand in bold "
        f"where they do not hold 0. Every arm is `python train.py {COMMON}` and its own flags (`python "
        "experiments/run.py --list`). Accuracy by step is that of one sampled answer to each dev question; no model "
        "was selected by it: held-out questions are answered after the last step.",
        f"**{done} of {declared} cells are there.**{missing * bool(gaps)}",
    ]


def claims(cells: Cells, probes) -> list[str]:
    every = CLAIMS | AFTERWARDS
    found = {claim: area_difference(cells, *pair, "calls") for claim, pair in every.items()}
    chances = dict(zip(every, holm([one.chance() for one in found.values()])))
    rows = []
    for claim, (arm, other) in every.items():
        steps, need = area_difference(cells, arm, other, "steps"), needed(cells, arm, other, "calls").text(0)
        cause = f"`{arm}` - `{other}`", str(found[claim].n), found[claim].text(), verdict(found[claim], chances[claim])
        rows.append([claim + " \\*" * (claim in AFTERWARDS), *cause, steps.text(), need])
    return [
        "## In short: what the paper claims or implies",
        "A claim holds where its first arm has the higher mean accuracy while both spend the same tool calls, in "
        "points. The verdict takes the number of rows into account (Holm's method: the chance of even one false "
        "finding is 5% at most); what its own interval alone would carry is called a hint. The last columns are the "
        "same for equally many optimizer steps, and how many calls more (+) or less (-) the first needs to come "
        "nine tenths of the way from the start to the lower of their best mean accuracies (the paper's figure 7; "
        "jackknife over seeds).",
        table(f"claim | arms | seeds | equal tool calls | verdict | equal steps | {NEED}", rows),
        "\\* Asked after the first cells had been seen, for what they say against the paper. The others were declared "
        "in `grid.py` before their arms ran, but that soft and hard were to be compared at one pass, where these are "
        "the same.",
    ]


def verdict(difference: Interval, chance: float) -> str:
    if not difference.verdict():
        return (FEW if math.isnan(difference.low) else APART) + within(difference)
    words = ("**supported**", "a hint for it") if difference.mean > 0 else ("**contradicted**", "a hint against it")
    return words[chance >= 0.05]


def limits(cells: Cells, probes) -> list[str]:
    trained = there(cells, ARMS)
    ends = {arm: averaged(cells, arm, lambda cell: held_out(cell, "sampled")) for arm in trained}
    gain = lambda *pair: f"{area_difference(cells, *pair, 'calls').text()} (`{pair[0]}` - `{pair[1]}`)"
    placed = lambda arm: (
        f"{averaged(cells, arm, lambda c: np.mean(c['curve']['forks'])):.0f} forks a step at a mean depth of "
        f"{mean_depth(cells, arm):.1f} (`{arm}`)"
    )
    controls = paired(cells, [("threshold-entropy", "threshold-rate"), ("best-entropy", "best-lot")])
    said = [
        "Anything of other worlds and of large models. This world was made so that rules can part, and there is one "
        "small model. All seeds are judged on the same questions, 100 dev and 100 held-out ones; intervals are over "
        "seeds alone.",
        "That what is gained for equal calls comes from where forks stand. An arm that calls less takes more optimizer "
        "steps for its calls, all but two arms at one learning rate that was tuned for none, and more steps help by "
        "themselves: "
        f"for equal calls {gain('two-passes', 'threshold-entropy')} by a second step on the same trees, "
        f"{gain('grpo-m4', 'grpo')} by half the leaves, {gain('grpo-fast', 'grpo')} by twice the rate. For equal "
        "steps that is out of the way, but so are the calls "
        "that forks save.",
        "That entropy alone tells a rule from its control: "
        + "; ".join(f"{placed(arm)} against {placed(other)}" for arm, other in controls)
        + ".",
        "Whether entropy matters at the paper's own N = M/2, Z = 1: `arpo` has no control that forks by lot.",
        "How two rows compare: each ends where the shorter of its own two curves ends, so differences do not add up.",
        "What slow or paid tools change: here they answer at once. Seconds are of a processor that was busy otherwise, "
        "too.",
        f"Who is better in the end: {sum(end >= 95 for end in ends.values())} of {len(ends)} arms end with 95% of "
        "their sampled answers right or more.",
        *fallen(cells),
        "Anything by a single bold interval below: there are hundreds, and of twenty without an effect one is bold.",
    ]
    return ["## What this does not show", "\n".join(f"- {line}" for line in said)]


def fallen(cells: Cells) -> list[str]:
    """Runs that ended below the start, and what the claims would be without them."""
    greedy = lambda cell: held_out(cell, "greedy")
    low = {arm: averaged(cells, ARMS[arm].start, greedy) for arm in there(cells, ARMS)}
    runs = [(arm, seed) for arm, least in low.items() for seed, cell in cells[arm].items() if greedy(cell) < least]
    if not runs:
        return []
    rest = {arm: {seed: own[seed] for seed in own if (arm, seed) not in runs} for arm, own in cells.items()}
    pairs = [pair for pair in (CLAIMS | AFTERWARDS).values() if set(pair) & {arm for arm, _ in runs}]
    named = ", ".join(f"`{arm}` with seed {seed} ({greedy(cells[arm][seed]):.0f}%)" for arm, seed in runs)
    without = ", ".join(f"{area_difference(rest, *pair, 'calls').text()} (`{pair[0]}` - `{pair[1]}`)" for pair in pairs)
    return [
        f"That every run goes well: {named} ended below the start, by its likeliest answers. It stays in all numbers; "
        f"without such runs the first table would have {without or 'the same numbers'}."
    ]


def listens(cells: Cells, probes) -> list[str]:
    rows = []
    for arm in (arm for arm in forking(cells) if arm in MAIN | SCORES | CONSTANTS):
        by_step = lambda name: f"{averaged(cells, arm, lambda c: np.mean(c['curve'][name])):.1f}"
        differ = averaged(cells, arm, lambda c: np.average(c["curve"]["forks_differ"], weights=forks_of(c)))
        counts = [by_step(name) for name in ("decisions", "forks", "top_ups")]
        rows.append([f"`{arm}`", ARMS[arm].says, *counts, f"{mean_depth(cells, arm):.1f}", f"{100 * differ:.0f}%"])
    return [
        "## Does the rule listen to it?",
        *apart(read_json(FORKS, "what forks.py leaves", ("pairs", "questions")) if FORKS.exists() else {}),
        "During training, a step: tool results at which a rule decides, forks, paths from the prompt that used up the "
        "rest of the budget, and the mean number of the result that a fork starts at. *Elsewhere* is the share of "
        "forks that start behind other tokens than if the same entropies had been dealt out by lot among the results "
        "of one wave, or of the whole tree under `best`, where two lots differ, too.",
        "![forks](figures/forks.png)",
        table("arm | what it is | results | forks | top-ups | depth | elsewhere", rows),
    ]


def apart(found: dict) -> list[str]:
    """On how many of their forks the arms differ that are compared for where they fork."""
    if not found:
        return []
    kinds: dict[str, list[str]] = {
        "half of the forks or more": [],
        "less than half": [],
        "none, so that the two are one method": [],
    }
    for pair, share in found["pairs"].items():
        arm, other = pair.split(" - ")
        kind = list(kinds)[0 if share[0] >= 0.5 else 1 if share[0] else 2]
        kinds[kind].append(f"`{arm}` and `{other}` {shown(share)}" if share[0] else f"`{arm}` and `{other}`")
    return [
        "A comparison of two rules says something only where they fork in different places. `python "
        f"experiments/forks.py` grows trees of the start policy for the same {found['questions']} questions, which "
        "begin with the same trajectories. The share of the first arm's forks behind whose tokens the second starts no "
        "path:",
        "\n".join(f"- {kind}: {', '.join(own)}" for kind, own in kinds.items() if own),
    ]


def differences(cells: Cells, pairs: Pairs) -> list[str]:
    """A table of mean accuracy for equal budgets on each axis, what it says in words, and the command."""
    if not pairs:
        return ["Not run yet."]
    rows = []
    for arm, other in pairs:
        found = [area_difference(cells, arm, other, axis) for axis in (*AXES, "steps")]
        found.append(end_difference(cells, arm, other, "sampled"))
        needs = needed(cells, arm, other, "calls").text(0)
        if not alike(cells, arm, other):
            rows.append([f"`{arm}` - `{other}`", str(found[0].n), *(one.text() for one in found), needs])
    head = ["arms", "seeds", *(f"equal {name}" for name in AXES.values()), "equal steps", "at the end", NEED]
    arms = dict.fromkeys(arm for pair in pairs for arm in reversed(pair))
    starts = dict.fromkeys(ARMS[arm].start for arm in arms)
    command = f"`python experiments/run.py --only {' '.join([*starts, *arms])}`"
    return [in_words(cells, pairs), table(" | ".join(head), rows), command]


def in_words(cells: Cells, pairs: Pairs) -> str:
    """Who is higher than whom for equal tool calls, a line for each kind of finding."""
    found: dict[str, dict[str, list[str]]] = {word: {} for word in (HIGHER, LOWER, APART, ALIKE, FEW)}
    for arm, other in pairs:
        difference = area_difference(cells, arm, other, "calls")
        word = ALIKE if alike(cells, arm, other) else finding(difference)
        found[word].setdefault(other, []).append(f"`{arm}`" + within(difference) * (word == APART))
    lines = []
    for word, own in found.items():
        link = "than" if word in (HIGHER, LOWER) else "and"
        told = "; ".join(f"{', '.join(arms)} {link} `{other}`" for other, arms in own.items())
        lines += [f"- {word}: {told}"] * bool(own)
    return "\n".join(["For equal tool calls:\n", *lines])


HIGHER, LOWER, APART, FEW = "**higher**", "**lower**", "not told apart", "too few seeds to say"
ALIKE = "one method here, with the same accuracy at every evaluation on every seed"


def finding(difference: Interval) -> str:
    """A word that the interval chooses."""
    return FEW if math.isnan(difference.low) else {1: HIGHER, -1: LOWER, 0: APART}[difference.verdict()]


def within(difference: Interval) -> str:
    """How much two arms may differ that are not told apart."""
    bound = max(abs(difference.low), abs(difference.high))
    return "" if math.isnan(bound) or difference.verdict() else f" (within ±{bound:.1f})"


def learns(cells: Cells, probes) -> list[str]:
    pairs = paired(cells, [(arm, "grpo") for arm in MAIN if arm not in ("start", "grpo")] + FEWER_LEAVES)
    return [
        "## Does it learn faster per call, per token, per second?",
        "![curves](figures/curves.png)",
        "Bands are one standard error over seeds; paired differences are surer than they look. The table has points: "
        "mean accuracy while both arms spend the same (the area between the curves up to where the shorter one ends), "
        "and sampled accuracy on held-out questions after the last step, whatever each had spent by then.",
        *differences(cells, pairs),
    ]


def places(cells: Cells, probes) -> list[str]:
    return [
        "## Is it entropy that chooses better places?",
        "Arms alike in N, Z and recursion: the same rule, with the same entropies dealt out in another order; or, for "
        "the threshold, forks at a quarter of the results by lot (`threshold-rate`), which are more and less deep.",
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
        "The paper does not vary the learning rate, but it decides what more steps for the same calls are worth. Twice "
        "as large:",
        *differences(cells, compared(cells, RATES)),
    ]


def biased(cells: Cells, probes) -> list[str]:
    arms = [arm for arm in there(cells, ARMS) if len(cells[arm]) > 2]
    found = {arm: signal(cells, arm) for arm in arms}
    sure = [f"`{arm}`" for arm in arms if found[arm].verdict() > 0]
    return [
        "## What is biased, and how noisy is it?",
        "Bias is a matter of enumeration, not of runs: [docs/theory.md](../docs/theory.md). In short: a group's "
        "mean and standard deviation, which nearly all arms use, tilt the gradient without any fork; with the mean "
        "alone, forks tilt it, whatever decides them; without either, neither forks by lot nor, for k = 1, split "
        "weights do.",
        "Noise is measured: the square of the mean gradient over the trace of its covariance, at the start policy, for "
        f"each 100 tool calls (jackknife over seeds). It is surely above 0 for {len(sure)} of {len(arms)} arms with "
        f"three seeds or more{': ' * bool(sure)}{', '.join(sure)}. {NOISE_BATCHES} gradients a seed are too few to "
        "rank them by.",
        table("arm | signal per 100 calls", [[f"`{arm}`", found[arm].text(2)] for arm in arms if arm in MAIN]),
    ]


def every_arm(cells: Cells, probes) -> list[str]:
    """What a step costs, and what comes of all."""
    rows, k = [], SAMPLES
    passes = f"pass@1 | pass@{k} | pass^{k}"
    for arm in (arm for arm in ARMS if cells[arm]):
        mean = lambda measure: averaged(cells, arm, measure)
        costs = [mean(lambda c: np.mean(c["curve"][axis])) for axis in AXES] if ARMS[arm].start != arm else []
        costs = [*(f"{value:,.0f}" for value in costs[:-1]), f"{costs[-1]:.2f}"] if costs else ["-"] * len(AXES)
        mixed = f"{100 * mean(lambda c: np.mean(c['curve']['mixed'])):.0f}" if ARMS[arm].start != arm else "-"
        ends = [mean(lambda c: held_out(c, "greedy")), mean(lambda c: pass_at(c, 1)), mean(lambda c: pass_at(c, k))]
        ends.append(mean(lambda c: pass_all(c, k)))
        rows.append([f"`{arm}`", ARMS[arm].says, str(len(cells[arm])), *costs, mixed, *(f"{end:.1f}" for end in ends)])
    return [
        "## Every arm: what a step costs, pass@k and pass^k",
        "Seconds are the processor's, rollouts and update together. *Mixed* is the share of training trees whose "
        "leaves differ in accuracy, so that they teach. On held-out questions after the last step, percent: the "
        f"likeliest answer right; one sampled answer; one of {k} (pass@{k}); all of {k} (pass^{k}). Means over "
        "an arm's seeds, which are not the same for all arms.",
        table(f"arm | what it is | seeds | {' | '.join(AXES.values())} | mixed | greedy | {passes}", rows),
    ]


if __name__ == "__main__":
    main()
