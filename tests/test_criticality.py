"""Where a trajectory is decided: the estimators against exact values, a known game measured, a summary by hand."""

import itertools
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from data import Question
from data.format import ToolResult, tagged
from experiments import criticality
from experiments.criticality import CriticalityConfig, best, in_waves, measure, spearman, summarise, variances
from experiments.probes import read_probes, shown
from rollout import Sample, grow_trees, uniform
from tools import Task

ROOT = Path(__file__).parent.parent
QUARTER = {"a": (0.25, 0.8), "b": (0.75, 0.2)}  # a next turn -> how often it is written, how often it leads to 1


def test_the_estimates_are_unbiased():
    """All samples of two next turns with two continuations of each different one, weighed by their chance.

    Guards: a spread of means that counts their noise, and a turn drawn twice that counts as two.
    """
    between, total, weight = 0.0, 0.0, 0.0
    for turns in itertools.product(QUARTER, repeat=2):
        different = sorted(set(turns))
        for rewards in itertools.product((0, 1), repeat=2 * len(different)):
            after = [list(rewards[2 * i : 2 * i + 2]) for i in range(len(different))]
            chance = np.prod([QUARTER[turn][0] for turn in turns])
            for turn, own in zip(different, after):
                chance *= np.prod([QUARTER[turn][1] if reward else 1 - QUARTER[turn][1] for reward in own])
            one, both = variances(after, [turns.count(turn) for turn in different])
            between, total, weight = between + chance * one, total + chance * both, weight + chance
    mean = 0.25 * 0.8 + 0.75 * 0.2
    assert weight == pytest.approx(1)
    assert between == pytest.approx(0.25 * 0.75 * 0.6**2) and total == pytest.approx(mean * (1 - mean))


class Game:
    """Stands in for a sampler. Ask, then go left or right, then look; left leads to a right answer, always."""

    vocab_size, tokenizer = 704, None

    def prefill(self, prompts):
        pass

    def __call__(self, rows, temperature, on_stop):
        samples = [self.turn(row) if row.stop_at else Sample() for row in rows]
        for row, sample in zip(rows, samples):
            if row.stop_at:
                on_stop(row, sample)
        return samples

    def turn(self, row):
        text = self.tokenizer.decode(row.ids)
        results = text.count(tagged("result", "seen"))
        way = "left" if uniform(row.key, len(row.ids)) < 0.25 else "right"
        words = {0: "ask", 1: way, 2: "look"}.get(results)
        written = tagged("search", words) if words else tagged("answer", "yes" if "left" in text else "no") + "<|end|>"
        ids = self.tokenizer.encode(written)
        return Sample(ids, [-1.0] * len(ids), [0.5 if results == 1 else 0.1] * len(ids), "call" if words else "end")


def test_a_known_game_is_measured(tokenizer):
    """Guards: rewards that forget what was written before the place, and a result counted as one after it."""
    sampler = Game()
    sampler.tokenizer = tokenizer
    result: Future = Future()
    result.set_result(ToolResult("seen"))
    tools = SimpleNamespace(submit=lambda call: result)
    policy = SimpleNamespace(
        tokenizer=tokenizer,
        grow=lambda prefixes, keys, tools, config: grow_trees(prefixes, keys, sampler, tools, config),
    )
    config = CriticalityConfig(trajectories=3, next_turns=100, continuations=4, max_tool_calls=5)
    task = Task([Question("1", "which way?", ("yes",))], tools)
    places = measure(policy, task, config)
    assert places["depth"].tolist() == [1, 2, 3] * 3 and places["calls"].tolist() == [2, 1, 0] * 3
    assert places["between"] == pytest.approx([0.25 * 0.75, 0, 0] * 3, abs=0.06)  # three standard errors
    assert places["total"] == pytest.approx([0.25 * 0.75, 0, 0] * 3, abs=0.06)
    assert places["delta"] == pytest.approx([0.4, 0, 0] * 3)
    assert (places["half_1"][0] + places["half_2"][0]) / 2 == pytest.approx(places["between"][0], abs=0.02)


def test_choices_worked_by_hand():
    """Guards: equal places that are chosen by their order, which would make a lot look like the first result."""
    assert best(np.array([1.0, 3, 2, 2]), 2).tolist() == [0, 1, 0.5, 0.5]
    assert best(np.array([1.0, 1]), 4).tolist() == [1, 1]
    places = {"depth": np.array([1.0, 1, 2, 2]), "delta": np.array([-1.0, 1, 3, 2])}
    assert in_waves(places, places["delta"] > 0, 2).tolist() == [0, 1, 1, 0]
    assert in_waves(places, places["delta"] > 9, 2).tolist() == [0, 0, 0, 0]
    assert spearman(np.array([1.0, 2, 3, 4]), np.array([0.0, 0, 0, 1])) == pytest.approx(3**0.5 / 5**0.5)


def test_a_summary_worked_by_hand():
    """Two questions with four places each, of which one decides, where ΔH is highest; H says the same everywhere."""
    column = {name: np.zeros(8) for name in (*criticality.PREDICTORS, *criticality.OTHERS)}
    column |= {
        "question": np.repeat([0.0, 1], 4),
        "depth": np.tile([1.0, 2, 3, 4], 2),
        "calls": np.tile([3.0, 2, 1, 0], 2),
    }
    column |= {"tokens": 5 * (1 + column["calls"]), "entropy": np.ones(8), "turn_tokens": np.ones(8)}
    for name in ("between", "half_1", "half_2", "total", "delta"):
        column[name] = np.tile([0.0, 0, 0.2, 0], 2)
    summary = summarise(column, chosen=1)
    assert summary["irrelevant entropy: its share at the other places"][0] == 0.75
    assert summary["between held by the best quarter of places"] == [1, 1, 1]
    assert summary["predictor"]["ΔH"]["rank correlation with between"] == [1, 1, 1]
    assert summary["predictor"]["H_t"]["rank correlation with between"] is None
    held = {rule: row["between held"][0] for rule, row in summary["rule"].items()}
    assert held["highest ΔH of all (best)"] == held["ΔH > 0 in waves (threshold)"] == 1 and held["lot"] == 0.25
    assert held["tail"] == held["first results"] == 0 and held["a coin in waves"] == pytest.approx(0.125, abs=0.07)
    # 0.2 for one call, where a lot has 0.05 for 1.5 calls
    assert summary["rule"]["highest ΔH of all (best)"]["per call, over a lot's"][0] == pytest.approx(6)
    assert summary["rule"]["tail"]["per call, over a lot's"] is None  # its leaves need no call


def test_a_place_that_cannot_be_written_is_told_before_anything_is_measured(tmp_path):
    """Guards: minutes of measuring that are lost at the end."""
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.json").mkdir()
    for output, found in (("file/x", "File exists"), ("folder", "Is a directory")):
        with pytest.raises(ValueError, match=f"{output}.*expected a place for files, found .*: {found}"):
            criticality.check_place(f"{tmp_path}/{output}")
    (tmp_path / "there.json").write_text("{}")
    criticality.check_place(f"{tmp_path}/there")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "folder.json", "there.json"]
    assert (tmp_path / "there.json").read_text() == "{}"


def test_committed_measurements_are_told_by_their_own_places(monkeypatch):
    """Guards: a table that today's definitions would not make again from the places that were measured."""
    monkeypatch.setattr(criticality, "RESAMPLES", 2)  # the numbers are compared, not their intervals
    probes = read_probes(ROOT / "experiments" / "criticality")
    assert probes
    for probe in probes.values():
        places = {name: np.array(column, dtype=float) for name, column in probe["places"].items()}
        made = numbers(summarise(places, probe["settings"]["chosen"]))
        assert made == pytest.approx(numbers(probe["summary"]), rel=1e-3, abs=1e-3, nan_ok=True), probe["command"]


def numbers(summary: dict, name: str = "") -> dict[str, float]:
    """All numbers of a summary, without their intervals."""
    if isinstance(summary, dict):
        return {key: value for part in summary for key, value in numbers(summary[part], f"{name}/{part}").items()}
    value = summary[0] if isinstance(summary, list) else summary
    return {name: np.nan if value is None else value}


def test_the_docs_say_what_was_measured():
    """Guards: numbers of a model or a measurement that is no more."""
    page = (ROOT / "docs" / "worlds.md").read_text(encoding="utf-8")
    trails, world = (read_probes(ROOT / "experiments" / "criticality")[name]["summary"] for name in ("trails", "world"))
    trained = read_probes(ROOT / "experiments" / "criticality")["world-after-20-steps"]["summary"]
    said = {
        "--output_dir runs/world-20`)": trained["rule"]["lot"]["between held"],
        "and the highest ΔH": trained["rule"]["highest ΔH of all (best)"]["between held"],
        "the paper's rule reaches": trails["rule"]["ΔH > 0 in waves (threshold)"]["between held"],
        "the highest ΔH of the whole tree": trails["rule"]["highest ΔH of all (best)"]["between held"],
        "], a lot": trails["rule"]["lot"]["between held"],
        "the first results": trails["rule"]["first results"]["between held"],
        "the last ones": trails["rule"]["tail"]["between held"],
        "a lot reaches": world["rule"]["lot"]["between held"],
    }
    assert [f"{words} {shown(value)}" for words, value in said.items() if f"{words} {shown(value)}" not in page] == []
    views = read_probes(ROOT / "experiments" / "criticality")["trails-with-views"]["summary"]
    said = {
        "reaches": views["rule"]["highest ΔH of all (best)"]["between held"],
        "the paper's rule": views["rule"]["ΔH > 0 in waves (threshold)"]["between held"],
    }
    assert [words for words, value in said.items() if f"{words} {shown(value)}" not in page] == []
    assert f"{views['irrelevant entropy: its share at the other places'][0]:.0%}, and then" in page
    decide = trails[f"places that decide (between > {criticality.DECIDES})"][0]
    irrelevant, settled = (
        trails[title][0]
        for title in (
            "irrelevant entropy: its share at the other places",
            "of which where nothing can be won or lost any more",
        )
    )
    assert f"{decide:.0%} of the start policy's results" in page and f"{irrelevant:.0%} of it stands" in page
    assert settled > irrelevant / 2 and trails["between held by the best quarter of places"][0] > 0.995
