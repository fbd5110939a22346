"""docs/walk.md is what docs/walk.py computes: the page of one question stays true when the code changes."""

import re
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
NUMBER = r"-?\d+\.\d+"


def test_the_walk_is_what_the_code_computes():
    """To write it anew: python docs/walk.py. Decimals may differ a little from machine to machine."""
    spec = spec_from_file_location("walk", DOCS / "walk.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    here, there = module.walk(), (DOCS / "walk.md").read_text(encoding="utf-8")
    words = lambda text: re.sub(NUMBER, "#", text).splitlines()
    assert words(here) == words(there)
    numbers = lambda text: [float(number) for number in re.findall(NUMBER, text)]
    assert numbers(here) == pytest.approx(numbers(there), rel=0.02, abs=0.0015)
