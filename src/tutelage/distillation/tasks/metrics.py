"""Metrics as meters: each adds batches up and computes its figures at the end.

They are short tensor code of our own, checked in the tests against scikit-learn and torchmetrics. Neither of these is
a dependency of the core: torchmetrics adds seconds to an import, and its box metrics need compiled COCO tools.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Metric:
    """A figure's name, its unit (``%``, ``dB`` or none) and which way is better."""

    name: str
    unit: str = ""
    higher_is_better: bool = True


class Meter(Protocol):
    """Adds up what a metric needs, batch by batch."""

    def update(self, *args: Tensor) -> None:
        """Take in one batch."""
        ...

    def compute(self) -> dict[str, float]:
        """The figures of all batches so far; a figure that nothing was counted for is ``nan``."""
        ...


def _share(part: float, whole: float) -> float:
    return 100 * part / whole if whole else math.nan


class ClassCounts:
    """Right answers, predictions and labels of each class: accuracy, F1 and IoU follow from these three counts.

    Macro averages leave out classes that are neither predicted nor a label (scikit-learn's rule).
    """

    def __init__(self) -> None:
        self.right = self.predicted = self.labels = torch.zeros(0, dtype=torch.int64)

    def update(self, predictions: Tensor, labels: Tensor) -> None:
        """Class ids of equal shape; ignored ones are left out before."""
        predictions, labels = predictions.flatten().cpu(), labels.flatten().cpu()
        size = max(len(self.labels), *(int(ids.max()) + 1 if len(ids) else 0 for ids in (predictions, labels)))

        def add(counts: Tensor, ids: Tensor) -> Tensor:
            return F.pad(counts, (0, size - len(counts))) + ids.bincount(minlength=size)

        self.right = add(self.right, labels[predictions == labels])
        self.predicted = add(self.predicted, predictions)
        self.labels = add(self.labels, labels)

    @property
    def accuracy(self) -> float:
        """The share of right answers, in percent."""
        return _share(int(self.right.sum()), int(self.labels.sum()))

    def _macro(self, numerator: Tensor, denominator: Tensor) -> float:
        occurring = denominator > 0
        return 100 * float((numerator[occurring] / denominator[occurring]).mean()) if occurring.any() else math.nan

    @property
    def f1(self) -> float:
        """``2 right / (predicted + labels)``, mean over classes, in percent."""
        return self._macro(2 * self.right.double(), self.predicted + self.labels)

    @property
    def mean_iou(self) -> float:
        """``right / (predicted + labels - right)``, mean over classes, in percent."""
        return self._macro(self.right.double(), self.predicted + self.labels - self.right)


class Perplexity:
    """``exp`` of the mean negative log-likelihood of all counted tokens."""

    def __init__(self) -> None:
        self.total, self.count = 0.0, 0

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """logits [N, V], labels [N]; ignored ones are left out before."""
        self.total += float(F.cross_entropy(logits.double(), labels, reduction="sum")) if len(labels) else 0.0
        self.count += len(labels)

    def compute(self) -> dict[str, float]:
        """``perplexity``."""
        mean = self.total / self.count if self.count else math.nan
        return {"perplexity": math.exp(mean) if mean < 700 else math.inf if mean == mean else math.nan}


class LabelScores:
    """Scores of independent labels: F1 at a probability of 0.5, and mean average precision."""

    def __init__(self) -> None:
        self.logits: list[Tensor] = []
        self.labels: list[Tensor] = []

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """logits [B, C]; labels [B, C] of 0, 1 and -1 (ignored)."""
        self.logits.append(logits.detach().double().cpu())
        self.labels.append(labels.cpu())

    def compute(self) -> dict[str, float]:
        """``mAP`` and ``F1 macro`` over labels, ``F1`` over all decisions, in percent.

        A label without a positive is left out of mAP, and one without a positive or a prediction out of F1 macro.
        """
        logits, labels = torch.cat(self.logits), torch.cat(self.labels)
        known, positive, predicted = labels >= 0, labels == 1, logits > 0
        hits = (predicted & positive).sum(0).double()
        size = ((predicted & known).sum(0) + positive.sum(0)).double()
        some = size > 0
        precisions = [
            self._average_precision(logits[known[:, c], c], positive[known[:, c], c])
            for c in range(labels.shape[1])
            if positive[:, c].any()
        ]
        return {
            "mAP": 100 * sum(precisions) / len(precisions) if precisions else math.nan,
            "F1": _share(2 * float(hits.sum()), float(size.sum())),
            "F1 macro": 100 * float((2 * hits[some] / size[some]).mean()) if some.any() else math.nan,
        }

    @staticmethod
    def _average_precision(scores: Tensor, positive: Tensor) -> float:
        """``sum_n (R_n - R_{n-1}) P_n`` over the distinct scores (scikit-learn's definition)."""
        scores, order = scores.sort(descending=True)
        hits = positive[order].double().cumsum(0)
        last = torch.cat([scores[1:] != scores[:-1], torch.ones(1, dtype=torch.bool)])
        ends = last.nonzero()[:, 0]
        precision, recall = hits[ends] / (ends + 1), hits[ends] / hits[-1]
        return float((precision * recall.diff(prepend=recall.new_zeros(1))).sum())


class RegressionErrors:
    """R², MAE and RMSE; sums in float64, about the first batch's mean."""

    def __init__(self) -> None:
        self.count, self.absolute, self.shift = 0, 0.0, torch.zeros(0)
        self.sum = self.square = self.residual = torch.zeros(0, dtype=torch.float64)

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        """Both [B, D], without missing values."""
        predictions, targets = predictions.detach().double().cpu(), targets.double().cpu()
        if not len(targets):
            return
        if not self.count:
            self.shift = targets.mean(0)
            self.sum = self.square = self.residual = torch.zeros_like(self.shift)
        centred, error = targets - self.shift, predictions - targets
        self.count += len(targets)
        self.sum, self.square = self.sum + centred.sum(0), self.square + centred.square().sum(0)
        self.residual, self.absolute = self.residual + error.square().sum(0), self.absolute + float(error.abs().sum())

    def compute(self) -> dict[str, float]:
        """``R2`` (mean over the D outputs; ``nan`` where an output's targets are all alike), ``MAE``, ``RMSE``."""
        if not self.count:
            return {"R2": math.nan, "MAE": math.nan, "RMSE": math.nan}
        spread = self.square - self.sum.square() / self.count
        cells = self.count * len(self.residual)
        r2 = torch.where(spread > 0, 1 - self.residual / spread, math.nan).mean()
        return {"R2": float(r2), "MAE": self.absolute / cells, "RMSE": math.sqrt(float(self.residual.sum()) / cells)}


class Average:
    """The mean of named per-sample figures [n]; samples that are ``nan`` are left out."""

    def __init__(self, *names: str) -> None:
        self.sums = {name: 0.0 for name in names}
        self.counts = {name: 0 for name in names}

    def update(self, figures: Mapping[str, Tensor]) -> None:
        """Take in the figures of one batch."""
        for name, values in figures.items():
            values = values.detach().double().cpu()
            values = values[~values.isnan()]
            self.sums[name] += float(values.sum())
            self.counts[name] += len(values)

    def compute(self) -> dict[str, float]:
        """Each mean, by name."""
        return {name: self.sums[name] / count if count else math.nan for name, count in self.counts.items()}


def psnr(images: Tensor, targets: Tensor, data_range: float = 1.0) -> Tensor:
    """Peak signal-to-noise ratio ``10 log10(range^2 / MSE)`` of each image [B, C, H, W] -> [B], in dB.

    Equal images give infinity.
    """
    error = (images.double() - targets.double()).square().flatten(1).mean(1)
    return 10 * torch.log10(data_range**2 / error)


def ssim(images: Tensor, targets: Tensor, data_range: float = 1.0, size: int = 11, sigma: float = 1.5) -> Tensor:
    """Structural similarity (Wang, Bovik, Sheikh, Simoncelli, 2004, equation 13): [B, C, H, W] -> [B].

    A Gaussian window of ``size`` x ``size`` pixels, K1 = 0.01, K2 = 0.03, the mean over all places where the whole
    window lies inside, and over channels. An image smaller than the window gets the largest odd window that fits (our
    choice).
    """
    return ssim_parts(images, targets, data_range, size, sigma)[0]


def ssim_parts(
    images: Tensor, targets: Tensor, data_range: float = 1.0, size: int = 11, sigma: float = 1.5
) -> tuple[Tensor, Tensor]:
    """:func:`ssim` [B], and its contrast and structure alone [B], without the luminance."""
    size = min(size, *(side - 1 + side % 2 for side in images.shape[2:]))
    line = torch.exp(-((torch.arange(size, dtype=torch.float64) - size // 2) ** 2) / (2 * sigma**2))
    line = (line / line.sum()).to(images.device)
    channels = images.shape[1]
    x, y = images.double(), targets.double()

    def blurred(values: Tensor) -> Tensor:
        values = F.conv2d(values, line.view(1, 1, -1, 1).expand(channels, -1, -1, -1), groups=channels)
        return F.conv2d(values, line.view(1, 1, 1, -1).expand(channels, -1, -1, -1), groups=channels)

    mean_x, mean_y = blurred(x), blurred(y)
    var_x, var_y = blurred(x * x) - mean_x**2, blurred(y * y) - mean_y**2
    covariance = blurred(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    contrast = (2 * covariance + c2) / (var_x + var_y + c2)
    similarity = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1) * contrast
    return similarity.flatten(1).mean(1), contrast.flatten(1).mean(1)


def recall_at(similarity: Tensor, positive: Tensor, k: int) -> float:
    """The share of queries with a right answer among their ``k`` nearest, in percent.

    Args:
        similarity: [Q, N] of queries and candidates.
        positive: [Q, N] bool, the right answers; a query without one is left out.
        k: how many candidates count.
    """
    some = positive.any(1)
    if not some.any():
        return math.nan
    nearest = similarity[some].topk(min(k, similarity.shape[1]), 1).indices
    return 100 * float(positive[some].gather(1, nearest).any(1).double().mean())
