"""One thread that owns the modules and a running scheduler; requests join it while it works.

A batch is answered when it is full, when as many programs are under way as there lately were, or after a short wait, which
is a small share of what batches take: so clients that come in step meet in one batch, one client alone never waits, and
modules that are quick, of which a batch saves little, wait for nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count, groupby
from queue import Empty, SimpleQueue
from time import monotonic, perf_counter
from typing import Any

from tutelage.programs import viper
from tutelage.programs.lanes import to_failure
from tutelage.programs.languages import LANGUAGES, parser_for
from tutelage.programs.result_cache import ResultCache
from tutelage.programs.run_context import Job, RunContext
from tutelage.programs.sandbox import Sandbox
from tutelage.programs.scheduler import Scheduler
from tutelage.programs.trace import Trace
from tutelage.programs.types import Call, Module, ModuleOutputs, Program, ProgramFailure, ProgramRun, TimeoutFailure, Value
from tutelage.programs.values import Image
from tutelage.serving.errors import ServiceUnavailable
from tutelage.serving.metrics import Metrics
from tutelage.serving.settings import ServerSettings

LOG = logging.getLogger("tutelage.serving")
CLOSE_TIMEOUT_S = 5.0
"""Seconds that a closing engine has for programs whose answer a client still waits for, and for the batch under way."""
FAST_BATCH_S, FAST_BATCH_WINDOW = 0.005, 2
"""Where batches take less than so long, so many programs under way keep the modules busy; more would end together, and their
clients be served and heard together while the modules wait."""
RECENT_BATCHES = 16
"""Batches over which the engine remembers how many programs were under way."""
MAX_WAIT_SHARE = 0.125
"""Of the time that batches lately took, which one may wait for more calls (our choice)."""


@dataclass(slots=True, eq=False)
class PendingRun:
    """A program that a client wants run: its text, and the images it reads by name. ``future`` gets the trace.

    Programs of different ``client``s never share a session of the sandbox. A client that
    no longer wants it sets ``cancelled``: it ends at its next step. ``queued_at``, ``started_at`` and ``finished_at`` are
    seconds of :func:`time.perf_counter`.
    """

    dsl: str
    text: str
    state: Mapping[str, Image]
    question: str | None = None
    client: str = ""
    future: asyncio.Future[Trace] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    queued_at: float = field(default_factory=perf_counter)
    started_at: float = 0.0
    finished_at: float = 0.0
    cancelled: bool = False


class BatchingEngine:
    """Runs tickets over ``modules``: :meth:`submit` them from event loops, :meth:`close` it once."""

    def __init__(self, modules: Mapping[str, Module], settings: ServerSettings, metrics: Metrics, cache: ResultCache | None = None):
        self.settings, self.fault = settings, ""
        watched = {name: module if module.symbolic else InstrumentedModule(module, metrics) for name, module in modules.items()}
        self._context = RunContext(watched, cache, settings.max_batch, max_calls=settings.program_calls)
        self._sandbox = Sandbox(settings.programs)
        signatures = self._context.signatures
        self._parsers = {dsl: parser_for(dsl, signatures, self._sandbox) for dsl in LANGUAGES}
        self._inbox: SimpleQueue[PendingRun | None] = SimpleQueue()
        self._running: dict[int, PendingRun] = {}
        self._numbers = count()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._thread_main, name="engine", daemon=True)
        self._thread.start()

    def submit(self, runs: Sequence[PendingRun]) -> None:
        """Have the programs run; each ticket's ``future`` gets its trace.

        Raises:
            Stopped: it takes no more.
        """
        with self._lock:
            if self.fault:
                raise _unavailable(self.fault)
            for ticket in runs:
                self._inbox.put(ticket)

    def close(self, within_s: float = CLOSE_TIMEOUT_S) -> None:
        """Finish what was submitted, and end. A module that does not come back in time is left behind."""
        self._inbox.put(None)
        self._thread.join(within_s)
        if self._thread.is_alive():
            LOG.error("a module does not answer: the engine is left behind")
        else:
            self._sandbox.close()

    def _thread_main(self) -> None:
        fault = "the server is stopping"
        try:
            with contextlib.suppress(ProgramFailure):  # where no worker can be made, each program that needs it says so
                self._sandbox.pid  # noqa: B018  the worker begins before the first program comes
            self._work(Scheduler(self._context))
        except BaseException as error:  # those who wait must hear of it, whatever it is
            fault = f"the engine has ended: {type(error).__name__}: {error}"
            LOG.exception(fault)
        finally:
            with self._lock:
                self.fault = fault
            left = list(self._running.values())
            while not self._inbox.empty():
                if (ticket := self._inbox.get()) is not None:
                    left.append(ticket)
            _set_results([(ticket, _unavailable(fault)) for ticket in left])

    def _work(self, scheduler: Scheduler) -> None:
        recent, took, going = deque([0], RECENT_BATCHES), 0.0, True
        while going or scheduler.active:
            if going:
                window = 1 if not self.settings.batching else FAST_BATCH_WINDOW if took < FAST_BATCH_S else self._context.window
                going = self._admit_requests(
                    scheduler, window, max(recent), min(MAX_WAIT_SHARE * took, self.settings.max_wait_ms / 1000)
                )
            recent.append(scheduler.active)
            began = monotonic()
            scheduler.run_next_batch()
            last = monotonic() - began
            took = took + (last - took) / RECENT_BATCHES if took else last
            self._resolve_futures(scheduler)

    def _admit_requests(self, scheduler: Scheduler, window: int, recent_active: int, max_wait_s: float) -> bool:
        """Admit those who wait, up to ``window`` under way; then, where fewer than ``recent_active`` are, those who come within
        ``max_wait_s`` seconds; where none is, wait for one. False: no more will come."""
        until: float | None = None
        while scheduler.active < window and not scheduler.full:
            if not scheduler.active:
                wait = None
            elif scheduler.active < recent_active:
                until = until or monotonic() + max_wait_s
                wait = max(0.0, until - monotonic())
            else:
                wait = 0.0
            try:
                ticket = self._inbox.get(timeout=wait) if wait != 0.0 else self._inbox.get_nowait()
            except Empty:
                break
            if ticket is None:
                return False
            self._admit(scheduler, ticket)
            self._resolve_futures(scheduler)  # a program may end without a batch, or not be one
        return True

    def _admit(self, scheduler: Scheduler, pending: PendingRun) -> None:
        number, pending.started_at = next(self._numbers), perf_counter()
        self._running[number] = pending
        try:
            found = self._parsers[pending.dsl].try_parse(pending.text, tuple(pending.state))
            if isinstance(found, viper.ViperProgram):
                found = found.for_client(pending.client)
        except Exception as error:
            found = to_failure(error, "reading the program")
        program = found if isinstance(found, ProgramFailure) else CancellableProgram(found, pending)
        scheduler.submit(Job(str(number), program, pending.state, pending.question), number)

    def _resolve_futures(self, scheduler: Scheduler) -> None:
        now = perf_counter()
        done = [(self._running.pop(number), trace) for number, trace in scheduler.finished]
        scheduler.finished.clear()
        for ticket, _ in done:
            ticket.finished_at = now
        _set_results(done)


def _unavailable(fault: str) -> ServiceUnavailable:
    return ServiceUnavailable(fault, remedy="ask another server, or this one when it has started again; its log says more")


def _set_results(results: Sequence[tuple[PendingRun, Trace | ServiceUnavailable]]) -> None:
    """Set the answers, each in its own event loop."""

    def settle(pairs: Sequence[tuple[PendingRun, Trace | ServiceUnavailable]]) -> None:
        for ticket, answer in pairs:
            if ticket.future.done():
                continue
            if isinstance(answer, Trace):
                ticket.future.set_result(answer)
            else:
                ticket.future.set_exception(answer)

    for loop, pairs in groupby(results, lambda pair: pair[0].future.get_loop()):
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(settle, list(pairs))


class CancellableProgram:
    """A program that ends at its next step when nobody waits for its ticket any more."""

    def __init__(self, program: Program, pending: PendingRun):
        self.dsl, self.text, self.hash, self.inputs = program.dsl, program.text, program.hash, program.inputs
        self._start, self._pending = program.start, pending

    def start(self, state: Mapping[str, Value]) -> ProgramRun:
        """As the program's own."""
        return _CancellableRun(self._start(state), self._pending)


class _CancellableRun(Generator[Call | list[Call], Value, Value]):
    def __init__(self, steps: ProgramRun, pending: PendingRun):
        self._steps, self._send, self._pending = steps, steps.send, pending
        self.post = getattr(steps, "post", None)

    def send(self, value: Value) -> Call | list[Call]:
        if self._pending.cancelled:
            raise TimeoutFailure("nobody waits for the answer any more")
        return self._send(value)

    def throw(self, *error: Any) -> Any:
        return self._steps.throw(*error)

    def close(self) -> None:
        self._steps.close()


class InstrumentedModule:
    """A module whose batches are measured."""

    def __init__(self, module: Module, metrics: Metrics):
        self.name, self.version, self.signature = module.name, module.version, module.signature
        self.symbolic, self.batch_size = module.symbolic, module.batch_size
        self._run, self._metrics = module.run, metrics

    def run(self, calls: Sequence[Call]) -> ModuleOutputs:
        """As the module's own."""
        started = perf_counter()
        answers = self._run(calls)
        self._metrics.batch(self.name, len(calls), perf_counter() - started)
        return answers
