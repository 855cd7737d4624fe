"""Several views of each sample in one batch: large and small crops, grid patches, turned and blurred copies.

View v of a sample draws from a seed of its own, a hash of the sample's view seed and v: so the batch's (ids, seeds) name
all of its views, which resume and cache exactly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tutelage import storage
from tutelage.distillation.augmentation import Augmentation, grey, random_draws
from tutelage.distillation.data import Batch, hash64
from tutelage.distillation.geometry import Geometry
from tutelage.errors import InputError, did_you_mean
from tutelage.fields import check_pair, check_range


def subseeds(seeds: Tensor, number: int) -> Tensor:
    """The seeds [B] int64, of 31 bits, of view ``number`` of samples with view seeds [B]: for masks and draws of its own."""
    mixed = hash64(hash64(seeds.cpu().numpy().astype(np.uint64)) + np.uint64(number + 1))
    return torch.from_numpy((mixed >> np.uint64(33)).astype(np.int64))


def blur(images: Tensor, sigma: Tensor, reach: int) -> Tensor:
    """Gaussian blur of each image [B, C, H, W] with its own ``sigma`` [B] in pixels (0: none), by taps up to ``reach`` pixels
    away; borders are mirrored. A row does not depend, by a bit, on the rows beside it."""
    taps = torch.arange(-reach, reach + 1)
    weights = torch.exp(-0.5 * (taps / sigma.clamp_min(1e-3)[:, None].double()) ** 2)
    weights = (weights / weights.sum(1, keepdim=True)).to(images.dtype)
    for axis in (2, 3):
        length = images.shape[axis]
        places = (torch.arange(length)[None] + taps[:, None]).remainder(max(1, 2 * length - 2))
        places = torch.minimum(places, 2 * length - 2 - places).clamp_min(0)
        total = torch.zeros_like(images)
        for tap in range(len(taps)):
            total += images.index_select(axis, places[tap]) * weights[:, tap, None, None, None]
        images = total
    return images


@dataclass(frozen=True)
class View:
    """One kind of view. The defaults leave the image as it is.

    Attributes:
        count: how many of this kind: [B, count, C, h, w]. None: one, [B, C, h, w].
        size: height and width in pixels to which the view is scaled; None: the image's, or the augmentation's ``cut``.
        augmentation: what is done to each view, from its own seed: crop, part (``resize``), flip, quarter turn, colour,
            RandAugment, erasing; no mixing.
        grey: probability that the view loses its colours.
        blur: (least, most) sigma of a Gaussian blur in pixels of the view, drawn uniformly; None: off.
        blur_probability: of it.
        grid: (rows, columns): the views are different cells of one grid over one part of the image, as in a jigsaw, in
            random order.
        patch: side of a cell, as a share of that part's side; None: 1 over the larger number of cells. Cells are spread so
            that the outer ones touch the border; they overlap where they are large.
        jitter: a cell is moved by up to this share of the part's side, and stays inside.

    Examples:
        >>> crops = View(2, 20, Augmentation(resize=(0.3, 0.8), flip=0.5), blur=(0.1, 2.0), blur_probability=0.5)
        >>> jigsaw = View(5, 12, Augmentation(resize=(0.6, 1.0)), grid=(3, 3), patch=0.375, jitter=0.09)

    Raises:
        InputError: a value out of range, more views than cells, or mixing.
    """

    count: int | None = None
    size: int | None = None
    augmentation: Augmentation = Augmentation()
    grey: float = 0.0
    blur: tuple[float, float] | None = None
    blur_probability: float = 1.0
    grid: tuple[int, int] | None = None
    patch: float | None = None
    jitter: float = 0.0

    def __post_init__(self) -> None:
        for name, least in (("count", 1), ("size", 1)):
            if (value := getattr(self, name)) is not None:
                check_range(name, value, least, 100_000, whole=True)
        for name in ("grey", "blur_probability", "jitter"):
            check_range(name, getattr(self, name), 0, 1)
        if self.blur is not None:
            check_pair("blur", self.blur, 1e-6, 100)
        if self.augmentation.mixup or self.augmentation.cutmix or self.augmentation.labels:
            raise InputError(
                "a view is not mixed with others, and moves no labels",
                where="augmentation",
                remedy="leave mixup, cutmix and labels",
            )
        if self.grid is not None:
            rows, columns = self.grid
            check_range("grid", min(rows, columns), 1, 1000)
            if (self.count or 1) > rows * columns:
                raise InputError(
                    f"{self.count} different cells of a grid of {rows} x {columns}",
                    where="count",
                    remedy=f"at most {rows * columns}",
                )
            if self.augmentation.turn:
                raise InputError("cells of a turned grid have no number", where="augmentation.turn", remedy="leave turns out")
        if self.patch is not None and not 0 < self.patch <= 1:
            raise InputError(f"no share: {self.patch}", where="patch", remedy="above 0, at most 1")

    def make(self, images: Tensor, seeds: Tensor, first: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The views of images [B, C, H, W]; they are views ``first``, ``first + 1``, … of their samples.

        Returns:
            [B, count, C, h, w], and what was drawn, see :class:`MultiView`.
        """
        height, width = images.shape[2:]
        side = self.size or self.augmentation.cut
        size = (side, side) if side else (height, width)
        views: list[Tensor] = []
        drawn: dict[str, list[Tensor]] = {}
        shared = subseeds(seeds, first)
        order = random_draws(shared, 21, math.prod(self.grid or (1, 1))).argsort(dim=1, stable=True)
        for number in range(self.count or 1):
            own = subseeds(seeds, first + number)
            geometry = self.augmentation.geometry(own if self.grid is None else shared, height, width)
            facts = {"seeds": own}
            if self.grid is not None:
                cells = order[:, number]
                box, cells = self._cell(cells, random_draws(own, 22, 2), geometry.flip)
                geometry, facts["cells"] = geometry.part(box), cells
            view = self.augmentation.recolour(geometry.image(images, size), own)
            if self.grey:
                hit = random_draws(own, 23, 1)[:, 0] < self.grey
                view = torch.where(hit[:, None, None, None], grey(view).expand_as(view), view)
            if self.blur is not None:
                u = random_draws(own, 24, 2)
                sigma = (self.blur[0] + (self.blur[1] - self.blur[0]) * u[:, 0]) * (u[:, 1] < self.blur_probability)
                view, facts["blur"] = blur(view, sigma, math.ceil(3 * self.blur[1])), sigma
            facts |= {"box": geometry.box.float(), "flip": geometry.flip, "turns": geometry.turns}
            views.append(view)
            for name, value in facts.items():
                drawn.setdefault(name, []).append(value)
        return torch.stack(views, 1), {name: torch.stack(values, 1) for name, values in drawn.items()}

    def _cell(self, cells: Tensor, u: Tensor, flip: Tensor) -> tuple[Tensor, Tensor]:
        """The boxes [B, 4] of cells in their part, and the numbers [B] of the cells as they are seen: mirrored with it."""
        assert self.grid is not None
        rows, columns = self.grid
        patch = self.patch if self.patch is not None else 1 / max(rows, columns)
        edges = []
        for place, count, draw in ((cells // columns, rows, u[:, 0]), (cells % columns, columns, u[:, 1])):
            start = place.double() * ((1 - patch) / (count - 1)) if count > 1 else torch.full(cells.shape, (1 - patch) / 2).double()
            edges.append((start + self.jitter * (2 * draw.double() - 1)).clamp(0, 1 - patch))
        top, left = edges
        column = torch.where(flip, columns - 1 - cells % columns, cells % columns)
        return torch.stack([left, top, left + patch, top + patch], 1), cells // columns * columns + column


@dataclass(frozen=True)
class MultiView:
    """Several kinds of views of each sample, as the ``views`` of a data set.

    The inputs become a dict: name of the kind -> [B, count, C, h, w] (``count`` None: [B, C, h, w]). Flattened, the views
    of one sample lie side by side. ``batch.extra["views"][name]`` holds what was drawn, [B, count, …] (or [B, …]):

    - ``seeds``: the view's own seed (for :mod:`tutelage.distillation.masks`);
    - ``box``, ``flip``, ``turns``: where it lies in the image (:class:`Geometry`); ``turns`` is the label of a rotation task;
    - ``blur``: its sigma, 0 where it is sharp; ``cells``: its cell in the grid, row by row.

    Attributes:
        views: the kinds by name. A kind without any setting is the image itself.
        field: which entry of a dict of inputs holds the images; the other entries stay. None: the input is the images.

    Examples:
        >>> from tutelage.distillation.data import TensorData
        >>> views = MultiView({"clean": View(), "crops": View(2, 16, Augmentation(resize=(0.3, 0.8)))})
        >>> batch = TensorData(torch.rand(4, 3, 24, 24), views=views).batch(torch.arange(4), torch.arange(4))
        >>> batch.inputs["crops"].shape, batch.inputs["clean"].shape
        (torch.Size([4, 2, 3, 16, 16]), torch.Size([4, 3, 24, 24]))

    Raises:
        InputError: no view, or inputs that are no images.
    """

    views: Mapping[str, View]
    field: str | None = None

    def __post_init__(self) -> None:
        if not self.views:
            raise InputError("no view", where="views", remedy='name them: MultiView({"crops": View(2, 96, …)})')

    @property
    def fingerprint(self) -> str:
        """Names the settings and the version of the code."""
        return storage.fingerprint("multi-view-1", self)

    def __call__(self, batch: Batch) -> Batch:
        """The views of ``batch`` that its seeds name."""
        images = batch.inputs
        if self.field is not None:
            if not isinstance(images, Mapping) or self.field not in images:
                known = list(images) if isinstance(images, Mapping) else []
                raise InputError(f"the inputs have no entry {self.field!r}", where="field", remedy=did_you_mean(self.field, known))
            images = images[self.field]
        if not isinstance(images, Tensor) or images.ndim != 4 or not images.is_floating_point():
            raise InputError(
                "views need images, float [B, C, H, W]", where="inputs", remedy="or name the entry: MultiView(field=…)"
            )
        if batch.seeds is None:
            raise InputError("the batch has no view seeds", where="seeds", remedy="a stream has none: give data by number")
        made: dict[str, Tensor] = {}
        drawn: dict[str, dict[str, Tensor]] = {}
        first = 0
        for name, view in self.views.items():
            found, facts = view.make(images, batch.seeds, first)
            first += view.count or 1
            made[name] = found if view.count is not None else found[:, 0]
            drawn[name] = facts if view.count is not None else {key: value[:, 0] for key, value in facts.items()}
        rest = {} if self.field is None else {key: value for key, value in batch.inputs.items() if key != self.field}
        return replace(batch, inputs={**rest, **made}, extra={**batch.extra, "views": drawn})


def geometry_of(batch: Batch, name: str, number: int = 0) -> Geometry:
    """Where view ``number`` of the kind ``name`` lies in its image.

    Raises:
        InputError: the batch has no such views.
    """
    facts: dict[str, dict[str, Any]] = batch.extra.get("views", {})
    if name not in facts:
        raise InputError(f"no views {name!r}", where="batch.extra", remedy=did_you_mean(name, list(facts)))
    box, flip, turns = (facts[name][key] for key in ("box", "flip", "turns"))
    return Geometry(box, flip, turns) if flip.ndim == 1 else Geometry(box[:, number], flip[:, number], turns[:, number])
