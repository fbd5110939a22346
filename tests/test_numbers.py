"""Is the trained number the sampled number? Tiny random models of many architectures: exact, or refused in a line."""

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

import eval
from arpo import Policy
from data import Question
from data.format import ToolResult
from data.models import TINY
from eval import JudgeConfig, check_numbers
from tools import Task, Toolbox

SIZES = dict(
    hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8
)
GPT = dict(n_embd=32, n_layer=2, n_head=4, n_positions=2048)
EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, shared_expert_intermediate_size=16)
WIDE, NONE = {"sliding_window": 4096}, {"sliding_window": None}
EXACT = {
    "Llama": {}, "Qwen2": {}, "Qwen3": {}, "Qwen3Moe": EXPERTS, "Mistral": NONE, "Gemma": {}, "Gemma3Text": WIDE,
    "Phi": {}, "Phi3": NONE, "Granite": {"logits_scaling": 3.0}, "Cohere": {"logit_scale": 0.25},
    "Cohere2": {"logit_scale": 0.25, **WIDE}, "Olmo2": {}, "Olmo3": WIDE, "SmolLM3": {}, "StableLm": {}, "GPTNeoX": {},
    "GPT2": GPT, "OPT": dict(ffn_dim=64, max_position_embeddings=2048, word_embed_proj_dim=32), "Starcoder2": NONE,
    "Helium": {}, "Glm4": {}, "Nemotron": {}, "SeedOss": {}, "Exaone4": WIDE, "Ernie4_5": {}, "Arcee": {},
    "Apertus": {},
}  # fmt: skip
REFUSED = {
    "Lfm2": (dict(layer_types=["conv", "full_attention"]), "found conv"),
    "Qwen3Next": ({}, "found linear_attention"),
    "Jamba": ({}, "found linear_attention"),
    "Llama4Text": ({}, "found chunked_attention"),
    "Mamba": ({}, "does not support an attention implementation"),
    "Bloom": ({}, "does not support an attention implementation"),
    "DeepseekV3": ({}, "cannot be grown or packed with a model of type deepseek_v3"),
    "Mistral": ({"sliding_window": 64}, "expected attention and positions for .* tokens, found 64 .model type mistral"),
    "Gemma3Text": ({"sliding_window": 64}, "found 64 .model type gemma3_text"),
    "GPT2": (GPT | {"n_positions": 256}, "found 256 .model type gpt2"),
}
CONFIG = JudgeConfig(
    num_generations=4, num_initial=2, max_completion_length=200, max_turn_tokens=60, base_prob=1.0, temperature=0.7
)
QUESTIONS = [Question(f"q{n}", f"How much is {n} plus 2, and where is the river? " * 3, ("3",)) for n in range(2)]


def policy_of(name, more, folder) -> Policy:
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    ends = dict(bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    torch.manual_seed(1)
    config = getattr(transformers, f"{name}Config")(**(dict(vocab_size=len(tokenizer)) | SIZES | ends | more))
    model = AutoModelForCausalLM.from_config(config)
    for weight in model.parameters():
        if weight.dim() > 1:
            weight.data.normal_(0, 0.3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Policy.load(str(folder), lora_r=None)


def check(policy) -> Task:
    task = Task(QUESTIONS, Toolbox({"search": lambda query: ToolResult("a town of old stones " * 3)}))
    check_numbers(policy, task, CONFIG)
    return task


@pytest.mark.parametrize("name", EXACT)
def test_many_architectures_are_exact(name, tmp_path):
    """Guards: windows, scaled heads (Granite, Cohere), arguments by position (GPT-2), dropout that is on (SeedOss)."""
    assert not check(policy_of(name, EXACT[name], tmp_path)).tools.counts  # the check's own calls are forgotten


@pytest.mark.parametrize("name", REFUSED)
def test_others_are_refused_in_one_line(name, tmp_path):
    """Guards: a traceback of transformers, and a training run on numbers that were never sampled."""
    more, told = REFUSED[name]
    with pytest.raises(ValueError, match=told) as error:
        check(policy_of(name, more, tmp_path))
    assert "\n" not in str(error.value)


def test_dropout_is_off(tmp_path):
    """Guards: with dropout in the update the ratio is no longer 1 where no weight has changed."""
    policy = policy_of("Llama", {"attention_dropout": 0.5}, tmp_path)
    check(policy)
    assert all(getattr(module, "attention_dropout", 0.0) == 0.0 for module in policy.model.modules())


@pytest.mark.parametrize("where", ["plain", "packed"])
def test_a_number_that_differs_is_found(tmp_path, monkeypatch, where):
    """Guards: a check that cannot fail, or that lets through what is not a number."""
    policy = policy_of("Llama", {}, tmp_path)
    if where == "packed":
        monkeypatch.setattr(eval, "token_logprobs", lambda model, batch, temperature: batch.sampler_logprobs - 0.01)
    else:
        monkeypatch.setattr(eval, "plain_gap", lambda *rest: float("nan"))
    with pytest.raises(ValueError, match=f"expected log-probs within 0.001 nats .* in the {where} forward pass"):
        check(policy)
