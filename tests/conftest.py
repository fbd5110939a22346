"""Small models and scripted ones: every test of the algorithm runs on these, in milliseconds."""

import sys
from concurrent.futures import Future
from pathlib import Path

import pytest
import torch
from transformers import Qwen2ForCausalLM

sys.path.insert(0, str(Path(__file__).parent.parent))

from data.format import ToolResult, closing_tags
from data.tiny import build_tokenizer, tiny_config
from rollout import RolloutConfig, Sample, grow_trees

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer():
    return build_tokenizer(["the river of the town is long and the mayor is old 0 1 2 3 4 5 6 7 8 9"] * 3)


def random_model(tokenizer, seed=0, width=32):
    """A random policy that often ends its turns: without a bias, closing tags would be too rare to test."""
    torch.manual_seed(seed)
    config = tiny_config(len(tokenizer))
    config.hidden_size, config.intermediate_size, config.num_hidden_layers = width, 2 * width, 2
    config.layer_types = config.layer_types[:2]
    config.tie_word_embeddings = False
    model = Qwen2ForCausalLM(config).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(0, 0.3)
    head = torch.nn.Linear(width, len(tokenizer))
    head.weight.data.normal_(0, 0.3)
    head.bias.data.zero_()
    for tag, bonus in (("</search>", 3.5), ("</python>", 2.5), ("<|end|>", 2.5)):
        head.bias.data[tokenizer.convert_tokens_to_ids(tag)] = bonus
    model.set_output_embeddings(head)
    return model


@pytest.fixture
def model(tokenizer):
    return random_model(tokenizer)


class EchoTools:
    """Answers every call at once with a text that depends on the call alone."""

    def submit(self, call):
        future = Future()
        future.set_result(ToolResult(f"the town {call.content} is {len(call.content)}"))
        return future


SMALL = dict(
    num_generations=8,
    num_initial=3,
    fan_out=2,
    entropy_tokens=4,
    branch_rule="coin",
    max_completion_length=120,
    max_turn_tokens=24,
    max_result_tokens=24,
    max_tool_calls=3,
)


def grow(sampler, prompts=("the town is", "the river of the mayor"), keys=None, tools=None, **settings):
    config = RolloutConfig(**(SMALL | settings))
    ids = [sampler.tokenizer.encode(p) if isinstance(p, str) else list(p) for p in prompts]
    return grow_trees(ids, keys or [f"q{q}" for q in range(len(ids))], sampler, tools or EchoTools(), config)


class ScriptedSampler:
    """Stands in for `Sampler`: what a row samples is a function of (key, calls so far), with chosen entropies.

    `script(key, calls)` returns (text, entropies); a text that ends in a closing tool tag calls the tool.
    """

    vocab_size = 704

    def __init__(self, tokenizer, script):
        self.tokenizer, self.script, self.calls = tokenizer, script, 0

    def prefill(self, prompts):
        pass

    def __call__(self, rows, temperature, on_stop):
        samples = []
        self.calls += 1
        for row in rows:
            if not row.stop_at:  # it has ended
                samples.append(Sample())
                continue
            text, entropy = self.script(row.key, len(row.called))
            ids, room = self.tokenizer.encode(text), row.stop_at - len(row.ids)
            assert room > 0, "a row without room for a token is a leaf and takes no turn"
            stopped = "call" if text.endswith(tuple(closing_tags())) else "end"
            if len(ids) > room:
                ids, stopped = ids[:room], "length"
            samples.append(Sample(ids, [-1.0] * len(ids), [float(entropy)] * len(ids), stopped))
            on_stop(row, samples[-1])
        return samples
