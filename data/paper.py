"""The paper's tables 1, 2 and 3 with our numbers beside theirs (Dong et al. 2025, arXiv 2507.19849).

A published number is compared with one of ours only where both are the same quantity: the same backbone and method,
as many questions, the paper's judge or F1, its sampling. Whatever differs is named. Published accuracies that are no
fraction of the questions in the authors' files rest on other questions, and are no target. Left out: figures, and
whose searches the numbers rest on (theirs on Bing's).
"""

import re
from statistics import fmean

from data.results import Result
from data.tables import Line

F1_SETS = {"hotpotqa", "2wiki", "musique", "bamboogle"}  # of all others a language model judges the answers
DECODING = {"temperature": 0.6, "top_p": 0.95}  # section 4.4
REASONS = {
    "q": "not as many questions as in the authors' files",
    "j": "compared with the gold answer, where the paper asks a judge",
    "s": "not sampled at temperature 0.6 and top-p 0.95",
    "b": "pages not read by a model of the policy's size",
}
# Questions of each set in the authors' files, by level where the paper has levels.
SIZES = {
    "aime24": 30, "aime25": 30, "math500": 500, "gsm8k": 1319, "math": 5000, "hotpotqa": 200, "2wiki": 200,
    "musique": 200, "bamboogle": 125, "xbench": 100, "gaia": {"level 1": 39, "level 2": 52, "level 3": 12},
    "webwalker": {"easy": 45, "medium": 84, "hard": 71}, "hle": {"NS": 330, "CE": 75, "SF": 95},
}  # fmt: skip
METHODS = {
    "direct": "direct", "tir": "TIR prompting", "rag": "vanilla RAG", "search-o1": "Search-o1",
    "webthinker": "WebThinker", "react": "ReAct", "grpo": "GRPO", "reinforce++": "REINFORCE++", "dapo": "DAPO",
    "arpo": "ARPO", "snippets": "ARPO, snippets only", "same": "ARPO, browser of its size",
    "qwq": "ARPO, QwQ-32B browser",
}  # fmt: skip

Column = tuple[str, str]  # a set and its level, "" for all of its questions
AVERAGE = "average", ""  # of the others, each set counting alike
FIRST = [(name, "") for name in "aime24 aime25 math500 gsm8k math webwalker hotpotqa 2wiki musique bamboogle".split()]
FIRST.append(AVERAGE)
SECOND = [(name, level) for name in ("gaia", "webwalker", "hle") for level in (*SIZES[name], "")] + [("xbench", "")]
THIRD = [("gaia", ""), ("hle", ""), ("webwalker", ""), AVERAGE]
TABLES = {
    "Table 1": (FIRST, {
        "Qwen2.5-3B-Instruct": """
            direct 10.0 6.7 63.0 75.0 71.6 0.5 9.7 9.4 3.6 11.7 26.1
            tir 6.7 6.7 52.2 56.6 62.8 14.0 15.4 14.1 6.1 16.4 25.1
            grpo 20.0 13.3 72.0 86.0 81.0 21.0 56.5 64.5 24.7 65.2 50.4
            reinforce++ 16.7 13.3 70.4 85.0 80.2 19.5 55.9 62.3 27.9 65.7 49.7
            dapo 20.0 16.7 71.2 85.0 81.2 19.5 54.8 62.5 30.0 64.8 50.6
            arpo 23.3 20.0 71.4 85.0 82.5 24.5 58.5 67.4 28.7 66.8 52.8""",
        "Llama-3.1-8B-Instruct": """
            direct 3.3 0.0 43.3 81.4 60.6 3.0 24.3 24.6 10.4 40.0 28.8
            tir 3.3 3.3 39.4 73.8 58.2 15.0 48.5 47.5 15.5 58.4 36.3
            grpo 13.3 13.3 62.4 87.4 79.2 26.5 57.8 71.8 31.0 68.2 51.1
            reinforce++ 13.3 16.7 61.4 87.0 77.2 27.5 57.1 71.6 29.9 69.1 51.1
            dapo 16.7 13.3 61.2 87.4 76.4 25.5 56.6 70.3 29.2 67.3 50.4
            arpo 23.3 16.7 64.6 88.0 80.2 30.5 65.4 75.5 34.8 73.8 55.3""",
        "Qwen2.5-7B-Instruct": """
            direct 10.0 10.0 70.6 90.2 82.0 2.0 12.2 12.6 6.6 24.0 32.0
            tir 6.7 10.0 68.2 64.6 78.2 15.5 14.8 18.3 9.5 23.6 31.0
            grpo 23.3 26.7 78.0 92.8 87.8 22.0 59.0 76.1 30.6 68.4 56.5
            reinforce++ 26.7 23.3 78.0 92.2 88.8 26.0 55.1 68.9 25.2 64.9 54.9
            dapo 20.0 23.3 80.4 91.0 88.8 24.0 57.7 68.4 28.6 65.5 54.8
            arpo 30.0 30.0 78.8 92.2 88.8 26.0 58.8 76.1 31.1 71.5 58.3""",
    }),
    "Table 2": (SECOND, {
        "Qwen3-8B": """
            direct 28.1 15.4 16.7 20.4 0.0 2.4 2.8 2.0 3.9 2.7 8.4 4.6 9
            rag 28.2 15.4 16.7 20.4 8.9 10.7 9.9 10.0 5.1 1.6 12.9 5.8 8
            search-o1 35.9 15.4 0.0 21.4 6.7 15.5 9.7 11.5 7.6 2.7 5.3 6.4 10
            webthinker 43.6 11.5 0.0 22.3 6.7 13.1 16.9 13.0 7.3 4.0 6.3 6.6 13
            react 35.9 17.3 8.3 23.3 8.9 16.7 18.3 15.5 4.2 4.0 6.3 4.6 16
            grpo 48.7 25.0 8.3 32.0 24.4 33.3 26.8 29.0 7.9 4.0 10.5 7.8 20
            arpo 53.9 32.7 16.7 38.8 26.7 33.3 29.6 30.5 7.3 6.7 15.8 8.8 25""",
        "Qwen3-14B": """
            direct 33.3 13.5 0.0 19.4 6.7 2.4 4.2 4.0 5.5 6.7 11.6 6.8 14
            rag 38.5 19.2 8.3 25.2 17.8 13.1 11.3 13.5 5.5 6.3 9.4 6.0 15
            search-o1 48.7 23.1 0.0 30.1 11.1 21.4 16.9 17.5 6.4 4.0 10.5 6.8 21
            webthinker 48.7 26.9 8.3 33.0 13.3 23.8 18.3 19.5 7.0 4.0 9.5 7.0 23
            react 48.7 25.0 8.3 32.0 11.1 20.2 12.7 15.5 5.8 5.3 10.5 6.6 20
            grpo 51.3 34.6 0.0 36.9 28.9 33.3 26.8 30.0 7.9 6.7 12.6 8.6 27
            arpo 56.4 40.4 16.7 43.7 31.1 42.9 31.0 36.0 10.3 10.7 13.7 10.0 32""",
        "Qwen3-32B": "direct 26.2 12.1 0.0 14.9 6.9 1.1 2.9 3.1 14.6 9.8 8.4 12.6 14.0",
        "DeepSeek-R1-Distill-Qwen-32B": "direct 21.5 13.6 0.0 14.2 7.5 1.4 4.2 3.8 6.6 5.1 6.5 6.4 10.0",
        "QwQ-32B": "direct 30.9 6.5 5.2 18.9 7.5 2.1 4.6 4.3 11.5 7.3 5.2 9.6 10.7",
        "gpt-4o": "direct 23.1 15.4 8.3 17.5 6.7 6.0 4.2 5.5 2.7 1.2 3.2 2.6 18.0",
        "DeepSeek-R1": "direct 40.5 21.2 5.2 25.2 5.0 11.8 11.3 10.0 8.5 8.1 9.3 8.6 32.7",
        "o1-preview": "direct - - - - 11.9 10.4 7.9 9.9 12.9 8.1 6.6 11.1 -",
    }),
    "Table 3": (THIRD, {
        "Qwen3-8B": "snippets 33.0 7.5 29.0 23.2\nsame 38.8 8.8 30.5 26.0\nqwq 38.8 8.2 33.0 26.6",
        "Qwen3-14B": "snippets 35.0 8.4 31.0 24.8\nsame 43.7 10.0 36.0 29.9\nqwq 47.6 32.3 38.4 39.4",
    }),
}  # fmt: skip


def paper_tables(lines: list[Line]) -> str:
    """The three tables, a line of ours below each of theirs; and what has no place in them."""
    texts = []
    for title, (columns, backbones) in TABLES.items():
        for backbone, rows in backbones.items():
            own = [line for line in lines if canonical(line.rows[0].backbone) == canonical(backbone)]
            texts.append(block(title, backbone, columns, rows, own))
    texts.append("paper: as published; *: no fraction of as many questions, so misprinted or measured on others")
    texts.append("ours: a number alone: measured; -: not run; with letters: measured, but not comparable, because")
    texts += [f"  {letter}: {reason}" for letter, reason in REASONS.items()]
    others = dict.fromkeys(line.name for line in lines if not has_place(line))
    return "\n".join(texts + [f"no place in these tables: {name}" for name in others])


def block(title: str, backbone: str, columns: list[Column], rows: str, lines: list[Line]) -> str:
    """A table's rows of one backbone, with those of our lines that began with it."""
    texts = [f"{title}, {backbone}", f"{'':32s}" + "".join(f"{name:>11s}" for name, _ in columns)]
    if any(level for _, level in columns):
        texts.append(f"{'':32s}" + "".join(f"{level or 'all':>11s}" for _, level in columns))
    for row in filter(None, map(str.split, rows.split("\n"))):
        method, published = row[0], row[1:]
        others = misfits(columns, published)
        told = [f"{number}{'*' * (column in others)}" for column, number in zip(columns, published)]
        texts.append(f"{METHODS[method]:26s}paper " + "".join(f"{text:>11s}" for text in told))
        own = [line for line in lines if method in (line.method, browser(line))]
        asks = "b" * (title == "Table 2" and method in ("grpo", "arpo"))
        cells = [ours(own, column, asks) for column in columns if column != AVERAGE]
        if AVERAGE in columns:
            whole = all(re.fullmatch(r"[\d.]+", cell) for cell in cells)
            cells.append(f"{fmean(map(float, cells)):.1f}" if whole else "")
        texts.append(f"{'':27s}ours " + ("".join(f"{text or '-':>11s}" for text in cells) if any(cells) else "not run"))
    return "\n".join(texts) + "\n"


def has_place(line: Line) -> bool:
    backbone = canonical(line.rows[0].backbone)
    return line.method in METHODS and any(
        backbone in map(canonical, backbones) and any(measured(line, column, "") for column in columns)
        for columns, backbones in TABLES.values()
    )


def ours(lines: list[Line], column: Column, asks: str) -> str:
    """Our number for a cell with the letters of REASONS; the one with the fewest, of several. "" where none was run."""
    found = [told for line in lines if (told := measured(line, column, asks))]
    return min(found, key=len, default="")


def measured(line: Line, column: Column, asks: str) -> str:
    """A line's accuracy in percent, and why it cannot be compared. `asks`: letters that not every table asks for."""
    name, level = column
    own = [[result for result in row.results if belongs(result, name, level)] for row in line.rows]
    if not any(own):
        return ""
    scores = [score for results in own for result in results for score in result.attempts]
    judged = name not in F1_SETS and any(score.label for score in scores)
    differs = {
        "q": any(len(results) != size(name, level) for results in own),
        "j": name not in F1_SETS and not judged,
        "s": any({key: getattr(row, key) for key in DECODING} != DECODING for row in line.rows),
        "b": "b" in asks and browser(line) != "same",
    }
    value = 100 * fmean(score.right if judged else score.accuracy for score in scores)
    return f"{value:.1f} {''.join(letter for letter, does in differs.items() if does)}".strip()


def belongs(result: Result, name: str, level: str) -> bool:
    return result.id.partition("-")[0] == name and level in ("", result.family)


def size(name: str, level: str) -> int:
    sizes = SIZES[name]
    return sizes if isinstance(sizes, int) else sizes[level] if level else sum(sizes.values())


def misfits(columns: list[Column], published: list[str]) -> set[Column]:
    """Cells of a row whose accuracy no number of right answers gives; all of a set's where there are several."""
    wrong = set()
    for (name, level), number in zip(columns, published):
        if name in SIZES.keys() - F1_SETS and number != "-":
            n = size(name, level)
            if abs(100 * round(float(number) * n / 100) / n - float(number)) > 0.051:
                wrong.add((name, level))
    sets = [name for name, _ in wrong]
    return wrong | {column for column in columns if sets.count(column[0]) > 1}


def browser(line: Line) -> str:
    """The key of METHODS for table 3: what reads pages for a policy that was trained by ARPO."""
    if line.method != "arpo" or not line.settings.get("browse", True):
        return "snippets" if line.method == "arpo" else ""
    reader = canonical(line.settings.get("reader_model", ""))
    if line.settings.get("reader") == "base" or reader == canonical(line.rows[0].backbone):
        return "same"
    return "qwq" if reader == "qwq-32b" else ""


def canonical(model: str) -> str:
    """A model's name without its owner and in small letters."""
    return re.sub("^meta-", "", model.rpartition("/")[2].lower())
