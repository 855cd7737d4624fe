"""Repeated augmentation: several views of each sample, one after the other, in the same batches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tutelage.distillation.data.base import Batch, BatchOrder, ReplayableData, SampleOrder
from tutelage.errors import InputError
from tutelage.fields import check_range
from tutelage.storage import fingerprint


class RepeatedOrder(SampleOrder):
    """An epoch shows ``1 / repeats`` of the samples, drawn anew, each ``repeats`` times side by side, in different views.

    Copy r of epoch e is view ``e repeats + r`` of its sample; with ``views`` = V these come again after V of them.
    """

    def __init__(self, length: int, batch_size: int, seed: int, views: int = 0, view_seed: int | None = None, repeats: int = 3):
        super().__init__(length, batch_size, seed, views, view_seed)
        self.repeats = repeats

    def draw(self, number: int) -> tuple[Tensor, Tensor]:
        """See :class:`SampleOrder`."""
        chosen = self.shuffled(number)[: -(-self.length // self.repeats)]
        seeds = [self.view_seeds(chosen, number * self.repeats + copy) for copy in range(self.repeats)]
        samples = chosen.repeat_interleave(self.repeats)[: self.length]
        return samples, torch.stack(seeds, 1).flatten()[: self.length]

    def covering(self, cycle: int) -> int | None:
        """None: which samples are shown depends on the run."""
        return None

    def facts(self) -> dict[str, Any]:
        """See :class:`BatchOrder`."""
        return super().facts() | {"repeats": self.repeats}


class RepeatedData:
    """``source`` with repeated augmentation (Hoffer et al., 2020; Berman et al., 2019), as DeiT trains.

    A batch of B samples holds ``B / repeats`` different ones, each in ``repeats`` views. An epoch is as many views as there
    are samples, so that ``epochs`` cost what they cost without it. (DeiT's own rounds an epoch down to a multiple of 256
    views: left out.)

    Args:
        source: data in random views; of others the copies are equal.
        repeats: views of each sample, published: 3.

    Raises:
        InputError: fewer than one view, or a source that has an order of its own.

    Examples:
        >>> from tutelage.distillation.data import TensorData
        >>> data = RepeatedData(TensorData(torch.arange(9.0)[:, None]), 3)
        >>> len(set(data.sample_order(6, seed=0).step(0)[0].tolist()))
        2
    """

    def __init__(self, source: ReplayableData, repeats: int = 3):
        check_range("repeats", repeats, 1, 1000, whole=True)
        if hasattr(source, "sample_order"):
            raise InputError(
                f"{type(source).__name__} decides itself which samples a step takes", where="source", remedy="repeat its sources"
            )
        self.source, self.repeats = source, repeats

    def __len__(self) -> int:
        return len(self.source)

    @property
    def fingerprint(self) -> str:
        """Of the source and the number of views."""
        return fingerprint(self.source.fingerprint, "repeated", self.repeats)

    @property
    def loading(self) -> Any:
        """How the source is read, where it says so."""
        return getattr(self.source, "loading", None)

    def sample_order(
        self, batch_size: int, seed: int, views: int = 0, view_seed: int | None = None, steps: int = 1, accumulate: int = 1
    ) -> BatchOrder:
        """See :func:`tutelage.distillation.data.order_of`."""
        return RepeatedOrder(len(self), batch_size, seed, views, view_seed, self.repeats)

    def batch(self, indices: Tensor, seeds: Tensor | None) -> Batch:
        """See :class:`ReplayableData`."""
        return self.source.batch(indices, seeds)
