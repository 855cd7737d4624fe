"""Masked autoencoding (He et al., 2022): patches as vectors, and the decoder that fills in the tokens left out."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tutelage.errors import InputError
from tutelage.networks.attention import TransformerBlock
from tutelage.networks.layers import init_weights
from tutelage.networks.positions import sincos_positions
from tutelage.networks.vit import VisionTransformer, gather_tokens, mask_indices


def patchify(images: Tensor, patch_size: Sequence[int]) -> Tensor:
    """Images [B, C, H, W] or clips [B, C, T, H, W] -> pixels by patch [B, N, prod(patch) C], channels innermost."""
    axes = len(patch_size)
    for axis, size in enumerate(patch_size):
        images = images.unflatten(2 + 2 * axis, (-1, size))
    grid, inside = range(2, 2 + 2 * axes, 2), range(3, 3 + 2 * axes, 2)
    return images.permute(0, *grid, *inside, 1).flatten(1 + axes).flatten(1, axes)


def unpatchify(patches: Tensor, patch_size: Sequence[int], grid: Sequence[int]) -> Tensor:
    """The inverse of :func:`patchify`, for a known ``grid`` of patches."""
    axes = len(grid)
    x = patches.unflatten(2, (*patch_size, -1)).unflatten(1, tuple(grid))
    order = [0, 1 + 2 * axes]
    for axis in range(axes):
        order += [1 + axis, 1 + axes + axis]
    x = x.permute(*order)
    for axis in range(axes):
        x = x.flatten(2 + axis, 3 + axis)
    return x


def standardize_patches(patches: Tensor, eps: float = 1e-6) -> Tensor:
    """Each patch with mean 0 and unbiased variance 1 over its pixels: the target of MAE's standardised variant."""
    return (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True) + eps).sqrt()


def reconstruction_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each patch: [B, M, P] -> [B, M]."""
    return (prediction - target).square().mean(-1)


class MAEDecoder(nn.Module):
    """Reads the encoder's states of the visible patches, and mask tokens with positions for the others.

    Args:
        encoder_dim: width of the encoder's states.
        grid: of all patches.
        out_dim: numbers per patch: pixels, a teacher's width, or 1 for a score.
        dim: width of the decoder.
        depth: number of blocks.
        num_heads: of each block.
        mask_tokens: number of learned mask tokens, one for each type of mask.
    """

    def __init__(
        self,
        encoder_dim: int,
        grid: Sequence[int],
        out_dim: int,
        dim: int = 48,
        depth: int = 1,
        num_heads: int = 4,
        mask_tokens: int = 1,
    ):
        super().__init__()
        self.embed = nn.Linear(encoder_dim, dim)
        self.mask_token = nn.Parameter(torch.zeros(mask_tokens, dim))
        self.positions: Tensor
        self.register_buffer("positions", sincos_positions(grid, dim))
        self.blocks = nn.ModuleList(TransformerBlock(dim, num_heads, eps=1e-6) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, out_dim)
        init_weights(self)
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def forward(
        self,
        visible: Tensor,
        keep: Tensor,
        targets: Tensor | None = None,
        prefix: Tensor | None = None,
        mask_type: int = 0,
    ) -> Tensor:
        """Predictions for all N patches in raster order [B, N, out_dim], or for ``targets`` alone [B, M, out_dim].

        Args:
            visible: the encoder's states [B, K, encoder_dim].
            keep: their positions [B, K].
            targets: positions [B, M] to predict; only these get mask tokens. None: every position outside ``keep``.
            prefix: further states [B, P, encoder_dim] without position, such as the class token.
            mask_type: which mask token.
        """
        batch, total = len(visible), len(self.positions)
        masked = targets
        if masked is None:
            hidden = torch.ones(batch, total, dtype=torch.bool, device=keep.device).scatter(1, keep, False)
            masked = mask_indices(hidden)[1]
        positions = self.positions.expand(batch, -1, -1)
        mask_tokens = self.mask_token[mask_type] + gather_tokens(positions, masked)
        states = torch.cat([self.embed(visible) + gather_tokens(positions, keep), mask_tokens], 1)
        extra = 0 if prefix is None else prefix.shape[1]
        if prefix is not None:
            states = torch.cat([self.embed(prefix), states], 1)
        for block in self.blocks:
            states = block(states)
        states = self.head(self.norm(states[:, extra:]))
        if targets is not None:
            return states[:, keep.shape[1] :]
        order = torch.cat([keep, masked], 1).argsort(1)
        return gather_tokens(states, order)


class MaskedAutoencoder(nn.Module):
    """A :class:`VisionTransformer` and one :class:`MAEDecoder` that predicts the pixels of masked patches.

    Examples:
        >>> mae = MaskedAutoencoder(VisionTransformer(28, 4, in_chans=1, positions="sincos"), in_chans=1)
        >>> losses = mae.loss(images, mask)  # mask [B, 49], equally many True in every row

    Args:
        encoder: reads the visible patches.
        in_chans: channels of the images.
        dim: width of the decoder.
        depth: its number of blocks.
        num_heads: of each block.
        standardize: whether targets are :func:`standardize_patches`.
    """

    def __init__(
        self,
        encoder: VisionTransformer,
        in_chans: int = 3,
        dim: int = 48,
        depth: int = 1,
        num_heads: int = 4,
        standardize: bool = True,
    ):
        super().__init__()
        self.encoder = encoder
        self.standardize = standardize
        pixels = math.prod(encoder.patch_embed.patch_size) * in_chans
        self.decoder = MAEDecoder(encoder.dim, encoder.grid, pixels, dim, depth, num_heads)

    def forward(self, images: Tensor, mask: Tensor) -> Tensor:
        """Predicted pixels of all patches in raster order [B, N, P]; ``mask`` [B, N], True: hidden from the encoder.

        Raises:
            InputError: a mask of another length, or rows with different numbers of masked patches.
        """
        if mask.shape[1] != math.prod(self.encoder.grid):
            raise InputError(f"{mask.shape[1]} places for {math.prod(self.encoder.grid)} patches", where="mask")
        keep, _ = mask_indices(mask)
        features = self.encoder.forward_features(images, keep)
        named = [state for name, state in features.items() if name != "patches"]
        return self.decoder(features["patches"], keep, prefix=torch.cat(named, 1) if named else None)

    def target(self, images: Tensor) -> Tensor:
        """What is to be predicted [B, N, P], without gradient."""
        patches = patchify(images.detach(), self.encoder.patch_embed.patch_size)
        return standardize_patches(patches) if self.standardize else patches

    def loss(self, images: Tensor, mask: Tensor) -> Tensor:
        """Error of each sample [B]: mean over its masked patches of :func:`reconstruction_error`."""
        errors = reconstruction_error(self(images, mask), self.target(images))
        return (errors * mask).sum(1) / mask.sum(1).clamp_min(1)
