"""Stages one after the other, and which modules answer which task afterwards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tutelage.programs.types import Module
from tutelage.sdvp.compile import distill_task
from tutelage.sdvp.options import SdvpOptions
from tutelage.sdvp.task import CompileResult, ModuleReport, SdvpTask

Learn = Callable[[Mapping[str, Module], SdvpTask, SdvpOptions, Path | None], CompileResult]
"""How one stage is learned: :func:`distill_task`, or a rival with the same arguments."""


@dataclass(frozen=True)
class SequenceResult:
    """``general``: the modules for a task without its own; ``own``: those of the tasks that are routed; ``reports``: of
    all stages."""

    general: Mapping[str, Module]
    own: Mapping[str, Mapping[str, Module]]
    reports: tuple[ModuleReport, ...]

    def modules_for(self, task: str) -> Mapping[str, Module]:
        """The modules that answer ``task``."""
        return self.own.get(task, self.general)


def distill_tasks(
    modules: Mapping[str, Module],
    stages: Sequence[SdvpTask],
    options: SdvpOptions = SdvpOptions(),  # noqa: B008  (frozen)
    folder: str | Path | None = None,
    *,
    learn: Learn = distill_task,
    by_task: bool = False,
) -> SequenceResult:
    """Teach ``stages`` in order.

    By default each stage goes on from the modules of the one before. With ``by_task`` each starts from ``modules``, its
    result answers its own task alone, and every other task keeps ``modules``: nothing is forgotten, nothing is passed on.
    """
    general: Mapping[str, Module] = modules
    own: dict[str, Mapping[str, Module]] = {}
    reports: list[ModuleReport] = []
    for stage in stages:
        found = learn(general, stage, options, Path(folder) if folder is not None else None)
        reports += found.reports
        if by_task:
            own[stage.name] = found.modules
        else:
            general = found.modules
    return SequenceResult(general, own, tuple(reports))
