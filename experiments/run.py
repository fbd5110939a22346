"""Runs the declared grid: arms × paired seeds, a small JSON file for each cell, two cells at a time.

    python experiments/run.py                     all that is not there yet, the main arms first
    python experiments/run.py --list              what is declared, what is there, what the rest would take
    python experiments/run.py --only arpo grpo --seeds 4 --hours 1

A cell is a short RL run and its judgement on held-out questions, by the functions that `train.py` runs. Its file says
which settings made it; one that today's settings would make again is not made twice, and a cell that another runner
has begun is left to it. After a change of the code, delete the files that it touches. Left out: what the numbers mean
(`report.py`) and which arms there are (`grid.py`).
"""

import fcntl
import hashlib
import json
import platform
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cache
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
import transformers

sys.path.insert(0, str(Path(__file__).parent.parent))

from data.models import resolve_model
from data.optimizer import Optimizer
from data.results import Result
from data.settings import NonNegative, Positive, Settings, one_line_errors, parse
from eval import evaluate, mean_accuracy, open_policy
from experiments.grid import ARMS, COMMON, MAIN, NOISE_BATCHES, SAMPLES, SECONDS
from experiments.measures import read_cell, write_json
from tools import make_sandbox
from train import Stream, TrainConfig, load_tasks, read_flags, take_step

RESULTS = Path(__file__).parent / "results"

# What a cell keeps of a step's metrics, which `rollout_metrics` and `take_step` explain, beside calls and seconds.
KEPT = ("reward accuracy mixed malformed decoded train_tokens decisions forks top_ups forks_differ grad_norm").split()
# Settings that do not change what a run computes.
NOT_HASHED = ("seed", "output_dir", "threads")


@dataclass(frozen=True)
class RunnerConfig(Settings):
    only: tuple[str, ...] = ()  # arms; default all
    seeds: Positive = 1000  # at most so many of an arm
    workers: Positive = 2  # processes, of one thread each
    hours: NonNegative = 1000.0  # no cell is begun after them
    list: bool = False  # say what is declared, and stop


def main() -> None:
    with one_line_errors("run.py"):
        config = parse(RunnerConfig, sys.argv[1:], "run.py", __doc__, {})
        if unknown := [arm for arm in config.only if arm not in ARMS]:
            raise ValueError(f"--only: expected arms of {', '.join(ARMS)}, found {', '.join(unknown)}")
        cells = [cell for cell in in_order() if cell[0] in (config.only or ARMS) and cell[1] < config.seeds]
        for arm in {arm for arm, _ in cells}:
            hash_of(arm)  # what is wrong with its flags, or with a file, is told before anything runs
        for file in RESULTS.glob("*.json"):
            read_cell(file)
        if config.list:
            print(listing(cells, config.workers))
            return
        (RESULTS / ".locks").mkdir(parents=True, exist_ok=True)
        until = time.time() + 3600 * config.hours
        start = get_context("spawn").Process
        workers = [start(target=work, args=(cells, until)) for _ in range(config.workers)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        print(listing(cells, config.workers))
        if any(worker.exitcode for worker in workers):
            raise SystemExit(1)


def in_order() -> list[tuple[str, int]]:
    """Cells (arm, seed) so that a grid that is stopped early has whole pairs: seed by seed, the main arms first.

    What the main arms have beyond the others' seeds comes last.
    """
    order = lambda arms, seeds: [(arm, seed) for seed in seeds for arm in arms if seed < ARMS[arm].seeds]
    others, few = [arm for arm in ARMS if arm not in MAIN], min(arm.seeds for arm in MAIN.values()) // 2
    return order(MAIN, range(few)) + order(others, range(1000)) + order(MAIN, range(few, 1000))


def listing(cells: list[tuple[str, int]], workers: int) -> str:
    lines, missing = [], 0
    for arm in dict.fromkeys(arm for arm, _ in cells):
        fit = [is_made(*cell) for cell in cells if cell[0] == arm]
        missing += len(fit) - sum(fit)
        lines.append(f"{arm:20s} {sum(fit):2d} of {len(fit):2d} seeds   {ARMS[arm].says}: {ARMS[arm].flags}")
    took = [read_cell(file)["seconds"] for file in RESULTS.glob("*.json")]
    hours = missing * (np.mean(took) if took else SECONDS) / 3600
    return "\n".join([*lines, f"{missing} of {len(cells)} cells missing, {hours / workers:.1f} h on {workers} cores"])


def work(cells: list[tuple[str, int]], until: float) -> None:
    """What a worker does: one cell after the other. A cell that fails is told, and the next one is begun."""
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    failed = 0
    for arm, seed in cells:
        if is_made(arm, seed) or time.time() > until:
            continue
        with alone(RESULTS / ".locks" / f"{arm}-{seed}") as mine:
            if not mine or is_made(arm, seed):
                continue
            try:
                result = run_cell(arm, seed)
            except (ValueError, RuntimeError, OSError, SystemExit) as error:
                print(f"{arm}, seed {seed}: {error}", file=sys.stderr, flush=True)
                failed += 1
                continue
            write_json(RESULTS / f"{arm}-{seed}.json", result)
            print(f"{arm}, seed {seed}: {result['seconds']:.0f} s", flush=True)
    if failed:
        raise SystemExit(1)


@contextmanager
def alone(file: Path) -> Iterator[bool]:
    """Whether this process is the only one inside; ends with it, however it ends."""
    with file.open("w") as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield True
        except BlockingIOError:
            yield False


# ---------------------------------------------------------------------------------- what made a result


def config_of(arm: str, seed: int) -> TrainConfig:
    flags = f"{COMMON} {ARMS[arm].flags} --seed {seed} --output_dir {RESULTS}"
    last = {flag.split()[0]: flag for flag in re.findall("--.+?(?= --|$)", flags)}  # an arm's win
    return read_flags(" ".join(last.values()).split())


def settings_of(config: TrainConfig) -> dict:
    """The settings that differ from the fields' defaults, and so, by default, from other users' runs."""
    return {
        field.name: getattr(config, field.name)
        for field in fields(TrainConfig)
        if field.name not in NOT_HASHED and getattr(config, field.name) != field.default
    }


@cache
def hash_of(arm: str) -> str:
    """Of an arm's settings, of the weights that it starts from, and of what is measured; not of the code."""
    config = config_of(arm, 0)
    model = Path(resolve_model(config.model))
    weights = [hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(model.glob("*.safetensors"))]
    text = json.dumps([settings_of(config), weights, SAMPLES, NOISE_BATCHES], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def is_made(arm: str, seed: int) -> bool:
    """Whether there is a result that today's settings would make again."""
    file = RESULTS / f"{arm}-{seed}.json"
    return file.exists() and read_cell(file)["hash"] == hash_of(arm)


# ---------------------------------------------------------------------------------- a cell


def run_cell(arm: str, seed: int) -> dict:
    """Noise of the gradient, training, judgement: everything that the cell's file holds."""
    started, config = time.perf_counter(), config_of(arm, seed)
    sandbox = make_sandbox(config)
    train, dev, test = load_tasks(config, sandbox, None)
    policy = open_policy(config, config.lora_r)
    result = {
        "arm": arm,
        "seed": seed,
        "hash": hash_of(arm),
        "settings": settings_of(config),
        "versions": versions(),
    }
    if ARMS[arm].start == arm:
        result["dev"] = {"step": [0], "accuracy": [dev_accuracy(policy, dev, config)]}
    else:
        result["gradients"] = gram(policy, train, config)
        result |= learn(policy, train, dev, config)
    greedy = evaluate(policy, test, config, 1, 0.0, seed)
    sampled = evaluate(policy, test, config, SAMPLES, config.temperature, seed)
    result["greedy"], result["sampled"] = counts(greedy), counts(sampled)
    return result | {"seconds": round(time.perf_counter() - started)}


def versions() -> dict:
    names = {name: version(name) for name in ("torch", "transformers", "numpy")}
    return names | {"python": platform.python_version()}


def learn(policy, train, dev, config: TrainConfig) -> dict:
    """The loop of `train.py` without its folder: numbers of each step, and accuracy on dev questions by step."""
    optimizer, stream, steps = Optimizer.of(policy.model, config), Stream(train.questions, config.seed), []
    judged, depths = {"step": [], "accuracy": []}, note_depths(policy)
    for step in range(1, config.max_steps + 1):
        started = time.process_time()  # of the processor: others may use the machine, too
        row, *_, config = take_step(step, policy, optimizer, stream, train.tools, config)
        own = {"calls": calls_of(row, config), "seconds": time.process_time() - started}
        steps.append({name: row[name] for name in KEPT} | own)
        if step % config.eval_steps == 0:
            judged["step"].append(step)
            judged["accuracy"].append(dev_accuracy(policy, dev, config))
    curve = {name: [short(row[name]) for row in steps] for name in steps[0]}
    return {
        "curve": curve,
        "forks_by_depth": [depths[depth] for depth in range(max(depths, default=0) + 1)],
        "dev": judged,
    }


def note_depths(policy) -> Counter:
    """Counts, from now on, the forks of the trees that the policy grows, by the tool results before them."""
    depths, grow = Counter(), policy.grow

    def noted(*rest):
        trees = grow(*rest)
        for tree in trees:
            for n, node in enumerate(tree.nodes):
                if node.decision and node.decision.new_paths:
                    depth = sum(bool(tree.nodes[i].observation) for i in tree.path(n))
                    depths[depth] += node.decision.new_paths
        return trees

    policy.grow = noted
    return depths


def calls_of(row: dict, config: TrainConfig) -> float:
    """Tool calls that a step executed; those of trees that were thrown away are among them."""
    return row["calls_per_question"] * config.questions_per_step


def dev_accuracy(policy, dev, config: TrainConfig) -> float:
    """Of one sampled answer a question: what is trained, and smoother than that of the likeliest answers."""
    return short(mean_accuracy(evaluate(policy, dev, config, 1, config.temperature, config.seed)))


def counts(results: list[Result]) -> str:
    """How many of a question's answers are right, a digit for each question."""
    return "".join(str(sum(score.accuracy == 1 for score in result.attempts)) for result in results)


def short(number: float) -> float:
    """Four digits, and nothing behind the point of whole numbers."""
    return int(number) if number == int(number) else float(f"{number:.4g}")


class Recorder(Optimizer):
    """Keeps each gradient instead of stepping."""

    def step(self) -> dict[str, float]:
        # There are none where no tree had leaves of different rewards.
        grads = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in self.weights]
        self.gradients.append(torch.cat([grad.flatten() for grad in grads]))
        self.wrapped.zero_grad(set_to_none=True)
        return {"grad_norm": float(self.gradients[-1].norm())}


def gram(policy, train, config: TrainConfig) -> dict:
    """Scalar products of gradients at one policy, each from another step's questions, and the calls of each."""
    recorder, stream = Recorder.of(policy.model, config), Stream(train.questions, config.seed + 10_000)
    recorder.gradients, calls = [], []
    for batch in range(NOISE_BATCHES):  # steps after the last: their samples are used nowhere else
        row, *_ = take_step(config.max_steps + 1 + batch, policy, recorder, stream, train.tools, config)
        calls.append(short(calls_of(row, config)))
    gradients = torch.stack(recorder.gradients).double()
    return {"products": [[short(value) for value in row] for row in (gradients @ gradients.T).tolist()], "calls": calls}


if __name__ == "__main__":
    main()
