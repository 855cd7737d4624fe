"""The score of an order of classes, from the distances between classes; and orders of a high score."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from tutelage.errors import InputError, did_you_mean

EXHAUSTIVE = 7
"""Up to so many classes all orders are scored (5,040)."""
DISTANCES = ("cosine", "euclidean", "transport")


_Partial = tuple[float, tuple[int, ...], tuple[int, ...]]
"""A score, the classes from the front, and those from the back."""


class ScoredOrder(NamedTuple):
    """An order of classes, by their numbers, and its score."""

    order: tuple[int, ...]
    score: float


# -- distances -------------------------------------------------------------------------------------------------------


def class_distances(features: ArrayLike, labels: ArrayLike, distance: str = "cosine") -> np.ndarray:
    """Distances between classes [N, N], class i being the i-th lowest label; symmetric, its diagonal 0.

    Args:
        features: [n, d], of a fixed encoder.
        labels: [n] int.
        distance: ``cosine``, 1 - cos, or ``euclidean``, both of the classes' mean features; ``transport``: the
            2-Wasserstein distance between Gaussians of the classes' means and covariances (our choice: in closed form,
            where the reference solves a transport problem between samples).

    Raises:
        InputError: fewer than two classes, features that are not finite, a class whose mean has no direction, or an
            unknown distance.
    """
    x, classes = np.asarray(features, np.float64), np.asarray(labels)
    if x.ndim != 2 or classes.shape != x.shape[:1] or not np.isfinite(x).all():
        raise InputError(
            f"features {list(x.shape)}, labels {list(classes.shape)}", where="features", remedy="finite [n, d] and [n]"
        )
    if distance not in DISTANCES:
        raise InputError(f"unknown distance {distance!r}", where="distance", remedy=did_you_mean(distance, list(DISTANCES)))
    groups = [x[classes == one] for one in np.unique(classes)]
    if len(groups) < 2:
        raise InputError(f"{len(groups)} classes have no order", where="labels", remedy="give two classes or more")
    means = np.stack([group.mean(0) for group in groups])
    if distance == "cosine":
        norms = np.linalg.norm(means, axis=1)
        if not norms.all():
            raise InputError(f"the mean of class {int(norms.argmin())} is 0", where="features", remedy="another distance, or layer")
        unit = means / norms[:, None]
        found = np.clip(1 - unit @ unit.T, 0, None)
    else:
        squares = ((means[:, None] - means[None]) ** 2).sum(-1)
        if distance == "transport":
            squares = squares + _covariance_distances(groups)
        found = np.sqrt(squares)
    np.fill_diagonal(found, 0)
    return found


def _covariance_distances(groups: Sequence[np.ndarray]) -> np.ndarray:
    """``tr(A + B - 2 (A^1/2 B A^1/2)^1/2)`` of the covariances of each pair of groups [N, N]."""
    # With centred data X = U S V^T / sqrt(n), A^1/2 = V S V^T: no matrix d x d is made where there are fewer samples
    roots = []
    for group in groups:
        _, sizes, directions = np.linalg.svd((group - group.mean(0)) / math.sqrt(len(group)), full_matrices=False)
        roots.append(sizes[:, None] * directions)
    traces = [float((root**2).sum()) for root in roots]
    found = np.zeros((len(groups), len(groups)))
    for i, j in itertools.combinations(range(len(groups)), 2):
        # tr (A^1/2 B A^1/2)^1/2 is the nuclear norm of A^1/2 B^1/2
        shared = float(np.linalg.norm(roots[i] @ roots[j].T, "nuc"))
        found[i, j] = found[j, i] = max(0.0, traces[i] + traces[j] - 2 * shared)
    return found


def normalized_rows(distances: ArrayLike) -> np.ndarray:
    """``D_ij / sum_j D_ij`` [N, N] with a diagonal of 0: rows sum to 1, so that it is not symmetric.

    Raises:
        InputError: no square matrix of two classes or more, a distance that is negative or not finite, or a class that lies
            on all others.
    """
    found = _square(distances)
    np.fill_diagonal(found, 0)
    sums = found.sum(1, keepdims=True)
    if not sums.all():
        row = int(sums[:, 0].argmin())
        raise InputError(f"class {row} has a distance of 0 to all others", where="distances", remedy="join it with another class")
    divided: np.ndarray = found / sums
    return divided


def _square(distances: ArrayLike) -> np.ndarray:
    found = np.array(distances, np.float64)
    if found.ndim != 2 or found.shape[0] != found.shape[1] or len(found) < 2:
        raise InputError(f"distances of shape {list(found.shape)}", where="distances", remedy="[N, N], of two classes or more")
    if not (np.isfinite(found).all() and (found >= 0).all()):
        raise InputError("a distance is negative or not finite", where="distances", remedy="measure it again")
    return found


def centrality(distances: ArrayLike) -> np.ndarray:
    """The variance of each row of normalised distances, its 0 included, divided by their sum [N]: low where a class is about
    equally far from all others."""
    spread = np.asarray(distances, np.float64).var(1)
    shares: np.ndarray = spread / spread.sum()
    return shares


# -- scores ----------------------------------------------------------------------------------------------------------


def score_orders(orders: ArrayLike, distances: ArrayLike, v: ArrayLike) -> np.ndarray:
    """The score of each order [O, N] -> [O]. With c the order and ``m = ceil((N - 1) / 2)``:

    ``S = 1 - v[c_0] + sum_{i < m} (1 - D[c_i, c_{N-1-i}]) + D[c_i, c_{i+1}]``

    Raises:
        InputError: a row that is no permutation of all classes.
    """
    c, d = np.asarray(orders), np.asarray(distances, np.float64)
    count = len(d)
    if c.ndim != 2 or c.shape[1] != count or not (np.sort(c, 1) == np.arange(count)).all():
        raise InputError(f"orders {list(c.shape)} of {count} classes", where="orders", remedy="each class once, numbered from 0")
    scores: np.ndarray = 1 - np.asarray(v, np.float64)[c[:, 0]]
    for i in range(math.ceil((count - 1) / 2)):
        scores = scores + 1 - d[c[:, i], c[:, count - 1 - i]] + d[c[:, i], c[:, i + 1]]
    return scores


def all_orders(count: int) -> np.ndarray:
    """Every order of ``count`` classes [count!, count], in lexicographic order.

    Raises:
        InputError: more than :data:`EXHAUSTIVE` classes.
    """
    if count > EXHAUSTIVE:
        raise InputError(f"{count} classes have too many orders", where="classes", remedy="beam search, or groups of classes")
    return np.array(list(itertools.permutations(range(count))))


def beam_orders(distances: ArrayLike, v: ArrayLike, beam: int = 1) -> list[ScoredOrder]:
    """At most ``beam`` orders, built from both ends inwards, the best first.

    ``beam`` 1 is greedy: begin with the class of least v; then, again and again, the farthest free class comes next, the
    nearest free one takes the mirrored last place, and the next class becomes the current one. A wider beam begins with
    every class and keeps the best partial scores (our choice). Of equal scores the one found first.

    Raises:
        InputError: a beam below 1.
    """
    if beam < 1:
        raise InputError(f"a beam of {beam}", where="beam", remedy="1 or more")
    d, spread = np.asarray(distances, np.float64), np.asarray(v, np.float64)
    count = len(d)
    starts = [int(spread.argmin())] if beam == 1 else range(count)
    states: list[_Partial] = [(1 - float(spread[first]), (first,), ()) for first in starts]
    for _ in range(math.ceil((count - 1) / 2)):
        wider = list[_Partial]()
        for score, front, back in states:
            free = [one for one in range(count) if one not in front and one not in back]
            now = front[-1]
            if len(free) == 1:  # the middle of an even number: next and mirrored in one
                wider.append((score + 1, (*front, free[0]), back))
                continue
            pairs = itertools.permutations(free, 2) if beam > 1 else [_farthest_and_nearest(d[now], free)]
            for far, near in pairs:
                wider.append((score + 1 - float(d[now, near]) + float(d[now, far]), (*front, far), (near, *back)))
        states = sorted(wider, key=lambda state: -state[0])[:beam]
    return [ScoredOrder(front + back, score) for score, front, back in states]


def _farthest_and_nearest(row: np.ndarray, free: list[int]) -> tuple[int, int]:
    far = max(free, key=lambda one: row[one])
    return far, min((one for one in free if one != far), key=lambda one: row[one])
