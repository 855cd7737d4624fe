"""Boxes in pure torch: formats, overlap, non-maximum suppression, average precision.

Boxes are float tensors [..., 4]. ``xyxy`` is (left, top, right, bottom), ``cxcywh`` is (centre x, centre y, width,
height). The unit is free (pixels or shares of the image), as long as all boxes of a call share it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

COCO_THRESHOLDS = tuple(0.5 + 0.05 * i for i in range(10))
"""The overlaps over which COCO averages: 0.50, 0.55, … 0.95."""


def box_xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """(left, top, right, bottom) -> (centre x, centre y, width, height), [..., 4]."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, high - low], -1)


def box_cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """(centre x, centre y, width, height) -> (left, top, right, bottom), [..., 4]."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([centre - half, centre + half], -1)


def box_area(boxes: Tensor) -> Tensor:
    """The area of ``xyxy`` boxes [..., 4] -> [...]; a box with negative sides has none."""
    return (boxes[..., 2:] - boxes[..., :2]).clamp_min(0).prod(-1)


def pairwise_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of every pair of ``xyxy`` boxes: [..., n, 4] and [..., m, 4] -> [..., n, m], in 0..1.

    Two boxes without area have an overlap of 0.
    """
    a, b = a.unsqueeze(-2), b.unsqueeze(-3)
    sides = torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])
    inner = sides.clamp_min(0).prod(-1)
    union = box_area(a) + box_area(b) - inner
    return inner / union.clamp_min(torch.finfo(inner.dtype).tiny)


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float = 0.5, classes: Tensor | None = None) -> Tensor:
    """Greedy non-maximum suppression.

    Args:
        boxes: [n, 4], ``xyxy``.
        scores: [n], the higher is kept first; of equal scores the earlier box.
        iou_threshold: a box that overlaps a kept one by more than this is dropped.
        classes: [n] class ids; given, only boxes of one class suppress each other.

    Returns:
        The positions of the kept boxes, by falling score: [k] int64.
    """
    order = scores.argsort(descending=True, stable=True)
    overlaps = pairwise_iou(boxes[order], boxes[order]) > iou_threshold
    if classes is not None:
        overlaps &= classes[order][:, None] == classes[order][None]
    overlaps = overlaps.triu(1).cpu()
    dropped = torch.zeros(len(order), dtype=torch.bool)
    for i in range(len(order)):
        if not dropped[i]:
            dropped |= overlaps[i]
    return order[~dropped.to(order.device)]


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
    overlaps = pairwise_iou(boxes, targets).cpu()
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
