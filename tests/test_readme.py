"""What README and docs say of the project's size, order, flags, names and outputs is true."""

import contextlib
import io
import re
import subprocess
import sys
from dataclasses import fields

import pytest
import test_house
from test_house import ROOT

import eval as evaluation
from data.models import SIZES
from exercises.__main__ import build_parser
from experiments.run import RunnerConfig
from train import METHODS, TrainConfig

PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *ROOT.glob("docs/*.md"))
}
README, CODE = PAGES["README.md"], PAGES["docs/code.md"]
FILES = dict(re.findall(r"^\| `([\w/]+\.py)` \| (\d+) \|", CODE, re.MULTILINE))  # from the ground up


def module(file: str) -> str:
    return file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def test_line_counts():
    assert {module(file): int(count) for file, count in FILES.items()} == {
        name: test_house.lines(name) for name in test_house.TOWER
    }
    (together,) = re.findall(r"^\| together \| (\d+) \|", CODE, re.MULTILINE)
    assert int(together) == sum(map(int, FILES.values()))
    (core,) = re.findall(r"the algorithm in (\d+) lines of plain PyTorch", README)
    assert int(core) - 10 < test_house.lines_of_the_algorithm() <= int(core)


def test_each_file_imports_only_those_above_it():
    order, trees = list(map(module, FILES)), test_house.trees()
    for name, tree in trees.items():
        assert test_house.imports(tree) <= set(order[: order.index(name)]), name


@pytest.mark.parametrize("page", PAGES)
def test_every_flag_link_place_and_test_that_is_named_exists(page):
    text = PAGES[page]
    records = TrainConfig, evaluation.EvalConfig, RunnerConfig
    names = {field.name for record in records for field in fields(record)}
    others = {"no_deps", "nproc_per_node", "help"}  # of pip and torchrun, and everyone's
    (course,) = build_parser()._subparsers._group_actions
    own = [flag for command in course.choices.values() for flag in command._option_string_actions]
    others |= {flag.lstrip("-").replace("-", "_") for flag in own}
    named = {flag.replace("-", "_") for flag in re.findall(r"(?<![\w-])--([a-z][\w-]*)", text)}
    assert named - {f"{no}{name}" for name in names for no in ("", "no_")} - others == set()

    links = {link.partition("#")[0] for link in re.findall(r"\]\((?!http)([^)]+)\)", text)} - {""}
    assert [link for link in links if not (ROOT / page).parent.joinpath(link).exists()] == []

    for file, name in re.findall(r"`((?:\w+/)*\w+\.py):([A-Za-z_]+)", text):
        assert re.search(rf"^\s*(def|class) {name}\b|^{name}\b.*=", (ROOT / file).read_text(), re.MULTILINE), name
    for names, file in re.findall(r"`([A-Za-z_]+)` in `((?:\w+/)*\w+\.py)`", text):
        assert re.search(rf"^\s*(def|class) {names}\b|^{names}\b.*=", (ROOT / file).read_text(), re.MULTILINE), names

    tests = "".join(file.read_text() for file in ROOT.glob("tests/test_*.py"))
    assert [name for name in re.findall(r"`(test_\w+)`", text) if f"def {name}(" not in tests] == []


def test_every_page_is_linked_from_the_readme():
    assert [page for page in PAGES if page != "README.md" and f"({page})" not in README] == []


def test_methods_and_values_are_those_of_the_code():
    page = PAGES["docs/methods.md"]
    rows = re.findall(r"^\| (.*?) \| (`--\w+`.*?) \| (.*?) \| (.*?) \|.*\|$", page, re.MULTILINE)
    usual = {field.name: field.default for field in fields(TrainConfig)}
    for what, flags, tiny, real in rows:
        for place, flag in enumerate(re.findall(r"`--(\w+)`", flags)):
            for cell, size in ((tiny, "tiny"), (real, "real")):
                said = re.findall(r"\d[\d,]*(?:\.\d+)?(?:e-\d+)?(?!\w)", cell)[place]
                assert float(said.replace(",", "").rstrip(",")) == (usual | SIZES[size])[flag], (what, flag, size)
    assert len(rows) == 11
    listed = re.findall(
        r"^\| ((?:`[\w+-]+`(?:, )?)+) \| [^|]* \|$", page.split("| `--algo` |")[1].split("\n\n")[0], re.MULTILINE
    )
    assert set(re.findall(r"`([\w+-]+)`", " ".join(listed))) == set(METHODS)


def test_the_python_in_the_docs_prints_what_it_says():
    """Guards: a way to load a model that has stopped working."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGES["docs/runs.md"], re.DOTALL)
    expected = code.rstrip().rpartition("  # ")[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == expected, done.stderr[-500:]


def test_the_tree_in_the_docs_is_what_its_command_draws(monkeypatch):
    """Guards: a picture of a version that is no more. Entropies are compared as they are printed."""
    (command, drawn) = re.search(r"```\n\$ python eval.py (.*?)\n(.*?)```", PAGES["docs/runs.md"], re.DOTALL).groups()
    monkeypatch.setattr(sys, "argv", ["eval.py", *command.split()])
    with contextlib.redirect_stdout(io.StringIO()) as out:
        evaluation.main()
    assert out.getvalue().strip() == drawn.strip()
