"""Exercise 1: the entropy of the next token."""

import math

from exercises.course.exercise import Exercise, Mistake
from exercises.patches import Blank


def cases(rng):
    drawn = []
    for rows, width, temperature in ((1, 3, 0.0), (1, 4, 1.0), (2, 3, 0.5), (2, 5, 1.7), (3, 6, 1.0)):
        logits = [[round(rng.gauss(0, 2), 2) for _ in range(width)] for _ in range(rows)]
        drawn.append({"logits": logits, "draws": [rng.random() for _ in logits], "temperature": temperature})
    drawn[4]["logits"][0][2] = -math.inf  # a forbidden token
    return drawn


def expected(case):
    """Sum over the vocabulary of p times the surprise of p."""
    entropies = []
    for row in case["logits"]:
        weights = [math.exp(value) for value in row]
        chances = [weight / sum(weights) for weight in weights]
        entropies.append(sum(p * math.log(1 / p) for p in chances if p > 0))
    return entropies


def probe(case):
    import torch

    from data.logits import draw_tokens

    logits, temperature = torch.tensor(case["logits"]), case["temperature"]
    drawn = draw_tokens(logits.clone(), torch.tensor(case["draws"]).double(), temperature)
    if drawn.shape[1] != 3:
        asked = f"{(len(logits), 1)}, (B, 1)"
        raise ValueError(f"entropies has the shape {(len(logits), drawn.shape[1] - 2)}, asked for {asked}")
    logprobs = (logits / (temperature or 1)).log_softmax(-1)
    if not drawn[:, 1].float().allclose(logprobs.gather(1, drawn[:, :1].long())[:, 0], atol=1e-4):
        raise ValueError("logp is changed: tokens are drawn from it after your lines, so leave it as it is")
    return drawn[:, 2].tolist()


RIGHT = "entropies = -logp.exp().mul_(logp).nan_to_num_().sum(-1, keepdim=True)"

EXERCISE = Exercise(
    number=1,
    title="Entropy",
    minutes=15,
    core=True,
    task="Set `entropies` (B, 1): how uncertain the model is about the next token, in nats, over the whole vocabulary. "
    "A logit may be -inf: such a token is never drawn, and adds nothing.",
    idea="Entropy belongs to a distribution: the mean surprise over all draws, not that of the one draw.",
    misconception="the surprise of the drawn token is the entropy",
    question="A uniform distribution over 1,024 tokens: what is its entropy, and what after temperature 0.5?",
    answer="ln 1,024 = 6.93 nats, the largest there is, after temperature 0.5 as well: equal logits stay equal.",
    blanks=(Blank("data/logits.py", "_draw", "entropies ="),),
    asks=("exercise 1: set entropies (B, 1) from logp (B, V)",),
    modules=("data.logits",),
    hints=(
        "What is the mean surprise? Say first how surprising one token is, and then how often it comes.",
        "A token of probability p surprises by -ln p. Weight the surprise of every token with its own p and add up.",
        "`logp` has ln p at temperature 1. Where p is 0, ln p is -inf and 0 times -inf is nan: such a token adds 0.",
    ),
    mistakes=(
        Mistake(
            "the likeliest token's surprise",
            RIGHT,
            "entropies = -logp.amax(-1, keepdim=True)",
            "That is how surprising the likeliest token is. Entropy is the mean surprise over all tokens, each "
            "weighted "
            "with its probability: of a uniform distribution over 1,024 tokens both are 6.93, of any other they "
            "differ.",
        ),
        Mistake(
            "the sign",
            RIGHT,
            "entropies = logp.exp().mul_(logp).nan_to_num_().sum(-1, keepdim=True)",
            "The mean of ln p is negative: a surprise is -ln p. An entropy is never below 0.",
        ),
        Mistake(
            "the drawn token's surprise",
            "entropies.double()], dim=1)",
            "-logp.gather(-1, tokens).double()], dim=1)",
            "That is how surprised you were by one draw. Draw again and it changes; entropy is its mean over all "
            "draws.",
        ),
        Mistake(
            "entropy of the tempered distribution",
            RIGHT,
            "entropies = (lambda q: -(q.exp() * q).nan_to_num().sum(-1, keepdim=True))"
            "((logits.float() / (temperature or 1)).log_softmax(-1))",
            "With --temperature 0.5 your number falls although the model is as uncertain as before. What is measured "
            "is "
            "the model, at temperature 1, and not the sampler.",
        ),
        Mistake(
            "entropy of the sampler, 0 where it is greedy",
            RIGHT,
            "entropies = (lambda q: -(q.exp() * q).nan_to_num().sum(-1, keepdim=True) * (temperature > 0))"
            "((logits.float() / (temperature or 1)).log_softmax(-1))",
            "That is the entropy at the sampling temperature, so 0 at temperature 0. What is measured is the model, at "
            "temperature 1, and not the sampler: `logp` is that already.",
        ),
        Mistake(
            "divided by ln V",
            RIGHT,
            "entropies = -(logp.exp() * logp).nan_to_num().sum(-1, keepdim=True) / torch.tensor(logp.shape[-1]).log()",
            "You divided by ln V, the largest entropy there is. It is asked for in nats here; ΔH is divided by ln V, "
            "in exercise 3, and would be twice.",
        ),
        Mistake(
            "nan where a token is impossible",
            RIGHT,
            "entropies = -(logp.exp() * logp).sum(-1, keepdim=True)",
            "p ln p tends to 0 as p does, but 0 times -inf is nan: one forbidden token has erased the row.",
        ),
        Mistake(
            "bits for nats",
            RIGHT,
            "entropies = -(logp.exp() * logp).nan_to_num().sum(-1, keepdim=True) / 0.6931472",
            "Those are bits. Nats are asked for: the logarithm is natural here, as in ln V by which ΔH is divided.",
        ),
        Mistake(
            "mean over the vocabulary",
            RIGHT,
            "entropies = -(logp.exp() * logp).nan_to_num().mean(-1, keepdim=True)",
            "The mean surprise is weighted with p, and these weights add up to 1 already. You divided by V once more.",
        ),
    ),
)
