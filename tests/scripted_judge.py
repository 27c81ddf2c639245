"""A judge with a script: a server on the loopback interface that speaks the OpenAI chat protocol, with faults."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


# What a judge prompt of the tests looks like, so that the server finds its parts
JUDGE_PROMPT = "{prompt}\x1f{first}\x1f{second}"
HANG = 3  # seconds that a hanging response takes; the clients wait less


class ScriptedJudge:
    """
    Answers by `decide(prompt, first, second)`. Before its answer to a question it gives the faults that `faults` names
    for it, each once: "429", "500", "hang", "html", "no choices", "cut", "refuse".

    `questions` counts what was answered, by question; `faults_given` the faults, by kind; `num_requests` all requests.
    """

    def __init__(
        self,
        decide: Callable[[str, str, str], str],
        faults: Callable[[str, str, str], list[str]] = lambda *question: [],
        before_answer: Callable[[int], None] = lambda number: None,
    ):
        self.decide, self.faults, self.before_answer = decide, faults, before_answer
        self.questions: Counter[tuple[str, str, str]] = Counter()
        self.faults_given: Counter[str] = Counter()
        self.num_requests = 0
        self.waits: list[float] = []  # seconds between a 429 and the next attempt of its question
        self.keys: set[str] = set()
        self.bodies: list[dict[str, Any]] = []
        self._left: dict[tuple[str, str, str], list[str]] = {}
        self._refused_at: dict[tuple[str, str, str], float] = {}
        self._lock = threading.Lock()
        self.url = ""

    def respond(self, request: BaseHTTPRequestHandler) -> None:
        body = json.loads(request.rfile.read(int(request.headers["Content-Length"])))
        prompt, first, second = body["messages"][0]["content"].split("\x1f")
        question = (prompt, first, second)
        with self._lock:
            self.num_requests += 1
            self.keys.add(request.headers["Authorization"])
            self.bodies.append(body)
            number = self.num_requests
            left = self._left.setdefault(question, list(self.faults(*question)))
            fault = left.pop(0) if left else None
            if fault:
                self.faults_given[fault] += 1
            if question in self._refused_at:
                self.waits.append(time.monotonic() - self._refused_at.pop(question))
            if fault == "429":
                self._refused_at[question] = time.monotonic()
        self.before_answer(number)
        if fault == "429":
            return _send(request, 429, {"error": {"message": "slow down"}}, {"Retry-After": "0.2"})
        if fault == "500":
            return _send(request, 500, {"error": {"message": "out of luck"}})
        if fault == "refuse":
            return _send(request, 400, {"error": {"message": "content filter"}})
        if fault == "html":
            return _send(request, 200, "<html>Welcome to the proxy</html>")
        if fault == "no choices":
            return _send(request, 200, _completion([]))
        if fault == "cut":
            request.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")
            request.close_connection = True
            return None
        if fault == "hang":
            time.sleep(HANG)
            return None
        with self._lock:
            self.questions[question] += 1
        message = {"role": "assistant", "content": self.decide(*question)}
        return _send(request, 200, _completion([{"index": 0, "finish_reason": "stop", "message": message}]))


def _completion(choices: list[dict[str, Any]]) -> dict[str, Any]:
    usage = {"completion_tokens": 1, "prompt_tokens": 1, "total_tokens": 2}
    return {"id": "1", "created": 1, "model": "scripted", "system_fingerprint": "", "choices": choices, "usage": usage}


def _send(request: BaseHTTPRequestHandler, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
    content = (body if isinstance(body, str) else json.dumps(body)).encode()
    request.send_response(status)
    for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
        request.send_header(name, value)
    request.end_headers()
    request.wfile.write(content)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, *_: Any) -> None:
        """A client that was killed is no news."""


@contextmanager
def served(judge: ScriptedJudge) -> Iterator[ScriptedJudge]:
    """Serves a judge at `judge.url`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            judge.respond(self)

        def log_message(self, *_: Any) -> None:
            pass

    server = _Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    judge.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield judge
    finally:
        server.shutdown()
        server.server_close()
