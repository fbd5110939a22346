"""What a run will do and what it needs, said before it does it, and alone by --dry_run.

`config` is a `TrainConfig` of `train.py` everywhere. Left out: whether it can be done (`runs.py:rehearse`).
"""

from pathlib import Path

from data import models
from data.benchmarks import world_in
from data.presets import preset_table
from data.web import WebSearch
from data.worlds import is_world


def describe(config) -> str:
    """What a run does and needs."""
    parts = {"model": describe_model(config), "on": describe_training(config), "memory": describe_memory(config)}
    if config.cold_start or config.stage == "sft":
        parts["first"] = f"SFT on {describe_demonstrations(config)}, {config.sft_steps} steps"
    if config.stage == "rl":
        parts |= describe_loop(config)
    parts["tools"] = describe_tools(config)
    parts["writes"] = f"{config.output_dir}; the progress bar says how long it will take"
    size, world = models.size_of(config.model), world_in(config.data)
    if size in models.BUILT_IN and (not world or models.built_in_for(world) != size):
        parts["note"] = "the built-in model knows the words of its own world alone: it will learn nothing elsewhere"
    elif size not in models.BUILT_IN and world:
        parts["next"] = "--data gsm8k, --data hotpotqa --search corpus.jsonl, or --preset deep-search"
    lines = [f"{name:10s}{text}" for name, text in parts.items() if text]
    return "\n".join(lines + ([preset_table(config.preset, config)] if config.preset else []))


def describe_model(config) -> str:
    model = Path(models.resolve_model(config.model))
    weights = sum(file.stat().st_size for file in model.glob("*.safetensors")) / 1e6
    held = f"{weights:.1f} MB of weights" if weights else "fetched from the hub unless cached"
    if config.model in models.BUILT_IN:
        held = f"built in; {'made anew, from random weights' if config.stage == 'sft' else held}"
    return f"{model}, {held}"


def describe_training(config) -> str:
    trained = f"LoRA of rank {config.lora_r} on all linear layers" if config.lora_r else "all weights trained"
    device = models.pick_device()
    return f"{device}, {models.pick_dtype(device, config.lora_r)}, {trained}"


def describe_memory(config) -> str:
    if config.model in models.BUILT_IN:
        return ""
    return str(config.memory(config.lora_r) or "told once the model is here")


def describe_demonstrations(config) -> str:
    count = config.sft_worlds * config.sft_each
    if is_world(config.sft_data):
        return f"{count} demonstrations from {config.sft_worlds} worlds"
    return f"at most {count} conversations of {config.sft_data}"


def describe_loop(config) -> dict[str, str]:
    leaves, started = config.num_generations, config.num_initial or config.num_generations
    step = leaves * config.questions_per_step
    most = step * config.max_completion_length
    steps = f"{config.max_steps} steps of {config.questions_per_step} questions"
    dev = f"on {config.eval_questions} dev questions every {config.eval_steps} steps"
    return {
        "method": f"{config.algo} on {config.data}, {steps}",
        "trees": f"{leaves} leaves each, {started} from the prompt; {step} leaves a step, at most {most:,} tokens",
        "judged": f"{dev}, and on {config.test_questions} held-out ones at the end",
    }


def describe_tools(config) -> str:
    where = config.place_of_search
    tools = "python" if where == "none" else f"python, search{' and browse' * config.browse} in {where}"
    live = where in WebSearch.URLS
    return f"{tools}; {'the live web, which needs your key' if live else 'nothing that needs a network or a key'}"
