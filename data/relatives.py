"""Other methods' advantages and losses, written in this project's tensors, so that they can be compared with ARPO's.

Each is the part of the method that fits trees grown here; what is left out stands beside it. Axis letters as in
`rollout.py`: M leaves and N nodes of a tree, S sampled tokens of a micro-batch.
"""

import torch
from torch import Tensor

EPS = 1e-6  # added to every standard deviation; sample standard deviations throughout


def whitened_by_tokens(rewards: Tensor, lengths: Tensor) -> Tensor:
    """REINFORCE++ (arXiv 2501.03262) as its two well-known implementations have it, both (Q, M): mean and variance
    over the batch's tokens, so that a long leaf weighs more."""
    if rewards.max() == rewards.min():
        return torch.zeros_like(rewards)  # exactly
    mean = lambda values: (lengths * values).sum() / lengths.sum()
    return (rewards - mean(rewards)) / (mean((rewards - mean(rewards)) ** 2).sqrt() + EPS)


# ---------------------------------------------------------------------------------- attribution
# From one tree's leaf advantages A (M,), D (N, M) of leaves below nodes (weighted where leaf weights are split) and
# the nodes' parents, -1 at the top, to the advantage in leaf m's term at the tokens of node n (N, M).


def last_fork(descends: Tensor, parents: list[int]) -> Tensor:
    """(N, M): the row of D of the nearest ancestor that more leaves share than the node; at the top, all leaves."""
    above, everyone = [], descends.amax(0)
    for n, parent in enumerate(parents):
        if parent < 0:
            above.append(everyone)
        else:
            same = torch.equal(descends[parent], descends[n])
            above.append(above[parent] if same else descends[parent])
    return torch.stack(above)


def mean_below(advantages: Tensor, below: Tensor) -> Tensor:
    """(N, 1), the value of a node: the mean advantage of the leaves below it."""
    return ((below @ advantages) / below.sum(-1))[:, None]


def standardised_below(advantages: Tensor, below: Tensor) -> Tensor:
    """(N, M): (A - mean) / std over the leaves below; 0 for all others, and where there is but one leaf."""
    member = (below > 0).float()
    count, mean = member.sum(-1, keepdim=True), mean_below(advantages, member)
    variance = (member * (advantages - mean) ** 2).sum(-1, keepdim=True) / (count - 1).clamp(min=1)
    return member * (advantages - mean) / (variance.sqrt() + EPS)


def node_value(A: Tensor, D: Tensor, parents: list[int]) -> Tensor:
    """Value less the value at the last fork above: what the choice made there was worth. After SPO-tree
    (arXiv 2505.23564) and VinePPO (2410.01679), whose values come from rollouts of their own. All turns between two
    forks share one."""
    return (mean_below(A, D) - mean_below(A, last_fork(D, parents))).expand_as(D)


def tree_rl(A: Tensor, D: Tensor, parents: list[int]) -> Tensor:
    """TreeRL (arXiv 2506.11902): (value + value gained since the last fork) / sqrt(leaves below), on
    `--advantage leave_one_out`. Left out: its tree, and the re-centring of steps."""
    value, before = mean_below(A, D), mean_below(A, last_fork(D, parents))
    return ((2 * value - before) / (D > 0).sum(-1, keepdim=True).sqrt()).expand_as(D)


def tree_grpo(A: Tensor, D: Tensor, parents: list[int]) -> Tensor:
    """Tree-GRPO (arXiv 2509.21240): a leaf's advantage in its question, and that among the leaves of its start, added.
    A start without forks adds nothing (there it adds the raw reward). Left out: its tree, which forks anywhere."""
    starts = D[[n for n, parent in enumerate(parents) if parent < 0]]
    return (A + standardised_below(A, starts).sum(0)).expand_as(D)


def gigpo(A: Tensor, D: Tensor, parents: list[int]) -> Tensor:
    """GiGPO (arXiv 2505.10978): right after a fork, a leaf's advantage among those that went through it is added.
    States are the same where the tree says so, not where texts agree. Left out: discounting."""
    above = last_fork(D, parents)
    after_a_fork = torch.tensor([n < 0 or not torch.equal(D[n], D[i]) for i, n in enumerate(parents)])
    return A + after_a_fork[:, None] * (D > 0) * standardised_below(A, above)


ATTRIBUTIONS = {"value": node_value, "tree_rl": tree_rl, "tree_grpo": tree_grpo, "gigpo": gigpo}

# ---------------------------------------------------------------------------------- the clipped loss
# From the ratio r = π / π_old and its clipped value (S, 1), log π (S,), the micro-batch with A and W (S, M), and the
# settings, to the gain (S, M) that is weighted with W and summed.


def aepo(ratio: Tensor, clipped: Tensor, logprobs: Tensor, batch, config) -> Tensor:
    """AEPO (arXiv 2510.14545), its clip: above 1 + ε the ratio keeps the gradient of its bound, so tokens that grew
    likely go on learning. Left out: its rollout, the dual clip, and the entropy's part in the advantage."""
    bound = (1 + config.epsilon_high) * ratio / ratio.detach()
    clipped = torch.where(ratio > 1 + config.epsilon_high, bound, clipped)
    return torch.min(ratio * batch.advantages, clipped * batch.advantages)


def cispo(ratio: Tensor, clipped: Tensor, logprobs: Tensor, batch, config) -> Tensor:
    """CISPO (MiniMax-M1, arXiv 2506.13585): REINFORCE, weighted with the clipped ratio as a constant."""
    return clipped.detach() * batch.advantages * logprobs[:, None]


def gspo(ratio: Tensor, clipped: Tensor, logprobs: Tensor, batch, config) -> Tensor:
    """GSPO (arXiv 2507.18071): one ratio for a whole path, the geometric mean of its tokens' (its own clip range is
    3e-4 and 4e-4, its loss type the sequence mean)."""
    A, W, tree = batch.advantages, batch.weights, batch.tree
    member = (W > 0).to(ratio.dtype)
    sums = lambda values: torch.zeros(int(tree.max()) + 1, W.shape[1]).to(values).index_add(0, tree, values)
    ratio = (sums(member * ratio.log()) / sums(member).clamp(min=1)).exp()[tree]
    return torch.min(ratio * A, ratio.clamp(1 - config.epsilon, 1 + config.epsilon_high) * A)


SURROGATES = {"aepo": aepo, "cispo": cispo, "gspo": gspo}
