"""Exercise 7: what a token that leaves share is told."""

from exercises.course.exercise import Exercise, Mistake
from exercises.patches import Blank


def cases(rng):
    """Trees by their nodes' parents, -1 at the top, and an advantage for each leaf; they do not add up to 0."""
    shapes = [[-1, -1], [-1, 0, 0], [-1, 0, 0, 2, 2, -1], [-1, 0, 0, 0, 1, 1, -1, 6, 6]]
    drawn = []
    for parents in shapes:
        leaves = [n for n in range(len(parents)) if n not in parents]
        values = rng.sample([-3.0, -1.5, -0.5, 0.75, 1.25, 2.0, 3.5], len(leaves))
        drawn.append({"parents": parents, "advantages": values})
    return drawn


def descendants(parents):
    """For each node the numbers of the leaves at or below it."""
    leaves = [n for n in range(len(parents)) if n not in parents]
    below = [[] for _ in parents]
    for m, leaf in enumerate(leaves):
        n = leaf
        while n >= 0:
            below[n].append(m)
            n = parents[n]
    return below


def expected(case):
    """Of each node what the leaves below it have there; what the others have weighs nothing."""
    values, soft, hard = case["advantages"], [], []
    for leaves in descendants(case["parents"]):
        mean = sum(values[m] for m in leaves) / len(leaves)
        soft.append([value if m in leaves else 0.0 for m, value in enumerate(values)])
        hard.append([mean if m in leaves else 0.0 for m in range(len(values))])
    return {"soft": soft, "hard": hard}


def probe(case):
    import torch

    from advantage import attribute

    parents = case["parents"]
    leaves = [n for n in range(len(parents)) if n not in parents]
    descends = torch.zeros(len(parents), len(leaves))
    for m, n in enumerate(leaves):
        while n >= 0:
            descends[n, m] = 1
            n = parents[n]
    values, D = torch.tensor(case["advantages"]), descends.clone()
    found = {}
    for kind in ("soft", "hard"):
        got = attribute(values, descends, parents, kind)
        shape, asked = tuple(torch.as_tensor(got).shape), tuple(D.shape)
        found[kind] = (got * D).tolist() if shape == asked else f"shape {shape}, asked for {asked}, (N, M): expand it"
    if not (values.equal(torch.tensor(case["advantages"])) and descends.equal(D)):
        raise ValueError("advantages or descends are changed in place: others need them, so work on a copy")
    return found


MEAN = "(descends @ advantages) / descends.sum(-1)"
BOTH = 'if attribution == "soft":\n        return advantages.expand_as(descends)\n    if attribution == "hard":'

EXERCISE = Exercise(
    number=7,
    title="Attribution: soft and hard",
    minutes=20,
    core=True,
    task="Return (N, M), the advantage in leaf m's term at node n. Soft: the leaf's own. Hard: the mean advantage of "
    "the "
    "leaves that pass through the node, in every leaf's term.",
    idea="A token that d leaves share is judged by those d, one way or the other.",
    misconception="shared tokens get the tree's average",
    question="On-policy and with the token mean soft and hard have the same gradient. When do they part?",
    answer="When something is not linear in the advantage: once the clip bites (a second pass over the trees), or "
    "when leaves have weights of their own (sequence means).",
    blanks=(Blank("advantage.py", "attribute", 'if attribution == "soft"', 'if attribution == "hard"'),),
    asks=("exercise 7: return the advantages (N, M) of attribution 'soft' and of 'hard'",),
    modules=("advantage",),
    hints=(
        "`descends` (N, M) has a 1 where leaf m passes through node n: a row of it times the advantages is their sum.",
        "The number of leaves below a node is the sum of its row. `[:, None].expand_as(descends)` repeats a column.",
    ),
    mistakes=(
        Mistake(
            "sum for mean",
            MEAN,
            "(descends @ advantages)",
            "You added up the descendants' advantages. A token that d leaves share has d terms in the loss already: "
            "with the sum in each its pull is d times too strong.",
        ),
        Mistake(
            "mean over the tree",
            MEAN,
            "advantages.mean().expand(len(descends))",
            "You took the mean over all leaves of the tree. A group's advantages add up to 0, so every token would "
            "learn "
            "nothing at all.",
        ),
        Mistake(
            "divided by M",
            MEAN,
            "(descends @ advantages) / descends.shape[1]",
            "You divided by M, not by the number of leaves below the node: a leaf's own last turn, which one leaf "
            "alone "
            "judges, hears a small part of its advantage.",
        ),
        Mistake(
            "the first leaf's",
            MEAN,
            "advantages[descends.argmax(-1)]",
            "You took the first leaf below the node. Reorder the siblings and the loss changes.",
        ),
        Mistake(
            "hard is a column",
            "[:, None].expand_as(descends)",
            "[:, None]",
            "Your `hard` has one column, (N, 1). The numbers are right, but a term for each leaf is asked for, (N, M): "
            "expand it, or the loss over it fails.",
        ),
        Mistake(
            "soft is a row",
            "return advantages.expand_as(descends)",
            "return advantages",
            "Your `soft` is the leaves' advantages as they came, (M,). A row of them is asked for at each node, (N, "
            "M): expand it.",
        ),
        Mistake(
            "the mean of the children's means",
            MEAN,
            "torch.stack((lambda f: [f(f, n) for n in range(len(parents))])(lambda f, n: torch.stack("
            "[f(f, c) for c, p in enumerate(parents) if p == n] or [advantages[descends[n] > 0][0]]).mean()))",
            "You took the mean of the children's means. A child with four leaves below it then counts as much as one "
            "that is a leaf: a subtree counts by its leaves, not once.",
        ),
        Mistake(
            "always soft",
            'if attribution == "soft":',
            'if attribution in ("soft", "hard"):',
            "You answer soft to both: `attribution` says which of the two is asked.",
        ),
        Mistake(
            "always hard",
            BOTH,
            'if attribution in ("soft", "hard"):',
            "You answer hard to both: `attribution` says which of the two is asked.",
        ),
        Mistake(
            "soft and hard exchanged",
            BOTH,
            'if attribution == "hard":\n        return advantages.expand_as(descends)\n    if attribution == "soft":',
            "You exchanged the two: soft leaves every leaf its own advantage, hard gives a shared token one for all.",
        ),
    ),
    told="an answer has a row for each node and in it a term for each leaf, 0 where the leaf does not pass the node",
    hides=(Blank("data/relatives.py", "mean_below", ""),),
)
