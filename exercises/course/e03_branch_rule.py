"""Exercise 3: the branch rule, a bar and a budget."""

import math

from exercises.course.exercise import Exercise, Mistake
from exercises.patches import Blank


def cases(rng):
    drawn = []
    for count, budget, fan_out in ((1, 4, 1), (2, 4, 1), (3, 12, 2), (3, 2, 1), (5, 4, 3)):
        first, jumps = [round(rng.uniform(0.5, 3), 2) for _ in range(count)], []
        while len(jumps) < count:  # jumps of different sizes, those of the last case all upwards
            jump = round(rng.uniform(0.1 if count == 5 else -0.4, 1.5), 2)
            jumps += [jump] * (all(abs(jump - other) > 0.05 for other in jumps) and abs(jump) > 0.05)
        order = {1: [0], 2: [0, 1], 3: [0, 2, 1], 5: [1, 4, 0, 3, 2]}[count]  # the largest neither first nor last
        jumps = [sorted(jumps)[rank] for rank in order]
        places = [[h, round(h + jump, 2)] for h, jump in zip(first, jumps)]
        config = {"base_prob": 0.5, "entropy_weight": 0.3, "threshold": 0.5, "fan_out": fan_out}
        drawn.append({"places": places, "budget": budget, **config})
    drawn[0]["places"][0] = [1.25, 1.25]  # nothing happened
    drawn[1]["places"][0] = [1.5, 1.5 + 1e-8]  # nothing either, but for the rounding error of another batch
    low = drawn[3]["places"][0]
    low[1] = round(low[0] - 0.2, 2)  # one below the bar
    drawn[2] |= {"threshold": 0.45}  # below alpha: small falls fork, too
    # With β below 0 falls fork, and the highest P is not the highest ΔH.
    falls = [[2.0, round(2 - rng.uniform(low, low + 0.2), 2)] for low in (0.3, 0.8)]
    drawn.insert(3, {"places": falls, "budget": 1, **config, "fan_out": 1, "entropy_weight": -0.4})
    # Under the coin each place has a bar of its own: those of the highest P here are close below it, or above.
    rises = [round(rng.uniform(low, low + 0.2), 2) for low in (0.6, 1.0, 1.4, 1.8)]
    coin = {"branch_rule": "coin", "base_prob": 0.4, "entropy_weight": 0.9, "threshold": 0.5, "fan_out": 1}
    odds = [0.4 + 0.9 * rise / math.log(100) for rise in rises]
    bars = [round(p + more, 3) for p, more in zip(odds, (-0.4, -0.2, -0.05, 0.1))]
    places = [[0.5, round(0.5 + rise, 2)] for rise in rises]
    drawn.insert(4, {"places": places[:3], "budget": 2, **coin, "coins": bars[:3]})
    drawn.insert(5, {"places": places, "budget": 9, **coin, "coins": bars})
    return drawn


def expected(case):
    """One place after the other: that of the highest P among those that are left, as long as P > τ and budget last."""
    seen = []
    bars = case.get("coins") or [case["threshold"]] * len(case["places"])
    for (before, after), bar in zip(case["places"], bars):
        delta = round(after - before, 6) / math.log(100)
        seen.append([delta, case["base_prob"] + case["entropy_weight"] * delta, bar, 0])
    budget, left = case["budget"], list(range(len(seen)))
    while left:
        best = left[0]
        for place in left:
            if seen[place][1] > seen[best][1]:
                best = place
        left.remove(best)
        while seen[best][1] > seen[best][2] and budget and seen[best][3] < case["fan_out"]:
            seen[best][3] += 1
            budget -= 1
    return seen


def probe(case):
    from types import SimpleNamespace

    import rollout
    from rollout import GrowingTree, Node, Place, RolloutConfig

    names = {"fan_out", "base_prob", "entropy_weight", "threshold", "branch_rule"} & set(case)
    config = RolloutConfig(num_generations=20, num_initial=1, **{name: case[name] for name in names})
    tree = GrowingTree([1, 2], "key", 0, config, SimpleNamespace(tokenizer=None, vocab_size=100))
    tree.budget, tree._branch = case["budget"], lambda place, new: None  # growing is another exercise
    for n, (before, after) in enumerate(case["places"]):
        tree.tree.nodes.append(Node([3, 4], [-1.0] * 2, [before] * 2, "call"))
        start = SimpleNamespace(key=f"key/{n}", ids=[1, 2, 3], initial_entropy=before, node=n)
        tree.places.append(Place(start, start, n, after, 0))
    drawn, coins = rollout.uniform, {f"key/{n}/coin": coin for n, coin in enumerate(case.get("coins", []))}
    rollout.uniform = lambda key, position: coins.get(key, 0.5)  # the coins are those of the case
    try:
        tree.fork()
    finally:
        rollout.uniform = drawn
    seen = [node.decision for node in tree.tree.nodes]
    return [[d.delta, d.prob, d.bar, d.new_paths] for d in seen]


GRANT = """for i in sorted(range(len(places)), key=lambda i: -odds[i][0]):
            long_enough = cfg.fork_at == "result" or len(self.tree.nodes[places[i].turn].ids) > cfg.entropy_tokens
            if long_enough and odds[i][0] > odds[i][1]:
                granted[i] = min(cfg.fan_out, self.budget - sum(granted))
"""

EXERCISE = Exercise(
    number=3,
    title="The branch rule",
    minutes=25,
    core=True,
    task="Set `deltas`, ΔH of each place: H_t less H_initial, rounded to 6 digits, over `self.norm`. Return P_t = α + "
    "β ΔH and the bar. And grant new paths: `granted[i]` for each place, at most `fan_out` each and `self.budget` in "
    "all, where P_t exceeds the bar; where the budget is short, the highest P_t goes first.",
    idea="The rule looks for a jump, over a strict bar, within a budget that is the same for all questions.",
    misconception="fork where entropy is high",
    question="α and τ are both 0.5 by default. What do β and the normaliser decide then?",
    answer="Nothing: P_t > τ is then ΔH > 0, whatever factor stands before it. They matter under the coin, or where "
    "τ differs from α.",
    blanks=(
        Blank("rollout.py", "GrowingTree.fork", "deltas ="),
        Blank("rollout.py", "GrowingTree._grant", "for i in"),
        Blank("rollout.py", "GrowingTree._odds", "return"),
    ),
    asks=(
        "exercise 3: set deltas, a list with ΔH of each place (place.entropy is H_t, place.start.initial_entropy "
        "H_initial)",
        "exercise 3: fill granted (odds[i] is P_t and the bar of place i; fork_at 'probe' may be left aside)",
        "exercise 3: return P_t and bar (cfg.base_prob is α, cfg.entropy_weight β)",
    ),
    modules=("rollout",),
    told="places: [H_initial, H_t] of each; coins: under branch_rule 'coin' the bar of each; an answer has [ΔH, P_t, "
    "bar, new paths] for each",
    hints=(
        "Go through the places in the order of falling P_t: sorted(range(len(places)), key=...).",
        "A place above the bar gets `fan_out` new paths, or what is left: `self.budget` less what was granted so far.",
    ),
    mistakes=(
        Mistake(
            "H_t alone",
            "round(place.entropy - place.start.initial_entropy, 6)",
            "round(place.entropy, 6)",
            "You fork where entropy is high. A question that is hard from the first word then forks everywhere; what "
            "tells that a result mattered is the jump, H_t less H_initial.",
        ),
        Mistake(
            "at the bar",
            "odds[i][0] > odds[i][1]",
            "odds[i][0] >= odds[i][1]",
            "You fork at the bar, too. With α = τ a place where nothing happened (ΔH = 0) must not fork, and now does.",
        ),
        Mistake(
            "not rounded",
            "round(place.entropy - place.start.initial_entropy, 6)",
            "(place.entropy - place.start.initial_entropy)",
            "You did not round: the H_t of one place here is above its H_initial by 0.00000001, which is the rounding "
            "error of a sum and no jump. Without rounding a tree depends on what else was in its batch.",
        ),
        Mistake(
            "budget in the order of the list",
            "sorted(range(len(places)), key=lambda i: -odds[i][0])",
            "range(len(places))",
            "You served the places in their order. The first path got the last fork, though a later one jumped higher.",
        ),
        Mistake(
            "in the order of the margin",
            "key=lambda i: -odds[i][0]",
            "key=lambda i: odds[i][1] - odds[i][0]",
            "You served the places by P_t less its bar. Under the coin each place has a bar of its own, and luck would "
            "then come before the jump: the highest P_t goes first.",
        ),
        Mistake(
            "in the order of ΔH",
            "key=lambda i: -odds[i][0]",
            "key=lambda i: -deltas[i]",
            "You served the places by ΔH. With β below 0 the highest ΔH has the lowest P_t: the highest P_t goes "
            "first.",
        ),
        Mistake(
            "τ under the coin",
            "odds[i][0] > odds[i][1]",
            "odds[i][0] > cfg.threshold",
            "You compared with τ, whatever the rule. The bar of a place is odds[i][1]: under the coin that is the "
            "coin.",
        ),
        Mistake(
            "more under the coin",
            "        return granted\n",
            "        return [g + (cfg.branch_rule == 'coin') for g in granted]\n",
            "Under the coin you grant a path too many at each place. The rules differ in their bar and in nothing "
            "else.",
        ),
        Mistake(
            "in turns",
            GRANT,
            "for i in sorted(range(len(places)), key=lambda i: -odds[i][0]) * cfg.fan_out:\n"
            "            granted[i] += int(odds[i][0] > odds[i][1] and self.budget > sum(granted))\n",
            "You dealt the paths out in turns, one to each place. The highest P_t takes all its Z first.",
        ),
        Mistake(
            "all of Z or nothing",
            "granted[i] = min(cfg.fan_out, self.budget - sum(granted))",
            "granted[i] = cfg.fan_out * (self.budget - sum(granted) >= cfg.fan_out)",
            "Where fewer than Z are left, you granted none. The place gets what is left: the budget is spent to the "
            "end.",
        ),
        Mistake(
            "lowest first",
            "key=lambda i: -odds[i][0]",
            "key=lambda i: odds[i][0]",
            "You served the lowest P_t first. Where the budget is short, the largest jump gets nothing.",
        ),
        Mistake(
            "H_initial less H_t",
            "round(place.entropy - place.start.initial_entropy, 6)",
            "round(place.start.initial_entropy - place.entropy, 6)",
            "Your ΔH has the other sign: it is positive where the policy became more certain, so it forks there.",
        ),
        Mistake(
            "below the bar",
            "odds[i][0] > odds[i][1]",
            "odds[i][0] < odds[i][1]",
            "You fork where P_t lies below the bar. A place forks where P_t exceeds it.",
        ),
        Mistake(
            "no budget",
            "granted[i] = min(cfg.fan_out, self.budget - sum(granted))",
            "granted[i] = cfg.fan_out",
            "You overdrew the budget: such a tree has more than M leaves, and groups no longer stack into a (Q, M) "
            "table.",
        ),
        Mistake(
            "the budget is spent twice",
            "                granted[i] = min(cfg.fan_out, self.budget - sum(granted))\n",
            "                granted[i] = min(cfg.fan_out, self.budget)\n                self.budget -= granted[i]\n",
            "You take what you grant off `self.budget`, but `_grant` is asked twice in a wave, once for what a lot "
            "would have done, and `_branch` takes new paths off as well.",
        ),
        Mistake(
            "not normalised",
            "place.start.initial_entropy, 6) / self.norm",
            "place.start.initial_entropy, 6)",
            "You left out the normaliser. ΔH then depends on the size of the vocabulary, and β with it.",
        ),
        Mistake(
            "one path a place",
            "granted[i] = min(cfg.fan_out, self.budget - sum(granted))",
            "granted[i] = min(1, self.budget - sum(granted))",
            "You start one path at each place. `fan_out`, the paper's Z, says how many.",
        ),
    ),
)
