"""The teacher of PH-Reg: a vision transformer's patch features, averaged over shifted and mirrored views of the image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tutelage.distillation.augmentation import random_draws
from tutelage.distillation.cache import view_key
from tutelage.distillation.data import Batch
from tutelage.distillation.teacher import NetworkTeacher
from tutelage.errors import InputError
from tutelage.networks.registers import find_parts, patch_grid, patch_tokens
from tutelage.storage import fingerprint

if TYPE_CHECKING:
    from tutelage.distillation.outputs import Output, Tree

WHITE = (2.249, 2.429, 2.640)
"""White under ImageNet's normalisation, (1 - mean) / std."""


def images_of(inputs: Tree) -> Tensor:
    """The images [B, C, H, W] of a batch: the input itself, or its entry ``pixel_values``.

    Raises:
        InputError: there are none.
    """
    images = inputs.get("pixel_values") if isinstance(inputs, dict) else inputs
    if not isinstance(images, Tensor) or images.ndim != 4:
        raise InputError("the inputs hold no images", where="data", remedy="give images [B, C, H, W], or pixel_values")
    return images


def shifted(grid: Tensor, offsets: Tensor, flips: Tensor, fill: Tensor) -> Tensor:
    """``view[b, :, h, w] = grid[b, :, h + oh, w + ow]``, ``fill`` where that lies outside; then mirrored where ``flips``.

    Args:
        grid: [B, C, H, W].
        offsets: (oh, ow) of each row [B, 2], in cells.
        flips: [B] bool, left for right.
        fill: [C].
    """
    height, width = grid.shape[2:]
    rows = torch.arange(height, device=grid.device) + offsets[:, :1]
    columns = torch.arange(width, device=grid.device).expand(len(grid), -1)
    columns = torch.where(flips[:, None], width - 1 - columns, columns) + offsets[:, 1:]
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None]
    batch = torch.arange(len(grid), device=grid.device)[:, None, None]
    picked = grid[batch, :, rows.clamp(0, height - 1)[:, :, None], columns.clamp(0, width - 1)[:, None]]
    return torch.where(inside[:, None], picked.permute(0, 3, 1, 2), fill[:, None, None])


def farthest(candidates: Tensor, first: Tensor, count: int) -> Tensor:
    """``count`` of the ``candidates`` [B, M, 2] by farthest point sampling: [B, count, 2].

    Begins with candidate ``first`` [B]; each next one has the largest squared distance to the nearest chosen one; among
    equals, the first.
    """
    batch = torch.arange(len(candidates))
    chosen = [candidates[batch, first]]
    nearest = torch.full(candidates.shape[:2], torch.iinfo(torch.int64).max)
    for _ in range(count - 1):
        nearest = nearest.minimum((candidates - chosen[-1][:, None]).square().sum(-1))
        chosen.append(candidates[batch, nearest.argmax(1)])
    return torch.stack(chosen, 1)


def draw_views(keys: Tensor, views: int, most: Sequence[int], flip: float = 0.5) -> tuple[Tensor, Tensor]:
    """Offsets [B, views, 2] within +-``most`` (rows, columns), and flips [B, views] bool, of each key [B] int64.

    10 ``views`` candidates are drawn uniformly; as many as there are views are kept by :func:`farthest`, from a random one on.
    Then the first becomes (0, 0) and is never mirrored. So (0, 0) may occur twice, as in the authors' code.
    """
    count = 10 * views
    draws = random_draws(keys, 0, 2 * count).unflatten(1, (count, 2))
    reach = torch.tensor(list(most))
    candidates = (draws * (2 * reach + 1)).long() - reach
    first = (random_draws(keys, 1, 1)[:, 0] * count).long()
    offsets, flips = farthest(candidates, first, views), random_draws(keys, 2, views) < flip
    offsets[:, 0], flips[:, 0] = 0, False
    return offsets, flips


class ShiftedAverage(NetworkTeacher):
    """The frozen network on ``views`` shifted views of each image; ``patches`` [B, N, D] is each patch's mean token.

    A view is the image shifted by whole patches, filled with white, and mirrored with probability ``flip``. Tokens behind the
    final norm are put back to the patch of the image that they come from, and averaged over the views that show it; the
    first view is the image itself, so that every patch is shown. What depends on the position in the view averages out.

    Views are drawn from sample id and view seed: the same sample in the same view has the same target, so that a cache
    holds it exactly, and training then costs one pass of the student.

    Examples:
        >>> ShiftedAverage(vit)(Batch(images, ids=torch.arange(8), seeds=torch.zeros(8, dtype=torch.int64)))["patches"].shape
        torch.Size([8, 1369, 384])

    Args:
        network: any ViT, see :func:`tutelage.networks.registers.find_parts`.
        views: n.
        shift: the largest shift, as a share of the grid's side, rounded to whole patches.
        flip: probability that a view is mirrored.
        fill: the value of white after normalisation, of each channel or of all.
        named: names of parts, see ``find_parts``.

    Raises:
        InputError: no views or more than there are shifts, a grid too small to shift, samples without ids, or a ``fill`` for
            other channels.
    """

    def __init__(
        self,
        network: nn.Module,
        views: int = 10,
        shift: float = 0.15,
        flip: float = 0.5,
        fill: float | Sequence[float] = WHITE,
        **named: str,
    ):
        super().__init__(network)
        if views < 1:
            raise InputError(f"{views} views", where="views", remedy="at least 1; the paper has 10")
        if not 0 < shift < 1 or not 0 <= flip <= 1:
            raise InputError(f"shift {shift}, flip {flip}", where="shift", remedy="shares: 0.15 and 0.5 in the paper")
        self.parts = find_parts(network, **named)
        self.views, self.shift, self.flip = views, shift, flip
        self.fill = (float(fill),) if isinstance(fill, (int, float)) else tuple(map(float, fill))

    def predict(self, batch: Batch) -> Output:
        """``patches`` [B, N, D]."""
        images = images_of(batch.inputs)
        grid = patch_grid(self.network, images, self.parts)
        offsets, flips = (part.to(images.device) for part in self._views(batch, grid))
        patch = torch.tensor([side // cells for side, cells in zip(images.shape[2:], grid)], device=images.device)
        if len(self.fill) not in (1, images.shape[1]):
            raise InputError(
                f"{len(self.fill)} values of white for {images.shape[1]} channels", where="fill", remedy="one a channel, or one"
            )
        white = images.new_tensor(self.fill).expand(images.shape[1])
        cells = torch.arange(grid[0] * grid[1], device=images.device).view(1, 1, *grid).expand(len(images), -1, -1, -1)
        outside = torch.full((1,), grid[0] * grid[1], device=images.device)
        total, count = torch.zeros((), device=images.device), torch.zeros((), device=images.device)
        for view in range(self.views):
            where, mirrored = offsets[:, view], flips[:, view]
            tokens = patch_tokens(self.network, shifted(images, where * patch, mirrored, white), self.parts)["patches"]
            index = shifted(cells, where, mirrored, outside).flatten(1)[..., None]
            total = total + put_back(tokens, index)
            count = count + put_back(torch.ones_like(tokens[..., :1]), index)
        return {"patches": total / count}

    def _views(self, batch: Batch, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        if batch.ids is None or batch.seeds is None:
            raise InputError(
                "the samples have no ids, from which the views are drawn", where="data", remedy="give a data set, not a stream"
            )
        most = [round(self.shift * side) for side in grid]
        shifts = (2 * most[0] + 1) * (2 * most[1] + 1)
        if self.views > shifts:
            raise InputError(
                f"{self.views} views, but a grid of {grid} shifted by up to {most} patches has {shifts}",
                where="views",
                remedy=f"at most {shifts} views, larger images, or a larger shift",
            )
        keys = view_key(batch.ids.cpu().numpy(), batch.seeds.cpu().numpy())
        return draw_views(torch.from_numpy(keys.view("int64")), self.views, most, self.flip)

    def request_features(self, *taps: str) -> None:
        """A mean of views has no inner outputs.

        Raises:
            InputError: some are wanted.
        """
        if taps:
            raise InputError("a mean over views shows no inner outputs", where=taps[0], remedy="give the live network")

    @property
    def fingerprint(self) -> str:
        """See :class:`Teacher`."""
        return fingerprint("shifted average", super().fingerprint, self.views, self.shift, self.flip, self.fill)


def put_back(tokens: Tensor, index: Tensor) -> Tensor:
    """Tokens [B, N, D] at the cells ``index`` [B, N, 1] (N: nowhere) of an empty grid: [B, N, D]. No cell comes twice."""
    empty = tokens.new_zeros(len(tokens), tokens.shape[1] + 1, tokens.shape[2])
    return empty.scatter(1, index.expand_as(tokens), tokens)[:, :-1]
