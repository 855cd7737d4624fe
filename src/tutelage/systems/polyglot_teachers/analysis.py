"""What explains the students' scores: principal components of six features of the data, and four fits on them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tutelage.errors import InputError
from tutelage.systems.polyglot_teachers.scores import Cell

FEATURES = ("distinct_prompts", "distinct_responses", "perplexity", "rubric", "prompt_length", "response_length")
RIDGE, LASSO = 1.0, 0.1


@dataclass(frozen=True)
class Components:
    """Principal components of standardised features.

    Attributes:
        explained: share of the variance of each component [k], falling; they sum to 1.
        directions: [k, features]; of each the entry of largest size is positive (our choice).
        scores: the cells in components [cells, k].
    """

    explained: np.ndarray
    directions: np.ndarray
    scores: np.ndarray


def standardized(columns: np.ndarray) -> np.ndarray:
    """Columns with mean 0 and population deviation 1; a constant one becomes 0."""
    centred = columns - columns.mean(0)
    spread = centred.std(0)
    return np.divide(centred, spread, out=np.zeros_like(centred), where=spread > 1e-12)


def principal_components(columns: np.ndarray) -> Components:
    """The principal components of ``columns`` [n, d], standardised, by a singular value decomposition.

    Raises:
        InputError: fewer than two rows, or no column that varies.
    """
    values = standardized(np.asarray(columns, np.float64)) if len(columns) > 1 else np.zeros((1, 1))
    if not values.any():
        raise InputError(f"no spread in {len(columns)} rows", where="table", remedy="give two or more cells that differ")
    left, sizes, directions = np.linalg.svd(values, full_matrices=False)
    flips = np.sign(directions[np.arange(len(directions)), abs(directions).argmax(1)])
    return Components(sizes**2 / (sizes**2).sum(), directions * flips[:, None], left * sizes * flips)


def features_of(cells: Sequence[Cell]) -> np.ndarray:
    """[cells, 6]: :data:`FEATURES`.

    Raises:
        InputError: a cell without lengths.
    """
    rows = [[getattr(cell, name) for name in FEATURES] for cell in cells]
    for cell, row in zip(cells, rows, strict=True):
        if None in row:
            name = FEATURES[row.index(None)]
            remedy = "the analysis needs the columns prompt_length and response_length"
            raise InputError(f"{cell.teacher!r} in {cell.language!r} has no {name}", where="table", remedy=remedy)
    return np.array(rows, np.float64)


def explain(cells: Sequence[Cell]) -> dict[str, object]:
    """Components of the six features, and the in-sample R^2 of the students' scores on them.

    Fits: linear; ridge (strength 1.0); lasso (0.1); quadratic, with squares and products. Scores are in the unit of the
    table; published: a linear R^2 of 0.664, explained shares .422 .221 .165 .126 .035 .032.

    Raises:
        InputError: a cell without lengths or student, or fewer than two cells.
    """
    found = principal_components(features_of(cells))
    if any(cell.student is None for cell in cells):
        raise InputError("a cell without a student's score", where="table", remedy="train a student for every cell first")
    target = np.array([cell.student for cell in cells], np.float64)
    x = found.scores
    squares = np.stack([x[:, i] * x[:, j] for i in range(x.shape[1]) for j in range(i, x.shape[1])], 1)
    return {
        "explained": found.explained.tolist(),
        "directions": [dict(zip(FEATURES, row, strict=True)) for row in found.directions.tolist()],
        "R2": {
            "linear": r_squared(x, target, ridge_weights(x, target, 0.0)),
            "ridge": r_squared(x, target, ridge_weights(x, target, RIDGE)),
            "lasso": r_squared(x, target, lasso_weights(x, target, LASSO)),
            "quadratic": r_squared(wide := np.hstack([x, squares]), target, ridge_weights(wide, target, 0.0)),
        },
    }


def ridge_weights(x: np.ndarray, target: np.ndarray, strength: float) -> np.ndarray:
    """The weights of ``min |x w + b - y|^2 + strength |w|^2`` with a free b; the shortest where several are best."""
    x, target = x - x.mean(0), target - target.mean()
    if strength:
        shrunk: np.ndarray = np.linalg.solve(x.T @ x + strength * np.eye(x.shape[1]), x.T @ target)
        return shrunk
    weights: np.ndarray = np.linalg.lstsq(x, target, rcond=None)[0]
    return weights


def lasso_weights(x: np.ndarray, target: np.ndarray, strength: float, sweeps: int = 10_000) -> np.ndarray:
    """The weights of ``min |x w + b - y|^2 / (2 n) + strength |w|_1`` with a free b, by coordinate descent."""
    x, rest = x - x.mean(0), target - target.mean()
    weights, norms = np.zeros(x.shape[1]), (x**2).sum(0)
    for _ in range(sweeps):
        largest = 0.0
        for j in np.flatnonzero(norms > 1e-12).tolist():
            pull = float(x[:, j] @ rest + norms[j] * weights[j])
            new = math.copysign(max(0.0, abs(pull) - len(x) * strength), pull) / float(norms[j])
            rest = rest + x[:, j] * (weights[j] - new)
            largest = max(largest, abs(new - weights[j]))
            weights[j] = new
        if largest < 1e-10:
            break
    return weights


def r_squared(x: np.ndarray, target: np.ndarray, weights: np.ndarray) -> float:
    """The share of the target's variance that ``x weights``, centred, explains; 0 for a constant target."""
    centred = target - target.mean()
    total = float(centred @ centred)
    rest = centred - (x - x.mean(0)) @ weights
    return 1 - float(rest @ rest) / total if total else 0.0
