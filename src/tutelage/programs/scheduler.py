"""Runs many programs at once: whatever call each is waiting for, calls to one module are answered as one batch.

A program is a generator that yields its next call and is sent the value; it may also yield a list of calls that do not
need one another, and is sent the list of their values: so calls about one image meet in one batch. Symbolic modules
answer at once; calls to the others wait until their module's batch is full, or until nothing else can go on.
"""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count, islice
from time import perf_counter
from typing import Final

from tutelage.errors import did_you_mean
from tutelage.programs.lanes import ModuleQueue, Result, results_of, run_batch, to_failure, wrong_type
from tutelage.programs.metering import FREE, Meter
from tutelage.programs.result_cache import CachedResult
from tutelage.programs.run_context import USE_MODULE, Job, RunContext
from tutelage.programs.serialization import input_key
from tutelage.programs.trace import RecordOrigin, Trace
from tutelage.programs.types import (
    Call,
    LimitExceeded,
    ProgramFailure,
    ProgramRun,
    UnknownModule,
    Value,
)

AHEAD = 512
"""Programs may go on by themselves, in their sandbox, while a module answers a batch: so many at least, if they are there."""

COLLECT_AFTER = 50_000
"""New objects between two looks of the garbage collector. Thousands of programs are under way at once, and none of them is
garbage: at Python's own 700 it looks at each again and again, for 4 % of the time of a run of VisProg programs."""


def run(jobs: Iterable[Job], context: RunContext) -> list[Trace]:
    """The traces of ``jobs``, in their order."""
    return list(stream(jobs, context))


def stream(jobs: Iterable[Job], context: RunContext) -> Iterator[Trace]:
    """The traces of ``jobs``, in their order, in memory bounded by ``context.window``: ``jobs`` may be endless.

    Until the last trace is given out, or the iterator is closed, the garbage collector comes after :data:`COLLECT_AFTER` new
    objects, not more often.

    Raises:
        StorageError: the result cache cannot be written.
    """
    with _rare_collections():
        yield from _stream(jobs, context)


@contextmanager
def _rare_collections() -> Iterator[None]:
    before = gc.get_threshold()
    if 0 < before[0] < COLLECT_AFTER:
        gc.set_threshold(COLLECT_AFTER, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _stream(jobs: Iterable[Job], context: RunContext) -> Iterator[Trace]:
    scheduler = Scheduler(context)
    source, more = iter(jobs), True
    done: dict[int, Trace] = {}
    first = after = 0  # traces [first, after) are admitted and not yet given out
    while more or scheduler.active or done:
        # A finished program waits here for an earlier one: room for many of them, so that batches stay full.
        while more and scheduler.active < context.window and after - first < 16 * context.window and not scheduler.full:
            job = next(source, None)
            if job is None:
                more = False
            else:
                scheduler.submit(job, after)
                after += 1
        scheduler.run_next_batch()
        done.update(scheduler.finished)
        scheduler.finished.clear()
        while first in done:
            yield done.pop(first)
            first += 1


@dataclass(slots=True)
class _Run:
    """A program under way: ``n_calls`` calls are answered; where it waits for several at once, these are its ``calls``, with
    their ``answers``, of which some are ``missing``."""

    job: Job
    number: int
    trace: Trace
    steps: ProgramRun
    post: Callable[[Value], None] | None = None
    n_calls: int = 0
    calls: Sequence[Call] = ()
    answers: list[Value] | None = None
    missing: int = 0
    meter: Meter = field(default_factory=Meter)


class _Waiting:
    """What stands for an answer that comes with a batch."""


WAITING: Final = _Waiting()


class Scheduler:
    """The engine behind :func:`stream`, for those who bring programs as they come: admit, answer, look at ``finished``.

    ``finished`` holds (number, trace) as programs end; ``active`` counts those under way; ``full`` tells that there is
    enough to do: some module's batch is full, and enough programs go on meanwhile where they can.
    """

    def __init__(self, context: RunContext):
        self.context = context
        self.active = 0
        self.finished: list[tuple[int, Trace]] = []
        self._full = self._posts = False
        self._ready: deque[tuple[_Run, Value]] = deque()
        self._keys = count()
        self._keyed = context.cache is not None or context.deduplicate
        limit = context.batch_size or 1 << 30
        self._queues = {
            name: ModuleQueue(module, module.version, 0 if module.symbolic else max(1, min(module.batch_size, limit)))
            for name, module in context.modules.items()
        }

    @property
    def full(self) -> bool:
        """Whether :meth:`run_next_batch` should come before more programs do."""
        return len(self._ready) >= AHEAD if self._posts else self._full

    def submit(self, job: Job, number: int = 0) -> None:
        """Start ``job`` and take it as far as it goes without a batch."""
        program = job.program
        self.active += 1
        if isinstance(program, ProgramFailure):
            origin = RecordOrigin(job.id, job.task, job.stage)
            self._fail(_Run(job, number, Trace(job.id, origin=origin), _no_calls()), program)
            return
        origin = RecordOrigin(job.id, job.task, job.stage, program.dsl, program.hash)
        run = _Run(job, number, Trace(job.id, origin=origin), _no_calls())
        try:
            run.steps = program.start(job.state)
            run.post = getattr(run.steps, "post", None)
        except Exception as error:
            self._fail(run, to_failure(error, "the program"))
        else:
            self._resume(run, None)

    def run_next_batch(self) -> None:
        """Run one batch of the module whose batch is fullest, if it is full or nothing else can go on, and take further
        the programs that waited for it. Those that went on by themselves meanwhile come after it, until a batch is full."""
        ready = len(self._ready)
        lanes = [lane for lane in self._queues.values() if lane.waiting]
        if lanes and (self._full or not ready):
            self._run_batch(max(lanes, key=lambda lane: len(lane.waiting) / lane.size))
            self._full = any(len(lane.waiting) >= lane.size for lane in lanes)
        while ready and not self._full:
            self._advance(*self._ready.popleft())
            ready -= 1

    def _run_batch(self, queue: ModuleQueue) -> None:
        """Run one batch of a module."""
        batch = [queue.waiting.pop(name) for name in list(islice(queue.waiting, queue.size))]
        started = perf_counter()
        results = run_batch(queue.module, [pending[0] for pending in batch])
        ms = (perf_counter() - started) * 1000 / len(batch)
        cache = self.context.cache
        for (call, key, run, position, others), result in zip(batch, results, strict=True):
            if cache is not None and key is not None and not isinstance(result[0], ProgramFailure):
                cache.put(queue.module, key, CachedResult(*result))
            self._deliver(run, call, position, queue.version, result, ms)
            for run, call, position in others or ():
                self._deliver(run, call, position, queue.version, result, ms)
        if cache is not None:
            cache.commit()

    def _deliver(self, run: _Run, call: Call, position: int | None, version: str, result: Result, ms: float) -> None:
        """Give a program the answer of a batch to ``call``, and take it further where it waits for no other."""
        answer = _write(run, call, run.n_calls + (position or 0), version, result, ms)
        if position is None:
            run.n_calls += 1
            if isinstance(answer, ProgramFailure):
                self._fail(run, answer, call)
            else:
                self._resume(run, answer)
            return
        assert run.answers is not None
        run.answers[position] = answer
        run.missing -= 1
        if not run.missing and (answers := self._collect_answers(run)) is not None:
            self._resume(run, answers)

    def _resume(self, run: _Run, reply: Value) -> None:
        """Send ``reply`` into the program, and take it further: later, where it can go on by itself until then."""
        if run.post is None:
            self._advance(run, reply)
            return
        try:
            run.post(reply)
        except Exception as error:
            self._fail(run, to_failure(error, "the program"))
        else:
            self._posts = True
            self._ready.append((run, reply))

    def _collect_answers(self, run: _Run) -> list[Value] | None:
        """What a program that asked several calls is sent, all answers being there; None where one is a failure, with which
        the program ends."""
        calls, answers = run.calls, run.answers
        assert answers is not None
        run.n_calls += len(calls)
        run.calls, run.answers = (), None
        for call, answer in zip(calls, answers, strict=True):
            if isinstance(answer, ProgramFailure):
                self._fail(run, answer, call)
                return None
        return answers

    def _advance(self, run: _Run, reply: Value) -> None:
        """Send ``reply`` into the program and take its next calls, until it waits for a batch or ends."""
        send = run.steps.send
        while True:
            try:
                request = send(reply)
            except StopIteration as stop:
                self._finish(run, stop.value)
                return
            except Exception as error:
                self._fail(run, to_failure(error, "the program"))
                return
            if isinstance(request, Call):
                reply = self._ask(run, request, run.n_calls, None)
                if reply is WAITING:
                    return
                run.n_calls += 1
                if isinstance(reply, ProgramFailure):
                    self._fail(run, reply, request)
                    return
                continue
            run.calls, run.trace.ordered = request, False
            run.answers = [self._ask(run, call, run.n_calls + position, position) for position, call in enumerate(request)]
            run.missing = sum(answer is WAITING for answer in run.answers)
            if run.missing:
                return
            reply = self._collect_answers(run)
            if reply is None:
                return

    def _ask(self, run: _Run, call: Call, number: int, position: int | None) -> Value:
        """The answer to ``call``, or ``WAITING`` where it comes with a batch. ``position``: where the call stands among
        several that were asked at once."""
        context, queue = self.context, self._queues.get(call.module)
        if queue is None:
            remedy = did_you_mean(call.module, list(self._queues))
            return _write(run, call, number, "", (UnknownModule(f"unknown module {call.module!r}", remedy=remedy), None, False))
        if number >= context.max_calls:
            limit = LimitExceeded(f"more than {context.max_calls:,} module calls")
            return _write(run, call, number, queue.version, (limit, None, False))
        if context.substitute is not None and (value := context.substitute(run.job, call, number)) is not USE_MODULE:
            return _write(run, call, number, queue.version, (value, None, False), substituted=True)
        try:
            run.meter.charge_call(call)
        except LimitExceeded as failure:  # written down without its arguments: they are too much to keep
            return _write(run, Call(call.module, {}, call.step), number, queue.version, (failure, None, False))
        if not queue.size:
            return _run_symbolic(run, queue, call, number)
        key = name = None
        if self._keyed:
            key = input_key(call.args)
            if context.cache is not None and key is not None and (found := context.cache.get(queue.module, key)) is not None:
                return _write(run, call, number, queue.version, found)
            if key is not None and context.deduplicate:
                name = key
                if (same := queue.waiting.get(key)) is not None:
                    if same[4] is None:
                        queue.waiting[key] = (*same[:4], [(run, call, position)])
                    else:
                        same[4].append((run, call, position))
                    return WAITING
        waiting = queue.waiting
        waiting[next(self._keys) if name is None else name] = (call, key, run, position, None)
        if len(waiting) >= queue.size:
            self._full = True
        return WAITING

    def _finish(self, run: _Run, value: Value) -> None:
        try:
            run.meter.charge(value)
        except LimitExceeded as failure:
            self._fail(run, failure)
            return
        run.trace.answer = value
        self.active -= 1
        self.finished.append((run.number, run.trace))

    def _fail(self, run: _Run, failure: ProgramFailure, call: Call | None = None) -> None:
        """End the program with its failure; under a fallback policy, ask the fallback's call in its place."""
        run.steps.close()
        trace = run.trace
        text = str(failure)
        if call is not None and failure.where is None:
            text = f"step {call.step}, {call.module}: {text}" if call.step >= 0 else f"fallback, {call.module}: {text}"
        trace.error = text if trace.error is None else f"{trace.error}\n{text}"
        if trace.status != "ok":  # the fallback itself failed
            self._finish(run, None)
            return
        trace.status = failure.kind
        if self.context.fallback is None:
            self._finish(run, None)
            return
        trace.fallback, run.meter = True, Meter()
        run.steps = _single_call(self.context.fallback(run.job))
        self._advance(run, None)


def _run_symbolic(run: _Run, queue: ModuleQueue, call: Call, number: int) -> Value:
    """The answer of a module that needs no batch, metered and written down."""
    started = perf_counter()
    distribution, unknown = None, False
    try:
        if queue.makes_image:
            run.meter.reserve_image(call)
        if queue.run_one is not None:
            value = queue.run_one(call)
        else:
            ((value, distribution, unknown),) = results_of(queue.module, (call,))
        if queue.has_type is not None and not queue.has_type(value) and not isinstance(value, ProgramFailure):
            raise wrong_type(queue.module, value)
        if type(value) not in FREE:
            run.meter.charge(value)
    except Exception as error:
        value = to_failure(error, queue.module.name)
    ms = (perf_counter() - started) * 1000
    step, module, args = call.step, call.module, call.args
    run.trace.log.extend((step, module, args, number, queue.version, value, distribution, unknown, ms, False))
    return value[:] if type(value) is list else value


def _write(
    run: _Run, call: Call, number: int, version: str, result: Result, ms: float = 0.0, *, substituted: bool = False
) -> Value:
    """Write an answer down. Returns what the program gets of it."""
    value, distribution, unknown = result
    if type(value) not in FREE:
        try:
            run.meter.charge(value)
        except LimitExceeded as failure:
            value, distribution = failure, None
    step, module, args = call.step, call.module, call.args
    run.trace.log.extend((step, module, args, number, version, value, distribution, unknown, ms, substituted))
    # A list is the program's own copy: what it does to it must change neither the record nor another program.
    return value[:] if type(value) is list else value


def _single_call(call: Call) -> Generator[Call, Value, Value]:
    return (yield call)


def _no_calls() -> Generator[Call, Value, Value]:
    return
    yield
