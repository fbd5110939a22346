"""The declared experiment: its arms, its paired seeds, and the comparisons, chosen before any of it was run.

What was chosen later says so: VIEWS, AFTERWARDS and the base of `hard`. The learning rate and the number of steps come
from trial runs, so that arms learn within the steps; they were tuned for no arm. An arm is flags of `train.py`, and
what all have in common is said once. Seed s names the order of the questions and all sampling, so the cells of
one seed belong together. Nothing here runs or computes anything.
"""

from dataclasses import dataclass

# The learning rate is constant, so that a run cut short is a run with fewer steps: curves can be read at any budget.
COMMON = (
    "--data trails --num_generations 8 --questions_per_step 8 --max_steps 15 --learning_rate 4e-4 --warmup_steps 3 "
    "--lr_scheduler_type constant --eval_steps 3 --eval_questions 100 --test_questions 100"
)
SAMPLES = 4  # sampled answers to each held-out question
NOISE_BATCHES = 3  # gradients at the start policy, from which the noise of an arm's estimator is read
SECONDS = 60  # what a cell takes of one core, for the estimate until there are measured ones


@dataclass(frozen=True)
class Arm:
    flags: str  # of train.py, after COMMON
    says: str  # what it is, in the tables
    base: str = ""  # the arm that it is compared with
    seeds: int = 8
    start: str = "start"  # the untrained arm of its world, where its curve begins


TREE = "--num_initial 2 --fan_out 3 --branch_rule"  # N = 2, Z = 3: where rules can part most

# The arms of the paper's claim, at 16 seeds. The threshold rule decides wave by wave, and the places of one wave mostly
# stand behind the same tokens: a lot among those changes nothing. What entropy tells it is when to fork, so its control
# forks at a quarter of the results, by lot: the start policy meets ΔH > 0 at 12 to 20%. A wave asks all paths at once,
# so such forks come early, and fill the budget more often.
MAIN = {
    "start": Arm("--algo grpo", "no training", seeds=16),
    "grpo": Arm("--algo grpo", "no forks, M = 8", seeds=16),
    "grpo-m6": Arm(
        "--algo grpo --num_generations 6", "no forks, M = 6: about the calls of the threshold rule", "grpo", 16
    ),
    "grpo-m4": Arm(
        "--algo grpo --num_generations 4", "no forks, M = 4: about the calls of the best places", "grpo", 16
    ),
    "arpo": Arm("--num_initial 4", "as the paper: N = 4, Z = 1, threshold", "grpo", 16),
    "threshold-entropy": Arm(f"{TREE} threshold", "N = 2, Z = 3, the paper's rule", "grpo", 16),
    "threshold-rate": Arm(
        f"{TREE} coin --base_prob 0.25 --entropy_weight 0",
        "at a quarter of the results, by lot",
        "threshold-entropy",
        16,
    ),
    "best-entropy": Arm(f"{TREE} best", "N = 2, Z = 3, where the whole tree's ΔH is highest", "grpo", 16),
    "best-lot": Arm(f"{TREE} best --score lot", "anywhere in the whole tree", "best-entropy", 16),
}

SCORES = {
    "threshold-lot": Arm(f"{TREE} threshold --score lot", "by lot within a wave", "threshold-entropy"),
    "threshold-lowest": Arm(f"{TREE} threshold --score lowest", "lowest ΔH within a wave", "threshold-entropy", 2),
    "threshold-tail": Arm(f"{TREE} threshold --score tail", "deepest within a wave", "threshold-entropy", 2),
    "best-lowest": Arm(f"{TREE} best --score lowest", "where the tree's ΔH is lowest", "best-entropy"),
    "best-tail": Arm(f"{TREE} best --score tail", "deepest first", "best-entropy"),
    "coin-entropy": Arm(f"{TREE} coin", "the released code's rule", "grpo"),
    "coin-lot": Arm(f"{TREE} coin --score lot", "the same, ΔH by lot", "coin-entropy"),
}

METHODS = {
    "value": Arm(
        f"{TREE} threshold --attribution value", "a node's value, less that at the last fork", "threshold-entropy"
    ),
    "split": Arm(f"{TREE} threshold --leaf_weights split", "a start's weight is divided", "threshold-entropy"),
    "dapo": Arm("--algo dapo", "DAPO, no forks", "grpo"),
    "reinforce++": Arm("--algo reinforce++", "REINFORCE++, no forks", "grpo"),
    # With one optimizer step for its trees the ratio is 1, and all surrogates have the same gradient.
    "two-passes": Arm(f"{TREE} threshold --num_iterations 2", "every tree is used twice", "threshold-entropy"),
    # On policy and with token means hard attribution has the gradient of soft: it needs a second pass to differ, too.
    "hard": Arm(
        f"{TREE} threshold --num_iterations 2 --attribution hard",
        "every tree is used twice, shared tokens get the mean advantage",
        "two-passes",
    ),
    "aepo-loss": Arm(f"{TREE} threshold --num_iterations 2 --surrogate aepo", "the same, AEPO's clip", "two-passes"),
}

# The paper's figure 8. M is varied at equal leaves a step, k around the world's 4, the weight under the coin.
CONSTANTS = {
    "weight-5": Arm(f"{TREE} coin --entropy_weight 5", "coin, entropy weight 5 instead of 0.2", "coin-entropy"),
    "weight-0": Arm(f"{TREE} coin --entropy_weight 0", "coin, entropy weight 0: a fair coin", "coin-entropy"),
    "n-1": Arm("--num_initial 1 --fan_out 3", "N = 1, Z = 3", "threshold-entropy"),
    "n-4": Arm("--num_initial 4 --fan_out 3", "N = 4, Z = 3", "threshold-entropy"),
    "m-4": Arm(
        "--num_generations 4 --num_initial 1 --fan_out 3 --questions_per_step 16",
        "M = 4, N = 1, Z = 3, 16 questions a step",
        "threshold-entropy",
    ),
    "m-16": Arm(
        "--num_generations 16 --num_initial 4 --fan_out 3 --questions_per_step 4",
        "M = 16, N = 4, Z = 3, 4 questions a step",
        "threshold-entropy",
    ),
    "k-1": Arm(f"{TREE} threshold --entropy_tokens 1", "k = 1 token instead of 4", "threshold-entropy"),
    "k-8": Arm(f"{TREE} threshold --entropy_tokens 8", "k = 8, a whole turn", "threshold-entropy"),
}

# An arm that calls less takes more steps for its calls: is that all, so that a larger rate would do as well? Added when
# all but the views had run.
RATES = {
    "grpo-fast": Arm("--learning_rate 8e-4", "no forks, M = 8, at twice the learning rate", "grpo"),
    "threshold-fast": Arm(
        f"{TREE} threshold --learning_rate 8e-4", "the paper's rule, at twice the learning rate", "grpo-fast"
    ),
}

# With α = τ the threshold rule is the sign of ΔH: these must be their base, digit by digit.
IDENTICAL = {
    "threshold-weight-5": Arm(
        f"{TREE} threshold --entropy_weight 5", "threshold, entropy weight 5", "threshold-entropy", 2
    ),
    "threshold-over-v": Arm(
        f"{TREE} threshold --entropy_norm vocab", "threshold, entropies over V", "threshold-entropy", 2
    ),
}

# The same with a view at three in ten of the other posts, which the policy remarks on in a word of its own choice: 70%
# of its entropy decides nothing there. Added after the arms above had run, and before any of these did. Without
# training (`criticality.py`) the threshold rule finds half as much there as in the plain trails, and the best places
# by entropy no more than a lot: so entropy should help the one less and the other not at all.
VIEWED = "--data trails:0.3"
VIEWS = {
    "views-start": Arm(f"{VIEWED} --algo grpo", "no training", start="views-start"),
    "views-grpo": Arm(f"{VIEWED} --algo grpo", "no forks, M = 8", start="views-start"),
    "views-threshold": Arm(
        f"{VIEWED} {TREE} threshold", "N = 2, Z = 3, the paper's rule", "views-grpo", start="views-start"
    ),
    "views-rate": Arm(
        f"{VIEWED} {TREE} coin --base_prob 0.25 --entropy_weight 0",
        "forks at any result",
        "views-threshold",
        start="views-start",
    ),
    "views-best": Arm(
        f"{VIEWED} {TREE} best", "N = 2, Z = 3, where the whole tree's ΔH is highest", "views-grpo", start="views-start"
    ),
    "views-lot": Arm(
        f"{VIEWED} {TREE} best --score lot", "anywhere in the whole tree", "views-best", start="views-start"
    ),
}

ARMS = MAIN | SCORES | METHODS | CONSTANTS | RATES | IDENTICAL | VIEWS

# The arms whose places entropy chose, and those of the same rule whose places something else chose.
BY_ENTROPY = ("threshold-entropy", "best-entropy", "coin-entropy")
PLACES = [(arm, name) for arm in BY_ENTROPY for name, other in (MAIN | SCORES).items() if other.base == arm]
# Pairs of which it is measured on how many forks they differ.
FORKED = [*PLACES, ("views-threshold", "views-rate"), ("views-best", "views-lot")]
# In the README: the main arms, and those that speak against choosing places by entropy.
SHORT = (*MAIN, "best-lowest", "best-tail")

# What the paper says or implies, as (arm, other arm): it holds where the first learns more from as many calls. Once
# attribution was compared at one pass, where soft and hard turned out to be the same.
CLAIMS = {
    "branching as the paper has it beats sampling without forks": ("arpo", "grpo"),
    "and sampling fewer leaves without forks": ("arpo", "grpo-m6"),
    "so does the paper's rule with N = 2, Z = 3": ("threshold-entropy", "grpo"),
    "the same at twice the learning rate": ("threshold-fast", "grpo-fast"),
    "and so do forks at the tree's highest entropies": ("best-entropy", "grpo"),
    "which beat fewer leaves without forks, too": ("best-entropy", "grpo-m4"),
    "entropy tells the paper's rule when to fork": ("threshold-entropy", "threshold-rate"),
    "entropy tells where in the whole tree to fork": ("best-entropy", "best-lot"),
    "the same where most entropy decides nothing (views)": ("views-threshold", "views-rate"),
    "and in the whole tree": ("views-best", "views-lot"),
    "entropy matters in the released code's coin": ("coin-entropy", "coin-lot"),
    "with two passes, soft attribution is better than hard": ("two-passes", "hard"),
}

# Asked when the first cells had been seen, since they speak against the paper; these arms were there from the start.
AFTERWARDS = {
    "branching as the paper has it beats half as many leaves without forks": ("arpo", "grpo-m4"),
    "and so does the paper's rule with N = 2, Z = 3": ("threshold-entropy", "grpo-m4"),
    "the tree's highest entropies are better places than its lowest": ("best-entropy", "best-lowest"),
    "and better than its deepest results": ("best-entropy", "best-tail"),
}
