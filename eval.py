"""Loading a policy and judging it: accuracy, pass@k, tool calls, tables, plots and drawn trees.

    python eval.py --model RUN --data world              accuracy and pass@k on held-out questions
    python eval.py --model RUN --ask "a question"        one answer, with its steps

An answer is judged by the same code that rewards it in training, on trajectories sampled by the same
code. Accuracy never contains the multi-tool bonus. Left out: judging by another language model.
"""

import argparse
import copy
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from advantage import ADVANTAGES
from arpo import Batch, token_logprobs
from data import Question, load_questions
from data.grading import accuracy, hierarchical_reward
from rollout import PROMPT, Node, RolloutConfig, Sampler, Tree, grow_trees
from sandbox import PythonSandbox
from tools import SYSTEM_PROMPT, Browse, Python, Search, Toolbox, ToolCall, read_answer

# ---------------------------------------------------------------------------------- the policy


@dataclass
class Policy:
    """The model that samples and learns, and the frozen reference it started from."""

    model: torch.nn.Module  # a Hugging Face causal LM, LoRA layers inside where there are any
    tokenizer: object
    adapter: torch.nn.Module | None = None  # the peft wrapper around `model`: without it, the reference
    reference: torch.nn.Module | None = None  # a frozen copy, where all weights are trained

    def reference_logprobs(self, batch: Batch, temperature: float) -> Tensor:
        if self.adapter is None:
            return token_logprobs(self.reference, batch, temperature)
        with self.adapter.disable_adapter():
            return token_logprobs(self.model, batch, temperature)

    def save(self, folder) -> None:
        (self.adapter or self.model).save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def load_policy(name: str, lora_r: int = 0, load_in_4bit: bool = False, device: str = "cpu", dtype=torch.float32) -> Policy:
    """Loads a hub id or a folder; a folder with an adapter brings its base model along.

    `lora_r` 0 trains all weights; else LoRA of that rank on all linear layers, alpha = 2 r.
    """
    has_adapter = (Path(name) / "adapter_config.json").is_file()
    base = json.loads((Path(name) / "adapter_config.json").read_text())["base_model_name_or_path"] if has_adapter else name
    quantized = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    model = AutoModelForCausalLM.from_pretrained(
        base, dtype=dtype, attn_implementation="sdpa", quantization_config=quantized if load_in_4bit else None
    ).to(device)
    tokenizer = AutoTokenizer.from_pretrained(name)
    if has_adapter:
        adapter = PeftModel.from_pretrained(model, name, is_trainable=True)
    elif lora_r:
        adapter = get_peft_model(model, LoraConfig(r=lora_r, lora_alpha=2 * lora_r, target_modules="all-linear"))
    else:
        return Policy(model.eval(), tokenizer, reference=copy.deepcopy(model).requires_grad_(False).eval())
    return Policy(adapter.get_base_model().eval(), tokenizer, adapter)


# ---------------------------------------------------------------------------------- tasks and scores


@dataclass
class Task:
    """Questions, and the tools over the corpus that belongs to them."""

    questions: list[Question]
    tools: Toolbox


def load_task(data: str, split: str, count: int | None, sandbox: PythonSandbox, top_k: int) -> Task:
    """The world's split with its own corpus and pages, or a file of questions with Python alone."""
    questions = load_questions(data, split, count)
    tools = {"python": Python(sandbox)}
    if data == "world":
        world = load_world(split)
        tools |= {"search": Search(world.passages, top_k), "browse": Browse(world.pages)}
    return Task(questions, Toolbox(tools))


def load_world(split: str):
    from data import WORLD_SEEDS
    from data.world import World

    return World(WORLD_SEEDS[split])


def encode_prompt(tokenizer, question: str) -> list[int]:
    """The question under the system prompt, in the model's chat template if it has one."""
    if tokenizer.chat_template:
        messages = [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": question}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
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
        reward = hierarchical_reward(right, answer is not None, set(ran), bonus)
        tokens = sum(len(node.ids) + len(node.observation) for node in nodes)
        scores.append(Score(answer, right, reward, len(ran), tokens, nodes[-1].stopped))
    return scores


def evaluate(policy: Policy, task: Task, config: RolloutConfig, samples: int, temperature: float, seed: int = 0) -> list[list[Score]]:
    """`samples` independent trajectories for every question: scores (questions, samples)."""
    sampler = Sampler(policy.model, policy.tokenizer, temperature)
    flat = replace(config, num_generations=samples, num_initial=samples, temperature=temperature)
    prompts = [encode_prompt(policy.tokenizer, q.question) for q in task.questions]
    keys = [f"eval{seed}/{q.id}" for q in task.questions]
    trees = grow_trees(prompts, keys, sampler, task.tools, policy.tokenizer, flat)
    return [score_leaves(tree, q, policy.tokenizer) for tree, q in zip(trees, task.questions)]


def expert_scores(world, task: Task) -> list[list[Score]]:
    """The flawless expert, its calls really run: the ceiling."""
    scores = []
    for question in task.questions:
        *steps, last = world.expert(question)
        ran = {step.tool for step in steps if task.tools.submit(ToolCall(step.tool, step.content)).result().outcome == "ok"}
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


def per_question(scores: list[list[Score]], name: str) -> np.ndarray:
    return np.array([np.mean([getattr(score, name) for score in row]) for row in scores])


def summary_row(scores: list[list[Score]]) -> dict[str, float]:
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


def comparison_table(rows: dict[str, list[list[Score]]], questions: list[Question]) -> str:
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
                why += ", no budget left" if d.prob > d.bar and not d.new_paths else ""
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
                steps, values = zip(*points)
                axes.plot(steps, values, marker="o" if len(points) < 20 else "", label=key.replace("_", " "))
        axes.set(title=title, xlabel="step")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
        figure.tight_layout()
        paths.append(folder / "plots" / f"{name}.png")
        paths[-1].parent.mkdir(exist_ok=True)
        figure.savefig(paths[-1])
        pyplot.close(figure)
    return paths
