"""Questions, grading and the built-in world."""

import random

import pytest
from transformers import AutoTokenizer

from data import WORLD_SEEDS, load_questions, repair
from data.grading import accuracy, exact_match, f1, hierarchical_reward, math_equal, overlong_penalty
from data.tiny import TAGS, build_tokenizer, tiny_config
from data.world import FAMILIES, World, demonstrations
from tools import Browse, Search


@pytest.mark.parametrize(
    "answer, gold, expected",
    [
        ("-3", "3", 0), ("3", "-3", 0), ("1,200", "1200", 1), ("3.14", "314", 0), ("1712.0", "1712", 1),
        ("The Belmor!", "belmor", 1), ("A", "A", 1), ("Beyoncé", "Beyonce", 1), ("Belmor of Arden", "Belmor", 0),
        ("", "", 0), ("42 coins", "42", 0),
    ],
)  # fmt: skip
def test_exact_match(answer, gold, expected):
    assert exact_match(answer, [gold]) == expected


def test_f1_and_several_golds():
    assert f1("Ann Rusk", ["Ann Rusk of Arden"]) == pytest.approx(2 / 3, abs=0.15)
    assert f1("yes it is", ["yes"]) == 0
    assert exact_match("b", ["a", "b"]) == 1


@pytest.mark.parametrize(
    "answer, gold, expected",
    [
        ("-3", "3", 0), (r"\frac{1}{2}", "0.5", 1), (r"\boxed{A}", "A", 1), ("x+1", "1+x", 1), ("15.", "15", 1),
        ("1.2e3", "1200", 1), ("4", "5", 0), ("", "5", 0),
    ],
)  # fmt: skip
def test_math_equality(answer, gold, expected):
    """Ledger: the released reward is token F1, under which -3 equals 3 and A against A scores 0."""
    assert math_equal(answer, [gold]) == expected


def test_reward_pays_for_nothing_but_right_answers_and_tools_that_ran():
    """Ledger: the released bonus looks for closing tags anywhere, even inside thoughts."""
    assert hierarchical_reward(1.0, False, {"search", "python"}) == -1
    assert hierarchical_reward(0.0, True, {"search", "python"}) == 0
    assert hierarchical_reward(1.0, True, {"search"}) == 1
    assert hierarchical_reward(1.0, True, {"search", "python"}) == pytest.approx(1.1)
    (question,) = load_questions("world", "test", 1)
    assert accuracy(question, " ") == 0


def test_overlong_penalty_worked_by_hand():
    """DAPO: nothing up to L_max - L_cache, then down to -1 at L_max."""
    assert [overlong_penalty(n, 100, 20) for n in (50, 80, 90, 100, 130)] == [0, 0, -0.5, -1, -1]


def test_corrupted_prompts_are_repaired(tmp_path):
    """Ledger: `\\boxed` was read as an escape in all RL rows of the official set."""
    assert repair("put it in \x08oxed{}") == r"put it in \boxed{}"
    path = tmp_path / "q.jsonl"
    path.write_text('{"question": "put it in \\boxed{}", "answer": 7}\n')
    assert load_questions(str(path), "train")[0].question == r"put it in \boxed{}"


def test_question_files(tmp_path):
    path = tmp_path / "aime25.jsonl"
    path.write_text('{"problem": "1+1?", "answer": 2}\n\n{"Question": "who?", "answer": ["a", "b"]}\n')
    first, second = load_questions(str(path), "test")
    assert (first.answers, first.metric, second.answers) == (("2",), "math", ("a", "b"))
    for text, message in (
        ('{"question": "x", "answer": 1}\n{oops\n', "line 2"),
        ("\n", "no questions"),
        ('{"answer": 1}', "question"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            load_questions(str(path), "test")


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
    search, browse = Search(world.passages, 1), Browse(world.pages, 160)
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
    worlds = [list(demonstrations(2, 60)) for _ in range(2)]
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
    assert all(len(tokenizer.encode(token)) == 1 for token in TAGS)
    assert len(tokenizer.encode("1234")) == 4
    tokenizer.save_pretrained(tmp_path)
    tiny_config(len(tokenizer)).save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).encode(text) == ids
