"""Simple and optimal learners: each predicts every label from the examples before it.

All take xs [B, P, n] and ys [B, P], and return predictions [B, P] in {-1, 0, +1}; a 0 (no opinion) counts as wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType

import numpy as np

from tutelage.errors import InputError
from tutelage.fields import check_range

Baseline = Callable[[np.ndarray, np.ndarray], np.ndarray]


def null(xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
    """Always -1."""
    return np.full(ys.shape, -1.0)


def averaging(xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
    """``sign(x_t w)``, w being the mean of ``y_j x_j`` over j < t; 0 at the first position."""
    sums = np.cumsum(ys[..., None] * xs, 1)
    before = np.concatenate([np.zeros_like(sums[:, :1]), sums[:, :-1]], 1)
    signs: np.ndarray = np.sign(np.rint((before * xs).sum(-1) * 1e6))
    return signs


def nearest(xs: np.ndarray, ys: np.ndarray, k: int = 1) -> np.ndarray:
    """The vote of the ``k`` nearest earlier inputs, of equal distances the earliest; 0 at the first position.

    Where an even vote is a tie, the nearest decides (our choice).
    """
    check_range("k", k, 1, 100_000, whole=True)
    distances = np.rint(((xs[:, :, None] - xs[:, None]) ** 2).sum(-1) * 1e6)
    return _vote(distances, ys, k)


def cosine_nearest(xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
    """The label of the earlier input of the greatest cosine (rounded to 6 decimals), of equal ones the first."""
    unit = xs / np.maximum(np.linalg.norm(xs, axis=-1, keepdims=True), 1e-12)
    return _vote(-np.round(unit @ unit.transpose(0, 2, 1), 6), ys, 1)


def _vote(distances: np.ndarray, ys: np.ndarray, k: int) -> np.ndarray:
    """The vote of the k earlier examples of the least distance [B, P, P]."""
    earlier = np.tril(np.ones(distances.shape[1:], bool), -1)
    order = np.where(earlier, distances, np.inf).argsort(-1, kind="stable")[..., :k]
    votes = np.take_along_axis(ys[:, None].repeat(ys.shape[1], 1), order, -1)
    known = np.arange(order.shape[-1]) < np.arange(ys.shape[1])[:, None]
    votes = np.where(known, votes, 0.0)
    total = votes.sum(-1)
    signs: np.ndarray = np.sign(np.where(total == 0, votes[..., 0], total))
    return signs


def elimination(xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
    """The most specific conjunction (Valiant, 1984): all 2n literals, less those that a positive example violates.

    It says -1 until it is sure. After a teaching sequence of a conjunction it is right everywhere.
    """
    positive = ys[..., None] > 0

    def alive(sign: float) -> np.ndarray:
        violated = np.cumsum(positive & (xs != sign), 1) > 0
        found: np.ndarray = ~np.concatenate([np.zeros_like(violated[:, :1]), violated[:, :-1]], 1)
        return found

    broken = (alive(1.0) & (xs < 0)) | (alive(-1.0) & (xs > 0))
    return np.where(broken.any(-1), -1.0, 1.0)


def disjunction_elimination(xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
    """:func:`elimination` of the opposite: a disjunction is false where the turned literals all hold."""
    return -elimination(xs, -ys)


def parity_elimination(xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
    """Gaussian elimination over GF(2): the parity where the earlier inputs decide it, else -1.

    ``y`` is +1 for an odd number of ones (+1) in the unknown subset.
    """
    predictions = np.full(ys.shape, -1.0)
    powers = [1 << place for place in range(xs.shape[2])]
    for row in range(len(xs)):
        basis: dict[int, int] = {}  # leading bit -> equation; the lowest bit of an equation is its right-hand side
        for place in range(xs.shape[1]):
            equation = 2 * sum(power for power, one in zip(powers, xs[row, place] > 0, strict=True) if one)
            while equation > 1 and (other := basis.get(equation.bit_length())) is not None:
                equation ^= other
            if equation <= 1:
                predictions[row, place] = 2.0 * equation - 1.0
            else:
                basis[equation.bit_length()] = equation ^ int(ys[row, place] > 0)
    return predictions


def teaching_decoder(xs: np.ndarray, ys: np.ndarray, terms: int = 3) -> np.ndarray:
    """Reads a monotone DNF of ``terms`` terms (1: a conjunction) out of its teaching sequence.

    A term is the set of +1 in the first input of its part, which has one example more than the term has literals. Before all
    terms are read, it predicts by those that are. Its predictions hold for sequences that begin with a teaching sequence.
    """
    predictions = np.full(ys.shape, -1.0)
    for row in range(len(xs)):
        known: list[np.ndarray] = []
        begin = 0
        for place in range(xs.shape[1]):
            if any(bool((xs[row, place][term] > 0).all()) for term in known):
                predictions[row, place] = 1.0
            if place == begin and len(known) < terms:
                known.append(np.flatnonzero(xs[row, place] > 0))
                begin += len(known[-1]) + 1
    return predictions


BASELINES: Mapping[str, Baseline] = MappingProxyType(
    {
        "null": null,
        "averaging": averaging,
        "1-NN": nearest,
        "3-NN": partial(nearest, k=3),
        "cosine NN": cosine_nearest,
    }
)
"""The learners that know nothing of the class."""

OPTIMAL: Mapping[str, Baseline] = MappingProxyType(
    {
        "conjunction": elimination,
        "monotone-conjunction": elimination,
        "disjunction": disjunction_elimination,
        "monotone-disjunction": disjunction_elimination,
        "sparse-disjunction": disjunction_elimination,
        "parity": parity_elimination,
        "sparse-parity": parity_elimination,
        "nearest-neighbour": cosine_nearest,
    }
)
"""The learner that knows the class, where there is a simple one. It is consistent, not Bayes-optimal."""


def baselines_of(function: str, names: Sequence[str] = ("null", "averaging", "1-NN", "3-NN")) -> dict[str, Baseline]:
    """These learners and, under ``class learner``, the one that knows the class.

    Raises:
        InputError: an unknown name.
    """
    for name in names:
        if name not in BASELINES:
            raise InputError(f"unknown baseline {name!r}", where="baselines", remedy=f"one of {', '.join(BASELINES)}")
    own = {"class learner": OPTIMAL[function]} if function in OPTIMAL else {}
    return {name: BASELINES[name] for name in names} | own
