"""How the house is built: which module stands on which, where tags are spelled, and how long things are."""

import ast
import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# From the ground up: a module imports only what stands before it. `train` is the roof, and `eval` right below.
TOWER = (
    "data sandbox data.settings data.statistics "
    "data.results data.tables data.plots data.paper data.compare data.presets "
    "data.relatives data.format data.world data.trails data.worlds "
    "data.grading data.rows data.benchmarks data.conversations data.corpus data.web data.tiny data.pages data.runs "
    "data.models data.cache data.logits data.memory data.chat data.judge data.agents data.drive "
    "data.outline data.processes data.optimizer data.alarms data.demonstrations "
    "tools rollout data.metrics data.drawing advantage arpo data.views eval train"
).split()
FILES = {name: ROOT / f"{name.replace('.', '/')}.py" for name in TOWER} | {"data": ROOT / "data/__init__.py"}
CORE = "rollout", "advantage", "arpo"


@functools.cache
def trees():
    return {name: ast.parse(file.read_text()) for name, file in FILES.items()}


def imports(tree):
    """The project's modules that a module imports, wherever in it the import stands."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports have full names"
            inside = {f"{node.module}.{alias.name}" for alias in node.names} & set(TOWER)
            others = any(f"{node.module}.{alias.name}" not in TOWER for alias in node.names)
            found |= inside | ({node.module} if others else set())
    return found & set(TOWER)


def test_every_module_has_its_place_and_stands_on_lower_ones_alone():
    """Guards: two modules that need each other, and the trainer as a library of its own parts."""
    here = {file.relative_to(ROOT).with_suffix("") for folder in (ROOT, ROOT / "data") for file in folder.glob("*.py")}
    assert {".".join(path.parts).removesuffix(".__init__") for path in here} == set(TOWER)
    wrong = [
        f"{name} imports {other}"
        for name, tree in trees().items()
        for other in imports(tree)
        if TOWER.index(other) >= TOWER.index(name)
    ]
    assert wrong == []


def test_the_ground_floor_the_top_and_what_nobody_imports():
    needs = {name: imports(tree) for name, tree in trees().items()}
    assert needs["data"] == needs["sandbox"] == needs["data.settings"] == set() and needs["advantage"] == {
        "data.relatives"
    }
    assert {name for name, others in needs.items() if "train" in others} == set()
    assert {name for name, others in needs.items() if "eval" in others} == {"train"}
    assert set().union(*needs.values()) == set(TOWER) - {"train"}


def test_imports_are_found_wherever_they_stand():
    """The guard of the guards above."""
    text = (
        "import eval, os\ndef f():\n    from data import runs, Question\nif __name__ == '__main__':\n    import tools"
    )
    assert imports(ast.parse(text)) == {"eval", "data", "data.runs", "tools"}
    assert imports(ast.parse("from data import runs")) == {"data.runs"}
    assert imports(ast.parse("import data.web as web\nfrom data.world import World")) == {"data.web", "data.world"}


TAG = re.compile("</?(think|python|search|browse|result|answer)>")


def test_tags_are_spelled_in_one_file():
    """Guards: a second spelling of the page's grammar, which a change of the first would miss; docstrings count."""
    found = [
        f"{file.relative_to(ROOT)}:{number}: {line.strip()}"
        for name, file in FILES.items()
        if name != "data.format"
        for number, line in enumerate(file.read_text().splitlines(), 1)
        if TAG.search(line) and not line.startswith("SOURCE_NAME = ")  # how code is called in its own tracebacks
    ]
    assert found == []


def test_settings_have_types():
    """Guards: a bag of values, of which only its reader knows what it holds."""
    for name, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.arg):
                assert node.arg not in ("args", "namespace"), f"{name}, line {node.lineno}"
            if isinstance(node, ast.Name | ast.Attribute | ast.alias):
                called = getattr(node, "id", getattr(node, "attr", getattr(node, "name", "")))
                assert called not in ("Namespace", "argparse"), f"{name}, line {node.lineno}"


def length(node) -> int:
    """Its lines, decorators included."""
    return node.end_lineno - min(part.lineno for part in [node, *node.decorator_list]) + 1


def test_no_function_is_long():
    kinds = ast.FunctionDef | ast.AsyncFunctionDef
    functions = [(name, n) for name, tree in trees().items() for n in ast.walk(tree) if isinstance(n, kinds)]
    assert [f"{name}.{node.name}: {length(node)} lines" for name, node in functions if length(node) > 60] == []


def lines(name: str) -> int:
    return len(FILES[name].read_text().splitlines())


def test_no_file_is_long():
    assert [f"{name}: {lines(name)} lines" for name in TOWER if name != "sandbox" and lines(name) > 500] == []


def lines_of_the_algorithm() -> int:
    """Of CORE without the class `Policy`, which loads and keeps a model."""
    (policy,) = [node for node in trees()["arpo"].body if isinstance(node, ast.ClassDef) and node.name == "Policy"]
    return sum(map(lines, CORE)) - length(policy)


def test_the_algorithm_is_read_in_an_hour():
    assert lines_of_the_algorithm() <= 760 and sum(map(lines, CORE)) <= 860


@pytest.mark.parametrize("name", TOWER)
def test_a_module_says_what_it_is(name):
    assert (ast.get_docstring(trees()[name]) or "").count(".") >= 1
