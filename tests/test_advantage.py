"""Advantages and attribution, each against numbers worked by hand."""

import pytest
import torch

from advantage import ADVANTAGES, attribute, loss_weights

REWARDS = torch.tensor([[1.0, 0.0, 0.0, 1.0], [1.0, -1.0, 1.0, 1.0]])

# Two trees of four leaves would do; this one has nodes
#   0 (leaves 0, 1, 2), 1 (leaf 0), 2 (leaves 1, 2), 3 (leaf 1), 4 (leaf 2), 5 (leaf 3)
DESCENDS = torch.tensor([[1.0, 1, 1, 0], [1, 0, 0, 0], [0, 1, 1, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
PARENTS = [-1, 0, 0, 2, 2, -1]


@pytest.mark.parametrize(
    "kind, expected",
    [
        # group means 0.5 and 0.5; sample stds sqrt(1/3) and 1
        ("group", [[0.8660, -0.8660, -0.8660, 0.8660], [0.5, -1.5, 0.5, 0.5]]),
        # one mean, 0.5; sample std over all eight, sqrt(4 / 7)
        ("batch", [[0.6614, -0.6614, -0.6614, 0.6614], [0.6614, -1.9843, 0.6614, 0.6614]]),
        # group means; sample std of the eight centred rewards, sqrt(4 / 7)
        ("baseline", [[0.6614, -0.6614, -0.6614, 0.6614], [0.6614, -1.9843, 0.6614, 0.6614]]),
        # minus the mean of the three others
        ("leave_one_out", [[0.6667, -0.6667, -0.6667, 0.6667], [0.6667, -2.0, 0.6667, 0.6667]]),
        ("unscaled", [[0.5, -0.5, -0.5, 0.5], [0.5, -1.5, 0.5, 0.5]]),
    ],
)
def test_advantages_worked_by_hand(kind, expected):
    assert torch.allclose(ADVANTAGES[kind](REWARDS, None), torch.tensor(expected), atol=2e-4)


def test_batch_and_baseline_part_where_group_means_differ():
    rewards = torch.tensor([[1.0, 1.0, 0.0, 1.0], [0.0, 0.0, 0.0, 1.0]])
    # all: mean 0.5, std sqrt(2 / 7); centred: ±0.25 and ±0.75 with std sqrt(1.5 / 7)
    assert torch.allclose(ADVANTAGES["batch"](rewards, None)[0, 0], torch.tensor(0.5 / (2 / 7) ** 0.5), atol=1e-4)
    assert torch.allclose(ADVANTAGES["baseline"](rewards, None)[0, 0], torch.tensor(0.25 / (1.5 / 7) ** 0.5), atol=1e-4)


@pytest.mark.parametrize("kind", ["group", "baseline", "leave_one_out", "unscaled"])
def test_each_trees_advantages_sum_to_zero(kind):
    """Guards: a mean over all questions, by which every leaf of an easy question would look good."""
    torch.manual_seed(0)
    advantages = ADVANTAGES[kind](torch.rand(5, 8) + torch.arange(5.0)[:, None], None)
    assert float(advantages.sum(-1).abs().max()) < 1e-5 and float(advantages.abs().max()) > 0.1


@pytest.mark.parametrize("kind", ["group", "leave_one_out", "unscaled"])
def test_other_questions_change_nothing(kind):
    """Guards: a scale or mean taken across questions, where the method takes it from each question alone."""
    other = torch.stack([REWARDS[0], 7 * REWARDS[1] - 3])
    assert torch.equal(ADVANTAGES[kind](other, None)[0], ADVANTAGES[kind](REWARDS, None)[0])


@pytest.mark.parametrize("kind", ["group", "baseline", "leave_one_out", "unscaled"])
def test_a_group_without_variance_gives_exact_zeros(kind):
    """Guards: (r - mean) / (std + ε) where rounding makes the mean of equal rewards differ from them."""
    rewards = torch.tensor([[0.1] * 7, [1.1] * 7, [-1.0] * 7, [0.3, 0, 0, 0, 0, 0, 0]])
    assert torch.all(ADVANTAGES[kind](rewards, None)[:3] == 0)
    assert torch.any(ADVANTAGES[kind](rewards, None)[3] != 0)


def test_attribution_worked_by_hand():
    advantages = torch.tensor([3.0, 0.0, -1.5, 1.0])
    soft = attribute(advantages, DESCENDS, PARENTS, "soft")
    assert torch.equal(soft, advantages.expand(6, 4))
    hard = attribute(advantages, DESCENDS, PARENTS, "hard")
    assert hard[:, 0].tolist() == [0.5, 3.0, -0.75, 0.0, -1.5, 1.0]
    assert torch.equal(hard, hard[:, :1].expand(6, 4))


def test_loss_weights_worked_by_hand():
    # node lengths 4, 2, 3, 1, 5, 6 -> leaf lengths 6, 8, 12, 6
    lengths = torch.tensor([4.0, 2, 3, 1, 5, 6]) @ DESCENDS
    assert lengths.tolist() == [6, 8, 12, 6]
    other = torch.ones(1, 4)  # a second tree: one node of 2 tokens that all its leaves share
    other_lengths = torch.full((4,), 2.0)
    both = [DESCENDS, other], [lengths, other_lengths]
    token, token_other = loss_weights(*both, "token_mean", 100)
    assert token[0].tolist() == pytest.approx([1 / 40, 1 / 40, 1 / 40, 0]) and token_other[0, 0] == pytest.approx(
        1 / 40
    )
    sequence, sequence_other = loss_weights(*both, "sequence_mean", 100)
    assert sequence[0].tolist() == pytest.approx([1 / 48, 1 / 64, 1 / 96, 0])
    assert sequence_other[0, 0] == pytest.approx(1 / 16)
    constant, _ = loss_weights(*both, "constant", 100)
    assert constant[0].tolist() == pytest.approx([1 / 800] * 3 + [0])
    # both means weigh every tree's tokens to one in all
    nodes = torch.tensor([4.0, 2, 3, 1, 5, 6])
    for first, second in ((token, token_other), (sequence, sequence_other)):
        assert float((nodes @ first).sum() + 2 * second.sum()) == pytest.approx(1)
