"""Data that lie nowhere: noise, and samples that a function makes, each a function of its number and its view seed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tutelage.distillation.data import Batch, BatchOrder, SampleOrder, flatten_tree, hash64
from tutelage.distillation.data.dataset import Loading, unreadable
from tutelage.distillation.data.items import Key, Padding, collate, split_item
from tutelage.distillation.data.object_hash import ObjectHash
from tutelage.errors import InputError, TutelageError
from tutelage.seeds import derive
from tutelage.storage import fingerprint

MOST = 2**40
"""The most samples of generated data: their numbers are counted, never listed."""


class CountingOrder:
    """Samples 0, 1, 2, … and from 0 again: for data whose samples are independent of their numbers. Nothing is kept,
    whatever the length. View seeds are those of :class:`SampleOrder`."""

    def __init__(self, length: int, batch_size: int, seed: int, views: int = 0, view_seed: int | None = None):
        self.length, self.batch_size, self.seed, self.views = length, batch_size, seed, views
        self.view_seed = seed if view_seed is None else view_seed

    def step(self, number: int) -> tuple[Tensor, Tensor]:
        """See :class:`BatchOrder`."""
        first = number * self.batch_size
        places = [divmod(place, self.length) for place in range(first, first + self.batch_size)]
        starts = {epoch: derive(self.view_seed, "view", epoch % self.views if self.views else epoch) for epoch, _ in places}
        samples = np.array([sample for _, sample in places], dtype=np.uint64)
        hashed = hash64(hash64(samples) ^ np.array([starts[epoch] for epoch, _ in places], dtype=np.uint64))
        return torch.from_numpy(samples.astype(np.int64)), torch.from_numpy((hashed >> np.uint64(33)).astype(np.int64))

    def covering(self, cycle: int) -> int | None:
        """See :class:`BatchOrder`."""
        return -(-cycle * self.length // self.batch_size)

    def facts(self) -> dict[str, Any]:
        """See :class:`BatchOrder`."""
        return {name: getattr(self, name) for name in ("length", "batch_size", "seed", "views", "view_seed")}


def _sample_keys(indices: Tensor, seeds: Tensor | None, seed: int) -> np.ndarray:
    """One uint64 a row [B], a hash of sample number, view seed and the data's own seed."""
    numbers = hash64(indices.numpy().astype(np.uint64) ^ np.uint64(derive(seed, "generated")))
    views = np.zeros(len(indices), np.uint64) if seeds is None else seeds.numpy().astype(np.uint64)
    return hash64(numbers ^ hash64(views))


def _check_length(length: int) -> None:
    if not isinstance(length, int) or isinstance(length, bool) or not 1 <= length <= MOST:
        raise InputError(f"{length!r} samples", where="length", remedy=f"a whole number from 1 to {MOST:,}")


def counted_uniform(keys: np.ndarray, count: int) -> np.ndarray:
    """``count`` numbers in (0, 1) a row, float64 [B, count]: number j of row i is a hash of (keys_i, j), of 52 bits."""
    with np.errstate(over="ignore"):
        hashed = hash64(keys[:, None] + np.arange(count, dtype=np.uint64) * np.uint64(0xD1342543DE82EF95))
    return ((hashed >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


def counted_normal(keys: np.ndarray, count: int) -> np.ndarray:
    """``count`` standard normal numbers a row, float64 [B, count] (Box, Muller, 1958)."""
    half = (count + 1) // 2
    uniform = counted_uniform(keys, 2 * half)
    radius, angle = np.sqrt(-2 * np.log(uniform[:, :half])), 2 * math.pi * uniform[:, half:]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], 1)[:, :count]


class Prior:
    """Noise instead of data: what a generator starts from (a flow, a diffusion model, a GAN).

    A row is a function of (sample number, view seed, ``seed``): a new epoch draws new noise, unless ``settings.views`` says
    that it comes again. No data set is opened, and the length may be anything.

    Args:
        shape: of one sample.
        length: how many samples count as an epoch.
        kind: ``normal`` (mean 0, deviation 1), or ``uniform`` in 0..1.
        classes: if given, labels are class numbers below it, drawn uniformly: conditions to generate for.
        seed: other seeds give other noise.

    Examples:
        >>> noise = Prior((2,), length=10**9, classes=10)
        >>> batch = noise.batch(torch.tensor([0, 123_456_789]), None)
        >>> batch.inputs.shape, batch.labels.shape
        (torch.Size([2, 2]), torch.Size([2]))

    Raises:
        InputError: a size below 1, or an unknown kind.
    """

    def __init__(
        self, shape: tuple[int, ...], length: int = 65_536, kind: str = "normal", classes: int | None = None, seed: int = 0
    ):
        _check_length(length)
        self.shape = tuple(shape)
        if not all(isinstance(size, int) and size >= 1 for size in self.shape):
            raise InputError(f"no shape of a sample: {shape!r}", where="shape", remedy="sizes of at least 1, such as (3, 32, 32)")
        if kind not in ("normal", "uniform"):
            raise InputError(f"no noise {kind!r}", where="kind", remedy="normal or uniform")
        if classes is not None and classes < 1:
            raise InputError(f"{classes} classes", where="classes", remedy="at least 1")
        self.length, self.kind, self.classes, self.seed = length, kind, classes, seed

    def __len__(self) -> int:
        return self.length

    @property
    def fingerprint(self) -> str:
        """Names shape, kind and seed."""
        return fingerprint("prior-1", list(self.shape), self.length, self.kind, self.classes, self.seed)

    def sample_order(
        self, batch_size: int, seed: int, views: int = 0, view_seed: int | None = None, steps: int = 1, accumulate: int = 1
    ) -> BatchOrder:
        """See :func:`tutelage.distillation.data.order_of`."""
        return CountingOrder(self.length, batch_size, seed, views, view_seed)

    def batch(self, indices: Tensor, seeds: Tensor | None) -> Batch:
        """See :class:`ReplayableData`: inputs float32 [B, *shape], labels int64 [B] or None."""
        keys = _sample_keys(indices, seeds, self.seed)
        draw = counted_normal if self.kind == "normal" else counted_uniform
        noise = torch.from_numpy(draw(keys, math.prod(self.shape)).astype(np.float32)).view(-1, *self.shape)
        labels = None
        if self.classes is not None:
            labels = torch.from_numpy((counted_uniform(~keys, 1)[:, 0] * self.classes).astype(np.int64))
        return Batch(noise, labels, ids=indices, seeds=torch.zeros_like(indices) if seeds is None else seeds)


class GeneratedData:
    """Samples that a function makes.

    ``make(number, rng)`` returns an item, as a ``Dataset`` does: an input, a pair (input, label), or a dict with labels. It
    draws from ``rng`` alone, a NumPy generator that is seeded from (sample number, view seed, ``seed``): the same sample and
    seed give the same bits, in any worker and on resume.

    Args:
        make: a function of (number, generator).
        length: how many samples count as an epoch.
        fixed: a sample is the same in every epoch, as in a data set; else every epoch makes new ones.
        inputs, labels, padding: as in :class:`DatasetData`.
        loading: worker processes.
        seed: other seeds give other samples.
        version: names what ``make`` does; None: a hash of its code.

    Examples:
        >>> def parity(number, rng):
        ...     bits = rng.integers(0, 2, 8)
        ...     return bits.astype("float32"), int(bits.sum() % 2)
        >>> GeneratedData(parity, 1000).batch(torch.arange(4), None).inputs.shape
        torch.Size([4, 8])

    Raises:
        InputError: a length out of range, or something that cannot be called.
    """

    def __init__(
        self,
        make: Callable[[int, np.random.Generator], Any],
        length: int,
        *,
        fixed: bool = False,
        inputs: Key | list[Key] | None = None,
        labels: Key | None = None,
        padding: Padding | None = None,
        loading: Loading | None = None,
        seed: int = 0,
        version: str | None = None,
    ):
        _check_length(length)
        if not callable(make):
            raise InputError(f"a {type(make).__name__} makes no samples", where="make", remedy="give a function of (number, rng)")
        self.make, self.length, self.fixed, self.padding, self.seed = make, length, fixed, padding, seed
        self.loading = loading or Loading()
        self._inputs_key, self._label_key = inputs, labels
        self._version = version or ObjectHash(make).hexdigest()

    def __len__(self) -> int:
        return self.length

    @property
    def fingerprint(self) -> str:
        """Names the function and the settings."""
        keys = [self._inputs_key, self._label_key, self.padding]
        return fingerprint("generated-1", self._version, self.length, self.fixed, self.seed, *keys)

    def sample_order(
        self, batch_size: int, seed: int, views: int = 0, view_seed: int | None = None, steps: int = 1, accumulate: int = 1
    ) -> BatchOrder:
        """See :func:`tutelage.distillation.data.order_of`: fixed samples are shuffled, others are new anyway."""
        kind = SampleOrder if self.fixed else CountingOrder
        return kind(self.length, batch_size, seed, views, view_seed)

    def batch(self, indices: Tensor, seeds: Tensor | None) -> Batch:
        """See :class:`ReplayableData`.

        Raises:
            InputError: the function fails, or its items do not fit together; the sample is named.
        """
        named = torch.zeros_like(indices) if seeds is None or self.fixed else seeds
        numbers = indices.tolist()
        keys = _sample_keys(indices, named, self.seed).tolist()
        pairs = [split_item(self._item(*each), self._inputs_key, self._label_key) for each in zip(numbers, keys, strict=True)]
        inputs, labels = collate(pairs, numbers, self.padding)
        return Batch(inputs, labels, ids=indices, seeds=named)

    def _item(self, number: int, key: int) -> Any:
        try:
            return self.make(number, np.random.Generator(np.random.PCG64(key)))
        except TutelageError:
            raise
        except Exception as error:
            raise unreadable(error, f"item {number}") from error

    def check_replay(self, indices: Tensor, seeds: Tensor) -> None:
        """Make samples twice and compare.

        Raises:
            InputError: one differs; its number is named.
        """
        for index, seed in zip(indices.split(1), seeds.split(1), strict=True):
            first, second = self.batch(index, seed), self.batch(index, seed)
            for (_, a), (_, b) in zip(flatten_tree((first.inputs, first.labels)), flatten_tree((second.inputs, second.labels))):
                if not torch.equal(a.nan_to_num(), b.nan_to_num()):
                    raise InputError(
                        "made twice with one seed, the item differs",
                        where=f"data: item {int(index)}",
                        remedy="draw from the generator that make(number, rng) is given, and from no other",
                    )


class RowStream:
    """Random numbers for the rows of a batch at once; a row's are a function of its sample number, its view seed and ``seed``.

    The row gives the same numbers in any batch, and each call gives the next ones: what is drawn from it replays.

    Args:
        indices: sample numbers [B] int64.
        seeds: view seeds [B] int64; None: the plain samples.
        seed: other seeds give other numbers.

    Examples:
        >>> RowStream(torch.arange(3), None).uniform(2, 5).shape
        (3, 2, 5)
    """

    def __init__(self, indices: Tensor, seeds: Tensor | None, seed: int = 0):
        self._keys = _sample_keys(indices, seeds, seed)
        self._calls = 0

    def __len__(self) -> int:
        return len(self._keys)

    def uniform(self, *shape: int) -> np.ndarray:
        """Numbers in (0, 1), float64 [B, *shape]."""
        self._calls += 1
        keys = hash64(self._keys ^ hash64(np.full(1, self._calls, np.uint64)))
        return counted_uniform(keys, math.prod(shape)).reshape(len(keys), *shape)
