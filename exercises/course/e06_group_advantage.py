"""Exercise 6: rewards, centred in their group."""

from exercises.course.exercise import Exercise, Mistake
from exercises.patches import Blank


def cases(rng):
    """By the number of rewards, equal ones last. There are as many groups as a group has leaves, so that a mean
    that has lost its axis gives numbers, which can be told, and no error."""

    def draw(questions, leaves):
        """Groups of different means, none of which is the median."""
        rows, means = [], {0.9}
        while len(rows) < questions:
            row = [rng.choice([-1.0, 0.0, 0.5, 1.0, 1.1]) for _ in range(leaves)]
            mean = round(sum(row) / leaves, 3)
            if mean not in means and all(abs(mean - value) > 0.01 for value in row):
                rows, means = [*rows, row], means | {mean}
        return rows

    first, last = draw(2, 3)
    mixed = [first, [0.9] * 3, last]
    return [draw(1, 3), draw(1, 4)[0], draw(3, 3), draw(4, 4), mixed, [[0.1] * 7]]  # whose mean is not a tenth


def expected(case):
    """Row by row in exact arithmetic; with it, the number of exact zeros in rows of equal rewards."""
    from fractions import Fraction

    groups = case if isinstance(case[0], list) else [case]
    rows = []
    for row in groups:
        values = [Fraction(value) for value in row]
        rows.append([float(value - sum(values) / len(values)) for value in values])
    zeros = sum(len(row) for row in groups if min(row) == max(row))
    return [rows if groups is case else rows[0], zeros]


def probe(case):
    import torch

    from advantage import centred

    rewards = torch.tensor(case)
    values = centred(rewards).tolist()
    if not rewards.equal(torch.tensor(case)):
        raise ValueError("rewards is changed in place: they are needed as they were, so work on a copy")
    groups, found = (case, values) if rewards.dim() > 1 else ([case], [values])
    return [values, sum(value == 0 for row, got in zip(groups, found) for value in got if min(row) == max(row))]


MEAN = "(rewards - rewards.mean(-1, keepdim=True)).masked_fill(same, 0)"

EXERCISE = Exercise(
    number=6,
    title="Advantages of a group",
    minutes=15,
    core=True,
    task="Return each reward less the mean of its group, the last axis, be there others or none; exactly 0 where all "
    "of a group are equal.",
    idea="A leaf is compared with other leaves of the same question; equal rewards teach exactly nothing.",
    misconception="rewards are signals by themselves",
    question="All eight leaves are wrong and each gets -1. What does the policy learn from the question?",
    answer="Nothing: every advantage is 0. That all were wrong is told by the accuracy, not by the gradient.",
    blanks=(Blank("advantage.py", "centred", ""),),
    asks=("exercise 6: return the centred rewards, of the same shape as rewards",),
    modules=("advantage",),
    told="rewards of the groups, or of one without an axis for the question; an answer has what comes of them, and how "
    "many exact zeros groups of equal rewards gave",
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
            "divided by the deviation",
            MEAN,
            f"{MEAN} / (rewards.std(-1, keepdim=True) + EPS)",
            "You divided by the deviation: ADVANTAGES does that. Return r - mean alone.",
            also="(rewards - rewards.mean(-1, keepdim=True)) / (rewards.std(-1, keepdim=True) + EPS)",
        ),
        Mistake(
            "divided by the population's deviation",
            MEAN,
            f"{MEAN} / (rewards.std(-1, correction=0, keepdim=True) + EPS)",
            "You divided by the deviation, that of a population: ADVANTAGES divides. Return r - mean alone.",
        ),
        Mistake(
            "equal in the whole batch",
            ".masked_fill(same, 0)",
            ".masked_fill(same.all(), 0)",
            "You asked whether all groups are equal. A batch has groups of both kinds: those that are equal get "
            "exactly 0, and the others what they get.",
        ),
        Mistake(
            "any group is equal",
            ".masked_fill(same, 0)",
            ".masked_fill(same.any(), 0)",
            "One group of equal rewards has set the whole batch to 0: ask group by group.",
        ),
        Mistake(
            "the mean has lost its axis",
            MEAN,
            "(rewards - rewards.mean(-1)).masked_fill(same, 0)",
            "Your mean has lost its axis, so the first group's mean is taken from every group's first leaf. "
            "`keepdim=True` keeps it. With another number of groups than of leaves it is an error.",
            also="rewards - rewards.mean(-1)",
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
