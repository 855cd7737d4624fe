"""Multi-label classification: C independent yes-or-no answers a sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from tutelage.distillation.data import Batch, Tree
from tutelage.distillation.tasks.base import Fit, Task, TaskMeter, head, masked_mean, mismatch, task
from tutelage.distillation.tasks.metrics import LabelScores, Metric


@task("multi-label")
@dataclass(frozen=True)
class MultiLabel(Task):
    """C independent labels: binary cross-entropy; binary KL divergence to the teacher, label by label.

    A label below 0 (-1 or -100) is unknown: it is left out of the label loss and of the metrics. Logits and labels may
    have further axes (masks [B, C, H, W], one channel a label). One yes or no is [B, 1].
    """

    metrics = (Metric("mAP", "%"), Metric("F1", "%"), Metric("F1 macro", "%"))
    layout = "logits [B, C]; labels [B, C] of 0 and 1 (or probabilities), below 0 ignored"

    @classmethod
    def fit(cls, output: Mapping[str, Tensor], batch: Batch) -> Fit:
        """See :class:`Task`. Float zeros and ones may also be values to regress to: not certain."""
        logits, labels = output.get("logits"), batch.labels
        if logits is None or logits.ndim < 2:
            return Fit.NO
        if labels is None:
            return Fit.POSSIBLE if logits.ndim == 2 else Fit.NO
        if not isinstance(labels, Tensor) or labels.shape != logits.shape:
            return Fit.NO
        if labels.dtype == torch.bool:
            return Fit.CERTAIN
        binary = bool(((labels == 0) | (labels == 1) | (labels == -1) | (labels == -100)).all())
        if not binary:
            return Fit.NO
        return Fit.POSSIBLE if labels.is_floating_point() else Fit.CERTAIN

    def check(self, output: Mapping[str, Tensor], labels: Tree) -> None:
        """See :class:`Task`."""
        logits = head(output, "logits", self)
        if logits.ndim < 2:
            raise mismatch(self, f"logits {list(logits.shape)}", "student")
        if labels is None:
            return
        if not isinstance(labels, Tensor) or labels.shape != logits.shape:
            shape = list(labels.shape) if isinstance(labels, Tensor) else type(labels).__name__
            raise mismatch(self, f"labels {shape} with logits {list(logits.shape)}")
        if labels.dtype != torch.bool and len(labels) and labels.max() > 1:
            raise mismatch(self, f"a label is {labels.max().item():g}, it lies in 0..1")

    def label_loss(self, output: Mapping[str, Tensor], labels: Tree, weights: Tensor | None = None) -> Tensor:
        """``-y log s(z) - (1 - y) log(1 - s(z))``; see :class:`Task`."""
        targets = labels.to(output["logits"].dtype)
        loss = F.binary_cross_entropy_with_logits(output["logits"], targets.clamp_min(0), reduction="none")
        return masked_mean(loss, targets >= 0, weights)

    def distance(
        self,
        student: Mapping[str, Tensor],
        teacher: Mapping[str, Tensor],
        labels: Tree = None,
        weights: Tensor | None = None,
        tau: float = 1.0,
    ) -> Tensor:
        """``tau^2 KL`` of the two Bernoulli distributions ``s(z / tau)``, mean over labels; see :class:`Task`."""
        own, other = student["logits"] / tau, teacher["logits"].detach() / tau
        yes = other.sigmoid() * (F.logsigmoid(other) - F.logsigmoid(own))
        no = (-other).sigmoid() * (F.logsigmoid(-other) - F.logsigmoid(-own))
        return masked_mean(tau * tau * (yes + no), None, weights)

    def meter(self) -> TaskMeter:
        """See :class:`Task`."""
        return MultiLabelMeter()


class MultiLabelMeter(TaskMeter):
    """Precision and F1 of labels; further axes (pixels) count as samples. A probability counts from 0.5 on."""

    def __init__(self) -> None:
        self.scores = LabelScores()

    def update(self, output: Mapping[str, Tensor], labels: Tree) -> None:
        """See :class:`TaskMeter`."""
        logits, labels = output["logits"], labels.double()
        hard = torch.where(labels < 0, -1, (labels >= 0.5).long())
        self.scores.update(logits.movedim(1, -1).flatten(0, -2), hard.movedim(1, -1).flatten(0, -2))

    def compute(self) -> dict[str, float]:
        """See :class:`TaskMeter`."""
        return self.scores.compute()
