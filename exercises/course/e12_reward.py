"""Exercise 12: the reward, and what it pays for."""

from exercises.course.exercise import Exercise, Mistake
from exercises.patches import Blank


def cases(rng):
    """Paths: the calls with the outcome of each, the answer's accuracy, whether it is well formed, and the bonus."""
    bonus = lambda: round(rng.uniform(0.05, 0.3), 2)
    both, one = [["search", "ok"], ["python", "ok"]], [["python", "ok"]] * rng.randint(1, 3)
    failed = [["search", "ok"], ["python", rng.choice(["error", "timeout", "crash"])]]
    paths = [[one, 1, True], [both, 1, True], [both, 0, True], [failed, 1, True], [both, 1, False], [both, 0.5, True]]
    return [{"calls": calls, "accuracy": score, "formed": formed, "bonus": bonus()} for calls, score, formed in paths]


def expected(case):
    """By a list of cases, as one would tell it to a person."""
    if not case["formed"]:
        return -1.0
    if case["accuracy"] < 1:
        return case["accuracy"]
    worked = [tool for tool, outcome in case["calls"] if outcome == "ok"]
    return 1.0 + case["bonus"] if "search" in worked and "python" in worked else 1.0


def probe(case):
    from data import Question
    from data.format import ToolCall, ToolResult
    from eval import score_leaves
    from rollout import Node, Tree

    class Characters:  # a tokenizer: one token a character
        def decode(self, ids):
            return "".join(map(chr, ids))

    encode = lambda text: list(map(ord, text))
    nodes = []
    for n, (tool, outcome) in enumerate(case["calls"]):
        ids = encode(f"<think>so</think><{tool}>7</{tool}>")
        told = dict(call=ToolCall(tool, "7"), result=ToolResult("7", outcome), observation=encode("<answer>7</answer>"))
        nodes.append(Node(ids, [-1.0] * len(ids), [1.0] * len(ids), "call", parent=n - 1, **told))
    answer = {1: "river bank", 0.5: "river boat", 0: "town"}[case["accuracy"]]
    ids = encode(f"<answer>{answer}</answer>" if case["formed"] else f"it is {answer}") + [3]
    nodes.append(Node(ids, [-1.0] * len(ids), [1.0] * len(ids), "end", parent=len(nodes) - 1))
    (score,) = score_leaves(
        Tree([1], nodes), Question("q", "where?", ("river bank",), metric="f1"), Characters(), case["bonus"]
    )
    return score.reward


PAID = 'accuracy > 0.5 and {"search", "python"} <= tools_run'

EXERCISE = Exercise(
    number=12,
    title="The reward",
    minutes=20,
    core=False,
    task="Set `worked`, the tools of the path's calls that ended well. And return the reward: -1 for a wrong format; "
    "else "
    "the accuracy, and `bonus` more if it is above 0.5 and search and Python both worked.",
    idea="A policy learns what is paid, not what is meant: a bonus must be earned by what it is to reward.",
    misconception="a reward says what you mean",
    question="How would a policy earn the bonus without any use of the tools? Which line prevents it?",
    answer="By writing tags, or calls that fail. Only calls that ended well count, and only beside a right answer.",
    blanks=(Blank("eval.py", "score_leaves", "worked ="), Blank("data/grading.py", "hierarchical_reward", "")),
    asks=(
        "exercise 12: set worked, the names of the tools of which a call on the path ended well (node.call.tool, "
        "node.result.outcome)",
        "exercise 12: return the reward",
    ),
    modules=("data.grading", "eval"),
    hints=(
        'A node without a call has no result. The outcome of a call that ended well is "ok".',
        "A set is part of another: {1, 2} <= {1, 2, 3}.",
    ),
    mistakes=(
        Mistake(
            "calls that failed",
            'worked = {node.call.tool for node in nodes if node.result and node.result.outcome == "ok"}',
            "worked = {node.call.tool for node in nodes if node.result}",
            "You pay for calls that failed: an empty Python call that raises an error earns the bonus. The released "
            "code "
            "goes further and pays for the tags.",
            "eval.py",
        ),
        Mistake(
            "a bonus without a right answer",
            PAID,
            '{"search", "python"} <= tools_run',
            "You pay the bonus for a wrong answer, too: two useless calls beat an honest failure.",
            "data/grading.py",
        ),
        Mistake(
            "a bonus at half an accuracy",
            "accuracy > 0.5 and",
            "accuracy > 0 and",
            "You pay the bonus at an accuracy of 0.5 or less. The paper says above 0, but a common word is enough for "
            "that, and the calls alone would be paid; above 0.5 is asked for here.",
            "data/grading.py",
        ),
        Mistake(
            "one tool is enough",
            PAID,
            'accuracy > 0.5 and bool({"search", "python"} & tools_run)',
            "You pay for either tool. Most questions need one anyway, so the bonus says nothing.",
            "data/grading.py",
        ),
        Mistake(
            "a wrong format costs nothing",
            "        return -1.0\n    return accuracy + bonus",
            "        return 0.0\n    return accuracy + bonus",
            "A wrong format earns 0 in yours, as a wrong answer does: nothing keeps the policy readable.",
            "data/grading.py",
        ),
        Mistake(
            "the bonus alone",
            "return accuracy + bonus *",
            "return accuracy * bonus *",
            "You multiplied where the bonus is added: a right answer without it must earn 1.",
            "data/grading.py",
        ),
    ),
)
