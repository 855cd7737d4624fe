"""The application: the paths that clients call, described by OpenAPI at ``/openapi.json``."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from functools import cache
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from tutelage import __version__
from tutelage.errors import InputError, TutelageError
from tutelage.programs.cache import ResultCache
from tutelage.programs.encoding import strict_json
from tutelage.programs.language import Module
from tutelage.programs.trace import Trace
from tutelage.programs.writers.writer import Writer
from tutelage.reports.page import render
from tutelage.serving import wire
from tutelage.serving.door import Door, Visit, refusal
from tutelage.serving.engine import Engine
from tutelage.serving.metrics import Metrics
from tutelage.serving.problems import Refusal, code_and_kind
from tutelage.serving.samples import Sample, scene
from tutelage.serving.service import Service, Wish
from tutelage.serving.settings import DEFAULT, ServerSettings

FAILURES: dict[int | str, dict[str, Any]] = {
    401: {"model": wire.Failed, "description": "No API key, or a wrong one"},
    408: {"model": wire.Failed, "description": "The body came too slowly"},
    413: {"model": wire.Failed, "description": "The body or a picture is too large"},
    422: {"model": wire.Answer, "description": "The request is not as it must be, or the program failed"},
    429: {"model": wire.Failed, "description": "The queue is full: ask again after Retry-After seconds"},
    502: {"model": wire.Answer, "description": "The language model that writes programs gave none"},
    503: {"model": wire.Failed, "description": "The server is stopping, or its engine has ended"},
    504: {"model": wire.Failed, "description": "No answer in time"},
}


def application(
    modules: Mapping[str, Module],
    writer: Writer,
    settings: ServerSettings = DEFAULT,
    *,
    key: str | None = None,
    cache: ResultCache | None = None,
    sample: Sample = scene,
) -> ASGIApp:
    """The server as an ASGI application: programs over ``modules``, questions through ``writer``.

    With a ``key``, every path but the page and ``/healthz`` wants it. ``cache`` keeps module answers. ``sample`` gives the
    pictures that the page offers.
    """
    metrics = Metrics()

    @contextlib.asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        service = app.state.service = Service(Engine(modules, settings, metrics, cache), writer, settings, metrics)
        yield
        await asyncio.to_thread(service.close)

    app = FastAPI(
        title="tutelage",
        version=__version__,
        summary="Questions about pictures, answered by visual programs",
        lifespan=life,
        docs_url=None,  # those pages load scripts from elsewhere
        redoc_url=None,
    )

    def service() -> Service:
        found: Service = app.state.service
        return found

    @app.post("/v1/solve", responses={200: {"model": wire.Answer}, **FAILURES})
    async def solve(asked: wire.SolveRequest, request: Request) -> Response:
        """Have a program written for a question about one or two pictures, and run it."""
        return await _single(service(), asked, request, question=asked.question)

    @app.post("/v1/run", responses={200: {"model": wire.Answer}, **FAILURES})
    async def run(asked: wire.RunRequest, request: Request) -> Response:
        """Run a program on one or two pictures."""
        return await _single(service(), asked, request, program=asked.program)

    @app.post("/v1/batch", responses={200: {"model": wire.Answers}, **FAILURES})
    async def batch(asked: wire.BatchRequest, request: Request) -> Response:
        """Run many programs and questions at once. Each has its own status: one that fails fails alone."""
        return await _batch(service(), asked, request)

    @app.get("/v1/modules")
    async def signatures() -> dict[str, Any]:
        """What programs may call: {name: {args: {name: type}, optional, returns, version}}."""
        return {
            name: {
                "args": dict(module.signature.args),
                "optional": sorted(module.signature.optional),
                "returns": module.signature.returns,
                "version": module.version,
            }
            for name, module in sorted(modules.items())
        }

    @app.get("/v1/sample")
    async def offered(number: Annotated[int, Query(ge=0, lt=1_000_000)] = 0) -> dict[str, Any]:
        """A picture, in base64, and questions about it, to try the server with."""
        return await asyncio.to_thread(sample, number)

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def page() -> str:
        return _page()

    @app.get("/healthz")
    async def health() -> Response:
        """200 while programs can be run, else 503."""
        fault = service().engine.fault
        return Response(strict_json({"ok": not fault, "fault": fault}), 503 if fault else 200, media_type="application/json")

    @app.get("/metrics", response_class=Response)
    async def figures() -> Response:
        """Counters and histograms, as Prometheus reads them."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    app.add_exception_handler(TutelageError, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _unknown)
    app.add_exception_handler(Exception, _refused)
    return Door(app, settings, metrics, {route.path for route in app.routes if hasattr(route, "path")}, key)


async def _single(service: Service, asked: wire.About, request: Request, **text: str) -> Response:
    visit: Visit = request.scope["visit"]
    images = [await service.image(data, f"images[{place}]", visit) for place, data in enumerate(asked.images)]
    ((ended, row),) = await service.ask([Wish(images, asked.dsl, **text)], request)
    visit.notes |= {"programs": 1, "status": row["status"], **(row.get("ms") and {"queued_ms": row["ms"]["queued"]} or {})}
    if isinstance(ended, Trace):
        if asked.trace:
            row["steps"] = [record.to_json(origin=False) for record in ended.steps]
        if asked.pictures:
            row["pictures"] = await service.pictures(ended, images)
        code = 200 if ended.status == "ok" else 422
    else:
        code, _ = code_and_kind(ended)
    return Response(strict_json(row), code, media_type="application/json")


async def _batch(service: Service, asked: wire.BatchRequest, request: Request) -> Response:
    visit: Visit = request.scope["visit"]
    most = service.settings.batch_items
    if len(asked.items) > most:
        raise InputError(f"{len(asked.items)} items; at most {most} are run at once", where="items", remedy="send several batches")
    for place, item in enumerate(asked.items):
        for name in item.images:
            if name not in asked.pictures:
                raise InputError(f"no picture {name!r}", where=f"items[{place}].images", remedy="name an entry of pictures")
    visit.take(programs=len(asked.items) - 1)
    used = {name for item in asked.items for name in item.images}
    images = {name: await service.image(data, f"pictures.{name}", visit) for name, data in asked.pictures.items() if name in used}
    wishes = [Wish([images[name] for name in item.images], item.dsl, item.program, item.question) for item in asked.items]
    rows = []
    for ended, row in await service.ask(wishes, request):
        if asked.trace and isinstance(ended, Trace):
            row["steps"] = [record.to_json(origin=False) for record in ended.steps]
        rows.append(row)
    visit.notes |= {"programs": len(rows), "failed": sum(row["status"] != "ok" for row in rows)}
    return Response(strict_json({"answers": rows}), media_type="application/json")


async def _refused(request: Request, error: Exception) -> Response:
    request.scope["visit"].notes["kind"] = code_and_kind(error)[1]
    return refusal(error)


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    return await _refused(request, InputError(first["msg"], where=where, remedy="/openapi.json describes every request"))


async def _unknown(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)

    unknown = Refusal(str(error.detail), remedy="/openapi.json lists every path and method")
    unknown.code = error.status_code
    return await _refused(request, unknown)


@cache
def _page() -> str:
    return render("try.html", "the page", data={"version": __version__})
