"""Results as data: what every attempt at every question came to, kept while it is made, and read again.

    answers.jsonl   the settings, then a line for each finished question, on disk at once: an evaluation that was
                    killed goes on. With --trajectories it holds the turns of each attempt
    results.json    settings, versions, rows (a policy or an agent, judged in one way) and a run's learning curve

The texts of questions are left out of both, since some sets must not be shared: a question is known by its id and by
a digest of its text. Left out: how a question is answered (`eval.py`), and tables (`compare.py`).
"""

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from hashlib import sha256
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data import Question


@dataclass
class Score:
    """What one attempt at a question came to: a leaf of a tree, or all that an agent did."""

    answer: str | None  # None: there is none, or the format is wrong
    accuracy: float  # by the question's metric
    reward: float  # the bonus for several tools included
    tools: dict[str, int]  # calls by tool that were really executed: neither refused nor malformed
    tokens: int  # after the prompt, results included, and those that an agent's second model wrote
    end: str  # why it stopped; "end" where it ended by itself
    seconds: float = 0.0  # of the wall; of attempts made together each has an equal share
    label: str = ""  # a judge's word on the answer, such as "correct"; "" where no judge was asked
    said: str = ""  # its last lines, where an agent gave no answer: a judge is shown them
    turns: list[dict[str, str]] = field(default_factory=list)  # of the trajectory, where it is kept

    @property
    def calls(self) -> int:
        return sum(self.tools.values())

    @property
    def right(self) -> bool:
        return self.accuracy == 1 or self.label == "correct"


@dataclass
class Result:
    """A question, and all attempts at it in one row of a table."""

    id: str
    asked: str  # digest of the question's text: the same id may name another question elsewhere
    golds: tuple[str, ...]
    family: str
    metric: str
    attempts: list[Score]

    @classmethod
    def of(cls, question: Question, attempts: list[Score]) -> "Result":
        asked = sha256(question.question.encode()).hexdigest()[:12]
        return cls(question.id, asked, question.answers, question.family, question.metric, attempts)

    def mean(self, name: str) -> float:
        return sum(getattr(score, name) for score in self.attempts) / len(self.attempts)


@dataclass
class Row:
    """A policy or an agent, judged in one way: a row of a table."""

    method: str  # "arpo", "start", "expert", or an agent's name
    backbone: str  # the model that it began with, or asks
    temperature: float  # 0 takes the likeliest token
    top_p: float
    seed: int
    results: list[Result]
    leaves_out: str = ""  # parts of an agent's definition that this row does without

    @property
    def decoding(self) -> str:
        return "greedy" if self.temperature == 0 else f"T {self.temperature:g}, top-p {self.top_p:g}"


# ---------------------------------------------------------------------------------- while it is made


class Kept:
    """The finished questions of one evaluation, a line of JSON each; a context, in which `done` grows.

    Raises ValueError where the file belongs to an evaluation with other settings, or cannot be read. A last line that
    was cut by a kill is dropped, and its question asked again.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], with_turns: bool = False):
        self.file, self.settings = folder / "answers.jsonl", json.loads(json.dumps(settings))
        self.with_turns = with_turns
        self.done: dict[tuple[str, str], Result] = {}  # by row and question

    def __enter__(self) -> "Kept":
        data = self.file.read_bytes() if self.file.exists() else b""
        self.whole = data.rfind(b"\n") + 1
        self._take_in(data[: self.whole].splitlines())
        self.opened = None
        return self

    def __exit__(self, *_) -> None:
        if self.opened:
            self.opened.close()

    def add(self, row: str, result: Result) -> None:
        if self.opened is None:  # not earlier: a start that fails leaves nothing behind
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self.opened = self.file.open("a", encoding="utf-8")
            self.opened.truncate(self.whole)
            if not self.whole:
                self._write({"settings": self.settings})
        self.done[row, result.id] = result
        self._write({"row": row} | as_record(result, self.with_turns))

    def _write(self, record: dict) -> None:
        self.opened.write(json.dumps(record) + "\n")
        self.opened.flush()

    def _take_in(self, lines: list[bytes]) -> None:
        """The lines of an earlier start."""
        for number, line in enumerate(lines, 1):
            with naming(f"{self.file}, line {number}"):
                record = json.loads(line)
                before = record["settings"] if number == 1 else self.settings
                if number > 1:
                    row = record.pop("row")
                    self.done[row, record["id"]] = as_result(record)
            if before != self.settings:
                name = min(n for n in before.keys() | self.settings if before.get(n) != self.settings.get(n))
                other = f"one with {name} {before.get(name)} instead of {self.settings.get(name)}"
                raise ValueError(f"{self.file.parent}: expected this evaluation's folder or a new one, found {other}")


def answered(
    row: str,
    questions: list[Question],
    answer: Callable[[list[Question]], Iterable[Result]],
    kept: Kept | None,
    at_once: int,
) -> list[Result]:
    """The questions' results in their order: those that were kept, and of the others what `answer` gives.

    It gets `at_once` questions at a time, and may give each result when it has it. A bar shows how far it is.
    """
    done = {q.id: kept.done[row, q.id] for q in questions if kept and (row, q.id) in kept.done}
    left = [question for question in questions if question.id not in done]
    with tqdm(total=len(questions), initial=len(done), desc=row, disable=not kept) as bar:
        for start in range(0, len(left), at_once):
            for result in answer(left[start : start + at_once]):
                done[result.id] = result
                if kept:
                    kept.add(row, result)
                bar.update()
    return [done[question.id] for question in questions]


# ---------------------------------------------------------------------------------- in files


@dataclass
class Evaluation:
    """What a results.json holds."""

    name: str  # of the folder that it was read from
    settings: dict[str, Any]
    versions: dict[str, str]
    rows: dict[str, Row]
    curve: dict[str, list]  # of training, by name of the metric, from step 0; empty where nothing was trained


def write_results(
    folder: Path, settings: dict, versions: dict, rows: dict[str, Row], curve: dict | None = None
) -> Path:
    """A line for each question, and never half a file under its name."""
    head = {"settings": settings, "versions": versions, "curve": curve or {}}
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
    texts = []
    for name, row in rows.items():
        about = {part.name: getattr(row, part.name) for part in fields(Row) if part.name != "results"}
        answers = ",\n".join(json.dumps(as_record(result)) for result in row.results)
        texts.append(f'{json.dumps(name)}: {{"about": {json.dumps(about)}, "results": [\n{answers}\n]}}')
    lines.append('"rows": {\n' + ",\n".join(texts) + "\n}")
    whole = folder / "results.json.new"
    whole.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    return whole.replace(folder / "results.json")


def read_results(place: str | Path) -> Evaluation:
    """From a folder or a file. Raises ValueError in one line."""
    file = Path(place) / "results.json" if Path(place).is_dir() else Path(place)
    if not file.is_file():
        raise ValueError(f"{place}: expected a folder with results.json, or such a file, found none")
    with naming(str(file)):
        found = json.loads(file.read_bytes())
        rows = {
            name: Row(**row["about"], results=[as_result(result) for result in row["results"]])
            for name, row in found["rows"].items()
        }
        return Evaluation(file.absolute().parent.name, found["settings"], found["versions"], rows, found["curve"])


def as_record(result: Result, with_turns: bool = False) -> dict[str, Any]:
    record = asdict(result)
    if not with_turns:
        for attempt in record["attempts"]:
            del attempt["turns"]
    return record


def as_result(record: dict[str, Any]) -> Result:
    attempts = [Score(**attempt) for attempt in record["attempts"]]
    return Result(**record | {"golds": tuple(record["golds"]), "attempts": attempts})


@contextmanager
def naming(place: str) -> Iterator[None]:
    """What is wrong with a file becomes a ValueError that says where."""
    try:
        yield
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{place}: expected results as this version writes them, found {error!r}") from None
