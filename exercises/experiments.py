"""Three experiments for a class: everybody runs one with a seed of their own, and the runs are put together.

An experiment has arms, which differ in a flag or two of `train.py` and share their seed, so that each student's run is
a pair. The unit is the run: thirty students are thirty numbers, however many questions each has answered. Left out:
where results are kept (`classroom.py`).
"""

import hashlib
import json
import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import combinations

import numpy as np

from exercises.copies import version_of_sources

Numbers = dict[str, float]


@dataclass(frozen=True)
class Experiment:
    title: str
    question: str  # what to predict before
    flags: str  # of all arms
    arms: dict[str, str]  # flags of each; each is compared with each
    measure: Callable  # from an arm's settings to numbers
    lesson: str  # for the teacher: what a class can conclude, and what not


def learn(config) -> Numbers:
    """A short training run by the functions of `train.py`, then the held-out questions, one sampled answer to each."""
    from data.optimizer import Optimizer
    from eval import evaluate, open_policy
    from tools import make_sandbox
    from train import Stream, load_tasks, take_step

    train, _, test = load_tasks(config, make_sandbox(config), None)
    policy, rows = open_policy(config, config.lora_r), []
    optimizer, stream = Optimizer.of(policy.model, config), Stream(train.questions, config.seed)
    for step in range(1, config.max_steps + 1):
        row, *_, config = take_step(step, policy, optimizer, stream, train.tools, config)
        rows.append(row)
    judged = evaluate(policy, test, config, 1, config.temperature, config.seed)
    total = lambda name: sum(row[name] for row in rows)
    return {
        "calls in training": total("calls_per_question") * config.questions_per_step,
        "tokens sampled": total("decoded"),
        "held-out accuracy": float(np.mean([result.mean("accuracy") for result in judged])),
        "held-out calls": float(np.mean([result.mean("calls") for result in judged])),
    }


def look(config) -> Numbers:
    """Groups of a policy that does not learn: how many are all right or all wrong, and what a leaf costs."""
    from data.metrics import rollout_metrics
    from eval import open_policy
    from tools import make_sandbox
    from train import Stream, collect, load_tasks

    train, _, _ = load_tasks(config, make_sandbox(config), None)
    policy, stream = open_policy(config, config.lora_r), Stream(train.questions, config.seed)
    kept = [s for step in range(config.max_steps) for s in collect(stream, policy, train.tools, config, step)[0]]
    return {
        "groups alike": float(np.mean([alike([s.accuracy for s in scored.scores], GROUP) for scored in kept])),
        "calls a leaf": rollout_metrics(kept, [], config)["calls_per_question"] / config.num_generations,
    }


GROUP = 8  # leaves of a group
OUTCOMES = {
    learn: ("calls in training", "tokens sampled", "held-out accuracy", "held-out calls"),
    look: ("groups alike", "calls a leaf"),
}
SHARES = "held-out accuracy", "groups alike"  # the others are counts
FEW = 4  # runs; of fewer the spread itself is hardly known


def alike(right: list[float], size: int) -> float:
    """How often `size` of these leaves are all right or all wrong. Of just as many: whether they are. Of more that are
    independent: an unbiased estimate of p^size + (1 - p)^size."""
    n, c = len(right), sum(value == 1 for value in right)
    return (math.comb(c, size) + math.comb(n - c, size)) / math.comb(n, size)


EXPERIMENTS = {
    "branching": Experiment(
        "Does it matter where it forks, and what does it save?",
        "Which arm needs most tool calls, and which is most accurate in the end?",
        "--model trails --max_steps 6 --learning_rate 6e-4 --warmup_steps 2 --lr_scheduler_type constant --fan_out 3 "
        "--test_questions 100",
        {
            "arpo": "--algo arpo",
            "lot": "--branch_rule coin --base_prob 0.25 --entropy_weight 0",
            "grpo": "--algo grpo",
        },
        learn,
        "`lot` forks at any result with a chance of one quarter, whatever the entropies say. A tree executes the calls "
        "that its leaves share once, so calls are where arms should part, and a few students may be enough to see it. "
        "For accuracy look at the last line of a comparison: a difference below it could not have been seen even by "
        'thirty, and "not told from 0" is no proof of 0. Nothing follows for larger models or other tasks.',
    ),
    "bonus": Experiment(
        "Do you get what you pay for?",
        "How do accuracy and calls change with the bonus: up, down, or first one and then the other?",
        "--model tiny --max_steps 8 --questions_per_step 8 --learning_rate 1e-3 --warmup_steps 1 "
        "--lr_scheduler_type constant --test_questions 100",
        {"none": "--reward_bonus 0", "0.1": "--reward_bonus 0.1", "0.5": "--reward_bonus 0.5"},
        learn,
        "The bonus is paid for a right answer with search and Python, which one family of questions in six needs. In "
        "eight steps an effect on calls is small against the spread between seeds; look whether the interval holds 0 "
        "before telling a story. A dose curve needs all three arms of each student.",
    ),
    "variance": Experiment(
        "What does sharing cost?",
        "In how many of a hundred groups are all eight leaves right or all wrong: more with trees, or fewer?",
        "--model tiny --max_steps 5 --questions_per_step 12",
        {
            "arpo": f"--algo arpo --num_generations {GROUP}",
            "grpo": f"--algo grpo --num_generations {GROUP}",
            "theory": f"--algo grpo --num_generations {2 * GROUP}",
        },
        look,
        "Independent leaves are all alike with p^8 + (1 - p)^8. `theory` estimates that for each question from 16 "
        "leaves, "
        "`grpo` counts eight of them: the two must agree. A tree's leaves share beginnings and cost fewer calls; what "
        "that costs is the difference in groups alike, which teach nothing. All this is about this policy and these "
        "questions: it changes as the policy learns.",
    ),
}


def listed() -> str:
    """The experiments, what each asks and what it compares."""
    return "\n\n".join(
        f"{name}: {experiment.title}\n  Predict: {experiment.question}\n"
        + "\n".join(f"  {arm:8s} {flags}" for arm, flags in experiment.arms.items())
        for name, experiment in EXPERIMENTS.items()
    )


def run(name: str, seed: int, told: Callable[[str], None], more: tuple[str, ...] = ()) -> dict:
    """All arms of an experiment with one seed; `more` flags are about the machine and change no number."""
    from transformers.utils.logging import disable_progress_bar

    from train import read_flags

    disable_progress_bar()
    experiment, arms, started = EXPERIMENTS[name], {}, time.process_time()
    for arm, flags in experiment.arms.items():
        config = read_flags(
            [*experiment.flags.split(), *flags.split(), "--seed", str(seed), "--output_dir", "none", *more]
        )
        arms[arm] = experiment.measure(config)
        told(f"{arm:8s} " + "  ".join(f"{what} {value:,.4g}" for what, value in arms[arm].items()))
    seconds = round(time.process_time() - started)
    return {"experiment": name, "seed": seed, "hash": hash_of(name), "arms": arms, "seconds": seconds}


@cache
def hash_of(name: str) -> str:
    """Of what must be alike in runs that are put together: the flags and the code."""
    text = json.dumps([EXPERIMENTS[name].flags, EXPERIMENTS[name].arms, version_of_sources()])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


# ---------------------------------------------------------------------------------- put together


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half of the 95% interval, Student's t over runs; infinite for a single one."""
    from experiments.measures import t_quantile

    if len(values) < 2:
        return float(np.mean(values)), math.inf
    spread = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return float(np.mean(values)), t_quantile(len(values) - 1) * spread


def detectable(differences: list[float], runs: int) -> float:
    """The true difference that so many runs would tell from 0 in four of five classes, by their spread. It must reach
    beyond the interval's half width, since in half of all classes the mean falls short of the truth."""
    from experiments.measures import t_quantile

    reach = t_quantile(runs - 1) + t_quantile(runs - 1, 0.4)
    return reach * float(np.std(differences, ddof=1)) / math.sqrt(runs)


def checked_run(name: str, run: dict, seed: int) -> dict:
    """What `run` returns, if that may be so: all arms and numbers, none impossible. Raises ValueError."""
    if name not in EXPERIMENTS:
        raise ValueError(f"expected one of the experiments {', '.join(EXPERIMENTS)}, found {name!r}")
    found = {key: run.get(key) if isinstance(run, dict) else None for key in ("experiment", "seed", "hash", "arms")}
    if found["experiment"] != name or found["seed"] != seed or not isinstance(found["hash"], str):
        raise ValueError(f"expected a run of {name} with the student's own seed, {seed}, found {str(found)[:100]}")
    arms, outcomes = EXPERIMENTS[name].arms, set(OUTCOMES[EXPERIMENTS[name].measure])
    if not isinstance(found["arms"], dict) or found["arms"].keys() != arms.keys():
        raise ValueError(f"{name}: expected the arms {', '.join(arms)}, found {str(found['arms'])[:100]}")
    for arm, numbers in found["arms"].items():
        if not isinstance(numbers, dict) or numbers.keys() != outcomes:
            raise ValueError(f"{name}, {arm}: expected {', '.join(sorted(outcomes))}, found {str(numbers)[:100]}")
        for outcome, value in numbers.items():
            most = 1 if outcome in SHARES else math.inf
            if type(value) not in (int, float) or not (0 <= value <= most and math.isfinite(value)):
                told = f"a number from 0 to {most}" if outcome in SHARES else "a number that is not below 0"
                raise ValueError(f"{name}, {arm}, {outcome}: expected {told}, found {str(value)[:80]}")
    return run


def fitting(name: str, runs: dict[str, dict]) -> tuple[dict[str, dict], list[str]]:
    """The runs that belong together, by student: of the commonest version and command, and each run once, under the
    first name given, since nobody can tell from here whose it is. With them a line for each that is left out."""
    kinds = Counter(run["hash"] for run in runs.values())
    usual = max(kinds, key=lambda kind: (kinds[kind], kind == hash_of(name)))
    kept, left_out = {}, []
    for student, run in runs.items():
        alike = [other for other, own in kept.items() if own["seed"] == run["seed"]]
        copied = [other for other, own in kept.items() if own["arms"] == run["arms"]]
        if run["hash"] != usual:
            left_out.append(f"{student} is left out: a run of another version or command than most")
        elif alike:
            left_out.append(f"{student} is left out: the seed of {alike[0]}, and a seed is one run")
        elif copied:
            left_out.append(f"{student} is left out: the very numbers of {copied[0]}, which count once")
        else:
            kept[student] = run
    return kept, left_out


def pooled(name: str, runs: dict[str, dict]) -> str:
    """The table of a class: `runs` by student, all of one kind."""
    experiment = EXPERIMENTS[name]
    values = lambda arm, outcome: [run["arms"][arm][outcome] for run in runs.values()]
    constant = lambda outcome: len({value for arm in experiment.arms for value in values(arm, outcome)}) == 1
    every = OUTCOMES[experiment.measure]
    outcomes = [outcome for outcome in every if not constant(outcome)] or list(every)
    told = f"{len(runs)} runs, mean and 95% interval over runs" if len(runs) > 1 else "1 run: no interval yet"
    told += "".join(f"; {o}: {values(next(iter(experiment.arms)), o)[0]:.4g} everywhere" for o in every if constant(o))
    lines = [f"{name}: {experiment.title}", told, ""]
    lines.append(f"{'':20s}" + "".join(f"{outcome:>26s}" for outcome in outcomes))
    cell = lambda pair: f"{pair[0]:12,.4g} " + (f"± {pair[1]:<9,.3g}" if math.isfinite(pair[1]) else " " * 11)
    for arm in experiment.arms:
        lines.append(f"{arm:20s}" + "".join(f"{cell(interval(values(arm, o))):>26s}" for o in outcomes))
    for first, other in combinations(experiment.arms, 2):
        gaps = [list(np.subtract(values(first, o), values(other, o))) for o in outcomes]
        lines.append(f"{f'{first} - {other}':20s}" + "".join(f"{cell(interval(gap)):>26s}" for gap in gaps))
        lines += [f"{'  ' + what:20s}" + "".join(f"{text:>26s}" for text in row) for what, row in verdicts(gaps)]
    if len(runs) >= FEW:
        lines.append(
            "could be seen: the smallest true difference that so many runs would tell from 0 in four of five classes; "
            "by thirty: that thirty would."
        )
    lines.append("Below, each run is a mark: 1, or how many stand there.")
    dots = [dotted(o, {arm: values(arm, o) for arm in experiment.arms}) for o in outcomes]
    return "\n".join([*lines, "", *dots, "", experiment.lesson])


def verdicts(gaps: list[list[float]]) -> list[tuple[str, list[str]]]:
    """What the runs say of each difference, and how small a one they and a class of thirty could have seen, if they are
    enough to say so."""
    said, runs = [], len(gaps[0])
    if runs < 2:
        return []
    for gap in gaps:
        mean, half = interval(gap)
        said.append("not told from 0" if not abs(mean) > half else "above 0" if mean > 0 else "below 0")
    if runs < FEW:
        return [("95% interval", said)]
    now, thirty = ([f"{detectable(gap, many):,.3g}" for gap in gaps] for many in (runs, 30))
    return [("95% interval", said), ("could be seen", now), ("by thirty", thirty)]


def dotted(outcome: str, arms: dict[str, list[float]], width: int = 60) -> str:
    """Every run as a dot on a line for each arm: none is dropped."""
    every = [value for values in arms.values() for value in values]
    low, high = min(every), max(every)
    lines = [f"{outcome}, from {low:,.4g} to {high:,.4g}"]
    for arm, values in arms.items():
        places = [round((value - low) / ((high - low) or 1) * (width - 1)) for value in values]
        marks = [str(min(9, places.count(n))) if n in places else "." for n in range(width)]
        lines.append(f"  {arm:8s} {''.join(marks)}")
    return "\n".join(lines)
