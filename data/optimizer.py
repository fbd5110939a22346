"""One optimizer step, the same for the cold start and for reinforcement learning; and the learning rate.

Gradients are summed over the processes, clipped, and applied if they are finite; in fp16 the loss is scaled, and less
where that was too much. Left out: the losses.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from accelerate import PartialState
from torch import Tensor, distributed

from data.settings import Limits, Natural, NonNegative, Settings, Share

STEADY = 200  # finite steps in a row after which the loss scale grows again


@dataclass(frozen=True)
class OptimizerConfig(Settings):
    learning_rate: Share = 1e-5  # peak
    warmup_steps: Natural = 3  # over which the learning rate rises
    lr_scheduler_type: Literal["cosine", "constant"] = "cosine"  # down to a tenth, or constant
    weight_decay: NonNegative = 0.0  # of AdamW
    max_grad_norm: Annotated[float, Limits(1e-6)] = 1.0  # gradients are clipped to it
    optim: Literal["adamw", "adamw_8bit", "paged_adamw_8bit"] = "adamw"  # the last two are bitsandbytes'


class Optimizer:
    """An optimizer around the trainable weights of a model."""

    def __init__(self, model, wrapped: torch.optim.Optimizer, max_grad_norm: float, shared: bool = True):
        self.wrapped, self.max_grad_norm, self.weights = wrapped, max_grad_norm, trainable(model)
        self.shared = shared and PartialState().num_processes > 1  # each process has a part of the loss
        named = (name for name, weight in model.named_parameters() if weight.requires_grad)
        self.layers = [name.split(".lora_")[0] for name in named]  # of each weight: the two of an adapter are one layer
        # Of the loss: in fp16 small gradients vanish and large ones overflow.
        self.scale = self.most = 4096.0 if model.dtype == torch.float16 else 1.0
        self.steps = 0  # finite ones in a row

    @classmethod
    def of(cls, model, config: OptimizerConfig) -> "Optimizer":
        settings = dict(lr=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.99))
        if config.optim == "adamw":
            return cls(model, torch.optim.AdamW(trainable(model), **settings), config.max_grad_norm)
        from bitsandbytes.optim import AdamW8bit, PagedAdamW8bit

        kind = {"adamw_8bit": AdamW8bit, "paged_adamw_8bit": PagedAdamW8bit}[config.optim]
        return cls(model, kind(trainable(model), **settings), config.max_grad_norm)

    def set_rate(self, rate: float) -> None:
        for group in self.wrapped.param_groups:
            group["lr"] = rate

    def backward(self, loss: Tensor) -> None:
        (loss * self.scale).backward()

    def step(self) -> dict[str, float]:
        """Applies what `backward` has summed up, and forgets it."""
        for weight in self.weights:
            weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad.div_(self.scale)
            if self.shared:  # the denominator of the loss is the whole batch's, so shares add up
                distributed.all_reduce(weight.grad)
        reached = {layer for layer, weight in zip(self.layers, self.weights) if weight.grad.any()}
        norm = torch.nn.utils.clip_grad_norm_(self.weights, self.max_grad_norm)
        finite, before = bool(norm.isfinite()), row_sums(self.weights)
        if finite:
            self.wrapped.step()
        self._rescale(finite)
        self.wrapped.zero_grad(set_to_none=True)
        return {
            "grad_norm": float(norm) if finite else 0.0,  # before clipping; of a step with minibatches, their mean
            "changed": int(not torch.equal(row_sums(self.weights), before)),  # optimizer steps that changed a weight
            "skipped": int(not finite),  # optimizer steps left out because the gradient was not finite
            "without_gradient": len(set(self.layers) - reached),  # trained layers that the loss does not depend on
        }

    def _rescale(self, finite: bool) -> None:
        """A sixteenth of the scale where a gradient was not finite, twice as much after many that were."""
        self.steps = self.steps + 1 if finite else 0
        if not finite:
            self.scale = max(1.0, self.scale / 16)
        elif self.steps % STEADY == 0:
            self.scale = min(self.most, self.scale * 2)


def trainable(model) -> list[torch.nn.Parameter]:
    return [weight for weight in model.parameters() if weight.requires_grad]


def row_sums(weights: list[Tensor]) -> Tensor:
    """The bits of each row of the weights, read as integers and summed: a copy to compare with that takes no room."""
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    return torch.cat([weight.detach().view(integers[weight.itemsize]).sum(-1).flatten() for weight in weights])


def learning_rate(step: int, steps: int, peak: float, warmup: int, kind: str = "cosine") -> float:
    """Of step 1 … steps: linear warm-up, then constant or a cosine down to a tenth."""
    if step <= warmup:
        return peak * step / warmup
    if kind == "constant":
        return peak
    return peak * (0.55 + 0.45 * math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
