"""The update: pack trees into tensors, take log-probabilities, form the loss, step.

A tree is packed into one sequence of its unique tokens: positions are depths, and a token attends to
its ancestors alone, so one forward pass serves all leaves and a shared token is computed once. With
r_t = π_θ / π_old, and the advantages A and weights W of `advantage.py`, the loss is

    - Σ_t Σ_m W[t, m] · min(r_t A[t, m], clip(r_t, 1 - ε, 1 + ε_high) A[t, m])  +  β_KL Σ_t Σ_m W[t, m] KL_t

over the tokens t that the policy sampled; prompt and tool-result tokens have no term. S counts the
sampled tokens of a batch, T all of them. Left out: several GPUs, output heads that rescale logits.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from advantage import ADVANTAGES, attribute, loss_weights
from rollout import PROMPT, Node, Tree


@dataclass(frozen=True)
class UpdateConfig:
    advantage: Literal[tuple(ADVANTAGES)] = "group"  # how rewards become advantages
    attribution: Literal["soft", "hard"] = "soft"  # of advantages to shared tokens
    loss_type: Literal["dapo", "grpo", "dr_grpo"] = "dapo"  # token mean, sequence mean, constant length
    epsilon: float = 0.2  # clip range below 1
    epsilon_high: float = 0.2  # clip range above 1
    beta: float = 0.0  # coefficient of the KL to the reference
    num_iterations: int = 1  # passes over a step's trees
    num_minibatches: int = 1  # optimizer steps in a pass
    token_budget: int = 8192  # unique tokens of a forward pass; a larger tree is split
    max_grad_norm: float = 1.0  # gradients are clipped to it
    temperature: float = 1.0  # the sampler's
    max_completion_length: int = 512  # dr_grpo's constant


@dataclass
class Batch:
    """Packed trees."""

    ids: Tensor  # (T,)
    positions: Tensor  # (T,) depth in the tree
    mask: Tensor  # (T, T) bool: row attends to column
    trained: Tensor  # (S,) index of each sampled token
    predict_from: Tensor  # (S,) index of the token before it on its path, whose hidden state predicts it
    weights: Tensor  # W (S, M)
    advantages: Tensor  # A (S, M)
    sampler_logprobs: Tensor  # (S,) only to be compared


# A tree with its W and A (N, M), or the part of it that leads to the leaves whose weights are not 0.
Piece = tuple[Tree, Tensor, Tensor]


def kept(weights: Tensor) -> list[int]:
    return weights.any(-1).nonzero().flatten().tolist()


def tokens(tree: Tree, weights: Tensor) -> int:
    nodes = [tree.nodes[n] for n in kept(weights)]
    return len(tree.prompt) + sum(len(node.ids) + len(node.observation) for node in nodes)


def pack(pieces: list[Piece], device="cpu") -> Batch:
    """One sequence of all unique tokens; different trees do not see each other."""
    ids, positions, segment, trained, predict_from, weights, advantages, sampled = ([] for _ in range(8))
    lineage: list[list[int]] = []  # of each segment, i.e. prompt or node: its ancestors and itself
    for tree, W, A in pieces:
        last, number = {}, {}  # of each node: the index of its last token, its segment
        root = Node([], [], [], parent=PROMPT - 1, observation=tree.prompt)
        for n, node in [(PROMPT, root)] + [(n, tree.nodes[n]) for n in kept(W)]:
            above, start, own = last.get(node.parent), len(ids), len(node.ids)
            depth = 0 if above is None else positions[above] + 1
            number[n] = len(lineage)
            lineage.append([*([] if above is None else lineage[number[node.parent]]), number[n]])
            ids += node.ids + node.observation
            positions += range(depth, depth + len(ids) - start)
            segment += [number[n]] * (len(ids) - start)
            last[n] = len(ids) - 1
            trained += range(start, start + own)
            predict_from += [above, *range(start, start + own - 1)][:own]
            weights += [W[n]] * own
            advantages += [A[n]] * own
            sampled += node.logprobs
    sees = torch.zeros(len(lineage), len(lineage), dtype=torch.bool)
    for s, above in enumerate(lineage):
        sees[s, above] = True
    position, segment = torch.tensor(positions), torch.tensor(segment)
    mask = sees[segment][:, segment] & (position[:, None] >= position)
    tensors = map(torch.tensor, (ids, positions, trained, predict_from, sampled))
    ids, positions, trained, predict_from, sampled = tensors
    fields = (ids, positions, mask, trained, predict_from, torch.stack(weights), torch.stack(advantages), sampled)
    return Batch(*(tensor.to(device) for tensor in fields))


def split(piece: Piece, token_budget: int) -> list[Piece]:
    """The tree in parts within the budget, leaf by leaf; shared prefixes are computed once in each part.

    A part has weight 0 for the other parts' leaves, so that the parts' gradients add up to the tree's.
    """
    tree, W, A = piece
    parts: list[Piece] = []
    for m in range(W.shape[1]):
        column = torch.zeros_like(W)
        column[:, m] = W[:, m]
        if parts and tokens(tree, parts[-1][1] + column) <= token_budget:
            parts[-1] = (tree, parts[-1][1] + column, A)
        else:
            parts.append((tree, column, A))
    return parts


def make_batches(trees: list[Tree], advantages: Tensor, config: UpdateConfig, device="cpu") -> list[Batch]:
    """The micro-batches of one optimizer step over trees with leaf advantages (Q, M).

    Weights are fixed before anything is split or left out, so neither changes the gradient.
    """
    descends = [tree.descends() for tree in trees]
    lengths = [torch.tensor([float(len(node.ids)) for node in tree.nodes]) @ D for tree, D in zip(trees, descends)]
    weights = loss_weights(descends, lengths, config.loss_type, config.max_completion_length)
    groups: list[list[Piece]] = []
    for tree, D, W, leaf_advantages in zip(trees, descends, weights, advantages):
        if not (config.beta or leaf_advantages.any()):
            continue  # the tree's gradient is zero
        for part in split((tree, W, attribute(leaf_advantages, D, config.attribution)), config.token_budget):
            if groups and sum(tokens(t, w) for t, w, _ in [*groups[-1], part]) <= config.token_budget:
                groups[-1].append(part)
            else:
                groups.append([part])
    return [pack(group, device) for group in groups]


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

    def logprobs(rows: Tensor, targets: Tensor) -> Tensor:
        logits = model.get_output_embeddings()(rows).float() / temperature
        return -cross_entropy(logits, targets, reduction="none")

    parts = zip(hidden[batch.predict_from].split(chunk), batch.ids[batch.trained].split(chunk))
    return torch.cat([checkpoint(logprobs, rows, targets, use_reentrant=False) for rows, targets in parts])


def k3(target: Tensor, own: Tensor) -> Tensor:
    """Estimates KL(own || target) at tokens drawn from `own`: exp(d) - d - 1, d = target - own (S,)."""
    d = target - own
    return d.exp() - d - 1


def policy_loss(logprobs: Tensor, old: Tensor, batch: Batch, config: UpdateConfig, reference: Tensor | None = None):
    """The loss of a micro-batch and sums over its tokens for the metrics; all log-probs are (S,)."""
    A, W = batch.advantages, batch.weights
    ratio = (logprobs - old).exp()[:, None]  # (S, 1), the same for every leaf
    clipped = ratio.clamp(1 - config.epsilon, 1 + config.epsilon_high)
    loss = -(W * torch.min(ratio * A, clipped * A)).sum()
    sums = {
        "clip_fraction": float(((clipped * A < ratio * A) & (W > 0)).any(-1).sum()),
        "kl_sampler": float(k3(old, batch.sampler_logprobs).sum()),
    }
    if reference is not None:
        kl = k3(reference, logprobs)
        loss = loss + config.beta * (W.sum(-1) * kl).sum()
        sums["kl_reference"] = float(kl.detach().sum())
    return loss, sums


def update(model, optimizer, trees: list[Tree], advantages: Tensor, config: UpdateConfig, reference=None) -> dict:
    """One step of training on trees with leaf advantages (Q, M); returns metrics.

    `reference` maps a batch to the reference's log-probs (S,), or is None. π_old is this forward pass's
    own policy before the first optimizer step; it is computed ahead only where a later step needs it.
    """
    model.train()
    parts, passes = config.num_minibatches, []
    for i in range(parts):
        batches = make_batches(trees[i::parts], advantages[i::parts], config, model.device)
        passes.append([(batch, None) for batch in batches])
    if parts * config.num_iterations > 1:
        with torch.no_grad():
            passes = [[(b, token_logprobs(model, b, config.temperature)) for b, _ in batches] for batches in passes]
    totals = dict.fromkeys(("train_tokens", "trained", "loss", "grad_norm"), 0.0)
    for batches in passes * config.num_iterations:
        for batch, old in batches:
            logprobs = token_logprobs(model, batch, config.temperature)
            old = logprobs.detach() if old is None else old
            with torch.no_grad():
                reference_logprobs = reference(batch) if reference else None
            loss, sums = policy_loss(logprobs, old, batch, config, reference_logprobs)
            loss.backward()
            sums |= {"train_tokens": len(batch.ids), "trained": len(batch.trained), "loss": float(loss.detach())}
            totals = {key: totals.get(key, 0.0) + sums.get(key, 0.0) for key in totals | sums}
        totals["grad_norm"] += float(torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    model.eval()
    for key in {"clip_fraction", "kl_sampler", "kl_reference"} & set(totals):
        totals[key] /= max(1.0, totals["trained"])
    totals["grad_norm"] /= len(passes) * config.num_iterations
    return totals
