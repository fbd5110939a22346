"""Conversations of a policy with its tools, for the cold start: a set by name, one of the hub, or your own file.

Three shapes of rows are known: messages (ShareGPT's `conversations` of from and value, OpenAI's `messages` of
role and content), Alpaca's `instruction`, `input` and `output`, and STILL's thought and solution. Results stand
in messages of their own, or in the policy's text as `<result>…</result>`. System prompts in the data are dropped:
the policy learns under the one it will act under. Left out: format and length, which `demonstrations.py` checks.
"""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from data import ANSWER
from data.benchmarks import READERS, Benchmark, as_record, hub_rows, naming, repair
from data.format import THINK, split_results, tagged, without_result_tags
from data.grading import unboxed

SETS = {  # in the first two a whole trajectory stands in one text; the last knows no tools
    "arpo-sft": Benchmark("dongguanting/ARPO-SFT-54K", "train", 54_574, "", "MIT"),
    "tool-star": Benchmark("dongguanting/Tool-Star-SFT-54K", "train", 53_971, "", "see its card"),
    "still": Benchmark("RUC-AIBOX/long_form_thought_data_5k", "train", 4_922, "", "see its card"),
}
SETS_BY_NAME = {
    name.lower(): known for key, known in SETS.items() for name in (key, known.hub, known.hub.split("/")[1])
}
ROLES = {
    "human": "question", "user": "question", "gpt": "policy", "assistant": "policy", "function_call": "policy",
    "observation": "result", "tool": "result", "function": "result", "function_response": "result",
    "system": "none", "developer": "none",
}  # fmt: skip
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
    path, low = Path(name), name.lower()
    hub_set = SETS_BY_NAME.get(low) or Benchmark(name, "train", 0, "", "")
    if path.suffix in READERS:
        rows = READERS[path.suffix](path)
    elif hub_set.hub.count("/") == 1 and not path.exists():
        rows = hub_rows(hub_set, name)
    else:
        known = f"expected world, {', '.join(SETS)}, a hub id, or a .json, .jsonl or .parquet file"
        raise ValueError(f"unknown conversations {name!r}: {known}")
    if not rows:
        raise ValueError(f"{name}: no conversations in it")
    found, skipped = [], {}
    for place, row in rows:
        try:
            with naming(name, place):
                found.append(Conversation(*_conversation(_messages(as_record(row))), place))
        except Unusable as reason:
            skipped[place] = str(reason)
    return found, skipped


def describe_skipped(name: str, rows: int, skipped: dict[str, str]) -> str:
    """Such as "still: 3 of 4,922 rows skipped (format 2, too long 1; row 7 first)"."""
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in Counter(skipped.values()).most_common())
    first = min(skipped, key=lambda place: int(place.split()[1]))
    return f"{name}: {len(skipped):,} of {rows:,} rows skipped ({reasons}; {first} first)"


def _messages(record: dict) -> list[tuple[str, str]]:
    """A row of any shape as messages: whose it is (a value of ROLES), and its text."""
    listed = record.get("conversations") or record.get("messages")
    if isinstance(listed, list):
        said = [(m.get("from", m.get("role")), m.get("value", m.get("content"))) for m in map(as_record, listed)]
    elif "combined_text" in record:
        solved = SOLVED.search(record["combined_text"])
        if solved is None:
            raise Unusable("no boxed answer")
        answer = tagged(THINK, solved[1]) + tagged(ANSWER, unboxed(solved[2]))
        said = [("human", record.get("question")), ("gpt", answer)]
    elif "output" in record:
        asked = [record[key] for key in ("input", "instruction") if str(record.get(key) or "").strip()]
        said = [("human", asked[0] if asked else ""), ("gpt", record["output"])]
    else:
        raise ValueError(f"expected conversations, messages, output or combined_text, found {', '.join(record):.80}")
    for role, text in said:
        if role not in ROLES or not isinstance(text, str | None):  # OpenAI's calls outside the text leave None
            raise ValueError(f"expected a text of {', '.join(ROLES)}, found {text!r:.40} of {role!r:.40}")
    return [(ROLES[role], repair(text or "")) for role, text in said if ROLES[role] != "none"]


def _conversation(messages: list[tuple[str, str]]) -> tuple[str, list[tuple[str, str | None]]]:
    """Question and turns. A turn of the policy ends with its tag, and tools add no space: those around are dropped."""
    (role, question), *answers = messages or [("none", "")]
    if role != "question" or not question.strip():
        raise Unusable("no question")
    turns, written = [], ""
    for role, text in answers:
        if role == "question":
            raise Unusable("several questions")
        # Odd pieces are results. A message that is one may have the tags, too.
        pieces = split_results(text) if role == "policy" else ["", without_result_tags(text)]
        for place, piece in enumerate(pieces):
            if place % 2:
                turns.append((written.strip(), piece.strip()))
                written = ""
            else:
                written += piece
    return question, [*turns, (written.strip(), None)]
