"""How fast programs run: batched, one call at a time, and the ceiling that no program engine can pass."""

from __future__ import annotations

import contextlib
import gc
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from tutelage.errors import InputError
from tutelage.programs import viper, visprog
from tutelage.programs.languages import parser_for
from tutelage.programs.run_context import Job, RunContext
from tutelage.programs.scheduler import stream
from tutelage.programs.trace import Trace
from tutelage.programs.types import Call, Module, ModuleOutputs, Value

if TYPE_CHECKING:
    from tutelage.modules.visual_module import VisualModule
    from tutelage.sdvp.questions import Question

SIZES = (8, 16, 32, 64, 128, 256, 512)
"""Batch sizes tried for the ceiling."""

Item = tuple[str, Mapping[str, Value]]
"""A program's text, and the images it runs on."""

Clock = Callable[[], float]

ONE, PAIRS = 1876, 124
"""Programs over one image, five an image, and over two images, one an image: 2,000 over 500."""


def bench(
    dsl: str = "visprog",
    *,
    device: str = "cpu",
    seed: int = 0,
    rounds: int = 5,
    smoke: bool = False,
    progress: Callable[[float, float], None] = lambda done, total: None,
) -> dict[str, Any]:
    """What :func:`measure` finds for 2,000 programs of synthetic scenes over 500 images of 48x48 with the seed's embedded
    modules, on one thread.

    For ViperGPT programs also ``share_of_visprog``, their rate over that of the VisProg programs of the same questions, and
    what :mod:`tutelage.bench.viper` finds: ``overhead``, ``accelerator``, ``smolagents``. CPU seconds are counted where all
    work is done in this process, else wall time. ``smoke`` measures 60 programs over modules that know nothing.

    Raises:
        InputError: there is no such device.
    """
    import torch

    from tutelage import storage
    from tutelage.bench import viper as viper_bench
    from tutelage.modules.symbolic import symbolic_modules
    from tutelage.sdvp import toy_modules

    if device != "cpu" and not torch.cuda.is_available():
        raise InputError(f"torch finds no {device} here", where="--device", remedy="measure on the cpu")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        networks = toy_modules.generalists(seed, storage.ContentStore(storage.cache_home() / "modules"), smoke)
        modules: dict[str, Module] = {**symbolic_modules()}
        modules |= {name: module if device == "cpu" else on_device(module, device) for name, module in networks.items()}
        questions = synthetic_questions(seed, 54, 6) if smoke else synthetic_questions(seed, ONE, PAIRS)
        items = {name: [(question.programs[name], question.images) for question in questions] for name in ("visprog", dsl)}
        clock = time.process_time if dsl == "visprog" and device == "cpu" else time.perf_counter
        result = measure(items[dsl], modules, dsl=dsl, rounds=rounds, clock=clock, progress=progress)
        if dsl == "viper":
            pairs = [[_run(items[name], modules, clock, name)[1] for name in ("visprog", "viper")] for _ in range(rounds)]
            result["share_of_visprog"] = median(lines / python for lines, python in pairs)
            result["overhead"] = viper_bench.overhead(items["viper"][:500], modules, rounds)
            result["accelerator"] = viper_bench.accelerated(items["viper"], items["visprog"], modules)
            result["smolagents"] = viper_bench.beside_smolagents(items["viper"], modules)
    finally:
        torch.set_num_threads(threads)
    return {**result, "dsl": dsl, "device": device, "smoke": smoke}


def synthetic_questions(seed: int, one: int, pairs: int) -> list[Question]:
    """``one`` questions about one image, five an image, and ``pairs`` statements about two."""
    from tutelage.sdvp.study.questions import questions_of

    found = questions_of("b_gqa", seed, "report", one + one // 4, ("visprog", "viper"))
    number = Counter(question.image_id for question in found)
    full = [question for question in found if number[question.image_id] == 5]
    return [*full[:one], *questions_of("b_nlvr", seed, "report", pairs, ("visprog", "viper"))]


def on_device(module: VisualModule, device: str) -> VisualModule:
    """``module`` with its network on ``device``: batches go there, heads come back."""
    from torch import Tensor, nn

    class Elsewhere(nn.Module):
        def __init__(self, network: nn.Module):
            super().__init__()
            self.network = network.to(device)

        def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
            heads = self.network({name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()})
            return {name: head.cpu() for name, head in heads.items()}

    return module.with_network(Elsewhere(module.copy_network()))


def measure(
    programs: Sequence[Item],
    modules: Mapping[str, Module],
    *,
    dsl: str = "visprog",
    rounds: int = 5,
    clock: Clock = time.process_time,
    progress: Callable[[float, float], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Programs a second of ``programs`` over ``modules``, in three ways, and our own time a step.

    - batched: the scheduler as it is used, every text parsed once;
    - one at a time: the same scheduler, batches of 1;
    - ceiling: the same calls, grouped by module beforehand, at their best batch size, no programs. The calls of modules with
      networks alone give ``networks_alone_programs_per_s``.

    Result caches are off, and equal calls are all asked (a module may still share work inside a batch). Parsing is
    counted in the first two. Our own time is what a batched run takes beyond reading the text and beyond the modules:
    checking, scheduling, tracing. The ways are interleaved over ``rounds``, and medians given; what the process held
    before is kept from the garbage collector. ``clock`` gives CPU seconds; give ``time.perf_counter`` where modules
    compute elsewhere.

    Returns:
        {batched_programs_per_s, one_at_a_time_programs_per_s, ceiling_programs_per_s, networks_alone_programs_per_s, speedup,
        share_of_ceiling, own_us_per_step}, and how it was measured.

    Raises:
        InputError: no programs, or one of them fails: a failing program would be a fast one.
    """
    traces, _ = _run(programs, modules, clock, dsl)
    for trace in traces:
        if trace.status != "ok":
            raise InputError(f"the program fails ({trace.status}): {trace.error}", where=f"program {trace.id}")
    if not traces:
        raise InputError("no programs to measure")
    calls = _calls(traces)
    networks = [name for name in calls if not modules[name].symbolic]
    symbolic = {name: module_calls for name, module_calls in calls.items() if name not in networks}
    best = {name: _best_size(modules[name], module_calls, clock) for name, module_calls in calls.items()}
    ways: dict[str, Callable[[], float]] = {
        "batched": lambda: _run(programs, modules, clock, dsl)[1],
        "one_at_a_time": lambda: _run(programs, modules, clock, dsl, batch_size=1)[1],
        "networks": lambda: sum(_answer(modules[name], calls[name], best[name], clock) for name in networks),
        "symbolic": lambda: sum(_answer(modules[name], calls[name], best[name], clock) for name in symbolic),
        "own": lambda: _overhead_seconds(programs, modules, symbolic, clock, dsl),
    }
    seconds: dict[str, list[float]] = {name: [] for name in (*ways, "ceiling")}
    with _settled_heap():
        for done in range(rounds):
            for name, way in ways.items():
                gc.collect()
                seconds[name].append(way())
            seconds["ceiling"].append(seconds["networks"][-1] + seconds["symbolic"][-1])
            progress(done + 1, rounds)
    middle = {name: median(values) for name, values in seconds.items()}
    steps = sum(len(trace.steps) for trace in traces)
    shares = [ceiling / batched for ceiling, batched in zip(seconds["ceiling"], seconds["batched"], strict=True)]
    speedups = [single / batched for single, batched in zip(seconds["one_at_a_time"], seconds["batched"], strict=True)]
    return {
        "batched_programs_per_s": len(programs) / middle["batched"],
        "one_at_a_time_programs_per_s": len(programs) / middle["one_at_a_time"],
        "ceiling_programs_per_s": len(programs) / middle["ceiling"],
        "networks_alone_programs_per_s": len(programs) / middle["networks"] if networks else None,
        "speedup": median(speedups),
        "share_of_ceiling": median(shares),
        "own_us_per_step": middle["own"] * 1e6 / steps,
        "programs": len(programs),
        "distinct_texts": len({text for text, _ in programs}),
        "images": len({image.key for _, state in programs for image in state.values()}),
        "steps": steps,
        "network_calls": {name: len(calls[name]) for name in networks},
        "best_batch_sizes": best,
        "batch_sizes": {name: modules[name].batch_size for name in networks},
        "rounds": rounds,
        "seconds": seconds,
        "clock": getattr(clock, "__name__", "clock"),
        "objects_between_collections": gc.get_threshold()[0],
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
    programs: Sequence[Item], modules: Mapping[str, Module], clock: Clock, dsl: str, batch_size: int | None = None
) -> tuple[list[Trace], float]:
    """Traces, and seconds for everything: parsing, checking, scheduling, modules, traces."""
    context = RunContext(modules, batch_size=batch_size, deduplicate=False)
    parser = parser_for(dsl, context.signatures)
    started = clock()
    traces = list(stream(_jobs(programs, parser), context))
    return traces, clock() - started


def _jobs(programs: Sequence[Item], parser: visprog.Parser | viper.Parser) -> Iterator[Job]:
    for number, (text, state) in enumerate(programs):
        yield Job(str(number), parser.try_parse(text, tuple(state)), state)


def _calls(traces: Iterable[Trace]) -> dict[str, list[Call]]:
    calls: dict[str, list[Call]] = {}
    for trace in traces:
        for record in trace.steps:
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

    def run(self, calls: Sequence[Call]) -> ModuleOutputs:
        started = self._clock()
        answers = self._run(calls)
        self.seconds += self._clock() - started
        return answers


def _overhead_seconds(
    programs: Sequence[Item], modules: Mapping[str, Module], symbolic: Mapping[str, Sequence[Call]], clock: Clock, dsl: str
) -> float:
    """Seconds of checking, scheduling and tracing: reading the text and the modules' own time are taken away.

    Modules with networks are timed as they run; the ``symbolic`` calls, of which one takes no longer than a look at the clock,
    in a run of their own. A text met again costs what the parser's memory costs, as in use; so does a line. ViperGPT programs
    are read and checked in one go: neither is counted, but running them is.
    """
    timed = {name: _Timed(module, clock) for name, module in modules.items() if not module.symbolic}
    _, total = _run(programs, {**modules, **timed}, clock, dsl)
    total -= sum(_answer(modules[name], module_calls, 1, clock) for name, module_calls in symbolic.items())
    texts = dict.fromkeys(text for text, _ in programs)
    if dsl == "visprog":
        lines: visprog.Lines = {}
        started = clock()
        for text in texts:
            visprog.read(text, lines)
    else:
        parser = parser_for(dsl, {name: module.signature for name, module in modules.items()})
        started = clock()
        for text in texts:
            parser.try_parse(text)
    return total - (clock() - started) - sum(module.seconds for module in timed.values())
