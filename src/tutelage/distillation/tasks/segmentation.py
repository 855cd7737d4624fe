"""Semantic segmentation: one class a pixel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from tutelage.distillation.data import Batch
from tutelage.distillation.tasks.base import Fit, task
from tutelage.distillation.tasks.categorical import CategoricalTask
from tutelage.distillation.tasks.metrics import Metric


@task("segmentation")
@dataclass(frozen=True)
class Segmentation(CategoricalTask):
    """One class a pixel: cross-entropy and KL divergence over the channels of logits [B, C, h, w], pixel by pixel.

    Logits are resized to the labels, and the teacher's to the student's (bilinear, corners not aligned). Pixels
    labelled 255 (where there are at most 255 classes) or -100 are left out of the label loss and of the metrics. The
    teacher is followed everywhere: what nobody labelled is where it helps most.
    """

    metrics = (Metric("mIoU", "%"), Metric("accuracy", "%"))
    layout = "logits [B, C, h, w], C >= 2; labels [B, H, W] class ids, 255 ignored"
    ignores_255 = True

    @classmethod
    def fit(cls, output: Mapping[str, Tensor], batch: Batch) -> Fit:
        """See :class:`Task`."""
        logits, labels = output.get("logits"), batch.labels
        if logits is None or logits.ndim != 4 or logits.shape[1] < 2:
            return Fit.NO
        if labels is None:
            return Fit.POSSIBLE
        whole = isinstance(labels, Tensor) and not labels.is_floating_point() and labels.dtype != torch.bool
        return Fit.CERTAIN if whole and labels.ndim == 3 else Fit.NO

    def shape_fits(self, logits: Tensor, labels: Tensor) -> bool:
        """See :class:`CategoricalTask`."""
        return logits.ndim == 4 and labels.ndim == 3 and len(labels) == len(logits)

    def align(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`CategoricalTask`."""
        return _resize(logits, labels.shape[1:]), labels

    def pair(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`CategoricalTask`."""
        return student, _resize(teacher, student.shape[2:])


def _resize(maps: Tensor, size: torch.Size) -> Tensor:
    if maps.shape[2:] == size:
        return maps
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)
