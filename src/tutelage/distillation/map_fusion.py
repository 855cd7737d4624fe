"""Maps of a student's stages, each fused with what the deeper stages hold, as the maps of a teacher: knowledge review.

"Distilling knowledge via knowledge review" (Chen, Liu, Zhao, Jia, 2021, arXiv 2104.09044), and what was built on it. These
modules are trained with the student and dropped at export.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def hierarchical_context(student: Tensor, teacher: Tensor) -> Tensor:
    """``1/tot [MSE(S, T) + sum over l in 4, 2, 1, l < H, of c_l MSE(pool_l S, pool_l T)]``, c = 1/2, 1/4, 1/8 in the
    order used, tot = 1 + sum c_l; pool_l averages to l x l. Maps [B, C, H, W] -> scalar."""
    teacher, total, weight = teacher.detach(), 1.0, 0.5
    loss = F.mse_loss(student, teacher)
    for level in (4, 2, 1):
        if level < student.shape[2]:
            pooled, goal = (F.adaptive_avg_pool2d(x, level) for x in (student, teacher))
            loss = loss + weight * F.mse_loss(pooled, goal)
            total, weight = total + weight, weight / 2
    return loss / total


class SafeBatchNorm2d(nn.BatchNorm2d):
    """Batch norm that takes its running statistics where a channel has a single value, which has none (our choice)."""

    def forward(self, x: Tensor) -> Tensor:
        """The normed map."""
        if self.training and x.shape[0] * x.shape[2] * x.shape[3] == 1:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(x)


class MapFusion(nn.Module):
    """One stage: ``x = BN(conv1x1(F))``; with a residual y from the deeper stage, brought to x's size by nearest
    neighbours, ``x <- w_x x + w_y y`` with the weights of :meth:`gate`; ``BN(conv3x3(x))`` is the map in the teacher's shape.

    Args:
        in_chans, out_chans: of the student's and of the teacher's map.
        middle: channels of what is passed on; the same for all stages.
        fuses: whether it takes a residual: the deepest stage does not.
        size: (height, width) to which x is brought for the teacher, by nearest neighbours; None: its own.
    """

    def __init__(self, in_chans: int, out_chans: int, middle: int, fuses: bool, size: tuple[int, int] | None = None):
        super().__init__()
        self.fuses, self.size = fuses, size
        self.entry = nn.Sequential(nn.Conv2d(in_chans, middle, 1, bias=False), SafeBatchNorm2d(middle))
        self.exit = nn.Sequential(nn.Conv2d(middle, out_chans, 3, padding=1, bias=False), SafeBatchNorm2d(out_chans))
        for part in (self.entry, self.exit):
            nn.init.kaiming_uniform_(part.get_parameter("0.weight"), a=1)

    def gate(self, x: Tensor, y: Tensor) -> Tensor:
        """The weights of x and y, maps of one shape: [2, B, middle or 1, H or 1, W or 1]."""
        raise NotImplementedError

    def forward(self, features: Tensor, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """features [B, inner, H, W] -> (as the teacher's map [B, outer, H', W'], what is passed on [B, middle, H', W'])."""
        x = self.entry(features)
        if residual is not None and self.fuses:
            y = F.interpolate(residual, size=x.shape[2:])
            of_x, of_y = self.gate(x, y)
            x = of_x * x + of_y * y
        if self.size is not None and x.shape[2:] != self.size:
            x = F.interpolate(x, size=self.size)
        return self.exit(x), x


class AttentionFusion(MapFusion):
    """Attention based fusion of knowledge review: at each position two weights, ``sigmoid(conv1x1([x, y]))``."""

    def __init__(self, in_chans: int, out_chans: int, middle: int, fuses: bool, size: tuple[int, int] | None = None):
        super().__init__(in_chans, out_chans, middle, fuses, size)
        self.attention = nn.Conv2d(2 * middle, 2, 1) if fuses else None

    def gate(self, x: Tensor, y: Tensor) -> Tensor:
        """See :class:`MapFusion`: [2, B, 1, H, W], each in 0..1."""
        assert self.attention is not None
        return self.attention(torch.cat([x, y], 1)).sigmoid().transpose(0, 1).unsqueeze(2)


def fuse_maps(stages: Sequence[MapFusion] | nn.ModuleList, maps: Sequence[Tensor]) -> list[Tensor]:
    """The maps of all stages, the finest first, through their fusions, from the deepest on: in the teacher's shapes."""
    found: list[Tensor] = []
    residual = None
    for stage, features in zip(reversed(list(stages)), reversed(maps), strict=True):
        fused, residual = stage(features, residual)
        found.insert(0, fused)
    return found


def attention_fusions(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> nn.ModuleList:
    """An :class:`AttentionFusion` for each pair of example maps, the finest first, as wide inside as the student's deepest
    map, but at most 512 (as in the authors' code)."""
    middle, last = min(512, student[-1].shape[1]), len(student) - 1
    return nn.ModuleList(
        AttentionFusion(one.shape[1], other.shape[1], middle, i < last, (other.shape[2], other.shape[3]))
        for i, (one, other) in enumerate(zip(student, teacher, strict=True))
    )


def review_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """The sum over stages of :func:`hierarchical_context`, maps in the teacher's shapes."""
    return torch.stack([hierarchical_context(one, other) for one, other in zip(student, teacher, strict=True)]).sum()
