"""Figures of image codecs: the Bjøntegaard rate difference, and structural similarity at several scales."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tutelage.distillation.tasks.metrics import ssim_parts
from tutelage.errors import InputError

MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


def bd_rate(anchor: Sequence[tuple[float, float]], test: Sequence[tuple[float, float]]) -> float:
    """How many per cent more bits ``test`` takes than ``anchor`` at equal PSNR (Bjøntegaard, VCEG-M33, 2001).

    Both are points (rate, PSNR in dB), rate in any one unit. The logarithm of the rate is interpolated over PSNR by
    monotone cubic pieces (PCHIP; Fritsch, Carlson, 1980) and averaged over the range that both curves cover.

    >>> points = [(0.1, 28.0), (0.2, 30.0), (0.4, 33.0), (0.8, 36.0)]
    >>> round(bd_rate(points, [(1.1 * rate, quality) for rate, quality in points]), 6)
    10.0

    Raises:
        InputError: fewer than 2 points, rates that are not above 0, two points of one PSNR, or no common range.
    """
    curves = []
    for name, points in (("anchor", anchor), ("test", test)):
        table = np.array(sorted((quality, rate) for rate, quality in points), dtype=np.float64).reshape(-1, 2)
        if len(table) < 2 or not np.isfinite(table).all() or (table[:, 1] <= 0).any() or (np.diff(table[:, 0]) <= 0).any():
            raise InputError("no rate-distortion curve", where=name, remedy="2 or more points: rates above 0, each PSNR once")
        curves.append((table[:, 0], np.log(table[:, 1])))
    low, high = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
    if low >= high:
        raise InputError("the curves share no range of PSNR", where="bd_rate", remedy="measure at nearer qualities")
    means = [pchip_integral(x, y, low, high) / (high - low) for x, y in curves]
    return float(100 * np.expm1(means[1] - means[0]))


def pchip_integral(x: np.ndarray, y: np.ndarray, low: float, high: float) -> float:
    """The integral from ``low`` to ``high`` of the monotone cubic interpolation of points x (rising), y; n >= 2."""
    steps, slopes = np.diff(x), np.diff(y) / np.diff(x)
    tangents = np.empty_like(y)
    if len(x) == 2:
        tangents[:] = slopes[0]
    else:
        before, after = slopes[:-1], slopes[1:]
        w1, w2 = 2 * steps[1:] + steps[:-1], steps[1:] + 2 * steps[:-1]
        same = before * after > 0
        harmonic = (w1 + w2) / (w1 / np.where(same, before, 1) + w2 / np.where(same, after, 1))
        tangents[1:-1] = np.where(same, harmonic, 0.0)
        tangents[0] = _end_tangent(steps[0], steps[1], slopes[0], slopes[1])
        tangents[-1] = _end_tangent(steps[-1], steps[-2], slopes[-1], slopes[-2])
    total = 0.0
    for i, step in enumerate(steps):
        a, b = (min(max(edge, x[i]), x[i + 1]) - x[i] for edge in (low, high))
        curve = (tangents[i] + tangents[i + 1] - 2 * slopes[i]) / step**2
        bend = (3 * slopes[i] - 2 * tangents[i] - tangents[i + 1]) / step
        total += sum(c * (b**k - a**k) / k for k, c in enumerate((y[i], tangents[i], bend, curve), 1))
    return float(total)


def _end_tangent(step: float, following: float, slope: float, next_slope: float) -> float:
    """Three-point tangent at an end, held to the shape of the data (as in PCHIM of SLATEC)."""
    tangent = ((2 * step + following) * slope - step * next_slope) / (step + following)
    if tangent * slope <= 0:
        return 0.0
    return 3 * slope if slope * next_slope <= 0 and abs(tangent) > 3 * abs(slope) else tangent


def ms_ssim(images: Tensor, targets: Tensor, data_range: float = 1.0) -> Tensor:
    """Multi-scale structural similarity (Wang, Simoncelli, Bovik, 2003) of images [B, C, H, W] -> [B].

    Five scales, each half the one before (means of 2 x 2); ``prod_j cs_j^w_j`` with the full similarity at the coarsest;
    negative parts count 0.

    Raises:
        InputError: sides below 161, where the window of 11 does not fit the coarsest scale.
    """
    if min(images.shape[2:]) <= 160:
        raise InputError(f"images of {list(images.shape[2:])}", where="ms_ssim", remedy="sides of 161 or more, or use ssim")
    product = torch.ones(len(images), dtype=torch.float64, device=images.device)
    for scale, weight in enumerate(MS_SSIM_WEIGHTS):
        similarity, contrast = ssim_parts(images, targets, data_range)
        last = scale == len(MS_SSIM_WEIGHTS) - 1
        product = product * (similarity if last else contrast).clamp_min(0) ** weight
        images, targets = F.avg_pool2d(images, 2), F.avg_pool2d(targets, 2)
    return product
