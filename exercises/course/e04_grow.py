"""Exercise 4: growing a tree at a result, and from the prompt."""

from exercises.course.exercise import Exercise, Mistake
from exercises.patches import Blank


def cases(rng):
    """A path of two results, new paths at some of them, and what is left of the budget."""
    drawn = []
    for budget, new in ((2, [1]), (5, [2]), (5, [1, 2]), (6, [3, 1])):
        entropy = round(rng.uniform(0.5, 2), 2)
        drawn.append({"budget": budget, "new": new, "initial_entropy": entropy, "tokens": rng.randint(3, 6)})
    return drawn


def expected(case):
    """What is true of the new rows, of their keys, and of the budget."""
    ids, turn, rows = [1, 2], [5] * case["tokens"], []
    for node, new in enumerate(case["new"]):
        ids = [*ids, *turn, 8, 9]
        more = [True, 3 + node, False, len(ids), len(ids) + 20, node + 1]
        rows += [[list(ids), node, z, case["initial_entropy"], *more] for z in range(1, new + 1)]
    rest = case["budget"] - sum(case["new"])
    fresh = [[[1, 2], -1, 1 + sum(case["new"]) + n, None, False, 0, False, 2, 22, 0] for n in range(rest)]
    count = 1 + len(rows) + rest
    told = {"forks": rows, "left": rest, "left while a path goes on": rest}
    return told | {
        "from the prompt": fresh,
        "different keys": count,
        "budget at the end": 0,
        "keys are the same another time": True,
    }


def probe(case):
    import math
    from dataclasses import replace
    from types import SimpleNamespace

    from rollout import GrowingTree, Node, Place, RolloutConfig

    def grow():
        config = RolloutConfig(num_generations=1 + case["budget"], num_initial=1, max_turn_tokens=20)
        tree = GrowingTree([1, 2], "key", 0, config, SimpleNamespace(tokenizer=None, vocab_size=100))
        (row,) = tree.rows
        row.initial_entropy, turn = case["initial_entropy"], [5] * case["tokens"]
        tree.tree.nodes.append(Node(turn, [-1.0] * len(turn), [1.0] * len(turn), "call"))
        row.ids, row.node = row.ids + turn, 0
        for n, new in enumerate(case["new"]):
            row.ids, row.turn_start = [*row.ids, 8, 9], len(row.ids) + 2  # a result
            row.stop_at, row.called = len(row.ids) + 20, (*row.called, "search")
            row.start = replace(row, start=None, rank=0)
            tree.tree.nodes.append(Node(turn, [-1.0] * len(turn), [2.0] * len(turn), "call", parent=n))
            row.ids, row.node, row.source = row.ids + turn, n + 1, 3 + n
            tree._branch(Place(row.start, row, n + 1, 2.0, n), new)
        began = lambda row: None if math.isnan(row.initial_entropy) else row.initial_entropy
        where = lambda row: [row.ids, row.node, row.rank, began(row), row.may_branch, row.source]
        limits = lambda row: [row.start is not None, row.turn_start, row.stop_at, len(row.called)]
        own = lambda rows: [where(row) + limits(row) for row in rows]
        keys, forks, left = {row.key}, [r for r in tree.rows if r is not row], tree.budget
        keys |= {r.key for r in forks}
        tree.fork = lambda: None  # the rule is another exercise
        tree.top_up()
        going_on, tree.budget, tree.rows = tree.budget, left, []  # now all paths have ended
        tree.top_up()
        keys |= {r.key for r in tree.rows}
        fresh = own(tree.rows)
        told = {"forks": own(forks), "left": left, "left while a path goes on": going_on}
        return told | {"from the prompt": fresh, "different keys": len(keys), "budget at the end": tree.budget}, keys

    told, keys = grow()
    return told | {"keys are the same another time": keys == grow()[1]}


EXERCISE = Exercise(
    number=4,
    title="Growing a tree",
    minutes=35,
    core=False,
    task="Start `new` siblings at a place: rows like `start`, with keys of their own, that go on from `ids` behind "
    "`node` "
    "with the ranks 1, 2, …; take them off the budget. And once nothing goes on, start what is left of the budget from "
    "the prompt, as paths that may not fork.",
    idea="A sibling begins right after the result with its path's past and randomness of its own; every tree ends with "
    "M "
    "leaves.",
    misconception="a fork copies a finished turn",
    question="Why may the paths that fill up the budget not fork? What would the tree's size depend on if they did?",
    answer="Their number is what makes every tree have M leaves; if they forked, the budget would be spent again, "
    "and the size depend on what was sampled.",
    blanks=(
        Blank("rollout.py", "GrowingTree._branch", "for z in", "self.budget -="),
        Blank("rollout.py", "GrowingTree.top_up", "if not self.rows:\n            self._start"),
    ),
    asks=(
        "exercise 4: add new rows to self.rows (dataclasses.replace(start, ...) with key, ids, "
        "source=place.row.source, "
        "node and rank), and take them off self.budget",
        "exercise 4: where no row goes on (self.rows is empty), start what is left of the budget from the prompt",
    ),
    modules=("rollout",),
    told="a row of an answer: [ids, node after which it begins, rank, H_initial, may fork, source, is asked again, "
    "where its turn begins, and must end, number of calls so far]",
    hints=(
        "A row's random numbers depend on its key and on the place of the token, and on nothing else.",
        "`start` is the path as it left the result; `place.row` is the same path a turn later. `self._start` starts "
        "paths from the prompt and takes them off the budget.",
    ),
    mistakes=(
        Mistake(
            "behind the next turn",
            'own = dict(key=f"{start.key}/{len(ids)}.{z}", ids=ids, source=place.row.source, node=node, rank=z)',
            'own = dict(key=f"{start.key}/{len(ids)}.{z}", ids=place.row.ids, source=0, node=place.turn, rank=z)',
            "Your siblings begin behind the turn that followed the result: both have the same turn there, so you "
            "forked "
            "after the uncertainty was resolved.",
        ),
        Mistake(
            "the origin's key",
            'key=f"{start.key}/{len(ids)}.{z}"',
            "key=start.key",
            "Your sibling keeps its origin's key: it draws the same numbers and writes the same text. A group of "
            "copies "
            "has no variance, and teaches nothing.",
        ),
        Mistake(
            "one key for all siblings",
            'key=f"{start.key}/{len(ids)}.{z}"',
            'key=f"{start.key}/{len(ids)}"',
            "All siblings of a fork have one key: they draw the same numbers and are copies of each other.",
        ),
        Mistake(
            "a key without the place",
            'key=f"{start.key}/{len(ids)}.{z}"',
            'key=f"{start.key}/{z}"',
            "Your keys do not say where the path forked: the first sibling at its second result draws the same numbers "
            "as that at the first.",
        ),
        Mistake(
            "keys by chance",
            'key=f"{start.key}/{len(ids)}.{z}"',
            "key=f\"{start.key}/{__import__('random').random()}\"",
            "Your keys are drawn by chance, and with them the siblings' tokens: the same seed gives another tree each "
            "time. A key is made of the origin's and of the place.",
        ),
        Mistake(
            "a row without its past",
            "self.rows.append(replace(start, **own))",
            "self.rows.append(Row(**own, turn_start=len(ids), stop_at=self.end, "
            "initial_entropy=start.initial_entropy))",
            "Your sibling is a new row: it has forgotten the calls of its path, or where its turn must end. "
            "`replace(start, ...)` keeps all that is not changed.",
        ),
        Mistake(
            "no top-up",
            "            self._start(self.budget, may_branch=False)",
            "            pass",
            "You left the rest of the budget unspent. Questions that forked little have fewer leaves than M, and weigh "
            "more or less than others.",
        ),
        Mistake(
            "top-up at once",
            "        if not self.rows:\n            self._start",
            "        if True:\n            self._start",
            "You spend the rest of the budget while paths go on: nothing is left for the forks at their later results.",
        ),
        Mistake(
            "a copy of the row that went on",
            "self.rows.append(replace(start, **own))",
            "self.rows.append(replace(place.row, **own))",
            "You copied `place.row`, the path as it went on. It still waits to be asked at this result, so the rule "
            "would be asked there again for each sibling; `start` is the path as it left the result.",
        ),
        Mistake(
            "a fresh H_initial",
            "self.rows.append(replace(start, **own))",
            "self.rows.append(replace(start, **own, initial_entropy=math.nan))",
            "Your siblings forgot H_initial. They share their path's beginning, so they compare with it, too.",
        ),
        Mistake(
            "the top-up may fork",
            "self._start(self.budget, may_branch=False)",
            "self._start(self.budget, may_branch=True)",
            "Your top-up may fork, but there is no budget left for it: the rule would be asked for nothing.",
        ),
        Mistake(
            "forks for free",
            "        self.budget -= new\n",
            "",
            "You did not take the siblings off the budget: the tree ends with more than M leaves.",
        ),
    ),
)
