"""How the cost of a step grows with leaves and with turns, tree against flat, measured and drawn.

    python tests/bench/growth.py        writes tests/bench/growth.png and prints the numbers

The policy is a random model whose turns have a fixed length, so that only the shape of the trees varies:
every turn is 8 tokens, every result 8 tokens, the prompt 32. Its trees fork at each result with probability
1/2 while budget is left. Flat is N = M; "tree" is N = M / 2, as in the paper; N = 1 is the most that forks can
save. Three sweeps: leaves at 4 turns; turns at 16 leaves; and both at once, n leaves of n / 4 turns, which is
where the paper puts ARPO between O(n log n) and O(n^2) and trajectory-level sampling at O(n^2).
"""

import argparse
import math
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import torch
from measure import Arm, Channel, clocks, table
from transformers import Qwen2ForCausalLM

from arpo import UpdateConfig, update
from data.format import ToolResult
from data.optimizer import Optimizer
from data.tiny import build_tokenizer, tiny_config
from rollout import RolloutConfig, Sampler, grow_trees

PROMPT, TURN, RESULT = 32, 8, 8  # tokens

# Of each sweep: its axis, and (leaves, turns) of each point.
SWEEPS = {
    "leaves": ("leaves M, 4 turns", [(m, 4) for m in (4, 8, 16, 32, 64)]),
    "turns": ("turns, 16 leaves", [(16, turns) for turns in (1, 2, 4, 8)]),
    "both": ("n: leaves, and 4 × turns", [(n, n // 4) for n in (4, 8, 16, 32, 64)]),
}
SHAPES = {"flat, N = M": lambda m: m, "tree, N = M / 2": lambda m: m // 2, "tree, N = 1": lambda m: 1}
# Of a step; tokens are those fed, those sampled, and those in the gradient pass.
COSTS = {"tokens": "tokens", "cpu": "processor seconds", "peak_mb": "peak memory, MB"}


class Metronome(Qwen2ForCausalLM):
    """A random policy that opens a call with each turn's first token, and closes it, or ends, with its last."""

    turns = 1

    def bind(self, tokenizer):
        ids = lambda *texts: [tokenizer.convert_tokens_to_ids(text) for text in texts]
        self.opening, self.closing, self.end = ids("<search>", "</search>", tokenizer.eos_token)
        pieces = tokenizer.convert_ids_to_tokens(list(range(self.config.vocab_size)))
        self.tags = [t for t, piece in enumerate(pieces) if ">" in piece]
        return self

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, **kwargs):
        out = super().forward(input_ids, attention_mask, position_ids, **kwargs)
        place = position_ids[:, -out.logits.shape[1] :] + 1 - PROMPT  # of the token that is predicted
        turn, offset = place // (TURN + RESULT), place % (TURN + RESULT)
        last = torch.where(turn == self.turns - 1, self.end, self.closing)
        out.logits[..., self.tags] = -torch.inf
        out.logits[offset == 0] = out.logits[offset == 0].index_fill(-1, torch.tensor(self.opening), 1e4)
        ends = (offset == TURN - 1)[..., None] & (last[..., None] == torch.arange(out.logits.shape[-1]))
        out.logits[ends] = 1e4
        return out


class Digits:
    """A tool whose results have a fixed length."""

    def submit(self, call):
        future: Future = Future()
        future.set_result(ToolResult("7" * (RESULT - 2)))
        return future


def serve(sweep: str, shape: str) -> None:
    """Takes two steps of one question at the point that is asked for; asked in growing order, peaks are its own."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer(["the river of the town is long 0 1 2 3 4 5 6 7 8 9"] * 3)
    model = Metronome(tiny_config(len(tokenizer))).eval().bind(tokenizer)
    sampler = Sampler(model, tokenizer)
    optimizer = Optimizer(model, torch.optim.AdamW(model.parameters(), lr=1e-9), 1.0)
    prompt = [tokenizer.encode("7")[0]] * PROMPT
    channel = Channel()
    while True:
        leaves, model.turns = SWEEPS[sweep][1][channel.receive()]
        rollout = RolloutConfig(
            num_generations=leaves, num_initial=SHAPES[shape](leaves), branch_rule="coin", entropy_weight=0.0,
            max_turn_tokens=TURN, max_result_tokens=RESULT, max_tool_calls=99, max_completion_length=2000,
        )  # fmt: skip
        laps = []
        for tree_number in range(2):
            sampler.counts.clear()
            before = clocks()
            trees = grow_trees([prompt], [f"tree {tree_number}"], sampler, Digits(), rollout)
            advantages = torch.linspace(-1, 1, leaves)[None]
            sums = update(model, optimizer, trees, advantages, UpdateConfig(token_budget=1000))
            tokens = sum(sampler.counts[name] for name in ("prefilled", "refed", "decoded")) + sums["train_tokens"]
            laps.append([after - start for after, start in zip(clocks(), before)] + [tokens])
            (tree,) = trees
            lengths = {sum(len(tree.nodes[n].ids) for n in tree.path(leaf)) for leaf in tree.leaves()}
            assert lengths == {TURN * model.turns}, lengths
        seconds, cpu, tokens = np.mean(laps, axis=0).tolist()
        channel.send({"seconds": seconds, "cpu": cpu, "tokens": tokens})


def measure() -> dict:
    """{(sweep, shape): rows of its points}; at each point the shapes take turns."""
    rows = {}
    for sweep, (_, points) in SWEEPS.items():
        arms = [Arm(f"{sweep}/{shape}", __file__, []) for shape in SHAPES]
        for arm in arms:
            arm.ask(0)  # warm-up
        for point in range(len(points)):
            for arm, shape in zip(arms, SHAPES):
                rows.setdefault((sweep, shape), []).append(arm.ask(point))
        for arm in arms:
            arm.process.stdin.close()
            arm.process.wait()
    return rows


def exponent(sizes: list[float], costs: list[float]) -> float:
    """Slope in the log-log plot between the first point and the last."""
    return math.log(costs[-1] / costs[0]) / math.log(sizes[-1] / sizes[0])


def sizes(sweep: str) -> list[int]:
    return [turns if sweep == "turns" else leaves for leaves, turns in SWEEPS[sweep][1]]


def draw(rows: dict, path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(len(COSTS), len(SWEEPS), figsize=(11, 9), sharex="col", sharey="row")
    for column, (sweep, (axis, _)) in enumerate(SWEEPS.items()):
        n = np.array(sizes(sweep), dtype=float)
        for line, (cost, name) in enumerate(COSTS.items()):
            plot = axes[line][column]
            for shape, marker in zip(SHAPES, "os^"):
                plot.plot(n, [row[cost] for row in rows[sweep, shape]], marker=marker, label=shape)
            if (sweep, cost) == ("both", "tokens"):
                start = rows[sweep, "tree, N = 1"][0][cost]
                plot.plot(n, start * (n / n[0]) ** 2, ":", color="grey", label="n²")
                plot.plot(n, start * n * np.log(n) / (n[0] * np.log(n[0])), "--", color="grey", label="n log n")
                plot.legend(fontsize=8)
            plot.set_xscale("log", base=2)
            plot.set_yscale("log")
            plot.set_xticks(n, [f"{value:.0f}" for value in n])
            plot.grid(alpha=0.3)
            if column == 0:
                plot.set_ylabel(name)
            if line == len(COSTS) - 1:
                plot.set_xlabel(axis)
    axes[0][0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def report(rows: dict) -> str:
    """The points, and how steeply each cost grows."""
    points, slopes = [], []
    for sweep in SWEEPS:
        for i, size in enumerate(sizes(sweep)):
            values = [[rows[sweep, shape][i][cost] for shape in SHAPES] for cost in COSTS]
            text = [
                " / ".join(f"{v:,.0f}" if cost != "cpu" else f"{v:.2f}" for v in row)
                for cost, row in zip(COSTS, values)
            ]
            points.append([f"{SWEEPS[sweep][0]}: {size}", *text])
        for shape in SHAPES:
            costs = [[row[cost] for row in rows[sweep, shape]] for cost in COSTS]
            slopes.append([SWEEPS[sweep][0], shape, *(f"{exponent(sizes(sweep), c):.2f}" for c in costs)])
    names = " / ".join(SHAPES)
    return "\n\n".join(
        [
            f"Each cell: {names}.\n\n" + table(["point", *COSTS.values()], points),
            table(["sweep", "shape", *(f"exponent of {name}" for name in COSTS.values())], slopes),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.arm:
        torch.set_num_threads(1)
        serve(*args.arm.split("/", 1))
    rows = measure()
    print(report(rows))
    draw(rows, Path(__file__).with_name("growth.png"))


if __name__ == "__main__":
    main()
