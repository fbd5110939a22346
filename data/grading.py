r"""How good an answer is: exact match, token F1, equality of mathematics, and ARPO's hierarchical reward.

Texts are compared as SQuAD and HotpotQA do (lower case, no punctuation, no articles), after accents are
folded; points and minus signs of numbers stay. A gold answer that is a number is compared as a number by
all three: that normalisation alone would make -3 equal to 3, and 3.14 equal to 314. Mathematics is decided
here where both sides are numbers or words; the rest by math-verify, in a confined worker with 2 s of CPU
time, because a few characters of LaTeX can keep it busy for ever. Left out: judging by another language
model, and converting units.
"""

import functools
import json
import re
import threading
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from fractions import Fraction

from data import Question
from sandbox import PythonSandbox

CLOSED_ANSWERS = {"yes", "no", "noanswer"}  # share no credit with a longer text that contains them
PUNCTUATION = re.compile(r"(?!(?<=\d)\.\d)(?!(?<!\w)-\d)[^\w\s]|_")  # but the point in 3.14 and the sign of -3
SIGNS = str.maketrans({"−": "-", "–": "-", "⁄": "/", "½": " 1/2", "¼": " 1/4", "¾": " 3/4"})
THOUSANDS = re.compile(r"(?<![\d.,])[1-9]\d{0,2}([, ])\d{3}(?:\1\d{3})*(?![\d,])")
SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}


def exact_match(answer: str, golds: Iterable[str]) -> float:
    return _best(_exact, answer, golds)


def f1(answer: str, golds: Iterable[str]) -> float:
    return _best(_f1, answer, golds)


def math_equal(answer: str, golds: Iterable[str]) -> float:
    return _best(_math, answer, golds)


METRICS = {"em": exact_match, "f1": f1, "math": math_equal}


def accuracy(question: Question, answer: str) -> float:
    """Between 0 and 1; an empty answer earns nothing, whatever the gold."""
    return METRICS[question.metric](answer, question.answers)


def hierarchical_reward(accuracy: float, well_formed: bool, tools_run: set[str], bonus: float = 0.1) -> float:
    """-1 for a wrong format; else the accuracy, plus a bonus if it is above 0 and both tools were really run."""
    if not well_formed:
        return -1.0
    return accuracy + bonus * (accuracy > 0 and {"search", "python"} <= tools_run)


def overlong_penalty(tokens: int, max_length: int, buffer: int) -> float:
    """DAPO's soft overlong punishment (arXiv 2503.14476, eq. 13): 0 to -1 over the last `buffer` tokens."""
    return min(0.0, max(-1.0, (max_length - buffer - tokens) / buffer))


def _best(grade: Callable[[str, str], float], answer: str, golds: Iterable[str]) -> float:
    """The grade against the gold that fits best. Two boxes are two answers, and so none."""
    answer = unboxed(answer) if answer.count(r"\boxed") < 2 else ""
    return max((grade(answer, gold) for gold in map(unboxed, golds) if answer and gold), default=0.0)


def unboxed(text: str) -> str:
    r"""What stands in the last \boxed{...}, or else the whole text."""
    if r"\boxed{" in text:
        text = text[text.rindex(r"\boxed{") + len(r"\boxed{") :]
        depth = 1
        for end, char in enumerate(text):
            depth += (char == "{") - (char == "}")
            if depth == 0:
                text = text[:end]
                break
    return text.strip()


def as_number(text: str) -> Fraction | None:
    r"""The number that a whole text is, exactly, or None: "1,200", "1 1/2", "\frac12", "2e3", "$7.", "2 million"."""
    if len(text) > 100:  # a longer one would cost time, and is none that anybody asked for
        return None
    text = tidy(text)
    head, _, scale = text.rpartition(" ")
    if scale in SCALES:
        value = as_number(head)
        return None if value is None else value * SCALES[scale]
    text = THOUSANDS.sub(lambda match: re.sub("[, ]", "", match[0]), text)
    text = re.sub(r"\\frac ?(?:(\d)|\{(-?\d+)\}) ?(?:(\d)|\{(\d+)\})", r" \1\2/\3\4", text)
    text = re.sub(r"^([+-]) +| *(/) *", r"\1\2", text).strip()
    # Fraction would write out every digit of 1e999999999, and reads 12_8 as 128.
    if "_" in text or re.search(r"[eE][+-]?\d{4}", text):
        return None
    mixed = re.fullmatch(r"([+-]?)(\d+) (\d+/\d+)", text)
    try:
        return Fraction(mixed[1] + mixed[2]) + Fraction(mixed[1] + mixed[3]) if mixed else Fraction(text)
    except (ValueError, ZeroDivisionError):
        return None


def normalize(text: str) -> str:
    """Words that can be compared: lower case, no accents, punctuation or articles; a Chinese character is a word."""
    unaccented = re.sub("[\u0300-\u036f]", "", unicodedata.normalize("NFKD", text.casefold().translate(SIGNS)))
    plain = PUNCTUATION.sub("", unicodedata.normalize("NFC", unaccented))
    spaced = re.sub("([\u3040-\u30ff\u3400-\u9fff])", r" \1 ", plain)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", spaced).split())


def _exact(answer: str, gold: str) -> float:
    number = as_number(gold)
    if number is not None:
        return float(as_number(answer) == number)
    same = answer.lower() == gold.lower()  # also where nothing but an article is left, as of "A"
    return float(same or normalize(answer) == normalize(gold) != "")


def _f1(answer: str, gold: str) -> float:
    exact = _exact(answer, gold)
    if exact or as_number(gold) is not None:
        return exact
    predicted, expected = normalize(answer), normalize(gold)
    if {predicted, expected} & CLOSED_ANSWERS:
        return 0.0
    tokens, gold_tokens = predicted.split(), expected.split()
    shared = sum((Counter(tokens) & Counter(gold_tokens)).values())
    return 2 * shared / (len(tokens) + len(gold_tokens)) if shared else 0.0


# A unit after a number: "5 cm", "864 inches^2", "35%". One letter counts only after a space: 5m is a product.
WORD = r"[a-zA-Z]{3,}(?:[ /][a-zA-Z]+)*|[cmk]m(?:/h)?|kg|ft|in"
UNIT = re.compile(rf"(.*[\d}})])(?: *(%)| *({WORD})| ([mghs](?:/s)?))( ?\^\{{?[23]\}}?)?")
LONG_NAMES = {"m": "meter", "cm": "centimeter", "mm": "millimeter", "km": "kilometer", "ft": "feet", "kg": "kilogram"}
SYMBOLS = str.maketrans({
    "π": "pi ", "∞": "infty ", "≤": r"\le ", "≥": r"\ge ", "±": r"\pm ", "∪": r"\cup ", "∈": r"\in ",
    "∅": r"\emptyset ", "²": "^2", "³": "^3",
})  # fmt: skip
EMPTY_SETS = {r"\emptyset", r"\varnothing", r"\{\}", "emptyset", "none", "nosolution", "nosolutions"}
# Spacing and sizes, words in formulas, degrees and percent, sentences; then the spelling of Python and of Unicode.
SPELLINGS = [
    (r"\\(?:left|right|displaystyle)(?![a-zA-Z])|\\?\$|(?<!\\)\\! ?|(?<=\d)\\,(?=\d)", ""),
    (r"(?<!\\)\\[,;: ]", " "),
    (r"\\(?:text|mbox|mathrm|textbf) ?\{([^{}]*)\}", r" \1 "),
    (r"\\[dt]frac", r"\\frac"),
    (r"\\%| percent\b", "%"),
    (r" ?\^?(?:°|\\circ|\{\\circ\})", " degrees"),
    (r" +(?:or|and) +", ", "),
    (r"\{,\}", ","),
    (r"(?i)^ ?(?:so |thus )?(?:the )?(?:final )?(?:answer|result)(?: is|:| ?=) ?", ""),
    (r"\* ?I\b", " i"),
    (r"\*\*", "^"),
    (r"\*|·|×", r" \\cdot "),
    (r"\^(-?\d\d+)", r"^{\1}"),
    (r"√ ?(\w+)", r"sqrt(\1)"),
    (r"√ ?\(", "sqrt("),
    (r"(?<![\\a-zA-Z])(pi|infty|sin|cos|tan|cot|log|ln|exp)(?![a-zA-Z])", r"\\\1 "),
]
SQRT = re.compile(r"\\?sqrt ?\(([^()]*)\)")


def tidy(text: str) -> str:
    """One spelling for each thing, as far as numbers, units and the parser care."""
    text = " ".join(text.translate(SIGNS).translate(SYMBOLS).split())
    for pattern, spelling in SPELLINGS:
        text = re.sub(pattern, spelling, text)
    while (plain := SQRT.sub(r"\\sqrt{\1}", text)) != text:  # from the inside out
        text = plain
    return " ".join(text.split()).removesuffix(".")


def _packed(text: str) -> str:
    """Without spaces; (C) is C, and A, C, D is ACD."""
    if re.fullmatch(r"[A-H](?:,? ?[A-H])+", text):
        return "".join(sorted(re.findall("[A-H]", text)))
    text = text.replace(" ", "")
    return text[1] if re.fullmatch(r"\(\w\)", text) else text


def _math(answer: str, gold: str) -> float:
    if len(answer) > 1000:
        return 0.0
    answer, gold = tidy(answer), tidy(gold)
    pair = {_packed(answer), _packed(gold)}
    if len(pair) == 1 or {text.lower() for text in pair} <= EMPTY_SETS:
        return 1.0
    if re.fullmatch(r"[^\W\d_]{3,}(?:,? [^\W\d_]+)*", gold):  # words; as products of letters, east would equal seat
        return _exact(answer, gold)
    if choice := re.fullmatch(r"([A-H])[:.] +(.+)", gold):  # some sets give the letter and the text
        return max(_math(answer, choice[1]), _math(answer, choice[2]))
    return _quantity(answer, gold)


def _quantity(answer: str, gold: str) -> float:
    """Values with units, percent and degrees among them; plain numbers here, everything else by math-verify."""
    (value, unit), (gold_value, gold_unit) = _split_unit(answer), _split_unit(gold)
    number, expected = as_number(value), as_number(gold_value)
    if "%" in (unit, gold_unit) and unit != gold_unit and number is not None and expected is not None:
        percent, plain = (number, expected) if unit == "%" else (expected, number)
        return float(percent == plain * 100 or percent == plain > 1)  # above 1 it can be meant in percent
    if (unit or gold_unit) == "degrees" and r"\pi" in value + gold_value:  # one side in radians
        value, gold_value = (rf"({v})\cdot\pi/180" if u else v for v, u in ((value, unit), (gold_value, gold_unit)))
    if unit and gold_unit and not (unit.startswith(gold_unit) or gold_unit.startswith(unit)):
        return 0.0
    return float(number == expected) if number is not None and expected is not None else _verified(value, gold_value)


def _split_unit(text: str) -> tuple[str, str]:
    """A value and its unit, "" where there is none; squares and cubes in front: square inches, inches^2 -> ^2inches."""
    match = UNIT.fullmatch(text)
    if not match or set(text.split()) & set(SCALES):
        return text, ""
    value, *names, power = match.groups()
    name = re.sub("metre", "meter", next(filter(None, names)).lower())
    power = re.sub(r"\D", "", power or "") or ("2" if "square " in name else "3" if "cubic " in name else "")
    name = re.sub("square |cubic ", "", name)
    return value, f"^{power}" * bool(power) + LONG_NAMES.get(name, name)


# Both texts arrive as data, never as code. Units are dealt with before, and i is the imaginary unit.
CHECK = """
import json, logging, sympy
from dataclasses import replace
from math_verify import LatexExtractionConfig, parse, verify
logging.disable()
latex = LatexExtractionConfig(boxed_match_priority=0)
latex = replace(latex, normalization_config=replace(latex.normalization_config, units=False))
def expressions(text):
    found = parse("\\\\boxed{" + text + "}", [latex], parsing_timeout=None)
    i = [[s for s in getattr(e, "free_symbols", ()) if s.name == "i"] for e in found]
    return [e.subs(s[0], sympy.I) if s else e for e, s in zip(found, i)]
gold, answer = map(expressions, json.loads(%s))
verify(gold, answer, 12, 20, allow_set_relation_comp=True, timeout_seconds=None)
"""
_starting = threading.Lock()


@functools.cache
def _worker() -> PythonSandbox:
    # Only answers come from the model, the code is ours: where nothing confines it, the limits on time will do.
    return PythonSandbox(workers=1, cpu_seconds=2, preload=("math_verify",), allow_unsafe=True)


@functools.lru_cache(4096)
def _verified(answer: str, gold: str) -> float:
    """What math-verify says, in any thread; 0 where it fails or takes more than 2 s of CPU time."""
    with _starting:  # two threads must not start two workers
        worker = _worker()
    texts = [re.sub(r"(?<=\d)[eE]([+-]?\d+)", r"\\cdot 10^{\1}", text) for text in (gold, answer)]
    return float(worker.run(CHECK % json.dumps(json.dumps(texts))) == ("True", "ok"))
