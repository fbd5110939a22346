"""What a tree of rollouts estimates: small games, every outcome enumerated, against the exact policy gradient.

    python experiments/theory.py            both tables of docs/theory.md, and its picture (a minute)

Nothing is sampled. In the smallest game forks have any chance one likes, so it shows each tilt by itself. In random
games the trees are grown by `rollout.py:grow_trees` under its own rules, from its own entropies: its draws come from
an `Oracle`, which goes through all of them. Shares, weights and attribution are the project's own in both. Left out:
token means, whose denominator is counted in the batch, and what learning makes of a bias.
"""

import math
import random
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent))

import rollout
from advantage import ADVANTAGES, attribute, centred, loss_weights
from data.format import ToolResult
from rollout import PROMPT, Node, RolloutConfig, Sample, Tree, grow_trees

DOCS = Path(__file__).parent.parent / "docs"
GAMES = 8  # random ones


def main() -> None:
    found = measured()
    tables = smallest_table(), random_table(found), grouped_table()
    print(*tables, sep="\n\n")
    draw(found, DOCS / "theory.png")
    if any(table not in (DOCS / "theory.md").read_text(encoding="utf-8") for table in tables):
        raise SystemExit("docs/theory.md: expected these tables, found others")


# ---------------------------------------------------------------------------------- the smallest game

LOGITS = torch.tensor([0.3, -0.5, 0.8])  # of a = 1; of b = 1 after a = 0; of b = 1 after a = 1
REWARDS = torch.tensor([[1.0, 0.0], [0.2, 0.7]])
P = LOGITS.sigmoid()
# The chance of a fork after (a, b): none; the same everywhere; by the state (k = 1); by the token behind it (k > 1).
CHANCES: dict[str, Callable[[int, int], float]] = {
    "never": lambda a, b: 0.0,
    "coin": lambda a, b: 0.5,
    "state": lambda a, b: (0.2, 0.9)[a],
    "token": lambda a, b: (0.2, 0.9)[b],
}


def first(a: int) -> float:
    return float(P[0] if a else 1 - P[0])


def second(a: int, b: int) -> float:
    return float(P[1 + a] if b else 1 - P[1 + a])


def score(place: int, chosen: int) -> Tensor:
    """The gradient of the log-probability of a choice in the three logits."""
    own = torch.zeros(3)
    own[place] = chosen - P[place]
    return own


def exact() -> Tensor:
    """The policy gradient: E[reward times score]."""
    total = torch.zeros(3)
    for a, b in product((0, 1), repeat=2):
        total += first(a) * second(a, b) * REWARDS[a, b] * (score(0, a) + score(1 + a, b))
    return total


def trees(chance: Callable[[int, int], float]) -> Iterator[tuple[float, Tree]]:
    """All trees of three leaves with their probabilities: a path, its sibling or another start, and a last start."""
    for a, b, c, d, e, f in product((0, 1), repeat=6):
        path = first(a) * second(a, b)
        last = first(e) * second(e, f)
        forked = chance(a, b)
        if c == a and forked:  # a sibling repeats the first turn; count it once
            nodes = [Node([a], parent=PROMPT), Node([b], parent=0), Node([d], parent=0)]
            yield path * forked * second(a, d) * last, start(nodes, e, f)
        if forked < 1:
            nodes = start([Node([a], parent=PROMPT), Node([b], parent=0)], c, d).nodes
            yield path * (1 - forked) * first(c) * second(c, d) * last, start(nodes, e, f)


def start(nodes: list[Node], a: int, b: int) -> Tree:
    tree = Tree([9], [*nodes, Node([a], parent=PROMPT), Node([b], parent=len(nodes))])
    for node in tree.nodes:
        node.stopped = "call" if node.parent == PROMPT else "end"
    return tree


def expected(chance: str, leaf_weights="flat", baseline="none", attribution="soft") -> Tensor:
    """The expected gradient of a tree's loss (3,), on-policy, in the three logits; the denominator is a constant."""
    total = torch.zeros(3)
    for probability, tree in trees(CHANCES[chance]):
        ends = [(tree.nodes[leaf].parent, leaf) for leaf in tree.leaves()]
        rewards = torch.stack([REWARDS[tree.nodes[n].ids[0], tree.nodes[leaf].ids[0]] for n, leaf in ends])
        advantages = {"none": rewards, "constant": rewards - 0.5, "group": centred(rewards)}[baseline]
        W = weights(tree, leaf_weights, 1)
        A = attribute(advantages, tree.descends(), [node.parent for node in tree.nodes], attribution)
        for n, node in enumerate(tree.nodes):
            place = 0 if node.parent == PROMPT else 1 + tree.nodes[node.parent].ids[0]
            total += probability * (W[n] * A[n]).sum() * score(place, node.ids[0])
    return total


def weights(tree: Tree, leaf_weights: str, max_length: int) -> Tensor:
    """W (N, M) with a constant denominator."""
    D = tree.descends() * (tree.shares() if leaf_weights == "split" else 1)
    return loss_weights([D], [tree.lengths()], "constant", max_length)[0]


def ratio(*args, **kwargs) -> list[float]:
    return (expected(*args, **kwargs) / exact()).tolist()


def smallest_table() -> str:
    """Expected gradient over the exact one, in the three logits."""
    columns: dict[str, dict] = {
        "flat, no baseline": {},
        "flat, constant baseline": {"baseline": "constant"},
        "flat, group mean": {"baseline": "group"},
        "split, no baseline": {"leaf_weights": "split"},
    }
    lines = ["| a fork's chance | " + " | ".join(columns) + " |", "|---" * 5 + "|"]
    for chance in CHANCES:
        cells = [", ".join(f"{value:.3f}" for value in ratio(chance, **how)) for how in columns.values()]
        lines.append(f"| {chance} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


# ---------------------------------------------------------------------------------- random games, the project's trees

INITIAL = 0.5  # nats: H_initial, of a first turn without a choice


class Oracle:
    """Goes through the outcomes of a random process, one run after the other: the last choice changes first."""

    def __init__(self):
        self.chosen: list[int] = []  # in this run, 0 or 1
        self.at = 0

    def choose(self) -> int:
        self.chosen += [0] * (self.at == len(self.chosen))
        self.at += 1
        return self.chosen[self.at - 1]

    def runs(self) -> Iterator[None]:
        while True:
            self.at = 0
            yield
            while self.chosen and self.chosen[-1]:
                self.chosen.pop()
            if not self.chosen:
                return
            self.chosen[-1] = 1


@dataclass
class Game:
    """After each of `results` tool results come `turn` tokens, 0 or 1, whose chances depend on all tokens before."""

    results: int
    seed: int
    turn: int = 2
    logits: dict[tuple[int, ...], float] = field(default_factory=dict)  # of 1, by the tokens before
    rewards: dict[tuple[int, ...], float] = field(default_factory=dict)

    def __post_init__(self):
        rng, length = random.Random(self.seed), self.results * self.turn
        self.logits = {bits: rng.gauss(0, 1.5) for n in range(length) for bits in product((0, 1), repeat=n)}
        self.rewards = {bits: rng.random() for bits in product((0, 1), repeat=length)}
        self.place = {bits: i for i, bits in enumerate(self.logits)}

    def chance(self, before: tuple[int, ...], token: int) -> float:
        p = 1 / (1 + math.exp(-self.logits[before]))
        return p if token else 1 - p

    def entropy(self, before: tuple[int, ...]) -> float:
        return -sum(p * math.log(p) for p in (self.chance(before, 0), self.chance(before, 1)))

    def score(self, before: tuple[int, ...], tokens: list[int]) -> Tensor:
        """The gradient of log-probability of these tokens in all logits."""
        own = torch.zeros(len(self.place), dtype=torch.double)
        for n, token in enumerate(tokens):
            state = (*before, *tokens[:n])
            own[self.place[state]] += token - self.chance(state, 1)
        return own

    def exact(self) -> tuple[Tensor, float]:
        """The policy gradient, and the trace of the covariance of one trajectory's estimate of it."""
        mean, square = torch.zeros(len(self.place), dtype=torch.double), 0.0
        for bits, reward in self.rewards.items():
            p = math.prod(self.chance(bits[:n], bits[n]) for n in range(len(bits)))
            own = reward * self.score((), list(bits))
            mean, square = mean + p * own, square + p * float(own @ own)
        return mean, square - float(mean @ mean)


class OneWord:
    """A tokenizer that reads every text as the token 9, and every turn as a search."""

    unk_token_id = None
    encode = staticmethod(lambda text, **how: [9])
    decode = staticmethod(lambda ids: "<search>which way</search>")
    get_added_vocab = staticmethod(dict)

    def __call__(self, text: str, **how) -> dict[str, list]:
        return {"input_ids": [9], "offset_mapping": [(0, len(text))]}


class OracleSampler:
    """Stands in for `Sampler` and for the tools.

    `tops`: whether paths of the top-up, on which nothing depends, are drawn as well, or left as one token.
    """

    vocab_size, tokenizer = 2, OneWord()

    def __init__(self, game: Game, oracle: Oracle, tops: bool):
        self.game, self.oracle, self.tops, self.probability = game, oracle, tops, 1.0

    def prefill(self, prompts: list[list[int]]) -> None:
        pass

    def submit(self, call) -> Future:
        future: Future = Future()
        future.set_result(ToolResult("this way"))
        return future

    def __call__(self, rows, temperature: float, on_stop) -> list[Sample]:
        turns = [self.turn(row) if row.stop_at else Sample() for row in rows]
        for row, turn in zip(rows, turns):
            if turn.ids:
                on_stop(row, turn)
        return turns

    def turn(self, row) -> Sample:
        if not (row.may_branch or self.tops):
            return Sample([8], [0.0], [0.0], "end")
        if not row.called:
            return Sample([7], [0.0], [INITIAL], "call")
        bits, turn = tuple(token for token in row.ids if token < 2), Sample()
        while len(turn.ids) < self.game.turn - len(row.ids[row.turn_start :]):
            before = (*bits, *turn.ids)
            turn.ids.append(self.oracle.choose())
            turn.entropies.append(self.game.entropy(before))
            turn.logprobs.append(math.log(self.game.chance(before, turn.ids[-1])))
        self.probability *= math.exp(sum(turn.logprobs))
        turn.stopped = "end" if len(bits) + len(turn.ids) == self.game.turn * self.game.results else "call"
        return turn


def outcomes(game: Game, config: RolloutConfig, tops: bool = False) -> Iterator[tuple[float, Tree]]:
    """All trees with their probabilities; a coin falls on one of its sides, with the chance that the tree notes."""
    oracle, sides, tossed = Oracle(), {}, config.branch_rule == "coin"

    def side(key: str, position: int) -> float:
        if not (tossed and key.endswith("/coin")):
            return 0.5  # for nobody: no rule here draws lots
        if (key, position) not in sides:
            sides[key, position] = 1.0 - oracle.choose()
        return sides[key, position]

    with patch.object(rollout, "uniform", side):
        for _ in oracle.runs():
            sides.clear()
            sampler = OracleSampler(game, oracle, tops)
            (tree,) = grow_trees([[9]], ["game"], sampler, sampler, config)
            decisions = [node.decision for node in tree.nodes if node.decision]
            tosses = [d.prob if d.bar == 0 else 1 - d.prob for d in decisions]
            yield sampler.probability * (math.prod(tosses) if tossed else 1), tree


@dataclass
class Estimate:
    bias: float  # the sine of the angle to the policy gradient: the error of direction after the best scale
    noise: float  # trace of the covariance over the squared mean, over that of as many leaves without forks
    calls: float  # over those of as many leaves without forks

    @classmethod
    def of(cls, game: Game, config: RolloutConfig, leaf_weights: str) -> "Estimate":
        """With the reward as the advantage, so that a path of the top-up adds the exact gradient and its own noise."""
        exact, own = game.exact()
        m, mean, square, calls, mass = config.num_generations, torch.zeros_like(exact), 0.0, 0.0, 0.0
        for p, tree in outcomes(game, config):
            tops = sum(node.ids == [8] for node in tree.nodes)
            found = gradient_of(game, tree, leaf_weights) + tops / m * exact
            mass, mean, square = mass + p, mean + p * found, square + p * (float(found @ found) + tops * own / m**2)
            calls += p * (sum(bool(node.observation) for node in tree.nodes) + tops * game.results)
        assert abs(mass - 1) < 1e-9, f"probabilities add up to {mass}"
        length = float(mean @ mean)
        noise = (square - length) / length / (own / m / float(exact @ exact))
        return cls(sine(mean, exact), noise, calls / (m * game.results))


def gradient_of(game: Game, tree: Tree, leaf_weights: str, advantages: str = "") -> Tensor:
    """Of the paths that were drawn; without a name of ADVANTAGES a leaf's advantage is its reward."""
    bits = lambda nodes: tuple(token for n in nodes for token in tree.nodes[n].ids if token < 2)
    A = torch.tensor([game.rewards.get(bits(tree.path(leaf)), 0.0) for leaf in tree.leaves()])
    if advantages:
        A = ADVANTAGES[advantages](A[None], tree.lengths()[None])[0]
    W = weights(tree, leaf_weights, 1)
    A = attribute(A, tree.descends(), [node.parent for node in tree.nodes], "soft")
    total = torch.zeros(len(game.place), dtype=torch.double)
    for n, node in enumerate(tree.nodes):
        if node.ids[0] < 2:
            total += float((W[n] * A[n]).sum()) * game.score(bits(tree.path(n)[:-1]), node.ids)
    return total


def sine(found: Tensor, exact: Tensor) -> float:
    """Of the angle between the two; 1 from a right angle on."""
    cosine = float(found @ exact / (found.norm() * exact.norm()))
    return math.sqrt(max(0.0, 1 - cosine * cosine)) if cosine > 0 else 1.0


# What is compared: flags of a rollout, and the leaf weights.
RULES: dict[str, tuple[dict, str]] = {
    "no forks": ({"base_prob": 0.0}, "flat"),
    "flat, k = 1": ({"entropy_tokens": 1}, "flat"),
    "flat, k = 2": ({"entropy_tokens": 2}, "flat"),
    "flat, k = 2, coin": ({"entropy_tokens": 2, "branch_rule": "coin", "entropy_weight": 1.0}, "flat"),
    "flat, blind coin": ({"branch_rule": "coin", "entropy_weight": 0.0}, "flat"),
    "flat, k = 1, after the probe": ({"entropy_tokens": 1, "fork_at": "probe"}, "flat"),
    "split, k = 1": ({"entropy_tokens": 1}, "split"),
    "split, k = 2": ({"entropy_tokens": 2}, "split"),
    "split, k = 1, after the probe": ({"entropy_tokens": 1, "fork_at": "probe"}, "split"),
}
SIZES = {"one result, M = 2": (1, 2), "two results, M = 2": (2, 2), "two results, M = 3": (2, 3)}


GROUPED = ("no forks", "flat, k = 1", "split, k = 1")  # rules whose trees are also judged by their group


def measured(rules=tuple(RULES), sizes=tuple(SIZES), games: int = GAMES) -> dict[tuple[str, str], list[Estimate]]:
    """Of each game, by rule and size."""
    return {
        (rule, size): [
            Estimate.of(Game(SIZES[size][0], seed), config_of(rule, SIZES[size][1]), RULES[rule][1])
            for seed in range(games)
        ]
        for rule, size in product(rules, sizes)
    }


def config_of(rule: str, m: int) -> RolloutConfig:
    return RolloutConfig(num_generations=m, num_initial=1, **RULES[rule][0])


def grouped(rule: str, advantages: str, games: int = GAMES) -> list[float]:
    """The bias where three leaves are compared with each other, in games with two results and turns of one token."""
    found = []
    for game in (Game(2, seed, turn=1) for seed in range(games)):
        drawn = outcomes(game, config_of(rule, 3), tops=True)
        mean = sum(p * gradient_of(game, tree, RULES[rule][1], advantages) for p, tree in drawn)
        found.append(sine(mean, game.exact()[0]))
    return found


def random_table(found: dict[tuple[str, str], list[Estimate]]) -> str:
    """Bias of each rule, the mean of the games and the worst; noise and calls where there is most to fork."""
    rules, last = dict.fromkeys(rule for rule, _ in found), list(SIZES)[-1]
    lines = ["| trees | " + " | ".join(SIZES) + " | noise | calls |", "|---" * (len(SIZES) + 3) + "|"]
    for rule in rules:
        cells = [spread([one.bias for one in found[rule, size]]) for size in SIZES]
        cells += [
            f"{sum(values) / len(values):.2f}" for values in zip(*((one.noise, one.calls) for one in found[rule, last]))
        ]
        lines.append(f"| {rule} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def grouped_table() -> str:
    names = {"unscaled": "less the group's mean", "group": "and over its standard deviation"}
    lines = ["| trees | " + " | ".join(names.values()) + " |", "|---" * 3 + "|"]
    for rule in GROUPED:
        lines.append(f"| {rule} | " + " | ".join(spread(grouped(rule, name)) for name in names) + " |")
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    """The mean and the worst; what is exactly nothing is plain."""
    mean = sum(values) / len(values)
    return "0" if max(values) < 1e-3 else f"{mean:.2f} (worst {max(values):.2f})"


# ---------------------------------------------------------------------------------- the picture


def draw(found: dict[tuple[str, str], list[Estimate]], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams |= {"axes.spines.top": False, "axes.spines.right": False, "font.size": 9, "figure.dpi": 110}
    figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=(13, 4.2))
    draw_shares(left)
    draw_ratios(middle)
    draw_biases(right, {rule: [one.bias for one in found[rule, list(SIZES)[-1]]] for rule in RULES})
    figure.tight_layout(w_pad=2)
    figure.savefig(file, bbox_inches="tight")
    pyplot.close(figure)


def shares(chance: str, leaf_weights: str) -> list[float]:
    """The part of the weight that trees give to the trajectories (a, b) = 00, 01, 10, 11 of the smallest game."""
    total = torch.zeros(2, 2)
    for probability, tree in trees(CHANCES[chance]):
        W = weights(tree, leaf_weights, 1)
        for m, leaf in enumerate(tree.leaves()):
            total[tree.nodes[tree.nodes[leaf].parent].ids[0], tree.nodes[leaf].ids[0]] += probability * W[leaf, m]
    return (total / total.sum()).flatten().tolist()


def draw_shares(panel) -> None:
    """What the leaves of forked trees are, beside what the policy does."""
    bars = {
        "the policy": [first(a) * second(a, b) for a, b in product((0, 1), repeat=2)],
        "leaves, flat": shares("state", "flat"),
        "leaves, split": shares("state", "split"),
    }
    for i, (name, values) in enumerate(bars.items()):
        places = [n + 0.27 * (i - 1) for n in range(4)]
        panel.bar(places, [100 * value for value in values], 0.25, label=name)
        for x, value in zip(places, values):
            panel.text(x, 100 * value + 0.5, f"{100 * value:.0f}", ha="center", fontsize=8)
    panel.set_xticks(range(4), ["0, 0", "0, 1", "1, 0", "1, 1"])
    panel.set(title="forks mostly after a = 1 (state)", xlabel="a, b", ylabel="share of the weight, %")
    panel.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(0, 0.97))


def draw_ratios(panel) -> None:
    """The smallest game's table as dots: three in one place are the right direction."""
    rows = [(chance, how) for how in ("flat", "split") for chance in CHANCES]
    values = [ratio(chance, how) for chance, how in rows]
    marks = {"first turn": ("o", 10), "second, after a = 0": ("^", 7), "second, after a = 1": ("s", 4)}
    for i, (name, (marker, size)) in enumerate(marks.items()):
        panel.plot([own[i] for own in values], range(len(rows)), marker, label=name, fillstyle="none", markersize=size)
    panel.axvline(0, color="black", linewidth=0.8)
    panel.set_yticks(range(len(rows)), [f"{chance}, {how}" for chance, how in rows])
    panel.set(
        title="the smallest game", xlabel="expected gradient over the exact one, by logit", ylim=(len(rows) - 0.5, -0.5)
    )
    panel.legend(frameon=False, fontsize=8, loc="lower left")


def draw_biases(panel, biases: dict[str, list[float]]) -> None:
    for n, values in enumerate(biases.values()):
        panel.plot(values, [n] * len(values), "o", color="tab:blue", alpha=0.4, markersize=5)
        panel.plot([sum(values) / len(values)], [n], "|", color="black", markersize=14)
    panel.set_yticks(range(len(biases)), list(biases))
    title = f"{GAMES} random games, {list(SIZES)[-1]}"
    panel.set(title=title, xlabel="error of direction (0 is none)", xlim=(-0.02, None), ylim=(len(biases) - 0.5, -0.5))


if __name__ == "__main__":
    main()
