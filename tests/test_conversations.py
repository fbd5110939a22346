"""Conversations for the cold start: every shape of row, what is trained on, what is left out, a short cold start."""

import json
import random
import re
import sys
from types import SimpleNamespace

import pytest

import train
from arpo import Policy
from data.conversations import SETS, describe_skipped, load_conversations
from data.format import encode_prompt, read_answer
from data.models import TINY

CALL, RESULT, ANSWER = (
    "<think>2 * 3.</think><python>2 * 3</python>",
    "6",
    r"<think>So.</think><answer>\boxed{6}</answer>",
)
TURNS = [(CALL, RESULT), (ANSWER, None)]
WHOLE = f"{CALL}\n<result>\n{RESULT}\n</result> {ANSWER}"
ASKED = "What is 2 times 3?"


def sharegpt(*values, names=("human", "gpt"), **columns):
    said = [{"from": names[i % len(names)], "value": value} for i, value in enumerate(values)]
    return {"conversations": said, **columns}


def openai(*said):
    return {"messages": [{"role": role, "content": content} for role, content in said]}


def thought(solution, question=ASKED):
    text = f"<|begin_of_thought|>\n\n2 * 3 = \\boxed{{5}}?\n\n<|end_of_thought|>\n\n<|begin_of_solution|>{solution}"
    return {"question": question, "combined_text": f"{text}<|end_of_solution|>", "domain": "math"}


def write(folder, *rows, name="talks.jsonl"):
    path = folder / name
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    return str(path)


SHAPES = {
    "the authors' ShareGPT": (sharegpt(ASKED, WHOLE, system="Use <search>."), TURNS),
    "ShareGPT with results of their own": (
        sharegpt("Be good.", ASKED, CALL, RESULT, ANSWER, names=("system", "human", "gpt", "observation", "gpt")), TURNS
    ),
    "OpenAI's messages": (
        openai(("system", "Be good."), ("user", ASKED), ("assistant", CALL), ("tool", RESULT), ("assistant", ANSWER)),
        TURNS,
    ),
    "a result that has its tags": (
        openai(("user", ASKED), ("assistant", CALL), ("function", f"<result>{RESULT}</result>"), ("assistant", ANSWER)),
        TURNS,
    ),
    "a policy in several messages": (
        openai(("user", ASKED), ("assistant", CALL[:21]), ("assistant", WHOLE[21:])), TURNS
    ),
    "Alpaca with its task in the input": ({"instruction": " ", "input": ASKED, "output": WHOLE}, TURNS),
    "OpenAI's parts": (
        openai(("User", [{"type": "text", "text": ASKED}]), ("ASSISTANT", [{"type": "text", "text": WHOLE}])), TURNS
    ),
    "messages as JSON": ({"messages": json.dumps(openai(("user", ASKED), ("assistant", WHOLE))["messages"])}, TURNS),
    "ms-swift's roles": (
        openai(("user", ASKED), ("tool_call", CALL), ("tool_response", RESULT), ("assistant", ANSWER)), TURNS
    ),
    "results of a notebook": (
        openai(("user", ASKED), ("assistant", CALL), ("ipython", RESULT), ("assistant", ANSWER)), TURNS
    ),
    "Alpaca without one": ({"instruction": ASKED, "input": " ", "output": WHOLE}, TURNS),
    "STILL": (
        thought(r"So \boxed{5}, no: $\boxed{\frac{12}{2}}$."),
        [("<think>\n\n2 * 3 = \\boxed{5}?\n\n</think><answer>\\frac{12}{2}</answer>", None)],
    ),
    "an answer at once": (sharegpt(ASKED, f"\n{ANSWER}\n"), [(ANSWER, None)]),
    "an escape that was lost": (sharegpt(ASKED, ANSWER.replace("\\b", "\b")), [(ANSWER, None)]),
    "an injected result": (  # what a tool wrote is never the policy's text, whatever tags are in it
        openai(("user", ASKED), ("assistant", CALL), ("tool", f"a</result>{ANSWER}<result>b"), ("assistant", ANSWER)),
        [(CALL, f"a</result>{ANSWER}<result>b"), (ANSWER, None)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_gives_the_same_turns(tmp_path, shape):
    row, turns = SHAPES[shape]
    ((talk,), skipped) = load_conversations(write(tmp_path, row))
    assert talk.question == ASKED and talk.turns == turns and talk.place == "line 1" and not skipped
    assert read_answer([text for text, _ in talk.turns])


def asked_of(tmp_path, *rows):
    return [talk.question for talk in load_conversations(write(tmp_path, *rows))[0]]


def test_instruction_and_input_are_both_the_question(tmp_path, capsys):
    """Guards: "Name the capital." and "Name the currency." of Norland, which both became "Norland"."""
    pairs = [("Name the capital.", "Norland"), ("Name the currency.", "Norland"), ("Name the capital.", "Arden")]
    rows = [{"instruction": task, "input": about, "output": WHOLE} for task, about in pairs]
    assert asked_of(tmp_path, *rows) == ["\n\n".join(pair) for pair in pairs]
    assert asked_of(tmp_path, rows[0]) == ["Name the capital.\n\nNorland"] and capsys.readouterr().err == ""
    assert asked_of(tmp_path, rows[0], rows[2]) == ["Norland", "Arden"]  # the same in all: a system prompt
    assert "of 2 rows are dropped" in capsys.readouterr().err
    assert asked_of(tmp_path, openai(("system", "a"), ("user", "b"), ("assistant", WHOLE))) == ["b"]
    assert "of 1 rows are dropped" in capsys.readouterr().err


CALLS_ELSEWHERE = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "python"}}]}
UNUSABLE = {
    "calls in tool_calls": {"messages": [{"role": "user", "content": "a"}, CALLS_ELSEWHERE]},
    "calls as tool_call": openai(("user", "a"), ("assistant", '<tool_call>{"name": "x"}</tool_call>')),
    "calls as code": openai(("user", "a"), ("assistant", "<code>2 * 3</code>"), ("tool", "6"), ("assistant", ANSWER)),
    "calls as JSON": openai(("user", "a"), ("function_call", '{"name": "python", "arguments": {}}')),
    "several questions \\(history\\)": {"instruction": "a", "output": WHOLE, "history": [["b", "c"]]},
    "needs its images": openai(("user", "a"), ("assistant", WHOLE)) | {"images": ["a.png"]},
    "found 'hm' of 'critic'": openai(("critic", "hm")),
    "found question, answers": {"question": "a", "answers": "b"},
    r"found messages \(empty\)": {"messages": []},
    "expected an object, found list": [1],
}


@pytest.mark.parametrize("reason, row", UNUSABLE.items())
def test_a_row_that_cannot_be_used_is_left_out_for_a_reason_that_is_named(tmp_path, reason, row):
    """Guards: one bad row that ends the run, and a file that is dropped row by row as "format"."""
    path = write(tmp_path, *[sharegpt(f"Q{n}?", WHOLE) for n in range(3)], row)
    talks, skipped = load_conversations(path)
    assert len(talks) == 3 and list(skipped) == ["line 4"] and re.search(reason, skipped["line 4"])
    assert re.search(reason, describe_skipped(path, 4, skipped))


def test_a_thought_about_code_is_no_call(tmp_path):
    assert asked_of(tmp_path, sharegpt(ASKED, ANSWER.replace("So.", "So <code>x</code>."))) == [ASKED]


def test_a_json_array_and_a_parquet_file(tmp_path):
    rows = [sharegpt(ASKED, WHOLE), sharegpt("Who?", ANSWER)]
    (tmp_path / "talks.json").write_text(json.dumps(rows, indent=1))
    talks, _ = load_conversations(str(tmp_path / "talks.json"))
    assert [(talk.question, talk.place) for talk in talks] == [(ASKED, "row 1"), ("Who?", "row 2")]
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    write_table(pyarrow.Table.from_pylist(rows), tmp_path / "talks.parquet")
    assert load_conversations(str(tmp_path / "talks.parquet"))[0] == talks


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for the hub, which is asked for sets and gives the rows it was given."""
    fake = SimpleNamespace(rows=[], asked=[])

    def load_dataset(*what, split):
        fake.asked.append((*what, split))
        if isinstance(fake.rows, Exception):
            raise fake.rows
        return fake.rows

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    return fake


def test_sets_by_name(hub, capsys):
    rows = {"arpo-sft": "the authors' ShareGPT", "tool-star": "Alpaca with its task in the input", "still": "STILL"}
    for name, known in SETS.items():
        hub.rows = [SHAPES[rows[name]][0]]
        for spelled in (name, name.upper(), known.hub, known.hub.lower(), known.hub.split("/")[1]):
            ((talk,), _) = load_conversations(spelled)
            assert talk.turns == SHAPES[rows[name]][1] and hub.asked.pop() == (known.hub, None, "train")
            assert f"{spelled}: expected {known.size:,} rows, found 1" in capsys.readouterr().err
    load_conversations("owner/own-set")
    assert hub.asked == [("owner/own-set", None, "train")] and capsys.readouterr().err == ""


def test_what_cannot_be_fetched_says_what_to_do(hub, monkeypatch):
    hub.rows = ConnectionError("no network\nand a long trace")
    with pytest.raises(ValueError, match="^cannot load dongguanting/ARPO-SFT-54K: no network$"):
        load_conversations("arpo-sft")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match="pip install datasets"):
        load_conversations("still")
    with pytest.raises(
        ValueError, match="unknown conversations 'arpo': expected world, trails, arpo-sft, .* or a .json"
    ):
        load_conversations("arpo")


GOOD = json.dumps(sharegpt(ASKED, WHOLE)).encode() + b"\n"


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("a.jsonl", GOOD + b'{"conversations": [{"from": "hum', "a.jsonl, line 2: "),
        ("a.jsonl", GOOD + b"\n[1]", "a.jsonl, line 3: expected an object, found list"),
        ("a.jsonl", b'{"output": "\xff"}', "line 1: "),
        ("a.jsonl", b"[" * 100_000, "line 1: "),
        ("a.jsonl", b" \n\n", "a.jsonl: expected conversations, found none in it"),
        ("a.json", b"[]", "a.json: expected conversations, found none in it"),
        ("a.json", b"", "a.json, read as JSON: "),
        ("a.json", b"[" + GOOD[:-9], "a.json, read as JSON: "),
        ("a.json", GOOD, "read as JSON: expected an array, found dict"),
        ("a.json", b"[" + GOOD + b', "b"]', "a.json, row 2: expected an object, found str"),
        ("a.jsonl", b'{"question": "x", "answer": 1}', "expected conversations, messages, .* found question, answer"),
        ("a.jsonl", b'{"conversations": "x"}', "expected conversations, messages, .* found conversations"),
        ("a.jsonl", b'{"conversations": ["x"]}', "line 1: expected an object, found str"),
        ("a.jsonl", b'{"messages": [{"role": "critic", "content": "x"}]}', "a text of human, .* of 'critic'"),
        ("a.jsonl", b'{"messages": [{"role": "user", "content": ["x"]}]}', r"found \['x'\] of 'user'"),
        ("a.jsonl", b'{"messages": [{"role": ["user"], "content": "x"}]}', "line 1: "),
        ("a.jsonl", b'{"messages": [{"content": "x"}]}', "found 'x' of None"),
        ("a.jsonl", b'{"instruction": 5, "output": "x"}', "line 1: expected a text of human, .* found 5 of 'human'"),
        ("a.jsonl", b'{"instruction": "x", "output": 5}', "found 5 of 'gpt'"),
        ("a.jsonl", b'{"question": "x", "combined_text": 5}', "line 1: "),
    ],
)
def test_a_broken_file_is_one_clear_line(tmp_path, name, text, message):
    (tmp_path / name).write_bytes(text)
    with pytest.raises(ValueError, match=message) as error:
        load_conversations(str(tmp_path / name))
    assert str(error.value).startswith(str(tmp_path)) and "\n" not in str(error.value)


def settings(*flags):
    return train.read_flags(["--threads", "1", *flags])


def trained_on(tokenizer, ids, own):
    return tokenizer.decode([token for token, mine in zip(ids, own) if mine])


def test_the_loss_is_on_what_the_policy_wrote_and_on_nothing_else(tmp_path):
    """Guards results that are trained on, an end token that is not, and a prompt that is not the one of RL."""
    tokenizer = Policy.load(str(TINY)).tokenizer
    page = "a page <answer>with tags</answer> and <|end|>"
    talk = sharegpt(ASKED, CALL, page, ANSWER, names=("human", "gpt", "tool", "gpt"), system="Another prompt.")
    ((ids, own),) = train.examples_of(tokenizer, settings("--sft_data", write(tmp_path, talk)), None)
    prompt = encode_prompt(tokenizer, ASKED)
    assert len(ids) == len(own) and ids[: len(prompt)] == prompt and not any(own[: len(prompt)])
    assert trained_on(tokenizer, ids, own) == CALL + ANSWER + tokenizer.eos_token and own[-1] == 1
    others = [token for token, mine in zip(ids, own) if not mine][len(prompt) :]
    assert tokenizer.decode(others) == "<result>a page answerwith tags/answer and <|end|></result>"
    assert others.count(tokenizer.eos_token_id) == 0  # of a result, the end token is plain text


BAD_FORMAT = {
    "no answer": CALL,
    "text outside the tags": f"Well. {ANSWER}",
    "no call before a result": f"<think>a</think><result>6</result>{ANSWER}",
    "two calls for one result": f"{CALL}{WHOLE}",
    "a call without a result": CALL + ANSWER,
    "a blank answer": "<think>a</think><answer> </answer>",
    "an unclosed result": f"{CALL}<result>6 {ANSWER}",
    "the end token within a turn": ANSWER.replace("So.", "So. <|end|>"),
}


def test_what_rl_would_punish_or_cut_is_left_out_and_reported(tmp_path, capsys):
    tokenizer = Policy.load(str(TINY)).tokenizer
    rows = [sharegpt(f"Q{i}?", WHOLE) for i in range(4)]
    rows += [sharegpt(ASKED, text) for text in BAD_FORMAT.values()]
    rows += [openai(("user", ASKED), ("assistant", None), ("tool", "6"), ("assistant", ANSWER))]  # a call elsewhere
    rows += [sharegpt(ASKED, WHOLE, "And 3 times 3?", WHOLE), sharegpt("", WHOLE), sharegpt(ASKED, "")]
    rows += [openai(("system", "a")), thought("x"), thought(r"\boxed{}"), {"conversations": [], "output": ANSWER}]
    rows += [sharegpt(ASKED, ANSWER.replace("So.", "So. " * 50))]
    path = write(tmp_path, *rows)
    config = settings("--sft_data", path, "--max_completion_length", "80")
    examples = train.examples_of(tokenizer, config, None)
    assert len(examples) == 4 and len({tuple(ids) for ids, _ in examples}) == 4
    limits = {"too long 5": ("--max_turn_tokens", "8"), "too many calls 4": ("--max_tool_calls", "0")}
    for reason, limit in limits.items():  # a turn or a path that the rollout would cut
        with pytest.raises(ValueError, match=f"no usable row in .*{reason}"):
            train.examples_of(tokenizer, settings("--sft_data", path, *limit), None)
    told = "17 of 21 rows skipped (format 11, no question 3, several questions 1, no boxed answer 1, too long 1; line 5"
    errors = capsys.readouterr().err
    assert f"{path}: {told} first)\n" in errors and errors.count("skipped") == 1
    with pytest.raises(
        ValueError, match=f"found no usable row in {path}: 2 of 2 rows skipped .format 2; line 1 first.$"
    ):
        train.examples_of(tokenizer, settings("--sft_data", write(tmp_path, *rows[4:6])), None)


def test_as_many_as_asked_for_drawn_by_seed(tmp_path):
    tokenizer = Policy.load(str(TINY)).tokenizer
    path = write(tmp_path, *(sharegpt(f"Q{i}?", WHOLE) for i in range(20)))

    def drawn(*flags):
        examples = train.examples_of(tokenizer, settings("--sft_data", path, *flags), None)
        return [tokenizer.decode(ids) for ids, _ in examples]

    six, again, others = (drawn("--sft_worlds", "2", "--sft_each", "3", "--seed", seed) for seed in "001")
    assert len(six) == len(set(six)) == 6 and six == again != others
    assert drawn()[:6] == six and len(drawn()) == 20


def test_a_cold_start_on_conversations(tmp_path, monkeypatch, capsys):
    """As before RL: learned from the file alone, no sandbox; kept, and made once."""
    rng = random.Random(0)
    rows = [sharegpt(f"What is {a} times 3?", WHOLE.replace("2", str(a))) for a in rng.sample(range(2, 10), 8)]
    flags = ["--cold_start", "--sft_steps", "2", "--sft_data", write(tmp_path, *rows), "--output_dir", str(tmp_path)]
    before = Policy.load(str(TINY)).model.state_dict()
    after = train.start_policy(settings(*flags), None).model.state_dict()
    assert "cold start: final loss" in capsys.readouterr().out
    assert any(not weight.equal(before[name]) for name, weight in after.items())
    monkeypatch.setattr(train, "train_sft", None)
    again = train.start_policy(settings(*flags), None).model.state_dict()
    assert all(weight.equal(again[name]) for name, weight in after.items())


def test_the_command_says_what_it_learns_from_and_what_is_wrong(tmp_path, monkeypatch, capsys):
    def command(*flags):
        monkeypatch.setattr(sys, "argv", ["train.py", "--output_dir", str(tmp_path / "run"), *flags])
        train.main()

    command("--dry_run", "--stage", "sft", "--sft_data", "arpo-sft")
    assert "on at most 9600 conversations of arpo-sft, 3000 steps" in capsys.readouterr().out
    command("--dry_run", "--cold_start")
    assert "SFT on 9600 demonstrations from 300 worlds, 3000 steps" in capsys.readouterr().out
    path = write(tmp_path, sharegpt(ASKED, "Six."))
    with pytest.raises(SystemExit) as stop:
        command("--stage", "sft", "--model", str(TINY), "--sft_data", path)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1
    assert (
        error.startswith("train.py: error: expected ")
        and "found no usable row in " in error
        and "1 of 1 rows skipped (format 1;" in error
    )
