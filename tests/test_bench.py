"""The benches run at small size, so that they stand ready: for a GPU, and for the next change of the loop."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from data.results import read_results

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


@pytest.mark.slow
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


@pytest.mark.slow
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


def test_a_recorded_deep_search_is_replayed_without_a_network(tmp_path, monkeypatch, capsys):
    """Guards: agents, endpoint, live search, pages and their cache, and results, all by the command itself."""
    import deep_search

    def refuse(*_):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    told = {agent: read_results(deep_search.evaluate(agent, tmp_path)) for agent in deep_search.AGENTS}
    right, calls = {}, {}
    for agent, found in told.items():
        (row,) = found.rows.values()
        assert row.method == agent and row.backbone == "script" and row.leaves_out and len(row.results) == 6
        right[agent] = sum(result.attempts[0].right for result in row.results)
        calls[agent] = sum(result.attempts[0].calls for result in row.results)
    assert right == {"rag": 1, "react": 6, "search-o1": 6, "webthinker": 6}
    assert calls == {"rag": 6, "react": 20, "search-o1": 9, "webthinker": 9}
    lines = (tmp_path / "search-o1" / "answers.jsonl").read_text().splitlines()
    turns = [turn["content"] for turn in json.loads(lines[-1])["attempts"][0]["turns"]]
    assert any("The captain of Sela is Mikkel Thorsen" in turn for turn in turns)
    assert "not in the cache" not in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("parts", [["parity", "memory", "decode"], pytest.param(["steps"], marks=pytest.mark.slow)])
def test_the_day_with_a_gpu_is_rehearsed(tmp_path, monkeypatch, parts):
    """Guards: a GPU that is lent for an hour, and a script that fails in its third part and keeps nothing."""
    import gpu

    found = gpu.main(["--small", "--only", *parts, "--out", str(tmp_path)])
    assert json.loads((tmp_path / "gpu.json").read_text()) == found
    text = (tmp_path / "gpu.txt").read_text()
    assert all(f"## {name}" in text for name in parts)
    if parts == ["steps"]:
        (row,) = found["steps"]
        assert row[1] > 0 and row[2] > 0 and row[3].endswith("and went on")
        return
    assert all(float(gap) < 1e-4 for gap in found["parity"][0][2:]) and len(found["parity"]) == 3
    assert all(float(gap) < 0.2 for row in found["parity"] for gap in row[2:])
    (row,) = found["memory"]
    assert row[4] > 0 and row[6] > 0 and row[7] > 0  # planned, planned, speed
    (row,) = found["decode"]
    assert 0 < row[3] < row[2]

    monkeypatch.setattr(gpu.decode, "measure", lambda *rest: 1 / 0)
    found = gpu.main(["--small", "--only", "decode", "parity", "--out", str(tmp_path), "--minutes", "0"])
    assert found["parity"][0][2:] == ["no time was left", ""]
    assert gpu.measured(lambda: 1 / 0, float("inf")) == ["ZeroDivisionError: division by zero"]
