"""Peak memory at the shapes of real models, counted without a GPU and without the memory.

The project's own code runs on the device "meta", where an operation has a shape and a type and no numbers; `Meter` adds
up the bytes of the storages that are alive, in forward, recomputation and backward. Two things that meta does not do
as CUDA does have a stand-in that allocates what CUDA's allocates: attention with a mask (the memory-efficient kernel
makes an additive mask of the boolean one, keeps a log-sum-exp, and takes repeated keys), and a product with 4-bit
weights, which are unpacked for as long as it takes. Left out: the context, the allocator's rounding and fragmentation.
"""

import gc
import weakref
from collections.abc import Callable
from contextlib import contextmanager
from unittest import mock

import torch
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config
from transformers.integrations.sdpa_attention import pack_gqa, repeat_kv
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from arpo import Batch, token_logprobs
from data.cache import RowCache
from data.logits import draw_tokens
from data.models import keep_inputs_as_they_come

META = torch.device("meta")


def shape(kind, vocab, hidden, mlp, layers, heads, kv_heads, tied=False, **more):
    return kind(
        vocab_size=vocab, hidden_size=hidden, intermediate_size=mlp, num_hidden_layers=layers, tie_word_embeddings=tied,
        num_attention_heads=heads, num_key_value_heads=kv_heads, max_position_embeddings=32768, bos_token_id=None,
        eos_token_id=1, pad_token_id=0, architectures=[kind.__name__.replace("Config", "ForCausalLM")], **more,
    )  # fmt: skip


SHAPES = {
    "0.5B": lambda: shape(Qwen2Config, 151936, 896, 4864, 24, 14, 2, True),
    "1.5B": lambda: shape(Qwen2Config, 151936, 1536, 8960, 28, 12, 2, True),
    "3B": lambda: shape(Qwen2Config, 151936, 2048, 11008, 36, 16, 2, True),
    "7B": lambda: shape(Qwen2Config, 152064, 3584, 18944, 28, 28, 4),
    "14B": lambda: shape(Qwen2Config, 152064, 5120, 13824, 48, 40, 8),
    "Llama-3.1-8B": lambda: shape(LlamaConfig, 128256, 4096, 14336, 32, 32, 8),
    "Qwen3-8B": lambda: shape(Qwen3Config, 151936, 4096, 12288, 36, 32, 8, head_dim=128),
}


class Meter(TorchDispatchMode):
    """Bytes of a device's storages that were made or `add`ed and are alive, and the most there were since `reset`."""

    def __init__(self, device=META):
        super().__init__()
        self.device, self.alive, self.now, self.peak = device, {}, 0, 0

    def add(self, tensor) -> None:
        if not isinstance(tensor, torch.Tensor) or tensor.device != self.device:
            return
        storage = tensor.untyped_storage()
        if storage._cdata not in self.alive:
            self.alive[storage._cdata] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.drop, storage._cdata)

    def drop(self, key: int) -> None:
        self.now -= self.alive.pop(key)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            self.add(tensor)
        return out

    def reset(self) -> int:
        """Returns what is alive now."""
        gc.collect()
        self.peak = self.now
        return self.now


class Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value, mask):
        bias = None if mask is None else torch.zeros_like(mask, dtype=query.dtype).masked_fill_(~mask, -torch.inf)
        out = torch.empty_like(query)
        sums = torch.empty(query.shape[:3], dtype=torch.float32, device=META)
        ctx.save_for_backward(query, key, value, out, sums, *([] if bias is None else [bias]))
        return out

    @staticmethod
    def backward(ctx, gradient):
        query, key, value, _, sums, *_ = ctx.saved_tensors
        torch.empty_like(sums)
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), None


def attention(module, query, key, value, attention_mask, **_):
    groups, length, heads = module.num_key_value_groups, query.shape[2], query.shape[1]
    if groups > 1 and attention_mask is not None:
        if length == 1:
            query = pack_gqa(query, groups)
        else:
            key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    out = Attention.apply(query, key, value, attention_mask)
    return out.reshape(out.shape[0], heads, length, -1).transpose(1, 2).contiguous(), None


class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, layer):
        ctx.layer = layer
        return x @ torch.empty(layer.in_features, layer.out_features, dtype=x.dtype, device=META)

    @staticmethod
    def backward(ctx, gradient):
        weight = torch.empty(ctx.layer.out_features, ctx.layer.in_features, dtype=gradient.dtype, device=META)
        return gradient @ weight, None


class Packed(Linear4bit):
    """4-bit weights that are bytes and nothing else."""

    def __init__(self, linear: torch.nn.Linear):
        super().__init__(linear.in_features, linear.out_features, False, linear.weight.dtype, device=META)
        self.weight = torch.nn.Parameter(torch.empty(int(0.516 * linear.weight.numel()), dtype=torch.uint8), False)
        self.weight.compress_statistics, self.weight.quant_type = True, "nf4"
        self.bias, self.compute_dtype = linear.bias, linear.weight.dtype

    def forward(self, x):
        out = Product.apply(x, self)
        return out if self.bias is None else out + self.bias


def build(name: str, layers: int, four_bit: bool, lora_r: int, dtype=torch.bfloat16):
    """A model with so many layers, as `load_model` makes it."""
    config = SHAPES[name]()
    config.num_hidden_layers, config.layer_types = layers, ["full_attention"] * layers
    config._attn_implementation = "sdpa"
    with META:
        model = AutoModelForCausalLM.from_config(config).to(dtype)
        if four_bit:
            model.is_loaded_in_4bit = True
            for module in list(model.modules()):
                for child, layer in list(module.named_children()):
                    if isinstance(layer, torch.nn.Linear) and child != "lm_head":
                        setattr(module, child, Packed(layer))
        if lora_r:
            model.requires_grad_(False)
            lora = LoraConfig(r=lora_r, lora_alpha=2 * lora_r, target_modules="all-linear")
            model = get_peft_model(model, lora)
            keep_inputs_as_they_come(model)
            model = model.get_base_model()
    return model.eval()


@contextmanager
def metered(model):
    """A meter that has counted the model; attention is CUDA's."""
    with mock.patch.dict(ALL_ATTENTION_FUNCTIONS._global_mapping, {"sdpa": attention}), Meter() as meter:
        for tensor in [*model.parameters(), *model.buffers()]:
            meter.add(tensor.data)
        yield meter


def packed_batch(T: int, M: int = 16, share: float = 0.6) -> Batch:
    """T tokens, of which a share is sampled."""
    S, empty = int(T * share), lambda *size, dtype=torch.long: torch.empty(*size, dtype=dtype, device=META)
    real = lambda *size: empty(*size, dtype=torch.float32)
    sees = empty(4 * M, 4 * M, dtype=torch.bool)
    return Batch(empty(T), empty(T), empty(T), sees, empty(S), empty(S), real(S, M), real(S, M), real(S), empty(S), [])


def update_peak(name: str, tokens: int, four_bit: bool, lora_r: int = 16, checkpointing: bool = True) -> float:
    """Bytes of a later micro-batch of a later step: weights, gradients and Adam's numbers included."""

    def peak(layers: int) -> float:
        dtype = torch.bfloat16 if lora_r else torch.float32
        model = build(name, layers, four_bit, lora_r, dtype).train()
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        with metered(model) as meter:
            trained = [weight for weight in model.parameters() if weight.requires_grad]
            state = [torch.empty_like(weight, dtype=torch.float32) for weight in trained for _ in range(2)]
            for weight in trained:
                weight.grad = torch.empty_like(weight)
            if not lora_r:
                state += [torch.empty_like(weight) for weight in model.parameters()]  # the frozen reference
            token_logprobs(model, packed_batch(tokens)).sum().backward()
            del state
            return meter.peak

    return deep(name, peak)


def rollout_peak(name: str, rows: int, tokens: int, four_bit: bool, result: int = 384) -> float:
    """Bytes while all rows, at almost so many tokens, are fed a result, or draw a token."""
    vocab = SHAPES[name]().vocab_size

    def peak(layers: int) -> float:
        model = build(name, layers, four_bit, 16).eval()
        config, cached = model.config, tokens - result
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads

        def forward(attention_mask, past_key_values, **inputs):
            """transformers would look into the mask, where there is nothing to see."""
            size = len(attention_mask), 1, inputs["input_ids"].shape[1], attention_mask.shape[1]
            mask = torch.empty(size, dtype=torch.bool, device=META)
            model(attention_mask=mask, past_key_values=past_key_values, **inputs)

        with metered(model) as meter, torch.no_grad():
            cache = RowCache(rows, META)
            cache.mask = torch.empty(rows, cached, dtype=torch.bool, device=META)
            for n in range(layers):
                size = rows, config.num_key_value_heads, cached, head
                cache.update(*(torch.empty(size, dtype=model.dtype, device=META) for _ in range(2)), n)
            cache.gather(list(range(rows)), [cached] * rows)
            cache.feed(forward, [[0] * result] * rows, 0)
            fed = meter.peak
            meter.reset()
            scores = torch.empty(rows, vocab, dtype=model.dtype, device=META), torch.empty(rows, vocab, device=META)
            draw_tokens(scores[1], torch.empty(rows, dtype=torch.double, device=META), 1.0)
            return max(fed, meter.peak)

    return deep(name, peak)


def deep(name: str, peak: Callable[[int], float]) -> float:
    """The peak of the whole model, from those of shorter ones: layers are alike, so it grows in a straight line."""
    two, three = peak(2), peak(3)
    return two + (SHAPES[name]().num_hidden_layers - 2) * (three - two)
