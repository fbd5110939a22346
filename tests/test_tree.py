"""The tree algorithm: budgets, branch rules and invariance to scheduling, with scripted and random models."""

import hashlib
import json
import random
from pathlib import Path

import pytest
import torch
from conftest import SMALL, EchoTools, ScriptedSampler, grow, random_model
from hypothesis import given, settings
from hypothesis import strategies as st

from arpo import Policy
from rollout import PROMPT, Draw, RolloutConfig, Sampler, uniform

SEARCH = "<think>a</think><search>{}</search>"
ANSWER = "<think>a</think><answer>7</answer><|end|>"
GOLDEN = Path(__file__).with_name("golden_trees.json")


def facts(tree):
    """Everything about a tree but its floats."""
    return [
        (n.parent, n.rank, n.ids, n.observation, n.stopped, n.decision and (n.decision.new_paths, n.decision.wave))
        for n in tree.nodes
    ]


def hashed_script(seed, turns=4):
    """Between 0 and `turns` calls a path and any entropy, all depending on the path's key alone."""

    def script(key, wave):
        u = uniform(f"{seed}{key}", wave)
        return (SEARCH.format(int(u * 1000)) if u < 0.7 and wave < turns else ANSWER), 6 * uniform(
            f"h{seed}{key}", wave
        )

    return script


class NoMemory(Sampler):
    def prefill(self, prompts):
        raise torch.OutOfMemoryError("CUDA out of memory")


configs = st.fixed_dictionaries(
    dict(
        num_generations=st.integers(1, 20),
        fan_out=st.integers(1, 4),
        base_prob=st.floats(0, 1),
        entropy_weight=st.floats(-2, 2),
        threshold=st.floats(0, 1),
        entropy_tokens=st.integers(1, 30),
        branch_rule=st.sampled_from(["threshold", "coin", "best"]),
        entropy_timing=st.sampled_from(["after", "before"]),
        entropy_norm=st.sampled_from(["log_vocab", "vocab"]),
        fork_at=st.sampled_from(["result", "probe"]),
        score=st.sampled_from(["entropy", "lot", "lowest", "tail"]),
        max_tool_calls=st.integers(0, 5),
        max_completion_length=st.integers(5, 200),
        max_turn_tokens=st.integers(3, 60),
    )
)


@settings(max_examples=300, deadline=None)
@given(configs, st.floats(0, 1), st.integers(0, 10**6))
def test_exactly_m_leaves_and_sound_trees(tokenizer, config, share, seed):
    """Guards: budgets that run over or are left unspent, orphans, paths beyond their limits."""
    m = config["num_generations"]
    config = SMALL | config | dict(num_initial=max(1, round(share * m)))
    (tree,) = grow(ScriptedSampler(tokenizer, hashed_script(seed)), ["the town"], **config)
    leaves = tree.leaves()
    assert len(leaves) == m
    assert all(node.parent < n for n, node in enumerate(tree.nodes))
    parents = {node.parent for node in tree.nodes}
    assert {n for n in range(len(tree.nodes)) if n not in parents} == set(leaves)
    forks = sum(node.decision.new_paths for node in tree.nodes if node.decision)
    assert forks <= m - config["num_initial"]
    assert sum(node.parent == PROMPT for node in tree.nodes) == m - forks
    for leaf in leaves:
        nodes = [tree.nodes[n] for n in tree.path(leaf)]
        assert sum(len(n.ids) + len(n.observation) for n in nodes) <= config["max_completion_length"]
        executed = [n for n in nodes if n.result and n.result.outcome == "ok"]
        assert len(executed) <= config["max_tool_calls"]


def golden_configs():
    """100 configurations; the numbers drawn must stay in this order."""
    rng = random.Random(0)
    for _ in range(100):
        m = rng.randint(1, 16)
        yield dict(
            num_generations=m,
            num_initial=rng.randint(1, m),
            fan_out=rng.randint(1, 4),
            base_prob=rng.random(),
            entropy_weight=rng.uniform(-2, 2),
            threshold=rng.random(),
            entropy_tokens=rng.randint(1, 30),
            branch_rule=rng.choice(["threshold", "coin"]),
            entropy_timing=rng.choice(["after", "before"]),
            entropy_norm=rng.choice(["log_vocab", "vocab"]),
            fork_at=rng.choice(["result", "probe"]),
            shuffle_entropy=rng.random() < 0.3,
            max_tool_calls=rng.randint(0, 5),
            max_completion_length=rng.randint(20, 200),
            max_turn_tokens=rng.randint(3, 60),
        )


def test_the_same_trees_as_version_0_1(tokenizer):
    """Guards every rule of the algorithm at once: three trees each, and their digests as version 0.1 had them."""
    expected, same = json.loads(GOLDEN.read_text()), 0
    for number, config in enumerate(golden_configs()):
        shuffled = config.pop("shuffle_entropy")
        if shuffled or config["fork_at"] == "probe":
            continue  # rules that are others today
        same += 1
        keys = [f"g{number}/{q}" for q in range(3)]
        sampler = ScriptedSampler(tokenizer, hashed_script(number))
        room = {"max_result_tokens": 200}  # for every result whole, since how longer ones are cut is no rule of trees
        trees = grow(sampler, ["the town is", "the river of the mayor", "old"], keys, **config, **room)
        text = json.dumps([facts(tree) for tree in trees])
        assert hashlib.sha256(text.encode()).hexdigest()[:16] == expected[number], f"tree {number}: {config}"
    assert same == 31


@pytest.mark.parametrize("fork_at", ["result", "probe"])
def test_no_two_rows_draw_the_same_number(tokenizer, model, monkeypatch, fork_at):
    """Guards: a sibling with the key of its source, or of another sibling, which writes the same turn again."""
    rows, used, note = {}, [], Draw._note

    def noted(draw, i, *drawn):
        row, sample = draw.rows[i], draw.samples[i]
        rows[id(row)] = row
        used.append(uniform(row.key, len(row.ids) + len(sample.ids)))
        note(draw, i, *drawn)

    monkeypatch.setattr(Draw, "_note", noted)
    settings = dict(num_initial=2, num_generations=12, base_prob=1.0, branch_rule="threshold", fork_at=fork_at)
    trees = grow(Sampler(model, tokenizer), keys=["a", "b"], **settings)
    assert all(any(n.rank and n.parent != PROMPT for n in tree.nodes) for tree in trees)
    assert len(rows) == len({row.key for row in rows.values()}) == 24
    assert len(used) == len(set(used)) == sum(len(node.ids) for tree in trees for node in tree.nodes)


def test_n_equals_m_is_grpo(tokenizer):
    """With N = M nothing forks, whatever the entropies say."""
    (tree,) = grow(ScriptedSampler(tokenizer, hashed_script(1)), ["x"], num_initial=8, base_prob=1.0)
    assert sum(node.parent == PROMPT for node in tree.nodes) == 8
    assert len(tree.leaves()) == 8 and all(n.decision is None or not n.decision.new_paths for n in tree.nodes)


def test_hand_worked_tree(tokenizer):
    """One initial path calls twice; entropies 1, 3, 0.5: the first result forks, the second does not."""

    def script(key, wave):
        entropy = {0: 1.0, 1: 3.0, 2: 0.5}[wave] if key == "q0/0" else 2.0
        return (SEARCH.format(wave) if key == "q0/0" and wave < 2 else ANSWER), entropy

    (tree,) = grow(
        ScriptedSampler(tokenizer, script), ["x"], num_generations=4, num_initial=1, fan_out=2,
        branch_rule="threshold", base_prob=0.5, entropy_weight=0.2, threshold=0.5,
    )  # fmt: skip
    first, second = tree.nodes[0].decision, tree.nodes[1].decision
    ln_v = __import__("math").log(704)
    assert first.new_paths == 2 and first.prob == pytest.approx(0.5 + 0.2 * 2 / ln_v)
    assert second.new_paths == 0 and second.delta == pytest.approx(-0.5 / ln_v)
    # depth first: the first turn; the original's second and third turns; two siblings; the top-up
    assert [n.parent for n in tree.nodes] == [PROMPT, 0, 1, 0, 0, PROMPT]
    assert tree.descends().tolist() == [
        [1, 1, 1, 0],
        [1, 0, 0, 0],
        [1, 0, 0, 0],
        [0, 1, 0, 0],
        [0, 0, 1, 0],
        [0, 0, 0, 1],
    ]


def test_siblings_do_not_test_their_own_fork_but_may_branch_later(tokenizer):
    def script(key, wave):
        return (SEARCH.format(wave) if wave < 2 else ANSWER), 1.0 + wave

    (tree,) = grow(
        ScriptedSampler(tokenizer, script), ["x"], num_generations=6, num_initial=1, fan_out=1,
        branch_rule="threshold", base_prob=0.6,
    )  # fmt: skip
    decided = [n for n, node in enumerate(tree.nodes) if node.decision]
    # the first result, and the second result of both the original and its sibling
    assert len(decided) == 3 and all(tree.nodes[n].decision.new_paths == 1 for n in decided)
    assert all(tree.nodes[n].decision.initial_entropy == 1.0 for n in decided)  # inherited from the root
    assert len(tree.leaves()) == 6  # 1 + 3 forks + 2 topped up


def test_scarce_budget_goes_to_the_highest_p(tokenizer):
    """The released code serves slots in order; here path 2 has the highest entropy and gets the one fork."""

    def script(key, wave):
        return (SEARCH.format(1) if wave == 0 else ANSWER), 1.0 + wave * {"q0/0": 1, "q0/1": 2, "q0/2": 3}.get(key, 0)

    (tree,) = grow(ScriptedSampler(tokenizer, script), ["x"], num_generations=4, num_initial=3, branch_rule="threshold")
    forks = {n.rank: n.decision for n in tree.nodes if n.decision}
    assert [forks[r].new_paths for r in (0, 1, 2)] == [0, 0, 1]
    assert forks[0].prob > forks[0].bar  # it wanted a fork too


def test_leftover_budget_starts_at_once_and_does_not_branch(tokenizer):
    sampler = ScriptedSampler(
        tokenizer, lambda key, wave: (SEARCH.format(1) if wave == 0 else ANSWER, 9.0 if wave else 1.0)
    )
    (tree,) = grow(sampler, ["x"], num_generations=8, num_initial=2, base_prob=0, entropy_weight=0, branch_rule="coin")
    assert sampler.calls == 4  # two waves for the initial paths, two for all six others
    assert sum(n.decision is not None for n in tree.nodes) == 2


@pytest.mark.parametrize("timing, expected", [("after", 3.0), ("before", 1.0)])
def test_entropy_timing(tokenizer, timing, expected):
    """Ledger: the released code measures the turn before the result."""
    script = lambda key, wave: (SEARCH.format(1) if wave < 1 else ANSWER, 1.0 if wave == 0 else 3.0)
    (tree,) = grow(ScriptedSampler(tokenizer, script), ["x"], num_initial=1, entropy_timing=timing)
    assert tree.nodes[0].decision.entropy == expected


def test_baseline_entropy_is_the_paths_own(tokenizer):
    """Ledger: the released code keeps it by batch slot, so that a later batch compares with another prompt's."""
    sampler = ScriptedSampler(
        tokenizer, lambda key, wave: (SEARCH.format(1) if wave == 0 else ANSWER, float(key[1]) + 2 * wave)
    )
    for tree, own in zip(grow(sampler, ["x", "y"], keys=["q3", "q5"], num_generations=2, num_initial=1), (3.0, 5.0)):
        assert tree.nodes[0].decision.initial_entropy == own and tree.nodes[0].decision.entropy == own + 2


@pytest.mark.parametrize("norm, scale", [("log_vocab", 6.556778), ("vocab", 704)])
def test_normalisation(tokenizer, norm, scale):
    sampler = ScriptedSampler(tokenizer, lambda key, wave: (SEARCH.format(1) if wave == 0 else ANSWER, 1.0 + wave))
    (tree,) = grow(sampler, ["x"], num_initial=1, entropy_norm=norm)
    assert tree.nodes[0].decision.delta == pytest.approx(1 / scale)


def test_entropy_is_a_mean_over_at_most_k_tokens(tokenizer, model):
    """Ledger: summed over up to 20 tokens, short turns would score low."""
    trees = grow(Sampler(model, tokenizer), keys=["a", "b"], entropy_tokens=3, num_initial=4)
    checked = 0
    for tree in trees:
        for n, node in enumerate(tree.nodes):
            child = next((c for c in tree.nodes if c.parent == n and c.rank == 0), None)
            if node.decision and child:
                own = child.entropies[:3]
                assert node.decision.entropy == pytest.approx(sum(own) / len(own))
                checked += 1
    assert checked > 3


def test_with_alpha_equal_tau_the_threshold_is_the_sign_of_delta(tokenizer):
    """Worth knowing: β and the normaliser then decide nothing."""
    trees = [
        grow(
            ScriptedSampler(tokenizer, hashed_script(5)),
            ["x"],
            branch_rule="threshold",
            entropy_weight=b,
            entropy_norm=n,
        )
        for b, n in ((0.2, "log_vocab"), (0.9, "log_vocab"), (0.4, "vocab"))
    ]
    assert facts(trees[0][0]) == facts(trees[1][0]) == facts(trees[2][0])


def test_the_shuffled_control_keeps_the_deltas_of_a_wave(tokenizer):
    make = lambda shuffle: grow(
        ScriptedSampler(tokenizer, hashed_script(3)),
        ["x"],
        num_initial=6,
        num_generations=6,
        score="lot" if shuffle else "entropy",
    )[0]
    plain, shuffled = ([n.decision for n in make(s).nodes if n.decision] for s in (False, True))
    for wave in {d.wave for d in plain}:
        deltas = [[d.delta for d in tree if d.wave == wave] for tree in (plain, shuffled)]
        assert sorted(deltas[0]) == sorted(deltas[1])
    assert [d.delta for d in plain] != [d.delta for d in shuffled]


def test_the_model_is_told_once_that_its_calls_are_spent(tokenizer):
    """Ledger: no unsampled end token; a refusal in a result, then the next call ends the path."""
    (tree,) = grow(
        ScriptedSampler(tokenizer, lambda key, wave: (SEARCH.format(wave), 1.0)), ["x"],
        num_generations=1, num_initial=1, max_tool_calls=2, max_completion_length=500, max_result_tokens=100,
    )  # fmt: skip
    assert [n.result.outcome if n.result else None for n in tree.nodes] == ["ok", "ok", "refused", None]
    assert "No tool calls are left" in tokenizer.decode(tree.nodes[2].observation)
    assert tree.nodes[3].stopped == "calls"


def test_fork_after_the_probe_shares_the_measured_tokens(tokenizer, model):
    trees = grow(Sampler(model, tokenizer), fork_at="probe", base_prob=1.0, num_initial=2, num_generations=10)
    probes = [(tree, n) for tree in trees for n, node in enumerate(tree.nodes) if node.stopped == "probe"]
    assert probes
    for tree, n in probes:
        assert 1 <= len(tree.nodes[n].ids) <= 4 and not tree.nodes[n].observation
        assert sum(node.parent == n for node in tree.nodes) >= 2


def test_trees_do_not_depend_on_batch_or_order(tokenizer, model, capsys):
    """One key, one tree: alone, together, permuted, few at a time, and where memory runs out (fp32)."""
    prompts = ["the town is", "the river of the mayor", "old", "the long river is old and the town"]
    keys = [f"seed0/step1/{q}" for q in range(4)]
    policies = []

    def trees(order=range(4), sampler=Sampler, max_rows=512):
        ids, names = [tokenizer.encode(prompts[q]) for q in order], [keys[q] for q in order]
        policies.append(policy := Policy(model, tokenizer, max_rows=max_rows))
        policy.sampler = sampler(model, tokenizer)
        grown = policy.grow(ids, names, EchoTools(), RolloutConfig(**SMALL))
        return {q: facts(tree) for q, tree in zip(order, grown)}

    expected = trees()
    assert len({len(tree) for tree in expected.values()}) > 1
    assert trees(order=[2, 0, 3, 1]) == expected
    assert trees(max_rows=16) == expected
    assert trees(order=[3])[3] == expected[3]
    assert trees(max_rows=3) == expected  # not even a tree at once

    class Small(Sampler):  # memory for 2 rows, fewer than a tree needs
        def _sample(self, rows, *rest):
            if len(rows) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super()._sample(rows, *rest)

    assert trees(sampler=Small) == expected
    told = capsys.readouterr().err
    assert told == "".join(f"out of memory: rows sampled at once: {n} from now on\n" for n in (16, 8, 4, 2))
    assert policies[-1].max_rows == 2  # it does not run out of memory in every step anew
    assert not policies[-1].sampler.cache.layers  # which would lie beside the update
    with pytest.raises(torch.OutOfMemoryError):
        trees(sampler=NoMemory)


def test_counts_every_prompt_and_result_token_is_prefilled_once(tokenizer):
    """The ledger of a rollout: nothing is fed twice but the token that a fork samples from."""
    for seed in range(3):
        sampler = Sampler(random_model(tokenizer, seed), tokenizer)
        trees = grow(sampler, keys=[f"{seed}a", f"{seed}b"])
        unique = sum(len(tree.prompt) + sum(len(n.observation) for n in tree.nodes) for tree in trees)
        assert sampler.counts["prefilled"] == unique
        assert sampler.counts["decoded"] == sum(len(n.ids) for tree in trees for n in tree.nodes)
        # one token for every row that starts, from the prompt or at a fork
        assert sampler.counts["refed"] == sum(len(tree.leaves()) for tree in trees)


def test_n_above_m_is_refused_and_zero_is_m(tokenizer):
    with pytest.raises(ValueError, match="num_initial .* from 1 to .*found 9"):
        RolloutConfig(num_generations=8, num_initial=9)
    zero, eight = (
        grow(ScriptedSampler(tokenizer, hashed_script(1)), ["x"], num_initial=n, base_prob=1.0)[0] for n in (0, 8)
    )
    assert facts(zero) == facts(eight) and sum(node.parent == PROMPT for node in zero.nodes) == 8


def test_a_tools_own_limit_refuses_its_calls_and_lets_the_path_go_on(tokenizer):
    """Guards a limit that ends the path, or that counts other tools' calls."""
    turns = ["<search> town</search>", "<search> river</search>", "<python>1</python>", "<answer> old</answer><|end|>"]

    def script(key, calls):
        return turns[calls], 1.0

    limits = dict(num_generations=1, num_initial=1, max_tool_calls=5, tool_limits="search=1")
    (tree,) = grow(ScriptedSampler(tokenizer, script), ["the town"], **limits)
    assert [node.result.outcome for node in tree.nodes if node.result] == ["ok", "refused", "ok"]
    assert "No search calls are left" in tree.nodes[1].result.text and tree.nodes[-1].stopped == "end"
    with pytest.raises(ValueError, match='found "?.?search=x'):
        grow(ScriptedSampler(tokenizer, script), ["the town"], tool_limits="search=x")
