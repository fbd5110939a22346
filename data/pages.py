"""Pages for a browser, each a file that needs nothing but itself: how they are written and read, and a run's index.

A page is a frame, a style, a script and its data. The data are JSON in a block that no browser executes, with the
characters escaped that could end it, and the script sets what they say as text and never as HTML. A policy in the
page allows this one script and style by their hashes and nothing else: no address, no handler, no form. So whatever a
model or a tool wrote can be shown, and does nothing. Left out: what is shown of a tree (`views.py`).
"""

import json
from base64 import b64encode
from hashlib import sha256
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from data.format import printable
from data.plots import PANELS

PARTS = Path(__file__).with_name("page")
SCRIPTS = {  # by kind of page
    "tree": ("common.js", "tree.js", "keys.js", "views.js"),
    "index": ("common.js", "index.js"),
}
ESCAPED = {ord(char): f"\\u{ord(char):04x}" for char in "<>&"}  # JSON reads these the same; no tag or comment is left
BEGIN, END = '<script type="application/json" id="data">', "</script>"


def write_page(file: Path, kind: str, title: str, data: dict[str, Any]) -> None:
    """Writes a page of a kind in SCRIPTS. Raises OSError, and ValueError for numbers that JSON lacks, such as NaN."""
    read = lambda name: (PARTS / name).read_text("utf-8")
    style, script = read("style.css"), "".join(map(read, SCRIPTS[kind]))
    told = json.dumps(data, separators=(",", ":"), allow_nan=False).translate(ESCAPED)  # ASCII: no line separator
    policy = f"default-src 'none'; script-src {source(script)}; style-src {source(style)}"
    slots = {"title": escape(printable(title)), "policy": f"{policy}; base-uri 'none'; form-action 'none'"}
    slots |= {"kind": kind, "style": style, "data": BEGIN + told + END, "script": script}
    whole = file.with_name(f"{file.name}.new")
    whole.write_text(Template(read("frame.html")).substitute(slots), encoding="utf-8")
    whole.replace(file)


def check_place(file: str) -> None:
    """Raises ValueError where --html could not be written."""
    if Path(file).is_dir() or not Path(file).parent.is_dir():
        found = "a folder" if Path(file).is_dir() else f"no folder {Path(file).parent}"
        raise ValueError(f"--html {file}: expected a file in a folder that is there, found {found}")


def source(text: str) -> str:
    """A part of the page, as the policy names it."""
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


def read_page(file: Path) -> dict[str, Any]:
    """The data of a page."""
    return json.loads(file.read_text("utf-8").partition(BEGIN)[2].partition(END)[0])


def write_index(folder: Path) -> Path:
    """`index.html` of a run's folder, from the files in it: curves, the table, and the pages in `trees`. Those of a
    step have one tree, those of a question one from before training and one from after."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    points = lambda name: [[row["step"], row[name]] for row in rows if name in row]
    curves = [
        {"title": title, "unit": unit, "lines": [{"name": name, "points": points(key)} for key, name in names.items()]}
        for title, unit, names in PANELS.values()
    ]
    table, settings = folder / "table.txt", json.loads((folder / "run.json").read_text("utf-8"))["settings"]
    data = {
        "title": folder.resolve().name,
        "settings": {name: settings[name] for name in ("algo", "model", "data", "seed") if name in settings},
        "curves": curves,
        "table": table.read_text("utf-8") if table.exists() else "",
        "pages": [
            {"file": f"trees/{file.name}", "trees": list(map(summary, read_page(file)["trees"]))}
            for file in sorted((folder / "trees").glob("*.html"))
        ],
    }
    write_page(folder / "index.html", "index", data["title"], data)
    return folder / "index.html"


def summary(tree: dict[str, Any]) -> dict[str, Any]:
    """What the index shows of a tree."""
    decisions = [node["decision"] for node in tree["nodes"] if node["decision"]]
    forks = sum(decision["new_paths"] for decision in decisions)
    return {key: tree[key] for key in ("title", "question", "accepted", "leaves")} | {"forks": forks}
