"""Answers the requests of many agents at once, and scores what they come to.

Requests to models in memory are answered together, in batches, once nothing else is awaited: so who is in a batch does
not depend on a clock. Requests to endpoints and tools are answered in threads, and whoever has its answers goes on. An
attempt that a model cannot go on with (an endpoint that fails for good, no room for the prompt) ends there and says
so; when most of them do, the evaluation ends. Left out: what agents ask for (`agents.py`) and who answers (`chat.py`).
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field, replace

from data import Question
from data.agents import AGENTS, LEAVES_OUT, OFFICIAL, Agent, AgentConfig, Call, Chat, Read, Use, Write
from data.chat import Endpoint, LocalModel, Prompt, Reply
from data.format import ToolCall, ToolResult
from data.grading import accuracy, hierarchical_reward
from data.results import Result, Score
from data.web import Cache

KEPT_CHARS = 2000  # of a page, in a trajectory that is kept
SAID_CHARS = 2000
SAID_LINES = 5  # of a text without an answer that a judge is shown, as the authors do


@dataclass
class Crew:
    """Who answers: the model that reasons, the second one, the tools, and the policy's own rule for calls in a text."""

    main: LocalModel | Endpoint
    second: LocalModel | Endpoint
    submit: Callable[[ToolCall], Future[ToolResult]]
    begin_call: Callable[[str, tuple[str, ...]], tuple[ToolCall | None, Future[ToolResult] | None]]

    def report(self) -> str:
        """What endpoints were asked, a line each."""
        return "\n".join(model.report() for model in {self.main: 0, self.second: 0} if isinstance(model, Endpoint))

    @property
    def room(self) -> int:
        """Attempts that are under way at once."""
        return self.main.max_rows if isinstance(self.main, LocalModel) else 2 * self.main.threads


@dataclass(eq=False)
class Attempt:
    """One answer of an agent while it is made."""

    question: Question
    key: str  # names its randomness
    agent: Agent
    requests: list = field(default_factory=list)  # that were made at once
    answers: list = field(default_factory=list)  # in their places
    several: bool = False  # whether a list of them was made
    left: int = 0  # answers that are awaited
    asked: int = 0  # texts that models were asked for so far
    chat: Chat | None = None  # the first that was asked for: the agent's own
    prompt_tokens: int = 0  # of that
    tokens: int = 0  # after it, results included
    second_tokens: int = 0  # that were written elsewhere
    tools: Counter = field(default_factory=Counter)  # calls that were run
    worked: set[str] = field(default_factory=set)
    seconds: float = 0.0
    end: str = "end"  # how the last text ended
    trouble: str = ""  # why a model did not answer
    turns: list[dict[str, str]] | None = None  # the trajectory, where it is kept: whole texts, and heads of pages
    score: Score | None = None


def answer_with(
    agent: str, questions: Iterable[Question], samples: int, crew: Crew, config: AgentConfig, with_turns=False
) -> Iterator[Result]:
    """`samples` attempts at each question, as soon as the last of them is made; OSError where most of them fail."""
    own = lambda: {"turns": []} if with_turns else {}
    make = lambda q, n: Attempt(q, f"{config.seed}/{q.id}/{n}", AGENTS[agent](q.question, config), **own())
    groups = {question.id: [make(question, n) for n in range(samples)] for question in questions}
    left, failed = dict.fromkeys(groups, samples), 0
    for done, attempt in enumerate(Drive(crew, config).run(a for group in groups.values() for a in group), 1):
        failed += attempt.end == "error"
        if failed > max(10, done // 2):
            told = f"{failed} of the first {done} attempts came to nothing, since a model did not answer"
            raise OSError(f"{told}: {attempt.trouble}")
        left[attempt.question.id] -= 1
        if not left[attempt.question.id]:
            yield Result.of(attempt.question, [other.score for other in groups[attempt.question.id]])


def make_crew(config: AgentConfig, reader: tuple[str, str], open_model, tools, begin_call, cache: Cache) -> Crew:
    """The crew that the settings name. `reader` has --reader and --reader_model: without it one model does both.

    `open_model` makes of a model's name a policy (`arpo.py`), `tools` runs calls, `begin_call` is the rule of
    `tools.py`, and `cache` keeps what endpoints say. Raises ValueError and OSError in one line.
    """
    if config.agent not in ("direct", "tir") and "search" not in tools.tools:
        raise ValueError(f"--agent {config.agent}: expected somewhere to search (--search), found nowhere")
    found = {"prefill": config.prefill, "threads": config.endpoint_threads, "seconds": config.endpoint_seconds}
    if config.endpoint:
        main = second = Endpoint(config.endpoint, config.model, cache, **found)
        main.check()
    else:
        policy = open_model(config.model)
        main = second = LocalModel(policy.model, policy.tokenizer, policy.max_rows)
        if reader[0] == "base":
            second = LocalModel(policy.model, policy.tokenizer, policy.max_rows, policy.base)
    if reader[0] not in ("", "base"):
        second = Endpoint(*reader, cache, "reader", **found)
        second.check()
    return Crew(main, second, tools.submit, lambda text, called: begin_call(tools, text, called, config))


def left_out(config: AgentConfig) -> str:
    """What a row of these settings does without: parts of the agent's definition, and limits that are others."""
    told = [LEAVES_OUT[config.agent]] if config.agent in LEAVES_OUT else []
    if config.endpoint and not config.prefill and config.agent not in ("direct", "rag"):
        told.append("one continuous text (what comes back is a message of the user)")
    if not vars(config).get("browse", True) and config.agent not in ("direct", "tir"):
        told.append("pages (snippets alone)")
    for name, official in OFFICIAL.get(config.agent, {}).items():
        if (value := vars(config).get(name, official)) != official:
            told.append(f"{name} {official} (here {value})")
    return "; ".join(told)


class Drive:
    """Runs attempts to their ends."""

    def __init__(self, crew: Crew, config: AgentConfig):
        self.crew, self.config = crew, config
        self.running: dict[Attempt, None] = {}
        self.asked: dict[Future, tuple[Attempt, int, ToolCall | None, float]] = {}
        self.queue: list[tuple[LocalModel, Prompt, Attempt]] = []

    def run(self, attempts: Iterable[Attempt]) -> Iterator[Attempt]:
        """Yields each attempt as it ends."""
        waiting = deque(attempts)
        try:
            yield from self._run(waiting)
        except BaseException:  # Ctrl-C, too
            for model in (self.crew.main, self.crew.second):
                model.stop()
            raise

    def _run(self, waiting: deque[Attempt]) -> Iterator[Attempt]:
        while waiting or self.running:
            while waiting and len(self.running) < self.crew.room:
                self.running[waiting[0]] = None
                self._go_on(waiting.popleft(), None)
            if self.asked:
                self._collect()
            elif self.queue:
                self._write()
            ended = [attempt for attempt in self.running if attempt.score]
            for attempt in ended:
                del self.running[attempt]
                yield attempt

    def _go_on(self, attempt: Attempt, value) -> None:
        """Gives an agent what it asked for, and asks for what it wants next."""
        try:
            wanted = attempt.agent.send(value)
            while wanted == []:
                wanted = attempt.agent.send([])
        except StopIteration as end:
            return self._finish(attempt, end.value)
        attempt.several = isinstance(wanted, list)
        attempt.requests = wanted if attempt.several else [wanted]
        attempt.answers, attempt.left = [""] * len(attempt.requests), len(attempt.requests)
        for place, request in enumerate(attempt.requests):
            self._ask(attempt, place, request)

    def _ask(self, attempt: Attempt, place: int, request) -> None:
        call, future = None, None
        if isinstance(request, Use):
            call = ToolCall(*request)
            future = self.crew.submit(call)
        elif isinstance(request, Call):
            call, future = self.crew.begin_call(*request)
            if future is None:
                return self._receive(attempt, place, None)
        else:
            prompt = self._prompt(attempt, request)
            if prompt.max_tokens <= 0:
                return self._finish(attempt, None, "length")
            model = self._model(request)
            if isinstance(model, Endpoint):
                future = model.submit(prompt)
            else:
                self.queue.append((model, prompt, attempt))
        if future:
            self.asked[future] = attempt, place, call, time.perf_counter()

    def _model(self, request) -> LocalModel | Endpoint:
        first = isinstance(request, Write) and not request.chat.second
        return self.crew.main if first else self.crew.second

    def _prompt(self, attempt: Attempt, request) -> Prompt:
        """What a model is sent for a `Write` or a `Read`."""
        attempt.asked += 1
        config, room, greedy = self.config, self.config.max_turn_tokens, False
        if isinstance(request, Write):
            chat = request.chat
            attempt.chat = attempt.chat or chat
            room = min(room, config.max_completion_length - attempt.tokens) if chat is attempt.chat else room
            prompt = Prompt(chat.user, chat.system, tuple(chat.written), request.stops)
        else:
            prompt, greedy = Prompt(request.prompt), request.greedy
        limit = min(room, request.max_tokens) if request.max_tokens else room
        drawn = {"temperature": 0.0 if greedy else config.temperature, "top_p": config.top_p}
        return replace(prompt, key=f"{attempt.key}/{attempt.asked}", max_tokens=limit, **drawn)

    def _write(self) -> None:
        """Has all texts written that models in memory were asked for."""
        queue, self.queue = self.queue, []
        for model in dict.fromkeys(model for model, _, _ in queue):
            rows, started = [row for row in queue if row[0] is model], time.perf_counter()
            replies = model([prompt for _, prompt, _ in rows])
            seconds = (time.perf_counter() - started) / len(rows)
            for (*_, attempt), reply in zip(rows, replies):
                attempt.seconds += seconds
                self._receive(attempt, 0, reply)

    def _collect(self) -> None:
        """Waits for answers from threads, and hands on those that are there."""
        for future in wait(self.asked, return_when=FIRST_COMPLETED).done:
            attempt, place, call, started = self.asked.pop(future)
            attempt.seconds += (time.perf_counter() - started) / len(attempt.requests)
            self._receive(attempt, place, future.result(), call)

    def _receive(self, attempt: Attempt, place: int, answer, call: ToolCall | None = None) -> None:
        request = attempt.requests[place]
        self._keep(attempt, request, answer, call)
        if isinstance(answer, Reply):
            if answer.end in ("error", "context"):
                attempt.trouble = answer.text
                return self._finish(attempt, None, answer.end)
            self._note(attempt, request, answer)
        elif answer:
            self._count(attempt, call, answer)
        failed = isinstance(request, Use) and request.tool != "search" and answer.outcome != "ok"
        attempt.answers[place] = "" if failed else answer and answer.text
        attempt.left -= 1
        if not attempt.left:
            self._go_on(attempt, attempt.answers if attempt.several else attempt.answers[0])

    def _keep(self, attempt: Attempt, request, answer, call: ToolCall | None) -> None:
        """Puts what was asked and answered among the turns, as messages."""
        if attempt.turns is None or answer is None:
            return
        if isinstance(request, Write) and not request.chat.own:
            attempt.turns.append({"role": "user", "content": request.chat.user})
        if isinstance(request, Write | Read):
            own = isinstance(request, Write) and not request.chat.second
            attempt.turns.append({"role": "assistant" if own else "reader", "content": answer.text})
        else:
            asked = f"{request.text}\n" if isinstance(request, Use) else ""
            shown = {"name": call.tool if call else "", "outcome": answer.outcome}
            attempt.turns.append({"role": "tool", **shown, "content": f"{asked}{answer.text[:KEPT_CHARS]}"})

    def _note(self, attempt: Attempt, request, reply: Reply) -> None:
        if isinstance(request, Write):
            request.chat.put(reply.text, own=True)
        if isinstance(request, Write) and request.chat is attempt.chat:
            attempt.prompt_tokens = attempt.prompt_tokens or reply.read
            attempt.tokens = reply.read + reply.wrote - attempt.prompt_tokens
            attempt.end = reply.end
        else:
            attempt.second_tokens += reply.wrote

    def _count(self, attempt: Attempt, call: ToolCall | None, result: ToolResult) -> None:
        """Notes a call, unless it was not run, or opened a page for the agent's program."""
        if call and call.tool != "open" and result.outcome not in ("refused", "malformed"):
            attempt.tools[call.tool] += 1
            attempt.worked |= {call.tool} if result.outcome == "ok" else set()

    def _finish(self, attempt: Attempt, answer: str | None, end: str = "") -> None:
        attempt.agent.close()
        attempt.end = end or attempt.end
        right = accuracy(attempt.question, answer) if answer else 0.0
        reward = hierarchical_reward(right, bool(answer), attempt.worked)
        tokens = attempt.tokens + attempt.second_tokens
        own = attempt.chat.own if attempt.chat and not answer else ""
        said = "\n".join(own.strip().splitlines()[-SAID_LINES:])[-SAID_CHARS:]
        kept = {"said": said, "turns": attempt.turns or []}
        made = dict(attempt.tools), tokens, attempt.end, attempt.seconds
        attempt.score = Score(answer, right, reward, *made, **kept)
