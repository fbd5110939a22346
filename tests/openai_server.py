"""A small OpenAI-compatible server on loopback, which a script answers for and which can be told to misbehave."""

import json
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class ChatServer(ThreadingHTTPServer):
    """Answers /v1/chat/completions with what `script(request)` says: a text, or (status, body, headers).

    `moods` are for the next requests, in their order: "ok", "slow", "hang up", "busy", "limited", "not json",
    "no choices", "no text" or "error page". `said` counts the answers that were whole, `requests` keeps all.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, script, moods=()):
        super().__init__(("127.0.0.1", 0), Handler)
        self.script, self.moods, self.requests, self.said = script, list(moods), [], Counter()
        self.times, self.lock = [], threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def handle_error(self, request, client_address):
        pass  # clients hang up on purpose


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.requests.append(asked | {"key": self.headers["Authorization"]})
            self.server.times.append(time.monotonic())
            mood = self.server.moods.pop(0) if self.server.moods else "ok"
        if self.path != "/v1/chat/completions":
            return self.reply(404, "{}")
        if mood == "slow":
            time.sleep(2.5)
        broken = {
            "busy": (503, "{}", {}),
            "limited": (429, "{}", {"Retry-After": "1"}),
            "not json": (200, "<html>", {}),
            "no choices": (200, '{"choices": []}', {}),
            "no text": (200, '{"choices": [{"message": {"content": 5}}]}', {}),
            "error page": (502, "<html>bad gateway</html>", {}),
        }
        if mood == "hang up":
            return self.connection.close()
        if mood in broken:
            return self.reply(*broken[mood])
        told = self.server.script(asked)
        if isinstance(told, tuple):
            return self.reply(*told)
        for stop in asked.get("stop", []):  # as endpoints do: the stop itself is left out
            told = told.partition(stop)[0]
        with self.server.lock:
            self.server.said[told] += 1
        choice = {"message": {"role": "assistant", "content": told}, "finish_reason": "stop"}
        usage = {"prompt_tokens": sum(len(m["content"].split()) for m in asked["messages"])}
        usage["completion_tokens"] = len(told.split())
        self.reply(200, json.dumps({"choices": [choice], "usage": usage}))

    def reply(self, status, body, headers=()):
        self.send_response(status)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body.encode())))
        self.end_headers()
        self.wfile.write(body.encode())
