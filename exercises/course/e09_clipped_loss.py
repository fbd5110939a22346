"""Exercise 9: the clipped loss."""

import math

from exercises.course.exercise import Exercise, Mistake
from exercises.patches import Blank


def cases(rng):
    """Gaps log π - log π_old on both sides of the clip range, each with advantages of either sign."""
    drawn = []
    for tokens, leaves, high in ((1, 1, 0.2), (2, 1, 0.3), (4, 2, 0.3), (6, 3, 0.4)):
        signs = [1 if (t + m) % 2 else -1 for t in range(tokens) for m in range(leaves)]
        number = lambda low, top: round(rng.uniform(low, top), 3)
        advantages = [sign * number(0.3, 2) for sign in signs]
        gaps = [0.1, 0.7, -0.6, -0.1, 0.3, -0.9][:tokens] if tokens > 1 else [0.05]
        rows = lambda values, leaves=leaves: [values[i : i + leaves] for i in range(0, len(values), leaves)]
        drawn.append({
            "old": [number(-3, -0.5) for _ in range(tokens)], "gap": [gap + number(0, 0.05) for gap in gaps],
            "advantages": rows(advantages), "weights": rows([number(0.05, 0.3) for _ in signs]),
            "epsilon": 0.2, "epsilon_high": high,
        })  # fmt: skip
    return drawn


def expected(case):
    """Each term by itself, with its slope: nothing where moving on would gain nothing."""
    low, high, loss, slopes, bitten = 1 - case["epsilon"], 1 + case["epsilon_high"], 0.0, [], 0
    for gap, advantages, weights in zip(case["gap"], case["advantages"], case["weights"]):
        ratio, slope, bites = math.exp(gap), 0.0, False
        for A, W in zip(advantages, weights):
            if A > 0 and ratio > high:
                gain, moves = high * A, 0
            elif A < 0 and ratio < low:
                gain, moves = low * A, 0
            else:
                gain, moves = ratio * A, 1
            loss, slope, bites = loss - W * gain, slope - W * moves * ratio * A, bites or not moves
        slopes.append(slope)
        bitten += bites
    ratios = [math.exp(gap) for gap in case["gap"]]
    whole = {"ratio": [[r] for r in ratios], "clipped": [[min(max(r, low), high)] for r in ratios]}
    return {"loss": loss, "gradient": slopes, "tokens where the clip bites": bitten} | whole


def probe(case):
    from types import SimpleNamespace

    import torch

    import arpo
    from arpo import UpdateConfig, policy_loss

    config = UpdateConfig(epsilon=case["epsilon"], epsilon_high=case["epsilon_high"])
    old = torch.tensor(case["old"])
    logprobs = (old + torch.tensor(case["gap"])).requires_grad_()
    weights, advantages = torch.tensor(case["weights"]), torch.tensor(case["advantages"])
    batch = SimpleNamespace(advantages=advantages, weights=weights, sampler_logprobs=old)
    given = [tensor.clone() for tensor in (weights, advantages, old)]
    loss, sums = policy_loss(logprobs, old, batch, config)
    if not all(map(torch.equal, (weights, advantages, old), given)):
        raise ValueError("A, W or old is changed in place: they are needed as they were, so work on copies")
    loss.backward()
    bitten = {"tokens where the clip bites": sums["clip_fraction"]}  # counted by the lines after the blank
    # Other surrogates are given the ratio and its clipped value: so is this one, which looks at them.
    others, seen = arpo.SURROGATES, {}
    arpo.SURROGATES = {"look": lambda ratio, clipped, *rest: seen.update(ratio=ratio, clipped=clipped) or ratio}
    try:
        looks = SimpleNamespace(**vars(config) | {"surrogate": "look"})
        policy_loss(logprobs.detach(), old, batch, looks)
    finally:
        arpo.SURROGATES = others
    whole = {}
    for name, value in seen.items():
        shape, asked = tuple(value.shape), (len(old), 1)
        whole[name] = value.tolist() if shape == asked else f"shape {shape}, asked for {asked}, (S, 1)"
    return {"loss": float(loss.detach()), "gradient": logprobs.grad.tolist()} | bitten | whole


CLIPPED = "torch.min(ratio * A, clipped * A)"

EXERCISE = Exercise(
    number=9,
    title="The clipped loss",
    minutes=25,
    core=True,
    task="Set `ratio` (S, 1), π over π_old of each token; `clipped`, the ratio within 1 - ε and 1 + ε_high; and `gain` "
    "(S, M), the smaller of the two products with the advantages A.",
    idea="The minimum makes the loss a bound from below: moving on gains nothing beyond the range, moving back does.",
    misconception="the ratio is clipped",
    question="A token's ratio is 1.5 and its advantage negative. Is it clipped? Why must it not be?",
    answer="No: min takes the unclipped product there, which is lower. The policy has made a bad token likelier, and "
    "only the gradient brings it back.",
    blanks=(Blank("arpo.py", "policy_loss", "ratio =", "gain ="),),
    asks=(
        "exercise 9: set ratio (S, 1), clipped (S, 1) and gain (S, M) from logprobs, old, A and config.epsilon, "
        "config.epsilon_high",
    ),
    modules=("arpo",),
    hints=(
        "A ratio of probabilities is the exponential of a difference of log-probs; `[:, None]` makes a column of it.",
        "`clamp(low, high)` clips. For A < 0 the smaller product is the one with the larger ratio.",
    ),
    mistakes=(
        Mistake(
            "no minimum",
            CLIPPED,
            "clipped * A",
            "You always took the clipped product. Where a token got worse than allowed (A > 0 and the ratio below 1 - "
            "ε, "
            "or A < 0 and above 1 + ε_high) its slope is 0, and nothing pulls it back.",
        ),
        Mistake(
            "minimum of the ratios",
            CLIPPED,
            "torch.min(ratio, clipped) * A",
            "You took the smaller ratio before multiplying. For A < 0 the bound is then on the wrong side: the minimum "
            "is one of products.",
        ),
        Mistake(
            "one range for both sides",
            "1 + config.epsilon_high",
            "1 + config.epsilon",
            "You used ε on both sides: --epsilon_high 0.28 would change nothing in yours.",
        ),
        Mistake(
            "ratio upside down",
            "(logprobs - old).exp()[:, None]",
            "(old - logprobs).exp()[:, None]",
            "Your ratio is π_old over π: the gradient points the wrong way.",
        ),
        Mistake(
            "clipped on one side at a time",
            "ratio.clamp(1 - config.epsilon, 1 + config.epsilon_high)\n",
            "torch.where(A > 0, ratio.clamp(max=1 + config.epsilon_high), ratio.clamp(min=1 - config.epsilon))\n",
            "The loss is right, but `clipped` is not what is asked for: the ratio within its range on both sides, "
            "(S, 1), whatever the advantage. Other surrogates, such as CISPO, use it.",
        ),
        Mistake(
            "no clip",
            CLIPPED,
            "ratio * A",
            "You do not clip: a token whose ratio is 3 already is pushed further.",
        ),
        Mistake(
            "maximum",
            CLIPPED,
            "torch.max(ratio * A, clipped * A)",
            "You took the larger product. The loss must be a bound from below: gains count up to the range, losses in "
            "full.",
        ),
    ),
    hides=(Blank("data/relatives.py", "aepo", ""), Blank("data/relatives.py", "gspo", "return")),
)
