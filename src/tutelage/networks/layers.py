"""The small layers that several networks share: one MLP, one patch embedding for the whole library."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# -- residual branches -----------------------------------------------------------------------------------------------


class DropPath(nn.Module):
    """Stochastic depth (Huang et al., 2016): in training, each sample's residual branch is dropped with probability
    ``rate``. The branches that stay are divided by ``1 - rate``, which keeps the expectation. Any shape [B, ...]."""

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
    """Rates that rise linearly over all blocks from 0 to ``rate``: one list per stage."""
    total = sum(depths)
    rates = [rate * i / max(1, total - 1) for i in range(total)]
    ends = list(accumulate(depths))
    return [rates[end - depth : end] for end, depth in zip(ends, depths)]


class LayerScale(nn.Module):
    """A learned factor per channel (Touvron et al., 2021), on the last axis [..., C] or, with ``axis=1``, on maps
    [B, C, ...]."""

    def __init__(self, dim: int, init: float, axis: int = -1):
        super().__init__()
        self.weight = nn.Parameter(torch.full((dim,), init))
        self.axis = axis

    def forward(self, x: Tensor) -> Tensor:
        """``weight * x``."""
        return x * (self.weight if self.axis == -1 else self.weight.view(-1, *[1] * (x.ndim - 2)))


def residual_branch(branch: nn.Module, layer_scale: float | None, dim: int, drop_path: float, axis: int = -1) -> nn.Sequential:
    """A residual branch with its layer scale (None: without) and its stochastic depth.

    Args:
        branch: what the branch computes.
        layer_scale: the start value of :class:`LayerScale`, or None.
        dim: channels of the branch's output.
        drop_path: rate of :class:`DropPath`.
        axis: of the channels, -1 or 1.
    """
    scale = LayerScale(dim, layer_scale, axis) if layer_scale is not None else nn.Identity()
    return nn.Sequential(branch, scale, DropPath(drop_path))


# -- norms, MLP, gates -----------------------------------------------------------------------------------------------


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of a map [B, C, H, W] (or [B, C, T, H, W]), at every position.

    The output lies in memory channels-last whatever the input does: the fastest layout for the convolution that follows.
    """

    def __init__(self, dim: int, eps: float = 1e-6):
        super().__init__(dim, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """The map, each position of mean 0 and variance 1 before weight and bias."""
        last = x.permute(0, *range(2, x.ndim), 1)
        normed = F.layer_norm(last, self.normalized_shape, self.weight, self.bias, self.eps)
        return normed.permute(0, x.ndim - 1, *range(1, x.ndim - 1))


class Mlp(nn.Sequential):
    """Linear, activation, Linear on the last axis [..., C]; ``ratio``: hidden width over ``dim``."""

    def __init__(self, dim: int, ratio: float = 4, act: type[nn.Module] = nn.GELU):
        hidden = int(dim * ratio)
        super().__init__(nn.Linear(dim, hidden), act(), nn.Linear(hidden, dim))


class SqueezeExcite(nn.Module):
    """``x sigmoid(W2 ReLU(W1 mean(x)))`` (Hu et al., 2018): one gate per channel of maps [B, C, H, W]."""

    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        self.reduce = nn.Conv2d(dim, hidden_dim, 1)
        self.expand = nn.Conv2d(hidden_dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """The gated maps."""
        return x * self.expand(self.reduce(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


# -- patches and start weights ---------------------------------------------------------------------------------------


class PatchEmbed(nn.Module):
    """A convolution that turns images [B, C, H, W] or clips [B, C, T, H, W] into tokens [B, N, dim], in raster order
    (time outermost).

    Args:
        in_chans: channels of the input.
        dim: of the tokens.
        patch_size: (height, width), (time, height, width), or one side of a square.
        stride: of the convolution; None: ``patch_size``, patches that do not overlap.
        padding: of the convolution.
        norm: a layer norm over the channels of the tokens.
    """

    def __init__(
        self,
        in_chans: int,
        dim: int,
        patch_size: int | Sequence[int],
        stride: int | Sequence[int] | None = None,
        padding: int | Sequence[int] = 0,
        norm: bool = False,
    ):
        super().__init__()
        size = (patch_size, patch_size) if isinstance(patch_size, int) else tuple(patch_size)
        convolution = nn.Conv3d if len(size) == 3 else nn.Conv2d
        self.patch_size = size
        self.proj = convolution(in_chans, dim, size, size if stride is None else stride, padding)  # type: ignore[arg-type]
        self.norm = nn.LayerNorm(dim) if norm else nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """The tokens."""
        return self.norm(self.proj(images).flatten(2).transpose(1, 2))

    def map_size(self, image_size: Sequence[int]) -> tuple[int, ...]:
        """The grid of the tokens of an input with these sides: (H', W'), or (T', H', W')."""
        conv = self.proj
        sizes = zip(image_size, conv.kernel_size, conv.stride, conv.padding)
        return tuple((side + 2 * pad - kernel) // stride + 1 for side, kernel, stride, pad in sizes)  # type: ignore[operator]


class OverlapPatchEmbed(PatchEmbed):
    """Overlapping patches with a layer norm: kernel ``2 stride - 1``; the map is [ceil(H / stride), ceil(W / stride)]."""

    def __init__(self, in_chans: int, dim: int, stride: int):
        kernel = 2 * stride - 1
        super().__init__(in_chans, dim, kernel, stride, kernel // 2, norm=True)


def init_weights(network: nn.Module, std: float = 0.02, convolutions: bool = True) -> None:
    """Truncated normal weights and zero biases in every Linear and, with ``convolutions``, every convolution."""
    types = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d) if convolutions else (nn.Linear,)
    for module in network.modules():
        if isinstance(module, types):
            nn.init.trunc_normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
