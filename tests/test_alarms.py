"""A run that is spoiled says so: alarms over a step's numbers, results that are no results, stopping, one writer."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from test_train import ROOT
from transformers import AutoModelForCausalLM

import eval
import train
from arpo import Policy
from data import Question, models, runs
from data.alarms import ALARMS, StopRequest, Watch
from data.models import TINY
from data.optimizer import Optimizer, row_sums
from data.processes import dealt_back, merged, my_share
from data.results import Result, Row, Score

GOOD = dict(
    step=1, malformed=0.1, calls_per_question=4.0, no_variance=0.2, identical=0.3, trained=500, kl_sampler=1e-9,
    without_gradient=0, skipped=0, changed=1, learning_rate=1e-5,
)  # fmt: skip
BAD = {
    "malformed": dict(malformed=1.0), "no calls": dict(calls_per_question=0.0), "alike": dict(no_variance=1.0),
    "collapse": dict(identical=0.95), "numbers": dict(kl_sampler=0.2), "no gradient": dict(without_gradient=2),
    "unchanged": dict(changed=0),
}  # fmt: skip


def said_by(rows, capsys) -> list[str]:
    watch = Watch()
    for row in rows:
        watch(row)
    return capsys.readouterr().out.splitlines()


def test_a_good_step_rings_nothing(capsys):
    assert said_by([GOOD, GOOD | {"step": 2, "calls_per_question": 0.0}], capsys) == []


@pytest.mark.parametrize("kind", ALARMS)
def test_each_alarm_rings_and_then_more_rarely(kind, capsys):
    """Guards: a ruined run that ends with exit code 0 and not a word, and one line a step that nobody reads."""
    rows = [GOOD | {"step": 1} | BAD[kind] for _ in range(30)]
    told = said_by(rows, capsys)
    assert len(told) == 2 and all(line.startswith("step 1: ") for line in told)  # the first and the tenth
    assert set(BAD) == set(ALARMS)


def test_kl_of_no_number_rings(capsys):
    assert "kl_sampler is nan" in said_by([GOOD | {"kl_sampler": float("nan")}], capsys)[0]


def test_a_layer_without_gradient_is_counted():
    """Guards: an adapter that the loss does not reach. Its two matrices count as one layer: the second starts at 0."""
    policy = Policy.load(str(TINY), lora_r=2)
    optimizer = Optimizer(policy.model, torch.optim.SGD(policy.model.parameters(), lr=0.0), 1.0)
    ids = torch.tensor([[5, 40, 41, 42]])
    optimizer.backward(policy.model(ids, labels=ids).loss)
    assert optimizer.step()["without_gradient"] == 0
    optimizer.backward(policy.model(ids, labels=ids).loss * 0)
    assert optimizer.step()["without_gradient"] == len(set(optimizer.layers)) > 10


@pytest.mark.parametrize("dtype, rate, changed", [("float32", 1e-3, 1), ("bfloat16", 1e-9, 0), ("float32", 0.0, 0)])
def test_a_step_that_changes_no_weight_is_told(dtype, rate, changed):
    """Guards: a learning rate that rounding swallows, so that the trained model is the start, bit for bit."""
    policy = Policy.load(str(TINY), dtype=getattr(torch, dtype))
    optimizer = Optimizer(policy.model, torch.optim.SGD(policy.model.parameters(), lr=rate), 1.0)
    optimizer.backward(policy.model(torch.tensor([[5, 40, 41]]), labels=torch.tensor([[5, 40, 41]])).loss)
    before = {name: weight.clone() for name, weight in policy.trainable().items()}
    told = optimizer.step()
    same = all(torch.equal(weight, before[name]) for name, weight in policy.trainable().items())
    assert told["changed"] == changed != same and not told["skipped"]


def test_one_bit_in_one_weight_is_a_change():
    weights = [torch.randn(30, 20), torch.randn(7).bfloat16(), torch.tensor(1.0)]
    for weight in weights:
        before = row_sums(weights)
        assert torch.equal(before, row_sums(weights))
        weight.view(-1)[-1] = torch.nextafter(weight.view(-1)[-1], torch.tensor(9.0, dtype=weight.dtype))
        assert not torch.equal(before, row_sums(weights))


def row(right) -> Row:
    results = [
        Result.of(Question(f"q{n}", "?", ("x",)), [Score("x", float(one), float(one), {"search": 1}, 10, "end")])
        for n, one in enumerate(right)
    ]
    return Row("arpo", "tiny", 0.0, 1.0, 0, results)


def test_the_start_is_never_reported_as_the_method():
    """Guards: dev never rose, the saved model is the start's, and the table calls it "arpo, +0.0 points"."""
    rows = {"start, greedy": row([1, 0, 0, 0]), "arpo, last step, greedy": row([0, 0, 0, 0])}
    table = eval.report(rows, "arpo", best_step=0)
    assert "no step raised dev accuracy" in table and "points" not in table and "arpo, last step" in table
    rows |= {"arpo, greedy": row([1, 1, 1, 0])}
    told = eval.report(rows, "arpo", best_step=20)
    assert "of the best step (20): +50.0 points" in told


@pytest.mark.parametrize(
    "flags, told",
    [
        ("--algo grpo --num_initial 2", "expected all leaves to start from the prompt, found --num_initial 2"),
        ("--temperature 0", "--temperature: expected above 0 in training"),
        ("--model runs/nowhere", "--model runs/nowhere: expected a folder with a model"),
        ("--model ./README.md", "expected a folder with a model, a .gguf file or a hub id, found none"),
        ("--report_to wandb", "wandb"),
        ("--data absent.jsonl", "absent.jsonl"),
        ("--search nowhere.jsonl", "nowhere"),
        ("--output_dir README.md", "expected a folder, found a file"),
    ],
)  # fmt: skip
def test_a_dry_run_finds_what_a_run_would_fail_on(flags, told, monkeypatch, capsys, tmp_path):
    """Guards: a confident plan for a file that is not there, and a wait for the hub over a mistyped folder."""
    output = [] if "output_dir" in flags else ["--output_dir", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", ["train.py", "--dry_run", *flags.split(), *output])
    with pytest.raises(SystemExit) as stop:
        train.main()
    error = capsys.readouterr().err
    assert stop.value.code == 2 and told in error and error.count("\n") == 1 and not (tmp_path / "run").exists()


def test_two_runs_cannot_write_to_one_folder(tmp_path):
    """Guards: two runs that take turns in one metrics.jsonl."""
    code = f"from data.runs import lock; from pathlib import Path; lock(Path({str(tmp_path)!r})); input()"
    other = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE)
    while not (tmp_path / ".lock").exists():
        time.sleep(0.05)
    time.sleep(0.5)
    with pytest.raises(ValueError, match="expected .* for this run alone, found another run"):
        runs.begin(runs.RunConfig(output_dir=str(tmp_path)))
    other.communicate(b"\n")
    assert runs.begin(runs.RunConfig(output_dir=str(tmp_path))) is None


def test_a_checkpoint_that_is_cut_falls_back_to_the_one_before(tmp_path, capsys):
    for step in (1, 2):
        folder = tmp_path / "checkpoints" / f"step_{step:06d}"
        folder.mkdir(parents=True)
        torch.save(dict.fromkeys(runs.STATE, 0) | {"metrics_bytes": 10 * step}, folder / "state.pt")
    (tmp_path / "metrics.jsonl").write_bytes(b" " * 20)
    newest = lambda: runs.find_checkpoint(str(tmp_path), "", "").name
    assert newest() == "step_000002"
    (tmp_path / "metrics.jsonl").write_bytes(b" " * 19)
    assert newest() == "step_000001" and "expected 20 bytes in metrics.jsonl" in capsys.readouterr().err
    (tmp_path / "metrics.jsonl").write_bytes(b" " * 20)
    cut = folder / "state.pt"
    cut.write_bytes(cut.read_bytes()[:100])
    assert newest() == "step_000001" and "step_000002 cannot be read" in capsys.readouterr().err
    (tmp_path / "checkpoints" / "step_000001" / "state.pt").write_bytes(b"")
    with pytest.raises(ValueError, match="found none that can be read"):
        newest()


@pytest.mark.parametrize("text", ['{"settings": {"mod', "[]", '{"settings": 3}', ""])
def test_settings_that_are_cut_are_named(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ValueError, match="run.json: expected the settings of a run as JSON"):
        models.model_defaults(str(tmp_path))


def test_a_save_that_fails_for_another_cause_than_space_ends_the_run(tmp_path):
    """Guards: hours of training whose model was never written."""

    def forbidden(folder):
        raise PermissionError(13, "Permission denied")

    with pytest.raises(OSError, match="could not write .*best .*Permission denied"):
        runs.Run(runs.RunConfig(output_dir=str(tmp_path)), "tiny").keep_if_best(forbidden, 0.1, 0)


def test_a_save_may_hold_folders(tmp_path):
    """Guards: a tokenizer that writes its templates into a folder, which the move into the run's folder forgot."""

    def save(folder):
        (folder / "templates").mkdir()
        (folder / "templates" / "tool_use.jinja").write_text("x")

    run = runs.Run(runs.RunConfig(output_dir=str(tmp_path)), "tiny")
    for step, accuracy in enumerate((0.1, 0.2)):
        run.keep_if_best(save, accuracy, step)
    assert (tmp_path / "templates" / "tool_use.jinja").read_text() == "x" and not (tmp_path / "best").exists()


def test_ctrl_c_is_given_back():
    """Guards: a Ctrl-C after the loop, in the final table, that nothing listens to any more."""
    before = signal.getsignal(signal.SIGINT)
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)
        assert stop.asked
        with pytest.raises(KeyboardInterrupt):
            stop.ask(signal.SIGINT, None)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.slow
def test_ctrl_c_in_the_cold_start_keeps_what_was_learned(tmp_path):
    flags = f"--cold_start --sft_worlds 2 --sft_steps 2000 --threads 1 --output_dir {tmp_path}".split()
    process = subprocess.Popen([sys.executable, "train.py", *flags], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    seen = ""
    while "sft:" not in seen or "loss=" not in seen:
        seen += process.stderr.read(1)
    process.send_signal(signal.SIGINT)
    told = process.communicate(timeout=60)[1]
    assert process.returncode == 1 and "stopped in the cold start; to go on from it: --model" in told
    AutoModelForCausalLM.from_pretrained(tmp_path / "sft_stopped")
    assert not (tmp_path / "sft").exists()


def test_a_question_that_is_drawn_twice_in_a_step_has_two_trees():
    """Guards: a copy of a tree, token by token, that counts twice: a set of 3 questions, and 5 a step."""
    config = train.read_flags("--questions_per_step 5 --num_generations 4 --threads 1".split())
    policy, keys = Policy.load(str(TINY)), []
    policy.grow = lambda prompts, names, *_: keys.extend(names) or []
    stream = train.Stream([Question(f"q{n}", "?", ("x",)) for n in range(3)], seed=0)
    train.collect(stream, policy, None, config, 1)
    assert len(keys) == len(set(keys)) == 5 and sum("#1" in key for key in keys) == 2


def test_one_process_has_everything():
    assert my_share([1, 2, 3]) == dealt_back([1, 2, 3]) == [1, 2, 3]
    own = dict(trained=10, train_tokens=20, loss=0.5, kl_sampler=0.1, grad_norm=2.0)
    assert merged(own) == own


def test_metrics_of_two_processes_are_everyones(monkeypatch):
    """Guards: under torchrun, the first process's share reported as the whole."""
    one = dict(trained=30, train_tokens=40, loss=0.5, kl_sampler=0.1, grad_norm=2.0)
    two = dict(trained=10, train_tokens=20, loss=-0.25, kl_sampler=0.3, grad_norm=2.0)
    monkeypatch.setattr("data.processes.everyones", lambda value: [one, two])
    both = merged(one)
    assert (both["trained"], both["train_tokens"], both["loss"], both["grad_norm"]) == (40, 60, 0.25, 2.0)
    assert both["kl_sampler"] == pytest.approx(0.15)
