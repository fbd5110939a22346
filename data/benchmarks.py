"""Questions by name: the built-in world, public sets, your own files, mixtures; how a row becomes a `Question`.

Rows come from the Hugging Face hub (needs `datasets`), from parquet files (needs `pyarrow`) or from JSON
and JSONL files; `conversations.py` reads rows through the same functions. HLE, SimpleQA, WebWalkerQA and
xbench are officially judged by a language model; here they are compared with the gold answer, so the numbers
are stricter than published ones. Left out: rows that come with an image or a file, since the policy only
reads text; they are counted and reported.
"""

import base64
import itertools
import json
import re
import sys
from collections.abc import Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from data import WORLD_SEEDS, Question
from data.grading import METRICS, unboxed
from data.world import World


@dataclass(frozen=True)
class Benchmark:
    hub: str  # id on the hub
    split: str  # what results are reported on
    size: int  # its rows; 0 where that is not known
    metric: str  # a key of grading.METRICS
    licence: str
    config: str | None = None
    train: str = ""  # the hub's split to train on; "" for sets that are for testing alone
    gated: bool = False


# fmt: off
BENCHMARKS = {
    "aime24": Benchmark("HuggingFaceH4/aime_2024", "train", 30, "math", "problems by the MAA"),
    "aime25": Benchmark("math-ai/aime25", "test", 30, "math", "problems by the MAA"),
    "math500": Benchmark("HuggingFaceH4/MATH-500", "test", 500, "math", "MIT, a part of MATH"),
    "gsm8k": Benchmark("openai/gsm8k", "test", 1319, "math", "MIT", "main", "train"),
    "math": Benchmark("DigitalLearningGmbH/MATH-lighteval", "test", 5000, "math", "MIT", None, "train"),
    "webwalker": Benchmark("callanwu/WebWalkerQA", "main", 680, "f1", "Apache-2.0"),
    "hotpotqa": Benchmark("hotpotqa/hotpot_qa", "validation", 7405, "f1", "CC BY-SA 4.0", "distractor", "train"),
    "2wiki": Benchmark("framolfese/2WikiMultihopQA", "validation", 12576, "f1", "Apache-2.0", None, "train"),
    "musique": Benchmark("dgslibisey/MuSiQue", "validation", 2417, "f1", "CC BY 4.0", None, "train"),
    "bamboogle": Benchmark("chiayewken/bamboogle", "test", 125, "f1", "MIT"),
    "gaia": Benchmark("gaia-benchmark/GAIA", "validation", 165, "em", "not to be reshared", "2023_all", gated=True),
    "hle": Benchmark("cais/hle", "test", 2500, "math", "MIT", gated=True),
    "xbench": Benchmark("xbench/DeepSearch", "train", 100, "f1", "encrypted: keep the plain text offline"),
    "simpleqa": Benchmark("basicv8vc/SimpleQA", "test", 4326, "f1", "MIT"),
}
# fmt: on
# The authors' questions for RL, in the shape of a file: they are cut into train, dev and test here.
RL_SETS = {
    "arpo-reasoning": "dongguanting/ARPO-RL-Reasoning-10K",
    "arpo-deepsearch": "dongguanting/ARPO-RL-DeepSearch-1K",
}
ALIASES = {"webwalkerqa": "webwalker", "2wikimultihopqa": "2wiki", "xbenchdeepsearch": "xbench"}
ALIASES |= {re.sub(r"[^a-z0-9]", "", benchmark.hub.lower()): key for key, benchmark in BENCHMARKS.items()}
DEV_ROWS = 500  # cut off the end of a training split, so that choosing a model does not see the test
FILE_SPLITS = {"train": 0.8, "dev": 0.1, "test": 0.1}  # of a file's questions, in this order, when one trains on it

QUESTION_KEYS = ("question", "problem", "Question", "prompt")
ANSWER_KEYS = ("answer", "Answer", "Final answer", "golden_answers")


def load_questions(data: str, split: str, count: int | None = None) -> list[Question]:
    """Questions of one source, or of a mixture with weights: "gsm8k=0.3,world=0.7".

    A source is the built-in "world", a benchmark, a hub set "owner/name", or a file (.json, .jsonl, .parquet). `split`
    is train, dev or test, which share no question; or "all", to be judged on: the test split of a set, and the whole
    of a file. A mixture holds of each source what its weight says, as many as there are without repeating any.
    ValueError or OSError says in one line what is wrong.
    """
    parts = [part.rpartition("=") for part in data.split(",")]
    if len(parts) == 1 and not parts[0][1]:
        return load(data, split, count)
    if not all(name and re.fullmatch(r"\d*\.?\d+", weight) and float(weight) for name, _, weight in parts):
        raise ValueError(f"--data {data}: expected one source, or name=weight,name=weight with weights above 0")
    sources = [(load(name, split), float(weight)) for name, _, weight in parts]
    unit = min(len(questions) / weight for questions, weight in sources)
    if count:
        unit = min(unit, count / sum(weight for _, weight in sources))
    return [question for questions, weight in sources for question in questions[: round(unit * weight)]]


def sources_of(data: str) -> list[str]:
    """The names of a mixture's sources, or the one there is."""
    return [part.partition("=")[0] for part in data.split(",")]


def load(name: str, split: str, count: int | None = None) -> list[Question]:
    """Questions of one source; see `load_questions`."""
    if split not in (*WORLD_SEEDS, "all"):
        raise ValueError(f"unknown split {split!r}: expected one of {', '.join(WORLD_SEEDS)}, all")
    if name == "world":
        return World.of(split).questions(1200 if count is None else count, WORLD_SEEDS.get(split, WORLD_SEEDS["test"]))
    return _load_set(name, split)[:count]


def _load_set(name: str, split: str) -> list[Question]:
    """A split's questions of a file, a benchmark or a hub set."""
    path = Path(name)
    key = re.sub(r"[^a-z0-9]", "", (path.stem if path.suffix in READERS else name).lower())
    key = ALIASES.get(key, key)
    benchmark, cut = BENCHMARKS.get(key), path.suffix in READERS
    if path.suffix in READERS:
        rows, source = READERS[path.suffix](path), name
    elif benchmark:
        rows, source = hub_rows(benchmark, key, split), key
    elif name in RL_SETS or (name.count("/") == 1 and not path.exists()):
        source = RL_SETS.get(name, name)
        rows, key, cut = hub_rows(Benchmark(source, "", 0, "em", ""), source), Path(source).name, True
    else:
        known = ", ".join([*BENCHMARKS, *RL_SETS])
        raise ValueError(
            f"unknown data {name!r}: expected world, {known}, a hub id, or a .json, .jsonl or .parquet file"
        )
    questions = _questions(rows, source, key, benchmark.metric if benchmark else "em")
    return _part(questions, split, name) if cut and split != "all" else questions


def _part(questions: list[Question], split: str, name: str) -> list[Question]:
    """What a split has of a file's questions: none that another split has."""
    if len(questions) < 10:
        raise ValueError(f"{name}: expected at least 10 questions to train, choose and test on, found {len(questions)}")
    place, shares = list(FILE_SPLITS).index(split), list(itertools.accumulate(FILE_SPLITS.values(), initial=0))
    start, end = (round(share * len(questions)) for share in shares[place : place + 2])
    return questions[start:end]


Rows = list[tuple[str, object]]  # (such as "line 3", the row)


def _jsonl_rows(path: Path) -> Rows:
    # Bytes: a text's splitlines() would also split at the line separators that JSON allows inside strings.
    lines = enumerate(path.read_bytes().splitlines(), start=1)
    return [(f"line {number}", line) for number, line in lines if line.strip()]


def _json_rows(path: Path) -> Rows:
    with naming(str(path), "read as JSON"):
        rows = json.loads(path.read_bytes())
        if not isinstance(rows, list):
            raise ValueError(f"expected an array, found {type(rows).__name__}")
    return _numbered(rows)


def _parquet_rows(path: Path) -> Rows:
    try:
        import pyarrow
        from pyarrow.parquet import read_table
    except ImportError:
        raise ValueError(f"{path}: parquet files need pyarrow (pip install pyarrow)") from None
    try:
        return _numbered(read_table(path.open("rb")).to_pylist())
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path}: not a whole parquet file ({_first_line(error)})") from None


def hub_rows(benchmark: Benchmark, name: str, split: str = "") -> Rows:
    """Rows of a set on the hub: those that train or dev are cut from, or else of the split that it names.

    Of a set that names none: its training split, or whatever it has.
    """
    if split == "train" and not benchmark.train:
        raise ValueError(f"{name} has no training questions: it is a test")
    parts = {"train": f"[:-{DEV_ROWS}]", "dev": f"[-{DEV_ROWS}:]"}
    wanted = benchmark.train + parts[split] if benchmark.train and split in parts else benchmark.split or None
    try:
        from datasets import load_dataset
    except ImportError:
        raise ValueError(f"{name}: sets from the hub need the datasets package (pip install datasets)") from None
    try:
        found = load_dataset(benchmark.hub, benchmark.config, split=wanted)
    except Exception as error:  # the library raises its own, httpx's and fsspec's errors
        terms = f"accept its terms at huggingface.co/datasets/{benchmark.hub}, then run `hf auth login`"
        hint = f"; it is gated: {terms}" if benchmark.gated else ""
        raise ValueError(f"cannot load {benchmark.hub}: {_first_line(error)}{hint}") from None
    rows = _numbered(found if wanted else found.get("train") or next(iter(found.values())))
    if wanted == benchmark.split and benchmark.size not in (0, len(rows)):
        print(f"{name}: expected {benchmark.size:,} rows, found {len(rows):,}", file=sys.stderr)
    return rows


READERS = {".json": _json_rows, ".jsonl": _jsonl_rows, ".parquet": _parquet_rows}


def _numbered(rows: Iterable) -> Rows:
    return [(f"row {number}", row) for number, row in enumerate(rows, start=1)]


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def as_record(row) -> dict:
    """The object that a row is, or that its line of JSON says."""
    record = json.loads(row) if isinstance(row, bytes) else row
    if not isinstance(record, dict):
        raise ValueError(f"expected an object, found {type(record).__name__}")
    return record


@contextmanager
def naming(source: str, place: str):
    """What goes wrong inside with a row becomes a ValueError that says in one line which row it was."""
    try:
        yield
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise ValueError(f"{source}, {place}: {_first_line(error)}") from None


def _questions(rows: Rows, source: str, key: str, metric: str) -> list[Question]:
    """Raises ValueError at the first row that is no question; reports rows that cannot be asked or graded."""
    questions, unasked, ungraded = [], [], []
    for place, row in rows:
        with naming(source, place):
            record = _plain_record(as_record(row))
            if record.get("image") or record.get("file_name"):
                unasked.append(place)
                continue
            questions.append(_question(record, f"{key}-{record.get('id', place.split()[1])}", metric))
        if not questions[-1].answers:
            ungraded.append(place)
    for places, what in ((unasked, "skipped, they need an image or a file"), (ungraded, "without an answer, kept")):
        if places:
            print(f"{source}: {len(places):,} of {len(rows):,} rows {what} ({places[0]} first)", file=sys.stderr)
    if not questions:
        raise ValueError(f"{source}: no questions in this {'file' if Path(source).suffix in READERS else 'set'}")
    return questions


def _plain_record(record: dict) -> dict:
    """One flat record: nested training rows unfolded, encrypted ones read."""
    if isinstance(record.get("reward_model"), dict):  # the official RL sets
        metric = "math" if record.get("ability") == "math" else "f1"
        nested = {"answer": record["reward_model"].get("ground_truth"), "metric": metric}
        record = {**record, **(record.get("extra_info") or {}), **nested}
    if "GUID xbench" in str(record.get("canary")):
        record = {**record, **{field: _decrypt(record[field], record["canary"]) for field in ("prompt", "answer")}}
    return record


def _decrypt(text: str, key: str) -> str:
    """xbench's cipher: base64 of the bytes XORed with the row's canary, over and over."""
    pairs = zip(base64.b64decode(text), itertools.cycle(key.encode()))
    return bytes(byte ^ mask for byte, mask in pairs).decode()


def _question(record: dict, name: str, metric: str) -> Question:
    text = next((record[key] for key in QUESTION_KEYS if key in record), None)
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"expected a text under one of {', '.join(QUESTION_KEYS)}, found {text!r:.40}")
    gold = next((record[key] for key in ANSWER_KEYS if key in record), None)
    if gold is None and r"\boxed{" in str(record.get("solution")):  # MATH
        gold = unboxed(record["solution"])
    golds = [*(gold if isinstance(gold, list) else [gold]), *(record.get("answer_aliases") or [])]
    if not all(isinstance(g, str | int | float) and not isinstance(g, bool) and g == g for g in golds):  # NaN is not
        raise ValueError(f"expected a text, a number or a list of them as the answer, found {gold!r:.40}")
    metric = record.get("metric", metric)
    if metric not in METRICS:
        raise ValueError(f"expected a metric out of {', '.join(METRICS)}, found {metric!r}")
    # GSM8K writes its reasoning first, and the answer after "####".
    answers = (repair(str(g)).split("####")[-1].strip() for g in golds)
    return Question(name, repair(text), tuple(dict.fromkeys(filter(None, answers))), metric=metric)


def repair(text: str) -> str:
    r"""Undo corruptions of public sets: `\boxed` and `\frac` read as escapes, other control characters."""
    text = text.replace("\x08oxed", r"\boxed").replace("\x0crac", r"\frac")
    return re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", "", text)
