"""The loss and its gradient against TRL's GRPOTrainer, an implementation that others wrote and many use."""

from collections import defaultdict

import pytest
import torch
from conftest import grow, random_model
from test_update import assert_close, gradient, off_policy, padded_leaves, tree_loss

from arpo import UpdateConfig
from rollout import Sampler

datasets = pytest.importorskip("datasets", reason="needs requirements-bench.txt")
trl = pytest.importorskip("trl", reason="needs requirements-bench.txt")


@pytest.fixture(scope="module")
def sides(tokenizer, tmp_path_factory):
    """A forked batch of trees, advantages for their leaves, and TRL's trainer around the same model."""
    model = random_model(tokenizer, 3)
    trees = grow(Sampler(model, tokenizer), ("the town is", "old"), num_initial=2, num_generations=6)
    assert any(n.decision and n.decision.new_paths for tree in trees for n in tree.nodes)
    config = trl.GRPOConfig(
        output_dir=str(tmp_path_factory.mktemp("trl")), use_cpu=True, bf16=False, gradient_checkpointing=False,
        num_generations=2, per_device_train_batch_size=2, report_to="none",
    )  # fmt: skip
    data = datasets.Dataset.from_list([{"prompt": "old"}])
    trainer = trl.GRPOTrainer(
        model, lambda completions, **_: [0.0] * len(completions), config, data, processing_class=tokenizer
    )
    trainer.current_gradient_accumulation_steps = 1  # set by its training loop
    torch.manual_seed(0)
    return model, trees, torch.randn(2, 6), trainer


def trl_inputs(trees, advantages) -> dict:
    """Every leaf as TRL wants it: prompts padded on the left, completions on the right, old log-probs (L, T)."""
    ids, sampled, owners = padded_leaves(trees)
    starts = [owner.count(-1) for owner in owners]
    before, after = max(starts), max(len(owner) - start for owner, start in zip(owners, starts))
    pad, rows = torch.nn.functional.pad, defaultdict(list)
    for row, owner, start in zip(range(len(ids)), owners, starts):
        prompt, completion = ids[row, :start], ids[row, start : len(owner)]
        left, right = (before - len(prompt), 0), (0, after - len(completion))
        rows["prompt_ids"].append(pad(prompt, left))
        rows["prompt_mask"].append(pad(torch.ones_like(prompt), left))
        rows["completion_ids"].append(pad(completion, right))
        rows["completion_mask"].append(pad(torch.ones_like(completion), right))
        rows["tool_mask"].append(pad(sampled[row, start : len(owner)], right, value=1))
    inputs = {name: torch.stack(values) for name, values in rows.items()} | {"advantages": advantages.flatten()}
    inputs["num_items_in_batch"] = (inputs["completion_mask"] * inputs["tool_mask"]).sum()
    return inputs


@pytest.mark.parametrize(
    "loss_type, in_trl", [("token_mean", "dapo"), ("sequence_mean", "grpo"), ("constant", "dr_grpo")]
)
def test_loss_and_gradient_equal_trls(sides, loss_type, in_trl):
    """Guards: denominators, clips, masks of results, advantages that reach the wrong leaf. Both clips bite."""
    model, trees, advantages, trainer = sides
    trainer.loss_type, trainer.max_completion_length = in_trl, 512
    model.eval()
    inputs = trl_inputs(trees, advantages)
    both = [torch.cat([inputs["prompt_" + n], inputs["completion_" + n]], dim=1) for n in ("ids", "mask")]
    with torch.no_grad():
        width = inputs["completion_ids"].shape[1]
        logprobs, _, _ = trainer._get_per_token_logps_and_entropies(model, *both, width)
    inputs["old_per_token_logps"] = logprobs - off_policy(inputs["completion_ids"])
    theirs = trainer._compute_loss(model, inputs)
    their_gradient = gradient(model, theirs)
    ours = tree_loss(model, trees, advantages, UpdateConfig(loss_type=loss_type), off_policy)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    assert_close(gradient(model, ours), their_gradient)
