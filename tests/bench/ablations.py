"""What each idea is worth: the project's own loop with one of them switched off (or on) at a time.

    pip install -r requirements-bench.txt
    python tests/bench/ablations.py [--rounds 5] [any flag of train.py, such as --algo grpo]

Every arm starts from the same weights and questions and keeps its weights, so arms that change only the way
must come out at the same trees and the same gradient; both are asserted. Where to look: `columns`, every
position that a forward pass of the rollout computed, padding and finished rows included; `gradient tokens`,
the same for the gradient pass; then seconds, as factors of the first arm's in the same round.
"""

import argparse
import hashlib
import time
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial

import torch
from measure import Channel, compare, ratio, table
from test_update import padded_leaves
from torch.nn.functional import cross_entropy
from trl_step import questions_of, settings

from advantage import ADVANTAGES
from arpo import make_batches, policy_loss, token_logprobs
from eval import open_policy
from rollout import PROMPT, Sampler
from sandbox import PythonSandbox
from tools import load_task
from train import grow_and_score

# ---------------------------------------------------------------------------------- the sampler without an idea


class NoCache(Sampler):
    """Feeds rows from their first token on, as if nothing were cached between two calls, as in TRL's loop."""

    last: frozenset = frozenset()  # the rows of the last call

    def forgets(self, row) -> bool:
        return True

    def _gather(self, rows):
        """A row that forgets gets an empty row of the cache for its source."""
        mask = self.cache.mask
        self.cache.mask = torch.cat([mask, torch.zeros_like(mask[:1])])
        for layer in self.cache.layers:
            layer.keys, layer.values = (torch.cat([x, torch.zeros_like(x[:1])]) for x in (layer.keys, layer.values))
        self.ids = [*self.ids, []]
        fed = [replace(row, source=len(self.ids) - 1) if self.forgets(row) else row for row in rows]
        self.last = frozenset(rows)
        return super()._gather(fed)


class NoForkCache(NoCache):
    """A row keeps its own cache from turn to turn; a new one, from a fork or from the prompt, starts with none."""

    def forgets(self, row):
        return row not in self.last


class NoPromptSharing(NoForkCache):
    """A fork shares all that is above it, but every trajectory that starts from the prompt feeds it again."""

    def forgets(self, row):
        return row.node == PROMPT and row.turn_start == len(row.ids) and super().forgets(row)


class SlowTools:
    """Tools that take 20 ms, as if behind a network; one after another, or side by side as in the project."""

    def __init__(self, tools, side_by_side: bool):
        self.tools, self.counts, self.side_by_side = tools, tools.counts, side_by_side
        tools.tools = {name: partial(self._late, tool) for name, tool in tools.tools.items()}

    @staticmethod
    def _late(tool, content):
        time.sleep(0.02)
        return tool(content)

    def submit(self, call):
        if self.side_by_side:
            return self.tools.submit(call)
        done: Future = Future()
        done.set_result(self.tools.submit(call).result())
        return done


# ---------------------------------------------------------------------------------- the update without an idea


def packed(model, trees, advantages, config, logprobs_of=token_logprobs) -> int:
    """The project's own gradient pass; returns the positions that it computed."""
    batches = make_batches(trees, advantages, config)
    for batch in batches:
        logprobs = logprobs_of(model, batch)
        policy_loss(logprobs, logprobs.detach(), batch, config)[0].backward()
    return sum(len(batch.ids) for batch in batches)


def logits_everywhere(model, batch):
    """Log-probabilities from the logits (T, V) of all tokens, kept for the backward pass."""
    inputs = dict(input_ids=batch.ids[None], attention_mask=batch.mask[None, None], position_ids=batch.positions[None])
    logp = model(**inputs, use_cache=False).logits[0].float().log_softmax(-1)
    return logp[batch.predict_from, batch.targets]


def padded(model, trees, advantages, config, skip=True) -> int:
    """Every leaf a padded row of its own, in micro-batches of as many positions; the same loss (token mean)."""
    tokens = int(padded_leaves(trees)[1].sum())
    taught = [q for q, row in enumerate(advantages) if row.any() or not skip]
    ids, sampled, _ = padded_leaves([trees[q] for q in taught])
    leaf_advantages = advantages[taught].flatten()[:, None].expand(len(ids), ids.shape[1] - 1)
    for part in torch.arange(len(ids)).split(max(1, config.token_budget // ids.shape[1])):
        hidden = model.get_decoder()(input_ids=ids[part], use_cache=False).last_hidden_state[:, :-1]
        trained = sampled[part, 1:].bool()
        logits = model.get_output_embeddings()(hidden[trained]).float()
        logprobs = -cross_entropy(logits, ids[part, 1:][trained], reduction="none")
        ratios = (logprobs - logprobs.detach()).exp()  # 1, with a gradient
        (-(ratios * leaf_advantages[part][trained]).sum() / tokens).backward()
    return ids.numel()


# ---------------------------------------------------------------------------------- the arms


@dataclass
class Way:
    """One way to do a step."""

    sampler: type = Sampler
    gradient: object = packed
    tools: object = lambda tools: tools
    alone: bool = False  # each question's tree grows by itself


WAYS = {
    "as it is": Way(),
    "no cache across turns": Way(sampler=NoCache),
    "forks and starts fed from the first token": Way(sampler=NoForkCache),
    "prompt fed for every trajectory": Way(sampler=NoPromptSharing),
    "questions one at a time": Way(alone=True),
    "tools take 20 ms, side by side": Way(tools=partial(SlowTools, side_by_side=True)),
    "tools take 20 ms, one after another": Way(tools=partial(SlowTools, side_by_side=False)),
    "logits at every token": Way(gradient=partial(packed, logprobs_of=logits_everywhere)),
    "leaves padded, not packed": Way(gradient=padded),
    "the same, and no tree skipped": Way(gradient=partial(padded, skip=False)),
}


def serve(way: Way, config) -> None:
    policy, task = open_policy(config, config.lora_r), load_task(config, "train", None, PythonSandbox())
    policy.sampler, tools = way.sampler(policy.model, policy.tokenizer), way.tools(task.tools)
    counts = policy.sampler.counts
    channel = Channel()
    while True:
        step = channel.receive()
        counts.clear()
        questions = questions_of(step, config, task.questions)
        grown = []
        for some in [[q] for q in questions] if way.alone else [questions]:
            keys = [f"{config.seed}/{step}/{q.id}" for q in some]
            grown += grow_and_score(some, keys, policy, tools, config)
        rollout_time = channel.lap()["seconds"]
        trees = [g.tree for g in grown]
        advantages = ADVANTAGES[config.advantage](
            torch.stack([g.rewards for g in grown]), torch.stack([g.tree.lengths() for g in grown])
        )
        gradient_tokens = way.gradient(policy.model, trees, advantages, config)
        results = {"rollout": rollout_time, "update": channel.lap()["seconds"] - rollout_time}
        weights = [p for p in policy.model.parameters() if p.grad is not None]
        norm = torch.cat([p.grad.flatten() for p in weights]).norm().item()
        policy.model.zero_grad()
        nodes = [(n.parent, n.rank, n.ids, n.observation) for tree in trees for n in tree.nodes]
        results |= {"trees": hashlib.sha256(str(nodes).encode()).hexdigest(), "gradient": norm}
        results |= {"prefilled": counts["prefilled"] + counts["refed"], "holes": counts["holes"]}
        columns = results["prefilled"] + counts["holes"] + counts["decoded"]
        channel.send(results | {"columns": columns, "gradient_tokens": gradient_tokens})


def check(arms: dict) -> None:
    """All ways must lead to the same trees and the same gradient."""
    first, *others = arms.values()
    for arm in others:
        for mine, row in zip(first.rows, arm.rows):
            if mine["trees"] != row["trees"]:
                raise SystemExit(f"{arm.name!r} grew other trees than {first.name!r}")
            if abs(mine["gradient"] - row["gradient"]) > 1e-4 * mine["gradient"]:
                raise SystemExit(f"{arm.name!r}: gradient norm {row['gradient']}, expected {mine['gradient']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="timed steps of every arm")
    parser.add_argument(
        "--bench_threads", type=int, default=1, help="threads of every arm; more are slower where cores are shared"
    )
    parser.add_argument("--arm", choices=WAYS, help=argparse.SUPPRESS)
    bench, flags = parser.parse_known_args()
    if bench.arm:
        torch.set_num_threads(bench.bench_threads)
        serve(WAYS[bench.arm], settings(flags, "arpo"))
    arms = compare(list(WAYS), __file__, ["--bench_threads", str(bench.bench_threads), *flags], bench.rounds)
    check(arms)
    first, rows = arms["as it is"], []
    for arm in arms.values():
        counts = [arm.total(name) / bench.rounds for name in ("prefilled", "holes", "columns", "gradient_tokens")]
        times = [ratio(arm.values(part), first.values(part)) for part in ("rollout", "update", "seconds", "cpu")]
        rows.append([arm.name, *counts, *times, arm.rows[-1]["peak_mb"]])
    head = ["a step", "prefilled", "holes", "columns", "gradient tokens"]
    head += ["rollout time ×", "update time ×", "step time ×", "processor time ×", "peak MB"]
    print(table(head, rows))


if __name__ == "__main__":
    main()
