"""Keypoints: one heat map a keypoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from tutelage.distillation.data import Batch, Tree
from tutelage.distillation.tasks.base import Fit, Task, TaskMeter, head, masked_mean, mismatch, task
from tutelage.distillation.tasks.metrics import Average, Metric


@task("keypoints")
@dataclass(frozen=True)
class Keypoints(Task):
    """One heat map a keypoint, with its peak of 1 where the keypoint is: squared error to a Gaussian
    (Xiao, Wu, Wei, 2018, section 3) and to the teacher's maps (Zhang, Zhu, Ye, 2019, equation 4).

    Labels are points (x, y, visible), x and y in 0..1 of the image's width and height; points that are not visible (0)
    are ignored. Labels may also be heat maps; one that is 0 everywhere is ignored. A predicted point is the centre of
    the map's highest cell.

    ``sigma``: of the Gaussian, in cells of the heat map. ``threshold``: a point is right if it is at most so far off,
    in shares of the image's sides (our choice).
    """

    metrics = (Metric("PCK", "%"),)
    layout = "logits [B, K, h, w], heat maps; labels [B, K, 3] (x, y in 0..1, visible), or maps [B, K, h, w]"

    sigma: float = 2.0
    threshold: float = 0.1

    @classmethod
    def fit(cls, output: Mapping[str, Tensor], batch: Batch) -> Fit:
        """See :class:`Task`."""
        maps, labels = output.get("logits"), batch.labels
        if maps is None or maps.ndim != 4:
            return Fit.NO
        if labels is None:
            return Fit.POSSIBLE
        if not isinstance(labels, Tensor) or not labels.is_floating_point():
            return Fit.NO
        if labels.shape == (*maps.shape[:2], 3):
            return Fit.CERTAIN
        return Fit.POSSIBLE if labels.shape == maps.shape else Fit.NO

    def check(self, output: Mapping[str, Tensor], labels: Tree) -> None:
        """See :class:`Task`."""
        maps = head(output, "logits", self)
        if maps.ndim != 4:
            raise mismatch(self, f"outputs {list(maps.shape)}", "student")
        if labels is None:
            return
        shapes = ((*maps.shape[:2], 3), tuple(maps.shape))
        if not isinstance(labels, Tensor) or tuple(labels.shape) not in shapes:
            shape = list(labels.shape) if isinstance(labels, Tensor) else type(labels).__name__
            raise mismatch(self, f"labels {shape} with heat maps {list(maps.shape)}")
        if labels.ndim == 3:
            seen = labels[..., :2][labels[..., 2] > 0]
            if len(seen) and (seen.min() < 0 or seen.max() > 1):
                raise mismatch(self, f"a visible point lies at {seen.max().item():g}", remedy="divide by the image's size")

    def check_teacher(self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> None:
        """See :class:`Task`; maps may differ in size."""
        own, other = student["logits"], head(teacher, "logits", self, "teacher")
        if own.ndim != other.ndim or own.shape[:2] != other.shape[:2]:
            found = f"student's heat maps {list(own.shape)}, teacher's {list(other.shape)}"
            raise mismatch(self, found, "teacher", "give both the same keypoints in the same order")

    def label_loss(self, output: Mapping[str, Tensor], labels: Tree, weights: Tensor | None = None) -> Tensor:
        """Squared error, mean over cells and over the visible keypoints of a sample; see :class:`Task`."""
        maps = output["logits"]
        if labels.ndim == 3:
            visible, heat = labels[..., 2] > 0, gaussian_maps(labels[..., :2], maps.shape[2:], self.sigma)
        else:
            visible, heat = labels.flatten(2).amax(-1) > 0, labels
        loss = F.mse_loss(maps, heat.to(maps.dtype), reduction="none").flatten(2).mean(2)
        return masked_mean(loss, visible, weights)

    def distance(
        self,
        student: Mapping[str, Tensor],
        teacher: Mapping[str, Tensor],
        labels: Tree = None,
        weights: Tensor | None = None,
        tau: float = 1.0,
    ) -> Tensor:
        """Squared error of the maps, the teacher's resized to the student's (bilinear); see :class:`Task`."""
        own, other = student["logits"], teacher["logits"].detach()
        if other.shape != own.shape:
            other = F.interpolate(other, size=own.shape[2:], mode="bilinear", align_corners=False)
        return masked_mean(F.mse_loss(own, other, reduction="none"), None, weights)

    def meter(self) -> TaskMeter:
        """See :class:`Task`."""
        return KeypointMeter(self.threshold)


def gaussian_maps(points: Tensor, size: tuple[int, int] | torch.Size, sigma: float) -> Tensor:
    """Heat maps with a peak at each point.

    Args:
        points: [B, K, 2], (x, y) in 0..1.
        size: (height, width) of the maps.
        sigma: of the Gaussian, in cells.

    Returns:
        [B, K, height, width], 1 where a cell's centre is the point.
    """
    height, width = size
    rows = torch.arange(height, device=points.device, dtype=points.dtype) + 0.5
    columns = torch.arange(width, device=points.device, dtype=points.dtype) + 0.5
    along_x = (columns - points[..., 0, None] * width).square()
    along_y = (rows - points[..., 1, None] * height).square()
    return torch.exp(-(along_y[..., :, None] + along_x[..., None, :]) / (2 * sigma**2))


def peaks(maps: Tensor) -> Tensor:
    """The centre of each map's highest cell: [B, K, h, w] -> [B, K, 2], (x, y) in 0..1."""
    best = maps.flatten(2).argmax(-1)
    height, width = maps.shape[2:]
    return torch.stack([(best % width + 0.5) / width, (best // width + 0.5) / height], -1)


class KeypointMeter(TaskMeter):
    """PCK: the share of visible keypoints that are found within the threshold."""

    def __init__(self, threshold: float) -> None:
        self.threshold, self.average = threshold, Average("PCK")

    def update(self, output: Mapping[str, Tensor], labels: Tree) -> None:
        """See :class:`TaskMeter`."""
        if labels.ndim == 3:
            points, visible = labels[..., :2], labels[..., 2] > 0
        else:
            points, visible = peaks(labels), labels.flatten(2).amax(-1) > 0
        off = torch.linalg.vector_norm(peaks(output["logits"]).double() - points.double(), dim=-1)
        self.average.update({"PCK": 100 * (off[visible] <= self.threshold).double()})

    def compute(self) -> dict[str, float]:
        """See :class:`TaskMeter`."""
        return self.average.compute()
