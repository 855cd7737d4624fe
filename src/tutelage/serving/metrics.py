"""What the server counts, in Prometheus's text form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)


class Metrics:
    """The figures of one server, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        own: dict[str, Any] = {"registry": self._registry, "namespace": "tutelage"}
        self._requests = Counter("requests", "Requests answered, by path and status code", ["path", "code"], **own)
        self._seconds = Histogram("request_seconds", "From a request's first byte to its answer", ["path"], buckets=SECONDS, **own)
        self._programs = Counter("programs", "Programs run, by how they ended", ["status"], **own)
        self._sizes = Histogram("batch_size", "Calls that a module answered at once", ["module"], buckets=SIZES, **own)
        self._busy = Counter("module_seconds", "Seconds that a module took", ["module"], **own)
        self._notes = Counter("images", "Pictures read, by what had to be done to them", ["note"], **own)
        self._disconnects = Counter("clients_gone", "Requests whose client hung up before the answer", **own)
        self._own = own

    def watch(self, name: str, help: str, value: Callable[[], float]) -> None:
        """Show what ``value()`` gives when the metrics are read."""
        Gauge(name, help, **self._own).set_function(value)

    def request(self, path: str, code: int, seconds: float) -> None:
        """A request was answered."""
        self._requests.labels(path, str(code)).inc()
        self._seconds.labels(path).observe(seconds)

    def program(self, status: str) -> None:
        """A program ended."""
        self._programs.labels(status).inc()

    def batch(self, module: str, size: int, seconds: float) -> None:
        """A module answered a batch."""
        self._sizes.labels(module).observe(size)
        self._busy.labels(module).inc(seconds)

    def image(self, notes: tuple[str, ...]) -> None:
        """A picture was read."""
        for note in notes or ("as it is",):
            self._notes.labels("reduced" if note.startswith("reduced") else note).inc()

    def client_disconnected(self) -> None:
        """A client hung up."""
        self._disconnects.inc()

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self._registry)
