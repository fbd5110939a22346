"""The cached, forked, batched sampler against fresh forwards of one path at a time."""

import pytest
import torch
from conftest import grow, random_model

from rollout import Sampler


def path_ids(tree, leaf):
    """Ids of a path, and where its sampled tokens stand: (ids, [(node, offset of its first token)])."""
    ids, spans = list(tree.prompt), []
    for n in tree.path(leaf):
        spans.append((n, len(ids)))
        ids += tree.nodes[n].ids + tree.nodes[n].observation
    return ids, spans


def fresh_logp(model, ids):
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)


SETTINGS = [
    {},
    {"fork_at": "probe"},
    {"fork_at": "probe", "fan_out": 3},
    {"num_initial": 1, "base_prob": 1.0, "num_generations": 12},
    {"num_initial": 8, "num_generations": 8},
    {"temperature": 0.7},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_logprobs_and_entropies_equal_a_fresh_forward(tokenizer, settings):
    """Guards: wrong positions after a fork, holes that are attended to, a cache fed twice, stale rows."""
    worst = 0.0
    temperature = settings.get("temperature", 1.0)
    for seed in range(3):
        model = random_model(tokenizer, seed)
        sampler = Sampler(model, tokenizer)
        for tree in grow(sampler, keys=[f"{seed}a", f"{seed}b"], **settings):
            for leaf in tree.leaves():
                ids, spans = path_ids(tree, leaf)
                logp = fresh_logp(model, ids)
                entropy = -(logp.exp() * logp).sum(-1)
                logp = (logp / temperature).log_softmax(-1)
                for n, start in spans:
                    node = tree.nodes[n]
                    before = torch.arange(start - 1, start - 1 + len(node.ids))
                    own = logp[before, torch.tensor(node.ids)]
                    worst = max(worst, float((own - torch.tensor(node.logprobs)).abs().max()))
                    worst = max(worst, float((entropy[before] - torch.tensor(node.entropies)).abs().max()))
    assert worst < 1e-4


def test_top_p_draws_from_the_likeliest_tokens_alone(tokenizer):
    """Guards: a share that is cut off before the temperature, or that changes the entropy that forks are decided by."""
    model = random_model(tokenizer, 1)
    sampler = Sampler(model, tokenizer)
    sampler.top_p = 0.4
    for tree in grow(sampler, num_initial=8, temperature=2.0):
        for leaf in tree.leaves():
            ids, spans = path_ids(tree, leaf)
            raw = fresh_logp(model, ids)
            probs = (raw / 2.0).softmax(-1)
            for n, start in spans:
                for token, entropy, t in zip(tree.nodes[n].ids, tree.nodes[n].entropies, range(start - 1, len(ids))):
                    likelier = probs[t][probs[t] > probs[t, token] + 1e-6].sum()
                    assert likelier < 0.4 + 1e-4
                    assert abs(float(-(raw[t].exp() * raw[t]).sum()) - entropy) < 1e-4


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_logits_that_are_no_numbers_are_named(tokenizer, temperature, value):
    """Guards: an index beyond the vocabulary, which on a GPU ends the process; greedily, token 0 without a word."""
    model = random_model(tokenizer, 0)
    with torch.no_grad():
        model.get_output_embeddings().weight.fill_(value)
    with pytest.raises(ValueError, match="expected logits that are numbers, found NaN or infinity at token"):
        grow(Sampler(model, tokenizer), temperature=temperature)
