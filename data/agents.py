r"""The agents that ARPO is compared with: direct, tir, rag, react, search-o1 and webthinker.

An agent is a generator. It yields requests (`Write`: its model goes on with a text; `Read`: a second model reads one;
`Use`: a tool) and gets strings, and what it returns is its answer. It knows nothing of models, batches or networks:
`drive.py` answers the requests of many agents at once. Each follows its published code in what makes it that agent
(order of requests, what is put back, limits, what is said at a limit), and LEAVES_OUT says where it does not. The
prompts are this project's own. Left out: everything that is not asking and putting back.
"""

import re
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from data import ANSWER
from data.corpus import Hit, read_hits, terms
from data.format import CUT, RESULT, TrajectoryConfig, closing_tags, disarm, parse_call, system_prompt, tagged
from data.judge import JudgingConfig
from data.models import ModelConfig
from data.settings import Natural, Positive


@dataclass(frozen=True)
class AgentConfig(JudgingConfig, ModelConfig, TrajectoryConfig):
    agent: Literal["policy", "direct", "tir", "rag", "react", "search-o1", "webthinker"] = "policy"  # who answers
    endpoint: str = ""  # an OpenAI-compatible address whose --model answers, such as https://host/v1
    prefill: bool = False  # the endpoint goes on with a text that is begun (vLLM, SGLang)
    endpoint_threads: Positive = 8  # questions put to an endpoint at once
    endpoint_seconds: Positive = 300  # for an answer
    max_turns: Positive = 15  # texts of a search-o1, steps of a react
    max_searches: Natural = 10  # of a search-o1 or a webthinker
    max_clicks: Positive = 10  # texts of a webthinker's explorer, each a search or a click, for one search
    max_words: Positive = 40_000  # of a webthinker's text
    page_chars: Positive = 3000  # of a page, on each side of what the snippet shows; twice as many from its beginning


def check_agent(config: AgentConfig) -> None:
    """Raises ValueError for settings that do not go together."""
    if config.endpoint and config.agent == "policy":
        raise ValueError("--endpoint: expected an agent that it answers for (--agent), found the policy's own sampling")
    if config.endpoint and not config.endpoint.startswith(("http://", "https://")):
        raise ValueError(f"--endpoint: expected an address such as https://host/v1, found {config.endpoint!r}")
    if config.judge_model and not config.judge.startswith(("http://", "https://")):
        raise ValueError(f"--judge_model: expected a URL as --judge, found {config.judge!r}")


@dataclass
class Chat:
    """What a model was told, and then in turns what it wrote and what came back to it."""

    user: str
    system: str = ""
    second: bool = False  # the second model writes it
    written: list[str] = field(default_factory=list)

    def write(self, *stops: str, max_tokens: int = 0) -> "Write":
        """A request to go on, to the end of one of the stops. The text is put behind `written` and sent."""
        return Write(self, stops, max_tokens)

    def put(self, text: str, own: bool) -> None:
        if own == (len(self.written) % 2 == 0):  # it is this side's turn
            self.written.append(text)
        elif self.written:
            self.written[-1] += text
        else:
            self.written = ["", text]

    def back(self, text: str) -> None:
        self.put(text, own=False)

    @property
    def own(self) -> str:
        """What the model wrote itself: a box on a page is no answer."""
        return "".join(self.written[::2])

    @property
    def text(self) -> str:
        return "".join(self.written)


class Write(NamedTuple):
    chat: Chat
    stops: tuple[str, ...] = ()
    max_tokens: int = 0  # 0: as many as a turn may have


class Read(NamedTuple):
    """A prompt to the second model, which may be the first."""

    prompt: str
    max_tokens: int = 0
    greedy: bool = False


class Use(NamedTuple):
    """A call of a tool: search, click (an opened page that counts as a call) or open (one that does not).

    An address that cannot be opened gives "", so that what failed is not read as a page.
    """

    tool: str
    text: str


class Call(NamedTuple):
    """The call at the end of a text, under the limits of the policy's own loop; None: the path ends here."""

    text: str
    called: tuple[str, ...]


Agent = Generator[Write | Read | Use | Call | list[Use], str | list[str] | None, str | None]

# ---------------------------------------------------------------------------------- one text, and the policy's loop

TASK = (
    "Answer the question. Reason step by step, and end with the answer alone, as short as it can be, in \\boxed{{}}."
    "\n\nQuestion: {question}"
)


def direct(question: str, config: AgentConfig) -> Agent:
    """One text, without tools."""
    chat = Chat(TASK.format(question=question))
    yield chat.write()
    return boxed(chat.own)


def tir(question: str, config: AgentConfig) -> Agent:
    """The loop, tools, limits and prompt of a trained policy, for a model that was not trained with them.

    The text is cut where a model begins to write a result itself. One that neither calls nor answers may go on, at
    most four times.
    """
    chat, called, spare = Chat(question, system_prompt()), (), 4
    calls, answered, result = tuple(closing_tags()), f"</{ANSWER}>", f"<{RESULT}>"
    while True:
        text = yield chat.write(*calls, answered, result)
        chat.written[-1] = chat.written[-1].removesuffix(result)
        if text.endswith(calls):
            found = yield Call(text, called)
            if found is None:
                break
            call = parse_call(text)
            called += (call.tool if call else "",)
            chat.back(tagged(RESULT, disarm(middle_cut(found, 4 * config.max_result_tokens))))
        elif text.endswith(answered) or not spare:
            break
        else:
            spare -= 1
    blocks = re.findall(tagged(ANSWER, "(.*?)"), chat.own, re.DOTALL)
    return (boxed(blocks[-1]) or blocks[-1].strip() or None) if blocks else boxed(chat.own)


# ---------------------------------------------------------------------------------- one retrieval


def rag(question: str, config: AgentConfig) -> Agent:
    """Vanilla RAG: one search for the question itself, its pages before the task, one text."""
    hits = read_hits((yield Use("search", question)))
    documents = yield from fetch(hits, config.page_chars)
    chat = Chat(f"Use these documents where they help.\n\n{documents}\n\n{TASK.format(question=question)}")
    yield chat.write()
    return boxed(chat.own)


def fetch(hits: list[Hit], chars: int) -> Agent:
    """The hits as numbered documents, each with a part of its page; of a page that cannot be had the snippet alone."""
    pages = yield [Use("open", hit.address) for hit in hits]
    shown = [
        f"Document {n}: {hit.title} ({hit.address})\nSnippet: {hit.snippet}\n{around(page, hit.snippet, chars)}".strip()
        for n, (hit, page) in enumerate(zip(hits, pages), 1)
    ]
    return plain("\n\n".join(shown)) or "(nothing was found)"


def around(page: str, snippet: str, chars: int) -> str:
    """`chars` characters on each side of the sentence most like the snippet, or twice as many from the beginning."""
    wanted = set(terms(snippet, limit=200))

    def likeness(sentence: re.Match) -> float:
        words = set(terms(sentence[0], limit=200))
        return 2 * len(words & wanted) / max(1, len(words) + len(wanted))

    best = max(re.finditer(r"[^.!?\n]+", page), key=likeness, default=None)
    if best is None or likeness(best) <= 0.2:
        return page[: 2 * chars]
    return page[max(0, best.start() - chars) : best.end() + chars]


# ---------------------------------------------------------------------------------- ReAct

REACT = """Answer the question by thoughts, actions and observations in turn. In each step you write a thought and one \
action, and are then shown what comes of it. Actions:
Search[words] shows titles, addresses and short passages.
Open[address] shows the beginning of the page at an address.
Lookup[words] shows the next sentence with these words on the page that was opened last.
Finish[answer] ends your work; the answer is as short as it can be.
There are at most {steps} steps.

Example
Question: How high is twice the Iron Tower?
Thought 1: I need the height of the Iron Tower.
Action 1: Search[Iron Tower height]
Observation 1: [1] Iron Tower (towers/7): The Iron Tower is 120 metres high.
Thought 2: Twice 120 metres is 240 metres.
Action 2: Finish[240 metres]

Question: {question}
"""


def react(question: str, config: AgentConfig) -> Agent:
    """Thought, action and observation in turn, one action a step, until Finish. Without it there is no answer."""
    chat, opened = Chat(REACT.format(question=question, steps=config.max_turns)), Sentences("")
    chat.back("Thought 1:")
    for step in range(1, config.max_turns + 1):
        text = yield chat.write("\nObservation")
        thought, action, argument = first_action(text)
        if not action:  # asked for once more, alone
            chat.written[-1] = f" {thought}"
            chat.back(f"\nAction {step}:")
            _, action, argument = first_action(f"Action {step}:" + (yield chat.write("\n", max_tokens=100)))
            chat.written[-1] = f" {action.capitalize()}[{argument}]"
        else:  # the first of the steps that it wrote
            chat.written[-1] = f" {thought}\nAction {step}: {action.capitalize()}[{argument}]"
        observation = "Invalid action. Valid are Search[words], Open[address], Lookup[words] and Finish[answer]."
        if action == "finish":
            return argument.strip() or None
        if action == "search":
            observation = yield Use("search", argument)
        elif action == "open":
            page = yield Use("click", argument)
            opened = Sentences(page)
            observation = opened.beginning if page else "This page cannot be opened."
        elif action == "lookup":
            observation = opened.next_with(argument)
        chat.back(f"\nObservation {step}: {plain(observation)}\nThought {step + 1}:")
    return None


def first_action(text: str) -> tuple[str, str, str]:
    """The thought, the action's name in small letters and its argument, or the first line and "" twice."""
    text = text.removesuffix("\nObservation")
    found = re.match(r"(?s)(?: *Thought \d+:)?(.*?)\s*Action(?: ?\d+)?: *(\w+)\[([^\n]*)\]", text)
    if found:
        thought, action, argument = found.groups()
        return thought.strip(), action.lower(), argument.split("]\n")[0]
    return next((line.strip() for line in text.splitlines() if line.strip()), ""), "", ""


class Sentences:
    """A page that is looked through from sentence to sentence."""

    def __init__(self, page: str):
        self.all = [part.strip() for part in re.split(r"(?<=[.!?])\s+|\n+", page) if part.strip()]
        self.words, self.place = "", 0

    @property
    def beginning(self) -> str:
        return " ".join(self.all[:5])

    def next_with(self, words: str) -> str:
        found = [sentence for sentence in self.all if words.lower() in sentence.lower()]
        self.place = self.place + 1 if words.lower() == self.words else 1
        self.words = words.lower()
        if self.place > len(found):
            return "No more results."
        return f"(Result {self.place} / {len(found)}) {found[self.place - 1]}"


# ---------------------------------------------------------------------------------- Search-o1

BEGIN_QUERY, END_QUERY = "<|begin_search_query|>", "<|end_search_query|>"
BEGIN_RESULT, END_RESULT = "<|begin_search_result|>", "<|end_search_result|>"
BEGIN_CLICK, END_CLICK = "<|begin_click_link|>", "<|end_click_link|>"
BEGIN_PAGE, END_PAGE = "<|begin_click_result|>", "<|end_click_result|>"
FINAL = "**Final Information**"
NOT_HELPFUL = "No helpful information found."
SPENT = "The searches are used up. Go on without them, and give the answer."
REPEATED = "This was searched for before; what was found stands above."
SEARCHING = f"""While you reason you may search the web. Write {BEGIN_QUERY} your query {END_QUERY} and stop; what \
was found comes back as {BEGIN_RESULT} what was found {END_RESULT}, and you go on reasoning. You may do so up to \
{{searches}} times.

Example: to compare the heights of two towers, write {BEGIN_QUERY}height of the Iron Tower{END_QUERY}, read the \
result, search for the other one, and then reason on to the answer.

"""
READING = f"""Someone reasons about a question and has searched the web. Read the pages for what helps the next step \
of the reasoning, as far as the query asks for it. First analyse the pages. Then write {FINAL} and after it only what \
helps, or "{NOT_HELPFUL}" where nothing does.

The reasoning so far:
{{reasoning}}

The query: {{query}}

The pages:
{{documents}}"""


def search_o1(question: str, config: AgentConfig) -> Agent:
    """One continuous text with searches in it; a second reading of the pages puts back what helps, and no more."""
    chat = Chat(SEARCHING.format(searches=config.max_searches) + TASK.format(question=question))
    asked: set[str] = set()
    for _ in range(config.max_turns):
        text = yield chat.write(END_QUERY)
        if not (query := inside(text, BEGIN_QUERY, END_QUERY)):
            break
        if len(asked) >= config.max_searches:
            found = SPENT
        elif query in asked:
            found = REPEATED
        else:
            asked.add(query)
            hits = read_hits((yield Use("search", query)))
            documents = yield from fetch(hits, config.page_chars)
            reading = READING.format(reasoning=outline(chat.text), query=query, documents=documents)
            found = final_part((yield Read(reading)))
        chat.back(f"\n\n{BEGIN_RESULT}{found}{END_RESULT}\n\n")
    return boxed(chat.own)


def inside(text: str, begin: str, end: str) -> str:
    """What stands between the last two marks of a text that stopped at the second; "" where it did not."""
    return text.removesuffix(end).rpartition(begin)[2].strip() if text.endswith(end) and begin in text else ""


def outline(text: str) -> str:
    """A reasoning text as numbered steps: the first, the last four and those with a search; "..." for what is left."""
    steps = [step for step in text.split("\n\n") if step.strip()]
    kept = lambda i: i == 0 or i >= len(steps) - 4 or "<|begin_search" in steps[i]
    lines = [f"Step {i}: {step}" if kept(i - 1) else "..." for i, step in enumerate(steps, 1)]
    return "\n\n".join(line for i, line in enumerate(lines) if line != "..." or lines[i - 1] != "...")


def final_part(text: str) -> str:
    """What a reader says after its mark, in one line."""
    return plain(" ".join(text.rpartition(FINAL)[2].split())) if FINAL in text else NOT_HELPFUL


# ---------------------------------------------------------------------------------- WebThinker

EXPLORING = f"""Someone searched the web. Find out for them what they want to know.
To search for something else, write {BEGIN_QUERY} your query {END_QUERY}. To open one of the addresses that were \
found, write {BEGIN_CLICK} address {END_CLICK}. Stop after either; what comes of it is shown to you. When you know \
enough, write {FINAL} and after it all that answers what they want to know, in short.

The query: {{query}}
What they want to know: {{intent}}

Found:
{{documents}}"""
INTENT = """Someone reasons about a question, and now {does}: {what}
In two sentences or less: what do they want to find out by this?

The reasoning so far:
{reasoning}"""
CONDENSE = f"""Write down what this page says about the intent below. Write {FINAL} and after it the facts alone, or \
"{NOT_HELPFUL}" where there are none.

Intent: {{intent}}

Page:
{{page}}"""
INVALID = "This is no query. Write what to search for."
CONCLUDE = f"\n\nNo more searches or clicks. What was found is:\n{FINAL}\n"
OPENED = "This page was opened before; what it says stands above."
EXPLORER_WORDS, EXPLORED_CHARS, CONDENSED_CHARS = 30_000, 2500, 20_000


def webthinker(question: str, config: AgentConfig) -> Agent:
    """Search-o1's outer text, in which each search is given to an explorer that searches and clicks by itself."""
    chat = Chat(SEARCHING.format(searches=config.max_searches) + TASK.format(question=question))
    asked: set[str] = set()
    for turn in range(config.max_searches + 1):
        text = yield chat.write(END_QUERY)
        if not text.endswith(END_QUERY) or len(chat.text.split()) >= config.max_words:
            break
        query = inside(text, BEGIN_QUERY, END_QUERY)
        if turn == config.max_searches:
            chat.back(f"\n\n{BEGIN_RESULT}{SPENT}{END_RESULT}\n\n")
            yield chat.write(END_QUERY)
            break
        if len(query) <= 5 or query in ("your query", "query"):
            found = INVALID
        elif query in asked:
            found = REPEATED
        else:
            asked.add(query)
            intent = yield intent_of("searches for", query, chat)
            found = yield from explore(query, intent, config)
        chat.back(f"\n\n{BEGIN_RESULT}{found}{END_RESULT}\n\n")
    return boxed(chat.own)


def explore(query: str, intent: str, config: AgentConfig) -> Agent:
    """What the explorer concludes; of its pages and searches nothing else comes back."""
    documents = yield from fetch(read_hits((yield Use("search", query))), config.page_chars)
    chat = Chat(EXPLORING.format(query=query, intent=intent, documents=documents), second=True)
    asked, clicked = {query}, set()
    for _ in range(config.max_clicks):
        text = yield chat.write(END_QUERY, END_CLICK)
        if text.endswith(END_QUERY):
            wanted = inside(text, BEGIN_QUERY, END_QUERY)
            found = REPEATED if wanted in asked else plain((yield Use("search", wanted)))
            asked.add(wanted)
            chat.back(f"\n\n{BEGIN_RESULT}\n{found}\n{END_RESULT}\n\n")
        elif text.endswith(END_CLICK):
            wanted = inside(text, BEGIN_CLICK, END_CLICK)
            found = OPENED if wanted in clicked else (yield from click(wanted, chat))
            clicked.add(wanted)
            chat.back(f"\n\n{BEGIN_PAGE}\n{found}\n{END_PAGE}\n\n")
        if not text.endswith((END_QUERY, END_CLICK)) or len(chat.text.split()) >= EXPLORER_WORDS:
            break
    if text.endswith((END_QUERY, END_CLICK)):  # it was not done
        chat.back(CONCLUDE)
        yield chat.write(max_tokens=512)
    told = chat.text.rpartition(FINAL)[2].strip() if FINAL in chat.text else "\n".join(chat.own.splitlines()[-5:])
    return plain(told[:EXPLORED_CHARS])


def click(address: str, chat: Chat) -> Agent:
    """A page as the second model condenses it for what the click is meant to find out."""
    intent = yield intent_of("opens", address, chat)
    page = yield Use("click", address)
    if not page:
        return "This page cannot be opened."
    return final_part((yield Read(CONDENSE.format(intent=intent, page=plain(page[:CONDENSED_CHARS])), 3600)))


def intent_of(does: str, what: str, chat: Chat) -> Read:
    return Read(INTENT.format(does=does, what=what, reasoning=outline(chat.text)), 1000, greedy=True)


AGENTS = {"direct": direct, "tir": tir, "rag": rag, "react": react, "search-o1": search_o1, "webthinker": webthinker}

# The limits of the published code, where the model is no tiny one.
OFFICIAL = {
    "direct": {"max_turn_tokens": 4096},
    "tir": {
        "max_turn_tokens": 4096, "max_completion_length": 4096, "max_tool_calls": 15, "top_k": 10,
        "tool_limits": "search=10,python=5", "snippet_chars": 1000,
    },
    "rag": {"top_k": 10, "page_chars": 3000, "max_turn_tokens": 8192},
    "react": {"top_k": 10, "max_turns": 7, "max_turn_tokens": 1024},
    "search-o1": {"top_k": 10, "page_chars": 3000, "max_searches": 10, "max_turns": 15, "max_turn_tokens": 8192},
    "webthinker": {"top_k": 10, "page_chars": 2000, "max_searches": 20, "max_clicks": 10, "max_turn_tokens": 8192},
}  # fmt: skip
LEAVES_OUT = {
    "direct": "the authors' repetition penalty of 1.1",
    "tir": "the authors' repetition penalty of 1.1; the prompt has an example, theirs has none",
    "rag": "nothing of the definition",
    "react": "six worked examples (there is one), pages of Wikipedia (a search shows hits, and Open was added)",
    "search-o1": "repetition penalties; the back-off to direct answers",
    "webthinker": "repetition penalties; links inside pages; 81,920 tokens a text",
}


# ---------------------------------------------------------------------------------- texts

BOX = re.compile(r"\\boxed\s*\{((?:[^{}]++|\{(?:[^{}]++|\{(?:[^{}]++|\{[^{}]*+\})*+\})*+\})*+)\}")


def boxed(text: str) -> str | None:
    r"""What stands in the last \boxed{} that closes, without \text around words; None where there is none."""
    boxes = BOX.findall(text)
    return (re.sub(r"\\text\{([^{}]*)\}", r"\1", boxes[-1]).strip() or None) if boxes else None


def plain(text: str) -> str:
    """What came from elsewhere, without marks that would end it or begin something."""
    return disarm(re.sub(r"<\|(\w+)\|>", r"\1", text))


def middle_cut(text: str, chars: int) -> str:
    return text if len(text) <= chars else text[: chars // 2] + CUT + text[-(chars // 2) :]
