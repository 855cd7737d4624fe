"""Low-rank adaptation (Hu et al., 2021) of the layers that patterns name, and its merge into plain weights.

Example:
    >>> names = add_lora(network, ["blocks.*.attention.*"], rank=4, alpha=8, generator=generator)
    >>> train(network)  # only the added matrices learn
    >>> deltas = merge_lora(network)  # the same names and shapes as before
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatch

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tutelage.errors import InputError

LAYERS = (nn.Linear, nn.Conv2d)


class LowRankUpdate(nn.Module):
    """``W + scale U D`` with D random [r, in] and U zero [out, r] at first; a convolution's weight is read as a matrix
    [out, in kh kw]."""

    def __init__(self, weight: Tensor, rank: int, scale: float, generator: torch.Generator):
        super().__init__()
        rows, columns = weight.flatten(1).shape
        rank = min(rank, rows, columns)
        self.scale = scale
        self.down = nn.Parameter((torch.randn(rank, columns, generator=generator) / columns**0.5).to(weight))
        self.up = nn.Parameter(torch.zeros(rows, rank).to(weight))

    def forward(self, weight: Tensor) -> Tensor:
        """The weight in effect."""
        return weight + self.scale * (self.up @ self.down).view_as(weight)


class BlockedLowRankUpdate(nn.Module):
    """The factors of convolutional LoRA: ``W + scale reshape(U D)`` for a square kernel k, W [o, i, k, k], with
    D [r k, i k] uniform (Kaiming, a = sqrt 5) and U [o k, r k] zero at first (DSCLoRA, Chai et al., 2025).

    Raises:
        InputError: a weight that is no square 2-D kernel.
    """

    def __init__(self, weight: Tensor, rank: int, scale: float, generator: torch.Generator):
        super().__init__()
        if weight.ndim != 4 or weight.shape[2] != weight.shape[3]:
            raise InputError(f"a weight {tuple(weight.shape)} is no square kernel", where="lora", remedy="blocked=False")
        outputs, inputs, kernel = weight.shape[:3]
        self.scale = scale
        bound = (inputs * kernel) ** -0.5
        down = torch.rand(rank * kernel, inputs * kernel, generator=generator) * 2 - 1
        self.down = nn.Parameter((down * bound).to(weight))
        self.up = nn.Parameter(torch.zeros(outputs * kernel, rank * kernel).to(weight))

    def forward(self, weight: Tensor) -> Tensor:
        """The weight in effect."""
        return weight + self.scale * (self.up @ self.down).view_as(weight)


def untied_layers(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Linear layers and convolutions by name, without those whose weight is another layer's too: what is merged into a
    tied weight would change both."""
    uses = Counter(id(parameter) for _, parameter in network.named_parameters(remove_duplicate=False))
    for name, layer in network.named_modules():
        if isinstance(layer, LAYERS) and uses[id(layer.weight)] == 1:
            yield name, layer


def add_lora(
    network: nn.Module,
    patterns: Sequence[str] = ("*",),
    rank: int = 4,
    alpha: float = 8.0,
    generator: torch.Generator | None = None,
    blocked: bool = False,
    freeze: bool = True,
) -> list[str]:
    """Add a low-rank update, scaled ``alpha / rank``, to the layers that match; the outputs do not change at first.

    Args:
        network: changed in place.
        patterns: of module names, as for file names.
        rank: of each update.
        alpha: see above.
        generator: a CPU generator for the random factor; None: one of seed 0.
        blocked: the factors of :class:`BlockedLowRankUpdate` for square 2-D kernels.
        freeze: whether every other parameter of the network stops learning.

    Returns:
        The names of the layers.

    Raises:
        InputError: a pattern that matches no linear layer or convolution, a layer that has an update already, or a
            rank below 1.
    """
    if rank < 1:
        raise InputError(f"a rank is at least 1, this is {rank}", where="rank")
    for name, layer in network.named_modules():
        if parametrize.is_parametrized(layer, "weight") and any(fnmatch(name, pattern) for pattern in patterns):
            raise InputError("the layer has an update already", where=name, remedy="merge it first: merge_lora(network)")
    layers = dict(untied_layers(network))
    chosen = [name for name in layers if any(fnmatch(name, pattern) for pattern in patterns)]
    for pattern in patterns:
        if not any(fnmatch(name, pattern) for name in layers):
            raise InputError(
                f"{pattern!r} matches no linear layer and no convolution with a weight of its own",
                where="patterns",
                remedy=f"such as {', '.join(list(layers)[:4])}",
            )
    generator = generator or torch.Generator().manual_seed(0)
    if freeze:
        network.requires_grad_(False)
    for name in chosen:
        layer = layers[name]
        weight = layer.get_parameter("weight")
        square = blocked and weight.ndim == 4 and weight.shape[2] == weight.shape[3]
        update = (BlockedLowRankUpdate if square else LowRankUpdate)(weight, rank, alpha / rank, generator)
        parametrize.register_parametrization(layer, "weight", update)
    return chosen


def lora_parameters(network: nn.Module) -> list[nn.Parameter]:
    """The added matrices."""
    return [
        parameter
        for module in network.modules()
        if isinstance(module, (LowRankUpdate, BlockedLowRankUpdate))
        for parameter in module.parameters()
    ]


def merge_lora(network: nn.Module) -> dict[str, Tensor]:
    """Merge every update into its weight: the network has the names, shapes and parameters that it had before.

    Which parameters learn (``requires_grad``) is left as it is.

    Returns:
        What was added to the weight of each layer, by its name: :func:`unmerge_lora` takes it away.

    Raises:
        InputError: there is no update.
    """
    deltas: dict[str, Tensor] = {}
    with torch.no_grad():
        for name, layer in list(network.named_modules()):
            updates = getattr(layer, "parametrizations", {})
            if "weight" not in updates or not isinstance(updates["weight"][0], (LowRankUpdate, BlockedLowRankUpdate)):
                continue
            original = updates["weight"].original.clone()
            # torch takes the property off the layer's class, which a deep copy shares with its original
            layer.__class__ = type(type(layer).__name__, type(layer).__bases__, dict(vars(type(layer))))
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
            deltas[name] = layer.get_parameter("weight") - original
    if not deltas:
        raise InputError("no layer has a low-rank update", where="network", remedy="they are merged already, or add_lora")
    return deltas


def unmerge_lora(network: nn.Module, deltas: Mapping[str, Tensor]) -> None:
    """Take what :func:`merge_lora` added out of the weights again (to rounding)."""
    with torch.no_grad():
        for name, delta in deltas.items():
            network.get_submodule(name).get_parameter("weight").sub_(delta)
