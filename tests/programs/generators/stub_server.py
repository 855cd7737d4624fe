"""An OpenAI-compatible endpoint on loopback that answers by a script, faults included."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PROGRAM = "ANSWER0=VQA(image=IMAGE,question='What is it?')\nFINAL_RESULT=RESULT(var=ANSWER0)"


@dataclass
class Reply:
    """One answer: ``cut`` sends only so many bytes of it and hangs up, ``pause`` waits before each of its two halves."""

    body: bytes
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    pause: float = 0.0


@dataclass
class Asked:
    """One request as it came."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def question(self) -> str:
        """The last question of the prompt."""
        text = self.body["prompt"] if "prompt" in self.body else self.body["messages"][-1]["content"]
        return text.rpartition("Question: ")[2].partition("\n")[0]


Script = Callable[[Asked, int], Reply]
"""The answer to a request; the second argument counts requests from 0."""


def said(text: str | None, *, finish: str = "stop", logprobs: list[float] | None = None, usage: bool = True) -> Reply:
    """A whole answer in the form of both APIs."""
    choice: dict[str, Any] = {"index": 0, "message": {"role": "assistant", "content": text}, "text": text, "finish_reason": finish}
    if logprobs is not None:
        choice["logprobs"] = {"content": [{"token": "t", "logprob": value} for value in logprobs], "token_logprobs": logprobs}
    body: dict[str, Any] = {"id": "1", "object": "chat.completion", "model": "stub-1", "choices": [choice]}
    if usage:
        body["usage"] = {"prompt_tokens": 100, "completion_tokens": 20}
    return Reply(json.dumps(body).encode())


def refused(status: int, message: str = "no", **headers: str) -> Reply:
    """An error in the usual form; ``retry_after="1"`` is the header Retry-After."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(json.dumps({"error": {"message": message}}).encode(), status, named)


def in_turn(*replies: Reply) -> Script:
    """The replies one after another, the last for ever."""
    return lambda asked, number: replies[min(number, len(replies) - 1)]


class StubServer(ThreadingHTTPServer):
    """Answers by ``script`` and keeps what it was asked."""

    daemon_threads = True

    def __init__(self, script: Script):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script, self.asked, self.lock = script, list[Asked](), threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hung up is no news."""


class _Handler(BaseHTTPRequestHandler):
    server: StubServer

    def do_POST(self) -> None:
        stub = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        asked = Asked(self.path, {name.lower(): value for name, value in self.headers.items()}, body)
        with stub.lock:
            number = len(stub.asked)
            stub.asked.append(asked)
        self._send(stub.script(asked, number))

    def _send(self, reply: Reply) -> None:
        self.send_response(reply.status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(reply.body)), **reply.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if reply.cut is not None:
            self.wfile.write(reply.body[: reply.cut])
            self.close_connection = True
            return
        half = len(reply.body) // 2
        for part in (reply.body[:half], reply.body[half:]):
            time.sleep(reply.pause)
            self.wfile.write(part)
            self.wfile.flush()

    def log_message(self, *args: Any) -> None:
        """Quiet."""


@contextlib.contextmanager
def serving(script: Script) -> Iterator[StubServer]:
    """The server, running in a thread while the block lasts."""
    with StubServer(script) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
