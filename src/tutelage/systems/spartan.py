"""SpaRTAN: spatial reinforcement and token-based aggregation in a light ConvNet (Pay et al., 2025, arXiv 2507.10999)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.optim import vector_names
from tutelage.errors import InputError
from tutelage.networks.layers import DropPath, LayerScale, SqueezeExcite
from tutelage.registry import system
from tutelage.systems._backbone import Backbone, Variant

EPS = 1e-6


class MeanContrast(nn.Module):
    """``x + g (x - mean over places)``, g [channels] from 1e-5: it never moves the mean over places."""

    def __init__(self, channels: int):
        super().__init__()
        self.gain = nn.Parameter(torch.full((channels, 1, 1), 1e-5))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> the same shape."""
        return x + self.gain * (x - x.mean((2, 3), keepdim=True))


def branch(channels: int, groups: int, dilations: Sequence[int]) -> nn.Sequential:
    """3x3 convolutions of these dilations one after the other, batch norm, GELU, squeeze and excitation."""
    convs = (nn.Conv2d(channels, channels, 3, 1, d, d, groups, bias=False) for d in dilations)
    gate = SqueezeExcite(channels, channels // 4)
    return nn.Sequential(*convs, nn.BatchNorm2d(channels, EPS), nn.GELU(), gate)


class SpatialMixer(nn.Module):
    """Two receptive fields side by side: [B, C, H, W] -> the same shape.

    C -> C/2 by a 1x1 convolution, :class:`MeanContrast`, then ``high`` (one 3x3) and ``low`` (two 3x3 of dilation 2, which
    reach 9x9), joined, and a 1x1 convolution. ``dense``: the 3x3 convolutions are full, else depthwise.
    """

    def __init__(self, channels: int, dense: bool, dilation: int = 2):
        super().__init__()
        half = channels // 2
        groups = 1 if dense else half
        self.entry, self.contrast = nn.Conv2d(channels, half, 1), MeanContrast(half)
        self.high, self.low = branch(half, groups, (1,)), branch(half, groups, (dilation, dilation))
        self.exit = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """The mixed map."""
        x = self.contrast(self.entry(x))
        return self.exit(torch.cat([self.high(x), self.low(x)], 1))


class WaveModulation(nn.Module):
    """Channels in consecutive pairs (a, b) as complex numbers a + ib, times a learned complex number a pair, in float32.

    ``weight`` [channels / 2, 2] holds real and imaginary parts, both from a standard normal.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels // 2, 2))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> the same shape and dtype."""
        a, b = x.float().unflatten(1, (-1, 2)).unbind(2)
        real, imaginary = self.weight.float()[:, :, None, None].unbind(1)
        return torch.stack([a * real - b * imaginary, a * imaginary + b * real], 2).flatten(1, 2).to(x.dtype)


class ChannelMixer(nn.Module):
    """Features as waves of an amplitude and a phase part: [B, C, H, W] -> the same shape.

    ``phi = GELU(W_phi x)`` and ``w = W_p x`` of e channels; m(h, w) is the argmax over the C channels of x, and
    ``f = w phi + w_m phi_m``: one channel a place is added to all. Then :class:`WaveModulation`, a 3x3 convolution in ``groups``,
    batch norm, GELU, squeeze and excitation to C/4, and a 1x1 convolution back. The index runs over C channels although
    phi has e of them, as in the published weights: only the first C can be picked.
    """

    def __init__(self, channels: int, expansion: int, groups: int, wave: bool = True):
        super().__init__()
        inner = channels * expansion
        self.phase, self.amplitude = nn.Conv2d(channels, inner, 1), nn.Conv2d(channels, inner, 1)
        self.wave = WaveModulation(inner) if wave else nn.Identity()
        self.local = nn.Sequential(
            nn.Conv2d(inner, inner, 3, 1, 1, groups=groups, bias=False), nn.BatchNorm2d(inner, EPS), nn.GELU()
        )
        self.gate, self.exit = SqueezeExcite(inner, channels // 4), nn.Conv2d(inner, channels, 1)
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        """The mixed map."""
        phi, w = self.act(self.phase(x)), self.amplitude(x)
        best = x.argmax(1, keepdim=True)
        f = torch.addcmul(w.gather(1, best) * phi.gather(1, best), w, phi)
        return self.exit(self.gate(self.local(self.wave(f))))


class SpartanBlock(nn.Module):
    """``x + drop(s1 spatial(norm(x)))``, then ``x + drop(s2 channel(norm(x)))``; s1, s2 a number a channel."""

    def __init__(self, channels: int, spatial: nn.Module, channel: nn.Module, scale: float, drop: float):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(1, channels, EPS), nn.GroupNorm(1, channels, EPS)
        self.spatial, self.channel, self.drop = spatial, channel, DropPath(drop)
        self.scale1, self.scale2 = LayerScale(channels, scale, 1), LayerScale(channels, scale, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> the same shape."""
        x = x + self.drop(self.scale1(self.spatial(self.norm1(x))))
        return x + self.drop(self.scale2(self.channel(self.norm2(x))))


@system("spartan", kind="backbone")
class Spartan(Backbone):
    """SpaRTAN: two receptive fields in the spatial mixer, a wave in the channel mixer, and low expansion.

    A stem of stride 4, four stages with a 2x2 convolution of stride 2 between them, mean over places, linear head; no
    norm at the end. Each block is a :class:`SpatialMixer` and a :class:`ChannelMixer`. The 3x3 convolutions are dense in
    the first half of the stages and depthwise in the second; the channel mixer's are depthwise in the first half and of
    C groups in the second. A side that does not halve evenly loses its last row.

    Published: 3.8 M parameters, 77.7 % on ImageNet-1k at 256 pixels; residual scales from 1e-5, drop path i / n of 0.1
    in block i of n. Short schedules want a larger ``scale`` (0.1).
    """

    TRAINING = {"imagenet-1k": TrainingSettings(epochs=300, batch_size=2048, lr=2.5e-3, warmup_epochs=20, weight_decay=0.03)}
    VARIANTS = {"3.8m": Variant({}, 3_820_296, 0.800e9)}

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        *,
        depths: Sequence[int] = (3, 3, 12, 2),
        dims: Sequence[int] = (32, 64, 128, 256),
        expansions: Sequence[int] = (4, 4, 2, 2),
        drop_path: float = 0.1,
        scale: float = 1e-5,
        wave: bool = True,
        dilation: int = 2,
    ):
        """``wave`` and ``dilation`` leave parts out, for comparisons; all else as published.

        Raises:
            InputError: widths that are not multiples of 8, or lists of different lengths.
        """
        if len({len(depths), len(dims), len(expansions)}) != 1 or any(width % 8 for width in dims):
            raise InputError(
                f"depths {list(depths)}, widths {list(dims)}, expansions {list(expansions)}",
                where="dims",
                remedy="one of each a stage, every width a multiple of 8",
            )
        super().__init__(num_classes, in_chans, [(f"stages.{i}", 4 * 2**i, width) for i, width in enumerate(dims)])
        self.stem = nn.Sequential(
            nn.Conv2d(in_chans, dims[0] // 2, 3, 2, 1, bias=False),
            nn.BatchNorm2d(dims[0] // 2, EPS),
            nn.GELU(),
            nn.Conv2d(dims[0] // 2, dims[0], 3, 2, 1, bias=False),
            nn.BatchNorm2d(dims[0], EPS),
            nn.GELU(),
        )
        stages, before, done, total = [], dims[0], 0, sum(depths)
        for i, (depth, width, expansion) in enumerate(zip(depths, dims, expansions)):
            early = i < len(dims) // 2
            down = [nn.Conv2d(before, width, 2, 2, bias=False), nn.BatchNorm2d(width, EPS), nn.SiLU()] if i else []
            blocks = []
            for _ in range(depth):
                channel = ChannelMixer(width, expansion, width * expansion if early else width, wave)
                spatial = SpatialMixer(width, early, dilation)
                blocks.append(SpartanBlock(width, spatial, channel, scale, drop_path * done / total))
                done += 1
            stages.append(nn.Sequential(*down, *blocks))
            before = width
        self.stages = nn.ModuleList(stages)
        self.head = nn.Linear(dims[-1], num_classes)
        self.apply(initialise)

    def no_weight_decay(self) -> set[str]:
        """Norms, biases and the gain of :class:`MeanContrast`. Decay falls on s1, s2 and the wave, as published."""
        gains = {f"{name}.gain" for name, module in self.named_modules() if isinstance(module, MeanContrast)}
        return gains | {name for name in vector_names(self) if ".scale1." not in name and ".scale2." not in name}

    def forward_stages(self, images: Tensor) -> list[Tensor]:
        """The maps of all stages, the finest first."""
        x, found = self.stem(images), []
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        return found

    def forward_head(self, maps: Tensor) -> Tensor:
        """Mean over places, linear head."""
        return self.head(maps.mean((2, 3)))

    def check_sides(self, sides: Sequence[int]) -> None:
        """Any size that leaves a place in the last map.

        Raises:
            InputError: a side of less.
        """
        # the stem rounds up twice, each later stage down
        least = 4 * 2 ** (len(self.feature_info) - 1) - 3
        if min(sides) < least:
            raise InputError(f"images of {sides[0]}x{sides[1]}", where="images", remedy=f"sides of at least {least} pixels")

    @classmethod
    def tiny_job(cls, seed: int) -> TrainingJob:
        """A training job of two seconds."""
        return cls.toy_job(seed, 1, image_size=16, depths=(1, 1), dims=(8, 16), expansions=(2, 2), scale=0.1)


def initialise(module: nn.Module) -> None:
    """Convolutions normal with std sqrt(2 / fan out), linear layers truncated normal 0.02, biases 0."""
    if isinstance(module, nn.Conv2d):
        fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
    elif isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
    else:
        return
    if module.bias is not None:
        nn.init.zeros_(module.bias)
