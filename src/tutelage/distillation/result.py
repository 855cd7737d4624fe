"""What training gives."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn

Record = dict[str, Any]


@dataclass
class TrainingResult:
    """What training gives: the exported student, the log's records in order, and the seconds spent on training alone
    (of all calls of a resumed run; evaluation not counted). ``metrics``: the last evaluation's.
    ``parameters_without_gradient``: trainable parameters that got no gradient in the first step although the method
    does not declare them unused."""

    student: nn.Module
    history: list[Record] = field(default_factory=list)
    seconds: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)
    parameters_without_gradient: tuple[str, ...] = ()
