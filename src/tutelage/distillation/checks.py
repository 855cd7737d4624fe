"""What a run refuses: values that are not finite, and parameters that belong to two owners."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path

from torch import Tensor, nn

from tutelage.distillation.data import Batch
from tutelage.distillation.job import TrainingJob
from tutelage.errors import InputError, TrainingError


def check_no_shared_parameters(job: TrainingJob, learned: Mapping[str, nn.Parameter]) -> None:
    """Raise InputError if the method owns the student, or if the teacher would be trained."""
    own = {id(p): name for name, p in job.student.named_parameters()}
    for name, parameter in job.method.named_parameters():
        if id(parameter) in own:
            raise InputError(
                f"the method owns the student's parameter {own[id(parameter)]} as {name}",
                where=type(job.method).__name__,
                remedy="hold the student beside the method, or keep a deep copy of it",
            )
    network = job.teacher.network if job.teacher is not None else None
    trained = {id(parameter) for parameter in learned.values()}
    for name, parameter in network.named_parameters() if network is not None else ():
        if id(parameter) in trained:
            raise InputError(
                f"teacher and learner share the parameter {name}",
                where=job.name,
                remedy="give the teacher a deep copy of the network",
            )


def parameters_without_gradient(job: TrainingJob, learned: Mapping[str, nn.Parameter]) -> tuple[str, ...]:
    """The parameters that got no gradient although the method does not declare them idle.

    Raises:
        TrainingError: none got one.
    """
    asked = [name for name, parameter in learned.items() if parameter.requires_grad]
    without = [name for name in asked if learned[name].grad is None]
    without = [name for name in without if not any(fnmatch(name, pattern) for pattern in job.method.unused_parameters)]
    if asked and len(without) == len(asked):
        raise TrainingError(
            "no gradient reaches any parameter",
            where=job.name,
            remedy="the loss terms must depend on the student's outputs: look for detach() and no_grad",
        )
    return tuple(without)


def check_finite(
    job: TrainingJob, means: Mapping[str, float], passes: range, batch: Callable[[int], Batch], latest: Path | None
) -> None:
    """Raise TrainingError, naming the terms of weight > 0 whose mean over ``passes`` is not finite.

    ``batch``: gives the batch of a pass again, to see whether the teacher is to blame; ``latest``: the last checkpoint.
    """
    weights = job.method.loss_weights()
    bad = [name for name, value in means.items() if not math.isfinite(value) and weights.get(name, 1.0)]
    if not bad:
        return
    accumulate = job.settings.accumulate
    raise TrainingError(
        f"the term {' and '.join(repr(name) for name in bad)} is not finite between steps {passes.start // accumulate} "
        f"and {passes.stop // accumulate}{_non_finite_teacher(job, passes, batch)}",
        where=job.name,
        remedy=(f"the last good checkpoint is {latest}; " if latest else "")
        + "lower the learning rate, set clip, or check the inputs of that term",
    )


def _non_finite_teacher(job: TrainingJob, passes: range, batch: Callable[[int], Batch]) -> str:
    """Whether the teacher itself said something that is not finite, as words for the message."""
    if job.teacher is None:
        return ""
    for number in passes:
        try:
            said = job.teacher(batch(number))
        except Exception:  # the method feeds this teacher otherwise: there is nothing to add to the message
            return ""
        for name, value in said.items():
            if value.is_floating_point() and not bool(value.isfinite().all()):
                step = number // job.settings.accumulate
                return f" (the teacher's output {name!r} is not finite in step {step})"
    return ""


def check_finite_weights(
    where: str, step: int, learned: Mapping[str, nn.Parameter], norms: Callable[[Sequence[Tensor]], Tensor]
) -> None:
    """Raise TrainingError naming a parameter that is not finite; ``norms``: gives the norm of each."""
    if not learned:
        return
    finite = norms(list(learned.values())).isfinite()
    if not bool(finite.all()):
        name = list(learned)[int((~finite).nonzero()[0, 0])]
        raise TrainingError(
            f"the parameter {name} is not finite after step {step}",
            where=where,
            remedy="lower the learning rate or set clip",
        )
