"""Exercise 11: what of the cache a row can use."""

from exercises.course.exercise import Exercise, Mistake
from exercises.patches import Blank


def cases(rng):
    """Rows of the last call, with how many of their ids are cached, and the rows of the next one with their sources."""
    ids = lambda count: rng.sample(range(10, 99), count)
    p, a, b, r = ids(2), ids(2), ids(4), ids(2)
    first, second = p + a, p + b
    return [
        {"last": [first], "next": [[first + r, 0]]},
        {"last": [first], "next": [[first + r, 0], [p, 0]]},
        {"last": [first, second], "next": [[second + r, 1], [p + b[:2], 1]]},
        {"last": [first, second], "next": [[second + r[:1], 1], [first + r, 0], [p + b[:3], 1]]},
    ]


def expected(case):
    """Id by id: of a row, those that its source has cached, from the first on, but for the last id of the row."""
    rest, cached, refed, fresh = [], [], 0, 0
    for ids, source in case["next"]:
        last, same = case["last"][source], 0
        while same < min(len(ids), len(last)) and ids[same] == last[same]:
            same += 1
        usable = min(same, len(last) - 1)  # the token sampled last was not fed
        kept = min(usable, len(ids) - 1)
        refed, fresh = refed + usable - kept, fresh + len(ids) - same
        rest.append(ids[kept:])
        cached.append(ids[:kept])
    return {"to be fed": rest, "cached": cached, "refed": refed, "prefilled": fresh}


def probe(case):
    from collections import Counter
    from types import SimpleNamespace

    import torch

    from rollout import Sampler

    width = max(map(len, case["last"])) - 1
    fed = [[0] * (width + 1 - len(ids)) + ids[:-1] for ids in case["last"]]  # right-aligned, without the last
    block = torch.tensor(fed, dtype=torch.float)[:, None, :, None]  # a cache whose keys are the ids themselves
    layer = SimpleNamespace(keys=block, values=block.clone())
    mask = torch.tensor([[bool(token) for token in row] for row in fed])
    sampler = SimpleNamespace(
        ids=case["last"], mask=mask, counts=Counter(), cache=SimpleNamespace(layers=[layer]), vocab_size=100
    )
    rows = [SimpleNamespace(ids=ids, source=source) for ids, source in case["next"]]
    rest = Sampler._gather(sampler, rows)
    kept = layer.keys[:, 0, :, 0]
    cached = [row[own].int().tolist() for row, own in zip(kept, sampler.mask)]
    counts = {name: sampler.counts[name] for name in ("refed", "prefilled")}
    return {"to be fed": rest, "cached": cached, **counts}


EXERCISE = Exercise(
    number=11,
    title="Forking the cache",
    minutes=40,
    core=False,
    task="For each row append to `kept` how many of its ids are cached by its source and can be used; count `refed` "
    "and "
    "`prefilled`. Then set `sources` (B,), the row of the old cache that each row begins with.",
    idea="A fork costs one token: what its path shares with another is in the cache already.",
    misconception="whatever was sampled is cached",
    question="Why is the token sampled last never in the cache, and what does a fork have to feed again?",
    blanks=(
        Blank("rollout.py", "Sampler._gather", "for row in rows"),
        Blank("rollout.py", "Sampler._gather", "sources ="),
    ),
    asks=(
        "exercise 11: for each row append the number of ids to keep to kept, and add to self.counts 'refed' (cached "
        "tokens that must be fed again) and 'prefilled' (tokens that the source never had); cached[i] is how many ids "
        "row i of the old cache holds, self.ids[i] are its ids with the one sampled last",
        "exercise 11: set sources (B,), a tensor on self.mask.device",
    ),
    modules=("rollout",),
    hints=(
        "`commonprefix` of two lists is what they share. Of it the source has cached all but the token sampled last.",
        "To sample one needs logits, so at least the last id of a row has to be fed, be it cached or not.",
    ),
    mistakes=(
        Mistake(
            "nothing is fed at a fork",
            "kept.append(min(known, len(row.ids) - 1))",
            "kept.append(known)",
            "At a fork all ids may be cached, and yours feeds none: without logits there is nothing to sample from.",
        ),
        Mistake(
            "the token sampled last",
            "known = min(shared, cached[row.source])",
            "known = min(shared, max(cached))",
            "You counted the token that was sampled last as cached. It was drawn, but never fed: its column is a hole.",
        ),
        Mistake(
            "own row for source",
            "torch.tensor([row.source for row in rows]",
            "torch.tensor([n % len(cached) for n in range(len(rows))]",
            "Rows move between calls. Yours goes on from whatever text stood in its own row before.",
        ),
        Mistake(
            "only the prompt",
            "kept.append(min(known, len(row.ids) - 1))",
            "kept.append(min(known, 2))",
            "You keep the prompt alone and feed the rest again: right, but as slow as without a cache.",
        ),
        Mistake(
            "every row's last token counts as fed again",
            'self.counts["refed"] += known - kept[-1]',
            'self.counts["refed"] += 1',
            "You count a token fed again for every row. One that goes on from a result feeds nothing twice.",
        ),
    ),
)
