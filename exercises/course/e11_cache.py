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
        {"last": [first, second], "next": [[second + r, 1], [p + b[:3], 1]]},
        {"last": [first, second], "next": [[second + r[:1], 1], [first + r, 0], [p + b[:2], 1]]},
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

    width, cached = max(map(len, case["last"])) - 1, []
    fed = [[token for token in ids[:-1]] + [0] * (width + 1 - len(ids)) for ids in case["last"]]
    mask = torch.tensor([[bool(token) for token in row] for row in fed])

    def gather(sources, kept):
        cached.extend(fed[source][:count] for source, count in zip(sources, kept))

    cache = SimpleNamespace(mask=mask, gather=gather)
    sampler = SimpleNamespace(ids=case["last"], counts=Counter(), cache=cache)
    rows = [SimpleNamespace(ids=ids, source=source) for ids, source in case["next"]]
    rest = Sampler._gather(sampler, rows)
    counts = {name: sampler.counts[name] for name in ("refed", "prefilled")}
    return {"to be fed": rest, "cached": cached, **counts}


EXERCISE = Exercise(
    number=11,
    title="Forking the cache",
    minutes=40,
    core=False,
    task="For each row append to `kept` how many of its ids are cached by its source and can be used; count `refed` "
    "and "
    "`prefilled`.",
    idea="A fork costs one token: what its path shares with another is in the cache already.",
    misconception="whatever was sampled is cached",
    question="Why is the token sampled last never in the cache, and what does a fork have to feed again?",
    answer="It is fed when the next one is sampled. A fork feeds the last token before the fork point again, to have "
    "a distribution to sample from.",
    blanks=(Blank("rollout.py", "Sampler._gather", "for row in rows"),),
    asks=(
        "exercise 11: for each row append the number of ids to keep to kept, and add to self.counts 'refed' (cached "
        "tokens that must be fed again) and 'prefilled' (tokens that the source never had); cached[i] is how many ids "
        "row i of the old cache holds, self.ids[i] are its ids with the one sampled last",
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
            "known = shared",
            "You counted the token that was sampled last as cached. It was drawn, but never fed: there is no column of "
            "it.",
        ),
        Mistake(
            "another row's cache",
            "known = min(shared, cached[row.source])",
            "known = min(shared, cached[0])",
            "You looked up how much another row has cached. Rows move between calls: `row.source` says whose cache it "
            "is.",
        ),
        Mistake(
            "only the prompt",
            "kept.append(min(known, len(row.ids) - 1))",
            "kept.append(min(known, 2))",
            "You keep the prompt alone and feed the rest again: right, but as slow as without a cache.",
        ),
        Mistake(
            "every row's last token counts as fed again",
            'self.counts["refed"] += (known or shared) - kept[-1]',
            'self.counts["refed"] += 1',
            "You count a token fed again for every row. One that goes on from a result feeds nothing twice.",
        ),
    ),
)
