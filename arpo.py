"""The update: pack trees into tensors, take log-probabilities, form the loss, step.

A tree is packed into one sequence of its unique tokens: positions are depths, and a token attends to its ancestors
alone, so one forward pass serves all leaves and a shared token is computed once. With r_t = π_θ / π_old, and the
advantages A and weights W of `advantage.py`, the loss is

    - Σ_t Σ_m W[t, m] · min(r_t A[t, m], clip(r_t, 1 - ε, 1 + ε_high) A[t, m])  +  β_KL Σ_t Σ_m W[t, m] KL_t

over the S tokens t that the policy sampled; the other tokens of the batch's T have no term. Left out:
the optimizer's side of a step (`train.py:Stepper`), output heads that rescale logits.
"""

from collections import Counter
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
    temperature: float = 1.0  # the sampler's
    max_completion_length: int = 512  # dr_grpo's constant


@dataclass
class Batch:
    """Packed trees."""

    ids: Tensor  # (T,)
    positions: Tensor  # (T,) depth in the tree
    mask: Tensor  # (T, T) bool: row attends to column
    predict_from: Tensor  # (S,) index of the token before each sampled one on its path
    targets: Tensor  # (S,) the sampled tokens, each predicted from the hidden state there
    weights: Tensor  # W (S, M)
    advantages: Tensor  # A (S, M)
    sampler_logprobs: Tensor  # (S,) only to be compared


Piece = tuple[Tree, Tensor, Tensor]  # a tree with its W and A (N, M), less the leaves whose W is 0


def kept(weights: Tensor) -> list[int]:
    return weights.any(-1).nonzero().flatten().tolist()


def tokens(tree: Tree, weights: Tensor) -> int:
    nodes = [tree.nodes[n] for n in kept(weights)]
    return len(tree.prompt) + sum(len(node.ids) + len(node.observation) for node in nodes)


def pack(pieces: list[Piece], device="cpu") -> Batch:
    """One sequence of all unique tokens; different trees do not see each other."""
    ids, positions, segment, predict_from, targets, weights, advantages, sampled = ([] for _ in range(8))
    lineage: list[list[int]] = []  # of each segment, i.e. prompt or node: its ancestors and itself
    for tree, W, A in pieces:
        last: dict[int, int] = {}  # of each node: the index of its last token
        root = Node([], [], [], parent=PROMPT - 1, observation=tree.prompt)
        for n, node in [(PROMPT, root)] + [(n, tree.nodes[n]) for n in kept(W)]:
            above, start, own = last.get(node.parent), len(ids), len(node.ids)
            depth = 0 if above is None else positions[above] + 1
            lineage.append([*([] if above is None else lineage[segment[above]]), len(lineage)])
            ids += node.ids + node.observation
            positions += range(depth, depth + len(ids) - start)
            segment += [len(lineage) - 1] * (len(ids) - start)
            last[n] = len(ids) - 1
            predict_from += [above, *range(start, start + own - 1)][:own]
            targets += node.ids
            weights += [W[n]] * own
            advantages += [A[n]] * own
            sampled += node.logprobs
    sees = torch.tensor([[s in ancestors for s in range(len(lineage))] for ancestors in map(set, lineage)])
    depth, segment = torch.tensor(positions), torch.tensor(segment)
    mask = sees[segment][:, segment] & (depth[:, None] >= depth)
    fields = [torch.tensor(ids), depth, mask, torch.tensor(predict_from), torch.tensor(targets)]
    fields += [torch.stack(weights), torch.stack(advantages), torch.tensor(sampled)]
    return Batch(*(tensor.to(device) for tensor in fields))


def split(piece: Piece, token_budget: int) -> list[Piece]:
    """The tree in parts within the budget, leaf by leaf; a shared prefix is computed once in each. A part has weight 0
    for the other parts' leaves, so that the parts' gradients add up to the tree's."""
    tree, W, A = piece
    parts: list[Piece] = []
    for column in (W * leaf for leaf in torch.eye(W.shape[1])):
        if parts and tokens(tree, parts[-1][1] + column) <= token_budget:
            parts[-1] = (tree, parts[-1][1] + column, A)
        else:
            parts.append((tree, column, A))
    return parts


def make_batches(trees: list[Tree], advantages: Tensor, config: UpdateConfig, device="cpu") -> list[Batch]:
    """The micro-batches of an optimizer step over trees with leaf advantages (Q, M). Weights are fixed before anything
    is split or left out, so neither changes the gradient."""
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
    inputs = dict(input_ids=batch.ids[None], attention_mask=batch.mask[None, None], position_ids=batch.positions[None])
    hidden = model.get_decoder()(**inputs, use_cache=False).last_hidden_state[0]

    def logprobs(rows: Tensor, targets: Tensor) -> Tensor:
        logits = model.get_output_embeddings()(rows).float() / temperature
        return -cross_entropy(logits, targets, reduction="none")

    parts = zip(hidden[batch.predict_from].split(chunk), batch.targets.split(chunk))
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
    bites = ((clipped * A < ratio * A) & (W > 0)).any(-1)
    sums = {"clip_fraction": float(bites.sum()), "kl_sampler": float(k3(old, batch.sampler_logprobs).sum())}
    if reference is not None:
        kl = k3(reference, logprobs)
        loss = loss + config.beta * (W.sum(-1) * kl).sum()
        sums["kl_reference"] = float(kl.detach().sum())
    return loss, sums


def update(model, step, trees: list[Tree], advantages: Tensor, config: UpdateConfig, reference=None, share=slice(None)):
    """Trains on trees with leaf advantages (Q, M); returns metrics.

    `step()` ends a minibatch, whose gradient has then been summed, and returns metrics to be added up. `reference`
    maps a batch to the reference's log-probs (S,), or is None. `share` picks the micro-batches of this process. π_old
    is this forward pass's own policy before the first optimizer step, computed ahead only where a later step needs it.
    """
    model.train()
    parts = config.num_minibatches
    passes = [make_batches(trees[i::parts], advantages[i::parts], config, model.device)[share] for i in range(parts)]
    stored: dict[int, Tensor] = {}  # log π_old of a batch, by its id
    if parts * config.num_iterations > 1:
        with torch.no_grad():
            stored = {id(b): token_logprobs(model, b, config.temperature) for batches in passes for b in batches}
    totals = Counter(train_tokens=0, trained=0, loss=0.0, clip_fraction=0.0, kl_sampler=0.0)
    for batches in passes * config.num_iterations:
        for batch in batches:
            logprobs = token_logprobs(model, batch, config.temperature)
            old = stored.get(id(batch), logprobs.detach())
            loss, sums = policy_loss(logprobs, old, batch, config, reference and reference(batch).detach())
            (loss * step.scale).backward()
            totals.update(sums, train_tokens=len(batch.ids), trained=len(batch.targets), loss=float(loss.detach()))
        totals.update(step())
    model.eval()
    for key in {"clip_fraction", "kl_sampler", "kl_reference"} & set(totals):
        totals[key] /= max(1.0, totals["trained"])
    totals["grad_norm"] /= parts * config.num_iterations
    return dict(totals)
