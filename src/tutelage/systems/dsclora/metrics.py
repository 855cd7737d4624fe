"""PSNR and SSIM as papers on super-resolution report them: of the luma, without a border."""

from __future__ import annotations

import torch
from torch import Tensor

from tutelage.distillation.tasks.metrics import psnr, ssim
from tutelage.errors import InputError


def luma(images: Tensor) -> Tensor:
    """The luma of RGB images [B, 3, H, W] in 0..1, by ITU-R BT.601 with its offset: [B, 1, H, W], 16 / 255 to 235 / 255."""
    weights = torch.tensor([65.481, 128.553, 24.966], dtype=images.dtype, device=images.device)
    return ((images * weights.view(3, 1, 1)).sum(1, keepdim=True) + 16) / 255


def _cut(images: Tensor, targets: Tensor, border: int) -> tuple[Tensor, Tensor]:
    if images.shape != targets.shape or images.ndim != 4 or images.shape[1] != 3:
        message = f"images {list(images.shape)} and {list(targets.shape)}"
        raise InputError(message, where="images", remedy="two batches of one shape [B, 3, H, W]")
    if border < 0 or min(images.shape[2:]) <= 2 * border:
        raise InputError(f"a border of {border} in {list(images.shape[2:])}", where="border", remedy="usual: the scale")
    inner = slice(border, -border) if border else slice(None)
    return luma(images.clamp(0, 1))[..., inner, inner], luma(targets)[..., inner, inner]


def psnr_luma(images: Tensor, targets: Tensor, border: int) -> Tensor:
    """PSNR of the luma [B], dB, values cut to 0..1, ``border`` pixels (usually the scale) left out on every side.

    Raises:
        InputError: shapes that differ, or a border that leaves nothing.
    """
    return psnr(*_cut(images, targets, border))


def ssim_luma(images: Tensor, targets: Tensor, border: int) -> Tensor:
    """SSIM of the luma [B]; see :func:`psnr_luma`."""
    return ssim(*_cut(images, targets, border))
