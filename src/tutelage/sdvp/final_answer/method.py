"""Training on final answers: alone, all modules at once, or as a term beside the stepwise loss of one.

    L = -log p(gold answer | image, program)

(EVPG, arXiv 2512.14257; floor, weights and the mixture with stepwise distillation ours.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.distillation.data import Batch
from tutelage.distillation.job import Lesson, Settings
from tutelage.distillation.method import Method, Output, Terms
from tutelage.distillation.trainer import train
from tutelage.modules.visual_module import Exercise, VisualModule
from tutelage.programs.types import Module
from tutelage.sdvp.final_answer.data import FinalData, prepare
from tutelage.sdvp.objective import Stepwise, TaskAndReplay, lesson
from tutelage.sdvp.questions import Question
from tutelage.sdvp.continual.base import NOTHING, Retain

FLOOR = 1e-9
"""Added to a likelihood before its logarithm, so that hopeless questions keep a finite gradient."""


class Networks(nn.Module):
    """The networks of several modules as one student: inputs by module in, heads ``module/head`` out."""

    def __init__(self, networks: Mapping[str, nn.Module]):
        super().__init__()
        self.networks = nn.ModuleDict(dict(networks))

    def forward(self, inputs: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """One pass of each network that has inputs."""
        return {f"{name}/{head}": value for name, batch in inputs.items() for head, value in self.networks[name](batch).items()}


class FinalLabel(Method):
    """Minus the log-likelihood of the right answers (``final``); the student is a :class:`Networks`."""

    needs_teacher = False
    idle = ("student.*",)  # a batch without a call to a module leaves it without a gradient

    def __init__(self, data: FinalData, config: Any = None):
        super().__init__(config)
        self.data = data

    def terms(self, batch: Batch, student: Output, teacher: Output) -> Terms:
        """``final``: the mean over the batch's questions."""
        heads: dict[str, dict[str, Tensor]] = {}
        for key, value in student.items():
            name, head = key.split("/")
            heads.setdefault(name, {})[head] = value
        return {"final": final_loss(self.data, batch, heads)}


def final_loss(data: FinalData, batch: Batch, heads: Mapping[str, Mapping[str, Tensor]]) -> Tensor:
    """The mean of ``-log p(gold)`` over the graphs of ``batch``, a scalar."""
    return -(data.likelihoods(batch.extra["graphs"], heads) + FLOOR).log().mean().float()


class StepwiseFinal(Stepwise):
    """Stepwise distillation of one module with final answers beside the teacher's labels: ``L_step + mu L_final``."""

    @dataclass(frozen=True)
    class Config(Stepwise.Config):
        """mu: weight of the final answers; step: of the teacher's labels (0: final answers and self-distillation alone);
        questions: how many answered questions a stage are used at most, and ``per_step``: a step (ours: a graph a question
        stays in memory, and graphs are what a step spends its time on)."""

        mu: float = 0.5
        step: float = 1.0
        questions: int = 1000
        per_step: int = 16

    def __init__(
        self,
        module: VisualModule,
        data: FinalData,
        config: Any = None,
        retain: Retain = NOTHING,
        penalty: nn.Module | None = None,
    ):
        super().__init__(module.heads, config, retain, penalty)
        self.module_name, self.data = module.name, data

    def terms(self, batch: Batch, student: Output, teacher: Output) -> Terms:
        """The stepwise terms, and ``final``."""
        heads = {key.removeprefix("final/"): value for key, value in student.items() if key.startswith("final/")}
        found = final_loss(self.data, batch, {self.module_name: heads} if heads else {})
        return {**super().terms(batch, student, teacher), "final": found}

    def weights(self) -> Mapping[str, float]:
        """``final`` weighs mu."""
        return {**super().weights(), "final": self.config.mu, "step": self.config.step}


class WithFinal:
    """The rows of a stepwise lesson, and beside them ``questions`` questions a batch, drawn by view seed."""

    def __init__(self, rows: TaskAndReplay, final: FinalData, questions: int):
        self.rows, self.final, self.questions = rows, final, questions

    @property
    def fingerprint(self) -> str:
        """Names every row and question."""
        return f"{self.rows.fingerprint}{self.final.fingerprint}{self.questions}"

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: Tensor, seeds: Tensor | None) -> Batch:
        """As :class:`TaskAndReplay`'s, with the group ``final``."""
        seeds = torch.zeros_like(indices) if seeds is None else seeds
        batch = self.rows.batch(indices, seeds)
        drawn = self.final.batch((seeds // 7)[: self.questions] % len(self.final), None)  # other numbers than the replay's
        inputs = dict(batch.inputs)
        for group in drawn.inputs.values():  # of the one module that is taught, if these questions call it
            inputs["final"] = group
        return replace(batch, inputs=inputs, extra={**batch.extra, **drawn.extra})


def stepwise_final(
    module: VisualModule,
    task: Exercise,
    replay: Exercise | None,
    final: FinalData,
    settings: Settings,
    config: StepwiseFinal.Config,
    retain: Retain = NOTHING,
    name: str = "lesson",
) -> Lesson:
    """The stepwise lesson of ``module`` with final answers beside it; ``final`` is prepared for this module alone."""
    plain = lesson(module, task, replay, settings, config, retain, name)
    assert isinstance(plain.data, TaskAndReplay) and isinstance(plain.method, Stepwise)
    method = StepwiseFinal(module, final, config, retain, plain.method.penalty)
    return replace(plain, method=method, data=WithFinal(plain.data, final, config.per_step))


def teach(
    questions: Sequence[Question],
    modules: Mapping[str, Module],
    trained: Sequence[str],
    settings: Settings,
    folder: str | Path | None = None,
    name: str = "final labels",
) -> dict[str, VisualModule]:
    """The modules ``trained``, taught together by final answers alone: the fair rival, for it has the same labels.

    Raises:
        InputError: as :func:`prepare`.
    """
    data = prepare(questions, modules, trained)
    student = Networks({key: module.copy_network() for key, module in data.modules.items()})
    result = train(Lesson(student, None, FinalLabel(data), data, settings, name), folder)
    assert isinstance(result.student, Networks)
    return {key: module.taught(result.student.networks[key]) for key, module in data.modules.items()}
