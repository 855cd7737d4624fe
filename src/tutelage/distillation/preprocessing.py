"""What a teacher was trained on: size, channel order, value range and normalisation of its images, as plain values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from tutelage.errors import InputError, did_you_mean


@dataclass(frozen=True)
class Preprocessing:
    """How images of the data [B, C, H, W], pixels in 0..1, become those that a teacher was trained on; in this order.

    Attributes:
        data_mean, data_std: a normalisation of the data, by channel, that is undone first; empty: there is none.
        channels: how many the teacher takes; gray images are repeated. None: those of the data.
        image_size: (height, width) in pixels, or one number for both; None: as they are.
        interpolation: how images are resized (smaller ones with antialiasing).
        channel_order: of the teacher; the data are ``rgb``.
        value_range: what 0..1 becomes: (0, 255), (-1, 1).
        mean, std: subtracted and divided by, by channel, in units of ``value_range``; empty: no normalisation.

    Raises:
        InputError: a size below 1, an empty range, or ``mean`` and ``std`` that do not fit together.
    """

    image_size: int | tuple[int, int] | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    channel_order: Literal["rgb", "bgr"] = "rgb"
    value_range: tuple[float, float] = (0.0, 1.0)
    channels: int | None = None
    interpolation: Literal["bilinear", "bicubic", "nearest"] = "bilinear"
    data_mean: tuple[float, ...] = ()
    data_std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for mean, std, where in ((self.mean, self.std, "mean"), (self.data_mean, self.data_std, "data_mean")):
            if len(mean) != len(std):
                raise InputError(f"{len(mean)} means and {len(std)} deviations", where=where, remedy="give one a channel of both")
            if not all(math.isfinite(value) for value in (*mean, *std)) or not all(value > 0 for value in std):
                raise InputError(f"mean {mean}, std {std}", where=where, remedy="finite numbers, std above 0")
        low, high = self.value_range
        if not low < high:
            raise InputError(f"{low} to {high} is no range", where="value_range", remedy="such as [0, 255] or [-1, 1]")
        if self.image_size is not None and min(self.size) < 1:
            raise InputError(f"{self.image_size} pixels", where="image_size", remedy="at least 1")
        for name, known in (("channel_order", ["rgb", "bgr"]), ("interpolation", ["bilinear", "bicubic", "nearest"])):
            if (value := getattr(self, name)) not in known:
                raise InputError(f"unknown {name} {value!r}", where=name, remedy=did_you_mean(str(value), known))
        if self.channels is not None and self.channels < 1:
            raise InputError(f"{self.channels} channels", where="channels", remedy="at least 1")

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        assert self.image_size is not None
        return (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size

    def __call__(self, images: Tensor) -> Tensor:
        """[B, C, H, W] to what the teacher takes.

        Raises:
            InputError: images of other channels than ``mean`` or ``channels`` speak of.
        """
        if self.data_mean:
            images = images * _by_channel(self.data_std, images, "data_std") + _by_channel(self.data_mean, images, "data_mean")
        if self.channels is not None and self.channels != images.shape[1]:
            if images.shape[1] != 1:
                raise InputError(f"{images.shape[1]} channels cannot become {self.channels}", where="channels")
            images = images.expand(-1, self.channels, -1, -1)
        if self.image_size is not None and images.shape[2:] != torch.Size(self.size):
            smooth = {} if self.interpolation == "nearest" else {"align_corners": False, "antialias": True}
            images = F.interpolate(images, size=self.size, mode=self.interpolation, **smooth)
        if self.channel_order == "bgr":
            images = images.flip(1)
        low, high = self.value_range
        if (low, high) != (0.0, 1.0):
            images = low + images * (high - low)
        if self.mean:
            images = (images - _by_channel(self.mean, images, "mean")) / _by_channel(self.std, images, "std")
        return images


def _by_channel(values: Sequence[float], images: Tensor, where: str) -> Tensor:
    if len(values) != images.shape[1]:
        message = f"{len(values)} values for images of {images.shape[1]} channels"
        raise InputError(message, where=where, remedy="one a channel; channels=3 repeats gray images")
    return torch.tensor(values, dtype=images.dtype, device=images.device)[:, None, None]
