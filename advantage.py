"""From rewards to advantages, and from leaves to the tokens they share (the paper's section 3.2).

Everything is an explicit small tensor: rewards and advantages (Q, M); `descends` D (N, M), 1 where leaf
m passes through node n; the loss weights W (N, M). A token has the row of its node. Left out: critics,
discounting, any reward that is not given to a whole leaf, and other methods' attributions (`data/relatives.py`).
"""

import torch
from torch import Tensor

from data.relatives import ATTRIBUTIONS, EPS, whitened_by_tokens


def centred(rewards: Tensor) -> Tensor:
    """r - mean over the last axis, and exactly 0 where all rewards are equal."""
    same = rewards.amax(-1, keepdim=True) == rewards.amin(-1, keepdim=True)
    return (rewards - rewards.mean(-1, keepdim=True)).masked_fill(same, 0)


# From rewards r to leaf advantages; these and L, the policy's tokens on each leaf's path, are (Q, M).
ADVANTAGES = {
    # GRPO, arXiv 2402.03300, section 4.1.2: (r - group mean) / group std. ARPO and DAPO use it too.
    "group": lambda r, L: centred(r) / (r.std(-1, keepdim=True) + EPS),
    # REINFORCE++, arXiv 2501.03262: normalised over all leaves of the batch, without a group baseline.
    "batch": lambda r, L: centred(r.flatten()).view_as(r) / (r.std() + EPS),
    "batch_tokens": whitened_by_tokens,
    # REINFORCE++-baseline, ibid.: the group's mean is the baseline, the batch gives the scale.
    "baseline": lambda r, L: centred(r) / (centred(r).std() + EPS),
    # RLOO, arXiv 2402.14740: r - mean of the group's other leaves.
    "leave_one_out": lambda r, L: centred(r) * (r.shape[-1] / (r.shape[-1] - 1)),
    # Dr. GRPO, arXiv 2503.20783: r - group mean.
    "unscaled": lambda r, L: centred(r),
}


def attribute(advantages: Tensor, descends: Tensor, parents: list[int], attribution: str) -> Tensor:
    """The advantage in leaf m's term at the tokens of node n (N, M), from one tree's leaves (M,).

    "soft": every leaf keeps its own, Â_m; what a shared token learns is decided by all its leaves' terms.
    "hard": at a node shared by d leaves each term has the mean of their d advantages. Others: `data/relatives.py`.
    """
    assert advantages.shape == descends.shape[1:], f"leaves: {advantages.shape} and {descends.shape}"
    if attribution == "soft":
        return advantages.expand_as(descends)
    if attribution == "hard":
        return ((descends @ advantages) / descends.sum(-1))[:, None].expand_as(descends)
    return ATTRIBUTIONS[attribution](advantages, descends, parents)


def loss_weights(descends: list[Tensor], lengths: list[Tensor], loss_type: str, max_length: int) -> list[Tensor]:
    """W of each tree (N, M): what leaf m's term at a token of node n counts in the loss. `lengths` has each tree's
    L_m (M,). Where D holds the shares of split starts instead of ones, the denominators stay: they know no forks."""
    tokens, leaves = float(torch.cat(lengths).sum()), len(torch.cat(lengths))
    if loss_type == "token_mean":  # DAPO, and the released code
        return [D / tokens for D in descends]
    if loss_type == "sequence_mean":  # GRPO, as the paper prints it
        return [D / (leaves * L) for D, L in zip(descends, lengths)]
    return [D / (leaves * max_length) for D in descends]  # "constant": Dr. GRPO
