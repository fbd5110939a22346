r"""How good an answer is: exact match, token F1, equality of mathematics, and ARPO's hierarchical reward.

Texts are compared as SQuAD and HotpotQA do (lower case, no punctuation, no articles), after the accents of
European letters are folded; other scripts keep their vowel signs, and numbers their points and minus signs. A
gold answer that is a number is compared as a number by all three: that normalisation alone would make -3 equal
to 3, and 3.14 equal to 314. What only announces an answer ("The answer is:", "x =") may stand before it.
Mathematics is decided here where both sides are numbers or words, with or without a unit out of UNITS; the rest
by math-verify, in confined workers with 2 s of CPU time, because a few characters of LaTeX can keep it busy for
ever. Left out: judging by another language model, and converting units.
"""

import functools
import json
import re
import threading
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from fractions import Fraction

from data import Question
from sandbox import NO_WORKER, PythonSandbox

CLOSED_ANSWERS = {"yes", "no", "noanswer"}  # share no credit with a longer text that contains them
PUNCTUATION = re.compile(r"(?!(?<=\d)\.\d)(?!(?<!\w)-\d)[^\w\s]|_")  # but the point in 3.14 and the sign of -3
SIGNS = str.maketrans(dict(zip("−–－⁄łøđı", "---/lodi")) | {"½": " 1/2", "¼": " 1/4", "¾": " 3/4"})
# After a Latin or Greek letter; and the stress and the dots of Cyrillic vowels, but not the breve that makes й of и.
ACCENTS = re.compile("(?<=[a-z\u00df-\u024f\u0370-\u03ff])[\u0300-\u036f]+|(?<=[аеиоуыэюя])[\u0300\u0301\u0308]")
RAISED = re.compile(r"(?<=\d)[²³¹⁰⁴-⁹]")  # 10² is not 102
THOUSANDS = re.compile(r"(?<![\d.,])[1-9]\d{0,2}([, ])\d{3}(?:\1\d{3})*(?![\d,])")
SCALES = {"dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
ANNOUNCED = re.compile(  # "So the final answer is: ", "x = ", "f(x) = ", "= "
    r"(?i)^(?:(?:so|thus|hence|therefore),? )?(?:(?:the )?(?:final |correct )?(?:answer|result)(?: is\b:?|:| ?=) ?)+"
    r"|^(?:[a-z](?:\([a-z]\))? ?)?= ?"
)


def exact_match(answer: str, golds: Iterable[str]) -> float:
    return _best(_exact, answer, golds)


def f1(answer: str, golds: Iterable[str]) -> float:
    return _best(_f1, answer, golds)


def math_equal(answer: str, golds: Iterable[str]) -> float:
    return _best(_math, answer, golds)


def gaia(answer: str, golds: Iterable[str]) -> float:
    """GAIA's own rule: a number, a list or a text by what the gold is; units and what announces an answer are wrong."""
    answer = unboxed(_visible(answer))
    return max((float(_gaia(answer, gold)) for gold in golds if answer), default=0.0)


METRICS = {"em": exact_match, "f1": f1, "math": math_equal, "gaia": gaia}


def accuracy(question: Question, answer: str) -> float:
    """Between 0 and 1; an empty answer earns nothing, whatever the gold."""
    return METRICS[question.metric](answer, question.answers)


def hierarchical_reward(accuracy: float, well_formed: bool, tools_run: set[str], bonus: float = 0.1) -> float:
    """-1 for a wrong format; else the accuracy, plus a bonus if it is above 0.5 and both tools were really run.

    The paper says above 0. But under token F1 the one word "of" is above 0 for every gold that has it, up to 0.5 for
    "University of Oxford": it would be paid for the calls alone.
    """
    if not well_formed:
        return -1.0
    return accuracy + bonus * (accuracy > 0.5 and {"search", "python"} <= tools_run)


def overlong_penalty(tokens: int, max_length: int, buffer: int) -> float:
    """DAPO's soft overlong punishment (arXiv 2503.14476, eq. 13): 0 to -1 over the last `buffer` tokens."""
    return min(0.0, max(-1.0, (max_length - buffer - tokens) / buffer))


def _best(grade: Callable[[str, str], float], answer: str, golds: Iterable[str]) -> float:
    """The grade against the gold that fits best, as it stands or without its announcement.

    Two boxes are two answers, and so none; but a box in a box is one.
    """
    answer = re.sub(r"(?:\\boxed\s*\{\s*)+", r"\\boxed{", _visible(answer))
    answer = unboxed(answer) if answer.count(r"\boxed") < 2 else ""
    golds = (unboxed(_visible(gold)) for gold in golds)
    return max((_announced(grade, answer, gold) for gold in golds if answer and gold), default=0.0)


def _announced(grade: Callable[[str, str], float], answer: str, gold: str) -> float:
    """The better grade of an answer and of what it announces. "x = 5" is 5, but "x = 5" is no "y = 5"."""
    bare = re.sub(r"^(\*\*|`)(.*)\1$", r"\2", ANNOUNCED.sub("", answer).strip())
    return max(grade(text, gold) for text in {answer, bare} if text and (text == answer or "=" not in gold))


def _visible(text: str) -> str:
    """Without zero-width spaces, joiners, byte order marks and the like."""
    return text if text.isascii() else "".join(char for char in text if unicodedata.category(char) != "Cf").strip()


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
    text, unit = _split_unit(tidy(text))
    head, _, scale = text.rpartition(" ")
    if unit and unit not in MONEY:
        return None
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
        if mixed is None:
            return Fraction(text)
        whole, part = Fraction(mixed[1] + mixed[2]), Fraction(mixed[1] + mixed[3])
        return whole + part if abs(part) < 1 else None  # 41 53/2 is no number
    except (ValueError, ZeroDivisionError):
        return None


def normalize(text: str) -> str:
    """Words that can be compared: lower case, no accents, punctuation or articles; a Chinese character is a word."""
    lower = RAISED.sub(r" \g<0>", text.casefold().translate(SIGNS))
    unaccented = unicodedata.normalize("NFC", ACCENTS.sub("", unicodedata.normalize("NFKD", lower)))
    plain = PUNCTUATION.sub(lambda char: char[0] if unicodedata.category(char[0])[0] == "M" else "", unaccented)
    spaced = re.sub("([\u3040-\u30ff\u3400-\u9fff])", r" \1 ", plain)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", spaced).split())


def _exact(answer: str, gold: str) -> float:
    number = as_number(gold)
    if number is not None:
        currencies = {_split_unit(tidy(text))[1] for text in (answer[:100], gold)} - {""}
        return float(as_number(answer) == number and len(currencies) < 2)
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


def _gaia(answer: str, gold: str) -> bool:
    """A gold of several parts wants as many, in order; there signs count, and in a text of one part they do not."""
    if as_float(gold) is not None:
        return as_float(re.sub("[$%,]", "", answer)) == as_float(gold)
    plain = lambda text: "".join(text.split()).lower()
    if not re.search("[,;]", gold):
        bare = lambda text: re.sub(r"[^\w\s]|_", "", plain(text))
        return bare(answer) == bare(gold)
    parts, given = (re.split("[,;]", text) for text in (gold, answer))
    same = lambda a, g: plain(a) == plain(g) if as_float(g) is None else as_float(re.sub("[$%]", "", a)) == as_float(g)
    return len(parts) == len(given) and all(map(same, given, parts))


def as_float(text: str) -> float | None:
    """What Python reads as a number; with a comma in it that is none, but a list in GAIA."""
    with suppress(ValueError):
        return float(text)


MONEY = {"dollar", "cent", "euro", "pound", "yen", "rupee"}
# The spellings of each unit, its name first; an "s" may follow. One letter counts only after a space: 5m is a product.
UNITS = """
meter metre m; decimeter decimetre dm; centimeter centimetre cm; millimeter millimetre mm; kilometer kilometre km
inch inches in; foot feet ft; yard yd; mile mi; acre; hectare ha; liter litre l L; milliliter millilitre ml; quart; pint
gallon gal; gram gramme g; milligram mg; kilogram kg; ton tonne; pound lb gbp; ounce oz; second sec s; minute min
hour hr h; day; week; month; year yr; decade; century centuries; dollar usd; cent; euro eur; yen jpy; rupee inr
degree deg; celsius degreesc degreescelsius; fahrenheit degreesf degreesfahrenheit; kelvin K; radian rad; unit
bit; byte; hertz hz; newton N; joule J; watt W; volt V; pascal pa; mole mol; mile/hour mph; kilometer/hour kmh kph; knot
"""
UNITS = {word: line.split()[0] for line in re.split("[;\n]", UNITS.strip()) for word in line.split()}
UNIT = re.compile(rf"(.*(?:[\d}})]|\\pi|{'|'.join(SCALES)}))( *)(%|[a-zA-Z][a-zA-Z \d./^{{}}-]*)")
SYMBOLS = str.maketrans({
    "π": "pi ", "∞": "infty ", "≤": r"\le ", "≥": r"\ge ", "±": r"\pm ", "∪": r"\cup ", "∈": r"\in ",
    "∅": r"\emptyset ", "²": "^2", "³": "^3", "€": " euro ", "£": " pound ", "¥": " yen ", "₹": " rupee ", "~": " ",
})  # fmt: skip
EMPTY_SETS = {r"\emptyset", r"\varnothing", r"\{\}", "emptyset", "none", "nosolution", "nosolutions"}
# Spacing and sizes, words in formulas, degrees and percent, sentences; then the spelling of Python and of Unicode.
SPELLINGS = [
    (r"^\$(.*)\$$", r"\1"),  # dollars are signs of LaTeX where there are two, and money where there is one
    (r"(?:US ?)?\\\$ ?(?=[+-]?[\d.\\])|^([+-]? ?)(?:US ?)?\$(?=[+-]?[\d.])(?!.*\$)|(?<=\d) ?\\\$$", r"\1 dollar "),
    (r"\\(?:left|right|displaystyle|rm)(?![a-zA-Z])|\\?\$|(?<!\\)\\(?:! ?|[][()])|(?<=\d)\\,(?=\d)", ""),
    (r"(?<!\\)\\(?:[,;: ]|q?quad\b)", " "),
    (r"\\(?:text|mbox|mathrm|textbf|textrm|textit) ?\{([^{}]*)\}", r" \1 "),
    (r"^ *([+-]? *)(dollar|euro|pound|yen|rupee|USD|EUR|GBP) *(?=[+-]?[\d.\\])(.*)$", r"\1\3 \2"),
    (r"\\[dt]frac", r"\\frac"),
    (r"\\%| per ?cent\b", "%"),
    (r" ?\^?(?:°|\\circ|\{\\circ\})", " degrees"),
    (r" +(?:or|and) +", ", "),
    (r"\{,\}", ","),
    (r"\* ?I\b", " i"),
    (r"\*\*", "^"),
    (r"\*|·|×", r" \\cdot "),
    (r"\^(-?\d\d+)", r"^{\1}"),
    (r"√ ?(\w+)", r"sqrt(\1)"),
    (r"√ ?\(", "sqrt("),
    (r"(?<![\\a-zA-Z])(pi|infty|sin|cos|tan|cot|log|ln|exp)(?![a-zA-Z])", r"\\\1 "),
]
# What the parser would add up, skip or cut off: numbers side by side, words, digits in another base.
STRANGE = [re.compile(p) for p in (r"(?<![_^\d])\d+ +\.?(?!\d/\d)\d", r"(?<![\\a-zA-Z])[a-zA-Z]{3,}", r"\d_\{?\d")]
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
    text = re.sub(r"(?<!\d) | (?!\.?\d)", "", text)  # 41 53 is not 4153
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
    counted = re.fullmatch(r"(.*\d) ([a-z]{2,}s|people|children|men|women)", gold)
    if counted and not unit and counted[2].removesuffix("s") not in SCALES:  # what the question asked to count
        gold_value = counted[1]
    number, expected = as_number(value), as_number(gold_value)
    if "%" in (unit, gold_unit) and unit != gold_unit and number is not None and expected is not None:
        percent, plain = (number, expected) if unit == "%" else (expected, number)
        return float(percent == plain * 100 or percent == plain > 1)  # above 1 it can be meant in percent
    if (unit or gold_unit) == "degree" and r"\pi" in value + gold_value:  # one side in radians
        value, gold_value = (rf"({v})\cdot\pi/180" if u else v for v, u in ((value, unit), (gold_value, gold_unit)))
    if unit and gold_unit and unit != gold_unit:
        return 0.0
    if number is not None and expected is not None:
        return float(number == expected)
    if any(strange.search(THOUSANDS.sub("0", value)) and not strange.search(gold_value) for strange in STRANGE):
        return 0.0
    return _verified(value, gold_value)


def _split_unit(text: str) -> tuple[str, str]:
    """A value and the name of its unit, such as "^2inch" or "meter/second"; "" where there is none."""
    match = UNIT.fullmatch(text)
    if not match or (len(match[3]) == 1 and not match[2] and match[3] != "%"):
        return text, ""
    names = ["%"] if match[3] == "%" else [_unit_name(part) for part in re.split(" ?/ ?| per ", match[3])]
    return (match[1], "/".join(names)) if all(names) else (text, "")


def _unit_name(text: str) -> str:
    """Of one unit, its power in front: square inches and inches^2 are ^2inch; "" for any other word."""
    match = re.fullmatch(r"(square |sq\.? ?|cubic |cu\.? )?([a-zA-Z ]+?)\.?(?: ?\^ ?\{?([23])\}?)?", text)
    if match is None:
        return ""
    word = match[2].replace(" ", "")
    word = word if len(word) == 1 else word.lower()
    name = UNITS.get(word) or UNITS.get(word.removesuffix("s"), "")
    power = match[3] or {"s": "2", "c": "3"}.get((match[1] or "")[:1], "")
    return f"^{power}{name}" if name and power else name


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
    # Two: while a hostile formula holds one of them, the next is decided by the other.
    pool = PythonSandbox(workers=2, cpu_seconds=2, preload=("math_verify",), allow_unsafe=True)
    tried = pool.run(CHECK % json.dumps(json.dumps(["x+1", "1+x"])))
    if tried != ("True", "ok"):  # else every formula would be wrong, without a word
        raise OSError(f"answers cannot be graded: math-verify does not run in the sandbox ({tried[0][-200:]!r})")
    return pool


@functools.lru_cache(4096)
def _verified(answer: str, gold: str) -> float:
    """What math-verify says, in any thread; 0 where it fails or takes more than 2 s of CPU time."""
    with _starting:  # two threads must not start two workers
        worker = _worker()
    texts = [re.sub(r"(?<=\d)[eE]([+-]?\d+)", r"\\cdot 10^{\1}", text) for text in (gold, answer)]
    verdict = worker.run(CHECK % json.dumps(json.dumps(texts)))
    if verdict[0].startswith(NO_WORKER):  # not the answer's doing, and not to be remembered
        raise OSError(f"answers cannot be graded: {verdict[0]}")
    return float(verdict == ("True", "ok"))
