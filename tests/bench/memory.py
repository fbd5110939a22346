"""Memory and speed of one training step at the shapes of real models, with random weights.

    python tests/bench/memory.py                      Qwen2.5 0.5B to 7B, 4-bit + LoRA, 16 leaves of 2k and 4k tokens
    python tests/bench/memory.py --shapes 1.5B --leaf_tokens 4096 --no-load_in_4bit
    python tests/bench/memory.py --shapes small       on a CPU, in seconds

Prints for each shape and length: peak memory of the rollout and of the update, seconds, sampled tokens a second.
The weights are random, so what is sampled is noise, but the shape of the work is that of a real step: turns of
about 200 tokens, tool results of 100, forks by a coin. A stand-in tokenizer ends a turn at one token in 256.
"""

import argparse
import sys
import time
from concurrent.futures import Future
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import Qwen2Config, Qwen2ForCausalLM

sys.path.insert(0, str(Path(__file__).parents[2]))

from advantage import ADVANTAGES
from arpo import UpdateConfig, update
from data.format import ToolResult
from data.models import keep_inputs_as_they_come
from data.optimizer import Optimizer, trainable
from rollout import RolloutConfig, Sampler, grow_trees

# hidden size, of the MLP, layers, heads, heads of keys and values, vocabulary, tied embeddings
SHAPES = {
    "small": (64, 128, 2, 4, 2, 2048, True),
    "0.5B": (896, 4864, 24, 14, 2, 151936, True),
    "1.5B": (1536, 8960, 28, 12, 2, 151936, True),
    "3B": (2048, 11008, 36, 16, 2, 151936, True),
    "7B": (3584, 18944, 28, 28, 4, 152064, False),
}
TURN_END = 256  # tokens that are multiples of this close a call


class StandInTokenizer:
    eos_token_id, pad_token_id, unk_token_id = 1, 0, None

    def __init__(self, vocab_size: int):
        self.vocab_size = vocab_size

    def __len__(self):
        return self.vocab_size

    def convert_ids_to_tokens(self, ids):
        return ["<search>x</search>" if i and i % TURN_END == 0 else "a" for i in ids]

    def decode(self, ids):
        return "".join(self.convert_ids_to_tokens(ids))

    def batch_decode(self, rows):
        return [self.decode(row) for row in rows]

    def encode(self, text, **kwargs):
        return [2] * (100 if text == "result" else 1)

    def __call__(self, text, **kwargs):
        ids = self.encode(text)
        return {"input_ids": ids, "offset_mapping": [(0, 0)] * len(ids)}

    def get_added_vocab(self):
        return {}


class InstantTools:
    def submit(self, call):
        future = Future()
        future.set_result(ToolResult("result"))
        return future


def quantize(model, device) -> None:
    """Every linear layer but the head in NF4, double quantisation, one layer at a time."""
    from bitsandbytes.nn import Linear4bit

    for module in list(model.modules()):
        for child, layer in list(module.named_children()):
            if isinstance(layer, torch.nn.Linear) and child != "lm_head":
                bias, dtype = layer.bias is not None, layer.weight.dtype
                small = Linear4bit(layer.in_features, layer.out_features, bias, dtype, True, "nf4")
                small.load_state_dict(layer.state_dict())
                setattr(module, child, small.to(device))


def build(shape: str, four_bit: bool, device: str, dtype: torch.dtype | None = None):
    hidden, mlp, layers, heads, kv_heads, vocab, tied = SHAPES[shape]
    dtype = dtype or (torch.bfloat16 if device == "cuda" else torch.float32)
    config = Qwen2Config(
        vocab_size=vocab, hidden_size=hidden, intermediate_size=mlp, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv_heads, tie_word_embeddings=tied, bos_token_id=None,
        eos_token_id=1, pad_token_id=0, max_position_embeddings=32768,
    )  # fmt: skip
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(config).to(dtype)
    if four_bit:
        quantize(model, device)
    model = get_peft_model(model.to(device), LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"))
    if dtype.itemsize == 2:
        keep_inputs_as_they_come(model)
    model = model.get_base_model().eval()
    model.activation_checkpointing_enable({"use_reentrant": False})
    return model


def peak_gb(device: str) -> float:
    """Since the last call; 0 on a CPU, where nothing is measured."""
    if device != "cuda":
        return 0.0
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() / 1e9
    torch.cuda.reset_peak_memory_stats()
    return peak


def measure(model, leaf_tokens: int, leaves: int, token_budget: int) -> dict[str, float]:
    """One question's tree and the update on it: peaks in GB, seconds, tokens."""
    device = model.device.type
    tokenizer = StandInTokenizer(model.config.vocab_size)
    sampler = Sampler(model, tokenizer)
    prompt = torch.randint(3, 250, (min(512, leaf_tokens // 4),)).tolist()
    length = leaf_tokens - len(prompt)
    config = RolloutConfig(
        num_generations=leaves, num_initial=leaves // 2, branch_rule="coin", max_completion_length=length,
        max_turn_tokens=length, max_result_tokens=100, max_tool_calls=1000,
    )  # fmt: skip
    peak_gb(device)
    started = time.perf_counter()
    trees = grow_trees([prompt], ["0"], sampler, InstantTools(), config)
    rollout_peak, rollout_seconds = peak_gb(device), time.perf_counter() - started
    optimizer = Optimizer(model, torch.optim.AdamW(trainable(model)), 1.0)
    sampler.forget([])
    advantages = ADVANTAGES["group"](torch.randn(1, leaves), None)
    started = time.perf_counter()
    counts = update(model, optimizer, trees, advantages, UpdateConfig(token_budget=token_budget))
    update_peak, update_seconds = peak_gb(device), time.perf_counter() - started
    speed = sampler.counts["decoded"] / rollout_seconds
    return {
        "rollout": rollout_peak, "update": update_peak, "rollout_seconds": rollout_seconds,
        "update_seconds": update_seconds, "speed": speed, "trained": counts["train_tokens"],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["0.5B", "1.5B", "3B", "7B"])
    parser.add_argument("--leaf_tokens", nargs="+", type=int, default=[2048, 4096])
    parser.add_argument("--leaves", type=int, default=16)
    parser.add_argument("--token_budget", type=int, default=8192)
    parser.add_argument("--load_in_4bit", action=argparse.BooleanOptionalAction, default=True)
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(torch.cuda.get_device_name() if device == "cuda" else "CPU (memory is not measured)")
    print("| shape | leaf tokens | rollout GB | update GB | rollout s | update s | sampled tokens/s | trained |")
    print("|---|---|---|---|---|---|---|---|")
    for shape in args.shapes:
        for leaf_tokens in args.leaf_tokens:
            model = build(shape, args.load_in_4bit, device)
            row = measure(model, leaf_tokens, args.leaves, args.token_budget)
            print(
                f"| {shape} | {leaf_tokens} | {row['rollout']:.1f} | {row['update']:.1f} | "
                f"{row['rollout_seconds']:.1f} | {row['update_seconds']:.1f} | {row['speed']:.0f} | "
                f"{row['trained']:,} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
