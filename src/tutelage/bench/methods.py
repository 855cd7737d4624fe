"""What a step of each method costs beside its student's own step, and beside the passes of the networks that it makes."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from tutelage import registry
from tutelage.bench.distill_steps import StepVariant, measure
from tutelage.distillation.data import ReplayableData, TensorData, map_tree
from tutelage.distillation.data.subset import SubsetData
from tutelage.distillation.method import Method
from tutelage.distillation.outputs import forward_heads
from tutelage.distillation.teacher import BlackBoxTeacher
from tutelage.distillation.trainer import Trainer
from tutelage.errors import InputError, did_you_mean

STEP, OWN, PASSES = "step", "student's own step", "passes"
LARGE_MS = 50.0
"""What the passes of a large step take at least, in ms: then Python's own time, a millisecond or less, hardly counts."""
MOST_SAMPLES = 2**16
WIDTH = 8
"""How many times as wide the networks of large steps are."""


class Pass(NamedTuple):
    """One call of a whole network during a step; ``tangents`` are the positions of the arguments along which the step took a
    derivative in forward mode."""

    network: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    graded: bool
    train: bool
    tangents: tuple[int, ...]


def bench(
    rounds: int = 7,
    steps: int = 5,
    systems: Sequence[str] | None = None,
    progress: Callable[[float, float], object] = lambda done, total: None,
) -> dict[str, Any]:
    """``{rows, clock, threads, rounds}``; two rows a system that trains a student: its tiny job as it is, where Python's own
    time counts, and the same in batches so large that the passes take 50 ms or more, where the method's cost is left. There
    the networks are eight times as wide, and as deep as published ones, where the system's ``tiny_job`` takes a ``width``:
    beside the passes of a network of four channels any comparison of features is dear, and nobody trains such networks.

    A row is ``{system, size, width, batch, step_ms, own_ms, passes_ms, over_own, over_passes, student_passes, teacher_passes}``.
    ``size``: ``tiny`` or ``large``. ``own_ms``: fetching the batch, one forward and backward pass of the student and the
    optimiser's step. ``passes_ms``: the same with every pass that the method's step makes, of student, teacher and the method's
    own networks (a projection, a decoder, a copy of the student), on the same inputs, with derivatives in forward mode where the
    method takes them; None where the method calls parts of the student alone. ``over_own`` and ``over_passes`` are medians of the
    rounds' own ratios: the ways take turns, CPU time, one thread.

    Raises:
        InputError: no such system, or one that trains no student.
    """
    known = {name: entry for name, entry in registry.systems().items() if not entry.is_tool}
    wanted = list(systems or known)
    for name in wanted:
        if name not in known:
            raise InputError(f"no system {name!r} that trains a student", where="--system", remedy=did_you_mean(name, list(known)))
    threads, rows = torch.get_num_threads(), []
    torch.set_num_threads(1)
    try:
        for number, name in enumerate(wanted):
            progress(number, len(wanted))
            tiny = row(name, rounds, steps)
            rows += [tiny, large_row(tiny, rounds, steps)]
    finally:
        torch.set_num_threads(threads)
    progress(len(wanted), len(wanted))
    return {"rows": rows, "clock": "CPU time", "threads": 1, "rounds": rounds}


def large_row(tiny: Mapping[str, Any], rounds: int, steps: int) -> dict[str, Any]:
    """The row of the tiny one's system in batches whose passes take :data:`LARGE_MS` or more, or of :data:`MOST_SAMPLES`, and
    :data:`WIDTH` times as wide where its job can be."""
    batch_size, make = tiny["batch"], registry.find(tiny["system"]).target.tiny_job
    found: dict[str, Any] = dict(tiny)
    width = 1
    if "width" in inspect.signature(make).parameters:
        width = WIDTH
        found = row(tiny["system"], 1, 1, batch_size, width)
    # a loss that compares all samples with all others outgrows the passes, and then the memory
    while (took := found["passes_ms"] or found["own_ms"]) < LARGE_MS > found["step_ms"] / 2 and batch_size < MOST_SAMPLES:
        # half more than in proportion: part of the time does not grow with the batch
        batch_size = min(MOST_SAMPLES, batch_size * min(16, math.ceil(1.5 * LARGE_MS / took)))
        found = row(tiny["system"], 1, 1, batch_size, width)
    return row(tiny["system"], rounds, steps, batch_size, width) | {"size": "large"}


def row(name: str, rounds: int, steps: int, batch_size: int | None = None, width: int = 1) -> dict[str, Any]:
    """One row of :func:`bench`; ``batch_size``: another than the tiny job's own, for which its samples are repeated; ``width``:
    how many times as wide its networks are."""
    job = registry.find(name).target.tiny_job(0, **({"width": width} if width > 1 else {}))
    batch_size = batch_size or min(job.settings.batch_size, len(job.data))
    if batch_size > len(job.data):
        job.data = _repeated(job.data, -(-batch_size // len(job.data)))
    job.settings = replace(job.settings, steps=1_000_000, batch_size=batch_size, checkpoint_every=0, eval_every=0)
    job.evaluate = None
    trainer = Trainer(job)
    trainer._train_mode()
    _enter_student_phase(trainer)
    learned = [parameter for parameter in trainer.student.parameters() if parameter.requires_grad]
    teacher = job.teacher.network if job.teacher is not None else None
    if isinstance(job.teacher, BlackBoxTeacher):
        job.teacher.function = teacher = FunctionNetwork(job.teacher.function)
    with recorded(trainer.student, teacher, *own_networks(trainer.method)) as passes:
        trainer.advance()

    def own() -> None:
        _clear(trainer, learned)
        _sum(forward_heads(trainer.student.train(), trainer.batch(0).inputs)).backward()
        trainer.optimizer.step()

    def all_passes() -> None:
        _clear(trainer, learned)
        trainer.batch(0)
        graded = [_sum(_run(one)) for one in passes]
        total = sum((value for value in graded if value.requires_grad), start=torch.zeros(()))
        if total.requires_grad:
            total.backward()
        trainer.optimizer.step()

    ways = {STEP: StepVariant(trainer.advance, ()), OWN: StepVariant(own, ())}
    whole = any(one.network is trainer.student for one in passes)
    if whole:
        ways[PASSES] = StepVariant(all_passes, ())
    times = {way: found["ms"] for way, found in measure(ways, rounds, steps, "cpu").items()}
    return {
        "system": name,
        "size": "tiny",
        "width": width,
        "batch": batch_size,
        "step_ms": median(times[STEP]),
        "own_ms": median(times[OWN]),
        "passes_ms": median(times[PASSES]) if whole else None,
        "over_own": _ratio(times[STEP], times[OWN]),
        "over_passes": _ratio(times[STEP], times[PASSES]) if whole else None,
        "student_passes": sum(one.network is trainer.student for one in passes),
        "teacher_passes": sum(one.network is teacher for one in passes),
    }


def _repeated(data: ReplayableData, times: int) -> ReplayableData:
    """All samples ``times`` times over; tensors stay :class:`TensorData`, from which a method may count classes."""
    if not isinstance(data, TensorData):
        return SubsetData(data, torch.arange(len(data)).repeat(times))
    inputs, labels, weights = (
        map_tree(lambda leaf: torch.cat([leaf] * times), one) for one in (data.inputs, data.labels, data.weights)
    )
    return TensorData(inputs, labels, weights, data.views)


def _enter_student_phase(trainer: Trainer) -> None:
    """Go to the begin of the first phase that trains the student: one before it may make a teacher."""
    for phase, first, _ in trainer.phases:
        trainer.enter(phase)
        trainer.step = first
        if any(parameter.requires_grad for parameter in trainer.student.parameters()):
            return


class FunctionNetwork(nn.Module):
    """A teacher's function as a network, so that its calls are recorded as those of networks are."""

    def __init__(self, function: Callable[[Any], Any]):
        super().__init__()
        self.function = function

    def forward(self, inputs: Any) -> Any:
        """What the function answers."""
        return self.function(inputs)


def own_networks(method: nn.Module) -> Iterator[nn.Module]:
    """The networks that a method holds, one by one where it holds a list or a table of them, or a method that holds some."""
    for part in method.children():
        if isinstance(part, nn.ModuleList | nn.ModuleDict | Method):
            yield from own_networks(part)
        else:
            yield part


@contextmanager
def recorded(*networks: nn.Module | None) -> Iterator[list[Pass]]:
    """Every call of the whole ``networks`` while the context lasts, with its inputs; None stands for no network. A call that
    another of them makes belongs to that one."""
    found: list[Pass] = []
    within: list[nn.Module] = []

    def done(network: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        within.pop()

    def note(network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        within.append(network)
        if len(within) > 1:
            return
        tangents = tuple(i for i, value in enumerate(args) if isinstance(value, Tensor) and _is_dual(value))
        args = tuple(torch.rand(value.shape, dtype=value.dtype) if i in tangents else _kept(value) for i, value in enumerate(args))
        found.append(Pass(network, args, _kept(kwargs), torch.is_grad_enabled(), network.training, tangents))

    whole = [one for one in networks if one is not None]
    hooks = [one.register_forward_pre_hook(note, with_kwargs=True) for one in whole]
    hooks += [one.register_forward_hook(done) for one in whole]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _run(one: Pass) -> Any:
    network = one.network.train(one.train)
    with torch.set_grad_enabled(one.graded):
        if not one.tangents:
            return network(*one.args, **one.kwargs)

        def along(*moved: Tensor) -> Any:
            args = dict(enumerate(one.args)) | dict(zip(one.tangents, moved, strict=True))
            return network(*args.values(), **one.kwargs)

        primals = tuple(one.args[i] for i in one.tangents)
        return torch.func.jvp(along, primals, tuple(map(torch.ones_like, primals)))


def _is_dual(value: Tensor) -> bool:
    """Whether a derivative is taken along ``value`` in forward mode: its own values cannot be kept beyond that."""
    return forward_ad.unpack_dual(value).tangent is not None


def _kept(value: Any) -> Any:
    """The value with its tensors cut from the graph that made them; a gradient is asked of them where it was."""
    if isinstance(value, Tensor):
        return value.detach().requires_grad_() if value.requires_grad else value.detach()
    if isinstance(value, dict):
        return {name: _kept(part) for name, part in value.items()}
    return type(value)(_kept(part) for part in value) if type(value) in (tuple, list) else value


def _sum(output: Any) -> Tensor:
    """The sum of all real numbers in a network's output."""
    if isinstance(output, Tensor):
        return output.float().mean() if output.is_floating_point() else torch.zeros(())
    parts = output.values() if isinstance(output, dict) else output if isinstance(output, tuple | list) else ()
    return sum((_sum(part) for part in parts), start=torch.zeros(()))


def _clear(trainer: Trainer, learned: Sequence[nn.Parameter]) -> None:
    """Gradients of before go; ``learned`` take part again: a method whose networks learn in turns may have left them out."""
    for parameter in trainer.parameters.values():
        parameter.grad = None
    for parameter in learned:
        parameter.requires_grad_()


def _ratio(one: Sequence[float], other: Sequence[float]) -> float:
    return median(a / b for a, b in zip(one, other, strict=True))
