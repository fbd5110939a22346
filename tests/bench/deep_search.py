"""A small deep-search evaluation of four agents: recorded once, and replayed without a network.

    python tests/bench/deep_search.py             replays what is recorded, and shows the agents side by side
    python tests/bench/deep_search.py --record    serves the pages below on loopback and records all of it anew

Everything but the model is real: a search service in Serper's shape, pages that are fetched, parsed and cached, an
OpenAI-compatible endpoint, the agents, and the evaluation's own files. Behind the endpoint is a script that follows a
question from fact to fact and knows nothing but the texts that it was shown, so what is compared here is what the
agents let it see. Left out: how well any model does this.
"""

import contextlib
import json
import os
import re
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[2]))

import eval
import tools
from data.agents import BEGIN_QUERY, END_QUERY, FINAL, NOT_HELPFUL
from data.format import ToolResult
from data.web import Web, WebSearch

RECORD = Path(__file__).with_suffix(".sqlite")
AGENTS = "rag", "react", "search-o1", "webthinker"

# Each page opens with a sentence that a search shows; what is asked for stands further down.
PAGES = {
    "Hallig Lighthouse": "Hallig Lighthouse stands on the northern cape of Skarn. It was first lit in 1871. "
    "The keeper of Hallig Lighthouse is Oda Brandt, who also runs the tide gauge.",
    "Oda Brandt": "Oda Brandt is a keeper and an engraver of charts. She grew up among boatbuilders. "
    "Oda Brandt learned her craft from Jorun Vale, and later taught it herself.",
    "Jorun Vale": "Jorun Vale drew the first charts of the Skarn islands. Few of the plates are left. "
    "The workshop of Jorun Vale was in Tarnby, above the old customs house.",
    "Tarnby": "Tarnby is a harbour town with a fish market on Thursdays. It has 3,480 inhabitants. "
    "The ferry of Tarnby is called Sela, and takes eleven cars.",
    "Sela": "Sela is a ferry with a hull of larch wood. She has sailed between the islands since 1963. "
    "The captain of Sela is Mikkel Thorsen, as was his father.",
    "Skarn": "Skarn is the largest of the outer islands. Most of it is heath. "
    "The highest hill of Skarn is Mount Ulver, at 212 metres.",
    "Tarn of Ulver": "The Tarn of Ulver is a lake that dries out in most summers. Nobody has found its outflow.",
    "Salt trade of the outer islands": "For two centuries salt was worth more than silver on the outer islands.",
}
# Questions as a start and relations to follow from it, and their answers.
RELATIONS = {
    "the keeper of": "The keeper of {} is ([A-Z][a-z]+ [A-Z][a-z]+)",
    "the teacher of": "{} learned her craft from ([A-Z][a-z]+ [A-Z][a-z]+)",
    "the town where the workshop was of": "The workshop of {} was in ([A-Z][a-z]+)",
    "the ferry of": "The ferry of {} is called ([A-Z][a-z]+)",
    "the captain of": "The captain of {} is ([A-Z][a-z]+ [A-Z][a-z]+)",
    "the highest hill of": "The highest hill of {} is (Mount [A-Z][a-z]+)",
}
ROWS = [
    ("What is the keeper of Hallig Lighthouse?", "Oda Brandt"),
    ("What is the highest hill of Skarn?", "Mount Ulver"),
    ("What is the teacher of the keeper of Hallig Lighthouse?", "Jorun Vale"),
    ("What is the captain of the ferry of Tarnby?", "Mikkel Thorsen"),
    ("What is the town where the workshop was of the teacher of Oda Brandt?", "Tarnby"),
    ("What is the captain of the ferry of the town where the workshop was of Jorun Vale?", "Mikkel Thorsen"),
]


def follow(question: str, seen: str) -> tuple[str, str]:
    """("answer", what the relations lead to) in the texts seen so far, or ("search", what is missing)."""
    rest, relations = question.removeprefix("What is ").removesuffix("?"), []
    while relation := next((name for name in RELATIONS if rest.startswith(name)), ""):
        relations.append(relation)
        rest = rest.removeprefix(relation).strip()
    for relation in reversed(relations):
        found = re.search(RELATIONS[relation].format(re.escape(rest)), seen)
        if not found:
            return "search", rest
        rest = found[1]
    return "answer", rest


def facts(text: str) -> str:
    """Sentences of a text that say a relation."""
    known = "|".join(pattern.format("[A-Z][A-Za-z ]+?") for pattern in RELATIONS.values())
    return " ".join(dict.fromkeys(found[0] + "." for found in re.finditer(known, text))) or NOT_HELPFUL


def model(messages: list[dict]) -> str:
    """What the script behind the endpoint says to a conversation: it does what the prompt of an agent asks for."""
    prompt, seen = messages[0]["content"], "\n".join(message["content"] for message in messages)
    if "what do they want to find out by this?" in prompt:
        return "They want the page that tells the next fact."
    if "The pages:" in prompt or "Page:" in prompt or "Found:" in prompt:
        return f"{FINAL} {facts(seen)}"
    asked = re.findall(r"Question: (What is [^\n]*\?)", prompt)
    if not asked:
        return "Yes."  # a first try
    do, what = follow(asked[-1], seen)
    if "Search[words]" in prompt:
        return f" I need it.\nAction 1: {react_action(do, what, messages)}\n"
    if do == "answer" or BEGIN_QUERY not in prompt:
        return f"So it is \\boxed{{{what if do == 'answer' else 'unknown'}}}."
    return f"I need {what}. {BEGIN_QUERY}about {what}{END_QUERY}"


def react_action(do: str, what: str, messages: list[dict]) -> str:
    """The next action: open the page of that name if a search has shown it, or look on it for what it is."""
    own = "\n".join(message["content"] for message in messages[1:])
    shown = re.findall(rf"\] {re.escape(what)} \((\S+)\)", own)
    if do == "answer":
        return f"Finish[{what}]"
    return f"Open[{shown[-1]}]" if shown else f"Search[{what}]"


# ---------------------------------------------------------------------------------- what is served


class Handler(BaseHTTPRequestHandler):
    """Pages, robots.txt, a search service and a chat endpoint, all on one port."""

    def log_message(self, *_):
        pass

    def do_GET(self):
        title = next((title for title in PAGES if self.path == f"/{slug(title)}"), "")
        text = f"<html><title>{title}</title><body><p>{PAGES.get(title)}</p></body></html>"
        self.reply(text if title else "", "text/html", 200 if title else 404)

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/search":
            return self.reply(json.dumps({"organic": hits(asked["q"], asked["num"], self.headers["Host"])}))
        message = {"role": "assistant", "content": model(asked["messages"])}
        words = sum(len(other["content"].split()) for other in asked["messages"])
        usage = {"prompt_tokens": words, "completion_tokens": len(message["content"].split())}
        self.reply(json.dumps({"choices": [{"message": message, "finish_reason": "stop"}], "usage": usage}))

    def reply(self, text: str, kind: str = "application/json", status: int = 200):
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())


def slug(title: str) -> str:
    return title.lower().replace(" ", "-")


def hits(query: str, count: int, host: str) -> list[dict]:
    """Pages by how many of the query's words are in their titles; a snippet is a page's first sentence."""
    words = set(query.lower().split())
    order = sorted(PAGES, key=lambda title: -len(words & set(title.lower().split())))
    first = lambda title: PAGES[title].partition(". ")[0] + "."
    return [
        {"title": title, "link": f"http://{host}/{slug(title)}", "snippet": first(title)} for title in order[:count]
    ]


# ---------------------------------------------------------------------------------- recording and replaying


@contextlib.contextmanager
def served():
    """The address of the endpoint, with tools that may ask this server."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    host = f"127.0.0.1:{server.server_port}"
    web = lambda cache, sandbox: Web(cache, sandbox, delay=0.0, trusted={host})
    with (
        mock.patch.dict(WebSearch.URLS, {"serper": f"http://{host}/search"}),
        mock.patch.dict(os.environ, {"SERPER_API_KEY": "none"}),
        mock.patch.object(tools, "Web", web),
        mock.patch.object(Web, "check", lambda self: ToolResult("")),
    ):
        yield f"http://{host}/v1"
    server.shutdown()


def evaluate(agent: str, folder: Path, endpoint: str = "http://127.0.0.1:9/v1", mode: str = "offline") -> Path:
    """One agent's evaluation, by the command itself; returns its folder."""
    questions = folder / "deepsearch.jsonl"
    rows = [json.dumps({"question": question, "answer": answer, "metric": "em"}) for question, answer in ROWS]
    questions.write_text("\n".join(rows) + "\n")
    flags = (
        f"--agent {agent} --endpoint {endpoint} --model script --data {questions} --search serper --top_k 3 "
        f"--samples 1 --web_cache {RECORD} --cache_mode {mode} --trajectories --output_dir {folder / agent}"
    )
    with mock.patch.object(sys, "argv", ["eval.py", *flags.split()]):
        eval.main()
    return folder / agent


def main() -> None:
    with tempfile.TemporaryDirectory() as place, contextlib.ExitStack() as stack:
        how = {}
        if sys.argv[1:] == ["--record"]:
            RECORD.unlink(missing_ok=True)
            how = {"endpoint": stack.enter_context(served()), "mode": "online"}
        with contextlib.redirect_stdout(sys.stderr):
            folders = [str(evaluate(agent, Path(place), **how)) for agent in AGENTS]
        print(eval.compare(folders, (1,), Path(place)).partition("\n\nplots")[0])


if __name__ == "__main__":
    main()
