"""What a step's trees are like, in numbers: rewards, calls, entropies, forks. They are lines of metrics.jsonl.

Counts include the trees that dynamic sampling threw away, means do not. Left out: the numbers of the update
(`arpo.py:update`) and of the sampler (`train.py:take_step`).
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from data import Question
from data.results import Score
from rollout import PROMPT, RolloutConfig, Tree

NOT_RUN = "refused", "malformed"  # outcomes of calls that were not executed


@dataclass(eq=False)
class Scored:
    """A question's tree with its scores and rewards (M,)."""

    question: Question
    tree: Tree
    scores: list[Score]
    rewards: torch.Tensor

    def teaches(self) -> bool:
        return bool(self.rewards.max() > self.rewards.min())

    def mixed(self) -> bool:
        """Whether leaves differ in accuracy: what dynamic sampling asks, before any bonus or penalty."""
        return len({score.accuracy for score in self.scores}) > 1


def rollout_metrics(kept: list[Scored], discarded: list[Scored], config: RolloutConfig) -> dict[str, float]:
    """What a step's trees are like; counts include what was thrown away, means do not."""
    trees = [scored.tree for scored in kept]
    return {
        **outcome_metrics(kept),
        **call_metrics(kept, discarded),
        **entropy_metrics(trees, config.entropy_tokens),
        **branch_metrics(trees, config),
    }


def outcome_metrics(kept: list[Scored]) -> dict[str, float]:
    """How the leaves ended, and whether a question's leaves differ."""
    leaves = [score for scored in kept for score in scored.scores]
    repeats = len(leaves) - sum(different_leaves(scored.tree) for scored in kept)
    return {
        "reward": float(torch.stack([scored.rewards for scored in kept]).mean()),  # of the leaves, bonus included
        "accuracy": share(score.accuracy for score in leaves),  # of the leaves, no bonus
        "malformed": share(score.answer is None for score in leaves),  # leaves with a wrong format, or truncated
        "truncated": share(score.end != "end" for score in leaves),  # leaves that ran out of tokens or calls
        "mixed": share(scored.mixed() for scored in kept),  # questions whose leaves differ in accuracy
        "no_variance": share(not scored.teaches() for scored in kept),  # questions whose leaves are rewarded alike
        "identical": repeats / len(leaves),  # leaves that repeat another of their tree
        # Prompt, result and sampled tokens summed over leaves: what a loop without sharing handles.
        "leaf_tokens": sum(len(scored.tree.prompt) + score.tokens for scored in kept for score in scored.scores),
    }


def call_metrics(kept: list[Scored], discarded: list[Scored]) -> dict[str, float]:
    """Tool calls that were really executed; of a tree's, one that leaves share counts once."""
    calls = Counter(node.result.outcome for s in kept + discarded for node in s.tree.nodes if node.result)
    executed = calls.total() - sum(calls[outcome] for outcome in NOT_RUN)
    return {
        "calls_per_leaf": share(score.calls for scored in kept for score in scored.scores),  # on a leaf's path
        "calls_per_question": executed / len(kept),  # in a question's whole tree
        "tool_errors": 1 - calls["ok"] / max(1, calls.total()),  # tool calls that did not end in ok
        "discarded": len(discarded),  # trees thrown away by dynamic sampling; their tokens and calls are counted
    }


def entropy_metrics(trees: list[Tree], k: int) -> dict[str, float]:
    first, after = (sum(lists, []) for lists in zip(*(head_entropies(tree, k) for tree in trees)))
    return {
        "initial_entropy": share(first),  # H over the first k tokens of a trajectory, nats
        "entropy_after_tools": share(after or [0.0]),  # H over the first k tokens after a tool result, nats
    }


def branch_metrics(trees: list[Tree], config: RolloutConfig) -> dict[str, float]:
    decisions = [node.decision for tree in trees for node in tree.nodes if node.decision]
    forks = sum(decision.new_paths for decision in decisions)
    started = (config.num_initial or config.num_generations) * len(trees)
    return {
        "decisions": len(decisions),  # results at which the branch rule was applied
        "forks": forks,  # new paths that the rule started
        "forks_differ": sum(map(forks_unlike_a_lots, trees)) / max(1, forks),  # from another prefix than by lot
        "fork_wave": sum(d.wave * d.new_paths for d in decisions) / max(1, forks),  # mean wave of the forks, from 1
        # Trajectories from the prompt because budget was left.
        "top_ups": sum(len(tree.leaves()) for tree in trees) - forks - started,
    }


def told_of_forks(rows: list[dict[str, float]]) -> str:
    """A line on where the forks of a whole run went, from its steps' metrics; nothing where nothing forked."""
    rows = [row for row in rows if row.get("forks")]
    if not rows:
        return ""
    forks = [row["forks"] for row in rows]
    wave, unlike = (np.average([row[name] for row in rows], weights=forks) for name in ("fork_wave", "forks_differ"))
    asked = sum(row["decisions"] for row in rows)
    return (
        f"\n\nforks: {sum(forks):,} new paths at {asked:,} results, on average in wave {wave:.1f} of a tree; "
        f"a lot would have put {100 * unlike:.1f}% of them behind other tokens"
    )


def share(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def head_entropies(tree: Tree, k: int) -> tuple[list[float], list[float]]:
    """H over the first k tokens of each turn from the prompt, and of each turn after a tool result."""
    first, after = [], []
    for node in tree.nodes:
        if node.parent == PROMPT or tree.nodes[node.parent].observation:
            (first if node.parent == PROMPT else after).append(float(np.mean(node.entropies[:k])))
    return first, after


def forks_unlike_a_lots(tree: Tree) -> int:
    """Forks that stand behind other tokens than those which a lot would have started from the same entropies."""
    forks: Counter = Counter()
    for n, node in enumerate(tree.nodes):
        if node.decision:
            prefix = tuple(token for i in tree.path(n) for token in tree.nodes[i].ids + tree.nodes[i].observation)
            forks[prefix] += node.decision.new_paths - node.decision.by_lot
    return sum(count for count in forks.values() if count > 0)


def different_leaves(tree: Tree) -> int:
    """Leaves that differ in what the policy wrote on the way to them."""
    return len({tuple(tuple(tree.nodes[n].ids) for n in tree.path(leaf)) for leaf in tree.leaves()})
