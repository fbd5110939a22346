"""Judging a policy: accuracy, pass@k, tool calls, tables and drawn trees.

    python eval.py --model RUN                                 accuracy and pass@k on held-out questions
    python eval.py --compare RUN RUN ...                       runs and evaluations side by side
    python eval.py --model RUN --ask "a question"              one answer, with its steps
    python eval.py --model RUN --ask --num_generations 8       one tree, drawn, for one of the world's questions

An answer is judged by the same code that rewards it in training, on trajectories sampled by the same code. Accuracy
never contains the multi-tool bonus. What an evaluation leaves in its folder is said in `data/results.py`.
"""

import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import transformers

from advantage import ADVANTAGES
from arpo import Policy, pack, token_logprobs
from data import Question, models, runs
from data.agents import OFFICIAL, AgentConfig, check_agent
from data.benchmarks import world_in
from data.compare import compare
from data.drawing import rule_text, steps_text, tree_text
from data.drive import answer_with, left_out, make_crew
from data.format import ToolCall, TrajectoryConfig, encode_prompt, read_answer
from data.grading import accuracy, hierarchical_reward
from data.judge import judge_all
from data.logits import rows_of_logits
from data.memory import MemoryPlan, plan_memory
from data.metrics import NOT_RUN, Scored
from data.pages import check_place, write_page
from data.paper import DECODING
from data.results import Kept, Result, Row, Score, answered, write_results
from data.settings import Natural, NonNegative, Positive, Questions, first_look, given, one_line_errors, parse
from data.tables import comparison_table, gain, pass_table
from data.views import tree_view
from data.web import OutOfBudget
from data.worlds import find_question, strange_words, world_of
from rollout import Node, RolloutConfig, Tree
from tools import Lent, Task, ToolConfig, ToolsFail, begin_call, load_task, make_sandbox


@dataclass(frozen=True)
class JudgeConfig(models.ModelConfig, ToolConfig, RolloutConfig):
    """What every command has that judges a policy."""

    reward_bonus: NonNegative = 0.1  # r_M, for a right answer that used search and Python

    def memory(self, lora_r: int | None) -> MemoryPlan | None:
        """The plan for these settings, where the model's configuration can be had. Raises `TooLarge`."""
        with suppress(OSError, ValueError):
            return plan_memory(self, lora_r)


@dataclass(frozen=True)
class EvalConfig(AgentConfig, JudgeConfig):
    num_generations: Positive = 1  # M of --ask: leaves of its tree; with 1, the likeliest answer
    num_initial: Natural = 0  # N of --ask; default half of M
    split: Literal["all", "train", "dev", "test"] = "all"  # all: the test split of a set, and the whole of a file
    count: Questions = 300  # questions at most
    samples: Positive = 5  # trajectories for each question
    pass_k: tuple[int, ...] = ()  # the k of pass@k, at most --samples; default those of 1, 3 and 5
    output_dir: str = ""  # for the results; default runs/eval-MODEL-DATA-DIGEST, the digest being of all settings
    trajectories: bool = False  # keep the turns of every answer in answers.jsonl
    compare: tuple[str, ...] = ()  # show the results.json of these folders side by side, and stop
    table: Literal["", "paper"] = ""  # of --compare: as the paper's tables, with its numbers
    merge: str = ""  # write the adapter merged into its base model to this folder, and stop
    ask: str | None = None  # answer this one question, and stop; without text, one of the world's, by --seed
    answer: str = ""  # the accepted answer to --ask, where the question is not one of the world's
    width: Positive = 120  # columns of a drawn tree
    html: str = ""  # write the tree of --ask to this file, too, as a page for a browser


# What --ask tells of the sampler's counts.
TOKENS = {"prefilled": "read", "refed": "read again at forks", "decoded": "sampled", "holes": "fed for nothing"}
# Flags that say something only beside --ask, and only without it.
OF_A_TREE = {field.name for field in fields(RolloutConfig)} - {field.name for field in fields(TrajectoryConfig)}
OF_A_TREE |= {"answer", "width", "html"}
OF_A_TABLE = {field.name for field in fields(AgentConfig)} - {field.name for field in fields(JudgeConfig)}
OF_A_TABLE |= {"split", "count", "samples", "pass_k", "trajectories", "compare", "table"}


def open_policy(config: JudgeConfig, lora_r: int | None = None) -> Policy:
    """The model that the settings name; for `lora_r` see `data/models.py:load_model`."""
    return Policy.open(config, lora_r)


# ---------------------------------------------------------------------------------- scores


def evaluate(
    policy: Policy, task: Task, config: RolloutConfig, samples: int, temperature: float, seed=0, with_turns=False
) -> list[Result]:
    """`samples` independent trajectories for every question."""
    top_p = config.top_p if temperature else 1.0
    flat = replace(config, num_generations=samples, num_initial=0, temperature=temperature, top_p=top_p)
    prompts = [encode_prompt(policy.tokenizer, q.question) for q in task.questions]
    keys, started = [f"eval{seed}/{q.id}" for q in task.questions], time.perf_counter()
    trees = policy.grow(prompts, keys, task.tools, flat)
    seconds = (time.perf_counter() - started) / max(1, samples * len(trees))
    results = []
    for tree, question in zip(trees, task.questions):
        scores = score_leaves(tree, question, policy.tokenizer, with_turns=with_turns)
        results.append(Result.of(question, [replace(score, seconds=seconds) for score in scores]))
    return results


def judge(
    name: str, policy: Policy, task: Task, config: JudgeConfig, samples=1, kept: Kept | None = None
) -> dict[str, Row]:
    """Rows of a table: a policy's likeliest answers, and its sampled ones, of which there may be none."""
    ways = {f"{name}, greedy": (1, 0.0)}
    if samples and config.temperature:
        ways[f"{name}, sampled" if samples == 1 else f"{name}, mean of {samples}"] = (samples, config.temperature)
    rows, backbone = {}, models.origin_of(config.model)[0]
    for row, (count, temperature) in ways.items():
        how = count, temperature, config.seed, bool(kept and kept.with_turns)
        some = lambda questions: evaluate(policy, replace(task, questions=questions), config, *how)
        # A tenth at a time, so that a kill costs no more; without a file to keep them in, all at once.
        at_once = max(1, len(task.questions) // 10) if kept else len(task.questions)
        results = answered(row, task.questions, some, kept, at_once)
        rows[row] = Row(name, backbone, temperature, config.top_p if temperature else 1.0, config.seed, results)
    return rows


def judge_expert(config: JudgeConfig, split: str, task: Task) -> dict[str, Row]:
    """A row of a table, where the world is the data: the flawless expert, its calls really run. It is the ceiling."""
    if config.data != world_in(config.data):
        return {}
    world, results = world_of(config.data, split), []
    for question in task.questions:
        *actions, last = world.expert(question)
        called = [(act.tool, task.tools.submit(ToolCall(act.tool, act.content)).result()) for act in actions]
        ran = dict(Counter(tool for tool, result in called if result.outcome not in NOT_RUN))
        worked, right = {tool for tool, result in called if result.outcome == "ok"}, accuracy(question, last.content)
        score = Score(last.content, right, hierarchical_reward(right, True, worked), ran, 0, "end")
        results.append(Result.of(question, [score]))
    return {"expert (ceiling)": Row("expert", "", 0.0, 1.0, config.seed, results)}


def score_leaves(tree: Tree, question: Question, tokenizer, bonus: float = 0.1, with_turns=False) -> list[Score]:
    """One `Score` for each of the tree's M leaves."""
    scores = []
    for leaf in tree.leaves():
        nodes = [tree.nodes[n] for n in tree.path(leaf)]
        answer = read_answer(turn_texts(nodes, tokenizer)) if nodes[-1].stopped == "end" else None
        called = Counter(node.call.tool for node in nodes if node.result and node.result.outcome not in NOT_RUN)
        right = accuracy(question, answer) if answer else 0.0
        worked = {node.call.tool for node in nodes if node.result and node.result.outcome == "ok"}
        reward = hierarchical_reward(right, answer is not None, worked, bonus)
        tokens = sum(len(node.ids) + len(node.observation) for node in nodes)
        turns = messages(question, nodes, tokenizer) if with_turns else []
        scores.append(Score(answer, right, reward, dict(called), tokens, nodes[-1].stopped, turns=turns))
    return scores


def messages(question: Question, nodes: list[Node], tokenizer) -> list[dict[str, str]]:
    """A path as the messages of a conversation, as its reader would want them."""
    told = [{"role": "user", "content": question.question}]
    for node in nodes:
        told.append({"role": "assistant", "content": tokenizer.decode(node.ids)})
        if node.result:
            tool, outcome = node.call.tool if node.call else "", node.result.outcome
            told.append(
                {"role": "tool", "name": tool, "outcome": outcome, "content": tokenizer.decode(node.observation)}
            )
    return told


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
    ids = sum((node.ids + node.observation for node in nodes), [])
    ids = tree.prompt + ids[: rows_of_logits(policy.sampler.vocab_size)]  # the logits of a long path are gigabytes
    rows, device = len(ids) - len(tree.prompt) + 1, policy.model.device
    logits = policy.model(torch.tensor([ids], device=device), use_cache=False, logits_to_keep=rows).logits[0, :-1]
    targets = torch.tensor(ids[len(tree.prompt) :], device=device)[:, None]
    logprobs = (logits.float() / config.temperature).log_softmax(-1).gather(-1, targets).flatten().cpu()
    at, gaps = 0, []
    for node in nodes:
        own = logprobs[at : at + len(node.ids)]
        gaps.append((own - torch.tensor(node.logprobs[: len(own)])).abs())
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


# ---------------------------------------------------------------------------------- tables


def mean_accuracy(results: list[Result]) -> float:
    return float(np.mean([result.mean("accuracy") for result in results]))


def report(rows: dict[str, Row], algo: str = "", best_step: int | None = None) -> str:
    """The table of a command. After training, what the row of the best model, greedy, has over that of the start.

    A model that is the start itself is not reported as the method's.
    """
    table = comparison_table({name: [row] for name, row in rows.items()})
    if best_step is None:
        return table
    if best_step == 0:
        return f"{table}\n\nno step raised dev accuracy: the best model is the start (step 0), and there is no gain"
    gained = gain([rows[f"{algo}, greedy"]], [rows["start, greedy"]])
    told = f"{gained.mean:+.1f} points, 95% interval [{gained.low:+.1f}, {gained.high:+.1f}]"
    return f"{table}\n\ngain over the start, greedy, of the best step ({best_step}): {told}"


# ---------------------------------------------------------------------------------- the commands


def main() -> None:
    transformers.utils.logging.disable_progress_bar()
    with one_line_errors("eval.py", ToolsFail, OutOfBudget):
        config = read_flags(sys.argv[1:])
        if config.compare:
            place = Path(config.output_dir or "runs/compared")
            return print(compare(config.compare, config.pass_k, place, config.table))
        elsewhere = config.merge or config.endpoint or models.size_of(config.model) in models.BUILT_IN
        if not elsewhere and (plan := config.memory(None)):
            print(f"memory: {plan}", file=sys.stderr)
        (merge if config.merge else benchmark if config.ask is None else ask)(config)


def read_flags(argv: list[str]) -> EvalConfig:
    """Flags over what follows the model; a tree's shape follows --num_generations, and sampling is the paper's."""
    few = first_look(EvalConfig, argv, ("data", "num_generations", "samples", "ask"))
    named = first_look(EvalConfig, argv, ("model", "agent"), {"model": models.built_in_for(few["data"])})
    own = {"num_generations": 1, "num_initial": (few["num_generations"] + 1) // 2}
    own["pass_k"] = tuple(k for k in (1, 3, 5) if k <= few["samples"])
    if few["ask"] is None:
        own |= DECODING
    if models.size_of(named["model"]) not in models.BUILT_IN:
        own |= OFFICIAL.get(named["agent"], {})
    config = parse(EvalConfig, argv, "eval.py", __doc__, models.model_defaults(named["model"]) | named | own)
    vain, place = (OF_A_TREE, "beside") if config.ask is None else (OF_A_TABLE, "without")
    if flag := min(vain & given(EvalConfig, argv).keys(), default=""):
        raise ValueError(f"--{flag}: expected {place} --ask, found {' '.join(argv)}")
    if config.html:
        check_place(config.html)
    if config.merge and config.ask is not None:
        raise ValueError("--merge: expected alone, since it answers nothing, found --ask")
    if "compare" in given(EvalConfig, argv) and not config.compare:
        raise ValueError("--compare: expected folders with results, found none")
    if config.temperature == 0 and "samples" in given(EvalConfig, argv):
        raise ValueError("--samples: expected a --temperature above 0 to sample at, found 0")
    if config.table and not config.compare:
        raise ValueError("--table: expected beside --compare, whose results it shows, found alone")
    if wrong := [k for k in config.pass_k if not 1 <= k <= config.samples and not config.compare]:
        raise ValueError(f"--pass_k: expected from 1 to --samples {config.samples}, found {wrong[0]}")
    check_agent(config)
    return config


def benchmark(config: EvalConfig) -> None:
    """Greedy accuracy, and the mean, pass@k and pass^k of sampled trajectories; goes on where it was killed."""
    name, lent = Path(config.model).name, Lent()
    task = load_task(config, config.split, config.count, make_sandbox(config), lent)
    settings = answering_settings(config)
    named = name if config.agent == "policy" else f"{name}-{config.agent}"
    folder = Path(config.output_dir or runs.evaluation_folder(named, config.data, settings))
    runs.refuse_a_run(folder)
    with runs.folder_for(folder):
        runs.lock(folder)
        with Kept(folder, settings, config.trajectories) as kept:
            before = bool(kept.done)
            rows = (policy_rows if config.agent == "policy" else agent_rows)(config, task, lent, kept)
    ceiling = judge_expert(config, config.split, task)
    asked = config, task.questions, rows, opener(config, lent), task.tools.around.cache
    told = judge_all(*asked) if config.judge else ""
    file = write_results(folder, asdict(config), runs.versions(), rows | ceiling)
    sampled = [row for row in rows.values() if row.temperature]
    print(f"{config.model} on {len(task.questions)} questions of {config.data}")
    for row in sampled:
        paper = " as in the paper" * all(getattr(config, key) == value for key, value in DECODING.items())
        print(f"sampled: {config.samples} answers to each question, {row.decoding}{paper}")
    print("\n".join(filter(None, [report(rows | ceiling), told])))
    for row in sampled:
        print(f"\n{pass_table([row], config.pass_k)}")
    print(f"\ntool calls{' since it went on' * before}\n{task.tools.report()}\nresults: {file}")


def policy_rows(config: EvalConfig, task: Task, lent: Lent, kept: Kept) -> dict[str, Row]:
    policy = open_policy(config)
    lent.read = policy.read
    rows = judge(Path(config.model).name, policy, task, config, config.samples, kept)
    for row in rows.values():
        row.method = models.origin_of(config.model)[1]
    return rows


def agent_rows(config: EvalConfig, task: Task, lent: Lent, kept: Kept) -> dict[str, Row]:
    """The row of an agent of `data/agents.py`, with what it leaves out."""
    reader, tools = (config.reader, config.reader_model), task.tools.with_pages()
    count = config.samples if config.temperature else 1
    crew = make_crew(config, reader, opener(config, lent), tools, begin_call, tools.around.cache)
    backbone = config.model if config.endpoint else models.origin_of(config.model)[0]
    how = f"mean of {count}" if count > 1 else "sampled" if config.temperature else "greedy"
    name = f"{config.agent}, {Path(config.model).name}, {how}"
    some = lambda questions: answer_with(config.agent, questions, count, crew, config, config.trajectories)
    results = answered(name, task.questions, some, kept, len(task.questions))
    print("\n".join(filter(None, [crew.report(), f"{config.agent} here is without: {left_out(config)}"])))
    return {name: Row(config.agent, backbone, config.temperature, config.top_p, config.seed, results, left_out(config))}


def opener(config: EvalConfig, lent: Lent) -> Callable[[str], Policy]:
    """Opens models for texts of two turns, and lends the first."""

    def opened(name: str) -> Policy:
        room = {"max_completion_length": 2 * config.max_turn_tokens, "num_generations": 1, "num_initial": 0}
        policy = Policy.open(replace(config, model=name, **room))
        lent.read = lent.read or policy.read
        return policy

    return opened


def answering_settings(config: EvalConfig) -> dict[str, Any]:
    """What the answers depend on: an evaluation goes on in its folder only if all of it is the same."""
    aside = {"pass_k", "output_dir", "compare", "table", "merge", "ask", "answer", "width", "html", "max_paid_calls"}
    aside |= {"judge", "judge_model", "endpoint", "endpoint_threads", "endpoint_seconds"}
    told = {name: value for name, value in asdict(config).items() if name not in aside}
    return told | {"weights": 0.0 if config.endpoint else models.when_written(config.model)}


def ask(config: EvalConfig) -> None:
    """Grows one tree for a question. With one leaf it is the likeliest answer, shown step by step; else it is drawn."""
    question, split = asked_question(config)
    lent, alone = Lent(), config.num_generations == 1
    task, policy = load_task(config, split, 1, make_sandbox(config), lent), open_policy(config)
    lent.read = policy.read
    if alone:
        config = replace(config, temperature=0.0)
    prompt, key = encode_prompt(policy.tokenizer, question.question), f"{config.seed}/{question.id}"
    (tree,) = policy.grow([prompt], [key], task.tools, config)
    scores = score_leaves(tree, question, policy.tokenizer, config.reward_bonus)
    scored = Scored(question, tree, scores, torch.tensor([score.reward for score in scores]))
    advantages = torch.zeros(1) if alone else ADVANTAGES["group"](scored.rewards[None], None)[0]
    if config.html:
        view = tree_view(config.model, scored, advantages, policy.tokenizer, config)
        write_page(Path(config.html), "tree", question.question, {"trees": [view]})
        print(f"{config.html}: open it in a browser", file=sys.stderr)
    if alone:
        print(steps_text(scored, policy.tokenizer))
    else:
        print(tree_text(scored, advantages, policy.tokenizer, config.entropy_tokens, config.width))
        print(rule_text(config))
        print("tokens: " + ", ".join(f"{policy.sampler.counts[name]} {text}" for name, text in TOKENS.items()))


def asked_question(config: EvalConfig) -> tuple[Question, str]:
    """The question of --ask with the split whose world it is about; says which words the model cannot know."""
    if config.ask.isspace():
        raise ValueError(f"--ask: expected a question, or nothing for one of the world's, found {config.ask!r}")
    world = world_in(config.data) or "world"
    question, split = find_question(world, config.ask, config.seed)
    if models.size_of(config.model) in models.BUILT_IN and (odd := strange_words(world, question.question)):
        told = f"the built-in model has never seen {', '.join(odd)}: it knows questions about its own world alone"
        print(f"{told} (python eval.py --data {world} --ask shows one)", file=sys.stderr)
    if config.answer and question.answers:
        raise ValueError(f"--answer: expected for a question without one, found {', '.join(question.answers)} known")
    return (replace(question, answers=(config.answer,)) if config.answer else question), split


def merge(config: EvalConfig) -> None:
    """Writes a run's adapter and its base model as one model that `AutoModelForCausalLM` loads."""
    models.check_merge(config.model, config.merge)
    policy = open_policy(replace(config, load_in_4bit=False))  # which would round what is merged
    policy.adapter.merge_and_unload().save_pretrained(config.merge)
    policy.tokenizer.save_pretrained(config.merge)
    print(f"merged weights in {config.merge}")


if __name__ == "__main__":
    main()
