"""Small networks, data and a method shared by the tests of the core."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tutelage.distillation import losses
from tutelage.distillation.data import Batch, TensorData
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.method import Method
from tutelage.distillation.outputs import Output, Terms


class Net(nn.Module):
    def __init__(self, width: int = 8, seed: int = 0, classes: int = 3, dropout: float = 0.0, norm: bool = False):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.inner = nn.Linear(4, width)
            self.norm = nn.BatchNorm1d(width) if norm else nn.Identity()
            self.dropout = nn.Dropout(dropout)
            self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.dropout(self.norm(self.inner(x)).tanh()))


class Distil(Method):
    """Soft and hard labels."""

    @dataclass(frozen=True)
    class Config:
        tau: float = 2.0
        alpha: float = 0.5

    def loss_weights(self) -> Mapping[str, float]:
        return {"soft": self.config.alpha, "hard": 1 - self.config.alpha}

    def loss_terms(self, batch: Batch, student: Output, teacher: Output) -> Terms:
        return {
            "soft": losses.kd(student["logits"], teacher["logits"], self.config.tau),
            "hard": losses.cross_entropy(student["logits"], batch.labels),
        }


def samples(count: int = 60, seed: int = 0, classes: int = 3) -> TensorData:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 4, generator=generator)
    return TensorData(inputs, (inputs @ torch.randn(4, classes, generator=generator)).argmax(1))


def lesson(method: Method | None = None, student: nn.Module | None = None, data: object = None, **settings: object) -> TrainingJob:
    chosen: dict[str, object] = {"steps": 30, "batch_size": 16, "lr": 0.01, "log_every": 7, "checkpoint_every": 4}
    return TrainingJob(
        student if student is not None else Net(),
        Net(16, seed=1),
        method or Distil(),
        data if data is not None else samples(),  # type: ignore[arg-type]
        TrainingSettings(**(chosen | settings)),  # type: ignore[arg-type]
        name="toy",
    )


def bits(network: nn.Module) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in network.state_dict().items()}
