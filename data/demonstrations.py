"""What a cold start learns from: encoded trajectories, and batches of them.

They come from a built-in world's expert, whose calls are really run, from demonstrations that a tool brings
along, or from conversations with tools (`conversations.py`). Left out: the optimizer's side (`train.py`).
"""

import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from data import ANSWER, Action
from data.conversations import describe_skipped, load_conversations
from data.format import Tool, TrajectoryConfig, encode_turns, read_answer, write_action
from data.rows import path_of
from data.settings import Natural, NonNegative, Positive, Share
from data.tiny import VOCAB_SIZES, build_tokenizer
from data.worlds import demonstrations, is_world

Example = tuple[list[int], list[int]]  # token ids, and 1 where the policy wrote the token; both (T,)
Tools = dict[str, Tool]


@dataclass(frozen=True)
class DemonstrationConfig(TrajectoryConfig):
    cold_start: bool = False  # SFT on demonstrations before RL; on for a model that has seen none
    sft_data: str = "world"  # "world", "trails", arpo-sft, tool-star, still, a hub id, or a .jsonl, .json, .csv file
    sft_flaws: Share = 1.0  # share of a world's demonstrations by the expert with flaws
    sft_steps: Positive = 300  # optimizer steps of the cold start
    sft_worlds: Positive = 100  # worlds that demonstrations are drawn from
    sft_each: Positive = 32  # demonstrations from each; sft_worlds * sft_each conversations of other sft_data
    sft_batch_tokens: Positive = 6000  # of a forward pass, padding included
    sft_batch_rows: Natural = 0  # least of an optimizer step, in several passes; 0: a step is one pass
    sft_weight_decay: NonNegative = 0.01  # of AdamW
    sft_learning_rate: Share = 1e-4  # peak


def load_demonstrations(tokenizer, config: DemonstrationConfig, tools_of: Callable[..., Tools]) -> list[Example]:
    """Encoded trajectories. `tools_of(world)` has the tools that the expert's calls are run with."""
    if not is_world(config.sft_data):
        return conversation_set(tokenizer, config)
    examples: list[Example] = []
    tools: dict[int, Tools] = {}  # of the newest world
    every = demonstrations(config.sft_data, config.sft_worlds, config.sft_each, config.sft_flaws)
    for world, question, actions in tqdm(every, desc="demonstrations", leave=False):
        if world.seed not in tools:
            tools = {world.seed: tools_of(world)}
        turns = expert_turns(actions, tools[world.seed])
        examples.append(encode_turns(tokenizer, question.question, turns, config.max_result_tokens))
    for tool in tools[world.seed].values():
        for asked, actions in tool.demonstrations:
            turns = expert_turns(actions, tools[world.seed])
            examples.append(encode_turns(tokenizer, asked, turns, config.max_result_tokens))
    return examples


def expert_turns(actions: list[Action], tools: Tools) -> Iterator[tuple[str, str | None]]:
    """An expert's actions as turns with results, the calls really run; the last has no result."""
    for action in actions:
        result = None if action.tool == ANSWER else tools[action.tool](action.content).text
        yield write_action(action), result


def check_file(config: DemonstrationConfig) -> None:
    """Reads conversations that lie in a file; ValueError or OSError says what is wrong with it."""
    if path_of(config.sft_data):
        conversations, skipped = load_conversations(config.sft_data)
        if not conversations:
            told = describe_skipped(config.sft_data, len(skipped), skipped)
            raise ValueError(f"expected conversations to learn from, found no usable row in {told}")


def conversation_set(tokenizer, config: DemonstrationConfig) -> list[Example]:
    """Encoded conversations, without those that would cost -1 in a rollout: wrong in format, or over a limit.

    What is left out is reported; the long ones only as far as conversations were encoded until there were enough.
    """
    conversations, skipped = load_conversations(config.sft_data)
    rows, examples = len(conversations) + len(skipped), []
    for talk in random.Random(config.seed).sample(conversations, len(conversations)):
        texts = [text for text, _ in talk.turns]
        if read_answer(texts) is None or tokenizer.eos_token in "".join(texts):
            skipped[talk.place] = "format"
        elif len(examples) < config.sft_worlds * config.sft_each:
            example = encode_turns(tokenizer, talk.question, talk.turns, config.max_result_tokens)
            reason = too_much(tokenizer, example, texts, config)
            if reason:
                skipped[talk.place] = reason
            else:
                examples.append(example)
    told = describe_skipped(config.sft_data, rows, skipped) if skipped else config.sft_data
    if not examples:
        raise ValueError(f"expected conversations to learn from, found no usable row in {told}")
    if skipped:
        print(told, file=sys.stderr)
    return examples


def too_much(tokenizer, example: Example, texts: list[str], config: DemonstrationConfig) -> str:
    """Which limit of a rollout the conversation breaks, or ""."""
    ids, own = example
    longest = max(len(tokenizer.encode(text, add_special_tokens=False)) for text in texts)
    if len(ids) - own.index(1) > config.max_completion_length or longest >= config.max_turn_tokens:
        return "too long"
    return "too many calls" if len(texts) > config.max_tool_calls + 1 else ""


def batches(examples: list[Example], batch_tokens: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches of similar lengths: ids (B, T), labels (B, T) with -100 where the loss has no term."""
    rng = random.Random(seed)
    while True:
        shuffled = rng.sample(range(len(examples)), len(examples))
        order = sorted(shuffled, key=lambda i: len(examples[i][0]) + rng.random() * 20)
        epoch, batch = [], []
        for i in order:
            if batch and (len(batch) + 1) * len(examples[i][0]) > batch_tokens:
                epoch.append(batch)
                batch = []
            batch.append(i)
        epoch.append(batch)
        rng.shuffle(epoch)
        yield from (collate([examples[i] for i in batch]) for batch in epoch)


def steps(drawn: Iterator[tuple[Tensor, Tensor]], rows: int) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Batches for one optimizer step each: until they have `rows` rows together."""
    while True:
        some = [next(drawn)]
        while sum(len(ids) for ids, _ in some) < rows:
            some.append(next(drawn))
        yield some


def collate(examples: list[Example]) -> tuple[Tensor, Tensor]:
    """Ids and labels (B, T), padded on the right."""
    width = max(len(ids) for ids, _ in examples)
    ids = torch.zeros(len(examples), width, dtype=torch.long)
    labels = torch.full((len(examples), width), -100)
    for row, example in enumerate(examples):
        tokens, own = (torch.tensor(values) for values in example)
        ids[row, : len(tokens)] = tokens
        labels[row, : len(tokens)] = tokens.masked_fill(own == 0, -100)
    return ids, labels


def built_in_tokenizer(source: str):
    """The tokenizer of the built-in model that knows the worlds of this name."""
    return build_tokenizer(vocabulary_texts(source), VOCAB_SIZES[source])


def vocabulary_texts(source: str) -> Iterator[str]:
    """Corpora, questions and actions of a few worlds."""
    seen = set()
    for world, question, actions in demonstrations(source, 40, 24):
        if world.seed not in seen:
            seen.add(world.seed)
            yield from (f" {p.title} ({p.address}): {p.text}" for p in world.passages)
            yield from list(world.pages.values())[:8]  # few: names matter more than the words of pages
        yield from (f" {text}" for action in actions for text in (question.question, action.think, action.content))
