"""Settings: frozen records, their limits and help, old names, and what a run hands on."""

import contextlib
import io
import json
import os
import subprocess
import sys
from dataclasses import FrozenInstanceError, asdict, fields, replace
from pathlib import Path
from typing import get_args

import pytest
import torch

import eval
import train
from arpo import UpdateConfig
from data import runs
from data.models import OF_THE_MODEL
from data.settings import hints, known, one_line_errors
from rollout import RolloutConfig

ROOT = Path(__file__).parent.parent
COMMANDS = {"train": train.read_flags, "eval": eval.read_flags}
RECORDS = [train.TrainConfig, eval.EvalConfig]


def flags(*argv):
    return train.read_flags(list(argv))


def test_a_record_is_frozen_and_a_changed_copy_is_checked_again():
    """Guards: settings that are written into on the way, and a copy that slips past the limits."""
    config = flags()
    with pytest.raises(FrozenInstanceError):
        config.temperature = 0.5
    assert replace(config, temperature=0.5).temperature == 0.5 and config.temperature == 1.0
    for name, wrong in (
        ("temperature", -1.0),
        ("learning_rate", float("nan")),
        ("base_prob", float("-inf")),
        ("num_initial", 9),
        ("max_steps", 0),
        ("tool_limits", "knife=1"),
    ):
        with pytest.raises(ValueError, match=name):
            replace(config, **{name: wrong})


def choices(record, name):
    """The texts that a field may be, or none where it may be any."""
    kind = get_args(hints(record)[name])[0]
    return [text for text in get_args(kind) if isinstance(text, str)]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.__name__)
def test_a_record_refuses_what_is_none_of_its_choices(record):
    """Guards: a loss of an unknown name, which would silently be another one."""
    config = COMMANDS[record.__name__.removesuffix("Config").lower()]([])
    of_choices = [field.name for field in fields(record) if choices(record, field.name)]
    assert len(of_choices) > 5
    for name in of_choices:
        with pytest.raises(ValueError, match=name):
            replace(config, **{name: "dice"})
    with pytest.raises(ValueError, match="loss_type"):
        UpdateConfig(loss_type="dapo")


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.__name__)
def test_every_field_has_help(record):
    for field in fields(record):
        (about,) = [part for part in get_args(hints(record)[field.name]) if hasattr(part, "help")]
        assert about.help.strip(), field.name


FLOATS = [
    (command, field.name)
    for command, record in zip(COMMANDS, RECORDS)
    for field in fields(record)
    if isinstance(field.default, float)
]


@pytest.mark.parametrize("wrong", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("command, name", FLOATS)
def test_no_float_is_infinite_or_not_a_number(command, name, wrong):
    """Guards: nan passes every comparison with a limit, and a run then trains on nothing."""
    with pytest.raises(ValueError, match=f"^--{name}: expected a finite number, found {wrong}$"):
        COMMANDS[command]([f"--{name}={wrong}"])


@pytest.mark.parametrize("spelled", ["{} {}", "{}={}"])
def test_names_of_version_0_1_are_understood(capsys, spelled):
    """For one more release; the flag that has another name is told, once."""
    for old, new in (("dapo", "token_mean"), ("grpo", "sequence_mean"), ("dr_grpo", "constant")):
        for flag in ("--loss_type", "--loss-type"):
            assert flags(*spelled.format(flag, old).split()).loss_type == new
    capsys.readouterr()
    assert flags(*spelled.format("--beta", "0.25").split()).kl_coef == 0.25
    assert capsys.readouterr().err == "--beta is called --kl_coef now\n"


def test_todays_names_are_not_told(capsys):
    assert flags("--kl_coef", "0.25", "--loss_type", "constant", "--algo", "grpo").kl_coef == 0.25
    assert flags("--algo", "dr_grpo", "--data", "dapo").loss_type == "constant"
    assert capsys.readouterr().err == ""


def test_the_ways_to_write_a_flag():
    for spelling in ("--no-browse", "--no_browse"):
        assert not flags(spelling).browse
    assert flags().browse and flags("--browse").browse
    assert flags("--max-steps", "7").max_steps == flags("--max_steps=7").max_steps == flags("--max-steps=7").max_steps
    assert flags("--epsilon-high", "0.4").epsilon_high == 0.4
    big = ("--model", "Qwen2.5-1.5B")
    assert flags(*big).load_in_4bit is None and flags().load_in_4bit is False  # left open for a real model alone
    for spelling in ("--no-load_in_4bit", "--no_load_in_4bit", "--no-load-in-4bit", "--load_in_4bit=False"):
        assert flags(spelling, *big).load_in_4bit is False
    for spelling in (["--load_in_4bit"], ["--load-in-4bit", "True"], ["--load_in_4bit", "--seed", "1"]):
        assert flags(*spelling, *big).load_in_4bit is flags(*spelling, "--lora_r", "4").load_in_4bit is True
    ask = lambda *argv: eval.read_flags(list(argv)).ask
    assert ask() is None and ask("--ask") == ask("--ask", "--seed", "3") == ""
    assert ask("--ask", "What is it?") == ask("--ask=What is it?") == "What is it?"


def test_the_shape_of_an_asked_tree_follows_its_leaves():
    shape = lambda *argv: (lambda c: (c.num_generations, c.num_initial))(eval.read_flags(["--ask", *argv]))
    assert shape() == (1, 1) and shape("--num_generations", "8") == (8, 4) and shape("--num-generations=5") == (5, 3)
    assert shape("--num_generations", "8", "--num_initial", "0") == (8, 0)


HELP = {"train": "replace trees without variance (DAPO)", "eval": "trajectories for each question"}  # of own fields


def has_help(printed, command):
    words = " ".join(printed.replace("│", " ").split())
    return HELP[command] in words and "new paths at a branch" in words


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_the_comments_of_the_fields(command, capsys):
    with pytest.raises(SystemExit) as stop:
        COMMANDS[command](["--model", "Qwen2.5-1.5B", "--help"])
    printed = capsys.readouterr()
    assert stop.value.code == 0 and printed.err == "" and has_help(printed.out, command)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["eval", "train"])
def test_a_profiler_sees_the_same_help(command):
    """Guards: comments that are looked for in the file that was started, which is then the profiler's."""
    argv = [sys.executable, "-m", "cProfile", f"{command}.py", "--help"]
    result = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0 and result.stderr == "" and has_help(result.stdout, command)


def a_run(folder, *argv, size="tiny"):
    """A folder with the settings of a run, and a checkpoint."""
    config = flags("--output_dir", str(folder), *argv)
    (folder / "checkpoints/step_000003").mkdir(parents=True)
    torch.save(dict.fromkeys(runs.STATE, 0), folder / "checkpoints/step_000003/state.pt")
    (folder / "metrics.jsonl").touch()
    runs.write_about(folder, config, size)
    return config


def test_run_json_is_the_record(tmp_path):
    config = a_run(tmp_path, "--algo", "dapo", "--seed", "5")
    about = json.loads((tmp_path / "run.json").read_text())
    assert about["settings"] == asdict(config) and about["size"] == "tiny" and "torch" in about["versions"]
    assert type(config)(**about["settings"]) == config


@pytest.mark.parametrize("algo", train.METHODS)
def test_who_goes_on_from_a_run_inherits_its_model_and_not_its_method(tmp_path, algo):
    """Guards: ARPO from a GRPO run that never forks, and a model that is cut off at other lengths than it knew."""
    own = "--max_completion_length 300 --max_turn_tokens 40 --max_result_tokens 90 --max_tool_calls 4 --top_k 2"
    own = f"{own} --window_chars 200 --snippet_chars 150 --lora_r 4 --token_budget 700".split()
    other = "--learning_rate 0.1 --seed 3 --max_steps 5 --kl_coef 0.5 --temperature 0.5 --data gsm8k --overwrite"
    before = a_run(tmp_path, "--algo", algo, *own, *other.split())
    after = flags("--model", str(tmp_path), "--algo", "arpo")
    assert after == replace(flags(*own), model=str(tmp_path), output_dir=after.output_dir)  # ARPO's defaults else
    assert {name: getattr(after, name) for name in OF_THE_MODEL} == {n: getattr(before, n) for n in OF_THE_MODEL}
    method = "num_initial", "score", "epsilon_high", "dynamic_sampling", "overlong_buffer", "advantage"
    fresh = flags()
    assert all(getattr(after, name) == getattr(fresh, name) for name in (*method, "loss_type"))
    assert after.output_dir == f"runs/{tmp_path.name}-arpo-0"
    judged = eval.read_flags(["--model", str(tmp_path)])
    assert (judged.max_turn_tokens, judged.window_chars, judged.num_generations) == (40, 200, 1)
    assert flags("--model", str(tmp_path), "--window_chars", "60").window_chars == 60  # flags win


def test_a_real_models_run_has_had_its_cold_start(tmp_path):
    config = a_run(tmp_path, "--model", "Qwen2.5-1.5B", "--max_turn_tokens", "300", size="real")
    assert config.cold_start and config.gradient_checkpointing
    after = flags("--model", str(tmp_path))
    assert not after.cold_start and after.gradient_checkpointing and after.max_turn_tokens == 300
    assert after.max_steps == config.max_steps and after.lora_r == 16 and after.num_generations == 16


def test_a_resumed_run_brings_its_settings_and_tells_which_flags_differ(tmp_path, capsys):
    """Guards: a run that goes on with other defaults than it began with, or with another flag that nobody sees."""
    before = a_run(tmp_path, "--algo", "dapo", "--max_steps", "7", "--num_generations", "6")
    place = dict(resume=str(tmp_path / "checkpoints/step_000003"), output_dir=str(tmp_path))
    assert flags("--resume", str(tmp_path)) == replace(before, **place)
    assert flags("--resume", "auto", "--output_dir", str(tmp_path)) == replace(before, **place)
    assert flags("--resume", str(tmp_path), "--max_steps", "7").max_steps == 7
    assert capsys.readouterr().out == ""
    changed = flags("--resume", str(tmp_path), "--learning_rate", "0.1", "--max_steps", "9")
    assert changed == replace(before, learning_rate=0.1, max_steps=9, **place)
    told = capsys.readouterr().out.splitlines()
    assert told == [
        "resumed with another learning_rate: 0.0005 before, 0.1 now",
        "resumed with another max_steps: 7 before, 9 now",
    ]
    with pytest.raises(ValueError, match="num_initial"):
        flags("--resume", str(tmp_path), "--num_initial", "7")


def test_auto_begins_where_there_is_nothing_to_resume(tmp_path):
    config = flags("--resume", "auto", "--output_dir", str(tmp_path / "none"), "--seed", "4")
    assert config.resume == "auto" and config.seed == 4
    (tmp_path / "checkpoints/step_000001").mkdir(parents=True)  # one that was never complete
    assert flags("--resume", "auto", "--output_dir", str(tmp_path)).resume == "auto"
    with pytest.raises(ValueError, match="expected a run's folder with checkpoints, found none in it"):
        flags("--resume", str(tmp_path))


def test_a_control_of_version_0_1_stays_a_control():
    """Guards: a resumed run of the control that goes on as the method, since its flag is not known any more."""
    assert [known(train.TrainConfig, {"shuffle_entropy": old})["score"] for old in (True, False)] == ["lot", "entropy"]


def test_a_run_of_version_0_1_goes_on_with_the_same_loss(tmp_path):
    """Guards: its names, taken as they are, would mean another denominator, and no KL at all."""
    a_run(tmp_path)
    about = json.loads((tmp_path / "run.json").read_text())
    del about["settings"]["kl_coef"], about["size"]
    about["settings"] |= {"loss_type": "dapo", "beta": 0.25, "wave_quorum": 1.0}
    (tmp_path / "run.json").write_text(json.dumps(about))
    config = flags("--resume", str(tmp_path))
    assert (config.loss_type, config.kl_coef) == ("token_mean", 0.25)
    assert flags("--model", str(tmp_path)).max_turn_tokens == 64  # a model of the built-in one's size


@pytest.mark.parametrize(
    "encoding, shown",
    [("ascii", rb"\u2442 \xe9"), ("cp1252", rb"\u2442 " + "é".encode("cp1252")), ("utf-8", "⑂ é".encode())],
)
def test_any_console_shows_a_tree(monkeypatch, encoding, shown):
    """Guards: UnicodeEncodeError in the middle of a run, for want of a sign."""
    console = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", console)
    with one_line_errors("x.py"):
        print("⑂ é", flush=True)
    assert sys.stdout is console and console.buffer.getvalue().strip() == shown


def test_a_reader_that_has_gone_ends_nothing(monkeypatch):
    """Guards: `train.py | head`, whose run ended, table and plots unwritten, when head had seen enough."""
    reader, writer = os.pipe()
    os.close(reader)
    gone, done = open(writer, "w", buffering=1), []
    monkeypatch.setattr(sys, "stdout", gone)
    with one_line_errors("x.py"):
        print("a line")
        print("another", flush=True)
        done.append("the table is written")
    assert done
    with contextlib.suppress(BrokenPipeError):
        gone.close()


def test_a_record_is_handed_on_as_it_is():
    """One that has all the fields of another stands in for it."""
    config = flags("--num_generations", "6", "--num_initial", "2")
    for record in (RolloutConfig, UpdateConfig):
        assert isinstance(config, record)
    with pytest.raises(ValueError, match="num_initial"):
        RolloutConfig(num_generations=2)
