"""Prompts under the chat templates of the model families; read from an installed TRL, which ships copies."""

from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import ScriptedSampler, grow

from data.format import encode_prompt, system_prompt

FAMILIES = {  # template, special tokens, how the prompt must end, what must stand in it once
    "qwen2.5": ("qwen2_5", ["<|im_start|>", "<|im_end|>"], "<|im_start|>assistant\n", "<|im_start|>system"),
    "qwen3": ("qwen3", ["<|im_start|>", "<|im_end|>"], "<|im_start|>assistant\n", "<|im_start|>system"),
    "llama3": (
        "llama3",
        ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|begin_of_text|>",
    ),
    "llama3.2": (
        "llama3_2",
        ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|begin_of_text|>",
    ),
    "smollm2": (None, ["<|im_start|>", "<|im_end|>"], "<|im_start|>assistant\n", "<|im_start|>system"),
}
# ChatML with a default system text, as SmolLM2 has it.
CHATML = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}<|im_start|>system\nBe helpful<|im_end|>\n"
    "{% endif %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(params=FAMILIES)
def family(request, tokenizer):
    template, special, ending, once = FAMILIES[request.param]
    text = CHATML
    if template:
        trl = find_spec("trl")
        if trl is None:
            pytest.skip("the template is read from TRL, which is not installed (requirements-bench.txt)")
        text = (Path(trl.origin).parent / "chat_templates" / f"{template}.jinja").read_text()
    tokenizer = type(tokenizer).from_pretrained(saved(tokenizer, request))
    tokenizer.add_tokens(special, special_tokens=True)
    tokenizer.chat_template, tokenizer.bos_token = text, special[0]
    return tokenizer, ending, once


def saved(tokenizer, request):
    folder = request.getfixturevalue("tmp_path")
    tokenizer.save_pretrained(folder)
    return folder


def test_a_prompt_keeps_its_tags_has_one_beginning_and_is_never_rewritten(family):
    """Guards a second BOS, a template that drops or rewrites `<think>` of earlier turns, and lost tags."""
    tokenizer, ending, once = family
    prompt = encode_prompt(tokenizer, "How high is the tower?")
    text = tokenizer.decode(prompt)
    assert text.count(once) == 1 and text.endswith(ending) and system_prompt() in text and "How high is" in text

    def script(key, calls):
        return ("<think> old</think><search> town</search>", 1.0) if calls < 2 else ("<answer>3</answer><|end|>", 1.0)

    (tree,) = grow(ScriptedSampler(tokenizer, script), [prompt], num_generations=2, num_initial=2)
    assert tree.prompt == prompt
    for leaf in tree.leaves():
        ids = prompt + [i for n in tree.path(leaf) for i in tree.nodes[n].ids + tree.nodes[n].observation]
        whole = tokenizer.decode(ids)
        assert whole.startswith(text) and whole.count("<think> old</think>") == 2 + text.count("<think> old")
        assert whole.count(once) == 1 and whole.count("<result>") == 2 + text.count("<result>")
