"""Every tensor is where it must be: runs on a GPU that is not there (`fake_device.py`)."""

import json
import sys

import pytest
import torch
from conftest import EchoTools, random_model
from fake_device import DEVICE, FakeDevice, Mixed

import arpo
import eval
import rollout
import train
from arpo import Policy, UpdateConfig, update
from data import cache, logits, models
from data.optimizer import Optimizer
from rollout import RolloutConfig
from sandbox import PythonSandbox

SMALL = dict(
    num_generations=4, num_initial=2, base_prob=1.0, entropy_tokens=3, max_completion_length=60, max_turn_tokens=16,
    max_result_tokens=16, max_tool_calls=2,
)  # fmt: skip


def test_the_device_refuses_what_cuda_refuses():
    """The guard of the guards below."""
    with FakeDevice() as fake:
        there, here = torch.ones(3, device="cuda"), torch.ones(3)
        assert there.device == DEVICE and there.is_cuda and not here.is_cuda and here.device.type == "cpu"
        for wrong in (
            lambda: there + here,
            lambda: torch.cat([there, here]),
            lambda: here[there.long()],
            lambda: there.index_put((torch.tensor([0]),), here[:1]),
            lambda: torch.where(there > 0, there, here),
            lambda: there.numpy(),
            lambda: torch.nn.functional.linear(there[None], here[None]),
        ):
            with pytest.raises(Mixed):
                wrong()
        fine = [there + torch.tensor(2.0), there[here.long().cpu()], here.to(there), there.clone().copy_(here)]
        fine += [torch.zeros_like(there), there.new_ones(2), there.view(3, 1), there.to(torch.float16), there.sum()]
        assert all(tensor.is_cuda for tensor in fine) and there.tolist() == [1, 1, 1] and there.sum().item() == 3
        assert not any(tensor.is_cuda for tensor in (there.cpu(), there.to("cpu"), here.clone().copy_(there)))
        weight = torch.nn.Linear(3, 1).to("cuda").weight
        (weight @ there).sum().backward()
        assert weight.grad.is_cuda and fake.operations.count > 10


def one_step(tokenizer, monkeypatch) -> None:
    """A rollout, and an update with a reference and two minibatches."""
    policy = Policy(random_model(tokenizer, 1).to("cuda"), tokenizer, reference=random_model(tokenizer, 2).to("cuda"))
    prompts = [tokenizer.encode(text) for text in ("the town is", "the river of the mayor")]
    trees = policy.grow(prompts, ["a", "b"], EchoTools(), RolloutConfig(**SMALL))
    assert any(node.observation for tree in trees for node in tree.nodes)
    optimizer = Optimizer(policy.model, torch.optim.AdamW(policy.model.parameters()), 1.0)
    config = UpdateConfig(num_minibatches=2, kl_coef=0.1)
    reference = lambda batch: policy.reference_logprobs(batch, 1.0)
    update(policy.model, optimizer, trees, torch.randn(2, 4), config, reference)


def planted(monkeypatch, which: str) -> None:
    """Puts one tensor on the wrong device."""
    real_pack, real_draw, real_cache, real_of = (
        arpo.pack,
        rollout.draw_tokens,
        cache.RowCache.__init__,
        logits.logits_of,
    )
    real_reference = Policy.reference_logprobs
    plant = monkeypatch.setattr
    {
        "batches": lambda: plant(arpo, "pack", lambda pieces, device: real_pack(pieces)),
        "random numbers": lambda: plant(rollout, "draw_tokens", lambda x, u, *rest: real_draw(x, u.cpu(), *rest)),
        "the cache's mask": lambda: plant(
            cache.RowCache, "__init__", lambda self, rows, _: real_cache(self, rows, "cpu")
        ),
        "the reference": lambda: plant(Policy, "reference_logprobs", lambda *rest: real_reference(*rest).cpu()),
        "logits": lambda: plant(logits, "logits_of", lambda *rest: real_of(*rest).cpu()),
    }[which]()


PLANTED = ["batches", "random numbers", "the cache's mask", "the reference", "logits"]


@pytest.mark.parametrize("which", [None, *PLANTED])
def test_a_planted_mismatch_is_caught(tokenizer, monkeypatch, which):
    """Guards: a test on a fake device that would pass whatever the code does."""
    with FakeDevice():
        if which is None:
            return one_step(tokenizer, monkeypatch)
        planted(monkeypatch, which)
        with pytest.raises(Mixed):
            one_step(tokenizer, monkeypatch)


def test_a_run_a_resumed_run_an_evaluation_and_a_merge(tmp_path, monkeypatch):
    """Guards: a tensor made on the CPU in a place that no GPU has seen yet. LoRA in bf16, with checkpointing."""
    sandbox, read = PythonSandbox(workers=1), models.read_weights
    load = lambda name, device_map, **how: read(name, **how).to(device_map[""])
    monkeypatch.setattr(models, "read_weights", load)  # files are read beyond the operations that can be seen
    monkeypatch.setattr("peft.peft_model.infer_device", lambda: "cpu")
    for module in (train, eval):
        monkeypatch.setattr(module, "make_sandbox", lambda config: sandbox)
    monkeypatch.setattr(train, "judge", lambda *_, **__: {})  # `eval.main` judges below
    monkeypatch.setattr(train, "judge_expert", lambda *_: {})
    monkeypatch.setattr(train, "report", lambda *_: "")
    monkeypatch.setattr(train, "shown_trees", lambda *_: {})

    def call(main, *args):
        monkeypatch.setattr(sys, "argv", ["it", *args])
        with FakeDevice() as fake:
            main()
        return fake.operations.count

    run = f"{tmp_path}/run"
    flags = f"""--output_dir {run} --lora_r 4 --gradient_checkpointing --kl_coef 0.1 --questions_per_step 2
        --num_generations 4 --num_initial 2 --num_minibatches 2 --max_turn_tokens 24 --max_completion_length 80
        --max_steps 1 --eval_steps 1 --save_steps 1 --eval_questions 2 --test_questions 2
        --cold_start --sft_steps 2 --sft_worlds 1 --sft_each 2 --sft_batch_tokens 400""".split()
    assert call(train.main, *flags) > 10_000
    assert call(train.main, "--resume", run, "--max_steps", "2") > 5000
    rows = [json.loads(line) for line in open(f"{run}/metrics.jsonl")]
    assert [row["step"] for row in rows] == [0, 1, 2] and rows[2]["changed"] == 2
    assert call(eval.main, *f"--model {run} --count 2 --samples 1".split()) > 1000
    call(eval.main, "--model", run, "--merge", f"{tmp_path}/merged")
