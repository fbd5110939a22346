"""The update: pack trees into tensors, take log-probabilities, form the loss, step.

A tree is packed into one sequence of its unique tokens: positions are depths, and a token attends to
its ancestors alone, so that one forward pass serves all leaves and a shared token is computed once.
With r_t = π_θ / π_old, the advantages A and the weights W of `advantage.py`, the loss is

    - Σ_t Σ_m W[t, m] · min(r_t A[t, m], clip(r_t, 1 - ε, 1 + ε_high) A[t, m])  +  KL coefficient · KL

over the tokens t that the policy sampled. Prompt and tool-result tokens have no term. Left out:
several GPUs, and models whose output head rescales its logits.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from advantage import (
    attribute,
    baseline_advantages,
    batch_advantages,
    group_advantages,
    leave_one_out_advantages,
    loss_weights,
    unscaled_advantages,
)
from rollout import PROMPT, Tree

# What each method changes in the settings; "flat" sets N = M, so that nothing forks. Flags still win.
METHODS = {
    "arpo": {},
    "random": {"shuffle_entropy": True},  # control: as many forks, but not where the entropy says
    "grpo": {"flat": True},
    "dapo": {"flat": True, "epsilon_high": 0.28, "dynamic_sampling": True, "overlong_buffer": 64},
    "reinforce++": {"flat": True, "advantage": "batch"},
    "reinforce++-baseline": {"flat": True, "advantage": "baseline"},
    "rloo": {"flat": True, "advantage": "leave_one_out"},
    "dr_grpo": {"flat": True, "advantage": "unscaled", "loss_type": "dr_grpo"},
}
ADVANTAGES = {
    "group": group_advantages,
    "batch": batch_advantages,
    "baseline": baseline_advantages,
    "leave_one_out": leave_one_out_advantages,
    "unscaled": unscaled_advantages,
}


@dataclass(frozen=True)
class UpdateConfig:
    advantage: str = "group"  # a key of ADVANTAGES
    attribution: str = "soft"  # or "hard"
    loss_type: str = "dapo"  # token mean; "grpo": sequence mean; "dr_grpo": constant length
    epsilon: float = 0.2  # clip range below 1
    epsilon_high: float = 0.2  # and above
    beta: float = 0.0  # coefficient of the KL to the reference
    num_iterations: int = 1  # passes over a step's trees
    num_minibatches: int = 1  # optimizer steps in a pass
    token_budget: int = 8192  # unique tokens of a forward pass; a larger tree is split
    max_grad_norm: float = 1.0
    temperature: float = 1.0  # the sampler's
    max_completion_length: int = 512  # dr_grpo's constant


@dataclass
class Batch:
    """Packed trees: T tokens in all, of which the policy sampled S."""

    ids: Tensor  # (T,)
    positions: Tensor  # (T,) depth in the tree
    mask: Tensor  # (T, T) bool: row attends to column
    trained: Tensor  # (S,) index of each sampled token
    predict_from: Tensor  # (S,) index of the token before it on its path, whose hidden state predicts it
    weights: Tensor  # (S, M)
    advantages: Tensor  # (S, M)
    sampled_logprobs: Tensor  # (S,) from the sampler, only to be compared
    old_logprobs: Tensor | None = None  # (S,)

    def to(self, device) -> "Batch":
        return Batch(*(value.to(device) if value is not None else None for value in vars(self).values()))


@dataclass
class Piece:
    """A tree, or the part of one that leads to some of its leaves: `nodes` in order, W and A (N, M)."""

    tree: Tree
    nodes: list[int]
    weights: Tensor
    advantages: Tensor

    def tokens(self) -> int:
        return len(self.tree.prompt) + sum(
            len(self.tree.nodes[n].ids) + len(self.tree.nodes[n].observation) for n in self.nodes
        )


def pack(pieces: list[Piece]) -> Batch:
    """One sequence of all the pieces' unique tokens; different trees do not see each other."""
    ids, positions, segment, trained, predict_from, row = [], [], [], [], [], []
    ancestors: list[set[int]] = []  # of each segment: itself and the segments above it
    weights, advantages, sampled = [], [], []
    for piece in pieces:
        last: dict[int, int] = {}  # index of the last token of a node
        number: dict[int, int] = {}  # its segment
        for n in [PROMPT, *piece.nodes]:
            node = None if n == PROMPT else piece.tree.nodes[n]
            own, extra = ([], piece.tree.prompt) if node is None else (node.ids, node.observation)
            start, depth = len(ids), 0 if node is None else positions[last[node.parent]] + 1
            number[n] = len(ancestors)
            ancestors.append({number[n]} | (set() if node is None else ancestors[number[node.parent]]))
            ids += own + extra
            positions += range(depth, depth + len(own) + len(extra))
            segment += [number[n]] * (len(own) + len(extra))
            last[n] = len(ids) - 1
            if node is not None:
                trained += range(start, start + len(own))
                predict_from += [last[node.parent], *range(start, start + len(own) - 1)]
                row += [len(weights)] * len(own)
                weights.append(piece.weights[n])
                advantages.append(piece.advantages[n])
                sampled += node.logprobs
    sees = torch.zeros(len(ancestors), len(ancestors), dtype=torch.bool)
    for s, above in enumerate(ancestors):
        sees[s, list(above)] = True
    position, seg = torch.tensor(positions), torch.tensor(segment)
    mask = sees[seg][:, seg] & (position[:, None] >= position[None, :])
    return Batch(
        torch.tensor(ids), position, mask, torch.tensor(trained), torch.tensor(predict_from),
        torch.stack(weights)[row], torch.stack(advantages)[row], torch.tensor(sampled),
    )  # fmt: skip


def split(piece: Piece, token_budget: int) -> list[Piece]:
    """The tree in as few parts as the budget allows, leaf by leaf; shared prefixes are then computed again.

    A part has weight 0 for the other parts' leaves, so the parts' gradients add up to the tree's.
    """
    parts: list[Piece] = []
    for m, leaf in enumerate(piece.tree.leaves()):
        path = set(piece.tree.path(leaf))
        column = torch.zeros_like(piece.weights)
        column[:, m] = piece.weights[:, m]
        if parts:
            joined = Piece(
                piece.tree, sorted(path | set(parts[-1].nodes)), parts[-1].weights + column, piece.advantages
            )
        if parts and joined.tokens() <= token_budget:
            parts[-1] = joined
        else:
            parts.append(Piece(piece.tree, sorted(path), column, piece.advantages))
    return parts


def make_batches(trees: list[Tree], advantages: Tensor, config: UpdateConfig) -> list[Batch]:
    """The micro-batches of one optimizer step over Q trees with leaf advantages (Q, M).

    Weights are fixed here, before anything is split or left out, so neither changes the gradient.
    """
    descends = [tree.descends() for tree in trees]
    lengths = [torch.tensor([float(len(node.ids)) for node in tree.nodes]) @ D for tree, D in zip(trees, descends)]
    weights = loss_weights(descends, lengths, config.loss_type, config.max_completion_length)
    parts: list[Piece] = []
    for tree, D, W, leaf_advantages in zip(trees, descends, weights, advantages):
        if config.beta or leaf_advantages.any():  # without either, the tree's gradient is zero
            A = attribute(leaf_advantages, D, config.attribution)
            parts += split(Piece(tree, list(range(len(tree.nodes))), W, A), config.token_budget)
    groups: list[list[Piece]] = []
    for part in parts:
        if groups and sum(p.tokens() for p in groups[-1]) + part.tokens() <= config.token_budget:
            groups[-1].append(part)
        else:
            groups.append([part])
    return [pack(group) for group in groups]


def token_logprobs(model, batch: Batch, temperature: float = 1.0, chunk: int = 2048) -> Tensor:
    """log π(token | its path) of the sampled tokens (S,).

    Logits exist only for those tokens, `chunk` at a time, and are computed again in the backward pass.
    """
    hidden = model.get_decoder()(
        input_ids=batch.ids[None],
        attention_mask=batch.mask[None, None],
        position_ids=batch.positions[None],
        use_cache=False,
    ).last_hidden_state[0]
    head, targets = model.get_output_embeddings(), batch.ids[batch.trained]

    def logprobs(rows: Tensor, tokens: Tensor) -> Tensor:
        return -cross_entropy(head(rows).float() / temperature, tokens, reduction="none")

    parts = zip(hidden[batch.predict_from].split(chunk), targets.split(chunk))
    return torch.cat([checkpoint(logprobs, rows, tokens, use_reentrant=False) for rows, tokens in parts])


def policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, batch: Batch, config: UpdateConfig, reference_logprobs: Tensor | None = None
) -> tuple[Tensor, dict[str, float]]:
    """The loss of a micro-batch, and sums over its S tokens that `update` turns into means.

    All log-probs are (S,). The KL is the k3 estimator exp(d) - d - 1 with d = log π_ref - log π.
    """
    ratio = (logprobs - old_logprobs).exp()[:, None]  # (S, 1), the same for every leaf
    clipped = ratio.clamp(1 - config.epsilon, 1 + config.epsilon_high)
    loss = -(batch.weights * torch.min(ratio * batch.advantages, clipped * batch.advantages)).sum()
    sums = {
        "clip_fraction": float(((clipped * batch.advantages < ratio * batch.advantages) & (batch.weights > 0)).any(-1).sum()),
        "kl_sampler": float((batch.sampled_logprobs - old_logprobs).detach().abs().sum()),
    }
    if reference_logprobs is not None:
        d = reference_logprobs - logprobs
        k3 = d.exp() - d - 1
        loss = loss + config.beta * (batch.weights.sum(-1) * k3).sum()
        sums["kl_reference"] = float(k3.detach().sum())
    return loss, sums


def update(model, optimizer, trees: list[Tree], advantages: Tensor, config: UpdateConfig, reference=None) -> dict:
    """One step of training on Q trees with leaf advantages (Q, M); returns metrics.

    `reference` maps a batch to the reference's log-probs (S,), or is None. Old log-probs are this
    forward pass's own, before the first optimizer step; they are stored only where a later step needs them.
    """
    device, steps = model.device, config.num_minibatches
    model.train()
    minibatches = [make_batches(trees[i::steps], advantages[i::steps], config) for i in range(steps)]
    if steps * config.num_iterations > 1:
        with torch.no_grad():
            for batch in (batch for minibatch in minibatches for batch in minibatch):
                batch.old_logprobs = token_logprobs(model, batch.to(device), config.temperature)
    totals = {"tokens": 0, "trained": 0, "grad_norm": 0.0, "loss": 0.0}
    for minibatch in minibatches * config.num_iterations:
        for batch in (batch.to(device) for batch in minibatch):
            logprobs = token_logprobs(model, batch, config.temperature)
            old = logprobs.detach() if batch.old_logprobs is None else batch.old_logprobs
            with torch.no_grad():
                reference_logprobs = reference(batch) if reference else None
            loss, sums = policy_loss(logprobs, old, batch, config, reference_logprobs)
            loss.backward()
            sums |= {"loss": float(loss), "tokens": len(batch.ids), "trained": len(batch.trained)}
            totals = {key: totals.get(key, 0) + sums.get(key, 0) for key in totals | sums}
        totals["grad_norm"] += float(torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    model.eval()
    for key in ("clip_fraction", "kl_sampler", "kl_reference"):
        if key in totals:
            totals[key] /= max(1, totals["trained"])
    totals["grad_norm"] /= steps * config.num_iterations
    return totals
