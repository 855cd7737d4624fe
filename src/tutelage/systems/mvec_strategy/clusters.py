"""DP-means, how alike the strategies in a cluster are, and samples that are drawn evenly from clusters."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tutelage.errors import InputError
from tutelage.fields import check_range

PASSES = 10
LARGEST_DISTANCE, SMALLEST_DISTANCE = 9, 6


@dataclass(frozen=True)
class DPMeans:
    """Clusters, as many as the data needs.

    Attributes:
        labels: [N], the cluster of each point.
        centres: [K, D].
        objective: after each pass, the sum of squared distances + distance^2 K.
    """

    labels: np.ndarray
    centres: np.ndarray
    objective: tuple[float, ...]


def dp_means(points: np.ndarray, distance: float, rng: np.random.Generator, passes: int = PASSES) -> DPMeans:
    """Clusters whose points lie within ``distance`` of their centre (Kulis and Jordan, 2012, points in turn).

    The first centre is a random point. In each pass the points come in their order; one that is farther than ``distance``
    from every centre opens a cluster at itself, at once. Then centres become means. A cluster that lost its points keeps its
    centre, and counts.

    Args:
        points: [N, D], finite.
        distance: Euclidean, above 0.
        rng: which point comes first.
        passes: at most; it stops when no label changes.

    Raises:
        InputError: no points, one that is not finite, or a distance of 0 or less.

    Examples:
        >>> dp_means(np.array([[0.0], [0.1], [10.0]]), 1.0, np.random.default_rng(0)).labels.tolist()[:2]
        [0, 0]
    """
    points = np.asarray(points, float)
    if points.ndim != 2 or not len(points) or not np.isfinite(points).all():
        raise InputError(f"no clusters of points of shape {points.shape}", where="points", remedy="finite numbers, [N, D]")
    if not (math.isfinite(distance) and distance > 0):
        raise InputError(f"{distance} is no distance", where="distance", remedy="a number above 0")
    centres = [points[rng.integers(len(points))].copy()]
    labels = np.full(len(points), -1)
    objective: list[float] = []
    for _ in range(passes):
        before = labels.copy()
        for i, point in enumerate(points):
            squares = ((np.stack(centres) - point) ** 2).sum(1)
            nearest = int(squares.argmin())
            if squares[nearest] > distance**2:
                centres.append(point.copy())
                nearest = len(centres) - 1
            labels[i] = nearest
        for k in range(len(centres)):
            if (members := labels == k).any():
                centres[k] = points[members].mean(0)
        spread = ((points - np.stack(centres)[labels]) ** 2).sum()
        objective.append(float(spread + distance**2 * len(centres)))
        if np.array_equal(before, labels):
            break
    return DPMeans(labels, np.stack(centres), tuple(objective))


def alignment_similarity(first: np.ndarray, second: np.ndarray) -> float:
    """How far two sequences of vectors [N, D] and [M, D] match in their order, in -1..1.

    ``M = softmax over columns(X1 X2^T)`` with sine positions added to both. Row i matches column ``j_i = argmax``; its weight
    is the row's maximum minus its mean, counted + where ``j_i > j_(i-1)``, else -; the sum is divided by N.
    """
    scores = (first + _positions(*first.shape)) @ (second + _positions(*second.shape)).T
    rows = np.exp(scores - scores.max(1, keepdims=True))
    rows /= rows.sum(1, keepdims=True)
    matched = np.concatenate([[-1], rows.argmax(1)])
    signs = np.where(np.diff(matched) > 0, 1.0, -1.0)
    return float((signs * (rows.max(1) - rows.mean(1))).sum() / len(first))


def attention_similarity(first: np.ndarray, second: np.ndarray) -> float:
    """The cosine of two vectors of attention, the shorter one padded by zeros; 0 where one of them is 0."""
    size = max(len(first), len(second))
    one, two = (np.pad(vector, (0, size - len(vector))) for vector in (first, second))
    norms = float(np.linalg.norm(one) * np.linalg.norm(two))
    return float(one @ two) / norms if norms else 0.0


def symmetry(cells: Sequence[Sequence[int]], similarity: Callable[[int, int], float]) -> float:
    """The mean over cells of the mean ``similarity`` of neighbouring members; cells of one member do not count.

    Raises:
        InputError: no cell has two members.
    """
    means = [np.mean([similarity(a, b) for a, b in zip(cell, cell[1:])]) for cell in cells if len(cell) > 1]
    if not means:
        raise InputError("no cell of the clusters has two instances", where="cells", remedy="a larger distance, or more rows")
    return float(np.mean(means))


def coarse_to_fine(
    score: Callable[[float], float], largest: float = LARGEST_DISTANCE, smallest: float = SMALLEST_DISTANCE, step: float = 1.0
) -> tuple[float, list[tuple[float, float]]]:
    """The distance of :func:`dp_means` by a search downwards: it goes on while the symmetry rises, to ``smallest`` at most.

    Args:
        score: the symmetry of the clusters that a distance gives.

    Returns:
        The distance of the highest symmetry, and each (distance, symmetry) that was tried.
    """
    tried = [(largest, score(largest))]
    while (distance := tried[-1][0] - step) >= smallest:
        tried.append((distance, score(distance)))
        if tried[-1][1] <= tried[-2][1]:
            return tried[-2][0], tried
    return tried[-1][0], tried


def sample_cells(rows: Sequence[tuple[int, int]], count: int, rng: np.random.Generator) -> list[int]:
    """``count`` rows, equally many of each cell: the cells give one in turn, at random, until they are empty.

    Args:
        rows: the cell (student cluster, problem cluster) of each row.
        count: at least 1; all rows where there are no more.

    Raises:
        InputError: a count below 1, or no rows.
    """
    check_range("count", count, 1, 10**12, whole=True)
    if not rows:
        raise InputError("no rows to draw from", where="rows", remedy="give at least one instance")
    cells: dict[tuple[int, int], list[int]] = {}
    for i in rng.permutation(len(rows)).tolist():
        cells.setdefault(rows[i], []).append(i)
    waiting = [cells[cell] for cell in sorted(cells)]
    chosen: list[int] = []
    while len(chosen) < count and waiting:
        for k in rng.permutation(len(waiting)).tolist():
            if len(chosen) < count:
                chosen.append(waiting[k].pop())
        waiting = [cell for cell in waiting if cell]
    return chosen


def purity(labels: Sequence[int] | np.ndarray, groups: Sequence[str]) -> float:
    """The share of points that belong to the commonest group of their cluster, in 0..1."""
    together: dict[int, dict[str, int]] = {}
    for label, group in zip(labels, groups, strict=True):
        counts = together.setdefault(int(label), {})
        counts[group] = counts.get(group, 0) + 1
    return sum(max(counts.values()) for counts in together.values()) / len(groups)


def _positions(length: int, dim: int) -> np.ndarray:
    """Sine positions [length, dim] (Vaswani et al., 2017): sines at even places, cosines at odd ones."""
    rates = np.exp(-math.log(10_000) * (2 * (np.arange(dim) // 2)) / dim)
    angles = np.arange(length)[:, None] * rates
    return np.where(np.arange(dim) % 2 == 0, np.sin(angles), np.cos(angles))
