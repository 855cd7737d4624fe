"""Curriculum designer: in which order to teach classes that come one at a time, from their similarity alone.

```python
from tutelage.systems.curriculum_designer import CurriculumDesigner

designer = CurriculumDesigner.from_features(features, labels)  # [n, d] of any fixed encoder, [n]
print(designer.rank(top=5))  # [ScoredOrder(order=(2, 0, 4, 1, 3), score=…), …]
```

On the command line, from a folder of images with a sub-folder for each class, or from a table of distances:

```sh
tutelage curriculum design images/ --encoder hf:microsoft/resnet-18 --out orders.jsonl --picture distances.svg
tutelage curriculum design distances.csv --top 5
tutelage curriculum run images/ --encoder hf:microsoft/resnet-18 --learner replay --seeds 3 --picture orders.svg
```

`run` measures instead of predicting: it learns the classes in every order (up to five classes; else in the designed orders),
online and in a single pass, and compares the measured ranking with the designed one.

Source: "Learning to Learn: How to Continuously Teach Humans and Machines" (Singh, Li, Sikarwar, Lei, Gao, Talbot, Sun, Shou,
Kreiman, Zhang, 2022, arXiv 2211.15470).

**Design.** Distances between the classes' mean features, with rows that sum to 1, are D. The centrality `v_i` is the variance of
row i over the sum of all: low where a class is about equally far from all others. An order c of N classes has the score

`S = 1 - v[c_0] + sum over i < ceil((N - 1) / 2) of (1 - D[c_i, c_{N-1-i}]) + D[c_i, c_{i+1}]`:

begin with the most central class; each next class is far from the current one, and late classes resemble early ones. Up to seven
classes all orders are scored; beyond, a greedy or a beam search builds orders from both ends.

**Measure.** After each class the network is tested on the classes seen so far. A is the mean accuracy at the end, G what was
forgotten of the first class, and `F = 2 A / (G A + 1)`. Learners: naive fine-tuning, EWC, LwF, synaptic intelligence, replay.
All orders are learned side by side as one batched network.

**Use in SDVP**: the order in which modules, or the classes of a module, are distilled when data come one part after another.

**What differs from the reference implementation, and why.** Its generator always ranks from the first class and cannot build an
even number of classes; this one follows the scorer. Its recall of the best K joins three learners and compares with chance for one;
here chance is that of sets of equal size. A distance of a class to itself is left out by its place, not as the smallest.

**Limits.** In the experiment below the order matters, and its effect is stable over seeds, but the designed ranking does not find
good orders: its correlation with F is negative for replay. Measure before you trust a score. The paper's tests with people,
and its novel objects, are not part of this.

![Orders of five classes: F of the best, the worst and the designed order](../images/curriculum-designer.svg)
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from tutelage.datasets.json_records import JsonRecord
from tutelage.datasets.rank_correlation import spearman
from tutelage.distillation.data import ReplayableData
from tutelage.distillation.feature_hooks import FeatureHooks
from tutelage.distillation.outputs import forward_heads
from tutelage.distillation.preprocessing import Preprocessing
from tutelage.distillation.recipe import ModelSpec
from tutelage.distillation.resolve import build_model
from tutelage.errors import InputError, did_you_mean
from tutelage.reading import read_json_lines, read_text
from tutelage.registry import system
from tutelage.storage import write_json_lines, write_text
from tutelage.systems._toy import toy_images
from tutelage.systems.curriculum_designer.agreement import merits
from tutelage.systems.curriculum_designer.design import (
    EXHAUSTIVE,
    ScoredOrder,
    all_orders,
    beam_orders,
    centrality,
    class_distances,
    normalized_rows,
    score_orders,
)
from tutelage.systems.curriculum_designer.learners import Replay
from tutelage.systems.curriculum_designer.online import ClassData, OnlineSettings, online_run

BEAM = 64


@system("curriculum-designer", kind="curriculum")
class CurriculumDesigner:
    """The order in which to teach classes one at a time: the score of every order, and the best of them.

    Args:
        distances: [N, N] between classes; not necessarily symmetric; the diagonal does not count.
        names: of the classes; None: their numbers.
        v: the centralities [N]; None: computed from the distances.
        normalized: the rows are normalised already, and stay as they are.

    Raises:
        InputError: distances that are negative or not finite, fewer than two classes, or not one name and centrality a class.
    """

    def __init__(
        self, distances: ArrayLike, names: Sequence[str] | None = None, v: ArrayLike | None = None, normalized: bool = False
    ):
        rows = normalized_rows(distances)
        self.distances = np.array(distances, np.float64) if normalized else rows
        if normalized:
            np.fill_diagonal(self.distances, 0)
        self.names = [str(number) for number in range(len(rows))] if names is None else list(names)
        self.v = centrality(self.distances) if v is None else np.asarray(v, np.float64)
        if len(set(self.names)) != len(rows) or self.v.shape != (len(rows),) or not np.isfinite(self.v).all():
            message = f"{len(set(self.names))} names and centralities {list(self.v.shape)} for {len(rows)} classes"
            raise InputError(message, where="names", remedy="a name of its own and a finite centrality for each class")

    @classmethod
    def from_features(
        cls, features: ArrayLike, labels: ArrayLike, names: Sequence[str] | None = None, distance: str = "cosine"
    ) -> CurriculumDesigner:
        """From features [n, d] of a fixed encoder and labels [n]; the classes are the labels in rising order.

        Args:
            features, labels: see above.
            names: of the classes.
            distance: ``cosine``, ``euclidean`` or ``transport``; see ``design.class_distances``.

        Raises:
            InputError: as ``class_distances`` and this class.
        """
        return cls(class_distances(features, labels, distance), names)

    @property
    def count(self) -> int:
        """The number of classes."""
        return len(self.distances)

    def score(self, orders: ArrayLike) -> np.ndarray:
        """The scores [O] of orders [O, N] of class numbers."""
        return score_orders(orders, self.distances, self.v)

    def rank(self, top: int | None = None, beam: int = BEAM) -> list[ScoredOrder]:
        """Orders, the best first: all of them for at most seven classes, else at most ``beam`` by beam search.

        Args:
            top: only so many.
            beam: width of the search; 1 is greedy.
        """
        if self.count <= EXHAUSTIVE:
            orders = all_orders(self.count)
            scores = self.score(orders)
            chosen = np.argsort(-scores, kind="stable")[:top]
            return [ScoredOrder(tuple(orders[i].tolist()), float(scores[i])) for i in chosen.tolist()]
        return beam_orders(self.distances, self.v, beam)[:top]

    def named(self, order: Sequence[int]) -> list[str]:
        """The class names of an order."""
        return [self.names[number] for number in order]

    @classmethod
    def tiny_run(cls, seed: int) -> dict[str, float | str]:
        """Four toy classes: the designed order, and a run of all orders with replay."""
        images = toy_images(seed, count=96, classes=4)
        assert images.labels is not None
        data = ClassData.split(images.inputs.flatten(1), images.labels, 8, 16, seed)
        designer = cls.from_features(data.train.flatten(0, 1), torch.arange(4).repeat_interleave(8))
        ranked = designer.rank()
        network = nn.Linear(64, 4)
        nn.init.zeros_(network.weight)
        nn.init.zeros_(network.bias)
        settings = OnlineSettings(lr=0.002, batch_size=4, optimizer="sgd")
        worth = merits(online_run(network, data, [one.order for one in ranked], Replay, settings, seed)).merit
        best = " ".join(designer.named(ranked[0].order))
        return {"best order": best, "score": ranked[0].score, "F": float(worth[0]), "Spearman": spearman(-np.arange(24), worth)}


# -- features --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EncoderSettings(ModelSpec):
    """A fixed encoder: ``model``, ``options`` and ``weights`` as in a recipe; ``layer``: the sub-module whose output counts
    (None: the network's own output, as published); ``preprocessing``: of its images."""

    layer: str | None = None
    preprocessing: Preprocessing = Preprocessing()

    def build(self) -> Callable[[Tensor], Tensor]:
        """Images [B, C, H, W] -> features [B, d]: maps are averaged over their pixels, sequences over their tokens.

        Raises:
            InputError, MissingExtra: as ``build_model``, or an unknown layer.
        """
        network = build_model(self).eval()
        hooks = FeatureHooks(network, [self.layer]) if self.layer is not None else None

        @torch.no_grad()
        def features(images: Tensor) -> Tensor:
            inputs = self.preprocessing(images)
            if hooks is None:
                found = next(iter(forward_heads(network, inputs).values()))
            else:
                with hooks as taken:
                    network(inputs)
                found = taken[hooks.names[0]]
            if found.ndim == 4:
                return found.mean((2, 3))
            return found.mean(1) if found.ndim == 3 else found.flatten(1)

        return features


def encoded(data: ReplayableData, encoder: Callable[[Tensor], Tensor] | None = None, batch_size: int = 64) -> tuple[Tensor, Tensor]:
    """Features [n, d] and labels [n] of all samples; without an encoder, the inputs themselves, flattened.

    Raises:
        InputError: data without class ids.
    """
    parts, labels = list[Tensor](), list[Tensor]()
    for start in range(0, len(data), batch_size):
        batch = data.batch(torch.arange(start, min(len(data), start + batch_size)), None)
        if not isinstance(batch.labels, Tensor) or batch.labels.ndim != 1 or batch.labels.is_floating_point():
            raise InputError("the data have no class ids", where="data", remedy="a sub-folder or a number for each class")
        parts.append(batch.inputs.flatten(1) if encoder is None else encoder(batch.inputs))
        labels.append(batch.labels)
    return torch.cat(parts).float(), torch.cat(labels)


# -- files -----------------------------------------------------------------------------------------------------------


def write_distances(path: str | Path, designer: CurriculumDesigner) -> Path:
    """Write normalised distances as CSV: a header of class names, then a row for each class."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["class", *designer.names])
    writer.writerows([name, *map(repr, row)] for name, row in zip(designer.names, designer.distances.tolist(), strict=True))
    return write_text(path, out.getvalue())


def read_distances(path: str | Path) -> tuple[np.ndarray, list[str]]:
    """Distances [N, N] and class names from a CSV file as :func:`write_distances` writes it.

    Raises:
        InputError: a missing value, no number, or rows and columns that do not agree; the message names line and column.
    """
    try:
        lines = [row for row in csv.reader(io.StringIO(read_text(path)), strict=True) if row]
    except csv.Error as error:
        raise InputError(f"not CSV: {error}", where=path, remedy="close quotes; use commas") from error
    names = [name.strip() for name in lines[0][1:]] if lines else []
    if len(names) < 2 or len(set(names)) < len(names) or not all(name and name.isprintable() for name in names):
        raise InputError(f"{len(set(names))} classes", where=path, remedy="the first line: class, and two or more different names")
    if len(lines) != len(names) + 1:
        raise InputError(f"{len(lines) - 1} rows for {len(names)} classes", where=path, remedy="one row for each class")
    found = []
    for number, (name, row) in enumerate(zip(names, lines[1:], strict=True), 2):
        if row[0].strip() != name or len(row) != len(names) + 1:
            message = f"the row of {row[0].strip()!r} with {len(row) - 1} values"
            raise InputError(
                message, where=f"{path}:{number}", remedy=f"rows in the order of the columns: {name!r}, {len(names)} values"
            )
        for column, text in zip(names, row[1:], strict=True):
            try:
                float(text)
            except ValueError:
                what = f"{text[:40]!r} is no number" if text.strip() else "a missing value"
                raise InputError(what, where=f"{path}:{number}: {column}", remedy="give every distance; 0 to itself") from None
        found.append([float(text) for text in row[1:]])
    return np.array(found), names


def write_orders(path: str | Path, orders: Sequence[ScoredOrder], designer: CurriculumDesigner) -> Path:
    """Write ranked orders as JSON lines: ``{"order": [class names], "score": number}``."""
    return write_json_lines(path, ({"order": designer.named(one.order), "score": one.score} for one in orders))


def read_orders(path: str | Path, names: Sequence[str]) -> list[tuple[int, ...]]:
    """Orders of the classes ``names`` from a JSON-lines file with a field ``order``, as class numbers.

    Raises:
        InputError: no order, an unknown class, or one that is missing or named twice; the message names the line.
    """
    found = list(_orders(path, list(names)))
    if not found:
        raise InputError("the file holds no order", where=path, remedy='one {"order": [class names]} a line')
    return found


def _orders(path: str | Path, names: list[str]) -> Iterator[tuple[int, ...]]:
    for number, value in read_json_lines(path):
        record = JsonRecord(value, f"{path}:{number}")
        order = record.texts("order")
        if unknown := [name for name in order if name not in names]:
            raise InputError(f"unknown class {unknown[0]!r}", where=record.where, remedy=did_you_mean(unknown[0], names))
        if sorted(order) != sorted(names):
            raise record.error("order", f"each of {len(names)} classes once")
        yield tuple(names.index(name) for name in order)
