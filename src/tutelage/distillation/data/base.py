"""Batches, and what supplies them: a :class:`ReplayableData` is sized, answers index tensors, and can replay any view."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from tutelage.errors import InputError
from tutelage.seeds import derive, torch_rng
from tutelage.storage import fingerprint

Tree = Any
"""A tensor, or any nest of dicts, lists and tuples of tensors."""


def map_tree(function: Callable[[Tensor], Tensor], tree: Tree) -> Tree:
    """``tree`` with ``function`` applied to each tensor; everything else stays."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, Mapping):
        return {key: map_tree(function, item) for key, item in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(map_tree(function, item) for item in tree)
    return tree


def flatten_tree(tree: Tree, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """Each tensor of ``tree`` with its dotted path."""
    if isinstance(tree, Tensor):
        yield path, tree
    elif isinstance(tree, Mapping):
        for key, item in tree.items():
            yield from flatten_tree(item, f"{path}.{key}" if path else str(key))
    elif isinstance(tree, (list, tuple)):
        for number, item in enumerate(tree):
            yield from flatten_tree(item, f"{path}.{number}" if path else str(number))


@dataclass(slots=True)
class Batch:
    """What one step sees.

    ``inputs``: a tensor [B, ...] or a nest of tensors (how a network takes it: ``method.answer``); a method that
    overrides ``forward`` may use any groups it likes, of different lengths. ``labels``: [B] class ids, [B, C]
    probabilities, or a nest. ``ids``: [B] int64, the sample numbers; ``seeds``: [B] int64, the view seeds;
    ``partners``: [B] int64, the row each row was mixed with. These three are the key of a view. ``weights``: [B], how
    much each sample counts. ``extra``: whatever else the method and its data agree on.
    """

    inputs: Tree
    labels: Tree = None
    ids: Tensor | None = None
    seeds: Tensor | None = None
    partners: Tensor | None = None
    weights: Tensor | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        if self.ids is not None:
            return len(self.ids)
        return next((len(leaf) for _, leaf in flatten_tree(self.inputs)), 0)

    def to(self, device: torch.device | str, channels_last: bool = False) -> Batch:
        """This batch on ``device``; with ``channels_last``, 4-D inputs in that layout."""

        def move(tensor: Tensor) -> Tensor:
            if channels_last and tensor.ndim == 4:
                return tensor.to(device, memory_format=torch.channels_last, non_blocking=True)
            return tensor.to(device, non_blocking=True)

        plain = {name: map_tree(lambda t: t.to(device, non_blocking=True), getattr(self, name)) for name in _MOVED}
        return replace(self, inputs=map_tree(move, self.inputs), **plain)

    def pin_memory(self) -> Batch:
        """This batch in page-locked memory, from where a GPU copies it faster."""
        pinned = {name: map_tree(lambda t: t.pin_memory(), getattr(self, name)) for name in ("inputs", *_MOVED)}
        return replace(self, **pinned)


_MOVED = ("labels", "weights", "extra", "partners")


def take_rows(batch: Batch, rows: Tensor) -> Batch:
    """The part ``rows`` [n] int64 of a batch whose every tensor has one row a sample."""
    size = len(batch)

    def take(tensor: Tensor) -> Tensor:
        return tensor[rows.to(tensor.device)] if tensor.ndim and len(tensor) == size else tensor

    return Batch(*(map_tree(take, getattr(batch, item.name)) for item in fields(Batch)))


class ReplayableData(Protocol):
    """Samples by number. ``batch`` must depend on its arguments alone: that is what makes a run resumable and a cached
    teacher exact. ``fingerprint`` changes whenever any sample or its augmentation may."""

    @property
    def fingerprint(self) -> str:
        """Names the content of every sample and the augmentation."""
        ...

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor, seeds: Tensor | None) -> Batch:
        """The samples ``indices`` [B] int64, each in the view its seed [B] int64 gives; None: without augmentation."""
        ...


def _tensors(tree: Any, path: str) -> Tree:
    """``tree`` with arrays as tensors; what is neither is refused."""
    if tree is None or (isinstance(tree, Tensor) and tree.ndim):
        return tree
    if isinstance(tree, np.ndarray) and tree.dtype.kind in "biuf" and tree.ndim:
        return torch.from_numpy(tree)
    if isinstance(tree, Mapping):
        return {key: _tensors(item, f"{path}.{key}") for key, item in tree.items()}
    text = isinstance(tree, str) or (isinstance(tree, np.ndarray) and tree.dtype.kind in "US")
    plain = isinstance(tree, (list, tuple)) and all(isinstance(item, (str, int, float, list)) for item in tree)
    if isinstance(tree, (list, tuple)) and tree and not plain:
        return type(tree)(_tensors(item, f"{path}.{number}") for number, item in enumerate(tree))
    if text or (isinstance(tree, (list, tuple)) and any(isinstance(item, str) for item in tree)):
        remedy = "number the classes from 0" if path.startswith("labels") else "tokenize texts: give their token ids"
        raise InputError("texts are no tensor", where=path, remedy=remedy)
    remedy = "give tensors with one row a sample: torch.tensor(…)"
    raise InputError(f"a {type(tree).__name__} of no sample axis is no tensor", where=path, remedy=remedy)


class TensorData:
    """Samples held in memory as tensors, which must not change: a batch is one gather.

    Args:
        inputs: a tensor [N, ...] or a nest of tensors of equal length N.
        labels: [N] class ids, [N, C] probabilities, a nest, or None.
        weights: [N] or None.
        views: maps a batch to its seeded augmentation (see ``views.Views``), or None: the sample itself, and then
            every view seed is 0, so that a teacher cache holds each sample once.

    Raises:
        InputError: no samples, or tensors of different lengths.
    """

    def __init__(
        self,
        inputs: Tree,
        labels: Tree = None,
        weights: Tensor | None = None,
        views: Callable[[Batch], Batch] | None = None,
    ):
        self.inputs, self.labels, self.views = _tensors(inputs, "inputs"), _tensors(labels, "labels"), views
        self.weights = _tensors(weights, "weights")
        if views is not None and not callable(views):
            raise InputError(f"a {type(views).__name__} makes no views", where="views", remedy="give Augmentation(…) or a function")
        inputs, labels, weights = self.inputs, self.labels, self.weights
        named = [*flatten_tree(inputs, "inputs"), *flatten_tree(labels, "labels"), *flatten_tree(weights, "weights")]
        self._length = len(named[0][1]) if named else 0
        if self._length == 0:
            raise InputError("the data holds no sample", where="data", remedy="check the path and the split")
        for name, leaf in named:
            if len(leaf) != self._length:
                raise InputError(
                    f"{name} holds {len(leaf)} samples, {named[0][0]} holds {self._length}",
                    where="data",
                    remedy="give tensors of equal length",
                )
        if not named[0][0].startswith("inputs"):
            raise InputError("there are no inputs", where="inputs", remedy="give a tensor [N, …], or a nest of tensors")
        if weights is not None and (weights.ndim != 1 or not bool((weights >= 0).all()) or not bool(weights.isfinite().all())):
            raise InputError("a weight is no number from 0", where="weights", remedy="one finite number from 0 a sample, [N]")

    def __len__(self) -> int:
        return self._length

    @property
    def fingerprint(self) -> str:
        """A hash of all bytes, shapes and dtypes (computed once), and of the augmentation's settings."""
        return fingerprint(self._content, repr(getattr(self.views, "fingerprint", self.views)))

    @cached_property
    def _content(self) -> str:
        parts: list[Any] = []
        for name, leaf in flatten_tree((self.inputs, self.labels)):
            data = leaf.contiguous().reshape(-1).view(torch.uint8).numpy().data
            parts += [name, str(leaf.dtype), list(leaf.shape), data]
        return fingerprint(*parts)

    def batch(self, indices: Tensor, seeds: Tensor | None) -> Batch:
        """See :class:`ReplayableData`."""
        views = self.views if seeds is not None else None
        try:
            inputs = map_tree(lambda leaf: leaf[indices], self.inputs)
        except IndexError as error:
            raise InputError(f"no such sample among {len(self)}: {error}", where="data", remedy="count samples from 0") from error
        batch = Batch(
            inputs,
            map_tree(lambda leaf: leaf[indices], self.labels),
            ids=indices,
            seeds=torch.zeros_like(indices) if views is None else seeds,
            weights=None if self.weights is None else self.weights[indices],
        )
        return batch if views is None else views(batch)


def hash64(values: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser (Steele, Lea, Flood, 2014): a bijection of uint64 that scatters neighbouring counters."""
    with np.errstate(over="ignore"):
        z = values.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


class BatchOrder(Protocol):
    """Which samples and views each pass of a run takes: a function of the number of the pass alone."""

    length: int
    batch_size: int
    views: int
    view_seed: int

    def step(self, number: int) -> tuple[Tensor, Tensor]:
        """(sample numbers [B], view seeds [B]) of pass ``number`` (from 0), int64."""
        ...

    def covering(self, cycle: int) -> int | None:
        """How many passes show each sample in ``cycle`` views; None: this depends on the run."""
        ...

    def facts(self) -> dict[str, Any]:
        """What :func:`order_of` makes the same order from."""
        ...


class SampleOrder:
    """Which samples and views each step takes: a function of (seed, step) alone, so nothing has to be saved.

    Samples run through one seeded permutation an epoch, end to end: every step is a full batch, an epoch may end inside
    one. The view seed of a sample in an epoch is 31 bits, hashed from (``view_seed``, epoch, sample); with ``views`` =
    V > 0 the views repeat every V epochs. ``view_seed`` None: the seed.
    """

    def __init__(self, length: int, batch_size: int, seed: int, views: int = 0, view_seed: int | None = None):
        self.length, self.batch_size, self.seed, self.views = length, batch_size, seed, views
        self.view_seed = seed if view_seed is None else view_seed
        self._epochs: dict[int, tuple[Tensor, Tensor]] = {}

    def epoch(self, number: int) -> tuple[Tensor, Tensor]:
        """(sample numbers [N], view seeds [N]) of epoch ``number``, in order, int32: they are kept, and N may be large."""
        found = self._epochs.get(number)
        if found is None:
            found = self.draw(number)
            self._epochs = {key: value for key, value in self._epochs.items() if key == number - 1}
            self._epochs[number] = found
        return found

    def draw(self, number: int) -> tuple[Tensor, Tensor]:
        """:meth:`epoch`, drawn anew."""
        samples = self.shuffled(number)
        return samples, self.view_seeds(samples, number)

    def shuffled(self, number: int) -> Tensor:
        """All sample numbers [N] int32 in the order of epoch ``number``."""
        return torch.randperm(self.length, generator=torch_rng(self.seed, "order", number)).int()

    def view_seeds(self, samples: Tensor, view: int) -> Tensor:
        """The seeds [n] int32 of view ``view`` (from 0) of the samples [n] int32."""
        start = np.uint64(derive(self.view_seed, "view", view % self.views if self.views else view))
        seeds = torch.empty_like(samples)
        for part, out in zip(samples.split(1 << 16), seeds.split(1 << 16), strict=True):  # the hash needs room
            hashed = hash64(hash64(part.numpy().astype(np.uint64)) ^ start)
            out.copy_(torch.from_numpy((hashed >> np.uint64(33)).astype(np.int32)))
        return seeds

    def step(self, number: int) -> tuple[Tensor, Tensor]:
        """(sample numbers [B], view seeds [B]) of step ``number`` (from 0)."""
        first = number * self.batch_size
        epoch, offset = divmod(first, self.length)
        samples, seeds = self.epoch(epoch)
        if offset + self.batch_size <= self.length:
            taken = slice(offset, offset + self.batch_size)
            return samples[taken].long(), seeds[taken].long()
        parts = []
        missing = self.batch_size
        while missing:
            samples, seeds = self.epoch(epoch)
            taken = slice(offset, offset + missing)
            parts.append((samples[taken], seeds[taken]))
            missing -= len(parts[-1][0])
            epoch, offset = epoch + 1, 0
        return torch.cat([part[0] for part in parts]).long(), torch.cat([part[1] for part in parts]).long()

    def covering(self, cycle: int) -> int | None:
        """See :class:`BatchOrder`."""
        return -(-cycle * self.length // self.batch_size)

    def facts(self) -> dict[str, Any]:
        """See :class:`BatchOrder`."""
        return {name: getattr(self, name) for name in ("length", "batch_size", "seed", "views", "view_seed")}


def order_of(
    data: ReplayableData,
    batch_size: int,
    seed: int,
    views: int = 0,
    view_seed: int | None = None,
    steps: int = 1,
    accumulate: int = 1,
    length: int | None = None,
) -> BatchOrder:
    """Which samples of ``data``, in which views, each pass of a run takes: what its ``sample_order`` says, where it has
    one, else a :class:`SampleOrder`.

    Args:
        data: the samples.
        batch_size, seed, views, view_seed: as in :class:`SampleOrder`.
        steps, accumulate: the length of the run; data that change over a run are divided by it.
        length: of the data; None: as it is.
    """
    own = getattr(data, "sample_order", None)
    if own is not None:
        return own(batch_size, seed, views, view_seed, steps, accumulate)
    return SampleOrder(len(data) if length is None else length, batch_size, seed, views, view_seed)
