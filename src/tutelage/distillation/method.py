"""The protocol of a distillation method: it says what the loss is; the trainer owns the loop.

A method in full, classic distillation::

    @system("kd", kind="distillation")
    class KD(Method):
        \"\"\"Soft targets (Hinton, Vinyals, Dean, 2015).\"\"\"

        @dataclass(frozen=True)
        class Config:
            tau: float = 4.0
            alpha: float = 0.9

        def loss_weights(self):
            return {"kd": self.config.alpha, "label": 1 - self.config.alpha}

        def loss_terms(self, batch, student, teacher):
            return {
                "kd": losses.kd(student["logits"], teacher["logits"], self.config.tau),
                "label": losses.cross_entropy(student["logits"], batch.labels),
            }
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

from torch import Tensor, nn

from tutelage.distillation.data import Batch, ReplayableData
from tutelage.distillation.outputs import Output, Terms, forward_heads, unwrap_model
from tutelage.distillation.tasks import Task, make_task
from tutelage.distillation.teacher import Teacher
from tutelage.errors import InputError, did_you_mean


@dataclass(frozen=True)
class Phase:
    """One stretch of training.

    ``share``: its part of the steps, relative to the other stages' shares. ``lr``: factor on the learning rate.
    ``trains``: of a parameter's name (``student.…`` or ``method.…``), whether this stage trains it; None: every one.
    ``restart``: the schedule of the learning rate begins anew, over this stage's steps.
    """

    name: str = "train"
    share: float = 1.0
    lr: float = 1.0
    trains: Callable[[str], bool] | None = None
    restart: bool = False


@dataclass(frozen=True)
class Turn:
    """Parameters with an optimiser of their own, and when it steps.

    In each training step the turns that are due run in order, on the same batches: forward, the loss terms of this turn
    (``self.progress.turn`` says which one it is), backward into this turn's parameters alone, update. A generator and its
    discriminator are two turns; an inner loop is a turn of every step beside one with ``every=5``.

    Attributes:
        name: what ``progress.turn`` says.
        trains: of a parameter's name (``student.…`` or ``method.…``), whether it belongs to this turn; None: every one. Each
            trainable parameter belongs to exactly one turn.
        every, offset: the turn is due in the steps ``offset``, ``offset + every``, … (from 0).
        accumulate: it updates after so many turns, with the mean of their gradients; a rest at the end makes no update.
        settings: of its optimiser, in place of the job's: ``{"lr": 1e-4, "betas": (0.5, 0.999)}``.
    """

    name: str = "train"
    trains: Callable[[str], bool] | None = None
    every: int = 1
    offset: int = 0
    accumulate: int = 1
    settings: Mapping[str, Any] = field(default_factory=dict)


class ResizeParameter(Protocol):
    """Gives a parameter of the student or the method another shape in the middle of training; see ``Method.enter_phase``."""

    def __call__(self, parameter: nn.Parameter, function: Callable[[Tensor], Tensor]) -> None:
        """Apply ``function`` to the parameter, to its optimiser's moments, and to its copies in moving averages."""
        ...


@dataclass(frozen=True, slots=True)
class TrainingProgress:
    """Where training stands: ``step`` of ``steps`` (from 0), ``epoch`` (a real number: samples seen / samples), the
    stage with its own ``phase_step`` of ``phase_steps``, the batch of accumulation within the step (``micro``), and the
    ``turn`` by name."""

    step: int = 0
    steps: int = 1
    epoch: float = 0.0
    epochs: float = 1.0
    phase: Phase = Phase()
    phase_step: int = 0
    phase_steps: int = 1
    micro: int = 0
    turn: str = "train"

    @property
    def fraction(self) -> float:
        """``step / steps``, in 0..1."""
        return self.step / self.steps


class Method(nn.Module):
    """What is learned from what. Subclasses define :meth:`loss_terms`, and override more only where they must.

    State is what ``nn.Module`` makes it: sub-modules with trainable parameters (projections) are trained beside the
    student, buffers and frozen sub-modules (queues, moving averages, class means) are saved and resumed with it. Never
    assign the student or the teacher to an attribute: they are held beside the method (a list or a ``FeatureHooks`` may refer
    to them); the trainer refuses a method that owns their parameters.

    ``progress`` is set by the trainer before each forward. ``unused_parameters``: glob patterns of parameter names (``student.…``,
    ``method.…``) that get no gradient by design; the doctor and the contract test allow these and no others.
    ``no_weight_decay``: patterns likewise, of parameters that weight decay spares unless
    ``settings.decay_exempt`` is off.
    ``needs_labels`` / ``needs_teacher``: refused at the start rather than in the middle. ``deterministic_teacher``: the
    teacher is asked for exactly one answer a batch, on the batch as the data supplied it: only then can it be cached.
    ``student_heads``: heads that the student must have; one without them is refused before training, by their names.
    ``matched_heads``: the heads in which student and teacher must have one shape, where the method reads no task.

    ``tasks``: the names of the tasks that the method supports; a job of any other is refused. Label loss and distance to
    the teacher then come from ``self.task``, which the trainer sets before ``prepare``. Empty: the method has losses of
    its own and reads no task; a job's task then only chooses the metrics.

    A system also offers ``tiny_job(seed) -> TrainingJob``, a class method: a training job of a few seconds that tests and
    the doctor run.
    """

    unused_parameters: tuple[str, ...] = ()
    no_weight_decay: tuple[str, ...] = ()
    needs_labels: bool = False
    needs_teacher: bool = True
    deterministic_teacher: bool = True
    student_heads: tuple[str, ...] = ()
    matched_heads: tuple[str, ...] = ("logits",)
    tasks: tuple[str, ...] = ()

    @dataclass(frozen=True)
    class Config:
        """The options of the method; a subclass defines its own frozen dataclass of plain values."""

    def __init__(self, config: Any = None, **options: Any):
        """``config``, or its fields as ``options``.

        Raises:
            InputError: an option the method does not have; the message offers the nearest names.
        """
        super().__init__()
        known = [item.name for item in fields(self.Config)]
        for name in options:
            if name not in known:
                raise InputError(
                    f"{type(self).__name__} has no option {name!r}",
                    where=name,
                    remedy=did_you_mean(name, known) if known else "it has no options",
                )
        if config is not None and options:
            raise InputError("give a config or its options, not both", remedy="use dataclasses.replace(config, …)")
        try:
            self.config: Any = config if config is not None else self.Config(**options)
        except TypeError as error:
            message = f"an option of {type(self).__name__} is of the wrong type: {error}"
            raise InputError(message, where=", ".join(options), remedy=f"the defaults are {self.Config()}"[:300]) from error
        self.progress = TrainingProgress()
        self._task: Task | None = None

    @property
    def task(self) -> Task:
        """The task of the job; outside a job, the first that the method supports.

        Raises:
            InputError: the method reads no task.
        """
        if self._task is None:
            if not self.tasks:
                raise InputError(f"{type(self).__name__} reads no task", where="tasks", remedy="name those it supports")
            self._task = make_task(self.tasks[0])
        return self._task

    @task.setter
    def task(self, task: Task) -> None:
        self._task = task

    def prepare(self, student: nn.Module, teacher: Teacher | None, example: Batch, data: ReplayableData) -> None:
        """Build what depends on observed shapes or on all data: projections, taps, queues, class means.

        Called once, before the optimiser is made, without gradients, with a seeded global generator, student and
        teacher in eval mode; all buffers must exist afterwards. ``example`` is the first batch. For a pass over the
        plain samples use ``data.batch(indices, None)`` and ``teacher.live``.
        """

    def forward(self, batch: Batch, student: nn.Module, teacher: Teacher | None) -> tuple[Output, Output]:
        """The outputs of student and teacher on ``batch``; the default is one pass of each, teacher first, so that the
        teacher's activations are gone before the student's are kept. Override for several views, rollouts, queues."""
        teacher_outputs = teacher(batch) if teacher is not None else {}
        return forward_heads(student, batch.inputs), teacher_outputs

    def loss_terms(self, batch: Batch, student: Output, teacher: Output) -> Terms:
        """The named losses, unweighted; every call of a run gives the same names."""
        raise NotImplementedError

    def loss_weights(self) -> Mapping[str, float]:
        """The weight of each term at ``self.progress``; a term not named weighs 1, a weight of 0 leaves it out."""
        return {}

    def phases(self) -> Sequence[Phase]:
        """The stretches of training, in order."""
        return (Phase(),)

    def enter_phase(self, phase: Phase, student: nn.Module, resize: ResizeParameter) -> None:
        """Called where a phase begins, before its first batch, and again, in order, where a run is resumed; so it may only
        depend on its arguments.

        Here a position table grows with its optimiser's moments and its moving averages::

            resize(student.positions, lambda table: networks.positions.resize_positions(table, old, new))
        """

    def transform(self, batch: Batch) -> Batch:
        """The batch as this step shows it, at ``self.progress``: such as smaller images in early phases. Student and live
        teacher both see it; the key of its views (ids, seeds) stays."""
        return batch

    def turns(self) -> Sequence[Turn]:
        """Who learns in a step, in order: one turn for each optimiser. Called after ``prepare``."""
        return (Turn(),)

    def groups(self, student: nn.Module) -> Sequence[Mapping[str, Any]] | None:
        """Parameter groups for the optimiser: ``{"params": […], "lr_scale": 1.0, "weight_decay": …}``, covering student
        and method. None: one group of all."""
        return None

    def backward(self, loss: Callable[[], Tensor]) -> None:
        """Accumulate the gradient of ``loss()``. Override where a step needs two passes (sharpness-aware descent)."""
        loss().backward()

    def before_update(self, student: nn.Module) -> None:
        """Called once a step with all gradients in place, before clipping and the optimiser."""

    def after_step(self, student: nn.Module) -> None:
        """Called after each optimiser step: moving averages, queues, sorting."""

    def export(self, student: nn.Module) -> nn.Module:
        """The plain student: runs without any training code, in eval mode, on its own copy of the weights; the network
        itself where it was trained compiled or inside ``DistributedDataParallel``."""
        return copy.deepcopy(unwrap_model(student)).eval().requires_grad_(True)
