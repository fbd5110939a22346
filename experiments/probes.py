"""What is told of the measurements of criticality.py: a section of RESULTS.md, and tables. Left out: how to measure."""

from pathlib import Path

from experiments.measures import Cells, check_keys, read_json


def read_probes(folder: Path) -> dict[str, dict]:
    wanted = "a measurement of criticality.py", ("command", "summary", "places")
    found = {}
    for file in sorted(folder.glob("*.json"), key=lambda file: file.stem):
        found[file.stem] = read_json(file, *wanted)
        check_keys(file, wanted[0], found[file.stem]["summary"], ("predictor", "rule"))
    return found


def knows(cells: Cells, probes: dict[str, dict]) -> list[str]:
    """Policies as columns: what nested sampling found where they read tool results."""
    summaries = {f"`{name}`": probe["summary"] for name, probe in probes.items()}
    rows = lambda tables: {
        row: {name: own.get(row) for name, own in tables.items()} for own in tables.values() for row in own
    }
    alone = {
        name: {title: entry for title, entry in summary.items() if not isinstance(entry, dict)}
        for name, summary in summaries.items()
    }
    of = lambda group, column: rows(
        {
            name: {row: entry[column] for row, entry in summary[group].items() if column in entry}
            for name, summary in summaries.items()
        }
    )
    heading = "## Does ΔH know anything?"
    if not probes:
        return [heading, "Not measured yet."]
    held = of("rule", "between held")
    held.pop("best places, known", None)  # 1 by definition
    return [
        heading,
        "With frozen policies, no training. *Between* is the variance of the mean reward over the next turns that a "
        "policy may write after a tool result: how much that turn decides. It is measured by nested sampling at every "
        "result of trajectories without forks. *Total* is the variance of the reward below the result. Intervals are "
        "95%, by bootstrap over questions. `trails` is what the arms start from. In short:",
        "\n".join(f"- {name}: {in_short(summary)}" for name, summary in summaries.items()),
        "Estimates of a variance may be below 0, and shares of their sums above 1.",
        facts("of all results", rows(alone)),
        "Rank correlation with *between*. The last row is how far the samples agree with themselves:",
        facts("predictor", of("predictor", "rank correlation with between")),
        "*Between* at the results that a rule would choose, as a share of what the best ones hold. These are known "
        "from the same noisy numbers, which flatters them: in the first row one half of the samples chooses and the "
        "other judges.",
        facts("rule", held),
        "What forks save is calls, so here is *between* for each call that the new leaves cost, over that of a lot (-: "
        "they cost no calls):",
        facts("rule", of("rule", "per call, over a lot's")),
        "The same of *total*, since a fork above a decision samples that decision just as well, for more calls:",
        facts("rule", of("rule", "total per call, over a lot's")),
        *(f"`{name}`: `{probe['command']}`\n\n![{name}](criticality/{name}.png)" for name, probe in probes.items()),
    ]


def in_short(summary: dict) -> str:
    known = summary["predictor"]["ΔH"]["rank correlation with between"]
    return f"rank correlation of ΔH with *between* {shown(known)}. For each call {per_call(summary['rule'])}."


def per_call(rules: dict[str, dict]) -> str:
    """The rules that find more criticality for their calls than a lot, and less; the intervals decide."""
    found: dict[str, list[str]] = {"more than a lot": [], "less than a lot": [], "not told from a lot": []}
    for name, row in rules.items():
        ratio = row["per call, over a lot's"]
        if ratio and name != "lot" and not name.startswith("best places"):
            word = "more than a lot" if ratio[1] > 1 else "less than a lot" if ratio[2] < 1 else "not told from a lot"
            found[word].append(name)
    return "; ".join(f"{word}: {', '.join(names)}" for word, names in found.items() if names)


def facts(title: str, entries: dict) -> str:
    """A table of what a summary holds: numbers, (value, low, high), or a row of these for each entry."""
    rows = {key: entry if isinstance(entry, dict) else {"value": entry} for key, entry in entries.items()}
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    body = [[key, *(shown(row.get(column)) for column in columns)] for key, row in rows.items()]
    return table(" | ".join([title, *columns]), body)


def shown(value) -> str:
    if isinstance(value, list) and len(value) == 3:
        return f"{value[0]:.2f} [{value[1]:.2f}, {value[2]:.2f}]"
    return f"{value:.4g}" if isinstance(value, int | float) else "-" if value is None else str(value)


def table(head: str, rows: list[list[str]]) -> str:
    columns = head.split(" | ")
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
