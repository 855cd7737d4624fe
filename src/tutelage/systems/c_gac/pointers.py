"""A toy hand: a disc with one thick finger, and the same in another domain with a texture, faded, under bright blobs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from tutelage.distillation.data import TensorData
from tutelage.seeds import torch_rng

SIDE = 24
RADIUS, FINGER, THICKNESS = 4.0, 6.5, 1.5


@dataclass(frozen=True)
class PointerDomain:
    """Images of one domain.

    Attributes:
        data: images [N, 1, 24, 24] in 0..1; labels: the tip of the finger as ``points``, and ``mask``.
        severity: [N], how far from the source an image is, 0 to 1.
    """

    data: TensorData
    severity: Tensor


def pointers(seed: int, name: str, count: int, target: bool = False) -> PointerDomain:
    """``count`` pointers, drawn from the stream ``name`` of ``seed``.

    In the target domain a checkerboard of +-0.25 lies on every hand. With the severity s of an image its contrast fades by
    ``1 - 0.9 s`` and smooth blobs of up to ``0.5 s`` rise.
    """
    rng = torch_rng(seed, "pointers", name)
    angle = 2 * math.pi * torch.rand(count, generator=rng)
    direction = torch.stack([angle.cos(), angle.sin()], 1)
    # the middle of the disc, so that disc and tip lie inside
    reach = RADIUS + FINGER
    low = torch.maximum(torch.full((count, 2), RADIUS + 1), 1 - reach * direction)
    high = torch.minimum(torch.full((count, 2), SIDE - RADIUS - 1), SIDE - 1 - reach * direction)
    middle = low + (high - low) * torch.rand(count, 2, generator=rng)
    tip = middle + reach * direction
    axis = torch.arange(SIDE) + 0.5
    place = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)  # [H, W, (x, y)]
    apart = place - middle[:, None, None]
    along = (apart * direction[:, None, None]).sum(-1)
    beside = (apart - along.clamp(0, reach)[..., None] * direction[:, None, None]).norm(dim=-1)
    hand = (apart.norm(dim=-1) <= RADIUS) | (beside <= THICKNESS)
    severity = torch.rand(count, generator=rng) if target else torch.zeros(count)
    strength = severity[:, None, None]
    images = 0.1 + 0.8 * hand * (1 - 0.9 * strength)
    if target:
        checks = ((torch.arange(SIDE)[:, None] + torch.arange(SIDE)) % 2) * 0.5 - 0.25
        images = images + checks * hand
        blobs = F.interpolate(torch.rand(count, 1, 4, 4, generator=rng), (SIDE, SIDE), mode="bicubic", align_corners=False)[:, 0]
        images = images + 0.5 * strength * blobs
    images = images + 0.06 * torch.randn(images.shape, generator=rng)
    points = torch.cat([tip / SIDE, torch.ones(count, 1)], 1)[:, None]
    return PointerDomain(TensorData(images.clamp(0, 1)[:, None], {"points": points, "mask": hand.long()}), severity)
