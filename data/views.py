"""What a page shows of a tree, as JSON: turns token by token, decisions, leaves, credit, and the packed sequence.

Everything comes from the code that trains: credit from `attribute`, the sequence and its mask from `split` and `pack`.
Text is told by tokens; what cannot be seen, or would turn the direction of writing, is spelled out. Left out: how it
is drawn (`page/`), and the loss itself.
"""

import math
import re
from os.path import commonprefix
from typing import Any

import torch
from torch import Tensor

from advantage import attribute, loss_weights
from arpo import Batch, UpdateConfig, kept, pack, split
from data.format import printable, tag_names
from data.metrics import NOT_RUN, Scored
from data.results import Score
from rollout import PROMPT, Node, RolloutConfig, Tree

LONGEST = 20_000  # characters that a page keeps of a result that the policy read in part


def tree_view(title: str, scored: Scored, advantages: Tensor, tokenizer, config: RolloutConfig) -> dict[str, Any]:
    """A tree with its leaf advantages (M,). Settings of the update that `config` lacks have their defaults."""
    question, tree = scored.question, scored.tree
    update = config if isinstance(config, UpdateConfig) else UpdateConfig()
    descends, parents = tree.descends(), [node.parent for node in tree.nodes]
    kinds = dict.fromkeys(("soft", "hard", update.attribution))
    columns = zip(tree.leaves(), scored.scores, scored.rewards, advantages)
    return {
        "title": title,
        "question": visible(question.question),
        "accepted": [visible(answer) for answer in question.answers],
        "prompt": pieces(tokenizer, tree.prompt),
        "nodes": [node_view(node, tokenizer) for node in tree.nodes],
        "leaves": [leaf_view(*column) for column in columns],
        "credit": {kind: below(attribute(advantages, descends, parents, kind), descends) for kind in kinds},
        "attribution": update.attribution,
        "packed": packed(tree, advantages, update),
        "savings": savings(tree),
        "rule": rule(config),
        "tags": tag_names(),
    }


def node_view(node: Node, tokenizer) -> dict[str, Any]:
    """A turn: its tokens with entropies (nats) and log-probs, its call and result, and the decision after it."""
    read = pieces(tokenizer, node.observation)
    result = node.result and {"outcome": node.result.outcome, "seconds": number(node.result.seconds)}
    if result and len(text := visible(node.result.text)) > sum(map(len, read)):
        result |= {"whole": text[:LONGEST], "length": len(text)}
    decision = node.decision and {name: number(value) for name, value in vars(node.decision).items()}
    return {
        "parent": node.parent,
        "rank": node.rank,
        "tokens": pieces(tokenizer, node.ids),
        "entropies": list(map(number, node.entropies)),
        "logprobs": list(map(number, node.logprobs)),
        "stopped": node.stopped,
        "call": node.call and node.call.tool,
        "read": read,  # the result's tokens, as the policy reads them
        "result": result,
        "decision": decision,
    }


def leaf_view(leaf: int, score: Score, reward: Tensor, advantage: Tensor) -> dict[str, Any]:
    return {
        "node": leaf,
        "answer": score.answer and visible(score.answer),  # None: the format is wrong
        "accuracy": number(score.accuracy),
        "reward": number(float(reward)),
        "advantage": number(float(advantage)),
        "end": score.end,
    }


def below(values: Tensor, descends: Tensor) -> list[list[float]]:
    """Of each node's row (M,) the values of the leaves below it, in their order."""
    return [[number(value) for value in row[mask > 0].tolist()] for row, mask in zip(values, descends)]


def savings(tree: Tree) -> dict[str, list[int]]:
    """What the tree cost, and what its leaves would have cost as trajectories of their own: tool calls that were run,
    tokens sampled, and tokens read, the prompt's and the results'."""
    prompt, shared = len(tree.prompt), tree.descends().sum(-1)
    counts = {
        "calls": [bool(n.result) and n.result.outcome not in NOT_RUN for n in tree.nodes],
        "sampled": [len(node.ids) for node in tree.nodes],
        "read": [len(node.observation) for node in tree.nodes],
    }
    found = {key: [sum(own), int(shared @ torch.tensor(own).float())] for key, own in counts.items()}
    return found | {"read": [found["read"][0] + prompt, found["read"][1] + len(tree.leaves()) * prompt]}


def rule(config: RolloutConfig) -> dict[str, Any]:
    names = "num_initial entropy_tokens base_prob entropy_weight threshold branch_rule score entropy_timing fork_at"
    found = {name: getattr(config, name) for name in names.split()}
    found["num_initial"] = config.num_initial or config.num_generations
    return found | {"norm": {"log_vocab": "ln V", "vocab": "V"}[config.entropy_norm]}


def packed(tree: Tree, advantages: Tensor, config: UpdateConfig) -> list[dict[str, Any]]:
    """The tree as the update packs it, in one part or, over the token budget, in several."""
    D = tree.descends() * (tree.shares() if config.leaf_weights == "split" else 1)
    (W,) = loss_weights([D], [tree.lengths()], config.loss_type, config.max_completion_length)
    A = attribute(advantages, D, [node.parent for node in tree.nodes], config.attribution)
    parts = split((tree, W, A), config.token_budget)
    return [{"segments": segments(tree, [PROMPT, *kept(part[1])], pack([part]))} for part in parts]


def segments(tree: Tree, numbers: list[int], batch: Batch) -> list[dict[str, Any]]:
    """The packed sequence by its segments, the prompt and nodes: where each begins, its first position, the token
    before it, and the segments that it sees: those above it and itself, of which each token sees what is behind it."""
    found, lengths, sampled = [], batch.owner.bincount().tolist(), 0
    for s, n in enumerate(numbers):
        start, own = sum(lengths[:s]), 0 if n == PROMPT else len(tree.nodes[n].ids)
        found.append(
            {
                "node": n,
                "start": start,
                "length": lengths[s],
                "sampled": own,
                "position": int(batch.positions[start]),
                "before": int(batch.predict_from[sampled]) if own else None,
                "sees": batch.sees[s].nonzero().flatten().tolist(),
            }
        )
        sampled += own
    return found


def pieces(tokenizer, ids: list[int]) -> list[str]:
    """The text of each token in its place; they join to the text of all. The last of several has their character."""
    texts = lambda end: [tokenizer.decode(ids[max(0, i - 8) : i + end]) for i in range(len(ids))]
    whole = lambda text: text.rstrip("\ufffd")  # without the beginning of a character
    found = []
    for before, after in zip(texts(0), texts(1)):  # decoded behind their neighbours: alone, some lose their space
        done = whole(after) if len(found) < len(ids) - 1 else after
        found.append(done[len(commonprefix([whole(before), done])) :])
    return list(map(visible, found))


def visible(text: str) -> str:
    """As for a terminal, but joiners stay, without which some scripts are spelled wrong."""
    return re.sub("[^\u200c\u200d]+", lambda part: printable(part[0]), text)


def number(value: float) -> float | None:
    """JSON has no infinity; five digits are enough to look at."""
    return float(f"{value:.5g}") if math.isfinite(value) else None
