"""Augmentation of an image together with the image or map that belongs to it: crops, mirrors, quarter turns.

For super-resolution, where a crop of the small image needs the same crop of the large one; for any restoration, where both
have one size; and for label maps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tutelage import storage
from tutelage.distillation.augmentation import random_draws
from tutelage.distillation.data import Batch
from tutelage.errors import InputError


@dataclass(frozen=True)
class PairedAugmentation:
    """The same crop, mirror and turn of inputs [B, C, h, w] and labels [B, ..., r h, r w], drawn from the view seeds.

    The scale r is read from the sizes; 1 for label maps [B, H, W] and images of one size.

    Attributes:
        crop: the side of a random square of the input, in its pixels; None: the whole image.
        flip: probability of a mirror image, left for right.
        turn: whether to turn by 0, 90, 180 or 270 degrees, each as likely. Sides that differ need a ``crop``.

    Example: ``TensorData(small, large, views=PairedAugmentation(crop=48, flip=0.5, turn=True))``.

    Raises:
        InputError: labels whose sides are not the same whole multiple of the inputs', a crop larger than the image, or a
            turn of images that are not square.
    """

    crop: int | None = None
    flip: float = 0.0
    turn: bool = False

    @property
    def fingerprint(self) -> str:
        """Names the augmentation's settings and the version of its code."""
        return storage.fingerprint("paired-1", self)

    def __call__(self, batch: Batch) -> Batch:
        """The view of ``batch`` that its seeds name."""
        images, labels = batch.inputs, batch.labels
        scale = _scale(images, labels)
        if batch.seeds is None:
            raise InputError("the batch has no view seeds", where="seeds", remedy="Data.batch must set them")
        height, width = images.shape[-2:]
        side = self.crop
        if side is not None and not 0 < side <= min(height, width):
            raise InputError(f"a crop of {side} from {height} x {width}", where="crop", remedy="at most the shorter side")
        if self.turn and side is None and height != width:
            raise InputError(f"a turn of {height} x {width}", where="turn", remedy="cut squares: crop=…")
        draws = random_draws(batch.seeds, 201, 4)
        flips, turns = draws[:, 0] < self.flip, (4 * draws[:, 1]).long() if self.turn else torch.zeros(len(images))
        tops = (draws[:, 2] * (height - (side or height) + 1)).long()
        lefts = (draws[:, 3] * (width - (side or width) + 1)).long()
        plan = list(zip(flips.tolist(), turns.int().tolist(), tops.tolist(), lefts.tolist(), strict=True))

        def moved(maps: Tensor, factor: int) -> Tensor:
            high, wide = factor * (side or height), factor * (side or width)
            rows = []
            for image, (flip, turn, top, left) in zip(maps, plan, strict=True):
                cut = image[..., factor * top : factor * top + high, factor * left : factor * left + wide]
                rows.append(torch.rot90(cut.flip(-1) if flip else cut, turn, (-2, -1)))
            return torch.stack(rows)

        return replace(batch, inputs=moved(images, 1), labels=moved(labels, scale))


def _scale(images: Any, labels: Any) -> int:
    """How many times larger the labels are.

    Raises:
        InputError: see :class:`PairedAugmentation`.
    """
    if isinstance(images, Tensor) and isinstance(labels, Tensor) and images.ndim == 4 and labels.ndim >= 3:
        (height, width), (high, wide) = images.shape[-2:], labels.shape[-2:]
        scale = high // height
        if scale and (scale * height, scale * width) == (high, wide):
            return scale
    shapes = [list(each.shape) if isinstance(each, Tensor) else type(each).__name__ for each in (images, labels)]
    raise InputError(
        f"inputs {shapes[0]}, labels {shapes[1]}",
        where="labels",
        remedy="give inputs [B, C, h, w] and labels [B, ..., r h, r w] with one whole number r",
    )
