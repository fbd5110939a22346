"""How good an answer is: exact match, token F1, equality of mathematics, and ARPO's hierarchical reward.

Texts are compared as SQuAD and HotpotQA do (lower case, no punctuation, no articles), after accents are
folded. A gold answer that is a number is compared as a number by all three: that normalisation alone would
make -3 equal to 3, and 3.14 equal to 314. Left out: judging by another language model, and units.
"""

import logging
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Iterable
from fractions import Fraction

from data import Question

PUNCTUATION = str.maketrans("", "", string.punctuation + "‐‑–—‘’“”")
CLOSED_ANSWERS = {"yes", "no", "noanswer"}  # share no credit with a longer text that contains them
THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")


def as_number(text: str) -> Fraction | None:
    """The number that a whole text is, exactly, or None: "1,200", "-3", "0.5", "1/3", "2e3", "$7."."""
    text = THOUSANDS.sub("", text.strip().strip("$").replace("−", "-")).removesuffix(".")
    try:
        # An exponent is bounded, since Fraction would write out every digit of 1e999999999.
        return Fraction(text) if len(text) <= 64 and not re.search(r"[eE][+-]?\d{4}", text) else None
    except (ValueError, ZeroDivisionError):
        return None


def normalize(text: str) -> str:
    decomposed = unicodedata.normalize("NFKD", text.lower())
    unaccented = "".join(char for char in decomposed if not unicodedata.combining(char))
    without_articles = re.sub(r"\b(a|an|the)\b", " ", unaccented.translate(PUNCTUATION))
    return " ".join(without_articles.split())


def exact_match(answer: str, golds: Iterable[str]) -> float:
    return max((_exact(answer, gold) for gold in golds), default=0.0)


def f1(answer: str, golds: Iterable[str]) -> float:
    return max((_f1(answer, gold) for gold in golds), default=0.0)


def math_equal(answer: str, golds: Iterable[str]) -> float:
    return max((_math(answer, gold) for gold in golds), default=0.0)


METRICS = {"em": exact_match, "f1": f1, "math": math_equal}


def accuracy(question: Question, answer: str) -> float:
    """Between 0 and 1; an empty answer earns nothing, whatever the gold."""
    return METRICS[question.metric](answer, question.answers) if answer.strip() else 0.0


def hierarchical_reward(accuracy: float, well_formed: bool, tools_run: set[str], bonus: float = 0.1) -> float:
    """-1 for a wrong format; else the accuracy, plus a bonus if it is above 0 and both tools were really run."""
    if not well_formed:
        return -1.0
    return accuracy + bonus * (accuracy > 0 and {"search", "python"} <= tools_run)


def overlong_penalty(tokens: int, max_length: int, buffer: int) -> float:
    """DAPO's soft overlong punishment (arXiv 2503.14476, eq. 13): 0 to -1 over the last `buffer` tokens."""
    return min(0.0, max(-1.0, (max_length - buffer - tokens) / buffer))


def _exact(answer: str, gold: str) -> float:
    number = as_number(gold)
    if number is not None:
        return float(as_number(answer) == number)
    same = answer.strip().lower() == gold.strip().lower()  # also where nothing but an article is left, as of "A"
    return float(bool(answer.strip()) and (same or normalize(answer) == normalize(gold) != ""))


def _f1(answer: str, gold: str) -> float:
    if as_number(gold) is not None:
        return _exact(answer, gold)
    predicted, expected = normalize(answer), normalize(gold)
    if predicted != expected and {predicted, expected} & CLOSED_ANSWERS:
        return 0.0
    tokens, gold_tokens = predicted.split(), expected.split()
    shared = sum((Counter(tokens) & Counter(gold_tokens)).values())
    return 2 * shared / (len(tokens) + len(gold_tokens)) if shared else 0.0


def _math(answer: str, gold: str) -> float:
    answer, gold = _unboxed(answer), _unboxed(gold)
    if not answer:
        return 0.0
    number, expected = as_number(answer), as_number(gold)
    if number is not None and expected is not None:
        return float(number == expected)
    if "".join(answer.split()) == "".join(gold.split()):
        return 1.0
    from math_verify import parse, verify  # slow to import, and most answers never come this far

    # Its time limits are signals, which work in the main thread only; the caller sets the limit, so the warning
    # that there is none need not be printed for every answer.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    boxed_gold, boxed_answer = (parse(rf"\boxed{{{text}}}", parsing_timeout=None) for text in (gold, answer))
    return float(verify(boxed_gold, boxed_answer, timeout_seconds=None))


def _unboxed(text: str) -> str:
    r"""What stands in the last \boxed{...}, or else the whole text, without dollar signs and the final dot."""
    if r"\boxed{" in text:
        text = text[text.rindex(r"\boxed{") + len(r"\boxed{") :]
        depth = 1
        for end, char in enumerate(text):
            depth += (char == "{") - (char == "}")
            if depth == 0:
                text = text[:end]
                break
    return text.strip().strip("$").strip().removesuffix(".")
