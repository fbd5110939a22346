"""Judging a policy: accuracy, pass@k, tool calls, tables and drawn trees.

    python eval.py --model RUN                                 accuracy and pass@k on held-out questions
    python eval.py --model RUN --ask "a question"              one answer, with its steps
    python eval.py --model RUN --ask --num_generations 8       one tree, drawn, for one of the world's questions

An answer is judged by the same code that rewards it in training, on trajectories sampled by the same code. Accuracy
never contains the multi-tool bonus. Left out: judging by another language model.
"""

import sys
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import transformers

from advantage import ADVANTAGES
from arpo import Policy, pack, token_logprobs
from data import Question, models
from data.benchmarks import world_in
from data.format import ToolCall, encode_prompt, printable, read_answer
from data.grading import accuracy, hierarchical_reward
from data.pages import check_place, write_page
from data.settings import Natural, NonNegative, Positive, first_look, one_line_errors, parse
from data.statistics import bootstrap, pass_at_k, wilson
from data.views import tree_view
from data.web import OutOfBudget
from data.worlds import find_question, strange_words, world_of
from rollout import PROMPT, Node, RolloutConfig, Tree
from tools import Lent, Task, ToolConfig, ToolsFail, load_task, make_sandbox


@dataclass(frozen=True)
class JudgeConfig(models.ModelConfig, ToolConfig, RolloutConfig):
    """What every command has that judges a policy."""

    reward_bonus: NonNegative = 0.1  # r_M, for a right answer that used search and Python

    def memory(self, lora_r: int | None) -> models.MemoryPlan | None:
        """The plan for the trees of these settings, where the model's configuration can be had."""
        with suppress(OSError, ValueError):
            return models.plan_memory(self, self.max_completion_length, self.num_generations, lora_r)


@dataclass(frozen=True)
class EvalConfig(JudgeConfig):
    num_generations: Positive = 1  # M of --ask: leaves of its tree; with 1, the likeliest answer
    num_initial: Natural = 0  # N of --ask; default half of M
    split: Literal["all", "train", "dev", "test"] = "all"  # all: the test split of a set, and the whole of a file
    count: Positive = 300  # questions at most
    samples: Positive = 8  # trajectories for each question
    merge: str = ""  # write the adapter merged into its base model to this folder, and stop
    ask: str | None = None  # answer this one question, and stop; without text, one of the world's, by --seed
    answer: str = ""  # the accepted answer to --ask, where the question is not one of the world's
    width: Positive = 120  # columns of a drawn tree
    html: str = ""  # write the tree of --ask to this file, too, as a page for a browser


def open_policy(config: JudgeConfig, lora_r: int | None = None) -> Policy:
    """The model that the settings name; for `lora_r` see `data/models.py:load_model`."""
    return Policy.open(config, config.max_completion_length, config.num_generations, lora_r)


# ---------------------------------------------------------------------------------- scores


@dataclass
class Score:
    """What one leaf's trajectory is worth."""

    answer: str | None  # None: the format is wrong
    accuracy: float
    reward: float
    calls: int  # really executed
    tokens: int  # after the prompt, results included
    end: str


Scores = list[list[Score]]  # (questions, samples)


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


def evaluate(policy: Policy, task: Task, config: RolloutConfig, samples: int, temperature: float, seed=0) -> Scores:
    """`samples` independent trajectories for every question: scores (questions, samples)."""
    flat = replace(config, num_generations=samples, num_initial=0, temperature=temperature)
    prompts = [encode_prompt(policy.tokenizer, q.question) for q in task.questions]
    keys = [f"eval{seed}/{q.id}" for q in task.questions]
    trees = policy.grow(prompts, keys, task.tools, flat)
    return [score_leaves(tree, q, policy.tokenizer) for tree, q in zip(trees, task.questions)]


def judge(name: str, policy: Policy, task: Task, config: RolloutConfig, samples=1, seed=0) -> dict[str, Scores]:
    """Rows of a table: a policy's likeliest answers, and its sampled ones, of which there may be none."""
    rows = {f"{name}, greedy": evaluate(policy, task, config, 1, 0.0, seed)}
    if samples:
        how = "sampled" if samples == 1 else f"mean of {samples}"
        rows[f"{name}, {how}"] = evaluate(policy, task, config, samples, config.temperature or 1.0, seed)
    return rows


def judge_expert(config: JudgeConfig, split: str, task: Task) -> dict[str, Scores]:
    """A row of a table, where the world is the data: the flawless expert, its calls really run. It is the ceiling."""
    if config.data != world_in(config.data):
        return {}
    world = world_of(config.data, split)
    scores = []
    for question in task.questions:
        *actions, last = world.expert(question)
        results = [(act.tool, task.tools.submit(ToolCall(act.tool, act.content)).result()) for act in actions]
        ran = {tool for tool, result in results if result.outcome == "ok"}
        right = accuracy(question, last.content)
        scores.append([Score(last.content, right, hierarchical_reward(right, True, ran), len(actions), 0, "end")])
    return {"expert (ceiling)": scores}


def score_leaves(tree: Tree, question: Question, tokenizer, bonus: float = 0.1) -> list[Score]:
    """One `Score` for each of the tree's M leaves."""
    scores = []
    for leaf in tree.leaves():
        nodes = [tree.nodes[n] for n in tree.path(leaf)]
        answer = read_answer(turn_texts(nodes, tokenizer)) if nodes[-1].stopped == "end" else None
        ran = [node.call.tool for node in nodes if node.result and node.result.outcome not in ("refused", "malformed")]
        right = accuracy(question, answer) if answer else 0.0
        worked = {node.call.tool for node in nodes if node.result and node.result.outcome == "ok"}
        reward = hierarchical_reward(right, answer is not None, worked, bonus)
        tokens = sum(len(node.ids) + len(node.observation) for node in nodes)
        scores.append(Score(answer, right, reward, len(ran), tokens, nodes[-1].stopped))
    return scores


def turn_texts(nodes: list[Node], tokenizer) -> list[str]:
    """What the policy wrote in each turn of a path that ended with the end token, which is left out."""
    turns: list[list[int]] = [[]]
    for node in nodes:
        turns[-1] = turns[-1] + node.ids
        if node.observation:
            turns.append([])
    turns[-1].pop()
    return [tokenizer.decode(ids) for ids in turns]


# ---------------------------------------------------------------------------------- sampled and trained numbers


def check_numbers(policy: Policy, task: Task, config: JudgeConfig) -> None:
    """Raises ValueError, in one line, if a token would be trained with another probability than it was sampled with.

    Grows two real trees and compares the sampler's log-probs with a plain forward pass of a path, and with the packed
    pass in training mode. To be done once, before anything is trained.
    """
    kind, questions = policy.model.config.model_type, task.questions[:2]
    few = replace(config, num_generations=min(4, config.num_generations), num_initial=min(2, config.num_initial))
    prompts = [encode_prompt(policy.tokenizer, question.question) for question in questions]
    try:
        trees = policy.grow(prompts, [f"check/{question.id}" for question in questions], task.tools, few)
        gaps = {"plain": plain_gap(policy, trees[0], config), "packed": packed_gap(policy, trees, config)}
        task.tools.counts.clear()
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, LookupError, TypeError, AttributeError, NotImplementedError) as error:
        told = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"trees cannot be grown or packed with a model of type {kind}: {told:.200}") from None
    exact = policy.model.dtype == torch.float32 and not getattr(policy.model, "is_loaded_in_4bit", False)
    bound = 1e-3 if exact else 0.1
    for name, gap in gaps.items():
        if not gap <= bound:
            cause = "a window, a scaled head, positions that count padding, or layers with a state are likely causes"
            found = f"found {gap:.2g} in the {name} forward pass of a model of type {kind} ({cause})"
            raise ValueError(f"expected log-probs within {bound:g} nats of those that were sampled, {found}")


@torch.no_grad()
def plain_gap(policy: Policy, tree: Tree, config: RolloutConfig) -> float:
    """The mean distance, over the tokens of one path, of the sampler's log-probs from those of a plain forward pass."""
    nodes = [tree.nodes[n] for n in tree.path(tree.leaves()[0])]
    ids = tree.prompt + [token for node in nodes for token in node.ids + node.observation]
    logits = policy.model(torch.tensor([ids], device=policy.model.device), use_cache=False).logits[0, :-1].float()
    logprobs = (
        (logits / config.temperature).log_softmax(-1).gather(-1, torch.tensor(ids[1:], device=logits.device)[:, None])
    )
    at, gaps = len(tree.prompt) - 1, []
    for node in nodes:
        own = logprobs[at : at + len(node.ids), 0].cpu()
        gaps.append((own - torch.tensor(node.logprobs)).abs())
        at += len(node.ids) + len(node.observation)
    return float(torch.cat(gaps).mean())


@torch.no_grad()
def packed_gap(policy: Policy, trees: list[Tree], config: RolloutConfig) -> float:
    """The same for the packed pass of the update, over all trees."""
    batch = pack([(tree, tree.descends(), tree.descends()) for tree in trees], policy.model.device)
    policy.model.train()
    logprobs = token_logprobs(policy.model, batch, config.temperature)
    policy.model.eval()
    return float((logprobs - batch.sampler_logprobs).abs().mean())


# ---------------------------------------------------------------------------------- statistics and tables


def per_question(scores: Scores, name: str) -> np.ndarray:
    return np.array([np.mean([getattr(score, name) for score in row]) for row in scores])


def summary_row(scores: Scores) -> dict[str, float]:
    """The numbers of one row of the table."""
    right = per_question(scores, "accuracy")
    flat = [score for row in scores for score in row]
    low, high = wilson(right.sum(), len(right)) if len(scores[0]) == 1 else bootstrap(right)
    plain = [score.accuracy if score.answer is not None else -1.0 for score in flat]
    return {
        "accuracy": float(right.mean()),
        "low": float(low),
        "high": float(high),
        "reward": float(np.mean([score.reward for score in flat])),
        "reward_without_bonus": float(np.mean(plain)),
        "calls": float(np.mean([score.calls for score in flat])),
        "malformed": float(np.mean([score.answer is None for score in flat])),
    }


def mean_accuracy(scores: Scores) -> float:
    return float(per_question(scores, "accuracy").mean())


def report(rows: dict[str, Scores], task: Task, config: JudgeConfig, split="test", best_step: int | None = None) -> str:
    """The table of a command. After training, what the row of the best model, greedy, has over that of the start.

    A model that is the start itself is not reported as the method's.
    """
    table = comparison_table(rows | judge_expert(config, split, task), task.questions)
    if best_step is None:
        return table
    if best_step == 0:
        return f"{table}\n\nno step raised dev accuracy: the best model is the start (step 0), and there is no gain"
    start, best = (per_question(rows[f"{name}, greedy"], "accuracy") for name in ("start", config.algo))
    gains = 100 * (best - start)
    low, high = bootstrap(gains)
    gained = f"{gains.mean():+.1f} points, 95% interval [{low:+.1f}, {high:+.1f}]"
    return f"{table}\n\ngain over the start, greedy, of the best step ({best_step}): {gained}"


def rollout_metrics(kept: list[Scored], discarded: list[Scored], config: RolloutConfig) -> dict[str, float]:
    """What a step's trees are like; counts include what was thrown away, means do not."""
    trees, leaves = [scored.tree for scored in kept], [score for scored in kept for score in scored.scores]
    first, after = (sum(lists, []) for lists in zip(*(head_entropies(tree, config.entropy_tokens) for tree in trees)))
    decisions = [node.decision for tree in trees for node in tree.nodes if node.decision]
    forks = sum(decision.new_paths for decision in decisions)
    calls = Counter(node.result.outcome for s in kept + discarded for node in s.tree.nodes if node.result)
    started = (config.num_initial or config.num_generations) * len(kept)
    share = lambda flags: float(np.mean(list(flags)))
    return {
        "reward": float(torch.stack([scored.rewards for scored in kept]).mean()),  # of the leaves, bonus included
        "accuracy": share(score.accuracy for score in leaves),  # of the leaves, no bonus
        "calls_per_leaf": share(score.calls for score in leaves),  # tool calls on a leaf's path
        # Calls really executed for a question's whole tree: one that leaves share counts once.
        "calls_per_question": (calls.total() - calls["refused"] - calls["malformed"]) / len(kept),
        "initial_entropy": share(first),  # H over the first k tokens of a trajectory, nats
        "entropy_after_tools": share(after or [0.0]),  # H over the first k tokens after a tool result, nats
        "decisions": len(decisions),  # results at which the branch rule was applied
        "forks": forks,  # new paths that the rule started
        "forks_differ": sum(map(forks_unlike_a_lots, trees)) / max(1, forks),  # from another prefix than by lot
        "fork_wave": sum(d.wave * d.new_paths for d in decisions) / max(1, forks),  # mean wave of the forks, from 1
        "mixed": share(scored.mixed() for scored in kept),  # questions whose leaves differ in accuracy
        "top_ups": len(leaves) - forks - started,  # trajectories from the prompt because budget was left
        "no_variance": share(not scored.teaches() for scored in kept),  # questions whose leaves are rewarded alike
        "identical": 1 - sum(map(different_leaves, trees)) / len(leaves),  # leaves that repeat another of their tree
        "malformed": share(score.answer is None for score in leaves),  # leaves with a wrong format, or truncated
        "truncated": share(score.end != "end" for score in leaves),  # leaves that ran out of tokens or calls
        "tool_errors": 1 - calls["ok"] / max(1, calls.total()),  # tool calls that did not end in ok
        "discarded": len(discarded),  # trees thrown away by dynamic sampling; their tokens and calls are counted
        # Prompt, result and sampled tokens summed over leaves: what a loop without sharing handles.
        "leaf_tokens": sum(len(scored.tree.prompt) + score.tokens for scored in kept for score in scored.scores),
    }


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


def comparison_table(rows: dict[str, Scores], questions: list[Question]) -> str:
    """Policies as rows: accuracy with interval, rewards, calls; then accuracy (and calls) by family."""
    lines = [f"{'':26s}  accuracy  95% interval    reward  without bonus  calls/question  malformed"]
    for name, scores in rows.items():
        r = summary_row(scores)
        lines.append(
            f"{name:26s}   {r['accuracy']:6.1%}  [{r['low']:5.1%}, {r['high']:5.1%}]  {r['reward']:+7.3f}"
            f"  {r['reward_without_bonus']:+13.3f}  {r['calls']:14.2f}  {r['malformed']:9.1%}"
        )
    families = sorted({q.family for q in questions if q.family})
    if families:
        lines.append(f"\n{'accuracy (calls) by family':26s}  " + "".join(f"{family:>14s}" for family in families))
    for name, scores in rows.items() if families else ():
        cells = []
        for family in families:
            own = [row for row, q in zip(scores, questions) if q.family == family]
            cells.append(f"{per_question(own, 'accuracy').mean():7.0%} ({per_question(own, 'calls').mean():.1f})")
        lines.append(f"{name:26s}  " + "".join(f"{cell:>14s}" for cell in cells))
    return "\n".join(lines)


def pass_table(scores: Scores, samples: int) -> str:
    """pass@k for every k that is a power of two, with intervals over questions."""
    correct = [sum(score.accuracy == 1 for score in row) for row in scores]
    lines = []
    for k in (k for k in (1, 2, 4, 8, 16, 32) if k <= samples):
        values = np.array([pass_at_k(c, samples, k) for c in correct])
        low, high = bootstrap(values)
        lines.append(f"pass@{k:<3d} {values.mean():6.1%}  95% interval [{low:.1%}, {high:.1%}]")
    return "\n".join(lines)


# ---------------------------------------------------------------------------------- drawing


def draw_tree(tree: Tree, tokenizer, rewards=None, advantages=None, width: int = 110) -> str:
    """The tree as text: turns, results, entropies, decisions, and at each leaf its reward and advantage (M,)."""
    leaf_number = {leaf: m for m, leaf in enumerate(tree.leaves())}
    lines = ["prompt  " + _clip(tokenizer.decode(tree.prompt), width - 8)]

    def walk(parent: int, indent: str) -> None:
        children = [n for n, node in enumerate(tree.nodes) if node.parent == parent]
        for n in children:
            node, last = tree.nodes[n], n == children[-1]
            inner = indent + ("   " if last else "│  ")
            label = f"{len(node.ids)} tokens, H {np.mean(node.entropies):.2f}  "
            text = _clip(tokenizer.decode(node.ids), width - len(inner) - len(label))
            lines.append(indent + ("└─ " if last else "├─ ") + label + text)
            if node.observation:
                lines.append(f"{inner}⇒ " + _clip(tokenizer.decode(node.observation), width - len(inner) - 2))
            if node.decision:
                lines.append(f"{inner}⑂ {_decision_text(node.decision)}")
            if n in leaf_number:
                m = leaf_number[n]
                lines.append(f"{inner}● leaf {m}: " + _leaf_text(node.stopped, m, rewards, advantages))
            walk(n, inner)

    walk(PROMPT, "")
    return "\n".join(lines)


def _decision_text(d) -> str:
    verdict = f"{d.new_paths} new" if d.new_paths else "no fork"
    seen = f"H_t {d.entropy:.2f}  H_initial {d.initial_entropy:.2f}  ΔH {d.delta:+.3f}"
    why = f"P {d.prob:.4f} {'>' if d.prob > d.bar else '≤'} {d.bar:.4f}"
    return f"{verdict}: {seen}  {why}" + (", but no budget is left" if d.prob > d.bar and not d.new_paths else "")


def _leaf_text(end: str, m: int, rewards, advantages) -> str:
    text = {"end": "ended", "length": "out of tokens", "calls": "out of calls"}[end]
    text += "" if rewards is None else f"  reward {float(rewards[m]):+.2f}"
    return text + ("" if advantages is None else f"  advantage {float(advantages[m]):+.2f}")


def _clip(text: str, width: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= width else text[: max(1, width - 1)] + "…"


# ---------------------------------------------------------------------------------- the commands


def main() -> None:
    transformers.utils.logging.disable_progress_bar()
    with one_line_errors("eval.py", ToolsFail, OutOfBudget):
        config = read_flags(sys.argv[1:])
        (merge if config.merge else benchmark if config.ask is None else ask)(config)


def read_flags(argv: list[str]) -> EvalConfig:
    """Flags over what follows the model; the shape of a tree follows --num_generations."""
    few = first_look(EvalConfig, argv, ("data", "num_generations"))
    named = first_look(EvalConfig, argv, ("model",), {"model": models.built_in_for(few["data"])})
    shape = {"num_generations": 1, "num_initial": (few["num_generations"] + 1) // 2}
    config = parse(EvalConfig, argv, "eval.py", __doc__, models.model_defaults(named["model"]) | named | shape)
    if config.answer and config.ask is None:
        raise ValueError("--answer: expected beside --ask, whose question it belongs to, found alone")
    if config.html:
        check_place(config.html, config.ask)
    if config.merge and config.ask is not None:
        raise ValueError("--merge: expected alone, since it answers nothing, found --ask")
    return config


def benchmark(config: EvalConfig) -> None:
    """Greedy accuracy, and the mean and pass@k of sampled trajectories."""
    lent = Lent()
    task = load_task(config, config.split, config.count, make_sandbox(config), lent)
    policy = open_policy(config)
    lent.read = policy.read
    rows = judge(Path(config.model).name, policy, task, config, config.samples, config.seed)
    _, sampled = rows.values()
    print(f"{config.model} on {len(task.questions)} questions of {config.data}")
    print(f"{report(rows, task, config, config.split)}\n\n{pass_table(sampled, config.samples)}")
    print(f"\ntool calls\n{task.tools.report()}")


def ask(config: EvalConfig) -> None:
    """Grows one tree for a question. With one leaf it is the likeliest answer, shown step by step; else it is drawn."""
    if config.ask.isspace():
        raise ValueError(f"--ask: expected a question, or nothing for one of the world's, found {config.ask!r}")
    world = world_in(config.data) or "world"
    question, split = find_question(world, config.ask, config.seed)
    if models.size_of(config.model) in models.BUILT_IN and (odd := strange_words(world, question.question)):
        told = f"the built-in model has never seen {', '.join(odd)}: it knows questions about its own world alone"
        print(f"{told} (python eval.py --ask shows one)", file=sys.stderr)
    if config.answer:
        question = replace(question, answers=(config.answer,))
    lent = Lent()
    task, policy = load_task(config, split, 1, make_sandbox(config), lent), open_policy(config)
    lent.read, tokenizer = policy.read, policy.tokenizer
    if config.num_generations == 1:
        config = replace(config, temperature=0.0)
    keys = [f"{config.seed}/{question.id}"]
    (tree,) = policy.grow([encode_prompt(tokenizer, question.question)], keys, task.tools, config)
    scores = score_leaves(tree, question, tokenizer, config.reward_bonus)
    rewards = torch.tensor([score.reward for score in scores])
    advantages = ADVANTAGES["group"](rewards[None], None)[0] if len(scores) > 1 else torch.zeros(1)
    if config.html:
        view = tree_view(config.model, Scored(question, tree, scores, rewards), advantages, tokenizer, config)
        write_page(Path(config.html), "tree", question.question, {"trees": [view]})
    known = ", ".join(question.answers)
    if config.num_generations == 1:
        for node in tree.nodes:
            print(printable(tokenizer.decode(node.ids)))
            if node.observation:
                print(f"    {printable(tokenizer.decode(node.observation))}")
        told = f" (accepted: {known})" if known else ""
        answer = scores[0].answer if scores[0].answer is not None else "none, the format is wrong"
        print(f"answer: {printable(answer)}{told}")
        return
    print(printable(draw_tree(tree, tokenizer, rewards, advantages, config.width)))
    print(f"\naccepted answer: {known or 'unknown (rewards show the format alone)'}")
    print("tokens: " + ", ".join(f"{name} {n}" for name, n in policy.sampler.counts.items()))


def merge(config: EvalConfig) -> None:
    """Writes a run's adapter and its base model as one model that `AutoModelForCausalLM` loads."""
    models.check_merge(config.model, config.merge)
    dtype = models.pick_dtype(models.pick_device())  # not 4-bit, which would round what is merged
    policy = Policy.load(config.model, dtype=dtype)
    policy.adapter.merge_and_unload().save_pretrained(config.merge)
    policy.tokenizer.save_pretrained(config.merge)
    print(f"merged weights in {config.merge}")


if __name__ == "__main__":
    main()
