"""What each of the processes runs in ``test_sharded.py``: ``torchrun -m tests.distillation.fsdp_run``."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tutelage.distillation.data import Batch
from tutelage.distillation.feature_hooks import FeatureHooks
from tutelage.distillation.fsdp import FSDPProcesses
from tutelage.distillation.launch import current_processes
from tutelage.distillation.method import Method, Phase
from tutelage.distillation.outputs import Output, Terms, forward_heads
from tutelage.distillation.trainer import train
from tutelage.errors import InputError

from .toy import Distil, Net, lesson


class Scaled(Net):
    """A scalar parameter and buffers that follow the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.passes += 1
        return super().forward(x) * self.scale


class Thorough(Distil):
    """Two passes, a tapped layer with its projection, a penalty on the weights, and a stage that trains the head alone."""

    def prepare(self, student: nn.Module, teacher: Any, example: Batch, data: Any) -> None:
        self.start = nn.ParameterDict({n.replace(".", "_"): p.clone() for n, p in student.named_parameters()}).requires_grad_(False)
        self.taps = FeatureHooks(student, ["inner"])
        self.projection = nn.Linear(8, 3)

    def forward(self, batch: Batch, student: nn.Module, teacher: Any) -> tuple[Output, Output]:
        taught = teacher(batch)
        with self.taps as taken:
            once = forward_heads(student, batch.inputs)
        twice = forward_heads(student, -batch.inputs)
        drift = torch.stack([(p - self.start[n.replace(".", "_")]).square().sum() for n, p in student.named_parameters()]).sum()
        return once | {"inner": taken["inner"], "twice": twice["logits"], "drift": drift}, taught

    def loss_terms(self, batch: Batch, student: Output, teacher: Output) -> Terms:
        inner = (self.projection(student["inner"]) - teacher["logits"]).square().mean()
        drift, twice = student["drift"], student["twice"].square().mean()
        return {**super().loss_terms(batch, student, teacher), "inner": inner, "twice": twice, "drift": drift}

    def loss_weights(self) -> Mapping[str, float]:
        return {**super().loss_weights(), "drift": 0.01}

    def phases(self) -> Sequence[Phase]:
        return (Phase("head", 0.3, trains=lambda name: "head" in name or "projection" in name), Phase("all", 0.7))


class Beside(Distil):
    """Runs a part of the student by itself."""

    def forward(self, batch: Batch, student: nn.Module, teacher: Any) -> tuple[Output, Output]:
        return {"logits": student.head(student.inner(batch.inputs))}, teacher(batch)


class Weighed(Distil):
    """A loss of nothing but weights."""

    def loss_weights(self) -> Mapping[str, float]:
        return {}

    def loss_terms(self, batch: Batch, student: Output, teacher: Output) -> Terms:
        return {"soft": student["logits"]}

    def forward(self, batch: Batch, student: nn.Module, teacher: Any) -> tuple[Output, Output]:
        return {"logits": torch.stack([p.square().sum() for p in student.parameters()]).sum()}, {}


class Inner(Thorough):
    """Learns from what is tapped alone."""

    def loss_weights(self) -> Mapping[str, float]:
        return {"soft": 0, "hard": 0, "twice": 0, "drift": 0}


class Hoard(Distil):
    """Keeps a weight from before."""

    def prepare(self, student: nn.Module, teacher: Any, example: Batch, data: Any) -> None:
        self.kept = [student.head.weight]


class Asks(Distil):
    """Wants the gradient of its inputs."""

    def forward(self, batch: Batch, student: nn.Module, teacher: Any) -> tuple[Output, Output]:
        return forward_heads(student, batch.inputs.requires_grad_()), teacher(batch)


def learns_the_same(method: type[Method], parallel: FSDPProcesses, **settings: object) -> None:
    settings = {"clip": 0.5, "accumulate": 2, "batch_size": 15, "log_every": 5, **settings}
    given = lesson(method(), Scaled(), **settings)
    alone = train(copy.deepcopy(given))
    split = train(given, parallel=parallel)
    assert type(split.student) is Scaled and split.parameters_without_gradient == alone.parameters_without_gradient == ()
    for name, value in alone.student.state_dict().items():
        torch.testing.assert_close(split.student.state_dict()[name], value, rtol=0, atol=1e-5, msg=name)
    for ours, theirs in zip(split.history, alone.history, strict=True):
        assert ours["terms"] == pytest.approx(theirs["terms"], abs=1e-5)
    held = sum(p.to_local().numel() if p.ndim else 1 for p in given.student.parameters())
    assert held <= 0.6 * sum(p.numel() for p in given.student.parameters()), held


def main() -> None:
    torch.set_num_threads(1)
    parallel = current_processes()
    assert isinstance(parallel, FSDPProcesses) and parallel.size == 2
    learns_the_same(Distil, parallel)
    learns_the_same(Thorough, parallel)
    learns_the_same(Distil, parallel, optimizer="sgd", momentum=0.9, clip=None, accumulate=1)
    for method, said in {
        Beside: "parts of the student outside a forward pass",
        Weighed: "parts of the student outside a forward pass",
        Inner: "only on what was tapped",
        Hoard: r"student.head.weight is still held whole",
        Asks: "a gradient is asked for the student's inputs.0",
    }.items():
        with pytest.raises(InputError, match=said) as caught:
            train(lesson(method()), parallel=parallel)
        assert "data parallelism" in caught.value.remedy


if __name__ == "__main__":
    main()
