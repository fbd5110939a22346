"""The project's trajectories and verdicts in TRL's trainer."""

from dataclasses import replace

import pytest
import torch
from conftest import EchoTools
from test_house import ROOT
from transformers import AutoModelForCausalLM, AutoTokenizer

from arpo import Policy
from data.benchmarks import load_questions
from data.format import encode_prompt
from data.models import TINY
from eval import score_leaves
from train import read_flags

pytest.importorskip("datasets", reason="needs requirements-bench.txt")
pytest.importorskip("trl", reason="needs requirements-bench.txt")


def test_the_script_is_short():
    assert len((ROOT / "experiments/with_trl.py").read_text().splitlines()) <= 80


class Stand:
    """A trainer that writes, greedily, what the model would."""

    use_vllm = False

    def __init__(self):
        self.model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)

    def _generate_single_turn(self, prompts, images, fields, count):
        turns = []
        for ids in prompts:
            out = self.model.generate(
                torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), max_new_tokens=64, do_sample=False
            )
            turns.append(out[0, len(ids) :].tolist())
        return turns, None


def test_a_trajectory_is_the_projects_own():
    """Guards: another prompt, a turn that ends elsewhere, a result in another form, and a verdict of another kind."""
    from experiments import with_trl

    tokenizer, questions = AutoTokenizer.from_pretrained(TINY), load_questions("world", "train")[:3]
    config = replace(read_flags([]), num_generations=1, num_initial=0, temperature=0.0)
    policy, prompts = Policy.load(str(TINY)), [encode_prompt(tokenizer, question.question) for question in questions]
    ours = policy.grow(prompts, ["0", "1", "2"], EchoTools(), config)
    theirs = with_trl.grow_trees(prompts, ["0", "1", "2"], with_trl.Engine(Stand(), tokenizer), EchoTools(), config)
    facts = lambda trees: [(node.ids, node.observation, node.stopped) for tree in trees for node in tree.nodes]
    assert facts(theirs) == facts(ours) and any(node.observation for tree in ours for node in tree.nodes)
    scores = lambda trees: [score_leaves(tree, own, tokenizer) for tree, own in zip(trees, questions)]
    assert scores(theirs) == scores(ours)


def test_two_steps_of_trls_trainer(tmp_path, monkeypatch):
    """Guards: results that are trained on, and rewards that are not those of the texts."""
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    from experiments import with_trl

    seen, flags = [], f"--output_dir {tmp_path} --max_steps 1 --questions_per_step 2 --num_generations 4"
    theirs = "--use_cpu true --bf16 false --save_strategy no --report_to none"
    trainer = with_trl.build(flags.split(), theirs.split())
    real = trainer._compute_loss
    trainer._compute_loss = lambda model, inputs: seen.append(inputs) or real(model, inputs)
    trainer.train()
    decode = trainer.processing_class.decode
    for row in range(4):
        inputs = seen[0]
        kept = inputs["completion_mask"][row].bool()
        ids, own = inputs["completion_ids"][row][kept], inputs["tool_mask"][row][kept].bool()
        assert "<result>" not in decode(ids[own]) and ("<result>" in decode(ids)) == bool((~own).any())
    (row,) = [row for row in trainer.state.log_history if "reward" in row]
    assert 0 <= row["reward"] <= 1.1 and row["step"] == 1
