"""What an order was worth, and whether a ranking of orders agrees with what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from tutelage.errors import InputError


@dataclass(frozen=True)
class Merit:
    """What orders were worth, each array [...], from shares in 0..1.

    Attributes:
        accuracy: A, the mean over classes at the end.
        forgetting: G, of the first class: right after it was learned, less at the end.
        merit: ``F = 2 A / (G A + 1)``, the harmonic mean of A and 1/G.
    """

    accuracy: np.ndarray
    forgetting: np.ndarray
    merit: np.ndarray


def merit_of(accuracy: ArrayLike, forgetting: ArrayLike) -> np.ndarray:
    """``F = 2 A / (G A + 1)``.

    Examples:
        >>> merit_of([0.8, 0.8], [0.0, 0.5]).round(3).tolist()
        [1.6, 1.143]
    """
    a, g = np.asarray(accuracy, np.float64), np.asarray(forgetting, np.float64)
    merit: np.ndarray = 2 * a / (g * a + 1)
    return merit


def merits(matrix: np.ndarray) -> Merit:
    """The merit of runs from their accuracy matrices [..., N, N]: row i after learning the i-th class, column j of the j-th."""
    accuracy = matrix[..., -1, :].mean(-1)
    forgetting = matrix[..., 0, 0] - matrix[..., -1, 0]
    return Merit(accuracy, forgetting, merit_of(accuracy, forgetting))


def stable_share(values: ArrayLike) -> float:
    """The share of the variance between orders that is stable over seeds: ICC(C,1) of values [seeds, orders] (McGraw, Wong,
    1996), ``(MSR - MSE) / (MSR + (k - 1) MSE)`` after each seed's mean is taken away; 0 where nothing varies.

    Examples:
        >>> stable_share([[1, 2, 3], [11, 12, 13]])
        1.0

    Raises:
        InputError: fewer than two seeds or orders.
    """
    x = np.asarray(values, np.float64)
    if x.ndim != 2 or min(x.shape) < 2:
        raise InputError(f"values of shape {list(x.shape)}", where="values", remedy="[seeds, orders], two or more of each")
    seeds, orders = x.shape
    rest = x - x.mean(1, keepdims=True) - x.mean(0) + x.mean()
    between = seeds * float(((x.mean(0) - x.mean()) ** 2).sum()) / (orders - 1)
    error = float((rest**2).sum()) / ((seeds - 1) * (orders - 1))
    total = between + (seeds - 1) * error
    return (between - error) / total if total > 1e-30 else 0.0


def binned_distance(chosen: ArrayLike, measured: ArrayLike, orders: Sequence[Sequence[int]], bins: int = 5) -> float:
    """How far two rankings of the same orders are apart, 0..1: the mean share of places in which the orders differ.

    Orders are cut into ``bins`` of equal numbers by measured F. Inside a bin, the orders are laid end to end as each score
    ranks them, and compared place by place (Hamming distance).

    Args:
        chosen: scores [O].
        measured: F [O].
        orders: [O, N].
        bins: 5 as published.

    Raises:
        InputError: unequal lengths, or more bins than orders.
    """
    a, b, c = np.asarray(chosen, np.float64), np.asarray(measured, np.float64), np.asarray(orders)
    if a.ndim != 1 or a.shape != b.shape or len(c) != len(a) or not 1 <= bins <= len(a):
        raise InputError(
            f"{bins} bins of {a.shape}, {b.shape} scores and {len(c)} orders", where="bins", remedy="one score an order"
        )
    found = []
    for members in np.array_split(np.argsort(-b, kind="stable"), bins):
        by_chosen = members[np.argsort(-a[members], kind="stable")]
        found.append(float((c[by_chosen] != c[members]).mean()))
    return float(np.mean(found))
