"""An ``IterableDataset`` as data: samples come once, in the stream's own order."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from tutelage.distillation.data import Batch
from tutelage.distillation.data.dataset import Loading, unreadable
from tutelage.distillation.data.items import Key, Padding, collate, custom_batch, split_item
from tutelage.errors import InputError, TutelageError

EPOCH = 65_536
"""How many samples count as an epoch of a stream that has no length (our choice)."""


class StreamWarning(UserWarning):
    """A stream was given where samples by number would allow more."""


class StreamData:
    """Data from a stream. A batch is whatever comes next: sample numbers and view seeds are not used.

    What is lost, and warned of: a run that was stopped goes on with other samples, not to the same bits; the
    teacher's outputs cannot be cached; a batch cannot be looked at again. A stream that ends begins anew.

    Args:
        dataset: an ``IterableDataset``, or anything that can be iterated more than once.
        inputs, labels, padding, collate_fn: as in :class:`DatasetData`.
        loading: with n workers each iterates its own copy, which must give its own part of the samples
            (``torch.utils.data.get_worker_info``).
        length: how many samples count as an epoch; None: ``len(dataset)`` where it has one, else 65,536.

    Raises:
        InputError: the object cannot be iterated.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        inputs: Key | Sequence[Key] | None = None,
        labels: Key | None = None,
        padding: Padding | None = None,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        views: Callable[[Batch], Batch] | None = None,
        loading: Loading | None = None,
        length: int | None = None,
    ):
        if not hasattr(dataset, "__iter__") or isinstance(dataset, Iterator):
            raise InputError(
                f"{type(dataset).__name__} cannot be iterated again and again",
                where="data",
                remedy="give an IterableDataset, or a Dataset with len and [i]",
            )
        warnings.warn(
            f"{type(dataset).__name__} is a stream: a stopped run will not resume to the same bits, and the teacher's "
            "outputs cannot be cached; a Dataset with len and [i] has neither limit",
            StreamWarning,
            stacklevel=2,
        )
        self.dataset = dataset
        self.padding = padding
        self.collate_fn = collate_fn
        self.views = views
        self.source = loading or Loading()
        self._inputs_key, self._label_key = inputs, labels
        self._length = length or _length(dataset) or EPOCH
        self._items: Iterator[Any] | None = None

    def __len__(self) -> int:
        return self._length

    @property
    def fingerprint(self) -> str:
        """Names the stream's class and settings: its content is not known."""
        return f"stream {type(self.dataset).__qualname__} {self._length} {self.padding}"

    def batch(self, indices: Tensor, seeds: Tensor | None) -> Batch:
        """The next B samples of the stream; ``ids`` and ``seeds`` of the batch are None.

        Raises:
            InputError: the stream is empty, fails, or its items do not fit together.
        """
        items = [self._item() for _ in range(len(indices))]
        if self.collate_fn is not None:
            inputs, labels = custom_batch(self.collate_fn, items, self._inputs_key, self._label_key)
        else:
            pairs = [split_item(item, self._inputs_key, self._label_key) for item in items]
            inputs, labels = collate(pairs, range(len(items)), self.padding)
        batch = Batch(inputs, labels)
        if self.views is None or seeds is None:
            return batch
        batch.seeds = seeds
        return self.views(batch)

    def _item(self) -> Any:
        for _ in range(2):
            if self._items is None:
                self._items = self._begin()
            try:
                return next(self._items)
            except StopIteration:
                self._items = None
            except TutelageError:
                raise
            except Exception as error:
                raise unreadable(error, "the next sample") from error
        raise InputError("the stream holds no sample", where="data", remedy="check the path and the split")

    def _begin(self) -> Iterator[Any]:
        if self.source.workers == 0 or not isinstance(self.dataset, IterableDataset):
            return iter(self.dataset)
        loader = DataLoader(
            self.dataset,
            batch_size=None,
            collate_fn=_as_it_is,
            num_workers=self.source.workers,
            prefetch_factor=self.source.prefetch * 32,  # in samples here, not in batches
            worker_init_fn=self.source.worker_init_fn,
            multiprocessing_context=self.source.context,
            generator=torch.Generator(),
        )
        return iter(loader)


def _length(dataset: Any) -> int | None:
    try:
        return len(dataset)
    except TypeError:
        return None


def _as_it_is(item: Any) -> Any:
    return item
