"""Exercise 2: which entropies are compared, H_initial and H_t."""

from exercises.course.exercise import Exercise, Mistake
from exercises.patches import Blank


def cases(rng):
    drawn = []
    for turns, k in ((1, 3), (2, 2), (3, 3), (4, 2)):
        lengths = rng.sample(range(1, 6), turns)
        lengths[-1] = k - 1  # shorter than what is measured
        lengths[0] = k + 2  # longer
        drawn.append({"k": k, "turns": [[round(rng.uniform(0.1, 3), 2) for _ in range(n)] for n in lengths]})
    return drawn


def expected(case):
    """For each turn: its own entropy, that of the path's first turn, and what the rule sees after a result."""
    own = []
    for turn in case["turns"]:
        total, count = 0.0, 0
        for value in turn:
            if count < case["k"]:
                total, count = total + value, count + 1
        own.append(total / count)
    return [[value, own[0], None if n == 0 else value] for n, value in enumerate(own)]


def probe(case):
    from dataclasses import replace
    from types import SimpleNamespace

    from rollout import GrowingTree, RolloutConfig, Sample

    config = RolloutConfig(num_generations=2, num_initial=1, entropy_tokens=case["k"])
    tree = GrowingTree([1, 2], "key", 0, config, SimpleNamespace(tokenizer=None, vocab_size=100))
    (row,), seen = tree.rows, []
    for turn in case["turns"]:
        tree.sample(row, Sample([7] * len(turn), [-1.0] * len(turn), turn, "call"), 0)
        asked = tree.places[-1].entropy if row.start else None
        seen.append([row.last_entropy, row.initial_entropy, asked])
        row.ids = [*row.ids, 8, 9]  # a tool's result
        row.start = replace(row, start=None)
    return seen


EXERCISE = Exercise(
    number=2,
    title="H_initial and H_t",
    minutes=20,
    core=True,
    task="Set `row.last_entropy`, the mean entropy of the first k tokens of the turn that was just sampled; "
    "`row.initial_entropy`, that of the path's first turn; and `entropy`, H_t, what the branch rule sees. "
    '(`entropy_timing` "before", for which hint 2 has a word, may be left aside.)',
    idea="A jump is measured against the same path's beginning, over the tokens that follow the result.",
    misconception="the entropy after a tool's result is known when the tool returns",
    question="When is H_t of a result known: before the tool runs, when it returns, or a turn later? Why does a fork "
    "wait for it?",
    answer="A turn later: it is the entropy of what the policy writes next. Before that nobody knows whether the "
    "result has unsettled it.",
    blanks=(
        Blank("rollout.py", "GrowingTree.sample", "measured =", "if row.node == PROMPT"),
        Blank("rollout.py", "GrowingTree.sample", "entropy ="),
    ),
    asks=(
        "exercise 2: set row.last_entropy from turn.entropies, and row.initial_entropy (row.node is PROMPT before a "
        "path's first turn is put into the tree)",
        "exercise 2: set entropy, H_t of the result after which this turn was sampled",
    ),
    modules=("rollout",),
    told="turns: the entropies of their tokens; an answer has [the turn's own, H_initial, H_t] for each turn",
    hints=(
        "k is `self.config.entropy_tokens`; a turn may be shorter than that, so divide by how many there are.",
        "`sample` is called once a turn: H_initial must be set at the first one only. H_t is about the turn that was "
        'sampled after the result, which is this one, unless `self.config.entropy_timing` says "before": then it is '
        "`row.start.last_entropy`.",
    ),
    mistakes=(
        Mistake(
            "sum for mean",
            "sum(measured) / len(measured)",
            "sum(measured)",
            "You added up where a mean is asked for: a turn of 4 tokens scores a fifth of one of 20, so short turns "
            "hardly ever fork. The released code of ARPO does this.",
        ),
        Mistake(
            "the turn before the result",
            'entropy = row.last_entropy if self.config.entropy_timing == "after" else row.start.last_entropy',
            "entropy = row.start.last_entropy",
            "You took the turn before the result. At every first result a turn is then compared with itself, and ΔH is "
            "exactly 0. The released code of ARPO does this.",
        ),
        Mistake(
            "H_initial is overwritten",
            "        if row.node == PROMPT:\n            row.initial_entropy = row.last_entropy\n",
            "        row.initial_entropy = row.last_entropy\n",
            "You set H_initial at every turn, so you compare with the last turn and not with the beginning: ΔH at the "
            "place is 0, and a path that stays uncertain never forks.",
        ),
        Mistake(
            "the whole turn",
            "measured = turn.entropies[: self.config.entropy_tokens]",
            "measured = turn.entropies",
            "You took the mean over the whole turn. What a result does shows in the first k tokens; in a long turn the "
            "rest drowns it.",
        ),
        Mistake(
            "the last k tokens",
            "measured = turn.entropies[: self.config.entropy_tokens]",
            "measured = turn.entropies[-self.config.entropy_tokens :]",
            "You took the last k tokens of the turn. What a result does shows at the turn's beginning, right after it.",
        ),
        Mistake(
            "divided by k",
            "sum(measured) / len(measured)",
            "sum(measured) / self.config.entropy_tokens",
            "You divided by k where the turn is shorter than k. Short turns then seem more certain than they are.",
        ),
    ),
)
