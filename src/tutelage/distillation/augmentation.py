"""Seeded augmentation of image tensors: every view can be replayed bit for bit from its seed.

Each row of a batch draws its own numbers from its own seed by counter, so a view does not depend on the rows beside it
(but for the partner it is mixed with). Images are float [B, C, H, W] in 0..1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tutelage import storage
from tutelage.distillation.data import Batch, hash64
from tutelage.distillation.geometry import Geometry, move_labels, random_parts, random_windows
from tutelage.errors import InputError
from tutelage.fields import check_pair, check_range


def random_draws(seeds: Tensor, stream: int, count: int) -> Tensor:
    """``count`` numbers in [0, 1) a row, [B, count] float32: number j of row i is a hash of (seed_i, stream, j)."""
    start = hash64(hash64(seeds.cpu().numpy().astype(np.uint64)) ^ np.uint64(stream))
    with np.errstate(over="ignore"):
        hashed = hash64(start[:, None] + np.arange(count, dtype=np.uint64) * np.uint64(0xD1342543DE82EF95))
    return torch.from_numpy(((hashed >> np.uint64(40)).astype(np.float32)) * np.float32(2.0**-24))


@dataclass(frozen=True)
class Augmentation:
    """An augmentation: what is done to a batch, given its view seeds, in this order.

    Attributes:
        crop: pad by this many pixels (reflected where possible), cut the old size out at random.
        resize: (least, most) area of a random part that is scaled to the old size, sides in 3:4 to 4:3; None: off.
        flip: probability of a mirror image, left for right.
        randaugment: (operations, magnitude 0..10) of RandAugment (Cubuk et al., 2020); None: off.
        colour: brightness, contrast and saturation each times a factor in 1 +- colour.
        erase: probability that one rectangle (2 to 33 % of the area) turns grey (Zhong et al., 2020).
        mixup, cutmix: alpha of each (0: off); rows 2i and 2i+1 are mixed with each other, as TinyViT does (Wu et al.,
            2022), with ``mix`` the probability of mixing and ``switch`` that of CutMix where both are on. Class ids
            become probabilities over ``classes``; CutMix weighs them by the area that is left.
        field: which entry of a dict of inputs holds the images; None: the input is the tensor of images.
        cut: cut a square of this many pixels out at random: the images become smaller.
        turn: a random quarter turn, counter-clockwise.
        labels: what crop, resize, flip, cut and turn move along with the images, by one :class:`Geometry`: ``map`` (class ids
            [B, H, W], of any size), ``image`` ([B, C, H, W], of any size: a large picture beside a small one), ``boxes``
            (as the task ``detection`` has them) or ``points`` [B, K, 3]; None: labels stay as they are.

    Raises:
        InputError: a value out of range, no images, images smaller than ``cut``, an odd batch for mixing, or labels to mix
            without ``classes``.
    """

    crop: int = 0
    resize: tuple[float, float] | None = None
    flip: float = 0.0
    randaugment: tuple[int, float] | None = None
    colour: float = 0.0
    erase: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    mix: float = 1.0
    switch: float = 0.5
    classes: int | None = None
    field: str | None = None
    cut: int = 0
    turn: bool = False
    labels: Literal["map", "image", "boxes", "points"] | None = None

    def __post_init__(self) -> None:
        for name in ("crop", "cut", "colour", "mixup", "cutmix", "flip", "erase", "mix", "switch"):
            most = 1 if name in ("flip", "erase", "mix", "switch") else 10**6
            check_range(f"views.{name}", getattr(self, name), 0, most, whole=name in ("crop", "cut"))
        if self.resize is not None:
            check_pair("views.resize", self.resize, 1e-6, 1)
        if self.randaugment is not None:
            if not isinstance(self.randaugment, (tuple, list)) or len(self.randaugment) != 2:
                raise InputError(f"{self.randaugment!r} is no pair", where="views.randaugment", remedy="(operations, magnitude)")
            check_range("views.randaugment", self.randaugment[0], 0, 100, whole=True)
            check_range("views.randaugment", self.randaugment[1], 0, 10)
        if self.classes is not None:
            check_range("views.classes", self.classes, 1, 10**9, whole=True)
        if self.labels not in (None, "map", "image", "boxes", "points"):
            raise InputError(f"cannot move {self.labels!r}", where="views.labels", remedy="map, image, boxes or points")
        if self.labels is not None and (self.randaugment or self.mixup or self.cutmix):
            raise InputError(
                f"RandAugment, Mixup and CutMix move images, and would leave the {self.labels} where they were",
                where="views.labels",
                remedy="use crop, resize, flip, cut, turn, colour and erase",
            )

    @property
    def fingerprint(self) -> str:
        """Names the augmentation's settings and the version of its code."""
        later = ("cut", "turn", "labels")  # these leave the name as it was before they existed where they are off
        return storage.fingerprint("views-1", {k: v for k, v in storage.to_plain(self).items() if v or k not in later})

    def __call__(self, batch: Batch) -> Batch:
        """The view of ``batch`` that its seeds name."""
        images = batch.inputs
        if self.field is not None:
            images = images.get(self.field) if isinstance(images, Mapping) else None
        if not isinstance(images, Tensor) or images.ndim != 4 or not images.is_floating_point():
            raise InputError(
                "augmentation needs images, float [B, C, H, W]",
                where="inputs" if self.field is None else f"inputs.{self.field}",
                remedy="convert them, or name the field that holds them: Augmentation(field=…)",
            )
        if batch.seeds is None:
            raise InputError("the batch has no view seeds", where="seeds", remedy="Data.batch must set them")
        labels, partners = batch.labels, batch.partners
        if self.cut or self.turn or self.labels is not None:
            height, width = images.shape[2:]
            geometry = self.geometry(batch.seeds, height, width)
            size = (self.cut, self.cut) if self.cut else (height, width)
            if labels is not None and self.labels is not None:
                labels = move_labels(labels, self.labels, geometry, (size[0] / height, size[1] / width))
            images = self.recolour(geometry.image(images, size), batch.seeds)
        else:
            images = self.apply(images, batch.seeds)
        if self.mixup or self.cutmix:
            images, labels, partners = self._mixed(images, labels, batch.seeds)
        inputs = images if self.field is None else {**batch.inputs, self.field: images}
        return replace(batch, inputs=inputs, labels=labels, partners=partners)

    def apply(self, images: Tensor, seeds: Tensor) -> Tensor:
        """All but the mixing: images [B, C, H, W], seeds [B] -> images."""
        if self.crop:
            images = shift(images, random_draws(seeds, 1, 2), self.crop)
        if self.resize:
            images = resized_part(images, random_draws(seeds, 2, 4), self.resize)
        if self.flip:
            images = torch.where((random_draws(seeds, 3, 1)[:, 0] < self.flip)[:, None, None, None], images.flip(-1), images)
        return self.recolour(images, seeds)

    def geometry(self, seeds: Tensor, height: int, width: int) -> Geometry:
        """Where the views that ``seeds`` [B] name lie in images of ``height`` x ``width`` pixels.

        Raises:
            InputError: the images are smaller than ``cut``.
        """
        found = Geometry.whole(len(seeds))
        if self.crop:
            found = found.part(random_windows(random_draws(seeds, 1, 2), (height, width), (height, width), self.crop))
        if self.cut:
            found = found.part(random_windows(random_draws(seeds, 7, 2), (height, width), (self.cut, self.cut)))
        if self.resize:
            found = found.part(random_parts(random_draws(seeds, 2, 4), self.resize))
        flip = random_draws(seeds, 3, 1)[:, 0] < self.flip
        turns = (random_draws(seeds, 8, 1)[:, 0] * 4).long() if self.turn else found.turns
        return Geometry(found.box, flip, turns)

    def recolour(self, images: Tensor, seeds: Tensor) -> Tensor:
        """What changes colours and leaves everything in its place (but for RandAugment): RandAugment, colour, erasing."""
        if self.randaugment:
            images = randaugment(images, seeds, *self.randaugment)
        if self.colour:
            factors = 1 + self.colour * (2 * random_draws(seeds, 4, 3) - 1)
            images = saturation(contrast(brightness(images, factors[:, 0]), factors[:, 1]), factors[:, 2])
        if self.erase:
            images = erase(images, random_draws(seeds, 5, 5), self.erase)
        return images

    def _mixed(self, images: Tensor, labels: Any, seeds: Tensor) -> tuple[Tensor, Any, Tensor]:
        count, _, height, width = images.shape
        if count % 2:
            raise InputError(f"{count} rows cannot be mixed in pairs", where="batch_size", remedy="take an even batch size")
        keys = (seeds[0::2] ^ seeds[1::2]).tolist()
        plans = [draw_mixup(key, height, width, self.mixup, self.cutmix, self.mix, self.switch) for key in keys]
        # 1 - lam is taken in float64, and only then rounded to the images' type
        kept = torch.tensor([plan.lam for plan in plans], dtype=torch.float64).repeat_interleave(2)
        boxed = torch.tensor([plan.box is not None for plan in plans]).repeat_interleave(2)
        blend = kept.masked_fill(boxed, 1.0)[:, None, None, None]
        partners = torch.arange(count) ^ 1
        other = images[partners]
        mixed = images * blend.to(images.dtype) + other * (1 - blend).to(images.dtype)
        for pair, plan in enumerate(plans):
            if plan.box is not None:
                top, bottom, left, right = plan.box
                rows = slice(2 * pair, 2 * pair + 2)
                mixed[rows, :, top:bottom, left:right] = other[rows, :, top:bottom, left:right]
        if labels is not None:
            if not isinstance(labels, Tensor) or labels.ndim > 2 or (labels.ndim == 2 and not labels.is_floating_point()):
                raise InputError("cannot mix such labels", where="labels", remedy="class ids [B] or probabilities [B, C]")
            if labels.ndim == 1:
                if self.classes is None:
                    raise InputError("mixing needs the number of classes", where="views.classes", remedy="Augmentation(classes=…)")
                if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < self.classes:
                    wrong = f"labels are {int(labels.min())} to {int(labels.max())}, of {self.classes} classes"
                    raise InputError(wrong, where="views.classes", remedy="count classes from 0, and give their number")
                labels = F.one_hot(labels, self.classes).float()
            own, others = (share.to(labels.dtype)[:, None] for share in (kept, 1 - kept))
            labels = labels * own + labels[partners] * others
        return mixed, labels, partners


@dataclass(frozen=True)
class MixupParams:
    """How a pair is mixed: the share ``lam`` of each row's own image, and the swapped ``box`` (top, bottom, left,
    right) of CutMix, None for Mixup."""

    lam: float
    box: tuple[int, int, int, int] | None = None


def draw_mixup(
    seed: int, height: int, width: int, mixup: float, cutmix: float, mix: float = 1.0, switch: float = 0.5
) -> MixupParams:
    """The mixing that ``seed`` (one member's seed XOR the other's) names; the draws are TinyViT's (Wu et al., 2022), in
    its order, from PCG64; ``lam`` is corrected to the box as it was clipped (theirs reaches no label)."""
    rng = np.random.Generator(np.random.PCG64(seed))
    if rng.random() >= mix:
        return MixupParams(1.0)
    cut = rng.random() < switch if mixup and cutmix else bool(cutmix)
    kept = float(rng.beta(cutmix, cutmix) if cut else rng.beta(mixup, mixup))
    if not cut:
        return MixupParams(kept)
    side = np.sqrt(1 - kept)
    high, wide = int(height * side), int(width * side)
    row, column = int(rng.random() * height), int(rng.random() * width)
    top, bottom = max(0, row - high // 2), min(height, row + high // 2)
    left, right = max(0, column - wide // 2), min(width, column + wide // 2)
    return MixupParams(1 - (bottom - top) * (right - left) / (height * width), (top, bottom, left, right))


def _per_row(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def shift(images: Tensor, u: Tensor, pad: int) -> Tensor:
    """Pad by ``pad`` (mirrored; zeros where the image is too small), cut the old size out at offset ``u`` [B, 2]."""
    height, width = images.shape[2:]
    padded = F.pad(images, (pad,) * 4, mode="reflect" if pad < min(height, width) else "constant")
    first = (u * (2 * pad + 1)).long()
    rows = (first[:, :1] + torch.arange(height))[:, None, :, None]
    columns = (first[:, 1:] + torch.arange(width))[:, None, None, :]
    sample, channel = torch.arange(len(images))[:, None, None, None], torch.arange(images.shape[1])[None, :, None, None]
    return padded[sample, channel, rows, columns]


def _warp(images: Tensor, matrix: Tensor) -> Tensor:
    """Resample by affine maps [B, 2, 3] of output to input positions, -1..1; outside is black."""
    grid = F.affine_grid(matrix.to(images.dtype), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def resized_part(images: Tensor, u: Tensor, area: tuple[float, float]) -> Tensor:
    """A part of ``area`` (share, least to most), aspect in 3:4 to 4:3, scaled to the old size; u: [B, 4]."""
    share = area[0] + (area[1] - area[0]) * u[:, 0]
    aspect = torch.exp((2 * u[:, 1] - 1) * float(np.log(4 / 3)))
    wide, high = (share * aspect).sqrt().clamp_max(1.0), (share / aspect).sqrt().clamp_max(1.0)
    matrix = torch.zeros(len(images), 2, 3)
    matrix[:, 0, 0], matrix[:, 1, 1] = wide, high
    matrix[:, 0, 2], matrix[:, 1, 2] = (2 * u[:, 2] - 1) * (1 - wide), (2 * u[:, 3] - 1) * (1 - high)
    return _warp(images, matrix)


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Times ``factor`` [B], clipped to 0..1."""
    return (images * _per_row(factor)).clamp(0, 1)


def grey(images: Tensor) -> Tensor:
    """Luma [B, 1, H, W] (ITU-R 601); the mean where there are not three channels."""
    if images.shape[1] != 3:
        return images.mean(1, keepdim=True)
    return (images * images.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Away from the mean grey by ``factor`` [B], clipped."""
    middle = grey(images).mean((2, 3), keepdim=True)
    return (middle + (images - middle) * _per_row(factor)).clamp(0, 1)


def saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Away from each pixel's grey by ``factor`` [B], clipped."""
    plain = grey(images)
    return (plain + (images - plain) * _per_row(factor)).clamp(0, 1)


def sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """Away from the smoothed image (PIL's 3x3 kernel, border kept) by ``factor`` [B], clipped."""
    kernel = images.new_tensor([[1, 1, 1], [1, 5, 1], [1, 1, 1]])[None, None] / 13
    channels = images.shape[1]
    smooth = images.clone()
    smooth[:, :, 1:-1, 1:-1] = F.conv2d(images, kernel.expand(channels, 1, 3, 3), groups=channels)
    return (smooth + (images - smooth) * _per_row(factor)).clamp(0, 1)


def autocontrast(images: Tensor, factor: Tensor) -> Tensor:
    """Each channel stretched to 0..1; ``factor`` is not used."""
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    return torch.where(high > low, (images - low) / (high - low).clamp_min(1e-8), images)


def equalize(images: Tensor, factor: Tensor) -> Tensor:
    """Each channel's histogram of 256 levels made flat; ``factor`` is not used."""
    levels = (images * 255).round().long().flatten(2)
    flat = levels.flatten(0, 1)
    counts = torch.zeros(len(flat), 256).scatter_add_(1, flat, torch.ones_like(flat, dtype=torch.float))
    below = counts.cumsum(1)
    least = torch.where(below > 0, below, torch.inf).amin(1, keepdim=True)
    table = ((below - least) / (flat.shape[1] - least).clamp_min(1)).clamp(0, 1)
    constant = (counts > 0).sum(1, keepdim=True) < 2
    mapped = torch.where(constant, flat / 255, table.gather(1, flat))
    return mapped.view_as(images).to(images.dtype)


def erase(images: Tensor, u: Tensor, probability: float) -> Tensor:
    """One grey rectangle of 2 to 33 % of the area, aspect 0.3 to 3.3, with ``probability``; u: [B, 5]."""
    height, width = images.shape[2:]
    area = (0.02 + 0.31 * u[:, 1]) * height * width
    aspect = torch.exp((2 * u[:, 2] - 1) * float(np.log(1 / 0.3)))
    high, wide = (area * aspect).sqrt().clamp(1, height), (area / aspect).sqrt().clamp(1, width)
    top, left = u[:, 3] * (height - high), u[:, 4] * (width - wide)
    y, x = torch.arange(height), torch.arange(width)
    rows = (y >= top[:, None].floor()) & (y < (top + high)[:, None].floor())
    columns = (x >= left[:, None].floor()) & (x < (left + wide)[:, None].floor())
    hit = (u[:, 0] < probability)[:, None, None] & rows[:, :, None] & columns[:, None, :]
    return images.masked_fill(hit[:, None], 0.5)


def _affine(which: str) -> Callable[[Tensor, Tensor], Tensor]:
    def apply(images: Tensor, amount: Tensor) -> Tensor:
        matrix = torch.eye(2, 3).repeat(len(images), 1, 1)
        match which:
            case "rotate":
                angle = amount * float(np.pi / 6)
                matrix[:, 0, 0] = matrix[:, 1, 1] = angle.cos()
                matrix[:, 0, 1], matrix[:, 1, 0] = -angle.sin(), angle.sin()
            case "shear_x":
                matrix[:, 0, 1] = 0.3 * amount
            case "shear_y":
                matrix[:, 1, 0] = 0.3 * amount
            case "shift_x":
                matrix[:, 0, 2] = 0.9 * amount
            case "shift_y":
                matrix[:, 1, 2] = 0.9 * amount
        return _warp(images, matrix)

    return apply


def _enhance(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda images, amount: function(images, 1 + 0.9 * amount)


def _posterize(images: Tensor, amount: Tensor) -> Tensor:
    levels = _per_row(2.0 ** (8 - (4 * amount.abs()).floor()))
    return (images * 255 / 256 * levels).floor() / levels


def _solarize(images: Tensor, amount: Tensor) -> Tensor:
    return torch.where(images >= _per_row(1 - amount.abs()), 1 - images, images)


def _same(images: Tensor, amount: Tensor) -> Tensor:
    return images


OPERATIONS: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
    _same,
    autocontrast,
    equalize,
    _affine("rotate"),
    _solarize,
    _posterize,
    _enhance(saturation),
    _enhance(contrast),
    _enhance(brightness),
    _enhance(sharpness),
    _affine("shear_x"),
    _affine("shear_y"),
    _affine("shift_x"),
    _affine("shift_y"),
)
"""RandAugment's fourteen, each of (images, amount in -1..1)."""


def randaugment(images: Tensor, seeds: Tensor, operations: int, magnitude: float) -> Tensor:
    """``operations`` random ones of the fourteen, one after the other, each at ``magnitude`` / 10 with a random sign
    (Cubuk et al., 2020, section 3; each row draws its own). Ranges: rotation 30 degrees, shear 0.3, shift 0.45 of the
    side, enhancement 1 +- 0.9, posterize to 4 bits."""
    u = random_draws(seeds, 6, 2 * operations)
    for number in range(operations):
        chosen = (u[:, 2 * number] * len(OPERATIONS)).long()
        amount = torch.where(u[:, 2 * number + 1] < 0.5, -1.0, 1.0) * (magnitude / 10)
        images = images.clone()
        for index in chosen.unique().tolist():
            rows = (chosen == index).nonzero()[:, 0]
            images[rows] = OPERATIONS[index](images[rows], amount[rows])
    return images
