"""A real server process on loopback under load: batching across requests on and off, many requests, and too many.

The stub modules take 20 ms a call and 1 ms an item, which is an accelerator's shape, and sleep meanwhile: what they show is
the server, not a network. The toy modules compute on one thread of the CPU.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter
from typing import Any

from tutelage.errors import TutelageError
from tutelage.programs.generators.grammar import generate
from tutelage.serving import check_installed
from tutelage.serving.sample_images import scene

CLIENTS = 16
STUB_MS, STUB_ITEM_MS = 20.0, 1.0
PICTURES = 256
"""Different pictures that clients send, so that requests under way share no call."""


class ServerCrashed(TutelageError):
    """The server under load ended, or never began."""


@dataclass
class LoadResult:
    """What clients saw: seconds of each answer that came, status codes, faults of the connection, seconds in all."""

    seconds: list[float] = field(default_factory=list)
    codes: Counter[int] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    wall: float = 0.0

    def __iadd__(self, other: LoadResult) -> LoadResult:
        self.seconds += other.seconds
        self.codes += other.codes
        self.faults += other.faults
        self.wall += other.wall
        return self

    @property
    def errors(self) -> int:
        """Requests without an answer, other than those that were told to come back."""
        return sum(count for code, count in self.codes.items() if code not in (200, 429)) + self.faults.total()

    def quantile(self, share: float) -> float:
        """Milliseconds within which that share of the answers came."""
        ordered = sorted(self.seconds)
        return 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def bench(
    *,
    clients: int = CLIENTS,
    rounds: int = 5,
    requests: int = 10_000,
    seed: int = 0,
    smoke: bool = False,
    progress: Callable[[float, float], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Rounds of closed-loop clients, the servers with batching on and off in turn; then ``requests`` in one go; then four
    times as many clients as a queue of ``clients`` / 2 holds.

    Returns:
        {stub, embedded: {on, off: {answers_per_s, p50_ms, p95_ms, p99_ms, mean_batch, errors}, answers_ratio, p50_ratio},
        many, beyond_queue, ...}

    Raises:
        MissingExtra: the extra ``serve`` is not installed.
        ServerDied: a server ended under its load, or with another exit code than 0.
    """
    check_installed()
    if smoke:
        clients, rounds, requests = 4, 1, 40
    bodies = _bodies(16 if smoke else PICTURES)
    total, done = 2 * rounds + 2, 0
    result: dict[str, Any] = {"clients": clients, "rounds": rounds, "smoke": smoke, "stub_ms": [STUB_MS, STUB_ITEM_MS]}
    for kind, each in (("stub", 24), ("embedded", 60)):
        with contextlib.ExitStack() as stack:
            servers = {way: stack.enter_context(server(kind, seed, smoke, batching=way == "on")) for way in ("on", "off")}
            loads = {way: LoadResult() for way in servers}
            rates: dict[str, list[float]] = {way: [] for way in servers}
            for url in servers.values():
                load(url, bodies, clients, 2 * clients)  # warm: connections, parsed texts, lazy imports
            for _ in range(rounds):
                for way, url in servers.items():
                    found = load(url, bodies, clients, clients * (2 if smoke else each))
                    loads[way] += found
                    rates[way].append(len(found.seconds) / found.wall)
                done += 1
                progress(done, total)
            rows = {way: _row(loads[way], rates[way], servers[way]) for way in servers}
            result[kind] = rows | {
                "answers_ratio": median(on / off for on, off in zip(rates["on"], rates["off"], strict=True)),
                "p50_ratio": rows["on"]["p50_ms"] / rows["off"]["p50_ms"],
            }
    with server("stub", seed, smoke) as url:
        found = load(url, bodies, clients, requests)
        result["many"] = _row(found, [len(found.seconds) / found.wall], url) | {"requests": requests}
    with server("stub", seed, smoke, queue=max(1, clients // 2)) as url:
        found = load(url, bodies, 4 * clients, requests // 5)
        result["beyond_queue"] = {
            "requests": requests // 5,
            "clients": 4 * clients,
            "queue": max(1, clients // 2),
            "codes": dict(sorted(found.codes.items())),
            "errors": found.errors,
            "answers_again_afterwards": load(url, bodies, 1, 1).codes == {200: 1},
        }
    progress(total, total)
    return result


def _row(result: LoadResult, rates: Sequence[float], url: str) -> dict[str, Any]:
    return {
        "answers_per_s": median(rates),
        "p50_ms": result.quantile(0.5),
        "p95_ms": result.quantile(0.95),
        "p99_ms": result.quantile(0.99),
        "mean_batch": _mean_batch(url),
        "answers": len(result.seconds),
        "errors": result.errors,
    }


def _bodies(pictures: int) -> list[bytes]:
    """Requests to ``/v1/run``, a drawn picture each, with the programs of questions about it."""
    found = []
    for number in range(pictures):
        drawn = scene(number)
        for question in drawn["questions"]:
            program = generate(question, ("IMAGE",)).visprog
            found.append(json.dumps({"images": [drawn["picture"]], "program": program, "trace": False}).encode())
    return found


@contextlib.contextmanager
def server(modules: str, seed: int, smoke: bool, **settings: Any) -> Iterator[str]:
    """The address of a server process over ``modules``: stub or embedded.

    Raises:
        ServerDied: it does not begin, ends under its load, or does not end with 0 when it is told to.
    """
    words = [sys.executable, "-m", "tutelage.bench.serving_process", modules, str(seed), str(int(smoke)), json.dumps(settings)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            if not url:
                raise ServerCrashed("the server does not begin", where=" ".join(words), remedy="run it by hand: it says why")
            yield url
            if process.poll() is not None:
                raise ServerCrashed(f"the server ended under its load, exit code {process.returncode}")
            process.send_signal(signal.SIGTERM)
            if process.wait(60):
                raise ServerCrashed(f"told to stop, the server ended with {process.returncode}")
        finally:
            process.kill()


def load(url: str, bodies: Sequence[bytes], clients: int, requests: int) -> LoadResult:
    """``requests`` from ``clients`` threads, each of which asks again when it has its answer; on a connection each."""
    numbers, gate, found = iter(range(requests)), threading.Lock(), [LoadResult() for _ in range(clients)]

    def ask(own: LoadResult) -> None:
        connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
        while True:
            with gate:
                number = next(numbers, None)
            if number is None:
                break
            began = perf_counter()
            try:
                connection.request("POST", "/v1/run", bodies[number * 7 % len(bodies)], {"Content-Type": "application/json"})
                response = connection.getresponse()
                response.read()
            except (OSError, http.client.HTTPException) as error:
                own.faults[type(error).__name__] += 1
                connection.close()
                continue
            own.codes[response.status] += 1
            if response.status == 200:
                own.seconds.append(perf_counter() - began)
        connection.close()

    threads = [threading.Thread(target=ask, args=(own,)) for own in found]
    began = perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    whole = LoadResult()
    for own in found:
        whole += own
    whole.wall = perf_counter() - began
    return whole


def _mean_batch(url: str) -> dict[str, float]:
    """Calls a batch, by module, since the server began."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    sums = dict(re.findall(r'tutelage_batch_size_sum\{module="(\w+)"\} (\S+)', text))
    counts = dict(re.findall(r'tutelage_batch_size_count\{module="(\w+)"\} (\S+)', text))
    return {name: float(sums[name]) / float(counts[name]) for name in sums}
