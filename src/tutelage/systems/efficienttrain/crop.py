"""Smaller images: a crop of the spectrum, and Lanczos resampling."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor
from torch.nn import functional as F

from tutelage.errors import InputError


def check_square(images: Tensor, size: int) -> int:
    """The side of ``images`` [B, C, H, H], which ``size`` can crop.

    Raises:
        InputError: no square images of floats, an odd size, or one above H.
    """
    if not isinstance(images, Tensor) or images.ndim != 4 or not images.is_floating_point():
        raise InputError("a curriculum of sizes needs images, float [B, C, H, H]", where="inputs", remedy="give image tensors")
    height, width = images.shape[2:]
    if height != width:
        raise InputError(f"images of {height}x{width} are not square", where="inputs", remedy="bring them to one square size")
    if size != height and (size % 2 or not 2 <= size < height):
        remedy = f"an even size from 2 to {height}"
        raise InputError(f"images of {height}x{height} have no crop of {size}", where="sizes", remedy=remedy)
    return height


def freq_crop(images: Tensor, size: int) -> Tensor:
    """The ``size`` x ``size`` block of lowest frequencies as an image: [B, C, H, H] -> [B, C, size, size].

    ``X = FFT2(x)``; the first and last ``size / 2`` rows and columns; times ``(size / H)^2``; inverse FFT, real part. It is
    an exact low-pass and resampling: a cosine below ``size / 2`` cycles is the same cosine on the smaller grid, one above
    is gone. Of exactly ``size / 2`` cycles, one of two conjugate bins is kept, so its amplitude is about half. At
    ``size == H`` the images themselves.

    Raises:
        InputError: no square images of floats, an odd size, or one above H.
    """
    side = check_square(images, size)
    if size == side:
        return images
    values = images if images.dtype == torch.float64 else images.float()  # half precision has no FFT of every size
    half = size // 2
    kept = torch.cat([torch.arange(half), torch.arange(side - half, side)]).to(images.device)
    spectrum = torch.fft.fft2(values).index_select(2, kept).index_select(3, kept)
    return (torch.fft.ifft2(spectrum).real * (size / side) ** 2).to(images.dtype)


def lanczos_resize(images: Tensor, size: int, lobes: int = 3) -> Tensor:
    """Lanczos resampling, [B, C, H, H] -> [B, C, size, size]: what EfficientTrain++ puts in the crop's place.

    The window is ``lobes`` pixels of the smaller image wide; weights add up to 1, cut at the border.

    Raises:
        InputError: as :func:`freq_crop`.
    """
    side = check_square(images, size)
    if size == side:
        return images
    weights = _lanczos(side, size, lobes).to(images)
    return F.linear(F.linear(images, weights).transpose(2, 3), weights).transpose(2, 3)


@functools.lru_cache(maxsize=32)
def _lanczos(side: int, size: int, lobes: int) -> Tensor:
    """The matrix [size, side]."""
    scale = side / size
    centres = (torch.arange(size, dtype=torch.float64) + 0.5) * scale
    offsets = (torch.arange(side, dtype=torch.float64)[None] + 0.5 - centres[:, None]) / scale
    weights = torch.sinc(offsets) * torch.sinc(offsets / lobes) * (offsets.abs() < lobes)
    return weights / weights.sum(1, keepdim=True)


def resize_table(table: Tensor, size: int, prefix: int = 0) -> Tensor:
    """A position table [N, D] or [1, N, D] for ``size`` x ``size`` patches, bilinear; its first ``prefix`` rows stay.

    Raises:
        InputError: the rows after the prefix are no square grid.
    """
    rows = table if table.ndim == 2 else table[0]
    first, grid = rows[:prefix], rows[prefix:]
    old = math.isqrt(len(grid))
    if table.ndim not in (2, 3) or old * old != len(grid):
        raise InputError(
            f"a table of {list(table.shape)} is no square grid after {prefix} rows", where="prefix", remedy="count its tokens"
        )
    if old == size:
        return table
    cells = grid.transpose(0, 1).reshape(1, -1, old, old)
    grid = F.interpolate(cells, (size, size), mode="bilinear", align_corners=False)[0].flatten(1).transpose(0, 1)
    found = torch.cat([first, grid])
    return found if table.ndim == 2 else found[None]
