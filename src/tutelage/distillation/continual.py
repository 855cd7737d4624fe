"""Learning task after task: a module for each task, and what was forgotten on the way.

Data come from :func:`tutelage.distillation.data.combined.task_stream`. Penalties that protect old weights are in
``weight_penalties``.

Accuracies stand in a matrix R: ``R[i][j]`` is the accuracy on task j after learning task i. Every figure is in the unit of
the matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tutelage.distillation.data import ReplayableData
from tutelage.distillation.data.combined import CombinedData
from tutelage.distillation.data.mixing import InSequence
from tutelage.distillation.evaluate import evaluate
from tutelage.distillation.tasks import Task
from tutelage.errors import InputError, did_you_mean

Matrix = Sequence[Sequence[float]] | np.ndarray


def _checked(matrix: Matrix) -> np.ndarray:
    try:
        found = np.array(matrix, dtype=np.float64)
    except ValueError as error:
        raise InputError(f"no matrix of numbers: {error}", where="matrix", remedy="one row a task, one column a task") from error
    if found.ndim != 2 or found.shape[0] != found.shape[1] or not len(found):
        raise InputError(f"a matrix of shape {list(found.shape)}", where="matrix", remedy="one row a task, one column a task")
    return found


def average_accuracy(matrix: Matrix) -> float:
    """The mean accuracy over all tasks after the last (Lopez-Paz, Ranzato, 2017, equation 2).

    Examples:
        >>> average_accuracy([[90, 10], [70, 80]])
        75.0
    """
    return float(_checked(matrix)[-1].mean())


def learning_accuracy(matrix: Matrix) -> float:
    """The mean accuracy on each task just after it was learned: how well new tasks are learned, whatever becomes of old ones."""
    return float(_checked(matrix).diagonal().mean())


def backward_transfer(matrix: Matrix) -> float | None:
    """The mean change of earlier tasks from when they were learned to the end; below 0: they were forgotten (Lopez-Paz,
    Ranzato, 2017, equation 3). None for one task.

    Examples:
        >>> backward_transfer([[90, 10], [70, 80]])
        -20.0
    """
    found = _checked(matrix)
    return float((found[-1] - found.diagonal())[:-1].mean()) if len(found) > 1 else None


def forgetting(matrix: Matrix) -> float | None:
    """The mean over earlier tasks of the best accuracy before the last task, less the one at the end (Chaudhry et al., 2018,
    section 3). None for one task.

    Examples:
        >>> forgetting([[90, 10, 0], [95, 80, 0], [70, 60, 90]])
        22.5
    """
    found = _checked(matrix)
    if len(found) < 2:
        return None
    return float(np.mean([found[task:-1, task].max() - found[-1, task] for task in range(len(found) - 1)]))


def forward_transfer(matrix: Matrix, untrained: Sequence[float]) -> float | None:
    """The mean over later tasks of the accuracy just before they are learned, less that of an ``untrained`` network on them
    (Lopez-Paz, Ranzato, 2017, equation 4). None for one task.

    Raises:
        InputError: not one number a task.
    """
    found = _checked(matrix)
    if len(untrained) != len(found):
        raise InputError(f"{len(untrained)} numbers for {len(found)} tasks", where="untrained", remedy="one number a task")
    if len(found) < 2:
        return None
    return float(np.mean([found[task - 1, task] - untrained[task] for task in range(1, len(found))]))


def continual_figures(matrix: Matrix) -> dict[str, float | None]:
    """``average``, ``learning``, ``backward_transfer`` and ``forgetting`` of a matrix."""
    return {
        "average": average_accuracy(matrix),
        "learning": learning_accuracy(matrix),
        "backward_transfer": backward_transfer(matrix),
        "forgetting": forgetting(matrix),
    }


def matrix_table(matrix: Matrix, names: Sequence[str]) -> str:
    """The matrix as a Markdown table: a row for each task that was learned, a column for each that is asked about.

    Examples:
        >>> print(matrix_table([[90, 10], [70, 80]], ["A", "B"]))
        | after | A | B |
        |---|---|---|
        | A | 90.0 | 10.0 |
        | B | 70.0 | 80.0 |

    Raises:
        InputError: not one name a task.
    """
    found = _checked(matrix)
    if len(names) != len(found):
        raise InputError(f"{len(names)} names for {len(found)} tasks", where="names", remedy="one name a task")
    lines = [f"| after | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    lines += [f"| {name} | {' | '.join(f'{value:.1f}' for value in row)} |" for name, row in zip(names, found, strict=True)]
    return "\n".join(lines)


def continual_result(arms: Mapping[str, Matrix | Sequence[Matrix]], names: Sequence[str], unit: str = "%") -> dict[str, Any]:
    """What ``tutelage report`` makes a page of: write it as ``continual.json`` into a run folder.

    Args:
        arms: by name, a matrix, or one for each seed, of which the mean is shown.
        names: of the tasks.
        unit: of the accuracies.

    Raises:
        InputError: a matrix that does not fit the names.
    """
    rows = []
    for name, given in arms.items():
        stack = np.array(given, dtype=np.float64) if len(given) else np.zeros((0, 0))
        seeds = [_checked(one) for one in (stack if stack.ndim == 3 else [stack])]
        if any(len(one) != len(names) for one in seeds):
            raise InputError(f"{len(seeds[0])} tasks, {len(names)} names", where=f"arms.{name}", remedy="one name a task")
        every = [continual_figures(one) for one in seeds]
        means: dict[str, float | None] = {}
        for key in every[0]:
            known = [value for one in every if (value := one[key]) is not None]
            means[key] = float(np.mean(known)) if known else None
        rows.append({"name": name, "matrix": np.mean(seeds, axis=0).tolist(), "figures": means})
    return {"format": "tutelage-continual", "version": 1, "unit": unit, "tasks": list(names), "arms": rows}


# -- measuring a run ---------------------------------------------------------------------------------------------------


def task_scores(
    tests: Mapping[str, ReplayableData],
    task: str | Task = "classification",
    network: Callable[[nn.Module, str], nn.Module] | None = None,
) -> Callable[[nn.Module], dict[str, float]]:
    """What a training job takes as ``evaluate``: the task's first metric on the test data of each task of a stream.

    Args:
        tests: labelled data by name, in the order of the stream.
        task: what the student predicts.
        network: the network that answers a task, of (student, name); None: the student itself.
    """

    def score(student: nn.Module) -> dict[str, float]:
        found = {}
        for name, data in tests.items():
            one = student if network is None else network(student, name)
            figures = evaluate(one, data, task)
            found[name] = next(iter(figures.values()))
        return found

    return score


def accuracy_matrix(history: Sequence[Mapping[str, Any]], stream: CombinedData, steps: int) -> np.ndarray:
    """The matrix [T, T] of a run over a task stream that was scored by :func:`task_scores`.

    Args:
        history: ``TrainingResult.history``.
        stream: its data.
        steps: of the whole run.

    Raises:
        InputError: the stream is no sequence, or no figures were taken when a task ended: ``settings.eval_every`` must
            divide the lengths of the tasks.
    """
    if not isinstance(stream.mixing, InSequence):
        raise InputError("the sources do not follow each other", where="stream", remedy="task_stream(…)")
    names, rows = stream.names, []
    for name, end in zip(names, stream.mixing.edges(names, steps)[1:], strict=True):
        figures = next((record["figures"] for record in history if record["step"] == end and "figures" in record), None)
        if figures is None:
            raise InputError(
                f"no figures at step {end}, where {name!r} ends",
                where="history",
                remedy="set eval_every so that it divides the steps of each task",
            )
        missing = [one for one in names if one not in figures]
        if missing:
            raise InputError(f"no figure of {missing[0]!r}", where="history", remedy=did_you_mean(missing[0], list(figures)))
        rows.append([figures[one] for one in names])
    return np.array(rows)


# -- parameters by task ------------------------------------------------------------------------------------------------


class TaskModules(nn.Module):
    """A module for each task, such as a head or norms: row by row, or one task for all rows.

    Args:
        modules: in the order of the tasks' numbers.

    Examples:
        >>> heads = TaskModules([nn.Linear(4, 2), nn.Linear(4, 2)])
        >>> x = torch.rand(3, 4)
        >>> heads(x, torch.tensor([0, 1, 0])).shape, torch.equal(heads(x, 1), heads[1](x))
        (torch.Size([3, 2]), True)

    Raises:
        InputError: no module.
    """

    def __init__(self, modules: Sequence[nn.Module]):
        super().__init__()
        if not modules:
            raise InputError("no module", where="modules", remedy="one a task")
        self.by_task = nn.ModuleList(modules)

    def __len__(self) -> int:
        return len(self.by_task)

    def __getitem__(self, task: int) -> nn.Module:
        if not 0 <= task < len(self):
            raise InputError(f"no task {task}", where="task", remedy=f"0 to {len(self) - 1}")
        return self.by_task[task]

    def forward(self, x: Tensor, task: int | Tensor) -> Tensor:
        """The output of each row's own module.

        Args:
            x: [B, ...].
            task: a number, or numbers [B] int64 (``batch.extra["task"]``).

        Returns:
            [B, ...]; all modules must give outputs of one shape.

        Raises:
            InputError: a task without a module, or not one number a row.
        """
        if not isinstance(task, Tensor):
            return self[task](x)
        if task.shape != x.shape[:1]:
            raise InputError(f"{list(task.shape)} tasks for {len(x)} rows", where="task", remedy="one number a row")
        present = task.unique().tolist()
        if len(present) == 1:
            return self[present[0]](x)
        parts = [(rows := (task == number).nonzero()[:, 0], self[number](x[rows])) for number in present]
        order = torch.cat([rows for rows, _ in parts]).argsort()
        return torch.cat([value for _, value in parts])[order]
