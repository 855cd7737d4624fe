"""A training job: student, teacher, method, data and settings. The one trainer runs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from tutelage.distillation.data import Batch, BatchOrder, ReplayableData, SampleOrder, TensorData, flatten_tree, order_of
from tutelage.distillation.data.sources import as_data
from tutelage.distillation.method import Method
from tutelage.distillation.settings import TrainingSettings
from tutelage.distillation.tasks import Task, make_task
from tutelage.distillation.teacher import Teacher, as_teacher
from tutelage.errors import InputError
from tutelage.fields import check_memory
from tutelage.storage import fingerprint

__all__ = ["Batch", "ReplayableData", "TrainingJob", "SampleOrder", "TrainingSettings", "TensorData", "Score"]

Score = Callable[[nn.Module], Mapping[str, float]] | ReplayableData
"""What gives a student's figures: a function, or labelled data on which the task's metrics are measured."""

INITIAL_WEIGHTS = "student's initial weights"
REMEDIES = {
    INITIAL_WEIGHTS: "a network given as an object starts at random anew in each call: give a function that builds it, "
    "student=lambda: Net(), which is called under the run's seed, or call torch.manual_seed(0) before you build it; "
    "or choose a new folder",
    "teacher": "its weights, its code or what it holds changed: choose a new folder, or give the teacher of the first call",
}
"""What to do where a run folder and a call differ in this alone."""


@dataclass
class TrainingJob:
    """What one training run is made of. ``train`` changes ``student`` in place.

    Attributes:
        student: the network to teach; a tensor or dict of heads comes out of it.
        teacher: a ``Teacher``, a network (then frozen, in eval mode), a callable (a black box), or None.
        method: what the loss is.
        data: the samples; or a torch ``Dataset``, read lazily, and whatever else ``as_data`` takes.
        settings: how to run it.
        name: what the job is called in messages and logs.
        evaluate: scores the student (in eval mode, without gradients): a dict of figures, logged; or labelled data, on
            which the metrics of the task are measured. Nothing is chosen by it.
        task: what the student predicts, by name or itself; None: the only one that the method supports, or else inferred
            from the first batch by :func:`checks.resolve_task`.
        validation: like ``evaluate``, and what is kept is chosen by it: the best student (``settings.keep``), and when to
            stop (``settings.patience``). These figures are in ``TrainingResult.selection``, never in ``metrics``.
    """

    student: nn.Module
    teacher: Teacher | None
    method: Method
    data: ReplayableData
    settings: TrainingSettings = field(default_factory=TrainingSettings)
    name: str = "lesson"
    evaluate: Score | None = None
    task: Task | str | None = None
    validation: Score | None = None

    def __post_init__(self) -> None:
        self.teacher = as_teacher(self.teacher)
        self.data = as_data(self.data)
        if len(self.data) == 0:
            raise InputError("the data holds no sample", where=self.name, remedy="check the path and the split")
        if isinstance(self.data, TensorData):
            sample = sum(leaf.nbytes // len(leaf) for _, leaf in flatten_tree(self.data.inputs))
            where, remedy = f"{self.name}: settings.batch_size", "take smaller batches, and accumulate"
            check_memory(
                self.settings.batch_size * (sample + 16), f"a batch of {self.settings.batch_size:,} samples", where, remedy
            )
        if self.teacher is None and self.method.needs_teacher:
            raise InputError(
                f"{type(self.method).__name__} needs a teacher",
                where=self.name,
                remedy="give teacher=…, a network or a Teacher",
            )
        self.settings = self.settings.resolve(len(self.data))
        self.evaluate, self.validation = as_score(self.evaluate), as_score(self.validation)
        check_selection(self)
        if self.task is not None:
            self.set_task(make_task(self.task))

    def set_task(self, task: Task) -> None:
        """Make ``task`` the job's and the method's.

        Raises:
            InputError: the method does not support it; the message lists the tasks that it does.
        """
        supported = self.method.tasks
        if supported and task.name not in supported:
            raise InputError(
                f"{type(self.method).__name__} does not support the task {task.name}",
                where="task",
                remedy=f"it supports {', '.join(supported)}",
            )
        self.task = self.method.task = task

    def sample_order(self) -> BatchOrder:
        """Which samples, in which views, each forward pass takes."""
        s = self.settings
        return order_of(self.data, s.batch_size, s.seed, s.views, s.view_seed, s.steps, s.accumulate)

    def fingerprint_parts(self) -> dict[str, Any]:
        """What two runs must share to be the same run, by the names under which a refusal speaks of it."""
        by = self.validation
        parts = {
            "name": self.name,
            "settings": self.settings,
            "method": type(self.method).__qualname__,
            "options": self.method.config,
            "data": self.data.fingerprint,
            "task": self.task.fingerprint_parts if isinstance(self.task, Task) else None,
            "teacher": self.teacher.fingerprint if self.teacher is not None else None,
            "student's layers": fingerprint([[name, list(v.shape)] for name, v in self.student.state_dict().items()]),
        }
        if by is not None:
            parts["validation"] = getattr(by, "fingerprint", None) or getattr(by, "__qualname__", type(by).__qualname__)
        return parts


def as_score(score: Any) -> Score | None:
    """A function as itself, labelled data as :func:`as_data` takes them, None as None."""
    return score if score is None or callable(score) else as_data(score)


def check_selection(job: TrainingJob) -> None:
    """Refuse settings of a selection that cannot be made, and figures reported on the data that chose the student.

    Raises:
        InputError: there is no validation data to select on, or ``evaluate`` is the validation data.
    """
    if job.validation is None:
        for name in ("patience", "metric", "lower_is_better"):
            if getattr(job.settings, name) is not None:
                raise InputError(f"{name} without validation data", where=f"settings.{name}", remedy="give validation=…")
        return
    same = job.evaluate is job.validation
    if not same and not callable(job.evaluate) and not callable(job.validation) and job.evaluate is not None:
        same = job.evaluate.fingerprint == job.validation.fingerprint
    if same:
        raise InputError(
            "evaluate and validation are the same data: figures on data that chose the student are too good",
            where="evaluate",
            remedy="give other data, or leave evaluate out: the validation figures are in result.selection",
        )
