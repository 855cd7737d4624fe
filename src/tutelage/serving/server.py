"""The life of a server: it listens, and on SIGTERM or Ctrl-C finishes what it accepted and leaves with 0."""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
import sys
from collections.abc import Callable, Iterator

import uvicorn
from starlette.types import ASGIApp

from tutelage.errors import InputError, TutelageError
from tutelage.serving.settings import ServerSettings


def serve(app: ASGIApp, settings: ServerSettings, host: str, port: int, ready: Callable[[str], None] = lambda url: None) -> None:
    """Serve ``app`` until a signal comes; then close the port, finish what was accepted within ``grace_s``, and return.

    ``ready`` is told the address once the port is open; ``port`` 0 takes any that is free.

    Raises:
        InputError: the address cannot be listened at.
        TutelageError: the application did not start.
    """
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="on",
        server_header=False,
        timeout_graceful_shutdown=max(1, round(settings.grace_s)),
        timeout_keep_alive=30,
    )
    with _listening(host, port) as listener, _swallow_stop_signals():
        address, taken = listener.getsockname()[:2]
        url = f"http://[{address}]:{taken}" if ":" in address else f"http://{address}:{taken}"
        server = _NotifyingServer(config, lambda: ready(url))
        server.run(sockets=[listener])
    if not server.started:
        raise TutelageError("the server did not start", where=url, remedy="the lines above say why")


class _NotifyingServer(uvicorn.Server):
    """A server that tells when it can be asked."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]):
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready()


@contextlib.contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except (OSError, OverflowError) as error:
            remedy = "choose another with --host and --port; --port 0 takes one that is free"
            raise InputError(f"cannot listen: {error}", where=f"{host}:{port}", remedy=remedy) from error
        yield listener


@contextlib.contextmanager
def _swallow_stop_signals() -> Iterator[None]:
    """uvicorn raises the signal that stopped it once more when it has stopped: here that is a good end."""
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def log_to_stderr() -> None:
    """A line of JSON a request on standard error; a server's own troubles as plain lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    for name in ("tutelage.serving", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
    logging.getLogger("tutelage.serving").setLevel(logging.INFO)
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
