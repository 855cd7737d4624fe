"""What training gives."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn

Record = dict[str, Any]


@dataclass
class TrainingResult:
    """What training gives: the exported student, the log's records in order, and the seconds spent on training alone
    (of all calls of a resumed run; evaluation not counted). ``metrics``: of ``student``, by ``evaluate``; nothing was chosen
    by them. ``selection``: with validation data, what was chosen on them (``Selection.summary``), else None.
    ``students``: with validation data, the ``best`` and the ``last``; ``student`` is one of them.
    ``parameters_without_gradient``: trainable parameters that got no gradient in the first step although the method
    does not declare them unused."""

    student: nn.Module
    history: list[Record] = field(default_factory=list)
    seconds: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)
    parameters_without_gradient: tuple[str, ...] = ()
    selection: dict[str, Any] | None = None
    students: dict[str, nn.Module] = field(default_factory=dict)
