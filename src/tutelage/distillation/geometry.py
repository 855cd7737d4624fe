"""Where a view lies in its image: one description that moves images, maps, boxes and points alike.

Positions are shares of the image's width and height, so that one :class:`Geometry` cuts two sizes of one picture in the
same place. Whatever falls on whole pixels is copied, not interpolated: a flip twice is the image itself, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from tutelage.errors import InputError


@dataclass(frozen=True)
class Geometry:
    """A part of each image of a batch, mirrored left for right where ``flip`` says so, then turned.

    Attributes:
        box: [B, 4] left, top, right and bottom of the part, in shares of the old width and height. Beyond 0..1 the image
            is continued by its mirror image.
        flip: [B] bool.
        turns: [B] int64, quarter turns counter-clockwise. Odd ones need square results.

    Examples:
        >>> left_half = Geometry(torch.tensor([[0.0, 0.0, 0.5, 1.0]]), torch.tensor([True]), torch.tensor([0]))
        >>> left_half.image(torch.tensor([[[[1.0, 2.0, 3.0, 4.0]]]]), (1, 2)).tolist()
        [[[[2.0, 1.0]]]]
        >>> left_half.points(torch.tensor([[[0.25, 0.5, 1.0], [0.75, 0.5, 1.0]]])).tolist()
        [[[0.5, 0.5, 1.0], [-0.5, 0.5, 0.0]]]
    """

    box: Tensor
    flip: Tensor
    turns: Tensor

    @classmethod
    def whole(cls, count: int) -> Geometry:
        """``count`` images as they are."""
        box = torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=torch.float64).repeat(count, 1)
        return cls(box, torch.zeros(count, dtype=torch.bool), torch.zeros(count, dtype=torch.int64))

    def image(self, images: Tensor, size: tuple[int, int], mode: Literal["bilinear", "nearest"] = "bilinear") -> Tensor:
        """The parts of images [B, C, H, W], or of maps [B, H, W], scaled to ``size`` (height, width).

        Numbers that are not real (class ids, bool) are never mixed: they take the nearest pixel.

        Raises:
            InputError: an odd turn of a part that is not square.
        """
        if images.ndim == 3:
            return self.image(images[:, None], size, mode)[:, 0]
        if size[0] != size[1] and bool((self.turns % 2).any()):
            raise InputError(
                f"a quarter turn of {size[0]} x {size[1]} pixels does not fit a batch",
                where="turn",
                remedy="take square images, or leave turns out",
            )
        box = self.box.double()
        rows = _positions(box[:, 1], box[:, 3], images.shape[-2], size[0])
        columns = _positions(box[:, 0], box[:, 2], images.shape[-1], size[1])
        columns = torch.where(self.flip[:, None], columns.flip(1), columns)
        mode = mode if images.is_floating_point() else "nearest"
        return self._turned(_resampled(_resampled(images, rows, 2, mode), columns, 3, mode))

    def _turned(self, images: Tensor) -> Tensor:
        quarter = self.turns % 4
        if not bool(quarter.any()):
            return images
        images = images.clone()
        for count in (1, 2, 3):
            which = quarter == count
            images[which] = torch.rot90(images[which], count, (-2, -1))
        return images

    def points(self, points: Tensor) -> Tensor:
        """Where points [B, K, 2] (x, y), or [B, K, 3] with a third number that says whether they are seen, lie in the
        parts. A point outside is not seen: its third number becomes 0."""
        left, top, right, bottom = self.box.to(points.dtype)[:, None].unbind(-1)
        x, y = (points[..., 0] - left) / (right - left), (points[..., 1] - top) / (bottom - top)
        x = torch.where(self.flip[:, None], 1 - x, x)
        for count in (1, 2, 3):
            turn = (self.turns % 4 >= count)[:, None]
            x, y = torch.where(turn, y, x), torch.where(turn, 1 - x, y)
        if points.shape[-1] == 2:
            return torch.stack([x, y], -1)
        inside = (x >= 0) & (x <= 1) & (y >= 0) & (y <= 1)
        return torch.stack([x, y, points[..., 2] * inside], -1)

    def undo_points(self, points: Tensor) -> Tensor:
        """Where points [B, K, 2] of the parts lie in the images."""
        x, y = points[..., 0], points[..., 1]
        for count in (1, 2, 3):
            turn = (self.turns % 4 >= count)[:, None]
            x, y = torch.where(turn, 1 - y, x), torch.where(turn, x, y)
        x = torch.where(self.flip[:, None], 1 - x, x)
        left, top, right, bottom = self.box.to(points.dtype)[:, None].unbind(-1)
        return torch.stack([left + x * (right - left), top + y * (bottom - top)], -1)

    def boxes(self, boxes: Tensor, labels: Tensor, least: float = 0.3) -> tuple[Tensor, Tensor]:
        """What is seen of boxes in the parts, cut at their borders.

        Args:
            boxes: [B, N, 4] centre and size in 0..1, as the task ``detection`` has them.
            labels: [B, N]; below 0: padding.
            least: a box of which a smaller share of the area is seen is dropped: label -100, box 0 (our choice).

        Returns:
            boxes [B, N, 4] and labels [B, N].
        """
        centre, half = boxes[..., :2], boxes[..., 2:] / 2
        first, second = self.points(centre - half), self.points(centre + half)
        low, high = torch.minimum(first, second), torch.maximum(first, second)
        area = (high - low).prod(-1)
        low, high = low.clamp(0, 1), high.clamp(0, 1)
        seen = ((high - low).prod(-1) >= least * area - 1e-9) & ((high - low) > 1e-6).all(-1) & (labels >= 0)
        moved = torch.cat([(low + high) / 2, high - low], -1)
        return torch.where(seen[..., None], moved, 0.0), torch.where(seen, labels, -100)

    def part(self, box: Tensor) -> Geometry:
        """The part ``box`` [B, 4] of the part that this is, before it is mirrored and turned."""
        left, top, right, bottom = self.box.unbind(1)
        wide, high = right - left, bottom - top
        inner = box.to(self.box.dtype)
        x, y = left[:, None] + inner[:, 0::2] * wide[:, None], top[:, None] + inner[:, 1::2] * high[:, None]
        return Geometry(torch.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], 1), self.flip, self.turns)


def move_labels(labels: Any, kind: str, geometry: Geometry, scale: tuple[float, float]) -> Any:
    """Labels where ``geometry`` puts them.

    Args:
        labels: as ``kind`` has them.
        kind: ``map`` [B, H, W], ``image`` [B, C, H, W], ``points`` [B, K, 3], or ``boxes``
            (``{"labels": [B, N], "boxes": [B, N, 4]}``).
        geometry: of the batch.
        scale: new over old height and width, by which maps and images change their size.

    Raises:
        InputError: labels of another kind, or a size that is no whole number of pixels.
    """
    wanted = {"map": "[B, H, W]", "image": "[B, C, H, W]", "points": "[B, K, 3]", "boxes": "{labels: [B, N], boxes: [B, N, 4]}"}
    if kind == "boxes":
        if not isinstance(labels, Mapping) or not {"labels", "boxes"} <= set(labels):
            raise InputError(f"no boxes {wanted[kind]}", where="labels", remedy="Augmentation(labels=…) names what they are")
        boxes, ids = geometry.boxes(labels["boxes"], labels["labels"])
        return {**labels, "boxes": boxes, "labels": ids}
    if not isinstance(labels, Tensor) or labels.ndim != (4 if kind == "image" else 3):
        found = list(labels.shape) if isinstance(labels, Tensor) else type(labels).__name__
        raise InputError(
            f"labels {found} are no {kind} {wanted[kind]}", where="labels", remedy="Augmentation(labels=…) names what they are"
        )
    if kind == "points":
        return geometry.points(labels)
    size = [side * share for side, share in zip(labels.shape[-2:], scale, strict=True)]
    if any(abs(side - round(side)) > 1e-6 for side in size):
        raise InputError(
            f"a crop would leave {size[0]:g} x {size[1]:g} pixels of the {kind}",
            where="views.cut",
            remedy="choose a crop that is a whole number of pixels in both sizes",
        )
    return geometry.image(labels, (round(size[0]), round(size[1])), "nearest" if kind == "map" else "bilinear")


def random_parts(u: Tensor, area: tuple[float, float]) -> Tensor:
    """Parts [B, 4] of an ``area`` (share, least to most), aspect in 3:4 to 4:3 relative to the image's; u: [B, 4] in 0..1
    (random resized crops: Szegedy et al., "Going deeper with convolutions", 2015)."""
    u = u.double()
    share = area[0] + (area[1] - area[0]) * u[:, 0]
    aspect = torch.exp((2 * u[:, 1] - 1) * math.log(4 / 3))
    wide, high = (share * aspect).sqrt().clamp_max(1.0), (share / aspect).sqrt().clamp_max(1.0)
    left, top = u[:, 2] * (1 - wide), u[:, 3] * (1 - high)
    return torch.stack([left, top, left + wide, top + high], 1)


def random_windows(u: Tensor, image: tuple[int, int], window: tuple[int, int], pad: int = 0) -> Tensor:
    """Parts [B, 4] of ``window`` (height, width) pixels of an image of ``image`` pixels that ``pad`` pixels surround, at a
    whole pixel; u: [B, 2] in 0..1, for rows and columns.

    Raises:
        InputError: the image is smaller than the window.
    """
    edges = []
    for axis in (0, 1):
        room = image[axis] + 2 * pad - window[axis]
        if room < 0:
            raise InputError(
                f"images of {image[0]} x {image[1]} pixels are smaller than a crop of {window[0]} x {window[1]}",
                where="crop",
                remedy="take a smaller crop, or enlarge the images first",
            )
        first = (u[:, axis].double() * (room + 1)).floor() - pad
        edges.append((first / image[axis], (first + window[axis]) / image[axis]))
    (top, bottom), (left, right) = edges
    return torch.stack([left, top, right, bottom], 1)


def _positions(first: Tensor, last: Tensor, length: int, count: int) -> Tensor:
    """The centres of ``count`` equal steps from ``first`` to ``last`` (shares), in pixels of an axis of ``length``: [B, count]."""
    steps = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return (first[:, None] + (last - first)[:, None] * steps) * length - 0.5


def _resampled(images: Tensor, positions: Tensor, axis: int, mode: str) -> Tensor:
    """``images`` [B, C, H, W] at ``positions`` [B, n] along ``axis``."""
    length, nearest = images.shape[axis], (positions + 0.5 + 1e-6).floor()
    if mode == "nearest" or bool(((positions - positions.round()).abs() < 1e-4).all()):
        return _taken(images, _mirrored(nearest, length), axis)
    low = positions.floor()
    share = (positions - low).to(images.dtype)
    share = share[:, None, :, None] if axis == 2 else share[:, None, None, :]
    before, after = (_taken(images, _mirrored(place, length), axis) for place in (low, low + 1))
    return before + (after - before) * share


def _mirrored(places: Tensor, length: int) -> Tensor:
    """Whole positions brought into 0..length-1 by mirroring at the outermost pixels, which do not come twice."""
    if length == 1:
        return torch.zeros_like(places, dtype=torch.int64)
    folded = places.long().remainder(2 * length - 2)
    return torch.minimum(folded, 2 * length - 2 - folded)


def _taken(images: Tensor, places: Tensor, axis: int) -> Tensor:
    if axis == 2:
        return images.gather(2, places[:, None, :, None].expand(-1, images.shape[1], -1, images.shape[3]))
    return images.gather(3, places[:, None, None, :].expand(-1, images.shape[1], images.shape[2], -1))
