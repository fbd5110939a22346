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
from data.judge import judge_of

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
    for wrong in (f"{a}=0,{b}=1", "world=x", "world,gsm8k", f"{a}=0.5,", f"=1,{b}=1", f"{a}=-1,{b}=1"):
        with pytest.raises(ValueError, match="expected one source, or name=weight,name=weight with weights above 0"):
            load_questions(wrong, "all")
    for wrong in (f"{a}=x", f"{a},{b}"):
        with pytest.raises(ValueError, match="no such file"):
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


def test_levels_and_groups_are_the_families_of_questions(hub):
    """Guards: one number over the levels of GAIA, and published groups that no column names."""
    rows = {
        "gaia": [
            {"Question": f"{n}?", "Level": level, "Final answer": "1"} for n, level in enumerate((1, "2", 3, None))
        ],
        "webwalker": [
            {"question": "a?", "answer": "1", "info": {"difficulty_level": "easy"}},
            {"question": "b?", "answer": "1", "info": {"difficulty_level": "Hard", "lang": "en"}},
            {"question": "c?", "answer": "1", "info": "none"},
        ],
        "hle": [{"question": f"{name}?", "answer": "1", "category": name} for name in HLE],
        "math500": [{"problem": "a?", "answer": "1", "level": 5}, {"problem": "b?", "answer": "1", "level": "Level 1"}],
        "hotpotqa": [{"question": "a?", "answer": "1", "level": "hard"}],
    }
    found = {}
    for name, hub.rows in rows.items():
        found[name] = [question.family for question in load_questions(name, "test")]
    assert found == {
        "gaia": ["level 1", "level 2", "level 3", ""], "webwalker": ["easy", "hard", ""], "hle": list(HLE.values()),
        "math500": ["level 5", "level 1"], "hotpotqa": [""],
    }  # fmt: skip


HLE = {
    "Math": "NS", "Biology/Medicine": "NS", "Physics": "NS", "Chemistry": "NS", "Computer Science/AI": "CE",
    "Engineering": "CE", "Humanities/Social Science": "SF", "Other": "SF", "Cooking": "",
}  # fmt: skip


def test_who_judges_a_set_stands_in_the_registry(hub):
    found = {}
    for name, (row, _) in ROWS.items():
        hub.rows = [row]
        found.setdefault(judge_of(load_questions(name, "test")[0]), []).append(name)
    assert found == {
        "paper": ["AIME24", "AIME25", "MATH500", "GSM8K", "MATH", "GAIA"],
        "set": ["WebWalkerQA", "HLE", "xbench-DeepSearch"],
        "three": ["SimpleQA"],
        "": ["HotpotQA", "2WikiMultihopQA", "MuSiQue", "Bamboogle"],
    }
    assert judge_of(load_questions("world", "test", 1)[0]) == ""


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
    with pytest.raises(ValueError, match="aime24: expected a set with training questions"):
        load("AIME24", "train")


def test_a_set_of_another_size_is_reported_and_rows_with_images_are_skipped(hub, capsys):
    row = ROWS["HLE"][0]
    hub.rows = [row, row | {"image": "data:image/png;base64,"}, row]
    assert len(load("hle", "test")) == 2
    errors = capsys.readouterr().err
    assert "expected 2,500 rows, found 3" in errors and "1 of 3 rows skipped, they need an image" in errors
    hub.rows = [ROWS["GAIA"][0] | {"file_name": "table.xlsx"}]
    with pytest.raises(ValueError, match="gaia: expected questions, found no questions in this set"):
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
    with pytest.raises(ValueError, match="unknown data 'gsm9k': expected world, trails, aime24, .* or a .json, .jsonl"):
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
        (b'{"Frage": "x", "answer": 1}', "found None; the row has Frage, answer$"),
        (
            b'{"question": "x"}',
            "a list of them as the answer under one of answer, .*, found None; the row has question$",
        ),
        (b'{"question": "x", "response": "y"}', "the row has question, response$"),
        (b'{"question": "x", "answer": null}', "as the answer .*, found None"),
        (b'{"question": "x", "answer": {"start": 1}}', "as the answer .*, found {'start': 1}"),
        (b'{"question": "x", "answer": [["a"]]}', "as the answer"),
        (b'{"question": "x", "answer": NaN}', "as the answer .*, found nan"),
        (b'{"question": "x", "answer": 1e400}', "as the answer .*, found inf"),
        (b'[{"question": "x", "answer": 1}]', "expected an object, found list .an array of rows is named .json"),
        (b"[\n" + GOOD + b"]", "expected an object on each line, found one over several; an array is named .json"),
        (b'{"prompt": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}', "found 2"),
        (
            b'{"question": "x", "answer": 1, "metric": "bleu"}',
            "expected a metric out of em, f1, math, gaia, found 'bleu'",
        ),
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
    assert search.id == "train-2" and search.metric == "math"  # by its answer
    write_table(pyarrow.Table.from_pylist([official_row(ability=ability) for ability in ("qa", "MATH")]), path)
    assert [q.metric for q in load_questions(str(path), "all")] == ["f1", "math"]
    write_table(pyarrow.Table.from_pylist([official_row(), official_row(extra_info=None, prompt=None)]), path)
    with pytest.raises(ValueError, match="row 2: expected a text under one of"):
        load_questions(str(path), "all")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match="train.parquet: .* not a whole parquet file"):
        load_questions(str(path), "all")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match="pip install pyarrow"):
        load_questions(str(path), "all")


def rows_file(folder, *rows, name="own.jsonl"):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return str(path)


def own(count, text="How much is {}?"):
    return [{"question": text.format(n), "answer": str(n)} for n in range(count)]


def splits(data):
    return [[q.question for q in load_questions(data, split)] for split in ("train", "dev", "test")]


def test_repeats_of_a_question_are_in_one_split(tmp_path, capsys):
    """Guards: a set with each prompt a hundred times, of which every held-out question was trained on."""
    rows = own(30) * 10 + [row | {"question": f" {row['question'].upper()} "} for row in own(30)]
    parts = splits(rows_file(tmp_path, *rows))
    assert sum(map(len, parts)) == 330 and [len({q.strip().lower() for q in part}) for part in parts] == [24, 3, 3]
    assert not set.intersection(*({q.strip().lower() for q in part} for part in parts))
    assert "300 of 330 rows repeat a question" in capsys.readouterr().err
    with pytest.raises(ValueError, match="expected at least 10 .*, found 9 different ones"):
        load_questions(rows_file(tmp_path, *own(9) * 5), "train")


def test_questions_that_differ_in_a_sign_are_no_repeats(tmp_path, capsys):
    rows = [{"question": f"What is {n} {sign} 2?", "answer": str(n)} for n in range(5) for sign in "+-*/^"]
    assert [len(part) for part in splits(rows_file(tmp_path, *rows))] == [20, 2, 3]
    assert "repeat" not in capsys.readouterr().err


def test_the_files_of_a_mixture_share_no_question_across_splits_and_no_id(tmp_path):
    a = rows_file(tmp_path, *own(20), *own(10, "Who is {}?"), name="a/train.jsonl")
    b = rows_file(tmp_path, *own(20)[::-1], *own(10, "Where is {}?"), name="b/train.jsonl")
    train, dev, test = (set(part) for part in splits(f"{a}=1,{b}=1"))
    assert not (train & dev or train & test or dev & test)
    ids = [question.id for question in load_questions(f"{a}=1,{b}=1", "all")]
    assert len(ids) == len(set(ids)) == 60
    same = load_questions(rows_file(tmp_path, *(row | {"id": n % 2} for n, row in enumerate(own(12)))), "all")
    assert len({question.id for question in same}) == 12 and same[0].id == "own-0"


SHAPES = {  # a row of each shape that others write; question, answers and metric
    "Search-R1": (
        {"data_source": "nq", "question": "a?", "golden_answers": ["X", "Y"], "ability": "fact-reasoning",
         "prompt": [{"role": "user", "content": "Answer: a?"}],
         "reward_model": {"style": "rule", "ground_truth": {"target": ["X", "Y"]}}}, "a?", ("X", "Y"), "f1",
    ),
    "DAPO": (
        {"data_source": "math_dapo", "prompt": [{"role": "user", "content": "a?"}], "ability": "MATH",
         "reward_model": {"ground_truth": "34"}, "extra_info": {"index": "u"}}, "a?", ("34",), "math",
    ),
    "Skywork": ({"prompt": [{"role": "user", "content": "a?"}], "ability": "math",
                 "reward_model": {"ground_truth": '["34"]'}}, "a?", ("34",), "math"),
    "TRL": ({"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "a?"}],
             "solution": r"So \boxed{5}."}, "a?", ("5",), "math"),
    "parts": ({"prompt": [{"role": "User", "content": [{"type": "text", "text": "a?"}]}], "answer": 5},
              "a?", ("5",), "em"),
    "messages as JSON": ({"prompt": '[{"role": "user", "content": "a?"}]', "answer": "b"}, "a?", ("b",), "em"),
    "DeepScaleR": ({"problem": "a?", "answer": r"-\frac{2}{3}", "solution": "."}, "a?", (r"-\frac{2}{3}",), "math"),
    "MATH": ({"problem": "a?", "level": "Level 5", "type": "Algebra", "solution": r"\boxed{5}"}, "a?", ("5",), "math"),
    "DeepMath": ({"question": "a?", "final_answer": "x^{2}"}, "a?", ("x^{2}",), "math"),
    "AIME": ({"Problem": "a?", "Answer": 204}, "a?", ("204",), "em"),
    "GSM8K": ({"question": "a?", "answer": "16 - 3 = 13\n#### 1,013"}, "a?", ("1,013",), "math"),
    "no GSM8K": ({"question": "a?", "answer": "C# and #### sign"}, "a?", ("C# and #### sign",), "em"),
    "an interval": ({"problem": "a?", "answer": "[1, 2]"}, "a?", ("[1, 2]",), "em"),
    "WebQuestions": ({"question": "a?", "answers": ["X", "Y"]}, "a?", ("X", "Y"), "em"),
    "TriviaQA": ({"question": "a?", "answer": {"value": "X", "aliases": ["Y"]}}, "a?", ("X", "Y"), "em"),
    "SQuAD": ({"question": "a?", "answers": {"text": ["X"], "answer_start": [3]}}, "a?", ("X",), "em"),
    "StrategyQA": ({"question": "a?", "answer": True}, "a?", ("yes", "true"), "em"),
    "Alpaca": ({"instruction": "Name it.", "input": "a", "output": "X"}, "Name it.\n\na", ("X",), "em"),
    "no gold": ({"question": "a?", "answer": "?"}, "a?", (), "em"),
    "half a character": ({"question": "a\ud800?", "answer": "b"}, "a?", ("b",), "em"),
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_rows_of_every_shape(tmp_path, shape, capsys):
    row, question, answers, metric = SHAPES[shape]
    (found,) = load_questions(rows_file(tmp_path, row), "all")
    assert (found.question, found.answers, found.metric) == (question, answers, metric)
    assert f"1 questions (all), metric {metric} 1" in capsys.readouterr().err
    assert load_questions(rows_file(tmp_path, row), "all", metric="f1")[0].metric == "f1"


def test_the_metric_is_the_same_for_a_file_and_can_be_set(tmp_path, capsys):
    """Guards: LaTeX compared as words. A tenth of the answers that look like mathematics is enough."""
    formula = {"question": "slope?", "answer": r"-\frac{2}{3}x + \sqrt{12}"}
    path = rows_file(tmp_path, *own(9), formula)
    slope = load_questions(path, "all")[-1]
    assert slope.metric == "math" and accuracy(slope, r"2\sqrt{3} - \frac{2x}{3}") == 1
    assert "metric math 10 (another: --metric)" in capsys.readouterr().err
    assert {q.metric for q in load_questions(rows_file(tmp_path, *own(10), formula), "all")} == {"em"}
    assert load_questions("world", "dev", 1, "f1")[0].metric == "f1"
    with pytest.raises(ValueError, match="expected a metric out of em, f1, math, gaia, found 'bleu'"):
        load_questions("world", "dev", 1, "bleu")


def test_what_is_not_read_is_counted_and_told(tmp_path, capsys):
    row = {"question": "a?", "problem": "b?", "input": "c", "answer": "5", "target": "6", "options": ["x"], "id": 1}
    last = {"question": "b?", "answer": "", "final_answer": "7"}
    found = load_questions(rows_file(tmp_path, row, {"question": "c?", "answer": ""}, *own(2), last), "all")
    said = capsys.readouterr().err
    assert "not read: problem 1, input 1, target 1, options 1" in said and found[-1].answers == ("7",)
    assert "1 of 5 rows without an answer, kept (line 2 first)" in said


def test_a_few_bad_rows_are_told_and_many_are_an_error(tmp_path, capsys):
    assert len(load_questions(rows_file(tmp_path, *own(9), {"answer": 1}), "all")) == 9
    assert "own.jsonl, line 10: expected a text" in (said := capsys.readouterr().err) and "1 of 10 rows skipped" in said
    with pytest.raises(ValueError, match="own.jsonl, line 1: expected a text .* 2 of 12 rows are bad"):
        load_questions(rows_file(tmp_path, {"answer": 1}, *own(10), {"answer": 1}), "all")


@pytest.mark.parametrize("name", ["lr=0.1/q.jsonl", "lr=0.1,b=2.jsonl", "a b,c.jsonl", "runs/x=1/q.jsonl", "UP.JSONL"])
def test_a_file_that_exists_is_a_file(tmp_path, monkeypatch, name):
    """Guards: a folder named after a setting, which was taken for a mixture."""
    monkeypatch.chdir(tmp_path)
    rows_file(tmp_path, *own(12), name=name)
    for spelled in (name, f"./{name}", str(tmp_path / name)):
        assert len(load_questions(spelled, "all")) == 12 and sources_of(spelled) == [spelled]
    assert sources_of(f"{name}=0.5,world=0.5") == [name, "world"]
    assert len(load_questions(f"{name}=0.5,world=0.5", "all")) == 24
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(load_questions(f"~/{name}", "all")) == 12


@pytest.mark.parametrize(
    "name, message",
    [
        ("nope.jsonl", "^nope.jsonl: expected a file, found no such file$"),
        ("d/quests.csv", "no such file; did you mean questions.csv"),
        ("d/questions.jsnl", "no such file"), ("runs/nope", "no such file"), ("./nope", "no such file"),
        ("~/nope.jsonl", "^~/nope.jsonl: expected a file, found no such file"), ("~nobody-here/q.csv", "no such file"),
        ("lr=0.1/q.jsonl", "no such file"), ("d/", "found a folder"),
        ("owner/set", "pip install datasets.; and there is no file owner/set"), ("gsm9k", "; did you mean gsm8k"),
        ("x.jsonl.gz", "expected a file that ends in .json, .jsonl, .parquet, .csv, .tsv, found .*: unpack"),
    ],
)  # fmt: skip
def test_a_name_that_means_nothing(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", None)
    rows_file(tmp_path, name="d/questions.csv")
    (tmp_path / "x.jsonl.gz").touch()
    with pytest.raises(ValueError, match=message):
        load_questions(name, "all")


@pytest.mark.parametrize(
    "text", ["question,answer\nWhat, now?,x", "question;answer\nWhat, now?;é", "\ufeffQuestion\tAnswer\nWhat, now?\té"]
)
def test_csv(tmp_path, text):
    path = tmp_path / "q.csv"
    path.write_text(text.replace("What, now?,", '"What, now?",'), encoding="utf-8")
    (found,) = load_questions(str(path), "all")
    assert (found.question, *found.answers) in (("What, now?", "x"), ("What, now?", "é"))
    path.write_text("question,answers\na,\"['x', 'y']\"\nb,1,2\n")
    with pytest.raises(ValueError, match="q.csv, row 2: expected 2 values as in the heading, found more: ..2"):
        load_questions(str(path), "all")
    path.write_text("question,answers\na,\"['x', 'y']\"\n")
    assert load_questions(str(path), "all")[0].answers == ("x", "y")


@pytest.mark.parametrize(
    "text, message",
    [('{"data": [1]}', "expected an array, found dict with a list under data"),
     ('{"question": "a", "answer": 1}\n{"question": "b", "answer": 1}', "lines of JSON are named .jsonl")],
)  # fmt: skip
def test_json_of_another_kind(tmp_path, text, message):
    (tmp_path / "q.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_questions(str(tmp_path / "q.json"), "all")


def test_repair():
    assert repair("put it in \x08oxed{} as \x0crac{m}{n}") == r"put it in \boxed{} as \frac{m}{n}"
    assert repair("a bakery \x0cfinds\n\ttwo") == "a bakery finds\n\ttwo"
    assert json.loads(json.dumps(repair("\x00é"))) == "é"
