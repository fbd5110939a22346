"""Full-text search over a corpus, in memory or in a file, with SQLite's index (BM25).

A corpus is a list of passages, or lines of {"title", "text", perhaps "address"} that are indexed once into a file
beside them; for other keys see TEXTS and ADDRESSES. Titles weigh four times as much as text. Equal scores keep the
order of the corpus, so the same query always gives the same result. Left out: dense retrieval.
"""

import json
import re
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import NamedTuple

from data import Passage
from data.format import ToolResult

STOPWORDS = frozenset(
    "a about an and are as at be been but by did do does for from had has have how i if in into is it its many "
    "more much of on or than that the their there these they this to was were what when where which who whose "
    "why will with would".split()
)
TEXTS = "text", "contents", "content", "passage", "body"  # of a row's keys the first that is there
ADDRESSES = "address", "url", "link", "id", "_id", "docid"  # the first that is not empty
NOTHING, NO_TEXT = "Nothing was found.", "(this page has no text)"
HAN = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # Chinese and Japanese, written without spaces


class Corpus:
    """Passages in memory, or the index of a corpus on disk. May be used from many threads."""

    def __init__(self, source: Iterable[Passage] | str | Path):
        self._lock, self._threads = threading.Lock(), threading.local()
        self._file = Path(source).resolve(strict=True).as_uri() if isinstance(source, str | Path) else None
        if not self._file:
            self._memory = sqlite3.connect(":memory:", check_same_thread=False)
            _fill(self._memory, ((p.title, p.text, p.address) for p in source))
        with suppress(sqlite3.Error):
            if not self._file or self._rows("SELECT title, text FROM passages, places WHERE passage > 0 LIMIT 1"):
                return
        found = "an empty corpus, no index of one, or of another version: delete it and index the corpus again"
        raise ValueError(f"{source}: expected an index of passages, found {found}")

    @classmethod
    def open(cls, path: str | Path) -> "Corpus":
        """A corpus (.jsonl, indexed first if its index is missing or older) or an index (.db)."""
        path = Path(path)
        if path.suffix not in (".jsonl", ".db"):
            raise ValueError(f"expected a corpus (.jsonl) or its index (.db) to search in, found {str(path)!r}")
        if not path.is_file():
            found = "a folder" if path.is_dir() else "no such file"
            raise ValueError(f"{path}: expected a corpus or its index to search in, found {found}")
        index = path.with_suffix(".db")
        if path.suffix == ".jsonl" and (not index.exists() or index.stat().st_mtime < path.stat().st_mtime):
            return cls(index_corpus(path))
        return cls(index)

    def search(self, query: str, top_k: int = 3, snippet_chars: int = 400) -> ToolResult:
        """Titles, addresses and the beginnings of the passages that fit best."""
        words = terms(query)
        if not words:
            return ToolResult("Error: the query has no words.", "error")
        match = " OR ".join(f'"{_divide(word)}"' for word in words)  # quoted: nothing in a query is an operator
        sql = (
            "SELECT title, address, text FROM passages WHERE passages MATCH ? "
            "ORDER BY bm25(passages, 4.0, 1.0), rowid LIMIT ?"
        )
        return ToolResult(show_hits(self._rows(sql, match, top_k), snippet_chars))

    def page(self, address: str) -> ToolResult:
        """All text at an address."""
        sql = "SELECT text FROM passages JOIN places ON passages.rowid = passage WHERE places.address = ?"
        rows = self._rows(f"{sql} ORDER BY passage", address)
        return ToolResult("\n".join(text for (text,) in rows) or NO_TEXT) if rows else no_page(address)

    def _rows(self, sql: str, *values) -> list[tuple]:
        if not self._file:
            with self._lock:
                rows = self._memory.execute(sql, values).fetchall()
        else:  # one connection a thread: SQLite lets go of the interpreter while it searches
            if not hasattr(self._threads, "db"):
                self._threads.db = sqlite3.connect(f"{self._file}?mode=ro", uri=True)
            rows = self._threads.db.execute(sql, values).fetchall()
        return [tuple(value.replace("\u200b", "") for value in row) for row in rows]


def show_hits(hits: Iterable[tuple[str, str, str]], snippet_chars: int) -> str:
    cut = lambda text: text[:snippet_chars] + "…" * (len(text) > snippet_chars)
    lines = [f"[{i}] {title} ({address}): {cut(text)}" for i, (title, address, text) in enumerate(hits, 1)]
    return "\n".join(lines) or NOTHING


class Hit(NamedTuple):
    title: str
    address: str
    snippet: str


def read_hits(shown: str) -> list[Hit]:
    """The hits of a text by `show_hits`: a numbered line begins one only where that number is next."""
    hits: list[Hit] = []
    for line in shown.split("\n"):
        head = re.match(rf"\[{len(hits) + 1}\] (.*?) ?\((\S+)\): (.*)", line)
        if head:
            hits.append(Hit(*head.groups()))
        elif hits:
            hits[-1] = hits[-1]._replace(snippet=f"{hits[-1].snippet}\n{line}")
    return hits


def no_page(address: str) -> ToolResult:
    return ToolResult(f"Error: no page at {address[:80]!r}. Use an address from a search result.", "error")


def terms(query: str, limit: int = 32) -> list[str]:
    """The words of a query, without stopwords if others remain; Chinese and Japanese in pairs of characters."""
    words = []
    for word in re.findall(rf"[{HAN}]+|[^\W{HAN}]+", query.lower()):
        pairs = len(word) - 1 if re.match(f"[{HAN}]", word) else 0
        words += [word[i : i + 2] for i in range(pairs)] or [word]
    return ([word for word in words if word not in STOPWORDS] or words)[:limit]


def index_corpus(corpus: str | Path) -> Path:
    """Indexes a JSONL file into a file beside it; a row's address is else its line's number. ValueError or OSError."""
    corpus = Path(corpus)
    if corpus.suffix != ".jsonl" or not corpus.is_file():
        found = "a folder" if corpus.is_dir() else "a file of another name" if corpus.exists() else "no such file"
        raise ValueError(f"{corpus}: expected a corpus to index (.jsonl), found {found}")
    target = corpus.with_suffix(".db")
    if target.exists() and not _is_index(target):
        raise ValueError(f"{target}: expected an index of passages or no such file, found something else: move it away")
    unfinished = target.with_suffix(".unfinished")  # renamed when complete: a killed command leaves no half index
    mixed = "SELECT address, min(title), max(title) FROM passages GROUP BY address HAVING min(title) < max(title)"
    unfinished.unlink(missing_ok=True)
    try:
        with closing(sqlite3.connect(unfinished)) as db:
            _fill(db, _read_corpus(corpus))
            if not db.execute("SELECT 1 FROM places").fetchone():
                raise ValueError(f"{corpus}: expected passages on its lines, found an empty corpus")
            for address, *titles in db.execute(mixed):  # rows of one address are one page
                found = f"pages of several titles have the address {address!r}: {titles!r:.200}"
                raise ValueError(f"{corpus}: expected one title for an address, found that {found}")
        return unfinished.replace(target)
    except sqlite3.Error as error:
        raise OSError(f"cannot write {target}: {error}") from None
    finally:
        unfinished.unlink(missing_ok=True)


def _is_index(file: Path) -> bool:
    """Whether a file was written by `index_corpus`, of whatever version, and may be replaced."""
    with suppress(sqlite3.Error), closing(sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True)) as db:
        return bool(db.execute("SELECT 1 FROM sqlite_master WHERE name = 'passages' AND sql LIKE '%fts5%'").fetchone())
    return False


def _read_corpus(corpus: str | Path) -> Iterator[tuple[str, str, str]]:
    with open(corpus, "rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                if line.strip(b"\xef\xbb\xbf \t\r\n"):  # not empty
                    yield _passage(json.loads(line), str(number))
            except (ValueError, RecursionError) as error:
                wanted = error if type(error) is ValueError else f"expected JSON in UTF-8 ({error})"
                raise ValueError(f"{corpus}, line {number}: {wanted}, found {str(line[:60])[2:-1]}") from None


def _passage(row, number: str) -> tuple[str, str, str]:
    """Title, text and address. A first line in quotes is the title where no other is given, as in wiki-18."""
    row = row if isinstance(row, dict) else {}
    given = {key: "" if value is None or value != value else value for key, value in row.items()}  # NaN is not itself
    text, title = next((given[key] for key in TEXTS if key in given), None), given.get("title", "")
    if not isinstance(text, str | int | float) or not isinstance(title, str | int | float) or text == title == "":
        has = ", ".join(f"{key} ({type(value).__name__})" for key, value in row.items()) or "none"
        raise ValueError(f"expected title and text ({', '.join(TEXTS)}), not both empty, as JSON; of keys it has {has}")
    title, text = (str(value).encode("utf-8", "replace").decode() for value in (title, text))
    if not title and (head := re.match(r'"(.*)"\r?\n', text)):
        title, text = head[1], text[head.end() :]
    names = ["_".join(str(given.get(key, "")).split()) for key in ADDRESSES]  # one word, for Browse
    return title, text, next(filter(None, names), number)


def _fill(db: sqlite3.Connection, rows: Iterable[tuple[str, str, str]]) -> None:
    """Makes the index of rows (title, text, address); rows of one address are one page, in their order."""
    db.execute("CREATE VIRTUAL TABLE passages USING fts5(title, text, address UNINDEXED, tokenize='porter unicode61')")
    divided = ((_divide(title), _divide(text), address) for title, text, address in rows)
    db.executemany("INSERT INTO passages VALUES (?, ?, ?)", divided)
    db.execute("CREATE TABLE places AS SELECT address, rowid AS passage FROM passages")
    db.execute("CREATE INDEX by_address ON places(address)")
    db.commit()


def _divide(text: str) -> str:
    """Zero-width spaces between Chinese characters, which SQLite would take for one long word."""
    return text if text.isascii() else re.sub(rf"(?<=[{HAN}])(?=[{HAN}])", "\u200b", text)
