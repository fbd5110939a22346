"""Exercise 12: the reward, and what it pays for."""

from exercises.course.exercise import Exercise, Mistake
from exercises.patches import Blank


def cases(rng):
    """Paths: the calls with the outcome of each, the answer's accuracy, whether it is well formed, and the bonus."""
    bonus = lambda: round(rng.uniform(0.05, 0.3), 2)
    both, one = [["search", "ok"], ["python", "ok"]], [["python", "ok"]] * rng.randint(1, 3)
    failed = [["search", "ok"], ["python", rng.choice(["error", "timeout", "crash"])]]
    again = [["search", "ok"], ["python", rng.choice(["error", "timeout"])], ["python", "ok"]]
    paths = [[one, 1, True], [both, 1, True], [both, 0, True], [failed, 1, True], [both, 1, False], [both, 0.5, True]]
    mute = [["python", "malformed"], *both]  # a closing tag alone is no call: node.call is None
    paths += [[mute, 1, False], [both, 0.8, True], [again, 1, True], [one, 1, True]]
    drawn = [{"calls": calls, "accuracy": score, "formed": formed, "bonus": bonus()} for calls, score, formed in paths]
    drawn[-1]["beside"] = both  # the calls of another path of the tree
    return drawn


def expected(case):
    """By a list of cases, as one would tell it to a person."""
    if not case["formed"]:
        return -1.0
    worked = [tool for tool, outcome in case["calls"] if outcome == "ok"]
    earned = case["accuracy"] > 0.5 and "search" in worked and "python" in worked
    return case["accuracy"] + case["bonus"] if earned else case["accuracy"]


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

    def add(text, stopped, parent, **told):
        ids = encode(text) + [3] * (stopped == "end")
        nodes.append(Node(ids, [-1.0] * len(ids), [1.0] * len(ids), stopped, parent=parent, **told))
        return len(nodes) - 1

    answer = {1: "river bank", 0.8: "river bank boat", 0.5: "river boat", 0: "town"}[case["accuracy"]]
    for calls in [case[name] for name in ("calls", "beside") if name in case]:
        at = -1
        for tool, outcome in calls:
            call = ToolCall(tool, "7") if outcome != "malformed" else None
            told = dict(call=call, result=ToolResult("7", outcome))
            told["observation"] = encode("<answer>7</answer>")
            at = add(f"<think>so</think>{f'<{tool}>' if call else ''}7</{tool}>", "call", at, **told)
        add(f"<answer>{answer}</answer>" if case["formed"] else f"it is {answer}", "end", at)
    question = Question("q", "where?", ("river bank",), metric="f1")
    return score_leaves(Tree([1], nodes), question, Characters(), case["bonus"])[0].reward


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
    told="calls: of the path, each with its outcome (a malformed one has no node.call); beside: those of another path "
    "of the tree",
    hints=(
        'A node without a call has no result. The outcome of a call that ended well is "ok".',
        "A set is part of another: {1, 2} <= {1, 2, 3}.",
    ),
    mistakes=(
        Mistake(
            "calls that failed",
            'worked = {node.call.tool for node in nodes if node.result and node.result.outcome == "ok"}',
            "worked = {node.call.tool for node in nodes if node.call}",
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
            "one failure forfeits",
            'worked = {node.call.tool for node in nodes if node.result and node.result.outcome == "ok"}',
            "worked = {node.call.tool for node in nodes if node.result} if all("
            'node.result.outcome == "ok" for node in nodes if node.result) else set()',
            "A path on which one call failed gets no bonus in yours, though the next one mended it. Both tools have "
            "worked as soon as a call of each has ended well.",
            "eval.py",
        ),
        Mistake(
            "the tools of the whole tree",
            'worked = {node.call.tool for node in nodes if node.result and node.result.outcome == "ok"}',
            'worked = {node.call.tool for node in tree.nodes if node.result and node.result.outcome == "ok"}',
            "You looked at all nodes of the tree, so a path is paid for what another one did. `nodes` are those of "
            "this path.",
            "eval.py",
        ),
        Mistake(
            "a bonus for a perfect answer alone",
            "accuracy > 0.5 and",
            "accuracy == 1 and",
            "You pay the bonus at an accuracy of 1 alone. It is asked for above 0.5: a right answer with a word too "
            "many is right.",
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
