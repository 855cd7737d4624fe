"""Domain-adversarial parts (Ganin et al., 2016): gradient reversal, discriminators and their loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.errors import InputError


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return -ctx.scale * gradients[0], None


def reverse_gradient(x: Tensor, scale: float = 1.0) -> Tensor:
    """``x``; the gradient that comes back is multiplied by ``-scale``."""
    return _Reverse.apply(x, scale)


def reversal_scale(progress: float, highest: float = 1.0, gain: float = 10.0) -> float:
    """``highest (2 / (1 + exp(-gain p)) - 1)``: 0 at the start of training, near ``highest`` later (Ganin et al., 2016,
    section 5.2.2); ``progress`` in 0..1."""
    return highest * (2 / (1 + math.exp(-gain * progress)) - 1)


class Discriminator(nn.Module):
    """Says which domain features come from, behind a gradient reversal: [..., dim] -> logits [..., domains].

    Args:
        dim: of the features.
        hidden_dim: of the layers between.
        depth: number of linear layers.
        domains: number of domains.
        reverse: whether the gradient to the features is reversed; ``scale`` may be set during training.
    """

    def __init__(self, dim: int, hidden_dim: int = 64, depth: int = 3, domains: int = 2, reverse: bool = True):
        super().__init__()
        widths = [dim, *[hidden_dim] * (depth - 1), domains]
        layers: list[nn.Module] = []
        for before, after in zip(widths, widths[1:]):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.net = nn.Sequential(*layers[:-1])
        self.reverse = reverse
        self.scale = 1.0

    def forward(self, features: Tensor) -> Tensor:
        """The logits."""
        return self.net(reverse_gradient(features, self.scale) if self.reverse else features)


def domain_loss(logits: Tensor, domains: Tensor) -> Tensor:
    """Cross-entropy with every domain of equal weight: the mean over the domains present of the mean over their samples.

    Args:
        logits: [B, D], or [B, N, D] for N tokens of each sample.
        domains: [B] int64.

    Raises:
        InputError: logits of another shape.
    """
    if logits.ndim not in (2, 3) or len(logits) != len(domains):
        raise InputError(f"logits {tuple(logits.shape)} for {len(domains)} samples", where="logits")
    tokens = logits if logits.ndim == 3 else logits[:, None]
    wanted = domains[:, None].expand(-1, tokens.shape[1])
    losses = F.cross_entropy(tokens.flatten(0, 1), wanted.flatten(), reduction="none").view(wanted.shape).mean(1)
    return torch.stack([losses[domains == domain].mean() for domain in domains.unique()]).mean()


def cascade_loss(discriminator: nn.Module, layers: Sequence[Tensor], domains: Tensor) -> Tensor:
    """:func:`domain_loss` of one shared discriminator on the states of every layer, averaged (Wang et al., 2021)."""
    return torch.stack([domain_loss(discriminator(states), domains) for states in layers]).mean()
