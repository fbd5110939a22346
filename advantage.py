"""From rewards to advantages, and from leaves to the tokens they share (the paper's section 3.2).

Everything is an explicit small tensor: rewards and advantages (Q, M), `descends` D (N, M) with
D[n, m] = 1 where leaf m passes through node n, and the loss weights W (N, M). A token has the row of
its node. Left out: critics, discounting, and any reward that is not given to a whole leaf.
"""

import torch
from torch import Tensor

EPS = 1e-6  # added to every standard deviation; sample standard deviations throughout


def _centred(rewards: Tensor) -> Tensor:
    """r - mean over the group's leaves, exactly 0 in a group whose rewards are all equal (Q, M)."""
    centred = rewards - rewards.mean(-1, keepdim=True)
    return centred.masked_fill(rewards.amax(-1, keepdim=True) == rewards.amin(-1, keepdim=True), 0)


def group_advantages(rewards: Tensor) -> Tensor:
    """GRPO (arXiv 2402.03300, section 4.1.2): (r - group mean) / (group std + ε), (Q, M)."""
    return _centred(rewards) / (rewards.std(-1, keepdim=True) + EPS)


def batch_advantages(rewards: Tensor) -> Tensor:
    """REINFORCE++ (arXiv 2501.03262): normalised over all leaves of the batch, (Q, M)."""
    return _centred(rewards.view(1, -1)).view_as(rewards) / (rewards.std() + EPS)


def baseline_advantages(rewards: Tensor) -> Tensor:
    """REINFORCE++-baseline (ibid.): the group's mean is the baseline, the batch gives the scale, (Q, M)."""
    centred = _centred(rewards)
    return centred / (centred.std() + EPS)


def leave_one_out_advantages(rewards: Tensor) -> Tensor:
    """RLOO (arXiv 2402.14740): r - mean of the group's other leaves, (Q, M)."""
    return _centred(rewards) * (rewards.shape[-1] / (rewards.shape[-1] - 1))


def unscaled_advantages(rewards: Tensor) -> Tensor:
    """Dr. GRPO (arXiv 2503.20783): r - group mean, (Q, M)."""
    return _centred(rewards)


def overlong_penalty(lengths: Tensor, max_length: int, buffer: int) -> Tensor:
    """DAPO's soft overlong punishment (arXiv 2503.14476, eq. 13), 0 to -1, added to the rewards (Q, M)."""
    return ((max_length - buffer - lengths) / buffer).clamp(-1, 0)


def attribute(advantages: Tensor, descends: Tensor, attribution: str) -> Tensor:
    """The advantage that leaf m's term has at node n (N, M), from one tree's leaves (M,).

    "soft": every leaf keeps its own, Â_m; what a shared token learns is decided by its leaves' terms
    together. "hard": a token shared by d leaves has the mean of their advantages in each of its terms.
    """
    if attribution == "soft":
        return advantages.expand_as(descends)
    return ((descends @ advantages) / descends.sum(-1))[:, None].expand_as(descends)


def loss_weights(descends: list[Tensor], lengths: list[Tensor], loss_type: str, max_length: int) -> list[Tensor]:
    """W of each tree, (N, M): what leaf m's term at a token of node n counts in the loss.

    `lengths` holds, for each tree, L_m: the policy's tokens on leaf m's path, (M,). The names are
    TRL's. "dapo": mean over all tokens of all leaves, D / Σ L. "grpo": mean over leaves of the mean
    over their tokens, D / (leaves · L_m). "dr_grpo": D / (leaves · max_length). The denominators cover
    all the trees given, whatever is split or skipped later.
    """
    tokens, leaves = sum(float(L.sum()) for L in lengths), sum(len(L) for L in lengths)
    denominators = {"dapo": lambda L: tokens, "grpo": lambda L: leaves * L, "dr_grpo": lambda L: leaves * max_length}
    return [D / denominators[loss_type](L) for D, L in zip(descends, lengths)]
