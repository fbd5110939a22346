"""Tree rollouts: sample, fork, observe (the paper's entropy-based adaptive rollout, section 3.1).

For each question N trajectories start from the prompt. After a tool result the entropy of the next tokens is
compared with that at the trajectory's beginning; where it jumped, new paths start right after the result, until
the tree has M leaves. What is left of the budget then starts from the prompt. Every tree ends with exactly M
leaves; with N = M nothing forks, and this is GRPO's sampling.

    paper             here                              paper         here
    M, N, Z, k        num_generations, num_initial,     ΔH_t, P_t     Decision.delta, Decision.prob
                      fan_out, entropy_tokens           α, β, τ       base_prob, entropy_weight, threshold
    H_initial, H_t    initial_entropy, entropy

Axis letters of tensors, in all files: Q questions, M leaves and N nodes of a tree, B rows of a batch, T tokens,
S sampled tokens, C cached columns, V vocabulary. `grow_trees` is the algorithm, told by `GrowingTree`, which knows
nothing of models; `Sampler` continues rows of token ids with Hugging Face `generate`. Left out: beam search.
"""

import hashlib
import math
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from os.path import commonprefix
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import GenerationConfig, LogitsProcessor

from data.cache import RowCache
from data.format import ToolCall, ToolResult, TrajectoryConfig, closing_tags, encode_result, may_close
from data.logits import draw_tokens
from data.settings import Natural, Positive, Share
from tools import begin_call

PROMPT = -1  # the parent of a tree's first nodes


@dataclass(frozen=True)
class RolloutConfig(TrajectoryConfig):
    num_generations: Positive = 16  # M, leaves of every tree
    num_initial: Natural = 8  # N, trajectories started from the prompt; 0 is all M of them, which is GRPO
    fan_out: Positive = 1  # Z, new paths at a branch
    entropy_tokens: Positive = 20  # k, tokens over which an entropy is averaged
    base_prob: Share = 0.5  # α
    entropy_weight: float = 0.2  # β
    threshold: Share = 0.5  # τ
    branch_rule: Literal["threshold", "coin", "best"] = "threshold"  # P > τ; with probability P, as released; best P
    score: Literal["entropy", "lot", "lowest", "tail"] = "entropy"  # who gets the highest ΔH; all but entropy: controls
    entropy_timing: Literal["after", "before"] = "after"  # measure after the tool result; or before, as released
    entropy_norm: Literal["log_vocab", "vocab"] = "log_vocab"  # ΔH over ln V; or over V, as the paper prints
    fork_at: Literal["result", "probe"] = "result"  # right after it; after the k measured tokens of a longer turn

    def __post_init__(self):
        super().__post_init__()
        if (n := self.num_initial) > (m := self.num_generations):
            raise ValueError(f"num_initial (N) must be from 1 to num_generations (M = {m}), or 0 for M; found {n}")


@dataclass
class Sample:
    """T tokens sampled by the policy, and why it stopped."""

    ids: list[int] = field(default_factory=list)  # the stop token included
    logprobs: list[float] = field(default_factory=list)  # of the sampler, at its temperature
    entropies: list[float] = field(default_factory=list)  # nats, full vocabulary, temperature 1
    stopped: str = ""  # "call": closing tag, "end": end token, "length", "calls": limits, "probe": cut by a fork


@dataclass
class Decision:
    """What the branch rule saw after a tool result, and what came of it."""

    entropy: float  # H_t, nats
    initial_entropy: float  # H_initial, nats
    delta: float  # ΔH_t, normalised; in a control that of another place
    prob: float  # P_t
    bar: float  # what P_t had to exceed: τ, or the coin
    wave: int  # in which wave the place was measured
    new_paths: int  # 0 also where the budget was spent
    by_lot: int  # the new paths here, had the same ΔH been dealt out by lot


@dataclass
class Node(Sample):
    """One turn of the policy, all of it trained on, then the tokens of a tool result, none of them."""

    parent: int = PROMPT  # index into Tree.nodes
    rank: int = 0  # place among its siblings: 0 went on from the turn before, the others forked off
    call: ToolCall | None = None
    result: ToolResult | None = None
    observation: list[int] = field(default_factory=list)  # the result as the policy reads it
    decision: Decision | None = None
    old_logprobs: list[float] = field(default_factory=list)  # log π_old, where the update has computed it ahead


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

    def descends(self) -> Tensor:
        """D (N, M), 0/1: leaf m passes through node n."""
        paths = [set(self.path(leaf)) for leaf in self.leaves()]
        return torch.tensor([[float(n in path) for path in paths] for n in range(len(self.nodes))])

    def lengths(self) -> Tensor:
        """L (M,): the policy's tokens on each leaf's path."""
        return torch.tensor([float(len(node.ids)) for node in self.nodes]) @ self.descends()

    def shares(self) -> Tensor:
        """(M,) of the weight of its start from the prompt, each leaf's part if all paths at a fork get as much."""
        ways = Counter(node.parent for node in self.nodes)
        return torch.tensor([math.prod(1 / ways[n] for n in self.path(leaf)[:-1]) for leaf in self.leaves()])

    def sorted(self) -> "Tree":
        """The same tree depth first, siblings by rank: the order in which rows happened to stop is gone."""
        order = sorted(range(len(self.nodes)), key=lambda n: [self.nodes[i].rank for i in self.path(n)])
        place = {PROMPT: PROMPT} | {old: new for new, old in enumerate(order)}
        return Tree(self.prompt, [replace(self.nodes[n], parent=place[self.nodes[n].parent]) for n in order])


def grow_trees(prompts: list[list[int]], keys: list[str], sampler, tools, config: RolloutConfig) -> list[Tree]:
    """Grows a tree of exactly M leaves for each of Q prompts (lists of ids), all of them at once and wave by wave.

    In a wave every row writes a turn, the branch rule decides where siblings start, and `tools.submit(call)` answers.
    `keys` (Q) name the randomness: the same prompt, key and weights give the same tree, whatever grows beside it.
    """

    def begin(row: Row, turn: Sample) -> None:  # the moment a row stops: its tool runs while others decode
        if turn.stopped == "call":
            text = sampler.tokenizer.decode(row.ids[row.turn_start :] + turn.ids)
            row.pending = begin_call(tools, text, row.called, config)

    sampler.prefill(prompts)
    growing = [GrowingTree(prompt, key, q, config, sampler) for q, (prompt, key) in enumerate(zip(prompts, keys))]
    while rows := [(tree, row) for tree in growing if tree.rows for row in tree.rows + tree.ended]:
        turns = sampler([row for _, row in rows], config.temperature, begin)
        for i, ((tree, row), turn) in enumerate(zip(rows, turns)):
            tree.sample(row, turn, source=i)
        for tree in growing:
            tree.fork()
        for tree, row in rows:
            if row.pending:
                tree.observe(row)
        for tree in growing:
            tree.top_up()
    return [tree.tree.sorted() for tree in growing]


@dataclass(eq=False)
class Row:
    """A trajectory while it is sampled. The sampler reads the first five fields."""

    key: str  # names its randomness: token t depends on (key, t) and on nothing else
    ids: list[int]  # prompt and everything after it
    source: int  # row of the sampler's last call whose cache the ids begin with
    turn_start: int  # where the current turn begins in ids
    stop_at: int  # length of ids at which the current turn must end; 0 where the path has ended
    rank: int = 0  # among the siblings at its node
    node: int = PROMPT  # that it last finished
    called: tuple[str, ...] = ()  # the tools of its calls so far; "" where the call was malformed
    initial_entropy: float = math.nan  # H_initial
    last_entropy: float = math.nan  # of the last finished turn
    may_branch: bool = True  # rows of the top-up may not
    pending: tuple | None = None  # the call that ended its turn, and the future of its result
    start: "Row | None" = None  # as it left a result, if it was the first to do so: here siblings begin


class Place(NamedTuple):  # behind a tool result, where siblings may start
    start: Row  # a row that has read the result
    row: Row  # the same as it went on: the first to do so, and the only one that is asked
    turn: int  # the node that it wrote there
    entropy: float  # H_t
    wave: int


class GrowingTree:
    """One tree while it grows. Every wave all its rows take a turn, so it depends on nothing but its key."""

    def __init__(self, prompt: list[int], key: str, source: int, config: RolloutConfig, sampler: "Sampler"):
        self.tree, self.key, self.config, self.tokenizer = Tree(prompt), key, config, sampler.tokenizer
        self.norm = math.log(sampler.vocab_size) if config.entropy_norm == "log_vocab" else sampler.vocab_size
        self.source = source  # a row of the sampler's last call that begins with this prompt
        self.end = len(prompt) + config.max_completion_length
        self.rows: list[Row] = []  # those that go on
        self.ended: list[Row] = []  # under "best", those whose cache is kept, since siblings may start from it
        self.places: list[Place] = []  # that wait for the branch rule
        self.budget, self.wave = config.num_generations, 0
        self._start(config.num_initial or config.num_generations, may_branch=True)

    def _start(self, count: int, may_branch: bool) -> None:
        """Fresh trajectories from the prompt."""
        first, prompt = self.config.num_generations - self.budget, self.tree.prompt
        stop_at = min(self.end, len(prompt) + self.config.max_turn_tokens)
        own = dict(source=self.source, turn_start=len(prompt), stop_at=stop_at, may_branch=may_branch)
        self.rows += [Row(f"{self.key}/{n}", prompt, rank=n, **own) for n in range(first, first + count)]
        self.budget -= count

    def sample(self, row: Row, turn: Sample, source: int) -> None:
        """Makes a node of a sampled turn. The first row that leaves a result makes it a candidate for a fork."""
        row.ids, row.source, self.source = row.ids + turn.ids, source, source
        if not turn.ids:
            return  # it had ended
        self.tree.nodes.append(Node(**vars(turn), parent=row.node, rank=row.rank))
        measured = turn.entropies[: self.config.entropy_tokens]
        row.last_entropy = sum(measured) / len(measured)
        if row.node == PROMPT:
            row.initial_entropy = row.last_entropy
        row.node = len(self.tree.nodes) - 1
        if row.start:
            entropy = row.last_entropy if self.config.entropy_timing == "after" else row.start.last_entropy
            self.places.append(Place(row.start, row, row.node, entropy, self.wave))
        if turn.stopped != "call":
            self._end(row)

    def _end(self, row: Row) -> None:
        self.rows.remove(row)
        row.stop_at = 0
        if self.config.branch_rule == "best" and self.budget:
            self.ended.append(row)

    def fork(self) -> None:
        """Applies the branch rule to the places of this wave; under "best" to all, once every path has ended."""
        self.wave += 1
        if self.config.branch_rule == "best" and self.rows:
            return
        places = sorted(self.places, key=lambda place: (place.start.key, place.wave))
        # Rounded, so that equal entropies stay equal whatever else was in the batch.
        deltas = [round(place.entropy - place.start.initial_entropy, 6) / self.norm for place in places]
        dealt = self._deal(deltas, places, self.config.score, "shuffle")
        by_lot = self._grant(places, self._deal(deltas, places, "lot", "lot"))
        for place, delta, new, other in zip(places, dealt, self._grant(places, dealt), by_lot):
            seen = place.entropy, place.start.initial_entropy, delta, *self._odds(place, delta), place.wave
            self.tree.nodes[place.start.node].decision = Decision(*seen, new, other)
            if new:
                self._branch(place, new)
        self.places, self.ended = [], []

    def _deal(self, deltas: list[float], places: list[Place], score: str, name: str) -> list[float]:
        """ΔH of each place. A control deals the same values out anew, the highest to its first: so the rate stays."""
        first = {
            "entropy": lambda i: -deltas[i],
            "lot": lambda i: uniform(f"{self.key}/{name}{self.wave}", i),
            "lowest": lambda i: deltas[i],
            "tail": lambda i: -len(places[i].start.ids),
        }
        order = sorted(range(len(places)), key=first[score])
        return [delta for _, delta in sorted(zip(order, sorted(deltas, reverse=True)))]

    def _grant(self, places: list[Place], deltas: list[float]) -> list[int]:
        """New paths at each place; where the budget is short, the highest P_t goes first."""
        cfg, granted = self.config, [0] * len(places)
        odds = [self._odds(place, delta) for place, delta in zip(places, deltas)]
        for i in sorted(range(len(places)), key=lambda i: -odds[i][0]):
            long_enough = cfg.fork_at == "result" or len(self.tree.nodes[places[i].turn].ids) > cfg.entropy_tokens
            if long_enough and odds[i][0] > odds[i][1]:
                granted[i] = min(cfg.fan_out, self.budget - sum(granted))
        return granted

    def _odds(self, place: Place, delta: float) -> tuple[float, float]:
        """P_t, and the bar that it must exceed."""
        cfg, coin = self.config, uniform(f"{place.start.key}/coin", len(place.start.ids))
        bar = {"threshold": cfg.threshold, "coin": coin, "best": -math.inf}[cfg.branch_rule]
        return cfg.base_prob + cfg.entropy_weight * delta, bar

    def _branch(self, place: Place, new: int) -> None:
        """Starts `new` siblings of the place's turn right after the result, or after the turn's probe tokens."""
        start, turn, cut = place.start, self.tree.nodes[place.turn], self.config.entropy_tokens
        node, ids = start.node, start.ids
        if self.config.fork_at == "probe":
            parts = [turn.ids, turn.logprobs, turn.entropies]
            self.tree.nodes.append(Node(*(part[:cut] for part in parts), "probe", turn.parent, turn.rank))
            turn.ids, turn.logprobs, turn.entropies = (part[cut:] for part in parts)
            node = turn.parent = len(self.tree.nodes) - 1
            turn.rank, ids = 0, ids + self.tree.nodes[-1].ids
        for z in range(1, new + 1):
            own = dict(key=f"{start.key}/{len(ids)}.{z}", ids=ids, source=place.row.source, node=node, rank=z)
            self.rows.append(replace(start, **own))
        self.budget -= new

    def observe(self, row: Row) -> None:
        """Puts a tool's result behind the turn that asked for it, or ends the path at one of its limits."""
        (call, future), row.pending = row.pending, None
        node, result = self.tree.nodes[row.node], future.result() if future else None
        node.call, node.result = call, result
        row.called += (call.tool if call else "",)
        observation = encode_result(self.tokenizer, result.text, self.config.max_result_tokens) if result else []
        if result is None or len(row.ids + observation) >= self.end:
            node.stopped = "calls" if result is None else "length"
            self._end(row)
            return
        node.observation = observation
        row.ids = row.ids + observation
        row.turn_start, row.rank = len(row.ids), 0
        row.stop_at = min(self.end, len(row.ids) + self.config.max_turn_tokens)
        row.start = replace(row, start=None) if row.may_branch else None

    def top_up(self) -> None:
        """Spends what is left of the budget once nothing goes on."""
        if not self.rows:
            self.fork()
        if not self.rows:
            self._start(self.budget, may_branch=False)


class Sampler:
    """Continues rows of token ids with `generate`, feeding only what the KV cache lacks.

    After a call the cache holds that call's B rows. A row of the next call, whether it goes on or is a fork, names one
    of them as its source: the prefix they share is gathered out of the source's columns (keys carry their positions,
    so columns may move), and the rest is fed. `counts`: prefilled (prompt and result tokens fed for the first time),
    refed (fed again, for want of a token to sample from), decoded (sampled tokens), holes (columns fed for nothing:
    padding, and rows that had stopped already).
    """

    lock = threading.Lock()  # of all samplers, held while rows are sampled; in between, a tool may use the model
    top_p = 1.0  # in evaluation: of the likeliest tokens that have this share

    def __init__(self, model, tokenizer):
        self.model, self.tokenizer = model, tokenizer
        ends = model.generation_config.eos_token_id
        self.end_ids = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
        self.pad = min(self.end_ids)  # any token will do where nobody looks; a model's own may lie beyond its weights
        # `generate` fills unset fields from the checkpoint, e.g. a repetition penalty: leave it none.
        model.generation_config = GenerationConfig(pad_token_id=self.pad, eos_token_id=sorted(self.end_ids))
        self.vocab_size = model.get_output_embeddings().weight.shape[0]
        pieces = tokenizer.convert_ids_to_tokens(list(range(min(len(tokenizer), self.vocab_size))))
        self.may_stop = self.end_ids | {t for t, piece in enumerate(pieces) if may_close(piece or "")}
        self.counts: Counter = Counter()
        self.max_rows: float = math.inf  # sampled at once

    def prefill(self, prompts: list[list[int]]) -> None:
        """Feeds each prompt once; prompt q is then row q."""
        self.forget(prompts)
        self.counts["holes"] += self.cache.feed(self.model, prompts, self.pad)
        self.counts["prefilled"] += sum(map(len, prompts))

    def forget(self, ids: list[list[int]]) -> None:
        """Drops the cache of rows with these ids."""
        self.cache, self.ids = RowCache(len(ids), self.model.device), ids

    def __call__(self, rows: list[Row], temperature: float, on_stop: Callable[[Row, Sample], None]) -> list[Sample]:
        """Samples a turn of each row; `on_stop(row, turn)` is called as a row stops.

        Where there is no room for all rows, some go first, and nothing stays cached.
        """
        if len(rows) <= self.max_rows:
            return self._sample(rows, temperature, on_stop)
        turns, ids, going = {row: Sample() for row in rows}, self.ids, [row for row in rows if row.stop_at]
        for first in range(0, len(going), self.max_rows):
            self.forget(ids)
            part = going[first : first + self.max_rows]
            turns |= zip(part, self._sample(part, temperature, on_stop))
        self.forget([row.ids + turn.ids for row, turn in turns.items()])
        return list(turns.values())

    def _sample(self, rows: list[Row], temperature: float, on_stop: Callable[[Row, Sample], None]) -> list[Sample]:
        draw = Draw(self, rows, temperature, on_stop)
        with self.lock:
            lacking = [ids[:-1] for ids in self._gather(rows)]  # from the last token `generate` goes on
            self.counts["holes"] += self.cache.feed(self.model, lacking, self.pad)
            steps = self._generate(rows, draw)
        lengths = [len(sample.ids) for sample in draw.samples]
        fed = torch.arange(steps - 1, device=self.model.device)  # the token sampled last is not fed yet
        real = fed < torch.tensor(lengths, device=fed.device)[:, None]
        self.cache.mask = torch.cat([self.cache.mask, real], dim=1)
        self.ids = [row.ids + sample.ids for row, sample in zip(rows, draw.samples)]
        self.counts.update(decoded=sum(lengths), holes=steps * len(rows) - sum(lengths))
        return draw.samples

    def _gather(self, rows: list[Row]) -> list[list[int]]:
        """Brings the cache into the order of `rows`; returns the ids of each that are still to be fed.

        Say row 0 of the last call began with "p q" and sampled "a b"; it is cached as "p q a", since the last token
        is never fed. A row from source 0 that got a result has ids "p q a b R S": its "p q a" are kept, and "b R S"
        is returned. A fork from source 0 has ids "p q": "p" is kept, and "q" returned, since there must be a token to
        sample from. The new cache is right-aligned: "p q a" and ". . p", where a dot is a hole.
        """
        cached, kept = self.cache.mask.sum(-1).tolist(), []
        for row in rows:
            shared = len(commonprefix([self.ids[row.source], row.ids]))
            known = min(shared, cached[row.source])  # of the rest, a token sampled last is shared but not yet fed
            kept.append(min(known, len(row.ids) - 1))
            self.counts["refed"] += (known or shared) - kept[-1]  # all that was known, where the cache was dropped
            self.counts["prefilled"] += len(row.ids) - shared
        self.cache.gather([row.source for row in rows], kept)
        return [row.ids[n:] for row, n in zip(rows, kept)]

    def _generate(self, rows: list[Row], draw: "Draw") -> int:
        """Decodes from each row's last token until all rows have stopped; returns the steps that took."""
        self.cache.mask = mask = pad(self.cache.mask, (0, 1), value=True)
        tape = torch.full(mask.shape, self.pad, device=mask.device)  # `generate` feeds what is not cached:
        tape[:, -1] = torch.tensor([row.ids[-1] for row in rows])  # the last column
        limit = max(row.stop_at - len(row.ids) for row in rows)
        settings = GenerationConfig(max_new_tokens=limit, do_sample=False, pad_token_id=self.pad)
        stop = lambda ids, _, **kwargs: ids.new_full(ids.shape[:1], all(draw.done), dtype=torch.bool)
        inputs = dict(input_ids=tape, attention_mask=mask.long(), past_key_values=self.cache)
        more = dict(logits_processor=[draw], stopping_criteria=[stop], generation_config=settings)
        length = self.model.generate(**inputs, **more).shape[1]
        if self.cache.get_seq_length() != length - 1:  # a cache that ended elsewhere was fed twice, silently
            raise RuntimeError(f"the cache holds {self.cache.get_seq_length()} columns, expected {length - 1}")
        return length - tape.shape[1]


class Draw(LogitsProcessor):
    """The decoding steps of B rows: notes entropies, draws tokens, and says which rows have stopped.

    It sees the raw logits (B, V) and draws by inverse CDF from each row's own randomness; all other tokens get -inf,
    so that `generate`, decoding greedily, takes the drawn one. A closing tag may be several tokens and may end inside
    one: only rows that drew a token which may complete it are decoded.
    """

    def __init__(self, sampler: Sampler, rows: list[Row], temperature: float, on_stop: Callable[[Row, Sample], None]):
        self.sampler, self.rows, self.temperature, self.on_stop = sampler, rows, temperature, on_stop
        self.samples, self.done = [Sample() for _ in rows], [not row.stop_at for row in rows]

    def __call__(self, input_ids: Tensor, logits: Tensor) -> Tensor:
        places = zip(self.rows, self.samples)
        u = [uniform(row.key, len(row.ids) + len(sample.ids)) for row, sample in places]
        u = torch.tensor(u, dtype=torch.double, device=logits.device)
        drawn = draw_tokens(logits, u, self.temperature, self.sampler.top_p)
        for i, (token, logprob, entropy) in enumerate(drawn.tolist()):
            if not self.done[i]:
                self._note(i, int(token), logprob, entropy)
        return logits.fill_(-torch.inf).scatter_(-1, drawn[:, :1].long(), 0.0)

    def _note(self, i: int, token: int, logprob: float, entropy: float) -> None:
        row, sample = self.rows[i], self.samples[i]
        if math.isnan(logprob):
            place = f"token {len(row.ids) + len(sample.ids)} of path {row.key}"
            raise ValueError(f"the model: expected logits that are numbers, found NaN or infinity at {place}")
        sample.ids.append(token)
        sample.logprobs.append(logprob)
        sample.entropies.append(entropy)
        if token in self.sampler.may_stop:
            sample.stopped = self._reason(row.ids[row.turn_start :] + sample.ids)
        if not sample.stopped and len(row.ids) + len(sample.ids) >= row.stop_at:
            sample.stopped = "length"
        if sample.stopped:
            self.done[i] = True
            self.on_stop(row, sample)

    def _reason(self, turn: list[int]) -> str:
        if turn[-1] in self.sampler.end_ids:
            return "end"
        text, before = self.sampler.tokenizer.batch_decode([turn[-16:], turn[-16:-1]])  # no tag is longer
        return "call" if any(text.count(tag) > before.count(tag) for tag in closing_tags()) else ""


def uniform(key: str, position: int) -> float:
    """A number in [0, 1) that depends on nothing but its two arguments."""
    digest = hashlib.blake2b(f"{key}@{position}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53
