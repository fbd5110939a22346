"""The grid of experiments: what is declared, how a cell is made, and that the committed page is what its files say."""

import json
import math

import numpy as np
import pytest

from experiments import forks, measures, probes, report, run
from experiments.grid import ARMS, CLAIMS, SAMPLES, Arm
from experiments.measures import Interval
from rollout import Decision, Node, Tree

RATED = ("entropy", "grpo"), ("fast", "grpo-fast")  # the README's sentence on the learning rate


def test_the_committed_page_is_made_from_the_committed_files():
    """Guards: a number on the page that no file holds, or results that came in after it was made."""
    cells = measures.read_cells(report.HERE / "results")
    measured = probes.read_probes(report.HERE / "criticality")
    assert report.page(cells, measured) == (report.HERE / "RESULTS.md").read_text(encoding="utf-8")
    readme = (report.HERE.parent / "README.md").read_text(encoding="utf-8")
    assert report.with_short_table(readme, cells) == readme
    slow, fast = (measures.area_difference(cells, f"threshold-{a}", b, "calls") for a, b in RATED)
    assert f"from {slow.mean:.1f} to {fast.text().strip('*').removeprefix('+')} points" in readme


def test_the_declared_arms_differ_and_their_comparisons_exist():
    """Guards: an arm that silently repeats another, which would then agree with it perfectly."""
    settings = [
        json.dumps(run.settings_of(run.config_of(arm, 0)), sort_keys=True) for arm in ARMS if ARMS[arm].start != arm
    ]
    assert len(set(settings)) == len(settings)
    assert {arm.base for arm in ARMS.values()} | {arm for pair in CLAIMS.values() for arm in pair} <= {"", *ARMS}
    assert all(arm.seeds <= ARMS[arm.base].seeds for arm in ARMS.values() if arm.base)
    worlds = {name: run.config_of(name, 0).data for name in ARMS}
    assert all(worlds[name] == worlds[arm.start] == worlds[arm.base or arm.start] for name, arm in ARMS.items())


def test_cells_come_seed_by_seed_and_the_main_arms_first():
    cells = run.in_order()
    assert len(cells) == len(set(cells)) == sum(arm.seeds for arm in ARMS.values())
    assert [seed for arm, seed in cells if arm == "grpo"] == list(range(16))
    assert {arm for arm, _ in cells[: len(run.MAIN)]} == set(run.MAIN)


TINY = "--data world --num_generations 4 --questions_per_step 4 --max_steps 2 --eval_steps 1 --eval_questions 3 "
TINY += "--test_questions 3 --num_initial 1 --warmup_steps 1 --lr_scheduler_type constant"


@pytest.mark.slow
def test_a_cell_is_run_once_and_alone(tmp_path, monkeypatch):
    """End to end on the built-in world. Guards: a finished cell that is run again, and two runners in one cell."""
    monkeypatch.setattr(run, "RESULTS", tmp_path)
    monkeypatch.setattr(run, "COMMON", TINY)
    monkeypatch.setattr(run, "ARMS", {"start": Arm("", ""), "tree": Arm("--base_prob 0.9", "")})
    run.hash_of.cache_clear()
    (tmp_path / ".locks").mkdir()
    cells, forever, file = [("start", 0), ("tree", 0)], math.inf, tmp_path / "tree-0.json"
    with run.alone(tmp_path / ".locks" / "tree-0") as mine:
        run.work(cells, forever)
        assert mine and not file.exists() and run.is_made("start", 0)
    run.work(cells, forever)
    made = json.loads(file.read_text())
    assert made["dev"]["step"] == [1, 2] and len(made["curve"]["calls"]) == 2
    assert made["settings"]["base_prob"] == 0.9 and len(made["greedy"]) == len(made["sampled"]) == 3
    products = np.array(made["gradients"]["products"])
    assert np.allclose(products, products.T) and (np.linalg.eigvalsh(products) > -1e-3 * products.trace()).all()
    before = file.stat().st_mtime_ns
    run.work(cells, forever)
    assert file.stat().st_mtime_ns == before

    monkeypatch.setitem(run.ARMS, "tree", Arm("--base_prob 0.8", ""))
    run.hash_of.cache_clear()
    assert run.is_made("start", 0) and not run.is_made("tree", 0)
    run.hash_of.cache_clear()


def test_intervals_worked_by_hand():
    assert measures.t_quantile(15) == pytest.approx(2.1314, abs=1e-4)  # as printed in tables of Student's t
    assert measures.t_quantile(1) == pytest.approx(12.706, abs=1e-3)
    found = Interval.of([1.0, 2, 3, 4, 5])
    assert (found.low, found.high) == pytest.approx((3 - 1.9632, 3 + 1.9632), abs=1e-3)
    jackknife = Interval.jackknife(lambda seeds: float(np.mean(seeds)), [1, 2, 3, 4, 5])
    assert (jackknife.low, jackknife.high) == pytest.approx((found.low, found.high))
    assert math.isnan(Interval.of([1.0]).low) and Interval.of([1.0]).verdict() == 0


@pytest.mark.parametrize(
    "values, chance, word, told",
    [
        ([1.0, 1.1, 0.9], 0.01, "**higher**", "**supported**"),
        ([1.0, 1.1, 0.9], 0.06, "**higher**", "a hint for it"),
        ([-1.0, -1.1, -0.9], 0.01, "**lower**", "**contradicted**"),
        ([-1.0, -1.1, -0.9], 0.06, "**lower**", "a hint against it"),
        ([-1.0, 1.0, 0.3], 0.9, "not told apart", "not told apart (within ±2.6)"),
        ([5.0], math.nan, "too few seeds to say", "too few seeds to say"),
    ],
)
def test_the_interval_chooses_the_words(values, chance, word, told):
    """Guards: a conclusion that the numbers do not carry, and "no difference" where nothing was found."""
    found = Interval.of(values)
    assert (report.finding(found), report.verdict(found, chance)) == (word, told)


def test_many_findings_are_held_to_more_than_one():
    """Guards: of many claims that are tried, some that chance alone supports."""
    assert measures.beyond(2.1314, 15) == pytest.approx(0.05, abs=1e-4)  # as printed in tables of Student's t
    t_value = 3 / (np.std([1, 2, 3, 4, 5], ddof=1) / 5**0.5)
    assert Interval.of([1.0, 2, 3, 4, 5]).chance() == pytest.approx(float(measures.beyond(t_value, 4)))
    assert math.isnan(Interval.of([1.0]).chance()) and Interval.of([0.0, 0]).chance() == 1
    assert measures.holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert measures.holm([math.nan, 0.5, 0.9])[1:] == [1, 1]


def test_forks_elsewhere_worked_by_hand():
    """Two forks behind one result and one behind another; the other tree has one of the first, and one of its own.

    Guards: arms that are compared although they fork at the same places.
    """

    def tree(*new: int) -> Tree:
        decision = lambda n: Decision(1.0, 0.5, 0.1, 0.6, 0.5, 1, n, 0)
        nodes = [Node(ids=[i], observation=[9], parent=i - 1, decision=decision(n)) for i, n in enumerate(new)]
        return Tree([0], nodes)

    assert forks.forks(tree(2, 1)) == {(0, 9): 2, (0, 9, 1, 9): 1}
    assert forks.elsewhere([tree(2, 1)], [tree(1, 0, 4)])[0] == pytest.approx(2 / 3, abs=1e-3)
    assert forks.elsewhere([tree(0, 0), tree(1, 0)], [tree(1, 0), tree(3, 0)])[0] == 0
    assert forks.describe([tree(2, 1)]) == {
        "forks": 3,
        "depth": pytest.approx(4 / 3, abs=1e-3),
        "results": 2,
        "above": 1,
    }


def cell(accuracy: list[float], calls: float, sampled: str = "40") -> dict:
    steps = len(accuracy)
    curve = {"calls": [calls] * steps, "forks": [0] * steps}
    return {"dev": {"step": list(range(1, steps + 1)), "accuracy": accuracy}, "curve": curve, "sampled": sampled}


def test_measures_worked_by_hand():
    """An arm that learns the same in half the calls; both start at 40 points."""
    start = {"dev": {"step": [0], "accuracy": [0.4]}}
    seeds = range(4)
    cells = {
        "start": {seed: start for seed in seeds},
        "grpo": {seed: cell([0.6, 0.8], 100) for seed in seeds},
        "arpo": {seed: cell([0.6, 0.8], 50) for seed in seeds},
    }
    # up to 100 calls: from 40 over 60 to 80, mean 60, against from 40 to 60, mean 50
    assert measures.area_difference(cells, "arpo", "grpo", "calls").mean == pytest.approx(10)
    assert measures.needed(cells, "arpo", "grpo", "calls").mean == pytest.approx(-50)
    right = {"sampled": f"{SAMPLES}1"}  # one question always right, one right once in SAMPLES
    assert measures.pass_at(right, 1) == pytest.approx(50 * (1 + 1 / SAMPLES))
    assert measures.pass_at(right, SAMPLES) == 100 and measures.pass_all(right, SAMPLES) == 50


def test_a_step_that_costs_nothing_adds_no_area():
    """Guards: an end that rises for free, drawn as if the way there had risen."""
    assert measures.area(np.array([0.0, 10, 10]), np.array([0.0, 50, 90]), 10) == 25
    assert measures.area(np.array([0.0, 10, 10, 20]), np.array([0.0, 50, 90, 90]), 15) == pytest.approx(140 / 3)
    assert measures.area(np.array([0.0, 10]), np.array([0.0, 50]), 4) == 10


def test_the_signal_of_a_gradient_worked_by_hand():
    """A mean gradient of length 3 and noise of variance 1: products 9 between two gradients, 10 of one with itself.

    Guards: two passes over a batch that are taken for two independent gradients.
    """
    gradients = {"products": [[10, 9], [9, 10]], "calls": [50, 50]}
    twice = {"products": np.repeat(np.repeat(gradients["products"], 2, 0), 2, 1).tolist(), "calls": [50, 50]}
    cells = {arm: {seed: {"gradients": g} for seed in range(3)} for arm, g in (("arpo", gradients), ("twice", twice))}
    assert measures.signal(cells, "arpo").mean == pytest.approx(9 / 1 / 50 * 100)
    assert measures.signal(cells, "twice") == measures.signal(cells, "arpo")


def test_seeds_of_other_settings_are_refused(tmp_path):
    for seed, name in enumerate("ab"):
        made = {"arm": "arpo", "seed": seed, "hash": name, "greedy": "1", "sampled": "4", "seconds": 1}
        made |= {"dev": {}, "gradients": {}, "curve": {}, "forks_by_depth": []}
        measures.write_json(tmp_path / f"arpo-{seed}.json", made)
    with pytest.raises(ValueError, match=r"arpo: expected one settings hash, found a \(seeds 0\), b \(seeds 1\)"):
        measures.read_cells(tmp_path)


def test_committed_cells_are_those_of_todays_settings():
    """Guards: arms that are compared although the grid was changed between their runs."""
    files = [file.stem.rpartition("-") for file in run.RESULTS.glob("*.json")]
    assert files and [f"{arm}-{seed}" for arm, _, seed in files if not run.is_made(arm, int(seed))] == []


@pytest.mark.parametrize(
    "text, expected",
    [
        ('{"arm": "arpo",', "expected a cell of run.py, found no JSON"),
        ("[1]", "expected a cell of run.py, found no arm, seed, hash, dev, greedy, sampled, seconds"),
        ('{"arm": "arpo", "seed": 0}', "expected a cell of run.py, found no hash, dev, greedy, sampled, seconds"),
        (
            '{"arm": "start", "seed": 1, "hash": "", "dev": {}, "greedy": "", "sampled": "", "seconds": 1}',
            "expected a cell of that name, found start-1",
        ),
    ],
)
def test_a_file_that_is_no_cell_is_named(tmp_path, monkeypatch, capsys, text, expected):
    """One line and exit code 2, by the runner before it begins. Guards: a damaged file that is left out, or a trace."""
    (tmp_path / "arpo-0.json").write_text(text)
    with pytest.raises(ValueError, match=f"arpo-0.json: {expected}"):
        measures.read_cells(tmp_path)
    monkeypatch.setattr(run, "RESULTS", tmp_path)
    monkeypatch.setattr("sys.argv", ["run.py", "--only", "start"])
    with pytest.raises(SystemExit, match="2"):
        run.main()
    (line,) = capsys.readouterr().err.splitlines()
    assert expected in line and (tmp_path / "arpo-0.json").read_text() == text


def test_a_whole_grid_misses_nothing():
    """Guards: a page that goes on about missing cells, or falls where an arm has none or one."""
    cells = measures.read_cells(report.HERE / "results")
    of = lambda arm: list((cells[arm] or cells["start" if ARMS[arm].start == arm else "grpo"]).values())
    whole = {arm: {seed: of(arm)[seed % len(of(arm))] for seed in range(own.seeds)} for arm, own in ARMS.items()}
    page, declared = report.page(whole, {}), sum(arm.seeds for arm in ARMS.values())
    assert f"**{declared} of {declared} cells are there.**\n" in page
    assert "want of processor time" not in page and "too few" not in report.opening(whole, {})[-1]
    for few in (0, 1, 2):
        part = {arm: {seed: cell for seed, cell in own.items() if seed < few} for arm, own in whole.items()}
        assert "want of processor time" in report.page(part, {})
