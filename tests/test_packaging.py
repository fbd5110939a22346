"""What an installation brings along, what it keeps out of other people's way, and that it runs from anywhere."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MODULES = {"advantage.py", "arpo.py", "eval.py", "rollout.py", "sandbox.py", "tools.py", "train.py"}


def run(*command, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, encoding="utf-8", timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def names(wheel: Path) -> set[str]:
    return set(ZipFile(wheel).namelist())


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> dict[str, Path]:
    """Wheels from the tree and from its source distribution, made without a network."""
    tree = tmp_path_factory.mktemp("tree")
    for name in ("LICENSE", "README.md", "pyproject.toml", *sorted(MODULES)):
        shutil.copy(ROOT / name, tree)
    for name in ("data", "packaging"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    run(sys.executable, "-c", "from setuptools.build_meta import build_sdist as b; b('sources')", cwd=tree)
    (sources,) = (tree / "sources").glob("*.tar.gz")
    wheels = {}
    for name, source in (("tree", "."), ("sources", str(sources))):
        wheel = "pip wheel --no-deps --no-build-isolation --no-index --disable-pip-version-check".split()
        run(sys.executable, "-m", *wheel, source, "-w", f"from_{name}", cwd=tree)
        (wheels[name],) = (tree / f"from_{name}").glob("*.whl")
    return wheels


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("installed")
    install = "pip install --quiet --no-deps --no-index --disable-pip-version-check --target".split()
    run(sys.executable, "-m", *install, str(folder), str(built["sources"]), cwd=folder)
    return folder


def test_a_wheel_has_the_code_and_the_model_in_one_package(built):
    found = names(built["tree"])
    assert found == names(built["sources"])
    about = f"arpo_rl-{PROJECT['version']}.dist-info/"
    assert all(name.startswith(("arpo_rl/", about)) for name in found)
    assert {Path(name).name for name in found if re.fullmatch(r"arpo_rl/code/[^/]+", name)} == MODULES
    data = {f"arpo_rl/code/{file.relative_to(ROOT)}" for file in (ROOT / "data").rglob("*.*") if file.suffix != ".pyc"}
    assert data <= found
    assert "arpo_rl/code/data/tiny_model/model.safetensors" in data
    assert f"{about}licenses/LICENSE" in found


def test_an_installation_adds_one_name(installed):
    added = {file.name for file in installed.iterdir()}
    assert added == {"arpo_rl", f"arpo_rl-{PROJECT['version']}.dist-info", "bin"}
    assert {file.name for file in (installed / "bin").iterdir()} == {"arpo"}


@pytest.mark.slow
def test_it_runs_from_an_empty_directory(installed, tmp_path):
    command = [sys.executable, "-m", "arpo_rl", "train", "--dry_run", "--algo", "grpo", "--max_steps", "7"]
    plan = run(*command, cwd=tmp_path, PYTHONPATH=str(installed))
    assert re.search(r"^method +grpo on world, 7 steps of 12 questions$", plan, re.MULTILINE)
    assert str(installed / "arpo_rl" / "code" / "data" / "tiny_model") in plan
    assert not list(tmp_path.iterdir())


def test_the_script_says_what_it_knows(installed, tmp_path):
    script, path = [sys.executable, str(installed / "bin" / "arpo")], os.environ | {"PYTHONPATH": str(installed)}
    for words in ([], ["trains"]):
        done = subprocess.run(script + words, cwd=tmp_path, env=path, capture_output=True, text=True)
        assert done.returncode == 1 and done.stderr == "usage: arpo {train,eval,tools} ...\n"


def test_the_folder_does_not_hide_the_library_of_its_name():
    assert str(ROOT) in sys.path
    assert not Path(find_spec("packaging").origin).is_relative_to(ROOT)


def test_pins_are_within_the_ranges():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    dev = (ROOT / "requirements-dev.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines + dev if "==" in line)
    extras = PROJECT["optional-dependencies"]
    for text in [*PROJECT["dependencies"], *extras["dev"]]:
        wanted = Requirement(text)
        assert wanted.specifier.contains(pinned[wanted.name]), text
    ranged = {Requirement(text).name for text in PROJECT["dependencies"]}
    assert {line.split("==")[0] for line in lines if "==" in line} == ranged


def test_one_version_everywhere():
    (cited,) = re.findall(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1]
    assert PROJECT["version"] == cited == newest
