"""Tree rollouts: sample, observe, fork (the paper's entropy-based adaptive rollout, section 3.1).

For each question N trajectories start from the prompt. After a tool result the entropy of the next
tokens is compared with the entropy at the trajectory's beginning; where it jumped, new paths start
right after the result, until the tree has M leaves. What is left of the budget then starts from the
prompt. Every tree ends with exactly M leaves; with N = M nothing forks, and this is GRPO's sampling.

    paper             here                              paper         here
    M, N, Z, k        num_generations, num_initial,     ΔH_t          Decision.delta
                      fan_out, entropy_tokens           P_t           Decision.prob
    H_initial, H_t    initial_entropy, entropy          α, β, τ       base_prob, entropy_weight, threshold

Axis letters, here and in the other files: Q questions, M leaves of a tree, N nodes of a tree,
B rows of a batch, T tokens, C cached columns, V vocabulary.

`Sampler` continues rows of token ids with Hugging Face `generate` and keeps their KV cache; `Growth`
is the tree algorithm and knows nothing of models. Left out: beam search, several models at once.
"""

import hashlib
import math
from collections import Counter
from dataclasses import dataclass, field, replace

import torch
from transformers import DynamicCache, GenerationConfig, LogitsProcessor, StoppingCriteria

from tools import CLOSING_TAGS, LIMIT_TEXT, ToolCall, ToolResult, encode_result, parse_call

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
    branch_rule: str = "threshold"  # P > τ; or "coin": with probability P (the released code)
    entropy_timing: str = "after"  # the tool result; or "before" it (the released code)
    entropy_norm: str = "log_vocab"  # ΔH / ln V; or "vocab": ΔH / V (the paper's text)
    fork_at: str = "result"  # right after the result; or "probe": after the k measured tokens
    shuffle_entropy: bool = False  # control: ΔH permuted among a wave's candidates
    temperature: float = 1.0  # of sampling; 0 takes the likeliest token
    max_completion_length: int = 512  # tokens of a trajectory after the prompt, results included
    max_turn_tokens: int = 128
    max_result_tokens: int = 128
    max_tool_calls: int = 6  # of a trajectory
    wave_quorum: float = 1.0  # share of the rows that must have stopped to end a call of generate

    def __post_init__(self):
        if not 1 <= self.num_initial <= self.num_generations:
            raise ValueError(
                f"num_initial (N) must lie between 1 and num_generations (M = {self.num_generations}), "
                f"found {self.num_initial}"
            )
        for name in ("fan_out", "entropy_tokens", "max_completion_length", "max_turn_tokens", "max_result_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")
        if not 0 < self.wave_quorum <= 1:
            raise ValueError(f"wave_quorum must lie in (0, 1], found {self.wave_quorum}")


# ---------------------------------------------------------------------------------- the tree


@dataclass
class Decision:
    """What the branch rule saw after a tool result, and what came of it."""

    entropy: float  # H_t, nats
    initial_entropy: float  # H_initial, nats
    delta: float  # ΔH_t, normalised
    prob: float  # P_t
    wave: int
    new_paths: int = 0
    why: str = ""


@dataclass
class Node:
    """One turn of the policy: tokens it sampled, then the tokens of a tool result."""

    parent: int  # index into Tree.nodes, or PROMPT
    rank: int  # place among its siblings; the lowest continues the path that came here
    ids: list[int]  # sampled tokens, stop token included: all of them are trained on, nothing else is
    logprobs: list[float]  # of the sampler, at its temperature
    entropies: list[float]  # nats, full vocabulary, temperature 1
    end: str  # "call", "probe" (cut by a fork); and at leaves "end", "length", "calls"
    call: ToolCall | None = None
    result: ToolResult | None = None
    observation: list[int] = field(default_factory=list)  # the result's tokens, as the policy reads them
    decision: Decision | None = None


@dataclass
class Tree:
    prompt: list[int]
    nodes: list[Node] = field(default_factory=list)

    def leaves(self) -> list[int]:
        return [n for n, node in enumerate(self.nodes) if node.end in ("end", "length", "calls")]

    def path(self, leaf: int) -> list[int]:
        """Indices of the nodes from the first turn to `leaf`."""
        nodes = [leaf]
        while self.nodes[nodes[0]].parent != PROMPT:
            nodes.insert(0, self.nodes[nodes[0]].parent)
        return nodes

    def turns(self, leaf: int) -> list[list[int]]:
        """The sampled ids of each turn on the way to `leaf`."""
        turns: list[list[int]] = [[]]
        for n in self.path(leaf):
            turns[-1] = turns[-1] + self.nodes[n].ids
            if self.nodes[n].observation:
                turns.append([])
        return turns

    def descends(self) -> torch.Tensor:
        """D (N, M), 0/1: leaf m passes through node n."""
        leaves = self.leaves()
        matrix = torch.zeros(len(self.nodes), len(leaves))
        for m, leaf in enumerate(leaves):
            matrix[self.path(leaf), m] = 1
        return matrix

    def sorted(self) -> "Tree":
        """The same tree depth first, siblings by rank: the order in which rows happened to stop is gone."""
        order = sorted(range(len(self.nodes)), key=lambda n: [self.nodes[i].rank for i in self.path(n)])
        place = {PROMPT: PROMPT} | {old: new for new, old in enumerate(order)}
        return Tree(self.prompt, [replace(self.nodes[n], parent=place[self.nodes[n].parent]) for n in order])


# ---------------------------------------------------------------------------------- the sampler


@dataclass
class Sample:
    """T sampled tokens. `stopped` is "call", "end" or "length"; "" where the row wants to go on, "idle" at limit 0."""

    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)
    stopped: str = ""

    def extend(self, other: "Sample") -> None:
        self.ids += other.ids
        self.logprobs += other.logprobs
        self.entropies += other.entropies
        self.stopped = other.stopped


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
    calls: int = 0
    initial_entropy: float = math.nan  # H_initial
    last_entropy: float = math.nan  # of the last finished turn
    may_branch: bool = True  # top-up paths may not
    start: "Path | None" = None  # itself when the turn began, if it is the first to leave its node: siblings' start
    turn: Sample = field(default_factory=Sample)  # sampled since its node


def uniform(key: str, position: int) -> float:
    """A number in [0, 1) that depends on nothing but its two arguments."""
    digest = hashlib.blake2b(f"{key}@{position}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53


class _Draw(LogitsProcessor):
    """Draws every row's token by inverse CDF from its own randomness; notes log-prob and entropy.

    It is the only logits processor and sees the raw logits, (B, V). All but the drawn token get -inf,
    so that `generate`, decoding greedily, takes what was drawn here.
    """

    def __init__(self, rows: list[Path], temperature: float):
        self.rows, self.temperature = rows, temperature
        self.logprobs: list[torch.Tensor] = []  # per step, (B,)
        self.entropies: list[torch.Tensor] = []

    def __call__(self, input_ids, logits):
        step = len(self.logprobs)
        logp = logits.float().log_softmax(-1)
        self.entropies.append(-(logp.exp() * logp).nan_to_num().sum(-1))
        if self.temperature not in (0, 1):
            logp = (logits.float() / self.temperature).log_softmax(-1)
        if self.temperature == 0:
            tokens = logits.argmax(-1, keepdim=True)
        else:
            cdf = logp.double().exp().cumsum(-1)
            u = torch.tensor([uniform(row.key, len(row.ids) + step) for row in self.rows], dtype=torch.float64)
            tokens = torch.searchsorted(cdf, u.to(cdf.device)[:, None] * cdf[:, -1:], right=True)
            tokens.clamp_(max=logits.shape[-1] - 1)
        self.logprobs.append(logp.gather(-1, tokens).squeeze(-1))
        return torch.full_like(logits, -torch.inf).scatter(-1, tokens, 0.0)


class _Stop(StoppingCriteria):
    """Stops a row at the end token, at a closing tool tag or at its limit; ends the call at the quorum.

    A closing tag may be several tokens and may end inside one; only tokens that contain ">" can
    complete it, and only rows that just sampled such a token are decoded.
    """

    def __init__(self, sampler: "Sampler", rows: list[Path], width: int, quorum: float, on_stop):
        self.sampler, self.rows, self.width, self.on_stop = sampler, rows, width, on_stop
        self.reason = ["idle" if row.limit == 0 else "" for row in rows]
        self.length = [0] * len(rows)
        self.enough = math.ceil(quorum * self.reason.count("")) + self.reason.count("idle")
        self.done = torch.tensor([reason != "" for reason in self.reason])

    def __call__(self, input_ids, scores, **kwargs):
        last, step = input_ids[:, -1], input_ids.shape[1] - self.width
        may_stop = self.sampler.may_stop[last].tolist()
        for i, row in enumerate(self.rows):
            if self.reason[i]:
                continue
            self.length[i] = step
            if may_stop[i]:
                ids = input_ids[i, self.width :].tolist()
                self.reason[i] = self._reason(row.ids[row.turn_start :], ids)
                if self.reason[i]:
                    self.on_stop(i, Sample(ids, stopped=self.reason[i]))
            if not self.reason[i] and step >= row.limit:
                self.reason[i] = "length"
            self.done[i] = self.reason[i] != ""
        if int(self.done.sum()) >= self.enough:
            return torch.ones(len(self.rows), dtype=torch.bool, device=input_ids.device)
        return self.done.to(input_ids.device)

    def _reason(self, earlier: list[int], ids: list[int]) -> str:
        if ids[-1] in self.sampler.end_ids:
            return "end"
        tail = (earlier + ids)[-16:]  # longer than any closing tag
        text, before = self.sampler.tokenizer.batch_decode([tail, tail[:-1]])
        return "call" if any(text.count(tag) > before.count(tag) for tag in CLOSING_TAGS) else ""


class Sampler:
    """Continues rows of token ids with `generate`, feeding only what the KV cache lacks.

    After a call the cache holds that call's B rows. A row of the next call names one of them as its
    source and shares a prefix with it; whether it goes on, got a tool result, or is a fork, its cached
    prefix is gathered out of the source's columns (which drops all holes) and the rest is fed. Keys
    carry their own positions, so columns may move.

    `counts`: prefilled (prompt and result tokens fed for the first time), refed (tokens fed again
    because a row needs a last token to sample from), decoded (sampled tokens), holes (columns fed for
    nothing: padding, and rows that had stopped already).
    """

    def __init__(self, model, tokenizer, temperature: float = 1.0):
        self.model, self.tokenizer, self.temperature = model, tokenizer, temperature
        ends = model.generation_config.eos_token_id
        self.end_ids = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
        self.pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        # `generate` fills unset fields from the checkpoint, e.g. a repetition penalty: leave it none.
        model.generation_config = GenerationConfig(pad_token_id=self.pad, eos_token_id=sorted(self.end_ids))
        self.vocab_size = model.get_output_embeddings().weight.shape[0]
        pieces = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
        self.may_stop = torch.zeros(self.vocab_size, dtype=torch.bool, device=model.device)
        stops = [t for t, piece in enumerate(pieces) if piece and ">" in piece or t in self.end_ids]
        self.may_stop[[t for t in stops if t < self.vocab_size]] = True
        self.counts: Counter = Counter()

    @torch.no_grad()
    def prefill(self, prompts: list[list[int]]) -> None:
        """Feeds each prompt once; prompt q is then row q."""
        width = max(map(len, prompts))
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=self.model.device)
        ids = torch.tensor([[self.pad] * (width - len(p)) + p for p in prompts], device=self.model.device)
        self.cache = DynamicCache(config=self.model.config)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        self.model(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=self.cache, logits_to_keep=1
        )
        self.ids, self.mask = [list(p) for p in prompts], mask.bool()  # of row b: all ids; its real cached columns
        self.counts["prefilled"] += int(mask.sum())
        self.counts["holes"] += int((1 - mask).sum())

    def _gather(self, rows: list[Path]) -> list[int]:
        """Brings the cache into the order of `rows`; returns how many tokens of each it holds (B,)."""
        cached = self.mask.sum(-1).tolist()
        kept = []
        for row in rows:
            source = self.ids[row.source]
            shared = next((t for t, (a, b) in enumerate(zip(source, row.ids)) if a != b), min(len(source), len(row.ids)))
            known = min(shared, cached[row.source])
            kept.append(min(known, len(row.ids) - 1))  # at least one token must be fed
            unfed = shared - known  # sampled last in the previous call, and not yet fed
            self.counts["refed"] += known - kept[-1]
            self.counts["prefilled"] += len(row.ids) - known - unfed
        sources = torch.tensor([row.source for row in rows], device=self.mask.device)
        columns = self.mask.int().argsort(dim=-1, descending=True, stable=True)[sources]  # real ones first, in order
        width = max(kept)
        place = torch.arange(width, device=columns.device) - width + torch.tensor(kept, device=columns.device)[:, None]
        index = columns.gather(1, place.clamp(min=0))  # (B, C), right-aligned
        for layer in self.cache.layers:
            layer.keys = layer.keys[sources[:, None], :, index].transpose(1, 2)
            layer.values = layer.values[sources[:, None], :, index].transpose(1, 2)
        self.mask = place >= 0
        return kept

    def __call__(self, rows: list[Path], quorum: float = 1.0, on_stop=lambda i, sample: None) -> list[Sample]:
        """Samples until the quorum of rows has stopped; `on_stop(i, sample)` is called as row i stops."""
        kept = self._gather(rows)
        width, device = self.mask.shape[1], self.mask.device
        pending = [row.ids[n:] for row, n in zip(rows, kept)]
        fed = max(map(len, pending))
        tape = torch.full((len(rows), width + fed), self.pad, device=device)  # cached columns are never read
        tape[:, width:] = torch.tensor([[self.pad] * (fed - len(p)) + p for p in pending], device=device)
        real = torch.tensor([[False] * (fed - len(p)) + [True] * len(p) for p in pending], device=device)
        mask = torch.cat([self.mask, real], dim=1)

        draw = _Draw(rows, self.temperature)
        stop = _Stop(self, rows, width + fed, quorum, on_stop)
        out = self.model.generate(
            input_ids=tape,
            attention_mask=mask.long(),
            past_key_values=self.cache,
            logits_processor=[draw],
            stopping_criteria=[stop],
            generation_config=GenerationConfig(
                max_new_tokens=max(row.limit for row in rows), do_sample=False, pad_token_id=self.pad, use_cache=True
            ),
        )
        steps = out.shape[1] - tape.shape[1]
        if self.cache.get_seq_length() != out.shape[1] - 1:
            raise RuntimeError(f"the cache holds {self.cache.get_seq_length()} columns, expected {out.shape[1] - 1}")

        ids, logprobs, entropies = (
            block.tolist()
            for block in (out[:, -steps:], torch.stack(draw.logprobs, 1), torch.stack(draw.entropies, 1))
        )
        taken = [min(n, steps) for n in stop.length]  # on a GPU `generate` may step once more and undo it
        samples = [Sample(ids[i][:n], logprobs[i][:n], entropies[i][:n], stop.reason[i]) for i, n in enumerate(taken)]
        lengths = torch.tensor(taken, device=device)
        self.mask = torch.cat([mask, torch.arange(steps - 1, device=device) < lengths[:, None]], dim=1)
        self.ids = [row.ids + sample.ids for row, sample in zip(rows, samples)]
        self.counts["decoded"] += sum(taken)
        self.counts["holes"] += fed * len(rows) - sum(map(len, pending)) + steps * len(rows) - sum(taken)
        return samples


# ---------------------------------------------------------------------------------- the growth


@dataclass
class Candidate:
    """A result where siblings may start, and the measurement that decides it."""

    path: Path  # the first to leave the result
    start: Path  # that path as it left, which the siblings repeat
    child: int  # the turn that it took there
    entropy: float  # H_t


class Growth:
    """One tree while it grows.

    Its waves are logical: a path's turns are numbered, and a wave is decided when no path has a turn
    of it left to finish. Nothing here depends on the clock or on other trees, so the tree does not.
    """

    def __init__(self, prompt: list[int], key: str, source: int, config: RolloutConfig, vocab_size: int):
        self.tree, self.key, self.config = Tree(prompt), key, config
        self.norm = math.log(vocab_size) if config.entropy_norm == "log_vocab" else vocab_size
        self.source = source  # a row of the last call that begins with this prompt
        self.paths: list[Path] = []  # those that go on
        self.candidates: list[Candidate] = []  # undecided
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
        for path in self.paths:
            path.limit = min(self._room(path), self.config.max_turn_tokens - (len(path.ids) - path.turn_start))
        return self.paths + [c.path for c in self.candidates if c.path not in self.paths]

    def sample(self, path: Path, sample: Sample) -> None:
        """Adds what was sampled; a finished turn becomes a node, and a candidate if it left a result first."""
        path.ids = path.ids + sample.ids
        path.turn.extend(sample)
        if sample.stopped in ("", "idle"):
            return
        turn = path.turn
        measured = turn.entropies[: self.config.entropy_tokens]
        self.tree.nodes.append(Node(path.node, path.rank, turn.ids, turn.logprobs, turn.entropies, turn.stopped))
        path.last_entropy = sum(measured) / len(measured)
        if path.node == PROMPT:
            path.initial_entropy = path.last_entropy
        path.node = len(self.tree.nodes) - 1
        if path.start:
            entropy = path.last_entropy if self.config.entropy_timing == "after" else path.start.last_entropy
            self.candidates.append(Candidate(path, path.start, path.node, entropy))
        if turn.stopped != "call":
            self.paths.remove(path)
            path.limit = 0

    def observe(self, path: Path, call: ToolCall | None, result: ToolResult | None, observation: list[int]) -> None:
        """Puts a tool's result behind the turn that asked for it, or ends the path at one of its limits."""
        node = self.tree.nodes[path.node]
        node.call, node.result = call, result
        path.calls += 1
        if result is None or len(observation) >= self._room(path):
            node.end = "calls" if result is None else "length"
            self.paths.remove(path)
            path.limit = 0
            return
        node.observation = observation
        path.ids = path.ids + observation
        path.turn_start, path.wave, path.rank, path.turn = len(path.ids), path.wave + 1, 0, Sample()
        path.start = replace(path, start=None, turn=Sample()) if path.may_branch else None

    def fork(self) -> None:
        """Decides every wave that all paths have left behind, and tops up a tree that has come to rest."""
        while self.candidates:
            wave = min(c.start.wave for c in self.candidates)
            if any(path.wave <= wave for path in self.paths):
                return
            ready = sorted((c for c in self.candidates if c.start.wave == wave), key=lambda c: c.path.key)
            self.candidates = [c for c in self.candidates if c.start.wave != wave]
            self._decide(ready, wave)
        if not self.paths:
            self._start(self.budget, may_branch=False)

    def _decide(self, ready: list[Candidate], wave: int) -> None:
        """Applies the branch rule to a wave's candidates; where the budget is short, highest P_t first."""
        cfg = self.config
        deltas = [(c.entropy - c.start.initial_entropy) / self.norm for c in ready]
        if cfg.shuffle_entropy:
            order = sorted(range(len(ready)), key=lambda i: uniform(f"{self.key}/shuffle{wave}", i))
            deltas = [deltas[i] for i in order]
        for delta, c in sorted(zip(deltas, ready), key=lambda pair: -cfg.entropy_weight * pair[0]):
            prob = cfg.base_prob + cfg.entropy_weight * delta
            coin = uniform(f"{c.path.key}/coin", len(c.start.ids))
            bar = cfg.threshold if cfg.branch_rule == "threshold" else coin
            new = min(cfg.fan_out, self.budget) if prob > bar else 0
            why = f"P {'>' if prob > bar else '≤'} {'τ' if bar is cfg.threshold else 'coin'} {bar:.4g}"
            why += ", no budget left" if prob > bar and not new else ""
            decision = Decision(c.entropy, c.start.initial_entropy, delta, prob, wave, new, why)
            self.tree.nodes[c.start.node].decision = decision
            self._branch(c, new)

    def _branch(self, c: Candidate, new: int) -> None:
        """Starts `new` siblings right after the result, or after the probe tokens."""
        node, ids, child = c.start.node, c.start.ids, self.tree.nodes[c.child]
        cut = min(self.config.entropy_tokens, len(child.ids) - 1) if self.config.fork_at == "probe" else 0
        if new and cut:
            head = Node(child.parent, child.rank, child.ids[:cut], child.logprobs[:cut], child.entropies[:cut], "probe")
            self.tree.nodes.append(head)
            node, ids = len(self.tree.nodes) - 1, ids + head.ids
            child.parent, child.rank = node, 0
            child.ids, child.logprobs, child.entropies = child.ids[cut:], child.logprobs[cut:], child.entropies[cut:]
        for z in range(1, new + 1):
            key = f"{c.path.key}/{len(ids)}.{z}"
            sibling = replace(c.start, key=key, ids=ids, source=c.path.source, node=node, rank=z, wave=c.start.wave + 1)
            self.paths.append(replace(sibling, turn=Sample()))
        self.budget -= new


def grow_trees(prompts, keys, sampler, tools, tokenizer, config: RolloutConfig, max_rows: int = 512) -> list[Tree]:
    """Grows a tree of exactly M leaves for each of Q prompts (lists of ids).

    `keys` (Q strings) name the randomness: the same prompt, key and weights give the same tree, however
    many trees are grown together (`max_rows` bounds the rows of a call, in whole trees). `tools` has
    `submit(call) -> Future[ToolResult]`.
    """
    together, trees = max(1, max_rows // config.num_generations), []
    for start in range(0, len(prompts), together):
        batch = list(zip(prompts[start : start + together], keys[start : start + together]))
        trees += _grow_together(batch, sampler, tools, tokenizer, config)
    return trees


def _grow_together(batch, sampler, tools, tokenizer, config) -> list[Tree]:
    sampler.prefill([prompt for prompt, _ in batch])
    growths = [Growth(prompt, key, q, config, sampler.vocab_size) for q, (prompt, key) in enumerate(batch)]
    while places := [(growth, path) for growth in growths for path in growth.rows()]:
        calls = {}

        def begin(i: int, sample: Sample) -> None:  # the moment row i stops: its tool runs while others decode
            path = places[i][1]
            if sample.stopped == "call":
                call = parse_call(tokenizer.decode(path.ids[path.turn_start :] + sample.ids))
                calls[i] = call, tools.submit(call) if call and path.calls < config.max_tool_calls else None

        samples = sampler([path for _, path in places], config.wave_quorum, begin)
        for i, ((growth, path), sample) in enumerate(zip(places, samples)):
            path.source = growth.source = i
            growth.sample(path, sample)
            if i in calls:
                result = _await_result(*calls[i], path.calls - config.max_tool_calls)
                observation = encode_result(tokenizer, result.text, config.max_result_tokens) if result else []
                growth.observe(path, calls[i][0], result, observation)
        for growth in growths:
            growth.fork()
    return [growth.tree.sorted() for growth in growths]


def _await_result(call: ToolCall | None, future, calls_over: int) -> ToolResult | None:
    """The result of a path's call. Over the limit of calls the first gets a refusal, the next None."""
    if calls_over > 0:
        return None
    if calls_over == 0:
        return ToolResult(LIMIT_TEXT, "refused")
    return future.result() if call else ToolResult("Error: closing tag without an opening tag.", "malformed")
