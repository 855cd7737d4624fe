"""Intervals for every figure: a paired bootstrap resampled by image, and a t-interval over seeds.

All in numpy and closed forms. Figures keep their unit: give points, get points.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from tutelage.errors import InputError
from tutelage.seeds import numpy_rng

_BLOCK = 1 << 20  # cluster draws held at once: 8 MB


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with its interval at ``level``, from ``n`` independent units (images, or seeds)."""

    mean: float
    low: float
    high: float
    n: int
    level: float = 0.95

    def __str__(self) -> str:
        return f"{self.mean:+.1f} [{self.low:+.1f}, {self.high:+.1f}]"


@dataclass(frozen=True, slots=True)
class MeanSd:
    """A mean and the sample standard deviation (n - 1 below; nan for one value)."""

    mean: float
    sd: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.1f} ± {self.sd:.1f}" if self.n > 1 else f"{self.mean:.1f}"


def mean_sd(values: ArrayLike) -> MeanSd:
    """Mean and sample standard deviation of ``values`` [n].

    Raises:
        InputError: no values, not one dimension, or a value that is not finite.
    """
    array = _vector(values, "values")
    return MeanSd(float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else math.nan, len(array))


def cluster_draws(values: ArrayLike, clusters: Sequence[Hashable] | np.ndarray, *, seed: int, draws: int = 2000) -> np.ndarray:
    """The mean of ``values`` [n] in each of ``draws`` resamples of whole clusters, as float64 [draws].

    Clusters (images) are drawn with replacement, as many as there are, each with all its values; the mean is over the
    values drawn, so a cluster counts by its size (Davison and Hinkley 1997, section 3.8). Draws of several groups may
    be added or divided to give the interval of a mean of groups or of a ratio: see :func:`interval_of`.

    Raises:
        InputError: no values, values not finite, or not one cluster a value.
    """
    array = _vector(values, "values")
    if len(clusters) != len(array):
        raise InputError(f"{len(clusters)} clusters for {len(array)} values", where="clusters")
    if draws < 1:
        raise InputError(f"at least one draw is needed, this is {draws}", where="draws")
    index = _cluster_numbers(clusters)
    sizes = np.bincount(index).astype(np.float64)
    sums = np.bincount(index, weights=array)
    count = len(sizes)
    rng = numpy_rng(seed, "bootstrap")
    means = np.empty(draws)
    block = max(1, _BLOCK // count)
    for start in range(0, draws, block):
        stop = min(draws, start + block)
        drawn = rng.integers(0, count, (stop - start, count))
        means[start:stop] = sums[drawn].sum(1) / sizes[drawn].sum(1)
    return means


def interval_of(mean: float, draws: np.ndarray, n: int, level: float = 0.95) -> Interval:
    """The percentile interval of bootstrap ``draws`` [draws] about ``mean``, from ``n`` clusters.

    Raises:
        InputError: ``level`` is not between 0 and 1.
    """
    low, high = np.quantile(draws, [(1 - _level(level)) / 2, (1 + level) / 2])
    return Interval(float(mean), float(low), float(high), n, level)


def bootstrap(
    values: ArrayLike,
    clusters: Sequence[Hashable] | np.ndarray,
    *,
    seed: int,
    draws: int = 2000,
    level: float = 0.95,
) -> Interval:
    """The mean of ``values`` [n] with its interval, whole clusters resampled. Raises as :func:`cluster_draws`."""
    drawn = cluster_draws(values, clusters, seed=seed, draws=draws)
    return interval_of(float(np.mean(np.asarray(values, np.float64))), drawn, len(set(_cluster_numbers(clusters).tolist())), level)


def paired_bootstrap(
    after: ArrayLike,
    before: ArrayLike,
    clusters: Sequence[Hashable] | np.ndarray,
    *,
    seed: int,
    draws: int = 2000,
    level: float = 0.95,
) -> Interval:
    """Mean of ``after - before`` [n], question by question, with its interval, whole images resampled.

    Over several seeds a cluster is an image of one seed: give ``clusters`` as ``(seed, image)`` pairs. Scores in 0..1
    give a difference in 0..1; multiply by 100 for points.

    Raises:
        InputError: unequal lengths, no values, or values that are not finite.
    """
    return bootstrap(_difference(after, before), clusters, seed=seed, draws=draws, level=level)


def t_interval(values: ArrayLike, level: float = 0.95) -> Interval:
    """The mean of ``values`` [n], one a seed, with its Student t-interval: mean ± t(n-1) sd / sqrt(n).

    One value has an infinite interval: a single seed shows nothing.

    Raises:
        InputError: no values, or values that are not finite.
    """
    array = _vector(values, "values")
    n, mean = len(array), float(array.mean())
    if n == 1:
        return Interval(mean, -math.inf, math.inf, 1, _level(level))
    half = t_quantile((1 + _level(level)) / 2, n - 1) * float(array.std(ddof=1)) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n, level)


def paired_t(after: ArrayLike, before: ArrayLike, level: float = 0.95) -> Interval:
    """Mean of ``after - before`` [seeds] with its t-interval over seeds. Raises as :func:`t_interval`."""
    return t_interval(_difference(after, before), level)


def supports_claim(interval: Interval, claim: Literal["better", "not worse", "equal"], margin: float = 0.0) -> bool:
    """Whether the interval of a paired difference shows ``claim``.

    better: wholly above 0; not worse: wholly above -margin; equal: wholly within -margin..margin.

    Raises:
        InputError: an unknown claim, or a negative margin.
    """
    if margin < 0:
        raise InputError(f"a margin is not negative, this is {margin}", where="margin")
    match claim:
        case "better":
            return interval.low > 0
        case "not worse":
            return interval.low > -margin
        case "equal":
            return interval.low > -margin and interval.high < margin
    raise InputError(f"unknown claim {claim!r}", where="claim", remedy="use better, not worse or equal")


def t_cdf(t: float, df: int) -> float:
    """P(T <= t) for Student's t with ``df`` whole degrees of freedom.

    The finite sum in theta = atan(t / sqrt(df)) of Abramowitz and Stegun 26.7.3-4: exact, no table.

    Raises:
        InputError: ``df`` is less than 1.
    """
    if df < 1:
        raise InputError(f"degrees of freedom are 1 or more, this is {df}", where="df")
    theta = math.atan2(t, math.sqrt(df))
    cos2 = math.cos(theta) ** 2
    odd = df % 2
    term, total = (math.cos(theta), 0.0) if odd else (1.0, 0.0)
    for k in range(odd, df - 1, 2):
        total += term
        term *= cos2 * (k + 1) / (k + 2)
    inside = (theta + math.sin(theta) * total) * 2 / math.pi if odd else math.sin(theta) * total
    return (1 + inside) / 2


def t_quantile(p: float, df: int) -> float:
    """The t below which Student's t with ``df`` degrees of freedom lies with probability ``p``.

    Raises:
        InputError: ``p`` is not between 0 and 1, or ``df`` is less than 1.
    """
    if _level(p) < 0.5:
        return -t_quantile(1 - p, df)
    high = 1.0
    while t_cdf(high, df) < p:
        high *= 2
    low = 0.0
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if t_cdf(middle, df) < p else (low, middle)
    return high


def _vector(values: ArrayLike, name: str) -> np.ndarray:
    array = np.asarray(values, np.float64)
    if array.ndim != 1 or not len(array):
        raise InputError(f"needs one or more values in a row, this has shape {list(array.shape)}", where=name)
    if not np.isfinite(array).all():
        raise InputError("a value is not finite", where=name)
    return array


def _difference(after: ArrayLike, before: ArrayLike) -> np.ndarray:
    a, b = _vector(after, "after"), _vector(before, "before")
    if len(a) != len(b):
        raise InputError(f"{len(a)} values cannot be paired with {len(b)}", where="after, before")
    difference: np.ndarray = a - b
    return difference


def _cluster_numbers(clusters: Sequence[Hashable] | np.ndarray) -> np.ndarray:
    """Each cluster's number in the order of first appearance, int64 [n]."""
    numbers: dict[Hashable, int] = {}
    items = clusters.tolist() if isinstance(clusters, np.ndarray) else clusters
    return np.fromiter((numbers.setdefault(item, len(numbers)) for item in items), np.int64, len(items))


def _level(p: float) -> float:
    if not 0 < p < 1:
        raise InputError(f"a probability lies between 0 and 1, this is {p}", where="level")
    return p
