"""What SiT does to an image before the network sees it: blocks of noise and of other images, or groups of masked pixels.

Every function draws from the generator that it is given, and from nothing else. Images are [B, C, H, W]; masks are bool
[B, H, W], True where a pixel may have changed.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tutelage.distillation.augmentation import grey
from tutelage.distillation.masks import group_mask
from tutelage.distillation.multi_view import blur
from tutelage.errors import InputError
from tutelage.fields import check_range

SIDES = (0.05, 0.25)
"""Sides of blocks, as shares of the image's."""
MOST = 0.3
"""Blocks are drawn until they hold U(0, 0.3) of the pixels, twice: noise, then other images."""


def block_masks(count: int, size: tuple[int, int], shares: Tensor, generator: torch.Generator) -> Tensor:
    """Unions of random blocks: drawn until the pixels of all blocks of an image, overlaps counted twice, reach its share.

    Args:
        count: B, images.
        size: (H, W).
        shares: [B], of the pixels; at most 0.3.
        generator: on the CPU.

    Returns:
        bool [B, H, W].
    """
    height, width = size
    least = max(1, round(SIDES[0] * height)) * max(1, round(SIDES[0] * width))
    most = math.ceil(MOST * height * width / least)
    u = torch.rand(4, count, most, generator=generator)
    tall, wide = (_sides(u[axis], side) for axis, side in enumerate((height, width)))
    area = tall * wide
    drawn = area.cumsum(1) - area < shares[:, None] * height * width  # what the blocks before it hold is not enough yet
    drawn = drawn[:, : max(1, int(drawn.sum(1).max()))]
    kept = drawn.shape[1]
    rows = _covered(u[2, :, :kept], tall[:, :kept], height) & drawn[..., None]
    columns = _covered(u[3, :, :kept], wide[:, :kept], width)
    return torch.einsum("bkh,bkw->bhw", rows.float(), columns.float()) > 0.5


def _sides(u: Tensor, side: int) -> Tensor:
    low, high = (max(1, round(share * side)) for share in SIDES)
    return low + (u * (high - low + 1)).long()


def _covered(u: Tensor, lengths: Tensor, side: int) -> Tensor:
    """[B, K, side]: the places of segments of these ``lengths`` [B, K] that lie inside, uniformly."""
    first = (u * (side - lengths + 1)).long()[..., None]
    places = torch.arange(side)
    return (places >= first) & (places < first + lengths[..., None])


def donors(images: Tensor, generator: torch.Generator) -> Tensor:
    """For each image another one of the batch, never itself.

    Raises:
        InputError: a batch of one.
    """
    count = len(images)
    if count < 2:
        raise InputError("one image has no other to take blocks from", where="batch_size", remedy="at least 2")
    return images[((torch.arange(count) + torch.randint(1, count, (count,), generator=generator)) % count).to(images.device)]


def replace_blocks(images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Blocks of unit normal noise, then blocks of the same place of another (clean) image: (images, mask)."""
    count, size = len(images), (images.shape[2], images.shape[3])
    noise, other = (block_masks(count, size, MOST * torch.rand(count, generator=generator), generator) for _ in range(2))
    noise, other = noise.to(images.device), other.to(images.device)
    normal = torch.randn(images.shape, generator=generator).to(images)
    changed = torch.where(noise[:, None], normal, images)
    return torch.where(other[:, None], donors(images, generator), changed), noise | other


def soften_rectangles(images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A random rectangle of each image turns grey, then one is blurred (sigma 0.1 to 5.1): (images, mask).

    Rectangles have sides of 1 pixel to the whole. The blur's kernel has 15 pixels, cut at small sigmas by the Gaussian itself;
    the paper also draws its size, 3 to 15 (our choice).
    """
    count, height, width = len(images), images.shape[2], images.shape[3]
    masks = []
    for _ in range(2):
        u = torch.rand(4, count, 1, generator=generator)
        rows, columns = (
            _covered(u[axis + 2], 1 + (u[axis] * side).long(), side)[:, 0] for axis, side in enumerate((height, width))
        )
        masks.append((rows[:, :, None] & columns[:, None, :]).to(images.device))
    images = torch.where(masks[0][:, None], grey(images).expand_as(images), images)
    sigma = 0.1 + 5 * torch.rand(count, generator=generator)
    soft = blur(images.cpu(), sigma, min(7, height - 1, width - 1)).to(images)
    return torch.where(masks[1][:, None], soft, images), masks[0] | masks[1]


def corrupt(images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The original corruption: a grey rectangle, a blurred one, blocks of noise, blocks of other images: (images, mask).

    Blocks come from clean images (the published code takes them from images that it has already changed).
    """
    soft, softened = soften_rectangles(images, generator)
    changed, replaced = replace_blocks(images, generator)
    return torch.where(replaced[:, None], changed, soft), softened | replaced


def mask_groups(images: Tensor, generator: torch.Generator, share: float = 0.5, align: int = 1) -> tuple[Tensor, Tensor]:
    """Group masked model learning (GMML), the later corruption: (images, mask).

    Blocks with sides of ``align`` to 0.3 of the image's become zero until they cover U(min(0.5, share), share) of the pixels. Half
    of the images are then made anew from the clean ones: 0.3 of the pixels come from the same place of another image.

    Raises:
        InputError: a share that leaves nothing to see or nothing to do, or an ``align`` that does not divide the sides.
    """
    check_range("share", share, 1e-6, 0.95)
    count, size = len(images), (images.shape[2], images.shape[3])
    u = torch.rand(2, count, generator=generator)
    low = min(0.5, share)
    other = u[0] < 0.5
    shares = torch.where(other, 0.3, low + (share - low) * u[1])
    seeds = torch.randint(2**31, (count,), generator=generator)
    mask = group_mask(seeds, size, shares.tolist(), align).to(images.device)
    filling = torch.where(other.to(images.device)[:, None, None, None], donors(images, generator), 0.0)
    return torch.where(mask[:, None], filling, images), mask
