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
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.method import Method
from tutelage.distillation.outputs import Output, Terms
from tutelage.distillation.trainer import train
from tutelage.modules.visual_module import TrainingExamples, VisualModule
from tutelage.programs.types import Module
from tutelage.sdvp.continual.base import NO_STRATEGY, ContinualStrategy
from tutelage.sdvp.final_answer.data import FinalAnswerGraphs, prepare
from tutelage.sdvp.objective import StepwiseDistillation, TaskReplayData, make_job
from tutelage.sdvp.questions import Question
from tutelage.sdvp.replay_sampling import ReplaySampling

FLOOR = 1e-9
"""Added to a likelihood before its logarithm, so that hopeless questions keep a finite gradient."""


class ModuleNetworks(nn.Module):
    """The networks of several modules as one student: inputs by module in, heads ``module/head`` out."""

    def __init__(self, networks: Mapping[str, nn.Module]):
        super().__init__()
        self.networks = nn.ModuleDict(dict(networks))

    def forward(self, inputs: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """One pass of each network that has inputs."""
        return {f"{name}/{head}": value for name, batch in inputs.items() for head, value in self.networks[name](batch).items()}


class FinalAnswerTraining(Method):
    """Minus the log-likelihood of the right answers (``final``); the student is a :class:`ModuleNetworks`."""

    needs_teacher = False
    unused_parameters = ("student.*",)  # a batch without a call to a module leaves it without a gradient

    def __init__(self, data: FinalAnswerGraphs, config: Any = None):
        super().__init__(config)
        self.data = data

    def loss_terms(self, batch: Batch, student: Output, teacher: Output) -> Terms:
        """``final``: the mean over the batch's questions."""
        heads: dict[str, dict[str, Tensor]] = {}
        for key, value in student.items():
            name, head = key.split("/")
            heads.setdefault(name, {})[head] = value
        return {"final": final_loss(self.data, batch, heads)}


def final_loss(data: FinalAnswerGraphs, batch: Batch, heads: Mapping[str, Mapping[str, Tensor]]) -> Tensor:
    """The mean of ``-log p(gold)`` over the graphs of ``batch``, a scalar."""
    return -(data.likelihoods(batch.extra["graphs"], heads) + FLOOR).log().mean().float()


class StepwiseWithFinalAnswer(StepwiseDistillation):
    """Stepwise distillation of one module with final answers beside the teacher's labels: ``L_step + mu L_final``."""

    @dataclass(frozen=True)
    class Config(StepwiseDistillation.Config):
        """mu: weight of the final answers; step: of the teacher's labels (0: final answers and self-distillation alone);
        questions: how many answered questions a stage are used at most, and ``per_step``: a step (our choice: a graph a question
        stays in memory, and graphs are what a step spends its time on)."""

        mu: float = 0.5
        step: float = 1.0
        questions: int = 1000
        per_step: int = 16

    def __init__(
        self,
        module: VisualModule,
        data: FinalAnswerGraphs,
        config: Any = None,
        strategy: ContinualStrategy = NO_STRATEGY,
        penalty: nn.Module | None = None,
    ):
        super().__init__(module.heads, config, strategy, penalty)
        self.module_name, self.data = module.name, data

    def loss_terms(self, batch: Batch, student: Output, teacher: Output) -> Terms:
        """The stepwise terms, and ``final``."""
        heads = {key.removeprefix("final/"): value for key, value in student.items() if key.startswith("final/")}
        found = final_loss(self.data, batch, {self.module_name: heads} if heads else {})
        return {**super().loss_terms(batch, student, teacher), "final": found}

    def loss_weights(self) -> Mapping[str, float]:
        """``final`` weighs mu."""
        return {**super().loss_weights(), "final": self.config.mu, "step": self.config.step}


class StepAndFinalData:
    """The rows of a stepwise training job, and beside them ``questions`` questions a batch, drawn by view seed."""

    def __init__(self, rows: TaskReplayData, final: FinalAnswerGraphs, questions: int):
        self.rows, self.final, self.questions = rows, final, questions

    @property
    def fingerprint(self) -> str:
        """Names every row and question."""
        return f"{self.rows.fingerprint}{self.final.fingerprint}{self.questions}"

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: Tensor, seeds: Tensor | None) -> Batch:
        """As :class:`TaskReplayData`'s, with the group ``final``."""
        seeds = torch.zeros_like(indices) if seeds is None else seeds
        batch = self.rows.batch(indices, seeds)
        drawn = self.final.batch((seeds // 7)[: self.questions] % len(self.final), None)  # other numbers than the replay's
        inputs = dict(batch.inputs)
        for group in drawn.inputs.values():  # of the one module that is taught, if these questions call it
            inputs["final"] = group
        return replace(batch, inputs=inputs, extra={**batch.extra, **drawn.extra})


def make_final_answer_job(
    module: VisualModule,
    task: TrainingExamples,
    replay: TrainingExamples | None,
    final: FinalAnswerGraphs,
    settings: TrainingSettings,
    config: StepwiseWithFinalAnswer.Config,
    strategy: ContinualStrategy = NO_STRATEGY,
    name: str = "lesson",
    sampling: ReplaySampling = ReplaySampling(),  # noqa: B008  (frozen)
) -> TrainingJob:
    """The stepwise training job of ``module`` with final answers beside it; ``final`` is prepared for this module alone."""
    plain = make_job(module, task, replay, settings, config, strategy, name, sampling)
    assert isinstance(plain.data, TaskReplayData) and isinstance(plain.method, StepwiseDistillation)
    method = StepwiseWithFinalAnswer(module, final, config, strategy, plain.method.penalty)
    return replace(plain, method=method, data=StepAndFinalData(plain.data, final, config.per_step))


def train_jointly(
    questions: Sequence[Question],
    modules: Mapping[str, Module],
    trained: Sequence[str],
    settings: TrainingSettings,
    folder: str | Path | None = None,
    name: str = "final labels",
) -> dict[str, VisualModule]:
    """The modules ``trained``, taught together by final answers alone: the fair rival, for it has the same labels.

    Raises:
        InputError: as :func:`prepare`.
    """
    data = prepare(questions, modules, trained)
    student = ModuleNetworks({key: module.copy_network() for key, module in data.modules.items()})
    result = train(TrainingJob(student, None, FinalAnswerTraining(data), data, settings, name), folder)
    assert isinstance(result.student, ModuleNetworks)
    return {key: module.with_network(result.student.networks[key]) for key, module in data.modules.items()}
