"""What the README says of the project's size, its order and its flags is true."""

import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import test_house

from eval import EvalConfig
from train import TrainConfig

README = (Path(__file__).parent.parent / "README.md").read_text()
FILES = dict(re.findall(r"^\| `([\w/]+\.py)` \| (\d+) \|", README, re.MULTILINE))  # from the ground up


def module(file: str) -> str:
    return file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def test_line_counts():
    assert {module(file): int(count) for file, count in FILES.items()} == {
        name: test_house.lines(name) for name in test_house.TOWER
    }
    (together,) = re.findall(r"^\| together \| (\d+) \|", README, re.MULTILINE)
    assert int(together) == sum(map(int, FILES.values()))
    (core,) = re.findall(r"the algorithm in (\d+) lines of plain PyTorch", README)
    assert int(core) - 10 < test_house.lines_of_the_algorithm() <= int(core)


def test_each_file_imports_only_those_above_it():
    order, trees = list(map(module, FILES)), test_house.trees()
    for name, tree in trees.items():
        assert test_house.imports(tree) <= set(order[: order.index(name)]), name


def test_every_flag_that_is_named_exists():
    names = {field.name for record in (TrainConfig, EvalConfig) for field in fields(record)}
    others = {"--no_deps", "--nproc_per_node", "--help"}  # of pip and torchrun, and everyone's
    named = {f"--{flag.replace('-', '_')}" for flag in re.findall(r"(?<![\w-])--([a-z][\w-]*)", README)}
    assert named - {f"--{no}{name}" for name in names for no in ("", "no_")} - others == set()


def test_the_python_in_the_readme_prints_what_it_says():
    """Guards: a way to load a model that has stopped working."""
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    expected = code.rstrip().rpartition("  # ")[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=test_house.ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == expected, done.stderr[-500:]
