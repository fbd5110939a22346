"""The built-in world and its tokenizer."""

import random

from transformers import AutoTokenizer

from data import WORLD_SEEDS
from data.benchmarks import load_questions
from data.corpus import Corpus
from data.format import tag_names
from data.tiny import build_tokenizer, tiny_config
from data.world import FAMILIES, World
from data.worlds import demonstrations
from tools import Browse


def test_splits_are_disjoint_worlds_of_their_own():
    worlds = {split: World(seed) for split, seed in WORLD_SEEDS.items()}
    texts = {split: {q.question for q in load_questions("world", split)} for split in worlds}
    facts = {split: {(p.title, p.text) for p in world.passages} for split, world in worlds.items()}
    for a, b in (("train", "dev"), ("train", "test"), ("dev", "test")):
        assert len(texts[a] & texts[b]) < 0.05 * len(texts[a])  # the same words may be asked, but of another world
        assert len(facts[a] & facts[b]) == 0
    assert all(len(world.entities) > 200 for world in worlds.values())


def test_a_world_is_a_function_of_its_seed():
    a, b = World(7), World(7)
    assert a.passages == b.passages and a.pages == b.pages and a.questions(50, 7) == b.questions(50, 7)
    assert a.passages != World(8).passages


def test_the_expert_finds_everything_with_the_tools():
    """The ceiling: each value that it goes on with stands in the result that it has just read."""
    world = World(WORLD_SEEDS["test"])
    corpus, browse = Corpus(world.passages), Browse(world.pages, 160)
    search = lambda query: corpus.search(query, top_k=1)
    counts = dict.fromkeys(FAMILIES, 0)
    for question in world.questions(120, 5):
        *steps, last = world.expert(question)
        assert last.content == question.answers[0]
        tools = {step.tool for step in steps}
        needs = {"compute": {"python"}, "mixed": {"search", "python"}, "page": {"search", "browse"}}
        assert tools == needs.get(question.family, {"search"})
        for step, after in zip(steps, [*steps[1:], last]):
            if step.tool != "python":
                shown = {"search": search, "browse": browse}[step.tool](step.content).text
                value = after.content.split()[0] if after.tool == "browse" else None
                assert (value or after.think.split(" ", 2)[2].split(" I ")[0].rstrip(".")) in shown
        counts[question.family] += 1
    assert min(counts.values()) == 20


def test_page_answers_stand_on_no_snippet():
    world = World(WORLD_SEEDS["dev"])
    for question in world.questions(40, 1, families=("page",)):
        name = world.expert(question)[0].content
        (passage,) = [p for p in world.passages if p.title == name]
        attribute = question.plan[-1].attribute.capitalize()
        assert f"{attribute} " not in passage.text and f"{attribute} " in world.pages[passage.address]


def test_namesakes_and_old_notes_are_there_to_mislead():
    world = World(WORLD_SEEDS["test"])
    titles = [p.title for p in world.passages]
    assert sum(title.startswith("Old note:") for title in titles) > 50
    names = [name.split()[0] for name in world.entities]
    assert len(names) - len(set(names)) > 50


def test_flaws_are_seeded_and_show():
    worlds = [list(demonstrations("world", 2, 60)) for _ in range(2)]
    assert [steps for _, _, steps in worlds[0]] == [steps for _, _, steps in worlds[1]]
    wrong = sum(steps[-1].content not in q.answers for _, q, steps in worlds[0])
    assert 0.3 < wrong / len(worlds[0]) < 0.8
    world, question, _ = worlds[0][0]
    assert world.expert(question)[-1].content == question.answers[0]
    assert world.expert(question, random.Random(1)) == world.expert(question, random.Random(1))


def test_the_tokenizer_is_lossless_and_loads_like_any_other(tmp_path):
    """Guards: AutoTokenizer replaces an unknown class by Qwen2's, silently, with other tokens."""
    tokenizer = build_tokenizer(["the river of the town", "Belmor of Arden"])
    text = "<think> I look.</think><search> Belmor</search>1234 Zürich 東京 🙂\n<answer>7</answer><|end|>"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert {"think", "python", "search", "browse", "result", "answer"} <= set(tag_names())
    assert all(len(tokenizer.encode(f"<{slash}{name}>")) == 1 for name in tag_names() for slash in ("", "/"))
    assert len(tokenizer.encode("1234")) == 4
    tokenizer.save_pretrained(tmp_path)
    tiny_config(len(tokenizer)).save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).encode(text) == ids
