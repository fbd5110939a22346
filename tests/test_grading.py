"""The graders against the verdict of a mathematician or a librarian, and against answers that want to be paid."""

import time
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from conftest import ScriptedSampler, grow

from data import Question
from data import grading as grading_module
from data.format import ToolResult, encode_result, system_prompt
from data.grading import METRICS, accuracy, exact_match, f1, hierarchical_reward, math_equal, overlong_penalty
from eval import score_leaves

# fmt: off
TEXTS = [  # answer, accepted answer, verdict of exact match
    ("-3", "3", 0), ("3", "-3", 0), ("−3", "-3", 1), ("1,200", "1200", 1), ("1200.0", "1,200", 1), ("3.14", "314", 0),
    ("1712.0", "1712", 1), ("42 coins", "42", 0), ("2 million", "2,000,000", 1), ("120,000", "120 thousand", 1),
    ("033", "33", 1), ("½", "0.5", 1), ("1e3", "1000", 1), ("1e999999999", "1e999999998", 0), ("nan", "nan", 1),
    ("$7", "7.", 1), ("4343_6", "43436", 0), ("195 m", "1.95 m", 0), ("1.95 m", "1.95 m.", 1), ("5 °C", "-5 °C", 0),
    ("1939–1945", "1939-1945", 1), ("19th", "19", 0), ("two", "2", 0), ("2024-10-27", "2024-10-28", 0),
    ("The Belmor!", "belmor", 1), ("a Belmor", "Belmor", 1), ("Belmor of Arden", "Belmor", 0), ("The Who", "Who", 1),
    ("A", "A", 1), ("B", "A", 0), ("a", "the", 0), ("The", "the", 1), ("Beyoncé", "Beyonce", 1),
    ("Straße", "STRASSE", 1),
    ("Sancho Ramirez", "Sancho Ramírez", 1), ("İstanbul", "istanbul", 1), ("ガス", "カス", 0), ("肖亮。", "肖亮", 1),
    ("Washington D.C.", "washington dc", 1), ("“Border Law”", "Border Law", 1),
    ("Parkinsons disease", "Parkinson's disease", 1),
    ("yes", "Yes.", 1), ("no", "yes", 0), ("yes or no", "yes", 0), ("", "", 0), ("  ", "x", 0), ("...", "", 0),
    (r"\boxed{Bell Labs}", "Bell Labs", 1), (r"\boxed{}", "Bell Labs", 0), (r"\boxed{a} \boxed{b}", "b", 0),
    ("x" * 100_000, "x", 0), ("0" * 100_000, "0", 0), ("\x00", "a", 0),
]
NUMBERS = [  # answer, accepted answer, mathematician's verdict; these never need the worker
    ("-3", "3", 0), ("4", "5", 0), ("15.", "15", 1), ("1.2e3", "1200", 1), ("-0", "0", 1), ("", "5", 0), ("5", "", 0),
    (r"\frac{1}{2}", "0.5", 1), (r"\frac12", "1/2", 1), (r"\dfrac{1}{2}", r"\frac{2}{4}", 1), (r"\frac 43", "4/3", 1),
    (r"\frac{1}{3}", r"\frac{1}{2}", 0), ("0.33333333333", "1/3", 0), (r"- \frac 12", "-0.5", 1), ("1 / 2", "0.5", 1),
    (r"1\frac{4}{5}", r"\frac{9}{5}", 1), ("1 4/5", "1.8", 1), (r"-2\frac{1}{2}", "-2.5", 1), (r"2\frac{1}{2}", "1", 0),
    (r"\frac{1}{0}", r"\frac{1}{0}", 1), ("10080", r"10,\!080", 1), ("11111111100", r"11,\! 111,\! 111,\! 100", 1),
    ("1,234,567", "1234567", 1), ("1 000 000", "1000000", 1), (r"10\,080", "10080", 1), ("1{,}200", "1200", 1),
    ("32348", r"\$32,\!348", 1), ("$18.9", r"\$18.90", 1), ("18.90 dollars", r"\$18.90", 1), ("6.6", "6.60", 1),
    (r"50\%", "0.5", 1), ("50%", r"50\%", 1), ("50", r"50\%", 1), ("35 percent", "35", 1), ("0.35", r"35\%", 1),
    (r"0.5\%", "0.5", 0), (r"3.5\%", r"35\%", 0), (r"33\frac{1}{3}\%", "1/3", 1), ("5%", "6%", 0),
    (r"90^\circ", "90", 1), (r"90^{\circ}", "90 degrees", 1), ("90°", r"90^\circ", 1), (r"91^\circ", r"90^\circ", 0),
    ("5 m/s", r"5 \text{ m/s}", 1), ("5 m/s", "5 km/h", 0), ("5 m", "5", 1), ("5 metres", "5 m", 1),
    ("5cm", "5 centimeters", 1),
    ("864", r"864 \mbox{ inches}^2", 1), ("864 square inches", r"864 \mbox{ inches}^2", 1),
    ("864 inches", r"864 \mbox{ inches}^2", 0), (r"15\text{ cm}^3", r"15\mbox{ cm}^2", 0),
    ("7 miles", "7 hours", 0),
    (r"\frac{270}{7}", r"\frac{270}7\text{ degrees}", 1), ("12 million", r"12 \text{ million}", 1),
    ("2 million", "2", 0),
    (r"\text{Evelyn}", "evelyn", 1), ("seat", r"\text{east}", 0), ("odd", r"\text{even}", 0), ("false", "False", 1),
    (r"\text{(C)}", "C", 1), ("A", "A", 1), (r"\boxed{A}", "A", 1), ("no solution", r"\emptyset", 1),
    ("The answer is 5", "5", 1),
    (r"The final answer is \boxed{5}.", "5", 1), ("1e999999999", "1e999999999", 1), ("1e400", "1e401", 0),
    (r"\left(3,4\right]", "(3,4]", 1), (r"$x^2$", "x^2", 1), ("033", "33", 1), ("11", r"\boxed{11}", 1),
    (r"\boxed{3} \boxed{5}", "5", 0), (r"\boxed{}", "5", 0), (r"\boxed{answer here}", "answer there", 0),
    ("5" + " " * 900, "5", 1), ("(" * 3000, "5", 0), ("1 " * 5000, "5", 0),
]
FORMULAS = [  # the same for what math-verify decides
    ("x+1", "1+x", 1), (r"0\le x", r"[0,\infty)", 1), (r"x\ge 0", r"[0,\infty)", 1), (r"[0,\infty)", r"x\ge 0", 1),
    ("i", r"\sqrt{-1}", 1), ("i", "-i", 0), ("-5i+6", "6 - 5i", 1), ("0.5i", r"\frac{i}{2}", 1),
    ("3, 4, 5", "3", 0), ("3,4,5", "5,4,3", 1), ("3 or 4", "4", 0), ("3 or -3", r"\pm 3", 1), ("(1,2)", "(2,1)", 0),
    (r"\{1,2\}", r"\{2,1\}", 1), (r"\{1,2\}", r"\{1,3\}", 0), (r"2 \text{ or } 3", "2, 3", 1),
    ("x = 3 or x = -3", "-3, 3", 1), ("x=5", "5", 1), ("5", "x=5", 1), (r"x \in [-2,7]", "[-2,7]", 1),
    ("(-2,7)", "[-2,7]", 0), (r"(12,102)\cup(2,12)", r"(2,12) \cup (12,102)", 1), ("-2<m<3", "(-2,3)", 1),
    (r"-6+3\sqrt3", r"3\sqrt{3} - 6", 1), (r"\sqrt{27}-6", r"3\sqrt{3} - 6", 1), (r"3\sqrt{3}", r"2\sqrt{3}", 0),
    (r"1+\sqrt{19}, 1-\sqrt{19}", r"1 \pm \sqrt{19}", 1), ("ab+2a+5b+10", "(a+5)(b+2)", 1), ("ba", "ab", 1),
    (r"\begin{pmatrix} -\frac13 \\ \frac23 \end{pmatrix}", r"\begin{pmatrix} -1/3 \\ 2/3 \end{pmatrix}", 1),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix} 2 \\ 1 \end{pmatrix}", 0),
    ("y=3+2x", "y = 2x + 3", 1), ("y = 2x - 3", "y = 2x + 3", 0), ("10x-14y+8=0", "5x - 7y + 4 = 0", 1),
    (r"20000/\pi", r"\frac{20000}{\pi}", 1), ("3.14", r"\pi", 0), ("3.14159265", r"\pi", 0), (r"\infty", r"-\infty", 0),
    ("6402373705728000", "18!", 1), ("1024", "2^{10}", 1), ("1e100", "10^{100}", 1), ("3", r"\log_2 8", 1),
    (r"\frac{\cos x}{\sin x}", r"\cot x", 1), (r"\tan x", r"\cot x", 0), (r"120^\circ", r"\frac{2\pi}{3}", 1),
    ("5m", "5", 0), (r"\sqrt{x^2}", "x", 0), ("4210_5", "4210_{5}", 1), ("12_8", "128", 0), ("0,333", "333", 0),
    ("B", r"\text{(C)}", 0), ("D", r"D: 2\sqrt{3}", 1), (r"2\sqrt{3}", r"D: 2\sqrt{3}", 1),
    (r"\sqrt{3}", r"D: 2\sqrt{3}", 0),
    ("{{{{{", "5", 0), ("I do not know", "5", 0),
    ("2√3", r"2\sqrt{3}", 1), ("π/2", r"\frac{\pi}{2}", 1), ("x² − 1", "(x-1)(x+1)", 1),
    ("x ≥ 2", r"[2,\infty)", 1),
    ("2*sqrt(3)", r"2\sqrt{3}", 1), ("sqrt(10 - 2*sqrt(5))/4", r"\frac{\sqrt{10-2\sqrt5}}{4}", 1),
    ("x**10", "x^{10}", 1),
    ("-1/2 + sqrt(3)*I/2", r"\frac{-1+i\sqrt{3}}{2}", 1), ("5 log x", "5", 0), ("5 log x", r"5\log x", 1),
    ("2*pi", r"2\pi", 1), ("(-oo, 2)", "(-2, 2)", 0), ("D, C, A", "ACD", 1), ("AC", "ACD", 0), (r"2^{10}", "2^9", 0),
    ("__import__('os')._exit(0)", "5", 0), ('"]); print("True"); (["', "5", 0), ("🙂\ud800\x00", "5", 0),
]
# fmt: on


@pytest.mark.parametrize("answer, gold, verdict", TEXTS)
def test_exact_match(answer, gold, verdict):
    assert exact_match(answer, [gold]) == verdict


@pytest.mark.parametrize("answer, gold, verdict", NUMBERS)
def test_numbers_and_words_need_no_worker(answer, gold, verdict, monkeypatch):
    """Ledger: the released reward is token F1, under which -3 equals 3 and A against A scores 0."""
    monkeypatch.setattr(grading_module, "_worker", lambda: pytest.fail("the worker was asked"))
    assert math_equal(answer, [gold]) == verdict


@pytest.mark.parametrize("answer, gold, verdict", FORMULAS)
def test_formulas(answer, gold, verdict):
    assert math_equal(answer, [gold]) == verdict


READER = [  # answer, accepted answer, metric, verdict of a careful reader
    # units are a list, not any word
    ("5 wrong", "5", "math", 0), ("5 squared", "5", "math", 0), ("5 cubed", "5", "math", 0), ("5 not", "5", "math", 0),
    (r"5 \text{wrong}", "5", "math", 0), ("5 is wrong", "5", "math", 0), ("5", "5 squared", "math", 0),
    ("5 hundred", "5", "math", 0), ("5", "5 hundred", "math", 0), ("5 hundred", "500", "math", 1),
    ("5 dozen", "60", "em", 1), ("5 min", "5 minutes", "math", 1), ("5 min", "5 m", "math", 0),
    ("5 mm", "5 m", "math", 0),
    ("5 lbs", "5 pounds", "math", 1), ("5 mph", "5 miles per hour", "math", 1), ("5 sq ft", "5 ft^2", "math", 1),
    ("5 m/s", r"5 \text{ m/s}^2", "math", 0), (r"36\pi", r"36\pi \text{ square inches}", "math", 1),
    ("5 °C", "5 °F", "math", 0), ("12", r"12 \text{ students}", "math", 1), ("13", r"12 \text{ students}", "math", 0),
    ("5 wrong", "5", "em", 0), ("5 cm", "5", "em", 0),
    # "~" is a space
    (r"5~\text{cm}", "5", "math", 1), ("5 cm", r"5\mathrm{~cm}", "math", 1), ("5", r"5\text{~m}", "math", 1),
    ("5 km/h", r"5\mathrm{~km}/\mathrm{h}", "math", 1), ("5 cm", r"5\mathrm{~cm}^{2}", "math", 0),
    # numbers side by side are not added, multiplied or put together
    ("41 53", "94", "math", 0), (r"41\quad 53", "94", "math", 0), ("41 53", "4153", "math", 0), ("5 6", "5", "math", 0),
    ("41 + 53", "94", "math", 1), ("2 1/2", "2.5", "math", 1), ("41 53/2", "67.5", "math", 0), ("41 53", "94", "em", 0),
    # what announces an answer
    ("= 5", "5", "math", 1), ("= 5", "5", "em", 1), ("x = 5", "5", "em", 1), ("x = 5", "y = 5", "math", 0),
    ("f(x) = 5", "5", "f1", 1), ("The final answer is: 5", "5", "em", 1), ("So the answer is **5**", "5", "math", 1),
    ("Answer: Paris", "Paris", "f1", 1), ("Answer: Rome", "Paris", "em", 0), ("The answer is: 6", "5", "em", 0),
    # money
    ("€5", "5", "em", 1), ("€5", "5", "math", 1), ("$5", "5", "math", 1), ("5 €", "€5", "em", 1), ("€5", "$5", "em", 0),
    ("£5", r"\$5", "math", 0), ("US$5", "5 dollars", "math", 1), ("€5 million", "5,000,000", "em", 1),
    # spaces that nobody sees
    ("\u200b5", "5", "em", 1), ("5\ufeff", "5", "math", 1), ("1\u2009200", "1200", "em", 1), ("\u200b", "a", "em", 0),
    ("Pa\u00adris", "Paris", "em", 1), ("5\u202fcm", "5", "math", 1),
    # marks: of European letters they are folded, of other scripts they are vowels
    ("मुंबई", "मंबई", "em", 0), ("दिल", "दल", "f1", 0), ("ไก่", "ไก", "em", 0), ("மா", "ம", "f1", 0), ("সি", "সা", "em", 0),
    ("كِتاب", "كُتاب", "em", 0), ("שָׁלוֹם", "שִׁלוֹם", "em", 0), ("край", "краи", "em", 0), ("Пу́тин", "Путин", "em", 1),
    ("Łódź", "Lodz", "em", 1), ("Nguyễn", "Nguyen", "f1", 1), ("10²", "102", "em", 0), ("हिन्दी।", "हिन्दी", "em", 1),
    # boxes, bases, signs
    (r"\boxed{\boxed{42}}", "42", "math", 1), (r"\boxed{41}\boxed{42}", "42", "em", 0), ("12_8", "12", "math", 0),
    ("－3", "-3", "math", 1), (r"\(5\)", "5", "em", 1),
]  # fmt: skip


@pytest.mark.parametrize("answer, gold, metric, verdict", READER)
def test_a_careful_reader_agrees(answer, gold, metric, verdict):
    assert METRICS[metric](answer, [gold]) == verdict


def test_a_hostile_answer_does_not_keep_the_next_one_waiting():
    """Guards: one worker, which a tower of powers held for 2 s of CPU time, and on a busy machine for 6 s."""
    math_equal("x+8", ["8+x"])  # both workers have started
    finished = []
    with ThreadPoolExecutor(2) as pool:
        for answer, gold in (("8^{8^{8^8}}", "x+8"), ("x+9", "9+x")):
            pool.submit(math_equal, answer, [gold]).add_done_callback(lambda _, answer=answer: finished.append(answer))
            time.sleep(0.3)
    assert finished == ["x+9", "8^{8^{8^8}}"]


@pytest.mark.parametrize("bomb", ["9^{9^{9^9}}", pytest.param("10000000!", marks=pytest.mark.slow), "((" * 400])
def test_a_hostile_answer_costs_two_seconds_in_any_thread(bomb):
    """Guards: math-verify's own limits are signals, which raise in a thread; without them it never ends."""
    started = time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        verdicts = list(pool.map(lambda answer: math_equal(answer, ["x+7"]), [bomb, "7+x"]))
    assert verdicts == [0, 1] and time.monotonic() - started < 30


@pytest.mark.parametrize(
    "answer, golds, score",
    [
        ("Ann Rusk", ["Ann Rusk of Arden"], 2 * 2 / (2 + 4)),
        ("yes it is", ["yes"], 0), ("yes", ["yes"], 1), ("A", ["A"], 1), ("", [""], 0), ("b", [], 0),
        ("NYC", ["New York City", "NYC"], 1), ("-3", ["3"], 0), ("3.0", ["3"], 1), ("195 m", ["1.95 m"], 0.5),
        ("截止日期为2024年10月27日", ["2024年10月27日"], 2 * 6 / (6 + 11)), ("a the an", ["the cat"], 0),
        ("cat cat cat cat", ["cat dog"], 2 * 1 / (4 + 2)), (r"\boxed{cat}", ["cat dog"], 2 / 3),
    ],
)  # fmt: skip
def test_f1_worked_by_hand(answer, golds, score):
    assert f1(answer, golds) == pytest.approx(score)


def test_the_reward_is_hierarchical():
    """Ledger: the released bonus looks for closing tags anywhere, even inside thoughts."""
    assert hierarchical_reward(1.0, False, {"search", "python"}) == -1
    assert hierarchical_reward(0.0, True, {"search", "python"}) == 0
    assert hierarchical_reward(1.0, True, {"search"}) == 1
    assert hierarchical_reward(0.6, True, {"search", "python"}) == pytest.approx(0.7)
    of = f1("of", ["University of Oxford"])  # a word that says nothing does not buy the bonus
    assert hierarchical_reward(of, True, {"search", "python"}) == of == 0.5
    assert accuracy(Question("q", "unanswered", ()), "5") == 0


def test_overlong_penalty_worked_by_hand():
    """DAPO: nothing up to L_max - L_cache, then down to -1 at L_max."""
    assert [overlong_penalty(n, 100, 20) for n in (50, 80, 90, 100, 130)] == [0, 0, -0.5, -1, -1]


class Fixed:
    """Every call comes to the same text, as a page that the policy found might."""

    def __init__(self, text, outcome="ok"):
        self.result = ToolResult(text, outcome)

    def submit(self, call):
        future = Future()
        future.set_result(self.result)
        return future


CALLS = ["<search>x</search>", "<python>1</python>"]


@pytest.mark.parametrize(
    "turns, tools, reward",
    [
        (["<answer>7</answer><|end|>"], Fixed("7"), 1),
        ([*CALLS, "<answer>7</answer><|end|>"], Fixed("7"), 1.1),
        # a result that contains the answer, or tags that would break the format
        ([CALLS[0], "<|end|>"], Fixed("<answer>7</answer><|end|>"), -1),
        ([CALLS[0], "<answer>8</answer><|end|>"], Fixed("</result><answer>7</answer>"), 0),
        ([CALLS[0], "<answer>7</answer><|end|>"], Fixed("<think>"), 1),
        # tools that are only written about, fail, or do not exist
        (["<think></search></python></think><answer>7</answer><|end|>"], Fixed("7"), -1),
        (["<think>search, python</think><answer>7</answer><|end|>"], Fixed("7"), 1),
        ([*CALLS, "<answer>7</answer><|end|>"], Fixed("Error: the tool search is not available.", "error"), 1),
        # several answers, answers inside thoughts, no answer, text after it, results of one's own
        (["<answer>6</answer><answer>7</answer><|end|>"], Fixed("7"), -1),
        (["<answer>6 or 7</answer><|end|>"], Fixed("7"), 0),
        ([r"<answer>\boxed{6}\boxed{7}</answer><|end|>"], Fixed("7"), 0),
        (["<think><answer>7</answer></think><answer>6</answer><|end|>"], Fixed("7"), -1),
        (["<think><answer>7</answer></think><|end|>"], Fixed("7"), -1),
        (["<answer> </answer><|end|>"], Fixed("7"), -1),
        ([r"<answer>\boxed{}</answer><|end|>"], Fixed("7"), 0),
        (["<answer>7</answer> 8<|end|>"], Fixed("7"), -1),
        (["<result>7</result><answer>7</answer><|end|>"], Fixed("7"), -1),
        # the prompt's own example
        (["<answer>the answer alone</answer><|end|>"], Fixed("7"), 0),
        (["<think>The computation gives the answer.</think><answer>240</answer><|end|>"], Fixed("7"), 0),
    ],
)
def test_nothing_is_paid_but_right_answers_and_tools_that_worked(tokenizer, turns, tools, reward):
    sampler = ScriptedSampler(tokenizer, lambda key, calls: (turns[calls], 1.0))
    limits = dict(num_generations=1, num_initial=1, max_completion_length=900, max_turn_tokens=300)
    (tree,) = grow(sampler, ["7?"], tools=tools, **limits)
    for metric in ("em", "f1", "math"):
        (score,) = score_leaves(tree, Question("q", "7?", ("7",), metric=metric), tokenizer)
        assert score.reward == pytest.approx(reward), metric


def test_the_example_cannot_be_copied_whole(tokenizer):
    example = system_prompt().split("Example:\n")[1] + "<|end|>"
    sampler = ScriptedSampler(tokenizer, lambda key, calls: (example, 1.0))
    limits = dict(num_generations=1, num_initial=1, max_completion_length=900, max_turn_tokens=900)
    (tree,) = grow(sampler, ["240?"], tools=Fixed("7"), **limits)
    assert score_leaves(tree, Question("q", "240?", ("240",)), tokenizer)[0].reward == -1
    assert "<answer>" not in tokenizer.decode(encode_result(tokenizer, "<answer>240</answer>", 99))


def test_a_grader_that_does_not_run_is_no_verdict(monkeypatch):
    """Guards: an environment in which math-verify cannot be imported, where every formula would be wrong in silence."""
    monkeypatch.setattr(grading_module, "CHECK", "import no_such_module; %s")
    grading_module._worker.cache_clear()
    grading_module._verified.cache_clear()
    try:
        with pytest.raises(OSError, match="^answers cannot be graded: math-verify does not run in the sandbox"):
            math_equal("x+1", ["1+x"])
    finally:
        grading_module._worker.cache_clear()


@pytest.mark.parametrize(
    "answer, gold, right",
    [
        ("17", "17", 1), ("$17.0", "17", 1), ("17 %", "17", 1), ("1,700", "1700", 1), ("seventeen", "17", 0),
        ("17 km", "17", 0), ("-3", "3", 0), ("the 17", "17", 0), (r"So \boxed{17}", "17", 1),
        ("St. Petersburg", "saint petersburg", 0), ("st petersburg!", "St. Petersburg", 1),
        ("SeaGull", "sea gull", 1),
        ("a seagull", "seagull", 0), ("b, a", "a, b", 0), ("A,b", "a, b", 1), ("a; b", "a, b", 1),
        ("a, b, c", "a, b", 0),
        ("a, $2.0", "a, 2", 1), ("a., 2", "a, 2", 0), ("17000", "17,000", 0), ("17, 0", "17,000", 1), ("", "x", 0),
    ],
)  # fmt: skip
def test_gaia_is_compared_by_its_own_rule(answer, gold, right):
    """Guards: a text that is near enough elsewhere; a comma in a gold makes a list of it, even of a number."""
    assert METRICS["gaia"](answer, [gold]) == right
