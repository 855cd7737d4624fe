"""From a checked request to an answer: decode its pictures, have its program written, have it run, say how it went."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request

from tutelage.errors import InputError
from tutelage.programs.generators import base as writing
from tutelage.programs.serialization import encode
from tutelage.programs.trace import Trace
from tutelage.programs.types import ProgramFailure
from tutelage.programs.values import Image
from tutelage.serving.engine import BatchingEngine, PendingRun
from tutelage.serving.errors import ClientDisconnected, error_payload, status_and_kind
from tutelage.serving.metrics import Metrics
from tutelage.serving.middleware import RequestContext
from tutelage.serving.settings import ServerSettings
from tutelage.storage import fingerprint

INPUTS = (("IMAGE",), ("LEFT", "RIGHT"))
MAX_RENDERED_SIDE = 1024
"""The longest side, in pixels, of pictures that are sent back for people to look at."""


@dataclass(frozen=True)
class QueuedRequest:
    """One program that a client wants run, or question that it wants answered, in the language ``dsl``."""

    images: Sequence[Image]
    dsl: str
    program: str | None = None
    question: str | None = None

    @property
    def state(self) -> dict[str, Image]:
        """The images by the names that programs know."""
        return dict(zip(INPUTS[len(self.images) - 1], self.images, strict=True))


class BatchedGenerator:
    """Asks a writer for all questions that wait, at once, in a thread of its own."""

    def __init__(self, generator: writing.ProgramGenerator):
        self._generator = generator
        self._thread = ThreadPoolExecutor(1, "writer")
        self._waiting: list[tuple[writing.GenerationRequest, asyncio.Future[writing.Candidate]]] = []
        self._task: asyncio.Task[None] | None = None

    async def generate(self, request: writing.GenerationRequest) -> writing.Candidate:
        """The best program for ``request``.

        Raises:
            TutelageError: whatever the writer raises.
        """
        answer: asyncio.Future[writing.Candidate] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, answer))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._generate_waiting())
        return await answer

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown()

    async def _generate_waiting(self) -> None:
        while self._waiting:
            waiting, self._waiting = self._waiting, []
            requests = [request for request, _ in waiting]
            found: list[Any]
            try:
                found = [
                    d[0] for d in await asyncio.get_running_loop().run_in_executor(self._thread, self._generator.generate, requests)
                ]
            except Exception as error:
                found = [error] * len(waiting)
            for (_, answer), draft in zip(waiting, found, strict=True):
                if answer.done():
                    continue
                if isinstance(draft, Exception):
                    answer.set_exception(draft)
                else:
                    answer.set_result(draft)


def client_of(request: Request) -> str:
    """Who asks, as far as the connection tells: the peer's address with the key it gave."""
    host = request.client.host if request.client is not None else ""
    return fingerprint(host, request.headers.get("authorization", ""))


class QuestionService:
    """What the paths of the application call. ``decoders`` threads read and write pictures."""

    def __init__(
        self,
        engine: BatchingEngine,
        generator: writing.ProgramGenerator,
        settings: ServerSettings,
        metrics: Metrics,
        decoders: int = 2,
    ):
        self.engine, self.settings, self._metrics = engine, settings, metrics
        self._generator = BatchedGenerator(generator)
        self._decoders = ThreadPoolExecutor(decoders, "decoder")

    async def image(self, data: str, where: str, context: RequestContext) -> Image:
        """The picture in ``data``, base64.

        Raises:
            InputError: not base64, or not a picture; ImageTooLarge and Busy where a limit is passed.
        """
        image: Image = await asyncio.get_running_loop().run_in_executor(self._decoders, self._decode, data, where)
        context.acquire(bytes=image.root.nbytes)
        self._metrics.image(image.notes)
        return image

    def _decode(self, data: str, where: str) -> Image:
        try:
            file = base64.b64decode(data, validate=True)
        except (binascii.Error, ValueError) as error:
            raise InputError(f"not base64: {error}", where=where, remedy="send the file's bytes in base64") from None
        return Image.from_bytes(file, self.settings.images, where)

    async def run_all(
        self, queued: Sequence[QueuedRequest], request: Request
    ) -> list[tuple[Trace | ProgramFailure, dict[str, Any]]]:
        """For each wish how its program ended, and that as a client sees it, without pictures.

        A client that hangs up is heard: its programs end at their next step.

        Raises:
            ClientGone: the client hung up.
            Stopped: the engine takes no more programs.
        """
        tickets: list[PendingRun] = []
        work = asyncio.ensure_future(self._run(queued, tickets, client_of(request)))
        gone = asyncio.ensure_future(request.receive())  # the body is read: what comes next is that the client left
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise ClientDisconnected("the client hung up")
            return work.result()
        finally:
            gone.cancel()
            work.cancel()
            for ticket in tickets:
                ticket.cancelled = True

    async def _run(
        self, queued: Sequence[QueuedRequest], pending: list[PendingRun], client: str
    ) -> list[tuple[Trace | ProgramFailure, dict[str, Any]]]:
        drafts = await asyncio.gather(*map(self._generate, queued))
        runs = [
            None if draft.failure is not None else PendingRun(wish.dsl, draft.text, wish.state, wish.question, client)
            for wish, draft in zip(queued, drafts, strict=True)
        ]
        pending += [ticket for ticket in runs if ticket is not None]
        self.engine.submit(pending)
        await asyncio.gather(*(ticket.future for ticket in pending))
        return [self._response_row(*parts) for parts in zip(queued, drafts, runs, strict=True)]

    async def _generate(self, queued: QueuedRequest) -> writing.Candidate:
        if queued.program is not None:
            return writing.Candidate(queued.program, "client")
        assert queued.question is not None
        return await self._generator.generate(writing.GenerationRequest(queued.question, queued.dsl, tuple(queued.state)))

    def _response_row(
        self, queued: QueuedRequest, candidate: writing.Candidate, run: PendingRun | None
    ) -> tuple[Trace | ProgramFailure, dict[str, Any]]:
        row: dict[str, Any] = {
            "status": "ok",
            "answer": None,
            "confidence": None,
            "program": {"dsl": queued.dsl, "text": candidate.text, "source": candidate.source} if candidate.text else None,
            "images": [
                {"width": image.width, "height": image.height, "key": image.root_key, "notes": list(image.notes)}
                for image in queued.images
            ],
            "error": None,
        }
        if run is None:
            assert candidate.failure is not None
            self._metrics.program(kind := status_and_kind(candidate.failure)[1])
            return candidate.failure, row | {"status": kind, "error": error_payload(candidate.failure)}
        trace = run.future.result()
        self._metrics.program(trace.status)
        row |= {"status": trace.status, "answer": encode(trace.answer), "confidence": trace.confidence}
        row["ms"] = {
            "queued": round(1000 * (run.started_at - run.queued_at), 2),
            "ran": round(1000 * (run.finished_at - run.started_at), 2),
        }
        if trace.status != "ok":
            message, _, remedy = str(trace.error).partition("\n  remedy: ")
            row["error"] = {"kind": trace.status, "message": message, "where": None, "remedy": remedy or None}
        return trace, row

    async def pictures(self, trace: Trace, images: Sequence[Image]) -> dict[str, Any]:
        """Every picture that the trace's images are regions of, by its key, for people to look at."""
        roots = {image.root_key: image for image in images}
        for record in trace.steps:
            for value in (*record.args.values(), record.output):
                if isinstance(value, Image):
                    roots.setdefault(value.root_key, Image(value.root, value.root_key))
        return await asyncio.get_running_loop().run_in_executor(
            self._decoders, lambda: {key: _rendered(roots[key]) for key in roots}
        )

    def close(self) -> None:
        """Finish what was begun, and end the threads."""
        self.engine.close()
        self._decoders.shutdown()
        self._generator.close()


def _rendered(image: Image) -> dict[str, Any]:
    """A data URI of the picture, and the size in pixels that boxes are given in."""
    return {"src": image.data_uri(MAX_RENDERED_SIDE), "width": image.width, "height": image.height}
