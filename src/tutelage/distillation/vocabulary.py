"""Token ids against the embeddings they are looked up in: which vocabulary each network has, and whether the ids fit."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.distillation.data import Tree, flatten_tree
from tutelage.errors import InputError


@contextlib.contextmanager
def vocabularies(network: nn.Module, inputs: Tree, owner: str) -> Iterator[dict[str, int]]:
    """While open, note how many words ``network`` knows for each input of token ids that it embeds, by the input's name.

    Inputs that no ``nn.Embedding`` of the network is given as they are (pixels, masks) are not noted.

    Raises:
        InputError: an id outside the network's vocabulary, before the look-up fails.
    """
    tokens = {path or "inputs": leaf for path, leaf in flatten_tree(inputs) if not leaf.is_floating_point()}
    found: dict[str, int] = {}

    def look(module: nn.Module, args: tuple[Any, ...]) -> None:
        assert isinstance(module, nn.Embedding)
        for name, ids in tokens.items():
            if args and isinstance(args[0], Tensor) and args[0].shape == ids.shape and torch.equal(args[0], ids):
                found[name] = module.num_embeddings
                low, high = int(ids.min()), int(ids.max())
                if low < 0 or high >= module.num_embeddings:
                    raise InputError(
                        f"an id is {low if low < 0 else high}, the {owner} knows {module.num_embeddings} "
                        f"(0 to {module.num_embeddings - 1})",
                        where=name,
                        remedy="give both networks the tokenizer and the vocabulary that the ids were made with",
                    )

    modules = [module for module in network.modules() if isinstance(module, nn.Embedding)] if tokens else []
    handles = [module.register_forward_pre_hook(look) for module in modules]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
