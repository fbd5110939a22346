"""The benches run at small size, so that they stand ready: for a GPU, and for the next change of the loop."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

BENCH = Path(__file__).parent / "bench"
sys.path.insert(0, str(BENCH))
SMALL = "--questions_per_step 2 --num_generations 4 --num_initial 2".split()


class OneStep:
    """Stands in for a `Channel`: asks for one step, and keeps what comes back."""

    def __init__(self):
        self.steps, self.rows = iter([1]), []

    def __call__(self):
        return self

    def receive(self):
        return next(self.steps)

    def lap(self):
        return {"seconds": 0.0}

    def send(self, row):
        self.rows.append(row)


def one_step(monkeypatch, module, serve):
    channel = OneStep()
    monkeypatch.setattr(module, "Channel", channel)
    with pytest.raises(StopIteration):
        serve()
    return channel.rows


def test_memory_and_decode_at_small_size(monkeypatch, capsys):
    import decode
    import memory

    def row_of(module, *argv):
        monkeypatch.setattr(sys, "argv", [module.__file__, "--shapes", "small", *argv])
        module.main()
        (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| small")]
        return row.split("|")[1:-1]

    row = row_of(memory, "--leaf_tokens", "700", "--leaves", "4", "--no-load_in_4bit")
    assert float(row[6]) > 0 and int(row[7].replace(",", "")) > 700
    row = row_of(decode, "--rows", "4", "--prompt_tokens", "32", "--steps", "32")
    milliseconds, least = float(row[2]), float(row[3])
    assert milliseconds > 0 and 0 < least < milliseconds


def test_ablations_grow_the_same_trees_and_have_the_same_gradient(monkeypatch):
    import ablations

    config = ablations.settings(SMALL, "arpo")
    serve = lambda name: one_step(monkeypatch, ablations, lambda: ablations.serve(ablations.WAYS[name], config))
    rows = {name: serve(name) for name in ("as it is", "no cache across turns", "leaves padded, not packed")}
    ablations.check({name: SimpleNamespace(name=name, rows=own) for name, own in rows.items()})
    (first,), (forgetful,), (padded,) = rows.values()
    assert first["gradient"] > 0 and forgetful["prefilled"] > first["prefilled"]
    assert padded["gradient_tokens"] > first["gradient_tokens"]


def test_the_projects_arm_of_the_comparison_runs(monkeypatch):
    import trl_step

    (row,) = one_step(monkeypatch, trl_step, lambda: trl_step.serve_ours(trl_step.settings(SMALL, "arpo")))
    assert row["leaves"] == 8 and row["train_tokens"] >= row["trained"] > 0


def test_growth_is_measured(monkeypatch):
    import growth

    flat, tree = (
        one_step(monkeypatch, growth, lambda: growth.serve("leaves", shape)) for shape in list(growth.SHAPES)[:2]
    )
    assert flat[0]["tokens"] == 968 > tree[0]["tokens"]  # fed, sampled and trained tokens of 8 leaves of 4 turns
