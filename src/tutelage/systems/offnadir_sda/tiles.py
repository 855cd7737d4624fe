"""Tilted aerial images: how far a roof stands from its footprint, masks displaced that way, and drawn tiles."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tutelage.distillation.data import TensorData
from tutelage.errors import InputError


def roof_displacement(height: float, off_nadir: float, pixel_size: float) -> float:
    """How many pixels the roof of a building appears away from its footprint: ``height tan(off_nadir) / pixel_size``.

    Args:
        height: of the building, in metres.
        off_nadir: the angle between the view and the vertical, in degrees, from 0 up to 90.
        pixel_size: ground sampling distance, in metres.

    Examples:
        >>> round(roof_displacement(30, 25, 0.5), 1)
        28.0

    Raises:
        InputError: a negative height, an angle outside 0..90, or no pixel size.
    """
    if height < 0 or not 0 <= off_nadir < 90 or pixel_size <= 0:
        given = f"height {height:g}, angle {off_nadir:g}, pixel size {pixel_size:g}"
        raise InputError(given, where="roof_displacement", remedy="height from 0, angle in 0..90 degrees, pixel size above 0")
    return height * math.tan(math.radians(off_nadir)) / pixel_size


def displace_masks(masks: Tensor, offsets: Tensor) -> Tensor:
    """Each mask moved by whole pixels, 0 where nothing moves in: a clean set made noisy, to measure what that costs.

    A square of side a moved by d < a keeps IoU (a - d) / (a + d) and F1 (a - d) / a.

    Args:
        masks: [N, 1, H, W].
        offsets: [N, 2] whole numbers: down, and to the right.

    Raises:
        InputError: not one offset a mask.
    """
    if masks.ndim != 4 or offsets.shape != (len(masks), 2) or offsets.is_floating_point():
        found = f"masks {list(masks.shape)}, offsets {list(offsets.shape)} {offsets.dtype}"
        raise InputError(found, where="offsets", remedy="give masks [N, 1, H, W] and whole offsets [N, 2]")
    height, width = masks.shape[2:]
    moved = torch.zeros_like(masks)
    for mask, target, (down, right) in zip(masks, moved, offsets.tolist(), strict=True):
        if abs(down) < height and abs(right) < width:
            to_y, to_x = slice(max(down, 0), height + min(down, 0)), slice(max(right, 0), width + min(right, 0))
            from_y, from_x = slice(max(-down, 0), height - max(down, 0)), slice(max(-right, 0), width - max(right, 0))
            target[:, to_y, to_x] = mask[:, from_y, from_x]
    return moved


@dataclass(frozen=True)
class Tiles:
    """``images`` [N, 3, S, S]; ``roofs`` and ``footprints`` [N, 1, S, S] of 0 and 1; ``heights`` [N], classes from 0."""

    images: Tensor
    roofs: Tensor
    footprints: Tensor
    heights: Tensor

    @property
    def noisy(self) -> TensorData:
        """The images with the masks of the footprints, displaced from what is seen."""
        return TensorData(self.images, self.footprints)

    @property
    def clean(self) -> TensorData:
        """The images with the masks of the roofs."""
        return TensorData(self.images, self.roofs)


def tilted_tiles(rng: torch.Generator, count: int, size: int = 24, classes: int = 4, step: int = 2) -> Tiles:
    """Drawn tiles, seen from the side: two buildings each, whose roofs stand ``step`` times the height class to the right.

    A building is a square of 5 to 8 pixels, one in the upper and one in the lower half. Between footprint and roof its facade is
    seen, 0.45 times as bright. Ground and roofs have any colour, at least 0.25 apart (facade and ground: 0.15; means over
    channels). Noise 0.05. Tile i has the height class i modulo ``classes``.

    Raises:
        InputError: tiles too small for their tallest buildings.
    """
    widest, band = 8, size // 2
    if widest > band or widest + step * (classes - 1) > size or count < 1:
        least = max(2 * widest, widest + step * (classes - 1))
        raise InputError(f"{count} tiles of {size} pixels", where="tilted_tiles", remedy=f"at least one tile, of {least} pixels")
    images = torch.empty(count, 3, size, size)
    roofs, footprints = torch.zeros(count, 1, size, size), torch.zeros(count, 1, size, size)
    heights = torch.arange(count) % classes

    def colour() -> Tensor:
        return 0.15 + 0.7 * torch.rand(3, generator=rng)

    def whole(below: int) -> int:
        return int(torch.randint(below, (), generator=rng))

    for tile in range(count):
        ground, away = colour(), step * int(heights[tile])
        images[tile] = ground[:, None, None]
        for half in range(2):
            roof = colour()
            while (roof - ground).abs().mean() <= 0.25 or (0.45 * roof - ground).abs().mean() <= 0.15:
                roof = colour()
            side = 5 + whole(4)
            top, left = half * band + whole(band - side + 1), whole(size - side - away + 1)
            rows = slice(top, top + side)
            images[tile, :, rows, left : left + away + side] = 0.45 * roof[:, None, None]
            images[tile, :, rows, left + away : left + away + side] = roof[:, None, None]
            footprints[tile, 0, rows, left : left + side] = 1
            roofs[tile, 0, rows, left + away : left + away + side] = 1
    return Tiles(images + 0.05 * torch.randn(images.shape, generator=rng), roofs, footprints, heights)
