"""Positions of tokens: fixed sine tables, learned tables of another size, rotary positions, embeddings of time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from tutelage.errors import InputError


def sinusoidal_embedding(values: Tensor, dim: int, period: float = 10_000.0) -> Tensor:
    """``[sin(v w_j) | cos(v w_j)]`` with ``w_j = period^(-j / (dim / 2))``: values [...] -> [..., dim], ``dim`` even.

    Raises:
        InputError: an odd ``dim``.
    """
    if dim % 2:
        raise InputError(f"an embedding of sines and cosines has an even width, this is {dim}", where="dim")
    frequencies = period ** (-torch.arange(dim // 2, dtype=torch.float32, device=values.device) / (dim // 2))
    angles = values.float()[..., None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], -1)


def sincos_positions(grid: Sequence[int], dim: int) -> Tensor:
    """The fixed table of a grid with any number of axes: [prod(grid), dim], raster order, the first axis outermost.

    Each of the n axes gets ``e = 2 ceil(dim / 2n)`` features, :func:`sinusoidal_embedding` of its coordinate. The axes
    are joined in order and cut to ``dim``. With two axes this is the table of MAE (He et al., 2022), height first.
    """
    width = 2 * math.ceil(dim / (2 * len(grid)))
    axes = torch.meshgrid(*(torch.arange(side) for side in grid), indexing="ij")
    return torch.cat([sinusoidal_embedding(axis.flatten(), width) for axis in axes], -1)[:, :dim]


def resize_positions(table: Tensor, old: Sequence[int], new: Sequence[int]) -> Tensor:
    """A table [prod(old), D] of one grid for another grid: [prod(new), D]; at equal grids the table itself.

    Two axes are interpolated bicubically, as is usual for vision transformers; one or three axes linearly.

    Raises:
        InputError: grids of different numbers of axes, or a table of another length.
    """
    old, new = tuple(old), tuple(new)
    if len(old) != len(new) or len(table) != math.prod(old):
        raise InputError(
            f"a table of {len(table)} positions for the grid {old} cannot serve the grid {new}",
            where="positions",
            remedy="give inputs with as many axes as the network was made for",
        )
    if old == new:
        return table
    mode = {1: "linear", 2: "bicubic", 3: "trilinear"}[len(old)]
    cells = table.transpose(0, 1).unflatten(1, old)[None]
    return F.interpolate(cells, new, mode=mode, align_corners=False)[0].flatten(1).transpose(0, 1)


def rotary_angles(positions: Tensor, dim: int, period: float = 10_000.0) -> tuple[Tensor, Tensor]:
    """(cos, sin) [..., dim] of rotary positions (Su et al., 2021) for heads of ``dim`` numbers; ``positions`` [...]."""
    frequencies = period ** (-torch.arange(0, dim, 2, dtype=torch.float32, device=positions.device) / dim)
    angles = positions.float()[..., None] * frequencies
    angles = torch.cat([angles, angles], -1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """``x`` [B, heads, N, d] turned by the angles [B, N, d]: inner products then depend on distances alone."""
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    first, second = x.chunk(2, -1)
    return x * cos[:, None] + torch.cat([-second, first], -1) * sin[:, None]
