"""The packed tree against the padded batch of its leaves, and the loss against its equation."""

import copy
import math
from dataclasses import fields

import pytest
import torch
from conftest import grow, random_model

import train
from advantage import ADVANTAGES, attribute, loss_weights
from arpo import UpdateConfig, k3, make_batches, pack, policy_loss, split, token_logprobs, tokens, update
from data import logits
from data.optimizer import Optimizer
from data.relatives import SURROGATES
from rollout import Sampler


@pytest.fixture(scope="module")
def grown(tokenizer):
    """Three forked trees of a random model, and advantages for their leaves."""
    model = random_model(tokenizer, 3)
    prompts = ("the town is", "the river of the mayor", "old")
    trees = grow(Sampler(model, tokenizer), prompts, num_initial=2, num_generations=6)
    assert any(n.decision and n.decision.new_paths for tree in trees for n in tree.nodes)
    torch.manual_seed(0)
    return model, trees, torch.randn(3, 6)


def padded_leaves(trees):
    """Every leaf as a row of its own: ids and, shifted by one, which tokens the policy sampled (L, T)."""
    rows = []
    for tree in trees:
        for leaf in tree.leaves():
            ids, sampled, owner = list(tree.prompt), [0] * len(tree.prompt), [-1] * len(tree.prompt)
            for n in tree.path(leaf):
                node = tree.nodes[n]
                ids += node.ids + node.observation
                sampled += [1] * len(node.ids) + [0] * len(node.observation)
                owner += [n] * (len(node.ids) + len(node.observation))
            rows.append((ids, sampled, owner))
    width = max(len(ids) for ids, _, _ in rows)
    pad = lambda values, fill: torch.tensor([list(v) + [fill] * (width - len(v)) for v in values])
    return pad([r[0] for r in rows], 0), pad([r[1] for r in rows], 0), [r[2] for r in rows]


def per_leaf_loss(model, trees, advantages, config, old_shift):
    """The same loss written the slow way: a padded batch of leaves, no tree, no packing.

    `old_shift` moves π_old away from π, so that clips bite.
    """
    ids, sampled, owners = padded_leaves(trees)
    attention = torch.zeros_like(ids)
    for i, owner in enumerate(owners):
        attention[i, : len(owner)] = 1
    logits = model(input_ids=ids, attention_mask=attention).logits[:, :-1]
    logp = logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
    mask = sampled[:, 1:].float()
    token_advantages = torch.zeros_like(logp)
    leaf_index = 0
    for tree, values in zip(trees, advantages):
        below = tree.descends()
        for m in range(len(tree.leaves())):
            for t, n in enumerate(owners[leaf_index][1:]):
                if n >= 0:
                    hard = (below[n] * values).sum() / below[n].sum()
                    token_advantages[leaf_index, t] = hard if config.attribution == "hard" else values[m]
            leaf_index += 1
    ratio = (logp - logp.detach() + old_shift(ids[:, 1:])).exp()
    clipped = ratio.clamp(1 - config.epsilon, 1 + config.epsilon_high)
    terms = torch.minimum(ratio * token_advantages, clipped * token_advantages) * mask
    if config.loss_type == "token_mean":
        return -terms.sum() / mask.sum()
    if config.loss_type == "sequence_mean":
        return -(terms.sum(-1) / mask.sum(-1)).mean()
    return -terms.sum() / len(ids) / config.max_completion_length


def tree_loss(model, trees, advantages, config, old_shift):
    total = 0.0
    for batch in make_batches(trees, advantages, config):
        logprobs = token_logprobs(model, batch)
        old = logprobs.detach() - old_shift(batch.targets)
        total = total + policy_loss(logprobs, old, batch, config)[0]
    return total


def gradient(model, loss):
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def on_policy(ids):
    return torch.zeros(ids.shape)


def off_policy(ids):
    return 0.5 * torch.sin(ids.float())  # ratios from 0.6 to 1.6: both clips bite


def assert_close(a, b, tolerance=1e-5):
    assert float((a - b).abs().max()) <= tolerance * float(b.abs().max())


@pytest.mark.parametrize("attribution", ["soft", "hard"])
@pytest.mark.parametrize("loss_type", ["token_mean", "sequence_mean", "constant"])
@pytest.mark.parametrize("shift", [on_policy, off_policy])
def test_packed_equals_padded_leaves(grown, attribution, loss_type, shift):
    """Guards: shifted targets at forks, siblings that see each other, wrong positions, lost denominators."""
    model, trees, advantages = grown
    config = UpdateConfig(attribution=attribution, loss_type=loss_type)
    slow = per_leaf_loss(model, trees, advantages, config, shift)
    slow_gradient = gradient(model, slow)
    fast = tree_loss(model, trees, advantages, config, shift)
    assert float(fast) == pytest.approx(float(slow), rel=1e-5, abs=1e-7)
    assert_close(gradient(model, fast), slow_gradient)


def test_hard_equals_soft_on_policy_and_not_when_the_clip_bites(grown):
    """A lecture in one test: the two attributions differ in the clip alone (token mean)."""
    model, trees, advantages = grown
    soft, hard = UpdateConfig(attribution="soft"), UpdateConfig(attribution="hard")
    grads = {
        (c.attribution, shift.__name__): gradient(model, tree_loss(model, trees, advantages, c, shift))
        for c in (soft, hard)
        for shift in (on_policy, off_policy)
    }
    assert_close(grads["soft", "on_policy"], grads["hard", "on_policy"])
    off_soft, off_hard = grads["soft", "off_policy"], grads["hard", "off_policy"]
    assert float((off_soft - off_hard).abs().max()) > 1e-3 * float(off_soft.abs().max())


@pytest.mark.parametrize("attribution", ["soft", "hard"])
def test_splitting_changes_no_gradient(grown, attribution):
    """Guards: denominators that depend on the micro-batch, hard advantages over a part's leaves only."""
    model, trees, advantages = grown
    whole = UpdateConfig(attribution=attribution, kl_coef=0.1)
    expected = gradient(model, tree_loss(model, trees, advantages, whole, off_policy))
    for budget in (1, 150, 300):
        config = UpdateConfig(attribution=attribution, kl_coef=0.1, token_budget=budget)
        assert len(make_batches(trees, advantages, config)) > len(make_batches(trees, advantages, whole))
        assert_close(gradient(model, tree_loss(model, trees, advantages, config, off_policy)), expected)


def test_an_unsplit_tree_is_computed_once(grown):
    """Every unique token stands exactly once in the forward pass, every sampled one is trained once."""
    _, trees, advantages = grown
    (batch,) = make_batches(trees, advantages, UpdateConfig())
    nodes = [node for tree in trees for node in tree.nodes]
    prompts = sum(len(tree.prompt) for tree in trees)
    assert len(batch.ids) == prompts + sum(len(n.ids) + len(n.observation) for n in nodes)
    assert len(batch.targets) == sum(len(n.ids) for n in nodes)


def test_a_tree_without_advantage_is_skipped_but_counts(grown):
    """Denominators are fixed first: skipping must equal training on zeros."""
    model, trees, advantages = grown
    advantages = advantages.clone()
    advantages[1] = 0
    batches = make_batches(trees, advantages, UpdateConfig())
    assert sum(len(b.targets) for b in batches) < sum(len(n.ids) for t in trees for n in t.nodes)
    slow = per_leaf_loss(model, trees, advantages, UpdateConfig(), off_policy)
    assert float(tree_loss(model, trees, advantages, UpdateConfig(), off_policy)) == pytest.approx(
        float(slow), rel=1e-5
    )


def test_tool_result_and_prompt_tokens_get_exactly_zero_gradient(grown):
    """Guards: trained observations. The loss's gradient with respect to every position's logits."""
    model, trees, advantages = grown
    (batch,) = make_batches(trees, advantages, UpdateConfig())
    inputs = dict(input_ids=batch.ids[None], attention_mask=batch.mask[None, None], position_ids=batch.positions[None])
    logits = model(**inputs).logits[0]
    logits.retain_grad()
    logprobs = logits[batch.predict_from].log_softmax(-1).gather(-1, batch.targets[:, None])[:, 0]
    policy_loss(logprobs, logprobs.detach(), batch, UpdateConfig())[0].backward()
    predicts = torch.zeros(len(logits), dtype=torch.bool)
    predicts[batch.predict_from] = True
    assert torch.all(logits.grad[~predicts] == 0)
    assert int((~predicts).sum()) > 50
    # and no target of the loss is a token that the environment wrote
    written = [i for tree in trees for n in tree.nodes for i in n.ids]
    assert sorted(batch.targets.tolist()) == sorted(written)


def test_the_end_token_is_trained_even_where_pad_is_eos(tokenizer):
    """Guards: masks guessed from pad ids, which lose the end token where pad == eos."""
    same = copy.deepcopy(tokenizer)
    same.pad_token = same.eos_token
    model = random_model(same, 1)
    trees = grow(Sampler(model, same), keys=["a", "b"])
    ended = [n for tree in trees for n in tree.nodes if n.stopped == "end"]
    assert ended and all(n.ids[-1] == same.eos_token_id for n in ended)
    batches = make_batches(trees, torch.randn(2, 8), UpdateConfig())
    trained = torch.cat([b.targets for b in batches])
    assert int((trained == same.eos_token_id).sum()) == len(ended)


def test_two_trees_in_one_batch_do_not_see_each_other(grown):
    model, trees, advantages = grown
    config = UpdateConfig()
    together = token_logprobs(model, make_batches(trees, advantages, config)[0])
    alone = [token_logprobs(model, make_batches([t], a[None], config)[0]) for t, a in zip(trees, advantages)]
    assert_close(together, torch.cat(alone), 1e-5)


def test_packed_logprobs_equal_the_samplers(grown):
    model, trees, advantages = grown
    (batch,) = make_batches(trees, advantages, UpdateConfig())
    assert float((token_logprobs(model, batch) - batch.sampler_logprobs).abs().max()) < 1e-4


@pytest.mark.parametrize("temperature", [0.6, 1.7])
def test_logprobs_at_a_temperature_are_the_samplers(tokenizer, temperature):
    """Guards: a temperature in the sampler alone, so that π / π_old is not 1 where nothing has changed."""
    model = random_model(tokenizer, 3)
    trees = grow(Sampler(model, tokenizer), temperature=temperature)
    (batch,) = make_batches(trees, torch.randn(2, 8), UpdateConfig(temperature=temperature))
    gap = lambda t: float((token_logprobs(model, batch, t) - batch.sampler_logprobs).abs().max())
    assert gap(temperature) < 1e-4 and gap(1.0) > 0.1
    optimizer = Optimizer(model, torch.optim.SGD(model.parameters(), lr=0.0), max_grad_norm=1.0)
    config = UpdateConfig(temperature=temperature)
    assert update(model, optimizer, trees, torch.randn(2, 8), config)["kl_sampler"] < 1e-6


@pytest.mark.parametrize("gap", [1e-2, 1e-3, 3e-4, -3e-4, -1e-3])
def test_k3_is_exact_near_zero(gap):
    """Guards: exp(d) - 1 - d, of which fp32 leaves nothing but noise, below 0 too, where the policies are close."""
    own, target = torch.tensor(0.0), torch.tensor(gap)
    assert float(k3(target, own)) == pytest.approx(math.expm1(gap) - gap, rel=2e-3)
    naive = target.exp() - 1 - target
    assert abs(gap) > 1e-3 or float(naive) != pytest.approx(math.expm1(gap) - gap, rel=2e-3)


SMALL_STEPS = (
    [(algo, {}) for algo in train.METHODS]
    + [
        ("arpo", {"advantage": advantage, "attribution": attribution})
        for advantage in ADVANTAGES
        for attribution in ("soft", "hard")
    ]
    + [("arpo", {"surrogate": surrogate}) for surrogate in SURROGATES]
)


@pytest.mark.parametrize("algo, settings", SMALL_STEPS)
def test_the_better_leaf_becomes_likelier_and_the_worse_one_less(tokenizer, algo, settings):
    """Guards: a sign, in any method: of the loss, an advantage, the optimizer, or of a weight."""
    settings = train.METHODS[algo] | settings
    own = {field.name for field in fields(UpdateConfig)}
    config = UpdateConfig(**{name: value for name, value in settings.items() if name in own})
    model = random_model(tokenizer, 3)
    forks = dict(num_initial=settings.get("num_initial", 1), num_generations=2, base_prob=1.0, branch_rule="threshold")
    trees = grow(Sampler(model, tokenizer), **forks)
    better = torch.tensor([0, 1])  # in the first tree and in the second
    rewards, lengths = torch.nn.functional.one_hot(better, 2).float(), torch.stack([tree.lengths() for tree in trees])
    advantages = ADVANTAGES[config.advantage](rewards, lengths)

    def own_logprobs():
        """Of each leaf's tokens that it does not share, in each tree (2, 2)."""
        batches = [make_batches([tree], torch.ones(1, 2), config)[0] for tree in trees]
        own = [(batch.weights > 0).float() * (batch.weights == 0).any(-1, keepdim=True) for batch in batches]
        with torch.no_grad():
            return torch.stack([token_logprobs(model, batch) @ mine for batch, mine in zip(batches, own)])

    before = own_logprobs()
    optimizer = Optimizer(model, torch.optim.SGD(model.parameters(), lr=1e-3), max_grad_norm=1.0)
    assert update(model, optimizer, trees, advantages, config)["changed"] == 1
    change = own_logprobs() - before
    assert all(change[q, m] > 0 > change[q, 1 - m] for q, m in enumerate(better.tolist())), change


def test_kl_is_zero_at_the_reference_and_weighted_like_the_tokens(grown):
    model, trees, advantages = grown
    config = UpdateConfig(kl_coef=0.5)
    (batch,) = make_batches(trees, advantages, config)
    logprobs = token_logprobs(model, batch).detach()
    plain, sums = policy_loss(logprobs, logprobs, batch, config, logprobs)
    shifted, _ = policy_loss(logprobs, logprobs, batch, config, logprobs + 0.1)
    k3 = torch.tensor(0.1).exp() - 0.1 - 1
    assert sums["kl_reference"] == 0
    # token mean: all weights of all trees add up to one
    assert float(shifted - plain) == pytest.approx(0.5 * float(k3), rel=1e-4)


@pytest.mark.parametrize("settings", [{}, {"num_minibatches": 3}, {"num_iterations": 2}, {"token_budget": 200}])
def test_update_steps_and_keeps_old_logprobs(grown, settings):
    """π_old is the policy before the first optimizer step, in every minibatch and iteration."""
    model, trees, advantages = grown
    policy = copy.deepcopy(model)
    config = UpdateConfig(**settings)
    optimizer = Optimizer(policy, torch.optim.SGD(policy.parameters(), lr=0.05), max_grad_norm=1.0)
    norms, end = [], optimizer.step

    def counted():
        norms.append(end()["grad_norm"])
        return {"grad_norm": norms[-1], "skipped": 0}

    optimizer.step = counted
    metrics = update(policy, optimizer, trees, advantages, config)
    assert metrics["grad_norm"] == pytest.approx(sum(norms) / len(norms)) and metrics["kl_sampler"] < 1e-6
    assert any((a != b).any() for a, b in zip(policy.parameters(), model.parameters()))
    if not settings:
        assert metrics["clip_fraction"] == 0  # one step: the ratio is 1 throughout
        assert metrics["train_tokens"] == sum(
            len(t.prompt) + sum(len(n.ids) + len(n.observation) for n in t.nodes) for t in trees
        )


def test_split_respects_the_budget_and_covers_every_leaf_once(grown):
    _, trees, advantages = grown
    tree, values = trees[0], advantages[0]
    below = tree.descends()
    lengths = torch.tensor([float(len(n.ids)) for n in tree.nodes]) @ below
    (weights,) = loss_weights([below], [lengths], "token_mean", 100)
    whole = (tree, weights, attribute(values, below, [n.parent for n in tree.nodes], "soft"))
    budget = tokens(tree, weights) * 2 // 3
    parts = split(whole, budget)
    assert len(parts) > 1 and all(tokens(tree, W) <= budget for _, W, _ in parts)
    assert torch.equal(sum(W for _, W, _ in parts), weights)
    assert len(pack([whole]).ids) == tokens(tree, weights)


def test_micro_batches_without_length_one(grown):
    """A group without variance gives zeros, and no batch at all where every tree is without."""
    _, trees, _ = grown
    assert make_batches(trees, ADVANTAGES["group"](torch.ones(3, 6), None), UpdateConfig()) == []


def test_logits_exist_a_chunk_at_a_time(grown, monkeypatch):
    """Guards: (S, V) logits that grow with the batch, in either pass; and chunks that change the numbers."""
    model, trees, advantages = grown
    (batch,) = make_batches(trees, advantages, UpdateConfig(token_budget=10**6))
    rows, real = [], logits.logits_of
    monkeypatch.setattr(logits, "logits_of", lambda model, hidden: rows.append(len(hidden)) or real(model, hidden))
    found = {}
    for size in (1e9, 5 * 4 * model.get_output_embeddings().weight.shape[0]):
        rows.clear()
        monkeypatch.setattr(logits, "LOGITS_BYTES", size)
        logprobs = token_logprobs(model, batch)
        (slope,) = torch.autograd.grad(logprobs.sum(), [model.get_output_embeddings().weight])
        found[size] = logprobs.detach(), slope, max(rows), sum(rows)
    whole, chunked = found.values()
    assert whole[2] == len(batch.targets) and chunked[2] == 5
    assert whole[3] == chunked[3] == 2 * len(batch.targets)  # once forward, once again in the backward pass
    assert torch.allclose(whole[0], chunked[0], atol=1e-5) and torch.allclose(whole[1], chunked[1], atol=1e-4)
