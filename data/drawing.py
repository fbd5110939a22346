"""Trees and paths as text for a terminal. Left out: pages for a browser (`pages.py`, `views.py`)."""

import numpy as np

from data.format import printable
from data.metrics import Scored
from rollout import PROMPT, RolloutConfig, Tree


def steps_text(scored: Scored, tokenizer) -> str:
    """What the only leaf's path says, turn by turn, and its answer."""
    lines = []
    for node in scored.tree.nodes:
        lines.append(printable(tokenizer.decode(node.ids)))
        if node.observation:
            lines.append(f"    {printable(tokenizer.decode(node.observation))}")
    known, answer = ", ".join(scored.question.answers), scored.scores[0].answer
    told = "none, the format is wrong" if answer is None else printable(answer)
    return "\n".join([*lines, f"answer: {told}" + (f" (accepted: {known})" if known else "")])


def tree_text(scored: Scored, advantages, tokenizer, k: int, width: int) -> str:
    """The drawn tree and the accepted answer; advantages (M,)."""
    drawn = printable(draw_tree(scored.tree, tokenizer, k, scored.rewards, advantages, width))
    known = ", ".join(scored.question.answers) or "unknown (rewards show the format alone)"
    return f"{drawn}\n\nright answer: {known}"


def rule_text(config: RolloutConfig) -> str:
    """The branch rule in a line, with the numbers of these settings."""
    odds = f"P = {config.base_prob:g} + {config.entropy_weight:g} · ΔH"
    wins = {"threshold": f"> {config.threshold:g}", "coin": "> a coin", "best": "is highest in the whole tree"}
    k = config.entropy_tokens
    return f"forks (⑂) where {odds} {wins[config.branch_rule]}, while the budget lasts; H of {k} tokens"


def draw_tree(tree: Tree, tokenizer, k: int, rewards=None, advantages=None, width: int = 110) -> str:
    """The tree as text: turns, results, decisions, and at each leaf its reward and advantage (M,).

    H of a turn is the mean entropy of its first k tokens, as the branch rule measures it.
    """
    leaf_number = {leaf: m for m, leaf in enumerate(tree.leaves())}
    lines = ["prompt  " + _clip(tokenizer.decode(tree.prompt), width - 8)]

    def walk(parent: int, indent: str) -> None:
        children = [n for n, node in enumerate(tree.nodes) if node.parent == parent]
        for n in children:
            node, last = tree.nodes[n], n == children[-1]
            inner = indent + ("   " if last else "│  ")
            label = f"{len(node.ids)} tokens, H {np.mean(node.entropies[:k]):.2f}  "
            text = _clip(tokenizer.decode(node.ids), width - len(inner) - len(label))
            lines.append(indent + ("└─ " if last else "├─ ") + label + text)
            if node.observation:
                lines.append(f"{inner}⇒ " + _clip(tokenizer.decode(node.observation), width - len(inner) - 2))
            if node.decision:
                lines.append(f"{inner}⑂ {_decision_text(node.decision)}")
            if n in leaf_number:
                m = leaf_number[n]
                lines.append(f"{inner}● leaf {m}: " + _leaf_text(node.stopped, m, rewards, advantages))
            walk(n, inner)

    walk(PROMPT, "")
    return "\n".join(lines)


def _decision_text(d) -> str:
    verdict = f"{d.new_paths} new" if d.new_paths else "no fork"
    seen = f"H_t {d.entropy:.2f}  H_initial {d.initial_entropy:.2f}  ΔH {d.delta:+.3f}"
    why = f"P {d.prob:.4f} {'>' if d.prob > d.bar else '≤'} {d.bar:.4f}"
    return f"{verdict}: {seen}  {why}" + (", but no budget is left" if d.prob > d.bar and not d.new_paths else "")


def _leaf_text(end: str, m: int, rewards, advantages) -> str:
    text = {"end": "ended", "length": "out of tokens", "calls": "out of calls"}[end]
    text += "" if rewards is None else f"  reward {float(rewards[m]):+.2f}"
    return text + ("" if advantages is None else f"  advantage {float(advantages[m]):+.2f}")


def _clip(text: str, width: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= width else text[: max(1, width - 1)] + "…"
