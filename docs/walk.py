"""One question through all modules, with the tensors as they are: writes docs/walk.md.

    python docs/walk.py

Everything on the page is computed here, by the code that trains, with the built-in model in its own world. Left out:
how well any of it works, of which one question with four leaves says nothing.
"""

import sys
from dataclasses import fields
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from advantage import ADVANTAGES, attribute, loss_weights  # noqa: E402
from arpo import Batch, Policy, make_batches, policy_loss, token_logprobs, update  # noqa: E402
from data import Question  # noqa: E402
from data.drawing import draw_tree  # noqa: E402
from data.format import encode_prompt  # noqa: E402
from data.metrics import Scored  # noqa: E402
from data.optimizer import Optimizer  # noqa: E402
from data.views import pieces, savings  # noqa: E402
from data.worlds import find_question, world_of  # noqa: E402
from eval import score_leaves  # noqa: E402
from rollout import Sampler, Tree, grow_trees  # noqa: E402
from tools import Lent, load_task, make_sandbox  # noqa: E402
from train import TrainConfig, read_flags  # noqa: E402

SEED = 3  # names the question and all randomness
SETTINGS = f"--num_generations 4 --num_initial 2 --seed {SEED}"
WIDTH = 116  # of the page's blocks


def main() -> None:
    (ROOT / "docs" / "walk.md").write_text(walk(), encoding="utf-8")


def walk() -> str:
    """The page."""
    config = read_flags(SETTINGS.split())
    question, split = find_question("world", "", SEED)
    task, policy = load_task(config, split, 1, make_sandbox(config), Lent()), Policy.open(config)
    sampler, prompt = WatchedSampler(policy.model, policy.tokenizer), encode_prompt(policy.tokenizer, question.question)
    (tree,) = grow_trees([prompt], [f"{SEED}/{question.id}"], sampler, task.tools, config)
    scores = score_leaves(tree, question, policy.tokenizer, config.reward_bonus)
    scored = Scored(question, tree, scores, torch.tensor([score.reward for score in scores]))
    advantages = ADVANTAGES[config.advantage](scored.rewards[None], tree.lengths()[None])
    (batch,) = make_batches([tree], advantages, config)
    parts = [
        the_question(question, split),
        the_prompt(prompt, policy),
        the_tree(scored, advantages[0], policy, config.entropy_tokens),
        the_waves(sampler),
        the_rule(tree, sampler, config),
        the_rewards(scored, advantages),
        the_credit(tree, advantages[0], config),
        the_sequence(tree, batch, policy),
        the_loss(batch, policy, config),
        the_step(tree, advantages, policy, config),
    ]
    return "\n\n".join([BEGINNING, *parts]) + "\n"


BEGINNING = (
    "# One question through all modules\n\n"
    "`python docs/walk.py` has written this page: what stands in the blocks is what the code computed, with the "
    f"built-in model and `{SETTINGS}`. Axis letters are those of `rollout.py`: M leaves and N nodes of a tree, B rows, "
    "T tokens of a packed sequence, S sampled ones."
)


class WatchedSampler(Sampler):
    """Notes what each wave costs."""

    def __init__(self, *rest):
        super().__init__(*rest)
        self.waves: list[dict[str, int]] = []

    def __call__(self, rows, *rest):
        before = self.counts.copy()
        turns = super().__call__(rows, *rest)
        cost = {name: self.counts[name] - before[name] for name in ("prefilled", "refed", "decoded", "holes")}
        self.waves.append({"rows": sum(bool(turn.ids) for turn in turns), **cost, "columns": self.cache.mask.shape[1]})
        return turns


# ---------------------------------------------------------------------------------- from question to tree


def the_question(question: Question, split: str) -> str:
    steps = [f"{act.tool:8s}{act.content:16s}{act.think}" for act in world_of("world", split).expert(question)]
    told = f"id       {question.id}, family {question.family}\nasked    {question.question}\n"
    told += f"accepted {', '.join(question.answers)}\n\nexpert\n" + "\n".join(f"  {step}" for step in steps)
    return section(
        "1. A question",
        "`data/world.py` makes a world from a seed, questions about it, and an expert who answers them. Training sees "
        "the question and the accepted answer alone; the expert's turns teach the cold start and are the table's "
        "ceiling.",
        told,
    )


def the_prompt(prompt: list[int], policy: Policy) -> str:
    told = f"ids ({len(prompt)},)\n" + "\n".join(lines(pieces(policy.tokenizer, prompt), prompt))
    return section(
        "2. The prompt",
        "`data/format.py:encode_prompt` puts it under the system prompt and into the model's chat template (the "
        "built-in model's leaves instructions out). The question is tokenised as plain text: a tag in it commands "
        "nothing.",
        told,
    )


def the_tree(scored: Scored, advantages: Tensor, policy: Policy, k: int) -> str:
    drawn = draw_tree(scored.tree, policy.tokenizer, k, scored.rewards, advantages, WIDTH)
    costs = savings(scored.tree)
    told = ", ".join(f"{costs[key][0]} {key} instead of {costs[key][1]}" for key in ("calls", "sampled", "read"))
    return section(
        "3. The tree",
        "`rollout.py:grow_trees` samples turns, `tools.py` answers their calls, and the branch rule decides after "
        "each result where siblings start. `data/drawing.py:draw_tree` draws what came of it: N nodes, M leaves. "
        f"Without sharing the same leaves would cost more: {told} (tool calls, and tokens sampled and read).",
        drawn,
    )


def the_waves(sampler: WatchedSampler) -> str:
    names = ["rows", "prefilled", "refed", "decoded", "holes", "columns"]
    rows = [[str(number), *(str(wave[name]) for name in names)] for number, wave in enumerate(sampler.waves, 1)]
    return section(
        "4. Waves",
        "In a wave every row that goes on takes one turn. `rollout.py:Sampler` keeps the rows' keys and values, so a "
        "result is fed once, a fork feeds one token again (refed: there must be one to sample from), and columns that "
        "are fed for nothing are counted as holes.",
        table(["wave", *names], rows),
    )


def the_rule(tree: Tree, sampler: Sampler, config: TrainConfig) -> str:
    rows = []
    for n, node in enumerate(tree.nodes):
        if d := node.decision:
            seen = [f"{value:.4f}" for value in (d.entropy, d.initial_entropy, d.delta, d.prob)]
            rows.append([str(n), str(d.wave), *seen, f"{d.new_paths} new" if d.new_paths else "none"])
    first = next(node for node in tree.nodes if node.decision)
    d, V = first.decision, sampler.vocab_size
    sums = (
        f"ΔH = ({d.entropy:.4f} - {d.initial_entropy:.4f}) / ln {V} = {d.delta:.4f}\n"
        f"P  = α + β ΔH = {config.base_prob} + {config.entropy_weight} · {d.delta:.4f} = {d.prob:.4f}, "
        f"and τ = {config.threshold}"
    )
    return section(
        "5. The branch rule",
        f"`rollout.py:GrowingTree.fork`. H_t is the mean entropy over the first {config.entropy_tokens} tokens after a "
        "result, H_initial that of the path's first turn, in nats. Where P exceeds τ new paths start right after the "
        "result, as long as the budget of M leaves lasts; what is left of it starts from the prompt.",
        table(["node", "wave", "H_t", "H_initial", "ΔH", "P", "paths"], rows) + f"\n\nnode {tree.nodes.index(first)}: "
        f"{sums}",
    )


# ---------------------------------------------------------------------------------- from rewards to a step


def the_rewards(scored: Scored, advantages: Tensor) -> str:
    rows = [
        [str(m), str(leaf), score.answer or "-", f"{score.accuracy:.0f}", f"{score.reward:+.2f}", f"{advantage:+.4f}"]
        for m, (leaf, score, advantage) in enumerate(zip(scored.tree.leaves(), scored.scores, advantages[0].tolist()))
    ]
    r = scored.rewards
    told = f"\n\nrewards {shape(r[None])}, mean {r.mean():.4f}, standard deviation {r.std():.4f}"
    return section(
        "6. Rewards and advantages",
        "`eval.py:score_leaves` reads each leaf's answer with the code of `data/grading.py` that also judges, and "
        "`advantage.py:ADVANTAGES` compares it with the other leaves of the question: (reward - mean) / standard "
        "deviation.",
        table(["leaf", "node", "answer", "right", "reward", "advantage"], rows) + told,
    )


def the_credit(tree: Tree, advantages: Tensor, config: TrainConfig) -> str:
    D, L = tree.descends(), tree.lengths()
    (W,) = loss_weights([D], [L], config.loss_type, config.max_completion_length)
    parents = [node.parent for node in tree.nodes]
    soft, hard = (attribute(advantages, D, parents, kind) for kind in ("soft", "hard"))
    rows = []
    for n, node in enumerate(tree.nodes):
        own = lambda values: " ".join(f"{value:+.2f}" if inside else "  .  " for value, inside in zip(values, D[n]))
        numbers = " ".join(f"{value:.0f}" for value in D[n])
        rows.append([str(n), str(len(node.ids)), numbers, own(soft[n]), own(hard[n])])
    total = float((W.sum(-1) * torch.tensor([float(len(node.ids)) for node in tree.nodes])).sum())
    told = f"\n\nD {shape(D)}, L {shape(L)} = {L.int().tolist()} tokens on each leaf's path\n"
    told += f"W {shape(W)} = D / {L.sum():.0f}; over all tokens and leaves it adds up to {total:.4f}"
    return section(
        "7. Credit for shared tokens",
        "D says which leaf passes through which node. A node's tokens are in the term of each leaf below it: with that "
        "leaf's advantage (soft), or with the mean of them all (hard), by `advantage.py:attribute`. W is what a token "
        f"counts there (`advantage.py:loss_weights`, {config.loss_type}). At the first step both kinds have the same "
        "gradient: a row's mean is the same.",
        table(["node", "tokens", "D", "A soft", "A hard"], rows) + told,
    )


def the_sequence(tree: Tree, batch: Batch, policy: Policy) -> str:
    lengths = batch.owner.bincount().tolist()
    names = ["prompt", *(f"node {n}" for n in range(len(tree.nodes)))]
    rows, at = [], 0
    for s, (name, length) in enumerate(zip(names, lengths)):
        sees = "".join("■" if seen else "·" for seen in batch.sees[s])
        own = len(tree.nodes[s - 1].ids) if s else 0
        before = str(int(batch.predict_from[at])) if own else "-"
        first = sum(lengths[:s])
        rows.append([name, f"{first}-{first + length - 1}", str(int(batch.positions[first])), str(own), before, sees])
        at += own
    told = "\n".join(
        f"{field.name:17s}{shape(value)}"
        for field in fields(batch)
        if isinstance(value := getattr(batch, field.name), Tensor)
    )
    share = float(batch.mask.float().mean())
    return section(
        "8. One sequence",
        "`arpo.py:pack` puts all unique tokens into one sequence. A segment sees itself and its ancestors (squares), "
        "stands at its depth in the tree, and its first token is predicted from the last one of its parent, wherever "
        "that stands.",
        table(["segment", "tokens", "position", "sampled", "predicted from", "sees"], rows)
        + f"\n\n{told}\nmask             {shape(batch.mask)}, of which {share:.0%} is true",
    )


def the_loss(batch: Batch, policy: Policy, config: TrainConfig) -> str:
    with torch.no_grad():
        logprobs = token_logprobs(policy.model, batch, config.temperature)
        loss, sums = policy_loss(logprobs, logprobs, batch, config)
    gap = float((logprobs - batch.sampler_logprobs).abs().max())
    own = "below 0.001" if gap < 0.001 else f"{gap:.4f}"
    shown = pieces(policy.tokenizer, batch.targets[:10].tolist())
    told = f"log π {shape(logprobs)}, the largest distance from those noted while sampling: {own} nats\n-log π\n"
    told += "\n".join(f"  {piece!r:12s} {abs(value):7.4f}" for piece, value in zip(shown, logprobs.tolist()))
    told += f"\n  ...\nloss {float(loss):+.4f}, tokens whose ratio is clipped: {sums['clip_fraction']:.0f}"
    return section(
        "9. The loss",
        "One forward pass gives log π of every sampled token on its own path (`arpo.py:token_logprobs`). The ratio to "
        "π_old is 1 before the first step, so nothing is clipped, and the loss is minus the weighted sum of advantages "
        "(`arpo.py:policy_loss`). Advantages add up to 0, so it is small, and says nothing; its gradient does.",
        told,
    )


def the_step(tree: Tree, advantages: Tensor, policy: Policy, config: TrainConfig) -> str:
    before = leaf_logprobs(tree, policy, config)
    optimizer = Optimizer.of(policy.model, config)
    told = update(policy.model, optimizer, [tree], advantages, config)
    after = leaf_logprobs(tree, policy, config)
    rows = [
        [str(m), f"{advantage:+.4f}", f"{old:.2f}", f"{new:.2f}", "up" if new > old else "down"]
        for m, (advantage, old, new) in enumerate(zip(advantages[0].tolist(), before, after))
    ]
    facts = f"tokens in the pass {told['train_tokens']}, of them trained {told['trained']}; "
    facts += f"gradient norm {told['grad_norm']:.1f}, learning rate {config.learning_rate:g}"
    return section(
        "10. A step",
        "`arpo.py:update` does all this for the trees of a step, and `data/optimizer.py` clips the gradient and "
        "applies it (Adam's first step moves every weight by about the learning rate, whatever the gradient's norm). "
        "Below: log π of the policy's tokens on each leaf's path before and after this one step.",
        f"{facts}\n\n" + table(["leaf", "advantage", "before", "after", "went"], rows),
    )


@torch.no_grad()
def leaf_logprobs(tree: Tree, policy: Policy, config: TrainConfig) -> list[float]:
    """(M,) log π of all that the policy wrote on the way to each leaf."""
    (batch,) = make_batches([tree], torch.ones(1, len(tree.leaves())), config)
    return (token_logprobs(policy.model, batch, config.temperature) @ (batch.weights > 0).float()).tolist()


# ---------------------------------------------------------------------------------- how it is written


def section(title: str, text: str, block: str) -> str:
    clean = "\n".join(line.rstrip() for line in block.splitlines())
    return f"## {title}\n\n{text}\n\n```\n{clean}\n```"


def table(names: list[str], rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(names, *rows)]
    return "\n".join("  ".join(f"{cell:{width}s}" for cell, width in zip(row, widths)) for row in [names, *rows])


def lines(texts: list[str], ids: list[int]) -> list[str]:
    """Tokens with their ids, as many in a line as fit."""
    found = [""]
    for text, number in zip(texts, ids):
        cell = f"{text!r} {number}"
        found += [cell] if len(found[-1]) + len(cell) > WIDTH else [f"{found.pop()}  {cell}".strip()]
    return found


def shape(tensor: Tensor) -> str:
    return f"({', '.join(map(str, tensor.shape))}{',' * (tensor.dim() == 1)})"


if __name__ == "__main__":
    main()
