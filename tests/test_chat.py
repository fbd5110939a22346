"""Texts of models: in memory, where a text does not depend on its batch, and from endpoints that misbehave."""

import json
import time
from contextlib import contextmanager

import pytest
import torch
from conftest import random_model
from openai_server import ChatServer

from data.chat import Endpoint, LocalModel, Prompt, Remembering, Reply, up_to_stop
from data.web import Cache, OutOfBudget


@pytest.fixture(scope="module")
def local(tokenizer):
    return LocalModel(random_model(tokenizer), tokenizer)


PROMPTS = [
    Prompt("the town", key="a", temperature=1.0, max_tokens=40),
    Prompt("the river of the town is long and the mayor is old", key="b", temperature=1.0, max_tokens=25),
    Prompt("old", "the mayor", key="c", temperature=1.0, top_p=0.5, max_tokens=30, stops=("</search>", "r")),
    Prompt("the town", key="d", max_tokens=20),
    Prompt("the town", written=("the mayor", " is old <|end|>", " and"), key="e", temperature=0.7, max_tokens=30),
]


def test_a_text_does_not_depend_on_its_batch(local):
    """Guards: samples that change with the batch size, or with the order in which attempts happen to wait."""
    together = local(PROMPTS)
    assert [local([prompt])[0] for prompt in PROMPTS] == together
    assert local(PROMPTS[::-1])[::-1] == together
    few = LocalModel(local.model, local.tokenizer, 2)
    assert few(PROMPTS) == together
    assert len({reply.text for reply in together}) == 5 and all(reply.wrote > 0 for reply in together)


def test_greedy_texts_are_those_of_generate(local):
    prompt = Prompt("the river", max_tokens=20)
    ids = local.encode(prompt)
    out = local.model.generate(torch.tensor([ids]), max_new_tokens=20, do_sample=False)[0, len(ids) :].tolist()
    (reply,) = local([prompt])
    assert reply.text == local.text(out) and reply.read == len(ids) and reply.wrote == len(out)
    hot = Prompt("the river", max_tokens=20, temperature=1.0, top_p=1e-6, key="x")  # so little that one token is left
    assert local([hot])[0].text == reply.text


def test_how_texts_end(local):
    (long,) = local([Prompt("the town", max_tokens=8, key="x", temperature=1.0)])
    texts = [local([Prompt("the town", stops=("e",), max_tokens=60, key=str(n), temperature=1.0)])[0] for n in range(8)]
    stopped = [reply for reply in texts if "e" in reply.text]
    assert stopped and all(reply.text.index("e") == len(reply.text) - 1 and reply.end == "end" for reply in stopped)
    assert long.end == "length" and long.wrote == 8
    full = " town" * local.context
    assert local([Prompt(full)]) == [Reply("", "context", len(local.encode(Prompt(full))))]
    near = local.encode(Prompt(" town" * (local.context - 10)))  # no more is written than there is room for
    (reply,) = local([Prompt(" town" * (local.context - 10), max_tokens=500)])
    assert reply.read == len(near) and reply.wrote <= local.context - len(near)
    assert up_to_stop("a<b>c<d>", ("<d>", "<b>")) == "a<b>" and up_to_stop("abc", ()) == "abc"


def test_the_same_weights_in_another_form(local, tokenizer):
    """Guards: a reader that should be the model before training, and is the trained one."""

    @contextmanager
    def before():
        yield other

    other = random_model(tokenizer, seed=1)
    other.generation_config.repetition_penalty = 5.0  # of its checkpoint: no setting that was asked for
    base = LocalModel(local.model, tokenizer, around=before)
    prompt = Prompt("the river", max_tokens=20)
    assert base([prompt]) == LocalModel(random_model(tokenizer, seed=1), tokenizer)([prompt]) != local([prompt])


def test_what_came_back_holds_no_special_tokens(local, tokenizer):
    """Guards: a page that ends the model's turn and begins another one."""
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    ids = local.encode(Prompt("a <|end|>", written=("own <|end|>", "a page <|end|>")))
    assert ids.count(end) == 1  # that which the model wrote itself


def test_texts_that_are_in_the_cache_are_not_written_again(local, tmp_path):
    first = Remembering(local, "m", Cache(tmp_path / "c.db"))(PROMPTS)
    asked = []
    known = Remembering(lambda prompts: asked.append(prompts), "m", Cache(tmp_path / "c.db", "offline"))
    assert known(PROMPTS) == first and asked == []
    assert known([Prompt("unknown")])[0].end == "error"


# ---------------------------------------------------------------------------------- endpoints


@pytest.fixture
def serve(monkeypatch):
    servers = []
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    yield lambda *how: servers.append(ChatServer(*how)) or servers[-1]
    for server in servers:
        server.shutdown()


def endpoint(server, **more):
    return Endpoint(server.url, "m", **{"patience": 0.01, "seconds": 20, "threads": 8} | more)


def echo(asked):
    return f"you said {asked['messages'][-1]['content']}"


def test_nothing_is_lost_and_nothing_is_counted_twice(serve):
    """Guards: answers of others, tokens of answers that were asked for again, and a question that a fault swallows."""
    moods = ["slow", "busy", "not json", "hang up", "error page", "no choices", "no text", "slow", "ok", "busy"]
    server = serve(echo, moods * 2)
    model = endpoint(server, tries=12, seconds=1.5)
    replies = model([Prompt(f"number {n}") for n in range(40)])
    assert [reply.text for reply in replies] == [f"you said number {n}" for n in range(40)]
    assert model.counts["answers"] == 40 and model.counts["read"] == 80 and model.counts["wrote"] == 160
    assert model.counts["tried_again"] >= 18 and model.counts["failed"] == 0  # more where the machine is busy
    assert len(server.requests) >= 58 and {request["key"] for request in server.requests} == {"Bearer secret"}


def test_a_rate_limit_holds_all_threads_up(serve):
    """Guards: threads that go on asking while one of them was told to wait."""
    told = iter([(429, "{}", {"Retry-After": "1"})])

    def script(asked):
        if asked["messages"][0]["content"] == "b":  # it is answered once the other thread was told to wait
            while not model._free_at:
                time.sleep(0.01)
            return "b"
        return next(told, "fine") if asked["messages"][0]["content"] == "a" else "c"

    server = serve(script)
    model = endpoint(server, threads=2)
    assert [reply.text for reply in model([Prompt("a"), Prompt("b"), Prompt("c")])] == ["fine", "b", "c"]
    assert len(server.times) == 4 and all(moment >= model._free_at for moment in server.times[2:])
    far = serve(lambda asked: (429, "{}", {"Retry-After": "4000"}))
    assert endpoint(far)([Prompt("a")])[0].end == "error" and len(far.requests) == 1


def test_what_fails_for_good(serve):
    server = serve(echo, ["busy"] * 100)
    model = endpoint(server, tries=3)
    (reply,) = model([Prompt("a")])
    assert reply.end == "error" and "503" in reply.text and len(server.requests) == 3
    assert dict(model.counts) == {"tried_again": 2, "failed": 1}
    for status in (401, 404):
        refused = endpoint(serve(lambda asked, status=status: (status, '{"key": "secret"}')))
        with pytest.raises(OSError, match=f"expected an answer, found status {status}") as caught:
            refused([Prompt("a")])
        assert "secret" not in str(caught.value) and len(refused.counts) == 0
    with pytest.raises(OSError, match="--endpoint http://127.0.0.1:9/v1 --model 'm': "):
        Endpoint("http://127.0.0.1:9/v1", "m", seconds=2).check()
    long = endpoint(serve(lambda asked: (400, '{"error": "maximum context length exceeded"}')))
    assert long([Prompt("a")])[0].end == "error" and long.counts["tried_again"] == 0


def test_once_it_is_stopped_nothing_is_asked(serve):
    """Guards: Ctrl-C, after which all that waits in line is still asked for and paid."""
    server = serve(lambda asked: (503, "{}"))
    model = endpoint(server, threads=1, patience=30)
    futures = [model.submit(Prompt(str(n))) for n in range(5)]
    while not server.requests:
        time.sleep(0.01)
    model.stop()
    assert futures[0].result(20).end == "error" and all(future.cancelled() for future in futures[1:])
    assert len(server.requests) == 1


def test_a_model_that_does_not_know_a_setting_is_asked_without_it(serve):
    def picky(asked):
        for name in ("max_tokens", "temperature", "stop"):
            if name in asked:
                return 400, f'{{"error": "Unsupported parameter: \'{name}\' is not supported with this model."}}'
        return "fine" if asked["max_completion_tokens"] == 7 else "?"

    server = serve(picky)
    model = endpoint(server)
    replies = model([Prompt(str(n), stops=("x",), max_tokens=7) for n in range(6)])
    assert [reply.text for reply in replies] == ["fine"] * 6


def test_answers_are_kept_and_paid_for_once(serve, tmp_path):
    server = serve(echo, ["not json"])
    cache = Cache(tmp_path / "c.db", max_paid_calls=4)
    model = endpoint(server, cache=cache, threads=1)
    hot = [Prompt("a", temperature=1.0, key=key) for key in "xy"]
    prompts = [Prompt("a", key="x"), Prompt("a", key="y"), *hot]  # equal where nothing is drawn
    assert {reply.text for reply in model(prompts)} == {"you said a"} and len(server.requests) == 4
    assert dict(model.counts) == {"answers": 3, "cached": 1, "read": 3, "wrote": 9, "tried_again": 1}
    with pytest.raises(OutOfBudget, match="the 4 calls"):
        model([Prompt("new")])
    offline = endpoint(server, cache=Cache(tmp_path / "c.db", "offline"))
    offline.check()
    assert [reply.text for reply in offline([*prompts, Prompt("new")])][:4] == ["you said a"] * 4
    assert len(server.requests) == 4 and offline.counts["failed"] == 1


def test_what_an_endpoint_is_sent(serve):
    """Guards: a model that is shown what came back to it as its own words, and a text that is not gone on with."""
    server = serve(echo)
    prompt = Prompt("question", "rules", ("I look <s>x</s>", "found", "and so", " more"), ("</s>", *"abcd"))
    endpoint(server)([prompt])
    endpoint(server, prefill=True)([prompt])
    first, second = server.requests
    roles = [(message["role"], message["content"]) for message in first["messages"]]
    told = [("assistant", "I look <s>x</s>"), ("user", "found"), ("assistant", "and so"), ("user", " more")]
    assert roles == [("system", "rules"), ("user", "question"), *told]
    assert (
        first["stop"] == ["</s>", "a", "b", "c"] and first["temperature"] == 0 and "continue_final_message" not in first
    )
    assert second["messages"][-1] == {"role": "assistant", "content": "I look <s>x</s>foundand so more"}
    assert second["continue_final_message"] and not second["add_generation_prompt"]


@pytest.mark.parametrize(
    "choice, text, end",
    [
        ({"content": "I look <s>x", "finish": "stop"}, "I look <s>x</s>", "end"),
        ({"content": "I look <s>x", "finish": "length"}, "I look <s>x", "length"),
        ({"content": "done", "finish": "stop"}, "done", "end"),
        ({"content": "ask <|begin_q|>x", "finish": "stop"}, "ask <|begin_q|>x<|end_q|>", "end"),
        ({"content": "no tag", "finish": "stop", "stop": "</s>"}, "no tag</s>", "end"),
        ({"content": "<s>x</s> and more", "finish": "stop"}, "<s>x</s>", "end"),
        ({"content": None, "refusal": "I will not.", "finish": "stop"}, "I will not.", "end"),
        ({"content": [{"text": "in "}, {"text": "parts"}], "finish": "stop"}, "in parts", "end"),
        ({"content": "", "finish": "length"}, "", "length"),
    ],
)  # fmt: skip
def test_how_an_answer_of_an_endpoint_ends(serve, choice, text, end):
    """Guards: a search that is never run, since endpoints leave out the stop that ended the text."""
    message = {"content": choice["content"], "refusal": choice.get("refusal")}
    told = {"message": message, "finish_reason": choice["finish"], "stop_reason": choice.get("stop")}
    server = serve(lambda asked: (200, json.dumps({"choices": [told]})))
    (reply,) = endpoint(server)([Prompt("a", stops=("</s>", "<|end_q|>"))])
    assert (reply.text, reply.end) == (text, end)
