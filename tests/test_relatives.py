"""Branch rules beyond the paper's and other methods' definitions, each against numbers worked by hand."""

from types import SimpleNamespace

import pytest
import torch
from conftest import EchoTools, ScriptedSampler, grow

from advantage import ADVANTAGES, attribute, loss_weights
from data.relatives import SURROGATES
from rollout import PROMPT, Sampler

SEARCH, ANSWER = "<think>a</think><search>{}</search>", "<think>a</think><answer>7</answer><|end|>"
# Nodes 0 (leaves 0, 1, 2), 1 (leaf 0), 2 (leaves 1, 2), 3 (leaf 1), 4 (leaf 2), 5 (leaf 3), 6 (leaf 0, after 1)
D = torch.tensor([[1.0, 1, 1, 0], [1, 0, 0, 0], [0, 1, 1, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [1, 0, 0, 0]])
PARENTS = [-1, 0, 0, 2, 2, -1, 1]
A = torch.tensor([3.0, 0.0, -1.5, 0.5])  # mean 0.5; below node 0: 0.5; below node 2: -0.75


def test_node_values_are_differences_between_forks():
    """Guards: a turn behind a turn without a fork gets nothing, although the choice above it is what led there."""
    found = attribute(A, D, PARENTS, "value")
    assert found[:, 0].tolist() == pytest.approx([0.0, 2.5, -1.25, 0.75, -0.75, 0.0, 2.5])


def test_tree_rl_adds_the_value_and_divides_by_the_root_of_the_leaves():
    found = attribute(A, D, PARENTS, "tree_rl")[:, 0]
    expected = [0.5 / 3**0.5, 5.5, -2.0 / 2**0.5, 0.75, -2.25, 0.5, 5.5]
    assert found.tolist() == pytest.approx(expected)


def test_tree_grpo_adds_what_a_leaf_is_among_those_of_its_start():
    std = float(torch.tensor([3.0, 0.0, -1.5]).std())
    expected = [3 + 2.5 / std, 0 - 0.5 / std, -1.5 - 2.0 / std, 0.5]  # the last stands alone
    assert attribute(A, D, PARENTS, "tree_grpo")[3].tolist() == pytest.approx(expected, abs=1e-4)


def test_gigpo_compares_after_a_fork_and_nowhere_else():
    found, std = attribute(A, D, PARENTS, "gigpo"), torch.tensor([3.0, 0.0, -1.5]).std()
    assert found[1, 0] == pytest.approx(float(3 + 2.5 / std), abs=1e-4)
    assert found[6, 0] == 3.0  # the turn after it: its parent has no fork
    pair = torch.tensor([0.0, -1.5])
    assert found[3, 1] == pytest.approx(float((pair[0] - pair.mean()) / pair.std()), abs=1e-4)


def test_length_weighted_reinforce():
    """Guards: a mean over leaves where the well-known implementations take one over tokens."""
    rewards, lengths = torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 1.0]])
    mean, std = 0.75, (3 / 4 * 0.25**2 + 1 / 4 * 0.75**2) ** 0.5
    found = ADVANTAGES["batch_tokens"](rewards, lengths)[0].tolist()
    assert found == pytest.approx([0.25 / std, -mean / std], abs=1e-4)
    assert not ADVANTAGES["batch_tokens"](torch.full((2, 3), 0.1), torch.rand(2, 3)).any()


CONFIG = SimpleNamespace(epsilon=0.2, epsilon_high=0.28)


def gain_and_slopes(name, ratios, advantages, weights=None, tree=None):
    """The gains (S, M) and the slope of their sum in each log-prob (S,)."""
    old = torch.zeros(len(ratios))
    logprobs = torch.tensor(ratios).log().requires_grad_()
    ratio = (logprobs - old).exp()[:, None]
    A = torch.tensor(advantages)
    W = torch.ones_like(A) if weights is None else torch.tensor(weights)
    batch = SimpleNamespace(advantages=A, weights=W, tree=torch.zeros(len(A), dtype=int) if tree is None else tree)
    gain = SURROGATES[name](ratio, ratio.clamp(0.8, 1.28), logprobs, batch, CONFIG)
    (gain * (W > 0)).sum().backward()
    return gain.detach(), logprobs.grad


def test_aepo_keeps_the_gradient_of_its_bound():
    """Above 1 + ε a good token goes on learning with 1 + ε, where PPO's clip stops; a bad one below stops as there."""
    _, slopes = gain_and_slopes("aepo", [2.0, 1.0, 0.5, 2.0], [[1.0], [1.0], [-1.0], [-1.0]])
    assert slopes.tolist() == pytest.approx([1.28, 1.0, 0.0, -2.0])


def test_cispo_weighs_with_the_clipped_ratio():
    _, slopes = gain_and_slopes("cispo", [2.0, 1.0, 0.5], [[1.0], [-1.0], [1.0]])
    assert slopes.tolist() == pytest.approx([1.28, -1.0, 0.8])


def test_gspo_has_one_ratio_for_a_path():
    """Two leaves share token 0; the tokens of another tree do not count. Guards: ratios across trees or leaves."""
    ratios, tree = [1.1, 1.2, 0.9, 5.0], torch.tensor([0, 0, 0, 1])
    weights = [[1.0, 1.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]
    gain, slopes = gain_and_slopes("gspo", ratios, [[1.0, 1.0]] * 3 + [[0.0, 0.0]], weights, tree)
    first, second = (1.1 * 1.2) ** 0.5, (1.1 * 0.9) ** 0.5
    assert gain[0].tolist() == pytest.approx([first, second])
    # each path's gain is summed over its two tokens, so a token's slope is its path's ratio
    assert slopes.tolist() == pytest.approx([first + second, first, second, 0.0])


def rides(key, calls):
    """Two paths of three calls each; entropies such that the second result of the second path is the best place."""
    entropy = {"0": [1.0, 1.2, 1.5, 0.2], "1": [1.0, 1.1, 4.0, 0.3]}[key.split("/")[1]][min(calls, 3)]
    return (SEARCH.format(calls) if calls < 3 else ANSWER), entropy


TWO = dict(num_generations=5, num_initial=2, fan_out=3, base_prob=0.5, entropy_weight=0.2, max_completion_length=900)
ROOM = dict(max_tool_calls=5, max_result_tokens=50, branch_rule="best", threshold=0.5)


@pytest.mark.parametrize(
    "score, path, result", [("entropy", "1", 2), ("lowest", "1", 3), ("tail", None, 3), ("lot", None, None)]
)
def test_best_forks_at_the_best_place_of_the_whole_tree(tokenizer, score, path, result):
    """Guards: a budget that is spent wave by wave, at the first results, whatever comes later."""
    (tree,) = grow(ScriptedSampler(tokenizer, rides), ["x"], **TWO, **ROOM, score=score)
    assert len(tree.leaves()) == 5 and sum(node.parent == PROMPT for node in tree.nodes) == 2
    (place,) = [n for n, node in enumerate(tree.nodes) if node.decision and node.decision.new_paths]
    depth = len(tree.path(place))
    assert tree.nodes[place].decision.new_paths == 3 and (result is None or depth == result)
    if score == "entropy":
        assert tree.nodes[place].decision.entropy == 4.0


def test_best_feeds_one_token_a_fork(tokenizer, model):
    """The caches of ended rows are kept until the forks are made. Guards: prefixes that are fed a second time."""
    for seed in range(3):
        sampler = Sampler(model, tokenizer)
        trees = grow(sampler, keys=[f"{seed}a", f"{seed}b"], branch_rule="best", num_initial=2, num_generations=8)
        unique = sum(len(tree.prompt) + sum(len(n.observation) for n in tree.nodes) for tree in trees)
        assert sampler.counts["prefilled"] == unique
        assert any(node.decision and node.decision.new_paths for tree in trees for node in tree.nodes)


def test_best_alone_and_together_are_the_same(tokenizer, model):
    """Guards: rows that are kept after their end, and so move the others about."""
    settings = dict(branch_rule="best", num_initial=2, num_generations=8)
    both = grow(Sampler(model, tokenizer), keys=["a", "b"], **settings)
    for prompt, key, tree in zip(("the town is", "the river of the mayor"), "ab", both):
        (alone,) = grow(Sampler(model, tokenizer), [prompt], [key], EchoTools(), **settings)
        assert [node.ids for node in alone.nodes] == [node.ids for node in tree.nodes]


def test_a_probe_fork_needs_a_turn_longer_than_the_probe(tokenizer):
    """Guards: siblings that repeat a short turn and draw its last token again."""
    script = lambda key, calls: (SEARCH.format(calls) if calls < 2 else ANSWER, 1.0 + calls)
    make = lambda k: grow(
        ScriptedSampler(tokenizer, script), ["x"], num_generations=6, num_initial=2, fork_at="probe", base_prob=1.0,
        branch_rule="threshold", entropy_tokens=k, max_completion_length=900,
    )[0]  # fmt: skip
    assert any(node.stopped == "probe" for node in make(3).nodes)
    assert not any(node.stopped == "probe" for node in make(500).nodes)
    assert len(make(500).leaves()) == 6


def test_shares_divide_a_start_among_its_forks(tokenizer):
    """Each start weighs one in all; the denominators know nothing of forks."""
    (tree,) = grow(ScriptedSampler(tokenizer, rides), ["x"], **TWO, **ROOM)
    shares, D = tree.shares(), tree.descends()
    starts = D[[n for n, node in enumerate(tree.nodes) if node.parent == PROMPT]]
    assert (starts @ shares).tolist() == pytest.approx([1.0, 1.0])
    assert sorted(shares.tolist()) == pytest.approx([0.25, 0.25, 0.25, 0.25, 1.0])
    (flat,), (split,) = (loss_weights([X], [tree.lengths()], "token_mean", 100) for X in (D, D * shares))
    assert torch.allclose(split, flat * shares)
