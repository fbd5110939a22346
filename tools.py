"""The environment of the policy: the tag grammar, and the three tools behind it.

The policy writes turns. A turn is any number of `<think>…</think>` and then either one tool call,
`<python>…</python>`, `<search>…</search>` or `<browse>…</browse>`, or the final `<answer>…</answer>`
followed by the end token. A call is answered by `<result>…</result>`, which the environment writes
and the policy is never trained on.

Two rules hold everywhere in this file. A tool that fails tells the model so in words; it never
raises into the trainer. Tool output is untrusted: it is tokenised as plain text, so that tags or
special tokens inside it have no power.

Left out: live web search and pages (search and browse work on a corpus given as passages and
pages). How Python code is confined is the business of `sandbox.py`.
"""

import re
import sqlite3
import threading
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

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

LIMIT_TEXT = "No tool calls are left. This call was not run. Give your answer now."


# ---------------------------------------------------------------------------------- tag grammar


@dataclass(frozen=True)
class ToolCall:
    tool: str
    content: str


@dataclass(frozen=True)
class ToolResult:
    """What a call came to: the text the model sees and how it ended.

    `outcome` is one of ok, error (the call ran and failed), timeout, malformed (closing tag without
    an opening one) or refused (over the limit of calls; not run).
    """

    text: str
    outcome: str = "ok"
    seconds: float = 0.0


def parse_call(turn: str) -> ToolCall | None:
    """The last call in a turn's text, or None where its opening tag is missing."""
    end, tool = max((turn.rfind(f"</{tool}>"), tool) for tool in TOOLS)
    start = turn.rfind(f"<{tool}>", 0, max(end, 0))
    return ToolCall(tool, turn[start + len(tool) + 2 : end].strip()) if start >= 0 else None


def begin_call(tools, turn: str, calls: int, limit: int) -> tuple[ToolCall | None, Future | None]:
    """Starts the call that ends a turn's text, the path having made `calls` before; returns it and its result.

    Over the limit the first call gets a refusal for its result; the next gets None, which ends the path.
    """
    call = parse_call(turn)
    if call and calls < limit:
        return call, tools.submit(call)
    if calls > limit:
        return call, None
    future: Future = Future()
    refusal = ToolResult(LIMIT_TEXT, "refused")
    future.set_result(refusal if calls == limit else ToolResult("Error: closing tag without opening tag.", "malformed"))
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


# ---------------------------------------------------------------------------------- the tools


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


def _terms(query: str, limit: int = 32) -> list[str]:
    words = re.findall(r"\w+", query.lower())
    return ([word for word in words if word not in _STOPWORDS] or words)[:limit]


class Search:
    """BM25 over a corpus of passages (title, address, text), with SQLite's full-text index.

    Titles weigh four times as much as text. Equal scores keep the order of the corpus, so that the same
    query always gives the same result.
    """

    def __init__(self, passages, top_k: int = 3, snippet_chars: int = 400):
        self.top_k, self.snippet_chars = top_k, snippet_chars
        self._lock = threading.Lock()
        self._db = sqlite3.connect(":memory:", check_same_thread=False)
        self._db.execute(
            "CREATE VIRTUAL TABLE passages USING fts5(title, text, address UNINDEXED, tokenize='porter unicode61')"
        )
        self._db.executemany("INSERT INTO passages VALUES (?, ?, ?)", [(p.title, p.text, p.address) for p in passages])

    def __call__(self, query: str) -> ToolResult:
        terms = _terms(query)
        if not terms:
            return ToolResult("Error: the query has no words.", "error")
        match = " OR ".join(f'"{term}"' for term in terms)  # quoted: nothing in a query is an operator
        sql = (
            "SELECT title, address, text FROM passages WHERE passages MATCH ? "
            "ORDER BY bm25(passages, 4.0, 1.0), rowid LIMIT ?"
        )
        with self._lock:
            hits = self._db.execute(sql, (match, self.top_k)).fetchall()
        lines = [
            f"[{i}] {title} ({address}): {text[: self.snippet_chars]}"
            for i, (title, address, text) in enumerate(hits, 1)
        ]
        return ToolResult("\n".join(lines) or "Nothing was found.")


class Browse:
    """Opens a page by its address and shows the part around the given words, or page N of it."""

    def __init__(self, pages: dict[str, str], window_chars: int = 300):
        self.pages, self.window = pages, window_chars

    def __call__(self, content: str) -> ToolResult:
        address, _, words = content.partition(" ")
        if address not in self.pages:
            return ToolResult(f"Error: no page at {address[:80]!r}. Use an address from a search result.", "error")
        text = self.pages[address]
        page = re.fullmatch(r"\s*page\s+(\d{1,6})\s*", words, re.IGNORECASE)
        last = max(1, -(-len(text) // self.window))
        if page and not 1 <= int(page.group(1)) <= last:
            return ToolResult(f"Error: this text has pages 1 to {last}.", "error")
        start = (int(page.group(1)) - 1) * self.window if page else self._best_start(text, _terms(words))
        shown = text[start : start + self.window]
        return ToolResult(("…" if start else "") + shown.strip() + ("…" if start + self.window < len(text) else ""))

    def _best_start(self, text: str, terms: list[str]) -> int:
        """Start of the last sentence from which the window holds the most of the words; 0 if it never holds any."""
        lowered, last = text.lower(), max(0, len(text) - self.window)  # a full window beats a short tail
        starts = {min(match.end(), last) for match in re.finditer(r"^|[.!?\n]\s+", text)}
        held = {start: sum(term in lowered[start : start + self.window] for term in terms) for start in starts}
        return max(starts, key=lambda start: (held[start], start)) if any(held.values()) else 0


class Toolbox:
    """Runs calls side by side and counts them.

    `tools` maps a tool's name to a callable from its content to a `ToolResult`. `submit` returns at
    once; a wave's calls run while other rows still decode. `counts` maps (tool, outcome) to calls.
    """

    def __init__(self, tools: dict, threads: int = 8):
        self.tools = tools
        self.counts: Counter = Counter()
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="tool")

    def submit(self, call: ToolCall) -> Future:
        return self._pool.submit(self._run, call)

    def _run(self, call: ToolCall) -> ToolResult:
        started = time.perf_counter()
        if call.tool not in self.tools:
            result = ToolResult(f"Error: the tool {call.tool} is not available.", "error")
        else:
            try:
                result = self.tools[call.tool](call.content)
            except Exception as error:  # a failing tool is something the model sees, not the end of a run
                result = ToolResult(f"Error: the tool failed ({type(error).__name__}).", "error")
        with self._lock:
            self.counts[call.tool, result.outcome] += 1
        return ToolResult(result.text, result.outcome, time.perf_counter() - started)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
