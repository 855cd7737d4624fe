"""Whether the views of a dataset can be replayed: read again, and read by a worker process."""

from __future__ import annotations

import contextlib
import copy
from dataclasses import replace

import torch

from tutelage.distillation.data import Batch, BatchOrder, ReplayableData, flatten_tree
from tutelage.distillation.data.dataset import DatasetData
from tutelage.distillation.data.loader import BatchLoader
from tutelage.distillation.data.repeated import RepeatedData
from tutelage.distillation.data.subset import SubsetData
from tutelage.errors import InputError


def check_replay(data: ReplayableData, batch: Batch, count: int) -> None:
    """Read the first ``count`` samples of ``batch`` twice, each by itself. Data without a ``check_replay`` are not looked at.

    Raises:
        InputError: a sample read twice with one seed differs; it is named.
    """
    while isinstance(data, (SubsetData, RepeatedData)):
        data = data.source
    check = getattr(data, "check_replay", None)
    if check is not None and batch.ids is not None and batch.seeds is not None:
        check(batch.ids[:count].cpu(), batch.seeds[:count].cpu())


def check_worker(data: ReplayableData, order: BatchOrder) -> None:
    """Have a worker process read the first batch of ``order``, and compare it with what this process reads.

    Raises:
        InputError: the two differ; the field is named.
    """
    if not isinstance(data, DatasetData):
        return
    other = copy.copy(data)
    other.loading = replace(data.loading, workers=1)
    loader = BatchLoader(other, order, 1)
    with contextlib.closing(loader):
        here, there = loader.read(0), loader.take(0)
    found = dict(flatten_tree((there.inputs, there.labels)))
    for name, leaf in flatten_tree((here.inputs, here.labels)):
        if name not in found or not torch.equal(leaf, found[name]):
            raise InputError(
                "a worker process reads other values than the training process",
                where=f"data: {name}",
                remedy="the dataset depends on the process that reads it: draw from the global generators alone",
            )
