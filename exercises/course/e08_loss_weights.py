"""Exercise 8: what a token counts in the loss."""

from exercises.course.exercise import Exercise, Mistake
from exercises.patches import Blank


def cases(rng):
    """Trees of three leaves, as parents and each node's number of tokens."""
    shapes = [[[-1, -1, -1]], [[-1, 0, 0, -1]], [[-1, 0, 0, -1], [-1, -1, -1]], [[-1, 0, 0, 2, 2], [-1, 0, 0, -1]]]
    drawn = []
    for trees in shapes:
        sizes = [rng.sample(range(1, 12), len(parents)) for parents in trees]
        drawn.append({"trees": trees, "tokens": sizes, "limit": rng.randint(40, 60)})
    drawn.append({**drawn[1], "shares": [[0.5, 0.5, 1.0]]})  # of the leaves: a start's weight, divided at its fork
    return drawn


def expected(case):
    """Term by term: a leaf has one at each of its tokens, and a token's place is looked up, not computed."""
    paths, lengths = [], []
    for parents, sizes in zip(case["trees"], case["tokens"]):
        own = []
        for leaf in (n for n in range(len(parents)) if n not in parents):
            path = [leaf]
            while parents[path[-1]] >= 0:
                path.append(parents[path[-1]])
            own.append(path)
        paths.append(own)
        lengths.append([sum(sizes[n] for n in path) for path in own])
    leaves = sum(len(own) for own in paths)
    terms = sum(sum(own) for own in lengths)
    weight = {
        "token_mean": lambda q, m: 1 / terms,
        "sequence_mean": lambda q, m: 1 / leaves / lengths[q][m],
        "constant": lambda q, m: 1 / leaves / case["limit"],
    }
    shares = case.get("shares") or [[1.0] * len(own) for own in paths]
    return {
        kind: [
            [
                [own(q, m) * shares[q][m] if n in path else 0.0 for m, path in enumerate(paths[q])]
                for n in range(len(parents))
            ]
            for q, parents in enumerate(case["trees"])
        ]
        for kind, own in weight.items()
    }


def probe(case):
    import torch

    from advantage import loss_weights

    descends, lengths = [], []
    for parents, sizes in zip(case["trees"], case["tokens"]):
        leaves = [n for n in range(len(parents)) if n not in parents]
        D = torch.zeros(len(parents), len(leaves))
        for m, n in enumerate(leaves):
            while n >= 0:
                D[n, m] = 1
                n = parents[n]
        descends.append(D)
        lengths.append(torch.tensor([float(size) for size in sizes]) @ D)
    if "shares" in case:
        descends = [D * torch.tensor(own) for D, own in zip(descends, case["shares"])]
    kinds = "token_mean", "sequence_mean", "constant"
    given = [tensor.clone() for tensor in descends + lengths]
    found = {kind: [W.tolist() for W in loss_weights(descends, lengths, kind, case["limit"])] for kind in kinds}
    if not all(map(torch.equal, descends + lengths, given)):
        raise ValueError("descends or lengths are changed in place: others need them, so work on copies")
    return found


EXERCISE = Exercise(
    number=8,
    title="Loss weights",
    minutes=20,
    core=True,
    task="Return W (N, M) for each tree. `token_mean`: each term counts 1 over the terms of all leaves of all trees. "
    "`sequence_mean`: 1 over the leaves of all trees and over the leaf's own tokens. `constant`: 1 over the leaves and "
    "over `max_length`. 0 where the leaf does not pass through the node; and where D has a share in place of its 1, "
    "that share of the weight.",
    idea="Denominators are decisions: over tokens, over leaves, over questions, and they are fixed for the whole "
    "batch.",
    misconception="a mean of means is the mean",
    question="A batch is split into two micro-batches. Which of your denominators may be computed inside one?",
    answer="Those of one tree's own leaves (sequence means). A count over the batch must be made before it is split, "
    "else the same data in other pieces is another gradient.",
    blanks=(Blank("advantage.py", "loss_weights", ""),),
    asks=("exercise 8: return a list with W (N, M) of each tree (lengths[q] has L_m, the tokens of each leaf)",),
    modules=("advantage",),
    hints=(
        "`torch.cat(lengths)` has the tokens of every leaf in the batch: its sum counts the terms, its length the "
        "leaves.",
        "A leaf's tokens are a column's matter: D / L divides column m of D by L[m].",
    ),
    mistakes=(
        Mistake(
            "a token mean for each tree",
            "return [D / tokens for D in descends]",
            "return [D / L.sum() / len(lengths) for D, L in zip(descends, lengths)]",
            "You took the token mean in each tree and then the mean of these: a tree of short answers weighs as much "
            "as "
            "one of long ones. Several well-known trainers have had this error.",
        ),
        Mistake(
            "trees for leaves",
            "len(torch.cat(lengths))",
            "len(lengths)",
            "You divided by the number of trees, not of leaves: the gradient is M times as large. Clipping its norm "
            "hides that.",
        ),
        Mistake(
            "a mean length",
            "D / (leaves * L)",
            "D / (leaves * L.mean())",
            "You divided by the mean length of the leaves. In a sequence mean each leaf is divided by its own length.",
        ),
        Mistake(
            "no leaves in the constant",
            "D / (leaves * max_length)",
            "D / max_length",
            "You left out the number of leaves in `constant`: twice the batch would be twice the gradient.",
        ),
        Mistake(
            "ones for shares",
            "return [D / tokens for D in descends]",
            "return [(D > 0) / tokens for D in descends]",
            "You made ones of D again. With `--leaf_weights split` it holds shares, which divide a start's weight "
            "among the paths at its forks: the term's weight is D over the denominator.",
        ),
        Mistake(
            "not summed over trees",
            "float(torch.cat(lengths).sum())",
            "float(lengths[0].sum())",
            "You counted the tokens of the first tree alone. The terms of all trees must together weigh 1.",
        ),
    ),
)
