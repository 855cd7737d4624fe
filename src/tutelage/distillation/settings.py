"""How a job is trained: every setting, and the one place where settings are refused."""

from __future__ import annotations

import math
import types
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Union, cast, get_args, get_origin, get_type_hints

import torch

from tutelage.errors import InputError, did_you_mean
from tutelage.fields import check_kind

DEFAULT_STEPS = 1000
MAX_COUNT = 10**9
"""The most that a setting which counts something may be."""


class _Range(NamedTuple):
    """The numbers that a setting may be: from ``least`` (with ``open``: above it) to ``most`` (with ``below``: under it)."""

    least: float = 0
    most: float = math.inf
    open: bool = False
    below: bool = False

    def check(self, value: float, where: str, remedy: str | None) -> None:
        """Raise InputError where ``value`` is out of range."""
        small = value <= self.least if self.open else value < self.least
        large = value >= self.most if self.below else value > self.most
        if not math.isfinite(value) or small or large:
            what = f"{value:,} is too {'small' if small else 'large'}" if math.isfinite(value) else f"{value} is no finite number"
            raise InputError(what, where=where, remedy=f"{self}; {remedy}" if remedy else str(self))

    def __str__(self) -> str:
        low = f"above {self.least:,}" if self.open else f"at least {self.least:,}"
        return low if self.most == math.inf else f"{low} and {'below' if self.below else 'at most'} {self.most:,}"


_COUNT, _FROM_0, _SHARE = _Range(1, MAX_COUNT), _Range(0, MAX_COUNT), _Range(0, 1, below=True)
_RANGES: Mapping[str, _Range] = MappingProxyType(
    {
        "steps": _COUNT,
        "epochs": _Range(0, MAX_COUNT, open=True),
        "batch_size": _COUNT,
        "accumulate": _COUNT,
        "patience": _COUNT,
        "lr": _Range(),
        "weight_decay": _Range(),
        "weight_decay_end": _Range(),
        "layer_decay": _Range(0, 1, open=True),
        "momentum": _SHARE,
        "betas": _SHARE,
        "milestones": _Range(0, 1),
        "gamma": _Range(),
        "clip": _Range(open=True),
        "ema": _Range(0, 1),
        "seed": _Range(0, 2**63 - 1),
        "view_seed": _Range(0, 2**63 - 1),
        "warmup": _FROM_0,
        "warmup_epochs": _Range(0, MAX_COUNT),
        "views": _FROM_0,
        "checkpoint_every": _FROM_0,
        "log_every": _FROM_0,
        "eval_every": _FROM_0,
    }
)
_REMEDIES: Mapping[str, str] = MappingProxyType(
    {
        "clip": "None (null in JSON) for no clipping",
        "betas": "the usual: [0.9, 0.999]",
        "milestones": "shares of all steps, such as [0.5, 0.75]",
        "ema": "a decay such as 0.999, or (first, last)",
        "seed": "a whole number, 0 or more",
    }
)


@dataclass(frozen=True)
class TrainingSettings:
    """How a job is run. Every field is checked: its type, its range, and that it agrees with the others.

    Attributes:
        steps: optimiser steps; 1000 where neither steps nor epochs are given. None while ``epochs`` wait for the data.
        epochs: passes over the data, instead of ``steps``; a job turns them into steps, rounded up.
        batch_size: samples a forward pass; a step sees ``batch_size * accumulate`` samples.
        lr, weight_decay, momentum, nesterov, betas: as in torch's optimisers.
        weight_decay_end: the decay follows half a cosine from ``weight_decay`` to this; None: it stays.
        decay_exempt: what decay spares. None: what network or method name (``optim.declared_exempt_names``), as the
            published networks do. True: also norms, biases, position tables and tokens (``optim.decay_exempt_names``).
            False: nothing.
        layer_decay: the learning rate of a block is this times that of the block behind it (``optim.layer_numbers``).
        schedule: of the learning rate, after ``warmup`` steps of linear rise: ``constant``, ``cosine`` (to 0),
            ``linear`` (to 0), or ``steps`` (times ``gamma`` at each of ``milestones``, given as shares of all steps).
        warmup_epochs: passes over the data, instead of ``warmup``; a job turns them into steps, rounded.
        clip: largest gradient norm over all parameters; None: no clipping.
        precision: ``fp32``, ``bf16``, or, on a GPU, ``fp16`` with scaled gradients (autocast; weights and optimiser stay fp32).
        ema: export, and evaluate, the moving average of the student's weights with this decay, instead of the last weights;
            (first, last): the decay rises along half a cosine over the run.
        views: 0: a new view of each sample every epoch; V: the views repeat after V epochs (what a cache can hold).
        view_seed: names the views; None: ``seed`` does. Runs that share a cache share it, whatever their seeds.
        checkpoint_every, log_every: in steps; 0: only at the end. Checkpoints need a folder.
        eval_every: steps between evaluations; 0: only at the end, but validation once an epoch, and at least ten times.
        keep: which student a run with validation data exports: the ``best`` on them, or the ``last``.
        metric: the figure that says which is best; None: the task's main metric.
        lower_is_better: of ``metric``; None: as the task's metric of that name says.
        patience: stop after so many evaluations in a row without a better student; None: never.
        device: where student, method and a live teacher run.
        channels_last: 4-D inputs and weights in that layout.

    Raises:
        InputError: the message names the setting and says what it may be.
    """

    steps: int = field(default=cast(int, None))
    epochs: float | None = None
    batch_size: int = 64
    lr: float = 1e-3
    weight_decay: float = 0.0
    weight_decay_end: float | None = None
    decay_exempt: bool | None = None
    layer_decay: float = 1.0
    optimizer: Literal["adamw", "sgd"] = "adamw"
    momentum: float = 0.9
    nesterov: bool = False
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: Literal["constant", "cosine", "linear", "steps"] = "cosine"
    warmup: int = 0
    warmup_epochs: float | None = None
    milestones: tuple[float, ...] = ()
    gamma: float = 0.1
    clip: float | None = None
    accumulate: int = 1
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    ema: float | tuple[float, float] | None = None
    seed: int = 0
    views: int = 0
    view_seed: int | None = None
    checkpoint_every: int = 500
    log_every: int = 50
    eval_every: int = 0
    keep: Literal["best", "last"] = "best"
    metric: str | None = None
    lower_is_better: bool | None = None
    patience: int | None = None
    device: str = "cpu"
    channels_last: bool = False

    def __post_init__(self) -> None:
        if self.epochs is None and self.steps is None:
            object.__setattr__(self, "steps", DEFAULT_STEPS)
        hints = get_type_hints(type(self))
        hints["steps"] = int | None if self.epochs is not None else int
        for item in fields(self):
            where = f"settings.{item.name}"
            value = _typed(getattr(self, item.name), hints[item.name], where, _REMEDIES.get(item.name))
            object.__setattr__(self, item.name, value)
            allowed = _RANGES.get(item.name)
            if allowed is not None and value is not None:
                for number in value if isinstance(value, tuple) else (value,):
                    allowed.check(number, where, _REMEDIES.get(item.name))
        self._check_together()

    def _check_together(self) -> None:
        if self.epochs is not None and self.steps is not None:
            raise InputError("both steps and epochs are given", where="settings.epochs", remedy="give one, the other as None")
        if self.warmup and self.warmup_epochs is not None:
            remedy = "give one, and leave the other out"
            raise InputError("both warmup and warmup_epochs are given", where="settings.warmup_epochs", remedy=remedy)
        if list(self.milestones) != sorted(self.milestones):
            raise InputError(f"{self.milestones} are not in order", where="settings.milestones", remedy="the earliest first")
        if self.nesterov and not self.momentum and self.optimizer == "sgd":
            raise InputError("nesterov without momentum", where="settings.nesterov", remedy="give a momentum above 0")
        if self.weight_decay_end is not None and not self.weight_decay:
            raise InputError(
                "there is no weight_decay from which to go there", where="settings.weight_decay_end", remedy="give a weight_decay"
            )
        try:
            kind = torch.device(self.device).type
        except RuntimeError:
            kind = "meta"
        if kind == "meta":
            raise InputError(f"no device {self.device!r}", where="settings.device", remedy="cpu, cuda or cuda:0")
        if self.precision == "fp16" and kind == "cpu":
            raise InputError("fp16 needs a GPU", where="settings.precision", remedy="bf16 or fp32 on this device, or device='cuda'")

    def resolve(self, samples: int) -> TrainingSettings:
        """These settings with ``epochs`` turned into the steps that they take over ``samples``, rounded up, and
        ``warmup_epochs`` likewise, rounded."""
        if self.epochs is None and self.warmup_epochs is None:
            return self
        a_step = self.batch_size * self.accumulate
        steps = self.steps if self.epochs is None else max(1, math.ceil(self.epochs * samples / a_step))
        warmup = self.warmup if self.warmup_epochs is None else round(self.warmup_epochs * samples / a_step)
        return replace(self, steps=steps, epochs=None, warmup=warmup, warmup_epochs=None)


_PAIRS = (("steps", "epochs", None), ("epochs", "steps", None), ("warmup", "warmup_epochs", None), ("warmup_epochs", "warmup", 0))
"""Settings that take each other's place, with the value of the one that is not given."""


def make_settings(settings: TrainingSettings | None, overrides: Mapping[str, Any]) -> TrainingSettings:
    """``settings`` with single fields replaced; ``steps`` replace ``epochs``, and the other way round; warm-up likewise.

    Raises:
        InputError: a field that does not exist (the message offers the nearest names), or a value that it refuses.
    """
    if not isinstance(settings, TrainingSettings | None):
        raise InputError(f"{type(settings).__name__} is no TrainingSettings", where="settings", remedy="TrainingSettings(lr=1e-3)")
    known = [item.name for item in fields(TrainingSettings)]
    for name in overrides:
        if name not in known:
            raise InputError(f"no setting {name!r}", where=name, remedy=did_you_mean(name, known))
    changes = dict(overrides)
    for one, other, absent in _PAIRS:
        if changes.get(one) is not None:
            changes.setdefault(other, absent)
    return replace(settings or TrainingSettings(), **changes)


def _typed(value: Any, hint: Any, where: str, remedy: str | None) -> Any:
    """``value`` as its hint says: lists become tuples, NumPy's and torch's scalars Python's.

    Raises:
        InputError: it is of another type.
    """
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in inner:
            return None
        kinds = [kind for kind in inner if kind is not type(None)]
        several = isinstance(value, (list, tuple))
        hint = next((kind for kind in kinds if (get_origin(kind) is tuple) == several), kinds[0])
        return _typed(value, hint, where, remedy)
    if origin is Literal:
        if not isinstance(value, str) or value not in inner:
            raise InputError(f"unknown value {value!r}", where=where, remedy=did_you_mean(str(value), list(inner)))
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)) or (inner[-1] is not Ellipsis and len(value) != len(inner)):
            many = "a list of numbers" if inner[-1] is Ellipsis else f"a pair of numbers ({len(inner)})"
            raise InputError(f"{value!r} is not {many}"[:200], where=where, remedy=remedy or "give a list")
        return tuple(_typed(one, inner[0], where, remedy) for one in value)
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        value = value.item()
    return check_kind(value, hint, where, remedy or f"give {_EXAMPLES[hint]}")


_EXAMPLES: Mapping[type, str] = MappingProxyType({int: "a whole number", float: "a number", str: "a text", bool: "True or False"})
