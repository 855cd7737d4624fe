"""Learned tokens that are put into the layers of any transformer: registers, and deep prompts (Jia et al., 2022)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tutelage.errors import InputError


class TokenInjector(nn.Module):
    """Puts ``count`` learned tokens into each of the first ``depth`` blocks of a list of blocks.

    Before the first block the tokens are added; before each further one of the first ``depth`` blocks the outputs of
    the earlier tokens are replaced by that block's own; later blocks carry them on; behind the last block they are cut
    off, if ``drop`` says so. The tokens belong to the injector, not to the network: train and save them with it.

    Examples:
        >>> injector = TokenInjector(vit.blocks, count=4, dim=48, depth=2, generator=generator)
        >>> with injector:
        ...     logits = vit(images)

    Args:
        blocks: the blocks in order, such as ``model.vision_model.encoder.layers``. Each takes the states [B, N, D] as
            its first argument, and gives states or a tuple that begins with them.
        count: tokens per block.
        dim: D.
        depth: how many blocks get tokens of their own.
        position: index at which the tokens stand; negative: behind all others.
        drop: whether the tokens are cut off behind the last block.
        std: of their normal start.
        generator: a CPU generator for it.

    Raises:
        InputError: no block, or a depth outside 1..len(blocks).
    """

    def __init__(
        self,
        blocks: nn.ModuleList | nn.Sequential,
        count: int,
        dim: int,
        depth: int = 1,
        position: int = -1,
        drop: bool = True,
        std: float = 0.02,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        if not 1 <= depth <= len(blocks):
            raise InputError(f"{depth} of {len(blocks)} blocks cannot get tokens", where="depth")
        self.tokens = nn.Parameter(std * torch.randn(depth, count, dim, generator=generator))
        self.position = position
        self.drop = drop
        self._blocks = [list(blocks)]  # in a list: the injector does not own the network's parameters
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> TokenInjector:
        blocks = self._blocks[0]
        for index, block in enumerate(blocks[: len(self.tokens)]):
            hook = self._before(index)
            self._handles.append(block.register_forward_pre_hook(hook, with_kwargs=True))
        if self.drop:
            self._handles.append(blocks[-1].register_forward_hook(self._after))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _before(self, index: int) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
            if args:
                return (self._insert(args[0], index), *args[1:]), kwargs
            name = next(iter(kwargs))
            return args, {**kwargs, name: self._insert(kwargs[name], index)}

        return hook

    def _insert(self, states: Tensor, index: int) -> Tensor:
        if index:
            states = self._remove(states)
        where = states.shape[1] if self.position < 0 else self.position
        tokens = self.tokens[index].to(states.dtype).expand(len(states), -1, -1)
        return torch.cat([states[:, :where], tokens, states[:, where:]], 1)

    def _remove(self, states: Tensor) -> Tensor:
        count = self.tokens.shape[1]
        where = states.shape[1] - count if self.position < 0 else self.position
        return torch.cat([states[:, :where], states[:, where + count :]], 1)

    def _after(self, _: nn.Module, __: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (self._remove(output[0]), *output[1:])
        return self._remove(output)
