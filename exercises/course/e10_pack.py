"""Exercise 10: a tree as one sequence."""

from exercises.course.exercise import Exercise, Mistake
from exercises.patches import Blank


def cases(rng):
    """Trees of equally many leaves by their nodes' parents, with each node's numbers of sampled tokens and of result "
    "tokens."""
    shapes = [[[-1]], [[-1, 0, 0]], [[-1, 0, 0, 1], [-1, -1]], [[-1, 0, 0, 2, -1], [-1, -1, -1, 1]]]
    drawn = []
    for trees in shapes:
        case = []
        for parents in trees:
            sizes = [[rng.randint(1, 3), rng.randint(1, 3) if n in parents else 0] for n in range(len(parents))]
            case.append({"parents": parents, "sizes": sizes, "prompt": rng.randint(2, 3)})
        drawn.append(case)
    return drawn


def expected(case):
    """Token by token: each knows the one before it on its path, and sees what a walk back to the prompt meets."""
    before, sampled = [], []  # of every token: its predecessor's place or None; whether the policy wrote it
    for tree in case:
        last = {}
        for n in range(-1, len(tree["parents"])):
            own, observed = (0, tree["prompt"]) if n < 0 else tree["sizes"][n]
            place = last[tree["parents"][n]] if n >= 0 else None
            for token in range(own + observed):
                before.append(place)
                sampled.append(token < own)
                place = len(before) - 1
            last[n] = place
    paths = []
    for token in range(len(before)):
        path = [token]
        while before[path[-1]] is not None:
            path.append(before[path[-1]])
        paths.append(path)
    return {
        "positions": [len(path) - 1 for path in paths],
        "sees": [[int(token in path) for token in range(len(before))] for path in paths],
        "predicted from": [place for place, own in zip(before, sampled) if own],
        "targets": [token for token, own in enumerate(sampled) if own],
    }


def probe(case):
    import torch

    from arpo import pack
    from rollout import Node, Tree

    pieces, fresh = [], 0
    for given in case:
        counts = [[0, given["prompt"]], *given["sizes"]]
        ids = []
        for own, observed in counts:  # a token's id is its place in the sequence
            ids.append([list(range(fresh, fresh + own)), list(range(fresh + own, fresh + own + observed))])
            fresh += own + observed
        tree = Tree(ids[0][1])
        for n, parent in enumerate(given["parents"]):
            sampled, observed = ids[n + 1]
            stopped = "call" if n in given["parents"] else "end"
            own = dict(ids=sampled, logprobs=[-1.0] * len(sampled), entropies=[1.0] * len(sampled), stopped=stopped)
            tree.nodes.append(Node(**own, parent=parent, observation=observed))
        pieces.append((tree, tree.descends(), torch.ones(len(tree.nodes), len(tree.leaves()))))
    batch = pack(pieces)
    return {
        "positions": batch.positions.tolist(),
        "sees": batch.mask.int().tolist() if batch.mask.dtype == torch.bool else f"numbers, {batch.mask.dtype}",
        "predicted from": batch.predict_from.tolist(),
        "targets": batch.targets.tolist(),
    }


MASK = "self.sees[self.owner][:, self.owner].logical_and_(self.positions[:, None] >= self.positions)"

EXERCISE = Exercise(
    number=10,
    title="Packing a tree",
    minutes=40,
    core=False,
    task="For the T tokens of the packed sequence set `positions`, the depth of each in its tree; `sampled`, whether "
    "the "
    "policy wrote it; and `before`, the index of the token that it is predicted from. For its segments (prompts and "
    "nodes) set `sees`, which of them each one sees: itself and those above it. And return the mask (T, T): whether "
    "the "
    "row's token attends to the column's, itself and what stands before it on its path.",
    idea="One pass serves all leaves if every token sees its own path and stands where it stood when it was sampled.",
    misconception="a causal mask is enough",
    question="`loss` looks healthy with almost any of these mistakes. Which number of a run shows them?",
    answer="`kl_sampler`, the gap between the sampled log-probabilities and those of the packed pass.",
    blanks=(Blank("arpo.py", "pack", "starts, depths =", "before ="), Blank("arpo.py", "Batch.mask", "return")),
    asks=(
        "exercise 10: set sees (segments, segments), bool; owner (T,), the segment of each token; positions, sampled, "
        "before (T,). Segments stand in their order in the sequence, parents before children: "
        "parents[s], lengths[s] and owns[s], the sampled tokens, which come first, are known; parents[s] == s at a "
        "prompt",
        "exercise 10: return the mask (T, T), bool, from self.sees, self.owner and self.positions",
    ),
    modules=("arpo",),
    hints=(
        "First by segment: where each begins in the sequence, how deep in the tree, and which segments it sees (itself "
        "and those that its parent sees). Then by token, with `owner`.",
        "Inside what a segment may see, a token sees positions up to its own. The first token of a segment is "
        "predicted "
        "from the last one of its parent.",
    ),
    mistakes=(
        Mistake(
            "places for positions",
            "depths[owner] + within, within",
            "index, within",
            "You numbered the tokens through. A second leaf's tokens then believe that they stand behind the first "
            "leaf, "
            "where they never stood when they were sampled.",
        ),
        Mistake(
            "a mask of numbers",
            MASK,
            f"({MASK}).float()",
            "Your mask is made of numbers. To the model a mask that is not bool is added to the scores: 1 and 0 hide "
            "nothing.",
        ),
        Mistake(
            "a causal mask",
            MASK,
            "torch.arange(len(self.ids))[:, None] >= torch.arange(len(self.ids))",
            "Your mask is plainly causal: siblings read each other, and one question reads another. `kl_sampler` is no "
            "longer 0.",
        ),
        Mistake(
            "ancestors without order",
            MASK,
            "self.sees[self.owner][:, self.owner]",
            "Inside its own segment a token sees what comes after it: the answer is in front of it when it is "
            "predicted.",
        ),
        Mistake(
            "predicted from the one before in the sequence",
            "torch.where(within == 0, (starts + lengths - 1)[parent], index - 1)",
            "(index - 1).clamp(min=0)",
            "The first token of a fork is predicted from the last token of its sibling, which stands before it in the "
            "sequence and not on its path.",
        ),
        Mistake(
            "predicted from itself",
            "torch.where(within == 0, (starts + lengths - 1)[parent], index - 1)",
            "index",
            "You predict a token from itself: a hidden state says what comes after it.",
        ),
        Mistake(
            "depth of the parent alone",
            "depths[s], sees[s] = depths[parent] + lengths[parent], sees[s] | sees[parent]",
            "depths[s], sees[s] = lengths[parent], sees[s] | sees[parent]",
            "A segment begins where its parent ends: the parent's own depth is to be added to its length.",
        ),
    ),
)
