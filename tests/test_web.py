"""The live web behind search and browse, against hostile and fake servers on loopback; the cache; the watch."""

import gzip
import itertools
import json
import os
import shutil
import signal
import socket
import socketserver
import ssl
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

import tools
from data import load_questions
from eval import TINY, EvalConfig, OneLineParser, ToolConfig, encode_prompt, load_policy, load_tools, parse_eval_flags
from rollout import RolloutConfig, Sampler, grow_trees
from tools import (
    Browse,
    Cache,
    Reader,
    Search,
    Toolbox,
    ToolCall,
    ToolResult,
    Web,
    WebError,
    WebSearch,
    ask_endpoint,
)

ROOT = Path(tools.__file__).parent
ARTICLE = """<html><head><title>Iron &amp; Tower</title><style>p {color: red}</style></head><body>
<nav><a href="/">Home</a> <a href="/x">Shop</a></nav><h1>The Tower</h1><p>It is <b>120</b>
metres high.</p><script>var x = "<p>never</p>"</script><table><tr><td>built</td><td>1889</td></tr></table>
<footer>Copyright</footer></body></html>"""


def head(*lines, status=200):
    return "\r\n".join([f"HTTP/1.1 {status} X", *lines, "", ""]).encode()


def page(text, kind="text/html; charset=utf-8", status=200, *more):
    body = text if isinstance(text, bytes) else text.encode()
    return head(f"Content-Type: {kind}", f"Content-Length: {len(body)}", *more, status=status) + body


def moved(target):
    return head(f"Location: {target}", "Content-Length: 0", status=302)


def drip(pieces):
    for piece in pieces:
        yield piece
        time.sleep(0.1)


def bomb():
    packer = zlib.compressobj(wbits=31)
    return b"".join(packer.compress(b" " * 10**6) for _ in range(30)) + packer.flush()


class Server(socketserver.ThreadingTCPServer):
    """Answers each path with bytes, pieces of bytes, or what a function makes of the raw request; keeps requests."""

    allow_reuse_address = daemon_threads = True
    request_queue_size = 64

    def __init__(self, routes, host="127.0.0.1"):
        super().__init__((host, 0), Handler)
        self.routes, self.requests = routes, []
        self.netloc = f"127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def url(self, path):
        return f"http://{self.netloc}{path}"

    def handle_error(self, request, client_address):
        pass  # clients hang up on purpose


class Handler(socketserver.BaseRequestHandler):
    def handle(self):
        raw = b""
        while b"\r\n\r\n" not in raw:
            piece = self.request.recv(65536)
            if not piece:
                return
            raw += piece
        start, _, body = raw.partition(b"\r\n\r\n")
        for line in start.lower().split(b"\r\n"):
            while line.startswith(b"content-length:") and len(body) < int(line[15:]):
                body += self.request.recv(65536)
        path = start.split(b" ")[1].decode().partition("?")[0]
        self.server.requests.append((path, start + b"\r\n\r\n" + body))
        answer = self.server.routes.get(path, page("no", status=404))
        answer = answer(self.server.requests[-1][1]) if callable(answer) else answer
        for piece in [answer] if isinstance(answer, bytes) else answer:
            self.request.sendall(piece)


@pytest.fixture(scope="module")
def sandbox():
    pool = tools.reading_sandbox(cpu_seconds=1)
    yield pool
    pool.close()


@pytest.fixture
def serve():
    """Starts servers of routes."""
    servers = []
    yield lambda routes, **more: servers.append(Server(routes, **more)) or servers[-1]
    for server in servers:
        server.shutdown()


def web_of(server, sandbox, seconds=0.6):
    """A browser's source that may ask this server, and nothing else that is private."""
    return Web(Cache(), sandbox, seconds, delay=0.0, trusted={server.netloc})


ENDLESS = (b"x" * 65536 for _ in iter(int, 1))
HOSTILE = {  # path -> (answer, outcome or None for any, part of the text)
    "/loop": (moved("/loop"), "error", "redirects too often"),
    "/bracket": (moved("http://[::1/"), "error", "to nowhere"),
    "/silent": (lambda raw: time.sleep(5) or b"", "timeout", "in time"),
    "/closed": (b"", "error", "no usable answer"),
    "/body": (lambda raw: drip([head("Content-Type: text/html")] + [b"x"] * 60), "timeout", "in time"),
    "/head": (lambda raw: drip([b"HTTP/1.1 200 X\r\n"] + [b"A: b\r\n"] * 60), "timeout", "in time"),
    "/chunks": (lambda raw: drip([head("Transfer-Encoding: chunked")] + [b"1\r\nx\r\n"] * 60), "timeout", "in time"),
    "/endless": (lambda raw: (p for g in ([head("Content-Type: text/plain")], ENDLESS) for p in g), "ok", "xxx"),
    "/headers": (lambda raw: (p for g in ([b"HTTP/1.1 200 X\r\n"], ENDLESS) for p in g), "error", "LineTooLong"),
    "/bomb": (page(bomb(), "text/plain", 200, "Content-Encoding: gzip"), "ok", "    "),
    "/packed": (page(b"junk", "text/html", 200, "Content-Encoding: gzip"), "error", "no usable answer"),
    "/brotli": (page(b"junk", "text/html", 200, "Content-Encoding: br"), "error", "packed in a way"),
    "/short": (head("Content-Type: text/html", "Content-Length: 99") + b"half", "error", "ConnectionError"),
    "/image": (page(b"\x89PNG", "image/png"), "error", "not text (image/png)"),
    "/lying": (page(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"), "error", "not text"),
    "/garbage": (b"\0\1\2 not HTTP\r\n\r\n", "error", "BadStatusLine"),
    "/nested": (page("<div>" * 100_000 + "deep"), None, ""),
    "/angles": (page("<a" * 1_000_000), None, ""),
    "/gone": (page("no", status=410), "error", "410"),
    "/busy": (page("no", status=503), "error", "503"),
    "/file": (moved("file:///etc/passwd"), "refused", "only addresses"),
    "/inward": (moved("http://10.0.0.1/"), "refused", "public internet"),
    "/metadata": (moved("//169.254.169.254/latest"), "refused", "public internet"),
    "/port": (moved("http://example.com:22/"), "refused", "port"),
}


PASSING = {"/silent", "/closed", "/body", "/head", "/chunks", "/headers", "/short", "/garbage", "/busy", "/packed"}


def test_hostile_pages_end_by_the_deadline_with_a_message(serve, sandbox):
    """Guards: a server that holds a rollout up, fills its memory, or leads it astray. All are asked at once."""
    server = serve({path: answer for path, (answer, _, _) in HOSTILE.items()})
    web = web_of(server, sandbox, seconds=1.5)  # all at once, on a machine that may be busy

    def wrong(path):
        started = time.monotonic()
        result, (_, outcome, part) = web(server.url(path)), HOSTILE[path]
        seconds = time.monotonic() - started
        fine = result.outcome == outcome and result.fault == (path in PASSING) and seconds < 4
        if outcome is None:  # a hostile document gets the confined worker's own limit on top
            fine = result.outcome in ("ok", "timeout", "crash", "error") and seconds < 9
        short = len(result.text) <= tools.PAGE_CHARS and "\n" not in result.text
        return None if fine and short and part in result.text else (path, round(seconds, 1), result)

    with ThreadPoolExecutor(len(HOSTILE)) as pool:
        assert [fault for fault in pool.map(wrong, HOSTILE) if fault] == []
    time.sleep(0.2)
    assert not [thread for thread in threading.enumerate() if thread.name == "fetch"]  # they do not pile up
    for path in ("/bomb", "/endless"):
        assert len(tools.request(server.url(path), time.monotonic() + 5, {server.netloc})[2]) == tools.PAGE_BYTES


def test_the_deadline_covers_redirects_handshakes_and_names(serve, sandbox, monkeypatch):
    """Guards: a limit that starts anew with every hop, a handshake that never comes, a resolver that hangs."""

    def fails_by(limit, run):
        started = time.monotonic()
        with pytest.raises(WebError) as caught:
            run(started + limit)
        assert caught.value.result.outcome == "timeout" and time.monotonic() - started < limit + 1.0

    server = serve({"/slow": lambda raw: time.sleep(0.3) or moved("/slow")})
    web = web_of(server, sandbox)
    fails_by(0.6, lambda deadline: web._follow(server.url("/slow"), deadline))
    with socket.create_server(("127.0.0.1", 0)) as mute:
        netloc = f"127.0.0.1:{mute.getsockname()[1]}"
        fails_by(0.3, lambda deadline: tools.request(f"https://{netloc}/", deadline, {netloc}))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: time.sleep(1.5) or [])
    fails_by(0.3, lambda deadline: tools.request("http://slow.test/", deadline))


@pytest.mark.skipif(not shutil.which("openssl"), reason="makes a certificate with openssl")
def test_https_checks_certificates_and_keeps_the_deadline(serve, monkeypatch, tmp_path):
    """Guards: a TLS connection that cannot be cut off, or that anyone may answer."""
    files = ["-keyout", tmp_path / "key", "-out", tmp_path / "cert", "-addext", "subjectAltName=IP:127.0.0.1"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=test", *files]
    subprocess.run(command, check=True, capture_output=True)
    server = serve({"/": page("safe"), "/drip": HOSTILE["/body"][0]})
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert", tmp_path / "key")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    ask = lambda path: tools.request(f"https://{server.netloc}{path}", time.monotonic() + 0.5, {server.netloc})
    with pytest.raises(WebError, match="SSLCertVerificationError"):
        ask("/")
    monkeypatch.setattr(tools, "_tls", lambda: ssl.create_default_context(cafile=tmp_path / "cert"))
    assert ask("/")[2] == b"safe"
    with pytest.raises(WebError, match="in time"):
        ask("/drip")


PRIVATE = """127.0.0.1 localhost 127.1 2130706433 0x7f000001 0x7f.1 0177.0.0.1 017700000001 0 0.0.0.0 10.0.0.1
172.16.0.1 192.168.1.1 169.254.169.254 100.64.0.1 192.0.0.1 198.18.0.1 224.0.0.1 240.0.0.1 255.255.255.255 [::1] [::]
[::127.0.0.1] [::ffff:127.0.0.1] [::ffff:7f00:1] [64:ff9b::7f00:1] [2002:7f00:1::] [2001:0:7f00:1::1] [fe80::1]
[fc00::1] [fec0::1] [ff02::1] [2001:db8::1] １２７.0.0.1 127。0。0。1""".split()
ODD = (
    """town/7 ftp://example.com/ http:// http:///x http://a@example.com/ http://127.0.0.1\\@example.com/ http://[::1/
http://example.com:22/ http://example.com:99999/ javascript:alert(1)""".split()
    + ["", "http://" + "a" * 300]
)


@pytest.mark.parametrize("address", [f"http://{host}/" for host in PRIVATE] + ODD)
def test_private_and_odd_addresses_are_refused(address):
    """Guards: every usual way to spell an address inside the network, however the resolver reads it."""
    with pytest.raises(WebError) as caught:
        tools.request(address, time.monotonic() + 2)
    assert caught.value.result.outcome == "refused" and "\n" not in caught.value.result.text
    assert tools._is_public("93.184.216.34") and tools._is_public("2606:4700:4700::1111")  # not all are


def test_rebinding_connects_to_the_address_that_was_checked(serve, monkeypatch):
    """Guards: a name that is public when it is checked and private when it is used; and one bad address among good."""
    server = serve({"/": lambda raw: page("here")}, host="0.0.0.0")
    port, asked = server.server_address[1], []

    def resolve(host, _, **kind):
        asked.append(host)
        ip = "127.0.0.2" if len(asked) == 1 else "127.0.0.1"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(tools, "_is_public", lambda ip: ip == "127.0.0.2")
    assert tools.request("http://rebind.test/", time.monotonic() + 2)[2] == b"here" and asked == ["rebind.test"]
    assert b"Host: rebind.test\r\n" in server.requests[0][1]
    with pytest.raises(WebError, match="public internet"):
        tools.request("http://rebind.test/", time.monotonic() + 2)


GOOD = {
    "/article": (page(ARTICLE), "Iron & Tower\nThe Tower\nIt is 120 metres high.\nbuilt 1889"),
    "/latin": (page("<p>Gö".encode("latin-1"), "text/html; charset=ISO-8859-1"), "Gö"),
    "/meta": (page('<meta charset="windows-1251"><p>Мир'.encode("cp1251"), "text/html"), "Мир"),
    "/codec": (page("<p>é +AGE-", "text/html; charset=utf-7"), "é +AGE-"),
    "/unknown": (page("<p>é", "text/html; charset=cp99999"), "é"),
    "/plain": (page("<b>5 < 6\n", "text/plain"), "<b>5 < 6\n"),
    "/gzip": (page(gzip.compress(b"<p>packed"), "text/html", 200, "Content-Encoding: gzip"), "packed"),
    "/chunked": (head("Transfer-Encoding: chunked") + b"3\r\n<p>\r\n2\r\nhi\r\n0\r\n\r\n", "hi"),
    "/from": (moved("/article?a=b c#d"), "Iron & Tower\nThe Tower\nIt is 120 metres high.\nbuilt 1889"),
    "/unclosed": (page("<nav>menu<div><main>body"), "body"),
    "/hostile": (page("<p>'''\"\"\"\\ \ud83d".encode("utf-8", "replace") + b"\xff"), "'''\"\"\"\\ ?\ufffd"),
    "/empty": (page(""), "(this page has no text)"),
}  # fmt: skip


@pytest.mark.skipif(tools.importlib.util.find_spec("trafilatura") is not None, reason="the texts are our own parser's")
def test_good_pages_come_back_clean(serve, sandbox):
    server = serve({path: answer for path, (answer, _) in GOOD.items()})
    web = web_of(server, sandbox, seconds=5)
    assert {path: web(server.url(path)).text for path in GOOD} == {path: text for path, (_, text) in GOOD.items()}


def test_long_pages_are_windowed_whole(serve, sandbox):
    """Guards: the worker's usual output limit, which would cut the middle of a page."""
    text = " ".join(f"Item {n} is here." for n in range(4000)) + " The motto is golden."
    server = serve({"/long": page(f"<p>{text}")})
    web = web_of(server, sandbox, seconds=5)
    browse = Browse(web, window_chars=3000)
    assert "golden" in browse(f"{server.url('/long')} motto").text
    middle = browse(f"{server.url('/long')} page 10")
    assert text[27_010:29_000] in middle.text and middle.cached


def test_robots_and_politeness(serve, sandbox):
    rules = page("User-agent: *\nDisallow: /private\n", "text/plain")
    server = serve({"/robots.txt": rules, "/a": page("a"), "/b": page("b")})
    web = web_of(server, sandbox, seconds=3)
    web.delay = 0.2
    started = time.monotonic()
    assert [web(server.url(path)).outcome for path in ("/a", "/private/x", "/b")] == ["ok", "refused", "ok"]
    assert time.monotonic() - started > 0.4  # three requests: the rules, /a and /b
    assert [path for path, _ in server.requests] == ["/robots.txt", "/a", "/b"]
    server.routes["/robots.txt"] = page("", status=500)  # a site that cannot say is not asked, for now
    again = web_of(server, sandbox)(server.url("/a"))
    assert again.fault and "robots.txt" in again.text


HIT = {"title": "Iron\nTower", "link": "http://t/1", "snippet": "It is\u00a0high. \ud83d"}
SERPER = {"organic": [HIT, {"link": "http://t/2"}]}
BRAVE = {"web": {"results": [{"title": "Iron", "url": "http://t/1", "description": "<strong>120</strong> &amp; old"}]}}


def reply_json(value, status=200):
    return page(json.dumps(value), "application/json", status)


def payload(raw):
    return json.loads(raw.partition(b"\r\n\r\n")[2])


@pytest.fixture
def keys(monkeypatch):
    monkeypatch.setenv("SERPER_API_KEY", "secret-key")
    monkeypatch.setenv("BRAVE_API_KEY", "secret-key")


def test_services_are_asked_as_they_document_and_shown_as_the_corpus_is(serve, keys):
    server = serve({"/s": reply_json(SERPER), "/b": reply_json(BRAVE)})
    result = WebSearch("serper", Cache(), url=server.url("/s"))(" Iron  TOWER ")
    assert result.text == "[1] Iron Tower (http://t/1): It is high. ?\n[2]  (http://t/2): "
    assert WebSearch("brave", Cache(), url=server.url("/b"))("a&b=ü").text == "[1] Iron (http://t/1): 120 & old"
    serper, brave = (raw for _, raw in server.requests)
    assert b"X-API-KEY: secret-key" in serper and payload(serper) == {"q": "iron tower", "num": 3}
    assert b"X-Subscription-Token: secret-key" in brave and b"GET /b?q=a%26b%3D%C3%BC&count=3" in brave


@pytest.mark.parametrize("answer", [reply_json({}, 401), reply_json({}, 429), page("<html>"), page("[1]"), b""])
def test_a_service_that_fails_is_a_fault_and_never_tells_the_key(serve, keys, answer):
    """Guards: noise that is stored for good, and keys in transcripts."""
    server = serve({"/s": answer})
    search = WebSearch("serper", Cache(), url=server.url("/s"), seconds=1)
    box = Toolbox({"search": search})
    result = box.submit(ToolCall("search", "x")).result()
    assert result.fault and "secret" not in result.text
    with pytest.raises(OSError, match="^tools that do not work: search"):
        box.check()
    server.routes["/s"] = reply_json(SERPER)
    assert search("x").outcome == "ok"
    box.check()
    box.close()


@pytest.mark.parametrize("query", ['"', "a AND OR", "🙂", "東京", "", "x" * 10_000, "\ud800", "\0", "a\nb"])
def test_odd_queries_to_a_service(serve, keys, query):
    server = serve({"/s": lambda raw: reply_json({"organic": []}, 200 if len(payload(raw)["q"]) <= 400 else 400)})
    result = WebSearch("serper", Cache(), url=server.url("/s"))(query)
    assert result.text == ("Nothing was found." if query else "Error: the query has no words.")


def test_a_missing_key_is_said_at_once_and_not_needed_offline(monkeypatch, tmp_path):
    monkeypatch.delenv("SERPER_API_KEY", raising=False)
    with pytest.raises(ValueError, match="SERPER_API_KEY"):
        WebSearch("serper", Cache())
    Cache(tmp_path / "c.db")
    WebSearch("serper", Cache(tmp_path / "c.db", "offline")).check()


def test_a_key_that_no_header_can_carry_is_not_shown(serve, monkeypatch):
    """Guards: http.client quotes such a header in its error, and so the key in a transcript."""
    monkeypatch.setenv("SERPER_API_KEY", "secret\nkey")
    search = WebSearch("serper", Cache(), url=serve({}).url("/s"))
    failed = Toolbox({"search": search}).submit(ToolCall("search", "x")).result()
    assert failed.fault and "ValueError" in failed.text and "secret" not in failed.text


def test_a_page_read_by_a_model(serve):
    def answer(raw):
        prompt = payload(raw)["messages"][0]["content"]
        return reply_json({"choices": [{"message": {"content": f"read: {'height' in prompt and '120' in prompt}"}}]})

    server = serve({"/v1/chat/completions": answer})
    reader = Reader("small", partial(ask_endpoint, server.url("/v1"), "small"), Cache())
    browse = Browse({"t": "It is 120 high."}, reader=reader)
    assert [browse("t height").text for _ in range(3)] == ["read: True"] * 3 and len(server.requests) == 1
    assert browse("t").text == browse("t page 1").text == "It is 120 high."
    server.routes.clear()
    failed = Toolbox({"browse": browse}).submit(ToolCall("browse", "t other")).result()
    assert failed.fault and "404" in failed.text


def test_sixteen_rollouts_that_ask_the_same_cost_one_request():
    for outcome in ("ok", "fault"):
        cache, asked = Cache(), []

        def ask():
            asked.append(1)
            time.sleep(0.2)
            if outcome == "fault":
                raise WebError("down", fault=True)
            return f"answer {len(asked)}"

        with ThreadPoolExecutor(16) as pool:
            results = list(pool.map(lambda _: cache.get("search", "x", ask), range(16)))
        assert len(asked) == 1 and len({r.text for r in results}) == 1
        assert sum(r.cached for r in results) == (15 if outcome == "ok" else 0)


def test_modes(tmp_path):
    file, answers = tmp_path / "c.db", iter("abcdef")
    ask = lambda: next(answers)
    assert Cache(file).get("k", "x", ask).text == "a" == Cache(file).get("k", "x", ask).text
    fresh = Cache(file, "refresh")
    assert [fresh.get("k", "x", ask).text for _ in range(2)] == ["b", "b"]  # asked once a run, not at every call
    offline = Cache(file, "offline")
    assert offline.get("k", "x", ask) == ToolResult("b", cached=True)
    missing = [offline.get("k", key, ask) for key in ("y", "z")]
    assert missing[0] == missing[1] and missing[0].fault and next(answers) == "c"
    with pytest.raises(FileNotFoundError):
        Cache(tmp_path / "none.db", "offline")


def test_lasting_errors_are_stored_and_faults_are_not(tmp_path):
    """Guards: a replay without the 404 that the run saw, and one with a timeout for ever."""
    cache = Cache(tmp_path / "c.db")

    def fail(fault):
        raise WebError("gone", fault=fault)

    lasting = [cache.get("page", "gone", lambda: fail(False)) for _ in range(2)]
    assert lasting[1] == ToolResult("Error: gone", "error", cached=True) and not lasting[0].cached
    assert cache.get("page", "slow", lambda: fail(True)).fault
    assert cache.get("page", "slow", lambda: "now").text == "now"


WRITER = """
import sys
from tools import Cache
cache, name = Cache(sys.argv[1]), sys.argv[2]
for n in range(int(sys.argv[3])):
    print(n, cache.get("k", str(n), lambda: name * 500).text[:1], flush=True)
"""


def writer(file, name, count):
    command = [sys.executable, "-c", WRITER, file, name, str(count)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_two_processes_agree_on_every_answer(tmp_path):
    """Guards: a lost update, or two answers to one question; four threads read and write here meanwhile."""
    file = tmp_path / "c.db"
    others = [writer(file, name, 60) for name in "ab"]
    cache = Cache(file)
    with ThreadPoolExecutor(4) as pool:
        here = list(pool.map(lambda n: cache.get("k", str(n % 60), lambda: "h" * 500).text[0], range(240)))
    seen = [[line.split()[1] for line in other.communicate()[0].splitlines()] for other in others]
    assert seen[0] == seen[1] == here[:60] == here[60:120] == here[180:]


def test_a_killed_writer_leaves_a_whole_cache(tmp_path):
    file = tmp_path / "c.db"
    victim = writer(file, "v", 10**6)
    while int(victim.stdout.readline().split()[0]) < 20:
        pass
    os.kill(victim.pid, signal.SIGKILL)
    victim.wait()
    assert Cache(file, "offline").get("k", "19", None).text == "v" * 500
    assert Cache(file).get("k", "new", lambda: "n").text == "n"


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
    parser = OneLineParser("", EvalConfig, ToolConfig, RolloutConfig)
    reader = ["--reader", "http://127.0.0.1:9", "--reader_model", "m", "--web_cache", str(tmp_path / "c.db")]
    with pytest.raises(OSError, match="--reader http://127.0.0.1:9"):
        load_tools(parse_eval_flags(parser, reader), "dev", FortyTwo())
    load_tools(parse_eval_flags(parser, [*reader, "--cache_mode", "offline"]), "dev", FortyTwo()).close()


class FortyTwo:
    def run(self, code):
        return "42", "ok"


def test_trees_grown_offline_from_the_cache_are_those_grown_online(serve, keys, tmp_path):
    """A step's rollouts of the built-in model with a live search, once with the network and once from its file."""
    answers = itertools.count(12)  # no two answers of the live search are the same

    def answer(raw):
        text = f"A town. Tax {next(answers)} coins. Home Baham. River Baflow. Guild Cormark."
        return reply_json({"organic": [{"title": payload(raw)["q"], "link": "person/50", "snippet": text}]})

    server, policy = serve({"/s": answer}), load_policy(str(TINY))
    questions = [q for q in load_questions("world", "dev", 12) if q.family != "compute"]
    prompts = [encode_prompt(policy.tokenizer, q.question) for q in questions]
    config = RolloutConfig(num_generations=4, num_initial=2, max_turn_tokens=64)

    def grow(mode):
        box = Toolbox({"search": WebSearch("serper", Cache(tmp_path / "c.db", mode), 1, server.url("/s"))})
        names = [q.id for q in questions]
        return grow_trees(prompts, names, Sampler(policy.model, policy.tokenizer), box, policy.tokenizer, config), box

    online, _ = grow("online")
    server.shutdown()
    server.server_close()
    offline, box = grow("offline")
    told = lambda trees: [[(n.ids, n.logprobs, n.observation, n.parent) for n in tree.nodes] for tree in trees]
    assert told(online) == told(offline) and next(answers) > 20
    assert box.counts["search", "cached"] > 20 and not box.counts["search", "error"]


def test_stored_searches_are_imported(tmp_path):
    (tmp_path / "old.json").write_text(json.dumps({"Iron  tower": "Page 1: high", "b": "2"}))
    for new in (2, 0):
        command = [sys.executable, ROOT / "tools.py", "import", tmp_path / "old.json", tmp_path / "c.db"]
        assert subprocess.run(command, capture_output=True, text=True).stdout == f"{new} new answers\n"
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
    def raises(content):
        raise OSError

    box = Toolbox({"python": lambda code: ToolResult("42"), "search": Search([]), "browse": Browse({})})
    box.check()
    assert not box.counts
    box.tools["python"] = raises
    with pytest.raises(OSError, match="python .*OSError"):
        box.check()
    box.close()
