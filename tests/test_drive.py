"""Many agents at once: who answers, what is counted, and every agent from end to end over the built-in world."""

import json
import re
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from openai_server import ChatServer

import eval
from data import Question
from data.agents import AGENTS, BEGIN_QUERY, FINAL, AgentConfig
from data.benchmarks import load_questions
from data.chat import Endpoint, LocalModel, Reply
from data.drive import Attempt, Crew, Drive, answer_with, left_out
from data.format import ToolCall, ToolResult
from data.models import TINY
from data.worlds import world_of
from tools import begin_call, load_tools, make_sandbox

QUESTIONS = [Question(f"q{n}", f"What is the tax of town {n}?", (str(n),)) for n in range(12)]


class Scripted(LocalModel):
    """Stands in for a model in memory: `script(prompt)` says a text or a `Reply`; keeps its batches."""

    def __init__(self, script, max_rows=64):
        self.script, self.max_rows, self.batches = script, max_rows, []

    def __call__(self, prompts):
        self.batches.append(prompts)
        replies = [self.script(prompt) for prompt in prompts]
        return [reply if isinstance(reply, Reply) else Reply(reply, "end", 100, 7) for reply in replies]


def crew(script, second=None, tool=None, max_rows=64):
    pool = ThreadPoolExecutor(4)
    main = Scripted(script, max_rows)
    answer = tool or (lambda call: ToolResult("[1] Town (t/1): tax"))
    submit = lambda call: pool.submit(answer, call)
    return Crew(main, Scripted(second) if second else main, submit, lambda text, called: (None, None))


def searcher(prompt):
    """A search-o1 that searches once and then answers with the number in its question."""
    if prompt.user.startswith("Someone reasons"):
        return f"{FINAL} fine"
    number = re.search(r"town (\d+)", prompt.user)[1]
    return rf"\boxed{{{number}}}" if prompt.written else f"{BEGIN_QUERY}town {number}<|end_search_query|>"


def test_all_attempts_that_wait_are_answered_in_one_batch():
    """Guards: one call of the model for each question, and batches that depend on which tool was quicker."""
    slow = lambda call: time.sleep(0.002 * len(call.content)) or ToolResult("[1] Town (t/1): tax")
    team = crew(searcher, tool=slow)
    results = list(answer_with("search-o1", QUESTIONS, 2, team, AgentConfig()))
    assert sorted(r.id for r in results) == sorted(q.id for q in QUESTIONS) and len(results) == 12
    assert all(a.accuracy == 1 and a.tools == {"search": 1} for r in results for a in r.attempts)
    assert [len(batch) for batch in team.main.batches] == [24, 24, 24]
    keys = [prompt.key for batch in team.main.batches for prompt in batch]
    assert len(set(keys)) == 72 and "0/q3/1/2" in keys
    few = crew(searcher, max_rows=5)
    again = list(answer_with("search-o1", QUESTIONS, 2, few, AgentConfig()))
    assert max(len(batch) for batch in few.main.batches) <= 5 and sum(map(len, few.main.batches)) == 72
    assert {r.id: r.attempts[0].answer for r in again} == {r.id: r.attempts[0].answer for r in results}


def test_what_an_attempt_cost():
    def script(prompt):
        said = searcher(prompt)
        return Reply(said, "end", 100 + 50 * len(prompt.written), 9)

    team = crew(script, second=script)
    (result,) = answer_with("search-o1", QUESTIONS[:1], 1, team, AgentConfig(), with_turns=True)
    (score,) = result.attempts
    # The text after its prompt, with what came back in it, and the reader's 9.
    assert score.tokens == (100 + 100 + 9 - 100) + 9 and score.seconds > 0 and score.end == "end"
    assert [turn["role"] for turn in score.turns] == ["user", "assistant", "tool", "tool", "reader", "assistant"]
    assert score.turns[2] | {"content": ""} == {"role": "tool", "name": "search", "outcome": "ok", "content": ""}
    assert len(team.second.batches) == 1 and team.second.batches[0][0].temperature == AgentConfig().temperature


def test_how_attempts_end():
    """Guards: a failure that counts as a wrong answer, and a page that was not there."""
    replies = {
        "0": Reply("no endpoint", "error"), "1": Reply("", "context", 9999),
        "2": Reply("so it goes on and on", "length", 5, 6), "3": Reply("I think it is\n3 coins", "end", 5, 6),
    }  # fmt: skip
    team = crew(lambda prompt: replies.get(re.search(r"town (\d+)", prompt.user)[1], r"\boxed{4}"))
    results = {r.id: r.attempts[0] for r in answer_with("direct", QUESTIONS[:5], 1, team, AgentConfig())}
    assert [results[f"q{n}"].end for n in range(5)] == ["error", "context", "length", "end", "end"]
    assert [results[f"q{n}"].answer for n in range(5)] == [None] * 4 + ["4"] and results["q4"].accuracy == 1
    assert results["q3"].said == "I think it is\n3 coins" and results["q4"].said == "" == results["q0"].said
    short = AgentConfig(max_completion_length=10, max_turn_tokens=8)
    one = crew(lambda prompt: Reply(f"{BEGIN_QUERY}x<|end_search_query|>", "end", 5 + 8 * len(prompt.written) // 2, 8))
    (result,) = answer_with("search-o1", QUESTIONS[:1], 1, one, short)
    assert result.attempts[0].end == "length" and [b[0].max_tokens for b in one.main.batches] == [8, 8, 2]
    refused = crew(searcher, tool=lambda call: ToolResult("Error: no", "refused"))
    (result,) = answer_with("search-o1", QUESTIONS[1:2], 1, refused, AgentConfig())
    assert result.attempts[0].tools == {} and result.attempts[0].answer == "1"


def test_an_evaluation_ends_where_most_attempts_fail():
    """Guards: a table of zeros, made of an endpoint that was not there."""
    many = [Question(f"f{n}", "What is the tax of town 0?", ("0",)) for n in range(40)]
    team = crew(lambda prompt: Reply("gone", "error"))
    with pytest.raises(OSError, match="11 of the first 11 attempts came to nothing, since a model did .*: gone"):
        list(answer_with("direct", many, 1, team, AgentConfig()))


def test_slow_answers_of_an_endpoint_hold_nobody_up():
    """Guards: a wave that waits for the slowest, so that one slow question costs as much as all."""
    release, seen = threading.Event(), []

    class Slow(Endpoint):
        def answer(self, prompt):
            slow = "town 0?" in prompt.user and not prompt.written
            if slow:
                release.wait(20)
            seen.append((prompt.user, len(prompt.written)))
            return Reply(searcher(prompt), "end", 1, 1)

    model = Slow("http://x", "m", threads=4)
    team = Crew(model, model, lambda call: answered(call), lambda *_: (None, None))
    done = []
    for result in answer_with("search-o1", QUESTIONS, 1, team, AgentConfig()):
        done.append(result.id)
        if len(done) == 11:
            release.set()
    assert done[-1] == "q0" and len(done) == 12 and len(seen) == 36


def answered(call: ToolCall) -> Future:
    future: Future = Future()
    future.set_result(ToolResult("[1] Town (t/1): tax"))
    return future


def test_tools_are_counted_where_the_model_asked_for_them():
    acted = "Search[x]", "Open[t/1]", "Open[no]", "Finish[0]"
    texts = iter(f" a\nAction {n}: {action}" for n, action in enumerate(acted, 1))
    outcome = lambda call: ToolResult("x", "error" if call.content == "no" else "ok")
    team = crew(lambda prompt: next(texts), tool=outcome)
    (attempt,) = Drive(team, AgentConfig()).run([Attempt(QUESTIONS[0], "k", AGENTS["react"]("?", AgentConfig()))])
    assert attempt.score.tools == {"search": 1, "click": 2} and attempt.worked == {"search", "click"}
    assert attempt.score.answer == "0" and attempt.score.accuracy == 1


def test_a_row_says_what_it_leaves_out():
    told = left_out(AgentConfig(agent="search-o1", endpoint="http://x", max_searches=3, max_turn_tokens=8192))
    assert "back-off" in told and "one continuous text" in told and "max_searches 10 (here 3)" in told
    assert "max_turn_tokens" not in told and "continuous" not in left_out(AgentConfig(agent="rag", endpoint="http://x"))


def test_tir_of_the_built_in_model_is_the_policy_itself():
    """Guards: result tags that are other tokens than in training, another prompt, and another limit of calls."""
    config = eval.read_flags(["--agent", "tir", "--temperature", "0", "--allow_unsafe_python"])
    policy, questions = eval.Policy.load(str(TINY)), load_questions("world", "test", 12)
    task = eval.Task(questions, load_tools(config, "test", make_sandbox(config)))
    trained = {r.id: r.attempts[0] for r in eval.evaluate(policy, task, config, 1, 0.0)}
    model, room = LocalModel(policy.model, policy.tokenizer), lambda *how: begin_call(task.tools, *how, config)
    crew = Crew(model, model, task.tools.submit, room)
    prompted = {r.id: r.attempts[0] for r in answer_with("tir", questions, 1, crew, config)}
    same = lambda score: (score.answer, score.accuracy, score.tools, score.end)
    assert {name: same(score) for name, score in trained.items()} == {n: same(score) for n, score in prompted.items()}
    assert sum(score.accuracy for score in trained.values()) >= 2
    ended = [name for name, score in trained.items() if score.answer]  # and not asked for an end token any more
    assert [trained[name].tokens - 1 for name in ended] == [prompted[name].tokens for name in ended]


# ---------------------------------------------------------------------------------- from end to end


def oracle(name):
    """What a world's questions need searched for first, and their answers."""
    world, known = world_of(name, "test"), {}
    for question in world.questions(20, 3):
        (*actions, last) = world.expert(question)
        search = next((action.content for action in actions if action.tool == "search"), "")
        known[question.question] = search, last.content
    return known


def player(known):
    """A model that plays every agent's part: it searches once, and answers if what came back has a known name in it."""

    def say(asked):
        messages = [message["content"] for message in asked["messages"]]
        user = messages[1] if asked["messages"][0]["role"] == "system" else messages[0]
        if user == "Say yes.":
            return "yes"
        if "write down" in user.lower() or user.startswith("Someone reasons"):
            return f"I see. {FINAL}\nIt was found." if FINAL in user else "to find it"
        question = next((text for text in known if text in user), None)
        if question is None:  # the explorer, which was told no question
            return f"Enough. {FINAL} it was found"
        search, answer = known[question]
        back, tags = len(messages) > 2, asked["messages"][0]["role"] == "system"
        if "Observation" in user or "Thought 1:" in user or "Action 1:" in messages[-1] or "Thought" in messages[-1]:
            acted = f"Finish[{answer}]" if "Observation 1" in messages[-1] else f"Search[{search or 'x'}]"
            return f" I act.\nAction 1: {acted}"
        if tags:
            return f"<think>x</think><answer>{answer}</answer>" if back else f"<search>{search or 'x'}</search>"
        if "begin_search_query" in user and not back:
            return f"I search {BEGIN_QUERY}the {search or 'tower'}<|end_search_query|>"
        return rf"It is \boxed{{{answer}}}."

    return say


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    def command(*argv):
        monkeypatch.setattr(sys, "argv", ["eval.py", "--output_dir", str(tmp_path / "out"), *argv])
        monkeypatch.setenv("OPENAI_API_KEY", "k")
        try:
            eval.main()
        except SystemExit as error:
            return error.code, capsys.readouterr()
        return 0, capsys.readouterr()

    return command


SLOW = [(agent, world) for world in ("world", "trails") for agent in AGENTS if (agent, world) != ("search-o1", "world")]


@pytest.mark.parametrize(
    "agent, world", [("search-o1", "world"), *(pytest.param(*pair, marks=pytest.mark.slow) for pair in SLOW)]
)
def test_every_agent_answers_twenty_questions_of_each_world(agent, world, run, tmp_path):
    server = ChatServer(player(oracle(world)), ["ok", "no text"])
    flags = ["--data", world, "--count", "20", "--samples", "1", "--allow_unsafe_python", "--trajectories"]
    code, shown = run("--agent", agent, "--endpoint", server.url, "--model", "some-model", *flags)
    server.shutdown()
    assert code == 0, shown.err
    kept = json.loads((tmp_path / "out" / "results.json").read_text())
    (name,) = [row for row in kept["rows"] if agent in row]
    about, results = kept["rows"][name]["about"], kept["rows"][name]["results"]
    assert about["method"] == agent and about["backbone"] == "some-model" and about["leaves_out"]
    attempts = [attempt for result in results for attempt in result["attempts"]]
    assert len(attempts) == 20 and all(attempt["accuracy"] == 1 and attempt["end"] == "end" for attempt in attempts)
    calls = {"direct": {}, "rag": {"search": 1}}.get(agent, {"search": 1})
    assert all(attempt["tools"] == calls and attempt["tokens"] > 0 for attempt in attempts)
    assert "endpoint some-model: answers" in shown.out and "is without" in shown.out and "100.0%" in shown.out
    turns = [json.loads(line) for line in (tmp_path / "out" / "answers.jsonl").read_text().splitlines()[1:]]
    roles = [[turn["role"] for turn in row["attempts"][0]["turns"]] for row in turns]
    assert len(turns) == 20 and all("user" in row and row[-1] == "assistant" for row in roles)


def test_an_own_corpus_and_a_judge_by_level(run, tmp_path):
    """Questions with levels, searched for in a corpus of one's own, and judged at another endpoint."""
    rows = [{"Question": f"How high is tower {n}?", "answer": f"{100 + n} m", "Level": 1 + n % 2} for n in range(6)]
    corpus = [{"title": f"Tower {n}", "text": f"Tower {n} is {100 + n} metres high.", "id": f"{n}"} for n in range(6)]
    for name, lines in (("gaia", rows), ("own", corpus)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))

    def say(asked):
        user = asked["messages"][-1]["content"]
        found = re.search(r"Document 1: Tower (\d) .*\n.*Tower \1 is (\d+) metres", user)
        return rf"\boxed{{{found[2]} metres}}" if found else "yes"

    def judge(asked):
        shown = asked["messages"][-1]["content"]
        gold, said = (re.findall(rf"{part}[^\n]*\n(\d+)", shown) for part in ("accepted", "judge"))
        return "CORRECT" if gold == said else "INCORRECT"

    servers = ChatServer(say), ChatServer(judge)
    flags = ["--data", str(tmp_path / "gaia.jsonl"), "--search", str(tmp_path / "own.jsonl"), "--top_k", "1"]
    flags += ["--endpoint", servers[0].url, "--model", "m", "--judge", servers[1].url, "--judge_model", "j"]
    code, shown = run("--agent", "rag", *flags, "--samples", "1", "--allow_unsafe_python")
    for server in servers:
        server.shutdown()
    assert code == 0, shown.err
    levels = [line.split() for line in shown.out.splitlines() if re.match(r" +level \d ", line)]
    assert levels == [["level", level, "3", "100.0%", "0.0%", "0.0%"] for level in "12"]
    assert "strict and judged agree on 0 of 6 answers (0.0%); right for the judge alone 6" in shown.out
    assert "judge j: answers 6" in shown.out
    kept = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    labels = [a["label"] for row in kept.values() for result in row["results"] for a in result["attempts"]]
    assert labels == ["correct"] * 6


def test_an_agent_in_memory_goes_on_where_it_was_killed(run, tmp_path):
    """The built-in model as a local one, judged by itself, and begun a second time."""
    flags = "--agent search-o1 --count 6 --samples 2 --allow_unsafe_python --max_turn_tokens 6".split()
    code, shown = run(*flags, "--judge", "tiny")
    assert code == 0, shown.err
    first = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    assert "strict and judged agree on" in shown.out and "not judged elsewhere" in shown.out
    lines = (tmp_path / "out" / "answers.jsonl").read_text().splitlines(keepends=True)
    assert len(lines) == 7
    (tmp_path / "out" / "answers.jsonl").write_text("".join(lines[:4]) + lines[4][:30])
    code, shown = run(*flags)
    second = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    (one,), (other,) = ([row for name, row in rows.items() if "search-o1" in name] for rows in (first, second))
    texts = lambda row: [[(a["said"], a["tokens"]) for a in result["attempts"]] for result in row["results"]]
    assert code == 0 and texts(one) == texts(other) and len(texts(one)) == 6
    assert all(said for result in texts(one) for said, _ in result)


@pytest.mark.parametrize(
    "flags, told",
    [
        (["--endpoint", "http://127.0.0.1:9/v1", "--model", "m"], "--endpoint: expected an agent that it answers for"),
        (["--agent", "direct", "--endpoint", "127.0.0.1"], "--endpoint: expected an address such as https://host/v1"),
        (["--agent", "rag", "--search", "none"], "--agent rag: expected somewhere to search (--search), found nowhere"),
        (["--agent", "direct", "--endpoint", "http://127.0.0.1:9/v1", "--model", "m"], "--endpoint http://127.0.0.1:9/v1"),
        (["--agent", "oracle"], "--agent: expected one of 'policy', 'direct', 'tir', 'rag', "),
        (["--judge_model", "m"], "--judge_model: expected a URL as --judge, found ''"),
        (["--agent", "direct", "--ask", "Who?"], "--agent: expected without --ask"),
    ],
)  # fmt: skip
def test_wrong_calls(flags, told, run):
    code, shown = run(*flags, "--count", "1", "--allow_unsafe_python")
    assert code == 2 and told in shown.err and len(shown.err.strip().splitlines()) == 1
