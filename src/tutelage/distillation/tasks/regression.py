"""Regression: real numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args, get_type_hints

import torch
from torch import Tensor
from torch.nn import functional as F

from tutelage.distillation.data import Batch, Tree
from tutelage.distillation.tasks.base import Fit, Task, TaskMeter, head, masked_mean, mismatch, same_shape, task
from tutelage.distillation.tasks.metrics import Metric, RegressionErrors
from tutelage.errors import InputError, did_you_mean


def error(loss: Literal["mse", "l1", "huber"], student: Tensor, target: Tensor) -> Tensor:
    """The error of each element: squared, absolute, or Huber's with delta 1."""
    match loss:
        case "mse":
            return F.mse_loss(student, target, reduction="none")
        case "l1":
            return F.l1_loss(student, target, reduction="none")
        case "huber":
            return F.huber_loss(student, target, reduction="none")


@task("regression")
@dataclass(frozen=True)
class Regression(Task):
    """Real numbers: one error to the labels and to the teacher's numbers alike. A label of ``nan`` is missing.

    ``loss``: ``mse``, ``l1``, or ``huber`` (delta 1). The scale of the outputs is the scale of the loss: bring targets
    to about unit deviation first. A temperature means nothing here.
    """

    metrics = (Metric("R2"), Metric("MAE", "", False), Metric("RMSE", "", False))
    layout = "logits [B] or [B, D]; labels of the same shape ([B] for [B, 1]), nan: missing"

    loss: Literal["mse", "l1", "huber"] = "mse"

    def __post_init__(self) -> None:
        known = list(get_args(get_type_hints(type(self))["loss"]))
        if self.loss not in known:
            raise InputError(f"unknown loss {self.loss!r}", where="loss", remedy=did_you_mean(str(self.loss), known))

    @classmethod
    def fit(cls, output: Mapping[str, Tensor], batch: Batch) -> Fit:
        """See :class:`Task`."""
        logits, labels = output.get("logits"), batch.labels
        if logits is None or logits.ndim not in (1, 2):
            return Fit.NO
        if labels is None:
            return Fit.POSSIBLE
        if not isinstance(labels, Tensor) or labels.dtype == torch.bool or not _alike(logits, labels):
            return Fit.NO
        whole = not labels.is_floating_point()
        return Fit.NO if whole and logits.ndim == 2 and logits.shape[1] > 1 else Fit.POSSIBLE

    def check(self, output: Mapping[str, Tensor], labels: Tree) -> None:
        """See :class:`Task`."""
        logits = head(output, "logits", self)
        if labels is not None and not (isinstance(labels, Tensor) and _alike(logits, labels)):
            shape = list(labels.shape) if isinstance(labels, Tensor) else type(labels).__name__
            raise mismatch(self, f"labels {shape} with outputs {list(logits.shape)}")

    def check_teacher(self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> None:
        """See :class:`Task`."""
        other = head(teacher, "logits", self, "teacher")
        if not _alike(student["logits"], other):
            same_shape(student["logits"], other, "give both the same outputs in the same order")

    def label_loss(self, output: Mapping[str, Tensor], labels: Tree, weights: Tensor | None = None) -> Tensor:
        """The error, mean over outputs; see :class:`Task`."""
        predictions = output["logits"]
        targets = labels.to(predictions.dtype).reshape(predictions.shape)
        known = ~targets.isnan()
        # a missing target is replaced, not only masked: nan times 0 is nan in the backward pass
        loss = error(self.loss, predictions, torch.where(known, targets, 0.0))
        return masked_mean(loss, known, weights)

    def distance(
        self,
        student: Mapping[str, Tensor],
        teacher: Mapping[str, Tensor],
        labels: Tree = None,
        weights: Tensor | None = None,
        tau: float = 1.0,
    ) -> Tensor:
        """The error to the teacher's outputs; see :class:`Task`."""
        own = student["logits"]
        return masked_mean(error(self.loss, own, teacher["logits"].detach().reshape(own.shape)), None, weights)

    def meter(self) -> TaskMeter:
        """See :class:`Task`."""
        return RegressionMeter()


def _alike(outputs: Tensor, labels: Tensor) -> bool:
    """Equal shapes, or [B] beside [B, 1]."""
    return outputs.shape == labels.shape or (outputs.numel() == labels.numel() == len(labels) == len(outputs))


class RegressionMeter(TaskMeter):
    """R², MAE, RMSE over the samples without a missing value."""

    def __init__(self) -> None:
        self.errors = RegressionErrors()

    def update(self, output: Mapping[str, Tensor], labels: Tree) -> None:
        """See :class:`TaskMeter`."""
        predictions = output["logits"].flatten(1) if output["logits"].ndim > 1 else output["logits"][:, None]
        targets = labels.reshape(predictions.shape)
        complete = ~targets.double().isnan().any(1)
        self.errors.update(predictions[complete], targets[complete])

    def compute(self) -> dict[str, float]:
        """See :class:`TaskMeter`."""
        return self.errors.compute()
