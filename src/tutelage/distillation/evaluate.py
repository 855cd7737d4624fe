"""A network's figures on labelled data, by its task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.distillation.data import Batch, ReplayableData
from tutelage.distillation.data.loader import in_order
from tutelage.distillation.outputs import forward_heads
from tutelage.distillation.tasks.base import Task, infer_task, make_task
from tutelage.errors import InputError


def evaluate(
    network: nn.Module,
    data: ReplayableData,
    task: str | Task | None = None,
    batch_size: int = 256,
) -> dict[str, float]:
    """The metrics of a network on all of ``data``, without augmentation.

    Args:
        network: run in eval mode, without gradients, where its weights lie; its mode is put back.
        data: labelled samples.
        task: by name, or itself; None: inferred from the first batch.
        batch_size: samples a forward pass.

    Returns:
        The figures by name, such as ``{"mIoU": 71.2, "accuracy": 93.0}``; shares are in percent.

    Raises:
        InputError: the task is not clear, or outputs and labels do not fit it.
    """
    weight = next(iter(network.parameters()), None)
    device = weight.device if weight is not None else torch.device("cpu")
    was_training = network.training
    network.eval()
    try:
        return evaluate_outputs(lambda batch: forward_heads(network, batch.inputs), data, task, batch_size, device)
    finally:
        network.train(was_training)


def task_of(network: nn.Module, data: ReplayableData) -> Task:
    """The task that a network's heads on two samples of labelled ``data``, and their labels, leave possible.

    Raises:
        InputError: there are no labels, or the task is not clear; the message lists the candidates.
    """
    was_training = network.training
    try:
        with torch.no_grad():
            batch = data.batch(torch.arange(min(2, len(data))), None)
            if batch.labels is None:
                raise InputError("the test data has no labels", where="test", remedy="give labelled data")
            return infer_task(forward_heads(network.eval(), batch.inputs), batch)
    finally:
        network.train(was_training)


def evaluate_outputs(
    predict: Callable[[Batch], Mapping[str, Tensor]],
    data: ReplayableData,
    task: str | Task | None = None,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """The metrics of whatever answers a batch with named heads, such as a teacher; see :func:`evaluate`."""
    chosen = None if task is None else make_task(task)
    meter: Any = None
    with torch.no_grad():
        for batch in in_order(data, batch_size):
            batch = batch.to(device)
            output = predict(batch)
            if chosen is None:
                chosen = infer_task(output, batch)
            if batch.labels is None and chosen.needs_labels:
                raise InputError(f"no labels to measure {chosen.name} by", where="data", remedy="give labelled data")
            chosen.check(output, batch.labels)
            meter = meter or chosen.meter()
            meter.update(output, batch.labels)
    if meter is None:
        raise InputError("the data holds no sample", where="data", remedy="check the path and the split")
    return dict(meter.compute())
