"""Questions by name: the built-in world, public sets, your own files, mixtures; how a row becomes a `Question`.

Rows come from the Hugging Face hub (needs `datasets`), from parquet files (needs `pyarrow`) or from JSON,
JSONL and CSV files; `conversations.py` reads rows through the same functions. What is not used of them is counted
and told: columns, rows that cannot be read, and rows that come with an image or a file, since the policy only reads
text. A benchmark's level or category becomes the family of its questions. Which sets a language model judges, and by
whose rules, is said in JUDGED; without one (`judge.py`) answers are compared with the gold one, which is stricter.
"""

import base64
import itertools
import math
import os
import re
import sys
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

from data import WORLD_SEEDS, Question
from data.grading import METRICS, as_number, unboxed
from data.rows import MIXTURE, Benchmark, Rows, as_record, find_rows, naming, path_of, plain_text, unpacked
from data.worlds import is_world, questions_of

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
    "gaia": Benchmark("gaia-benchmark/GAIA", "validation", 165, "gaia", "not to be reshared", "2023_all", gated=True),
    "hle": Benchmark("cais/hle", "test", 2500, "math", "MIT", gated=True),
    "xbench": Benchmark("xbench/DeepSearch", "train", 100, "f1", "encrypted: keep the plain text offline"),
    "simpleqa": Benchmark("basicv8vc/SimpleQA", "test", 4326, "f1", "MIT"),
}
# fmt: on
# Judged by a language model: in the paper alone, by the set's own rules, or by those in three classes. Of the others
# the paper reports F1.
JUDGED = {"paper": "aime24 aime25 math500 gsm8k math gaia", "set": "webwalker hle xbench", "three": "simpleqa"}
# The column that makes a question's family.
LEVELS = {"math500": "level", "math": "level", "gaia": "level", "webwalker": "difficulty_level", "hle": "category"}
# The three groups of the paper's table 2, as its fractions show: 330, 75 and 95 of the authors' 500 rows.
HLE_GROUPS = {"math": "NS", "physics": "NS", "chemistry": "NS", "biology/medicine": "NS", "computer science/ai": "CE"}
HLE_GROUPS |= {"engineering": "CE", "humanities/social science": "SF", "other": "SF"}
# The authors' questions for RL, in the shape of a file: they are cut into train, dev and test here.
RL_SETS = {
    "arpo-reasoning": "dongguanting/ARPO-RL-Reasoning-10K",
    "arpo-deepsearch": "dongguanting/ARPO-RL-DeepSearch-1K",
}
ALIASES = {"webwalkerqa": "webwalker", "2wikimultihopqa": "2wiki", "xbenchdeepsearch": "xbench"}
ALIASES |= {re.sub(r"[^a-z0-9]", "", benchmark.hub.lower()): key for key, benchmark in BENCHMARKS.items()}
FILE_SPLITS = {"train": 0.8, "dev": 0.1, "test": 0.1}  # of a file's questions, in this order, when one trains on it
BAD_ROWS = 0.1  # a larger share of rows that cannot be read is an error

# Keys of a row, in any case; the first that says something is taken.
QUESTION_KEYS = "question problem query prompt messages instruction input".split()
ANSWER_KEYS = "answer final_answer golden_answers answers gold ground_truth expected_answer target output".split()
LABEL_KEYS = "ability data_source source dataset subject type problem_type category domain".split()
OTHER_KEYS = {*LABEL_KEYS, *"id idx index split style canary metric reward_model extra_info".split()}
KNOWN_KEYS = {*QUESTION_KEYS, *ANSWER_KEYS, *OTHER_KEYS, "solution", "image", "images", "file_name", "level", "info"}
MATHS = re.compile(r"(?i)math|algebra|geometry|calculus|number.theory|probability|gsm8k|\b(?:aime|amc)|olympiad|numina")
FORMULA = re.compile(r"\\[a-zA-Z]{2,}|\w\^[\d{(]|\n#### ?[-\d]")
STOPS = re.compile(r"[.,;:?'\"’“”](?!\d)")  # two questions that differ in these alone are one; signs of formulas stay


def load_questions(data: str, split: str, count: int | None = None, metric: str = "") -> list[Question]:
    """Questions of one source, or of a mixture with weights: "gsm8k=0.3,world=0.7".

    A source is a built-in world (`worlds.py`), a benchmark, a hub set "owner/name", or a file (one of READERS).
    `split` is train, dev or test, which share no question where they are cut here; or "all", to be judged on: the test
    split of a set, and the whole of a file. A mixture holds of each source what its weight says, as many as there are
    without repeating any. `metric` is for every question; without it the row, the set or the look of the answers
    decides, and which it is gets told. ValueError or OSError says in one line what is wrong.
    """
    if metric not in ("", *METRICS):
        raise ValueError(f"expected a metric out of {', '.join(METRICS)}, found {metric!r}")
    parts, sides = _parts(data), {}
    if parts == [(data, "")]:
        return load(data, split, count, metric)
    if not all(name and re.fullmatch(r"\d*\.?\d+", weight) and float(weight) for name, weight in parts):
        raise ValueError(f"--data: {MIXTURE}, found {data}")
    sources = [(load(name, split, None, metric, sides), float(weight)) for name, weight in parts]
    unit = min(len(questions) / weight for questions, weight in sources)
    if count:
        unit = min(unit, count / sum(weight for _, weight in sources))
    return _distinct([question for questions, weight in sources for question in questions[: round(unit * weight)]])


def sources_of(data: str) -> list[str]:
    """The names of a mixture's sources, or the one there is."""
    return [name or weight for name, weight in _parts(data)]


def world_in(data: str) -> str:
    """The name of the built-in world among the sources, or "". Raises ValueError where there are two."""
    worlds = [name for name in sources_of(data) if is_world(name)]
    if len(worlds) > 1:
        raise ValueError(f"--data {data}: expected one built-in world for search, found {', '.join(worlds)}")
    return worlds[0] if worlds else ""


def _parts(data: str) -> list[tuple[str, str]]:
    """(name, weight) of each source of a mixture, or (data, "") alone. A path may have any "=" and "," in it."""
    whole = os.path.isfile(os.path.expanduser(data)) or not re.search("[=,]", data)
    if whole or (path_of(data) and not re.search(r"=\d*\.?\d+(?:,|$)", data)):
        return [(data, "")]
    pieces, parts = data.split(","), []
    while pieces:
        heads = [",".join(pieces[: n + 1]) for n in range(len(pieces))]
        head = next((head for head in heads if os.path.isfile(os.path.expanduser(head.rpartition("=")[0]))), heads[0])
        parts.append(head.rpartition("=")[::2])
        del pieces[: head.count(",") + 1]
    return parts


def load(name: str, split: str, count: int | None = None, metric: str = "", sides=None) -> list[Question]:
    """Questions of one source; see `load_questions`, and for `sides` `_part`."""
    if split not in (*WORLD_SEEDS, "all"):
        raise ValueError(f"unknown split {split!r}: expected one of {', '.join(WORLD_SEEDS)}, all")
    if not is_world(name):
        return _load_set(name, split, metric, {} if sides is None else sides)[:count]
    found = questions_of(name, split, count)
    return [replace(question, metric=metric) for question in found] if metric else found


def _load_set(name: str, split: str, metric: str, sides: dict[str, str]) -> list[Question]:
    """A split's questions of a file, a benchmark or a hub set."""
    path = path_of(name)
    key = re.sub(r"[^a-z0-9]", "", (path.stem if path else name).lower())
    key = ALIASES.get(key, key)
    benchmark, hub = BENCHMARKS.get(key), RL_SETS.get(name, name)
    cut, source = bool(path or not benchmark), name if path else key if benchmark else hub
    hub_set = benchmark or (Benchmark(hub, "", 0, "em", "") if hub.count("/") == 1 else None)
    rows = find_rows(source, hub_set, "" if cut else split, "data", [*BENCHMARKS, *RL_SETS])
    key = key if path or benchmark else Path(source).name
    questions, unread = _questions(rows, source, key, metric, benchmark.metric if benchmark else "")
    if cut and split != "all":
        questions = _part(questions, split, name, sides)
    metrics = ", ".join(f"{metric} {count:,}" for metric, count in Counter(q.metric for q in questions).items())
    columns = "" if benchmark else ", ".join(f"{column} {count:,}" for column, count in unread.most_common(8))
    told = f"metric {metrics} (another: --metric){'; not read: ' * bool(columns)}{columns}"
    print(f"{source}: {len(questions):,} questions ({split}), {told}", file=sys.stderr)
    return questions


def _part(questions: list[Question], split: str, name: str, sides: dict[str, str]) -> list[Question]:
    """What a split has of a file's questions. `sides` says of a question's text which split has it.

    Repeats of a question go with the first, those in the files of one mixture too.
    """
    if not any(question.answers for question in questions):
        raise ValueError(f"{name}: expected answers to train and test on, found none in {len(questions):,} questions")
    texts = [" ".join(STOPS.sub("", question.question.casefold()).split()) for question in questions]
    different = list(dict.fromkeys(texts))
    repeats = len(texts) - len(different)
    if len(different) < 10:
        found = f"found {len(different)}{' different ones' * bool(repeats)}"
        raise ValueError(f"{name}: expected at least 10 questions to train, choose and test on, {found}")
    if repeats:
        print(f"{name}: {repeats:,} of {len(texts):,} rows repeat a question, in the same split", file=sys.stderr)
    fresh = [text for text in different if text not in sides]
    ends = [round(share * len(fresh)) for share in itertools.accumulate(FILE_SPLITS.values(), initial=0)]
    for side, start, end in zip(FILE_SPLITS, ends, ends[1:]):
        sides.update(dict.fromkeys(fresh[start:end], side))
    return [question for question, text in zip(questions, texts) if sides[text] == split]


def _distinct(questions: list[Question]) -> list[Question]:
    """Each with an id of its own: what repeats an earlier one gets its place behind it."""
    named = {}
    for place, question in enumerate(questions, 1):
        name = question.id
        while name in named:
            name += f"#{place}"
        named[name] = replace(question, id=name)
    return list(named.values())


def _questions(rows: Rows, source: str, key: str, metric: str, usual: str) -> tuple[list[Question], Counter]:
    """Questions, and how many rows have each column that is not read. Tells which rows cannot be asked or graded.

    Raises ValueError for the first row that is no question, where there are more than a few of them.
    """
    questions, bad, told, unread, maths = [], [], defaultdict(list), Counter(), 0
    for place, row in rows:
        try:
            with naming(source, place):
                record = _plain_record(as_record(row))
                if any(map(record.get, ("image", "images", "file_name"))):
                    told["skipped, they need an image or a file"].append(place)
                    continue
                looks = _mathematical(record) or bool(MATHS.search(key))
                name = place.split()[1] if record.get("id") is None else record["id"]
                questions.append(replace(_question(record, f"{key}-{name}"), family=_level(record, key)))
        except ValueError as error:
            bad.append(str(error))
            continue
        maths += looks
        unread.update(_unread(record, questions[-1]))
        if not questions[-1].answers:
            told["without an answer, kept"].append(place)
    if len(bad) > BAD_ROWS * len(rows):
        raise ValueError(f"{bad[0]}; {len(bad):,} of {len(rows):,} rows are bad" if bad[1:] else bad[0])
    if bad:
        print(f"{bad[0]}; {len(bad):,} of {len(rows):,} rows skipped", file=sys.stderr)
    for what, places in told.items():
        print(f"{source}: {len(places):,} of {len(rows):,} rows {what} ({places[0]} first)", file=sys.stderr)
    if not questions:
        raise ValueError(
            f"{source}: expected questions, found no questions in this {'file' if path_of(source) else 'set'}"
        )
    usual = usual or ("math" if maths >= len(questions) / 10 else "em")
    return [replace(q, metric=metric or q.metric or usual) for q in _distinct(questions)], unread


def _plain_record(row: dict) -> dict:
    """A flat copy of a row: known keys in one spelling, nested training rows unfolded, encrypted ones read."""
    record = dict(row)
    for key in row:
        if (spelled := re.sub("[ -]", "_", key.strip().lower())) in KNOWN_KEYS - record.keys():
            record[spelled] = record.pop(key)
    if isinstance(record.get("reward_model"), dict):  # verl's and the official RL sets
        record |= record.get("extra_info") or {}
        if record["reward_model"].get("ground_truth") is not None:
            record["answer"] = record["reward_model"]["ground_truth"]
        record["metric"] = "math" if _mathematical(record) else "f1"
    if "GUID xbench" in str(record.get("canary")):
        record |= {field: _decrypt(record[field], record["canary"]) for field in ("prompt", "answer")}
    return record


def _mathematical(record: dict) -> bool:
    """Whether a row says that it is mathematics, or has formulas in its answer."""
    labels = [record[key] for key in LABEL_KEYS if isinstance(record.get(key), str)]
    if record.get("ability"):  # says it for certain
        return bool(MATHS.search(labels[0]))
    answers = " ".join(str(record.get(key)) for key in ("solution", *ANSWER_KEYS))
    return bool(FORMULA.search(repair(answers))) or any(map(MATHS.search, labels))


def _unread(record: dict, question: Question) -> list[str]:
    """What is left of a row's columns after the question was taken out, but those that say the same."""
    asked, made = question.question, f"{question.question} {question.answers}"
    left = [(key, str(value)) for key, value in record.items() if key not in OTHER_KEYS and value not in (None, "", [])]
    return [key for key, text in left if asked not in text and text.strip("[]") not in made]


def _level(record: dict, key: str) -> str:
    """The level of a benchmark's row, or its group; "" where there is none."""
    info = record["info"] if isinstance(record.get("info"), dict) else {}
    found = str((record | info).get(LEVELS.get(key)) or "").lower()
    return HLE_GROUPS.get(found, "") if key == "hle" else re.sub(r"^(?:level )?(?=\d)", "level ", found)


def _decrypt(text: str, key: str) -> str:
    """xbench's cipher: base64 of the bytes XORed with the row's canary, over and over."""
    pairs = zip(base64.b64decode(text), itertools.cycle(key.encode()))
    return bytes(byte ^ mask for byte, mask in pairs).decode()


def _question(record: dict, name: str) -> Question:
    """The question of a flat record, out of which it takes the columns that it is made of."""
    keys = f"the row has {', '.join(record):.200}"
    texts = {key: text for key in QUESTION_KEYS if isinstance(text := _asked(record.get(key)), str) and text.strip()}
    if not texts:
        found = next((record[key] for key in QUESTION_KEYS if key in record), None)
        raise ValueError(f"expected a text under one of {', '.join(QUESTION_KEYS)}, found {found!r:.40}; {keys}")
    key, text = next(iter(texts.items()))
    if key == "instruction" and "input" in texts:
        text += f"\n\n{texts['input']}"
    metric = record.get("metric") or ""
    if metric not in ("", *METRICS):
        raise ValueError(f"expected a metric out of {', '.join(METRICS)}, found {metric!r}")
    golds = _golds(record)
    if not all(isinstance(g, str | int) or (isinstance(g, float) and math.isfinite(g)) for g in golds):
        expected = f"a text, a number or a list of them as the answer under one of {', '.join(ANSWER_KEYS)}"
        raise ValueError(f"expected {expected}, found {golds[0]!r:.40}; {keys}")
    del record[key]
    answers = (repair(_after_hashes(str(gold))).strip() for gold in golds)
    return Question(name, repair(text), tuple(dict.fromkeys(a for a in answers if a not in ("", "?"))), metric=metric)


def _asked(value) -> object:
    """The text of a question, also where it is the one message of a user in a list, or in such a list as JSON."""
    value = unpacked(value)
    if isinstance(value, list) and all(isinstance(message, dict) for message in value):
        said = [m for m in value if str(m.get("role", m.get("from"))).lower() in ("user", "human")]
        if len(said) > 1:
            raise ValueError(f"expected one message of the user, found {len(said)}")
        value = plain_text(said[0].get("content", said[0].get("value"))) if said else None
    return value


def _golds(record: dict) -> list:
    """All accepted answers of a record, out of which they are taken."""
    given = [key for key in ANSWER_KEYS if record.get(key) is not None]
    key = min(given, key=lambda key: not str(record[key]).strip("[] "), default="")  # the first, but a full one
    gold = unpacked(record.pop(key, None))
    if gold is None and r"\boxed{" in str(record.get("solution")):  # MATH
        gold = unboxed(record.pop("solution"))
    if isinstance(gold, dict):  # Search-R1, TriviaQA, SQuAD
        parts = [gold[key] for key in ("target", "value", "text", "aliases") if key in gold] or [[gold]]
        gold = [one for part in parts for one in (part if isinstance(part, list) else [part])]
    golds = [*(gold if isinstance(gold, list) else [gold]), *(record.pop("answer_aliases", None) or [])]
    words = {"True": ["yes", "true"], "False": ["no", "false"]}  # StrategyQA
    return [word for g in golds for word in (words[str(g)] if isinstance(g, bool) else [g])]


def _after_hashes(gold: str) -> str:
    """GSM8K writes its reasoning first, and in the last line the number after "####"."""
    found = re.fullmatch(r"(?s)(?:.*\n)?#### *([^\n]+)\s*", gold)
    return found[1] if found and as_number(found[1]) is not None else gold


def repair(text: str) -> str:
    r"""Undo corruptions of public sets: `\boxed` and `\frac` read as escapes, control characters, half characters."""
    text = text.replace("\x08oxed", r"\boxed").replace("\x0crac", r"\frac")
    return re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff]", "", text)
