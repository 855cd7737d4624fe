"""A small vision transformer for images and clips, with named tokens beside the patches and lists of patches to read."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from tutelage.errors import InputError
from tutelage.networks.attention import TransformerBlock
from tutelage.networks.layers import PatchEmbed, drop_path_rates, init_weights
from tutelage.networks.positions import resize_positions, sincos_positions


def gather_tokens(tokens: Tensor, indices: Tensor) -> Tensor:
    """The tokens [B, K, D] of [B, N, D] that ``indices`` [B, K] name."""
    return tokens.gather(1, indices[..., None].expand(-1, -1, tokens.shape[-1]))


def mask_indices(mask: Tensor) -> tuple[Tensor, Tensor]:
    """(visible [B, N - M], masked [B, M]) positions in raster order, of a mask [B, N] with M True in every row.

    Raises:
        InputError: rows with different numbers of masked tokens.
    """
    counts = mask.sum(1)
    if int(counts.min()) != int(counts.max()):
        raise InputError(
            f"rows mask between {int(counts.min())} and {int(counts.max())} tokens",
            where="mask",
            remedy="mask equally many tokens in every sample",
        )
    order = mask.to(torch.uint8).argsort(dim=1, stable=True)
    visible = mask.shape[1] - int(counts[0])
    return order[:, :visible], order[:, visible:]


def _ordered(tokens: Mapping[str, nn.Parameter]) -> nn.ParameterDict:
    return nn.ParameterDict(OrderedDict(tokens))  # a plain dict would be sorted by name


class VisionTransformer(nn.Module):
    """A pre-norm ViT (Dosovitskiy et al., 2021); images [B, C, H, W], or clips [B, C, T, H, W] for three-axis sizes.

    The sequence is the ``tokens`` in their given order, then the patches in raster order. Named tokens have no
    position: one that is learned is part of the token itself.

    Examples:
        >>> vit = VisionTransformer(32, 4, dim=48, tokens={"register": 4, "class": 1}, num_classes=10)
        >>> vit(images).shape, vit.forward_features(images)["patches"].shape
        (torch.Size([8, 10]), torch.Size([8, 64, 48]))

    Args:
        image_size: (H, W), (T, H, W), or the side of a square.
        patch_size: likewise; must divide ``image_size``.
        dim: width of the tokens.
        depth: number of blocks.
        num_heads: of each block.
        in_chans: channels of the input.
        mlp_ratio: hidden width of the MLPs over ``dim``.
        tokens: how many learned tokens of each name stand before the patches: ``class``, ``register``, a task's name.
        positions: ``learned`` (normal, 0.02), or ``sincos`` (a fixed table).
        num_classes: of the linear ``head``; 0: there is none.
        pool: the token whose mean feeds the head: a name, or ``patches``; None: ``class`` where there is one.
        drop_path: the last block's rate of stochastic depth.
        layer_scale: start value of a layer scale, or None.

    Raises:
        InputError: sizes that do not divide, or a ``pool`` that is no token.
    """

    def __init__(
        self,
        image_size: int | Sequence[int] = 32,
        patch_size: int | Sequence[int] = 4,
        dim: int = 64,
        depth: int = 4,
        num_heads: int = 4,
        in_chans: int = 3,
        mlp_ratio: float = 4,
        tokens: Mapping[str, int] | None = None,
        positions: str = "learned",
        num_classes: int = 0,
        pool: str | None = None,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
    ):
        super().__init__()
        image = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        patch = (patch_size,) * len(image) if isinstance(patch_size, int) else tuple(patch_size)
        if len(image) != len(patch) or any(side % part for side, part in zip(image, patch)):
            raise InputError(f"patches of {patch} do not divide inputs of {image}", where="patch_size")
        counts = {"class": 1} if tokens is None else dict(tokens)
        self.pool = pool or ("class" if counts.get("class") else "patches")
        if self.pool != "patches" and not counts.get(self.pool):
            raise InputError(f"there is no token {self.pool!r}", where="pool", remedy=f"one of {[*counts, 'patches']}")
        self.grid = tuple(side // part for side, part in zip(image, patch))
        self.dim = dim
        self.patch_embed = PatchEmbed(in_chans, dim, patch)
        self.tokens = _ordered({name: nn.Parameter(torch.zeros(n, dim)) for name, n in counts.items()})
        if positions == "learned":
            self.positions: Tensor = nn.Parameter(torch.zeros(math.prod(self.grid), dim))
        elif positions == "sincos":
            self.register_buffer("positions", sincos_positions(self.grid, dim))
        else:
            raise InputError(f"unknown positions {positions!r}", where="positions", remedy="learned or sincos")
        self.blocks = nn.ModuleList(
            TransformerBlock(dim, num_heads, mlp_ratio, rate, layer_scale, eps=1e-6)
            for rate in drop_path_rates(drop_path, [depth])[0]
        )
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, num_classes) if num_classes else nn.Identity()
        init_weights(self)
        for learned in (*self.tokens.values(), *([self.positions] if positions == "learned" else [])):
            nn.init.trunc_normal_(learned, std=0.02)

    def embed(self, images: Tensor) -> Tensor:
        """Patches with their positions [B, N, D]; inputs of another size get an interpolated table.

        Raises:
            InputError: inputs that whole patches do not cover, or with another number of axes.
        """
        patch = self.patch_embed.patch_size
        if images.ndim != len(patch) + 2 or any(side % part for side, part in zip(images.shape[2:], patch)):
            raise InputError(
                f"inputs {tuple(images.shape)} are not covered by patches of {patch}",
                where="images",
                remedy="[B, C, H, W] or [B, C, T, H, W], sides that the patch divides",
            )
        grid = [side // part for side, part in zip(images.shape[2:], patch)]
        return self.patch_embed(images) + resize_positions(self.positions, self.grid, grid)

    def forward_features(self, images: Tensor, keep: Tensor | None = None) -> dict[str, Tensor]:
        """Normed states by name: each of the ``tokens`` [B, count, D], and ``patches`` [B, N or K, D].

        Args:
            images: the input.
            keep: [B, K] int64, which patches are read, in this order; the others are never seen. None: all.
        """
        patches = self.embed(images)
        if keep is not None:
            patches = gather_tokens(patches, keep)
        counts = {name: len(token) for name, token in self.tokens.items()}
        prefix = [token.expand(len(patches), -1, -1) for token in self.tokens.values()]
        states = torch.cat([*prefix, patches], 1)
        for block in self.blocks:
            states = block(states)
        parts = self.norm(states).split([*counts.values(), patches.shape[1]], 1)
        return dict(zip((*counts, "patches"), parts))

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Logits [B, num_classes], or without a head the pooled state [B, D]."""
        return self.head(self.forward_features(images, keep)[self.pool].mean(1))

    def add_tokens(self, name: str, count: int, generator: torch.Generator, std: float | None = None) -> None:
        """Put ``count`` new tokens before all others, drawn from N(0, std^2); ``std`` None: ``dim ** -0.5``.

        Raises:
            InputError: there are tokens of that name.
        """
        if name in self.tokens or name == "patches":
            raise InputError(f"the network has tokens {name!r} already", where="name")
        scale = self.dim**-0.5 if std is None else std
        new = nn.Parameter((torch.randn(count, self.dim, generator=generator) * scale).to(self.norm.weight))
        self.tokens = _ordered({name: new, **self.tokens})
