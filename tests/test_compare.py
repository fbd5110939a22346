"""Runs side by side: lines, pairs, intervals, the paper's tables. The numbers are worked out by hand."""

import random

import numpy as np
import pytest
import torch

from data import Question
from data.compare import compare, lines_of
from data.demonstrations import steps
from data.outline import describe
from data.paper import AVERAGE, TABLES, misfits, paper_tables, size
from data.presets import PRESETS, preset_table
from data.results import Result, Row, Score, read_results, write_results
from data.statistics import bootstrap, difference, pass_at_k, pass_hat_k
from data.tables import gain, pass_table
from train import TrainConfig, read_flags


def row(right, method="arpo", seed=0, temperature=0.0, name="q", **more) -> Row:
    """`right` has for each question whether each attempt is right."""
    results = []
    for n, attempts in enumerate(right):
        scores = [
            Score("x", float(one), float(one), {"search": 2}, 10, "end", label=more.get("label", ""))
            for one in attempts
        ]
        question = Question(f"{name}-{n}", f"{more.get('text', '')}{n}?", ("x",), more.get("levels", {}).get(n, ""))
        results.append(Result.of(question, scores))
    top_p = 0.95 if temperature else 1.0
    return Row(method, more.get("backbone", "tiny"), temperature, top_p, seed, results)


def write(folder, rows, curve=None, **settings):
    folder.mkdir()
    write_results(folder, {"model": "tiny", "data": "world"} | settings, {"torch": "2"}, rows, curve)
    return str(folder)


def test_pass_k_is_counted_over_all_draws_of_k():
    """Guards: 1 - (1 - p)^k, which is biased, and pass^k as the k-th power of pass@1."""
    samples = [1, 1, 0, 0, 0]
    from itertools import combinations

    for k in range(1, 6):
        draws = list(combinations(samples, k))
        assert pass_at_k(2, 5, k) == pytest.approx(np.mean([any(draw) for draw in draws]))
        assert pass_hat_k(2, 5, k) == pytest.approx(np.mean([all(draw) for draw in draws]))
    text = pass_table([row([samples, [1] * 5])], [1, 3])
    assert text.splitlines()[1].startswith("pass@3    95.0%") and "pass^3    50.0%" in text


def test_pairs_are_narrower_than_two_intervals_and_seeds_widen_them():
    """Guards: the difference of two accuracies told by intervals that ignore that the questions are the same."""
    rng = np.random.default_rng(1)
    hard = rng.random(200) < 0.5
    a, b = hard[None].astype(float), np.where(rng.random(200) < 0.05, 1.0, hard)[None]
    low, high = difference(b, a, same_runs=True)
    assert 0 < low < (b - a).mean() < high < 0.1 and bootstrap(a)[1] - bootstrap(a)[0] > 0.13
    runs = np.stack([a[0], 1 - a[0] * 0.0])  # another seed that gets everything right
    assert np.ptp(bootstrap(runs)) > 2 * np.ptp(bootstrap(a))
    apart = difference(np.stack([b[0], b[0] * 0]), np.stack([a[0], a[0] * 0]), same_runs=False)
    assert np.ptp(apart) > 5 * np.ptp(
        difference(np.stack([b[0], b[0] * 0]), np.stack([a[0], a[0] * 0]), same_runs=True)
    )


def test_only_the_same_questions_are_paired():
    """Guards: the third row of one file beside the third row of another, because both are called q-3."""
    ours, theirs = [row([[1]] * 4)], [row([[0]] * 6)]
    assert gain(ours, [row([[0]] * 4)]) == (100, 100, 100, 4) == gain(ours, theirs)
    assert gain(ours, [row([[0]] * 4, text="another ")]) is None


def test_seeds_are_one_line_and_everything_comes_from_the_files(tmp_path):
    """Guards: settings that differ in more than the seed under one name; a start told once for each run."""
    draw = random.Random(0)
    steps = {"step": [0, 1, 2], "accuracy": [None, 0.4, 0.5], "dev_accuracy": [0.2, None, 0.6], "calls": [0, 9, 20]}
    places = []
    for algo in ("arpo", "grpo"):
        for seed in (0, 1):
            right = [[draw.random() < 0.7] for _ in range(30)]
            rows = {"start, greedy": row([[0]] * 30, "start", seed), f"{algo}, greedy": row(right, algo, seed)}
            rows |= {f"{algo}, sampled": row([one * 5 for one in right], algo, seed, 0.6)}
            rows |= {f"{algo}, last step, greedy": row([[1]] * 30, algo, seed), "expert": row([[1]] * 30, "expert")}
            settings = {"algo": algo, "seed": seed, "output_dir": f"runs/x-{algo}-{seed}"}
            places.append(write(tmp_path / f"x-{algo}-{seed}", rows, steps, **settings))
    agent = {"react": row([[1, 0]] * 20, "react", 0, 0.6)}
    places.append(write(tmp_path / "agent", agent, agent="react", endpoint="http://127.0.0.1:1"))
    told = compare(places, (1, 3, 5), tmp_path / "out")
    names = [line.name for line in lines_of([read_results(place) for place in places])]
    assert names == ["x-arpo, 2 seeds"] * 2 + ["x-grpo, 2 seeds"] * 2 + ["agent", "tiny (start), 2 seeds"]
    greedy, sampled = told.split("world, ")[1:]
    assert greedy.startswith("30 questions, the likeliest answers\n") and "agent" not in greedy
    assert "over x-arpo, 2 seeds, paired; 95% interval by a bootstrap over questions and seeds" in greedy
    assert sampled.startswith("30 questions, sampled answers (T 0.6, top-p 0.95)")
    assert "agent " in sampled and "on the 20 questions of both" in sampled
    assert "x-arpo, 2 seeds, 5 answers a question" in sampled and "agent, 2 answers" not in sampled  # no k from 2 to 2
    plots = [tmp_path / "out" / name for name in ("compared_calls.png", "compared_curves.png")]
    assert all(plot.stat().st_size > 10_000 for plot in plots)
    twice = [line.name for line in lines_of([read_results(place) for place in places[:1] * 2])]
    assert twice == ["x-arpo-0", "x-arpo-0", "x-arpo-0 (2)", "x-arpo-0 (2)", "tiny (start)"]
    kept = (tmp_path / "out" / "compared.txt").read_text()
    assert kept.strip() in told and compare(places, (1, 3, 5), tmp_path / "out") == told


def test_published_numbers_are_fractions_of_the_questions():
    """Guards: a slip in typing them. Those that are no fraction were looked up again, and are so in the paper."""
    odd = {}
    for title, (columns, backbones) in TABLES.items():
        for backbone, rows in backbones.items():
            for method, *published in filter(None, map(str.split, rows.split("\n"))):
                assert len(published) == len(columns)
                if wrong := misfits(columns, published):
                    odd[title, backbone, method] = wrong
                if AVERAGE in columns:
                    *numbers, mean = map(float, published)
                    exact = (backbone, method) != ("Llama-3.1-8B-Instruct", "direct")
                    assert abs(np.mean(numbers) - mean) < (0.08 if exact else 0.3)
    small = {key: wrong for key, wrong in odd.items() if key[1] in ("Qwen3-8B", "Qwen3-14B") or key[0] == "Table 1"}
    hle = {("hle", level) for level in ("NS", "CE", "SF", "")}
    assert small == {
        ("Table 1", "Llama-3.1-8B-Instruct", "direct"): {("math500", "")},
        ("Table 2", "Qwen3-8B", "direct"): {("gaia", "level 1")},
        ("Table 2", "Qwen3-8B", "rag"): hle,
        ("Table 2", "Qwen3-8B", "search-o1"): {("webwalker", "hard")},
        ("Table 2", "Qwen3-8B", "arpo"): {("gaia", "level 1")},
        ("Table 2", "Qwen3-14B", "rag"): hle,
        ("Table 3", "Qwen3-8B", "snippets"): {("hle", "")},
        ("Table 3", "Qwen3-14B", "qwq"): {("hle", ""), ("webwalker", "")},
    }
    assert size("gaia", "") == 103 and size("webwalker", "") == 200 and size("hle", "") == 500


def test_cells_of_the_papers_tables_are_measured_not_run_or_not_comparable(tmp_path):
    """Guards: a number beside a published one that is another quantity: other questions, no judge, greedy."""
    owner = {"backbone": "Qwen/Qwen2.5-3B-Instruct"}
    aime = row([[1], [0]] * 15, "grpo", temperature=0.6, name="aime24", label="correct", **owner)
    strict = row([[1], [0]] * 15, "grpo", temperature=0.6, name="aime25", **owner)
    hotpot = row([[1], [0]] * 50, "grpo", name="hotpotqa", **owner)
    other = row([[1]] * 200, "arpo", temperature=0.6, name="hotpotqa")
    rows = {"aime24": aime, "aime25": strict, "hotpotqa": hotpot, "tiny-run": other}
    places = [write(tmp_path / name, {name: one}, data=name) for name, one in rows.items()]
    told = paper_tables(lines_of([read_results(place) for place in places]))
    first = told[told.index("Table 1, Qwen2.5-3B-Instruct") :].splitlines()
    cells = first[[line.startswith("GRPO") for line in first].index(True) + 1].split()
    assert cells == "ours 100.0 50.0 j - - - - 50.0 qs - - - -".split()
    assert first[3].split() == ["ours", "not", "run"] and told.endswith("no place in these tables: tiny-run")
    assert told.count("ours not run") == 6 + 6 + 6 + 14 + 6 + 6 - 1


def test_presets_are_settings_and_flags_win(capsys):
    """Guards: a preset that names a setting which does not exist, and a table that tells the preset for the run."""
    names = set(TrainConfig.__dataclass_fields__)
    for values in PRESETS.values():
        assert values.keys() <= names and all(value.source for value in values.values())
    config = read_flags(["--preset", "reasoning", "--num_generations", "4", "--num_initial", "2"])
    told = preset_table("reasoning", config).splitlines()
    assert told[1].split() == ["num_generations", "16", "4", "C.2"]
    assert next(line for line in told if line.startswith("threshold")).split()[1:4] == ["0.5", "the", "same"]
    assert config.max_steps == 156 and config.num_minibatches == 8 and not config.browse
    assert config.learning_rate == 5e-4 and "(1e-06)" in "".join(told)  # shown, not set
    assert read_flags(["--preset", "sft"]).sft_data == "arpo-sft"  # and not the world, as by default
    assert describe(config).endswith(preset_table("reasoning", config))


def test_a_step_of_the_cold_start_has_as_many_rows_as_the_paper_says():
    """Guards: a batch size in tokens under the name of one in rows."""
    drawn = ((torch.zeros(rows, 3), torch.zeros(rows, 3)) for rows in (2, 3, 1, 4, 5))
    taken = steps(drawn, 4)
    assert [[len(ids) for ids, _ in next(taken)] for _ in range(2)] == [[2, 3], [1, 4]]
    assert len(next(steps(iter([(torch.zeros(2, 3), None)]), 0))) == 1
