"""How fast programs run: batched, one call at a time, and the ceiling that no program engine can pass."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from tutelage.errors import InputError
from tutelage.programs.language import Answers, Call, Module, Value
from tutelage.programs.scheduler import Context, Job, stream
from tutelage.programs.trace import Trace
from tutelage.programs.visprog import Lines, Parser, read

SIZES = (8, 16, 32, 64, 128, 256, 512)
"""Batch sizes tried for the ceiling."""

Item = tuple[str, Mapping[str, Value]]
"""A program's text, and the images it runs on."""

Clock = Callable[[], float]


def measure(
    programs: Sequence[Item], modules: Mapping[str, Module], *, rounds: int = 5, clock: Clock = time.process_time
) -> dict[str, Any]:
    """Programs a second of ``programs`` over ``modules``, in three ways, and our own time a step.

    - batched: the scheduler as it is used, every text parsed once;
    - one at a time: the same scheduler, batches of 1;
    - ceiling: the same calls of the modules with networks, grouped beforehand, at their best batch size, no programs.

    Result caches are off, and equal calls are all asked (a module may still share work inside a batch). Parsing is
    counted in the first two. Our own time is what a batched run takes beyond reading the text and beyond the modules:
    checking, scheduling, tracing. The ways are interleaved over ``rounds``, and medians given; what the process held
    before is kept from the garbage collector. ``clock`` gives CPU seconds; give ``time.perf_counter`` where modules
    compute elsewhere.

    Returns:
        {batched_programs_per_s, one_at_a_time_programs_per_s, ceiling_programs_per_s, speedup, share_of_ceiling,
        own_us_per_step}, and how it was measured.

    Raises:
        InputError: no programs, or one of them fails: a failing program would be a fast one.
    """
    traces, _ = _run(programs, modules, clock)
    for trace in traces:
        if trace.status != "ok":
            raise InputError(f"the program fails ({trace.status}): {trace.error}", where=f"program {trace.id}")
    if not traces:
        raise InputError("no programs to measure")
    calls = _network_calls(traces, modules)
    best = {name: _best_size(modules[name], asked, clock) for name, asked in calls.items()}
    ways: dict[str, Callable[[], float]] = {
        "batched": lambda: _run(programs, modules, clock)[1],
        "one_at_a_time": lambda: _run(programs, modules, clock, batch_size=1)[1],
        "ceiling": lambda: sum(_answer(modules[name], calls[name], best[name], clock) for name in calls),
        "own": lambda: _own_seconds(programs, modules, clock),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with _settled_heap():
        for _ in range(rounds):
            for name, way in ways.items():
                gc.collect()
                seconds[name].append(way())
    middle = {name: median(values) for name, values in seconds.items()}
    steps = sum(len(trace.steps) for trace in traces)
    shares = [ceiling / batched for ceiling, batched in zip(seconds["ceiling"], seconds["batched"], strict=True)]
    speedups = [single / batched for single, batched in zip(seconds["one_at_a_time"], seconds["batched"], strict=True)]
    return {
        "batched_programs_per_s": len(programs) / middle["batched"],
        "one_at_a_time_programs_per_s": len(programs) / middle["one_at_a_time"],
        "ceiling_programs_per_s": len(programs) / middle["ceiling"] if calls else None,
        "speedup": median(speedups),
        "share_of_ceiling": median(shares),
        "own_us_per_step": middle["own"] * 1e6 / steps,
        "programs": len(programs),
        "distinct_texts": len({text for text, _ in programs}),
        "images": len({image.key for _, state in programs for image in state.values()}),
        "steps": steps,
        "network_calls": {name: len(asked) for name, asked in calls.items()},
        "best_batch_sizes": best,
        "batch_sizes": {name: modules[name].batch_size for name in calls},
        "rounds": rounds,
        "seconds": seconds,
        "clock": getattr(clock, "__name__", "clock"),
    }


@contextlib.contextmanager
def _settled_heap() -> Iterator[None]:
    """Keep what stands now from the garbage collector: sweeping the libraries' heap is no work of ours or theirs."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _run(
    programs: Sequence[Item], modules: Mapping[str, Module], clock: Clock, batch_size: int | None = None
) -> tuple[list[Trace], float]:
    """Traces, and seconds for everything: parsing, checking, scheduling, modules, traces."""
    context = Context(modules, batch_size=batch_size, deduplicate=False)
    parser = Parser(context.signatures)
    started = clock()
    traces = list(stream(_jobs(programs, parser), context))
    return traces, clock() - started


def _jobs(programs: Sequence[Item], parser: Parser) -> Iterator[Job]:
    for number, (text, state) in enumerate(programs):
        yield Job(str(number), parser.try_parse(text, tuple(state)), state)


def _network_calls(traces: Iterable[Trace], modules: Mapping[str, Module]) -> dict[str, list[Call]]:
    calls: dict[str, list[Call]] = {}
    for trace in traces:
        for record in trace.steps:
            if not modules[record.module].symbolic:
                calls.setdefault(record.module, []).append(Call(record.module, record.args, record.step))
    return calls


def _best_size(module: Module, calls: Sequence[Call], clock: Clock) -> int:
    """The batch size that answers most calls a second, on at most 512 of them, best of two."""
    sample = calls[: SIZES[-1]]
    timed = {size: min(_answer(module, sample, size, clock) for _ in range(2)) for size in SIZES}
    return min(timed, key=timed.__getitem__)


def _answer(module: Module, calls: Sequence[Call], size: int, clock: Clock) -> float:
    started = clock()
    for first in range(0, len(calls), size):
        module.run(calls[first : first + size])
    return clock() - started


class _Timed:
    """A module that adds up the time spent in it."""

    def __init__(self, module: Module, clock: Clock):
        self.name, self.version, self.signature = module.name, module.version, module.signature
        self.symbolic, self.batch_size = module.symbolic, module.batch_size
        self.seconds = 0.0
        self._run, self._clock = module.run, clock

    def run(self, calls: Sequence[Call]) -> Answers:
        started = self._clock()
        answers = self._run(calls)
        self.seconds += self._clock() - started
        return answers


def _own_seconds(programs: Sequence[Item], modules: Mapping[str, Module], clock: Clock) -> float:
    """Seconds of checking, scheduling and tracing: reading the text and the modules' own time are taken away.

    A text met again costs what the parser's memory costs, as in use; so does a line.
    """
    timed = {name: _Timed(module, clock) for name, module in modules.items()}
    _, total = _run(programs, timed, clock)
    lines: Lines = {}
    started = clock()
    for text in {text for text, _ in programs}:
        read(text, lines)
    return total - (clock() - started) - sum(module.seconds for module in timed.values())
