"""The live web behind a cache: search services, pages, and models that read them.

Each maps a text to a text: a query to hits, an address to the text of a page, a prompt to what a model says. All may
be used from many threads. Addresses are written by the policy and by strangers, so only public ones are connected to,
nothing outlasts its deadline, and pages are parsed in the confined worker alone. Left out: pages that need JavaScript
or a login, and what is not text, such as PDF.
"""

import html
import ipaddress
import json
import os
import re
import socket
import sqlite3
import ssl
import threading
import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Collection
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from email.utils import parsedate_to_datetime
from functools import cache
from hashlib import sha256
from pathlib import Path
from urllib.parse import quote, unquote

import httpcore2
import httpx2

from data.corpus import NOTHING, show_hits
from data.format import ToolResult
from sandbox import PythonSandbox

NAME = "arpo-browse"  # in robots.txt
AGENT = f"{NAME}/0.1 (research; honours robots.txt)"
PAGE_BYTES = 2_000_000  # read, and again unpacked; the rest of a page is dropped
PAGE_CHARS = 100_000  # of text kept from one page
HOPS = 5  # a request and its redirects


class WebError(Exception):
    """A request that came to nothing; `result` is what the model is told. For `fault` see `ToolResult`."""

    def __init__(self, text: str, outcome: str = "error", fault: bool = False):
        super().__init__(text)
        self.result = ToolResult(f"Error: {text}", outcome, fault=fault)


class OutOfBudget(RuntimeError):
    """A call that would cost more than the run may."""


class Cache:
    """Answers of the live web in one SQLite file, shared by threads and processes; by default in memory.

    `online` asks for what is not stored, and the first answer to be stored is everyone's. `offline` never asks, so
    that a run can be repeated exactly; what is missing is a fault. `refresh` asks once more for everything and keeps
    the new answer. Lasting errors (no such page) are stored, faults never are; what found nothing is asked for anew
    unless offline. The file also counts paid calls, up to `max_paid_calls` if that is not 0; a resumed run goes on with
    them. Raises OSError if the file is unusable, and ValueError if it is another's.
    """

    def __init__(self, path: str | Path = ":memory:", mode: str = "online", max_paid_calls: int = 0):
        if mode == "offline" and not Path(path).is_file():
            raise FileNotFoundError(
                f"--cache_mode offline: expected a cache file (--web_cache), found none at {path!r}"
            )
        self.mode, self.limit, self._lock = mode, max_paid_calls, threading.Lock()
        self._turns, self._refreshed = {}, set()
        columns = "kind TEXT, key TEXT, text TEXT, outcome TEXT, PRIMARY KEY (kind, key)"
        foreign = f"SELECT name FROM sqlite_master WHERE type = 'table' AND sql <> 'CREATE TABLE answers({columns})'"
        try:  # no write-ahead log: the file alone is whole after every answer, and can be copied as it is
            self._db = sqlite3.connect(path, timeout=60, check_same_thread=False)
            if other := self._db.execute(foreign).fetchone():
                raise ValueError(f"{path}: expected a cache of answers or a new file, found the table {other[0]}")
            self._db.execute(f"CREATE TABLE IF NOT EXISTS answers({columns})")
        except sqlite3.Error as error:
            raise OSError(
                f"{path}: expected a file where answers can be kept, found that they cannot be kept ({error})"
            ) from None

    def get(self, kind: str, key: str, ask: Callable[[], str]) -> ToolResult:
        """The stored answer, or what `ask` returns or raises (`WebError`). Threads that want the same share one ask."""
        entry = kind, _encodable(key)
        with self._lock:
            lock, passing = self._turns.setdefault(entry, (threading.Lock(), []))
        with lock:
            if not passing:  # else one came up while this thread waited
                result = self._answer(entry, ask)
                passing += [result] * (result.fault or result.text == NOTHING)
                self._turns.pop(entry, None)  # whoever comes later asks anew
        return passing[0] if passing else result

    def pay(self) -> None:
        """Counts a call that costs money; raises OutOfBudget instead of one too many."""
        count = "INSERT INTO answers VALUES ('paid', '', 1, 'ok') ON CONFLICT DO UPDATE SET text = text + 1"
        with self._lock, self._db:
            if not self._db.execute(f"{count} WHERE ?1 = 0 OR text + 0 < ?1 RETURNING 1", [self.limit]).fetchall():
                raise OutOfBudget(f"the {self.limit} calls of --max_paid_calls are spent")

    def load(self, kind: str, answers: dict[str, str]) -> int:
        """Stores {key: text} where nothing is stored yet; returns how many that were. Raises ValueError."""
        for key in (key for key, text in answers.items() if not isinstance(text, str)):
            raise ValueError(f"expected a text as the answer to {key!r:.60}, found {answers[key]!r:.60}")
        return self._store([(kind, _encodable(key), _encodable(text), "ok") for key, text in answers.items()])

    def _answer(self, entry: tuple[str, str], ask: Callable[[], str]) -> ToolResult:
        stored = self._stored(entry)
        fresh = stored and stored.text != NOTHING and (self.mode != "refresh" or entry in self._refreshed)
        if fresh or (stored and self.mode == "offline"):
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
        again = f"UPDATE SET text = excluded.text, outcome = excluded.outcome WHERE text = '{NOTHING}' OR "
        sql = f"INSERT INTO answers VALUES (?, ?, ?, ?) ON CONFLICT DO {again}{int(self.mode == 'refresh')}"
        with self._lock, self._db:
            return self._db.executemany(sql, rows).rowcount


def _encodable(text: str) -> str:
    """Without half surrogate pairs, which JSON may contain and no file can."""
    return text.encode("utf-8", "replace").decode("utf-8")


# ---------------------------------------------------------------------------------- one HTTP request
_tls = cache(ssl.create_default_context)


def request(address: str, deadline: float, trusted: Collection[str] | None = (), headers=None, body=None) -> tuple:
    """One exchange over HTTP, POST if there is a body, over by `deadline` (of time.monotonic) whatever happens.

    Returns status, headers and body, cut to PAGE_BYTES and unpacked. Raises WebError. Only public addresses are asked,
    apart from those whose "host:port" is in `trusted`; None trusts any. Redirects are not followed.
    """
    url, network, answer = _checked(address, trusted), _PublicNetwork(deadline, trusted), Future()

    def work():
        try:
            answer.set_result(_exchange(url, network, headers or {}, body))
        except Exception as error:
            answer.set_exception(error)

    # Looking up a name knows no time limit, and a socket's own starts anew with every byte. So a thread does the work,
    # and loses its connection if the caller has waited long enough.
    threading.Thread(target=work, name="fetch", daemon=True).start()
    try:
        return answer.result(deadline - time.monotonic())
    except WebError:
        raise
    except (TimeoutError, httpcore2.TimeoutException):
        raise WebError("the server did not answer in time.", "timeout", fault=True) from None
    except Exception as error:  # its own text may quote headers, and so a key
        kind = type(error.__context__ or error).__name__
        raise WebError(f"the server gave no usable answer ({kind}).", fault=True) from None
    finally:
        network.hang_up()


def request_patiently(address: str, deadline: float, *how) -> tuple[int, httpx2.Headers, bytes]:
    """`request`, asked again when the Retry-After of a busy server says so; too late for the deadline is a fault."""
    while True:
        status, found, body = request(address, deadline, *how)
        if status not in (429, 503) or "retry-after" not in found:
            return status, found, body
        seconds = seconds_to_wait(found["retry-after"])
        if time.monotonic() + seconds > deadline:
            raise WebError(f"the server is busy (status {status}) and asks to wait for {seconds:.0f} s.", fault=True)
        time.sleep(seconds)


def seconds_to_wait(told: str) -> float:
    """What a Retry-After asks for, at least 1; 60 where it is neither a number nor a date."""
    with suppress(ValueError, OverflowError):
        return max(1.0, float(told) if told.isdigit() else parsedate_to_datetime(told).timestamp() - time.time())
    return 60.0


def _checked(address: str, trusted: Collection[str] | None) -> httpx2.URL:
    with suppress(httpx2.InvalidURL, ValueError):
        url = httpx2.URL(address)
        own = trusted is None or url.netloc.decode() in trusted
        usual = url.port in (None, 80, 443) and not url.userinfo
        if url.scheme in ("http", "https") and 0 < len(url.raw_host) < 254 and (usual or own):
            return url
    raise WebError("only addresses such as https://host/page are opened, without a user name or port.", "refused")


class _PublicNetwork(httpcore2.SyncBackend):
    """Connects to public or trusted addresses only, and can cut the connection off."""

    def __init__(self, deadline: float, trusted: Collection[str] | None):
        self.deadline, self.trusted, self.line = deadline, trusted, None

    def connect_tcp(self, host, port, timeout=None, local_address=None, socket_options=None):
        try:
            found = socket.getaddrinfo(host.encode(), port, type=socket.SOCK_STREAM)
        except socket.gaierror as error:
            if error.errno == socket.EAI_AGAIN:
                raise
            socket.getaddrinfo("example.com", port)  # raises as well if it is the network that is down
            raise WebError("there is no host of this name.") from None
        trusted = self.trusted is None or f"{host}:{port}" in self.trusted
        if not trusted and not all(_is_public(target[0]) for *_, target in found):
            raise WebError("this address is not on the public internet.", "refused")
        checked, left = found[0][4][0], max(0.001, self.deadline - time.monotonic())
        stream = super().connect_tcp(checked, port, left)  # not by name, which might now lead elsewhere
        self.line = stream.get_extra_info("socket").dup()
        if time.monotonic() > self.deadline:  # the caller may have gone without it
            self.hang_up()
        return stream

    def hang_up(self):
        if self.line:
            with suppress(OSError):
                self.line.shutdown(socket.SHUT_RDWR)
            self.line.close()


def _is_public(address: str) -> bool:
    """Whether an IP address is one of the internet's own. Of IPv6 that leaves out all that hides an IPv4 address."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if ip.version == 6 and (ip not in ipaddress.ip_network("2000::/3") or ip.sixtofour or ip.teredo):
        return False
    clouds = f"{ip}.".startswith(("168.63.129.16.", "192.0.0."))  # their own services, inside but in public ranges
    return ip.is_global and not ip.is_multicast and not clouds


def _exchange(url: httpx2.URL, network: _PublicNetwork, headers: dict, body: bytes | None):
    """The work of `request`."""
    target = httpcore2.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
    headers = {"Host": url.netloc, "User-Agent": AGENT, "Accept-Encoding": "gzip", "Connection": "close"} | headers
    method, data = "POST" if body else "GET", bytearray()
    with httpcore2.ConnectionPool(_tls(), network_backend=network) as pool:
        with pool.stream(method, target, headers=headers, content=body) as answer:
            for piece in answer.iter_stream():
                data += piece
                if len(data) >= PAGE_BYTES:
                    break
    found, data = httpx2.Headers(answer.headers), bytes(data[:PAGE_BYTES])
    packing = found.get("content-encoding", "identity").strip().lower()
    if packing != "identity":
        if packing not in ("gzip", "x-gzip", "deflate"):
            raise WebError("this page is packed in a way that cannot be read here.")
        data = zlib.decompressobj(47).decompress(data, PAGE_BYTES)  # 47: gzip or zlib, by their first bytes
    return answer.status, found, data


# ---------------------------------------------------------------------------------- pages
# Runs in the confined worker, after a line that sets `page` and `room`.
READ_PAGE = """
import io, sys
from trafilatura import extract, html2txt, load_html

sys.stderr = io.StringIO()  # what it warns of is no part of the page
title = " ".join((load_html(page).findtext(".//title") or "").split())
try:
    text = extract(page, favor_recall=True)
except Exception:
    text = ""
print(f"{title}\\n{text or html2txt(page)}".strip()[:room] or "(this page has no text)")
"""


def reading_sandbox(cpu_seconds: float = 5) -> PythonSandbox:
    """A confined worker that turns documents into text."""
    return PythonSandbox(workers=1, cpu_seconds=cpu_seconds, max_output=PAGE_CHARS + 1, preload=("trafilatura",))


class Web:
    """Pages of the live web: maps an address to a `ToolResult` with title and text of the page.

    A fetch with all its redirects takes at most `seconds`; the confined worker then has limits of its own. Two requests
    to one host are at least `delay` seconds apart, and its robots.txt is obeyed. For `trusted` see `request`.
    """

    def __init__(self, cache: Cache, sandbox: PythonSandbox, seconds=15.0, delay=1.0, trusted: Collection[str] = ()):
        self.cache, self.sandbox, self.seconds, self.delay, self.trusted = cache, sandbox, seconds, delay, trusted
        self._lock, self._next_turn, self._robots = threading.Lock(), defaultdict(float), {}

    def __call__(self, address: str) -> ToolResult:
        return self.cache.get("page", address.partition("#")[0], lambda: self._page(address))

    def check(self) -> ToolResult:
        return ToolResult(self._page("https://example.com/") if self.cache.mode != "offline" else "")

    def _page(self, address: str) -> str:
        status, headers, body = self._follow(address, time.monotonic() + self.seconds)
        if status != 200:
            passing = status in (408, 425, 429) or status >= 500
            raise WebError(f"the server answered with status {status}.", fault=passing)
        described = headers.get("content-type", "text/html")
        kind = described.partition(";")[0].strip().lower()
        if not re.fullmatch(r"text/.*|application/(xhtml\+xml|xml|json)", kind) or b"\0" in body:
            raise WebError(f"this page is not text ({kind[:50]}).")
        page = _decode(body, described)
        text = self._read(page) if "html" in kind else page if isinstance(page, str) else str(page, "utf-8", "replace")
        cut = len(text) > PAGE_CHARS or len(body) == PAGE_BYTES
        return text[: PAGE_CHARS - cut] + "…" * cut

    def _read(self, page: str | bytes) -> str:
        """Title and text of an HTML page."""
        marked = f"<html>{page}" if isinstance(page, str) else b"<html>" + page  # else a mere part is not read
        text, outcome = self.sandbox.run(f"page, room = {marked!a}, {PAGE_CHARS + 1}\n{READ_PAGE}")
        if outcome == "error" and re.search("^(ModuleNotFound|Import)Error: ", text, re.MULTILINE):
            raise WebError(f"pages need trafilatura: pip install trafilatura ({text.splitlines()[-1]})", fault=True)
        if outcome != "ok":  # too long: a busy machine may be why
            raise WebError("this page could not be turned into text.", outcome, fault=outcome == "timeout")
        return text

    def _follow(self, address: str, deadline: float, robots: bool = True) -> tuple[int, httpx2.Headers, bytes]:
        for _ in range(HOPS):
            url = _checked(address, self.trusted)
            if robots and not self._may_read(url, deadline):
                raise WebError("the robots.txt of this site forbids this page.", "refused")
            self._wait_turn(url.host, deadline)
            status, headers, body = request_patiently(address, deadline, self.trusted)
            if status not in (301, 302, 303, 307, 308) or "location" not in headers:
                return status, headers, body
            try:
                address = str(url.join(headers["location"]))
            except (httpx2.InvalidURL, ValueError):
                break
        raise WebError("this page redirects too often or to nowhere.")

    def _wait_turn(self, host: str, deadline: float) -> None:
        with self._lock:
            turn = max(time.monotonic(), self._next_turn[host])
            if turn > deadline:
                raise WebError("too many requests to this site at once.", "timeout", fault=True)
            self._next_turn[host] = turn + self.delay
        time.sleep(max(0.0, turn - time.monotonic()))

    def _may_read(self, url: httpx2.URL, deadline: float) -> bool:
        """Whether the site's robots.txt, if it has one, allows a page. Raises WebError while it cannot be had."""
        place = str(url.join("/robots.txt"))
        if place not in self._robots:
            status, _, body = self._follow(place, deadline, robots=False)
            if status == 429 or status >= 500:
                raise WebError("the robots.txt of this site cannot be read now.", fault=True)
            self._robots[place] = body[:500_000].decode("utf-8-sig", "replace") if status == 200 else ""
        return _allows(self._robots[place], unquote(url.raw_path.decode()))


def _allows(robots: str, path: str) -> bool:
    """Whether a robots.txt lets us read a path: by the longest of its rules for us, or else of those for everyone."""
    best, group, before = {}, set(), ""
    for field, value in re.findall(r"(?i)(?:^|[\r\n])[ \t]*(user-agent|allow|disallow)[ \t]*:[ \t]*([^#\s]*)", robots):
        field, value = field.lower(), unquote(value)
        if field == "user-agent":
            group = (group if before == field else set()) | {value.lower()} & {NAME, "*"}
            best |= {name: best.get(name, (0, True)) for name in group}
        elif value and _fits(value, path):
            best |= {name: max(best[name], (len(value), field == "allow")) for name in group}
        before = field
    return best.get(NAME, best.get("*", (0, True)))[1]


def _fits(pattern: str, path: str) -> bool:
    """Whether a path begins with a pattern, in which * is any text and $ the end. A regex might take for ever."""
    path, place = f"\0{path}\0", 0  # so that the ends are text as well
    for part in re.sub(r"\$$", "\0", f"\0{pattern}").split("*"):
        found = path.find(part, place)
        if found < 0:
            return False
        place = found + len(part)
    return True


def _decode(body: bytes, described: str) -> str | bytes:
    """Text by the charset that the header or else the page's own head names; bytes where none is named."""
    # Python also knows codecs that are no charsets, and some of those take for ever.
    charset = rb"(utf-?8|(?:us-ascii|iso|cp|windows|koi8|gb|big5|shift|euc|latin)[\w-]{0,20})"
    named = re.search(rb"(?:charset|encoding)\s*=\s*[\"']?" + charset, described.encode() + b" " + body[:2048], re.I)
    with suppress(LookupError):
        return body.decode(named.group(1).decode(), "replace") if named else body
    return body


# ---------------------------------------------------------------------------------- services
def ask_service(url: str, headers: dict, payload: dict | None, seconds: float) -> dict:
    """The JSON that an endpoint of the user's choice answers with; POST if there is a payload. Raises WebError."""
    headers, body = headers | {"Content-Type": "application/json"}, json.dumps(payload).encode() if payload else None
    try:
        status, _, answer = request_patiently(url, time.monotonic() + seconds, None, headers, body)
    except WebError as error:  # a name or an address that is wrong is no fault of the query
        raise WebError(str(error), error.result.outcome, fault=True) from None
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
        self.url, self._key = url or self.URLS[provider], self.key_of(provider, cache.mode)

    @staticmethod
    def key_of(provider: str, mode: str) -> str:
        """The service's key. Raises ValueError if one is needed and there is none."""
        name = f"{provider.upper()}_API_KEY"
        if not os.environ.get(name) and mode != "offline":
            raise ValueError(f"--search {provider}: expected the environment variable {name}, found no key")
        return os.environ.get(name, "")

    def __call__(self, query: str) -> ToolResult:
        if not (query := normal_query(query)):
            return ToolResult("Error: the query has no words.", "error")
        kind = f"search {self.provider} {self.top_k}"  # answers of another service or length are other answers
        return self.cache.get(kind, query, lambda: self._ask(query))

    def check(self) -> ToolResult:
        return ToolResult(self._ask("weather") if self.cache.mode != "offline" else "")

    def _ask(self, query: str) -> str:
        self.cache.pay()
        if self.provider == "serper":
            payload, names = {"q": query, "num": self.top_k}, ("title", "link", "snippet")
            found = ask_service(self.url, {"X-API-KEY": self._key}, payload, self.seconds)
        else:
            url, names = f"{self.url}?q={quote(query)}&count={self.top_k}", ("title", "url", "description")
            found = ask_service(url, {"X-Subscription-Token": self._key}, None, self.seconds).get("web") or {}
        hits = found.get("organic", found.get("results"))
        # Brave marks words with tags and entities.
        plain = lambda text: " ".join(html.unescape(re.sub(r"</?\w+>", "", str(text))).split())
        rows = [[plain(hit.get(name, "")) for name in names] for hit in (hits or [])[: self.top_k]]
        return show_hits(rows, snippet_chars=400)


class Reader:
    """Reads pages for `Browse`: `ask`, from a prompt to a text, is a model. Answers are cached like pages."""

    def __init__(self, name: str, ask: Callable[[str], str], cache: Cache, page_chars: int = 20_000):
        self.name, self.ask, self.cache, self.page_chars = name, ask, cache, page_chars

    def __call__(self, words: str, text: str) -> str:
        prompt = (
            f"In at most 150 words, write down what this page says about: {words}\n"
            f"Use the page alone; if it says nothing about this, say so.\n\n{text[: self.page_chars]}"
        ) + "…" * (len(text) > self.page_chars)
        key = sha256(_encodable(prompt).encode()).hexdigest()
        result = self.cache.get(f"read {self.name}", key, lambda: self.ask(prompt))
        if result.fault:
            raise WebError(result.text.removeprefix("Error: "), result.outcome, fault=True)
        return result.text
