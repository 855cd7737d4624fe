"""A map-style torch ``Dataset`` as data: read lazily, item by item, in views that can be replayed."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tutelage.distillation.data import Batch, Tree, flatten_tree
from tutelage.distillation.data.items import Key, Padding, as_tensors, collate, custom_batch, split_item
from tutelage.distillation.data.object_hash import ObjectHash
from tutelage.distillation.data.seeding import (
    generator_seeds,
    generator_states,
    preserved_generators,
    seed_generators,
)
from tutelage.errors import InputError, TutelageError
from tutelage.fields import check_range
from tutelage.storage import fingerprint

READING = "seeded-items-1"
"""Names how an item's view seed becomes its bytes; changed when that changes."""


@dataclass(frozen=True)
class Loading:
    """How batches are fetched. It changes the time a run takes, never a bit of its result.

    Attributes:
        workers: processes that read and collate; 0: the training process itself.
        prefetch: batches that each worker reads ahead.
        pin_memory: batches in page-locked memory, which a GPU copies faster; None: where the run uses CUDA.
        worker_init_fn: called in each worker with its number, as in ``torch.utils.data.DataLoader``.
        context: how workers are started: ``fork``, ``spawn`` or ``forkserver``; None: as the system does.
    """

    workers: int = 0
    prefetch: int = 2
    pin_memory: bool | None = None
    worker_init_fn: Callable[[int], None] | None = None
    context: str | None = None

    def __post_init__(self) -> None:
        check_range("workers", self.workers, 0, 10_000, whole=True)
        check_range("prefetch", self.prefetch, 1, 10_000, whole=True)
        if self.context not in (None, "fork", "spawn", "forkserver"):
            raise InputError(
                f"no way {self.context!r} to start a process",
                where="context",
                remedy="fork, spawn or forkserver",
            )


class DatasetData:
    """Data read from anything with ``len`` and ``[i]``, when it is needed.

    Before item ``i`` is read in a view, Python's, NumPy's and torch's global generators are seeded from the view seed:
    a random transform of any library then gives the same view for the same seed, in any worker, now and on resume.
    A dataset that draws no random number has one view of each item, and every view seed is 0.

    Args:
        dataset: an item is an input, a pair (input, label), or a dict with labels under ``labels``, ``label`` or
            ``target`` (see ``items.split_item``). Tensors, arrays, PIL images and numbers become tensors.
        inputs, labels: the entry of an item (name or position) that is the input or the label; ``inputs`` may be a
            sequence of entries. None: as above.
        plain: the same samples without random transforms, which ``batch(indices, None)`` reads. None: the view of
            seed 0 stands for it.
        views: augmentation of whole batches of tensors by view seed, done last (``views.Augmentation``).
        padding: how sequences of different lengths become one tensor. Items that bring an ``attention_mask`` need none.
        collate_fn: makes a batch of a list of items in the user's own way.
        loading: worker processes and prefetch.
        random: whether the dataset draws random numbers; None: found out by reading a few items.
        reseed: called with the view seed before each read, for transforms that keep a generator of their own, for
            example albumentations' ``compose.set_random_seed``.
        version: names the content. None: the dataset's own ``fingerprint``, or a hash of its code, its state and a
            few items.

    Examples:
        >>> data = DatasetData(dataset, loading=Loading(workers=2))  # doctest: +SKIP
        >>> tutelage.distill(student, teacher, data)  # doctest: +SKIP

    Raises:
        InputError: no length, no ``[i]``, or no samples.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        inputs: Key | Sequence[Key] | None = None,
        labels: Key | None = None,
        plain: Any = None,
        views: Callable[[Batch], Batch] | None = None,
        padding: Padding | None = None,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        loading: Loading | None = None,
        random: bool | None = None,
        reseed: Callable[[int], Any] | None = None,
        version: str | None = None,
    ):
        if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
            raise InputError(
                f"{type(dataset).__name__} has no length or no [i]",
                where="data",
                remedy="give a map-style torch Dataset, or TensorData(inputs, labels)",
            )
        for name, function in (("views", views), ("collate_fn", collate_fn), ("reseed", reseed)):
            if function is not None and not callable(function):
                raise InputError(f"a {type(function).__name__} cannot be called", where=name, remedy="give a function")
        try:
            length = len(dataset)
        except Exception as error:
            raise unreadable(error, "the length") from error
        if length == 0:
            raise InputError("the data holds no sample", where="data", remedy="check the path and the split")
        if plain is not None and len(plain) != len(dataset):
            raise InputError(
                f"{len(plain)} plain samples for {len(dataset)}",
                where="plain",
                remedy="give the same samples twice",
            )
        self.dataset = dataset
        self.plain = plain
        self.views = views
        self.padding = padding
        self.collate_fn = collate_fn
        self.loading = loading or Loading()
        self.reseed = reseed
        self.version = version
        self._inputs_key, self._label_key = inputs, labels
        self._random = True if reseed is not None else random
        own = getattr(dataset, "fingerprint", None)
        self._hash = None if version or isinstance(own, str) else ObjectHash((dataset, collate_fn))

    def __len__(self) -> int:
        return len(self.dataset)

    # -- batches ---------------------------------------------------------------------------------------------------

    def batch(self, indices: Tensor, seeds: Tensor | None) -> Batch:
        """The samples ``indices`` [B] int64, each in the view of its seed [B] int64; None: the plain samples.

        The global generators are left as they were.

        Raises:
            InputError: an item cannot be read, is no tensor, or does not fit the others; its number is named.
        """
        varied = seeds is not None and (self.random or self.views is not None)
        named = seeds.clone() if varied and seeds is not None else torch.zeros_like(indices)
        dataset = self.plain if seeds is None and self.plain is not None else self.dataset
        with preserved_generators():
            inputs, labels, replayed = self._read(dataset, indices.tolist(), named.numpy())
        batch = Batch(inputs, labels, ids=indices, seeds=named if replayed else None)
        if self.padding is not None and isinstance(inputs, (dict, tuple)):
            mask = inputs[self.padding.mask] if isinstance(inputs, dict) else inputs[-1]
            batch.extra["mask"] = mask
        return batch if seeds is None or self.views is None else self.views(batch)

    def _read(self, dataset: Any, numbers: list[int], seeds: np.ndarray) -> tuple[Tree, Tree, bool]:
        """(inputs, labels, whether each row depends on its own item and seed alone)."""
        if dataset is self.dataset and self.random:
            items = [self._seeded(dataset, *each) for each in zip(numbers, generator_seeds(seeds), seeds.tolist())]
        else:
            items = self._unseeded(dataset, numbers)
        if self.collate_fn is None:
            pairs = [split_item(item, self._inputs_key, self._label_key) for item in items]
            return *collate(pairs, numbers, self.padding), True
        mixed = generator_seeds(np.array([int(seeds.sum()) ^ (numbers[0] << 1)]))[0]
        seed_generators(mixed)
        before = generator_states()
        found = custom_batch(self.collate_fn, items, self._inputs_key, self._label_key)
        return *found, generator_states() == before

    def _seeded(self, dataset: Any, number: int, seeds: list[int], view_seed: int) -> Any:
        seed_generators(seeds)
        if self.reseed is not None:
            self.reseed(view_seed)
        return read_item(dataset, number)

    def _unseeded(self, dataset: Any, numbers: list[int]) -> list[Any]:
        """Items that draw nothing; all generators are seeded and must stay where they are."""
        seed_generators([0, 0, 0])
        before = generator_states()
        many = getattr(dataset, "__getitems__", None)
        items = [read_item(dataset, number) for number in numbers] if many is None else read_items(dataset, numbers)
        if dataset is self.dataset and generator_states() != before:
            raise InputError(
                "an item draws random numbers, although the first ones looked at drew none",
                where=f"data: items {numbers[0]}, …",
                remedy="say so: DatasetData(dataset, random=True)",
            )
        return items

    # -- what is known of the dataset --------------------------------------------------------------------------------

    @property
    def random(self) -> bool:
        """Whether the dataset draws random numbers when an item is read."""
        if self._random is None:
            with preserved_generators():
                seed_generators([0, 0, 0])
                before = generator_states()
                for number in self._some(8):
                    read_item(self.dataset, number)
                self._random = generator_states() != before
        return self._random

    def _some(self, count: int) -> list[int]:
        return sorted(set(np.linspace(0, len(self) - 1, min(count, len(self))).astype(int).tolist()))

    @cached_property
    def fingerprint(self) -> str:
        """Names the content and the augmentation. Without ``version`` or a ``fingerprint`` of the dataset it covers
        code, state and 16 items (read twice): bytes that lie elsewhere, in files say, count by these items alone.

        Raises:
            InputError: an item read twice with one seed differs.
        """
        own = self.version or getattr(self.dataset, "fingerprint", None)
        if not isinstance(own, str):
            assert self._hash is not None
            numbers = torch.tensor(self._some(16))
            own = fingerprint(self._hash.hexdigest(), self.check_replay(numbers, numbers + 1))
        views = repr(getattr(self.views, "fingerprint", self.views))
        return fingerprint(READING, len(self), own, views, self.padding, self._inputs_key, self._label_key, self.random)

    @cached_property
    def labels(self) -> Tree:
        """The labels of all plain samples, stacked; None where they have none. Reads ``dataset.targets`` or
        ``dataset.labels`` where these agree with the items, else every item once."""
        for name in ("targets", "labels"):
            quick = getattr(self.dataset, name, None)
            if quick is not None and hasattr(quick, "__len__") and len(quick) == len(self):
                found = as_tensors(quick, f"data: {name}", label=True)
                some = self._some(4)
                seen = self.batch(torch.tensor(some), None).labels
                if isinstance(found, Tensor) and isinstance(seen, Tensor) and torch.equal(found[some], seen):
                    return found
        parts = [self.batch(rows, None).labels for rows in torch.arange(len(self)).split(64)]
        return None if parts[0] is None else _joined(parts)

    def check_replay(self, indices: Tensor, seeds: Tensor) -> str:
        """Read items twice, each by itself with its one seed, and compare. Returns a hash of what was read.

        Raises:
            InputError: the two differ; the item is named.
        """
        parts: list[Any] = []
        for index, seed in zip(indices.split(1), seeds.split(1), strict=True):
            first, second = self.batch(index, seed), self.batch(index, seed)
            again = dict(flatten_tree((second.inputs, second.labels)))
            for path, leaf in flatten_tree((first.inputs, first.labels)):
                other = again.get(path)
                if other is None or leaf.shape != other.shape or not _equal(leaf, other):
                    raise InputError(
                        "read twice with one seed, the item differs",
                        where=f"data: item {int(index)}",
                        remedy="draw from Python's, NumPy's or torch's global generator alone; where a transform keeps "
                        "a generator of its own, give DatasetData(dataset, reseed=…), which is called with each seed",
                    )
                parts += [path, str(leaf.dtype), list(leaf.shape), _raw(leaf)]
        return fingerprint(*parts)


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and bool(_raw(a) == _raw(b))


def _raw(leaf: Tensor) -> memoryview:
    return leaf.contiguous().reshape(-1).view(torch.uint8).numpy().data


def _joined(parts: list[Tree]) -> Tree:
    if isinstance(parts[0], dict):
        return {key: _joined([part[key] for part in parts]) for key in parts[0]}
    if isinstance(parts[0], tuple):
        return tuple(_joined([part[i] for part in parts]) for i in range(len(parts[0])))
    return torch.cat(parts)


def read_item(dataset: Any, number: int) -> Any:
    """``dataset[number]``.

    Raises:
        InputError: the dataset fails; the item, the error and its place are named.
    """
    try:
        return dataset[number]
    except TutelageError:
        raise
    except Exception as error:
        raise unreadable(error, f"item {number}") from error


def read_items(dataset: Any, numbers: list[int]) -> list[Any]:
    """``dataset.__getitems__(numbers)``: several items at once; errors as :func:`read_item`."""
    try:
        return list(dataset.__getitems__(numbers))
    except TutelageError:
        raise
    except Exception as error:
        raise unreadable(error, f"one of items {numbers[0]}, …") from error


def unreadable(error: Exception, what: str) -> InputError:
    """The typed form of an error raised by a user's dataset."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" (line {frames[-1].lineno} of {frames[-1].filename})" if frames else ""
    return InputError(
        f"{what} cannot be read: {type(error).__name__}: {error}{place}",
        where="data",
        remedy="the dataset raised this: try dataset[i] by itself",
    )
