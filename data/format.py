"""The page between policy and world: tags, system prompt, calls, results and answers, as text and as tokens.

The policy writes turns. A turn is any number of thoughts, then either one call of a tool or the answer, and after an
answer the end token. A call is the text for the tool inside the tags of its name. It is answered by a result, which
the environment writes and the policy is never trained on. How tags are spelled is said here and nowhere else.

What others wrote is untrusted: questions and results are tokenised as plain text, so that tags or special tokens inside
them have no power. Left out: running a tool (`tools.py`), and whether an answer is right (`grading.py`).
"""

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import dropwhile, pairwise, product
from typing import Annotated, ClassVar

from data import ANSWER, Action
from data.settings import Limits, Natural, NonNegative, Positive, Settings

THINK, RESULT = "think", "result"
CUT = " [cut] "  # where the middle of a long result was left out: no bracket of a tag, and letters for any tokenizer
SLOT = "TextOfTheUser"  # stands for it while a chat template is rendered
NO_CLOCK = "{% macro strftime_now(how) %}26 Jul 2024{% endmacro %}{{ '' }}"  # before a template: else the day is in it
# The built-in model's leaves instructions out: the cold start has shown it the format.
BUILT_IN_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}<|user|> {{ message['content'] }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
MARK = re.compile(r"[<\[][^\s<>\[\]]+[>\]]")  # of a turn's begin or end in templates, such as [/INST]
OPENED_THOUGHT = re.compile(r"<[^\s<>/]*(?:think|thought|reason)[^\s<>/]*>\s*$")


def tagged(name: str, text: str) -> str:
    return f"<{name}>{text}</{name}>"


class Tool:
    """What the page needs to know of a tool; a subclass is part of it from the moment it is defined.

    An instance maps the text of a call to a `ToolResult`. It may have `check()`, a harmless call that shows whether
    the tool works; without one it is tried with `probe`, which must give the text `expected`, if that is set.
    """

    name: ClassVar[str]  # of its tags
    usage: ClassVar[str]  # its line in the system prompt
    probe: ClassVar[str] = "6 * 7"
    expected: ClassVar[str] = ""
    demonstrations: ClassVar[tuple[tuple[str, list[Action]], ...]] = ()  # questions and turns for the cold start
    known: ClassVar[dict[str, type["Tool"]]] = {}

    def __init_subclass__(cls):
        Tool.known[cls.name] = cls

    @classmethod
    def from_config(cls, around) -> "Tool | None":
        """The tool of a task (see `tools.py:Surroundings`), or None where it is not offered."""
        return cls()


@dataclass(frozen=True)
class ToolCall:
    tool: str
    content: str


@dataclass(frozen=True)
class ToolResult:
    """What a call came to: the text that the model sees, and how the call ended.

    `outcome` is one of ok, error (the call ran and failed), timeout, crash, malformed (closing tag without an opening
    one) or refused (not run: over the limit of calls, or not an address to open). It is the same online and from the
    cache, which `cached` tells apart. `fault` says that the tool is to blame and not the call (the network, a server,
    a key): the same call may succeed later.
    """

    text: str
    outcome: str = "ok"
    seconds: float = 0.0
    cached: bool = False
    fault: bool = False


@dataclass(frozen=True)
class TrajectoryConfig(Settings):
    """What a trajectory may be, and how it is drawn."""

    seed: Natural = 0  # names all randomness
    temperature: NonNegative = 1.0  # of sampling; 0 takes the likeliest token
    top_p: Annotated[float, Limits(1e-3, 1)] = 1.0  # in evaluation: of the likeliest tokens that have this share
    max_completion_length: Positive = 512  # tokens of a trajectory after the prompt, results included
    max_turn_tokens: Positive = 128  # sampled tokens of a turn
    max_result_tokens: Positive = 128  # tokens of a tool result that the policy reads
    max_tool_calls: Natural = 6  # of a trajectory
    tool_limits: str = ""  # of a trajectory by tool, such as "search=3,python=5"

    def __post_init__(self):
        super().__post_init__()
        parse_limits(self.tool_limits)


def parse_limits(text: str) -> dict[str, int]:
    """Calls of a trajectory by tool: "search=3,python=5". Raises ValueError."""
    parts = [part.partition("=") for part in text.split(",") if part]
    known = all(tool in Tool.known and number.isdecimal() for tool, _, number in parts)
    if not known or len({tool for tool, *_ in parts}) < len(parts):
        names = ", ".join(Tool.known)
        raise ValueError(f'--tool_limits: expected such as "search=3,python=5" with {names}, found {text!r}')
    return {tool: int(number) for tool, _, number in parts}


def system_prompt() -> str:
    """What the policy is told about its work and its tools."""
    tools = "\n".join(tool.usage for tool in Tool.known.values())
    example = [
        tagged(THINK, "I need the height of the tower.") + tagged("search", "Iron Tower height"),
        tagged(RESULT, "[1] Iron Tower (towers/7): The Iron Tower is 120 metres high."),
        tagged(THINK, "Twice 120.") + tagged("python", "2 * 120") + tagged(RESULT, "240"),
        tagged(THINK, "The computation gives the answer.") + tagged(ANSWER, "240"),
    ]
    return (
        "Answer the question. Work in turns, and write nothing outside these tags:\n"
        f"{tagged(THINK, 'your reasoning')}\n{tools}\n{tagged(ANSWER, 'the answer alone')} ends your work.\n"
        f"After a tool call stop: its output comes back as {tagged(RESULT, 'output')}, and you go on from there.\n"
        "Use tools for facts and arithmetic that you are not sure of. Calls are limited, so make each count.\n\n"
        f"Example:\n{''.join(example)}"
    )


def tag_names() -> list[str]:
    """Of all tags. The tools' are known once `tools.py` has been imported."""
    return [THINK, *Tool.known, RESULT, ANSWER]


def closing_tags() -> list[str]:
    """Of calls: a turn ends at one of these or at the end token."""
    return [f"</{name}>" for name in Tool.known]


def parse_call(turn: str) -> ToolCall | None:
    """The last call in a turn's text, or None where its opening tag is missing."""
    end, tool = max((turn.rfind(f"</{tool}>"), tool) for tool in Tool.known)
    start = turn.rfind(f"<{tool}>", 0, max(end, 0))
    return ToolCall(tool, turn[start + len(tool) + 2 : end].strip()) if start >= 0 else None


def may_close(piece: str) -> bool:
    """Whether a token may complete a closing tool tag: up to a ">" it is the tag's end, or holds the whole tag."""
    heads = [piece[: i + 1] for i, char in enumerate(piece) if char == ">"]
    return any(tag.endswith(head) or head.endswith(tag) for head in heads for tag in closing_tags())


def read_answer(turns: list[str]) -> str | None:
    """The answer of a whole trajectory, or None if its format is wrong.

    `turns` has the text that the policy itself wrote, one string a turn and without the end token; tool output is no
    part of it, so a page with a tag in it cannot cost the policy anything.
    """
    any_tag = rf"</?(?:{'|'.join(tag_names())})>"
    body = rf"(?:(?!{any_tag}).)*"
    thoughts = rf"\s*(?:{tagged(THINK, body)}\s*)*"
    call = rf"{thoughts}<({'|'.join(Tool.known)})>{body}</\1>\s*"
    answer = re.fullmatch(thoughts + tagged(ANSWER, f"({body})") + r"\s*", turns[-1], re.DOTALL)
    if answer is None or not answer.group(1).strip():
        return None
    if not all(re.fullmatch(call, turn, re.DOTALL) for turn in turns[:-1]):
        return None
    return answer.group(1).strip()


def write_action(action: Action) -> str:
    """An expert's turn. A word's token begins with its space, a digit's does not."""
    space = " " if action.content[0].isalpha() else ""
    return tagged(THINK, f" {action.think}") + tagged(action.tool, space + action.content)


def split_results(text: str) -> list[str]:
    """A trajectory as one text, cut at its results: what the policy wrote at even places, results at odd ones."""
    return re.split(tagged(RESULT, "(.*?)"), text, flags=re.DOTALL)


def without_result_tags(text: str) -> str:
    return re.sub(rf"^\s*<{RESULT}>|</{RESULT}>\s*$", "", text)


def printable(text: str) -> str:
    """For a terminal: what would steer it, or turn the direction of writing, or not be seen, is spelled out."""
    plain = lambda char: char.isprintable() or char in "\n\t" or unicodedata.category(char) == "Zs"
    return "".join(char if plain(char) else char.encode("unicode_escape").decode() for char in text)


def disarm(text: str) -> str:
    """Takes the brackets off every tag, until there is none: of "</" and a tag the first time leaves another tag."""
    while (less := re.sub(rf"(?<!<)<+(/?(?:{'|'.join(tag_names())}))>", r"\1", text)) != text:
        text = less
    return text


def encode_plain(tokenizer, text: str, start: int = 0, end: int | None = None) -> list[int]:
    """Token ids of a text. From `start` to `end` a stranger wrote it: added tokens are cut in two there."""
    text, end = text.encode("utf-8", "replace").decode(), len(text) if end is None else end  # no half surrogates
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    blank = " \t\r\n\u2581"  # runs of spaces command nothing (some are spelled with blocks), nor what is unknown
    added = {i for token, i in tokenizer.get_added_vocab().items() if token.strip(blank)} - {tokenizer.unk_token_id}
    places = [place for i, place in zip(found["input_ids"], found["offset_mapping"]) if i in added]
    cuts = [(a + b) // 2 for a, b in places if a < end and start < b and b - a > 1]
    pieces = pairwise([0, *cuts, len(text)]) if cuts else []
    return [i for a, b in pieces for i in encode_plain(tokenizer, text[a:b], start - a, end - a)] or found["input_ids"]


def encode_prompt(tokenizer, question: str) -> list[int]:
    """The question under the system prompt, in the model's chat template if it has one."""
    return encode_chat(tokenizer, question, system_prompt())


def encode_chat(tokenizer, text: str, instructions: str = "") -> list[int]:
    """What a user says, under instructions. It cannot end the user's turn."""
    before, after = _around(tokenizer, instructions)
    # Where marks are text alone, tokens do not tell them from what a user wrote: so they are broken up there.
    for mark in set(MARK.findall((before + after).replace(instructions, ""))) - set(tokenizer.get_added_vocab()):
        text = text.replace(mark, f"{mark[0]} {mark[1:]}")
    ids, bos = encode_plain(tokenizer, before + text + after, len(before), len(before + text)), tokenizer.bos_token_id
    begun = bos is not None and bos in ids[:1] + tokenizer.encode("a")[:1]  # by the template or by the tokenizer: once
    return [bos, *dropwhile(lambda i: i == bos, ids)] if begun else ids


def _around(tokenizer, instructions: str) -> tuple[str, str]:
    """What stands before and after a user's text in the model's chat template; ValueError if that does not show it.

    Some templates refuse a system message or leave it out, and some want lists of parts: the first way that shows all
    is taken. A thought that a template opens is taken back, for the policy opens its own.
    """
    if not tokenizer.chat_template:
        return (f"{instructions}\n\nQuestion: ", "\n") if instructions else ("", "")
    squeeze = lambda text: " ".join(text.split())
    wanted = "" if tokenizer.chat_template == BUILT_IN_TEMPLATE else squeeze(instructions)
    apart = [("system", instructions)] * bool(instructions) + [("user", SLOT)]
    template, first = NO_CLOCK + tokenizer.get_chat_template(), ""
    fixed = {"chat_template": template, "add_generation_prompt": True, "date_string": "26 Jul 2024"}
    for way, parts in product((apart, [("user", f"{instructions}\n\n{SLOT}".strip())]), (False, True)):
        said = [{"role": role, "content": [{"type": "text", "text": t}] if parts else t} for role, t in way]
        try:
            text = tokenizer.apply_chat_template(said, tokenize=False, **fixed)
        except Exception as error:  # a template is a program, and fails as it likes
            text = f"{type(error).__name__}: {error}"
        if text.count(SLOT) == 1 and wanted in squeeze(text):
            return text.partition(SLOT)[0], OPENED_THOUGHT.sub("", text.partition(SLOT)[2])
        lost = "instructions" if text.count(SLOT) == 1 else "question"
        first = first or f"{lost} once and as text: {squeeze(text)!r:.200}"
    raise ValueError(f"the model's chat template does not show the {first}")


def check_prompt(tokenizer) -> None:
    """Raises ValueError, in one line, if the policy could not read what it is told, or could not write its tags."""
    if not tokenizer.is_fast:
        raise ValueError(f"{type(tokenizer).__name__} does not say where in a text its tokens stand (is_fast)")
    _, after = _around(tokenizer, system_prompt())
    if after.count(f"<{THINK}>") > after.count(f"</{THINK}>"):
        raise ValueError(f"the model's chat template begins the answer itself: {after!r:.200}")
    written = f"a\n    b\n{system_prompt()}"
    back = tokenizer.decode(tokenizer.encode(written, add_special_tokens=False)).strip()
    if back != written:
        tags = [f"<{slash}{name}>" for name in tag_names() for slash in ("", "/")]
        lost = next((tag for tag in tags if tag not in back), "lines, spaces and capitals")
        raise ValueError(f"the tokenizer does not give back {lost}: what it reads becomes {back!r:.200}")


def encode_result(tokenizer, text: str, max_tokens: int) -> list[int]:
    """Token ids of a result, as plain text between the tags; of one over `max_tokens`, its head, CUT and its tail."""
    ids = encode_plain(tokenizer, disarm(text))
    # A tokenizer may make usual brackets of wide ones.
    while not text.isascii() and (plain := disarm(read := tokenizer.decode(ids))) != read:
        ids = encode_plain(tokenizer, plain)
    opening, closing = (tokenizer.encode(tag, add_special_tokens=False) for tag in (f"<{RESULT}>", f"</{RESULT}>"))
    if len(ids) > max_tokens:
        mark = tokenizer.encode(CUT, add_special_tokens=False)
        room = max(0, max_tokens - len(mark))
        ids = (ids[: room - room // 2] + mark + ids[len(ids) - room // 2 :])[:max_tokens]
    return opening + ids + closing


def encode_turns(
    tokenizer, question: str, turns: Iterable[tuple[str, str | None]], max_result_tokens: int
) -> tuple[list[int], list[int]]:
    """Token ids of a trajectory under its prompt, and 1 where the policy wrote the token, both (T,).

    `turns` yields a turn's text and its result, which is None after the last: there stands the end token.
    """
    ids = encode_prompt(tokenizer, question)
    own = [0] * len(ids)
    for text, result in turns:
        turn_ids = tokenizer.encode(text, add_special_tokens=False)
        if result is None:
            turn_ids.append(tokenizer.eos_token_id)
        result_ids = [] if result is None else encode_result(tokenizer, result, max_result_tokens)
        ids += turn_ids + result_ids
        own += [1] * len(turn_ids) + [0] * len(result_ids)
    return ids, own
