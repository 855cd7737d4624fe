"""Schedules: learning rates, and weights or temperatures that change over training. All are functions of the step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from tutelage.errors import InputError

if TYPE_CHECKING:
    from tutelage.distillation.job import TrainingSettings
    from tutelage.distillation.method import Phase

Curve = Callable[[float], float]
"""A value as a function of the fraction of training done, 0..1."""


def learning_rate(settings: TrainingSettings, step: int, steps: int) -> float:
    """The factor on the learning rate at ``step`` of ``steps``: linear rise over ``warmup`` steps, then the curve."""
    if step < settings.warmup:
        return (step + 1) / (settings.warmup + 1)
    fraction = (step - settings.warmup) / max(1, steps - settings.warmup)
    match settings.schedule:
        case "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * fraction))
        case "linear":
            return 1.0 - fraction
        case "steps":
            return settings.gamma ** sum(step / max(1, steps) >= milestone for milestone in settings.milestones)
    return 1.0


def constant(value: float) -> Curve:
    """Always ``value``."""
    return lambda fraction: value


def linear(first: float, last: float, start: float = 0.0, end: float = 1.0) -> Curve:
    """``first`` until ``start``, linear to ``last`` at ``end``."""
    if not 0 <= start < end <= 1:
        raise InputError(f"a ramp from {start} to {end}", remedy="0 <= start < end <= 1")
    return lambda fraction: first + (last - first) * min(1.0, max(0.0, (fraction - start) / (end - start)))


def cosine(first: float, last: float) -> Curve:
    """Half a cosine from ``first`` to ``last``."""
    return lambda fraction: last + (first - last) * 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, fraction))))


def piecewise_constant(values: list[float], at: list[float]) -> Curve:
    """``values[i]`` from fraction ``at[i-1]`` on; one value more than steps."""
    if len(values) != len(at) + 1 or sorted(at) != at:
        raise InputError(f"{len(values)} values for {len(at)} changes", remedy="one value more than changes, in order")
    return lambda fraction: values[sum(fraction >= change for change in at)]


def boundaries(phases: Sequence[Phase], steps: int) -> list[tuple[Phase, int, int]]:
    """(stage, first step, steps) of each; shares are rounded so that the stages fill all steps."""
    total = sum(stage.share for stage in phases)
    if not phases or total <= 0:
        raise InputError("a method needs at least one stage with a share above 0", remedy="check stages()")
    edges, reached = [0], 0.0
    for stage in phases:
        reached += stage.share
        edges.append(round(steps * reached / total))
    return [(stage, first, last - first) for stage, first, last in zip(phases, edges, edges[1:], strict=False)]
