"""The live web as the tools, a rollout and the commands use it: windows, readers, replays, and faults that add up."""

import itertools
import json
import sys

import pytest
from test_web import (
    ARTICLE,
    SERPER,
    keys,
    page,
    payload,
    reply_json,
    sandbox,
    serve,
    web_of,
)

import tools
from arpo import Policy
from data.benchmarks import load_questions
from data.chat import Endpoint
from data.format import ToolCall, ToolResult, encode_prompt
from data.models import TINY
from data.web import Cache, Reader, Web, WebSearch
from eval import read_flags
from rollout import RolloutConfig, grow_trees
from tools import Browse, Python, Search, Toolbox, load_tools

__all__ = ["keys", "sandbox", "serve"]  # fixtures of test_web.py


def test_long_pages_are_windowed_whole(serve, sandbox):
    """Guards: the worker's usual output limit, which would cut the middle of a page."""
    text = " ".join(f"Item {n} is here." for n in range(4000)) + " The motto is golden."
    server = serve({"/long": page(f"<p>{text}")})
    web = web_of(server, sandbox, seconds=5)
    browse = Browse(web, window_chars=3000)
    assert "golden" in browse(f"{server.url('/long')} motto").text
    middle = browse(f"{server.url('/long')} page 10")
    assert text[27_010:29_000] in middle.text and middle.cached


@pytest.mark.parametrize("answer", [reply_json({}, 401), reply_json({}, 429), page("<html>"), page("[1]"), b""])
def test_a_service_that_fails_is_a_fault_and_never_tells_the_key(serve, keys, answer):
    """Guards: noise that is stored for good, and keys in transcripts."""
    server = serve({"/s": answer})
    search = Search(WebSearch("serper", Cache(), url=server.url("/s"), seconds=1))
    box = Toolbox({"search": search})
    result = box.submit(ToolCall("search", "x")).result()
    assert result.fault and "secret" not in result.text
    with pytest.raises(OSError, match="^tools that do not work: search"):
        box.check()
    server.routes["/s"] = reply_json(SERPER)
    assert search("x").outcome == "ok"
    box.check()
    box.close()


def test_a_page_read_by_a_model(serve):
    def answer(raw):
        prompt = payload(raw)["messages"][0]["content"]
        return reply_json({"choices": [{"message": {"content": f"read: {'height' in prompt and '120' in prompt}"}}]})

    server = serve({"/v1/chat/completions": answer})
    reader = Reader("small", Endpoint(server.url("/v1"), "small", tries=1).read, Cache())
    browse = Browse({"t": "It is 120 high."}, reader=reader)
    assert [browse("t height").text for _ in range(3)] == ["read: True"] * 3 and len(server.requests) == 1
    assert browse("t").text == browse("t page 1").text == "It is 120 high."
    server.routes.clear()
    failed = Toolbox({"browse": browse}).submit(ToolCall("browse", "t other")).result()
    assert failed.fault and "404" in failed.text


def test_a_run_is_repeated_offline_bit_for_bit(serve, keys, sandbox, tmp_path):
    server = serve({"/s": reply_json(SERPER), "/a": page(ARTICLE)})
    opened = [ToolCall("browse", server.url(content)) for content in ("/a#top high", "/no")]
    calls = [ToolCall("search", "tower"), *opened]

    def run(mode):
        cache = Cache(tmp_path / "c.db", mode)
        web = Web(cache, sandbox, 2, 0.0, {server.netloc})
        box = Toolbox({"search": WebSearch("serper", cache, url=server.url("/s")), "browse": Browse(web, 60)})
        results = [box.submit(call).result() for call in calls]
        return [(r.text, r.outcome) for r in results], box

    first, _ = run("online")
    server.shutdown()
    server.server_close()
    second, box = run("offline")
    assert first == second and [outcome for _, outcome in first] == ["ok", "ok", "error"]
    assert box.counts == {("search", "cached"): 1, ("browse", "cached"): 2} and "browse: cached 2;" in box.report()


def test_a_reader_that_is_not_there_is_told_at_once_and_not_missed_offline(tmp_path):
    """Guards a replay that needs the network after all."""
    (tmp_path / "c.db").write_bytes(b"")
    reader = ["--reader", "http://127.0.0.1:9", "--reader_model", "m", "--web_cache", str(tmp_path / "c.db")]
    with pytest.raises(OSError, match="--reader http://127.0.0.1:9"):
        load_tools(read_flags(reader), "dev", FortyTwo())
    load_tools(read_flags([*reader, "--cache_mode", "offline"]), "dev", FortyTwo()).close()


class FortyTwo:
    def run(self, code):
        return "42", "ok"


def test_trees_grown_offline_from_the_cache_are_those_grown_online(serve, keys, tmp_path):
    """A step's rollouts of the built-in model with a live search, once with the network and once from its file."""
    answers = itertools.count(12)  # no two answers of the live search are the same

    def answer(raw):
        text = f"A town. Tax {next(answers)} coins. Home Baham. River Baflow. Guild Cormark."
        return reply_json({"organic": [{"title": payload(raw)["q"], "link": "person/50", "snippet": text}]})

    server, policy = serve({"/s": answer}), Policy.load(str(TINY))
    questions = [q for q in load_questions("world", "dev", 12) if q.family != "compute"]
    prompts = [encode_prompt(policy.tokenizer, q.question) for q in questions]
    config = RolloutConfig(num_generations=4, num_initial=2, max_turn_tokens=64)

    def grow(mode):
        box = Toolbox({"search": WebSearch("serper", Cache(tmp_path / "c.db", mode), 1, server.url("/s"))})
        names = [q.id for q in questions]
        return grow_trees(prompts, names, policy.sampler, box, config), box

    online, _ = grow("online")
    server.shutdown()
    server.server_close()
    offline, box = grow("offline")
    told = lambda trees: [[(n.ids, n.logprobs, n.observation, n.parent) for n in tree.nodes] for tree in trees]
    assert told(online) == told(offline) and next(answers) > 20
    assert box.counts["search", "cached"] > 20 and not box.counts["search", "error"]


def test_stored_searches_are_imported(tmp_path, monkeypatch, capsys):
    (tmp_path / "old.json").write_text(json.dumps({"Iron  tower": "Page 1: high", "b": "2"}))
    for new in (2, 0):
        monkeypatch.setattr(sys, "argv", ["tools.py", "import", str(tmp_path / "old.json"), str(tmp_path / "c.db")])
        tools.main()
        assert capsys.readouterr().out == f"{new} new answers\n"
    search = WebSearch("serper", Cache(tmp_path / "c.db", "offline"))
    assert search("iron tower") == ToolResult("Page 1: high", cached=True) and search("c").fault


def test_faults_warn_then_abort_and_the_models_own_errors_do_not(capsys):
    """Guards: a run that goes on learning from a dead key; one that stops because the model writes bad programs."""
    down = ToolResult("Error: down", "error", fault=True)
    wrong = ToolResult("Error: wrong", "error")
    box = Toolbox({"search": lambda content: down if content == "down" else wrong, "python": lambda content: wrong})
    run = lambda tool, content: box.submit(ToolCall(tool, content)).result()
    for _ in range(150):
        run("python", "1 / 0")
    for _ in range(19):
        run("search", "down")
    assert not capsys.readouterr().err
    run("search", "down")
    assert "failed in 20 of its last 20 calls" in capsys.readouterr().err
    for _ in range(60):
        run("search", "fine")
    for _ in range(30):
        run("search", "down")
    with pytest.raises(RuntimeError, match="search failed in 51 of its last 100"):
        for _ in range(60):
            run("search", "down")
    box.close()


def test_check_names_what_does_not_work():
    class Broken:
        def run(self, code):
            raise OSError

    search = Search(lambda query: ToolResult("Nothing was found."))
    box = Toolbox({"python": Python(FortyTwo()), "search": search, "browse": Browse({})})
    box.check()
    assert not box.counts
    box.tools["python"] = Python(Broken())
    with pytest.raises(OSError, match="python .*OSError"):
        box.check()
    box.tools["python"] = Python(FortyTwo())
    box.tools["python"].sandbox.run = lambda code: ("43", "ok")
    with pytest.raises(OSError, match="python .43."):
        box.check()
    box.close()
