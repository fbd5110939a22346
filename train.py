"""Training from the command line: the SFT cold start and the RL loop.

    python train.py                        ARPO on the built-in world with the built-in model, on a laptop
    python train.py --algo grpo            the same loop without forks
    python train.py --model Qwen2.5-1.5B   a real model, with LoRA
    python train.py --stage sft            the cold start alone
    torchrun --nproc-per-node 2 train.py   several GPUs: each grows its trees, gradients are summed

One step of the loop is: grow_trees -> score_leaves -> advantages -> update. A run writes to its folder:
run.json (settings, versions), metrics.jsonl (a line a step; `METRICS` below says what each number is),
trees/ (drawn trees), plots/, checkpoints/ (`--resume auto` goes on from the newest), and the best model by
dev accuracy in Hugging Face form. All randomness is named by (seed, step, question, path, position), so that
a checkpoint needs no random state and a resumed run is the uninterrupted one.
"""

import argparse
import gc
import json
import math
import os
import platform
import random
import re
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import transformers
from safetensors import SafetensorError
from torch import distributed
from tqdm import tqdm
from transformers import Qwen2ForCausalLM

from advantage import ADVANTAGES
from arpo import UpdateConfig, update
from data import Question
from data.conversations import describe_skipped, load_conversations
from data.grading import overlong_penalty
from data.tiny import build_tokenizer, tiny_config
from data.world import demonstrations
from eval import (
    OneLineParser,
    Policy,
    Score,
    Scores,
    Task,
    ToolConfig,
    bootstrap,
    comparison_table,
    draw_tree,
    encode_prompt,
    evaluate,
    expert_scores,
    grow_in_memory,
    lend,
    load,
    load_policy,
    load_task,
    load_world,
    make_sandbox,
    memory_line,
    model_defaults,
    per_question,
    pick,
    pick_device,
    pick_dtype,
    place_of_search,
    plot_run,
    resolve_model,
    score_leaves,
)
from rollout import PROMPT, RolloutConfig, Sampler, Tree
from sandbox import PythonSandbox
from tools import Browse, Python, Search, WebSearch, encode_result, read_answer

# What each method changes in the settings; "flat" sets N = M, so that nothing forks. Flags on the command line win.
METHODS = {
    "arpo": {},
    "random": {"shuffle_entropy": True},  # control: as many forks, but not where the entropy says
    "grpo": {"flat": True},
    "dapo": {"flat": True, "epsilon_high": 0.28, "dynamic_sampling": True, "overlong_buffer": 64},
    "reinforce++": {"flat": True, "advantage": "batch"},
    "reinforce++-baseline": {"flat": True, "advantage": "baseline"},
    "rloo": {"flat": True, "advantage": "leave_one_out"},
    "dr_grpo": {"flat": True, "advantage": "unscaled", "loss_type": "dr_grpo"},
}

# What --preset changes. deep-search: the paper's settings for its 14B model there, live search included.
PRESETS = {
    "": {},
    "deep-search": {
        "data": "arpo-deepsearch", "search": "serper", "web_cache": "web.db", "top_k": 10, "max_tool_calls": 6,
        "num_generations": 12, "num_initial": 6, "max_completion_length": 10_000, "max_turn_tokens": 2048,
        "max_result_tokens": 1024,
    },
}  # fmt: skip

METRICS = {
    "step": "number of the step, from 1; 0 is before training",
    "reward": "mean reward of the leaves, bonus and penalties included",
    "accuracy": "mean accuracy of the leaves, no bonus",
    "calls_per_leaf": "tool calls on a leaf's path, mean",
    "calls_per_question": "tool calls really executed for a question's whole tree, mean: a shared call counts once",
    "initial_entropy": "H over the first k tokens of a trajectory, mean, nats",
    "entropy_after_tools": "H over the first k tokens after a tool result, mean, nats",
    "decisions": "results at which the branch rule was applied",
    "forks": "new paths that the rule started",
    "top_ups": "trajectories started from the prompt because budget was left",
    "no_variance": "share of questions whose leaves all have the same reward: they teach nothing",
    "identical": "share of leaves that repeat another leaf of their tree token by token",
    "malformed": "share of leaves with a wrong format, truncated ones included",
    "truncated": "share of leaves that ran out of tokens or calls",
    "tool_errors": "share of tool calls that did not end in ok",
    "discarded": "trees thrown away by dynamic sampling; their tokens and calls are counted",
    "prefilled": "prompt and result tokens fed to the sampler, each once a tree",
    "refed": "tokens fed again because a fork needs one to sample from",
    "holes": "columns fed to the sampler for nothing: padding and rows that had stopped",
    "decoded": "tokens sampled",
    "leaf_tokens": "prompt, result and sampled tokens summed over leaves: what a loop without sharing handles",
    "train_tokens": "tokens in the gradient pass; unique ones, unless a tree was split",
    "trained": "sampled tokens in the gradient pass",
    "loss": "policy loss; near zero on-policy by construction",
    "grad_norm": "gradient norm before clipping",
    "clip_fraction": "share of trained tokens for which the clip bites",
    "kl_sampler": "KL between the sampler's and the trainer's probabilities of the sampled tokens (k3): numerics",
    "kl_reference": "KL to the frozen reference over sampled tokens (k3)",
    "skipped": "optimizer steps left out because the gradient was not finite",
    "learning_rate": "of this step",
    "dev_accuracy": "accuracy on dev questions, greedy (evaluation steps only)",
    "seconds_rollout": "time to grow the trees, tools included",
    "seconds_update": "time of the update",
    "tokens_per_second": "decoded plus trained tokens over the time of the step",
}


# The sums that every run prints.
TOKEN_COUNTS = {
    "leaf_tokens": "on all leaves",
    "prefilled": "prefilled",
    "refed": "fed again at forks",
    "holes": "holes",
    "decoded": "sampled",
    "train_tokens": "in the gradient pass",
}


@dataclass(frozen=True)
class TrainConfig:
    model: str = "tiny"  # "tiny", an alias such as Qwen2.5-1.5B, a hub id, or a folder
    algo: Literal[tuple(METHODS)] = "arpo"  # the method
    preset: Literal[tuple(PRESETS)] = ""  # settings that belong together; flags win
    data: str = "world"  # "world", a benchmark such as gsm8k, a hub set, or a .json, .jsonl or .parquet file
    stage: Literal["rl", "sft"] = "rl"  # reinforcement learning, or the cold start
    output_dir: str = ""  # the run's folder; default runs/MODEL-ALGO-SEED
    seed: int = 0  # names all randomness
    max_steps: int = 100  # RL steps
    questions_per_step: int = 8  # Q
    learning_rate: float = 1e-5  # peak
    warmup_steps: int = 3  # over which the learning rate rises
    lr_scheduler_type: Literal["cosine", "constant"] = "cosine"  # down to a tenth, or constant
    weight_decay: float = 0.0  # of AdamW
    max_grad_norm: float = 1.0  # gradients are clipped to it
    optim: Literal["adamw", "adamw_8bit", "paged_adamw_8bit"] = "adamw"  # the last two are bitsandbytes'
    dynamic_sampling: bool = False  # replace trees without variance (DAPO)
    max_resamples: int = 3  # rounds of replacement
    overlong_buffer: int = 0  # tokens before the limit over which the length penalty grows (DAPO); 0 is off
    reward_bonus: float = 0.1  # r_M, for a right answer that used search and Python
    eval_steps: int = 10  # evaluate on dev questions every so many steps
    eval_questions: int = 100  # dev questions
    test_questions: int = 300  # held-out questions of the final table
    save_trees_steps: int = 10  # draw a tree every so many steps
    save_steps: int = 10  # write a checkpoint every so many steps
    save_total_limit: int = 2  # newest checkpoints that are kept; the best model is kept besides
    overwrite: bool = False  # replace the run that is in output_dir
    resume: str = ""  # "auto": go on from the newest checkpoint in output_dir, if any; or a run's folder
    cold_start: bool = False  # SFT on demonstrations before RL; on for a model that has seen none
    sft_data: str = "world"  # "world", arpo-sft, tool-star, still, a hub id, or a .json, .jsonl or .parquet file
    sft_steps: int = 300  # optimizer steps of the cold start
    sft_worlds: int = 100  # worlds that demonstrations are drawn from
    sft_each: int = 32  # demonstrations from each; of other sft_data, as many conversations as all worlds' together
    sft_batch_tokens: int = 6000  # of a batch, padding included
    sft_learning_rate: float = 1e-4  # peak
    lora_r: int = 16  # rank of LoRA on all linear layers; 0 trains all weights
    load_in_4bit: bool = False  # NF4 weights through bitsandbytes; for real models left open: where memory asks for it
    gradient_checkpointing: bool = False  # in the update, compute activations again instead of keeping them
    report_to: Literal["none", "tensorboard", "wandb"] = "none"  # log metrics there, too
    threads: int = 0  # of torch on the CPU; 0 leaves it alone
    dry_run: bool = False  # say what would be done, and stop


# ---------------------------------------------------------------------------------- the command line


def make_parser() -> OneLineParser:
    return OneLineParser(__doc__, TrainConfig, ToolConfig, RolloutConfig, UpdateConfig)


def parse_flags(parser: OneLineParser, argv: list[str]) -> argparse.Namespace:
    """Flags over method over model over the dataclasses' defaults; a resumed run brings its own settings."""
    asked = [arg for arg in argv if arg not in ("-h", "--help")]  # help waits for the defaults that follow the model
    first = parser.parse_args(asked)
    parser.set_defaults(**model_defaults(first.model) | PRESETS[first.preset])
    if first.sft_data != "world":
        parser.set_defaults(cold_start=True)
    first = parser.parse_args(asked)
    if first.resume and (checkpoint := find_checkpoint(first)):
        about = json.loads((checkpoint.parent.parent / "run.json").read_text())
        own = {"resume": str(checkpoint), "output_dir": str(checkpoint.parent.parent)}
        parser.set_defaults(**about["settings"])
        args = parser.parse_args(argv)
        for name, value in about["settings"].items():
            if name not in own and getattr(args, name) != value:
                print(f"resumed with another {name}: {value} before, {getattr(args, name)} now")
        return argparse.Namespace(**vars(args) | own)
    method = {name: value for name, value in METHODS[first.algo].items() if name != "flat"}
    if "flat" in METHODS[first.algo]:
        method["num_initial"] = first.num_generations
    parser.set_defaults(**method)
    args = parser.parse_args(argv)
    if args.num_minibatches > args.questions_per_step or (args.stage == "rl" and args.num_generations < 2):
        raise ValueError("expected at least 2 for --num_generations, and no more --num_minibatches than questions")
    args.output_dir = args.output_dir or default_folder(args)
    return args


def default_folder(args) -> str:
    data = "" if args.data == "world" else "-" + re.sub(r"[^\w]+", "-", Path(args.data).name)[:40]
    return f"runs/{Path(args.model).name}{data}-{args.algo if args.stage == 'rl' else 'sft'}-{args.seed}"


def find_checkpoint(args) -> Path | None:
    """The newest complete checkpoint of the run that --resume names; None where "auto" finds nothing to resume."""
    if args.resume == "auto":
        folder = Path(args.output_dir or default_folder(args))
    else:
        folder = Path(args.resume)
    found = sorted(folder.glob("checkpoints/step_*/state.pt"))
    if not found and args.resume != "auto":
        raise ValueError(f"--resume {folder}: expected a run's folder with checkpoints, found none in it")
    return found[-1].parent if found else None


# ---------------------------------------------------------------------------------- cold start


def encode_turns(tokenizer, question: str, turns, max_result_tokens: int) -> tuple[list[int], list[int]]:
    """Token ids of a trajectory under its prompt, and 1 where the policy wrote the token (T,).

    `turns` yields a turn's text and its result, which is None after the last: there stands the end token.
    """
    ids = encode_prompt(tokenizer, question)
    own = [0] * len(ids)
    for text, result in turns:
        turn_ids = tokenizer.encode(text, add_special_tokens=False)
        if result is None:
            turn_ids.append(tokenizer.eos_token_id)
        result_ids = [] if result is None else encode_result(tokenizer, result, max_result_tokens)
        ids += turn_ids + result_ids
        own += [1] * len(turn_ids) + [0] * len(result_ids)
    return ids, own


def expert_turns(steps, tools):
    """An expert's steps as turns, the calls really run."""
    for step in steps:
        space = " " if step.content[0].isalpha() else ""  # a word's token begins with its space, a digit's does not
        text = f"<think> {step.think}</think><{step.tool}>{space}{step.content}</{step.tool}>"
        yield text, None if step.tool == "answer" else tools[step.tool](step.content).text


def demonstration_set(tokenizer, args, sandbox) -> list[tuple[list[int], list[int]]]:
    """Encoded trajectories: conversations, or the flawed expert's in many worlds."""
    if args.sft_data != "world":
        return conversation_set(tokenizer, args)
    encoded, by_world = [], {}
    for world, question, steps in tqdm(
        demonstrations(args.sft_worlds, args.sft_each), desc="demonstrations", leave=False
    ):
        if world.seed not in by_world:
            search, browse = Search(world.passages, args.top_k), Browse(world.pages, args.window_chars)
            by_world = {world.seed: {"python": Python(sandbox), "search": search, "browse": browse}}
        turns = expert_turns(steps, by_world[world.seed])
        encoded.append(encode_turns(tokenizer, question.question, turns, args.max_result_tokens))
    return encoded


def conversation_set(tokenizer, args) -> list[tuple[list[int], list[int]]]:
    """Encoded conversations, without those that would cost -1 in a rollout: wrong in format, or over a limit.

    What is left out is reported; the long ones only as far as conversations were encoded until there were enough.
    """
    conversations, skipped = load_conversations(args.sft_data)
    rows, encoded = len(conversations) + len(skipped), []
    for talk in random.Random(args.seed).sample(conversations, len(conversations)):
        texts = [text for text, _ in talk.turns]
        if read_answer(texts) is None or tokenizer.eos_token in "".join(texts):
            skipped[talk.place] = "format"
        elif len(encoded) < args.sft_worlds * args.sft_each:
            ids, own = encode_turns(tokenizer, talk.question, talk.turns, args.max_result_tokens)
            longest = max(len(tokenizer.encode(text, add_special_tokens=False)) for text in texts)
            if len(ids) - own.index(1) > args.max_completion_length or longest >= args.max_turn_tokens:
                skipped[talk.place] = "too long"
            elif len(texts) > args.max_tool_calls + 1:
                skipped[talk.place] = "too many calls"
            else:
                encoded.append((ids, own))
    told = describe_skipped(args.sft_data, rows, skipped) if skipped else args.sft_data
    if not encoded:
        raise ValueError(f"no usable row in {told}")
    if skipped:
        print(told, file=sys.stderr)
    return encoded


def sft_batches(examples, batch_tokens: int, seed: int):
    """Endless batches of similar lengths: ids (B, T), labels (B, T) with -100 where the loss has no term."""
    rng = random.Random(seed)
    while True:
        order = sorted(
            rng.sample(range(len(examples)), len(examples)), key=lambda i: len(examples[i][0]) + rng.random() * 20
        )
        batches, batch = [], []
        for i in order:
            if batch and (len(batch) + 1) * len(examples[i][0]) > batch_tokens:
                batches.append(batch)
                batch = []
            batch.append(i)
        batches.append(batch)
        rng.shuffle(batches)
        for batch in batches:
            width = max(len(examples[i][0]) for i in batch)
            ids = torch.zeros(len(batch), width, dtype=torch.long)
            labels = torch.full((len(batch), width), -100)
            for row, i in enumerate(batch):
                tokens, own = (torch.tensor(values) for values in examples[i])
                ids[row, : len(tokens)] = tokens
                labels[row, : len(tokens)] = tokens.masked_fill(own == 0, -100)
            yield ids, labels


def learning_rate(step: int, steps: int, peak: float, warmup: int, kind: str) -> float:
    """Of step 1 … steps: linear warm-up, then constant or a cosine down to a tenth."""
    if step <= warmup:
        return peak * step / warmup
    if kind == "constant":
        return peak
    return peak * (0.55 + 0.45 * math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def train_sft(policy: Policy, examples, args) -> float:
    """Maximum likelihood of the expert's own tokens; returns the mean loss of the last tenth."""
    model, losses = policy.model.train(), []
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], weight_decay=0.01, betas=(0.9, 0.98)
    )
    batches = sft_batches(examples, args.sft_batch_tokens, args.seed)
    # A fixed denominator: with a mean over each batch, examples in batches of few long ones would count more.
    padded, own = (sum(map(count, examples)) for count in (lambda e: len(e[0]), lambda e: sum(e[1])))
    usual = args.sft_batch_tokens * own / padded  # the policy's tokens in a batch
    bar = tqdm(range(1, args.sft_steps + 1), desc="sft")
    for step in bar:
        ids, labels = (block.to(model.device) for block in next(batches))
        # right padding: no real token can see it, so no attention mask is needed
        hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
        targets = labels[:, 1:]
        logits = model.get_output_embeddings()(hidden[targets != -100]).float()
        loss = torch.nn.functional.cross_entropy(logits, targets[targets != -100], reduction="sum") / usual
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args.sft_steps, args.sft_learning_rate, args.sft_steps // 20, "cosine")
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        bar.set_postfix(loss=f"{np.mean(losses[-50:]):.3f}")
    model.eval()
    return float(np.mean(losses[-max(1, len(losses) // 10) :]))


# ---------------------------------------------------------------------------------- several processes


def rank() -> int:
    return distributed.get_rank() if distributed.is_initialized() else 0


def ranks() -> int:
    """Processes that train together (`torchrun`)."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def spread(items: list, work) -> list:
    """work(items), each process doing its share of them, and all of them getting all results in order."""
    shares = everyones(work(items[rank() :: ranks()]))
    return [shares[i % ranks()][i // ranks()] for i in range(len(items))]


def everyones(value) -> list:
    """The values of all processes, in the order of their ranks."""
    values = [value] * ranks()
    if ranks() > 1:
        distributed.all_gather_object(values, value)
    return values


# ---------------------------------------------------------------------------------- the RL loop


class Stream:
    """Endless questions, each epoch in an order of its own; `drawn` of them so far."""

    def __init__(self, questions: list[Question], seed: int):
        self.questions, self.seed, self.drawn = questions, seed, 0

    def take(self, count: int) -> list[Question]:
        places = [divmod(n, len(self.questions)) for n in range(self.drawn, self.drawn + count)]
        self.drawn += count
        orders = {
            epoch: np.random.default_rng([self.seed, epoch]).permutation(len(self.questions)) for epoch, _ in places
        }
        return [self.questions[orders[epoch][i]] for epoch, i in places]


@dataclass(eq=False)
class Grown:
    """A question's tree with its scores and rewards (M,)."""

    question: Question
    tree: Tree
    scores: list[Score]
    rewards: torch.Tensor

    def teaches(self) -> bool:
        return bool(self.rewards.max() > self.rewards.min())


def grow_and_score(questions, policy, sampler, tools, rollout: RolloutConfig, args, step: int) -> list[Grown]:
    prompts = [encode_prompt(policy.tokenizer, q.question) for q in questions]
    keys = [f"{args.seed}/{step}/{q.id}" for q in questions]
    trees = grow_in_memory(policy, prompts, keys, sampler, tools, rollout)
    grown = []
    for question, tree in zip(questions, trees):
        scores = score_leaves(tree, question, policy.tokenizer, args.reward_bonus)
        rewards = [score.reward for score in scores]
        if args.overlong_buffer:
            limits = rollout.max_completion_length, args.overlong_buffer
            rewards = [reward + overlong_penalty(score.tokens, *limits) for reward, score in zip(rewards, scores)]
        grown.append(Grown(question, tree, scores, torch.tensor(rewards)))
    return grown


def collect(stream: Stream, policy, sampler, tools, rollout, args, step) -> tuple[list[Grown], list[Grown]]:
    """A step's trees, and those that dynamic sampling threw away because all their leaves were rewarded alike."""
    kept, discarded = [], []
    for attempt in range(1 + (args.max_resamples if args.dynamic_sampling else 0)):
        dull = [g for g in kept if not g.teaches()] if attempt else []
        questions = stream.take(len(dull) if attempt else args.questions_per_step)
        kept = [g for g in kept if g not in dull]
        grow = lambda own: grow_and_score(own, policy, sampler, tools, rollout, args, step) if own else []
        kept += spread(questions, grow)
        discarded += dull
    return kept, discarded


def head_entropies(tree: Tree, k: int) -> tuple[list[float], list[float]]:
    """H over the first k tokens of each turn from the prompt, and of each turn after a tool result."""
    first, after = [], []
    for node in tree.nodes:
        if node.parent == PROMPT or tree.nodes[node.parent].observation:
            (first if node.parent == PROMPT else after).append(float(np.mean(node.entropies[:k])))
    return first, after


def different_leaves(tree: Tree) -> int:
    """Leaves that differ in what the policy wrote on the way to them."""
    return len({tuple(tuple(tree.nodes[n].ids) for n in tree.path(leaf)) for leaf in tree.leaves()})


def rollout_metrics(kept: list[Grown], discarded: list[Grown], k: int, num_initial: int) -> dict[str, float]:
    """What `METRICS` says of trees; counts include what was thrown away, means do not."""
    trees, leaves = [g.tree for g in kept], [score for g in kept for score in g.scores]
    first, after = (sum(lists, []) for lists in zip(*(head_entropies(tree, k) for tree in trees)))
    decisions = [node.decision for tree in trees for node in tree.nodes if node.decision]
    forks = sum(decision.new_paths for decision in decisions)
    calls = Counter(node.result.outcome for g in kept + discarded for node in g.tree.nodes if node.result)
    share = lambda flags: float(np.mean(list(flags)))
    return {
        "reward": float(torch.stack([g.rewards for g in kept]).mean()),
        "accuracy": share(s.accuracy for s in leaves),
        "calls_per_leaf": share(s.calls for s in leaves),
        "calls_per_question": (calls.total() - calls["refused"] - calls["malformed"]) / len(kept),
        "initial_entropy": share(first),
        "entropy_after_tools": share(after or [0.0]),
        "decisions": len(decisions),
        "forks": forks,
        "top_ups": len(leaves) - forks - num_initial * len(kept),
        "no_variance": share(not g.teaches() for g in kept),
        "identical": 1 - sum(map(different_leaves, trees)) / len(leaves),
        "malformed": share(s.answer is None for s in leaves),
        "truncated": share(s.end != "end" for s in leaves),
        "tool_errors": 1 - calls["ok"] / max(1, calls.total()),
        "discarded": len(discarded),
        "leaf_tokens": sum(len(g.tree.prompt) + s.tokens for g in kept for s in g.scores),
    }


class Run:
    """The run's folder: settings, a line of metrics a step, drawn trees, checkpoints, the best model."""

    def __init__(self, args, checkpoint: dict | None = None):
        self.folder, self.keep = Path(args.output_dir), args.save_total_limit
        self.best = checkpoint["best"] if checkpoint else -1.0
        if rank():
            return  # the first process writes
        (self.folder / "trees").mkdir(parents=True, exist_ok=True)
        write_settings(self.folder, args)
        self.metrics = (self.folder / "metrics.jsonl").open("a" if checkpoint else "w")
        self.also = open_logger(args)
        if checkpoint:
            self.metrics.truncate(checkpoint["metrics_bytes"])  # steps after the checkpoint are done again

    def log(self, row: dict) -> None:
        if rank():
            return
        rounded = {key: float(f"{value:.6g}") if isinstance(value, float) else value for key, value in row.items()}
        self.metrics.write(json.dumps(rounded) + "\n")
        self.metrics.flush()
        self.also(rounded)

    def draw(self, step: int, grown: Grown, tokenizer, advantages) -> None:
        if rank():
            return
        text = draw_tree(grown.tree, tokenizer, grown.rewards, advantages)
        (self.folder / "trees" / f"step_{step:04d}.txt").write_text(f"gold: {grown.question.answers}\n{text}\n")

    def keep_if_best(self, policy: Policy, accuracy: float) -> None:
        if rank() == 0 and accuracy > self.best and write_whole(self.folder / "best", policy.save):
            for file in (self.folder / "best").iterdir():
                file.replace(self.folder / file.name)  # so that the run's folder is itself a model
            (self.folder / "best").rmdir()
            self.best = accuracy

    def checkpoint(self, step: int, policy: Policy, optimizer, totals: Counter, drawn: int) -> None:
        """Everything a resumed run needs. Older checkpoints go once this one is complete."""
        if rank():
            return
        state = {
            "step": step, "drawn": drawn, "best": self.best, "metrics_bytes": self.metrics.tell(),
            "totals": dict(totals), "weights": policy.trainable(), "optimizer": optimizer.state_dict(),
        }  # fmt: skip

        def write(folder: Path) -> None:
            policy.save(folder)
            torch.save(state, folder / "state.pt")

        if write_whole(self.folder / "checkpoints" / f"step_{step:06d}", write):
            for old in sorted((self.folder / "checkpoints").glob("step_*"))[: -self.keep]:
                shutil.rmtree(old)


def open_logger(args):
    """What --report_to names, as a function of a step's metrics; its package is imported only then."""
    if args.report_to == "tensorboard":
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(args.output_dir)
        return lambda row: [writer.add_scalar(name, value, row["step"]) for name, value in row.items()]
    if args.report_to == "wandb":
        import wandb

        wandb.init(project="arpo", name=Path(args.output_dir).name, config=vars(args), resume="allow")
        return lambda row: wandb.log(row, step=row["step"])
    return lambda row: None


def write_settings(folder: Path, args) -> None:
    versions = {name: version(name) for name in ("torch", "transformers", "peft", "numpy")}
    about = {"settings": vars(args), "versions": versions | {"python": platform.python_version()}}
    (folder / "run.json").write_text(json.dumps(about, indent=1) + "\n")


def write_whole(folder: Path, write) -> bool:
    """Calls write(folder) so that under its name there is never a part of it. False, with a line, if the disk is full.

    It gets its name at the very end, so a run that is killed at any point loses nothing that was complete.
    """
    partial = folder.with_name(f"partial-{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        write(partial)
        for file in partial.rglob("*"):
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
    except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors wrap the system's error
        shutil.rmtree(partial, ignore_errors=True)
        tqdm.write(f"could not write {folder} ({str(error).splitlines()[0]}); what was saved before is untouched")
        return False
    partial.rename(folder)
    return True


class StopRequest:
    """Ctrl-C, or a scheduler's TERM: once, and the run stops after this step; twice, at once."""

    def __init__(self):
        self.asked = False
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, self.ask)

    def ask(self, number, frame) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        tqdm.write("stopping after this step, with a checkpoint; once more to stop at once")


def train_rl(policy: Policy, train: Task, dev: Task, run: Run, args, checkpoint: dict | None = None) -> Counter | None:
    """The loop; returns the sums of the token counts, or None if it was asked to stop before its end.

    The best model by dev accuracy is then in the run's folder.
    """
    rollout, config = pick(RolloutConfig, args), pick(UpdateConfig, args)
    sampler = Sampler(policy.model, policy.tokenizer, rollout.temperature)
    optimizer = make_optimizer(policy, args)
    stepper = Stepper(policy.model, optimizer, args.max_grad_norm)
    reference = lambda batch: policy.reference_logprobs(batch, config.temperature)
    stream, totals, last, stop = Stream(train.questions, args.seed), Counter(), 0, StopRequest()
    if checkpoint:
        policy.restore(checkpoint["weights"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        last, stream.drawn, totals = checkpoint["step"], checkpoint["drawn"], Counter(checkpoint["totals"])
    else:
        before = dev_accuracy(policy, dev, rollout)
        run.keep_if_best(policy, before)
        run.log({"step": 0, "dev_accuracy": before})
    skipped = 0  # steps in a row
    steps = range(last + 1, args.max_steps + 1)
    bar = tqdm(steps, desc=args.algo, initial=last, total=args.max_steps, disable=rank() > 0)
    for step in bar:
        started = time.perf_counter()
        sampler.counts.clear()
        kept, discarded = collect(stream, policy, sampler, train.tools, rollout, args, step)
        grown_at = time.perf_counter()
        advantages = ADVANTAGES[config.advantage](torch.stack([g.rewards for g in kept]))
        rate = learning_rate(step, args.max_steps, args.learning_rate, args.warmup_steps, args.lr_scheduler_type)
        for group in optimizer.param_groups:
            group["lr"] = rate
        updated, config = update_in_memory(policy, stepper, kept, advantages, config, reference)
        ended = time.perf_counter()

        row = {"step": step} | rollout_metrics(kept, discarded, rollout.entropy_tokens, rollout.num_initial)
        counts = everyones(sampler.counts)
        row |= {name: sum(own[name] for own in counts) for name in ("prefilled", "refed", "holes", "decoded")} | updated
        row |= {"learning_rate": rate, "seconds_rollout": grown_at - started, "seconds_update": ended - grown_at}
        row["tokens_per_second"] = (row["decoded"] + row["trained"]) / (ended - started)
        if step % args.eval_steps == 0 or step == args.max_steps:
            row["dev_accuracy"] = dev_accuracy(policy, dev, rollout)
            run.keep_if_best(policy, row["dev_accuracy"])
        if step % args.save_trees_steps == 0 or step == 1:
            run.draw(step, kept[0], policy.tokenizer, advantages[0])
        run.log(row)
        skipped = watch(row, skipped)
        totals.update({name: row[name] for name in TOKEN_COUNTS})
        stopping = any(everyones(stop.asked))
        if step % args.save_steps == 0 or step == args.max_steps or stopping:
            run.checkpoint(step, policy, optimizer, totals, stream.drawn)
        if stopping:
            return None
        bar.set_postfix(
            reward=f"{row['reward']:.2f}", acc=f"{row['accuracy']:.2f}", calls_q=f"{row['calls_per_question']:.1f}",
            H=f"{row['entropy_after_tools']:.2f}", dev=f"{run.best:.2f}", tok_s=f"{row['tokens_per_second']:.0f}",
        )  # fmt: skip

    return totals


def watch(row: dict, skipped: int) -> int:
    """Warns of sampling that has collapsed and ends a run that diverges; returns the skipped steps in a row."""
    if row["identical"] > 0.9:
        tqdm.write(f"step {row['step']}: {row['identical']:.0%} of the rollouts repeat another: sampling has collapsed")
    skipped = skipped + 1 if row["skipped"] else 0
    if skipped == 3:
        told = "the gradient was not finite in 3 steps in a row; lower --learning_rate"
        raise SystemExit(f"step {row['step']}: {told}")
    return skipped


def make_optimizer(policy: Policy, args):
    weights = [p for p in policy.model.parameters() if p.requires_grad]
    settings = dict(lr=args.learning_rate, weight_decay=args.weight_decay, betas=(0.9, 0.99))
    if args.optim == "adamw":
        return torch.optim.AdamW(weights, **settings)
    from bitsandbytes.optim import AdamW8bit, PagedAdamW8bit

    return {"adamw_8bit": AdamW8bit, "paged_adamw_8bit": PagedAdamW8bit}[args.optim](weights, **settings)


class Stepper:
    """The optimizer's side of an update: sums gradients over the processes, clips them, and steps.

    Losses are multiplied by `scale` before the backward pass, since small gradients vanish in fp16.
    A step whose gradient is not finite is left out and counted.
    """

    def __init__(self, model, optimizer, max_grad_norm: float):
        self.optimizer, self.max_grad_norm = optimizer, max_grad_norm
        self.weights = [p for p in model.parameters() if p.requires_grad]
        self.scale = 4096.0 if model.dtype == torch.float16 else 1.0

    def __call__(self) -> dict[str, float]:
        for weight in self.weights:
            weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad / self.scale
            if ranks() > 1:  # weights of the loss were fixed over the whole batch, so shares add up
                distributed.all_reduce(weight.grad)
        norm = torch.nn.utils.clip_grad_norm_(self.weights, self.max_grad_norm)
        finite = bool(norm.isfinite())
        if finite:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {"grad_norm": float(norm) if finite else 0.0, "skipped": int(not finite)}


def update_in_memory(policy, stepper: Stepper, kept: list[Grown], advantages, config: UpdateConfig, reference):
    """`update`, repeated with half the token budget where memory runs out; returns its metrics and the config."""
    trees, share = [g.tree for g in kept], slice(rank(), None, ranks())
    while True:
        try:
            return update(policy.model, stepper, trees, advantages, config, reference, share), config
        except torch.OutOfMemoryError:
            if config.token_budget < 256 or ranks() > 1:  # the other processes would wait for this one
                raise
        # outside the handler, which would hold on to the tensors of the failed pass
        config = replace(config, token_budget=config.token_budget // 2)
        stepper.optimizer.zero_grad(set_to_none=True)
        gc.collect()
        torch.cuda.empty_cache()
        tqdm.write(f"out of memory: the step is repeated with --token_budget {config.token_budget}")


def dev_accuracy(policy: Policy, dev: Task, rollout: RolloutConfig) -> float:
    greedy = lambda own: evaluate(policy, replace(dev, questions=own), rollout, samples=1, temperature=0)
    return float(per_question(spread(dev.questions, greedy), "accuracy").mean())


def judge(name: str, policy: Policy, test: Task, args) -> dict[str, Scores]:
    """Two rows of the table at the end: a policy on held-out questions, greedy and sampled."""
    rollout = pick(RolloutConfig, args)
    return {
        f"{name}, {how}": evaluate(policy, test, rollout, samples=1, temperature=temperature)
        for how, temperature in (("greedy", 0), ("sampled", 1))
    }


def report(rows: dict[str, Scores], test: Task, args) -> str:
    """The table at the end, and the gain of the method, the third row, over the start, the first."""
    start, _, trained, _ = rows.values()
    gains = per_question(trained, "accuracy") - per_question(start, "accuracy")
    low, high = bootstrap(gains)
    if args.data == "world":
        rows = rows | {"expert (ceiling)": expert_scores(load_world("test"), test)}
    gain = f"{100 * gains.mean():+.1f} points, 95% interval [{100 * low:+.1f}, {100 * high:+.1f}]"
    return f"{comparison_table(rows, test.questions)}\n\ngain over SFT, greedy: {gain}"


# ---------------------------------------------------------------------------------- the commands


def read_checkpoint(args) -> dict | None:
    """The state that --resume names. Starting anew over another run would lose it, and is refused."""
    if args.resume and args.resume != "auto":
        return torch.load(Path(args.resume) / "state.pt", map_location="cpu", weights_only=True)
    folder = Path(args.output_dir)
    finished, others = (folder / "table.txt").exists(), "--overwrite replaces it, --output_dir starts elsewhere"
    if not args.overwrite and (finished or list(folder.glob("checkpoints/step_*"))):
        told = "a finished run: " if finished else "an unfinished run: --resume auto goes on, "
        raise ValueError(f"{folder} holds {told}{others}")
    if args.overwrite and not rank():
        (folder / "table.txt").unlink(missing_ok=True)
        for old in ("checkpoints", "trees", "plots", "sft"):
            shutil.rmtree(folder / old, ignore_errors=True)
    return None


def begin(args, sandbox) -> Policy:
    """The policy that RL starts from. A cold start is made once and kept in the run's folder."""
    if not args.cold_start:
        return load(args)
    start = Path(args.output_dir) / "sft"
    if not start.exists():
        policy = load(args)
        loss = train_sft(policy, demonstration_set(policy.tokenizer, args, sandbox), args)
        if not write_whole(start, policy.save):
            raise OSError(f"the cold start could not be written to {start}")
        print(f"cold start: final loss {loss:.4f}; kept in {start}")
        del policy
    return load(argparse.Namespace(**vars(args) | {"model": str(start)}))


def rl_command(args, sandbox: PythonSandbox) -> None:
    counts = {"train": None, "dev": args.eval_questions, "test": args.test_questions}
    train, dev, test = (load_task(args, split, count, sandbox) for split, count in counts.items())
    checkpoint = read_checkpoint(args)
    torch.manual_seed(args.seed)  # of a new adapter's weights
    policy = begin(args, sandbox)
    for task in (train, dev, test):
        lend(task, policy, args)
    run = Run(args, checkpoint)
    started = time.perf_counter()
    totals = train_rl(policy, train, dev, run, args, checkpoint)
    if totals is None:
        raise SystemExit(f"stopped; to go on: python train.py --resume {run.folder}")
    if rank():
        return
    print(f"trained for {time.perf_counter() - started:.0f} s; the best model by dev accuracy is in {run.folder}")
    counts = ", ".join(f"{totals[name]:,.0f} {text}" for name, text in TOKEN_COUNTS.items())
    print(f"tokens: {counts}\ntool calls in training\n{train.tools.report()}")
    with policy.frozen() as model:
        rows = judge("SFT only", Policy(model, policy.tokenizer, max_rows=policy.max_rows), test, args)
    device, dtype, args.max_rows = str(policy.model.device), policy.model.dtype, policy.max_rows
    lend(test, None, args)
    del policy, model  # two models at once may be more than the memory holds
    best = load_policy(str(run.folder), 0, args.load_in_4bit, device, dtype)
    best.max_rows = args.max_rows
    table = report(rows | judge(args.algo, best, lend(test, best, args), args), test, args)
    (run.folder / "table.txt").write_text(table + "\n")
    print(f"\n{len(test.questions)} held-out questions:\n{table}\n")
    print("plots:", *plot_run(run.folder))


def sft_command(args, sandbox: PythonSandbox) -> None:
    if args.model == "tiny":
        torch.manual_seed(args.seed)
        tokenizer = build_tokenizer(demonstration_texts())
        model = Qwen2ForCausalLM(tiny_config(len(tokenizer)))
        policy = Policy(model, tokenizer)
    else:
        policy = load(args)
    examples = demonstration_set(policy.tokenizer, args, sandbox)
    loss = train_sft(policy, examples, args)
    if args.model == "tiny":
        policy.model.half()  # the shipped weights; half the size, and the RL loop starts from exactly these
    policy.save(args.output_dir)
    write_settings(Path(args.output_dir), args)
    policy.model.float()
    test = load_task(args, "test", args.test_questions, sandbox, policy)
    rollout = pick(RolloutConfig, args)
    rows = {name: evaluate(policy, test, rollout, 1, t) for name, t in (("SFT, greedy", 0), ("SFT, sampled", 1))}
    if args.data == "world":
        rows["expert (ceiling)"] = expert_scores(load_world("test"), test)
    print(f"final loss {loss:.4f}; saved to {args.output_dir}\n{comparison_table(rows, test.questions)}")


def demonstration_texts():
    """What the tiny tokenizer is trained on: corpora, questions and steps of a few worlds."""
    seen = set()
    for world, question, steps in demonstrations(40, 24):
        if world.seed not in seen:
            seen.add(world.seed)
            yield from (f" {p.title} ({p.address}): {p.text}" for p in world.passages)
            yield from list(world.pages.values())[:8]  # few: names matter more than the words of pages
        yield from (f" {text}" for step in steps for text in (question.question, step.think, step.content))


def describe(args) -> str:
    """What a run does and needs."""
    model, device = Path(resolve_model(args.model)), pick_device()
    weights = sum(file.stat().st_size for file in model.glob("*.safetensors")) / 1e6
    held = f"{weights:.1f} MB of weights" if weights else "fetched from the hub unless cached"
    if args.stage == "sft" and args.model == "tiny":
        held = "made anew, from random weights"
    lines = [
        f"model     {model}, {held}",
        f"on        {device}, {pick_dtype(device, args)}, "
        + (f"LoRA of rank {args.lora_r} on all linear layers" if args.lora_r else "all weights trained"),
    ]
    if args.model != "tiny":
        try:
            lines.append(f"memory    {memory_line(args)}")
        except (OSError, ValueError):  # a model that is not here yet; if it cannot be had, loading it will say so
            lines.append("memory    told once the model is here")
    demonstrated = f"{args.sft_worlds * args.sft_each} demonstrations from {args.sft_worlds} worlds"
    if args.sft_data != "world":
        demonstrated = f"at most {args.sft_worlds * args.sft_each} conversations of {args.sft_data}"
    if args.stage == "sft":
        lines.append(f"cold start on {demonstrated}, {args.sft_steps} steps")
    else:
        leaves = args.questions_per_step * args.num_generations
        if args.cold_start:
            lines.append(f"first     SFT on {demonstrated}, {args.sft_steps} steps")
        lines += [
            f"method    {args.algo} on {args.data}, {args.max_steps} steps of {args.questions_per_step} questions",
            f"trees     {args.num_generations} leaves each, {args.num_initial} from the prompt; "
            f"{leaves} leaves a step, at most {leaves * args.max_completion_length:,} tokens",
            f"judged    on {args.eval_questions} dev questions every {args.eval_steps} steps, "
            f"and on {args.test_questions} held-out ones at the end",
        ]
    where = place_of_search(args)
    live = "the live web, which needs your key" if where in WebSearch.URLS else "nothing that needs a network or a key"
    tools = "python" if where == "none" else f"python, search{' and browse' * args.browse} in {where}"
    lines += [f"tools     {tools}; {live}", f"writes    {args.output_dir}; the progress bar says how long it will take"]
    if args.model != "tiny" and args.data == "world":
        lines.append("next      --data gsm8k, --data hotpotqa --search corpus.jsonl, or --preset deep-search")
    return "\n".join(lines)


def main() -> None:
    parser = make_parser()
    transformers.utils.logging.disable_progress_bar()
    try:
        args = parse_flags(parser, sys.argv[1:])
        pick(RolloutConfig, args), pick(UpdateConfig, args)  # bad values are told before anything is loaded
        if args.dry_run:
            print(describe(args))
            return
        if args.threads:
            torch.set_num_threads(args.threads)
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:  # started by torchrun
            if torch.cuda.is_available():
                torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
            distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        Path(args.output_dir).mkdir(parents=True, exist_ok=True)
        if not rank():
            print(describe(args), flush=True)
        (sft_command if args.stage == "sft" else rl_command)(args, make_sandbox(args))
    except ImportError as error:
        parser.error(f"{error}: pip install {error.name}")
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
