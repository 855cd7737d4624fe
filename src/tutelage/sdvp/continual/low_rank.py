"""Small trainable parts beside frozen weights: low-rank updates and residual adapters, merged when the training job ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tutelage.errors import InputError
from tutelage.modules.visual_module import VisualModule
from tutelage.networks.lora import LAYERS, LowRankUpdate, untied_layers
from tutelage.sdvp.continual.base import ContinualStrategy
from tutelage.seeds import torch_rng

_MARK = "parametrizations."


class ResidualAdapter(nn.Module):
    """A residual adapter ``y + U D y`` behind a layer, applied to its weight and its bias: the same function (Rebuffi,
    Bilen, Vedaldi, 2017, without their normalisation). D is random [r, out] and U zero [out, r] at first."""

    def __init__(self, weight: Tensor, rank: int, seed: torch.Generator):
        super().__init__()
        rows = len(weight)
        rank = min(rank, rows)
        self.down = nn.Parameter(torch.randn(rank, rows, generator=seed) / rows**0.5)
        self.up = nn.Parameter(torch.zeros(rows, rank))

    def forward(self, weight: Tensor) -> Tensor:
        """The weight or bias in effect."""
        return weight + (self.up @ (self.down @ weight.flatten(1 if weight.ndim > 1 else 0))).view_as(weight)


@dataclass(frozen=True)
class MergedStrategy(ContinualStrategy):
    """What :class:`LoRA` and :class:`Adapter` share: only the added parts are trained, and they are merged at the end."""

    def attach(self, layer: nn.Module, weight: Tensor, seed: torch.Generator) -> None:
        """Add a part to one layer."""
        raise NotImplementedError

    def prepare(self, student: nn.Module, module: VisualModule) -> nn.Module:
        """The student with a part at every linear layer and convolution whose weight is its own; everything else is frozen.

        Raises:
            InputError: it has no such layer.
        """
        student.requires_grad_(False)
        layers = list(untied_layers(student))
        if not layers:
            raise InputError(
                f"{module.name} has no linear layer and no convolution", where=f"retain.{self.name}", remedy="choose l2sp"
            )
        for name, layer in layers:
            self.attach(layer, layer.get_parameter("weight"), torch_rng(0, self.name, name))
        return student

    def is_trainable(self, name: str) -> bool:
        """The added parts alone."""
        return _MARK in name and not name.endswith(".original")

    def finish(self, student: nn.Module) -> nn.Module:
        """The student with the parts merged into its weights."""
        for layer in [layer for layer in student.modules() if isinstance(layer, LAYERS)]:
            for tensor in list(getattr(layer, "parametrizations", {})):
                parametrize.remove_parametrizations(layer, tensor, leave_parametrized=True)
        return student.requires_grad_(True)


@dataclass(frozen=True)
class LoRA(MergedStrategy):
    """Low-rank updates ``W + (alpha / r) U D`` of every linear layer and convolution (Hu et al., 2021)."""

    name: ClassVar[str] = "lora"
    rank: int = 4
    alpha: float = 8.0

    def attach(self, layer: nn.Module, weight: Tensor, seed: torch.Generator) -> None:
        """On the weight."""
        parametrize.register_parametrization(layer, "weight", LowRankUpdate(weight, self.rank, self.alpha / self.rank, seed))


@dataclass(frozen=True)
class Adapter(MergedStrategy):
    """A residual adapter behind every linear layer and convolution, linear so that it can be merged (our choice)."""

    name: ClassVar[str] = "adapter"
    rank: int = 4

    def attach(self, layer: nn.Module, weight: Tensor, seed: torch.Generator) -> None:
        """On weight and bias alike."""
        part = ResidualAdapter(weight, self.rank, seed)
        parametrize.register_parametrization(layer, "weight", part)
        if getattr(layer, "bias", None) is not None:
            parametrize.register_parametrization(layer, "bias", part)
