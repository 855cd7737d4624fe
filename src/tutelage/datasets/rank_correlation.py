"""Agreement of two rankings: Spearman's correlation with ties, and how many of the best both name."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from tutelage.errors import InputError


def average_ranks(values: ArrayLike) -> np.ndarray:
    """The rank of each value [n] from 1, the lowest first; equal values share the mean of their ranks.

    Examples:
        >>> average_ranks([10, 30, 10, 20]).tolist()
        [1.5, 4.0, 1.5, 3.0]

    Raises:
        InputError: no values in a row, or one that is not finite.
    """
    array = np.asarray(values, np.float64)
    if array.ndim != 1 or not len(array) or not np.isfinite(array).all():
        raise InputError("ranks need finite values in a row", where="values", remedy="leave out what was not measured")
    _, place, counts = np.unique(array, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks: np.ndarray = (ends - (counts - 1) / 2)[place]
    return ranks


def spearman(one: ArrayLike, other: ArrayLike) -> float:
    """Spearman's rank correlation in -1..1: Pearson's correlation of :func:`average_ranks`; 0 where one side is all ties.

    Examples:
        >>> round(spearman([1, 2, 3, 4], [10, 20, 40, 30]), 3)
        0.8

    Raises:
        InputError: fewer than two values, or unequal lengths.
    """
    a, b = average_ranks(one), average_ranks(other)
    if len(a) != len(b) or len(a) < 2:
        raise InputError(f"{len(a)} values cannot be compared with {len(b)}", where="values", remedy="two or more, in pairs")
    a, b = a - a.mean(), b - b.mean()
    spread = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / spread if spread else 0.0


def recall_at_k(chosen: ArrayLike, measured: ArrayLike, k: int) -> float:
    """The share of the ``k`` items of highest ``chosen`` score that are among the ``k`` of highest ``measured`` score.

    Of equal scores the earlier item counts as higher. By chance it is ``k / n``.

    Examples:
        >>> recall_at_k([3, 2, 1, 0], [9, 0, 8, 1], k=2)
        0.5

    Raises:
        InputError: unequal lengths, or ``k`` outside 1..n.
    """
    a, b = np.asarray(chosen, np.float64), np.asarray(measured, np.float64)
    if a.ndim != 1 or a.shape != b.shape or not 1 <= k <= len(a):
        raise InputError(f"the best {k} of {a.shape} and {b.shape} scores", where="k", remedy="1..n, with scores in pairs")
    best = [set(np.argsort(-scores, kind="stable")[:k].tolist()) for scores in (a, b)]
    return len(best[0] & best[1]) / k
