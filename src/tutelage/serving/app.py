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
from tutelage.programs.generators.base import ProgramGenerator
from tutelage.programs.result_cache import ResultCache
from tutelage.programs.serialization import strict_json
from tutelage.programs.trace import Trace
from tutelage.programs.types import Module
from tutelage.reports.page import render
from tutelage.serving import schemas
from tutelage.serving.engine import BatchingEngine
from tutelage.serving.errors import ServingError, status_and_kind
from tutelage.serving.metrics import Metrics
from tutelage.serving.middleware import RequestContext, RequestMiddleware, error_response
from tutelage.serving.sample_images import Sample, scene
from tutelage.serving.service import QuestionService, QueuedRequest
from tutelage.serving.settings import DEFAULT, ServerSettings

FAILURES: dict[int | str, dict[str, Any]] = {
    401: {"model": schemas.ErrorResponse, "description": "No API key, or a wrong one"},
    408: {"model": schemas.ErrorResponse, "description": "The body came too slowly"},
    413: {"model": schemas.ErrorResponse, "description": "The body or a picture is too large"},
    422: {"model": schemas.RunResponse, "description": "The request is not as it must be, or the program failed"},
    429: {"model": schemas.ErrorResponse, "description": "The queue is full: ask again after Retry-After seconds"},
    502: {"model": schemas.RunResponse, "description": "The language model that writes programs gave none"},
    503: {"model": schemas.ErrorResponse, "description": "The server is stopping, or its engine has ended"},
    504: {"model": schemas.ErrorResponse, "description": "No answer in time"},
}


def application(
    modules: Mapping[str, Module],
    generator: ProgramGenerator,
    settings: ServerSettings = DEFAULT,
    *,
    key: str | None = None,
    cache: ResultCache | None = None,
    sample: Sample = scene,
) -> ASGIApp:
    """The server as an ASGI application: programs over ``modules``, questions through ``generator``.

    With a ``key``, every path but the page and ``/healthz`` wants it. ``cache`` keeps module answers. ``sample`` gives the
    pictures that the page offers.
    """
    metrics = Metrics()

    @contextlib.asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        service = app.state.service = QuestionService(
            BatchingEngine(modules, settings, metrics, cache), generator, settings, metrics
        )
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

    def service() -> QuestionService:
        found: QuestionService = app.state.service
        return found

    @app.post("/v1/solve", responses={200: {"model": schemas.RunResponse}, **FAILURES})
    async def solve(body: schemas.SolveRequest, request: Request) -> Response:
        """Have a program written for a question about one or two pictures, and run it."""
        return await _single(service(), body, request, question=body.question)

    @app.post("/v1/run", responses={200: {"model": schemas.RunResponse}, **FAILURES})
    async def run(body: schemas.RunRequest, request: Request) -> Response:
        """Run a program on one or two pictures."""
        return await _single(service(), body, request, program=body.program)

    @app.post("/v1/batch", responses={200: {"model": schemas.BatchResponse}, **FAILURES})
    async def batch(body: schemas.BatchRequest, request: Request) -> Response:
        """Run many programs and questions at once. Each has its own status: one that fails fails alone."""
        return await _batch(service(), body, request)

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

    app.add_exception_handler(TutelageError, _error_handler)
    app.add_exception_handler(RequestValidationError, _validation_handler)
    app.add_exception_handler(HTTPException, _http_error_handler)
    app.add_exception_handler(Exception, _error_handler)
    return RequestMiddleware(app, settings, metrics, {route.path for route in app.routes if hasattr(route, "path")}, key)


async def _single(service: QuestionService, body: schemas.RequestBase, request: Request, **text: str) -> Response:
    visit: RequestContext = request.scope["visit"]
    images = [await service.image(data, f"images[{place}]", visit) for place, data in enumerate(body.images)]
    ((ended, row),) = await service.run_all([QueuedRequest(images, body.dsl, **text)], request)
    visit.log_fields |= {"programs": 1, "status": row["status"], **(row.get("ms") and {"queued_ms": row["ms"]["queued"]} or {})}
    if isinstance(ended, Trace):
        if body.trace:
            row["steps"] = [record.to_json(origin=False) for record in ended.steps]
        if body.pictures:
            row["pictures"] = await service.pictures(ended, images)
        code = 200 if ended.status == "ok" else 422
    else:
        code, _ = status_and_kind(ended)
    return Response(strict_json(row), code, media_type="application/json")


async def _batch(service: QuestionService, body: schemas.BatchRequest, request: Request) -> Response:
    visit: RequestContext = request.scope["visit"]
    most = service.settings.batch_items
    if len(body.items) > most:
        raise InputError(f"{len(body.items)} items; at most {most} are run at once", where="items", remedy="send several batches")
    for place, item in enumerate(body.items):
        for name in item.images:
            if name not in body.pictures:
                raise InputError(f"no picture {name!r}", where=f"items[{place}].images", remedy="name an entry of pictures")
    visit.acquire(programs=len(body.items) - 1)
    used = {name for item in body.items for name in item.images}
    images = {name: await service.image(data, f"pictures.{name}", visit) for name, data in body.pictures.items() if name in used}
    wishes = [QueuedRequest([images[name] for name in item.images], item.dsl, item.program, item.question) for item in body.items]
    rows = []
    for ended, row in await service.run_all(wishes, request):
        if body.trace and isinstance(ended, Trace):
            row["steps"] = [record.to_json(origin=False) for record in ended.steps]
        rows.append(row)
    visit.log_fields |= {"programs": len(rows), "failed": sum(row["status"] != "ok" for row in rows)}
    return Response(strict_json({"answers": rows}), media_type="application/json")


async def _error_handler(request: Request, error: Exception) -> Response:
    request.scope["visit"].log_fields["kind"] = status_and_kind(error)[1]
    return error_response(error)


async def _validation_handler(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    return await _error_handler(request, InputError(first["msg"], where=where, remedy="/openapi.json describes every request"))


async def _http_error_handler(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)

    unknown = ServingError(str(error.detail), remedy="/openapi.json lists every path and method")
    unknown.code = error.status_code
    return await _error_handler(request, unknown)


@cache
def _page() -> str:
    return render("try.html", "the page", data={"version": __version__})
