"""Tree rollouts: sample, observe, fork (the paper's entropy-based adaptive rollout, section 3.1).

For each question N trajectories start from the prompt. After a tool result the entropy of the next tokens is
compared with that at the trajectory's beginning; where it jumped, new paths start right after the result, until
the tree has M leaves. What is left of the budget then starts from the prompt. Every tree ends with exactly M
leaves; with N = M nothing forks, and this is GRPO's sampling.

    paper             here                              paper         here
    M, N, Z, k        num_generations, num_initial,     ΔH_t, P_t     Decision.delta, Decision.prob
                      fan_out, entropy_tokens           α, β, τ       base_prob, entropy_weight, threshold
    H_initial, H_t    initial_entropy, entropy

Axis letters of tensors, in all files: Q questions, M leaves and N nodes of a tree, B rows of a batch, T tokens,
S sampled tokens, C cached columns, V vocabulary. `Sampler` continues rows of token ids with Hugging Face `generate`;
`Growth` is the tree algorithm and knows nothing of models. Left out: beam search.
"""

import hashlib
import math
from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import groupby
from os.path import commonprefix
from typing import Literal

import torch
from torch.nn.functional import pad
from transformers import DynamicCache, GenerationConfig, LogitsProcessor

from tools import CLOSING_TAGS, SAMPLING, ToolCall, ToolResult, begin_call, encode_result, may_close, parse_limits

PROMPT = -1  # the parent of a tree's first nodes


@dataclass(frozen=True)
class RolloutConfig:
    num_generations: int = 16  # M, leaves of every tree
    num_initial: int = 8  # N, trajectories started from the prompt; M of them is GRPO
    fan_out: int = 1  # Z, new paths at a branch
    entropy_tokens: int = 20  # k, tokens over which an entropy is averaged
    base_prob: float = 0.5  # α
    entropy_weight: float = 0.2  # β
    threshold: float = 0.5  # τ
    branch_rule: Literal["threshold", "coin"] = "threshold"  # P > τ; or with probability P, as the released code
    entropy_timing: Literal["after", "before"] = "after"  # measure after the tool result; or before, as released
    entropy_norm: Literal["log_vocab", "vocab"] = "log_vocab"  # ΔH over ln V; or over V, as the paper prints
    fork_at: Literal["result", "probe"] = "result"  # right after the result; or after the k measured tokens
    shuffle_entropy: bool = False  # control: ΔH permuted among a wave's candidates
    temperature: float = 1.0  # of sampling; 0 takes the likeliest token
    max_completion_length: int = 512  # tokens of a trajectory after the prompt, results included
    max_turn_tokens: int = 128  # sampled tokens of a turn
    max_result_tokens: int = 128  # tokens of a tool result that the policy reads
    max_tool_calls: int = 6  # of a trajectory
    tool_limits: str = ""  # of a trajectory by tool, such as "search=3,python=5"
    wave_quorum: float = 1.0  # share of the rows that must have stopped to end a call of generate

    def __post_init__(self):
        parse_limits(self.tool_limits)
        if (n := self.num_initial) > (m := self.num_generations) or n < 1:
            raise ValueError(f"num_initial (N) must be from 1 to num_generations (M = {m}), found {n}")
        for name in ("fan_out", "entropy_tokens", "max_completion_length", "max_turn_tokens", "max_result_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")


@dataclass
class Sample:
    """T tokens sampled by the policy, and why it stopped."""

    ids: list[int] = field(default_factory=list)  # the stop token included
    logprobs: list[float] = field(default_factory=list)  # of the sampler, at its temperature
    entropies: list[float] = field(default_factory=list)  # nats, full vocabulary, temperature 1
    stopped: str = ""  # "call": closing tool tag, "end": end token, "length": limit; "": wants to go on


@dataclass
class Decision:
    """What the branch rule saw after a tool result, and what came of it."""

    entropy: float  # H_t, nats
    initial_entropy: float  # H_initial, nats
    delta: float  # ΔH_t, normalised; under shuffle_entropy that of another candidate
    prob: float  # P_t
    bar: float  # what P_t had to exceed: τ, or the coin
    wave: int
    new_paths: int  # 0 also where the budget was spent


@dataclass
class Node(Sample):
    """One turn of the policy, all of it trained on, then the tokens of a tool result, none of them.

    `stopped` is "call", or "probe" where a fork cut the turn; at leaves "end", "length" or "calls".
    """

    parent: int = PROMPT  # index into Tree.nodes
    rank: int = 0  # place among its siblings; the lowest continues the path that came here
    call: ToolCall | None = None
    result: ToolResult | None = None
    observation: list[int] = field(default_factory=list)  # the result as the policy reads it
    decision: Decision | None = None


@dataclass
class Tree:
    prompt: list[int]
    nodes: list[Node] = field(default_factory=list)

    def leaves(self) -> list[int]:
        return [n for n, node in enumerate(self.nodes) if node.stopped in ("end", "length", "calls")]

    def path(self, leaf: int) -> list[int]:
        """Indices of the nodes from the first turn to `leaf`."""
        parent = self.nodes[leaf].parent
        return [leaf] if parent == PROMPT else [*self.path(parent), leaf]

    def descends(self) -> torch.Tensor:
        """D (N, M), 0/1: leaf m passes through node n."""
        paths = [set(self.path(leaf)) for leaf in self.leaves()]
        return torch.tensor([[float(n in path) for path in paths] for n in range(len(self.nodes))])

    def sorted(self) -> "Tree":
        """The same tree depth first, siblings by rank: the order in which rows happened to stop is gone."""
        order = sorted(range(len(self.nodes)), key=lambda n: [self.nodes[i].rank for i in self.path(n)])
        place = {PROMPT: PROMPT} | {old: new for new, old in enumerate(order)}
        return Tree(self.prompt, [replace(self.nodes[n], parent=place[self.nodes[n].parent]) for n in order])


@dataclass(eq=False)
class Path:
    """A trajectory while it is sampled: a row of the sampler, which reads the first five fields."""

    key: str  # names its randomness: token t depends on (key, t) and on nothing else
    ids: list[int]  # prompt and everything after it
    source: int  # row of the sampler's last call whose cache the ids begin with
    turn_start: int  # where the current turn begins in ids
    limit: int = 0  # tokens that the next call may sample; 0 keeps the cache and samples nothing
    rank: int = 0  # among the siblings at its node
    node: int = PROMPT  # that it last finished
    wave: int = 0  # of the tree, to which the current turn belongs
    called: tuple[str, ...] = ()  # the tools of its calls so far; "" where the call was malformed
    initial_entropy: float = math.nan  # H_initial
    last_entropy: float = math.nan  # of the last finished turn
    may_branch: bool = True  # top-up paths may not
    start: "Path | None" = None  # a copy from when the turn began, if it is the first to leave its node
    turn: Sample = field(default_factory=Sample)  # sampled since its node


def uniform(key: str, position: int) -> float:
    """A number in [0, 1) that depends on nothing but its two arguments."""
    digest = hashlib.blake2b(f"{key}@{position}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53


class _Step(LogitsProcessor):
    """One decoding step of B rows: notes entropies, draws tokens, and stops rows.

    It sees the raw logits (B, V) and draws by inverse CDF from each row's own randomness; all other tokens get -inf,
    so that `generate`, decoding greedily, takes the drawn one. A closing tag may be several tokens and may end inside
    one: only rows that drew a token which may complete it are decoded.
    """

    def __init__(self, sampler: "Sampler", rows: list[Path], quorum: float, on_stop):
        self.sampler, self.rows, self.on_stop = sampler, rows, on_stop
        self.samples, self.done = [Sample() for _ in rows], [row.limit == 0 for row in rows]
        self.enough = len(rows) - math.floor((1 - quorum) * self.done.count(False))
        self.logprobs, self.entropies = [], []  # a tensor (B,) a step

    def __call__(self, input_ids, logits):
        logp, temperature = logits.float().log_softmax(-1), self.sampler.temperature
        self.entropies.append(-(logp.exp() * logp).nan_to_num().sum(-1))
        if temperature == 0:
            tokens = logp.argmax(-1, keepdim=True)
        else:
            logp = logp if temperature == 1 else (logits.float() / temperature).log_softmax(-1)
            cdf, step = logp.double().exp().cumsum(-1), len(self.logprobs)
            u = torch.tensor([[uniform(row.key, len(row.ids) + step)] for row in self.rows], dtype=torch.double)
            tokens = torch.searchsorted(cdf, u.to(cdf.device) * cdf[:, -1:], right=True)
        self.logprobs.append(logp.gather(-1, tokens).squeeze(-1))
        if not self.finished():
            self._note(tokens.flatten().tolist())
        return torch.full_like(logits, -torch.inf).scatter(-1, tokens, 0.0)

    def finished(self) -> bool:
        return sum(self.done) >= self.enough

    def _note(self, tokens: list[int]) -> None:
        for i, (token, row, sample) in enumerate(zip(tokens, self.rows, self.samples)):
            if not self.done[i]:
                sample.ids.append(token)
                if token in self.sampler.may_stop:
                    sample.stopped = self._reason(row.ids[row.turn_start :] + sample.ids)
                if not sample.stopped and len(sample.ids) >= row.limit:
                    sample.stopped = "length"
                if sample.stopped:
                    self.done[i] = True
                    self.on_stop(i, sample)

    def _reason(self, turn: list[int]) -> str:
        if turn[-1] in self.sampler.end_ids:
            return "end"
        text, before = self.sampler.tokenizer.batch_decode([turn[-16:], turn[-16:-1]])  # no tag is longer
        return "call" if any(text.count(tag) > before.count(tag) for tag in CLOSING_TAGS) else ""


class Sampler:
    """Continues rows of token ids with `generate`, feeding only what the KV cache lacks.

    After a call the cache holds that call's B rows. A row of the next call names one of them as its source and shares
    a prefix with it. Whether it goes on, got a tool result, or is a fork: its cached prefix is gathered out of the
    source's columns (keys carry their positions, so columns may move), and the rest is fed. `counts`: prefilled
    (prompt and result tokens fed for the first time), refed (fed again because a row needs a last token to sample
    from), decoded (sampled tokens), holes (columns fed for nothing: padding, and rows that had stopped already).
    """

    def __init__(self, model, tokenizer, temperature: float = 1.0):
        self.model, self.tokenizer, self.temperature = model, tokenizer, temperature
        ends = model.generation_config.eos_token_id
        self.end_ids = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
        self.pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        # `generate` fills unset fields from the checkpoint, e.g. a repetition penalty: leave it none.
        model.generation_config = GenerationConfig(pad_token_id=self.pad, eos_token_id=sorted(self.end_ids))
        self.vocab_size = model.get_output_embeddings().weight.shape[0]
        pieces = tokenizer.convert_ids_to_tokens(list(range(min(len(tokenizer), self.vocab_size))))
        self.may_stop = self.end_ids | {t for t, piece in enumerate(pieces) if may_close(piece or "")}
        self.counts: Counter = Counter()

    @torch.no_grad()
    def _forward(self, rows: list[list[int]], mask: torch.Tensor, cache: DynamicCache) -> torch.Tensor:
        """Appends rows of ids, right-aligned, to a cache with its mask (B, C); returns the mask of both."""
        width = max(map(len, rows))
        ids = torch.tensor([[self.pad] * (width - len(row)) + row for row in rows], device=mask.device)
        real = torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in rows], device=mask.device)
        mask = torch.cat([mask, real], dim=1)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -width:]
        self.model(ids, mask.long(), positions, past_key_values=cache, use_cache=True, logits_to_keep=1)
        self.counts["holes"] += int((~real).sum())
        return mask

    def prefill(self, prompts: list[list[int]]) -> None:
        """Feeds each prompt once; prompt q is then row q."""
        self.cache, self.ids = DynamicCache(), prompts
        nothing = torch.zeros(len(prompts), 0, dtype=torch.bool, device=self.model.device)
        self.mask = self._forward(prompts, nothing, self.cache)  # True at each row's real columns of the cache (B, C)
        self.counts["prefilled"] += sum(map(len, prompts))

    def _gather(self, rows: list[Path]) -> list[list[int]]:
        """Brings the cache into the order of `rows`; returns the ids of each that are still to be fed."""
        cached, kept = self.mask.sum(-1).tolist(), []
        for row in rows:
            shared = len(commonprefix([self.ids[row.source], row.ids]))
            known = min(shared, cached[row.source])  # of the rest, a token sampled last is shared but not yet fed
            kept.append(min(known, len(row.ids) - 1))  # at least one token must be fed
            self.counts["refed"] += known - kept[-1]
            self.counts["prefilled"] += len(row.ids) - shared
        sources = torch.tensor([row.source for row in rows], device=self.mask.device)
        columns = self.mask.int().argsort(dim=-1, descending=True, stable=True)[sources]  # real ones first, in order
        place = torch.arange(-max(kept), 0, device=columns.device) + torch.tensor(kept, device=columns.device)[:, None]
        index = columns.gather(1, place.clamp(min=0))  # (B, C), right-aligned
        for layer in self.cache.layers:
            layer.keys = layer.keys[sources[:, None], :, index].transpose(1, 2)
            layer.values = layer.values[sources[:, None], :, index].transpose(1, 2)
        self.mask = place >= 0
        return [row.ids[n:] for row, n in zip(rows, kept)]

    def _feed(self, pending: list[list[int]]) -> None:
        """Feeds what each row lacks but for its last token, from which `generate` goes on.

        Rows that lack about as much go together, so that one that read a short result is not padded to a long one.
        """
        lengths, cached = [len(ids) - 1 for ids in pending], self.mask.shape[1]
        self.mask = pad(self.mask, (0, max(lengths)))
        for layer in self.cache.layers:
            layer.keys, layer.values = (pad(block, (0, 0, 0, max(lengths))) for block in (layer.keys, layer.values))
        lacking = sorted((i for i, length in enumerate(lengths) if length), key=lambda i: lengths[i])
        for group in (list(group) for _, group in groupby(lacking, key=lambda i: lengths[i].bit_length())):
            cache, width = DynamicCache(), lengths[group[-1]]
            for n, layer in enumerate(self.cache.layers):
                cache.update(layer.keys[group, :, :cached], layer.values[group, :, :cached], n)
            mask = self._forward([pending[i][:-1] for i in group], self.mask[group, :cached], cache)
            self.mask[group, -width:] = mask[:, -width:]
            for layer, fed in zip(self.cache.layers, cache.layers):
                layer.keys[group, :, -width:] = fed.keys[:, :, -width:]
                layer.values[group, :, -width:] = fed.values[:, :, -width:]

    def __call__(self, rows: list[Path], quorum: float = 1.0, on_stop=lambda i, sample: None) -> list[Sample]:
        """Samples until the quorum of rows has stopped; `on_stop(i, sample)` is called as row i stops."""
        self._feed(self._gather(rows))
        self.mask = pad(self.mask, (0, 1), value=True)
        tape = torch.full(self.mask.shape, self.pad, device=self.mask.device)  # `generate` feeds what is not cached:
        tape[:, -1] = torch.tensor([row.ids[-1] for row in rows])  # the last column
        step, limit = _Step(self, rows, quorum, on_stop), max(row.limit for row in rows)
        stop = lambda ids, _, **kwargs: ids.new_full(ids.shape[:1], step.finished(), dtype=torch.bool)
        settings = GenerationConfig(max_new_tokens=limit, do_sample=False, pad_token_id=self.pad)
        inputs = dict(input_ids=tape, attention_mask=self.mask.long(), past_key_values=self.cache)
        more = dict(logits_processor=[step], stopping_criteria=[stop], generation_config=settings)
        out = self.model.generate(**inputs, **more)
        steps = out.shape[1] - tape.shape[1]
        if self.cache.get_seq_length() != out.shape[1] - 1:  # a cache that ended elsewhere was fed twice, silently
            raise RuntimeError(f"the cache holds {self.cache.get_seq_length()} columns, expected {out.shape[1] - 1}")
        logprobs, entropies = torch.stack(step.logprobs, 1).tolist(), torch.stack(step.entropies, 1).tolist()
        for i, sample in enumerate(step.samples):
            sample.logprobs, sample.entropies = logprobs[i][: len(sample.ids)], entropies[i][: len(sample.ids)]
        lengths = torch.tensor([len(sample.ids) for sample in step.samples], device=out.device)
        self.mask = torch.cat([self.mask, torch.arange(steps - 1, device=out.device) < lengths[:, None]], dim=1)
        self.ids = [row.ids + sample.ids for row, sample in zip(rows, step.samples)]
        self.counts.update(decoded=int(lengths.sum()), holes=steps * len(rows) - int(lengths.sum()))
        return step.samples


class Growth:
    """One tree while it grows. Its waves are logical: a path's turns are numbered, and a wave is decided when no path
    has a turn of it left to finish. Nothing here depends on the clock or on other trees, so the tree does not."""

    def __init__(self, prompt: list[int], key: str, source: int, config: RolloutConfig, vocab_size: int):
        self.tree, self.key, self.config = Tree(prompt), key, config
        self.norm = math.log(vocab_size) if config.entropy_norm == "log_vocab" else vocab_size
        self.source = source  # a row of the last call that begins with this prompt
        self.paths: list[Path] = []  # those that go on
        # Undecided forks: H_t, the path that left a result first, its copy from then, the turn it took.
        self.candidates: list[tuple[float, Path, Path, int]] = []
        self.budget = config.num_generations
        self._start(config.num_initial, may_branch=True)

    def _start(self, count: int, may_branch: bool) -> None:
        """Fresh trajectories from the prompt."""
        first, prompt = self.config.num_generations - self.budget, self.tree.prompt
        for n in range(first, first + count):
            self.paths.append(Path(f"{self.key}/{n}", prompt, self.source, len(prompt), rank=n, may_branch=may_branch))
        self.budget -= count

    def _room(self, path: Path) -> int:
        return self.config.max_completion_length - (len(path.ids) - len(self.tree.prompt))

    def rows(self) -> list[Path]:
        """What the next call must hold: paths that go on, and ended ones (limit 0) that may yet be forked."""
        rows = self.paths + [path for _, path, _, _ in self.candidates if path not in self.paths]
        for path in rows:
            limit = min(self._room(path), self.config.max_turn_tokens - (len(path.ids) - path.turn_start))
            path.limit = limit if path in self.paths else 0
        return rows

    def sample(self, path: Path, sample: Sample) -> None:
        """Adds what was sampled; a finished turn becomes a node, and a candidate if it left a result first."""
        old, path.ids = path.turn, path.ids + sample.ids
        lists = old.ids + sample.ids, old.logprobs + sample.logprobs, old.entropies + sample.entropies
        turn = path.turn = Sample(*lists, sample.stopped)
        if not turn.stopped:
            return
        measured = turn.entropies[: self.config.entropy_tokens]
        self.tree.nodes.append(Node(**vars(turn), parent=path.node, rank=path.rank))
        path.last_entropy = sum(measured) / len(measured)
        if path.node == PROMPT:
            path.initial_entropy = path.last_entropy
        path.node = len(self.tree.nodes) - 1
        if path.start:
            entropy = path.last_entropy if self.config.entropy_timing == "after" else path.start.last_entropy
            self.candidates.append((entropy, path, path.start, path.node))
        if turn.stopped != "call":
            self.paths.remove(path)

    def observe(self, path: Path, call: ToolCall | None, result: ToolResult | None, observation: list[int]) -> None:
        """Puts a tool's result behind the turn that asked for it, or ends the path at one of its limits."""
        node = self.tree.nodes[path.node]
        node.call, node.result = call, result
        path.called += (call.tool if call else "",)
        if result is None or len(observation) >= self._room(path):
            node.stopped = "calls" if result is None else "length"
            self.paths.remove(path)
            return
        node.observation = observation
        path.ids = path.ids + observation
        path.turn_start, path.wave, path.rank, path.turn = len(path.ids), path.wave + 1, 0, Sample()
        path.start = replace(path, start=None, turn=Sample()) if path.may_branch else None

    def fork(self) -> None:
        """Decides every wave that all paths have left behind, and tops up a tree that has come to rest."""
        while self.candidates:
            wave = min(start.wave for _, _, start, _ in self.candidates)
            if any(path.wave <= wave for path in self.paths):
                return
            ready = sorted((c for c in self.candidates if c[2].wave == wave), key=lambda c: c[2].key)
            self.candidates = [c for c in self.candidates if c not in ready]
            self._decide(ready, wave)
        if not self.paths:
            self._start(self.budget, may_branch=False)

    def _decide(self, ready: list, wave: int) -> None:
        """Applies the branch rule to a wave's candidates; where the budget is short, highest P_t first."""
        cfg = self.config
        deltas = [(entropy - start.initial_entropy) / self.norm for entropy, _, start, _ in ready]
        if cfg.shuffle_entropy:
            order = sorted(range(len(ready)), key=lambda i: uniform(f"{self.key}/shuffle{wave}", i))
            deltas = [deltas[i] for i in order]
        for delta, candidate in sorted(zip(deltas, ready), key=lambda pair: -cfg.entropy_weight * pair[0]):
            entropy, path, start, child = candidate
            prob = cfg.base_prob + cfg.entropy_weight * delta
            coin = uniform(f"{start.key}/coin", len(start.ids))
            bar = cfg.threshold if cfg.branch_rule == "threshold" else coin
            new = min(cfg.fan_out, self.budget) if prob > bar else 0
            decision = Decision(entropy, start.initial_entropy, delta, prob, bar, wave, new)
            self.tree.nodes[start.node].decision = decision
            self._branch(path, start, child, new)

    def _branch(self, path: Path, start: Path, child_index: int, new: int) -> None:
        """Starts `new` siblings of a turn right after the result, or after the turn's probe tokens."""
        node, ids, child = start.node, start.ids, self.tree.nodes[child_index]
        cut = min(self.config.entropy_tokens, len(child.ids) - 1) if self.config.fork_at == "probe" else 0
        if new and cut:
            parts = [child.ids, child.logprobs, child.entropies]
            self.tree.nodes.append(Node(*(part[:cut] for part in parts), "probe", child.parent, child.rank))
            child.ids, child.logprobs, child.entropies = (part[cut:] for part in parts)
            child.parent, child.rank = len(self.tree.nodes) - 1, 0
            node, ids = child.parent, ids + self.tree.nodes[-1].ids
        for z in range(1, new + 1):
            own = dict(key=f"{start.key}/{len(ids)}.{z}", ids=ids, source=path.source, node=node, rank=z, turn=Sample())
            self.paths.append(replace(start, wave=start.wave + 1, **own))
        self.budget -= new


def grow_trees(prompts, keys, sampler, tools, tokenizer, config: RolloutConfig) -> list[Tree]:
    """Grows a tree of exactly M leaves for each of Q prompts (lists of ids), all of them at once.

    `keys` (Q strings) name the randomness: the same prompt, key and weights give the same tree, however many trees
    are grown together. `tools` has `submit(call) -> Future[ToolResult]`.
    """
    sampler.prefill(prompts)
    growths = [Growth(prompt, key, q, config, sampler.vocab_size) for q, (prompt, key) in enumerate(zip(prompts, keys))]
    while places := [(growth, path) for growth in growths for path in growth.rows()]:
        calls = {}

        def begin(i: int, sample: Sample) -> None:  # the moment row i stops: its tool runs while others decode
            path = places[i][1]
            if sample.stopped == "call":
                turn = tokenizer.decode(path.ids[path.turn_start :] + sample.ids)
                calls[i] = begin_call(tools, turn, path.called, config.max_tool_calls, config.tool_limits)

        with SAMPLING:
            samples = sampler([path for _, path in places], config.wave_quorum, begin)
        for i, ((growth, path), sample) in enumerate(zip(places, samples)):
            path.source = growth.source = i
            growth.sample(path, sample)
            if i in calls:
                call, future = calls[i]
                result = future.result() if future else None
                observation = encode_result(tokenizer, result.text, config.max_result_tokens) if result else []
                growth.observe(path, call, result, observation)
        for growth in growths:
            growth.fork()
    return [growth.tree.sorted() for growth in growths]


if __name__ == "__main__":
    from eval import tree_command  # a command stands above everything, so this import alone looks forward

    tree_command()
