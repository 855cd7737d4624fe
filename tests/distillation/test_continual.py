"""Figures of continual learning on hand-made matrices, modules by task, and a stream of real digits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tutelage.datasets.digits import load_8x8
from tutelage.distillation.continual import (
    TaskModules,
    accuracy_matrix,
    average_accuracy,
    backward_transfer,
    continual_figures,
    forgetting,
    forward_transfer,
    matrix_table,
    task_scores,
)
from tutelage.distillation.data import Batch, TensorData
from tutelage.distillation.data.combined import task_stream
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.outputs import Output
from tutelage.distillation.supervised import Supervised
from tutelage.distillation.trainer import train
from tutelage.errors import InputError

R = [[90.0, 10.0, 5.0], [95.0, 80.0, 15.0], [70.0, 60.0, 90.0]]


def test_figures_by_hand() -> None:
    assert average_accuracy(R) == pytest.approx(220 / 3)
    assert backward_transfer(R) == pytest.approx((70 - 90 + 60 - 80) / 2)
    assert forgetting(R) == pytest.approx((95 - 70 + 80 - 60) / 2)
    assert forward_transfer(R, [0, 5, 10]) == pytest.approx((10 - 5 + 15 - 10) / 2)
    assert continual_figures([[50.0]]) == {"average": 50.0, "learning": 50.0, "backward_transfer": None, "forgetting": None}


@given(st.integers(2, 5), st.integers(0, 999))
@settings(max_examples=30, deadline=None)
def test_what_never_changes_is_not_forgotten(tasks: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    row = rng.random(tasks) * 100
    same = np.tile(row, (tasks, 1))
    assert forgetting(same) == backward_transfer(same) == 0 and average_accuracy(same) == pytest.approx(row.mean())
    any_ = rng.random((tasks, tasks))
    assert forgetting(any_) + backward_transfer(any_) >= -1e-9  # the best before the end is at least the accuracy when learned


def test_a_row_takes_the_module_of_its_task() -> None:
    torch.manual_seed(0)
    heads = TaskModules([nn.Linear(4, 2) for _ in range(3)])
    x, task = torch.rand(7, 4), torch.tensor([2, 0, 0, 1, 2, 1, 0])
    found = heads(x, task)
    for row in range(7):
        assert torch.allclose(found[row], heads[int(task[row])](x[row]), atol=1e-6)
    heads(x, torch.ones(7, dtype=torch.int64)).sum().backward()
    assert [head.weight.grad is not None for head in heads.by_task] == [False, True, False]


class Shared(nn.Module):
    """One body, a head a task or one for all."""

    def __init__(self, heads: int):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.body = nn.Linear(64, 32)
            self.heads = TaskModules([nn.Linear(32, 5) for _ in range(heads)])

    def forward(self, x: Tensor, task: Tensor | int = 0) -> Tensor:
        return self.heads(self.body(x).relu(), task)


class ByTask(Supervised):
    def forward(self, batch: Batch, student: nn.Module, teacher) -> tuple[Output, Output]:
        return {"logits": student(batch.inputs, batch.extra["task"])}, {}


class Asked(nn.Module):
    def __init__(self, student: nn.Module, task: int):
        super().__init__()
        self.student, self.task = student, task

    def forward(self, x: Tensor) -> Tensor:
        return self.student(x, self.task)


def digits() -> tuple[dict[str, TensorData], dict[str, TensorData]]:
    pixels, labels = load_8x8()
    x, y = torch.from_numpy(pixels).float().flatten(1) / 16, torch.from_numpy(labels)
    parts: tuple[dict, dict] = {}, {}
    for name, low in (("0-4", 0), ("5-9", 5)):
        rows = ((y >= low) & (y < low + 5)).nonzero()[:, 0]
        for found, chosen in zip(parts, (rows[: len(rows) // 2], rows[len(rows) // 2 :]), strict=True):
            found[name] = TensorData(x[chosen], y[chosen] - low)
    return parts


def run(heads: int, folder=None, stop: int | None = None):
    learned, tests = digits()
    names = list(tests)

    def network(student: nn.Module, name: str) -> nn.Module:
        return Asked(student, names.index(name) if heads > 1 else 0)

    stream = task_stream(learned)
    chosen = TrainingSettings(steps=120, batch_size=32, lr=0.01, schedule="constant", eval_every=60, checkpoint_every=25)
    method = ByTask() if heads > 1 else Supervised()
    job = TrainingJob(
        Shared(heads), None, method, stream, chosen, evaluate=task_scores(tests, network=network), task="classification"
    )

    def halt(done: int, steps: int) -> None:
        if done == stop:
            raise KeyboardInterrupt

    result = train(job, folder, halt)
    return result, accuracy_matrix(result.history, stream, 120)


def test_one_head_forgets_and_a_head_a_task_forgets_less(tmp_path) -> None:
    _, naive = run(1)
    result, keyed = run(2)
    assert naive[0, 0] > 85 and naive[1, 1] > 80 and forgetting(naive) > 20
    assert keyed.diagonal().min() > 80 and forgetting(keyed) < forgetting(naive) - 10
    with pytest.raises(KeyboardInterrupt):
        run(2, tmp_path, stop=80)
    again, matrix = run(2, tmp_path)
    assert (matrix == keyed).all()
    assert all(
        torch.equal(a, b) for a, b in zip(again.student.state_dict().values(), result.student.state_dict().values(), strict=True)
    )
    assert matrix_table(matrix, ["0-4", "5-9"]).count("\n") == 3


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: forgetting([[1.0, 2.0]]), "shape [1, 2]"),
        (lambda: forgetting([[1.0], [2.0, 3.0]]), "one row a task"),
        (lambda: average_accuracy([]), "one row a task"),
        (lambda: forward_transfer(R, [1.0]), "1 numbers for 3 tasks"),
        (lambda: matrix_table(R, ["a"]), "1 names"),
        (lambda: TaskModules([]), "no module"),
        (lambda: TaskModules([nn.Identity()])(torch.zeros(2, 1), 1), "no task 1"),
        (lambda: TaskModules([nn.Identity()])(torch.zeros(2, 1), torch.tensor([0])), "[1] tasks for 2 rows"),
        (lambda: accuracy_matrix([], task_stream(digits()[0]), 10), "no figures at step 5"),
        (lambda: accuracy_matrix([{"step": 5, "figures": {"0-4": 1.0}}], task_stream(digits()[0]), 10), "no figure of '5-9'"),
    ],
)
def test_refusals(make, words: str) -> None:
    with pytest.raises(InputError) as caught:
        make()
    assert words in str(caught.value)
