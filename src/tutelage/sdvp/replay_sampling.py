"""Which replayed rows enter a batch of stepwise distillation, and in which colours."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tutelage.distillation.augmentation import random_draws
from tutelage.distillation.data import hash64

_STRIDE = 0x9E3779B97F4A7C1
_COLOUR_STREAM, _SHARE_STREAM = 9, 64
"""Of the draws of the colours, and of whether a row is altered: numbers that no augmentation uses."""


@dataclass(frozen=True)
class ReplaySampling:
    """Which replayed rows a batch holds, and in which colours.

    Attributes:
        ratio: Replayed rows to a task row.
        augmented: The share (0..1) of replayed rows that are shown in random colours
            (:func:`random_colours`). Their labels stay the old outputs for the unaltered
            pixels, so the module keeps its answers, and under looks that neither old nor new tasks have.
    """

    ratio: int = 1
    augmented: float = 0.0

    def rows(self, draw: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Row numbers below ``count`` and view seeds, ``ratio`` for each of the numbers ``draw`` [B]: the rows of one draw lie
        at equal distances, so that every part of the replayed inputs comes up in every batch."""
        places = torch.arange(self.ratio)
        numbers = (draw[:, None] + places * max(1, count // self.ratio)) % count
        keys = (draw[:, None] + places * _STRIDE).flatten().numpy().astype(np.uint64)
        return numbers.flatten(), torch.from_numpy((hash64(keys) >> np.uint64(1)).astype(np.int64))

    def alter_colours(self, pixels: Tensor, seeds: Tensor) -> Tensor:
        """``pixels`` [B, 3, H, W], uint8 or float in 0..1, with a share of the rows altered by their ``seeds`` [B]."""
        chosen = (random_draws(seeds, _SHARE_STREAM, 1)[:, 0] < self.augmented).nonzero()[:, 0]
        if not len(chosen):
            return pixels
        images = pixels[chosen]
        as_bytes = pixels.dtype == torch.uint8
        images = random_colours(images / 255 if as_bytes else images, seeds[chosen])
        altered = pixels.clone()
        altered[chosen] = (images * 255).round().to(pixels.dtype) if as_bytes else images
        return altered


def random_colours(images: Tensor, seeds: Tensor) -> Tensor:
    """Each row's colours under a random linear map, everything left in its place: a convolution of one pixel with random
    weights (RandConv; Xu et al., 2021). Images [B, 3, H, W] in 0..1, seeds [B].

    ``clip(R (x - 1/2) + 1/2 + o)``, R being 0.8 times the identity or its negative, plus uniform numbers in +- 0.3, and o uniform
    in +- 0.25 (our choice).
    """
    u = random_draws(seeds, _COLOUR_STREAM, 11).to(images.dtype) * 2 - 1
    sign = torch.where(u[:, :1, None] < 0, -0.8, 0.8).to(images.dtype)
    weights = sign * torch.eye(3, dtype=images.dtype) + 0.3 * u[:, 2:].view(-1, 3, 3)
    mapped = (weights @ (images - 0.5).flatten(2)).view_as(images)
    return (mapped + 0.5 + 0.25 * u[:, 1, None, None, None]).clamp(0, 1)
