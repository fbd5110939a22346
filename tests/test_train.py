"""The commands, as a user runs them: errors, determinism, counts, and a run's folder."""

import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, Qwen2ForCausalLM

import arpo
import eval
import tools
import train
from arpo import Batch, Policy, token_logprobs
from data import runs
from data.alarms import UNCHANGED
from data.format import ToolCall
from data.metrics import told_of_forks
from data.models import TINY, model_defaults, pick_dtype
from data.optimizer import learning_rate
from data.pages import read_page
from data.results import Row, read_results
from data.statistics import pass_at_k, wilson
from sandbox import PythonSandbox

ROOT = Path(__file__).parent.parent
QUICK = "--questions_per_step 3 --num_generations 4 --num_initial 2 --eval_questions 4 --test_questions 6 --threads 1"


@pytest.fixture(scope="module")
def run():
    """Runs a command's main in this process, with one sandbox for all of them; returns what it printed."""
    sandbox = PythonSandbox(workers=1)

    def call(main, *args, table=True):
        program = {train.main: "train.py", eval.main: "eval.py"}[main]
        out = io.StringIO()
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
            patch.setattr(sys, "argv", [program, *args])
            for module in (train, eval):
                patch.setattr(module, "make_sandbox", lambda config: sandbox)
            if not table:  # the evaluation and the plots at a run's end take longer than a step
                patch.setattr(train, "judge", lambda name, *_, **__: {name: Row(name, "", 0.0, 1.0, 0, [])})
                patch.setattr(train, "judge_expert", lambda *_: {})
                patch.setattr(train, "report", lambda rows, *_: " ".join(rows))
                patch.setattr(runs, "plot_run", lambda folder: [])
            main()
        return out.getvalue()

    yield call
    sandbox.close()


def bad_files(folder):
    (folder / "empty.jsonl").write_text("")
    (folder / "broken.jsonl").write_text('{"question": "a", "answer": "b"}\n{"question": "a", "ans')
    (folder / "file").write_text("")


@pytest.mark.parametrize(
    "args, told",
    [
        ("--model no/such-model", "cannot load the model 'no/such-model'"),
        ("--branch_rule dice", "--branch_rule: expected one of 'threshold', 'coin', 'best', found 'dice'"),
        ("--no_such_flag 1", "expected flags and their values (--help lists them), found --no_such_flag, 1"),
        ("--max_step 1", "(perhaps --max_steps?)"),
        ("--num_gen 1", "found --num_gen, 1"),  # nothing is guessed from a beginning
        ("stray", "(--help lists them), found stray"),
        ("--output_dir {}/x --max_steps", "--max_steps: expected a value, found "),
        ("--num_generations 4 --num-initial 5", "num_initial (N) must be from 1 to num_generations (M = 4), "),
        ("--max_steps x", "--max_steps: expected a whole number, found 'x'"),
        ("--max_steps 1.5", "--max_steps: expected a whole number, found '1.5'"),
        ("--data {}/empty.jsonl", "empty.jsonl: expected questions, found no questions in this file"),
        ("--data {}/broken.jsonl", "broken.jsonl, line 2: "),
        ("--data {}/absent.jsonl", "absent.jsonl"),
        ("--output_dir {}/file/run", "file"),
        ("--resume {}/absent", "expected a run's folder with checkpoints, found none in it"),
        ("--max_steps 0", "--max_steps: expected at least 1, found 0"),
        ("--temperature x", "--temperature: expected a number, found 'x'"),
        ("--temperature -1", "--temperature: expected at least 0, found -1.0"),
        ("--num_generations 1 --num_initial 1", "--num_generations: expected at least 2"),
        ("--num_minibatches 13", "--num_minibatches: expected at most --questions_per_step 12, found 13"),
        ("--loss_type ppo", "--loss_type: expected one of 'token_mean', 'sequence_mean', 'constant', found 'ppo'"),
        ("--kl_coef -1", "--kl_coef: expected at least 0, found -1.0"),
        ("--reader http://127.0.0.1:9 --reader_model x", "--reader http://127.0.0.1:9 --reader_model 'x': "),
        ("--tool_limits search=x", '--tool_limits: expected such as "search=3,python=5"'),
        ("--tool_limits knife=1", "with python, search, browse"),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys, args, told):
    bad_files(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # do not wait for a network
    output = [] if "output_dir" in args else ["--output_dir", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", ["train.py", *args.format(tmp_path).split(), *output])
    with pytest.raises(SystemExit) as stop:
        train.main()
    error = capsys.readouterr().err
    assert stop.value.code == 2 and told in error and error.startswith("train.py: error: ")
    assert error.count("\n") == 1


def test_flags_over_method_over_model(monkeypatch, capsys):
    flags = lambda *argv: train.read_flags(list(argv))
    assert flags().lora_r == 0 and flags("--model", "Qwen2.5-1.5B").lora_r == 16
    grpo = flags("--algo", "grpo", "--num-generations", "6")
    assert (grpo.num_initial, grpo.num_generations) == (0, 6)  # 0 is all of them
    dapo = flags("--algo", "dapo", "--epsilon-high", "0.4")
    assert (dapo.epsilon, dapo.epsilon_high, dapo.dynamic_sampling) == (0.2, 0.4, True)
    assert flags("--algo", "random").score == "lot" and flags().score == "entropy"
    assert flags("--algo", "reinforce++").advantage == "batch_tokens"
    assert flags("--algo", "dr_grpo").loss_type == "constant"
    assert flags("--sft_data", "own.jsonl").cold_start and not flags().cold_start
    assert flags("--data", "own.jsonl").output_dir == "runs/tiny-own-jsonl-arpo-0"
    places = [flags("--data", data).place_of_search for data in ("world", "q.jsonl", "q.jsonl=0.3,world=0.7")]
    assert places == ["world", "none", "world"]
    goes_to = flags("--preset", "deep-search").output_dir
    monkeypatch.setattr(runs, "find_checkpoint", lambda resume, output_dir, default: print(output_dir or default))
    flags("--preset", "deep-search", "--resume", "auto")
    assert capsys.readouterr().out.strip() == goes_to == "runs/tiny-arpo-deepsearch-arpo-0"  # it is looked for there
    deep = flags("--preset", "deep-search", "--model", "Qwen3-8B", "--top_k", "5")
    assert (deep.num_generations, deep.num_initial, deep.max_tool_calls, deep.top_k) == (16, 8, 6, 5)
    assert flags("--preset", "deep-search-14b").num_initial == 6 and flags("--preset", "sft").stage == "sft"
    assert flags("--preset", "deep-search", "--algo", "grpo").num_initial == 0
    assert flags("--algo", "grpo", "--seed", "3").output_dir == "runs/tiny-grpo-3"


def test_weights_that_are_trained_stay_in_fp32(monkeypatch):
    """Guards: the built-in model in bf16 on a GPU, where it would not learn, and a 7B model judged in fp32."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    tiny, big = train.read_flags([]), train.read_flags(["--model", "Qwen2.5-7B"])
    assert pick_dtype("cuda", tiny.lora_r) == torch.float32 == pick_dtype("cpu", big.lora_r)
    assert pick_dtype("cuda", big.lora_r) == torch.bfloat16
    assert pick_dtype("cuda") == torch.bfloat16  # `eval.py` trains nothing, and gives no rank


def test_learning_rate_warms_up_and_falls():
    rates = [learning_rate(step, 20, 1.0, 4, "cosine") for step in range(1, 21)]
    assert (
        rates[:4] == [0.25, 0.5, 0.75, 1.0] and rates[-1] == pytest.approx(0.1) and rates[4:] == sorted(rates[4:])[::-1]
    )
    assert learning_rate(15, 20, 1.0, 4, "constant") == 1.0


def test_statistics_worked_by_hand():
    assert pass_at_k(2, 4, 1) == pytest.approx(0.5) and pass_at_k(2, 4, 2) == pytest.approx(5 / 6)
    assert pass_at_k(0, 4, 4) == 0 and pass_at_k(1, 4, 4) == 1
    low, high = wilson(50, 100)
    assert (low, high) == (pytest.approx(0.4038, abs=1e-3), pytest.approx(0.5962, abs=1e-3))


def metrics_of(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row in rows[1:]:
        for name in ("seconds_rollout", "seconds_update", "tokens_per_second"):
            del row[name]
    return rows


@pytest.fixture(scope="module")
def two_runs(run, tmp_path_factory):
    """One run without a break, and one that Ctrl-C stops in step 1 and that is resumed."""
    whole, broken = (tmp_path_factory.mktemp(name) for name in ("whole", "broken"))
    settings = f"--max_steps 2 --eval_steps 2 --save_steps 1 {QUICK}"
    told = run(train.main, *f"--output_dir {whole} {settings}".split(), table=False)
    with pytest.MonkeyPatch.context() as patch:
        keep = runs.Run.keep_tree  # called in step 1
        patch.setattr(runs.Run, "keep_tree", lambda *rest: (keep(*rest), os.kill(os.getpid(), signal.SIGINT)))
        with pytest.raises(SystemExit, match="to go on: python train.py --resume"):
            run(train.main, *f"--output_dir {broken} {settings}".split())
    with (broken / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"step": 2, "reward": ')  # as if the next step had been killed while it wrote
    out = run(train.main, "--resume", str(broken))
    return (whole, broken), out, told


def test_a_stopped_and_resumed_run_equals_an_unbroken_one(two_runs):
    """Guards randomness that depends on what ran before, a lost optimizer state, and steps recorded twice."""
    first, second = map(metrics_of, two_runs[0])
    assert [row["step"] for row in first] == [0, 1, 2] and first == second
    states = [torch.load(folder / "checkpoints/step_000002/state.pt")["weights"] for folder in two_runs[0]]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_resumed_runs_totals_are_those_of_the_whole_run(two_runs):
    """Guards: time, tokens and tool calls of the part since the break alone, told as if they were the run's."""
    folders, *told = two_runs
    tokens = [re.search("^tokens: .*", out, re.M)[0] for out in told]
    calls = [re.search("^tool calls in training\n(.*?)\n\n", out, re.M | re.S)[1] for out in told]
    assert tokens[0] == tokens[1] and "python" in calls[0]
    assert re.sub("; .*", "", calls[0]) == re.sub("; .*", "", calls[1])  # but for the seconds of a call
    states = [torch.load(folder / "checkpoints/step_000002/state.pt", weights_only=True) for folder in folders]
    assert states[0]["calls"] == states[1]["calls"] and sum(states[0]["calls"].values()) > 0
    for folder, state in zip(folders, states):
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()][1:]
        assert state["totals"]["seconds"] >= sum(row["seconds_rollout"] + row["seconds_update"] for row in rows)
        assert state["totals"]["changed"] == 2 and state["call_seconds"].keys() == {tool for tool, _ in state["calls"]}
    assert not any(UNCHANGED in out for out in told)


def test_a_run_that_changed_no_weight_says_so_at_its_end(run, tmp_path):
    """Guards: a model that was never trained, handed out as a trained one."""
    settings = f"--learning_rate 0 --max_steps 1 --output_dir {tmp_path} {QUICK}".split()
    out = run(train.main, *settings, table=False)
    assert UNCHANGED in out and "step 1: the update changed no weight: the learning rate of 0 is too small" in out


def test_an_unfinished_run_is_not_overwritten(run, two_runs, tmp_path, capsys):
    shutil.copytree(two_runs[0][0] / "checkpoints", tmp_path / "checkpoints")
    shutil.copy(two_runs[0][0] / "run.json", tmp_path)
    with pytest.raises(SystemExit):
        run(train.main, "--output_dir", str(tmp_path))
    assert "found an unfinished run: --resume auto" in capsys.readouterr().err
    (tmp_path / "table.txt").write_text("")
    with pytest.raises(SystemExit):
        run(train.main, "--output_dir", str(tmp_path))
    assert "found a finished run: --overwrite replaces it" in capsys.readouterr().err
    run(train.main, *f"--output_dir {tmp_path} --overwrite --max_steps 1 {QUICK}".split(), table=False)
    assert [folder.name for folder in (tmp_path / "checkpoints").iterdir()] == ["step_000001"]


def test_a_full_disk_costs_no_checkpoint(tmp_path):
    """A checkpoint gets its name when it is complete, and older ones go only then."""
    run = runs.Run(train.read_flags(["--output_dir", str(tmp_path), "--save_total_limit", "1"]), "tiny")
    policy = Policy.load(str(TINY))
    run.checkpoint(policy.save, {"step": 1})

    def full(*_):
        raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "save", full)
        run.checkpoint(policy.save, {"step": 2})
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step_000001"]
    run.checkpoint(policy.save, {"step": 3})
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step_000003"]


def test_a_full_disk_costs_no_best_model(tmp_path):
    """The best model is replaced when the better one is complete; what is worse is not written."""
    run, models = runs.Run(train.read_flags(["--output_dir", str(tmp_path)]), "tiny"), []

    def save(name):
        def write(folder):
            models.append(name)
            (folder / "model").write_text(name)
            if name == "too big":
                raise OSError(28, "No space left on device")

        return write

    for step, (name, accuracy) in enumerate((("first", 0.25), ("worse", 0.2), ("as good", 0.25), ("too big", 0.5))):
        run.keep_if_best(save(name), accuracy, step)
        assert run.best_step == 0
    assert models == ["first", "too big"] and (tmp_path / "model").read_text() == "first" and run.best == 0.25
    run.keep_if_best(save("better"), 0.4, 9)
    assert (tmp_path / "model").read_text() == "better" and not (tmp_path / "best").exists()


def test_a_gradient_that_is_not_finite_is_skipped_and_ends_a_run_in_the_end(run, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arpo, "k3", lambda target, own: (target - own) * float("nan"))
        with pytest.raises(SystemExit, match="step 3: the gradient was not finite in 3 steps"):
            run(train.main, *f"--max_steps 5 --kl_coef 0.1 --output_dir {tmp_path} {QUICK}".split())
    rows = metrics_of(tmp_path)
    assert [row["skipped"] for row in rows[1:]] == [1, 1, 1]


SOURCES = "data/metrics.py", "train.py", "arpo.py", "data/optimizer.py"


def test_every_metric_is_defined(two_runs):
    """Guards: a number in metrics.jsonl whose meaning stands nowhere. It stands beside its entry, or right above."""
    lines = [line for name in SOURCES for line in ["", *(ROOT / name).read_text().splitlines()]]
    defined = set()
    for above, line in zip(lines, lines[1:]):
        if "  # " in line or above.strip().startswith("# "):
            code = line.split("  # ")[0]
            defined |= set(re.findall(r'"(\w+)"(?=\]? ?[:=])', code)) | set(re.findall(r"\b(\w+)=", code))
    rows = [json.loads(line) for line in (two_runs[0][0] / "metrics.jsonl").read_text().splitlines()]
    found = set().union(*rows) | {"kl_reference"}  # which is there with --kl_coef
    assert found - defined == set()


def test_counts_of_a_real_run(two_runs):
    """Prompt and result tokens are fed once; the gradient pass computes unique tokens once; forks feed one again."""
    for row in metrics_of(two_runs[0][0])[1:]:
        unique = row["prefilled"] + row["decoded"]
        if row["no_variance"] == 0:
            assert row["train_tokens"] == unique and row["trained"] == row["decoded"]
        assert row["train_tokens"] <= unique < row["leaf_tokens"]
        assert row["refed"] >= 12  # once for each leaf


def test_a_run_says_where_its_forks_went():
    """Three steps of 10, 0 and 30 forks. Guards: a mean over steps that forked unequally often."""
    step = lambda forks, wave, unlike: {"forks": forks, "decisions": 50, "fork_wave": wave, "forks_differ": unlike}
    told = told_of_forks([{"step": 0}, step(10, 1.0, 0.0), step(0, 0.0, 0.0), step(30, 2.0, 0.5)])
    assert told.startswith("\n\nforks: 40 new paths at 100 results, on average in wave 1.8") and "37.5%" in told
    assert told_of_forks([{"step": 0}, step(0, 0.0, 0.0)]) == ""  # GRPO


def test_a_runs_folder_and_table(run, two_runs):
    folder, out = two_runs[0][1], two_runs[1]
    for text in (
        "start, greedy",
        "arpo, last step, greedy",
        "expert (ceiling)",
        "6 held-out",
        "prefilled",
        "new paths at",
    ):
        assert text in out
    plots = {path.name for path in (folder / "plots").iterdir()}
    assert plots == {"reward.png", "tool_calls.png", "entropy.png", "branching.png", "forks.png"}
    assert "leaf 0" in (folder / "trees" / "step_0001.txt").read_text()
    pages = [page["file"] for page in read_page(folder / "index.html")["pages"]]
    assert pages == [f"trees/{name}.html" for name in (*(f"question_{n}" for n in range(1, 5)), "step_0001")]
    titles = [tree["title"] for tree in read_page(folder / pages[0])["trees"]]
    assert titles == ["before training", "after step 2"]
    assert not {"overwrite", "resume", "data", "max_rows", "preset"} & set(model_defaults(str(folder)))
    about = json.loads((folder / "run.json").read_text())
    assert about["settings"]["num_generations"] == 4 and "torch" in about["versions"]
    assert isinstance(AutoModelForCausalLM.from_pretrained(folder), Qwen2ForCausalLM)


def test_an_evaluation_leaves_its_results_and_goes_on(two_runs, run, tmp_path):
    """Guards: an evaluation that is asked anew what it has answered; k above n; a run of another method in its name."""
    folder = two_runs[0][1]
    flags = f"--model {folder} --data world --count 6 --samples 3 --trajectories --output_dir {tmp_path}".split()
    told = run(eval.main, *flags)
    assert "expert (ceiling)" in told and "6 questions of world" in told and "pass@5" not in told
    assert "sampled: 3 answers to each question, T 0.6, top-p 0.95 as in the paper" in told and "pass^3" in told
    lines = (tmp_path / "answers.jsonl").read_text().splitlines()
    turns = json.loads(lines[1])["attempts"][0]["turns"]
    assert len(lines) == 1 + 2 * 6 and [turn["role"] for turn in turns[:2]] == ["user", "assistant"]
    found = read_results(tmp_path)
    assert {row.method for row in found.rows.values()} == {"arpo", "expert"} and found.settings["samples"] == 3
    with pytest.MonkeyPatch.context() as patch:
        (tmp_path / "answers.jsonl").write_text("\n".join(lines[:4]) + "\n" + lines[4][:40])
        patch.setattr(eval, "evaluate", lambda *rest, own=eval.evaluate: asked.extend(rest[1].questions) or own(*rest))
        asked: list = []
        again = run(eval.main, *flags)
    assert len(asked) == 12 - 3 and again.split("tool calls")[0] == told.split("tool calls")[0]
    assert [r.attempts[0].answer for r in read_results(tmp_path).rows[f"{folder.name}, greedy"].results] == [
        r.attempts[0].answer for r in found.rows[f"{folder.name}, greedy"].results
    ]
    of_the_run = read_results(folder)
    assert of_the_run.curve["step"] == [0, 1, 2] and of_the_run.curve["calls"][0] == 0 < of_the_run.curve["calls"][2]
    rows = [row for name, row in of_the_run.rows.items() if name.startswith("start")]
    assert [(row.method, row.backbone, row.decoding) for row in rows] == [
        ("start", "tiny", "greedy"), ("start", "tiny", "T 1, top-p 1"),
    ]  # fmt: skip


def test_a_short_run_that_raises_nothing_says_so(two_runs):
    folder, out = two_runs[0][1], two_runs[1]
    state = torch.load(max(folder.glob("checkpoints/*/state.pt")), weights_only=True)
    assert f"of step {state['best_step']}, is in" in out and "arpo, last step, greedy" in out
    assert ("gain over the start" in out) == (state["best_step"] > 0)


def test_a_tree_and_an_answer_in_the_terminal_and_as_a_page(run, tmp_path):
    page = str(tmp_path / "tree.html")
    drawn = run(eval.main, "--ask", "--num_generations", "4", "--num_initial", "2", "--html", page)
    for text in ("leaf 3", "reward", "advantage", "forks (⑂) where P = 0.5", "read again at forks"):
        assert text in drawn
    assert len(read_page(Path(page))["trees"][0]["leaves"]) == 4
    answered = run(eval.main, "--ask", "What is 31 times 7 plus 12?", "--html", page)
    assert read_page(Path(page))["trees"][0]["leaves"][0]["advantage"] == 0
    assert "answer: " in answered and "leaf" not in answered
    assert answered == run(eval.main, "--ask", "What is 31 times 7 plus 12?", "--temperature", "0.7")  # the likeliest


def test_the_built_in_model_says_where_it_is_at_home(run, capsys):
    """Guards: a wrong answer to a question of everyday, as if the model had understood it."""
    run(eval.main, "--ask", "What is the capital of France?")
    told = capsys.readouterr().err
    assert "has never seen capital, France: it knows questions about its own world alone" in told
    run(eval.main, "--ask", "Who is the mayor of the port of Silbrook?")
    assert "has never seen" not in capsys.readouterr().err
    elsewhere = train.describe(train.read_flags(["--data", "own.jsonl"]))
    assert "the built-in model knows the words of its own world alone" in elsewhere
    assert "of its own world alone" not in train.describe(train.read_flags([]))


def test_eval_is_a_command_of_its_own():
    command = [sys.executable, "eval.py", "--ask", "--num_generations", "2", "--num_initial", "3"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2 and result.stderr.startswith("eval.py: error: num_initial")
    assert result.stderr.count("\n") == 1


def test_dry_run_says_what_would_be_done(run, tmp_path):
    out = run(train.main, "--dry_run", "--output_dir", str(tmp_path / "x"))
    assert "12 questions" in out and "8 leaves each" in out and not (tmp_path / "x").exists()


FEW = {"grpo"}  # the others' advantages have hand-worked tests of their own


@pytest.mark.parametrize(
    "algo",
    [pytest.param(a, marks=pytest.mark.slow if a not in FEW else ()) for a in train.METHODS if a != "arpo"],
)
def test_every_method_runs_a_step(run, tmp_path, algo):
    settings = QUICK.replace("--num_initial 2", "")  # the method decides
    out = run(
        train.main,
        *f"--algo {algo} --max_steps 1 --output_dir {tmp_path} {settings}".split(),
        table=False,
    )
    _, row = metrics_of(tmp_path)
    assert row["grad_norm"] >= 0 and "start" in out and f"{algo}, last step" in out
    flat = train.METHODS[algo].get("num_initial") == 0
    settings = json.loads((tmp_path / "run.json").read_text())["settings"]
    assert settings["num_initial"] == (0 if flat else 4) and (row["forks"] == row["top_ups"] == 0 or not flat)


def test_lora_and_reload(tmp_path):
    """The adapter's own base is the reference, and a saved adapter brings its base along."""
    policy = Policy.load(str(TINY), lora_r=4)
    segment, sees, ones = torch.zeros(4, dtype=int), torch.ones(1, 1, dtype=bool), torch.ones(3, 1)
    ids, positions, before, targets = map(torch.tensor, ([5, 40, 41, 42], [0, 1, 2, 3], [0, 1, 2], [40, 41, 42]))
    own = ones, ones, torch.zeros(3), torch.zeros(3, dtype=int), []
    batch = Batch(ids, positions, segment, sees, before, targets, *own)
    before = token_logprobs(policy.model, batch).detach()
    for name, parameter in policy.model.named_parameters():
        assert parameter.requires_grad == ("lora" in name)
        if "lora_B" in name:
            parameter.data.normal_(0, 0.1)
    after = token_logprobs(policy.model, batch).detach()
    assert torch.equal(policy.reference_logprobs(batch, 1.0), before) and not torch.allclose(after, before)
    policy.save(tmp_path)
    again = Policy.load(str(tmp_path))
    assert torch.allclose(token_logprobs(again.model, batch), after, atol=1e-6)
    for name, parameter in again.model.named_parameters():
        assert parameter.requires_grad == ("lora" in name and "reference" not in name)
        if "lora_B.default" in name:
            parameter.data.normal_(0, 0.1)
    assert torch.allclose(again.reference_logprobs(batch, 1.0), after, atol=1e-6)  # the adapter it came with
    own = token_logprobs(again.model, batch)
    assert not torch.allclose(own, after)
    with pytest.raises(KeyboardInterrupt), again.frozen():  # and what is trained is the adapter again
        raise KeyboardInterrupt
    assert torch.equal(token_logprobs(again.model, batch), own)


def test_pages_are_read_by_the_base_model_and_never_while_rows_are_sampled(run, tmp_path):
    """Guards: a reader that learns along with the policy, an adapter that stays off, and two users at once."""
    policy = Policy.load(str(TINY), lora_r=4)
    first = policy.read("The town Baham has 39 coins.", max_tokens=12)
    for name, parameter in policy.model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.5)
    ids = torch.tensor([[5, 40, 41, 42]])
    before = policy.model(ids).logits
    with policy.frozen():
        assert policy.read("The town Baham has 39 coins.", max_tokens=12) == first
    assert torch.equal(policy.model(ids).logits, before)
    with ThreadPoolExecutor(1) as pool, policy.sampler.lock:
        reading = pool.submit(policy.read, "x", 2)
        assert not wait([reading], timeout=0.3).done
    assert reading.result() is not None
    read = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Policy, "read", lambda self, prompt: read.append(prompt) or "a reading")
        page = "What is the height of Baham?"
        patch.setattr(tools, "parse_call", lambda turn: ToolCall("browse", "town/39 height"))
        out = run(eval.main, "--ask", page, "--reader", "base")
    assert "a reading" in out and len(read) == 1 and "about: height" in read[0]


def test_a_merged_run_is_a_plain_model(run, tmp_path):
    policy = Policy.load(str(TINY), lora_r=4)
    for name, parameter in policy.model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.1)
    policy.save(tmp_path / "run")
    run(eval.main, "--model", str(tmp_path / "run"), "--merge", str(tmp_path / "merged"))
    ids = torch.tensor([[5, 40, 41, 42, 300]])
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    base = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32), tmp_path / "run")
    with torch.no_grad():
        own = policy.model(ids).logits
        assert torch.equal(base(ids).logits, own)  # the run's folder is a peft adapter like any other
        assert torch.allclose(merged(ids).logits, own, atol=1e-4)


@pytest.mark.parametrize("bits", ["", "--load_in_4bit"])
def test_lora_runs_two_steps(run, tmp_path, bits):
    """Guards, in 4-bit: weights that some processors repack for sampling, and that then have no gradient."""
    run(train.main, *f"--max_steps 2 --lora_r 4 {bits} --output_dir {tmp_path} {QUICK}".split(), table=False)
    rows = metrics_of(tmp_path)[1:]
    assert sum(row["grad_norm"] for row in rows) > 0 and all(row["skipped"] == 0 for row in rows)


def test_a_step_without_holes_still_reports_them(run, tmp_path):
    """Guards sums that leave out what is zero: a step of one short row, or without a gradient, once lacked them."""
    settings = "--questions_per_step 1 --num_generations 2 --num_initial 2 --max_tool_calls 0 --max_turn_tokens 1"
    more = "--max_steps 1 --eval_questions 1 --test_questions 1 --threads 1"
    run(train.main, *f"{settings} {more} --output_dir {tmp_path}".split(), table=False)
    _, row = metrics_of(tmp_path)
    assert row["holes"] == 0 and row["decoded"] == 2 and row["train_tokens"] == row["kl_sampler"] == 0
