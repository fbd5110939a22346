"""The paper's settings by task, each with its source: what `--preset` sets, and what of the paper it leaves alone.

Sources: sections and appendices of Dong et al. 2025 (arXiv 2507.19849); "scripts" are those released with it; "ours"
is what neither says. Some of the paper's values need its eight GPUs: they are shown, and not set.
"""

from typing import Any, NamedTuple


class Value(NamedTuple):
    value: Any
    source: str
    sets: bool = True  # False: shown for comparison alone


ROLLOUT = {
    "num_generations": Value(16, "C.2"),
    "num_initial": Value(8, "C.2"),
    "base_prob": Value(0.5, "C.2"),
    "entropy_weight": Value(0.2, "C.2"),
    "threshold": Value(0.5, "C.2"),
    "temperature": Value(1.0, "scripts"),
    "top_k": Value(10, "C.3"),
    "max_turn_tokens": Value(2048, "ours"),
    "max_result_tokens": Value(1024, "ours"),
    "search": Value("serper", "ours; C.3 has Bing"),
    "web_cache": Value("web.db", "ours"),
}
UPDATE = {
    "questions_per_step": Value(128, "C.2"),
    "num_minibatches": Value(8, "C.2: 128 in minibatches of 16"),
    "kl_coef": Value(0.0, "C.2"),
    "learning_rate": Value(1e-6, "scripts; LoRA wants about ten times that", sets=False),
    "lora_r": Value(0, "scripts: all weights, on 8 H800", sets=False),
}
REASONING = {
    **ROLLOUT,
    "data": Value("arpo-reasoning", "4.3: 10,000 questions"),
    "browse": Value(False, "C.3: the 10 snippets alone"),
    "max_completion_length": Value(4096, "C.2"),
    "max_tool_calls": Value(3, "scripts"),
    **UPDATE,
    "max_steps": Value(156, "C.2: 2 epochs of 10,000 questions"),
}
DEEP_SEARCH = {
    **REASONING,
    "data": Value("arpo-deepsearch", "4.3: 1,000 questions"),
    "browse": Value(True, "C.3"),
    "reader": Value("base", "C.3: a model of the policy's size reads pages"),
    "max_completion_length": Value(8192, "C.2"),
    "max_tool_calls": Value(6, "scripts"),
    "max_steps": Value(39, "C.2: 5 epochs of 1,000 questions"),
}
PRESETS: dict[str, dict[str, Value]] = {
    "": {},
    "reasoning": REASONING,
    "deep-search": DEEP_SEARCH,
    "deep-search-14b": {
        **DEEP_SEARCH,
        "num_generations": Value(12, "scripts"),
        "num_initial": Value(6, "scripts"),
        "max_completion_length": Value(10_000, "scripts"),
    },
    "sft": {
        "stage": Value("sft", "C.1"),
        "sft_data": Value("arpo-sft", "4.3: 54,000 conversations"),
        "sft_worlds": Value(546, "all of them: 546 times --sft_each"),
        "sft_each": Value(100, "ours"),
        "sft_learning_rate": Value(7e-6, "C.1"),
        "sft_batch_rows": Value(128, "C.1"),
        "sft_steps": Value(1279, "C.1: 3 epochs of 54,574 rows in batches of 128"),
        "sft_weight_decay": Value(0.1, "C.1"),
        "max_completion_length": Value(4096, "C.1"),
        "max_turn_tokens": Value(4096, "ours: a turn may take all of it"),
        "lora_r": Value(0, "C.1: all weights, ZeRO-3", sets=False),
    },
}


def preset_settings(preset: str) -> dict[str, Any]:
    return {name: value.value for name, value in PRESETS[preset].items() if value.sets}


def preset_table(preset: str, config) -> str:
    """A preset's values beside those of a run, which flags and the method may have changed, and their sources.

    Values in brackets are the paper's, and are not set.
    """
    lines = [f"{'setting':24s}{'preset':>16s}{'this run':>16s}  source"]
    for name, (value, source, sets) in PRESETS[preset].items():
        here, told = getattr(config, name), str(value) if sets else f"({value})"
        lines.append(f"{name:24s}{told:>16s}{'the same' if here == value else str(here):>16s}  {source}")
    return "\n".join(lines)
