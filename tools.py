"""The tools: Python, search and browser; the toolbox that runs them; and what a set of questions needs of them.

A tool is a class here: its name, its line in the system prompt, its probe and its demonstrations belong to it
(`data/format.py:Tool`), and its `from_config` says when it is offered. A tool that fails tells the model so in words;
it never raises into the trainer, unless it fails about every other time (`Toolbox`).

Search and browse work on a corpus in memory or on disk (`data/corpus.py`), or on the live web behind a cache
(`data/web.py`). How Python code is confined is the business of `sandbox.py`. Left out: pages that need JavaScript.

    python tools.py index corpus.jsonl              lines of {"title", "text", perhaps "address"} -> corpus.db
    python tools.py import answers.json cache.db    {query: text}, as in the authors' search_cache.json
"""

import json
import os
import re
import sys
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Literal

from data import Question
from data.benchmarks import load_questions, world_in
from data.chat import Endpoint
from data.corpus import Corpus, index_corpus, no_page, terms
from data.format import Tool, ToolCall, ToolResult, TrajectoryConfig, parse_call, parse_limits, printable, tagged
from data.processes import summed
from data.settings import Limits, Natural, Positive, Settings, one_line_errors
from data.web import Cache, OutOfBudget, Reader, Web, WebError, WebSearch, normal_query, reading_sandbox
from data.worlds import BuiltInWorld, is_world, world_of
from sandbox import NO_WORKER, PythonSandbox

USAGE = "index corpus.jsonl, or import answers.json cache.db [kind]"
LIMIT_TEXT = "No tool calls are left. This call was not run. Give your answer now."


@dataclass(frozen=True)
class ToolConfig(Settings):
    data: str = "world"  # "world", "trails", a benchmark such as gsm8k, a hub set, or a .jsonl, .json, .csv file
    metric: Literal["", "em", "f1", "math", "gaia"] = ""  # how answers are compared; default by the set, or their look
    search: str = ""  # where search looks: "world", "trails", a corpus (.jsonl or its .db), "serper", "brave" or "none"
    browse: bool = True  # offer the browser beside search; without it, snippets alone
    top_k: Positive = 3  # passages that a search shows
    snippet_chars: Positive = 400  # of each
    window_chars: Positive = 1000  # of a page, around the words asked for
    reader: str = ""  # reads pages for the words asked for: "base", the model before training, or an endpoint's URL
    reader_model: str = ""  # the model at that URL (OpenAI-compatible)
    web_cache: str = ""  # file that keeps the live web's answers; with it a run can be repeated offline
    cache_mode: Literal["online", "offline", "refresh"] = "online"  # of web_cache
    max_paid_calls: Natural = 0  # to search services and readers, counted in web_cache; 0 is no limit
    python_seconds: Annotated[float, Limits(1, 3600)] = 5.0  # of CPU that a program may take
    allow_unsafe_python: bool = False  # run model-written code even where it cannot be confined

    @property
    def place_of_search(self) -> str:
        """What --search says, or the world where its questions are among the data."""
        return self.search or world_in(self.data) or "none"


@dataclass
class Lent:
    """A model that tools may use as soon as there is one."""

    read: Callable[[str], str] | None = None  # from a prompt to a text


@dataclass
class Surroundings:
    """What a task's tools stand on; each part is made when the first tool asks for it."""

    config: ToolConfig
    make_world: Callable[[], BuiltInWorld]
    sandbox: PythonSandbox
    lent: Lent = field(default_factory=Lent)

    @property
    def where(self) -> str:
        return self.config.place_of_search

    @cached_property
    def world(self) -> BuiltInWorld:
        return self.make_world()

    @cached_property
    def corpus(self) -> Corpus:
        return Corpus(self.world.passages) if is_world(self.where) else Corpus.open(self.where)

    @cached_property
    def cache(self) -> Cache:
        return Cache(self.config.web_cache or ":memory:", self.config.cache_mode, self.config.max_paid_calls)


# ---------------------------------------------------------------------------------- the tools


class Python(Tool):
    """Runs code in a confined worker process; output as at an interactive prompt."""

    name = "python"
    usage = f"{tagged('python', 'code')} runs Python and shows its output and the value of the last expression."
    probe, expected = "6 * 7", "42"

    def __init__(self, sandbox: PythonSandbox):
        self.sandbox = sandbox

    @classmethod
    def from_config(cls, around: Surroundings) -> "Python":
        return cls(around.sandbox)

    def __call__(self, code: str) -> ToolResult:
        if not code:
            return ToolResult("Error: no code was given.", "error")
        text, outcome = self.sandbox.run(code)
        return ToolResult(text, outcome, fault=text.startswith(NO_WORKER))


class Search(Tool):
    """Shows titles, addresses and snippets for a query. `source` maps a query to a `ToolResult`."""

    name = "search"
    usage = f"{tagged('search', 'query')} searches the corpus and shows titles, addresses and short passages."
    probe = "the weather"

    def __init__(self, source: Callable[[str], ToolResult]):
        self.source = source
        self.check = getattr(source, "check", partial(source, self.probe))

    @classmethod
    def from_config(cls, around: Surroundings) -> "Search | None":
        config = around.config
        if around.where == "none":
            return None
        if around.where in WebSearch.URLS:
            WebSearch.key_of(around.where, config.cache_mode)  # before a file for its answers is made
            return cls(WebSearch(around.where, around.cache, config.top_k))
        return cls(partial(around.corpus.search, top_k=config.top_k, snippet_chars=config.snippet_chars))

    def __call__(self, query: str) -> ToolResult:
        return self.source(query)


class Browse(Tool):
    """Opens a page by its address and shows the part around the given words, or page N of it.

    `source` holds the pages: a dict from address to text, or a callable from an address to a `ToolResult`
    with the whole text (`Corpus.page`, `Web`). `reader`, if given, maps (words, text) to what a model
    finds in the text about the words, which is then shown instead.
    """

    name = "browse"
    usage = (
        f"{tagged('browse', 'address words')} opens an address from a search result near the given words; "
        f"{tagged('browse', 'address page 2')} shows a further part."
    )

    def __init__(self, source, window_chars: int = 300, reader: Callable[[str, str], str] | None = None):
        in_memory = lambda address: ToolResult(source[address]) if address in source else no_page(address)
        self.open = source if callable(source) else in_memory
        self.check = getattr(source, "check", lambda: ToolResult(""))
        self.window, self.reader = window_chars, reader

    @classmethod
    def from_config(cls, around: Surroundings) -> "Browse | None":
        if around.where == "none" or not around.config.browse:
            return None
        if is_world(around.where):
            pages = around.world.pages
        elif around.where in WebSearch.URLS:
            pages = Web(around.cache, reading_sandbox())
        else:
            pages = around.corpus.page
        return cls(pages, around.config.window_chars, make_reader(around))

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
        start = (int(page.group(1)) - 1) * self.window if page else self._best_start(text, terms(words))
        shown = text[start : start + self.window].strip()
        return replace(opened, text=("…" if start else "") + shown + ("…" if start + self.window < len(text) else ""))

    def _best_start(self, text: str, words: list[str]) -> int:
        """Start of the last sentence from which the window holds the most of the words; 0 if it never holds any."""
        lowered, last = text.lower(), max(0, len(text) - self.window)  # a full window beats a short tail
        starts = {-1: 0}  # the last of every few characters: a page of nothing but full stops must not take long
        for match in re.finditer(r"[.!?\n]\s+", text):
            start = min(match.end(), last)
            starts[start // (1 + self.window // 200)] = start
        held = {start: sum(word in lowered[start : start + self.window] for word in words) for start in starts.values()}
        return max(held, key=lambda start: (held[start], start)) if any(held.values()) else 0


def make_reader(around: Surroundings) -> Reader | None:
    """What reads pages: nothing, the lent base model, or a model at an endpoint, asked once here. Raises OSError."""
    config = around.config
    if not config.reader:
        return None
    if config.reader == "base":
        return Reader("base", lambda prompt: around.lent.read(prompt), around.cache)
    endpoint = Endpoint(config.reader, config.reader_model, around.cache, "reader")
    endpoint.check()
    return Reader(config.reader_model, endpoint.read, around.cache)


# ---------------------------------------------------------------------------------- running them


class ToolsFail(RuntimeError):
    """A tool fails so often that what the policy would learn from it is noise."""


class Toolbox:
    """Runs calls side by side, counts them, and watches for tools that fail.

    `tools` maps a tool's name to a callable from its content to a `ToolResult`. `submit` returns at once; calls run
    while other rows still decode. `counts` maps (tool, outcome) to calls, the outcome being "cached" where the cache
    knew the answer. `seconds` maps a tool to what its calls took.

    Faults teach the policy noise: 20 in a tool's last 100 calls print a warning, more than `max_faults` raise
    `ToolsFail`. What the call itself brought about is no fault: a wrong or endless program, a page that is not there.
    """

    def __init__(self, tools: dict[str, Callable[[str], ToolResult]], threads: int = 8, max_faults: int = 50):
        self.tools, self.max_faults = tools, max_faults
        self.around: Surroundings | None = None  # of a task's tools
        self.counts: Counter = Counter()
        self.seconds: Counter = Counter()
        self._recent = defaultdict(lambda: deque(maxlen=100))  # by tool, whether each call was a fault
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="tool")

    def submit(self, call: ToolCall) -> Future[ToolResult]:
        return self._pool.submit(self._run, call)

    def check(self) -> None:
        """Tries every tool once with a harmless call, uncounted; OSError names those that do not work."""
        broken = []
        for name, tool in self.tools.items():
            result = self._try(getattr(tool, "check", partial(tool, tool.probe)))
            if result.fault or (tool.expected and result.text != tool.expected):
                broken.append(f"{name} ({printable(result.text)})")
        if broken:
            raise OSError("tools that do not work: " + "; ".join(broken))

    def spent(self) -> dict[str, dict]:
        """Calls by outcome and seconds, of all processes together: what a checkpoint keeps."""
        return {"calls": dict(summed(self.counts)), "call_seconds": dict(summed(self.seconds))}

    def go_on_from(self, spent: dict[str, dict]) -> None:
        """Counts on from another toolbox's `spent`."""
        self.counts, self.seconds = Counter(spent.get("calls")), Counter(spent.get("call_seconds"))

    def report(self) -> str:
        """A line a tool: calls by outcome and mean seconds."""
        lines = []
        for tool in sorted({tool for tool, _ in self.counts}):
            outcomes = {outcome: n for (name, outcome), n in sorted(self.counts.items()) if name == tool}
            listed = ", ".join(f"{outcome} {n}" for outcome, n in outcomes.items())
            lines.append(f"{tool}: {listed}; {self.seconds[tool] / sum(outcomes.values()):.2f} s a call")
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
            self.seconds[call.tool] += result.seconds
            if call.tool in self.tools:
                self._watch(call.tool, result)
        return result

    def _try(self, run: Callable[[], ToolResult]) -> ToolResult:
        try:
            return run()
        except WebError as error:
            return error.result
        except OutOfBudget:
            raise
        except Exception as error:  # a failing tool is something the model sees, not the end of a run
            return ToolResult(f"Error: the tool failed ({type(error).__name__}).", "error", fault=True)

    def _watch(self, tool: str, result: ToolResult) -> None:
        recent = self._recent[tool]
        recent.append(result.fault)
        faults = sum(recent)
        told = (
            f"the tool {tool} failed in {faults} of its last {len(recent)} calls, last with: {printable(result.text)}"
        )
        if result.fault and faults > self.max_faults:
            raise ToolsFail(told)
        if result.fault and faults == 20:
            print(f"Warning: {told}", file=sys.stderr)

    def with_pages(self) -> "Toolbox":
        """With two more tools for agents, which want a whole page: "open" and "click", where there is a browser."""
        if "browse" in self.tools:
            self.tools |= {name: self.tools["browse"].open for name in ("open", "click")}
        return self

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


def begin_call(
    tools: Toolbox, turn: str, called: tuple[str, ...], config: TrajectoryConfig
) -> tuple[ToolCall | None, Future[ToolResult] | None]:
    """Starts the call that ends a turn's text; returns it and its result. `called`: tools the path called before.

    Over the limit of calls the first call gets a refusal for its result; the next gets None, which ends the path. Over
    its tool's own limit a call is refused, and the path goes on.
    """
    call, limit = parse_call(turn), config.max_tool_calls
    if len(called) > limit:
        return call, None
    own = parse_limits(config.tool_limits).get(call.tool, limit) if call else 0
    if call and len(called) < limit and called.count(call.tool) < own:
        return call, tools.submit(call)
    if len(called) == limit:
        result = ToolResult(LIMIT_TEXT, "refused")
    elif call:
        result = ToolResult(f"No {call.tool} calls are left. This call was not run.", "refused")
    else:
        result = ToolResult("Error: closing tag without opening tag.", "malformed")
    future: Future[ToolResult] = Future()
    future.set_result(result)
    return call, future


# ---------------------------------------------------------------------------------- what a task needs


@dataclass
class Task:
    """Questions, and the tools over the corpus that belongs to them."""

    questions: list[Question]
    tools: Toolbox


def load_task(
    config: ToolConfig, split: str, count: int | None, sandbox: PythonSandbox, lent: Lent | None = None
) -> Task:
    """A split's questions and tools, each of which has been tried; the world's splits have a corpus of their own."""
    questions = load_questions(config.data, split, count, config.metric)
    return Task(questions, load_tools(config, split, sandbox, lent))


def load_tools(config: ToolConfig, split: str, sandbox: PythonSandbox, lent: Lent | None = None) -> Toolbox:
    """The tools that the settings offer. `lent` gives --reader base its model."""
    make_world = partial(world_of, config.place_of_search, split)
    around = Surroundings(config, make_world, sandbox, lent or Lent())
    toolbox = Toolbox(make_tools(around))
    toolbox.around = around
    toolbox.check()
    refuse_in_vain(config, "browse" in toolbox.tools)
    return toolbox


def refuse_in_vain(config: ToolConfig, reads: bool) -> None:
    """Raises ValueError for settings of a reader, or of the web's cache, where there is none."""
    if config.reader and not reads:
        raise ValueError(f"--reader: expected pages to read (--search, --browse), found none with {config.reader}")
    if config.reader_model and config.reader in ("", "base"):
        raise ValueError(f"--reader_model: expected beside the URL of a --reader, found {config.reader_model} alone")
    if not config.reader and config.place_of_search not in WebSearch.URLS and config.cache_mode != "online":
        raise ValueError(f"--cache_mode {config.cache_mode}: expected the live web, found search in no such place")


def tools_of_world(config: ToolConfig, sandbox: PythonSandbox, world: BuiltInWorld) -> dict[str, Tool]:
    """All tools over one world: what the cold start's expert works with."""
    config = replace(config, search="world", browse=True, reader="")
    return make_tools(Surroundings(config, lambda: world, sandbox))


def make_tools(around: Surroundings) -> dict[str, Tool]:
    made = {name: kind.from_config(around) for name, kind in Tool.known.items()}
    return {name: tool for name, tool in made.items() if tool}


def make_sandbox(config: ToolConfig) -> PythonSandbox:
    try:
        workers = min(os.cpu_count() or 1, 8)
        return PythonSandbox(workers, cpu_seconds=config.python_seconds, allow_unsafe=config.allow_unsafe_python)
    except RuntimeError as error:
        raise ValueError(f"{error} (--allow_unsafe_python)") from None


def main() -> None:
    with one_line_errors("tools.py"):
        match sys.argv[1:]:
            case ["index", corpus] if not corpus.startswith("-"):
                print(index_corpus(corpus))
            case ["import", answers, file, *kind] if len(kind) < 2:
                found, kind = read_answers(answers), (*kind, "search serper 3")[0]  # before a cache is made
                if not re.fullmatch(r"search (serper|brave) [1-9]\d*|page|read .+", kind):
                    raise ValueError(f'expected a kind such as "search serper 3" or "page", found {kind!r}')
                if file in ("", ":memory:"):
                    raise ValueError(f"expected a file where answers can be kept, found {file!r}")
                print(Cache(file).load(kind, found), "new answers")
            case ["-h" | "--help"]:
                print(USAGE)
            case words:
                raise ValueError(f"expected {USAGE}, found {' '.join(words) or 'no command'}")


def read_answers(file: str) -> dict[str, str]:
    """Answers by query, as a cache takes them. Raises ValueError for a file of another shape."""
    if not Path(file).is_file():
        raise ValueError(f"{file}: expected a file, found {'a folder' if Path(file).is_dir() else 'no such file'}")
    try:
        found = json.loads(Path(file).read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: expected an object of queries and texts as JSON, found {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{file}: expected an object of queries and texts, found {type(found).__name__}")
    for query, text in found.items():
        if not isinstance(text, str):
            raise ValueError(f"{file}: expected a text as the answer to {query!r}, found {text!r}"[:300])
    return {normal_query(query): text for query, text in found.items()}


if __name__ == "__main__":
    main()
