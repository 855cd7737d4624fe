"""Clients that behave badly, on real sockets: each is counted, its work ends, and the next is served."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import sleep
from typing import Any

import pytest
import uvicorn

from tutelage.modules.symbolic import symbolic_modules
from tutelage.programs.generators.base import grammar_generator
from tutelage.serving import middleware
from tutelage.serving.app import application
from tutelage.serving.settings import ServerSettings

from .conftest import VISPROG, Echo, picture, until

TWO_STEPS = "def execute_command(image):\n    return [ImagePatch(image).simple_query(word) for word in 'ab']"
Live = Callable[..., Any]


@pytest.fixture
def live(echo: Echo) -> Live:
    """``with live(queue=3) as port``: a server with these settings on a socket."""

    @contextmanager
    def live(**settings: Any) -> Iterator[int]:
        app = application({**symbolic_modules(), "VQA": echo}, grammar_generator(), ServerSettings(**settings))
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="on"))
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            thread = threading.Thread(target=server.run, args=([listener],))
            thread.start()
            until(lambda: server.started)
            try:
                yield listener.getsockname()[1]
            finally:
                echo.gate.set()
                server.should_exit = True
                thread.join()

    return live


def call(port: int, method: str = "GET", path: str = "/metrics", body: bytes | None = None) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request(method, path, body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    return response.status, text


def figure(port: int, name: str) -> float:
    return float(next(line for line in call(port)[1].splitlines() if line.startswith(name + " ")).split()[1])


def request(question: str, **more: Any) -> bytes:
    return json.dumps({"images": [picture(7)], "program": VISPROG.format(question)} | more).encode()


def heard(client: socket.socket) -> tuple[int, str]:
    response = http.client.HTTPResponse(client)
    response.begin()
    return response.status, response.read().decode()


def answer(port: int, question: str) -> Any:
    return json.loads(call(port, "POST", "/v1/run", request(question))[1])["answer"]


def sent(port: int, body: bytes, *, stated: int | None = None) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", port), timeout=20)
    length = len(body) if stated is None else stated
    head = f"POST /v1/run HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    client.sendall(head.encode() + body)
    return client


def test_a_client_that_hangs_up_while_its_program_runs(live: Live, echo: Echo) -> None:
    echo.gate.clear()
    with live() as port:
        client = sent(port, request("x", program=TWO_STEPS, dsl="viper"))
        assert echo.entered.wait(10)
        client.close()
        until(lambda: figure(port, "tutelage_clients_gone_total") == 1)
        assert figure(port, "tutelage_held_programs") == 0
        echo.gate.set()
        assert answer(port, "next") == "next 7"
        assert 'tutelage_requests_total{code="499",path="/v1/run"} 1.0' in call(port)[1]
    assert len(echo.batches) == 2, "its second step was never asked"


def test_a_client_that_hangs_up_while_it_waits_disturbs_no_other(live: Live, echo: Echo) -> None:
    echo.gate.clear()
    with live() as port:
        clients = [sent(port, request(f"q{number}")) for number in range(6)]
        until(lambda: figure(port, "tutelage_held_programs") == 6)
        for client in clients[::2]:
            client.close()
        until(lambda: figure(port, "tutelage_clients_gone_total") == 3)
        echo.gate.set()
        for number in (1, 3, 5):
            assert f'"answer": "q{number} 7"' in heard(clients[number])[1]
            clients[number].close()
        until(lambda: figure(port, "tutelage_held_bytes") == 0)


def test_a_client_that_hangs_up_within_its_body(live: Live) -> None:
    with live() as port:
        sent(port, b'{"images": [', stated=1000).close()
        until(lambda: figure(port, "tutelage_clients_gone_total") == 1)
        assert figure(port, "tutelage_held_programs") == figure(port, "tutelage_held_bytes") == 0
        assert answer(port, "next") == "next 7"


def test_a_body_that_never_comes(live: Live) -> None:
    with live(timeout_s=0.2) as port, sent(port, b"{", stated=1000) as client:
        code, text = heard(client)
        assert code == 504 and '"kind": "timeout"' in text
        assert figure(port, "tutelage_held_programs") == 0


def test_who_is_refused_hears_why_though_the_body_was_never_wanted(live: Live, echo: Echo) -> None:
    echo.gate.clear()
    with live(queue=1, body_mib=8) as port:
        first = sent(port, request("first"))
        assert echo.entered.wait(10)
        code, text = call(port, "POST", "/v1/run", b" " * (4 << 20))
        assert code == 429 and json.loads(text)["error"]["kind"] == "busy"
        code, text = call(port, "POST", "/v1/run", b" " * (9 << 20))
        assert code == 429
        echo.gate.set()
        assert "first 7" in heard(first)[1]
        first.close()
        until(lambda: figure(port, "tutelage_held_programs") == 0)
        assert call(port, "POST", "/v1/run", b" " * (9 << 20))[0] == 413


@pytest.mark.parametrize(
    "data", [b"\0\xff" * 300, b"POST /v1/run HTTP/9.9\r\n\r\n", b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -3\r\n\r\n"]
)
def test_what_is_no_http(live: Live, data: bytes) -> None:
    with live() as port:
        with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
            client.sendall(data)
            assert client.recv(65536)[:10] in (b"", b"HTTP/1.1 4")
        assert answer(port, "next") == "next 7"


def test_texts_that_no_encoding_holds_and_nesting_without_end(live: Live) -> None:
    with live() as port:
        assert call(port, "POST", "/v1/run", request("\\ud800"))[0] in (200, 422)
        assert call(port, "POST", "/v1/solve", json.dumps({"images": [picture(1)], "question": "\ud800?"}).encode())[0] == 422
        assert call(port, "POST", "/v1/run", b"[" * 200_000)[0] in (400, 422)
        assert answer(port, "next") == "next 7"


def test_bodies_that_trickle_give_their_places_back(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(middleware, "BEGIN_S", 0.3)
    with live(queue=4) as port:
        slow = [sent(port, b"{", stated=100_000) for _ in range(4)]
        until(lambda: figure(port, "tutelage_held_programs") == 4)
        for client in slow:
            code, text = heard(client)
            assert code == 408 and '"kind": "slow"' in text and "KiB/s" in text
            client.close()
        assert figure(port, "tutelage_held_programs") == figure(port, "tutelage_held_bytes") == 0
        assert answer(port, "next") == "next 7"


def test_a_body_that_comes_fast_enough_is_waited_for(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(middleware, "BEGIN_S", 0.3)
    body = request("x")
    with live(body_kib_s=len(body) / 1024) as port, sent(port, body[:-10], stated=len(body)) as client:
        sleep(0.5)  # beyond the beginning, within what the bytes so far allow
        client.sendall(body[-10:])
        assert heard(client)[0] == 200
