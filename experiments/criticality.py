"""Where a trajectory is decided, and what branch rules see of it: measured with a frozen policy, without training.

    python experiments/criticality.py                      the built-in world and its model
    python experiments/criticality.py --data trails        the trails and their model
    python experiments/criticality.py --model RUN --data trails:0.3

A place is a tool result on one of a few trajectories that start from the prompt. Its criticality, *between*, is the
variance of Q, the mean reward after a turn, over the turns that the policy may write there: how much the next turn
decides. It is estimated by nested sampling and one-way analysis of variance; a turn that was drawn twice is continued
as one. *total* is the variance of the reward below the place, *calls* what a new leaf there costs on average.
Intervals are 95%, by bootstrap over questions. Left out: learning; that the limits of calls and tokens begin anew at a
place; and that a rule, in a tree, may fork the forks.
"""

import re
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from arpo import Policy
from data import Question, models
from data.format import encode_prompt
from data.settings import Limits, Positive, first_look, one_line_errors, parse
from eval import JudgeConfig, open_policy, score_leaves
from experiments.measures import write_json
from experiments.probes import facts
from rollout import Node, Tree
from tools import Task, load_task, make_sandbox

# Columns of the table of places, by name: what the policy's entropies and the place itself say.
PREDICTORS = {
    "delta": "ΔH",
    "entropy": "H_t",
    "first_token": "H of its first token",
    "largest": "largest H of the turn",
    "depth": "depth",
    "turn_tokens": "length of the turn",
    "calls": "calls of a new leaf",
}
OTHERS = ("question", "between", "half_1", "half_2", "total", "tokens", "reward")
RESAMPLES = 400  # of the questions
COINS = 100  # tosses over which the coin's choice is averaged
DECIDES = 0.02  # least criticality of a place whose entropy is not called irrelevant; a fair choice of 0 or 1 has 0.25
Halves = Annotated[int, Limits(4)]  # a variance of each half

Places = dict[str, np.ndarray]  # columns, an entry for each place


@dataclass(frozen=True)
class CriticalityConfig(JudgeConfig):
    split: Literal["train", "dev", "test"] = "train"  # whose questions
    questions: Positive = 48  # at most
    trajectories: Positive = 4  # from the prompt of each question; their tool results are the places
    next_turns: Halves = 8  # sampled at each place
    continuations: Halves = 4  # of each different one of them
    chosen: Positive = 4  # places of a question that a rule may choose
    output: str = ""  # file name without ending; default experiments/criticality/MODEL-DATA


def main() -> None:
    with one_line_errors("criticality.py"):
        config = read_flags(sys.argv[1:])
        check_place(config.output)
        task, policy = load_task(config, config.split, config.questions, make_sandbox(config)), open_policy(config)
        places = measure(policy, task, config)
        made = {
            "command": " ".join(["python experiments/criticality.py", *sys.argv[1:]]),
            "settings": {name: value for name, value in asdict(config).items() if name != "output"},
            "summary": summarise(places, config.chosen),
            "places": {name: column.tolist() for name, column in places.items()},
        }
        print("\n\n".join(tables(made["summary"])))
        write_json(Path(f"{config.output}.json"), made)
        draw(places, made["summary"], Path(f"{config.output}.png"))


def read_flags(argv: list[str]) -> CriticalityConfig:
    few = first_look(CriticalityConfig, argv, ("data",))
    named = first_look(CriticalityConfig, argv, ("model",), {"model": models.built_in_for(few["data"])})
    config = parse(CriticalityConfig, argv, "criticality.py", __doc__, models.model_defaults(named["model"]) | named)
    name = re.sub(r"[^\w.]+", "-", f"{Path(config.model).name}-{Path(config.data).name}")
    return config if config.output else replace(config, output=str(Path(__file__).parent / "criticality" / name))


def check_place(output: str) -> None:
    """Raises ValueError where the files could not be written, before minutes are spent on what is in them."""
    for file in (Path(f"{output}.json"), Path(f"{output}.png")):
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("a"):
                pass
        except OSError as error:
            raise ValueError(f"--output {output}: expected a place for files, found {file}: {error.strerror}") from None
        if not file.stat().st_size:
            file.unlink()


# ---------------------------------------------------------------------------------- measuring


@dataclass(eq=False)
class Spot:
    """A prefix that ends with a tool result, and what was sampled from there; places with the same tokens share it."""

    question: Question
    nodes: list[Node]  # the turns and results up to here
    ids: list[int]  # the same with the prompt, as tokens
    turns: list[Node] = field(default_factory=list)  # the next turn of each sample
    rewards: list[float] = field(default_factory=list)  # of each sample
    after: dict[tuple[int, ...], list[float]] = field(default_factory=dict)  # a next turn -> rewards after it
    calls: float = 0.0  # of a new leaf, on average
    tokens: float = 0.0  # that it samples

    def found(self) -> dict[str, float]:
        """Estimates. The halves have different samples, so that one may choose places and the other judge them."""
        drawn, parts = [tuple(turn.ids) for turn in self.turns], dict.fromkeys(("half_1", "half_2"), 0.0)
        between, total = 0.0, float(np.var(self.rewards, ddof=1))
        if len(set(drawn)) > 1:
            some = lambda turns, part: variances([self.after[turn][part] for turn in turns], list(turns.values()))
            between, total = some(Counter(drawn), slice(None))
            half, rest = len(drawn) // 2, len(next(iter(self.after.values()))) // 2
            parts["half_1"] = some(Counter(drawn[:half]), slice(rest))[0]
            parts["half_2"] = some(Counter(drawn[half:]), slice(rest, None))[0]
        means = {"calls": self.calls, "tokens": self.tokens, "reward": float(np.mean(self.rewards))}
        return {"between": between, "total": total} | parts | means


@dataclass(eq=False)
class Place:
    """Where a trajectory left a spot, and how: entropies in nats, of the turn that it wrote there."""

    question: int
    spot: Spot
    seen: dict[str, float]


def measure(policy: Policy, task: Task, config: CriticalityConfig) -> Places:
    """The places of all questions, with what is seen there and what nested sampling finds."""

    def grow(prefixes: list[list[int]], name: str, leaves: int) -> list[Tree]:
        flat = replace(config, num_generations=leaves, num_initial=0)
        return policy.grow(prefixes, [f"{config.seed}/{name}/{i}" for i in range(len(prefixes))], task.tools, flat)

    def rewards(spot: Spot, before: list[Node], tree: Tree) -> list[float]:
        """Of a tree's leaves, as if its trajectories had begun with the nodes before."""
        nodes = [replace(node, parent=i - 1) for i, node in enumerate(before)]
        nodes += [replace(node, parent=node.parent + len(before)) for node in tree.nodes]
        scores = score_leaves(Tree(tree.prompt, nodes), spot.question, policy.tokenizer, config.reward_bonus)
        return [score.reward for score in scores]

    prompts = [encode_prompt(policy.tokenizer, question.question) for question in task.questions]
    spots: dict[tuple, Spot] = {}
    places = []
    for number, tree in enumerate(grow(prompts, "flat", config.trajectories)):
        for nodes, seen in left(tree, config.entropy_tokens):
            ids = prompts[number] + written(nodes)
            spot = spots.setdefault((number, *ids), Spot(task.questions[number], nodes, ids))
            places.append(Place(number, spot, seen))
    several: list[tuple[Spot, Node]] = []  # next turns to be continued, where there are at least two
    for spot, tree in zip(spots.values(), grow([spot.ids for spot in spots.values()], "turns", config.next_turns)):
        paths = [tree.path(leaf) for leaf in tree.leaves()]
        spot.turns, spot.rewards = [tree.nodes[path[0]] for path in paths], rewards(spot, spot.nodes, tree)
        spot.calls = float(np.mean([len(path) - 1 for path in paths]))
        spot.tokens = float(tree.lengths().mean())
        different = {tuple(turn.ids): (turn, reward) for turn, reward in zip(spot.turns, spot.rewards)}
        for ids, (turn, reward) in different.items() if len(different) > 1 else ():
            spot.after[ids] = [reward] * config.continuations  # after the last turn everything is settled
            if turn.observation:
                several.append((spot, turn))
    continued = grow([spot.ids + written([turn]) for spot, turn in several], "continuations", config.continuations)
    for (spot, turn), tree in zip(several, continued):
        spot.after[tuple(turn.ids)] = rewards(spot, [*spot.nodes, turn], tree)
    found = {spot: spot.found() for spot in spots.values()}
    rows = [{"question": place.question} | place.seen | found[place.spot] for place in places]
    if not rows:
        raise ValueError("expected trajectories that call tools, found none: nothing to measure")
    return {name: np.array([short(float(row[name])) for row in rows]) for name in (*PREDICTORS, *OTHERS)}


def written(nodes: list[Node]) -> list[int]:
    return [token for node in nodes for token in node.ids + node.observation]


def left(tree: Tree, k: int) -> list[tuple[list[Node], dict[str, float]]]:
    """The tool results of flat trajectories: the nodes up to each, and what is seen of the turn after it."""
    found = []
    for leaf in tree.leaves():
        nodes = [tree.nodes[n] for n in tree.path(leaf)]
        for depth, turn in enumerate(nodes[1:], 1):
            entropy, initial = (float(np.mean(node.entropies[:k])) for node in (turn, nodes[0]))
            # Rounded, so that equal entropies stay equal whatever else was in the batch.
            seen = {"delta": round(entropy - initial, 6), "entropy": round(entropy, 6), "depth": depth}
            seen |= {"first_token": round(turn.entropies[0], 6), "largest": round(max(turn.entropies), 6)}
            found.append((nodes[:depth], seen | {"turn_tokens": len(turn.ids)}))
    return found


def variances(rewards: list[list[float]], counts: list[int]) -> tuple[float, float]:
    """Variance of Q between turns, and of the reward altogether, both unbiased, from `rewards` after each different
    turn, which was drawn `counts` times. The estimate of the first may be below 0."""
    draws, share = sum(counts), np.array(counts) / sum(counts)
    mean = np.array([np.mean(after) for after in rewards])
    within = np.array([np.var(after, ddof=1) for after in rewards])
    noise = within / np.array([len(after) for after in rewards])  # of each mean; it inflates the spread of the means
    spread = share @ (mean - share @ mean) ** 2 - share * (1 - share) @ noise
    between = float(spread * draws / (draws - 1))
    return between, between + float(share @ within)


# ---------------------------------------------------------------------------------- what the places say

# A rule's choice: how likely each of a question's places is to be chosen, where k may be.
Rule = Callable[[Places, float], np.ndarray]


def best(score: np.ndarray, k: float) -> np.ndarray:
    """The chance of each place to be among the k of highest score, where a lot decides between equal ones."""
    k = min(k, len(score))
    cut = np.sort(score)[::-1][int(np.ceil(k)) - 1]
    above, equal = score > cut, score == cut
    return above + equal * (k - above.sum()) / equal.sum()


def in_waves(places: Places, passes: np.ndarray, k: float) -> np.ndarray:
    """Of the places that pass, the shallowest first, and of these the highest ΔH; perhaps fewer than k."""
    chance = np.zeros(len(passes))
    if passes.any():
        chance[passes] = best((places["delta"] - 100 * places["depth"])[passes], k)  # no entropy is near 100 nats
    return chance


def coin(places: Places, k: float) -> np.ndarray:
    """With the paper's α = 0.5, and β·ΔH too small to be seen, a coin is tossed at every place."""
    tosses = np.random.default_rng(0).random((COINS, len(places["delta"]))) < 0.5
    return np.mean([in_waves(places, passes, k) for passes in tosses], axis=0)


RULES: dict[str, Rule] = {
    "best places, known": lambda places, k: best(places["between"], k),
    "highest ΔH of all (best)": lambda places, k: best(places["delta"], k),
    "ΔH > 0 in waves (threshold)": lambda places, k: in_waves(places, places["delta"] > 0, k),
    "a coin in waves": coin,
    "lot": lambda places, k: best(np.zeros(len(places["delta"])), k),
    "lowest ΔH": lambda places, k: best(-places["delta"], k),
    "tail": lambda places, k: best(places["depth"], k),
    "first results": lambda places, k: best(-places["depth"], k),
}
BY_HALF = "best places, as half of the samples tell"


def summarise(places: Places, chosen: int) -> dict:
    """Numbers, [value, low, high], and tables of these: what `report.py` shows of a measurement."""
    owners = [np.flatnonzero(places["question"] == number) for number in np.unique(places["question"])]
    rng = np.random.default_rng(0)
    draws = [rng.integers(0, len(owners), len(owners)) for _ in range(RESAMPLES)]

    def interval(statistic: Callable[[Places], float]) -> list[float] | None:
        """Of a number made from places, the questions drawn again."""
        part = lambda index: {name: column[index] for name, column in places.items()}
        return with_interval(
            statistic(places), [statistic(part(np.concatenate([owners[i] for i in d]))) for d in draws]
        )

    sums = {name: chosen_sums(rule, places, owners, chosen) for name, rule in RULES.items()}
    sums[BY_HALF] = half_sums(places, owners, chosen)
    between = lambda choice: lambda part: share_held(choice(part), part["between"])
    alone = {
        "questions": len(owners),
        "places a question": short(len(places["depth"]) / len(owners)),
        "mean reward below a place": interval(lambda part: part["reward"].mean()),
        "places with ΔH > 0": interval(lambda part: np.mean(part["delta"] > 0)),
        f"places that decide (between > {DECIDES})": interval(lambda part: np.mean(part["between"] > DECIDES)),
        "irrelevant entropy: its share at the other places": interval(
            lambda part: share_held(part["between"] <= DECIDES, part["entropy"])
        ),
        "of which where nothing can be won or lost any more": interval(
            lambda part: share_held((part["between"] <= DECIDES) & (part["total"] == 0), part["entropy"])
        ),
        "between held by the best quarter of places": interval(between(lambda part: quarter(part["between"]))),
        "the same, chosen by one half of the samples, judged by the other": interval(
            lambda part: np.mean(
                [share_held(quarter(part[a]), part[b]) for a, b in (("half_1", "half_2"), ("half_2", "half_1"))]
            )
        ),
        "noise of a place's between": short(np.sqrt(np.mean((places["half_1"] - places["half_2"]) ** 2)) / 2),
    }
    predictors = {
        title: {
            "rank correlation with between": interval(lambda part: spearman(part[name], part["between"])),
            "with total": interval(lambda part: spearman(part[name], part["total"])),
            "between held by its best quarter": interval(between(lambda part: quarter(part[name]))),
        }
        for name, title in PREDICTORS.items()
    }
    predictors["between itself, of the other half"] = {
        "rank correlation with between": interval(lambda part: spearman(part["half_1"], part["half_2"]))
    }
    return alone | {"predictor": predictors, "rule": rules_table(sums, draws)}


def quarter(score: np.ndarray) -> np.ndarray:
    return best(score, len(score) / 4)


def share_held(choice: np.ndarray, amounts: np.ndarray) -> float:
    return choice @ amounts / amounts.sum()


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Rank correlation, equal values with their mean rank; nan where all are equal."""

    def ranks(values: np.ndarray) -> np.ndarray:
        _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
        return (np.cumsum(counts) - (counts - 1) / 2)[group]

    x, y = ranks(x) - (len(x) + 1) / 2, ranks(y) - (len(y) + 1) / 2
    return x @ y / np.sqrt((x @ x) * (y @ y)) if (x @ x) * (y @ y) else np.nan


SUMMED = ("between", "total", "calls", "tokens", "depth")


def chosen_sums(rule: Rule, places: Places, owners: list[np.ndarray], k: int) -> np.ndarray:
    """Of the places that a rule chooses, expected for each question: the SUMMED and their count (questions, 6)."""
    rows = []
    for index in owners:
        own = {name: column[index] for name, column in places.items()}
        rows.append([rule(own, k) @ column for column in (*(own[name] for name in SUMMED), np.ones(len(index)))])
    return np.array(rows)


def half_sums(places: Places, owners: list[np.ndarray], k: int) -> np.ndarray:
    """The same where one half of the samples chooses and the other judges: what noise takes from the best choice."""
    sums = []
    for one, other in (("half_1", "half_2"), ("half_2", "half_1")):
        judged = places | {"between": places[other]}
        sums.append(chosen_sums(lambda own, k: best(own[one], k), judged, owners, k))
    return np.mean(sums, axis=0)


def rules_table(sums: dict[str, np.ndarray], draws: list[np.ndarray]) -> dict[str, dict]:
    """Each rule's row; intervals are of ratios of sums over questions, the questions drawn again."""
    every = [np.arange(len(sums["lot"])), *draws]
    whole = {name: np.array([rows[draw].sum(axis=0) for draw in every]).T for name, rows in sums.items()}
    with np.errstate(divide="ignore", invalid="ignore"):
        rows = {}
        for name in (next(iter(RULES)), BY_HALF, *list(RULES)[1:]):
            between, total, calls, tokens, depth, count = whole[name]
            lot = dict(zip(SUMMED, whole["lot"]))
            held = between / whole["best places, known"][0]
            per_call = (between / calls) / (lot["between"] / lot["calls"])
            per_token = (between / tokens) / (lot["between"] / lot["tokens"])
            all_per_call = (total / calls) / (lot["total"] / lot["calls"])
            ratios = {"between held": held, "per call, over a lot's": per_call, "per token": per_token}
            rows[name] = {key: with_interval(ratio[0], ratio[1:]) for key, ratio in ratios.items()}
            rows[name]["total per call, over a lot's"] = with_interval(all_per_call[0], all_per_call[1:])
            means = {"places": count / len(draws[0]), "depth": depth / count, "calls of a new leaf": calls / count}
            rows[name] |= {key: short(mean[0]) for key, mean in means.items()}
    return rows


def with_interval(value: float, resampled) -> list[float] | None:
    """[value, low, high], from the values of other draws of the questions; None where there is no number."""
    known = np.array(resampled)[np.isfinite(resampled)]
    if not np.isfinite(value) or not len(known):
        return None
    return [short(value), *(short(bound) for bound in np.percentile(known, [2.5, 97.5]))]


def short(number: float) -> float | None:
    return float(f"{number:.4g}") if np.isfinite(number) else None


def tables(summary: dict) -> list[str]:
    alone = {title: entry for title, entry in summary.items() if not isinstance(entry, dict)}
    return [facts(title, entries) for title, entries in ({"": alone} | summary).items() if isinstance(entries, dict)]


# ---------------------------------------------------------------------------------- drawing


def draw(places: Places, summary: dict, file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams |= {"axes.spines.top": False, "axes.spines.right": False, "font.size": 9, "figure.dpi": 100}
    figure, panels = pyplot.subplots(2, 2, figsize=(11, 7.5))
    draw_held(places, panels[0, 0])
    draw_depths(places, panels[0, 1])
    draw_rules(summary["rule"], "between held", "share of what the best places hold", panels[1, 0])
    draw_rules(summary["rule"], "per call, over a lot's", "criticality for each call, over a lot's", panels[1, 1])
    panels[1, 1].set_yticklabels([])
    figure.tight_layout()
    figure.savefig(file)
    pyplot.close(figure)


def draw_held(places: Places, panel) -> None:
    """How much of all criticality the best places hold, in the order of each predictor."""
    count = len(places["between"])
    orders = {"between itself": places["between"], "ΔH": places["delta"], "H of the first token": places["first_token"]}
    orders |= {"depth, shallowest first": -places["depth"], "lot": np.zeros(count)}
    counts = np.unique(np.linspace(1, count, 100).astype(int))
    for name, score in orders.items():
        held = [share_held(best(score, k), places["between"]) for k in counts]
        panel.plot([0, *counts / count], [0, *held], "--" if name == "lot" else "-", label=name)
    panel.axvline(0.25, color="grey", linewidth=0.6)
    panel.set(
        xlabel="share of all places, in this order", ylabel="share of all criticality", xlim=(0, 1), ylim=(0, None)
    )
    panel.legend(frameon=False, fontsize=8)


def draw_depths(places: Places, panel) -> None:
    """What a place of each depth decides, and how high the entropy is there."""
    depths = np.unique(places["depth"])
    mean = lambda name: [places[name][places["depth"] == depth].mean() for depth in depths]
    panel.bar(depths - 0.2, mean("between"), 0.4, label="between (left)")
    panel.set(xlabel="depth: the number of the tool result", ylabel="variance of the reward")
    other = panel.twinx()
    other.bar(depths + 0.2, mean("entropy"), 0.4, color="tab:orange", label="H_t (right)")
    other.set_ylabel("nats")
    other.spines["right"].set_visible(True)
    handles = [*panel.get_legend_handles_labels()[0], *other.get_legend_handles_labels()[0]]
    above = dict(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
    panel.legend(handles, ["between (left)", "H_t (right)"], frameon=False, fontsize=8, **above)


def draw_rules(rules: dict[str, dict], column: str, title: str, panel) -> None:
    known = {name: row[column] for name, row in rules.items() if row[column]}
    for height, name in enumerate(rules):
        if name in known:
            value, low, high = known[name]
            panel.barh(height, value, color="tab:orange" if "ΔH" in name else "tab:blue", alpha=0.7)
            panel.plot([low, high], [height, height], color="black", linewidth=1)
    panel.set_yticks(range(len(rules)), list(rules))
    panel.set(xlabel=title, ylim=(len(rules) - 0.5, -0.5))


if __name__ == "__main__":
    main()
