"""Causal mixers without attention: retention, Hyena and a diagonal state space; each maps [B, L, dim] -> [B, L, dim]."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.errors import InputError
from tutelage.networks.layers import Mlp
from tutelage.networks.positions import rotary_angles, rotate


class MixerBlock(nn.Module):
    """A pre-norm block: ``x + mixer(norm1(x))``, then ``x + mlp(norm2(x))``."""

    def __init__(self, dim: int, mixer: nn.Module):
        super().__init__()
        self.norm1, self.mixer = nn.LayerNorm(dim), mixer
        self.norm2, self.mlp = nn.LayerNorm(dim), Mlp(dim)

    def forward(self, x: Tensor) -> Tensor:
        """The next states."""
        x = x + self.mixer(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def causal_convolution(x: Tensor, kernel: Tensor) -> Tensor:
    """``y_t = sum_{s <= t} kernel_{t-s} x_s`` by channel: x [B, L, C], kernel [L, C]. By FFT: causal up to rounding."""
    length = x.shape[1]
    product = torch.fft.rfft(x, 2 * length, dim=1) * torch.fft.rfft(kernel, 2 * length, dim=0)
    return torch.fft.irfft(product, 2 * length, dim=1)[:, :length]


class Retention(nn.Module):
    """Multi-scale retention (Sun et al., 2023), parallel form: ``(Q K^T * D) V`` with rotary positions and
    ``D_ts = (1 - 2^(-5-h))^(t-s)`` for s <= t, a norm by head, and a gate.

    Raises:
        InputError: the heads do not divide the width into even parts.
    """

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        if dim % (2 * num_heads):
            raise InputError(f"{num_heads} heads of an even width do not make {dim}", where="num_heads")
        self.num_heads, self.head_dim = num_heads, dim // num_heads
        self.qkv, self.gate, self.out = nn.Linear(dim, 3 * dim, False), nn.Linear(dim, dim, False), nn.Linear(dim, dim, False)
        self.norm = nn.LayerNorm(self.head_dim, elementwise_affine=False)
        self.log_decay: Tensor
        self.register_buffer("log_decay", torch.log1p(-(2.0 ** (-5.0 - torch.arange(num_heads)))), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """The mixed states."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        steps = torch.arange(x.shape[1], device=x.device)
        angles = rotary_angles(steps.expand(len(x), -1), self.head_dim)
        distance = (steps[:, None] - steps).to(x.dtype)
        decay = (distance.clamp_min(0) * self.log_decay[:, None, None]).exp() * (distance >= 0)
        scores = rotate(q, *angles) @ rotate(k, *angles).transpose(-1, -2) * self.head_dim**-0.5 * decay
        mixed = self.norm(scores @ v).transpose(1, 2).flatten(2)
        return self.out(F.silu(self.gate(x)) * mixed)


class DiagonalStateSpace(nn.Module):
    """A diagonal state space by channel (Gupta et al., 2022; start values of S4D-Lin, Gu et al., 2022), then GELU and Linear.

    ``kernel_l = 2 Re sum_s c_s (exp(lambda_s delta) - 1) / lambda_s exp(lambda_s delta l)``, ``lambda_s = -exp(a_s) + i b_s``.
    """

    def __init__(self, dim: int, states: int = 16):
        super().__init__()
        low, high = math.log(1e-3), math.log(1e-1)
        self.log_delta = nn.Parameter(torch.rand(dim) * (high - low) + low)
        self.log_decay = nn.Parameter(torch.full((dim, states), math.log(0.5)))
        self.frequency = nn.Parameter(math.pi * torch.arange(states).float().repeat(dim, 1))
        self.mix = nn.Parameter(torch.randn(dim, states, 2) * 0.5**0.5)
        self.skip = nn.Parameter(torch.ones(dim))
        self.out = nn.Linear(dim, dim)

    def kernel(self, length: int) -> Tensor:
        """[length, dim]."""
        poles = torch.complex(-self.log_decay.exp(), self.frequency)
        scaled = poles * self.log_delta.exp()[:, None]
        weights = torch.view_as_complex(self.mix) * (scaled.exp() - 1) / poles
        powers = (scaled[..., None] * torch.arange(length, device=scaled.device)).exp()
        return 2 * torch.einsum("cs,csl->lc", weights, powers).real

    def forward(self, x: Tensor) -> Tensor:
        """The mixed states."""
        return self.out(F.gelu(causal_convolution(x, self.kernel(x.shape[1])) + self.skip * x))


class Hyena(nn.Module):
    """The Hyena operator (Poli et al., 2023): ``v <- gate_i * (filter_i conv v)``, ``order`` times.

    The long filters are an MLP with sine activations of the position, times an exponential decay; projections pass a causal
    convolution over three steps.
    """

    def __init__(self, dim: int, length: int, order: int = 3, hidden: int = 32, bands: int = 8):
        super().__init__()
        self.order = order
        self.project, self.out = nn.Linear(dim, (order + 1) * dim), nn.Linear(dim, dim)
        self.short = nn.Conv1d((order + 1) * dim, (order + 1) * dim, 3, padding=2, groups=(order + 1) * dim)
        time = torch.linspace(0, 1, length)[:, None]
        angles = 2 * math.pi * time * torch.arange(1, bands + 1)
        self.features: Tensor
        self.register_buffer("features", torch.cat([time, angles.cos(), angles.sin()], 1), persistent=False)
        self.first, self.second, self.last = (
            nn.Linear(2 * bands + 1, hidden),
            nn.Linear(hidden, hidden),
            nn.Linear(hidden, order * dim),
        )
        self.decay: Tensor
        self.register_buffer("decay", -torch.linspace(math.log(100) / 1.5, math.log(100) / 0.3, dim), persistent=False)
        self.skip = nn.Parameter(torch.ones(order, dim))

    def filters(self, length: int) -> Tensor:
        """[order, length, dim]."""
        features = self.features[:length]
        made = self.last(torch.sin(self.second(torch.sin(self.first(features)))))
        window = (features[:, :1] * self.decay).exp()
        return made.unflatten(1, (self.order, -1)).transpose(0, 1) * window

    def forward(self, x: Tensor) -> Tensor:
        """The mixed states."""
        length = x.shape[1]
        streams = self.short(self.project(x).transpose(1, 2))[..., :length].transpose(1, 2)
        value, *gates = streams.chunk(self.order + 1, -1)
        for gate, kernel, skip in zip(gates, self.filters(length), self.skip, strict=True):
            value = gate * (causal_convolution(value, kernel) + skip * value)
        return self.out(value)
