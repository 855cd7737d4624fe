"""A training job: student, teacher, method, data and settings. The one trainer runs it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_type_hints

import torch
from torch import nn

from tutelage.distillation.data import Batch, ReplayableData, SampleOrder, TensorData, flatten_tree
from tutelage.distillation.data.sources import as_data
from tutelage.distillation.method import Method
from tutelage.distillation.tasks import Task, make_task
from tutelage.distillation.teacher import Teacher, as_teacher
from tutelage.errors import InputError, did_you_mean
from tutelage.fields import check_memory

__all__ = ["Batch", "ReplayableData", "TrainingJob", "SampleOrder", "TrainingSettings", "TensorData"]


MAX_COUNT = 10**9
"""The most that a setting which counts something may be."""
_LEAST = {
    "steps": 0,
    "batch_size": 1,
    "accumulate": 1,
    "warmup": 0,
    "views": 0,
    "checkpoint_every": 0,
    "log_every": 0,
    "eval_every": 0,
}


@dataclass(frozen=True)
class TrainingSettings:
    """How a training job is run.

    Attributes:
        steps: optimiser steps.
        batch_size: samples a forward pass; a step sees ``batch_size * accumulate`` samples.
        lr, weight_decay, momentum, nesterov, betas: as in torch's optimisers; decay falls on every parameter.
        schedule: of the learning rate, after ``warmup`` steps of linear rise: ``constant``, ``cosine`` (to 0),
            ``linear`` (to 0), or ``steps`` (times ``gamma`` at each of ``milestones``, given as shares of all steps).
        clip: largest gradient norm over all parameters; None: no clipping.
        precision: ``fp32``, or ``bf16`` (autocast; weights and optimiser stay fp32).
        views: 0: a new view of each sample every epoch; V: the views repeat after V epochs (what a cache can hold).
        view_seed: names the views; None: ``seed`` does. Runs that share a cache share it, whatever their seeds.
        checkpoint_every, log_every, eval_every: in steps; 0: only at the end. Checkpoints need a folder.
        device: where student, method and a live teacher run.
        channels_last: 4-D inputs and weights in that layout.
    """

    steps: int = 1000
    batch_size: int = 64
    lr: float = 1e-3
    weight_decay: float = 0.0
    optimizer: Literal["adamw", "sgd"] = "adamw"
    momentum: float = 0.9
    nesterov: bool = False
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: Literal["constant", "cosine", "linear", "steps"] = "cosine"
    warmup: int = 0
    milestones: tuple[float, ...] = ()
    gamma: float = 0.1
    clip: float | None = None
    accumulate: int = 1
    precision: Literal["fp32", "bf16"] = "fp32"
    seed: int = 0
    views: int = 0
    view_seed: int | None = None
    checkpoint_every: int = 500
    log_every: int = 50
    eval_every: int = 0
    device: str = "cpu"
    channels_last: bool = False

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for name in ("optimizer", "schedule", "precision"):
            known = list(get_args(hints[name]))
            if getattr(self, name) not in known:
                raise InputError(
                    f"unknown {name} {getattr(self, name)!r}",
                    where=f"settings.{name}",
                    remedy=did_you_mean(str(getattr(self, name)), known),
                )
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value < least:
                raise InputError(f"{value} is too small", where=f"settings.{name}", remedy=f"at least {least}")
            if value > MAX_COUNT:
                raise InputError(f"{value:,} is too large", where=f"settings.{name}", remedy=f"at most {MAX_COUNT:,}")
        for name in ("lr", "weight_decay", "momentum", "gamma", "clip"):
            if (value := getattr(self, name)) is not None and not math.isfinite(value):
                raise InputError(f"{value} is no finite number", where=f"settings.{name}", remedy="give a finite number")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise InputError(f"{self.betas} do not lie in 0..1", where="settings.betas", remedy="the usual: [0.9, 0.999]")
        try:
            usable = torch.device(self.device).type != "meta"
        except RuntimeError:
            usable = False
        if not usable:
            raise InputError(f"no device {self.device!r}", where="settings.device", remedy="cpu, cuda or cuda:0")
        if self.clip is not None and self.clip <= 0:
            raise InputError(f"clip must be positive, not {self.clip}", where="settings.clip", remedy="null: no clipping")
        if self.lr < 0 or self.weight_decay < 0:
            raise InputError("learning rate and weight decay cannot be negative", where="settings.lr")


@dataclass
class TrainingJob:
    """What one training run is made of. ``train`` changes ``student`` in place.

    Attributes:
        student: the network to teach; a tensor or dict of heads comes out of it.
        teacher: a ``Teacher``, a network (then frozen, in eval mode), a callable (a black box), or None.
        method: what the loss is.
        data: the samples; or a torch ``Dataset``, read lazily, and whatever else ``as_data`` takes.
        settings: how to run it.
        name: what the training job is called in messages and logs.
        evaluate: scores the student (in eval mode, without gradients): a dict of figures, logged; or labelled data, on
            which the metrics of the task are measured.
        task: what the student predicts, by name or itself; None: the only one that the method supports, or else inferred
            from the first batch by :func:`checks.resolve_task`.
    """

    student: nn.Module
    teacher: Teacher | None
    method: Method
    data: ReplayableData
    settings: TrainingSettings = field(default_factory=TrainingSettings)
    name: str = "lesson"
    evaluate: Callable[[nn.Module], Mapping[str, float]] | ReplayableData | None = None
    task: Task | str | None = None

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
        if self.evaluate is not None and not callable(self.evaluate):
            self.evaluate = as_data(self.evaluate)
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

    def sample_order(self) -> SampleOrder:
        """Which samples, in which views, each forward pass takes."""
        s = self.settings
        return SampleOrder(len(self.data), s.batch_size, s.seed, s.views, s.view_seed)

    def fingerprint_parts(self) -> list[Any]:
        """What two runs must share to be the same run."""
        teacher = self.teacher.fingerprint if self.teacher is not None else None
        return [
            self.name,
            self.settings,
            type(self.method).__qualname__,
            self.method.config,
            self.data.fingerprint,
            self.task.fingerprint_parts if isinstance(self.task, Task) else None,
            teacher,
            [[name, list(value.shape)] for name, value in self.student.state_dict().items()],
        ]
