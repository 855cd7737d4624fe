"""Labels and pseudo-labels of a hand, the loss between a prediction and them, and how far two teachers disagree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from tutelage.distillation.outputs import Output
from tutelage.distillation.tasks.keypoints import gaussian_maps, peaks
from tutelage.errors import InputError
from tutelage.systems.c_gac.warp import Warp

LEAST = 1e-3
"""Redrawn maps are kept so far from 0 and 1 where two of them are compared by cross-entropy."""


class HandLabels(NamedTuple):
    """What a loss aims at, whether people or teachers gave it.

    Attributes:
        points: [B, K, 3], x and y in 0..1 of width and height, and 1 where the keypoint is labelled, else 0.
        mask: [B, 1, H, W], the probability of the hand in 0..1; below 0: ignored.
    """

    points: Tensor
    mask: Tensor

    def moved(self, warp: Warp) -> HandLabels:
        """The labels after ``warp``. What comes in from outside the image is no hand."""
        mask = warp.image(self.mask.clamp_min(0))
        if bool((self.mask < 0).any()):
            mask = torch.where(warp.image((self.mask < 0).to(mask)) > 0.5, -1.0, mask)
        return HandLabels(warp.points(self.points), mask)


def hand_labels(labels: Any) -> HandLabels:
    """The labels of a batch, ``{"points": [B, K, 3], "mask": [B, H, W]}``; a mask of 1, 0 and, ignored, below 0.

    Raises:
        InputError: they are something else.
    """
    points, mask = (labels.get(name) if isinstance(labels, Mapping) else None for name in ("points", "mask"))
    if not isinstance(points, Tensor) or points.ndim != 3 or points.shape[2] != 3 or not points.is_floating_point():
        raise InputError(
            "no keypoints",
            where="labels.points",
            remedy='labels are {"points": [B, K, 3] (x, y in 0..1, labelled or not), "mask": [B, H, W] of 0 and 1}',
        )
    if not isinstance(mask, Tensor) or mask.ndim not in (3, 4) or (mask.ndim == 4 and mask.shape[1] != 1):
        raise InputError("no masks", where="labels.mask", remedy="[B, H, W] of 0 and 1, whole numbers; -100: ignored")
    return HandLabels(points, (mask if mask.ndim == 4 else mask[:, None]).to(points.dtype))


def heat_maps(points: Tensor, size: tuple[int, int] | torch.Size, sigma: float, floor: bool = False) -> Tensor:
    """Heat maps [B, K, height, width] with a peak of 1 at each point [B, K, 2 or 3]; empty where a point lies outside.

    Args:
        points: x and y in 0..1.
        size: (height, width) of the maps.
        sigma: of the Gaussian, in cells.
        floor: put the peak into the middle of the point's cell, and cut the bell at 13 cells, as the reference does.
    """
    place = points[..., :2]
    sides = torch.tensor([size[1], size[0]], dtype=place.dtype, device=place.device)
    if floor:
        place = ((place * sides).floor() + 0.5) / sides
    maps = gaussian_maps(place, size, sigma)
    if floor:
        rows, columns = (torch.arange(side, device=place.device) + 0.5 for side in size)
        near = (columns - place[..., 0, None] * size[1]).abs() <= 13, (rows - place[..., 1, None] * size[0]).abs() <= 13
        maps = maps * (near[1][..., :, None] & near[0][..., None, :])
    inside = ((place >= 0) & (place < 1)).all(-1)
    return maps * inside[..., None, None]


@dataclass(frozen=True)
class HandLoss:
    """``pose_weight * distance of heat maps + mask_weight * BCE of the mask``, one number an image.

    Attributes:
        heatmap: ``huber``: of slope ``delta``, on the maps as they are; ``bce``: maps are logits.
        sigma: of the target's Gaussians, in cells of the map. ``floor``: see :func:`heat_maps`.
        pose_weight, mask_weight: of the two parts.
        delta: of the Huber loss: ``z^2 / 2`` below it, ``delta (|z| - delta / 2)`` above.
    """

    heatmap: Literal["huber", "bce"] = "huber"
    sigma: float = 4.0
    floor: bool = False
    pose_weight: float = 1e7
    mask_weight: float = 100.0
    delta: float = 0.01

    def maps(self, output: Output) -> Tensor:
        """The heat maps [B, K, h, w] of a network, about 0 to 1."""
        return output["heatmaps"] if self.heatmap == "huber" else output["heatmaps"].sigmoid()

    def pose(self, maps: Tensor, points: Tensor) -> Tensor:
        """Distance of heat maps, as the network gives them, from points [B, K, 3]: [B].

        Keypoints without a label add 0; the mean runs over all entries.
        """
        target = heat_maps(points, maps.shape[2:], self.sigma, self.floor).to(maps)
        labelled = (points[..., 2, None, None] > 0).to(maps)
        if self.heatmap == "huber":
            each = F.huber_loss(maps * labelled, target * labelled, reduction="none", delta=self.delta)
        else:
            each = labelled * F.binary_cross_entropy_with_logits(maps, target, reduction="none")
        return each.flatten(1).mean(1)

    def mask(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Binary cross-entropy, the mean over the pixels that count: [B]."""
        each = F.binary_cross_entropy_with_logits(logits, mask.clamp(0, 1), reduction="none")
        counts = (mask >= 0).to(each)
        return (each * counts).flatten(1).sum(1) / counts.flatten(1).sum(1).clamp_min(1)

    def __call__(self, output: Output, labels: HandLabels) -> Tensor:
        """The loss of each image, [B]."""
        pose, mask = self.pose(output["heatmaps"], labels.points), self.mask(output["mask"], labels.mask)
        return self.pose_weight * pose + self.mask_weight * mask

    def predict(self, *outputs: Output) -> HandLabels:
        """What networks see, as labels: the peak of their mean heat map, enlarged to the mask's size, and their mean mask."""
        maps = torch.stack([self.maps(output) for output in outputs]).mean(0)
        mask = torch.stack([output["mask"].sigmoid() for output in outputs]).mean(0)
        points = peaks(F.interpolate(maps, mask.shape[2:], mode="bilinear", align_corners=False))
        return HandLabels(torch.cat([points, torch.ones_like(points[..., :1])], -1), mask)

    def disagreement(self, one: HandLabels, other: HandLabels, size: tuple[int, int] | torch.Size) -> Tensor:
        """How far two predictions are apart: [B], 0 where they are equal.

        The task loss between them, the same both ways. The keypoints of both are redrawn as Gaussians: raw maps of teachers
        that see nothing are flat, and flat maps agree. The target's entropy is taken off a cross-entropy.

        Args:
            one, other: predictions.
            size: (height, width) of the heat maps.
        """
        first, second = (heat_maps(labels.points, size, self.sigma, self.floor) for labels in (one, other))
        if self.heatmap == "huber":
            pose = F.huber_loss(first, second, reduction="none", delta=self.delta)
        else:
            pose = bernoulli_divergence(first.clamp(LEAST, 1 - LEAST), second.clamp(LEAST, 1 - LEAST))
        mask = bernoulli_divergence(one.mask, other.mask)
        return self.pose_weight * pose.flatten(1).mean(1) + self.mask_weight * mask.flatten(1).mean(1)


def bernoulli_divergence(p: Tensor, q: Tensor) -> Tensor:
    """``(KL(p || q) + KL(q || p)) / 2`` of yes-or-no distributions, entry by entry."""
    p, q = p.clamp(1e-7, 1 - 1e-7), q.clamp(1e-7, 1 - 1e-7)
    return (p - q) * (p.logit() - q.logit()) / 2


@torch.no_grad()
def confidence(disagreement: Tensor, rate: Tensor | float) -> Tensor:
    """``w = 2 (1 - sigmoid(rate d))``: 1 where teachers agree, 0.5 at ``rate d = log 3``, towards 0 as they part.

    Examples:
        >>> confidence(torch.tensor([0.0, 1.0986123]), 1.0).tolist()
        [1.0, 0.5]
    """
    return 2 * torch.sigmoid(-rate * disagreement)
