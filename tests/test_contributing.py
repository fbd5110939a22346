"""What CONTRIBUTING.md says works: its code blocks, put where it says, each change one file and do what they should."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
ADDED = ("A tool", "A set of questions", "A method", "An advantage estimator")


def read(section: str) -> tuple[str, str, str]:
    """The file that a section names, the headline or the table that its block goes to, and the block."""
    (text,) = re.findall(rf"^## {section}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    (block,) = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    file, place = re.search(r"^In `(\S+)`.*?`(.+?)`", text, re.MULTILINE).groups()
    return file, place, block


def apply(section: str, project: Path) -> None:
    file, place, block = read(section)
    lines = (project / file).read_text(encoding="utf-8").splitlines(keepends=True)
    imports = re.findall(r"^(?:from|import) .*\n", block, re.MULTILINE)
    rest = block.removeprefix("".join(imports)).strip("\n") + "\n"
    if place.isupper():  # a table: at its end
        start = next(n for n, line in enumerate(lines) if line.startswith(f"{place} = {{"))
        lines.insert(lines.index("}\n", start), rest)
    else:
        (headline,) = (n for n, line in enumerate(lines) if re.fullmatch(rf"# -+ {place}\n", line))
        lines[headline:headline] = [rest, "\n\n"]
        last = max(n for n, line in enumerate(lines[:headline]) if line.startswith("from "))
        lines[last + 1 : last + 1] = imports
    (project / file).write_text("".join(lines), encoding="utf-8")


def copy_of_the_project(folder: Path, *sections: str) -> Path:
    shutil.copytree(ROOT / "data", folder / "data", ignore=shutil.ignore_patterns("__pycache__"))
    for file in ROOT.glob("*.py"):
        shutil.copy(file, folder)
    for section in sections:
        apply(section, folder)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*.py")}


def run(project: Path, *arguments: str, **environment: str) -> str:
    command, shown = [sys.executable, *arguments], {"cwd": project, "capture_output": True, "text": True}
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"} | environment, timeout=300, **shown)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("section", ADDED)
def test_a_block_is_short_and_changes_one_file(section, tmp_path):
    before = contents(copy_of_the_project(tmp_path))
    apply(section, tmp_path)
    after = contents(tmp_path)
    file, _, block = read(section)
    assert {name for name in before | after if before.get(name) != after.get(name)} == {file}
    assert len(block.splitlines()) < 30
    run(tmp_path, "-m", "ruff", "check", "--quiet", "--fix", "--config", str(ROOT / "pyproject.toml"), file)


# A model that has learned the tool from its own demonstrations calls it: the prompt names it, the probe tries it, its
# closing tag, here several tokens, ends a turn, the toolbox runs the call, and the whole trajectory has an answer.
USE_A_TOOL = """
from dataclasses import replace
from data.format import ToolCall, encode_prompt, parse_limits, system_prompt
from eval import open_policy, score_leaves
from train import read_flags, train_sft
import data.demonstrations, tools
from data import Question

flags = "--sft_worlds 1 --sft_each 4 --sft_steps 60 --sft_batch_tokens 300 --sft_learning_rate 2e-3 --threads 1"
config = read_flags([*flags.split(), "--allow_unsafe_python"])
sandbox, kind = tools.make_sandbox(config), tools.Weekday
assert kind.usage in system_prompt() and parse_limits("weekday=2") == {"weekday": 2}

box = tools.load_tools(config, "test", sandbox)
assert "weekday" in box.tools
assert box.submit(ToolCall("weekday", "1969-07-20")).result().text == "Sunday"
assert box.submit(ToolCall("weekday", "tomorrow")).result().outcome == "error"
kind.expected = "Monday"
try:
    tools.load_tools(config, "test", sandbox)
    raise SystemExit("a tool that does not work was not found")
except OSError as error:
    assert "weekday (Saturday)" in str(error), error
kind.expected = "Saturday"

policy = open_policy(config, 0)
of_world = lambda world: tools.tools_of_world(config, sandbox, world)
examples = data.demonstrations.load_demonstrations(policy.tokenizer, config, of_world)
assert len(examples) == 4 + len(kind.demonstrations)
asked = [kind.demonstrations[n][0] for n in range(2)]
shown = [e for e in examples if any(question in policy.tokenizer.decode(e[0]) for question in asked)]
assert len(shown) == 2 and "<weekday>2000-01-01</weekday><result>Saturday</result>" in "".join(
    policy.tokenizer.decode(ids) for ids, _ in shown
).replace("> ", ">")

train_sft(policy, shown, config)
greedy = replace(config, num_generations=1, num_initial=0, temperature=0.0)
prompts = [encode_prompt(policy.tokenizer, question) for question in asked]
for question, day, tree in zip(asked, ("Saturday", "Friday"), policy.grow(prompts, ["a", "b"], box, greedy)):
    call, answer = tree.nodes
    assert (call.stopped, call.result.outcome, call.result.text, answer.stopped) == ("call", "ok", day, "end")
    (score,) = score_leaves(tree, Question("q", question, (day,)), policy.tokenizer)
    assert (score.answer, score.accuracy, score.calls) == (day, 1.0, 1)
assert box.counts == {("weekday", "ok"): 3, ("weekday", "error"): 1}
"""


@pytest.mark.slow
def test_a_tool(tmp_path):
    run(copy_of_the_project(tmp_path, "A tool"), "-c", USE_A_TOOL)


FAKE_HUB = """
def load_dataset(hub, config, split):
    assert (hub, config) == ("google-research-datasets/nq_open", "nq_open"), (hub, config)
    size = {"validation": 3610, "train[:-500]": 20, "train[-500:]": 10}[split]
    return [{"question": f"question {n} of {split}?", "answer": [f"answer {n}", "another"]} for n in range(size)]
"""
USE_A_SET = """
from data.benchmarks import load_questions

first = load_questions("nqopen", "test", 3)[0]
assert (first.question, first.answers, first.metric) == ("question 0 of validation?", ("answer 0", "another"), "em")
sizes = [len(load_questions(f"google-research-datasets/nq_open", split)) for split in ("train", "dev", "all")]
assert sizes == [20, 10, 3610], sizes
"""


def test_a_set_of_questions(tmp_path):
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "datasets.py").write_text(FAKE_HUB)
    (tmp_path / "project").mkdir()
    project = copy_of_the_project(tmp_path / "project", "A set of questions")
    run(project, "-c", USE_A_SET, PYTHONPATH=str(tmp_path / "hub"))


USE_AN_ESTIMATOR = """
import torch
from advantage import ADVANTAGES

rewards = torch.tensor([[-1.0, 0.0, 1.0, 1.1], [0.1, 0.1, 0.1, 0.1], [0.0, 0.0, 0.0, 1.0]])
wanted = torch.tensor([[-1.5, -0.5, 0.5, 0.6], [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]])  # medians 0.5, 0.1, 0
found = ADVANTAGES["median"](rewards, None)
assert torch.allclose(found, wanted) and found[1].abs().max() == 0, found
"""


@pytest.mark.slow
def test_a_method_and_an_advantage_estimator(tmp_path):
    project = copy_of_the_project(tmp_path, *ADDED)  # they do not get in each other's way
    small = "--max_steps 1 --questions_per_step 2 --num_generations 4 --eval_questions 2 --test_questions 2 --threads 1"
    flags = ["--algo", "arpo-coin", "--advantage", "median", *small.split(), "--allow_unsafe_python"]
    train = "\nimport train\ntrain.main()"  # in the same process, since each import of torch takes seconds
    table = run(project, "-c", USE_AN_ESTIMATOR + train, *flags, "--output_dir", "out")
    settings = json.loads((tmp_path / "out" / "run.json").read_text())["settings"]
    assert (settings["branch_rule"], settings["advantage"], settings["num_initial"]) == ("coin", "median", 4)
    step = json.loads((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()[-1])
    assert step["step"] == 1 and step["trained"] > 0 and math.isfinite(step["loss"]) and step["grad_norm"] > 0
    assert "arpo-coin, last step, greedy" in table
