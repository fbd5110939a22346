"""Loading a policy and judging it: accuracy, pass@k, tool calls, tables, plots and drawn trees.

    python eval.py --model RUN --data world              accuracy and pass@k on held-out questions
    python eval.py --model RUN --ask "a question"        one answer, with its steps

An answer is judged by the same code that rewards it in training, on trajectories sampled by the same
code. Accuracy never contains the multi-tool bonus. Left out: judging by another language model.
"""

import argparse
import copy
import importlib.util
import inspect
import json
import os
import re
import sys
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
import transformers
from huggingface_hub.constants import ENDPOINT, HF_HUB_CACHE
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, GenerationConfig

from advantage import ADVANTAGES
from arpo import Batch, token_logprobs
from data import WORLD_SEEDS, Question, load_questions
from data.grading import accuracy, hierarchical_reward
from data.world import World
from rollout import PROMPT, Node, RolloutConfig, Sampler, Tree, grow_trees
from sandbox import PythonSandbox
from tools import (
    SAMPLING,
    SYSTEM_PROMPT,
    Browse,
    Cache,
    Python,
    Reader,
    Search,
    Toolbox,
    ToolCall,
    Web,
    WebError,
    WebSearch,
    ask_endpoint,
    index_corpus,
    read_answer,
    reading_sandbox,
)

# The built-in model's weights; made by: python train.py --stage sft --output_dir data/tiny_model
TINY = Path(__file__).parent / "data" / "tiny_model"

# Settings that follow the model: the built-in one is trained in full on short texts, real ones with LoRA.
SIZES = {
    "tiny": {
        "num_generations": 8, "num_initial": 4, "max_completion_length": 480, "max_turn_tokens": 64,
        "max_result_tokens": 120, "top_k": 1, "window_chars": 160,
        "lora_r": 0, "learning_rate": 5e-4, "questions_per_step": 12, "max_steps": 60, "token_budget": 500,
        "sft_steps": 3000, "sft_worlds": 300, "sft_batch_tokens": 2200, "sft_learning_rate": 3e-3,
    },
    "real": {
        "cold_start": True, "gradient_checkpointing": True, "load_in_4bit": None, "max_completion_length": 2048,
        "max_turn_tokens": 512, "max_result_tokens": 384,
    },
}  # fmt: skip


# The least that numbers on the command line may be.
LEAST = dict.fromkeys(
    "temperature max_tool_calls epsilon epsilon_high beta learning_rate lora_r threads warmup_steps max_resamples "
    "overlong_buffer weight_decay wave_quorum".split(), 0
) | dict.fromkeys(
    "num_initial num_generations max_steps questions_per_step num_iterations num_minibatches token_budget eval_steps "
    "eval_questions test_questions save_steps save_trees_steps save_total_limit sft_steps sft_worlds sft_each "
    "sft_batch_tokens count samples top_k snippet_chars window_chars python_seconds width".split(), 1
)  # fmt: skip


class OneLineParser(argparse.ArgumentParser):
    """Errors in one line; hyphens in flags are as good as underscores."""

    def __init__(self, description: str, *configs: type):
        super().__init__(
            description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
        )
        for config in configs:
            self.add_flags(config)

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message}\n")

    def parse_args(self, argv):
        args = super().parse_args([re.sub(r"^--[\w-]+", self._spelled, arg) for arg in argv])
        for name, least in LEAST.items():
            if (value := getattr(args, name, least)) < least:
                self.error(f"--{name}: expected at least {least}, found {value}")
        return args

    def _spelled(self, flag: re.Match) -> str:
        name = flag.group()[2:].replace("-", "_")
        off = f"--no-{name[3:]}"
        return off if name.startswith("no_") and off in self._option_string_actions else f"--{name}"

    def add_flags(self, config: type) -> None:
        """A flag for each field of a dataclass; the comment beside the field is its help."""
        comments = dict(re.findall(r"^    (\w+): [^#\n]*# (.*)$", inspect.getsource(config), re.MULTILINE))
        known = {action.dest for action in self._actions}
        for f in fields(config):
            if f.name in known:  # lengths and temperature belong to rollout and update alike
                continue
            text = f"{comments[f.name].replace('%', '%%')} (default: %(default)s)"
            if f.type is bool:
                self.add_argument(f"--{f.name}", action=argparse.BooleanOptionalAction, default=f.default, help=text)
            else:
                choices = get_args(f.type) or None
                kind = str if choices else f.type
                self.add_argument(f"--{f.name}", type=kind, choices=choices, default=f.default, help=text)


def model_defaults(model: str) -> dict:
    """Settings that follow the model: a run brings its own, else its size decides."""
    folder = Path(model)
    if model == "tiny" or folder.resolve() == TINY:
        return SIZES["tiny"]
    if (folder / "run.json").is_file():
        settings = json.loads((folder / "run.json").read_text())["settings"]
        own = (
            "model algo preset data stage output_dir seed dry_run resume overwrite cold_start sft_data max_rows".split()
        )
        return {name: value for name, value in settings.items() if name not in own}
    return SIZES["real"]


def pick(config: type, args: argparse.Namespace, **changes):
    """The config dataclass with the values of the flags."""
    return config(**{f.name: getattr(args, f.name) for f in fields(config)} | changes)


# ---------------------------------------------------------------------------------- the policy


@dataclass
class Policy:
    """The model that samples and learns, and the frozen reference it started from."""

    model: torch.nn.Module  # a Hugging Face causal LM, LoRA layers inside where there are any
    tokenizer: object
    adapter: torch.nn.Module | None = None  # the peft wrapper around `model`
    reference: torch.nn.Module | None = None  # a frozen copy, where all weights are trained
    max_rows: int = 512  # sampled at once, in whole trees; fewer where memory runs out

    @contextmanager
    def frozen(self):
        """The model as it was before training: a copy, the adapter it began with, or the bare base model."""
        if self.adapter is None:
            yield self.reference
        elif "reference" in self.adapter.peft_config:
            self.adapter.set_adapter("reference")
            yield self.model
            self.adapter.set_adapter("default")
        else:
            with self.base() as model:
                yield model

    @contextmanager
    def base(self):
        """The model that the adapter was put on; of a model that is trained in full, its frozen copy."""
        with self.adapter.disable_adapter() if self.adapter else nullcontext():
            yield self.model if self.adapter else self.reference

    def read(self, prompt: str, max_tokens: int = 256) -> str:
        """What the base model says to a prompt, greedily; for tools, so it waits until no rows are sampled."""
        if self.tokenizer.chat_template:
            message = [{"role": "user", "content": prompt}]
            prompt = self.tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        ids = torch.tensor([self.tokenizer.encode(prompt, add_special_tokens=False)], device=self.model.device)
        with SAMPLING, self.base() as model:
            settings = GenerationConfig(
                max_new_tokens=max_tokens, do_sample=False, eos_token_id=self.tokenizer.eos_token_id,
                pad_token_id=self.tokenizer.eos_token_id,
            )  # fmt: skip
            out = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
        return self.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip()

    @torch.no_grad()
    def reference_logprobs(self, batch: Batch, temperature: float) -> Tensor:
        with self.frozen() as model:
            return token_logprobs(model, batch, temperature)

    def trainable(self) -> dict[str, Tensor]:
        return {name: weight.detach() for name, weight in self.model.named_parameters() if weight.requires_grad}

    def restore(self, weights: dict[str, Tensor]) -> None:
        own = self.trainable()
        if own.keys() != weights.keys():
            raise ValueError(f"the checkpoint has other weights than the model: {min(own.keys() ^ weights.keys())}")
        for name, weight in weights.items():
            own[name].copy_(weight)

    def save(self, folder) -> None:
        only = {"selected_adapters": ["default"]} if self.adapter else {}
        (self.adapter or self.model).save_pretrained(folder, **only)
        self.tokenizer.save_pretrained(folder)


def is_adapter(folder: str) -> bool:
    return (Path(folder) / "adapter_config.json").is_file()


def base_of(name: str) -> str:
    """The model that an adapter belongs to; any other model is its own."""
    if not is_adapter(name):
        return name
    return json.loads((Path(name) / "adapter_config.json").read_text())["base_model_name_or_path"]


def load_policy(name: str, lora_r=0, load_in_4bit=False, device: str = "cpu", dtype=torch.float32) -> Policy:
    """Loads a hub id or a folder; a folder with an adapter brings its base model along.

    `lora_r` 0 trains all weights; else LoRA of that rank on all linear layers, alpha = 2 r.
    """
    quantized = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    model = AutoModelForCausalLM.from_pretrained(
        base_of(name),
        dtype=dtype,
        attn_implementation="sdpa",
        quantization_config=quantized if load_in_4bit else None,
        device_map={"": device},  # quantised where it will stay
    )
    for layer in model.modules():
        # On CPUs with AVX512-BF16 bitsandbytes would repack the weights at the first sampled token, for good and
        # in a form without gradients.
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False
    tokenizer = AutoTokenizer.from_pretrained(name)
    if not (is_adapter(name) or lora_r):
        return Policy(model.eval(), tokenizer, reference=copy.deepcopy(model).requires_grad_(False).eval())
    from peft import LoraConfig, PeftModel, get_peft_model  # here, for it takes more than a second to import

    if is_adapter(name):
        adapter = PeftModel.from_pretrained(model, name, is_trainable=True)
        adapter.load_adapter(name, "reference", is_trainable=False)  # on the same base: no second model in memory
    else:
        adapter = get_peft_model(model, LoraConfig(r=lora_r, lora_alpha=2 * lora_r, target_modules="all-linear"))
    return Policy(adapter.get_base_model().eval(), tokenizer, adapter)


def unpack_gguf(file: Path) -> Path:
    """The folder beside a GGUF file that holds it in Hugging Face form, dequantised; made when first asked for."""
    folder = file.with_suffix("")
    if not (folder / "tokenizer_config.json").exists():
        if importlib.util.find_spec("gguf") is None:
            raise ValueError("reading a .gguf file needs: pip install gguf")
        model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float16)
        model.hf_quantizer = None  # the weights are plain numbers by now, though transformers will not say so
        del model.config.quantization_config
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)  # last: it is whole
    return folder


ALIASES = {"Qwen": "Qwen/", "SmolLM": "HuggingFaceTB/", "Llama-": "meta-llama/"}


def resolve_model(name: str) -> str:
    """The folder or hub id behind a short name."""
    if name == "tiny":
        return str(TINY)
    if name.endswith(".gguf") and Path(name).is_file():
        return str(unpack_gguf(Path(name)))
    owner = next((owner for start, owner in ALIASES.items() if name.startswith(start)), "")
    return name if "/" in name or Path(name).is_dir() else owner + name


def pick_device() -> str:
    """A CUDA GPU, else the CPU. Apple's GPUs lack the 64-bit numbers that tokens are drawn with."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def pick_dtype(device: str, args=None) -> torch.dtype:
    """fp32 on the CPU, and where all weights are trained, whose small steps 16 bits would lose.

    Else bf16 where the hardware has it, and fp16 on older GPUs.
    """
    if device == "cpu" or getattr(args, "lora_r", None) == 0:
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def memory_line(args) -> str:
    """What there is, and what a model and its rollouts need; settles 4-bit weights where that was left open.

    Computed from the model's configuration; activations come on top.
    """
    device = pick_device()
    size = pick_dtype(device, args).itemsize
    config = AutoConfig.from_pretrained(base_of(resolve_model(args.model))).get_text_config()
    with torch.device("meta"):
        weights = AutoModelForCausalLM.from_config(config).num_parameters()
    if device == "cuda":
        has = torch.cuda.get_device_properties(0).total_memory
    else:
        has = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if args.load_in_4bit is None:
        args.load_in_4bit = device == "cuda" and weights * size > has / 2
    embeddings = config.vocab_size * config.hidden_size * (1 if config.tie_word_embeddings else 2)  # stay as they are
    held = weights * size if not args.load_in_4bit else 0.53 * (weights - embeddings) + embeddings * size
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    token = 2 * config.num_hidden_layers * config.num_key_value_heads * head * size
    row = token * (args.max_completion_length + 500)  # 500: for the prompt
    args.max_rows = min(512, max(args.num_generations, int((has - held) / 2 / row)))
    return (
        f"{has / 1e9:.1f} GB; {'4-bit ' if args.load_in_4bit else ''}weights {held / 1e9:.1f} GB, a trajectory's cache "
        f"at most {row / 1e6:,.0f} MB: room for {args.max_rows} at once"
    )


def load(args) -> Policy:
    """The model that the flags name; where 4-bit is left open, `memory_line` decides."""
    device, name = pick_device(), resolve_model(args.model)
    if name != args.model and args.model != "tiny":
        print(f"{args.model} means {name}")
    try:
        if args.load_in_4bit is None:
            print(f"memory    {memory_line(args)}")
        policy = load_policy(name, getattr(args, "lora_r", 0), args.load_in_4bit, device, pick_dtype(device, args))
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"cannot load the model {name!r}: expected 'tiny', a folder, a .gguf file or a hub id; looked for "
            f"a folder, in {HF_HUB_CACHE} and at {ENDPOINT} ({reason})\n"
            f"without a network: hf download {name} --local-dir FOLDER where there is one, then --model FOLDER"
        ) from None
    policy.max_rows = getattr(args, "max_rows", policy.max_rows)
    if getattr(args, "gradient_checkpointing", False):  # in the update alone: `generate` runs in eval mode
        policy.model.activation_checkpointing_enable({"use_reentrant": False})
    return policy


# ---------------------------------------------------------------------------------- tasks and scores


@dataclass
class Task:
    """Questions, and the tools over the corpus that belongs to them."""

    questions: list[Question]
    tools: Toolbox


@dataclass(frozen=True)
class ToolConfig:
    search: str = ""  # where search looks: "world", a corpus (.jsonl or its .db), "serper", "brave" or "none"
    browse: bool = True  # offer the browser beside search; without it, snippets alone
    top_k: int = 3  # passages that a search shows
    snippet_chars: int = 400  # of each
    window_chars: int = 1000  # of a page, around the words asked for
    reader: str = ""  # reads pages for the words asked for: "base", the model before training, or an endpoint's URL
    reader_model: str = ""  # the model at that URL (OpenAI-compatible)
    web_cache: str = ""  # file that keeps the live web's answers; with it a run can be repeated offline
    cache_mode: Literal["online", "offline", "refresh"] = "online"  # of web_cache
    python_seconds: float = 5.0  # of CPU that a program may take
    allow_unsafe_python: bool = False  # run model-written code even where it cannot be confined


def load_tools(args, split: str, sandbox: PythonSandbox) -> Toolbox:
    """Python, and where there is something to search, search and browser; each has been tried once."""
    tools, pages = {"python": Python(sandbox)}, None
    where, web_cache = place_of_search(args), open_cache(args)
    if where == "world":
        world = load_world(split)
        tools["search"], pages = Search(world.passages, args.top_k, args.snippet_chars), world.pages
    elif where in WebSearch.URLS:
        tools["search"], pages = WebSearch(where, web_cache, args.top_k), Web(web_cache, reading_sandbox())
    elif where != "none":
        tools["search"] = Search(open_corpus(Path(where)), args.top_k, args.snippet_chars)
        pages = tools["search"].page
    if pages and args.browse:
        tools["browse"] = Browse(pages, args.window_chars)
        if args.reader not in ("", "base"):  # that one is lent when there is a policy
            ask = partial(ask_endpoint, args.reader, args.reader_model)
            tools["browse"].reader = Reader(args.reader_model, ask, web_cache)
            try:
                if web_cache.mode != "offline":
                    ask("Say yes.")
            except WebError as error:
                raise OSError(f"--reader {args.reader} --reader_model {args.reader_model!r}: {error}") from None
    toolbox = Toolbox(tools)
    toolbox.check()
    return toolbox


def place_of_search(args) -> str:
    """Where search looks: what --search says, or the world where its questions are among the data."""
    sources = [part.partition("=")[0] for part in args.data.split(",")]
    return args.search or ("world" if "world" in sources else "none")


def open_cache(args) -> Cache:
    return Cache(args.web_cache or ":memory:", args.cache_mode)


def open_corpus(path: Path) -> Path:
    """The index of a corpus; made first if there is none, or an older one."""
    index = path.with_suffix(".db")
    if path.suffix == ".jsonl" and (not index.exists() or index.stat().st_mtime < path.stat().st_mtime):
        return index_corpus(path)
    return index


def mix(data: str, split: str, count: int | None) -> list[Question]:
    """Questions of one source, or of several with weights: "gsm8k=0.3,world=0.7".

    A mixture holds of each source what its weight says, as many as there are without repeating any.
    """
    parts = [part.rpartition("=") for part in data.split(",")]
    if len(parts) == 1 and not parts[0][1]:
        return load_questions(data, split, count)
    if not all(name and re.fullmatch(r"\d*\.?\d+", weight) and float(weight) for name, _, weight in parts):
        raise ValueError(f"--data {data}: expected one source, or name=weight,name=weight with weights above 0")
    sources = [(load_questions(name, split), float(weight)) for name, _, weight in parts]
    unit = min(len(questions) / weight for questions, weight in sources)
    if count:
        unit = min(unit, count / sum(weight for _, weight in sources))
    return [question for questions, weight in sources for question in questions[: round(unit * weight)]]


def load_task(args, split: str, count: int | None, sandbox: PythonSandbox, policy: Policy | None = None) -> Task:
    """A split's questions and tools; the world's splits have each a corpus of their own."""
    task = Task(mix(args.data, split, count), load_tools(args, split, sandbox))
    return lend(task, policy, args) if policy else task


def lend(task: Task, policy: Policy | None, args) -> Task:
    """The task, its browser's pages read by the policy's base model where --reader says so; None takes it back."""
    if args.reader == "base" and "browse" in task.tools.tools:
        task.tools.tools["browse"].reader = policy and Reader(f"base {args.model}", policy.read, open_cache(args))
    return task


def make_sandbox(args) -> PythonSandbox:
    try:
        workers = min(os.cpu_count() or 1, 8)
        return PythonSandbox(workers, cpu_seconds=args.python_seconds, allow_unsafe=args.allow_unsafe_python)
    except RuntimeError as error:
        raise ValueError(f"{error} (--allow_unsafe_python)") from None


def load_world(split: str) -> World:
    return World(WORLD_SEEDS.get(split, WORLD_SEEDS["test"]))


def encode_prompt(tokenizer, question: str) -> list[int]:
    """The question under the system prompt, in the model's chat template if it has one."""
    if tokenizer.chat_template:
        messages = [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": question}]
        fixed = {"date_string": "26 Jul 2024"}  # templates that tell the date would tell another one tomorrow
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **fixed)
    else:
        text = f"{SYSTEM_PROMPT}\n\nQuestion: {question}\n"
    return tokenizer.encode(text, add_special_tokens=False)


@dataclass
class Score:
    """What one leaf's trajectory is worth."""

    answer: str | None  # None: the format is wrong
    accuracy: float
    reward: float
    calls: int  # really executed
    tokens: int  # after the prompt, results included
    end: str


def turn_texts(nodes: list[Node], tokenizer) -> list[str]:
    """What the policy wrote in each turn of a path that ended with the end token, which is left out."""
    turns: list[list[int]] = [[]]
    for node in nodes:
        turns[-1] = turns[-1] + node.ids
        if node.observation:
            turns.append([])
    turns[-1].pop()
    return [tokenizer.decode(ids) for ids in turns]


def score_leaves(tree: Tree, question: Question, tokenizer, bonus: float = 0.1) -> list[Score]:
    """One `Score` for each of the tree's M leaves."""
    scores = []
    for leaf in tree.leaves():
        nodes = [tree.nodes[n] for n in tree.path(leaf)]
        answer = read_answer(turn_texts(nodes, tokenizer)) if nodes[-1].stopped == "end" else None
        ran = [node.call.tool for node in nodes if node.result and node.result.outcome not in ("refused", "malformed")]
        right = accuracy(question, answer) if answer else 0.0
        worked = {node.call.tool for node in nodes if node.result and node.result.outcome == "ok"}
        reward = hierarchical_reward(right, answer is not None, worked, bonus)
        tokens = sum(len(node.ids) + len(node.observation) for node in nodes)
        scores.append(Score(answer, right, reward, len(ran), tokens, nodes[-1].stopped))
    return scores


Scores = list[list[Score]]  # (questions, samples)


def grow_in_memory(policy: Policy, prompts, keys, sampler: Sampler, tools, config: RolloutConfig) -> list[Tree]:
    """`grow_trees` for some prompts at a time, and for half as many where memory runs out: the trees are the same."""
    trees: list[Tree] = []
    while len(trees) < len(prompts):
        most = min(max(1, policy.max_rows // config.num_generations), len(prompts) - len(trees))
        part = slice(len(trees), len(trees) + most)
        try:
            trees += grow_trees(prompts[part], keys[part], sampler, tools, policy.tokenizer, config)
        except torch.OutOfMemoryError:
            if most == 1:
                raise
            policy.max_rows, sampler.cache = most // 2 * config.num_generations, None
            print(f"out of memory: from now on at most {policy.max_rows} rows at once", file=sys.stderr)
    return trees


def evaluate(policy: Policy, task: Task, config: RolloutConfig, samples: int, temperature: float, seed=0) -> Scores:
    """`samples` independent trajectories for every question: scores (questions, samples)."""
    sampler = Sampler(policy.model, policy.tokenizer, temperature)
    flat = replace(config, num_generations=samples, num_initial=samples, temperature=temperature)
    prompts = [encode_prompt(policy.tokenizer, q.question) for q in task.questions]
    keys = [f"eval{seed}/{q.id}" for q in task.questions]
    trees = grow_in_memory(policy, prompts, keys, sampler, task.tools, flat)
    return [score_leaves(tree, q, policy.tokenizer) for tree, q in zip(trees, task.questions)]


def expert_scores(world, task: Task) -> Scores:
    """The flawless expert, its calls really run: the ceiling."""
    scores = []
    for question in task.questions:
        *steps, last = world.expert(question)
        results = [(step.tool, task.tools.submit(ToolCall(step.tool, step.content)).result()) for step in steps]
        ran = {tool for tool, result in results if result.outcome == "ok"}
        right = accuracy(question, last.content)
        scores.append([Score(last.content, right, hierarchical_reward(right, True, ran), len(steps), 0, "end")])
    return scores


# ---------------------------------------------------------------------------------- statistics and tables


def wilson(successes: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """95% interval of a proportion."""
    p = successes / n
    centre, spread = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (centre - spread) / (1 + z * z / n), (centre + spread) / (1 + z * z / n)


def bootstrap(values: np.ndarray, draws: int = 2000) -> tuple[float, float]:
    """95% interval of a mean over questions; `values` (questions,)."""
    index = np.random.default_rng(0).integers(0, len(values), (draws, len(values)))
    low, high = np.percentile(values[index].mean(-1), [2.5, 97.5])
    return float(low), float(high)


def pass_at_k(correct: int, samples: int, k: int) -> float:
    """Unbiased estimate that one of k samples is right (Chen et al. 2021, arXiv 2107.03374, eq. 1)."""
    if samples - correct < k:
        return 1.0
    return 1.0 - float(np.prod(1 - k / np.arange(samples - correct + 1, samples + 1)))


def per_question(scores: Scores, name: str) -> np.ndarray:
    return np.array([np.mean([getattr(score, name) for score in row]) for row in scores])


def summary_row(scores: Scores) -> dict[str, float]:
    """The numbers of one row of the table."""
    right = per_question(scores, "accuracy")
    flat = [score for row in scores for score in row]
    low, high = wilson(right.sum(), len(right)) if len(scores[0]) == 1 else bootstrap(right)
    plain = [score.accuracy if score.answer is not None else -1.0 for score in flat]
    return {
        "accuracy": float(right.mean()),
        "low": float(low),
        "high": float(high),
        "reward": float(np.mean([score.reward for score in flat])),
        "reward_without_bonus": float(np.mean(plain)),
        "calls": float(np.mean([score.calls for score in flat])),
        "malformed": float(np.mean([score.answer is None for score in flat])),
    }


def comparison_table(rows: dict[str, Scores], questions: list[Question]) -> str:
    """Policies as rows: accuracy with interval, rewards, calls; then accuracy (and calls) by family."""
    lines = [f"{'':26s}  accuracy  95% interval    reward  without bonus  calls/question  malformed"]
    for name, scores in rows.items():
        r = summary_row(scores)
        lines.append(
            f"{name:26s}   {r['accuracy']:6.1%}  [{r['low']:5.1%}, {r['high']:5.1%}]  {r['reward']:+7.3f}"
            f"  {r['reward_without_bonus']:+13.3f}  {r['calls']:14.2f}  {r['malformed']:9.1%}"
        )
    families = sorted({q.family for q in questions if q.family})
    if families:
        lines.append(f"\n{'accuracy (calls) by family':26s}  " + "".join(f"{family:>14s}" for family in families))
    for name, scores in rows.items() if families else ():
        cells = []
        for family in families:
            own = [row for row, q in zip(scores, questions) if q.family == family]
            cells.append(f"{per_question(own, 'accuracy').mean():7.0%} ({per_question(own, 'calls').mean():.1f})")
        lines.append(f"{name:26s}  " + "".join(f"{cell:>14s}" for cell in cells))
    return "\n".join(lines)


# ---------------------------------------------------------------------------------- drawing


def draw_tree(tree: Tree, tokenizer, rewards=None, advantages=None, width: int = 110) -> str:
    """The tree as text: turns, results, entropies, decisions, and at each leaf its reward and advantage (M,)."""
    leaf_number = {leaf: m for m, leaf in enumerate(tree.leaves())}
    lines = ["prompt  " + _clip(tokenizer.decode(tree.prompt), width - 8)]

    def walk(parent: int, indent: str) -> None:
        children = [n for n, node in enumerate(tree.nodes) if node.parent == parent]
        for n in children:
            node, last = tree.nodes[n], n == children[-1]
            inner = indent + ("   " if last else "│  ")
            label = f"{len(node.ids)} tokens, H {np.mean(node.entropies):.2f}  "
            text = _clip(tokenizer.decode(node.ids), width - len(inner) - len(label))
            lines.append(indent + ("└─ " if last else "├─ ") + label + text)
            if node.observation:
                lines.append(f"{inner}⇒ " + _clip(tokenizer.decode(node.observation), width - len(inner) - 2))
            if d := node.decision:
                verdict = f"{d.new_paths} new" if d.new_paths else "no fork"
                seen = f"H_t {d.entropy:.2f}  H_initial {d.initial_entropy:.2f}  ΔH {d.delta:+.3f}"
                why = f"P {d.prob:.3f} {'>' if d.prob > d.bar else '≤'} {d.bar:.3f}"
                why += ", but no budget is left" if d.prob > d.bar and not d.new_paths else ""
                lines.append(f"{inner}⑂ {verdict}: {seen}  {why}")
            if n in leaf_number:
                m = leaf_number[n]
                lines.append(f"{inner}● leaf {m}: " + _leaf_text(node.stopped, m, rewards, advantages))
            walk(n, inner)

    walk(PROMPT, "")
    return "\n".join(lines)


def _leaf_text(end: str, m: int, rewards, advantages) -> str:
    text = {"end": "ended", "length": "out of tokens", "calls": "out of calls"}[end]
    text += "" if rewards is None else f"  reward {float(rewards[m]):+.2f}"
    return text + ("" if advantages is None else f"  advantage {float(advantages[m]):+.2f}")


def _clip(text: str, width: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= width else text[: max(1, width - 1)] + "…"


def plot_run(folder: Path) -> list[Path]:
    """Four PNG files from a run's metrics: reward, tool calls, entropy, branching."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    panels = {
        "reward": ("Reward and accuracy", ["reward", "accuracy", "dev_accuracy"]),
        "tool_calls": ("Tool calls", ["calls_per_leaf", "calls_per_question"]),
        "entropy": ("Token entropy (nats)", ["initial_entropy", "entropy_after_tools"]),
        "branching": ("Branch decisions a step", ["decisions", "forks", "top_ups"]),
    }
    paths = []
    for name, (title, keys) in panels.items():
        figure, axes = pyplot.subplots(figsize=(6, 3.6), dpi=120)
        for key in keys:
            points = [(row["step"], row[key]) for row in rows if key in row]
            if points:
                steps, values = map(np.array, zip(*points))
                few = len(points) < 20
                (line,) = axes.plot(steps, values, "o-" if few else "-", alpha=1 if few else 0.25)
                window = 1 if few else len(points) // 10  # a running mean over the noise of a step's questions
                mean = np.convolve(values, np.ones(window) / window, "valid")
                axes.plot(steps[window - 1 :], mean, color=line.get_color(), label=key.replace("_", " "))
        axes.set(title=title, xlabel="step")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
        figure.tight_layout()
        paths.append(folder / "plots" / f"{name}.png")
        paths[-1].parent.mkdir(exist_ok=True)
        figure.savefig(paths[-1])
        pyplot.close(figure)
    return paths


# ---------------------------------------------------------------------------------- the commands


@dataclass(frozen=True)
class EvalConfig:
    model: str = "tiny"  # a run's folder, "tiny", an alias, a hub id
    data: str = "world"  # "world", a benchmark such as gsm8k, a hub set, or a .json, .jsonl or .parquet file
    split: Literal["all", "train", "dev", "test"] = "all"  # all: the test split of a set, and the whole of a file
    count: int = 300  # questions at most
    samples: int = 8  # trajectories for each question
    seed: int = 0  # names all randomness
    load_in_4bit: bool = False  # NF4 weights through bitsandbytes
    merge: str = ""  # write the adapter merged into its base model to this folder, and stop
    ask: str = ""  # answer this one question and show the steps


def parse_eval_flags(parser: OneLineParser, argv: list[str]) -> argparse.Namespace:
    parser.set_defaults(**model_defaults(parser.parse_args(argv).model))
    return parser.parse_args(argv)


def benchmark(policy: Policy, args, sandbox: PythonSandbox) -> None:
    """Greedy accuracy, and the mean and pass@k of sampled trajectories."""
    task = load_task(args, args.split, args.count, sandbox, policy)
    rollout = pick(RolloutConfig, args, num_initial=1, num_generations=1)
    greedy = evaluate(policy, task, rollout, 1, 0.0, args.seed)
    sampled = evaluate(policy, task, rollout, args.samples, args.temperature, args.seed)
    rows = {"greedy": greedy, f"mean of {args.samples} samples": sampled}
    if args.data == "world":
        rows["expert (ceiling)"] = expert_scores(load_world(args.split), task)
    print(f"{args.model} on {len(task.questions)} questions of {args.data}\n{comparison_table(rows, task.questions)}\n")
    correct = [sum(score.accuracy == 1 for score in row) for row in sampled]
    for k in [k for k in (1, 2, 4, 8, 16, 32) if k <= args.samples]:
        values = np.array([pass_at_k(c, args.samples, k) for c in correct])
        low, high = bootstrap(values)
        print(f"pass@{k:<3d} {values.mean():6.1%}  95% interval [{low:.1%}, {high:.1%}]")
    print(f"\ntool calls\n{task.tools.report()}")


def merge(args) -> None:
    """Writes a run's adapter and its base model as one model that `AutoModelForCausalLM` loads."""
    if not is_adapter(args.model):
        raise ValueError(f"--merge: {args.model} holds no adapter (adapter_config.json)")
    policy = load_policy(args.model, dtype=pick_dtype(pick_device()))  # not in 4-bit, which rounds what is merged
    policy.adapter.merge_and_unload().save_pretrained(args.merge)
    policy.tokenizer.save_pretrained(args.merge)
    print(f"merged weights in {args.merge}")


def find_question(text: str) -> tuple[Question, str]:
    """The world's question of this text and its split, or one without a known answer over the test world."""
    for split in WORLD_SEEDS:
        for question in load_questions("world", split):
            if question.question == text:
                return question, split
    return Question("asked", text, ()), "test"


def ask(policy: Policy, args, sandbox: PythonSandbox) -> None:
    """Answers one question, step by step."""
    question, split = find_question(args.ask)
    task = replace(load_task(args, split, 1, sandbox, policy), questions=[question])
    sampler = Sampler(policy.model, policy.tokenizer, 0.0)
    config = pick(RolloutConfig, args, num_initial=1, num_generations=1, temperature=0.0)
    prompt = encode_prompt(policy.tokenizer, question.question)
    (tree,) = grow_trees([prompt], ["ask"], sampler, task.tools, policy.tokenizer, config)
    for n in tree.path(tree.leaves()[0]):
        node = tree.nodes[n]
        print(f"{policy.tokenizer.decode(node.ids)}")
        if node.observation:
            print(f"    {policy.tokenizer.decode(node.observation)}")
    (score,) = score_leaves(tree, question, policy.tokenizer)
    known = f" (accepted: {', '.join(question.answers)})" if question.answers else ""
    print(f"answer: {score.answer if score.answer is not None else 'none, the format is wrong'}{known}")


@dataclass(frozen=True)
class TreeConfig:
    model: str = "tiny"  # a run's folder, "tiny", an alias, a hub id
    data: str = "world"  # where the tools look
    answer: str = ""  # the accepted answer, where the question is not one of the world's
    seed: int = 0  # names all randomness
    load_in_4bit: bool = False  # NF4 weights through bitsandbytes
    width: int = 120  # columns of the drawing


def tree_command() -> None:
    """`python rollout.py "a question"`: grows one tree and draws it."""
    parser = OneLineParser("Grows one tree for a question and draws it.", TreeConfig, ToolConfig, RolloutConfig)
    parser.add_argument("question", nargs="?", default="", help="left out: one of the world's test questions")
    args = parse_eval_flags(parser, sys.argv[1:])
    transformers.utils.logging.disable_progress_bar()
    try:
        config = pick(RolloutConfig, args)
        question, split = find_question(args.question or load_questions("world", "test")[args.seed].question)
        if args.answer:
            question = replace(question, answers=(args.answer,))
        policy, sandbox = load(args), make_sandbox(args)
        tools = load_task(args, split, 1, sandbox, policy).tools
        sampler = Sampler(policy.model, policy.tokenizer, config.temperature)
        prompt = encode_prompt(policy.tokenizer, question.question)
        (tree,) = grow_trees([prompt], [f"{args.seed}/{question.id}"], sampler, tools, policy.tokenizer, config)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    rewards = torch.tensor([score.reward for score in score_leaves(tree, question, policy.tokenizer)])
    print(draw_tree(tree, policy.tokenizer, rewards, ADVANTAGES["group"](rewards[None])[0], args.width))
    print(f"\naccepted answer: {', '.join(question.answers) or 'unknown (rewards show the format alone)'}")
    print("tokens: " + ", ".join(f"{name} {n}" for name, n in sampler.counts.items()))


def main() -> None:
    parser = OneLineParser(__doc__, EvalConfig, ToolConfig, RolloutConfig)
    args = parse_eval_flags(parser, sys.argv[1:])
    transformers.utils.logging.disable_progress_bar()
    try:
        if args.merge:
            merge(args)
        else:
            (ask if args.ask else benchmark)(load(args), args, make_sandbox(args))
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
