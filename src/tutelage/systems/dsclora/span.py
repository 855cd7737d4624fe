"""SPAN, the swift parameter-free attention network for super-resolution (Wan et al., 2024, arXiv 2311.12770)."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.errors import InputError, did_you_mean

MEAN = (0.4488, 0.4371, 0.4040)
"""Of DIV2K, red, green, blue."""

PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "x4": {"channels": 26, "scale": 4},
        "x2": {"channels": 26, "scale": 2},
        "x4-wide": {"channels": 48, "scale": 4},
        "x2-wide": {"channels": 48, "scale": 2},
        "tiny": {"channels": 6, "scale": 2, "depth": 3},
        "tiny-wide": {"channels": 8, "scale": 2, "depth": 3},
    }
)
"""Options of :class:`SPAN` by name: 26 channels as in the challenge, 48 as SPAN's own; the tiny ones are for tests."""


class RepConv(nn.Module):
    """A 3x3 convolution in the form in which SPAN is trained, [B, c, H, W] -> [B, c', H, W].

    On the zero-padded input 1x1 (c -> 2c), 3x3 (2c -> 2c') and 1x1 (2c' -> c'), plus a 1x1 convolution of the input;
    all with biases. :meth:`merged` is the one 3x3 convolution that does the same, at the borders too.
    """

    def __init__(self, in_chans: int, out_chans: int, gain: int = 2):
        super().__init__()
        self.expand = nn.Conv2d(in_chans, gain * in_chans, 1)
        self.conv = nn.Conv2d(gain * in_chans, gain * out_chans, 3)
        self.reduce = nn.Conv2d(gain * out_chans, out_chans, 1)
        self.skip = nn.Conv2d(in_chans, out_chans, 1)

    def forward(self, x: Tensor) -> Tensor:
        """The sum of both branches."""
        return self.reduce(self.conv(self.expand(F.pad(x, (1, 1, 1, 1))))) + self.skip(x)

    @torch.no_grad()
    def merged(self) -> nn.Conv2d:
        """The plain convolution; products are taken in float64."""
        first, second = self.expand.weight.double()[:, :, 0, 0], self.conv.weight.double()
        third, skip = self.reduce.weight.double()[:, :, 0, 0], self.skip.weight.double()
        weight = torch.einsum("po,omhw,mi->pihw", third, second, first) + F.pad(skip, (1, 1, 1, 1))
        bias = self.conv.bias.double() + second.sum((2, 3)) @ self.expand.bias.double()
        bias = third @ bias + self.reduce.bias.double() + self.skip.bias.double()
        conv = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1, device=self.skip.weight.device)
        conv.weight.copy_(weight)
        conv.bias.copy_(bias)
        return conv.to(self.skip.weight.dtype)


def convolution(in_chans: int, out_chans: int, branches: bool) -> nn.Module:
    """The 3x3 convolution to train (``branches``), or the plain one."""
    return RepConv(in_chans, out_chans) if branches else nn.Conv2d(in_chans, out_chans, 3, padding=1)


class SPAB(nn.Module):
    """Parameter-free attention: ``h3 = conv3(silu(conv2(silu(conv1(x)))))``, out ``(h3 + x) (sigmoid(h3) - 1/2)``."""

    def __init__(self, channels: int, branches: bool):
        super().__init__()
        self.conv1, self.conv2, self.conv3 = (convolution(channels, channels, branches) for _ in range(3))
        self.act1, self.act2 = nn.SiLU(), nn.SiLU()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(the output, ``silu(h1)``), both [B, channels, H, W]."""
        first = self.act1(self.conv1(x))
        third = self.conv3(self.act2(self.conv2(first)))
        return (third + x) * (third.sigmoid() - 0.5), first


class SPAN(nn.Module):
    """Images [B, 3, h, w] in 0..1 to images [B, 3, scale h, scale w].

    ``f0 = C(255 (x - mean))``, blocks b1 … bd, then ``conv1x1([f0, C(bd), b1, a1 of the last block])``, a 3x3
    convolution to 3 scale^2 channels and a pixel shuffle. With 26 channels, scale 4 and 6 blocks the merged network has
    130,828 parameters. The mean and the factor 255 are part of the network, as in the released code; the output is in
    0..1 as it comes.

    Args:
        channels: of every block.
        scale: how many times larger the output is.
        depth: number of blocks.
        branches: the form to train from scratch, with several branches a convolution; :meth:`merged` makes it plain.

    Sizes by name: ``SPAN(**SPAN.options("x4"))``; in a recipe ``model = "dsclora:x4"``.

    Raises:
        InputError: a number below 1.
    """

    mean: Tensor

    def __init__(self, channels: int = 26, scale: int = 4, depth: int = 6, branches: bool = False):
        super().__init__()
        for name, value in (("channels", channels), ("scale", scale), ("depth", depth)):
            if value < 1:
                raise InputError(f"{value} is too small", where=name, remedy="at least 1")
        self.channels, self.scale, self.depth, self.branches = channels, scale, depth, branches
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.conv_1 = convolution(3, channels, branches)
        self.blocks = nn.ModuleList(SPAB(channels, branches) for _ in range(depth))
        self.conv_2 = convolution(channels, channels, branches)
        self.conv_cat = nn.Conv2d(4 * channels, channels, 1)
        self.upsampler = nn.Sequential(nn.Conv2d(channels, 3 * scale**2, 3, padding=1), nn.PixelShuffle(scale))

    @classmethod
    def options(cls, name: str) -> dict[str, Any]:
        """The arguments of a preset.

        Raises:
            InputError: no such preset; the message offers the nearest names.
        """
        if name not in PRESETS:
            raise InputError(f"no size {name!r}", where="model", remedy=did_you_mean(name, list(PRESETS)))
        return dict(PRESETS[name])

    @property
    def feature_names(self) -> tuple[str, ...]:
        """a1, a2 and h3 of the first three blocks: the nine maps whose affinities are compared."""
        parts = ("act1", "act2", "conv3")
        return tuple(f"blocks.{block}.{part}" for block in range(min(3, self.depth)) for part in parts)

    def forward(self, images: Tensor) -> Tensor:
        """The enlarged images."""
        first = x = self.conv_1((images - self.mean) * 255)
        after_first = activated = x
        for number, block in enumerate(self.blocks):
            x, activated = block(x)
            if number == 0:
                after_first = x
        return self.upsampler(self.conv_cat(torch.cat([first, self.conv_2(x), after_first, activated], 1)))

    def merged(self) -> Self:
        """The same network with plain convolutions, in eval mode; a copy of itself where they are plain already."""
        plain = type(self)(self.channels, self.scale, self.depth).to(self.mean)
        state = {}
        for name, module in self.named_modules():
            module = module.merged() if isinstance(module, RepConv) else module
            if isinstance(module, nn.Conv2d) and not _inside(self, name):
                state |= {f"{name}.{key}": value for key, value in module.state_dict().items()}
        plain.load_state_dict(state)
        return plain.eval()


def _inside(network: nn.Module, name: str) -> bool:
    """Whether the sub-module ``name`` is a branch of a :class:`RepConv`."""
    return isinstance(network.get_submodule(name.rpartition(".")[0]), RepConv)
