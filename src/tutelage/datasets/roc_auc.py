"""The area under the ROC curve, with an interval that resamples whole clusters (students, images)."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from tutelage.datasets.confidence_intervals import Interval, interval_of
from tutelage.errors import InputError
from tutelage.seeds import numpy_rng


def roc_auc(scores: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> float:
    """The chance that a positive has a higher score than a negative, ties counted half, in 0..1.

    Args:
        scores: [n], finite; only their order matters.
        labels: [n], 0 or 1.
        weights: [n] from 0, how often each item counts; None: once.

    Returns:
        The area; ``nan`` where all items that count have one label.

    Raises:
        InputError: other shapes, or a value that is none of these.

    Examples:
        >>> roc_auc([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1])
        0.75
    """
    return _Ranking(scores, labels).area(None if weights is None else np.asarray(weights, float))


def roc_auc_interval(
    scores: ArrayLike,
    labels: ArrayLike,
    clusters: Sequence[Hashable] | np.ndarray,
    *,
    seed: int,
    draws: int = 500,
    level: float = 0.95,
) -> Interval:
    """:func:`roc_auc` with its percentile interval over resamples of whole ``clusters`` [n].

    Resamples of one label alone have no area and are left out. Where there is none with an area, all numbers are ``nan``.

    Raises:
        InputError: as :func:`roc_auc`, not one cluster an item, or no draw.
    """
    ranking = _Ranking(scores, labels)
    if len(clusters) != len(ranking.order):
        raise InputError(f"{len(clusters)} clusters for {len(ranking.order)} items", where="clusters", remedy="one each")
    if draws < 1:
        raise InputError(f"at least one draw is needed, this is {draws}", where="draws", remedy="500 is usual")
    numbers: dict[Hashable, int] = {}
    index = np.array([numbers.setdefault(one, len(numbers)) for one in clusters])
    rng, size = numpy_rng(seed, "bootstrap of an area"), len(numbers)
    areas = [ranking.area(np.bincount(rng.integers(0, size, size), minlength=size)[index]) for _ in range(draws)]
    known = np.array([area for area in areas if not math.isnan(area)])
    area = ranking.area(None)
    if not len(known) or math.isnan(area):
        return Interval(math.nan, math.nan, math.nan, size, level)
    return interval_of(area, known, size, level)


class _Ranking:
    """Items sorted by their scores once, so that many weightings of them are cheap."""

    def __init__(self, scores: ArrayLike, labels: ArrayLike):
        values, truth = np.asarray(scores, float), np.asarray(labels)
        if values.ndim != 1 or truth.shape != values.shape or not len(values):
            raise InputError(f"scores {values.shape} and labels {truth.shape}", where="scores", remedy="both [n], n at least 1")
        if not np.isfinite(values).all():
            raise InputError("a score is not finite", where="scores", remedy="finite numbers")
        if not np.isin(truth, (0, 1)).all():
            raise InputError("a label is neither 0 nor 1", where="labels", remedy="0 or 1")
        self.order = np.argsort(values, kind="stable")
        ordered = values[self.order]
        self.starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
        self.positive = truth[self.order].astype(float)

    def area(self, weights: np.ndarray | None) -> float:
        """The area where each item counts ``weights`` times."""
        counts = np.ones(len(self.order)) if weights is None else weights[self.order].astype(float)
        positive = np.add.reduceat(counts * self.positive, self.starts)
        negative = np.add.reduceat(counts * (1 - self.positive), self.starts)
        pairs = positive.sum() * negative.sum()
        below = np.cumsum(negative) - negative
        return float((positive * (below + negative / 2)).sum() / pairs) if pairs else math.nan
