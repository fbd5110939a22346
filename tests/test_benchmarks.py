"""Question files and benchmarks: every shape, every fault of a row, and the real files where they are at hand."""

import base64
import itertools
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from data.benchmarks import BENCHMARKS, load, load_questions, repair, sources_of
from data.grading import accuracy

DEV_DATA = Path(os.environ.get("ARPO_DEV_DATA", Path(__file__).parents[2] / "shared" / "data"))
COUNTS = {
    "eval/aime24.jsonl": 30, "eval/aime25.jsonl": 30, "eval/math500.jsonl": 500, "eval/gsm8k.jsonl": 1319,
    "eval/hotpotqa.jsonl": 200, "eval/2wiki.jsonl": 200, "eval/musique.jsonl": 200, "eval/webwalker.jsonl": 200,
    "eval/bamboogle.jsonl": 125, "official_rl/train_10k.parquet": 10_000, "official_rl/valid.parquet": 180,
    "official_rl/hard_search_1k.parquet": 1071,
}  # fmt: skip


def test_training_on_a_file_holds_out_what_is_judged_on(tmp_path):
    """Guards: a table of "held-out questions" that were trained on."""
    path = tmp_path / "own.jsonl"
    path.write_text("\n".join(json.dumps({"question": f"{n}?", "answer": str(n)}) for n in range(33)))
    parts = [{q.id for q in load_questions(str(path), split)} for split in ("train", "dev", "test")]
    assert list(map(len, parts)) == [26, 4, 3]
    assert set.union(*parts) == {q.id for q in load_questions(str(path), "all")} and sum(map(len, parts)) == 33
    path.write_text(json.dumps({"question": "1?", "answer": "1"}))
    with pytest.raises(ValueError, match="at least 10 questions to train, choose and test on, found 1"):
        load_questions(str(path), "train")


def test_a_mixture_has_of_each_source_what_its_weight_says(tmp_path):
    """Guards: a question twice, a source beyond its weight, and a weight that is not a number."""
    for name, count in (("a", 40), ("b", 100)):
        rows = [json.dumps({"question": f"{name}{n}?", "answer": str(n)}) for n in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))
    a, b = (str(tmp_path / f"{name}.jsonl") for name in "ab")

    def counts(data, *count):
        ids = [question.id for question in load_questions(data, "all", *count)]
        assert len(ids) == len(set(ids))
        return [sum(name.startswith(f"{source}-") for name in ids) for source in "ab"]

    assert counts(f"{a}=0.5,{b}=0.5") == [40, 40] and counts(f"{a}=1,{b}=3") == [33, 100]
    assert counts(f"{a}=0.2,{b}=0.6", 40) == [10, 30] and counts(f"{a}=1") == [40, 0] and counts(b) == [0, 100]
    assert sources_of(f"{a}=0.2,{b}=0.8") == [a, b] and sources_of("world") == ["world"]
    for wrong in (f"{a}=0,{b}=1", f"{a}=x", f"{a},{b}", f"{a}=0.5,", f"=1,{b}=1", f"{a}=-1,{b}=1"):
        with pytest.raises(ValueError, match="expected one source, or name=weight,name=weight with weights above 0"):
            load_questions(wrong, "all")


@pytest.mark.parametrize("name, count", COUNTS.items())
def test_real_files_load_and_their_answers_are_right(name, count):
    if not (DEV_DATA / name).is_file():
        pytest.skip("no development data; ARPO_DEV_DATA says where it is")
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    questions = load_questions(str(DEV_DATA / name), "all")
    assert len(questions) == len({q.id for q in questions}) == count
    assert sum(not q.answers for q in questions) == (name == "official_rl/train_10k.parquet")  # a construction
    assert [(q.id, gold) for q in questions for gold in q.answers if accuracy(q, gold) != 1] == []
    assert not any("\x08" in q.question or "\x0c" in q.question for q in questions)
    if count == 10_000:
        assert sum(q.metric == "math" for q in questions) == 5000


def encrypted(text, key):
    return base64.b64encode(bytes(a ^ b for a, b in zip(text.encode(), itertools.cycle(key.encode())))).decode()


CANARY = "canary GUID xbench-DeepSearch:1"
ROWS = {  # a made-up row of each set in its documented shape; its answers
    "AIME24": ({"id": 60, "problem": "1+1?", "solution": r"\boxed{2}", "answer": "2", "year": "2024"}, ("2",)),
    "AIME25": ({"problem": "1+1?", "answer": 2, "id": "0"}, ("2",)),
    "MATH500": ({"problem": "?", "solution": r"\boxed{3}", "answer": r"\frac{1}{2}", "level": 2}, (r"\frac{1}{2}",)),
    "GSM8K": ({"question": "eggs?", "answer": "16 - 3 = <<16-3=13>>13\n#### 1,013"}, ("1,013",)),
    "MATH": ({"problem": "?", "level": "1", "solution": r"So \boxed{1}, or \boxed{\frac{1}{2}}."}, (r"\frac{1}{2}",)),
    "WebWalkerQA": ({"question": "谁?", "answer": "肖亮", "root_url": "", "info": {"lang": "zh"}}, ("肖亮",)),
    "HotpotQA": ({"id": "5a", "question": "who?", "answer": "yes", "context": {}, "level": "hard"}, ("yes",)),
    "2WikiMultihopQA": ({"id": "8", "question": "where?", "answer": "Arden", "evidences": []}, ("Arden",)),
    "MuSiQue": ({"id": "2hop", "question": "?", "answer": "Li Ye", "answer_aliases": ["Li", ""]}, ("Li Ye", "Li")),
    "Bamboogle": ({"Question": "who?", "Answer": "James Madison"}, ("James Madison",)),
    "GAIA": ({"task_id": "c", "Question": "?", "Level": "1", "Final answer": "17", "file_name": ""}, ("17",)),
    "HLE": ({"id": "6", "question": "?", "image": "", "answer": "B", "canary": "BENCHMARK DATA"}, ("B",)),
    "xbench-DeepSearch": (
        {"id": "1", "prompt": encrypted("几个?", CANARY), "answer": encrypted("161", CANARY), "canary": CANARY},
        ("161",),
    ),
    "SimpleQA": ({"metadata": "{}", "problem": "who?", "answer": "Ann Rusk"}, ("Ann Rusk",)),
}  # fmt: skip


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for the `datasets` package, which is asked for sets and gives the rows it was given."""
    fake = SimpleNamespace(rows=[], asked=[])

    def load_dataset(*what, split):
        fake.asked.append((*what, split))
        if isinstance(fake.rows, Exception):
            raise fake.rows
        return fake.rows

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    return fake


def test_every_benchmark_has_a_row_here():
    assert len(ROWS) == len(BENCHMARKS) == 14


@pytest.mark.parametrize("name", ROWS)
def test_benchmarks_by_name(hub, name):
    row, answers = ROWS[name]
    hub.rows = [row, row]
    first, _ = load_questions(name, "test")
    assert first.answers == answers and accuracy(first, answers[0]) == 1
    assert first.question in ("1+1?", "?", "eggs?", "谁?", "who?", "where?", "几个?")
    (benchmark,) = [b for b in BENCHMARKS.values() if b.hub == hub.asked[0][0]]
    assert hub.asked == [(benchmark.hub, benchmark.config, benchmark.split)] and first.metric == benchmark.metric
    assert load_questions(benchmark.hub, "test")[0] == first  # by its hub id it is the same set


def test_a_dev_split_is_no_part_of_training_or_test(hub):
    hub.rows = [ROWS["GSM8K"][0]]
    for split in ("train", "dev", "test"):
        load("gsm8k", split)
    assert [asked[-1] for asked in hub.asked] == ["train[:-500]", "train[-500:]", "test"]
    own = [{"question": f"{n}?", "answer": str(n)} for n in range(20)]
    for hub.rows in ({"train": own, "test": []}, {"other": own}):  # a set that is not in the table is cut as a file is
        parts = [{q.id for q in load("owner/own-set", split)} for split in ("train", "dev", "test")]
        assert list(map(len, parts)) == [16, 2, 2] and len(set.union(*parts)) == 20
    assert hub.asked[-1] == ("owner/own-set", None, None)
    load("arpo-deepsearch", "train")
    assert hub.asked[-1] == ("dongguanting/ARPO-RL-DeepSearch-1K", None, None)
    with pytest.raises(ValueError, match="aime24 has no training questions"):
        load("AIME24", "train")


def test_a_set_of_another_size_is_reported_and_rows_with_images_are_skipped(hub, capsys):
    row = ROWS["HLE"][0]
    hub.rows = [row, row | {"image": "data:image/png;base64,"}, row]
    assert len(load("hle", "test")) == 2
    errors = capsys.readouterr().err
    assert "expected 2,500 rows, found 3" in errors and "1 of 3 rows skipped, they need an image" in errors
    hub.rows = [ROWS["GAIA"][0] | {"file_name": "table.xlsx"}]
    with pytest.raises(ValueError, match="gaia: no questions in this set"):
        load("gaia", "test")


@pytest.mark.parametrize(
    "name, words", [("hle", "gated: accept its terms at huggingface.co/datasets/cais/hle"), ("owner/set", "owner/set")]
)
def test_what_cannot_be_fetched_says_what_to_do(hub, monkeypatch, name, words):
    hub.rows = ConnectionError("no network\nand a long trace")
    with pytest.raises(ValueError, match=words) as error:
        load(name, "test")
    assert "no network" in str(error.value) and "\n" not in str(error.value)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match="pip install datasets"):
        load(name, "test")
    with pytest.raises(ValueError, match="unknown data 'gsm9k': expected world, aime24, .* or a .json, .jsonl"):
        load("gsm9k", "test")


def test_a_file(tmp_path, capsys):
    path = tmp_path / "aime25.jsonl"
    path.write_text(
        '\ufeff{"problem": "1+1?", "answer": 2}\r\n\n'
        '{"Question": "who\u2028?", "answer": ["a", "b", "a"], "metric": "f1"}\n'
        '{"question": "?", "answer": " ", "id": "x"}',
        encoding="utf-8",
    )
    first, second, third = load_questions(str(path), "all")
    assert (first.answers, first.metric, first.id) == (("2",), "math", "aime25-1")
    assert (second.question, second.answers, second.metric) == ("who\u2028?", ("a", "b"), "f1")
    assert (third.answers, third.id) == ((), "aime25-x")
    assert "1 of 3 rows without an answer, kept (line 4 first)" in capsys.readouterr().err
    assert len(load_questions(str(path), "all", 2)) == 2
    array = tmp_path / "own.json"
    array.write_text('[{"question": "1+1?", "answer": 2},\n {"question": "who?", "answer": "a"}]')
    assert [q.id for q in load_questions(str(array), "all")] == ["own-1", "own-2"]


GOOD = b'{"question": "x", "answer": 1}\n'


@pytest.mark.parametrize(
    "text, message",
    [
        (GOOD + b"{oops\n", "line 2: "),
        (GOOD + b'{"question": "cut of', "line 2: "),
        (b'{"question": "\xff", "answer": 1}', "line 1: "),
        (b"\n\n", "no questions in this file"),
        (b"", "no questions in this file"),
        (GOOD + b"[1]", "line 2: expected an object, found list"),
        (b"null", "line 1: expected an object, found NoneType"),
        (b'{"answer": 1}', "line 1: expected a text under one of question, problem, .*, found None"),
        (b'{"question": " ", "answer": 1}', "expected a text under one of"),
        (b'{"question": 5, "answer": 1}', "expected a text under one of"),
        (b'{"question": "x"}', "expected a text, a number or a list of them as the answer, found None"),
        (b'{"question": "x", "answer": null}', "as the answer, found None"),
        (b'{"question": "x", "answer": {"value": 1}}', "as the answer, found {'value': 1}"),
        (b'{"question": "x", "answer": [["a"]]}', "as the answer"),
        (b'{"question": "x", "answer": true}', "as the answer, found True"),
        (b'{"question": "x", "answer": NaN}', "as the answer, found nan"),
        (b'{"question": "x", "answer": 1, "metric": "bleu"}', "expected a metric out of em, f1, math, found 'bleu'"),
        (b"[" * 100_000, "line 1: "),
        (b'{"canary": "GUID xbench", "answer": "1"}', "line 1: 'prompt'"),
        (b'{"canary": "GUID xbench", "prompt": "?", "answer": "1"}', "line 1: "),
    ],
)
def test_a_broken_file_is_one_clear_line(tmp_path, text, message):
    path = tmp_path / "q.jsonl"
    path.write_bytes(text)
    with pytest.raises(ValueError, match=message) as error:
        load_questions(str(path), "all")
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


def official_row(**changes):
    row = {
        "data_source": "x", "prompt": [{"role": "user", "content": "who?"}], "ability": "math",
        "reward_model": {"ground_truth": "3 \x0crac12"}, "extra_info": {"index": 0, "question": "in \x08oxed{}"},
    }  # fmt: skip
    return row | changes


def test_a_parquet_file_of_the_official_shape(tmp_path, monkeypatch):
    """Ledger: `\\boxed` was read as an escape in all RL rows of the official set."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    path = tmp_path / "train.parquet"
    write_table(pyarrow.Table.from_pylist([official_row(), official_row(ability=None)]), path)
    math, search = load_questions(str(path), "all")
    assert (math.question, math.answers, math.metric) == (r"in \boxed{}", (r"3 \frac12",), "math")
    assert search.metric == "f1" and search.id == "train-2"
    write_table(pyarrow.Table.from_pylist([official_row(), official_row(extra_info=None, prompt=None)]), path)
    with pytest.raises(ValueError, match="row 2: expected a text under one of"):
        load_questions(str(path), "all")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match="train.parquet: not a whole parquet file"):
        load_questions(str(path), "all")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match="pip install pyarrow"):
        load_questions(str(path), "all")


def test_repair():
    assert repair("put it in \x08oxed{} as \x0crac{m}{n}") == r"put it in \boxed{} as \frac{m}{n}"
    assert repair("a bakery \x0cfinds\n\ttwo") == "a bakery finds\n\ttwo"
    assert json.loads(json.dumps(repair("\x00é"))) == "é"
