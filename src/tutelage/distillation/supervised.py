"""Training on labels alone: the baseline that every distillation is measured against."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from tutelage.distillation import losses
from tutelage.distillation.data import Batch
from tutelage.distillation.method import Method, Output, Terms
from tutelage.distillation.method import forward_heads as answer_of
from tutelage.distillation.teacher import Teacher


class Supervised(Method):
    """Cross-entropy with the labels; a teacher, if there is one, is never asked."""

    needs_teacher = False
    needs_labels = True

    @dataclass(frozen=True)
    class Config:
        """smoothing: of the labels."""

        smoothing: float = 0.0

    def forward(self, batch: Batch, student: nn.Module, teacher: Teacher | None) -> tuple[Output, Output]:
        """One pass of the student."""
        return answer_of(student, batch.inputs), {}

    def loss_terms(self, batch: Batch, student: Output, teacher: Output) -> Terms:
        """``label``."""
        return {"label": losses.cross_entropy(student["logits"], batch.labels, batch.weights, self.config.smoothing)}
