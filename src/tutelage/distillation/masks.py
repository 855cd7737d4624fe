"""Masks over tokens and pixels, drawn row by row from view seeds: a mask can be replayed bit for bit.

Every function takes ``seeds`` [B] int64 (those of the batch) and returns bool on the CPU, True where something is hidden.
Two masks of one view come from different ``stream`` numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tutelage.distillation.augmentation import random_draws
from tutelage.errors import InputError
from tutelage.fields import check_pair, check_range


def random_mask(seeds: Tensor, tokens: int, ratio: float, stream: int = 101) -> Tensor:
    """``tokens - floor(tokens (1 - ratio))`` places of every row, uniformly: [B, tokens] (He et al., 2022).

    Raises:
        InputError: a ratio outside 0..1.
    """
    return hard_mask(None, seeds, tokens, ratio, 0.0, stream)


def masked_count(tokens: int, ratio: float) -> int:
    """``tokens - floor(tokens (1 - ratio))``, the number of masked places."""
    check_range("ratio", ratio, 0, 1)
    check_range("tokens", tokens, 1, 10**9, whole=True)
    return tokens - math.floor(tokens * (1 - ratio) + 1e-9)  # 10 (1 - 0.9) is 0.9999…


def hard_mask(scores: Tensor | None, seeds: Tensor, tokens: int, ratio: float, hard_share: float, stream: int = 101) -> Tensor:
    """M places of every row: the ``floor(M hard_share)`` of highest score, the others uniformly (HPM, Wang et al., 2023).

    Args:
        scores: difficulty of each place [B, tokens]; None where ``hard_share`` is 0.
        seeds: [B].
        tokens: number of places.
        ratio: M = :func:`masked_count` of it.
        hard_share: 0 (all at random) to 1 (the M hardest).
        stream: see the module.

    Raises:
        InputError: shares outside 0..1, or no scores where some are needed.
    """
    count = masked_count(tokens, ratio)
    if not 0 <= hard_share <= 1 or (hard_share > 0 and (scores is None or scores.shape != (len(seeds), tokens))):
        raise InputError(
            f"a hard share of {hard_share} needs scores [{len(seeds)}, {tokens}]",
            where="hard_share",
            remedy="0 to 1",
        )
    order = random_draws(seeds, stream, tokens)
    hard = math.floor(count * hard_share + 1e-9)
    if hard and scores is not None:
        hardest = scores.detach().float().cpu().topk(hard, 1).indices
        order = order.scatter(1, hardest, -1.0)
    places = order.argsort(dim=1, stable=True)[:, :count]
    return torch.zeros(len(seeds), tokens, dtype=torch.bool).scatter(1, places, True)


def block_mask(
    seeds: Tensor,
    grid: tuple[int, int],
    blocks: int,
    share: float,
    aspect: tuple[float, float] = (0.75, 1.5),
    stream: int = 102,
) -> Tensor:
    """The union of ``blocks`` rectangles of one size: [B, grid] (V-JEPA, Bardes et al., 2024).

    The size is drawn once for the batch, from its first seed: n = int(H W share) cells, a ratio r of the sides uniform in
    ``aspect``, sides ``round(sqrt(n r))`` and ``round(sqrt(n / r))``, at most the grid's. Each rectangle's place is
    uniform over all that fit.

    Args:
        seeds: [B].
        grid: (height, width) in tokens.
        blocks: number of rectangles in a sample.
        share: of the cells, of each.
        aspect: see above.
        stream: see the module.

    Raises:
        InputError: a size below 1, a share outside 0..1, or sides that are no rising pair above 0.
    """
    height, width = grid
    check_range("grid", min(grid), 1, 10**6, whole=True)
    check_range("blocks", blocks, 1, 10**6, whole=True)
    check_range("share", share, 0, 1)
    check_pair("aspect", aspect, 1e-6, 1e6)
    if not len(seeds):
        return torch.zeros(0, height, width, dtype=torch.bool)
    low, high = aspect
    ratio = low + (high - low) * float(random_draws(seeds[:1], stream, 1)[0, 0])
    cells = int(height * width * share)
    tall = max(1, min(round(math.sqrt(cells * ratio)), height))
    wide = max(1, min(round(math.sqrt(cells / ratio)), width))
    places = random_draws(seeds, stream + 1000, 2 * blocks)
    top = (places[:, :blocks] * (height - tall + 1)).long()
    left = (places[:, blocks:] * (width - wide + 1)).long()
    y, x = torch.arange(height), torch.arange(width)
    rows = (y >= top[..., None]) & (y < top[..., None] + tall)
    columns = (x >= left[..., None]) & (x < left[..., None] + wide)
    return (rows[..., :, None] & columns[..., None, :]).any(1)


def index_lists(mask: Tensor, seeds: Tensor, stream: int = 103) -> tuple[Tensor, Tensor]:
    """(context, target) index lists [B, K], [B, M] of a mask [B, N], True marking targets; each list sorted.

    Lists of one batch must be equally long: the longer ones lose places **at random**, for a cut in raster order would
    always lose the same places.

    Raises:
        InputError: a sample without context, or without target.
    """
    if mask.ndim < 2 or len(mask) != len(seeds):
        raise InputError(f"a mask {list(mask.shape)} for {len(seeds)} samples", where="mask", remedy="[B, N], a row a sample")
    flat = mask.flatten(1)
    targets = flat.sum(1)
    fewest, most = int(targets.min()), int(targets.max())
    if fewest == 0 or most == flat.shape[1]:
        raise InputError("a sample has no context or no target", where="mask", remedy="fewer or smaller blocks")
    noise = random_draws(seeds, stream, flat.shape[1])
    target = torch.where(flat, noise, 2.0).argsort(1)[:, :fewest].sort(1).values
    context = torch.where(flat, 2.0, noise).argsort(1)[:, : flat.shape[1] - most].sort(1).values
    return context, target


def group_mask(
    seeds: Tensor,
    size: tuple[int, int],
    share: float | Sequence[float],
    align: int = 1,
    side: float = 0.3,
    stream: int = 104,
) -> Tensor:
    """Groups of pixels (GMML, Atito et al., 2021): random blocks until the mask covers its share; [B, H, W].

    Block sides lie in ``align .. side H`` (and W), in multiples of ``align``; corners are uniform over all aligned places,
    and blocks are cut at the border. The cover is at least the share, and below it plus one block.

    Args:
        seeds: [B].
        size: (H, W) in pixels, or tokens.
        share: of the cells to cover, one number or one a sample.
        align: step of sides and corners; the patch size makes the mask a union of whole patches.
        side: longest side of a block over the image's.
        stream: see the module.

    Raises:
        InputError: a share outside 0..1, or a step that does not divide the size.
    """
    height, width = size
    check_range("align", align, 1, 10**6, whole=True)
    check_range("side", side, 1e-6, 1)
    shares = [share] * len(seeds) if isinstance(share, (int, float)) else list(share)
    if height % align or width % align or not all(0 <= s <= 1 for s in shares):
        raise InputError(
            f"cannot cover {shares[:1]} of {size} in steps of {align}",
            where="share",
            remedy="0..1; a step that divides",
        )
    if len(shares) != len(seeds):
        raise InputError(f"{len(shares)} shares for {len(seeds)} samples", where="share", remedy="one number, or one a sample")
    rows, columns = height // align, width // align
    tallest, widest = max(1, int(side * height) // align), max(1, int(side * width) // align)
    mask = torch.zeros(len(seeds), rows, columns, dtype=torch.bool)
    for i, wanted in enumerate(shares):
        drawn, used = random_draws(seeds[i : i + 1], stream, 256)[0].tolist(), 0
        while int(mask[i].sum()) < wanted * rows * columns - 1e-6:
            if used + 4 > len(drawn):
                drawn = random_draws(seeds[i : i + 1], stream, 2 * len(drawn))[0].tolist()
            tall, wide, top, left = drawn[used : used + 4]
            used += 4
            y, x = int(top * rows), int(left * columns)
            mask[i, y : y + 1 + int(tall * tallest), x : x + 1 + int(wide * widest)] = True
    return mask.repeat_interleave(align, 1).repeat_interleave(align, 2)


def mask_tokens(
    ids: Tensor,
    seeds: Tensor,
    real: Tensor,
    mask_id: int,
    vocab_size: int,
    ratio: float = 0.15,
    ignore: int = -100,
    stream: int = 105,
) -> tuple[Tensor, Tensor]:
    """Inputs and labels [B, L] of masked language modelling (Devlin et al., 2019): of the chosen tokens 80 % become the
    mask token, 10 % a random one, 10 % stay; labels are the chosen tokens, ``ignore`` elsewhere.

    Each real token is chosen with probability ``ratio``, alone; a row without any choice gets its most likely one.

    Args:
        ids: [B, L] int64 on the CPU.
        seeds: [B].
        real: [B, L], True for tokens that may be chosen: no padding, no separators.
        mask_id: the mask token.
        vocab_size: random tokens are drawn below it.
        ratio: see above.
        ignore: the label of tokens that were not chosen.
        stream: see the module.

    Raises:
        InputError: shapes that differ, a ratio outside 0..1, or an empty vocabulary.
    """
    check_range("ratio", ratio, 0, 1)
    check_range("vocab_size", vocab_size, 1, 10**9, whole=True)
    if ids.ndim != 2 or real.shape != ids.shape or len(seeds) != len(ids):
        found = f"{list(ids.shape)} ids, {list(real.shape)} real, {len(seeds)} seeds"
        raise InputError(found, where="real", remedy="give ids and real of one shape [B, L], and B seeds")
    length = ids.shape[1]
    numbers = random_draws(seeds, stream, 3 * length)
    chance, action, other = numbers.split(length, 1)
    chance = chance.masked_fill(~real.bool(), 2.0)
    chosen = (chance < ratio) | (chance == chance.amin(1, keepdim=True)) & real.bool()
    inputs = torch.where(chosen & (action < 0.8), mask_id, ids)
    inputs = torch.where(chosen & (action >= 0.9), (other * vocab_size).long(), inputs)
    return inputs, torch.where(chosen, ids, ignore)
