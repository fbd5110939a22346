"""Results as data: what is kept while an evaluation goes on, and what is read again."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from data import Question, runs
from data.results import Kept, Result, Row, Score, answered, read_results, write_results

ROOT = Path(__file__).parent.parent
QUESTIONS = [Question(f"q{n}", f"What is {n}?", (str(n),), "odd" if n % 2 else "even") for n in range(6)]


def result_of(question: Question, right=True) -> Result:
    turns = [{"role": "assistant", "content": "I\u2028count"}]
    return Result.of(
        question, [Score(question.answers[0], float(right), 1.0, {"search": 2}, 30, "end", 0.5, "", turns=turns)]
    )


def test_results_come_back_as_they_were(tmp_path):
    rows = {"start, greedy": Row("start", "tiny", 0.0, 1.0, 0, [result_of(q) for q in QUESTIONS])}
    write_results(tmp_path, {"seed": 1}, {"torch": "2"}, rows, {"step": [0, 1]})
    found = read_results(tmp_path)
    for row in rows.values():
        for result in row.results:
            result.attempts[0].turns = []  # those stand in answers.jsonl alone
    assert found.rows == rows and found.settings == {"seed": 1} and found.curve == {"step": [0, 1]}
    assert found.rows["start, greedy"].results[0].attempts[0].calls == 2
    assert "What is" not in (tmp_path / "results.json").read_text()  # sets that must not be shared


def test_a_killed_evaluation_goes_on(tmp_path):
    """Guards: questions asked twice, a torn line that ends up inside another, and order by time of answering."""

    def answer(asked, stop_after=None):
        for n, question in enumerate(reversed(asked)):  # each when it is done
            if n == stop_after:
                raise KeyboardInterrupt
            seen.append(question.id)
            yield result_of(question)

    seen: list[str] = []
    with pytest.raises(KeyboardInterrupt), Kept(tmp_path, {"seed": 1}, with_turns=True) as kept:
        answered("a", QUESTIONS, lambda asked: answer(asked, 2), kept, 4)
    assert seen == ["q3", "q2"]
    with (tmp_path / "answers.jsonl").open("a") as file:
        file.write('{"row": "a", "id": "q5", "att')
    with Kept(tmp_path, {"seed": 1}, with_turns=True) as kept:
        results = answered("a", QUESTIONS, answer, kept, 4)
    assert seen == ["q3", "q2", "q5", "q4", "q1", "q0"] and [result.id for result in results] == [
        q.id for q in QUESTIONS
    ]
    lines = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_bytes().splitlines()]
    assert len(lines) == 7 and lines[1]["attempts"][0]["turns"] == [{"role": "assistant", "content": "I\u2028count"}]
    with Kept(tmp_path, {"seed": 1}) as kept:
        assert answered("a", QUESTIONS, lambda asked: pytest.fail("asked again"), kept, 4) == results
        assert kept.done["a", "q1"].attempts[0].turns


@pytest.mark.parametrize(
    "line, told",
    [
        (
            '{"settings": {"seed": 2}}',
            "expected this evaluation's folder or a new one, found one with seed 2 instead of 1",
        ),
        ('{"settings": {"seed": 1}}\n{"row": "a"}', "line 2: expected results as this version writes them"),
        ("words", "line 1: expected results as this version writes them, found"),
    ],
)
def test_other_answers_are_not_mixed_in(tmp_path, line, told):
    (tmp_path / "answers.jsonl").write_text(line + "\n")
    with pytest.raises(ValueError, match=told), Kept(tmp_path, {"seed": 1}):
        pass
    assert (tmp_path / "answers.jsonl").read_text() == line + "\n"


def test_what_holds_no_results_is_told_in_a_line(tmp_path):
    with pytest.raises(ValueError, match="expected a folder with results.json, or such a file, found none"):
        read_results(tmp_path)
    (tmp_path / "results.json").write_text('{"rows": 3}')
    with pytest.raises(ValueError, match="results.json: expected results as this version writes them"):
        read_results(tmp_path)


def test_one_evaluation_at_a_time_writes_to_a_folder(tmp_path):
    """Guards: two that keep their answers in one file; and a folder that is left behind by one that came to nothing."""
    with runs.folder_for(tmp_path / "new"):
        runs.lock(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    with runs.folder_for(tmp_path / "own"):
        runs.lock(tmp_path / "own")
        other = "import sys; from pathlib import Path; from data import runs; runs.lock(Path(sys.argv[1]))"
        done = subprocess.run([sys.executable, "-c", other, tmp_path / "own"], cwd=ROOT, capture_output=True, text=True)
        assert "for this run alone, found another run that writes to it" in done.stderr
