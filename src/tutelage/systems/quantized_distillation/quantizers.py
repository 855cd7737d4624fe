"""Bucketed quantisers: values become one of a few points, scaled by the minimum and the range of their bucket."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

Scaling = Literal["linear", "absmax", "absnorm"]
_TINY = 1e-10  # ranges and norms below this count as 1


def bucketed(tensor: Tensor, bucket: int) -> Tensor:
    """``tensor`` flat, in rows of ``bucket`` values, the last row filled with the last value: [M, bucket].

    A tensor shorter than a bucket is one row of its own length.
    """
    flat = tensor.reshape(-1)
    if flat.numel() <= bucket:
        return flat[None]
    missing = -flat.numel() % bucket
    return torch.cat([flat, flat[-1:].expand(missing)]).view(-1, bucket) if missing else flat.view(-1, bucket)


def unbucketed(rows: Tensor, like: Tensor) -> Tensor:
    """Rows of :func:`bucketed` back in the shape of ``like``, the filling left out."""
    return rows.reshape(-1)[: like.numel()].view_as(like)


def extent(rows: Tensor) -> tuple[Tensor, Tensor]:
    """(alpha, beta) of each bucket, [M, 1] both: its range (1 where it is below 1e-10) and its minimum."""
    beta = _picked(rows, rows.argmin(1, keepdim=True))
    alpha = _picked(rows, rows.argmax(1, keepdim=True)) - beta
    return torch.where(alpha < _TINY, torch.ones_like(alpha), alpha), beta


def _picked(rows: Tensor, index: Tensor) -> Tensor:
    return rows.gather(1, index)  # one element gets the gradient; amax would share it among equals


def uniform(values: Tensor, levels: int, stochastic: bool = False) -> Tensor:
    """Values in [0, 1] to the nearest of ``levels`` points ``j / (levels - 1)``, or up or down at random, unbiased."""
    scaled = values * (levels - 1)
    if not stochastic:
        return scaled.round() / (levels - 1)
    floor = scaled.floor()
    return (floor + (torch.rand_like(scaled) < scaled - floor)) / (levels - 1)


def nearest(values: Tensor, points: Tensor) -> Tensor:
    """The index of the point nearest to each value, a tie going to the upper one; ``points`` [s] in rising order."""
    middles = (points[1:] + points[:-1]) / 2
    return torch.searchsorted(middles.contiguous(), values.contiguous(), right=True)


def quantize(
    tensor: Tensor,
    bits: int,
    bucket: int = 256,
    scaling: Scaling = "linear",
    stochastic: bool = False,
    points: Tensor | None = None,
) -> Tensor:
    """``tensor`` with each bucket on 2^bits points; 32 bits and more pass it through.

    ``linear``: ``alpha q((v - min) / alpha) + min``, alpha the bucket's range. ``absmax``, ``absnorm``:
    ``sign(v) n q(|v| / n)``, n the bucket's largest magnitude or its 2-norm, q with 2^(bits-1) points. ``points``: a
    non-uniform q for ``linear``, [s] in [0, 1] in rising order.
    """
    if bits >= 32 and points is None:
        return tensor
    rows = bucketed(tensor, bucket)
    if scaling == "linear":
        alpha, beta = extent(rows)
        values = (rows - beta) / alpha
        q = uniform(values, 2**bits, stochastic) if points is None else points[nearest(values, points)]
        return unbucketed(alpha * q + beta, tensor)
    if scaling == "absmax":
        size = rows.abs().amax(1, keepdim=True)
    else:
        real = unbucketed(torch.arange(rows.numel(), device=rows.device).view_as(rows), tensor).max()  # filling: no norm
        inside = torch.arange(rows.numel(), device=rows.device).view_as(rows) <= real
        size = (rows * inside).norm(dim=1, keepdim=True)
    size = torch.where(size < _TINY, torch.ones_like(size), size)
    magnitude = uniform(rows.abs() / size, max(2, 2 ** (bits - 1)), stochastic)
    return unbucketed(rows.sign() * size * magnitude, tensor)


class _StraightThrough(torch.autograd.Function):
    """Forward: the quantised weights; backward: their gradient as that of the full ones."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, quantized: Tensor, limit: float) -> Tensor:
        ctx.limit = limit
        if limit:
            ctx.save_for_backward(weight)
        return quantized.view_as(quantized)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        if ctx.limit:
            (weight,) = ctx.saved_tensors
            gradient = gradient.masked_fill(weight.abs() > ctx.limit, 0.0)
        return gradient, None, None


def straight_through(weight: Tensor, quantized: Tensor, limit: float = 0.0) -> Tensor:
    """``quantized``, whose gradient goes to ``weight`` unchanged; 0 where ``|weight| > limit`` (0: no limit)."""
    return _StraightThrough.apply(weight, quantized.detach(), limit)  # type: ignore[no-any-return]


def quantize_with_scale_gradient(weight: Tensor, bits: int, bucket: int) -> Tensor:
    """Uniform ``linear`` quantisation, differentiated through the bucket's minimum and range, the rounding straight.

    Beside the straight-through gradient g, of each bucket ``S = sum g_i (q_i - v_i)`` is added to the gradient of its
    maximum and taken from that of its minimum (v the scaled values, q the points they became).
    """
    rows = bucketed(weight, bucket)
    alpha, beta = extent(rows)
    values = (rows - beta) / alpha
    rounded = values + (uniform(values, 2**bits) - values).detach()
    return unbucketed(alpha * rounded + beta, weight)


def quantile_points(tensor: Tensor, levels: int, bucket: int) -> Tensor:
    """Points [levels] at equally spaced quantiles, 0 to 100 %, of the tensor's scaled values; filling left out."""
    rows = bucketed(tensor.detach(), bucket)
    alpha, beta = extent(rows)
    values = unbucketed((rows - beta) / alpha, tensor).reshape(-1)
    share = torch.linspace(0, 1, levels, dtype=values.dtype, device=values.device)
    ranked = values.sort().values  # torch.quantile refuses more than 16 million values
    place = share * (len(ranked) - 1)
    low = place.floor().long()
    high = (low + 1).clamp_max(len(ranked) - 1)
    return torch.lerp(ranked[low], ranked[high], place - low)


def redistribute(counts: Sequence[int], norms: Sequence[float], kept: Sequence[int] | None = None) -> list[int]:
    """Points (or bits) of each tensor after what it does not keep was dealt anew by the gradients' norms; the total stays.

    Each keeps ``kept``, by default ``floor(half)``, and gets ``round(share of the rest)``, halves to even; a surplus is
    taken from the largest count (the first of equals), a lack given to the smallest.
    """
    kept = [count // 2 for count in counts] if kept is None else kept
    rest, total = sum(counts) - sum(kept), sum(norms)
    shares = [norm / total if total > 0 else 1 / len(norms) for norm in norms]
    dealt = [keep + round(rest * share) for keep, share in zip(kept, shares)]
    difference = sum(counts) - sum(dealt)
    if difference:
        goal = max(dealt) if difference < 0 else min(dealt)
        dealt[dealt.index(goal)] += difference
    return dealt
