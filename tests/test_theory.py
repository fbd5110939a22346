"""What a tree of rollouts estimates: `experiments/theory.py` enumerates, and `docs/theory.md` reads its numbers."""

from pathlib import Path

import pytest
import torch

from experiments.theory import (
    CHANCES,
    LOGITS,
    REWARDS,
    RULES,
    SIZES,
    Game,
    Oracle,
    config_of,
    exact,
    expected,
    gradient_of,
    grouped_table,
    measured,
    outcomes,
    random_table,
    ratio,
    smallest_table,
    trees,
)  # fmt: skip

PAGE = (Path(__file__).parent.parent / "docs/theory.md").read_text(encoding="utf-8")


def test_the_exact_gradient():
    assert exact().tolist() == pytest.approx([-0.0189, -0.1000, 0.0614], abs=5e-5)


@pytest.mark.parametrize("chance", ["never", "coin"])
@pytest.mark.parametrize("baseline", ["none", "constant"])
def test_forks_that_know_nothing_are_unbiased(chance, baseline):
    """A chance that depends on nothing, without a group's baseline: exactly the policy gradient."""
    assert ratio(chance, baseline=baseline) == pytest.approx([1, 1, 1], abs=1e-4)


def test_a_groups_mean_scales_by_m_minus_one_over_m():
    assert ratio("never", baseline="group") == pytest.approx([2 / 3] * 3, abs=1e-4)


def test_forks_by_state_tilt_the_prefixes():
    """Prefix tilt: the first turn's component even changes its sign. Guards: calling flat weights unbiased."""
    assert ratio("state") == pytest.approx([-0.775, 0.866, 1.099], abs=2e-3)
    assert ratio("state", baseline="group") == pytest.approx([0.533, 0.577, 0.733], abs=2e-3)


def test_split_weights_are_exact_where_the_decision_looks_at_the_prefix_alone():
    """k = 1: proportional to the policy gradient; k > 1: the look-ahead tilt stays."""
    found = torch.tensor(ratio("state", "split"))
    assert torch.allclose(found, found.mean().expand(3), atol=1e-4) and 0.5 < found.mean() < 1
    ahead = torch.tensor(ratio("token", "split"))
    assert float(ahead.max() - ahead.min()) > 0.02


def test_hard_and_soft_agree_on_policy():
    """The same gradient, in expectation. Guards: two definitions that differ before any clip."""
    for chance in CHANCES:
        assert expected(chance, attribution="hard").tolist() == pytest.approx(expected(chance).tolist(), abs=1e-6)


def test_a_turn_is_one_macro_action():
    """The paper's theorem: a turn's log-probability is the sum of its tokens', so choosing turns has the gradient of
    choosing tokens, on-policy. Here a trajectory is one macro action."""
    total = torch.zeros(3)
    logits = LOGITS.clone().requires_grad_()
    for a, b in ((0, 0), (0, 1), (1, 0), (1, 1)):
        p = logits.sigmoid()
        joint = (p[0] if a else 1 - p[0]) * (p[1 + a] if b else 1 - p[1 + a])
        (slope,) = torch.autograd.grad(joint, logits)
        total += REWARDS[a, b] * slope
    assert torch.allclose(total, exact(), atol=1e-6)


def test_all_outcomes_are_gone_through():
    oracle, seen = Oracle(), []
    for _ in oracle.runs():
        seen.append((oracle.choose(), oracle.choose() if len(seen) < 2 else None))
    assert seen == [(0, 0), (0, 1), (1, None)]
    for chance in CHANCES.values():
        assert sum(p for p, _ in trees(chance)) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("rule", RULES)
def test_which_of_the_projects_trees_are_biased(rule):
    """Trees of `grow_trees`: what looks at the prefix alone is exact with split weights, a blind coin with flat ones.

    Guards: a look ahead for k = 1, a budget or a fork that depends on what it should not, shares that are none.
    """
    unbiased = rule in ("no forks", "flat, blind coin", "split, k = 1", "split, k = 1, after the probe")
    found = [one.bias for one in measured((rule,), ("two results, M = 2",), games=3)[rule, "two results, M = 2"]]
    assert max(found) < 1e-6 if unbiased else max(found) > 0.04


def test_paths_of_the_top_up_may_be_left_out():
    """The exact gradient in their place is what they add. Guards: top-ups that depend on the paths before them."""
    game, config, found = Game(1, 4), config_of("flat, k = 2", 3), []
    for tops in (True, False):
        mean = 0
        for p, tree in outcomes(game, config, tops):
            left_out = sum(node.ids == [8] for node in tree.nodes) / 3
            mean += p * (gradient_of(game, tree, "flat") + left_out * game.exact()[0])
        found.append(mean)
    assert torch.allclose(*found)


def test_the_page_has_the_smallest_games_numbers():
    assert smallest_table() in PAGE


@pytest.mark.slow
def test_the_page_has_the_random_games_numbers():
    assert random_table(measured()) in PAGE and grouped_table() in PAGE and list(SIZES)[-1] in PAGE
