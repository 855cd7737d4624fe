"""What every request passes before and after the application: key, queue, body, clock, log, metrics.

A request to ``/v1/`` takes a place before its body is read, so that what waits is bounded from the first byte.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import logging
import traceback
from datetime import UTC, datetime
from time import perf_counter
from typing import Any

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tutelage.serving.errors import (
    ClientDisconnected,
    PayloadTooLarge,
    RequestTimeout,
    TooManyRequests,
    TooSlow,
    Unauthorized,
    error_payload,
    status_and_kind,
)
from tutelage.serving.metrics import Metrics
from tutelage.serving.settings import ServerSettings

LOG = logging.getLogger("tutelage.serving")
BEGIN_S = 2.0
"""Seconds from the beginning of a body in which nothing need come."""
SAFE = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"content-security-policy", b"frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
)
"""Headers of every answer: browsers take it for what it says it is, and show it in no other site's frame."""
PUBLIC_PATHS = ("/", "/healthz")
"""What needs no key: the page, which asks for one, and whether the server is well."""


class AdmissionLimiter:
    """How many programs, and bytes of their bodies and pictures, the server holds. For one event loop."""

    def __init__(self, settings: ServerSettings):
        self.programs = self.bytes = 0
        self._max_programs, self._max_bytes = settings.queue, settings.memory_mib << 20

    def acquire(self, programs: int, bytes: int) -> None:
        """Hold so much more.

        Raises:
            Busy: there is no room for it.
        """
        if self.programs + programs > self._max_programs:
            raise TooManyRequests(
                f"{self.programs} programs are held, of {self._max_programs}", remedy="ask again after Retry-After seconds"
            )
        if self.bytes + bytes > self._max_bytes:
            raise TooManyRequests("no memory is free for this request", remedy="ask again after Retry-After seconds, or send less")
        self.programs += programs
        self.bytes += bytes

    def release(self, programs: int, bytes: int) -> None:
        """Hold so much less."""
        self.programs -= programs
        self.bytes -= bytes


class RequestContext:
    """One request under way: what it holds, whether its body was ``body_read``, and what its line in the log says besides."""

    def __init__(self, limiter: AdmissionLimiter):
        self._limiter = limiter
        self._programs = self._bytes = 0
        self.body_read = False
        self.log_fields: dict[str, Any] = {}

    def acquire(self, programs: int = 0, bytes: int = 0) -> None:
        """Hold so much more, until the visit ends.

        Raises:
            Busy: there is no room for it.
        """
        self._limiter.acquire(programs, bytes)
        self._programs += programs
        self._bytes += bytes

    async def read_chunk(self, receive: Receive) -> bytes:
        """The next part of the body.

        Raises:
            ClientGone: the client hangs up before its end.
        """
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnected("the client hung up")
        self.body_read = not message.get("more_body", False)
        body: bytes = message.get("body", b"")
        return body

    def release(self) -> None:
        """Hold nothing."""
        self._limiter.release(self._programs, self._bytes)
        self._programs = self._bytes = 0


class RequestMiddleware:
    """The application with its door. ``key`` None: everybody may ask. ``paths`` are those that metrics tell apart."""

    def __init__(self, app: ASGIApp, settings: ServerSettings, metrics: Metrics, paths: set[str], key: str | None = None):
        self._app, self._settings, self._metrics, self._paths = app, settings, metrics, paths
        self._key = None if key is None else key.encode()
        self._limiter = AdmissionLimiter(settings)
        metrics.watch("held_programs", "Programs that wait or run", lambda: self._limiter.programs)
        metrics.watch("held_bytes", "Bytes of bodies and pictures of these", lambda: self._limiter.bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, or the server's start and stop."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, code = perf_counter(), 0
        visit = scope["visit"] = RequestContext(self._limiter)

        async def answer(message: Message) -> None:
            nonlocal code
            if message["type"] == "http.response.start":
                code = message["status"]
                message = {**message, "headers": [*message.get("headers", ()), *SAFE]}
            await send(message)

        try:
            async with asyncio.timeout(self._settings.timeout_s):
                await self._serve(scope, receive, answer, visit)
        except asyncio.CancelledError:  # the grace time of a server that stops is over
            visit.log_fields["kind"] = "cut"
            raise
        except Exception as error:
            late = RequestTimeout(f"no answer within {self._settings.timeout_s:g} s", remedy="ask again, or for less at once")
            refused = late if isinstance(error, TimeoutError) else error
            status, kind = status_and_kind(refused)
            visit.log_fields.setdefault("kind", kind)
            if status == 500:
                visit.log_fields["fault"] = traceback.format_exc()
            if not code:
                await self._send_error(refused, visit, scope, receive, answer)
                code = code or status
        finally:
            visit.release()
            self._log_request(scope, code, perf_counter() - started, visit)

    async def _serve(self, scope: Scope, receive: Receive, send: Send, context: RequestContext) -> None:
        self._check_key(scope)
        if not scope["path"].startswith("/v1/") or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        context.acquire(programs=1)
        body: Message | None = {"type": "http.request", "body": await self._body(scope, receive, context)}

        async def replay() -> Message:
            nonlocal body
            message, body = body, None
            return message or await receive()

        await self._app(scope, replay, send)

    def _check_key(self, scope: Scope) -> None:
        if self._key is None or scope["path"] in PUBLIC_PATHS:
            return
        headers = dict(scope["headers"])
        scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
        given = headers.get(b"x-api-key") or (token if scheme.lower() == b"bearer" else b"")
        if not hmac.compare_digest(given, self._key):
            raise Unauthorized("no API key, or a wrong one", remedy="send the header Authorization: Bearer KEY, or X-API-Key: KEY")

    async def _body(self, scope: Scope, receive: Receive, context: RequestContext) -> bytes:
        most, parts, size = self._settings.body_bytes, [], 0
        remedy = "send smaller pictures, or fewer at once"
        stated = dict(scope["headers"]).get(b"content-length", b"0")
        if stated.isdigit() and int(stated) > most:
            raise PayloadTooLarge(f"a body of {int(stated):,} bytes; at most {most:,} are read", remedy=remedy)
        began, rate = asyncio.get_running_loop().time(), 1024 * self._settings.body_kib_s
        while not context.body_read:
            try:
                async with asyncio.timeout_at(began + BEGIN_S + size / rate):
                    part = await context.read_chunk(receive)
            except TimeoutError:
                slow = f"{size:,} bytes came in {asyncio.get_running_loop().time() - began:.1f} s"
                raise TooSlow(slow, remedy=f"send at least {self._settings.body_kib_s:g} KiB/s") from None
            size += len(part)
            if size > most:
                raise PayloadTooLarge(f"a body of more than {most:,} bytes", remedy=remedy)
            context.acquire(bytes=len(part))
            parts.append(part)
        return b"".join(parts)

    async def _send_error(self, error: Exception, context: RequestContext, scope: Scope, receive: Receive, send: Send) -> None:
        """Say no. What the client still sends is thrown away first, within bounds: else it would not hear the answer."""
        with contextlib.suppress(Exception):
            async with asyncio.timeout(0.0 if isinstance(error, RequestTimeout | TooSlow) else 1.0):
                left = 2 * self._settings.body_bytes
                while left > 0 and not context.body_read:
                    left -= len(await context.read_chunk(receive))
        with contextlib.suppress(Exception):  # nobody may be there
            await error_response(error)(scope, receive, send)

    def _log_request(self, scope: Scope, code: int, seconds: float, context: RequestContext) -> None:
        path = scope["path"] if scope["path"] in self._paths else "other"
        if context.log_fields.get("kind") == ClientDisconnected.kind:
            code = ClientDisconnected.code
            self._metrics.client_disconnected()
        self._metrics.request(path, code, seconds)
        row = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "client": (scope.get("client") or ("?",))[0],
            "method": scope["method"][:20],
            "path": scope["path"][:200],
            "code": code,
            "ms": round(1000 * seconds, 2),
            **context.log_fields,
        }
        LOG.log(logging.ERROR if code >= 500 else logging.INFO, json.dumps(row))


def error_response(error: Exception) -> Response:
    """``error`` as an answer."""
    headers = {"Retry-After": str(error.retry_after_s)} if isinstance(error, TooManyRequests) else {}
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    body = json.dumps({"error": error_payload(error)})
    return Response(body, status_and_kind(error)[0], headers, "application/json")
