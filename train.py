"""Training from the command line: the SFT cold start and the RL loop.

    python train.py                        ARPO on the built-in world with the built-in model, on a laptop
    python train.py --algo grpo            the same loop without forks
    python train.py --model Qwen2.5-1.5B   a real model, with LoRA
    python train.py --stage sft            the cold start alone
    torchrun --nproc-per-node 2 train.py   several GPUs: each grows its trees, gradients are summed

One step of the loop is: grow trees, score leaves, advantages, update. `data/runs.py` says what a run leaves in its
folder, and `rollout_metrics` what the numbers in metrics.jsonl are. All randomness is named by (seed, step, question,
path, position), so that a checkpoint needs no random state and a resumed run is the uninterrupted one.
"""

import signal
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import transformers
from accelerate import PartialState
from torch import Tensor
from tqdm import tqdm
from transformers import Qwen2ForCausalLM

from advantage import ADVANTAGES
from arpo import Policy, UpdateConfig, update
from data import Question, demonstrations, models, runs
from data.alarms import UNCHANGED, StopRequest, Watch
from data.benchmarks import world_in
from data.demonstrations import DemonstrationConfig, Example
from data.drawing import draw_tree
from data.format import encode_prompt, printable
from data.grading import overlong_penalty
from data.logits import logprobs_of
from data.memory import Halving
from data.metrics import Scored, rollout_metrics, told_of_forks
from data.optimizer import Optimizer, OptimizerConfig, learning_rate, trainable
from data.outline import describe
from data.presets import PRESETS, preset_settings
from data.processes import dealt_back, everyones, merged, my_share, summed
from data.results import write_results
from data.settings import Natural, Positive, Questions, first_look, known, one_line_errors, parse
from data.tiny import tiny_config
from data.views import tree_view
from data.web import OutOfBudget
from data.worlds import is_world
from eval import (
    JudgeConfig,
    check_numbers,
    evaluate,
    judge,
    judge_expert,
    mean_accuracy,
    open_policy,
    report,
    score_leaves,
)
from sandbox import PythonSandbox
from tools import Lent, Task, Toolbox, ToolsFail, load_task, make_sandbox, tools_of_world

# What each method changes in the settings; num_initial 0 starts all M leaves from the prompt, so that nothing forks.
METHODS = {
    "arpo": {},
    "random": {"score": "lot"},  # control: as many forks, but not where the entropy says
    "grpo": {"num_initial": 0},
    "dapo": {"num_initial": 0, "epsilon_high": 0.28, "dynamic_sampling": True, "overlong_buffer": 64},
    "reinforce++": {"num_initial": 0, "advantage": "batch_tokens"},
    "reinforce++-baseline": {"num_initial": 0, "advantage": "baseline"},
    "rloo": {"num_initial": 0, "advantage": "leave_one_out"},
    "dr_grpo": {"num_initial": 0, "advantage": "unscaled", "loss_type": "constant"},
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
class TrainConfig(JudgeConfig, UpdateConfig, OptimizerConfig, DemonstrationConfig, runs.RunConfig):
    algo: Literal[tuple(METHODS)] = "arpo"  # the method
    preset: Literal[tuple(PRESETS)] = ""  # the paper's settings for a task (`data/presets.py`); flags win
    stage: Literal["rl", "sft"] = "rl"  # reinforcement learning, or the cold start
    max_steps: Positive = 100  # RL steps
    questions_per_step: Positive = 8  # Q
    lora_r: Natural = 16  # rank of LoRA on all linear layers; 0 trains all weights
    gradient_checkpointing: bool = False  # in the update, compute activations again instead of keeping them
    dynamic_sampling: bool = False  # replace trees without variance (DAPO)
    max_resamples: Natural = 3  # rounds of replacement
    overlong_buffer: Natural = 0  # tokens before the limit over which the length penalty grows (DAPO); 0 is off
    eval_steps: Positive = 10  # evaluate on dev questions every so many steps
    eval_questions: Questions = 100  # dev questions
    test_questions: Questions = 300  # held-out questions of the final table
    threads: Natural = 0  # of torch on the CPU; 0 leaves it alone
    dry_run: bool = False  # say what would be done, and stop


def main() -> None:
    transformers.utils.logging.disable_progress_bar()
    with one_line_errors("train.py", ToolsFail, OutOfBudget):
        config = read_flags(sys.argv[1:])
        runs.rehearse(config)
        if config.dry_run:
            if config.stage == "rl":
                load_tasks(config, make_sandbox(config), Lent())
            if config.cold_start or config.stage == "sft":
                demonstrations.check_file(config)
            models.check_whole(config.model)
            print(describe(in_memory(config)))
            return
        models.use_threads(config.threads)
        with runs.folder_for(Path(config.output_dir)):
            state = PartialState(cpu=not torch.cuda.is_available())  # settles how processes find each other
            config = in_memory(config)
            if state.is_main_process:
                print(describe(config), flush=True)
            (sft_command if config.stage == "sft" else rl_command)(config, make_sandbox(config))


# ---------------------------------------------------------------------------------- settings


def read_flags(argv: list[str]) -> TrainConfig:
    """Flags over method over preset over model over the fields' defaults; a resumed run brings its own settings."""
    few = first_look(TrainConfig, argv, ("data", "algo", "preset"))
    settings: dict[str, Any] = {"cold_start": False, "model": models.built_in_for(few["data"])}
    few |= first_look(TrainConfig, argv, ("model",), settings)
    for layer in (models.model_defaults(few["model"]), preset_settings(few["preset"]), METHODS[few["algo"]]):
        settings |= layer
    few |= first_look(TrainConfig, argv, ("data", "stage", "seed", "resume", "output_dir"), settings)
    settings.setdefault("sft_data", world_in(few["data"]) or "world")  # a preset may name others
    settings["cold_start"] |= not is_world(first_look(TrainConfig, argv, ("sft_data",), settings)["sft_data"])
    folder = few["output_dir"], runs.default_folder(**few)
    if few["resume"] and (checkpoint := runs.find_checkpoint(few["resume"], *folder)):
        return resumed(checkpoint, argv)
    config = parse(TrainConfig, argv, "train.py", __doc__, settings)
    if METHODS[config.algo].get("num_initial") == 0 and config.num_initial not in (0, config.num_generations):
        found = f"found --num_initial {config.num_initial} of {config.num_generations}"
        raise ValueError(f"--algo {config.algo}: expected all leaves to start from the prompt, {found}")
    if not (is_world(config.sft_data) or config.cold_start or config.stage == "sft"):
        raise ValueError(f"--sft_data {config.sft_data}: expected a cold start to learn from it, found none")
    if config.stage == "rl" and config.temperature == 0:
        raise ValueError("--temperature: expected above 0 in training, where leaves must differ, found 0")
    if config.stage == "rl" and config.top_p != 1:
        raise ValueError(
            f"--top_p: expected 1 in training, which learns from all that was likely, found {config.top_p}"
        )
    models.check_bits(config.lora_r, config.load_in_4bit)
    if (batches := config.num_minibatches) > (most := config.questions_per_step):
        raise ValueError(f"--num_minibatches: expected at most --questions_per_step {most}, found {batches}")
    if config.stage == "rl" and config.num_generations < 2:
        raise ValueError("--num_generations: expected at least 2, since a leaf is compared with others, found 1")
    return replace(config, output_dir=config.output_dir or runs.default_folder(**asdict(config)))


def resumed(checkpoint: Path, argv: list[str]) -> TrainConfig:
    """The settings of an interrupted run, and over them the flags, which are told where they differ."""
    folder = checkpoint.parent.parent
    if not (about := runs.read_about(folder)):
        raise ValueError(f"--resume: expected a run's settings in {folder / 'run.json'}, found no such file")
    before = known(TrainConfig, about["settings"])
    own = {"resume": str(checkpoint), "output_dir": str(folder)}
    config = replace(parse(TrainConfig, argv, "train.py", __doc__, before), **own)
    for name in ("algo", "stage", "optim"):
        if getattr(config, name) != (its := before.get(name, getattr(config, name))):
            raise ValueError(f"--resume: expected the run's own --{name} {its}, found {getattr(config, name)}")
    if config.max_steps < (done := int(checkpoint.name.removeprefix("step_"))):
        raise ValueError(f"--max_steps: expected at least the {done} that are done, found {config.max_steps}")
    for name, value in before.items():
        if name not in own and getattr(config, name) != value:
            print(f"resumed with another {name}: {value} before, {getattr(config, name)} now")
    return config


def in_memory(config: TrainConfig) -> TrainConfig:
    """The settings with what the memory plan decides, the same for all processes. Raises `TooLarge`."""
    plans = [plan for plan in everyones(config.memory(config.lora_r)) if plan]
    if config.model in models.BUILT_IN or not plans:
        return config
    least = min(plan.token_budget for plan in plans)
    return replace(config, load_in_4bit=any(plan.load_in_4bit for plan in plans), token_budget=least)


# ---------------------------------------------------------------------------------- the two commands


def rl_command(config: TrainConfig, sandbox: PythonSandbox) -> None:
    lent = Lent()
    train, dev, test = load_tasks(config, sandbox, lent)
    checkpoint = runs.begin(config)
    if checkpoint and checkpoint.get("data", config.data) != config.data:
        checkpoint |= {"best": -1.0, "best_step": 0}  # its accuracy on other questions says nothing about these
    torch.manual_seed(config.seed)  # of a new adapter's weights
    policy = start_policy(config, sandbox)
    lent.read, optimizer = policy.read, Optimizer.of(policy.model, config)
    if checkpoint:  # before anything is written to the run
        policy.restore(checkpoint["weights"])
        optimizer.wrapped.load_state_dict(checkpoint["optimizer"])
    check_numbers(policy, train, config)
    run = runs.Run(config, models.size_of(config.model), checkpoint)
    totals = train_rl(policy, optimizer, train, dev, run, config, checkpoint)
    train.tools.go_on_from(train.tools.spent())  # from now on everyone's
    if not run.writes:
        return
    with policy.frozen() as model:
        start = Policy(model, policy.tokenizer, max_rows=policy.max_rows)
        rows = judge("start", start, test, config)
        before = shown_trees("before training", start, test, config)
    last = judge(f"{config.algo}, last step", policy, test, config, samples=0)
    after = shown_trees(f"after step {config.max_steps}", policy, test, config)
    four, max_rows = getattr(policy.model, "is_loaded_in_4bit", False), policy.max_rows
    device, dtype, lent.read = str(policy.model.device), policy.model.dtype, None
    del policy, model, start  # two models at once may be more than the memory holds
    if run.best_step:
        best = Policy.load(str(run.folder), None, four, device, dtype)
        best.max_rows, lent.read = max_rows, best.read
        rows |= judge(config.algo, best, test, config)
    rows |= last | judge_expert(config, "test", test)
    table = report(rows, config.algo, run.best_step) + told_of_forks(runs.read_metrics(run.folder))
    plots = run.finish(table, rows, list(zip(before, after)))
    print(f"\n{len(test.questions)} held-out questions:\n{table}\n")
    print("tokens: " + ", ".join(f"{totals[name]:,.0f} {text}" for name, text in TOKEN_COUNTS.items()))
    print(f"tool calls in training\n{train.tools.report()}\n")
    print("" if totals["changed"] else UNCHANGED, end="")
    where = f"the best model by dev accuracy, of step {run.best_step}, is in {run.folder}"
    print(f"trained for {totals['seconds']:.0f} s; {where}")
    print("plots:", *plots)
    print(f"to look at it all, open {run.folder / 'index.html'} in a browser")


def shown_trees(title: str, policy: Policy, test: Task, config: TrainConfig) -> list[dict[str, Any]]:
    """Trees of a few held-out questions, for the run's pages: the same ones before and after training."""
    questions = test.questions[:4]
    keys = [f"shown/{config.seed}/{question.id}" for question in questions]
    grown = grow_and_score(questions, keys, policy, test.tools, config)
    pairs = zip(grown, leaf_advantages(grown, config))
    return [tree_view(title, scored, advantages, policy.tokenizer, config) for scored, advantages in pairs]


def load_tasks(config: TrainConfig, sandbox: PythonSandbox, lent: Lent) -> list[Task]:
    """The tasks of train, dev and test, whose tools have been tried. Raises ValueError or OSError."""
    counts = {"train": None, "dev": config.eval_questions, "test": config.test_questions}
    return [load_task(config, split, count, sandbox, lent) for split, count in counts.items()]


def start_policy(config: TrainConfig, sandbox: PythonSandbox) -> Policy:
    """The policy that RL starts from. A cold start is made once and kept in the run's folder."""
    start = Path(config.output_dir) / "sft"
    if config.cold_start and (config.overwrite and config.resume in ("", "auto") or not start.exists()):
        cold_start(config, sandbox, start)
    PartialState().wait_for_everyone()
    return open_to_train(replace(config, model=str(start)) if config.cold_start else config)


def open_to_train(config: TrainConfig) -> Policy:
    policy = open_policy(config, config.lora_r)
    if config.gradient_checkpointing:  # in training mode alone: `generate` runs in eval mode
        policy.model.activation_checkpointing_enable({"use_reentrant": False})
    return policy


def cold_start(config: TrainConfig, sandbox: PythonSandbox, folder: Path) -> None:
    """Every process learns the same, and the first one writes. Raises SystemExit where it was asked to stop."""
    policy = open_to_train(config)
    with StopRequest("keeping what was learned") as stop:
        loss = train_sft(policy, examples_of(policy.tokenizer, config, sandbox), config, stop)
    folder = folder.with_name("sft_stopped") if stop.asked else folder
    if PartialState().is_main_process:
        if not runs.write_whole(folder, policy.save):
            raise OSError(f"the cold start could not be written to {folder}")
        print(f"cold start: final loss {loss:.4f}; kept in {folder}")
    if stop.asked:
        raise SystemExit(f"stopped in the cold start; to go on from it: --model {folder}")


def sft_command(config: TrainConfig, sandbox: PythonSandbox) -> None:
    lent = Lent()
    torch.manual_seed(config.seed)
    if config.model in models.BUILT_IN:
        tokenizer = demonstrations.built_in_tokenizer(models.SIZES[config.model].get("data", "world"))
        policy = Policy(Qwen2ForCausalLM(tiny_config(len(tokenizer))), tokenizer)
    else:
        policy = open_to_train(config)
    lent.read = policy.read
    with StopRequest("keeping what was learned") as stop:
        loss = train_sft(policy, examples_of(policy.tokenizer, config, sandbox), config, stop)
    if built_in := models.size_of(config.model) in models.BUILT_IN:
        policy.model.half()  # the shipped weights; half the size, and the RL loop starts from exactly these
    policy.save(config.output_dir)
    folder = Path(config.output_dir)
    runs.write_about(folder, config, models.size_of(config.model))
    if built_in:
        policy.model.float()
    test = load_task(config, "test", config.test_questions, sandbox, lent)
    rows = judge("sft", policy, test, config) | judge_expert(config, "test", test)
    write_results(folder, asdict(config), runs.versions(), rows)
    table = report(rows)
    print(f"final loss {loss:.4f}; saved to {config.output_dir}\n{table}")


def examples_of(tokenizer, config: TrainConfig, sandbox: PythonSandbox) -> list[Example]:
    return demonstrations.load_demonstrations(tokenizer, config, lambda world: tools_of_world(config, sandbox, world))


def train_sft(policy: Policy, examples: list[Example], config: TrainConfig, stop=None) -> float:
    """Maximum likelihood of the expert's own tokens until asked to stop; returns the mean loss of the last tenth."""
    model, losses, steps = policy.model.train(), [], config.sft_steps
    adamw = torch.optim.AdamW(trainable(model), weight_decay=config.sft_weight_decay, betas=(0.9, 0.98))
    optimizer = Optimizer(model, adamw, max_grad_norm=1.0, shared=False)
    # A fixed denominator: with a mean over each batch, examples in batches of few long ones would count more.
    padded, own = sum(len(ids) for ids, _ in examples), sum(sum(mine) for _, mine in examples)
    # The policy's tokens in a step.
    usual = config.sft_batch_rows * own / len(examples) or config.sft_batch_tokens * own / padded
    bar = tqdm(range(1, steps + 1), desc="sft")
    drawn = demonstrations.batches(examples, config.sft_batch_tokens, config.seed)
    watch, room = Watch(), Halving(config.sft_batch_tokens, 128, "--sft_batch_tokens is")
    for step, blocks in zip(bar, demonstrations.steps(drawn, config.sft_batch_rows)):
        losses.append(room.fit(lambda: add_sft_gradient(model, optimizer, blocks, usual, room.size)))
        optimizer.set_rate(learning_rate(step, steps, config.sft_learning_rate, steps // 20))
        watch.count(step, optimizer.step()["skipped"], "--sft_learning_rate")
        bar.set_postfix(loss=f"{np.mean(losses[-50:]):.3f}")
        if stop and stop.asked:
            break
    model.eval()
    return float(np.mean(losses[-max(1, len(losses) // 10) :]))


def add_sft_gradient(model, optimizer: Optimizer, blocks: list, usual: float, most: int) -> float:
    """The gradient of a step's blocks, so many tokens at a time, in place of an attempt before; returns the loss."""
    total = 0.0
    model.zero_grad()
    for ids, labels in (
        part for block in blocks for part in zip(*(x.split(max(1, most // x.shape[1])) for x in block))
    ):
        # Padded on the right, where no real token looks.
        hidden = model.get_decoder()(input_ids=ids.to(model.device), use_cache=False).last_hidden_state[:, :-1]
        targets = labels[:, 1:].to(model.device)
        loss = -logprobs_of(model, hidden[targets != -100], targets[targets != -100]).sum() / usual
        optimizer.backward(loss)
        total += loss.item()
    return total


# ---------------------------------------------------------------------------------- the RL loop


def train_rl(
    policy: Policy, optimizer: Optimizer, train: Task, dev: Task, run: runs.Run, config: TrainConfig, checkpoint=None
) -> Counter:
    """The loop, after `checkpoint` if any; returns sums over the whole run. The best model by dev accuracy is kept.

    Raises SystemExit, with a checkpoint written, where it was asked to stop.
    """
    stream, totals, last, watch = Stream(train.questions, config.seed), Counter(), 0, Watch()
    if checkpoint:
        last, stream.drawn, totals = checkpoint["step"], checkpoint["drawn"], Counter(checkpoint["totals"])
        train.tools.go_on_from(checkpoint if run.writes else {})  # or each process would bring the calls before
    else:
        before = dev_accuracy(policy, dev, config)
        run.keep_if_best(policy.save, before, 0)
        run.log({"step": 0, "dev_accuracy": before})
    steps, started = range(last + 1, config.max_steps + 1), time.perf_counter() - totals["seconds"]
    bar = tqdm(steps, desc=config.algo, initial=last, total=config.max_steps, disable=not run.writes)
    with StopRequest() as stop:
        for step in bar:
            row, first, advantages, config = take_step(step, policy, optimizer, stream, train.tools, config)
            is_last = step == config.max_steps
            if step % config.eval_steps == 0 or is_last:
                row["dev_accuracy"] = dev_accuracy(policy, dev, config)  # on dev questions, greedy
                run.keep_if_best(policy.save, row["dev_accuracy"], step)
            if step % config.save_trees_steps == 0 or step == 1:
                drawn = draw_tree(first.tree, policy.tokenizer, config.entropy_tokens, first.rewards, advantages)
                view = tree_view(f"step {step}", first, advantages, policy.tokenizer, config)
                run.keep_tree(step, f"gold: {first.question.answers}\n{printable(drawn)}\n", view)
            run.log(row)
            watch(row)
            totals.update({name: row[name] for name in (*TOKEN_COUNTS, "changed")})
            totals["seconds"] = time.perf_counter() - started
            stopping = any(everyones(stop.asked))
            if step % config.save_steps == 0 or is_last or stopping:
                state = {"step": step, "drawn": stream.drawn, "totals": dict(totals), "data": config.data}
                learned = {"weights": policy.trainable(), "optimizer": optimizer.wrapped.state_dict()}
                run.checkpoint(policy.save, state | learned | train.tools.spent())
            if stopping:
                raise SystemExit(f"stopped; to go on: python train.py --resume {run.folder}")
            bar.set_postfix(
                reward=f"{row['reward']:.2f}", acc=f"{row['accuracy']:.2f}", calls_q=f"{row['calls_per_question']:.1f}",
                H=f"{row['entropy_after_tools']:.2f}", dev=f"{run.best:.2f}", tok_s=f"{row['tokens_per_second']:.0f}",
            )  # fmt: skip
    return totals


def take_step(
    step: int, policy: Policy, optimizer: Optimizer, stream: "Stream", tools: Toolbox, config: TrainConfig
) -> tuple[dict[str, float], Scored, Tensor, TrainConfig]:
    """Grow, score, advantages, update. Returns metrics, a tree, its advantages (M,), and settings that fit memory."""
    started = time.perf_counter()
    policy.sampler.counts.clear()
    kept, discarded = collect(stream, policy, tools, config, step)
    grown = time.perf_counter()
    advantages = leaf_advantages(kept, config)
    rate = learning_rate(step, config.max_steps, config.learning_rate, config.warmup_steps, config.lr_scheduler_type)
    optimizer.set_rate(rate)
    reference = lambda batch: policy.reference_logprobs(batch, config.temperature)
    updated = update(policy.model, optimizer, [scored.tree for scored in kept], advantages, config, reference)
    config = replace(config, token_budget=updated["token_budget"])
    ended = time.perf_counter()
    counts, updated = summed(policy.sampler.counts), merged(updated)
    row = {
        "step": step,  # from 1; 0 is before training
        **rollout_metrics(kept, discarded, config),
        "prefilled": counts["prefilled"],  # prompt and result tokens fed to the sampler, each once a tree
        "refed": counts["refed"],  # tokens fed again because a fork needs one to sample from
        "holes": counts["holes"],  # columns fed to the sampler for nothing: padding and rows that had stopped
        "decoded": counts["decoded"],  # tokens sampled
        **updated,
        "learning_rate": rate,  # of this step
        "seconds_rollout": grown - started,  # time to grow the trees, tools included
        "seconds_update": ended - grown,  # time of the update
        "tokens_per_second": (counts["decoded"] + updated["trained"]) / (ended - started),  # sampled and trained
    }
    return row, kept[0], advantages[0], config


def leaf_advantages(scored: list[Scored], config: TrainConfig) -> Tensor:
    """Of a batch's leaves (Q, M)."""
    rewards, lengths = (torch.stack(rows) for rows in zip(*((s.rewards, s.tree.lengths()) for s in scored)))
    return ADVANTAGES[config.advantage](rewards, lengths)


class Stream:
    """Endless questions, each epoch in an order of its own; `drawn` of them so far."""

    def __init__(self, questions: list[Question], seed: int):
        self.questions, self.seed, self.drawn = questions, seed, 0

    def take(self, count: int) -> list[Question]:
        places = [divmod(n, len(self.questions)) for n in range(self.drawn, self.drawn + count)]
        self.drawn += count
        order = lambda epoch: np.random.default_rng([self.seed, epoch]).permutation(len(self.questions))
        orders = {epoch: order(epoch) for epoch, _ in places}
        return [self.questions[orders[epoch][i]] for epoch, i in places]


def collect(
    stream: Stream, policy: Policy, tools: Toolbox, config: TrainConfig, step: int
) -> tuple[list[Scored], list[Scored]]:
    """A step's trees, and those that dynamic sampling threw away because all their leaves were rewarded alike."""
    seen = Counter()  # draws of each question in this step: each has a name, and so a tree, of its own

    def grow(count: int) -> list[Scored]:
        questions, names = stream.take(count), []
        for question in questions:
            names.append(f"{question.id}#{seen[question.id]}" if seen[question.id] else question.id)
            seen[question.id] += 1
        keys = [f"{config.seed}/{step}/{name}" for name in names]
        return dealt_back(grow_and_score(my_share(questions), my_share(keys), policy, tools, config))

    kept, discarded = grow(config.questions_per_step), []
    for _ in range(config.max_resamples if config.dynamic_sampling else 0):
        dull = [scored for scored in kept if not scored.mixed()]
        discarded += dull
        kept = [scored for scored in kept if scored.mixed()] + grow(len(dull))
    return kept, discarded


def grow_and_score(questions: list[Question], keys: list[str], policy, tools, config: TrainConfig) -> list[Scored]:
    """A scored tree for each question."""
    prompts = [encode_prompt(policy.tokenizer, question.question) for question in questions]
    grown = []
    for question, tree in zip(questions, policy.grow(prompts, keys, tools, config)):
        scores = score_leaves(tree, question, policy.tokenizer, config.reward_bonus)
        rewards = [score.reward for score in scores]
        if config.overlong_buffer:
            limits = config.max_completion_length, config.overlong_buffer
            rewards = [reward + overlong_penalty(score.tokens, *limits) for reward, score in zip(rewards, scores)]
        grown.append(Scored(question, tree, scores, torch.tensor(rewards)))
    return grown


def dev_accuracy(policy: Policy, dev: Task, config: TrainConfig) -> float:
    own = replace(dev, questions=my_share(dev.questions))
    return mean_accuracy(dealt_back(evaluate(policy, own, config, samples=1, temperature=0)))


if __name__ == "__main__":
    main()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # all is written: a Ctrl-C while Python packs up needs no traceback
