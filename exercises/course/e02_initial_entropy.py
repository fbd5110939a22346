"""Exercise 2: which entropies are compared, H_initial and H_t."""

from exercises.course.exercise import Exercise, Mistake
from exercises.patches import Blank


def cases(rng):
    """Paths from the prompt, and the turns of one that forks off behind the first one's first result."""

    def turns(count, k):
        lengths = rng.sample(range(2, 7), count)
        lengths[-1] = k - 1  # shorter than what is measured
        lengths[0] = k + 2  # longer
        return [[round(rng.uniform(0.1, 3), 2) for _ in range(n)] for n in lengths]

    drawn = []
    for counts, fork, k in (([1], 0, 3), ([2], 0, 3), ([2, 1], 0, 3), ([2], 2, 3), ([4, 3], 2, 4)):
        paths = [turns(count, k) for count in counts]
        drawn.append({"k": k, "paths": paths, "fork": turns(fork, k) if fork else []})
    return drawn


def expected(case):
    """For each turn: its own entropy, that of the path's first turn, and what the rule sees after a result."""

    def mean(turn):
        total, count = 0.0, 0
        for value in turn:
            if count < case["k"]:
                total, count = total + value, count + 1
        return total / count

    first = [mean(path[0]) for path in case["paths"]] + [mean(case["paths"][0][0])]  # a fork's is its path's
    return [
        [[mean(turn), begin, mean(turn) if n else None] for n, turn in enumerate(path)]
        for path, begin in zip([*case["paths"], case["fork"]], first)
    ]


def probe(case):
    from dataclasses import replace
    from types import SimpleNamespace

    from rollout import GrowingTree, RolloutConfig, Sample

    paths = case["paths"]
    config = RolloutConfig(num_generations=8, num_initial=len(paths), entropy_tokens=case["k"])
    tree = GrowingTree([1, 2], "key", 0, config, SimpleNamespace(tokenizer=None, vocab_size=100))
    going = [(row, list(path)) for row, path in zip(tree.rows, paths)]
    seen = {row.key: [] for row in tree.rows}
    while going := [(row, left) for row, left in going if left]:  # wave by wave, as trees grow
        fork = []
        for row, left in going:
            turn, start = left.pop(0), row.start
            tree.sample(row, Sample([7] * len(turn), [-1.0] * len(turn), turn, "call"), 0)
            asked = tree.places[-1].entropy if start else None
            seen[row.key].append([row.last_entropy, row.initial_entropy, asked])
            row.ids, row.rank = [*row.ids, 8, 9], 0  # a tool's result
            row.start = replace(row, start=None)
            if row.key == "key/0" and len(seen[row.key]) == 1:
                fork = [(replace(row.start, key="fork", rank=1), list(case["fork"]))]
        tree.rows += [row for row, _ in fork]
        seen |= {row.key: [] for row, _ in fork}
        going += fork
    return list(seen.values())


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
    told="paths: of each that starts from the prompt its turns, and of each turn the entropies of its tokens; fork: "
    "the turns of one that forked off behind the first path's first result; an answer has for each path, and then for "
    "the fork, [the turn's own, H_initial, H_t] for each turn",
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
            "only the first start",
            "        if row.node == PROMPT:\n",
            "        if row.node == PROMPT and row.rank == 0:\n",
            "Only the first start got an H_initial. N paths start from the prompt, and each has a first turn of its "
            "own.",
        ),
        Mistake(
            "one H_initial for the tree",
            "        if row.node == PROMPT:\n            row.initial_entropy = row.last_entropy\n",
            "        if row.node == PROMPT:\n            self.first = getattr(self, 'first', row.last_entropy)\n"
            "            row.initial_entropy = self.first\n",
            "You gave all paths the H_initial of the first one. Each is compared with its own beginning.",
        ),
        Mistake(
            "a fork's first turn is its beginning",
            "        if row.node == PROMPT:\n",
            "        if row.start is None:\n",
            "You set H_initial anew at a fork's first turn. A fork begins behind a result: its beginning is that of "
            "the path that it left, whose H_initial it has already.",
        ),
        Mistake(
            "ΔH for H_t",
            'entropy = row.last_entropy if self.config.entropy_timing == "after" else row.start.last_entropy',
            "entropy = row.last_entropy - row.initial_entropy",
            "You took H_initial off already. H_t is an entropy, in nats; ΔH is exercise 3.",
        ),
        Mistake(
            "normalised ΔH for H_t",
            'entropy = row.last_entropy if self.config.entropy_timing == "after" else row.start.last_entropy',
            "entropy = (row.last_entropy - row.initial_entropy) / self.norm",
            "You computed the whole of ΔH here. H_t is an entropy, in nats; the difference and the norm are exercise "
            "3.",
        ),
        Mistake(
            "H_t over the norm",
            'entropy = row.last_entropy if self.config.entropy_timing == "after" else row.start.last_entropy',
            "entropy = row.last_entropy / self.norm",
            "You divided H_t by the norm. H_t is in nats; what is normalised is ΔH, in exercise 3.",
        ),
        Mistake(
            "every entropy over the norm",
            "sum(measured) / len(measured)",
            "sum(measured) / len(measured) / self.norm",
            "You divided by the norm here. H_initial and H_t are in nats; ΔH is normalised in exercise 3, and would be "
            "twice.",
        ),
        Mistake(
            "without the first token",
            "measured = turn.entropies[: self.config.entropy_tokens]",
            "measured = turn.entropies[1 : self.config.entropy_tokens + 1]",
            "You skipped the turn's first token. Its entropy is the first answer to the result, and often the largest.",
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
