"""Accuracy after so many examples: of a model and of baselines, with intervals over functions, as a table and a picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from tutelage.errors import InputError
from tutelage.reports import pictures
from tutelage.reports.charts import Series
from tutelage.seeds import numpy_rng
from tutelage.storage import write_text
from tutelage.systems.icl_discrete_functions.baselines import Baseline, baselines_of
from tutelage.systems.icl_discrete_functions.classes import Sequences
from tutelage.systems.icl_discrete_functions.data import FunctionData

PUBLISHED_FUNCTIONS = 1280


@dataclass(frozen=True)
class Curve:
    """Accuracy in % by the number of examples seen before, with 5 % and 95 % bootstrap quantiles over functions."""

    name: str
    examples: Sequence[int]
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def correct(predictions: np.ndarray, sequences: Sequences) -> np.ndarray:
    """Whether each prediction [B, P] has the label's sign, as 0 or 1; a prediction of 0 is wrong.

    Raises:
        InputError: another shape.
    """
    if predictions.shape != sequences.ys.shape:
        raise InputError(
            f"predictions {list(predictions.shape)} for labels {list(sequences.ys.shape)}", where="predictions", remedy="[B, P]"
        )
    found: np.ndarray = (np.sign(predictions) == sequences.ys).astype(np.float64)
    return found


def curve_of(name: str, right: np.ndarray, examples: Sequence[int], seed: int = 0, resamples: int = 1000) -> Curve:
    """The curve of ``right`` [functions, positions], 0 or 1, a column for each number of examples."""
    count = len(right)
    shares = numpy_rng(seed, "bootstrap").multinomial(count, np.full(count, 1 / count), resamples) @ right / count
    low, high = np.quantile(100 * shares, (0.05, 0.95), axis=0)
    return Curve(name, list(examples), 100 * right.mean(0), low, high)


@torch.no_grad()
def predict(model: nn.Module, sequences: Sequences, batch_size: int = 256) -> np.ndarray:
    """A model's logits [B, P] on sequences, in eval mode."""
    model.eval()
    xs, ys = (torch.from_numpy(one).float() for one in (sequences.xs, sequences.ys))
    parts: list[Tensor] = [model(a, b) for a, b in zip(xs.split(batch_size), ys.split(batch_size), strict=True)]
    return torch.cat(parts).numpy()


def compare(
    models: Mapping[str, nn.Module],
    data: FunctionData,
    functions: int = PUBLISHED_FUNCTIONS,
    learners: Mapping[str, Baseline] | None = None,
    seed: int = 0,
) -> list[Curve]:
    """The curves of models and learners on the same fresh functions, at all positions that count.

    Args:
        models: by name; each maps (xs, ys) to logits [B, P].
        data: what functions, and how many examples.
        functions: how many.
        learners: baselines by name; None: :func:`baselines_of` the class.
        seed: of the bootstrap.
    """
    made = data.sequences(functions)
    places = np.flatnonzero(made.counted.all(0))
    learners = baselines_of(data.function) if learners is None else learners
    outputs = {name: predict(model, made) for name, model in models.items()}
    outputs |= {name: learner(made.xs, made.ys) for name, learner in learners.items()}
    return [curve_of(name, correct(found, made)[:, places], places.tolist(), seed) for name, found in outputs.items()]


def write_curves(path: str | Path, curves: Sequence[Curve]) -> None:
    """The curves as CSV: learner, examples, accuracy, low, high."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["learner", "examples", "accuracy", "low", "high"])
    for curve in curves:
        for row in zip(curve.examples, curve.mean, curve.low, curve.high, strict=True):
            table.writerow([curve.name, row[0], *(f"{value:.4f}" for value in row[1:])])
    write_text(path, text.getvalue())


def draw_curves(curves: Sequence[Curve], title: str) -> str:
    """The curves as an SVG picture, with their intervals as bands."""
    series = [
        Series(
            curve.name,
            str(number),
            list(zip(curve.examples, curve.mean.tolist(), strict=True)),
            list(zip(curve.examples, curve.low.tolist(), curve.high.tolist(), strict=True)),
        )
        for number, curve in enumerate(curves)
    ]
    return pictures.line_chart(title, "examples seen before", "accuracy, %", series)
