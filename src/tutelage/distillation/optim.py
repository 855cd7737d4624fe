"""Which parameters are trained, and the optimiser that trains them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from tutelage.distillation.job import TrainingSettings
from tutelage.distillation.method import Method
from tutelage.errors import InputError


def trainable_parameters(student: nn.Module, method: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Each parameter that needs a gradient, named ``student.…`` or ``method.…``."""
    for owner, module in (("student", student), ("method", method)):
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                yield f"{owner}.{name}", parameter


def make_optimizer(
    settings: TrainingSettings, student: nn.Module, method: Method, parameters: list[nn.Parameter]
) -> torch.optim.Optimizer:
    """The optimiser the settings ask for, fused where torch can, over the method's groups.

    Raises:
        InputError: nothing to train, or groups that leave out or repeat a trainable parameter.
    """
    groups = method.groups(student)
    given: list[dict[str, Any]] = [dict(group) for group in groups] if groups is not None else [{"params": parameters}]
    for group in given:
        group["params"] = [p for p in group["params"] if p.requires_grad]
    covered = sum(len(group["params"]) for group in given)
    if {id(p) for group in given for p in group["params"]} != {id(p) for p in parameters} or covered != len(parameters):
        raise InputError(
            f"groups() names {covered} trainable parameters, student and method have {len(parameters)}",
            where=type(method).__name__,
            remedy="put each trainable parameter of student and method into exactly one group",
        )
    if not parameters:
        raise InputError("nothing to train: no parameter needs a gradient", remedy="is the student frozen?")
    if len({type(p) for p in parameters}) > 1:  # split and whole ones, or quantised: one kind a group, in the same order
        given = [{**group, "params": list(kind)} for group in given for _, kind in itertools.groupby(group["params"], type)]
    plain = all(p.dtype in (torch.float32, torch.float64, torch.bfloat16) for p in parameters)
    common: dict[str, Any] = {"lr": settings.lr, "weight_decay": settings.weight_decay, "fused": plain}
    if settings.optimizer == "sgd":
        split = any(hasattr(p, "to_local") for p in parameters)
        late = settings.momentum and any(stage.trains is not None for stage in method.phases())
        common["fused"] = plain and not split and not late  # torch's wants whole parameters, all with momentum or none
        return torch.optim.SGD(given, momentum=settings.momentum, nesterov=settings.nesterov, **common)
    return torch.optim.AdamW(given, betas=settings.betas, **common)
