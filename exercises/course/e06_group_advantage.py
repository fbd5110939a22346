"""Exercise 6: rewards, centred in their group."""

from exercises.course.exercise import Exercise, Mistake
from exercises.patches import Blank


def cases(rng):
    drawn = [[[0.1] * 7, [0.3] * 7]]  # rewards that teach nothing; the mean of seven tenths is not a tenth
    for questions, leaves in ((1, 3), (2, 4), (3, 5)):
        rows = [[float(rng.choice([-1, 0, 1, 1.1])) for _ in range(leaves)] for _ in range(questions)]
        for row in rows:
            row[:3] = rng.sample([-1.0, 0.5, 1.1], 3)  # not all alike, and the mean is not the median
        drawn.append(rows)
    return drawn


def expected(case):
    """Row by row in exact arithmetic; with it, the number of exact zeros in rows of equal rewards."""
    from fractions import Fraction

    rows = []
    for row in case:
        values = [Fraction(value) for value in row]
        rows.append([float(value - sum(values) / len(values)) for value in values])
    return [rows, sum(len(row) for row in case if min(row) == max(row))]


def probe(case):
    import torch

    from advantage import centred

    rewards = torch.tensor(case)
    values = centred(rewards).tolist()
    if not rewards.equal(torch.tensor(case)):
        raise ValueError("rewards is changed in place: they are needed as they were, so work on a copy")
    return [values, sum(value == 0 for row, got in zip(case, values) for value in got if min(row) == max(row))]


MEAN = "(rewards - rewards.mean(-1, keepdim=True)).masked_fill(same, 0)"

EXERCISE = Exercise(
    number=6,
    title="Advantages of a group",
    minutes=15,
    core=True,
    task="Return each reward less the mean of its group, the last axis; exactly 0 where all of a group are equal.",
    idea="A leaf is compared with other leaves of the same question; equal rewards teach exactly nothing.",
    misconception="rewards are signals by themselves",
    question="All eight leaves are wrong and each gets -1. What does the policy learn from the question?",
    answer="Nothing: every advantage is 0. That all were wrong is told by the accuracy, not by the gradient.",
    blanks=(Blank("advantage.py", "centred", ""),),
    asks=("exercise 6: return the centred rewards, of the same shape as rewards",),
    modules=("advantage",),
    told="rewards of the groups; an answer has what comes of them, and how many exact zeros groups of equal ones gave",
    hints=(
        "`keepdim=True` lets a mean over the last axis be taken from each of its members.",
        "The mean of seven times 0.1 is not 0.1 for a computer. Compare the largest with the smallest of a group.",
    ),
    mistakes=(
        Mistake(
            "mean over the batch",
            MEAN,
            "(rewards - rewards.mean()).masked_fill(same, 0)",
            "You subtracted the mean over all questions. An easy question's leaves are then all good and a hard one's "
            "all bad: you reward the question, not what the policy did with it.",
            also="rewards - rewards.mean()",
        ),
        Mistake(
            "no exact zero",
            ".masked_fill(same, 0)",
            "",
            "Seven rewards of 0.1 have tiny advantages in yours, not 0: the rounding error of their mean. Divided by a "
            "standard deviation of about 0 it becomes noise that is trained.",
        ),
        Mistake(
            "median",
            MEAN,
            "(rewards - rewards.median(-1, keepdim=True).values).masked_fill(same, 0)",
            "You took the median. A group's advantages must add up to 0, or every question pushes on the whole.",
        ),
        Mistake(
            "rewards as they are",
            MEAN,
            "rewards.masked_fill(same, 0)",
            "You left the rewards as they are: without a baseline all leaves of an easy question are pushed up, the "
            "worst "
            "of them, too.",
            also="rewards",
        ),
        Mistake(
            "mean over the questions",
            MEAN,
            "(rewards - rewards.mean(0, keepdim=True)).masked_fill(same, 0)",
            "You took the mean over the first axis: leaf 3 of one question was compared with leaf 3 of another, which "
            "has "
            "nothing to do with it.",
            also="rewards - rewards.mean(0, keepdim=True)",
        ),
    ),
)
