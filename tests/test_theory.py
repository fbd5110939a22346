"""What a tree of rollouts estimates: a small game, every outcome enumerated, against the exact policy gradient.

A game of two turns. The first is a in {0, 1}, with one logit; then comes a tool result; the second is b in {0, 1}, with
a logit that depends on a. N = 1, M = 3, at most one fork at the result, the rest of the budget from the prompt. Trees,
shares, weights and attribution are the project's own; `docs/theory.md` reads these numbers.
"""

from itertools import product
from pathlib import Path

import pytest
import torch

from advantage import attribute, centred, loss_weights
from rollout import PROMPT, Node, Tree

LOGITS = torch.tensor([0.3, -0.5, 0.8])  # of a = 1; of b = 1 after a = 0; of b = 1 after a = 1
REWARDS = torch.tensor([[1.0, 0.0], [0.2, 0.7]])
P = LOGITS.sigmoid()
M = 3
# The chance of a fork after (a, b): none; the same everywhere; by the state (k = 1); by the token behind it (k > 1).
CHANCES = {
    "never": lambda a, b: 0.0,
    "coin": lambda a, b: 0.5,
    "state": lambda a, b: (0.2, 0.9)[a],
    "token": lambda a, b: (0.2, 0.9)[b],
}


def first(a):
    return float(P[0] if a else 1 - P[0])


def second(a, b):
    return float(P[1 + a] if b else 1 - P[1 + a])


def score(place, chosen):
    """The gradient of the log-probability of a choice in the three logits."""
    own = torch.zeros(3)
    own[place] = chosen - P[place]
    return own


def exact():
    """The policy gradient: E[reward times score]."""
    total = torch.zeros(3)
    for a, b in product((0, 1), repeat=2):
        total += first(a) * second(a, b) * REWARDS[a, b] * (score(0, a) + score(1 + a, b))
    return total


def trees(chance):
    """All trees with their probabilities: the first path, its sibling or another start, and a last start."""
    for a, b, c, d, e, f in product((0, 1), repeat=6):
        path = first(a) * second(a, b)
        last = first(e) * second(e, f)
        forked = chance(a, b)
        if c == a and forked:  # a sibling repeats the first turn; count it once
            nodes = [Node([a], parent=PROMPT), Node([b], parent=0), Node([d], parent=0)]
            yield path * forked * second(a, d) * last, start(nodes, e, f)
        if forked < 1:
            nodes = start([Node([a], parent=PROMPT), Node([b], parent=0)], c, d).nodes
            yield path * (1 - forked) * first(c) * second(c, d) * last, start(nodes, e, f)


def start(nodes, a, b):
    n = len(nodes)
    tree = Tree([9], [*nodes, Node([a], parent=PROMPT), Node([b], parent=n)])
    for node in tree.nodes:
        node.stopped = "call" if node.parent == PROMPT else "end"
    return tree


def expected(chance, leaf_weights="flat", baseline="none", attribution="soft"):
    """The expected gradient of a tree's loss, on-policy, in the three logits; the denominator is a constant."""
    total, mass = torch.zeros(3), 0.0
    for probability, tree in trees(CHANCES[chance]):
        rewards = torch.stack([REWARDS[tree.nodes[n].ids[0], tree.nodes[leaf].ids[0]] for n, leaf in pairs(tree)])
        D, parents = tree.descends(), [node.parent for node in tree.nodes]
        D = D * (tree.shares() if leaf_weights == "split" else 1)
        (W,) = loss_weights([D], [tree.lengths()], "constant", 1)
        leaf_advantages = {"none": rewards, "constant": rewards - 0.5, "group": centred(rewards)}[baseline]
        A = attribute(leaf_advantages, D, parents, attribution)
        for n, node in enumerate(tree.nodes):
            place = 0 if node.parent == PROMPT else 1 + tree.nodes[node.parent].ids[0]
            total += probability * (W[n] * A[n]).sum() * score(place, node.ids[0])
        mass += probability
    assert mass == pytest.approx(1, abs=1e-6)
    return total


def pairs(tree):
    return [(tree.nodes[leaf].parent, leaf) for leaf in tree.leaves()]


def ratio(*args, **kwargs):
    return (expected(*args, **kwargs) / exact()).tolist()


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
    for a, b in product((0, 1), repeat=2):
        p = logits.sigmoid()
        joint = (p[0] if a else 1 - p[0]) * (p[1 + a] if b else 1 - p[1 + a])
        (slope,) = torch.autograd.grad(joint, logits)
        total += REWARDS[a, b] * slope
    assert torch.allclose(total, exact(), atol=1e-6)


def table():
    """Expected gradient over the exact one, in the three logits, as the page prints it."""
    columns = {
        "flat, no baseline": {},
        "flat, constant baseline": {"baseline": "constant"},
        "flat, group mean": {"baseline": "group"},
        "split, no baseline": {"leaf_weights": "split"},
    }
    lines = ["| a fork's chance | " + " | ".join(columns) + " |", "|---" * 5 + "|"]
    for chance in CHANCES:
        cells = [", ".join(f"{value:.3f}" for value in ratio(chance, **how)) for how in columns.values()]
        lines.append(f"| {chance} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def test_the_page_has_these_numbers():
    assert table() in (Path(__file__).parent.parent / "docs/theory.md").read_text()
