"""A part of the samples of any data, and a split into what is learned from and what is held out."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from tutelage.distillation.data.base import Batch, ReplayableData
from tutelage.distillation.data.stream import StreamData
from tutelage.errors import InputError
from tutelage.seeds import torch_rng
from tutelage.storage import fingerprint


class SubsetData:
    """The samples ``rows`` [n] int64 of ``source``, which keep their ids, and so their views and their cached answers."""

    def __init__(self, source: ReplayableData, rows: Tensor):
        self.source, self.rows = source, rows

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def fingerprint(self) -> str:
        """Of the source and of which samples."""
        return fingerprint(self.source.fingerprint, "subset", self.rows.numpy().tobytes())

    @property
    def loading(self) -> Any:
        """How the source is read, where it says so."""
        return getattr(self.source, "loading", None)

    def batch(self, indices: Tensor, seeds: Tensor | None) -> Batch:
        """See :class:`ReplayableData`."""
        return self.source.batch(self.rows[indices], seeds)


def split_data(data: ReplayableData, share: float, seed: int = 0) -> tuple[ReplayableData, ReplayableData]:
    """(what is learned from, what is held out): a random ``share`` of the samples, rounded up, is held out.

    Several sources joined are split one by one, and stay joined as they were.

    Args:
        data: anything but a stream.
        share: above 0 and below 1.
        seed: names the split; runs that are compared share it.

    Raises:
        InputError: no such share, too few samples, or a stream or made data, whose samples are no list.

    Examples:
        >>> from tutelage.distillation.data import TensorData
        >>> [len(part) for part in split_data(TensorData(torch.zeros(10, 2)), 0.2)]
        [8, 2]
    """
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share < 1:
        raise InputError(f"a share of {share!r}", where="validation", remedy="above 0 and below 1, such as 0.1")
    if isinstance(data, StreamData):
        raise InputError("a stream cannot be split: its samples have no numbers", where="validation", remedy="give other data")
    if (with_sources := getattr(data, "with_sources", None)) is not None:
        halves = {name: split_data(one, share, seed) for name, one in data.sources.items()}  # type: ignore[attr-defined]
        return tuple(with_sources({name: half[part] for name, half in halves.items()}) for part in (0, 1))
    if hasattr(data, "sample_order"):
        raise InputError(
            f"{type(data).__name__} decides itself which samples a step takes, and cannot be split",
            where="validation",
            remedy="give validation data of its own",
        )
    held = math.ceil(share * len(data))
    if held >= len(data):
        raise InputError(f"{len(data)} samples cannot be split", where="validation", remedy="give more samples or a smaller share")
    order = torch.randperm(len(data), generator=torch_rng(seed, "held out", len(data)))
    return SubsetData(data, order[held:].sort().values), SubsetData(data, order[:held].sort().values)
