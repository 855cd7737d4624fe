"""What tasks with one class a position share: classification, segmentation, tokens.

They differ in where the class axis is, in how labels are laid beside logits, and in what an ignored label is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from tutelage.distillation import losses
from tutelage.distillation.data import Tree
from tutelage.distillation.tasks.base import Task, TaskMeter, head, masked_mean, mismatch
from tutelage.distillation.tasks.metrics import ClassCounts, Perplexity
from tutelage.errors import InputError

IGNORED = -100
"""The label that torch's cross-entropy leaves out."""


@dataclass(frozen=True)
class Rows:
    """The counted positions of a batch as N rows: any loss of [N, C] logits works on them.

    ``labels`` [N] class ids, or [N, C] probabilities. ``weights`` [N] make a weighted mean over rows the mean over each
    sample's positions, then over samples; None: all rows count alike.
    """

    student: Tensor
    teacher: Tensor | None
    labels: Tensor
    weights: Tensor | None


@dataclass(frozen=True)
class CategoricalTask(Task):
    """One class a position. The softmax runs over ``class_axis`` of the logits, and over no other.

    ``ignore_index``: the label that is left out; None: -100 (and 255 for maps of at most 255 classes).
    """

    class_axis: ClassVar[int] = 1
    ignores_255: ClassVar[bool] = False
    masks_distance: ClassVar[bool] = False
    """Whether an ignored label says that there is nothing at its position (padding): no distance is taken there."""

    ignore_index: int | None = None

    def align(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The logits and the labels that belong together, position by position."""
        return logits, labels

    def pair(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """The logits of student and teacher at one size."""
        return student, teacher

    def counted(self, labels: Tensor, classes: int) -> Tensor:
        """Which labels count: bool, as ``labels``."""
        if self.ignore_index is not None:
            return labels != self.ignore_index
        mask = labels != IGNORED
        return mask & (labels != 255) if self.ignores_255 and classes <= 255 else mask

    def shape_fits(self, logits: Tensor, labels: Tensor) -> bool:
        """Whether integer labels lie beside the logits as the task wants."""
        raise NotImplementedError

    def check(self, output: Mapping[str, Tensor], labels: Tree) -> None:
        """See :class:`Task`."""
        logits = head(output, "logits", self)
        if logits.ndim <= self.class_axis or logits.shape[self.class_axis] < 2:
            raise mismatch(self, f"logits {list(logits.shape)}", "student", self._remedy_logits())
        if labels is None:
            return
        if not isinstance(labels, Tensor) or labels.is_floating_point() or not self.shape_fits(logits, labels):
            found = f"{labels.dtype} {list(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
            raise mismatch(self, f"labels {found} with logits {list(logits.shape)}")
        classes, ids = logits.shape[self.class_axis], labels.long()
        ids = ids[self.counted(ids, classes)]
        if len(ids) and (int(ids.min()) < 0 or int(ids.max()) >= classes):
            wrong = int(ids.min()) if int(ids.min()) < 0 else int(ids.max())
            raise InputError(
                f"a label is {wrong}, the student has {classes} classes (0 to {classes - 1})",
                where="labels",
                remedy="count classes from 0, give the student as many outputs as there are classes, or say which label "
                "to ignore: ignore_index of the task",
            )

    def _remedy_logits(self) -> str:
        return f"it expects {self.layout}; a yes or no needs two classes, or the task multi-label"

    def check_teacher(self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> None:
        """See :class:`Task`."""
        own, other = student["logits"], head(teacher, "logits", self, "teacher")
        axis = self.class_axis
        if own.ndim != other.ndim or own.shape[axis] != other.shape[axis] or len(own) != len(other):
            raise InputError(
                f"student and teacher disagree in 'logits': {tuple(own.shape)} and {tuple(other.shape)}",
                where="logits",
                remedy="give both the same classes in the same order, or map the teacher's to the student's",
            )

    def label_loss(
        self, output: Mapping[str, Tensor], labels: Tree, weights: Tensor | None = None, smoothing: float = 0.0
    ) -> Tensor:
        """Cross-entropy over the class axis; see :class:`Task`. ``smoothing``: of the labels."""
        logits, labels = self.align(output["logits"], labels)
        labels = labels.long()
        mask = self.counted(labels, logits.shape[self.class_axis])
        loss = F.cross_entropy(
            logits.movedim(self.class_axis, 1),
            labels.masked_fill(~mask, IGNORED),
            reduction="none",
            label_smoothing=smoothing,
        )
        return masked_mean(loss, mask, weights)

    def distance(
        self,
        student: Mapping[str, Tensor],
        teacher: Mapping[str, Tensor],
        labels: Tree = None,
        weights: Tensor | None = None,
        tau: float = 1.0,
    ) -> Tensor:
        """``tau^2 KL(softmax(t / tau) || softmax(s / tau))`` over the class axis; see :class:`Task`."""
        own, other = self.pair(student["logits"], teacher["logits"])
        mask = None
        if self.masks_distance and labels is not None:
            (own, ids), (other, _) = self.align(own, labels), self.align(other, labels)
            mask = self.counted(ids.long(), own.shape[self.class_axis])
        return masked_mean(losses.kl_divergence(own, other, tau, self.class_axis), mask, weights)

    def rows(
        self,
        student: Mapping[str, Tensor],
        teacher: Mapping[str, Tensor] | None,
        labels: Tree,
        weights: Tensor | None = None,
    ) -> Rows:
        """The counted positions as rows, for a loss that is defined on [N, C] logits and class ids."""
        own, ids = self.align(student["logits"], labels)
        other = None
        if teacher is not None:
            other = self.align(self.pair(student["logits"], teacher["logits"])[1], labels)[0]
        ids = ids.long()
        mask = self.counted(ids, own.shape[self.class_axis])
        if ids.ndim == 1 and mask.all():
            return Rows(own, other, ids, weights)
        share = 1.0 / mask.flatten(1).sum(1).clamp_min(1) if ids.ndim > 1 else torch.ones_like(ids, dtype=own.dtype)
        share = share if weights is None else share * weights
        per_row = share.reshape(-1, *[1] * (ids.ndim - 1)).expand(ids.shape)

        def flat(logits: Tensor) -> Tensor:
            return logits.movedim(self.class_axis, -1)[mask]

        return Rows(flat(own), None if other is None else flat(other), ids[mask], per_row[mask])

    def meter(self) -> TaskMeter:
        """See :class:`Task`."""
        return CategoricalMeter(self)


class CategoricalMeter(TaskMeter):
    """The task's metrics among accuracy, F1, mIoU and perplexity; ignored labels are left out."""

    def __init__(self, task: CategoricalTask) -> None:
        self.task, self.names = task, [metric.name for metric in task.metrics]
        self.counts = ClassCounts()
        self.perplexity = Perplexity() if "perplexity" in self.names else None

    def update(self, output: Mapping[str, Tensor], labels: Tree) -> None:
        """See :class:`TaskMeter`."""
        logits, ids = self.task.align(output["logits"], labels)
        if ids.is_floating_point():
            ids = ids.argmax(1)
        ids = ids.long()
        mask = self.task.counted(ids, logits.shape[self.task.class_axis])
        if self.perplexity is not None:
            self.perplexity.update(logits.movedim(self.task.class_axis, -1)[mask], ids[mask])
        self.counts.update(logits.argmax(self.task.class_axis)[mask], ids[mask])

    def compute(self) -> dict[str, float]:
        """See :class:`TaskMeter`."""
        known = {"accuracy": self.counts.accuracy, "F1": self.counts.f1, "mIoU": self.counts.mean_iou}
        known |= self.perplexity.compute() if self.perplexity is not None else {}
        return {name: known[name] for name in self.names}
