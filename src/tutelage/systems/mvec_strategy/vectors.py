"""Vectors of students, problems and components: counts, a factorisation of what occurs together, and the blend by mastery."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from tutelage.errors import InputError
from tutelage.fields import check_range
from tutelage.systems.mvec_strategy.log import Instance

DIM, WINDOW = 24, 8


def component_counts(instances: Sequence[Instance], of: Literal["student", "problem"]) -> dict[str, np.ndarray]:
    """How often each student, or problem, has each component: vectors of length 1 by name, components in sorted order."""
    places = {name: i for i, name in enumerate(sorted({name for one in instances for name in one.strategy}))}
    counts: dict[str, np.ndarray] = {}
    for one in instances:
        row = counts.setdefault(getattr(one, of), np.zeros(len(places)))
        for name in one.strategy:
            row[places[name]] += 1
    return {name: row / np.linalg.norm(row) for name, row in counts.items()}


def corpus_vectors(sentences: Sequence[Sequence[str]], dim: int = DIM, window: int = WINDOW) -> dict[str, np.ndarray]:
    """A vector [dim] of each name of a corpus: the first singular vectors of the positive pointwise mutual information, scaled
    by the roots of their values (Levy and Goldberg, 2014: what Word2Vec factorises; the paper trains Word2Vec of 300).

    Args:
        sentences: of names, such as :func:`~tutelage.systems.mvec_strategy.log.relation_corpus` gives.
        dim: at most the number of names; the others are 0.
        window: names at most so far apart occur together.

    Raises:
        InputError: no sentence, or a size below 1.
    """
    check_range("dim", dim, 1, 10_000, whole=True)
    check_range("window", window, 1, 10_000, whole=True)
    places = {name: i for i, name in enumerate(sorted({name for sentence in sentences for name in sentence}))}
    if not places:
        raise InputError("the corpus has no names", where="sentences", remedy="give at least one instance")
    together = np.zeros((len(places), len(places)))
    for sentence in sentences:
        ids = [places[name] for name in sentence]
        for i, left in enumerate(ids):
            for right in ids[i + 1 : i + 1 + window]:
                together[left, right] += 1
                together[right, left] += 1
    total = max(together.sum(), 1.0)
    sums = np.maximum(together.sum(1), 1.0)
    information = np.log(np.maximum(together * total, 1e-300) / np.outer(sums, sums))
    left, values, _ = np.linalg.svd(np.where(together > 0, np.maximum(information, 0.0), 0.0))
    vectors = np.zeros((len(places), dim))
    kept = min(dim, len(values))
    vectors[:, :kept] = left[:, :kept] * np.sqrt(values[:kept])
    return {name: vectors[i] for name, i in places.items()}


def prune(one: Instance, attention: Sequence[float] | np.ndarray, share: float = 0.75) -> tuple[str, ...]:
    """The components that carry mastery: ``floor(share n)`` of the strategy, at least 1, of the highest attention, in order.

    Args:
        attention: a number for each component of the strategy.
        share: in 0..1.

    Raises:
        InputError: another number of attentions than components, or a share outside 0..1.
    """
    check_range("share", share, 0.0, 1.0)
    strategy = one.strategy
    if len(attention) != len(strategy):
        raise InputError(f"{len(attention)} attentions for {len(strategy)} components", where="attention", remedy="one each")
    kept = max(1, math.floor(share * len(strategy)))
    best = sorted(sorted(range(len(strategy)), key=lambda i: -attention[i])[:kept])
    return tuple(strategy[i] for i in best)


def blend(before: Mapping[str, np.ndarray], pruned: Mapping[str, np.ndarray], share: Mapping[str, float]) -> dict[str, np.ndarray]:
    """``a v_before + (1 - a) v_pruned`` of each name, a being ``share``; a name that pruning lost keeps its vector.

    Raises:
        InputError: a share outside 0..1.
    """
    for name, value in share.items():
        check_range(f"share of {name}", value, 0.0, 1.0)
    return {
        name: share.get(name, 1.0) * vector + (1 - share.get(name, 1.0)) * pruned.get(name, vector)
        for name, vector in before.items()
    }
