"""The environment of the policy: the tag grammar, and the three tools behind it.

The policy writes turns. A turn is any number of `<think>…</think>` and then either one tool call,
`<python>…</python>`, `<search>…</search>` or `<browse>…</browse>`, or the final `<answer>…</answer>`
followed by the end token. A call is answered by `<result>…</result>`, which the environment writes
and the policy is never trained on.

Two rules hold everywhere in this file. A tool that fails tells the model so in words; it never raises
into the trainer, unless it fails about every other time (`Toolbox`). Tool output is untrusted: it is
tokenised as plain text, so that tags or special tokens inside it have no power.

Search and browse work on a corpus in memory or on disk, or on the live web behind a cache. Left out:
pages that need JavaScript, PDF, proxies. How Python code is confined is the business of `sandbox.py`.

    python tools.py index corpus.jsonl              lines of {"title", "text", perhaps "address"} -> corpus.db
    python tools.py import answers.json cache.db    {query: text}, as in the authors' search_cache.json

    cache = Cache("web.db")
    Toolbox({"search": WebSearch("serper", cache), "browse": Browse(Web(cache, reading_sandbox()), 3000)})
"""

import html
import importlib.util
import inspect
import ipaddress
import json
import os
import re
import socket
import sqlite3
import ssl
import sys
import threading
import time
import zlib
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from hashlib import sha256
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import SplitResult, quote, urljoin, urlsplit, urlunsplit
from urllib.robotparser import RobotFileParser

from sandbox import PythonSandbox

TOOLS = ("python", "search", "browse")
CLOSING_TAGS = tuple(f"</{tool}>" for tool in TOOLS)  # a turn ends at one of these or at the end token

SYSTEM_PROMPT = """\
Answer the question. Work in turns, and write nothing outside these tags:
<think>your reasoning</think>
<python>code</python> runs Python and shows its output and the value of the last expression.
<search>query</search> searches the corpus and shows titles, addresses and short passages.
<browse>address words</browse> opens an address from a search result near the given words; \
<browse>address page 2</browse> shows a further part.
<answer>the answer alone</answer> ends your work.
After a tool call stop: its output comes back as <result>output</result>, and you go on from there.
Use tools for facts and arithmetic that you are not sure of. Calls are limited, so make each count.

Example:
<think>I need the height of the tower.</think><search>Iron Tower height</search>\
<result>[1] Iron Tower (towers/7): The Iron Tower is 120 metres high.</result>\
<think>Twice 120.</think><python>2 * 120</python><result>240</result>\
<think>The computation gives the answer.</think><answer>240</answer>"""

SAMPLING = threading.Lock()  # held while the policy samples; in between, a tool may use the model
LIMIT_TEXT = "No tool calls are left. This call was not run. Give your answer now."


# ---------------------------------------------------------------------------------- tag grammar


@dataclass(frozen=True)
class ToolCall:
    tool: str
    content: str


@dataclass(frozen=True)
class ToolResult:
    """What a call came to: the text the model sees and how it ended.

    `outcome` is one of ok, error (the call ran and failed), timeout, crash, malformed (closing tag
    without an opening one) or refused (not run: over the limit of calls, or not an address to open). It
    is the same online and from the cache, which `cached` tells apart. `fault` says that the tool is to
    blame and not the call (the network, a server, a key): asking again may help.
    """

    text: str
    outcome: str = "ok"
    seconds: float = 0.0
    cached: bool = False
    fault: bool = False


def parse_call(turn: str) -> ToolCall | None:
    """The last call in a turn's text, or None where its opening tag is missing."""
    end, tool = max((turn.rfind(f"</{tool}>"), tool) for tool in TOOLS)
    start = turn.rfind(f"<{tool}>", 0, max(end, 0))
    return ToolCall(tool, turn[start + len(tool) + 2 : end].strip()) if start >= 0 else None


def may_close(piece: str) -> bool:
    """Whether a token may complete a closing tool tag: up to a ">" it is the tag's end, or holds the whole tag."""
    heads = [piece[: i + 1] for i, char in enumerate(piece) if char == ">"]
    return any(tag.endswith(head) or head.endswith(tag) for tag in CLOSING_TAGS for head in heads)


def parse_limits(text: str) -> dict[str, int]:
    """Calls of a trajectory by tool: "search=3,python=5"."""
    parts = [part.partition("=") for part in text.split(",") if part]
    if not all(tool in TOOLS and number.isdigit() for tool, _, number in parts):
        raise ValueError(f'tool_limits: expected such as "search=3,python=5" with {", ".join(TOOLS)}, found {text!r}')
    return {tool: int(number) for tool, _, number in parts}


def begin_call(tools, turn: str, called: tuple, limit: int, tool_limits: str) -> tuple[ToolCall | None, Future | None]:
    """Starts the call that ends a turn's text; returns it and its result. `called`: tools the path called before.

    Over `limit` the first call gets a refusal for its result; the next gets None, which ends the path. Over its
    tool's own limit a call is refused, and the path goes on.
    """
    call = parse_call(turn)
    if len(called) > limit:
        return call, None
    own = parse_limits(tool_limits).get(call.tool, limit) if call else 0
    if call and len(called) < limit and called.count(call.tool) < own:
        return call, tools.submit(call)
    if len(called) == limit:
        result = ToolResult(LIMIT_TEXT, "refused")
    elif call:
        result = ToolResult(f"No {call.tool} calls are left. This call was not run.", "refused")
    else:
        result = ToolResult("Error: closing tag without opening tag.", "malformed")
    future: Future = Future()
    future.set_result(result)
    return call, future


_TAG = r"</?(?:think|python|search|browse|result|answer)>"
_BODY = rf"(?:(?!{_TAG}).)*"
_THINK = rf"\s*(?:<think>{_BODY}</think>\s*)*"
_CALL_TURN = re.compile(rf"{_THINK}<(python|search|browse)>{_BODY}</\1>\s*", re.DOTALL)
_ANSWER_TURN = re.compile(rf"{_THINK}<answer>({_BODY})</answer>\s*", re.DOTALL)


def read_answer(turns: list[str]) -> str | None:
    """The answer of a whole trajectory, or None if its format is wrong.

    `turns` holds the text that the policy itself wrote, one string a turn and without the end token;
    tool output is no part of it, so a page that contains `<think>` cannot cost the policy anything.
    """
    *calls, last = turns
    answer = _ANSWER_TURN.fullmatch(last)
    if answer is None or not answer.group(1).strip() or not all(_CALL_TURN.fullmatch(turn) for turn in calls):
        return None
    return answer.group(1).strip()


def encode_result(tokenizer, text: str, max_tokens: int) -> list[int]:
    """Token ids of `<result>text</result>`, the text as plain text and cut to `max_tokens`."""
    plain = re.sub(_TAG, lambda tag: tag.group().strip("<>"), text)  # multi-token tags are disarmed too
    ids = tokenizer.encode(plain, add_special_tokens=False, split_special_tokens=True)[:max_tokens]
    opening, closing = (tokenizer.encode(tag, add_special_tokens=False) for tag in ("<result>", "</result>"))
    return opening + ids + closing


# ---------------------------------------------------------------------------------- Python, search, browse


class Python:
    """Runs code in a confined worker process; output as at an interactive prompt."""

    def __init__(self, sandbox):
        self.sandbox = sandbox

    def __call__(self, code: str) -> ToolResult:
        if not code:
            return ToolResult("Error: no code was given.", "error")
        return ToolResult(*self.sandbox.run(code))


_STOPWORDS = frozenset(
    "a about an and are as at be been but by did do does for from had has have how i if in into is it its many "
    "more much of on or than that the their there these they this to was were what when where which who whose "
    "why will with would".split()
)
_HAN = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # Chinese and Japanese, written without spaces


def _terms(query: str, limit: int = 32) -> list[str]:
    """The words of a query, without stopwords if others remain; Chinese and Japanese in pairs of characters."""
    words = []
    for word in re.findall(rf"[{_HAN}]+|[^\W{_HAN}]+", query.lower()):
        pairs = len(word) - 1 if re.match(f"[{_HAN}]", word) else 0
        words += [word[i : i + 2] for i in range(pairs)] or [word]
    return ([word for word in words if word not in _STOPWORDS] or words)[:limit]


def _divide(text: str) -> str:
    """Zero-width spaces between Chinese characters, which SQLite would take for one long word."""
    return text if text.isascii() else re.sub(rf"(?<=[{_HAN}])(?=[{_HAN}])", "\u200b", text)


def _show_hits(hits, snippet_chars: int) -> str:
    lines = [f"[{i}] {title} ({address}): {text[:snippet_chars]}" for i, (title, address, text) in enumerate(hits, 1)]
    return "\n".join(lines) or "Nothing was found."


def _fill(db: sqlite3.Connection, rows) -> None:
    """Makes the index of rows (title, text, address); rows of one address are one page, in their order."""
    db.execute("CREATE VIRTUAL TABLE passages USING fts5(title, text, address UNINDEXED, tokenize='porter unicode61')")
    divided = ((_divide(title), _divide(text), address) for title, text, address in rows)
    db.executemany("INSERT INTO passages VALUES (?, ?, ?)", divided)
    db.execute("CREATE TABLE places AS SELECT address, rowid AS passage FROM passages")
    db.execute("CREATE INDEX by_address ON places(address)")
    db.commit()


def _read_corpus(corpus: str | Path):
    with open(corpus, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                entry = json.loads(line)
                yield entry["title"], entry["text"], str(entry.get("address", number))
            except (ValueError, LookupError, TypeError) as error:
                found = f"found {line.strip()!r:.60} ({error!r})"
                raise ValueError(f"{corpus}, line {number}: expected title and text as JSON, {found}") from None


def index_corpus(corpus: str | Path) -> Path:
    """Indexes a JSONL file of title, text and perhaps address (else the line's number) into a file beside it."""
    target = Path(corpus).with_suffix(".db")
    unfinished = target.with_suffix(".unfinished")  # renamed when complete: a killed command leaves no half index
    unfinished.unlink(missing_ok=True)
    try:
        with closing(sqlite3.connect(unfinished)) as db:
            _fill(db, _read_corpus(corpus))
        return unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)


class Search:
    """BM25 over a corpus, with SQLite's full-text index: passages (title, address, text) or an index on disk.

    Titles weigh four times as much as text. Equal scores keep the order of the corpus, so that the same
    query always gives the same result.
    """

    def __init__(self, corpus, top_k: int = 3, snippet_chars: int = 400):
        self.top_k, self.snippet_chars = top_k, snippet_chars
        self._lock = threading.Lock()
        self._threads = threading.local()
        self._file = Path(corpus).resolve(strict=True).as_uri() if isinstance(corpus, (str, Path)) else None
        if not self._file:
            self._memory = sqlite3.connect(":memory:", check_same_thread=False)
            _fill(self._memory, ((p.title, p.text, p.address) for p in corpus))

    def __call__(self, query: str) -> ToolResult:
        terms = _terms(query)
        if not terms:
            return ToolResult("Error: the query has no words.", "error")
        match = " OR ".join(f'"{_divide(term)}"' for term in terms)  # quoted: nothing in a query is an operator
        sql = (
            "SELECT title, address, text FROM passages WHERE passages MATCH ? "
            "ORDER BY bm25(passages, 4.0, 1.0), rowid LIMIT ?"
        )
        return ToolResult(_show_hits(self._rows(sql, match, self.top_k), self.snippet_chars))

    def page(self, address: str) -> ToolResult:
        """All text at an address: a source for `Browse`."""
        sql = "SELECT text FROM passages JOIN places ON passages.rowid = passage WHERE places.address = ?"
        rows = self._rows(f"{sql} ORDER BY passage", address)
        return ToolResult("\n".join(text for (text,) in rows)) if rows else _no_page(address)

    def _rows(self, sql: str, *values) -> list[tuple]:
        if not self._file:
            with self._lock:
                rows = self._memory.execute(sql, values).fetchall()
        else:  # one connection a thread: SQLite lets go of the interpreter while it searches
            if not hasattr(self._threads, "db"):
                self._threads.db = sqlite3.connect(f"{self._file}?mode=ro", uri=True)
            rows = self._threads.db.execute(sql, values).fetchall()
        return [tuple(value.replace("\u200b", "") for value in row) for row in rows]


def _no_page(address: str) -> ToolResult:
    return ToolResult(f"Error: no page at {address[:80]!r}. Use an address from a search result.", "error")


class Browse:
    """Opens a page by its address and shows the part around the given words, or page N of it.

    `source` holds the pages: a dict from address to text, or a callable from an address to a `ToolResult`
    with the whole text (`Search.page`, `Web`). `reader`, if given, maps (words, text) to what a model
    finds in the text about the words, which is then shown instead.
    """

    def __init__(self, source, window_chars: int = 300, reader: Callable[[str, str], str] | None = None):
        in_memory = lambda address: ToolResult(source[address]) if address in source else _no_page(address)
        self.open = source if callable(source) else in_memory
        self.check = getattr(source, "check", lambda: ToolResult(""))
        self.window, self.reader = window_chars, reader

    def __call__(self, content: str) -> ToolResult:
        address, words = (content.split(None, 1) + ["", ""])[:2]
        opened = self.open(address)
        if opened.outcome != "ok":
            return opened
        text = opened.text
        page = re.fullmatch(r"\s*page\s+(\d{1,6})\s*", words, re.IGNORECASE)
        if self.reader and words and not page:
            return ToolResult(self.reader(words, text))
        last = max(1, -(-len(text) // self.window))
        if page and not 1 <= int(page.group(1)) <= last:
            return replace(opened, text=f"Error: this text has pages 1 to {last}.", outcome="error")
        start = (int(page.group(1)) - 1) * self.window if page else self._best_start(text, _terms(words))
        shown = text[start : start + self.window].strip()
        return replace(opened, text=("…" if start else "") + shown + ("…" if start + self.window < len(text) else ""))

    def _best_start(self, text: str, terms: list[str]) -> int:
        """Start of the last sentence from which the window holds the most of the words; 0 if it never holds any."""
        lowered, last = text.lower(), max(0, len(text) - self.window)  # a full window beats a short tail
        starts = {-1: 0}  # the last of every few characters: a page of nothing but full stops must not take long
        for match in re.finditer(r"[.!?\n]\s+", text):
            start = min(match.end(), last)
            starts[start // (1 + self.window // 200)] = start
        held = {start: sum(term in lowered[start : start + self.window] for term in terms) for start in starts.values()}
        return max(held, key=lambda start: (held[start], start)) if any(held.values()) else 0


# ---------------------------------------------------------------------------------- cache


class WebError(Exception):
    """A request that came to nothing, with what the model is told. For `fault` see `ToolResult`."""

    def __init__(self, text: str, outcome: str = "error", fault: bool = False):
        super().__init__(text)
        self.result = ToolResult(f"Error: {text}", outcome, fault=fault)


class Cache:
    """Answers of the live web in one SQLite file, shared by threads and processes; by default in memory.

    `online` asks for what is not stored, and the first answer to be stored is everyone's. `offline` never
    asks, so that a run can be repeated exactly; what is missing is a fault. `refresh` asks once more for
    everything and keeps the new answer. Lasting errors (no such page) are stored, faults never are.
    """

    def __init__(self, path: str | Path = ":memory:", mode: str = "online"):
        if mode not in ("online", "offline", "refresh"):
            raise ValueError(f"cache mode {mode!r}: expected online, offline or refresh")
        if mode == "offline" and not Path(path).is_file():
            raise FileNotFoundError(f"offline needs a cache file, and there is none at {path}")
        self.mode = mode
        self._lock = threading.Lock()
        self._asking: dict[tuple[str, str], Future] = {}
        self._refreshed: set[tuple[str, str]] = set()
        # No write-ahead log: the file alone is whole after every answer, and can be copied as it is.
        self._db = sqlite3.connect(path, timeout=60, check_same_thread=False)
        columns = "kind TEXT, key TEXT, text TEXT, outcome TEXT, PRIMARY KEY (kind, key)"
        self._db.execute(f"CREATE TABLE IF NOT EXISTS answers({columns})")

    def get(self, kind: str, key: str, ask: Callable[[], str]) -> ToolResult:
        """The stored answer, or what `ask` returns or raises (`WebError`). Threads that want the same share one ask."""
        entry = kind, _encodable(key)
        with self._lock:
            first = entry not in self._asking
            answer = self._asking.setdefault(entry, Future())
        if not first:
            shared = answer.result()
            return replace(shared, cached=not shared.fault)
        try:
            answer.set_result(self._answer(entry, ask))
        except BaseException as error:
            answer.set_exception(error)
        with self._lock:
            del self._asking[entry]
        return answer.result()

    def _answer(self, entry: tuple[str, str], ask: Callable[[], str]) -> ToolResult:
        stored = self._stored(entry)
        if stored and (self.mode != "refresh" or entry in self._refreshed):
            return replace(stored, cached=True)
        if self.mode == "offline":
            return ToolResult("Error: this is not in the cache, and the web is switched off.", "error", fault=True)
        try:
            result = ToolResult(_encodable(ask()))
        except WebError as error:
            result = error.result
        if result.fault:
            return result
        self._store([(*entry, result.text, result.outcome)])
        self._refreshed.add(entry)
        return self._stored(entry)  # another process may have been first

    def _stored(self, entry: tuple[str, str]) -> ToolResult | None:
        with self._lock:
            row = self._db.execute("SELECT text, outcome FROM answers WHERE kind = ? AND key = ?", entry).fetchone()
        return row and ToolResult(*row)

    def _store(self, rows: list[tuple]) -> int:
        verb = "REPLACE" if self.mode == "refresh" else "INSERT OR IGNORE"
        with self._lock, self._db:
            return self._db.executemany(f"{verb} INTO answers VALUES (?, ?, ?, ?)", rows).rowcount

    def load(self, kind: str, answers: dict[str, str]) -> int:
        """Stores {key: text} where nothing is stored yet; returns how many that were."""
        return self._store([(kind, key, text, "ok") for key, text in answers.items()])


def _encodable(text: str) -> str:
    """Without half surrogate pairs, which JSON may contain and no file can."""
    return text.encode("utf-8", "replace").decode("utf-8")


# ---------------------------------------------------------------------------------- one HTTP request

USER_AGENT = "arpo-browse/0.1 (research; honours robots.txt)"
PAGE_BYTES = 2_000_000  # read, and again unpacked; the rest of a page is dropped
PAGE_CHARS = 100_000  # of text kept from one page
HOPS = 5  # a request and its redirects

_tls = cache(ssl.create_default_context)


def request(address: str, deadline: float, trusted: Collection[str] = (), headers=None, body=None):
    """One exchange over HTTP, POST if there is a body, over by `deadline` (of time.monotonic) whatever happens.

    Returns status, headers and body, cut to PAGE_BYTES and unpacked. Raises WebError.
    Only public addresses are asked, apart from those whose "host:port" is in `trusted`. Redirects are not
    followed: whoever follows one calls again, so that its target is checked as well.
    """
    parts = _check_address(address, trusted)
    answer: Future = Future()
    sockets: list[socket.socket] = []

    def work():
        try:
            answer.set_result(_exchange(parts, deadline, trusted, headers or {}, body, sockets))
        except Exception as error:
            answer.set_exception(error)
        finally:
            for sock in sockets:
                sock.close()

    # Looking up a name knows no time limit, and one on a socket starts anew with every byte. So a thread
    # does the work, and loses its connection if the caller has waited long enough.
    threading.Thread(target=work, name="fetch", daemon=True).start()
    try:
        return answer.result(max(0.0, deadline - time.monotonic()))
    except WebError:
        raise
    except TimeoutError:
        raise WebError("the server did not answer in time.", "timeout", fault=True) from None
    except Exception as error:  # its own text may quote headers, and so a key
        raise WebError(f"the server gave no usable answer ({type(error).__name__}).", fault=True) from None
    finally:
        for sock in sockets:
            with suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)  # not the method of a TLS socket, which may wait


def _check_address(address: str, trusted: Collection[str]) -> SplitResult:
    with suppress(ValueError):  # of an impossible port, or a bracket left open
        parts = urlsplit(address)
        usual = parts.netloc in trusted or ("@" not in parts.netloc and parts.port in (None, 80, 443))
        if usual and parts.scheme in ("http", "https") and 0 < len(parts.hostname or "") < 254:
            return parts
    raise WebError("only addresses such as https://host/page are opened, without a user name or port.", "refused")


def _is_public(address: str) -> bool:
    """Whether an IP address is one of the internet's own. Of IPv6 that leaves out all that hides an IPv4 address."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if ip.version == 6 and (ip not in ipaddress.ip_network("2000::/3") or ip.sixtofour or ip.teredo):
        return False
    return ip.is_global and not ip.is_multicast


def _exchange(parts: SplitResult, deadline: float, trusted, headers: dict, body, sockets: list):
    """The work of `request`; `sockets` gets whatever the caller must cut off at the deadline."""

    def watched(sock):
        sockets.append(sock)
        if time.monotonic() > deadline:  # the caller may be gone already
            raise TimeoutError
        return sock

    host, port = parts.hostname.encode("idna").decode(), parts.port or (443 if parts.scheme == "https" else 80)
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    if parts.netloc not in trusted and not all(_is_public(target[0]) for *_, target in found):
        raise WebError("this address is not on the public internet.", "refused")
    family, kind, protocol, _, target = found[0]
    sock = watched(socket.socket(family, kind, protocol))
    sock.settimeout(max(0.01, deadline - time.monotonic()))
    sock.connect(target)  # to what was checked: the name might now lead elsewhere
    watched(sock)
    if parts.scheme == "https":
        sock = watched(_tls().wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False))
        sock.do_handshake()
    connection = HTTPConnection(host, port)
    connection.default_port = 443 if parts.scheme == "https" else 80  # is left out of the Host header
    connection.sock = sock
    wanted = quote(urlunsplit(("", "", parts.path or "/", parts.query, "")), safe="/%:@!$&'()*+,;=~?[]")
    standard = {"User-Agent": USER_AGENT, "Accept-Encoding": "gzip", "Connection": "close"}
    connection.request("POST" if body else "GET", wanted, body, standard | headers)
    response = connection.getresponse()
    data = response.read(PAGE_BYTES)
    if response.length and len(data) < PAGE_BYTES:
        raise ConnectionError("the connection ended early")
    packing = response.headers.get("Content-Encoding", "identity").strip().lower()
    if packing != "identity":
        if packing not in ("gzip", "x-gzip", "deflate"):
            raise WebError("this page is packed in a way that cannot be read here.")
        data = zlib.decompressobj(47).decompress(data, PAGE_BYTES)  # 47: gzip or zlib, by their first bytes
    return response.status, response.headers, data


# ---------------------------------------------------------------------------------- pages of the live web


def reading_sandbox(cpu_seconds: float = 5) -> PythonSandbox:
    """A confined worker that turns documents into text, with trafilatura if that is installed."""
    preload = ("trafilatura",) if importlib.util.find_spec("trafilatura") else ()
    return PythonSandbox(workers=1, cpu_seconds=cpu_seconds, max_output=PAGE_CHARS, preload=preload)


def extract_text(document: str) -> str:
    """Title and text of an HTML page. The confined worker gets the source of this function, so it stands alone."""
    import re
    from html.parser import HTMLParser

    skipped = "title script style noscript template svg iframe nav footer aside button select".split()
    inline = "a abbr b cite code del em font i ins kbd mark q s small span strong sub sup u wbr".split()
    parts, titles = [], []

    class Reader(HTMLParser):
        inside = None  # the tag whose content is no part of the text

        def handle_starttag(self, tag, attrs):
            if tag in ("main", "article", "h1"):
                self.inside = None  # the page begins: a menu that was never closed must not swallow it
            if self.inside is None and tag in skipped:
                self.inside = tag
            parts.append("" if tag in inline else " " if tag in ("td", "th") else "\n")

        def handle_endtag(self, tag):
            self.inside = None if tag == self.inside else self.inside
            parts.append("" if tag in inline else " " if tag in ("td", "th") else "\n")

        def handle_data(self, data):
            if self.inside in (None, "title"):
                (titles if self.inside else parts).append(re.sub(r"\s+", " ", data))

    reader = Reader()
    reader.feed(document)
    reader.close()
    lines = (" ".join(line.split()) for line in "".join(parts).split("\n"))
    text = "\n".join(line for line in lines if line)
    try:
        from trafilatura import extract

        text = extract(document, favor_recall=True) or text
    except Exception:  # not installed, or beaten by this document
        pass
    return f"{' '.join(''.join(titles).split())}\n{text}".strip()


class Web:
    """Pages of the live web: maps an address to a `ToolResult` with the text of the page.

    A fetch with all its redirects takes at most `seconds`; the confined worker then has limits of its own.
    Two requests to one host are at least `delay` seconds apart, and its robots.txt is obeyed.
    """

    def __init__(self, cache: Cache, sandbox: PythonSandbox, seconds=15.0, delay=1.0, trusted: Collection[str] = ()):
        self.cache, self.sandbox, self.seconds, self.delay, self.trusted = cache, sandbox, seconds, delay, trusted
        self._lock = threading.Lock()
        self._next_turn: defaultdict[str, float] = defaultdict(float)
        self._robots: dict[str, RobotFileParser] = {}

    def __call__(self, address: str) -> ToolResult:
        return self.cache.get("page", address.partition("#")[0], lambda: self._page(address))

    def check(self) -> ToolResult:
        return ToolResult(self._page("https://example.com/") if self.cache.mode != "offline" else "")

    def _page(self, address: str) -> str:
        status, headers, body = self._follow(address, time.monotonic() + self.seconds)
        if status != 200:
            passing = status in (408, 425, 429) or status >= 500
            raise WebError(f"the server answered with status {status}.", fault=passing)
        kind = headers.get_content_type() if "content-type" in headers else "text/html"
        text = _decode(body, headers.get_content_charset())
        if not re.fullmatch(r"text/.*|application/(xhtml\+xml|xml|json)", kind) or "\0" in text:
            raise WebError(f"this page is not text ({kind[:50]}).")
        if "html" not in kind:
            return text[:PAGE_CHARS]
        call = f"print(extract_text({ascii(text)})[:{PAGE_CHARS}] or '(this page has no text)')"
        text, outcome = self.sandbox.run(f"{inspect.getsource(extract_text)}\n{call}")
        if outcome != "ok":  # too long: a busy machine may be why
            raise WebError("this page could not be turned into text.", outcome, fault=outcome == "timeout")
        return text

    def _follow(self, address: str, deadline: float, robots: bool = True):
        for _ in range(HOPS):
            site = "{0.scheme}://{0.netloc}".format(_check_address(address, self.trusted))
            if robots and not self._rules(site, deadline).can_fetch(USER_AGENT, address):
                raise WebError("the robots.txt of this site forbids this page.", "refused")
            with self._lock:
                turn = max(time.monotonic(), self._next_turn[site])
                if turn > deadline:
                    raise WebError("too many requests to this site at once.", "timeout", fault=True)
                self._next_turn[site] = turn + self.delay
            time.sleep(max(0.0, turn - time.monotonic()))
            status, headers, body = request(address, deadline, self.trusted)
            if status not in (301, 302, 303, 307, 308) or "location" not in headers:
                return status, headers, body
            try:
                address = urljoin(address, headers["location"])
            except ValueError:
                break
        raise WebError("this page redirects too often or to nowhere.")

    def _rules(self, site: str, deadline: float) -> RobotFileParser:
        """What the site's robots.txt allows: everything if there is none; while it cannot be had, nothing is known."""
        if site not in self._robots:
            status, _, body = self._follow(f"{site}/robots.txt", deadline, robots=False)
            if status == 429 or status >= 500:
                raise WebError("the robots.txt of this site cannot be read now.", fault=True)
            rules = RobotFileParser()
            rules.parse(body[:500_000].decode("utf-8", "replace").splitlines() if status == 200 else [])
            self._robots[site] = rules
        return self._robots[site]


def _decode(body: bytes, charset: str | None) -> str:
    """Text by the charset of the header, else of the page's own head, else UTF-8."""
    named = re.search(rb"charset\s*=\s*[\"']?([\w-]+)", body[:2048], re.IGNORECASE)
    charset = charset or (named.group(1).decode("latin-1").lower() if named else "utf-8")
    # Python also knows codecs that are no charsets, and some of those take for ever.
    if not re.fullmatch(r"(us-ascii|iso|cp|windows|koi8|gb|big5|shift|euc|latin)[\w-]{0,20}", charset):
        charset = "utf-8"
    with suppress(LookupError):
        return body.decode(charset, "replace")
    return body.decode("utf-8", "replace")


# ---------------------------------------------------------------------------------- services on the web


def ask_service(url: str, headers: dict, payload: dict | None, seconds: float) -> dict:
    """The JSON that an endpoint of the user's choice answers with; POST if there is a payload. Raises WebError."""
    body = json.dumps(payload).encode() if payload else None
    headers = headers | {"Content-Type": "application/json"}
    status, _, answer = request(url, time.monotonic() + seconds, {urlsplit(url).netloc}, headers, body)
    if status != 200:  # 400 and 422 are about this query, all else about the service or the key
        raise WebError(f"the service answered with status {status}.", fault=status not in (400, 422))
    try:
        return dict(json.loads(answer))
    except (ValueError, TypeError):
        raise WebError("the service did not answer with JSON.", fault=True) from None


def normal_query(query: str) -> str:
    """Queries that differ in case or spaces only are one, cut to the 400 characters that services take."""
    return " ".join(_encodable(query).lower().split())[:400].strip()


class WebSearch:
    """The live web through Serper or Brave, with a key from SERPER_API_KEY or BRAVE_API_KEY."""

    URLS = {"serper": "https://google.serper.dev/search", "brave": "https://api.search.brave.com/res/v1/web/search"}

    def __init__(self, provider: str, cache: Cache, top_k: int = 3, url: str | None = None, seconds: float = 10.0):
        self.provider, self.cache, self.top_k, self.seconds = provider, cache, top_k, seconds
        self.url = url or self.URLS[provider]
        self._key = os.environ.get(f"{provider.upper()}_API_KEY", "")
        if not self._key and cache.mode != "offline":
            raise ValueError(f"no key: set the environment variable {provider.upper()}_API_KEY")

    def __call__(self, query: str) -> ToolResult:
        query = normal_query(query)
        if not query:
            return ToolResult("Error: the query has no words.", "error")
        kind = f"search {self.provider} {self.top_k}"  # answers of another service or length are other answers
        return self.cache.get(kind, query, lambda: self._ask(query))

    def check(self) -> ToolResult:
        return ToolResult(self._ask("weather") if self.cache.mode != "offline" else "")

    def _ask(self, query: str) -> str:
        if self.provider == "serper":
            payload, names = {"q": query, "num": self.top_k}, ("title", "link", "snippet")
            hits = ask_service(self.url, {"X-API-KEY": self._key}, payload, self.seconds).get("organic")
        else:
            url, names = f"{self.url}?q={quote(query)}&count={self.top_k}", ("title", "url", "description")
            web = ask_service(url, {"X-Subscription-Token": self._key}, None, self.seconds).get("web")
            hits = (web or {}).get("results")
        # Brave marks words with tags and entities.
        plain = lambda text: " ".join(html.unescape(re.sub(r"</?\w+>", "", str(text))).split())
        rows = [[plain(hit.get(name, "")) for name in names] for hit in (hits or [])[: self.top_k]]
        return _show_hits(rows, snippet_chars=400)


class Reader:
    """Reads pages for `Browse`: `ask`, from a prompt to a text, is a model. Answers are cached like pages."""

    def __init__(self, name: str, ask: Callable[[str], str], cache: Cache, page_chars: int = 20_000):
        self.name, self.ask, self.cache, self.page_chars = name, ask, cache, page_chars

    def __call__(self, words: str, text: str) -> str:
        prompt = (
            f"In at most 150 words, write down what this page says about: {words}\n"
            f"Use the page alone; if it says nothing about this, say so.\n\n{text[: self.page_chars]}"
        )
        key = sha256(_encodable(prompt).encode()).hexdigest()
        result = self.cache.get(f"read {self.name}", key, lambda: self.ask(prompt))
        if result.fault:
            raise WebError(result.text.removeprefix("Error: "), result.outcome, fault=True)
        return result.text


def ask_endpoint(url: str, model: str, prompt: str, seconds: float = 60.0) -> str:
    """What a model behind an OpenAI-compatible endpoint says; raises WebError."""
    key = os.environ.get("OPENAI_API_KEY", "none")  # servers of one's own mostly want none
    message = {"role": "user", "content": prompt}
    payload = {"model": model, "messages": [message], "temperature": 0, "max_tokens": 400}
    answer = ask_service(f"{url.rstrip('/')}/chat/completions", {"Authorization": f"Bearer {key}"}, payload, seconds)
    return str(answer["choices"][0]["message"]["content"])


# ---------------------------------------------------------------------------------- toolbox


class Toolbox:
    """Runs calls side by side, counts them, and watches for tools that fail.

    `tools` maps a tool's name to a callable from its content to a `ToolResult`. `submit` returns at
    once; a wave's calls run while other rows still decode. `counts` maps (tool, outcome) to calls, the
    outcome being "cached" where the cache knew the answer.

    Faults teach the policy noise: 20 in a tool's last 100 calls print a warning, more than `max_faults`
    raise RuntimeError. What the call itself brought about is no fault: a wrong or endless program, a page
    that does not exist.
    """

    def __init__(self, tools: dict, threads: int = 8, max_faults: int = 50):
        self.tools, self.max_faults = tools, max_faults
        self.counts: Counter = Counter()
        self._seconds: Counter = Counter()
        self._recent = {tool: deque(maxlen=100) for tool in tools}  # whether each call was a fault
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="tool")

    def submit(self, call: ToolCall) -> Future:
        return self._pool.submit(self._run, call)

    def check(self) -> None:
        """Tries every tool once with a harmless call, uncounted; OSError names those that do not work."""
        probes = {name: getattr(tool, "check", partial(tool, "6 * 7")) for name, tool in self.tools.items()}
        results = {name: self._try(probe) for name, probe in probes.items()}
        broken = [f"{name} ({r.text})" for name, r in results.items() if r.fault or name == "python" and r.text != "42"]
        if broken:
            raise OSError("tools that do not work: " + "; ".join(broken))

    def report(self) -> str:
        """A line a tool: calls by outcome and mean seconds."""
        lines = []
        for tool in sorted({tool for tool, _ in self.counts}):
            outcomes = {outcome: n for (name, outcome), n in sorted(self.counts.items()) if name == tool}
            listed = ", ".join(f"{outcome} {n}" for outcome, n in outcomes.items())
            lines.append(f"{tool}: {listed}; {self._seconds[tool] / sum(outcomes.values()):.2f} s a call")
        return "\n".join(lines)

    def _run(self, call: ToolCall) -> ToolResult:
        started = time.perf_counter()
        if call.tool not in self.tools:
            result = ToolResult(f"Error: the tool {call.tool} is not available.", "error")
        else:
            result = self._try(lambda: self.tools[call.tool](call.content))
        result = replace(result, seconds=time.perf_counter() - started)
        with self._lock:
            self.counts[call.tool, "cached" if result.cached else result.outcome] += 1
            self._seconds[call.tool] += result.seconds
            if call.tool in self.tools:
                self._watch(call.tool, result)
        return result

    def _try(self, run: Callable[[], ToolResult]) -> ToolResult:
        try:
            return run()
        except WebError as error:
            return error.result
        except Exception as error:  # a failing tool is something the model sees, not the end of a run
            return ToolResult(f"Error: the tool failed ({type(error).__name__}).", "error", fault=True)

    def _watch(self, tool: str, result: ToolResult) -> None:
        recent = self._recent[tool]
        recent.append(result.fault)
        faults = sum(recent)
        told = f"the tool {tool} failed in {faults} of its last {len(recent)} calls, last with: {result.text}"
        if result.fault and faults > self.max_faults:
            raise RuntimeError(told)
        if result.fault and faults == 20:
            print(f"Warning: {told}", file=sys.stderr)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


# ---------------------------------------------------------------------------------- command line

if __name__ == "__main__":
    try:
        match sys.argv[1:]:
            case ["index", corpus] if not corpus.startswith("-"):
                print(index_corpus(corpus))
            case ["import", answers, file, *kind]:
                found = json.loads(Path(answers).read_text(encoding="utf-8"))
                found = {normal_query(query): text for query, text in found.items()}
                print(Cache(file).load(*kind or ["search serper 3"], found), "new answers")
            case _:
                sys.exit("usage: python tools.py index corpus.jsonl | import answers.json cache.db [kind]")
    except (OSError, ValueError, AttributeError) as error:
        sys.exit(f"tools.py: error: {error}")
