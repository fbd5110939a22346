"""The parity of sampler, packing and loss holds for other architectures than the built-in model's.

Random weights at small width: grouped keys and values, tied and untied embeddings, with and without attention
bias, query and key norms (Qwen3).
"""

import pytest
import torch
from conftest import grow
from test_sampler import fresh_logp, path_ids
from test_update import assert_close, gradient, off_policy, per_leaf_loss, tree_loss
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from arpo import UpdateConfig
from rollout import Sampler

MODELS = {
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 16}),
    "llama": (LlamaConfig, LlamaForCausalLM, {"attention_bias": False}),
    "llama with bias": (LlamaConfig, LlamaForCausalLM, {"attention_bias": True}),
}


def small_model(name, tied, tokenizer):
    config, model, more = MODELS[name]
    torch.manual_seed(1)
    sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    ends = dict(bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    made = model(
        config(vocab_size=len(tokenizer), num_key_value_heads=2, tie_word_embeddings=tied, **sizes, **ends, **more)
    ).eval()
    for parameter in made.parameters():
        parameter.data.normal_(0, 0.3) if parameter.dim() > 1 else parameter.data.add_(0.1)
    for tag in ("</search>", "</python>", "<|end|>"):  # long vectors: these tags are drawn often enough to fork
        made.get_output_embeddings().weight.data[tokenizer.convert_tokens_to_ids(tag)] *= 3
    return made


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("name", MODELS)
def test_rollout_and_packing_parity(name, tied, tokenizer):
    model = small_model(name, tied, tokenizer)
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied
    trees = grow(Sampler(model, tokenizer), num_initial=2, num_generations=6)
    assert any(node.decision and node.decision.new_paths for tree in trees for node in tree.nodes)
    for tree in trees:
        for leaf in tree.leaves():
            ids, spans = path_ids(tree, leaf)
            logp = fresh_logp(model, ids)
            for n, start in spans:
                own = logp[torch.arange(start - 1, start - 1 + len(tree.nodes[n].ids)), torch.tensor(tree.nodes[n].ids)]
                assert float((own - torch.tensor(tree.nodes[n].logprobs)).abs().max()) < 1e-4
    advantages = torch.randn(len(trees), 6)
    config = UpdateConfig(attribution="hard")
    fast, slow = (loss(model, trees, advantages, config, off_policy) for loss in (tree_loss, per_leaf_loss))
    assert fast.item() == pytest.approx(slow.item(), rel=1e-5, abs=1e-6)
    assert_close(gradient(model, fast), gradient(model, slow), 1e-5)
