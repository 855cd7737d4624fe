"""From image regions to one batch of square network inputs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tutelage.programs.values import Image

GREY = 0.5


def square_batch(images: Sequence[Image], size: int, grey: float = GREY) -> Tensor:
    """Each region letterboxed into a square: float32 [B, 3, size, size] in 0..1, the border ``grey``.

    Pixels outside a region are never read, whatever its picture holds there.
    """
    first = images[0]
    if all(image.region == (0, 0, size, size) and image.root.shape == first.root.shape for image in images):
        pixels = torch.from_numpy(np.stack([image.bytes for image in images])).float().div_(255)
        return pixels.contiguous(memory_format=torch.channels_last)
    alike: dict[tuple[int, ...] | None, list[int]] = {}
    for row, image in enumerate(images):  # an image's pixels must not depend on its neighbours'
        alike.setdefault(image.root.shape if _slight_resize(image, size) else None, []).append(row)
    if [*alike] == [first.root.shape]:
        return _sampled(images, size, grey)
    out = torch.empty((len(images), 3, size, size), memory_format=torch.channels_last)
    for shape, rows in alike.items():
        group = [images[row] for row in rows]
        out[rows] = _sampled(group, size, grey) if shape else torch.stack([_resized(image, size, grey) for image in group])
    return out


def as_bytes(images: Sequence[Image], size: int) -> Tensor:
    """As :func:`square_batch`, rounded to uint8: a quarter of the memory, for exercises that are read many times."""
    out = torch.empty((len(images), 3, size, size), dtype=torch.uint8, memory_format=torch.channels_last)
    for i in range(0, len(images), 512):
        out[i : i + 512] = square_batch(images[i : i + 512], size).mul_(255).round_()
    return out


def _slight_resize(image: Image, size: int) -> bool:
    """Bilinear sampling is good enough while nothing shrinks by more than two."""
    return max(image.width, image.height) <= 2 * size


def _sampled(images: Sequence[Image], size: int, grey: float) -> Tensor:
    """One bilinear sampling for the whole batch; pictures that several regions share are stacked once."""
    slots: dict[str, int] = {}
    roots: list[np.ndarray] = []
    rows: list[int] = []
    for image in images:
        slot = slots.setdefault(image.root_key, len(roots))
        if slot == len(roots):
            roots.append(image.root)
        rows.append(slot)
    pixels = torch.from_numpy(np.stack(roots)).float().div_(255)
    pixels = pixels[rows] if len(roots) > 1 else pixels.expand(len(images), -1, -1, -1)
    height, width = roots[0].shape[1:]
    region = torch.tensor([image.region for image in images], dtype=torch.float32)
    x1, y1, x2, y2 = region.unbind(1)
    side = torch.maximum(x2 - x1, y2 - y1)
    steps = (torch.arange(size, dtype=torch.float32) + 0.5) / size - 0.5
    xs = ((x1 + x2) / 2)[:, None] + side[:, None] * steps
    ys = ((y1 + y2) / 2)[:, None] + side[:, None] * steps
    inside_x = (xs >= x1[:, None]) & (xs <= x2[:, None])
    inside_y = (ys >= y1[:, None]) & (ys <= y2[:, None])
    # half a pixel inside the region's edge, so that interpolation never mixes in a neighbour from outside
    xs = torch.minimum(torch.maximum(xs, x1[:, None] + 0.5), x2[:, None] - 0.5)
    ys = torch.minimum(torch.maximum(ys, y1[:, None] + 0.5), y2[:, None] - 0.5)
    grid = torch.stack(
        [
            (xs / width * 2 - 1)[:, None, :].expand(-1, size, -1),
            (ys / height * 2 - 1)[:, :, None].expand(-1, -1, size),
        ],
        dim=-1,
    )
    out = F.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)
    inside = inside_y[:, None, :, None] & inside_x[:, None, None, :]
    return torch.where(inside, out, grey).contiguous(memory_format=torch.channels_last)


def _resized(image: Image, size: int, grey: float) -> Tensor:
    """One region by antialiased resizing, for pictures much larger than the network's input."""
    scale = size / max(image.width, image.height)
    width, height = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    pixels = torch.from_numpy(image.pixels)
    small = F.interpolate(pixels[None], (height, width), mode="bilinear", antialias=True, align_corners=False)[0]
    out = torch.full((3, size, size), grey)
    top, left = (size - height) // 2, (size - width) // 2
    out[:, top : top + height, left : left + width] = small
    return out


def image_size_features(images: Sequence[Image]) -> Tensor:
    """Each region's width and height as shares of its picture: float32 [B, 2]; what is lost when crops are resized."""
    return torch.tensor(
        [(image.width / image.root.shape[2], image.height / image.root.shape[1]) for image in images],
        dtype=torch.float32,
    )
