"""Conversations of a policy with its tools, for the cold start: a set by name, one of the hub, or your own file.

Three shapes of rows are known: messages (ShareGPT's `conversations` of from and value, OpenAI's `messages` of
role and content), Alpaca's `instruction`, `input` and `output`, and STILL's thought and solution. Results stand
in messages of their own, or in the policy's text between the tags of one. System prompts in the data are dropped
and counted: the policy learns under the one it will act under. Left out: calls in another notation than ours, which
are named, and format and length, which `demonstrations.py` checks.
"""

import re
import sys
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass

from data import ANSWER
from data.benchmarks import repair
from data.format import THINK, Tool, split_results, tagged, without_result_tags
from data.grading import unboxed
from data.rows import Benchmark, as_record, find_rows, naming, plain_text, unpacked

SETS = {  # in the first two a whole trajectory stands in one text; the last knows no tools
    "arpo-sft": Benchmark("dongguanting/ARPO-SFT-54K", "train", 54_574, "", "MIT"),
    "tool-star": Benchmark("dongguanting/Tool-Star-SFT-54K", "train", 53_971, "", "see its card"),
    "still": Benchmark("RUC-AIBOX/long_form_thought_data_5k", "train", 4_922, "", "see its card"),
}
SETS_BY_NAME = {
    name.lower(): known for key, known in SETS.items() for name in (key, known.hub, known.hub.split("/")[1])
}
ROLES = {
    "human": "question", "user": "question", "gpt": "policy", "assistant": "policy", "bot": "policy",
    "function_call": "policy", "tool_call": "policy", "observation": "result", "tool": "result", "function": "result",
    "function_response": "result", "tool_response": "result", "ipython": "result",
    "system": "system", "developer": "system",
}  # fmt: skip
FOREIGN = {"tool_call", "function_call", "code", "interpreter", "information", "tool_response"}  # tags of other formats
SOLVED = re.compile(r"(?s)<\|begin_of_thought\|>(.*)<\|end_of_thought\|>\s*<\|begin_of_solution\|>(.*\\boxed\{.*)")


@dataclass(frozen=True)
class Conversation:
    question: str
    turns: list[tuple[str, str | None]]  # what the policy wrote, and the result it got; None after the last
    place: str  # such as "row 7"


class Unusable(Exception):
    """The row is whole, but nothing to learn from; the message is the reason."""


def load_conversations(name: str) -> tuple[list[Conversation], dict[str, str]]:
    """The conversations, and the places of the other rows with the reason why they are left out.

    ValueError or OSError says in one line what is wrong with the name, the set or the file.
    """
    own = Benchmark(name, "train", 0, "", "") if name.count("/") == 1 else None
    rows = find_rows(name, SETS_BY_NAME.get(name.lower(), own), "", "conversations", SETS)
    if not rows:
        raise ValueError(f"{name}: expected conversations, found none in it")
    found, skipped, bad, systems = [], {}, [], 0
    shared = _shared_instruction(rows)
    for place, row in rows:
        try:
            with naming(name, place):
                messages = _messages(as_record(row), shared)
                systems += any(role == "system" for role, _ in messages)
                found.append(Conversation(*_conversation([m for m in messages if m[0] != "system"]), place))
        except Unusable as reason:
            skipped[place] = str(reason)
        except ValueError as error:
            bad.append(str(error))
            skipped[place] = bad[-1].removeprefix(f"{name}, {place}: ")
    if 2 * len(bad) >= len(rows):
        raise ValueError(bad[0])
    if systems:
        print(
            f"{name}: system prompts (or the one instruction of all) of {systems:,} rows are dropped", file=sys.stderr
        )
    return found, skipped


def describe_skipped(name: str, rows: int, skipped: dict[str, str]) -> str:
    """Such as "still: 3 of 4,922 rows skipped (format 2, too long 1; row 7 first)"."""
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in Counter(skipped.values()).most_common(6))
    first = min(skipped, key=lambda place: int(place.split()[1]))
    return f"{name}: {len(skipped):,} of {rows:,} rows skipped ({reasons}; {first} first)"


def _shared_instruction(rows: list) -> str:
    """Alpaca's instruction, where all rows with their different inputs have the same: it is a system prompt."""
    pairs = set()
    for _, row in rows:
        with suppress(ValueError, RecursionError):
            record = as_record(row)
            pairs.add((str(record.get("instruction") or ""), str(record.get("input") or "").strip()))
    instruction = pairs and min(pairs)[0]
    return instruction if len(pairs) > 1 and all(i == instruction and asked for i, asked in pairs) else ""


def _messages(record: dict, shared: str) -> list[tuple[str, str]]:
    """A row of any shape as messages: whose it is (a value of ROLES), and its text."""
    keys = ", ".join(f"{key}{'' if value else ' (empty)'}" for key, value in record.items())
    listed = next((unpacked(record[key]) for key in ("conversations", "messages") if record.get(key)), None)
    if image := next((key for key in ("image", "images", "videos", "audios") if record.get(key)), None):
        raise Unusable(f"needs its {image}")
    if record.get("history"):
        raise Unusable("several questions (history)")
    if isinstance(listed, list):
        listed = [as_record(message) for message in listed]
        if outside := {key for message in listed for key in ("tool_calls", "function_call") if message.get(key)}:
            raise Unusable(f"calls in {' and '.join(sorted(outside))}, not in the text")
        said = [(m.get("from", m.get("role")), plain_text(m.get("value", m.get("content")))) for m in listed]
    elif "combined_text" in record:
        solved = SOLVED.search(record["combined_text"])
        if solved is None:
            raise Unusable("no boxed answer")
        answer = tagged(THINK, solved[1]) + tagged(ANSWER, unboxed(solved[2]))
        said = [("human", record.get("question")), ("gpt", answer)]
    elif "output" in record:
        asked = [record.get(key) or "" for key in ("instruction", "input")]
        parts = [part for part in asked if str(part).strip() and part != shared]
        text = "\n\n".join(parts) if all(isinstance(part, str) for part in parts) else asked[0]
        said = [("system", shared)] * bool(shared) + [("human", text), ("gpt", record["output"])]
    else:
        raise ValueError(f"expected conversations, messages, output or combined_text, found {keys:.200}")
    if record.get("system"):
        said = [("system", ""), *said]
    for role, text in said:
        if str(role).lower() not in ROLES or not isinstance(text, str | None):
            raise ValueError(f"expected a text of {', '.join(ROLES)}, found {text!r:.40} of {role!r:.40}")
    return [(ROLES[role.lower()], repair(text or "")) for role, text in said]


def _conversation(messages: list[tuple[str, str]]) -> tuple[str, list[tuple[str, str | None]]]:
    """Question and turns. A turn of the policy ends with its tag, and tools add no space: those around are dropped."""
    (role, question), *answers = messages or [("none", "")]
    if role != "question" or not question.strip():
        raise Unusable("no question")
    turns, written = [], ""
    for role, text in answers:
        if role == "question":
            raise Unusable("several questions")
        tags = {tag for tag, _ in re.findall(r"(?s)<(\w+)>(.*?)</\1>", text)} & FOREIGN - set(Tool.known)
        if role == "policy" and (tags or re.match(r'\s*\{\s*"name"', text)):
            raise Unusable(f"calls as {', '.join(sorted(tags)) or 'JSON'}, not in the tags of a tool")
        # Odd pieces are results. A message that is one may have the tags, too.
        pieces = split_results(text) if role == "policy" else ["", without_result_tags(text)]
        for place, piece in enumerate(pieces):
            if place % 2:
                turns.append((written.strip(), piece.strip()))
                written = ""
            else:
                written += piece
    return question, [*turns, (written.strip(), None)]
