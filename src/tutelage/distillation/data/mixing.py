"""How the passes of a run are divided among several sources of data: together, in turn, or one after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from tutelage.distillation.data import BatchOrder
from tutelage.errors import InputError, did_you_mean


@dataclass(frozen=True)
class Share:
    """One source's part of a run: ``batch_size`` rows a pass, over ``steps`` optimiser steps of ``accumulate`` passes."""

    batch_size: int
    steps: int
    accumulate: int = 1


class Mixing(Protocol):
    """Divides the passes of a run among sources, which are numbered from 0."""

    def shares(self, names: Sequence[str], batch_size: int, steps: int, accumulate: int) -> list[Share]:
        """What each source gets.

        Raises:
            InputError: a name that is no source, or a source that gets nothing.
        """
        ...

    def passes(self, names: Sequence[str], number: int, steps: int, accumulate: int) -> list[tuple[int, int]]:
        """(source, the number of its own pass) for each source that pass ``number`` reads."""
        ...

    @property
    def covers(self) -> bool:
        """Whether every pass reads every source."""
        ...


def _named(names: Sequence[str], given: Sequence[str], where: str) -> None:
    for name in given:
        if name not in names:
            raise InputError(f"no source {name!r}", where=where, remedy=did_you_mean(str(name), list(names)))


def _weights(names: Sequence[str], given: Mapping[str, float], where: str) -> list[float]:
    _named(names, list(given), where)
    found = [float(given.get(name, 1.0 if not given else 0.0)) for name in names]
    for name, value in zip(names, found, strict=True):
        if not 0 < value < float("inf"):
            raise InputError(f"the source {name!r} gets {value:g}", where=where, remedy="give every source a number above 0")
    return found


@dataclass(frozen=True)
class Together:
    """Every batch holds rows of every source, always as many.

    Attributes:
        weights: the share of the rows that each source gets, relative to the others; empty: equal shares. The rows are
            rounded by largest remainders, and each source gets at least one.

    Examples:
        >>> [share.batch_size for share in Together({"a": 3, "b": 1}).shares(["a", "b"], 32, 100, 1)]
        [24, 8]
    """

    weights: Mapping[str, float] = field(default_factory=dict)
    covers = True

    def shares(self, names: Sequence[str], batch_size: int, steps: int, accumulate: int) -> list[Share]:
        """See :class:`Mixing`."""
        weights = _weights(names, self.weights, "weights")
        if batch_size < len(names):
            raise InputError(
                f"a batch of {batch_size} has no row for each of {len(names)} sources",
                where="batch_size",
                remedy=f"at least {len(names)}, or take the sources in turn: InTurn()",
            )
        exact = [batch_size * weight / sum(weights) for weight in weights]
        rows = [max(1, int(value)) for value in exact]
        while sum(rows) != batch_size:
            step = 1 if sum(rows) < batch_size else -1
            free = [i for i in range(len(rows)) if step > 0 or rows[i] > 1]
            rows[max(free, key=lambda i: step * (exact[i] - rows[i]))] += step
        return [Share(count, steps, accumulate) for count in rows]

    def passes(self, names: Sequence[str], number: int, steps: int, accumulate: int) -> list[tuple[int, int]]:
        """See :class:`Mixing`."""
        return [(source, number) for source in range(len(names))]


@dataclass(frozen=True)
class InTurn:
    """Each pass reads one source, by a pattern that repeats.

    Attributes:
        pattern: the names in the order in which they are read; empty: each source once. A name may stand several times.

    Examples:
        >>> [InTurn(("a", "a", "b")).passes(["a", "b"], n, 9, 1)[0] for n in range(4)]
        [(0, 0), (0, 1), (1, 0), (0, 2)]
    """

    pattern: tuple[str, ...] = ()
    covers = False

    def _pattern(self, names: Sequence[str]) -> list[int]:
        return [names.index(name) for name in self.pattern] or list(range(len(names)))

    def shares(self, names: Sequence[str], batch_size: int, steps: int, accumulate: int) -> list[Share]:
        """See :class:`Mixing`."""
        _named(names, self.pattern, "pattern")
        pattern = self._pattern(names)
        for source, name in enumerate(names):
            if source not in pattern:
                raise InputError(f"the source {name!r} is never read", where="pattern", remedy="name it in the pattern, or drop it")
        rounds = -(-steps * accumulate // len(pattern))
        return [Share(batch_size, max(1, rounds * pattern.count(source))) for source in range(len(names))]

    def passes(self, names: Sequence[str], number: int, steps: int, accumulate: int) -> list[tuple[int, int]]:
        """See :class:`Mixing`."""
        pattern = self._pattern(names)
        rounds, place = divmod(number, len(pattern))
        source = pattern[place]
        return [(source, rounds * pattern.count(source) + pattern[:place].count(source))]


@dataclass(frozen=True)
class InSequence:
    """One source after the other: data that change by phase, or the tasks of continual learning.

    The steps are divided as the phases of a method are (``schedule.boundaries``): equal shares change data and phase in
    the same step. After the last step the last source goes on.

    Attributes:
        lengths: how long each source is read, relative to the others; empty: equally long.

    Examples:
        >>> mixing = InSequence({"a": 3, "b": 1})
        >>> [mixing.passes(["a", "b"], n, 4, 1)[0] for n in range(4)]
        [(0, 0), (0, 1), (0, 2), (1, 0)]
    """

    lengths: Mapping[str, float] = field(default_factory=dict)
    covers = False

    def edges(self, names: Sequence[str], steps: int) -> list[int]:
        """The first step of each source, and the end."""
        lengths, edges, reached = _weights(names, self.lengths, "lengths"), [0], 0.0
        for length in lengths:
            reached += length
            edges.append(round(steps * reached / sum(lengths)))
        return edges

    def shares(self, names: Sequence[str], batch_size: int, steps: int, accumulate: int) -> list[Share]:
        """See :class:`Mixing`."""
        edges = self.edges(names, steps)
        return [Share(batch_size, max(1, last - first), accumulate) for first, last in zip(edges, edges[1:], strict=False)]

    def passes(self, names: Sequence[str], number: int, steps: int, accumulate: int) -> list[tuple[int, int]]:
        """See :class:`Mixing`."""
        edges = self.edges(names, steps)
        source = sum(number // accumulate >= edge for edge in edges[1:-1])
        return [(source, number - edges[source] * accumulate)]


class MixedOrder:
    """The order of several sources: each has its own, and the mixing says which of them a pass reads.

    Args:
        orders: of each source.
        starts: the number of each source's first sample among all.
        names: of the sources.
        mixing: how the passes are divided.
        facts: what the order was made from.
    """

    def __init__(
        self, orders: Sequence[BatchOrder], starts: Sequence[int], names: Sequence[str], mixing: Mixing, facts: dict[str, Any]
    ):
        self.length = starts[-1] + orders[-1].length
        self.batch_size, self.seed, self.views = facts["batch_size"], facts["seed"], facts["views"]
        self.view_seed = facts["seed"] if facts["view_seed"] is None else facts["view_seed"]
        self.orders, self.starts, self.names, self.mixing, self._facts = orders, starts, names, mixing, facts

    def step(self, number: int) -> tuple[Tensor, Tensor]:
        """(sample numbers [B], view seeds [B]) of pass ``number`` (from 0), in the order of the sources."""
        read = self.mixing.passes(self.names, number, self._facts["steps"], self._facts["accumulate"])
        parts = [(self.starts[source], *self.orders[source].step(own)) for source, own in read]
        return torch.cat([start + numbers for start, numbers, _ in parts]), torch.cat([seeds for _, _, seeds in parts])

    def covering(self, cycle: int) -> int | None:
        """How many passes show each sample of each source in ``cycle`` views; None: not every pass reads every source."""
        found = [order.covering(cycle) for order in self.orders] if self.mixing.covers else [None]
        known = [value for value in found if value is not None]
        return max(known) if len(known) == len(found) else None

    def facts(self) -> dict[str, Any]:
        """What makes the same order again."""
        return dict(self._facts)
