"""What a run refuses: heads, labels and values that do not fit, and parameters that belong to two owners."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path

import torch
from torch import Tensor, nn

from tutelage.distillation.data import Batch, ReplayableData, TensorData, Tree, flatten_tree
from tutelage.distillation.data.replay import check_replay
from tutelage.distillation.job import TrainingJob
from tutelage.distillation.method import Method
from tutelage.distillation.outputs import Output, forward_heads, unwrap_model
from tutelage.distillation.supervised import Supervised
from tutelage.distillation.tasks import Classification, Fit, Regression, Task, infer_task, make_task
from tutelage.distillation.tasks.base import describe
from tutelage.distillation.vocabulary import vocabularies
from tutelage.errors import InputError, TrainingError


def resolve_task(job: TrainingJob, batch: Batch) -> None:
    """Give the job its task, where one is needed and none is named.

    It is the only task that the method supports, or else the one that the student's heads and the labels of ``batch``
    leave possible.

    Raises:
        InputError: the task is not clear (the message lists the candidates), or the method does not support it.
    """
    if job.task is not None or not (job.method.tasks or (job.evaluate is not None and not callable(job.evaluate))):
        return
    if len(job.method.tasks) == 1:
        job.set_task(make_task(job.method.tasks[0]))
        return
    output = _first_output(job.student, batch.inputs)
    try:
        task = infer_task(output, batch)
    except InputError:
        _check_labels(job, batch)  # the likelier cause
        raise
    job.set_task(task)


def _first_output(student: nn.Module, inputs: Tree) -> Output:
    with torch.no_grad(), vocabularies(student, inputs, "student"), _takes(inputs, "student"):
        return forward_heads(student.eval(), inputs)


@contextlib.contextmanager
def _takes(inputs: Tree, who: str) -> Iterator[None]:
    """Turn what a network raises on its first batch into an error that shows the batch; the network's own stays as its cause."""
    try:
        yield
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"the {who} fails on the first batch, inputs {describe(inputs)}: {reason}"[:500],
            where=who,
            remedy="give inputs of the type and shape that the network takes",
        ) from error


def _check_labels(job: TrainingJob, batch: Batch, task: Task | None = None) -> None:
    if batch.labels is None and job.method.needs_labels and (task is None or task.needs_labels):
        raise InputError(
            f"{type(job.method).__name__} needs labels",
            where=job.name,
            remedy="give data with labels, or another method",
        )


def check_first_batch(job: TrainingJob, batch: Batch) -> None:
    """The quick form, at the start of every training: one forward pass of each, nothing changed, nothing drawn.

    Only what is sure to be wrong is refused: inputs, labels or teacher outputs that are not finite, labels outside the
    student's classes, teacher and student that disagree in a head the method compares. A black box is not asked.

    Raises:
        InputError: the message names the field, the remedy says what to do.
    """
    task = job.task if isinstance(job.task, Task) and job.method.tasks else None
    _finite("inputs", batch.inputs)
    check_replay(job.data, batch, 4)
    if not isinstance(task, Regression):  # there a label that is nan is missing
        _finite("labels", batch.labels)
    _check_labels(job, batch, task)
    plain = type(job.method).forward in (Method.forward, Supervised.forward)
    if not plain and task is None and not job.method.student_heads:
        return  # the method feeds its networks in its own way
    student = _first_output(job.student, batch.inputs)
    if missing := [name for name in job.method.student_heads if name not in student]:
        raise InputError(
            f"{type(job.method).__name__} needs a student with the heads {', '.join(job.method.student_heads)}; "
            f"{type(unwrap_model(job.student)).__name__} lacks {', '.join(missing)}",
            where="student",
            remedy=f"it has {', '.join(student)}: return a dict with all of them, or take the network that the method's page names",
        )
    if task is not None and (plain or "logits" in student):
        task.check(student, batch.labels)
    elif plain and Classification.fit(student, batch) is Fit.CERTAIN:
        Classification().check(student, batch.labels)
    if isinstance(task, Classification) and "logits" in student:
        _check_class_ids(job.data, task, student["logits"].shape[-1])
    if type(job.method).forward is not Method.forward or job.teacher is None or job.teacher.black_boxes:
        return
    network = job.teacher.network
    known = vocabularies(network, batch.inputs, "teacher") if network is not None else contextlib.nullcontext()
    with torch.no_grad(), known, _takes(batch.inputs, "teacher"):
        teacher = job.teacher(batch)
    for name, value in teacher.items():
        _finite(f"the teacher's output {name!r}", value, "check the teacher's weights and how its inputs are normalised")
    if task is not None:
        task.check_teacher(student, teacher)
    else:
        _check_matched(job, student, teacher)


def _check_class_ids(data: ReplayableData, task: Classification, classes: int) -> None:
    """Look at the class ids of all samples where they lie in memory: a wrong one would end the run in the middle."""
    labels = data.labels if isinstance(data, TensorData) else None
    if not isinstance(labels, Tensor) or labels.ndim != 1 or labels.is_floating_point() or labels.dtype == torch.bool:
        return
    wrong = ((labels < 0) | (labels >= classes)) & task.counted(labels, classes)
    if bool(wrong.any()):
        first = int(wrong.nonzero()[0, 0])
        raise InputError(
            f"the label of sample {first} is {int(labels[first])}, the student has {classes} classes (0 to {classes - 1})",
            where="labels",
            remedy="count classes from 0; a label of -100 leaves a sample out, or another: ignore_index of the task",
        )


def _check_matched(job: TrainingJob, student: Output, teacher: Output) -> None:
    for name in job.method.matched_heads:
        if name in student and name in teacher and student[name].shape != teacher[name].shape:
            raise InputError(
                f"student and teacher disagree in {name!r}: {tuple(student[name].shape)} and {tuple(teacher[name].shape)}",
                where=job.name,
                remedy="give both the same classes in the same order, or map the teacher's to the student's",
            )


def _finite(name: str, tree: object, remedy: str = "clean the data: nan and inf cannot be learned from") -> None:
    for path, leaf in flatten_tree(tree):
        if leaf.is_floating_point() and not bool(leaf.isfinite().all()):
            raise InputError("not finite", where=f"{name} {path}".strip(), remedy=remedy)


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
    networks = job.teacher.networks if job.teacher is not None else ()
    trained = {id(parameter) for parameter in learned.values()}
    for name, parameter in (item for network in networks for item in network.named_parameters()):
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
    trainable = [name for name, parameter in learned.items() if parameter.requires_grad]
    without = [name for name in trainable if learned[name].grad is None]
    without = [name for name in without if not any(fnmatch(name, pattern) for pattern in job.method.unused_parameters)]
    if trainable and len(without) == len(trainable):
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
            teacher_outputs = job.teacher(batch(number))
        except Exception:  # the method feeds this teacher otherwise: there is nothing to add to the message
            return ""
        for name, value in teacher_outputs.items():
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


def check_tensors(state: Mapping[str, object], where: str) -> None:
    """Refuse a state that cannot be saved: every value must be a tensor.

    Raises:
        InputError: the message names the value.
    """
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise InputError(
                f"{name} is a {type(value).__name__}, not a tensor",
                where=where,
                remedy="keep what must be resumed in a buffer",
            )
