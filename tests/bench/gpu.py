"""Everything that only a GPU can say, in one command of at most 20 minutes; tables as JSON and as text.

    python tests/bench/gpu.py                       parity, memory, decode, steps, kill: all of it
    python tests/bench/gpu.py --only memory decode --shapes 1.5B 7B
    python tests/bench/gpu.py --small               at small size, on a CPU, where no memory is measured

- parity: sampled log-probs against a plain and a packed forward pass, at a real vocabulary, in fp32, bf16 and NF4
- memory: peaks of a rollout and of an update with random weights, beside the plan's
- decode: a step's time as a share of the least that the memory's bandwidth allows
- steps: seconds of a step of the main job, and whether a run that is killed goes on

What fails is a row that says so, and the rest is measured all the same; nothing is begun after --minutes.
"""

import argparse
import gc
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import decode
import memory
import torch
from measure import ROOT, table
from memory import SHAPES, InstantTools, StandInTokenizer

from arpo import Policy
from data.memory import CACHE_COPY, PROMPT_TOKENS, Demand, Shape, fitted, free_memory
from eval import packed_gap, plain_gap
from rollout import RolloutConfig

Cases = dict[tuple, Callable[[], list]]  # the first columns of a row, and what measures the others


def parity(args, device: str) -> tuple[list[str], Cases]:
    """Mean distance of log-probs in nats. With random weights, whose distribution is flat, it is a distance of sums."""
    shape = "small" if args.small else "0.5B"

    def measure(dtype: torch.dtype, four_bit: bool) -> list:
        torch.manual_seed(0)
        model = memory.build(shape, four_bit, device, dtype)
        policy = Policy(model, StandInTokenizer(model.config.vocab_size))
        limits = dict(max_completion_length=200 if args.small else 600, max_turn_tokens=600, max_result_tokens=100)
        config = RolloutConfig(num_generations=4, num_initial=2, branch_rule="coin", max_tool_calls=1000, **limits)
        prompts = [torch.randint(3, 250, (50,)).tolist() for _ in range(2)]
        trees = policy.grow(prompts, ["0", "1"], InstantTools(), config)
        return [f"{gap:.2g}" for gap in (plain_gap(policy, trees[0], config), packed_gap(policy, trees, config))]

    kinds = {"fp32": (torch.float32, False), "bf16": (torch.bfloat16, False), "NF4 in bf16": (torch.bfloat16, True)}
    cases = {(shape, name): lambda kind=kind: measure(*kind) for name, kind in kinds.items()}
    return ["shape", "precision", "plain forward", "packed forward"], cases


def memory_beside_the_plan(args, device: str) -> tuple[list[str], Cases]:
    """Peaks in GB (1e9), and the plan's for as many rows and tokens."""

    def measure(shape: str, tokens: int, four_bit: bool) -> list:
        model = memory.build(shape, four_bit, device)
        demand = Demand(tokens - PROMPT_TOKENS, args.leaves, 16, args.token_budget, True)
        plan = fitted(Shape.of(model.config), demand, device, model.dtype, 10**15, four_bit)  # as if all were free
        row = memory.measure(model, tokens, args.leaves, args.token_budget)
        planned = plan.rollout - CACHE_COPY * plan.row * (plan.fit - args.leaves)
        return [row["rollout"], planned / 1e9, row["update"], plan.update / 1e9, row["speed"]]

    cases = {
        (shape, "NF4" if four else "16 bits", tokens): lambda case=(shape, tokens, four): measure(*case)
        for shape in args.shapes
        for four in ((False,) if args.small else (True, False))
        for tokens in args.leaf_tokens
    }
    names = "rollout, GB", "planned", "update, GB", "planned", "sampled tokens/s"
    return ["shape", "weights", "tokens of a path", *names], cases


def decoding(args, device: str) -> tuple[list[str], Cases]:
    """Milliseconds of a step of so many rows, the least possible, and that as a share."""
    size = (32, 8) if args.small else (512, 64)
    cases = {
        (shape, rows): lambda case=(shape, rows): decode.measure(*case, *size, False, device)
        for shape in args.shapes
        for rows in args.rows
    }
    return ["shape", "rows", "ms a step", "least ms", "share"], cases


def steps(args, device: str) -> tuple[list[str], Cases]:
    """The main job, killed by signal 9 after its second step and resumed."""
    flags = "--save_steps 1 --eval_steps 100 --eval_questions 4 --test_questions 4 --threads 1".split()
    flags += "--questions_per_step 2 --num_generations 4 --num_initial 2".split() if args.small else []
    last, folder = (4, args.out / "run") if args.small else (8, args.out / "run")
    start = [sys.executable, str(ROOT / "train.py"), "--output_dir", str(folder), "--max_steps", str(last), *flags]

    def rows() -> list[dict]:
        file = folder / "metrics.jsonl"
        lines = file.read_text().splitlines(keepends=True) if file.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def measure() -> list:
        quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        run = subprocess.Popen([*start, "--overwrite"], start_new_session=True, **quiet)
        while run.poll() is None and not (len(rows()) > 2 and list(folder.glob("checkpoints/step_*2"))):
            time.sleep(0.2)
        before = rows()
        if run.poll() is not None:
            raise RuntimeError(f"train.py ended with code {run.returncode} after {len(before)} rows")
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
        subprocess.run([*start, "--resume", "auto"], check=True, **quiet)
        after = rows()
        whole = [row["step"] for row in after] == list(range(last + 1)) and after[: len(before) - 1] == before[:-1]
        parts = [sorted(row[name] for row in after[1:])[last // 2] for name in ("seconds_rollout", "seconds_update")]
        return [*parts, f"killed in step {len(before)}, and {'went on' if whole else 'its steps are not whole'}"]

    return ["job", "rollout, s", "update, s", "kill"], {("train.py",): measure}


SECTIONS = {"parity": parity, "memory": memory_beside_the_plan, "decode": decoding, "steps": steps}


def measured(work: Callable[[], list], until: float) -> list:
    """The row's other columns, or the one that says why there are none."""
    if time.monotonic() > until:
        return ["no time was left"]
    try:
        return work()
    except Exception as error:  # the next row may be measured all the same
        return [f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"]
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def main(argv: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["0.5B", "1.5B", "3B", "7B"])
    parser.add_argument("--leaf_tokens", nargs="+", type=int, default=[2048, 4096])
    parser.add_argument("--rows", nargs="+", type=int, default=[16, 64, 128])
    parser.add_argument("--leaves", type=int, default=16)
    parser.add_argument("--token_budget", type=int, default=8192)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"))
    args = parser.parse_args(argv)
    if args.small:
        args.shapes, args.leaf_tokens, args.rows, args.leaves = ["small"], [700], [4], 4
    device = "cuda" if torch.cuda.is_available() else "cpu"
    until, found = time.monotonic() + 60 * args.minutes, {}
    card = torch.cuda.get_device_name() if device == "cuda" else "CPU (no memory is measured)"
    found["machine"] = f"{card}, {free_memory(device) / 1e9:.1f} GB free, torch {torch.__version__}"
    print(found["machine"], flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.only:
        head, cases = SECTIONS[name](args, device)
        rows = found[name] = []
        for key, work in cases.items():
            row = [*key, *measured(work, until)]
            rows.append(row + [""] * (len(head) - len(row)))
            (args.out / "gpu.json").write_text(json.dumps(found, indent=1) + "\n")  # whatever comes next
        shown = [[x if isinstance(x, str | int) else f"{x:.3g}" for x in row] for row in rows]
        text = f"\n## {name}\n\n{table(head, shown)}\n"
        print(text, flush=True)
        with (args.out / "gpu.txt").open("a" if name != args.only[0] else "w") as file:
            file.write(text if name != args.only[0] else f"{found['machine']}\n{text}")
    return found


if __name__ == "__main__":
    main()
