"""Several processes that train together (`torchrun`): who does what, and what all of them then know.

With one process everything here is the identity. Gradients are summed elsewhere (`optimizer.py`).
"""

from collections import Counter
from collections.abc import Sequence

from accelerate import PartialState
from accelerate.utils import gather_object


def my_share(items: Sequence) -> Sequence:
    """Every so many of the items, beginning at another one in each process."""
    return items[PartialState().process_index :: PartialState().num_processes]


def everyones(value) -> list:
    """The values of all processes, in the order of their ranks."""
    return gather_object([value]) if PartialState().num_processes > 1 else [value]


def summed(counts: Counter) -> Counter:
    """What all processes have counted together."""
    return sum(everyones(counts), Counter())


def dealt_back(results: list) -> list:
    """What each process made of its share, from all of them, in the order in which the items were: [a, c], [b]."""
    shares = everyones(results)
    return [share[i] for i in range(len(shares[0])) for share in shares if i < len(share)]


def merged(metrics: dict[str, float]) -> dict[str, float]:
    """An update's metrics over all processes: counts and the loss add up, means weigh by `trained`, the rest agrees."""
    every = everyones(metrics)
    sums = {name: sum(own[name] for own in every) for name in ("train_tokens", "trained", "loss")}
    names = {"clip_fraction", "kl_sampler", "kl_reference"} & {name for own in every for name in own}
    weighted = lambda name: sum(own.get(name, 0.0) * own["trained"] for own in every)
    return metrics | sums | {name: weighted(name) / max(1, sums["trained"]) for name in names}
