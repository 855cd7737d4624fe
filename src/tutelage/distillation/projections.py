"""Projections: a student's features in a teacher's shape, built from the shapes that were observed."""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.errors import InputError


class Projection(nn.Module):
    """Maps features like ``student`` to the shape of ``teacher``; both are examples, only their shapes count.

    Kinds: vectors [B, C], tokens [B, N, C], maps [B, C, H, W]. Channels go through one linear layer (a 1x1 convolution
    on maps); positions are resampled: maps and square token grids bilinearly (averaged where they shrink), other token
    rows linearly. A map meets tokens as the row-major list of its cells. Vectors meet only vectors. ``prefix`` leading
    tokens (class tokens) of either side are left out of the resampling: those of the teacher are ignored, the output
    has none. ``bias`` as in ``nn.Linear``. Parameters: torch's default initialisation.

    Raises:
        InputError: shapes that cannot meet; the message names them.
    """

    def __init__(self, student: Tensor, teacher: Tensor, prefix: tuple[int, int] = (0, 0), bias: bool = True):
        super().__init__()
        if (student.ndim == 2) != (teacher.ndim == 2) or not {student.ndim, teacher.ndim} <= {2, 3, 4}:
            raise InputError(
                f"cannot project {tuple(student.shape)} to {tuple(teacher.shape)}",
                where="projection",
                remedy="tap features of one kind: vectors [B, C], or tokens [B, N, C] and maps [B, C, H, W]",
            )
        self.prefix = prefix[0]
        self.to_map = teacher.ndim == 4
        self.inputs = student.shape[1] if student.ndim in (2, 4) else student.shape[2]
        outputs = teacher.shape[1] if teacher.ndim in (2, 4) else teacher.shape[2]
        self.channels = nn.Linear(self.inputs, outputs, bias)
        self.positions = _positions(teacher, prefix[1]) if teacher.ndim > 2 else None

    def forward(self, features: Tensor) -> Tensor:
        """[B, ...] like the student's example -> [B, ...] like the teacher's, without its prefix tokens."""
        if self.positions is None:
            return self.channels(features)
        if features.ndim == 4:
            tokens, grid = features.flatten(2).transpose(1, 2), tuple(features.shape[2:])
        else:
            tokens = features[:, self.prefix :]
            grid = _grid(tokens.shape[1])
        tokens = resample(self.channels(tokens), grid, self.positions)
        return tokens.transpose(1, 2).unflatten(2, self.positions) if self.to_map else tokens


def _positions(teacher: Tensor, prefix: int) -> tuple[int, ...]:
    return tuple(teacher.shape[2:]) if teacher.ndim == 4 else _grid(teacher.shape[1] - prefix)


def _grid(count: int) -> tuple[int, ...]:
    """(h, w) of a square number of tokens, else (count,)."""
    side = math.isqrt(count)
    return (side, side) if side * side == count else (count,)


def resample(tokens: Tensor, grid: tuple[int, ...], size: tuple[int, ...]) -> Tensor:
    """Tokens [B, N, C] laid out as ``grid`` -> [B, M, C] laid out as ``size``; grids are (h, w) or (n,)."""
    if grid == size:
        return tokens
    if len(grid) != len(size):  # a square grid against a plain row: both as rows
        grid, size = (math.prod(grid),), (math.prod(size),)
    cells = tokens.transpose(1, 2).unflatten(2, grid)
    if all(new <= old for new, old in zip(size, grid, strict=True)):
        if len(grid) == 2:
            return F.adaptive_avg_pool2d(cells, (size[0], size[1])).flatten(2).transpose(1, 2)
        return F.adaptive_avg_pool1d(cells, size[0]).transpose(1, 2)
    mode = "bilinear" if len(grid) == 2 else "linear"
    return F.interpolate(cells, size, mode=mode, align_corners=False).flatten(2).transpose(1, 2)
