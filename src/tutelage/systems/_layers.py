"""Building blocks that several backbones share."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class DropPath(nn.Module):
    """Stochastic depth (Huang et al., 2016): in training, each sample's residual branch is dropped with probability
    ``rate``, and the others are divided by ``1 - rate``, which keeps the expectation. Any shape [B, ...]."""

    def __init__(self, rate: float = 0.0):
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """``x``, with some samples zero."""
        if not self.training or self.rate == 0:
            return x
        kept = torch.empty((len(x), *[1] * (x.ndim - 1)), dtype=x.dtype, device=x.device).bernoulli_(1 - self.rate)
        return x * (kept / (1 - self.rate) if self.rate < 1 else kept)

    def extra_repr(self) -> str:
        """The rate, for printing."""
        return f"rate={self.rate:g}"


def drop_path_rates(rate: float, depths: Sequence[int]) -> list[list[float]]:
    """Rates that rise linearly over all blocks from 0 to ``rate``: one list a stage."""
    total = sum(depths)
    rates = [rate * i / max(1, total - 1) for i in range(total)]
    ends = list(accumulate(depths))
    return [rates[end - depth : end] for end, depth in zip(ends, depths)]


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of a map [B, C, H, W] (or [B, C, T, H, W]), at every position.

    The output lies in memory channels-last whatever the input does: the fastest layout for the convolution that follows.
    """

    def __init__(self, channels: int, eps: float = 1e-6):
        super().__init__(channels, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """The map, each position of mean 0 and variance 1 before weight and bias."""
        last = x.permute(0, *range(2, x.ndim), 1)
        normed = F.layer_norm(last, self.normalized_shape, self.weight, self.bias, self.eps)
        return normed.permute(0, x.ndim - 1, *range(1, x.ndim - 1))


class LayerScale(nn.Module):
    """Layer scale: a learned factor a channel, on the last axis [..., C] or, with ``axis=1``, on maps [B, C, ...]."""

    def __init__(self, channels: int, start: float, axis: int = -1):
        super().__init__()
        self.weight, self.axis = nn.Parameter(torch.full((channels,), start)), axis

    def forward(self, x: Tensor) -> Tensor:
        """``weight * x``."""
        return x * (self.weight if self.axis == -1 else self.weight.view(-1, *[1] * (x.ndim - 2)))


class Mlp(nn.Sequential):
    """Linear, GELU, Linear on the last axis [..., C]; ``ratio``: of the hidden width."""

    def __init__(self, dim: int, ratio: float = 4, act: type[nn.Module] = nn.GELU):
        hidden = int(dim * ratio)
        super().__init__(nn.Linear(dim, hidden), act(), nn.Linear(hidden, dim))


def residual_branch(branch: nn.Module, start: float | None, channels: int, rate: float, axis: int = -1) -> nn.Module:
    """A residual branch with its layer scale (``start`` None: without) and its stochastic depth."""
    return nn.Sequential(branch, LayerScale(channels, start, axis) if start is not None else nn.Identity(), DropPath(rate))


def init_weights(network: nn.Module, std: float = 0.02, convolutions: bool = True) -> None:
    """Truncated normal weights and zero biases in every Linear and, unless told otherwise, convolution."""
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d) if convolutions else (nn.Linear,)
    for module in network.modules():
        if isinstance(module, kinds):
            nn.init.trunc_normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class SqueezeExcite(nn.Module):
    """``x sigmoid(W2 ReLU(W1 mean(x)))`` (Hu et al., 2018): a gate a channel of maps [B, C, H, W], through ``hidden_chans``."""

    def __init__(self, channels: int, hidden_chans: int):
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, hidden_chans, 1), nn.Conv2d(hidden_chans, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """The gated maps."""
        return x * self.expand(self.reduce(x.mean((2, 3), keepdim=True)).relu()).sigmoid()
