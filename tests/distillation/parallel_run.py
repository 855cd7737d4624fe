"""What each of the processes runs in ``test_parallel.py``: ``torchrun -m tests.distillation.parallel_run FOLDER``, a folder with
labelled records of the tiny world in ``labelled``."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from tutelage.distillation import losses
from tutelage.distillation.data import Batch, TensorData
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.launch import current_processes
from tutelage.distillation.method import Method
from tutelage.distillation.outputs import Output, Terms
from tutelage.distillation.parallel import SingleProcess
from tutelage.distillation.result import TrainingResult
from tutelage.distillation.trainer import train
from tutelage.modules.visual_module import VisualModule
from tutelage.sdvp.options import SdvpOptions
from tutelage.sdvp.stages import train_to_folder

from ..sdvp import small
from .test_turns import Loops, adversarial
from .toy import Net, samples

SETTINGS = TrainingSettings(steps=30, batch_size=15, lr=0.01, log_every=7, eval_every=7, checkpoint_every=4, clip=0.5, accumulate=2)
"""15 samples do not divide among two."""


class Weighted(Method):
    """Distilled logits through a trained projection, and hard labels, weighted by sample."""

    def prepare(self, student: nn.Module, teacher: object, example: Batch, data: object) -> None:
        self.projection = nn.Linear(3, 3)
        self.unused_parameters = ("student.spare.*",)

    def loss_weights(self) -> Mapping[str, float]:
        return {"hard": 0.3}

    def loss_terms(self, batch: Batch, student: Output, teacher: Output) -> Terms:
        return {
            "soft": losses.kd(self.projection(student["logits"]), teacher["logits"], 2.0, batch.weights),
            "hard": losses.cross_entropy(student["logits"], batch.labels, batch.weights),
        }


class Student(Net):
    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Linear(2, 2)  # in no process does it get a gradient
        nn.init.zeros_(self.spare.weight), nn.init.zeros_(self.spare.bias)


def norm(student: nn.Module) -> dict[str, float]:
    """A figure that is best in the middle of the run."""
    return {"accuracy": -float(student.head.weight.double().norm())}


def lesson(**settings: object) -> TrainingJob:
    plain = samples(62)
    weights = torch.rand(62, generator=torch.Generator().manual_seed(3))
    data = TensorData(plain.inputs, plain.labels, weights)
    score = lambda student: {"mean": float(student(data.inputs).mean())}  # noqa: E731
    told = replace(SETTINGS, **settings)  # type: ignore[arg-type]
    return TrainingJob(Student(), Net(16, seed=1), Weighted(), data, told, "toy", score, validation=norm)


def taught(folder: Path, labelled: Path, parallel: SingleProcess) -> VisualModule:
    """A module taught through programs, as `tutelage sdvp train` does."""
    options = SdvpOptions(settings=replace(small.SETTINGS, batch_size=15))
    return train_to_folder(folder, labelled, small.modules(), options=options, parallel=parallel)["COLOR"]


class Stop(Exception):
    pass


def stop(done: int, steps: int) -> None:
    if done == 14:
        raise Stop


def stopped(folder: Path, parallel: SingleProcess) -> None:
    with contextlib.suppress(Stop):
        train(lesson(), folder, progress=stop, parallel=parallel)


def stopped_and_resumed(folder: Path, parallel: SingleProcess) -> None:
    stopped(folder, parallel)
    train(lesson(), folder, parallel=parallel)


def in_turns(folder: Path, parallel: SingleProcess) -> TrainingResult:
    """Two optimisers, a gradient gathered over steps, a moving average, and a student chosen on the way; stopped once."""
    told = {"batch_size": 15, "steps": 20, "ema": 0.5, "eval_every": 2, "clip": 0.5, "checkpoint_every": 1}

    def made() -> TrainingJob:
        plain = adversarial(Loops(), **told)
        return TrainingJob(plain.student, None, plain.method, plain.data, plain.settings, "turns", validation=norm)

    with contextlib.suppress(Stop):
        train(made(), folder, progress=stop, parallel=parallel)
    return train(made(), folder, parallel=parallel)


if __name__ == "__main__":
    torch.set_num_threads(1)
    root, parallel = Path(sys.argv[1]), current_processes()
    if sys.argv[2:] == ["turns"]:
        (root / f"rank-{parallel.rank}").write_text(repr(in_turns(root / "two", parallel).selection))
        sys.exit()
    found = lesson()
    if parallel.rank:  # the first process's weights are everybody's
        with torch.no_grad():
            found.student.head.bias += 1.0
    result = train(found, root / "whole", parallel=parallel)
    stopped_and_resumed(root / "stopped", parallel)
    stopped(root / "handed-on", parallel)
    taught(root / "taught", root / "labelled", parallel)
    (root / f"rank-{parallel.rank}-of-{parallel.size}").write_text(repr((result.metrics, result.seconds)))
