"""Classification: one class a sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from tutelage.distillation import losses
from tutelage.distillation.data import Batch, Tree
from tutelage.distillation.tasks.base import Fit, head, mismatch, task
from tutelage.distillation.tasks.categorical import IGNORED, CategoricalTask, Rows
from tutelage.distillation.tasks.metrics import Metric
from tutelage.errors import InputError


@task("classification")
@dataclass(frozen=True)
class Classification(CategoricalTask):
    """One class a sample: cross-entropy with the labels, KL divergence to the teacher.

    A label of -100 (or ``ignore_index``) leaves its sample out of the label loss and of the metrics. The teacher is
    followed on such samples too: that is how unlabelled samples are used.
    """

    metrics = (Metric("accuracy", "%"), Metric("F1", "%"))
    layout = "logits [B, C], C >= 2; labels [B] class ids, or [B, C] probabilities"

    @classmethod
    def fit(cls, output: Mapping[str, Tensor], batch: Batch) -> Fit:
        """See :class:`Task`. Float labels [B, C] are probabilities if each row is and sums to 1."""
        logits, labels = output.get("logits"), batch.labels
        if logits is None or logits.ndim != 2 or logits.shape[1] < 2:
            return Fit.NO
        if labels is None:
            return Fit.POSSIBLE
        if not isinstance(labels, Tensor) or labels.dtype == torch.bool:
            return Fit.NO
        if labels.is_floating_point():
            return Fit.CERTAIN if labels.ndim == 2 and _are_probabilities(labels) else Fit.NO
        return Fit.CERTAIN if labels.ndim == 1 else Fit.NO

    def shape_fits(self, logits: Tensor, labels: Tensor) -> bool:
        """See :class:`CategoricalTask`."""
        return logits.ndim == 2 and labels.shape == logits.shape[:1]

    def check(self, output: Mapping[str, Tensor], labels: Tree) -> None:
        """See :class:`Task`."""
        logits = head(output, "logits", self)
        if logits.ndim != 2:
            raise mismatch(self, f"logits {list(logits.shape)}", "student")
        if isinstance(labels, Tensor) and labels.is_floating_point() and labels.ndim == 2:
            super().check(output, None)
            if labels.shape[1] != logits.shape[1]:
                raise InputError(
                    f"labels have {labels.shape[1]} columns, the student {logits.shape[1]} classes",
                    where="labels",
                    remedy="give each class of the student one column",
                )
            return
        super().check(output, labels)

    def label_loss(
        self, output: Mapping[str, Tensor], labels: Tree, weights: Tensor | None = None, smoothing: float = 0.0
    ) -> Tensor:
        """See :class:`CategoricalTask`; labels may be probabilities."""
        logits = output["logits"]
        if labels.is_floating_point():
            return losses.cross_entropy(logits, labels, weights, smoothing)
        if weights is not None or smoothing or self.ignore_index is not None:
            return super().label_loss(output, labels, weights, smoothing)
        count = (labels != IGNORED).sum().clamp_min(1)
        return F.cross_entropy(logits, labels.long(), ignore_index=IGNORED, reduction="sum") / count

    def distance(
        self,
        student: Mapping[str, Tensor],
        teacher: Mapping[str, Tensor],
        labels: Tree = None,
        weights: Tensor | None = None,
        tau: float = 1.0,
    ) -> Tensor:
        """See :class:`CategoricalTask`."""
        return losses.kd(student["logits"], teacher["logits"], tau, weights)

    def rows(
        self,
        student: Mapping[str, Tensor],
        teacher: Mapping[str, Tensor] | None,
        labels: Tree,
        weights: Tensor | None = None,
    ) -> Rows:
        """See :class:`CategoricalTask`; probabilities stay probabilities."""
        if isinstance(labels, Tensor) and labels.is_floating_point():
            return Rows(student["logits"], None if teacher is None else teacher["logits"], labels, weights)
        return super().rows(student, teacher, labels, weights)


def _are_probabilities(labels: Tensor) -> bool:
    return bool((labels >= 0).all()) and bool((labels.sum(1) - 1).abs().max() < 1e-3)
