"""What a task is: it decides label loss, distance to a teacher, metrics, and which labels are ignored.

A task reads the named heads of a network (``Output``) and the labels of a batch. Every loss is a scalar: the mean over
the counted positions of each sample, then the (weighted) mean over the samples that have any. So a long sequence counts
as much as a short one.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from tutelage import registry
from tutelage.distillation.data import Batch, Tree
from tutelage.distillation.losses import average
from tutelage.distillation.tasks.metrics import Metric
from tutelage.errors import InputError, did_you_mean

PACKAGE = "tutelage.distillation.tasks"


class Fit(enum.IntEnum):
    """Whether outputs and labels can belong to a task."""

    NO = 0
    POSSIBLE = 1
    CERTAIN = 2


class TaskMeter:
    """Adds up the metrics of one task over batches of outputs and labels."""

    def update(self, output: Mapping[str, Tensor], labels: Tree) -> None:
        """Take in one batch."""
        raise NotImplementedError

    def compute(self) -> dict[str, float]:
        """The figures, by the names of ``Task.metrics``."""
        raise NotImplementedError


class Task:
    """The protocol. A subclass is a frozen dataclass of the task's options, registered with :func:`task`.

    Attributes:
        metrics: what :meth:`meter` computes; the first is the one to choose a model by.
        needs_labels: whether :meth:`label_loss` needs labels; two towers need none, their rows are pairs.
        layout: heads and labels with their shapes, for messages and docs.
    """

    metrics: ClassVar[tuple[Metric, ...]] = ()
    needs_labels: ClassVar[bool] = True
    layout: ClassVar[str] = ""

    @property
    def name(self) -> str:
        """The name under which the task, or the one it is a variant of, is registered."""
        entry = getattr(type(self), "system_entry", None)
        return str(entry.name) if entry is not None else type(self).__name__

    @classmethod
    def fit(cls, output: Mapping[str, Tensor], batch: Batch) -> Fit:
        """Whether a student's ``output`` on ``batch``, and the batch's labels if any, can belong to this task."""
        raise NotImplementedError

    def check(self, output: Mapping[str, Tensor], labels: Tree) -> None:
        """Raise InputError if the student's heads or the labels (None: there are none) do not fit the task."""

    def check_teacher(self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> None:
        """Raise InputError if the two networks' heads cannot be compared."""
        head(teacher, "logits", self, "teacher")
        same_shape(student["logits"], teacher["logits"], "give both the same outputs in the same order")

    def label_loss(self, output: Mapping[str, Tensor], labels: Tree, weights: Tensor | None = None) -> Tensor:
        """The loss of the student's ``output`` against ``labels``; scalar, 0 where every label is ignored.

        ``weights`` [B]: how much each sample counts.
        """
        raise NotImplementedError

    def distance(
        self,
        student: Mapping[str, Tensor],
        teacher: Mapping[str, Tensor],
        labels: Tree = None,
        weights: Tensor | None = None,
        tau: float = 1.0,
    ) -> Tensor:
        """How far the student's heads are from the teacher's; scalar, with no gradient into the teacher.

        It is 0, with gradient 0, where both give the same. ``labels`` only say which positions are real (padded tokens
        are not); ``tau`` is the temperature of tasks with probabilities, and the others have no use for it.
        """
        raise NotImplementedError

    def meter(self) -> TaskMeter:
        """A new meter of this task's metrics."""
        raise NotImplementedError

    @property
    def fingerprint_parts(self) -> list[Any]:
        """The name and the options: what two runs of one task share."""
        return [self.name, *((name, getattr(self, name)) for name in option_names(type(self)))]


def task(name: str) -> Callable[[Any], Any]:
    """Register a class as the task ``name``; listing this folder finds it."""
    return registry.system(name, kind="task")


def tasks() -> dict[str, type[Task]]:
    """Every task by name."""
    return {name: entry.target for name, entry in registry.systems(PACKAGE).items()}


def make_task(chosen: str | Task | type[Task], options: Mapping[str, Any] | None = None) -> Task:
    """A task by its name, its class, or itself.

    Args:
        chosen: such as ``"segmentation"``, or ``Segmentation(ignore_index=0)``.
        options: of a task given by name or class.

    Raises:
        InputError: an unknown name or option; the message offers the nearest names.
    """
    if isinstance(chosen, Task):
        if options:
            raise InputError("the task is made already; it takes no options", where="task", remedy="give its name")
        return chosen
    known = tasks()
    if isinstance(chosen, str):
        if chosen not in known:
            raise InputError(f"unknown task {chosen!r}", where="task", remedy=did_you_mean(chosen, list(known)))
        chosen = known[chosen]
    if not (isinstance(chosen, type) and issubclass(chosen, Task)):
        raise InputError(f"{chosen!r} is no task", where="task", remedy=f"one of {', '.join(known)}")
    names = option_names(chosen)
    for option in options or {}:
        if option not in names:
            raise InputError(
                f"the task has no option {option!r}",
                where="task",
                remedy=did_you_mean(option, names) if names else "it has no options",
            )
    return chosen(**dict(options or {}))


def option_names(kind: type[Task]) -> list[str]:
    """The options of a task: the fields of its dataclass."""
    return [item.name for item in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []


def infer_task(output: Mapping[str, Tensor], batch: Batch) -> Task:
    """The one task that the student's heads and the batch's labels leave possible.

    Raises:
        InputError: several tasks are possible, or none; the message lists them.
    """
    fits = {name: kind.fit(output, batch) for name, kind in tasks().items()}
    certain = [name for name, fit in fits.items() if fit is Fit.CERTAIN]
    possible = [name for name, fit in fits.items() if fit]
    if len(certain) == 1 or len(possible) == 1:
        return make_task(certain[0] if len(certain) == 1 else possible[0])
    seen = f"the student gives {describe(output)}, the labels are {describe(batch.labels)}"
    if not possible:
        layouts = "; ".join(f"{name}: {kind.layout}" for name, kind in tasks().items())
        raise InputError(f"no task fits: {seen}", where="task", remedy=f"what the tasks expect: {layouts}")
    candidates = certain or possible
    raise InputError(
        f"the task is not clear: {seen}",
        where="task",
        remedy="give task=" + " or task=".join(f'"{name}"' for name in candidates),
    )


# -- helpers of the tasks --------------------------------------------------------------------------------------------


def describe(tree: Tree) -> str:
    """Shapes and types in words, for messages."""
    if tree is None:
        return "absent"
    if isinstance(tree, Tensor):
        return f"{str(tree.dtype).removeprefix('torch.')} {list(tree.shape)}"
    if isinstance(tree, Mapping):
        return ", ".join(f"{name} {describe(value)}" for name, value in tree.items()) or "nothing"
    return type(tree).__name__


def head(output: Mapping[str, Tensor], name: str, task: Task, who: str = "student") -> Tensor:
    """The head ``name`` of a network.

    Raises:
        InputError: the network has no such head.
    """
    if name not in output:
        raise InputError(
            f"{task.name} reads the head {name!r}; the {who} gives {', '.join(output) or 'none'}",
            where=who,
            remedy=f"the task expects {task.layout}",
        )
    return output[name]


def mismatch(task: Task, found: str, where: str = "labels", remedy: str | None = None) -> InputError:
    """The error that heads or labels are not what the task expects."""
    return InputError(f"{task.name} does not fit: {found}", where=where, remedy=remedy or f"it expects {task.layout}")


def same_shape(student: Tensor, teacher: Tensor, remedy: str, name: str = "logits") -> None:
    """Raise InputError if one head of student and teacher has two shapes."""
    if student.shape != teacher.shape:
        raise InputError(
            f"student and teacher disagree in {name!r}: {tuple(student.shape)} and {tuple(teacher.shape)}",
            where=name,
            remedy=remedy,
        )


def masked_mean(loss: Tensor, mask: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
    """The mean of each sample's counted positions, then the mean over samples that have any; scalar.

    Args:
        loss: [B, ...].
        mask: bool, as ``loss``; None: every position counts. A loss outside it may be anything, nan too.
        weights: [B], how much each sample counts.

    Returns:
        The mean; 0 where nothing counts.
    """
    loss = loss.flatten(1) if loss.ndim > 1 else loss[:, None]
    if mask is None:
        return average(loss.mean(1), weights)
    mask = mask.reshape(loss.shape)
    counts = mask.sum(1)
    per_sample = torch.where(mask, loss, 0.0).sum(1) / counts.clamp_min(1)
    present = (counts > 0).to(loss.dtype)
    return average(per_sample, present if weights is None else present * weights)
