"""Synthetic scenes: which things lie where, and how each domain looks. All constants are our choice."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np

from tutelage import seeds
from tutelage.errors import InputError, did_you_mean

SHAPES = ("circle", "rectangle", "triangle", "star", "cross", "sign")
COLORS = ("black", "gray", "teal", "brown", "red", "green", "blue", "yellow")
PATTERNS = ("plain", "striped", "dotted")
SIZES = ("small", "large")
DIGITS = tuple("0123456789")

SIDE = 48
PIXELS: Mapping[str, tuple[int, int]] = MappingProxyType({"small": (9, 11), "large": (15, 18)})
FLATNESS = 0.62
"""Height of a rectangle over its width."""

Matrix = tuple[tuple[float, float, float], ...]
WARM_TINT: Matrix = ((0.92, 0.32, 0.06), (0.14, 0.62, 0.18), (0.24, 0.12, 0.30))
IDENTITY: Matrix = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))


@dataclass(frozen=True)
class VisualDomain:
    """How pictures of one domain look; every (low, high) is drawn uniformly for each picture.

    Colours are multiplied by ``(1 - s) I + s tint`` with s from ``tint_strength``, which moves hues; ``gain`` then
    scales the light. ``texture`` is the contrast of a woven pattern over the whole picture, ``blur`` the sigma in
    pixels, ``noise`` the standard deviation in 0..1. ``outline`` is the brightness of a one-pixel rim (None: no rim)
    and ``fill`` how much of a thing's inside is painted over the ground.
    """

    name: str
    things: tuple[int, int] = (3, 6)
    color_jitter: float = 0.05
    background: tuple[float, float] = (0.78, 0.96)
    background_hue: float = 0.02
    tint: Matrix = IDENTITY
    tint_strength: tuple[float, float] = (0.0, 0.0)
    gain: tuple[float, float] = (0.95, 1.05)
    texture: tuple[float, float] = (0.0, 0.02)
    blur: tuple[float, float] = (0.0, 0.0)
    noise: tuple[float, float] = (0.005, 0.02)
    outline: float | None = None
    fill: float = 1.0

    def shifted(self, strength: float) -> VisualDomain:
        """The same domain with tint, texture, blur and noise ``strength`` times as strong."""

        def times(pair: tuple[float, float]) -> tuple[float, float]:
            return pair[0] * strength, pair[1] * strength

        return replace(
            self,
            tint_strength=times(self.tint_strength),
            texture=times(self.texture),
            blur=times(self.blur),
            noise=times(self.noise),
        )


DOMAINS: Mapping[str, VisualDomain] = MappingProxyType(
    {
        # Broad: every light from dim to bright, a little cloth, a little blur; the generalists' home.
        "A": VisualDomain(
            "A",
            color_jitter=0.07,
            background=(0.3, 0.96),
            background_hue=0.08,
            tint=WARM_TINT,
            tint_strength=(-0.15, 0.15),
            gain=(0.75, 1.1),
            texture=(0.0, 0.06),
            blur=(0.0, 0.5),
            noise=(0.005, 0.04),
        ),
        # Warm evening light through coarse cloth: hues move together, so gray leans to brown and teal to green.
        "B": VisualDomain(
            "B",
            color_jitter=0.06,
            background=(0.5, 0.8),
            background_hue=0.05,
            tint=WARM_TINT,
            tint_strength=(0.5, 0.9),
            gain=(0.85, 1.1),
            texture=(0.1, 0.2),
            blur=(0.5, 0.9),
            noise=(0.03, 0.07),
        ),
        # Bright rims on a dark ground, the inside half transparent.
        "C": VisualDomain(
            "C",
            background=(0.1, 0.25),
            background_hue=0.04,
            gain=(0.9, 1.1),
            texture=(0.0, 0.05),
            blur=(0.0, 0.3),
            noise=(0.01, 0.03),
            outline=0.92,
            fill=0.8,
        ),
    }
)


@dataclass(frozen=True, slots=True)
class SceneObject:
    """One thing: what it is, and its box in pixels (top-left corner, width, height). Only a sign has a ``digit``."""

    shape: str
    color: str
    pattern: str
    size: str
    digit: str | None
    x: int
    y: int
    w: int
    h: int

    @property
    def box(self) -> tuple[int, int, int, int]:
        """(x1, y1, x2, y2) in pixels."""
        return self.x, self.y, self.x + self.w, self.y + self.h

    @property
    def center(self) -> tuple[float, float]:
        """(x, y) of the middle."""
        return self.x + self.w / 2, self.y + self.h / 2


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture's content; things are drawn in list order. ``seed`` fixes every pixel that ``things`` leave open."""

    id: str
    domain: str
    width: int
    height: int
    things: tuple[SceneObject, ...]
    seed: int

    def of(self, shape: str) -> list[SceneObject]:
        """The things of one shape; ``object`` means every thing."""
        return [thing for thing in self.things if shape in ("object", thing.shape)]


def overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    """Intersection over union of two (x1, y1, x2, y2) boxes."""
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if w <= 0 or h <= 0:
        return 0.0
    return w * h / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - w * h)


def make_scene(
    seed: int,
    index: int | str,
    domain: str = "A",
    *,
    count: int | None = None,
    required: Sequence[Mapping[str, Any]] = (),
    name: str | None = None,
    image_size: int = SIDE,
) -> Scene:
    """Scene ``index`` of the stream ``seed``: ``count`` things (else the domain's range), with little overlap.

    ``required`` fixes some fields (shape, color, pattern, size, digit) of the first things, in order; everything else is
    drawn. Some things repeat the shape or the colour of another, so that counting and comparing are worth asking.
    ``name`` is the scene's id, by default made of domain, seed and index.

    Raises:
        InputError: an unknown domain, or things that do not fit.
    """
    if domain not in DOMAINS:
        raise InputError(f"unknown domain {domain!r}", remedy=did_you_mean(domain, list(DOMAINS)))
    stream = seeds.derive(seed, "scene", domain, index)
    rng = np.random.default_rng(stream)
    low, high = DOMAINS[domain].things
    total = max(len(required), count if count is not None else int(rng.integers(low, high + 1)))
    for _ in range(50):
        kinds = [_draw_appearance(rng, required[i] if i < len(required) else {}, i) for i in range(total)]
        for i in range(max(1, len(required)), total):
            chance, other = rng.random(), kinds[int(rng.integers(i))]
            if chance < 0.2:
                kinds[i] = _draw_appearance(rng, {**kinds[i], "shape": other["shape"]}, i)
            elif chance < 0.4:
                kinds[i]["color"] = other["color"]
        things = _place_objects(rng, kinds, image_size)
        if things is not None:
            return Scene(name or f"{domain}{seed}-{index}", domain, image_size, image_size, tuple(things), stream)
    raise InputError(f"{total} things do not fit in {image_size}x{image_size} pixels", remedy="ask for fewer or smaller things")


def _draw_appearance(rng: np.random.Generator, fixed: Mapping[str, Any], index: int) -> dict[str, Any]:
    """What a thing is: ``fixed`` fields kept, others drawn; only signs carry digits, and signs are plain."""
    u = rng.random(5)
    kind = {
        "shape": SHAPES[int(u[0] * len(SHAPES))],
        "color": COLORS[int(u[1] * len(COLORS))],
        "pattern": PATTERNS[int(u[2] * len(PATTERNS))],
        "size": SIZES[int(u[3] + (0.55 if index < 3 else 0.3))],
        "digit": None,
        **fixed,
    }
    if kind["shape"] == "sign":
        return {**kind, "pattern": "plain", "digit": kind["digit"] or DIGITS[int(u[4] * len(DIGITS))]}
    return {**kind, "digit": None}


def _place_objects(rng: np.random.Generator, kinds: list[dict[str, Any]], image_size: int) -> list[SceneObject] | None:
    """Things with boxes, large ones placed first; None where one found no room."""
    placed: dict[int, SceneObject] = {}
    boxes: list[tuple[int, int, int, int]] = []
    for i in sorted(range(len(kinds)), key=lambda i: kinds[i]["size"]):
        low, high = PIXELS[kinds[i]["size"]]
        w = h = int(rng.integers(low, high + 1))
        if kinds[i]["shape"] == "rectangle":
            h = math.ceil(w * FLATNESS)
        tries = rng.random((60, 2))
        for attempt in range(60):
            x, y = 1 + int(tries[attempt, 0] * (image_size - 1 - w)), 1 + int(tries[attempt, 1] * (image_size - 1 - h))
            box = (x, y, x + w, y + h)
            clear = (x - 1, y - 1, x + w + 1, y + h + 1)  # one free pixel all round, if there is room
            if all(overlap(clear, other) == 0 for other in boxes) or (
                attempt >= 40 and all(overlap(box, other) < 0.04 for other in boxes)
            ):
                boxes.append(box)
                placed[i] = SceneObject(**kinds[i], x=x, y=y, w=w, h=h)
                break
        else:
            return None
    return [placed[i] for i in range(len(kinds))]
