"""One geometric change that moves an image, its mask and its keypoints alike: turn, shift, mirror."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Warp:
    """``u -> A u + b`` for each image of a batch, u from -1 to 1 along each side.

    Attributes:
        matrix: A [B, 2, 2], for (x, y).
        shift: b [B, 2].

    Examples:
        >>> mirror = Warp(torch.tensor([[[-1.0, 0.0], [0.0, 1.0]]]), torch.zeros(1, 2))
        >>> mirror.image(torch.tensor([[[[1.0, 2.0, 3.0]]]])).tolist()
        [[[[3.0, 2.0, 1.0]]]]
        >>> mirror.points(torch.tensor([[[0.25, 0.5, 1.0]]])).tolist()
        [[[0.75, 0.5, 1.0]]]
    """

    matrix: Tensor
    shift: Tensor

    @property
    def inverse(self) -> Warp:
        """What leads back."""
        back = torch.linalg.inv(self.matrix)
        return Warp(back, -(back @ self.shift[..., None])[..., 0])

    def image(self, images: Tensor) -> Tensor:
        """The images or maps [B, C, H, W] as they look afterwards (bilinear); what was outside is 0."""
        back = self.inverse
        theta = torch.cat([back.matrix, back.shift[..., None]], -1).to(images)
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)

    def points(self, points: Tensor) -> Tensor:
        """Where points [B, K, 2 or 3] lie afterwards: x and y in 0..1 of width and height; a third number stays."""
        moved = ((2 * points[..., :2] - 1) @ self.matrix.transpose(1, 2).to(points) + self.shift[:, None].to(points) + 1) / 2
        return torch.cat([moved, points[..., 2:]], -1)


def random_warps(
    count: int,
    size: tuple[int, int],
    rotation: float = 45.0,
    translation: float = 0.2,
    flip: float = 0.5,
    quarter_turns: bool = False,
    generator: torch.Generator | None = None,
) -> Warp:
    """Warps drawn uniformly.

    Args:
        count: B.
        size: (height, width) of the images: a turn keeps angles where sides differ.
        rotation: the largest angle in degrees, either way.
        translation: the largest shift, as a share of a side.
        flip: the probability of a mirror image, left for right.
        quarter_turns: turn by 0, 90, 180 or 270 degrees in place of ``rotation``.
        generator: to draw from; None: torch's global one.
    """
    u = torch.rand(count, 4, generator=generator)
    if quarter_turns:
        quarter = (4 * u[:, 0]).long().clamp_max(3)
        cos, sin = torch.tensor([1.0, 0.0, -1.0, 0.0])[quarter], torch.tensor([0.0, 1.0, 0.0, -1.0])[quarter]
    else:
        angle = (2 * u[:, 0] - 1) * math.radians(rotation)
        cos, sin = angle.cos(), angle.sin()
    mirror = torch.where(u[:, 1] < flip, -1.0, 1.0)
    aspect = size[0] / size[1]
    first, second = torch.stack([cos * mirror, -sin * aspect], 1), torch.stack([sin * mirror / aspect, cos], 1)
    return Warp(torch.stack([first, second], 1), (2 * u[:, 2:] - 1) * 2 * translation)
