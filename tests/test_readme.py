"""What the README says of the project's size and flags is true."""

import re
from pathlib import Path

from train import make_parser

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def lines(name: str) -> int:
    return len((ROOT / name).read_text().splitlines())


def test_line_counts():
    table = {name: int(count) for name, count in re.findall(r"^\| `([\w/]+\.py)` \| (\d+) \|", README, re.MULTILINE)}
    files = [*ROOT.glob("*.py"), *(ROOT / "data").glob("*.py")]
    assert table == {str(file.relative_to(ROOT)): lines(file) for file in files}
    (together,) = re.findall(r"^\| together \| (\d+) \|", README, re.MULTILINE)
    (core,) = re.findall(r"the whole algorithm in (\d+) lines of plain PyTorch", README)
    assert int(together) == sum(table.values())
    assert int(core) == sum(table[name] for name in ("rollout.py", "advantage.py", "arpo.py"))


def test_every_flag_that_is_named_exists():
    known = {option for action in make_parser()._actions for option in action.option_strings}
    others = {"--model", "--ask", "--merge", "--samples", "--split", "--no-deps", "--nproc-per-node"}
    named = {flag.replace("-", "_").replace("__", "--", 1) for flag in re.findall(r"(?<![\w-])--[a-z][\w-]*", README)}
    assert named - {option.replace("-", "_").replace("__", "--", 1) for option in known | others} == set()
