"""The update: pack trees into tensors, take log-probabilities, form the loss, step. And the policy that it changes.

A tree is packed into one sequence of its unique tokens: positions are depths, and a token attends to its ancestors
alone, so one forward pass serves all leaves and a shared token is computed once. With r_t = π_θ / π_old, and the
advantages A and weights W of `advantage.py`, the loss is

    - Σ_t Σ_m W[t, m] · min(r_t A[t, m], clip(r_t, 1 - ε, 1 + ε_high) A[t, m])  +  β_KL Σ_t Σ_m W[t, m] KL_t

over the S tokens t that the policy sampled; the other tokens of the batch's T have no term. Left out: the optimizer
(`data/optimizer.py`) and models whose attention has a window.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from accelerate import PartialState
from safetensors import SafetensorError
from torch import Tensor

from advantage import ADVANTAGES, attribute, loss_weights
from data import models
from data.format import TrajectoryConfig
from data.logits import logprobs_of
from data.memory import Halving, plan_memory
from data.relatives import ATTRIBUTIONS, SURROGATES
from data.settings import NonNegative, Positive, Share
from rollout import PROMPT, Node, RolloutConfig, Sampler, Tree, grow_trees
from tools import Toolbox


@dataclass(frozen=True)
class UpdateConfig(TrajectoryConfig):
    advantage: Literal[tuple(ADVANTAGES)] = "group"  # how rewards become advantages
    attribution: Literal["soft", "hard", *ATTRIBUTIONS] = "soft"  # of advantages to shared tokens
    leaf_weights: Literal["flat", "split"] = "flat"  # of all leaves alike; or a start's, divided at each of its forks
    surrogate: Literal["clip", *SURROGATES] = "clip"  # what becomes of the ratio
    loss_type: Literal["token_mean", "sequence_mean", "constant"] = "token_mean"  # the denominator of a token's term
    epsilon: Share = 0.2  # clip range below 1
    epsilon_high: NonNegative = 0.2  # clip range above 1
    kl_coef: NonNegative = 0.0  # β_KL, coefficient of the KL to the reference
    num_iterations: Positive = 1  # passes over a step's trees
    num_minibatches: Positive = 1  # optimizer steps in a pass
    token_budget: Positive = 8192  # unique tokens of a forward pass; a larger tree is split


@dataclass(eq=False)
class Batch:
    """Packed trees."""

    ids: Tensor  # (T,)
    positions: Tensor  # (T,) depth in the tree
    owner: Tensor  # (T,) the segment of each token: a prompt, or a node's turn and observation
    sees: Tensor  # (segments, segments) bool: row's tokens attend to column's, which are above them or their own
    predict_from: Tensor  # (S,) index of the token before each sampled one on its path
    targets: Tensor  # (S,) the sampled tokens, each predicted from the hidden state there
    weights: Tensor  # W (S, M)
    advantages: Tensor  # A (S, M)
    sampler_logprobs: Tensor  # (S,) only to be compared
    tree: Tensor  # (S,) number of the tree, or part of one, in this batch
    nodes: list[Node]  # whose tokens the sampled ones are, in order

    @property
    def mask(self) -> Tensor:
        """(T, T) bool: row attends to column. It is made when it is needed, for it may be the largest tensor here."""
        return self.sees[self.owner][:, self.owner].logical_and_(self.positions[:, None] >= self.positions)


Piece = tuple[Tree, Tensor, Tensor]  # a tree with its W and A (N, M), less the leaves whose W is 0


def update(model, optimizer, trees: list[Tree], advantages: Tensor, config: UpdateConfig, reference=None) -> dict:
    """Trains on trees with leaf advantages (Q, M); returns metrics.

    `optimizer` has `backward(loss)`, and `step()` for the end of a minibatch, which returns metrics to be added up.
    `reference` maps a batch to the reference's log-probs (S,), or is None. π_old is this forward pass's own policy
    before the first optimizer step, computed ahead only where a later step needs it. Processes share the batches.
    Where memory runs out, that minibatch begins again with half the token budget, which is among the metrics.
    """
    model.train()
    parts, share = config.num_minibatches, slice(PartialState().process_index, None, PartialState().num_processes)
    ahead, alone = parts * config.num_iterations > 1, PartialState().num_processes == 1
    # Several processes share the batches, and would all have to make smaller ones.
    budget = Halving(config.token_budget, 128 if alone else config.token_budget, "--token_budget is")
    cut = lambda part: make_batches(*part, replace(config, token_budget=budget.size), model.device)[share]
    passes = [(trees[i::parts], advantages[i::parts]) for i in range(parts)]
    for part in passes if ahead else []:
        budget.fit(lambda: note_old_logprobs(model, cut(part), config))
    totals = Counter(train_tokens=0, trained=0, loss=0.0, clip_fraction=0.0, kl_sampler=0.0)  # tokens: all; sampled
    for part in passes * config.num_iterations:
        totals.update(budget.fit(lambda: add_gradient(model, optimizer, cut(part), config, reference, ahead)))
        totals.update(optimizer.step())
    model.eval()
    for key in {"clip_fraction", "kl_sampler", "kl_reference"} & set(totals):
        totals[key] /= max(1.0, totals["trained"])
    totals["grad_norm"] /= parts * config.num_iterations
    return dict(totals) | {"token_budget": budget.size}  # that has fitted


@torch.no_grad()
def note_old_logprobs(model, batches: list[Batch], config: UpdateConfig) -> None:
    """Writes log π_old into the nodes, which outlive a batch that is packed anew."""
    for batch in batches:
        parts = token_logprobs(model, batch, config.temperature).split([len(node.ids) for node in batch.nodes])
        for node, part in zip(batch.nodes, parts):
            node.old_logprobs = part.tolist()


def add_gradient(model, optimizer, batches: list[Batch], config: UpdateConfig, reference, ahead: bool) -> Counter:
    """The gradient of a minibatch, in place of what is left of an attempt before; returns sums over its tokens."""
    sums: Counter = Counter()
    model.zero_grad()
    for batch in batches:
        logprobs = token_logprobs(model, batch, config.temperature)
        noted = sum((node.old_logprobs for node in batch.nodes), [])
        old = torch.tensor(noted, device=logprobs.device) if ahead else logprobs.detach()
        loss, own = policy_loss(logprobs, old, batch, config, reference and reference(batch).detach())
        optimizer.backward(loss)
        sums.update(own, train_tokens=len(batch.ids), trained=len(batch.targets), loss=float(loss.detach()))
    return sums


def make_batches(trees: list[Tree], advantages: Tensor, config: UpdateConfig, device="cpu") -> list[Batch]:
    """The micro-batches of an optimizer step over trees with leaf advantages (Q, M). Weights are fixed before anything
    is split or left out, so neither changes the gradient."""
    descends = [tree.descends() * (tree.shares() if config.leaf_weights == "split" else 1) for tree in trees]
    weights = loss_weights(descends, [t.lengths() for t in trees], config.loss_type, config.max_completion_length)
    groups: list[list[Piece]] = []
    for tree, D, W, leaf_advantages in zip(trees, descends, weights, advantages):
        if not (config.kl_coef or leaf_advantages.any()):
            continue  # the tree's gradient is zero
        A = attribute(leaf_advantages, D, [node.parent for node in tree.nodes], config.attribution)
        for part in split((tree, W, A), config.token_budget):
            if groups and sum(tokens(t, w) for t, w, _ in [*groups[-1], part]) <= config.token_budget:
                groups[-1].append(part)
            else:
                groups.append([part])
    return [pack(group, device) for group in groups]


def split(piece: Piece, token_budget: int) -> list[Piece]:
    """The tree in parts within the budget, leaf by leaf; a shared prefix is computed once in each. A part has weight 0
    for the other parts' leaves, so that the parts' gradients add up to the tree's."""
    tree, W, A = piece
    parts: list[Piece] = []
    for column in (W * leaf for leaf in torch.eye(W.shape[1])):
        if parts and tokens(tree, parts[-1][1] + column) <= token_budget:
            parts[-1] = (tree, parts[-1][1] + column, A)
        else:
            parts.append((tree, column, A))
    return parts


def kept(weights: Tensor) -> list[int]:
    return weights.any(-1).nonzero().flatten().tolist()


def tokens(tree: Tree, weights: Tensor) -> int:
    return len(tree.prompt) + sum(len(tree.nodes[n].ids + tree.nodes[n].observation) for n in kept(weights))


class Segment(NamedTuple):  # of a packed sequence: a prompt, or a node's sampled tokens and then its observation
    parent: int  # the segment before it; a prompt is its own
    ids: list[int]
    logprobs: list[float]  # of the sampled tokens, which come first
    weights: Tensor  # W (M,)
    advantages: Tensor  # A (M,)


def pack(pieces: list[Piece], device="cpu") -> Batch:
    """One sequence of all unique tokens; different trees do not see each other."""
    segments, nodes = [], []
    for tree, W, A in pieces:
        assert W.shape == A.shape == (len(tree.nodes), len(tree.leaves())), f"W {W.shape} and A {A.shape}"
        place = {PROMPT: len(segments)}
        segments.append(Segment(len(segments), tree.prompt, [], W[0], A[0]))
        for n, node in ((n, tree.nodes[n]) for n in kept(W)):
            place[n] = len(segments)
            nodes.append(node)
            segments.append(Segment(place[node.parent], node.ids + node.observation, node.logprobs, W[n], A[n]))
    parents, *columns = zip(*segments)
    lengths, owns = (torch.tensor(list(map(len, column))) for column in columns[:2])
    starts, depths = lengths.cumsum(0) - lengths, torch.zeros_like(lengths)
    sees = torch.eye(len(segments), dtype=torch.bool)  # a segment sees itself and its ancestors
    for s, parent in enumerate(parents):
        if parent != s:
            depths[s], sees[s] = depths[parent] + lengths[parent], sees[s] | sees[parent]
    owner = torch.arange(len(segments)).repeat_interleave(lengths)  # (T,) the segment of each token; so all below
    index, parent = torch.arange(len(owner)), torch.tensor(parents)[owner]
    within = index - starts[owner]
    positions, sampled = depths[owner] + within, within < owns[owner]
    before = torch.where(within == 0, (starts + lengths - 1)[parent], index - 1)
    ids, logprobs = (torch.tensor(sum(column, [])) for column in columns[:2])
    W, A = (torch.stack(column)[owner[sampled]] for column in columns[2:])
    tree = (torch.tensor(parents) == torch.arange(len(parents))).cumsum(0)[owner[sampled]] - 1  # prompts so far
    fields = ids, positions, owner, sees, before[sampled], ids[sampled], W, A, logprobs, tree
    return Batch(*(tensor.to(device) for tensor in fields), nodes)


def token_logprobs(model, batch: Batch, temperature: float = 1.0) -> Tensor:
    """log π(token | its path) of the sampled tokens (S,)."""
    inputs = dict(input_ids=batch.ids[None], attention_mask=batch.mask[None, None], position_ids=batch.positions[None])
    hidden = model.get_decoder()(**inputs, use_cache=False).last_hidden_state[0]
    return logprobs_of(model, hidden[batch.predict_from], batch.targets, temperature)


def policy_loss(logprobs: Tensor, old: Tensor, batch: Batch, config: UpdateConfig, reference: Tensor | None = None):
    """The loss of a micro-batch and sums over its tokens for the metrics; all log-probs are (S,)."""
    A, W = batch.advantages, batch.weights
    assert logprobs.shape == old.shape == W.shape[:1] and A.shape == W.shape, f"{logprobs.shape}, {A.shape}, {W.shape}"
    ratio = (logprobs - old).exp()[:, None]  # (S, 1), the same for every leaf
    clipped = ratio.clamp(1 - config.epsilon, 1 + config.epsilon_high)
    gain = torch.min(ratio * A, clipped * A)
    if config.surrogate != "clip":
        gain = SURROGATES[config.surrogate](ratio, clipped, logprobs, batch, config)
    loss = -(W * gain).sum()
    bites = ((clipped * A < ratio * A) & (W > 0)).any(-1)
    # Tokens where PPO's clip would bite; the sampler's probabilities against these (k3: numerics). In the end, shares.
    sums = {"clip_fraction": float(bites.sum()), "kl_sampler": float(k3(old, batch.sampler_logprobs).sum())}
    if reference is not None:
        kl = k3(reference, logprobs)
        loss = loss + config.kl_coef * (W.sum(-1) * kl).sum()
        sums["kl_reference"] = float(kl.detach().sum())  # k3 to the frozen reference
    return loss, sums


def k3(target: Tensor, own: Tensor) -> Tensor:
    """Estimates KL(own || target) at tokens drawn from `own`: exp(d) - 1 - d, d = target - own (S,)."""
    return torch.expm1(target - own) - (target - own)


@dataclass
class Policy:
    """The model that samples and learns, and the frozen reference it started from."""

    model: torch.nn.Module  # a Hugging Face causal LM, LoRA layers inside where there are any
    tokenizer: object
    adapter: torch.nn.Module | None = None  # the peft wrapper around `model`
    reference: torch.nn.Module | None = None  # a frozen copy, where all weights are trained
    max_rows: int = 512  # sampled at once; fewer where memory runs out

    @classmethod
    def load(cls, name: str, lora_r: int | None = 0, load_in_4bit=False, device="cpu", dtype=torch.float32) -> "Policy":
        """A hub id or a folder; for the arguments see `load_model`."""
        return cls(*models.load_model(name, lora_r, load_in_4bit, device, dtype))

    @classmethod
    def open(cls, config: models.ModelConfig, lora_r: int | None = None) -> "Policy":
        """The model that a command's settings name, where its memory plan lets it be loaded. Raises ValueError."""
        name = models.resolve_model(config.model)
        if name != config.model and config.model not in models.BUILT_IN:
            print(f"{config.model} means {name}")
        try:
            plan = plan_memory(config, lora_r)
            policy = cls.load(name, lora_r, plan.load_in_4bit, plan.device, plan.dtype)
        except (OSError, ValueError, LookupError, TypeError, AttributeError, SafetensorError) as error:
            raise models.cannot_load(name, error) from None
        policy.max_rows = plan.max_rows
        return policy

    @cached_property
    def sampler(self) -> Sampler:
        return Sampler(self.model, self.tokenizer)

    def grow(self, prompts: list[list[int]], keys: list[str], tools: Toolbox, config: RolloutConfig) -> list[Tree]:
        """`grow_trees`, as many at a time as there is room for, and fewer where memory runs out: the same trees."""
        models.refuse_short_sight(self.model, max(map(len, prompts), default=0), config)
        self.sampler.top_p = config.top_p
        trees: list[Tree] = []
        wanted = min(self.max_rows, config.num_generations * len(prompts))
        rows = Halving(wanted, 1, "rows sampled at once:")

        def some() -> list[Tree]:
            places = slice(len(trees), len(trees) + max(1, rows.size // config.num_generations))
            self.sampler.max_rows = rows.size
            return grow_trees(prompts[places], keys[places], self.sampler, tools, config)

        while len(trees) < len(prompts):
            trees += rows.fit(some)
        self.max_rows = rows.size if rows.size < wanted else self.max_rows
        self.sampler.forget([])  # the update has no use for the cache
        return trees

    @contextmanager
    def frozen(self) -> Iterator[torch.nn.Module]:
        """The model as it was before training: a copy, the adapter it began with, or the bare base model."""
        if self.adapter is None or "reference" not in self.adapter.peft_config:
            with self.base() as model:
                yield model
            return
        self.adapter.set_adapter("reference")
        try:
            yield self.model
        finally:
            self.adapter.set_adapter("default")

    @contextmanager
    def base(self) -> Iterator[torch.nn.Module]:
        """The model that the adapter was put on; of a model that is trained in full, its frozen copy."""
        with self.adapter.disable_adapter() if self.adapter else nullcontext():
            yield self.model if self.adapter else self.reference or self.model

    def read(self, prompt: str, max_tokens: int = 256) -> str:
        """What the base model says to a prompt, greedily; for tools, so it waits until no rows are sampled."""
        with self.sampler.lock, self.base() as model:
            return models.say(model, self.tokenizer, prompt, max_tokens)

    @torch.no_grad()
    def reference_logprobs(self, batch: Batch, temperature: float) -> Tensor:
        with self.frozen() as model:
            return token_logprobs(model, batch, temperature)

    def trainable(self) -> dict[str, Tensor]:
        return {name: weight.detach() for name, weight in self.model.named_parameters() if weight.requires_grad}

    def restore(self, weights: dict[str, Tensor]) -> None:
        own = self.trainable()
        shapes, other = ({name: (*w.shape,) for name, w in each.items()}.items() for each in (own, weights))
        if shapes != other:
            raise ValueError(f"expected the checkpoint of the model's own weights, found {min(shapes ^ other)}")
        for name, weight in weights.items():
            own[name].copy_(weight)

    def save(self, folder: Path | str) -> None:
        only = {"selected_adapters": ["default"]} if self.adapter else {}
        (self.adapter or self.model).save_pretrained(folder, **only)
        self.tokenizer.save_pretrained(folder)
