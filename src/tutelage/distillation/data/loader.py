"""Batches in the order of a run, fetched by 0 to n worker processes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from tutelage.distillation.data import Batch, BatchOrder, ReplayableData
from tutelage.distillation.data.dataset import Loading
from tutelage.errors import TutelageError
from tutelage.workers import WorkerLost

Request = tuple[np.ndarray, np.ndarray | None]
"""Sample numbers [B] and view seeds [B], or None for plain samples: what a worker is sent. Arrays travel faster than
tensors, each of which would take a file descriptor."""


class BatchLoader:
    """The batches of a run, by the number of the forward pass.

    :meth:`take` is for passes in order: workers read ahead of it. :meth:`read` is for a look at any pass, in this
    process. Both give the same bits.

    Args:
        data: what supplies the batches; its ``loading``, where it has one, says how many workers read.
        order: which samples and views each pass takes.
        passes: how many passes the run has.
        pin_memory: whether batches go to a CUDA device.
    """

    def __init__(self, data: ReplayableData, order: BatchOrder, passes: int, pin_memory: bool = False):
        self.data = data
        self.order = order
        self.passes = passes
        self.loading: Loading = getattr(data, "loading", None) or Loading()
        self.pin_memory = pin_memory if self.loading.pin_memory is None else self.loading.pin_memory
        self._iterator: Iterator[Batch] | None = None
        self._next = 0

    def read(self, number: int) -> Batch:
        """The batch of pass ``number`` (from 0)."""
        return self.data.batch(*self.order.step(number))

    def take(self, number: int) -> Batch:
        """The batch of pass ``number``, where workers read the passes behind it meanwhile.

        Raises:
            InputError: as ``data.batch``, wherever it ran.
            WorkerLost: a worker was killed.
        """
        if self.loading.workers == 0:
            return self.read(number)
        if self._iterator is None or number != self._next:
            self.close()
            self._iterator = fetch(self.data, _Passes(self.order, number, self.passes), self.loading, self.pin_memory)
        self._next = number + 1
        return next(self._iterator)

    def close(self) -> None:
        """Stop the workers."""
        if self._iterator is not None:
            self._iterator.close()  # type: ignore[attr-defined]
            self._iterator = None


def in_order(data: ReplayableData, batch_size: int = 64) -> Iterator[Batch]:
    """All plain samples, first to last, in batches of at most ``batch_size``, by the workers of ``data``."""
    loading: Loading = getattr(data, "loading", None) or Loading()
    rows = torch.arange(len(data)).split(batch_size)
    if loading.workers == 0:
        for part in rows:
            yield data.batch(part, None)
        return
    yield from fetch(data, _Plain(len(data), batch_size), loading, False)


def fetch(data: ReplayableData, requests: Sampler[Request], loading: Loading, pin_memory: bool) -> Iterator[Batch]:
    """The batches of ``requests``, in order, from worker processes that end with this generator."""
    loader = DataLoader(
        _Batches(data),
        sampler=requests,
        batch_size=None,
        collate_fn=_as_it_is,
        num_workers=loading.workers,
        prefetch_factor=loading.prefetch,
        pin_memory=pin_memory,
        worker_init_fn=loading.worker_init_fn,
        multiprocessing_context=loading.context,
        generator=torch.Generator(),  # else the loader draws its own seed from the global one
    )
    batches = iter(loader)
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except RuntimeError as error:
            raise _lost(error) from error
        if isinstance(batch, _Failed):
            raise batch.error
        yield batch.batch() if isinstance(batch, _Packed) else batch


def _lost(error: RuntimeError) -> Exception:
    if "DataLoader worker" not in str(error) or "Traceback" in str(error):
        return error
    return WorkerLost(
        f"a data worker ended before its work was done: {str(error).splitlines()[0]}",
        where="data",
        remedy="was memory short, or /dev/shm too small? use fewer workers or smaller batches, or workers=0",
    )


@dataclass(frozen=True)
class _Failed:
    """An error on its way to the training process; torch would keep its text alone."""

    error: TutelageError


SMALL = 1 << 16
"""Tensors of at most so many bytes travel as plain bytes. Each tensor in shared memory costs a file descriptor that the
training process has to ask for: 0.3 ms of its time each, measured on labels, ids and seeds of a batch of 64."""

_PLAIN = frozenset({torch.int64, torch.int32, torch.uint8, torch.bool, torch.float32, torch.float64, torch.float16})


@dataclass(frozen=True)
class _Small:
    """A small tensor on its way to the training process."""

    array: np.ndarray


def _pack(tree: Any) -> Any:
    if isinstance(tree, torch.Tensor):
        small = tree.nbytes <= SMALL and tree.dtype in _PLAIN and tree.device.type == "cpu" and not tree.requires_grad
        return _Small(tree.numpy()) if small else tree
    if isinstance(tree, Mapping):
        return {key: _pack(item) for key, item in tree.items()}
    return type(tree)(_pack(item) for item in tree) if type(tree) in (list, tuple) else tree


def _unpack(tree: Any) -> Any:
    if isinstance(tree, _Small):
        return torch.from_numpy(tree.array)
    if isinstance(tree, Mapping):
        return {key: _unpack(item) for key, item in tree.items()}
    return type(tree)(_unpack(item) for item in tree) if type(tree) in (list, tuple) else tree


class _Packed:
    """A batch on its way to the training process."""

    def __init__(self, batch: Batch):
        self._parts = [_pack(getattr(batch, item.name)) for item in fields(Batch)]

    def batch(self) -> Batch:
        """The batch again."""
        return Batch(*map(_unpack, self._parts))

    def pin_memory(self) -> Batch:
        """What the loader's thread asks for."""
        return self.batch().pin_memory()


class _Batches(Dataset[Any]):
    """The data as a dataset of whole batches: what a worker process reads."""

    def __init__(self, data: ReplayableData):
        self.data = data

    def __getitem__(self, request: Request) -> _Packed | _Failed:
        indices, seeds = request
        try:
            return _Packed(self.data.batch(torch.from_numpy(indices), None if seeds is None else torch.from_numpy(seeds)))
        except TutelageError as error:
            return _Failed(error)


class _Passes(Sampler[Request]):
    """The passes ``first`` to ``last`` of an order."""

    def __init__(self, order: BatchOrder, first: int, last: int):
        self.order, self.first, self.last = order, first, last

    def __iter__(self) -> Iterator[Request]:
        for number in range(self.first, self.last):
            indices, seeds = self.order.step(number)
            yield indices.numpy(), seeds.numpy()

    def __len__(self) -> int:
        return self.last - self.first


class _Plain(Sampler[Request]):
    """All samples in order, without augmentation."""

    def __init__(self, length: int, batch_size: int):
        self.length, self.batch_size = length, batch_size

    def __iter__(self) -> Iterator[Request]:
        for first in range(0, self.length, self.batch_size):
            yield np.arange(first, min(first + self.batch_size, self.length)), None

    def __len__(self) -> int:
        return -(-self.length // self.batch_size)


def _as_it_is(batch: Any) -> Any:
    return batch
