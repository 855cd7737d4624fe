"""Sequences of fresh functions as training data: each is made from its sample number and view seed, and never stored."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tutelage.distillation.data import Batch, BatchOrder
from tutelage.distillation.data.generated import CountingOrder, RowStream
from tutelage.errors import InputError, did_you_mean
from tutelage.storage import fingerprint
from tutelage.systems.icl_discrete_functions.classes import Sequences, sample_sequences

OPTIONS = ("teaching", "forcing", "density", "noise", "start")


class FunctionData:
    """Fresh functions, each with its examples.

    A batch has the inputs (xs [B, P, n], ys [B, P]) and labels [B, P]: ys, or 0 at a position that is not learned.

    Args:
        function: a name of :data:`~tutelage.systems.icl_discrete_functions.CLASSES`.
        size: n.
        examples: P.
        length: how many sequences count as an epoch; every epoch makes new ones.
        seed: other seeds give other functions.
        options: ``teaching``, ``forcing``, ``density``, ``noise`` and ``start`` of
            :func:`~tutelage.systems.icl_discrete_functions.sample_sequences`.

    Examples:
        >>> data = FunctionData("conjunction", size=6, examples=16, teaching=0.5)
        >>> xs, ys = data.batch(torch.arange(4), None).inputs
        >>> xs.shape, ys.shape
        (torch.Size([4, 16, 6]), torch.Size([4, 16]))

    Raises:
        InputError: an unknown class or option, or a number out of range.
    """

    def __init__(
        self,
        function: str = "conjunction",
        size: int = 28,
        examples: int = 40,
        *,
        length: int = 65_536,
        seed: int = 0,
        **options: Any,
    ):
        self.function, self.size, self.examples = function, size, examples
        self.length, self.seed, self.options = length, seed, options
        for name in options:
            if name not in OPTIONS:
                raise InputError(f"no option {name!r}", where=name, remedy=did_you_mean(name, list(OPTIONS)))
        self.sequences(1)

    def __len__(self) -> int:
        return self.length

    @property
    def fingerprint(self) -> str:
        """Names the class and all settings."""
        options = sorted(self.options.items())
        return fingerprint("boolean-functions-1", self.function, self.size, self.examples, self.length, self.seed, options)

    def sample_order(
        self, batch_size: int, seed: int, views: int = 0, view_seed: int | None = None, steps: int = 1, accumulate: int = 1
    ) -> BatchOrder:
        """See :func:`tutelage.distillation.data.order_of`."""
        return CountingOrder(self.length, batch_size, seed, views, view_seed)

    def sequences(self, count: int, first: int = 0) -> Sequences:
        """``count`` functions with their examples, those of the plain samples from number ``first``."""
        return self._made(torch.arange(first, first + count), None)

    def batch(self, indices: Tensor, seeds: Tensor | None) -> Batch:
        """See :class:`ReplayableData`."""
        made = self._made(indices, seeds)
        xs, ys, labels = (torch.from_numpy(one).float() for one in (made.xs, made.ys, made.ys * made.counted))
        return Batch((xs, ys), labels, ids=indices, seeds=torch.zeros_like(indices) if seeds is None else seeds)

    def _made(self, indices: Tensor, seeds: Tensor | None) -> Sequences:
        return sample_sequences(RowStream(indices, seeds, self.seed), self.function, self.size, self.examples, **self.options)
