"""What spoils a run without an error, said in words; and how a run is stopped.

`Watch` looks at the numbers of a step, as they stand in metrics.jsonl, and tells each kind of trouble when it first
shows and then ever more rarely. Left out: what is checked once, before the first step (`eval.py:check_numbers`).
"""

import signal
import threading
from collections import Counter
from contextlib import suppress

from tqdm import tqdm

FAR_APART = 0.05  # kl_sampler, nats: far above what rounding to 16 bits does
ALARMS = {
    "malformed": (
        lambda row: row["malformed"] == 1,
        "every rollout is malformed (wrong format, or out of tokens or calls), so there is nothing to learn from; the "
        "policy may need a longer cold start, or larger --max_turn_tokens and --max_completion_length",
    ),
    "no calls": (
        lambda row: row["step"] == 1 and row["calls_per_question"] == 0,
        "the policy called no tool: it may not know them, and need a cold start (--cold_start)",
    ),
    "alike": (
        lambda row: row["no_variance"] == 1,
        "all leaves of every question are rewarded alike: this step teaches nothing",
    ),
    "collapse": (
        lambda row: row["identical"] > 0.9,
        "{identical:.0%} of the rollouts repeat another: sampling has collapsed",
    ),
    "numbers": (
        lambda row: row["trained"] and not row["kl_sampler"] < FAR_APART,
        "kl_sampler is {kl_sampler:.3g}: tokens are trained with other probabilities than they were sampled with",
    ),
    "unchanged": (
        lambda row: row["trained"] and not row["changed"] and not row["skipped"],
        "the update changed no weight: the learning rate of {learning_rate:.3g} is too small for weights of this type",
    ),
    "no gradient": (
        lambda row: row["trained"] and row["without_gradient"] and not row["skipped"],
        "{without_gradient} of the trained layers got no gradient",
    ),
}

UNCHANGED = "no step changed a weight: the model of the last step is, bit for bit, the one that training began with\n"


class Watch:
    """Tells of alarms; ends a run whose gradient is not finite in three steps in a row."""

    def __init__(self):
        self.skipped, self.times = 0, Counter()

    def __call__(self, row: dict[str, float]) -> None:
        for kind, (rings, text) in ALARMS.items():
            if rings(row):
                self.times[kind] += 1
                if self.times[kind] in (1, 10, 100, 1000):
                    tqdm.write(f"step {row['step']}: {text.format(**row)}")
        self.count(row["step"], row["skipped"])

    def count(self, step: int, skipped: int, rate: str = "--learning_rate") -> None:
        """Steps in a row whose gradient was not finite; the third one ends the run."""
        self.skipped = self.skipped + 1 if skipped else 0
        if self.skipped == 3:
            raise SystemExit(f"step {step}: the gradient was not finite in 3 steps in a row; lower {rate}")


class StopRequest:
    """Ctrl-C, or a scheduler's TERM: once, and the work stops after this step; twice, at once.

    To be used as a context; after it, Ctrl-C does what it did before.
    """

    def __init__(self, what: str = "with a checkpoint"):
        self.asked, self.what, self.before = False, what, {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self.ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *error) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def ask(self, number, frame) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        with suppress(OSError):  # nobody may be reading any more
            tqdm.write(f"stopping after this step, {self.what}; once more to stop at once")
