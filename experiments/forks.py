"""On how many of their forks two arms of the grid differ: both grow trees for the same questions from the start policy.

    python experiments/forks.py                writes forks.json, which report.py reads

Trees of one question begin with the same trajectories, as in the grid. A fork is another arm's, too, if that one starts
a path behind the same tokens. Where two arms fork alike, a comparison of what they learn says nothing. Left out:
training, in which policies and so trees drift apart anyway.
"""

import json
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from data.format import encode_prompt
from data.settings import Natural, Positive, Settings, one_line_errors, parse
from data.statistics import bootstrap
from eval import open_policy
from experiments.grid import FORKED
from experiments.report import FORKS
from experiments.run import config_of
from rollout import Tree
from tools import load_task, make_sandbox


@dataclass(frozen=True)
class ForksConfig(Settings):
    questions: Positive = 16  # of the train split, a tree of each for every arm
    seed: Natural = 0  # as in the grid


def main() -> None:
    with one_line_errors("forks.py"):
        config = parse(ForksConfig, sys.argv[1:], "forks.py", __doc__, {})
        names = list(dict.fromkeys(arm for pair in FORKED for arm in pair))
        trees = {arm: grow(arm, config) for arm in names}
        found = {
            "questions": config.questions,
            "seed": config.seed,
            "arms": {arm: describe(own) for arm, own in trees.items()},
            "pairs": {f"{arm} - {other}": elsewhere(trees[arm], trees[other]) for arm, other in FORKED},
        }
        FORKS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(json.dumps(found, indent=1))


def grow(arm: str, config: ForksConfig) -> list[Tree]:
    """An arm's trees at the start policy."""
    settings = config_of(arm, config.seed)
    task = load_task(settings, "train", config.questions, make_sandbox(settings))
    policy = open_policy(settings)
    prompts = [encode_prompt(policy.tokenizer, question.question) for question in task.questions]
    keys = [f"{config.seed}/{question.id}" for question in task.questions]
    return policy.grow(prompts, keys, task.tools, settings)


def forks(tree: Tree) -> Counter:
    """New paths by the tokens that they start behind."""
    found: Counter = Counter()
    for n, node in enumerate(tree.nodes):
        if node.decision and node.decision.new_paths:
            nodes = [tree.nodes[i] for i in tree.path(n)]
            found[tuple(token for node in nodes for token in node.ids + node.observation)] += node.decision.new_paths
    return found


def elsewhere(trees: list[Tree], others: list[Tree]) -> list[float]:
    """The share of a tree's forks that the other tree of its question lacks, and its interval over questions."""
    shares = []
    for tree, other in zip(trees, others):
        own = forks(tree)
        if own:
            shares.append((own - forks(other)).total() / own.total())
    return [round(float(value), 3) for value in (np.mean(shares), *bootstrap(np.array(shares)))]


def describe(trees: list[Tree]) -> dict[str, float]:
    """Means over trees: forks, the number of the result that they start at, tool results; and how often ΔH > 0."""
    places = [(tree, n) for tree in trees for n, node in enumerate(tree.nodes) if node.decision]
    seen = [tree.nodes[n].decision for tree, n in places]
    new = np.array([decision.new_paths for decision in seen])
    numbers = {
        "forks": new.sum() / len(trees),
        "depth": np.average([len(tree.path(n)) for tree, n in places], weights=new),
        "results": np.mean([sum(bool(node.observation) for node in tree.nodes) for tree in trees]),
        "above": np.mean([decision.entropy > decision.initial_entropy for decision in seen]),
    }
    return {name: round(float(number), 3) for name, number in numbers.items()}


if __name__ == "__main__":
    main()
