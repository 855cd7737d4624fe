"""The published network: a mask from the stem, keypoints from two hourglasses (Newell, Yang, Deng, 2016)."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.errors import InputError, did_you_mean

PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "hand": MappingProxyType({"keypoints": 21, "in_chans": 3, "width": 256, "depth": 4, "stacks": 2}),
        "tiny": MappingProxyType({"keypoints": 1, "in_chans": 1, "width": 16, "depth": 2, "stacks": 2}),
    }
)
"""The published size, of 13,630,379 parameters, and one for tests."""


class PreActivationBottleneck(nn.Module):
    """BN-ReLU-1x1(o/2)-BN-ReLU-3x3-BN-ReLU-1x1(o), plus the input (through a 1x1 where widths differ)."""

    def __init__(self, in_chans: int, out_chans: int):
        super().__init__()
        half = out_chans // 2
        self.body = nn.Sequential(
            nn.BatchNorm2d(in_chans), nn.ReLU(), nn.Conv2d(in_chans, half, 1),
            nn.BatchNorm2d(half), nn.ReLU(), nn.Conv2d(half, half, 3, padding=1),
            nn.BatchNorm2d(half), nn.ReLU(), nn.Conv2d(half, out_chans, 1),
        )  # fmt: skip
        self.skip: nn.Module = nn.Identity() if in_chans == out_chans else nn.Conv2d(in_chans, out_chans, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps of the same size."""
        return self.skip(x) + self.body(x)


def two(width: int) -> nn.Sequential:
    """Two bottlenecks, one after the other."""
    return nn.Sequential(PreActivationBottleneck(width, width), PreActivationBottleneck(width, width))


class Hourglass(nn.Module):
    """``two(x) + up(two(inner(two(pool(x)))))``; the inner part is an hourglass of one depth less, or two bottlenecks."""

    def __init__(self, depth: int, width: int):
        super().__init__()
        self.beside, self.before, self.after = two(width), two(width), two(width)
        self.inner: nn.Module = Hourglass(depth - 1, width) if depth > 1 else two(width)

    def forward(self, x: Tensor) -> Tensor:
        """Maps of the same size."""
        small = self.after(self.inner(self.before(F.max_pool2d(x, 2))))
        return self.beside(x) + F.interpolate(small, scale_factor=2, mode="nearest")


class HandNetwork(nn.Module):
    """Images [B, C, S, S] -> ``heatmaps`` [B, K, S/2, S/2] of the last hourglass, and ``mask`` [B, 1, S, S], logits.

    Args:
        keypoints: K.
        in_chans: C.
        width: of the hourglasses; the stem has a quarter and a half of it.
        depth: how often an hourglass halves its maps.
        stacks: how many hourglasses.

    Examples:
        >>> network = HandNetwork(**HandNetwork.options("tiny"))
        >>> {name: tuple(value.shape) for name, value in network(torch.zeros(2, 1, 16, 16)).items()}
        {'heatmaps': (2, 1, 8, 8), 'mask': (2, 1, 16, 16)}
    """

    def __init__(self, keypoints: int = 21, in_chans: int = 3, width: int = 256, depth: int = 4, stacks: int = 2):
        super().__init__()
        for name, value in (("keypoints", keypoints), ("in_chans", in_chans), ("depth", depth), ("stacks", stacks)):
            if value < 1:
                raise InputError(f"{value} is too few", where=name, remedy="1 or more")
        if width < 4 or width % 4:
            raise InputError(f"a width of {width}", where="width", remedy="a multiple of 4")
        self.factor = 2 ** (depth + 1)
        self.stem = nn.Sequential(
            nn.Conv2d(in_chans, width // 4, 7, 2, 3), nn.BatchNorm2d(width // 4), nn.ReLU(),
            PreActivationBottleneck(width // 4, width // 2),
            PreActivationBottleneck(width // 2, width // 2),
            PreActivationBottleneck(width // 2, width),
            nn.ConvTranspose2d(width, width, 4, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
        )  # fmt: skip
        self.mask_head = nn.Conv2d(width, 1, 1)
        self.hourglasses = nn.ModuleList(Hourglass(depth, width) for _ in range(stacks))
        self.features = nn.ModuleList(
            nn.Sequential(two(width), nn.Conv2d(width, width, 1), nn.BatchNorm2d(width), nn.ReLU()) for _ in range(stacks)
        )
        self.heat = nn.ModuleList(nn.Conv2d(width, keypoints, 1) for _ in range(stacks))
        self.back_features = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in range(stacks - 1))
        self.back_heat = nn.ModuleList(nn.Conv2d(keypoints, width, 1) for _ in range(stacks - 1))

    @classmethod
    def options(cls, name: str) -> dict[str, Any]:
        """The arguments of a preset.

        Raises:
            InputError: no such preset; the message offers the nearest names.
        """
        if name not in PRESETS:
            raise InputError(f"no size {name!r}", where="model", remedy=did_you_mean(name, list(PRESETS)))
        return dict(PRESETS[name])

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Both heads.

        Raises:
            InputError: sides that the hourglasses cannot halve.
        """
        if any(side % self.factor for side in images.shape[2:]) and not torch.jit.is_tracing():
            raise InputError(
                f"images of {tuple(images.shape[2:])} pixels",
                where="images",
                remedy=f"resize the sides to multiples of {self.factor}",
            )
        full = self.stem(images)
        x = F.interpolate(full, scale_factor=0.5, mode="nearest")
        for number, hourglass in enumerate(self.hourglasses):
            features = self.features[number](hourglass(x))
            heat = self.heat[number](features)
            if number < len(self.back_heat):
                x = x + self.back_features[number](features) + self.back_heat[number](heat)
        return {"heatmaps": heat, "mask": self.mask_head(full)}
