"""Swin Transformer V2 blocks: cosine attention inside shifted windows (Liu et al., 2022, arXiv 2111.09883)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.errors import InputError
from tutelage.networks.layers import Mlp

MAX_LOG_SCALE = math.log(100.0)


class WindowAttention(nn.Module):
    """Attention among the ``window`` x ``window`` positions of a window: tokens [n, window^2, dim] -> the same shape.

    ``softmax(cos(q, k) exp(min(s, log 100)) + bias) v``: s is learned for each head, from log 10; the bias is a small
    network of the positions' distance on a logarithmic scale, ``16 sigmoid(mlp)`` (equation 3, and the authors' bound).
    Keys have no bias of their own.

    Raises:
        InputError: heads that do not divide ``dim``.
    """

    def __init__(self, dim: int, num_heads: int, window: int):
        super().__init__()
        if dim % num_heads:
            raise InputError(f"{num_heads} heads do not divide {dim} channels", where="num_heads", remedy="choose a divisor")
        self.num_heads, self.window = num_heads, window
        self.qkv, self.proj = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim)
        self.query_bias, self.value_bias = nn.Parameter(torch.zeros(dim)), nn.Parameter(torch.zeros(dim))
        self.log_scale = nn.Parameter(torch.full((num_heads, 1, 1), math.log(10.0)))
        self.position_mlp = nn.Sequential(nn.Linear(2, 512), nn.ReLU(), nn.Linear(512, num_heads, bias=False))

    def scale(self) -> Tensor:
        """The factor on the cosines, [heads, 1, 1], at most 100."""
        return self.log_scale.clamp_max(MAX_LOG_SCALE).exp()

    def position_bias(self) -> Tensor:
        """[heads, window^2, window^2], in 0..16."""
        device, side = self.log_scale.device, self.window
        steps = torch.arange(1 - side, side, device=device, dtype=self.log_scale.dtype)
        logs = steps.sign() * (8 * steps.abs() / max(1, side - 1) + 1).log2() / 3  # log2(8) = 3
        table = self.position_mlp(torch.stack(torch.meshgrid(logs, logs, indexing="ij"), -1))
        row, column = (axis.flatten() for axis in torch.meshgrid(*[torch.arange(side, device=device)] * 2, indexing="ij"))
        down, right = row[:, None] - row + side - 1, column[:, None] - column + side - 1
        return 16 * table[down, right].permute(2, 0, 1).sigmoid()

    def forward(self, tokens: Tensor, allowed: Tensor | None = None) -> Tensor:
        """The mixed tokens; ``allowed`` [windows, window^2, window^2] bool: which pairs may meet, repeating over n."""
        bias = torch.cat([self.query_bias, torch.zeros_like(self.query_bias), self.value_bias])
        q, k, v = F.linear(tokens, self.qkv.weight, bias).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT * self.scale() + self.position_bias()
        if allowed is not None:
            windows = scores.unflatten(0, (-1, len(allowed)))
            scores = windows.masked_fill(~allowed[None, :, None], -torch.inf).flatten(0, 1)
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


class SwinBlock(nn.Module):
    """One block on maps [B, dim, H, W] of any size: ``x + LN(attention(x))``, then ``x + LN(MLP(x))`` (norms after the
    branch: "res-post-norm").

    ``shift`` moves the windows by so many positions. What is wrapped around an edge, and the padding of a size that the
    window does not divide, meets only its own kind: everywhere else a window holds neighbours alone.
    """

    def __init__(self, dim: int, num_heads: int, window: int, shift: int = 0, mlp_ratio: float = 4.0):
        super().__init__()
        self.window, self.shift = window, shift
        self.attention, self.mlp = WindowAttention(dim, num_heads, window), Mlp(dim, mlp_ratio)
        self.attention_norm, self.mlp_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)

    def _windows(self, x: Tensor) -> Tensor:
        """[B, H, W, C] -> [B windows, window^2, C]."""
        x = x.unflatten(1, (-1, self.window)).unflatten(3, (-1, self.window))
        return x.transpose(2, 3).flatten(0, 2).flatten(1, 2)

    def _pairs(self, height: int, width: int, padded: tuple[int, int], device: torch.device) -> Tensor | None:
        """Which pairs of a window lie in one region of the image, [windows, window^2, window^2]; None: all."""
        if not self.shift and (height, width) == padded:
            return None
        lines = []
        for size, whole in zip((height, width), padded, strict=True):
            place = torch.arange(whole, device=device).roll(-self.shift)
            wrapped = torch.arange(whole, device=device) >= whole - self.shift
            lines.append((place >= size).long() * 2 + wrapped)
        regions = self._windows((lines[0][:, None] * 4 + lines[1])[None, :, :, None])[..., 0]
        return regions[:, :, None] == regions[:, None]

    def forward(self, x: Tensor) -> Tensor:
        """[B, dim, H, W] -> the same shape."""
        height, width = x.shape[2:]
        x = x.permute(0, 2, 3, 1)
        below, right = -height % self.window, -width % self.window
        padded = (height + below, width + right)
        moved = F.pad(x, (0, 0, 0, right, 0, below)).roll((-self.shift, -self.shift), (1, 2))
        mixed = self.attention(self._windows(moved), self._pairs(height, width, padded, x.device))
        grid = mixed.unflatten(1, (self.window, self.window)).unflatten(0, (len(x), padded[0] // self.window, -1))
        mixed = grid.transpose(2, 3).flatten(3, 4).flatten(1, 2).roll((self.shift, self.shift), (1, 2))
        x = x + self.attention_norm(mixed[:, :height, :width])
        return (x + self.mlp_norm(self.mlp(x))).permute(0, 3, 1, 2)
