"""Which student of a run is kept: the best on validation data, or the last; and when to stop."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from tutelage.distillation.checkpoint import write_tensors
from tutelage.distillation.settings import MAX_COUNT, TrainingSettings
from tutelage.distillation.tasks import Task, tasks
from tutelage.errors import InputError, did_you_mean
from tutelage.fields import check_field


@dataclass
class Selection:
    """Follows one figure on validation data.

    The first of equals is the best; a figure that is ``nan`` is no better than any.

    Attributes:
        metric, lower_is_better: the figure, and its direction; None until they are known.
        patience: evaluations in a row without a better one that end the run; None: none do.
        step, value, figures: of the best so far; step None: there is none.
        evaluations, waited: how many there were, and how many since the best.
        network: the best student, exported.
        checkpointed: the file that the newest checkpoint names.
    """

    metric: str | None
    lower_is_better: bool | None
    patience: int | None
    keep: str = "best"
    step: int | None = None
    value: float = math.nan
    figures: dict[str, float] = field(default_factory=dict)
    evaluations: int = 0
    waited: int = 0
    network: nn.Module | None = None
    checkpointed: str | None = None

    @classmethod
    def of(cls, settings: TrainingSettings, task: Task | None) -> Selection:
        """As the settings say; where they do not, by the task's main metric."""
        metric = settings.metric
        if metric is None and task is not None and task.metrics:
            metric = task.metrics[0].name
        return cls(metric, settings.lower_is_better, settings.patience, settings.keep)

    @property
    def stopped(self) -> bool:
        """Whether patience is at its end."""
        return self.patience is not None and self.waited >= self.patience

    def offer(self, figures: Mapping[str, float], step: int) -> bool:
        """Take in an evaluation; whether it is the best so far.

        Raises:
            InputError: the figures lack the metric, or which way it is better is not known.
        """
        metric = self.metric if self.metric is not None else next(iter(figures), "")
        if metric not in figures:
            raise InputError(
                f"the validation gives no figure {metric!r}",
                where="settings.metric",
                remedy=did_you_mean(metric, list(figures)) if figures else "return figures by name",
            )
        self.metric = metric
        if self.lower_is_better is None:
            self.lower_is_better = lower_is_better(metric)
        value = float(figures[metric])
        self.evaluations += 1
        better = not math.isnan(value) and (
            self.step is None or (value < self.value if self.lower_is_better else value > self.value)
        )
        if better:
            self.step, self.value, self.figures, self.waited = step, value, dict(figures), 0
        else:
            self.waited += 1
        return better

    @property
    def file(self) -> str | None:
        """The name of the file that holds the best student while the run goes on."""
        return None if self.step is None else f"best-{self.step:09d}.safetensors"

    def write(self, folder: Path, tensors: Mapping[str, Tensor]) -> None:
        """Write the best student's state, so that a run that is stopped still has it."""
        assert self.file is not None
        write_tensors(folder / self.file, tensors, {"step": self.step})

    def prune(self, folder: Path) -> None:
        """Called after each checkpoint: delete the states of students that neither it nor the one before names."""
        for path in folder.glob("best-*.safetensors"):
            if path.name not in (self.file, self.checkpointed):
                path.unlink(missing_ok=True)
        self.checkpointed = self.file

    def state(self) -> dict[str, Any]:
        """What a checkpoint's head holds."""
        names = ("metric", "lower_is_better", "step", "evaluations", "waited")
        figures = {name: value if math.isfinite(value) else None for name, value in self.figures.items()}  # JSON has no nan
        return {name: getattr(self, name) for name in names} | {"figures": figures}

    def load(self, head: Mapping[str, Any], where: object) -> None:
        """Take up what :meth:`state` gave.

        Raises:
            InputError: a field is missing or of another type.
        """
        self.metric = check_field(head, "metric", str, where=where, default=None)
        self.lower_is_better = check_field(head, "lower_is_better", bool, where=where, default=None)
        self.step = check_field(head, "step", int, 0, MAX_COUNT, where=where, default=None)
        self.evaluations, self.waited = (check_field(head, n, int, 0, MAX_COUNT, where=where) for n in ("evaluations", "waited"))
        self.figures = {}
        for name in check_field(head, "figures", dict, where=where):
            self.figures[name] = check_field(head["figures"], name, float, where=where, default=math.nan)
        if self.step is not None:
            self.value = check_field(self.figures, str(self.metric), float, where=where)
        self.checkpointed = self.file

    def summary(self, last: int, steps: int) -> dict[str, Any]:
        """What was chosen, as plain values; ``last``: the step at which the run ended, of ``steps``."""
        best = self.keep == "best" and self.step is not None
        return {
            "chosen_on": "validation",
            "metric": self.metric,
            "lower_is_better": self.lower_is_better,
            "kept": "best" if best else "last",
            "step": self.step if best else last,
            "best_step": self.step,
            "best_value": None if self.step is None else self.value,
            "best_figures": self.figures,
            "evaluations": self.evaluations,
            "last_step": last,
            "stopped_early": last < steps,
        }


def lower_is_better(metric: str) -> bool:
    """Which way a figure is better: as the tasks' metrics of that name say; losses and errors: lower.

    Raises:
        InputError: no task knows it.
    """
    known = {one.name: not one.higher_is_better for kind in tasks().values() for one in kind.metrics}
    if metric in known:
        return known[metric]
    if metric.endswith(("loss", "error")):
        return True
    raise InputError(
        f"whether more or less of {metric!r} is better is not known",
        where="settings.lower_is_better",
        remedy=f"say lower_is_better=True or False; known are {', '.join(sorted(known))}",
    )
