"""Silent bugs for the hunt: each is a fragment of the live source replaced, trains without an error once the check that
every run begins with is left out, and is caught by a test of the project. Most have happened, in the paper's released
code or in well-known trainers.

Left out: planting them and checking a student's test (`hunt.py`).
"""

from dataclasses import dataclass

from exercises.patches import Swap


@dataclass(frozen=True)
class Bug:
    name: str
    place: str  # file:function
    swap: Swap
    caught_by: str  # a test of the project
    shows: str  # what one sees in a run
    level: int  # 1 is easy to find


def bug(name: str, level: int, place: str, old: str, new: str, caught_by: str, shows: str) -> Bug:
    return Bug(name, place, Swap(place.partition(":")[0], old, new), caught_by, shows, level)


BUGS = (
    bug(
        "entropy before the result",
        1,
        "rollout.py:GrowingTree.sample",
        'if self.config.entropy_timing == "after" else',
        'if self.config.entropy_timing != "after" else',
        "tests/test_tree.py::test_entropy_timing",
        "ΔH is exactly 0 at every first result; forks fall and top-ups rise",
    ),
    bug(
        "results are trained",
        1,
        "arpo.py:pack",
        "node.ids + node.observation, node.logprobs, W[n], A[n]",
        "node.ids + node.observation, node.logprobs + [-1.0] * len(node.observation), W[n], A[n]",
        "tests/test_update.py::test_tool_result_and_prompt_tokens_get_exactly_zero_gradient",
        "trained is far more than decoded; kl_sampler is large",
    ),
    bug(
        "a token predicted from itself",
        1,
        "arpo.py:pack",
        "sees, before[sampled], ids[sampled]",
        "sees, index[sampled], ids[sampled]",
        "tests/test_update.py::test_packed_logprobs_equal_the_samplers",
        "loss looks as ever, since the ratio is 1; kl_sampler is above 1 and nothing is learned",
    ),
    bug(
        "a bonus for wrong answers",
        1,
        "data/grading.py:hierarchical_reward",
        'accuracy > 0.5 and {"search", "python"} <= tools_run',
        '{"search", "python"} <= tools_run',
        "tests/test_grading.py::test_the_reward_is_hierarchical",
        "reward is above what accuracy and its bonus can make; drawn trees have wrong leaves with a reward above 0",
    ),
    bug(
        "one H_initial for all trees",
        2,
        "rollout.py:GrowingTree.sample",
        "row.initial_entropy = row.last_entropy",
        'row.initial_entropy = vars(self.config).setdefault("kept", row.last_entropy)',
        "tests/test_tree.py::test_baseline_entropy_is_the_paths_own",
        "in a drawn tree H_initial is not the H of the path's first turn; it never changes from step to step",
    ),
    bug(
        "a sibling with its origin's randomness",
        2,
        "rollout.py:GrowingTree._branch",
        'key=f"{start.key}/{len(ids)}.{z}"',
        "key=start.key",
        "tests/test_tree.py::test_no_two_rows_draw_the_same_number",
        "identical and no_variance rise: siblings write the same turn again",
    ),
    bug(
        "packed paths see each other",
        2,
        "arpo.py:Batch.mask",
        "self.sees[self.owner][:, self.owner].logical_and_(self.positions[:, None] >= self.positions)",
        "self.positions[:, None] >= self.positions",
        "tests/test_update.py::test_two_trees_in_one_batch_do_not_see_each_other",
        "kl_sampler is not 0, and larger where a micro-batch holds more",
    ),
    bug(
        "positions run on",
        2,
        "arpo.py:pack",
        "positions, sampled = depths[owner] + within,",
        "positions, sampled = index,",
        "tests/test_update.py::test_packed_logprobs_equal_the_samplers",
        "kl_sampler is not 0, the larger the more is packed together",
    ),
    bug(
        "a denominator for each micro-batch",
        2,
        "arpo.py:policy_loss",
        "loss = -(W * gain).sum()",
        "loss = -(W * gain).sum() / W.sum()",
        "tests/test_update.py::test_splitting_changes_no_gradient",
        "grad_norm grows with the number of micro-batches; another --token_budget has another grad_norm",
    ),
    bug(
        "π_old is renewed",
        2,
        "arpo.py:add_gradient",
        "old = torch.tensor(noted, device=logprobs.device) if ahead else logprobs.detach()",
        "old = logprobs.detach()",
        "tests/test_update.py::test_update_steps_and_keeps_old_logprobs",
        "clip_fraction is exactly 0 although a step's trees are used twice",
    ),
    bug(
        "sum for mean",
        3,
        "rollout.py:GrowingTree.sample",
        "row.last_entropy = sum(measured) / len(measured)",
        "row.last_entropy = sum(measured)",
        "tests/test_tree.py::test_entropy_is_a_mean_over_at_most_k_tokens",
        "in a drawn tree H_t is many times the H of the same turn; entropy_after_tools, counted elsewhere, is healthy",
    ),
    bug(
        "the end is not trained",
        3,
        "arpo.py:pack",
        "node.ids + node.observation, node.logprobs, W[n], A[n]",
        'node.ids + node.observation, node.logprobs[: len(node.ids) - (node.stopped == "end")], W[n], A[n]',
        "tests/test_update.py::test_the_end_token_is_trained_even_where_pad_is_eos",
        "trained is less than decoded by the paths that ended; in the long run truncated creeps up",
    ),
    bug(
        "statistics over the batch",
        3,
        "advantage.py:centred",
        "(rewards - rewards.mean(-1, keepdim=True))",
        "(rewards - rewards.mean())",
        "tests/test_advantage.py::test_each_trees_advantages_sum_to_zero",
        "a drawn tree's advantages do not add up to 0",
    ),
    bug(
        "the temperature is forgotten in training",
        3,
        "arpo.py:token_logprobs",
        "batch.targets, temperature)",
        "batch.targets, 1.0)",
        "tests/test_update.py::test_logprobs_at_a_temperature_are_the_samplers",
        "kl_sampler is not 0 where --temperature is not 1",
    ),
    bug(
        "no minimum in the loss",
        3,
        "arpo.py:policy_loss",
        "gain = torch.min(ratio * A, clipped * A)",
        "gain = clipped * A",
        "tests/test_update.py::test_packed_equals_padded_leaves",
        "grad_norm of the second pass is smaller; nothing pulls back a token that got worse than allowed",
    ),
)
