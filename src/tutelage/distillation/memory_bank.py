"""Memories of features: a queue of the latest, and a slot for each sample. All state is buffers: saved, moved, resumed.

A method that holds one as a sub-module needs to do nothing to resume.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.errors import InputError

EMPTY = -1
"""The label and id of a place that holds nothing."""


class FeatureQueue(nn.Module):
    """The last ``size`` feature vectors with their labels and sample ids, first in, first out (He et al., 2020).

    Args:
        size: number of places.
        dim: of a vector.
        generator: for random start vectors, unit length, which count as held (MoCo); None: the queue starts empty.

    Raises:
        InputError: a size or width below 1.
    """

    features: Tensor
    labels: Tensor
    ids: Tensor
    written: Tensor

    def __init__(self, size: int, dim: int, generator: torch.Generator | None = None):
        super().__init__()
        if size < 1 or dim < 1:
            raise InputError(f"a queue of {size} vectors of {dim} numbers", where="size", remedy="both at least 1")
        start = torch.zeros(size, dim)
        if generator is not None:
            start = F.normalize(torch.randn(size, dim, generator=generator), dim=-1)
        self.register_buffer("features", start)
        self.register_buffer("labels", torch.full((size,), EMPTY, dtype=torch.int64))
        self.register_buffer("ids", torch.full((size,), EMPTY, dtype=torch.int64))
        # all writes since the start: the place of the next one, and how many places are filled
        self.register_buffer("written", torch.tensor(0 if generator is None else size, dtype=torch.int64))

    def __len__(self) -> int:
        return min(int(self.written), len(self.features))

    @torch.no_grad()
    def enqueue(self, features: Tensor, labels: Tensor | None = None, ids: Tensor | None = None) -> None:
        """Write vectors [B, dim] over the oldest; of a batch larger than the queue the last stay.

        Args:
            features: detached and copied.
            labels: [B] int64; None: :data:`EMPTY`.
            ids: [B] int64; None: :data:`EMPTY`.

        Raises:
            InputError: vectors of another width.
        """
        size = len(self.features)
        if features.ndim != 2 or features.shape[1] != self.features.shape[1]:
            raise InputError(
                f"vectors {tuple(features.shape)} for a queue of width {self.features.shape[1]}",
                where="features",
            )
        first = max(0, len(features) - size)
        count = torch.arange(first, len(features), device=self.features.device)
        places = (self.written + count) % size
        self.features[places] = features.detach()[first:].to(self.features)
        for store, values in ((self.labels, labels), (self.ids, ids)):
            store[places] = EMPTY if values is None else values[first:].to(store)
        self.written += len(features)

    def entries(self) -> tuple[Tensor, Tensor, Tensor]:
        """(features [n, dim], labels [n], ids [n]) that are held, the oldest first."""
        size, count = len(self.features), len(self)
        places = (int(self.written) - count + torch.arange(count, device=self.features.device)) % size
        return self.features[places], self.labels[places], self.ids[places]


class SlotMemory(nn.Module):
    """One vector and label for each of N samples, written by sample id (Wu et al., 2018).

    Args:
        slots: N.
        dim: of a vector.
        momentum: share of the old vector that stays when a slot is written again.
        normalize: whether a vector is scaled to unit length when it is written.
    """

    features: Tensor
    labels: Tensor

    def __init__(self, slots: int, dim: int, momentum: float = 0.0, normalize: bool = True):
        super().__init__()
        if not 0 <= momentum < 1:
            raise InputError(f"a momentum lies in 0..1, this is {momentum}", where="momentum", remedy="0: none")
        self.momentum, self.normalize = momentum, normalize
        self.register_buffer("features", torch.zeros(slots, dim))
        self.register_buffer("labels", torch.full((slots,), EMPTY, dtype=torch.int64))
        self.filled: Tensor
        self.register_buffer("filled", torch.zeros(slots, dtype=torch.bool))

    def __len__(self) -> int:
        return int(self.filled.sum())

    @torch.no_grad()
    def write(self, ids: Tensor, features: Tensor, labels: Tensor | None = None) -> None:
        """Store vectors [B, dim] under ``ids`` [B]; an id that occurs twice keeps its last vector.

        Raises:
            InputError: an id outside the memory.
        """
        ids = ids.to(self.features.device)
        if len(ids) and not (0 <= int(ids.min()) and int(ids.max()) < len(self.features)):
            raise InputError(f"ids up to {int(ids.max())} for {len(self.features)} slots", where="ids")
        last = {int(sample): row for row, sample in enumerate(ids.tolist())}
        rows = torch.tensor(list(last.values()), dtype=torch.int64, device=ids.device)
        ids, new = ids[rows], features.detach().to(self.features)[rows]
        old = self.features[ids]
        share = torch.where(self.filled[ids], self.momentum, 0.0)[:, None].to(new.dtype)
        mixed = share * old + (1 - share) * new
        self.features[ids] = F.normalize(mixed, dim=-1) if self.normalize else mixed
        if labels is not None:
            self.labels[ids] = labels.to(self.labels)[rows]
        self.filled[ids] = True

    def entries(self) -> tuple[Tensor, Tensor, Tensor]:
        """(features [n, dim], labels [n], ids [n]) of the filled slots, by id."""
        ids = self.filled.nonzero()[:, 0]
        return self.features[ids], self.labels[ids], ids


def nearest_entries(queries: Tensor, features: Tensor, k: int, exclude: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The k most similar entries by inner product: (similarities [B, k], places [B, k]), the nearest first.

    Args:
        queries: [B, dim].
        features: [n, dim].
        k: at most n.
        exclude: [B, n], True for entries that do not count (a query's own); their similarity is -inf.
    """
    similarities = queries @ features.T
    if exclude is not None:
        similarities = similarities.masked_fill(exclude, float("-inf"))
    found = similarities.topk(min(k, len(features)), -1)
    return found.values, found.indices
