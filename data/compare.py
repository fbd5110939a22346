"""Runs, agents and endpoints side by side, from their results.json files and nothing else.

Rows that differ in nothing but the seed are one line. Lines over one set of questions share a table, the likeliest
answers apart from sampled ones; each is told against the table's first line, question by question. Left out: the
layout of the paper's tables (`paper.py`).
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from data.paper import paper_tables
from data.plots import plot_calls, plot_curves
from data.results import Evaluation, Row, read_results
from data.tables import Line, comparison_table, gain, pass_table

# Settings in which the seeds of one method may differ: where they write, and what they show.
NOT_THE_METHOD = {"seed", "output_dir", "overwrite", "resume", "report_to", "threads", "trajectories", "width"}
# Of a run's, those that its start depends on.
OF_THE_START = re.compile("model|load_in_4bit|cold_start|sft_|data$|metric|search|browse|top_k|.*_chars|max_|reader")


def compare(places: Sequence[str], ks: Sequence[int], folder: Path, how: str = "") -> str:
    """The tables of several evaluations, also written to `compared.txt`, with two plots. Raises ValueError.

    `how` is "paper" for the paper's tables instead, in `compared_paper.txt`.
    """
    lines = lines_of([read_results(place) for place in places])
    folder.mkdir(parents=True, exist_ok=True)
    text = paper_tables(lines) if how == "paper" else "\n\n".join(tables(lines, ks))
    (folder / f"compared{'_' * bool(how)}{how}.txt").write_text(text + "\n", encoding="utf-8")
    if how:
        return text
    plots = [plot_calls(lines, folder / "compared_calls.png"), plot_curves(lines, folder / "compared_curves.png")]
    return "\n".join([text, "", "plots: " + " ".join(str(plot) for plot in plots if plot)])


def lines_of(evaluations: list[Evaluation]) -> list[Line]:
    """All ways of answering, in the order in which they are named, starts last; without the ceiling, and last steps."""
    lines: list[Line] = []
    keys: list[str] = []  # of the lines
    for evaluation in evaluations:
        for name, row in evaluation.rows.items():
            if row.method == "expert" or "last step" in name:
                continue
            key, seed = key_of(evaluation, row), row.seed
            line = next((own for own, its in zip(lines, keys) if its == key and lacks(own, seed)), None)
            if line is None and row.method == "start" and key in keys:
                continue  # it was judged by another run, too
            if line is None:
                line = Line(name_of(evaluation, row), Path(evaluation.settings["data"]).name, evaluation.settings)
                lines.append(line)
                keys.append(key)
            line.rows.append(row)
            line.curves += [evaluation.curve] * bool(evaluation.curve and row.method != "start")
    for line in lines:
        if len(line.rows) > 1:
            line.name = re.sub(r"-\d+(?=$| \()", "", line.name) + f", {len(line.rows)} seeds"
    return named_apart(sorted(lines, key=lambda line: line.method == "start"))


def key_of(evaluation: Evaluation, row: Row) -> str:
    """What rows have in common that differ in nothing but the seed."""
    matters = {name: value for name, value in evaluation.settings.items() if name not in NOT_THE_METHOD}
    if row.method == "start":
        matters = {name: value for name, value in matters.items() if OF_THE_START.match(name)}
    return json.dumps([row.method, row.decoding, matters], sort_keys=True)


def lacks(line: Line, seed: int) -> bool:
    return seed not in [row.seed for row in line.rows]


def name_of(evaluation: Evaluation, row: Row) -> str:
    """Of the folder; of the model that a run started from."""
    if row.method == "start":
        return f"{Path(evaluation.settings['model']).name} (start)"
    return evaluation.name


def named_apart(lines: list[Line]) -> list[Line]:
    """Lines of equal names and decoding get a number."""
    seen: dict[tuple[str, bool, str], int] = {}
    for line in lines:
        key = line.name, line.greedy, line.data
        seen[key] = seen.get(key, 0) + 1
        if seen[key] > 1:
            line.name += f" ({seen[key]})"
    return lines


def tables(lines: list[Line], ks: Sequence[int]) -> list[str]:
    texts = []
    for data in dict.fromkeys(line.data for line in lines):
        for greedy in (True, False):
            own = [line for line in lines if line.data == data and line.greedy == greedy]
            if own:
                texts.append(table(own, ks))
    return texts


def table(lines: list[Line], ks: Sequence[int]) -> str:
    """One table with what its rows leave out, the differences to its first line, and pass@k where it was sampled."""
    first, decodings = lines[0], {line.rows[0].decoding for line in lines}
    how = "sampled answers" if not first.greedy else "the likeliest answers"
    if len(decodings) == 1 and not first.greedy:
        how += f" ({first.rows[0].decoding})"
    names = [line.name + f" ({line.rows[0].decoding})" * (len(decodings) > 1) for line in lines]
    texts = [f"{first.data}, {len(first.rows[0].results)} questions, {how}"]
    texts.append(comparison_table({name: line.rows for name, line in zip(names, lines)}))
    without = [
        f"{name} is without: {line.rows[0].leaves_out}" for name, line in zip(names, lines) if line.rows[0].leaves_out
    ]
    return "\n".join(texts + without + differences(names, lines) + passes(names, lines, ks))


def differences(names: list[str], lines: list[Line]) -> list[str]:
    """What each line has over the first, question by question."""
    width, several = max(26, *map(len, names)), any(len(line.rows) > 1 for line in lines)
    drawn = "questions and seeds" if several else "questions, so another seed may differ by more"
    told = f"over {names[0]}, paired; 95% interval by a bootstrap over {drawn}"
    texts = [f"\n{'accuracy, points':{width}s}  {told}"] * bool(lines[1:])
    return texts + [f"{name:{width}s}  {gain_text(line, lines[0])}" for name, line in zip(names[1:], lines[1:])]


def passes(names: list[str], lines: list[Line], ks: Sequence[int]) -> list[str]:
    texts = []
    for name, line in zip(names, lines):
        fewest = min(len(result.attempts) for row in line.rows for result in row.results)
        if possible := [k for k in ks if 1 < k <= fewest]:
            texts += [f"\n{name}, {fewest} answers a question", pass_table(line.rows, [1, *possible])]
    return texts


def gain_text(line: Line, first: Line) -> str:
    found = gain(line.rows, first.rows)
    if found is None:
        return "other questions"
    asked = max(len(row.results) for row in line.rows + first.rows)
    some = f" on the {found.questions} questions of both" * (found.questions < asked)
    return f"{found.mean:+5.1f} [{found.low:+5.1f}, {found.high:+5.1f}]{some}"
