"""Outputs of a network as named heads, and the loss terms made of them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from tutelage.distillation.data import Tree
from tutelage.errors import InputError

Output = dict[str, Tensor]
"""Named heads of one forward pass. A network that returns a bare tensor has the one head ``logits``."""


class Heads(dict[str, Tensor]):
    """An :data:`Output` that knows whose heads they are: one that is not there is refused by name.

    Raises:
        InputError: the network has no such head.
    """

    def __init__(self, network: str, heads: Mapping[str, Tensor]):
        super().__init__(heads)
        self.network = network

    def __missing__(self, name: str) -> Tensor:
        remedy = f"it has {', '.join(self)}: return a dict that holds {name!r} too, or take a network that does"
        raise InputError(f"{self.network} has no head {name!r}", where="heads", remedy=remedy)


Terms = dict[str, Tensor]
"""Named, unweighted scalars whose weighted sum is the loss."""


@functools.lru_cache(maxsize=256)
def _takes_one(forward: Callable[..., Any]) -> bool:
    """Whether a network's ``forward`` has exactly one positional parameter, and so takes a dict whole."""
    given = list(inspect.signature(forward).parameters.values())[1:]
    positional = [p for p in given if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return len(positional) == 1 and not any(p.kind == p.VAR_POSITIONAL for p in given)


def unwrap_model(network: nn.Module) -> nn.Module:
    """The network itself, inside ``torch.compile`` and ``DistributedDataParallel``."""
    while True:
        inner = getattr(network, "_orig_mod", None)
        if inner is None and type(network).__name__ in ("DistributedDataParallel", "DataParallel"):
            inner = network.module
        if not isinstance(inner, nn.Module):
            return network
        network = inner


def forward_heads(network: nn.Module, inputs: Tree) -> Output:
    """One forward pass as named heads.

    A tensor is passed as it is, a tuple as positional arguments; a dict as the one argument where the network's
    ``forward`` has one, by keyword where it has several. A bare tensor comes back as ``{"logits": tensor}``; of a dict
    (a ``transformers`` output too) the tensors are kept under their names.

    Raises:
        InputError: the network returns neither a tensor nor a dict of tensors.
    """
    if isinstance(inputs, Tensor):
        output = network(inputs)
    elif isinstance(inputs, Mapping):
        output = network(inputs) if _takes_one(type(unwrap_model(network)).forward) else network(**inputs)
    else:
        output = network(*inputs)
    name = type(unwrap_model(network)).__name__
    if isinstance(output, Tensor):
        return Heads(name, {"logits": output})
    if isinstance(output, Mapping):
        return Heads(name, {head: item for head, item in output.items() if isinstance(item, Tensor)})
    raise InputError(
        f"{name} returned {type(output).__name__}",
        remedy="return a tensor, or a dict of named tensors",
    )
