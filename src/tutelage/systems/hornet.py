"""HorNet: recursive gated convolutions (Rao, Zhao, Tang, Zhou, Lim, Lu, 2022, arXiv 2207.14284)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.distillation.job import TrainingJob
from tutelage.errors import InputError
from tutelage.networks.layers import DropPath, LayerNorm2d
from tutelage.registry import system
from tutelage.systems._backbone import Variant
from tutelage.systems._convnext_base import IMAGENET_1K, ConvNeXtBase


class GlobalLocalFilter(nn.Module):
    """A norm; a 3x3 depthwise convolution on the first half of the channels beside a learned filter of the spectrum on
    the second; the halves interleaved; a norm. [B, C, H, W] -> the same shape, C even.

    The spectral half is ``irfft2(rfft2(x) * W)``, both orthonormal, with a complex map ``W`` a channel, stored as pairs
    of real numbers [C / 2, *size, 2]: a circular convolution with a kernel as large as the map. Where the input's
    spectrum has another size, ``W`` is resized bilinearly (corners aligned). The transform runs in float32.
    """

    def __init__(self, channels: int, size: tuple[int, int]):
        super().__init__()
        half = channels // 2
        self.dw = nn.Conv2d(half, half, 3, padding=1, groups=half, bias=False)
        self.complex_weight = nn.Parameter(torch.empty(half, *size, 2))
        nn.init.trunc_normal_(self.complex_weight, std=0.02)
        self.pre_norm, self.post_norm = LayerNorm2d(channels), LayerNorm2d(channels)

    def spectral(self, x: Tensor) -> Tensor:
        """The second half [B, C / 2, H, W], filtered."""
        spectrum = torch.fft.rfft2(x.float(), norm="ortho")
        weight = self.complex_weight.float()
        if weight.shape[1:3] != spectrum.shape[2:]:
            resized = F.interpolate(weight.permute(3, 0, 1, 2), spectrum.shape[2:], mode="bilinear", align_corners=True)
            weight = resized.permute(1, 2, 3, 0)
        filtered = spectrum * torch.view_as_complex(weight.contiguous())
        return torch.fft.irfft2(filtered, s=x.shape[2:], norm="ortho").to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Local channel i becomes channel 2i, global channel i channel 2i + 1."""
        near, far = self.pre_norm(x).chunk(2, 1)
        return self.post_norm(torch.stack([self.dw(near), self.spectral(far)], 2).flatten(1, 2))


class GnConv(nn.Module):
    """The recursive gated convolution of order n, g^nConv: [B, C, H, W] -> the same shape, C divisible by 2^(n-1).

    A 1x1 convolution gives ``p_0`` and ``q_0 .. q_(n-1)`` of widths ``C_k = C / 2^(n-1-k)``; one depthwise filter ``f``
    over all ``q`` together, times 1/3; then ``p_1 = p_0 * f(q_0)``, ``p_(k+1) = g_k(p_k) * f(q_k)`` with 1x1
    convolutions ``g_k`` up to the next width; a last 1x1 convolution (section 3.1, equations 3.1 to 3.4). No activation:
    without biases the output is homogeneous of degree n + 1 in the input.

    Args:
        channels: C.
        order: n, the number of gates.
        kernel: of the depthwise convolution.
        filter_size: instead of the convolution a :class:`GlobalLocalFilter` with maps of this size.
        scale: the constant factor on the filtered q.

    Raises:
        InputError: C is not divisible by 2^(n-1).
    """

    def __init__(
        self, channels: int, order: int = 5, kernel: int = 7, filter_size: tuple[int, int] | None = None, scale: float = 1 / 3
    ):
        super().__init__()
        if order < 1 or channels % 2 ** (order - 1):
            raise InputError(
                f"{channels} channels cannot be halved {order - 1} times",
                where="dims, orders",
                remedy=f"multiples of {2 ** max(0, order - 1)}, or a lower order",
            )
        self.widths = [channels // 2 ** (order - 1 - k) for k in range(order)]
        self.proj_in, self.proj_out = nn.Conv2d(channels, 2 * channels, 1), nn.Conv2d(channels, channels, 1)
        whole = sum(self.widths)
        self.dwconv: nn.Module = (
            nn.Conv2d(whole, whole, kernel, padding=kernel // 2, groups=whole)
            if filter_size is None
            else GlobalLocalFilter(whole, filter_size)
        )
        self.pws = nn.ModuleList(nn.Conv2d(inner, outer, 1) for inner, outer in zip(self.widths, self.widths[1:]))
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """The gated map."""
        first, rest = self.proj_in(x).split([self.widths[0], sum(self.widths)], 1)
        gates = (self.dwconv(rest) * self.scale).split(self.widths, 1)
        gated = first * gates[0]
        for widen, gate in zip(self.pws, gates[1:]):
            gated = widen(gated) * gate
        return self.proj_out(gated)


class HorNetBlock(nn.Module):
    """``x + DropPath(g1 * g^nConv(LN(x)))``, then ``x + DropPath(g2 * Mlp(LN(x)))``; layer scales g1, g2."""

    def __init__(self, mixer: nn.Module, channels: int, rate: float = 0.0, *, layer_scale: float = 1e-6):
        super().__init__()
        self.norm1, self.gnconv = LayerNorm2d(channels), mixer
        self.norm2 = nn.LayerNorm(channels, eps=1e-6)
        self.pwconv1, self.pwconv2 = nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, channels)
        self.gamma1, self.gamma2 = (nn.Parameter(torch.full((channels,), layer_scale)) for _ in range(2))
        self.drop_path = DropPath(rate)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> the same shape."""
        x = x + self.drop_path(self.gamma1.view(-1, 1, 1) * self.gnconv(self.norm1(x)))
        y = self.pwconv2(F.gelu(self.pwconv1(self.norm2(x.permute(0, 2, 3, 1)))))
        return x + self.drop_path((self.gamma2 * y).permute(0, 3, 1, 2))


def _size(base: int, parameters: int, gmacs: float, drop_path: float, **config: Any) -> Variant:
    return Variant({"base": base, "drop_path": drop_path, **config}, parameters, gmacs * 1e9)


@system("hornet", kind="backbone")
class HorNet(ConvNeXtBase):
    """HorNet: ConvNeXt's frame around recursive gated convolutions, high-order interactions of positions.

    Images [B, in_chans, H, W], sides multiples of 32, -> logits [B, num_classes]; four stages of strides 4 to 32, of
    ``base`` times 1, 2, 4, 8 channels and orders 2 to 5. ``gf``: the side of the images for which the last two stages
    get global filters (:class:`GlobalLocalFilter`, maps as large as the stage's spectrum); None: 7x7 convolutions
    everywhere. At other sides the filters are resized.

    Sizes: ``tiny-7x7`` to ``large-7x7``, ``tiny-gf`` to ``large-gf``; ``mini`` for images of 32x32 (our choice: patch 2, and
    the layer scale from 0.1, since 1e-6 learns slowly in a few hundred steps). Published training: ConvNeXt's settings and
    augmentation, with gradients clipped, by size.

    For dense prediction :class:`HorNetPyramid` puts a decoder of recursive gated convolutions on the stages:
    ``Segmenter(HorNetPyramid(network), [64] * 4, classes)``. The paper's detectors (Mask R-CNN and Cascade Mask R-CNN on
    COCO) are not built: they need a detection library's heads, and a shape test is all that could be shown.

    Raises:
        InputError: a stage's channels are not divisible by 2^(order - 1).
    """

    TRAINING = {
        **{size: replace(IMAGENET_1K, clip=clip) for size, clip in (("tiny-7x7", 100.0), ("small-7x7", 5.0), ("base-7x7", 5.0))},
        **{f"{size}-gf": replace(IMAGENET_1K, clip=1.0) for size in ("tiny", "small", "base")},
    }
    VARIANTS = {
        "tiny-7x7": _size(64, 22_409_512, 3.98, 0.2),
        "tiny-gf": _size(64, 22_991_848, 3.90, 0.2, gf=224),
        "small-7x7": _size(96, 49_528_264, 8.83, 0.4),
        "small-gf": _size(96, 50_401_768, 8.71, 0.4, gf=224),
        "base-7x7": _size(128, 87_256_680, 15.58, 0.5),
        "base-gf": _size(128, 88_421_352, 15.42, 0.5, gf=224),
        "large-7x7": _size(192, 194_542_504, 34.8, 0.2),
        "large-gf": _size(192, 196_289_512, 34.7, 0.2, gf=224),
        "base-gf-384": Variant({"base": 128, "drop_path": 0.5, "gf": 384}, 92_099_560, size=384),
        "large-gf-384": Variant({"base": 192, "drop_path": 0.2, "gf": 384}, 201_806_824, size=384),
        "mini": Variant({"base": 24, "depths": (1, 1, 2, 1), "orders": (2, 3, 3, 3), "stem": 2, "layer_scale": 0.1}, size=32),
    }

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        *,
        base: int = 64,
        depths: Sequence[int] = (2, 3, 18, 2),
        orders: Sequence[int] = (2, 3, 4, 5),
        gf: int | None = None,
        kernel: int = 7,
        drop_path: float = 0.0,
        layer_scale: float = 1e-6,
        stem: int = 4,
        head_init_scale: float = 1.0,
        init_std: float = 0.02,
    ):
        if len(orders) != len(depths):
            raise InputError(f"{len(orders)} orders and {len(depths)} depths", where="orders", remedy="one of each a stage")

        def block(stage: int, channels: int, rate: float) -> HorNetBlock:
            side = None if gf is None or stage < len(depths) - 2 else gf // (stem * 2**stage)
            maps = None if side is None else (side, side // 2 + 1)
            return HorNetBlock(GnConv(channels, orders[stage], kernel, maps), channels, rate, layer_scale=layer_scale)

        dims = [base * 2**stage for stage in range(len(depths))]
        options = {"drop_path": drop_path, "stem": stem, "head_init_scale": head_init_scale, "init_std": init_std}
        super().__init__(num_classes, in_chans, depths, dims, block, **options)

    @classmethod
    def tiny_job(cls, seed: int) -> TrainingJob:
        """A training job of a second: two small stages, the second with global filters."""
        config: dict[str, Any] = {"base": 8, "depths": (1, 1, 1), "orders": (2, 3, 2), "stem": 2, "layer_scale": 0.1}
        return cls.toy_job(seed, image_size=16, gf=16, drop_path=0.1, **config)


class GnDecoder(nn.Module):
    """A feature pyramid (Lin et al., 2017) whose smoothing convolutions are recursive gated convolutions.

    Maps of several strides, each half as large as the one before, the finest first -> as many maps of ``dim`` channels. A 1x1
    convolution brings each map to ``dim``; from the coarsest on, each is upsampled (nearest) and added to the next finer; each
    sum goes through a :class:`GnConv`. Its cost a place is ``7/2 C^2 + 3/2 (K^2 + 1) C`` at order 2, where a dense 3x3
    convolution takes ``9 C^2``: 48 % less at 64 channels, 58 % at 256.

    Args:
        in_chans: channels of each map.
        dim: channels of the results, divisible by 2^(order - 1).
        order: of the gated convolutions; None: the ordinary pyramid with 3x3 convolutions.
        kernel: of their depthwise convolutions.

    Raises:
        InputError: as :class:`GnConv`; at the forward pass: another number of maps.
    """

    def __init__(self, in_chans: Sequence[int], dim: int = 64, order: int | None = 2, kernel: int = 7):
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(channels, dim, 1) for channels in in_chans)
        self.smooth = nn.ModuleList(
            nn.Conv2d(dim, dim, 3, padding=1) if order is None else GnConv(dim, order, kernel) for _ in in_chans
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The maps, each with what the coarser ones know."""
        if len(maps) != len(self.lateral):
            raise InputError(f"{len(maps)} maps for a decoder of {len(self.lateral)}", where="maps")
        sums: list[Tensor] = []
        for lateral, scale in zip(reversed(self.lateral), reversed(maps)):
            own = lateral(scale)
            sums.append(own + F.interpolate(sums[-1], own.shape[2:]) if sums else own)
        return [smooth(total) for smooth, total in zip(self.smooth, reversed(sums))]


class HorNetPyramid(nn.Module):
    """A network with stages and a :class:`GnDecoder` on them: images -> one map a stage, the finest first, ``dim`` channels."""

    def __init__(self, network: ConvNeXtBase, dim: int = 64, order: int | None = 2):
        super().__init__()
        self.network = network
        self.decoder = GnDecoder([stage.channels for stage in network.feature_info], dim, order)

    def forward(self, images: Tensor) -> list[Tensor]:
        """The decoded maps."""
        self.network.check(images)
        return self.decoder(self.network.forward_stages(images))
