"""The memory plan of a run: how much there is, what weights, rollouts and update need, and what is chosen by it.

A plan is made before anything is loaded, from the model's configuration alone, for training and evaluation alike. It
settles whether weights are kept in 4 bits, how many trajectories are sampled at once, and how many tokens a forward
pass of the update has. Where memory runs out all the same, `Halving` takes back what was too much. The
factors below were counted on the project's own code (tests/meter.py). Left out: several GPUs for one model.
"""

import gc
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import psutil
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from data.cache import FEED_TOKENS
from data.logits import ROWS_OF_A_DRAW, rows_of_logits
from data.models import ModelConfig, base_of, pick_device, pick_dtype, resolve_model
from data.settings import Settings

PROMPT_TOKENS = 500  # that a prompt may take
CACHE_COPY = 2.2  # the cache, and its copy while results are fed
APART = 0.25e9  # bytes for the libraries' own buffers; the CUDA context is no longer free when free memory is asked for
FRAGMENTS = 0.05  # of free memory, which the allocator cannot use
# Bytes for each token and unit of the MLP, and for each token and unit of the hidden state, by bytes of a weight.
KEPT = {2: (6, 32), 4: (16, 46)}  # of a layer without checkpointing
WORK = {2: (14, 30), 4: (34, 60)}  # of the layer whose backward pass is under way, what it keeps included
FED = {2: (12, 16), 4: (12, 20)}  # of a layer that is computed without gradients


@dataclass(frozen=True)
class Demand:
    """What a command asks of the memory."""

    tokens: int  # of a trajectory after its prompt, at most
    leaves: int  # M of a tree
    lora_r: int | None = None  # 0: all weights are trained; None: nothing is
    token_budget: int = 0  # of a forward pass of the update
    checkpointing: bool = False

    @classmethod
    def of(cls, config: Settings, lora_r: int | None) -> "Demand":
        """From a command's settings; those of an evaluation have no update."""
        own = config.max_completion_length, config.num_generations, lora_r
        more = (getattr(config, name, None) for name in ("token_budget", "gradient_checkpointing"))
        return cls(*own, *(more if lora_r is not None else ()))


@dataclass(frozen=True)
class Shape:
    """The sizes of a model."""

    vocab: int
    hidden: int
    mlp: int
    layers: int
    heads: int  # units of all heads together
    cached: int  # units of keys and values of a token in a layer
    weights: int
    embeddings: int  # weights that 4-bit leaves as they are

    @classmethod
    def of(cls, config) -> "Shape":
        """From a model's configuration; counts the weights of a model without storage."""
        with torch.device("meta"):
            weights = AutoModelForCausalLM.from_config(config).num_parameters()
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        cached = 2 * head * (getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
        mlp = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
        embeddings = config.vocab_size * config.hidden_size * (1 if config.tie_word_embeddings else 2)
        own = config.vocab_size, config.hidden_size, mlp, config.num_hidden_layers, head * config.num_attention_heads
        return cls(*own, cached, weights, embeddings)

    def adapter(self, rank: int) -> int:
        """Weights of LoRA on all linear layers but the head."""
        attention = 2 * (self.hidden + self.heads) + 2 * self.hidden + self.cached
        return self.layers * rank * (attention + 3 * (self.hidden + self.mlp))

    def of_a_token(self, factors: tuple[int, int]) -> int:
        return factors[0] * self.mlp + factors[1] * max(self.hidden, self.heads)


@dataclass(frozen=True)
class MemoryPlan:
    """What there is, what is needed, in bytes, and what was chosen."""

    device: str
    dtype: torch.dtype
    load_in_4bit: bool
    free: int  # before anything is loaded
    held: int  # weights, the reference, and the optimizer's numbers
    row: int  # a trajectory's cache at most
    fit: int  # trajectories that fit at once if all of them grow to the limit
    max_rows: int  # trajectories sampled at once
    rollout: int  # at most, with `fit` of them
    token_budget: int  # of a forward pass of the update
    update: int  # at most; 0 where nothing is trained
    logit_rows: int  # whose logits exist at once in the update

    def __str__(self) -> str:
        bits = "4-bit " if self.load_in_4bit else ""
        text = (
            f"{self.free / 1e9:.1f} GB free; {bits}weights and optimizer {self.held / 1e9:.1f} GB, "
            f"a trajectory's cache at most {self.row / 1e6:,.0f} MB: {self.max_rows} at once"
        )
        if self.fit < self.max_rows:
            text += f" ({self.fit} if all of them grow to the limit)"
        if self.update:
            text += (
                f", rollouts up to {self.rollout / 1e9:.1f} GB; an update of {self.token_budget:,} tokens at a time "
                f"{self.update / 1e9:.1f} GB, {self.logit_rows} rows of logits at once"
            )
        return text


class TooLarge(MemoryError):
    """What is asked for fits no memory that is there."""


def plan_memory(config: ModelConfig, lora_r: int | None) -> MemoryPlan:
    """The plan for a command's settings; settles 4-bit weights where that is left open: if 16 bits do not fit.

    `lora_r` as for `load_model`. Raises TooLarge where not even one trajectory, or its update, fits; OSError or
    ValueError where the model's configuration cannot be had.
    """
    demand = Demand.of(config, lora_r)
    shape = Shape.of(AutoConfig.from_pretrained(base_of(resolve_model(config.model))).get_text_config())
    device = pick_device()
    open_to_4bit = config.load_in_4bit is None and device == "cuda" and demand.lora_r != 0  # 4 bits are not trained
    ways = [False, True] if open_to_4bit else [bool(config.load_in_4bit)]
    return choose(shape, demand, device, pick_dtype(device, demand.lora_r), free_memory(device), ways)


def choose(shape: Shape, demand: Demand, device: str, dtype: torch.dtype, free: int, ways: list[bool]) -> MemoryPlan:
    """The first of the ways (4-bit or not) in which all that is asked for fits, else what fits best."""
    plans = [fitted(shape, demand, device, dtype, free, four) for four in ways]
    for plan in plans:
        if plan.fit >= demand.leaves and plan.token_budget >= demand.token_budget:
            return plan
    if plans[-1].fit and plans[-1].update <= usable(free):
        return plans[-1]
    raise TooLarge(refusal(plans[-1], shape, demand))


def fitted(shape: Shape, demand: Demand, device: str, dtype: torch.dtype, free: int, four: bool) -> MemoryPlan:
    """Rows and token budget as large as asked for, or as there is room for."""
    size, room, row_tokens = dtype.itemsize, usable(free), demand.tokens + PROMPT_TOKENS
    held = held_bytes(shape, demand.lora_r, size, four)
    row = shape.layers * shape.cached * size * row_tokens
    step = shape.vocab * (min(demand.leaves, ROWS_OF_A_DRAW) * 12 + demand.leaves * (size + 4))
    around = held + step + FEED_TOKENS * shape.of_a_token(FED[size])
    fit = max(0, min(512, int((room - around) / (CACHE_COPY * row))))
    # All rows at their limit are rare: a tree that fits at half of it is tried whole.
    max_rows = demand.leaves if demand.leaves <= 2 * fit < 2 * demand.leaves else fit
    rollout = around + CACHE_COPY * row * fit
    logit_rows, budget, update = rows_of_logits(shape.vocab), demand.token_budget, 0
    if demand.lora_r is not None:
        # A path is never split, however small the budget.
        need = lambda: held + update_bytes(shape, demand, max(budget, row_tokens), size, logit_rows)
        while need() > room and budget > row_tokens:
            budget = max(budget // 2, row_tokens)
        update = int(need())
    chosen = max_rows, int(rollout), budget, update, logit_rows
    return MemoryPlan(device, dtype, four, free, int(held), row, fit, *chosen)


def held_bytes(shape: Shape, lora_r: int | None, size: int, four: bool) -> float:
    """Weights, and for what is trained: fp32 weights, gradients and Adam's two moments; a frozen copy of full ones."""
    linear = shape.weights - shape.embeddings
    weights = 0.52 * linear + shape.embeddings * size if four else shape.weights * size
    if lora_r == 0:
        return weights + shape.weights * (4 + 4 + 8)
    return weights + 16 * shape.adapter(lora_r or 0)


def update_bytes(shape: Shape, demand: Demand, tokens: int, size: int, logit_rows: int) -> float:
    """Of a packed micro-batch: masks, what the layers keep, and the larger of a layer's work and the head's."""
    kept, work = (shape.of_a_token(factors[size]) for factors in (KEPT, WORK))
    mask = size * tokens**2  # made of the boolean one in every layer
    if demand.checkpointing:
        layers = tokens * shape.layers * shape.hidden * size
    else:
        layers, work = shape.layers * (tokens * kept + mask), work - kept
    head = logit_rows * shape.vocab * 12 + tokens * shape.hidden * (size + 4)
    if demand.lora_r == 0:
        head += shape.vocab * shape.hidden * 8  # the head's gradient is added up chunk by chunk
    return tokens**2 + layers + max(tokens * work + mask, head)


def usable(free: int) -> float:
    """Bytes of free memory that tensors may have."""
    return (1 - FRAGMENTS) * free - APART


def free_memory(device: str) -> int:
    """Bytes; what torch has reserved and does not use is free, too."""
    if device != "cuda":
        return psutil.virtual_memory().available
    return torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()


def refusal(plan: MemoryPlan, shape: Shape, demand: Demand) -> str:
    """What is missing, and what would fit."""
    least = max(plan.update, plan.held + CACHE_COPY * plan.row)
    found = f"{usable(plan.free) / 1e9:.1f} GB that can be used on {plan.device}"
    told = f"expected {least / 1e9:.1f} GB of memory at least, found {found}"
    ways = [(f"--max_completion_length {n}", replace(demand, tokens=n)) for n in (4096, 2048, 1024, 512)]
    ways = [(name, smaller) for name, smaller in ways if smaller.tokens < demand.tokens]
    fits = [(name, plan.load_in_4bit) for name, smaller in ways if _fits(plan, shape, smaller, plan.load_in_4bit)]
    if not fits and not plan.load_in_4bit and plan.device == "cuda" and demand.lora_r != 0:
        fits = [("--load_in_4bit", True) for _ in range(1) if _fits(plan, shape, demand, True)]
    if not fits and demand.lora_r == 0:
        fits = [("--lora_r 16", False)]
    return f"{told}; what would fit: {fits[0][0] if fits else 'a smaller model'}"


def _fits(plan: MemoryPlan, shape: Shape, demand: Demand, four: bool) -> bool:
    smaller = fitted(shape, demand, plan.device, plan.dtype, plan.free, four)
    return smaller.fit > 0 and smaller.update <= usable(plan.free)


Result = TypeVar("Result")
OUT_OF_MEMORY = ("out of memory", "ALLOC_FAILED")  # what libraries below torch say


def is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in OUT_OF_MEMORY)


class Halving:
    """A size of work that is halved where memory runs out, and stays so."""

    def __init__(self, size: int, least: int, told: str):
        self.size, self.least, self.told = size, least, told  # `told` says on stderr what is smaller now

    def fit(self, work: Callable[[], Result]) -> Result:
        """work(), which reads the size, again with half of it where memory runs out; below `least` that is an error."""
        while True:
            try:
                return work()
            except RuntimeError as error:
                if not is_out_of_memory(error) or self.size // 2 < self.least:
                    raise
            # outside the handler, which would hold on to the tensors of the failed attempt
            self.size //= 2
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            print(f"out of memory: {self.told} {self.size} from now on", file=sys.stderr)
