"""Where a trajectory is decided, and what branch rules see of it: measured with a frozen policy, without training.

    python experiments/criticality.py                      the built-in world and its model
    python experiments/criticality.py --data trails        the trails and their model
    python experiments/criticality.py --model RUN --data trails:0.4

A place is a tool result on one of a few trajectories that start from the prompt. Its criticality is the variance
*between* next turns: of Q, the mean reward after a turn, over the turns that the policy may write there. It is
estimated by nested sampling and one-way analysis of variance; a turn that was drawn twice is continued once, as one
group. *total* is the variance of the reward below the place, and *calls* what a new leaf there costs on average.
Left out: that a continuation's limits of calls and tokens begin anew at its place, and learning.
"""

import json
import sys
from collections import defaultdict
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import matplotlib
import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from arpo import Policy
from data import Question, models
from data.format import encode_prompt
from data.settings import Positive, first_look, one_line_errors, parse
from eval import JudgeConfig, open_policy, score_leaves
from rollout import Node, Tree
from tools import Task, load_task, make_sandbox

PREDICTORS = {
    "delta": "ΔH",
    "entropy": "H_t",
    "first_token": "H of its first token",
    "largest": "largest H of the turn",
}
PREDICTORS |= {"depth": "depth", "turn_tokens": "length of the turn", "calls": "calls of a new leaf"}
SHUFFLES, RESAMPLES = 20, 500  # of ties, and of questions
DECIDES_NOTHING = 0.01  # criticality below which a place's entropy is called irrelevant


@dataclass(frozen=True)
class CriticalityConfig(JudgeConfig):
    split: str = "train"  # whose questions: train, dev or test
    questions: Positive = 48
    trajectories: Positive = 4  # from the prompt of each question; their tool results are the places
    next_turns: Positive = 8  # sampled at each place
    continuations: Positive = 4  # of each different one of them
    chosen: Positive = 4  # places of a question that a rule may choose
    output: str = ""  # file name without ending; default experiments/criticality/MODEL-DATA


@dataclass(eq=False)
class Place:
    """Entropies in nats. What nested sampling finds is the same for places with the same tokens before them."""

    question: int
    nodes: list[Node]  # the turns and results up to here
    depth: int  # results up to here
    delta: float
    entropy: float
    first_token: float
    largest: float
    turn_tokens: int
    found: dict[str, float] = field(default_factory=dict)  # between, total, calls, tokens


def main() -> None:
    with one_line_errors("criticality.py"):
        config = read_flags(sys.argv[1:])
        places = measure(
            open_policy(config), load_task(config, config.split, config.questions, make_sandbox(config)), config
        )
        columns = {name: [getattr(place, name) for place in places] for name in ("question", *list(PREDICTORS)[:-1])}
        columns |= {name: [place.found[name] for place in places] for name in ("between", "total", "calls", "tokens")}
        table = {name: np.array(column) for name, column in columns.items()}
        summary = summarise(table, config.chosen)
        print(told(summary, config))
        output = Path(config.output)
        output.parent.mkdir(parents=True, exist_ok=True)
        kept = {name: [round(float(value), 5) for value in column] for name, column in table.items()}
        about = {"settings": asdict(config), "summary": summary, "places": kept}
        output.with_suffix(".json").write_text(json.dumps(about) + "\n", encoding="utf-8")
        plot(table, summary, output.with_suffix(".png"))


def read_flags(argv: list[str]) -> CriticalityConfig:
    few = first_look(CriticalityConfig, argv, ("data",))
    named = first_look(CriticalityConfig, argv, ("model",), {"model": models.built_in_for(few["data"])})
    config = parse(CriticalityConfig, argv, "criticality.py", __doc__, models.model_defaults(named["model"]) | named)
    name = f"{Path(config.model).name}-{config.data.replace(':', '-')}"
    return config if config.output else replace(config, output=str(Path(__file__).parent / "criticality" / name))


# ---------------------------------------------------------------------------------- measuring


def measure(policy: Policy, task: Task, config: CriticalityConfig) -> list[Place]:
    """The places of all questions, with what nested sampling finds at them."""

    def grow(prefixes: list[list[int]], name: str, leaves: int) -> list[Tree]:
        flat = replace(config, num_generations=leaves, num_initial=0)
        return policy.grow(prefixes, [f"{config.seed}/{name}/{i}" for i in range(len(prefixes))], task.tools, flat)

    def scores(question: Question, before: list[Node], tree: Tree) -> list:
        """Of a tree's leaves, as if its trajectories had begun with the nodes before."""
        nodes = [replace(node, parent=i - 1) for i, node in enumerate(before)]
        nodes += [replace(node, parent=node.parent + len(before)) for node in tree.nodes]
        return score_leaves(Tree(tree.prompt, nodes), question, policy.tokenizer, config.reward_bonus)

    prompts = [encode_prompt(policy.tokenizer, question.question) for question in task.questions]
    places = [
        place
        for number, tree in enumerate(grow(prompts, "flat", config.trajectories))
        for place in places_of(number, tree, config.entropy_tokens)
    ]
    same: dict[tuple, list[Place]] = defaultdict(list)  # by the tokens before them
    for place in places:
        ids = prompts[place.question] + [token for node in place.nodes for token in node.ids + node.observation]
        same[place.question, tuple(ids)].append(place)
    firsts = [group[0] for group in same.values()]
    below = grow([list(ids) for _, ids in same], "turns", config.next_turns)
    samples = [defaultdict(list) for _ in firsts]  # of each place: next turn -> rewards after it
    counts, prefixes, owners = [defaultdict(int) for _ in firsts], [], []
    for i, (place, (_, ids), tree) in enumerate(zip(firsts, same, below)):
        judged = scores(task.questions[place.question], place.nodes, tree)
        rewards, calls = [score.reward for score in judged], [score.calls - place.depth for score in judged]
        place.found = {"calls": float(np.mean(calls)), "tokens": float(tree.lengths().mean())}
        place.found |= {"between": 0.0, "total": float(np.var(rewards, ddof=1))}
        for leaf, reward in zip(tree.leaves(), rewards):
            turn = tree.nodes[tree.path(leaf)[0]]
            counts[i][tuple(turn.ids)] += 1
            if not turn.observation:
                samples[i][tuple(turn.ids)].append(reward)
            elif tuple(turn.ids) not in samples[i]:
                samples[i][tuple(turn.ids)] = []
                prefixes.append(list(ids) + turn.ids + turn.observation)
                owners.append((i, turn))
    several = [n for n, (i, _) in enumerate(owners) if len(counts[i]) > 1]  # one turn alone has no variance between
    for n, tree in zip(several, grow([prefixes[n] for n in several], "continuations", config.continuations)):
        i, turn = owners[n]
        judged = scores(task.questions[firsts[i].question], [*firsts[i].nodes, turn], tree)
        samples[i][tuple(turn.ids)] = [score.reward for score in judged]
    for i, group in enumerate(same.values()):
        if len(counts[i]) > 1:
            group[0].found |= variances([samples[i][turn] for turn in counts[i]], list(counts[i].values()))
        for place in group:
            place.found = group[0].found
    return places


def places_of(question: int, tree: Tree, k: int) -> list[Place]:
    """The tool results of a question's flat trajectories, with what their next turn's entropies say."""
    places = []
    for leaf in tree.leaves():
        nodes = [tree.nodes[n] for n in tree.path(leaf)]
        for depth, turn in enumerate(nodes[1:], 1):
            entropy = float(np.mean(turn.entropies[:k]))
            delta = entropy - float(np.mean(nodes[0].entropies[:k]))
            seen = delta, entropy, turn.entropies[0], max(turn.entropies), len(turn.ids)
            places.append(Place(question, nodes[:depth], depth, *seen))
    return places


def variances(rewards: list[list[float]], counts: list[int]) -> dict[str, float]:
    """Unbiased variance of Q between turns, and with that within them; `rewards` after each turn, drawn `counts` times.

    A turn after which everything is settled has one reward, as often as it was drawn.
    """
    share, draws = np.array(counts) / sum(counts), sum(counts)
    mean = np.array([np.mean(after) for after in rewards])
    within = np.array([np.var(after, ddof=1) if len(after) > 1 else 0.0 for after in rewards])
    noise = within / np.array([len(after) for after in rewards])  # of each mean; it inflates the spread of the means
    spread = share @ (mean - share @ mean) ** 2 - share * (1 - share) @ noise
    between = float(spread * draws / (draws - 1))
    return {"between": between, "total": between + float(share @ within)}
