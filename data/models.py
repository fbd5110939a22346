"""Where weights come from: names, folders, GGUF files, precision and 4-bit.

A model is named by "tiny" or "trails" (built in), a folder, an adapter's folder, a .gguf file, or a hub id. Its size or
its run decides the defaults of other settings. Left out: the memory that it needs (`memory.py`), and what is done with
it (`arpo.py:Policy`).
"""

import copy
import difflib
import importlib.util
import json
import math
import os
import re
import struct
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError

import torch
from huggingface_hub.constants import ENDPOINT, HF_HUB_CACHE
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor
from torch.nn.functional import linear
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, GenerationConfig
from transformers.utils import logging

from data.benchmarks import world_in
from data.format import TrajectoryConfig, check_prompt, encode_chat
from data.runs import no_file, read_about, write_whole
from data.settings import Settings

# The built-in models' weights, each for the world that it has learned; the README says how they were made.
TINY, TRAILS = (Path(__file__).parent / name for name in ("tiny_model", "trails_model"))
BUILT_IN = {"tiny": TINY, "trails": TRAILS}
ALIASES = {"Qwen": "Qwen/", "SmolLM": "HuggingFaceTB/", "Llama-": "meta-llama/"}

# Defaults that follow the model: the built-in ones are trained in full on short texts, real ones with LoRA.
# A turn in the trails has 7 or 8 tokens, and the second or third decides: 4 hold the decision and end before the turn.
SIZES = {
    "tiny": {
        "num_generations": 8, "num_initial": 4, "max_completion_length": 480, "max_turn_tokens": 64,
        "max_result_tokens": 120, "top_k": 1, "window_chars": 160,
        "lora_r": 0, "learning_rate": 5e-4, "questions_per_step": 12, "max_steps": 60, "token_budget": 500,
        "sft_steps": 3000, "sft_worlds": 300, "sft_batch_tokens": 2200, "sft_learning_rate": 3e-3,
    },
    "trails": {
        "data": "trails", "num_generations": 8, "num_initial": 2, "entropy_tokens": 4, "max_tool_calls": 10,
        "max_completion_length": 256, "max_turn_tokens": 16, "max_result_tokens": 48, "top_k": 1,
        "lora_r": 0, "learning_rate": 2.5e-4, "questions_per_step": 8, "max_steps": 20, "eval_steps": 5,
        "token_budget": 500,
        "sft_steps": 2000, "sft_worlds": 150, "sft_each": 64, "sft_batch_tokens": 2200, "sft_learning_rate": 3e-3,
    },
    "real": {
        "cold_start": True, "gradient_checkpointing": True, "load_in_4bit": None, "max_completion_length": 2048,
        "max_turn_tokens": 512, "max_result_tokens": 384,
    },
}  # fmt: skip
CONFIGS = "adapter_config.json", "config.json"  # one of them makes a folder a model's
# What a run hands on to whoever goes on from its model: how it reads and writes, not how it was trained.
OF_THE_MODEL = (
    "max_completion_length", "max_turn_tokens", "max_result_tokens", "max_tool_calls", "top_k", "snippet_chars",
    "window_chars", "lora_r", "load_in_4bit", "gradient_checkpointing", "token_budget",
)  # fmt: skip


@dataclass(frozen=True)
class ModelConfig(Settings):
    model: str = "tiny"  # "tiny", "trails", an alias such as Qwen2.5-1.5B, a hub id, a .gguf file, or a folder
    load_in_4bit: bool | None = False  # NF4 weights through bitsandbytes; for real models left open: if memory asks


def built_in_for(data: str) -> str:
    """The built-in model to take where none is named: the one that knows the world among the data."""
    return "trails" if world_in(data).startswith("trails") else "tiny"


def built_in(model: str) -> str:
    """The name of the built-in model that is meant, or "" for any other."""
    return next((name for name, folder in BUILT_IN.items() if name == model or Path(model).resolve() == folder), "")


def size_of(model: str) -> str:
    """The key of SIZES that a model has; a run's model has that of the model it came from."""
    if name := built_in(model):
        return name
    about = read_about(model)
    if about is None:
        return "real"
    size = about.get("size") or ("tiny" if about["settings"].get("model") == "tiny" else "real")
    if size not in SIZES:
        raise ValueError(f"{model}/run.json: expected a size out of {', '.join(SIZES)}, found {size}")
    return size


def origin_of(model: str) -> tuple[str, str]:
    """The model that a run began with, and what trained it; any other model is its own, and is called a policy."""
    about = None if built_in(model) else read_about(model)
    if not about or about["settings"]["model"] == model:
        return model, "policy"
    settings = about["settings"]
    return origin_of(settings["model"])[0], "sft" if settings.get("stage") == "sft" else settings["algo"]


def when_written(model: str) -> float:
    """When the newest weights of a model's folder were written, in seconds; 0 for a model of the hub."""
    return max((file.stat().st_mtime for file in Path(resolve_model(model)).glob("*.safetensors")), default=0.0)


def model_defaults(model: str) -> dict:
    """Settings that follow the model: those of its size, and of a run what belongs to its model."""
    defaults = dict(SIZES[size_of(model)])
    if not built_in(model) and (about := read_about(model)):
        defaults |= {name: about["settings"][name] for name in OF_THE_MODEL if name in about["settings"]}
        defaults["cold_start"] = False  # it has had one
    return defaults


def resolve_model(name: str) -> str:
    """The folder or hub id behind a short name. Raises ValueError for a path that leads nowhere."""
    if name in BUILT_IN:
        return str(BUILT_IN[name])
    path = Path(name).expanduser()
    if path.suffix == ".gguf" and path.is_file():
        return str(unpack_gguf(path))
    if path.is_dir():
        check_folder(path)
        return str(path.resolve())  # an adapter's folder remembers it, and may be read from elsewhere
    first, _, rest = name.partition("/")
    folders = [other.name for other in Path().glob("*") if rest and (other / rest).is_dir()]
    if not Path(first).is_dir() and (near := difflib.get_close_matches(first, folders, 1)):
        raise ValueError(f"--model {name}: expected a folder, found none (perhaps {near[0]}/{rest}?)")
    like_a_path = name.startswith((".", "/", "~", "runs/", "data/")) or path.suffix == ".gguf"
    if path.is_file() or like_a_path or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*") if p.is_dir()], 1)
        meant = f" (perhaps {path.parent / near[0]}?)" if near else ""
        raise ValueError(f"--model {name}: expected a folder with a model, a .gguf file or a hub id, found none{meant}")
    owner = next((owner for start, owner in ALIASES.items() if name.startswith(start)), "")
    return name if "/" in name else owner + name


def check_folder(folder: Path) -> None:
    """Raises ValueError for a folder that can hold no model, from its files' names and its configuration alone."""
    config = next((file for name in CONFIGS if (file := folder / name).is_file()), None)
    if config is None:
        raise ValueError(f"--model {folder}: expected a model's folder with {' or '.join(CONFIGS)}, found neither")
    try:
        read = json.loads(config.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{config}: expected JSON, found {error}") from None
    if not isinstance(read, dict):
        raise ValueError(f"{config}: expected an object, found {type(read).__name__}")
    if config.name == CONFIGS[0]:
        base_of(str(folder))
    if not [*folder.glob("*.safetensors*"), *folder.glob("*.bin*")]:
        raise ValueError(f"--model {folder}: expected weights beside {config.name}, found none")
    try:
        read.get("model_type") and AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (StrictDataclassError, ValueError) as error:
        raise ValueError(f"{config}: expected a model's configuration, found {' '.join(str(error).split())}") from None


@contextmanager
def as_value_errors() -> Iterator[None]:
    """What torch, safetensors and the hub's library raise of a broken model becomes a ValueError with one line."""
    try:
        yield
    except UnpicklingError:
        raise ValueError("a .bin file that holds no tensors") from None
    except (RuntimeError, EOFError, SafetensorError, StrictDataclassError, struct.error) as error:
        raise ValueError(f"{' '.join(str(error).split()):.300}") from None


def unpack_gguf(file: Path) -> Path:
    """The folder beside a GGUF file that holds it in Hugging Face form, dequantised; made when first asked for."""
    if importlib.util.find_spec("gguf") is None:
        raise ValueError("reading a .gguf file needs: pip install gguf")

    @as_value_errors()
    def write(folder: Path) -> None:
        model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float16)
        model.hf_quantizer = None  # the weights are plain numbers by now, though transformers will not say so
        del model.config.quantization_config
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)

    folder = file.with_suffix(".unpacked")  # a name that no other model has
    try:
        if not folder.exists() and not write_whole(folder, write):
            raise OSError(f"{file} could not be unpacked to {folder}")
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{file}: expected a GGUF file that transformers can read, found: {error}") from None
    return folder


def is_adapter(folder: str) -> bool:
    return (Path(folder) / CONFIGS[0]).is_file()


def check_merge(model: str, folder: str) -> None:
    """Raises ValueError where a merged model would replace something, or there is nothing to merge."""
    if not is_adapter(model):
        raise ValueError(f"--merge: expected an adapter's folder ({CONFIGS[0]}) as --model, found {model}")
    no_file(Path(folder), "--merge")
    if Path(folder).exists() and any(Path(folder).iterdir()):
        raise ValueError(f"--merge {folder}: expected a new or empty folder, found something there")


def base_of(name: str) -> str:
    """The model that an adapter belongs to; any other model is its own."""
    if not is_adapter(name):
        return name
    key, config = "base_model_name_or_path", Path(name) / "adapter_config.json"
    base = json.loads(config.read_text(encoding="utf-8")).get(key)
    if not isinstance(base, str):
        raise ValueError(f"{config}: expected the base model under {key}, found {base}")
    if Path(base).is_absolute() and not Path(base).is_dir():
        raise ValueError(f"expected the base model of the adapter in {name} at {base}, found no folder there")
    return base


@as_value_errors()
def load_model(name: str, lora_r: int | None, load_in_4bit: bool, device: str, dtype: torch.dtype) -> tuple:
    """(model, tokenizer, adapter, reference) of a hub id or a folder; an adapter's folder brings its base along.

    `lora_r` 0: all weights are to be trained, and the reference is a frozen copy. Above: LoRA of that rank on all
    linear layers, alpha = 2 r; the adapter is the peft wrapper around the model. None: nothing is to be trained.
    On the device "meta" nothing but names and shapes is read.
    """
    check_bits(lora_r, load_in_4bit)
    quantized = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    quantized = quantized if load_in_4bit else None  # on the device where it will stay
    model = read_weights(base_of(name), dtype=dtype, quantization_config=quantized, device_map={"": device})
    for layer in model.modules():
        # On CPUs with AVX512-BF16 bitsandbytes would repack the weights at the first sampled token, for good and
        # in a form without gradients.
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False
    refuse_layers(model.config)
    switch_off_dropout(model)
    tokenizer = AutoTokenizer.from_pretrained(name)
    if not tokenizer.encode("a word", add_special_tokens=False):
        raise ValueError("expected a tokenizer beside the weights, found none that knows a word")
    check_prompt(tokenizer)
    if not (is_adapter(name) or lora_r):
        reference = copy.deepcopy(model).requires_grad_(False).eval() if lora_r == 0 else None
        return model.eval(), tokenizer, None, reference
    from peft import LoraConfig, PeftModel, get_peft_model  # here, for it takes more than a second to import

    if is_adapter(name):
        adapter = PeftModel.from_pretrained(model, name, is_trainable=True)
        told = adapter.load_adapter(name, "reference", is_trainable=False)  # on the same base: no second model
        if told.missing_keys:
            raise ValueError(f"expected the adapter's weights of all its layers, found none of {told.missing_keys[0]}")
    else:
        adapter = get_peft_model(model, LoraConfig(r=lora_r, lora_alpha=2 * lora_r, target_modules="all-linear"))
    if model.dtype.itemsize == 2:
        keep_inputs_as_they_come(adapter)
    return adapter.get_base_model().eval(), tokenizer, adapter, None


def read_weights(name: str, **how):
    """The model of a hub id or a folder. Raises ValueError for weights that are missing or of another shape, where
    transformers would only warn, and make them up at random."""
    quiet, before = {"output_loading_info": True, "ignore_mismatched_sizes": True}, logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        model, told = AutoModelForCausalLM.from_pretrained(name, attn_implementation="sdpa", **quiet, **how)
    finally:
        logging.set_verbosity(before)
    if missing := sorted(told["missing_keys"]):
        raise ValueError(f"expected weights for all of its layers, found none for {len(missing)}: {missing[0]}, …")
    for key, found, expected in sorted(told["mismatched_keys"]):
        raise ValueError(f"expected {key} of shape {(*expected,)}, as config.json has it, found {(*found,)}")
    if unread := sorted(told["unexpected_keys"]):
        print(f"{name}: {len(unread)} weights are not read ({unread[0]}, …)", file=sys.stderr)
    return model


def check_whole(model: str) -> None:
    """Raises ValueError if a model that lies here could not be loaded, as far as its files' headers show."""
    name = resolve_model(model)
    try:
        if Path(base_of(name)).is_dir():
            with warnings.catch_warnings(action="ignore"):  # of tensors that are not copied
                load_model(name, None, False, "meta", torch.float32)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise cannot_load(name, error) from None


def keep_inputs_as_they_come(adapter) -> None:
    """LoRA's fp32 weights need inputs in fp32; these are cast again in the backward pass instead of kept.

    peft keeps the fp32 copy of every layer's input: of an update in 4 bits a sixteenth of the memory, and a quarter
    without checkpointing. The gradient is the same.
    """
    from peft.tuners.lora import LoraLayer

    for layer in adapter.modules():
        if isinstance(layer, LoraLayer):
            layer.cast_input_dtype_enabled = False
            for part in layer.lora_A.values():
                part.__class__ = WideningLinear


class WideningLinear(torch.nn.Linear):
    """A layer without bias whose weights are wider than its input."""

    def forward(self, x: Tensor) -> Tensor:
        return WideningProduct.apply(x, self.weight)


class WideningProduct(torch.autograd.Function):
    """x (…, in), cast to the type of the weights (out, in), times them."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return linear(x.to(weight.dtype), weight)

    @staticmethod
    def backward(ctx, slope: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        of_weight = slope.flatten(0, -2).T @ x.flatten(0, -2).to(weight.dtype)
        return (slope @ weight).to(x.dtype), of_weight


def check_bits(lora_r: int | None, load_in_4bit: bool | None) -> None:
    """Raises ValueError where weights in 4 bits would have to be trained: no gradient reaches them."""
    if load_in_4bit and lora_r == 0:
        raise ValueError("--load_in_4bit: expected an adapter to be trained (--lora_r above 0), found --lora_r 0")


def refuse_layers(config) -> None:
    """Raises ValueError for layers that keep a running state, of which a fork cannot take a part."""
    kinds = set(getattr(config.get_text_config(), "layer_types", None) or [])
    if other := kinds - {"full_attention", "sliding_attention"}:
        found = f"found {', '.join(sorted(other))} (model type {config.model_type})"
        raise ValueError(f"trees need layers of attention, whose cache can be cut and forked; {found}")


def switch_off_dropout(model) -> None:
    """With dropout the update would compute other probabilities than the tokens were sampled with."""
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, float) and ("drop" in name or (name == "p" and isinstance(module, torch.nn.Dropout))):
                setattr(module, name, 0.0)


def refuse_short_sight(model, prompt_tokens: int, limits: TrajectoryConfig) -> None:
    """Raises ValueError if a trajectory may outgrow what the model can attend to, or count.

    A layer with a window attends to so many columns, and holes are columns: a row has at most those of its own tokens,
    of a result, and of a turn that others take meanwhile. Learned positions end; some rotary ones change with length.
    """
    config, reach = model.config.get_text_config(), math.inf
    kinds, rope = getattr(config, "layer_types", None), getattr(config, "rope_parameters", None) or {}
    if "sliding_attention" in kinds if kinds else getattr(config, "use_sliding_window", True):
        reach = getattr(config, "sliding_window", None) or math.inf
    if rope.get("rope_type") in ("longrope", "dynamic") or not rope:
        ends = rope.get("original_max_position_embeddings") or getattr(config, "max_position_embeddings", math.inf)
        reach = min(reach, ends)
    needed = prompt_tokens + limits.max_completion_length + limits.max_result_tokens + limits.max_turn_tokens
    if needed > reach:
        found = f"found {reach:,} (model type {config.model_type}); shorten --max_completion_length"
        raise ValueError(f"expected attention and positions for {needed:,} tokens, {found}")


def use_threads(count: int) -> None:
    """Torch's threads on the CPU; 0 leaves it alone. Raises ValueError for more than can do any good."""
    most = 4 * (os.cpu_count() or 1)
    if count > most:
        raise ValueError(f"--threads: expected at most {most}, four for each core, found {count}")
    if count:
        torch.set_num_threads(count)


@torch.no_grad()
def say(model, tokenizer, prompt: str, max_tokens: int) -> str:
    """What a model says to a prompt, greedily."""
    ids = torch.tensor([encode_chat(tokenizer, prompt)], device=model.device)
    end = tokenizer.eos_token_id
    settings = GenerationConfig(max_new_tokens=max_tokens, do_sample=False, eos_token_id=end, pad_token_id=end)
    out = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
    return tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip()


def cannot_load(name: str, error: Exception) -> ValueError:
    """What to tell a user whose model could not be loaded."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    if Path(name).is_dir():
        return ValueError(
            f"cannot load the model in {name}: expected a whole model that trees can be grown with, found: {reason}"
        )
    return ValueError(
        f"cannot load the model {name!r}: expected 'tiny', 'trails', a folder, a .gguf file or a hub id; looked for "
        f"a folder, in {HF_HUB_CACHE} and at {ENDPOINT} ({reason}); "
        f"without a network: hf download {name} --local-dir FOLDER where there is one, then --model FOLDER"
    )


def pick_device() -> str:
    """A CUDA GPU, else the CPU. Apple's GPUs lack the 64-bit numbers that tokens are drawn with."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def pick_dtype(device: str, lora_r: int | None = None) -> torch.dtype:
    """fp32 on the CPU, and where all weights are trained (`lora_r` 0), whose small steps 16 bits would lose.

    Else bf16 where the hardware has it, and fp16 on older GPUs.
    """
    if device == "cpu" or lora_r == 0:
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
