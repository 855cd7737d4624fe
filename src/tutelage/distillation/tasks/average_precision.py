"""Average precision of boxes, as COCO counts it."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from tutelage.networks.roi import box_iou

COCO_THRESHOLDS = tuple(0.5 + 0.05 * i for i in range(10))
"""The overlaps over which COCO averages: 0.50, 0.55, … 0.95."""


def match_detections(boxes: Tensor, scores: Tensor, targets: Tensor, thresholds: tuple[float, ...] = COCO_THRESHOLDS) -> Tensor:
    """Which detections of one class in one image are right, at each overlap threshold.

    Detections choose by falling score, each the free target that it overlaps most (COCO's rule).

    Args:
        boxes: [n, 4], ``xyxy``.
        scores: [n].
        targets: [m, 4], ``xyxy``.
        thresholds: the T overlaps from which on a detection counts as right.

    Returns:
        [T, n] bool, in the order of ``boxes``.
    """
    right = torch.zeros(len(thresholds), len(boxes), dtype=torch.bool)
    if not len(boxes) or not len(targets):
        return right
    overlaps = box_iou(boxes, targets).cpu()
    least = torch.tensor(thresholds, dtype=overlaps.dtype) - 1e-6  # an overlap of just the threshold counts
    free = torch.ones(len(thresholds), len(targets), dtype=torch.bool)
    rows = torch.arange(len(thresholds))
    for detection in scores.argsort(descending=True, stable=True).tolist():
        overlap, best = overlaps[detection].masked_fill(~free, -1.0).max(1)
        right[:, detection] = taken = overlap >= least
        free[rows[taken], best[taken]] = False
    return right


def average_precision(scores: Tensor, right: Tensor, targets: int) -> float:
    """The area under the precision-recall curve, as COCO counts it: precision at 101 recalls, each the highest
    precision from that recall on.

    Args:
        scores: [n] of all detections of one class, over all images.
        right: [n] bool.
        targets: how many objects there are; 0 gives ``nan``.

    Returns:
        The average precision, in 0..1.
    """
    if not targets:
        return float("nan")
    if not len(scores):
        return 0.0
    hits = right[scores.argsort(descending=True, stable=True)].double().cumsum(0)
    precision = hits / torch.arange(1, len(hits) + 1)
    recall = hits / targets
    precision = precision.flip(0).cummax(0).values.flip(0)
    at = torch.searchsorted(recall, torch.from_numpy(np.linspace(0, 1, 101)))
    padded = torch.cat([precision, precision.new_zeros(1)])
    return float(padded[at].mean())


class BoxPrecision:
    """Average precision of boxes over overlaps 0.50 to 0.95 (COCO), and at 0.50; mean over classes with objects.

    At most the 100 highest scores of an image count. There are no crowd regions and no ranges of areas.
    """

    def __init__(self, most: int = 100) -> None:
        self.most = most
        self.scores: dict[int, list[Tensor]] = {}
        self.right: dict[int, list[Tensor]] = {}
        self.targets: dict[int, int] = {}

    def update(self, boxes: Tensor, scores: Tensor, classes: Tensor, targets: Tensor, labels: Tensor) -> None:
        """One image: boxes [n, 4] ``xyxy``, scores [n], classes [n]; targets [m, 4] ``xyxy``, labels [m]."""
        best = scores.argsort(descending=True, stable=True)[: self.most]
        boxes, scores, classes = boxes[best].cpu(), scores[best].cpu(), classes[best].cpu()
        targets, labels = targets.cpu(), labels.cpu()
        for name in set(classes.tolist()) | set(labels.tolist()):
            rows, wanted = classes == name, targets[labels == name]
            self.right.setdefault(name, []).append(match_detections(boxes[rows], scores[rows], wanted))
            self.scores.setdefault(name, []).append(scores[rows])
            self.targets[name] = self.targets.get(name, 0) + len(wanted)

    def compute(self) -> dict[str, float]:
        """``AP`` and ``AP50``, in percent."""
        table = []
        for name, count in self.targets.items():
            if count:
                scores, right = torch.cat(self.scores[name]), torch.cat(self.right[name], 1)
                table.append([average_precision(scores, row, count) for row in right])
        if not table:
            return {"AP": math.nan, "AP50": math.nan}
        grid = 100 * torch.tensor(table, dtype=torch.float64)
        return {"AP": float(grid.mean()), "AP50": float(grid[:, COCO_THRESHOLDS.index(0.5)].mean())}
