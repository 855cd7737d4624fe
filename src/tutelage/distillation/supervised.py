"""Training on labels alone: the baseline that every distillation is measured against."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from tutelage.distillation.data import Batch
from tutelage.distillation.method import Method
from tutelage.distillation.outputs import Output, Terms
from tutelage.distillation.outputs import forward_heads as answer_of
from tutelage.distillation.tasks import CategoricalTask
from tutelage.distillation.tasks import tasks as every_task
from tutelage.distillation.teacher import Teacher
from tutelage.errors import InputError


class Supervised(Method):
    """The task's label loss alone; a teacher, if there is one, is not called."""

    tasks = tuple(every_task())
    needs_teacher = False
    needs_labels = True

    @dataclass(frozen=True)
    class Config:
        """``smoothing``: of the labels, for tasks with classes."""

        smoothing: float = 0.0

    def forward(self, batch: Batch, student: nn.Module, teacher: Teacher | None) -> tuple[Output, Output]:
        """One pass of the student."""
        return answer_of(student, batch.inputs), {}

    def loss_terms(self, batch: Batch, student: Output, teacher: Output) -> Terms:
        """``label``."""
        task, smoothing = self.task, self.config.smoothing
        if not smoothing:
            return {"label": task.label_loss(student, batch.labels, batch.weights)}
        if not isinstance(task, CategoricalTask):
            raise InputError(f"the task {task.name} has no classes: no smoothing", where="smoothing", remedy="leave it at 0")
        return {"label": task.label_loss(student, batch.labels, batch.weights, smoothing)}
