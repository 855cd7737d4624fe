"""The true answer to any call about a scene: what a perfect LOC, VQA or VERIFY would say of a region of its picture."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from tutelage.datasets.synthetic.scene import COLORS, DIGITS, PATTERNS, SHAPES, SIZES, Scene, SceneObject

ATTRIBUTES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"color": COLORS, "pattern": PATTERNS, "size": SIZES, "number": DIGITS, "shape": SHAPES}
)
"""The kinds of attributes with their values."""
ANYTHING = ("object", "thing", "shape")
"""Nouns for things of every shape."""
VISIBLE = 0.5
"""The share of a thing that must lie inside a region for it to count as seen there."""
GROWTH = 1.5
"""How much CROP enlarges a box about its centre."""

Box = tuple[float, float, float, float]


class Region(NamedTuple):
    """Part of a picture in whole pixels of that picture; ``image`` names the picture among a question's images."""

    image: str
    x1: int
    y1: int
    x2: int
    y2: int

    def crop(self, x1: float, y1: float, x2: float, y2: float) -> Region:
        """The part inside a box in this region's own pixels, clipped to it and widened to whole pixels."""
        return Region(
            self.image,
            max(self.x1, self.x1 + int(x1)),
            max(self.y1, self.y1 + int(y1)),
            min(self.x2, self.x1 + math.ceil(x2)),
            min(self.y2, self.y1 + math.ceil(y2)),
        )


def full_region(scene: Scene, image: str = "IMAGE") -> Region:
    """The whole picture of ``scene``."""
    return Region(image, 0, 0, scene.width, scene.height)


def attribute(thing: SceneObject, kind: str) -> str | None:
    """The thing's color, pattern, size, shape or number (None where it has none)."""
    return thing.digit if kind == "number" else str(getattr(thing, kind))


def has_attribute(thing: SceneObject, word: str) -> bool:
    """Whether ``word`` (a colour, pattern, size, shape or digit) is true of the thing."""
    return word in (thing.color, thing.pattern, thing.size, thing.shape, thing.digit)


def visible_objects(scene: Scene, region: Region, noun: str = "object") -> list[tuple[SceneObject, Box]]:
    """The things of ``noun`` of which at least half lies in the region, with their boxes there, clipped, in its pixels.

    Those nearest to the region's centre come first.
    """
    found: list[tuple[float, int, SceneObject, Box]] = []
    for thing in scene.things:
        if noun not in ANYTHING and noun != thing.shape:
            continue
        x1, y1, x2, y2 = thing.box
        x1, y1, x2, y2 = max(x1, region.x1), max(y1, region.y1), min(x2, region.x2), min(y2, region.y2)
        if x2 > x1 and y2 > y1 and (x2 - x1) * (y2 - y1) >= VISIBLE * thing.w * thing.h:
            x, y = thing.center
            away = abs(2 * x - region.x1 - region.x2) + abs(2 * y - region.y1 - region.y2)
            box = (float(x1 - region.x1), float(y1 - region.y1), float(x2 - region.x1), float(y2 - region.y1))
            found.append((away, len(found), thing, box))
    return [(thing, box) for _, _, thing, box in sorted(found)]


def locate(scene: Scene, region: Region, noun: str) -> list[Box]:
    """LOC: the boxes of all things of ``noun`` (TOP, BOTTOM, LEFT or RIGHT: that half), in the region's pixels."""
    w, h = float(region.x2 - region.x1), float(region.y2 - region.y1)
    halves = {"TOP": (0.0, 0.0, w, h / 2), "BOTTOM": (0.0, h / 2, w, h), "LEFT": (0.0, 0.0, w / 2, h)}
    halves["RIGHT"] = (w / 2, 0.0, w, h)
    return [halves[noun]] if noun in halves else [box for _, box in visible_objects(scene, region, noun)]


def answer_question(scene: Scene, region: Region, question: str) -> str | None:
    """VQA: the answer for the thing of the question's noun (failing that, any) nearest to the region's centre.

    None where nothing is seen, or the question asks for no attribute that the thing has.
    """
    words = re.findall(r"[a-z0-9]+", question.lower())
    nouns = [word for word in words if word in SHAPES or word in ANYTHING]
    things = visible_objects(scene, region, nouns[0] if nouns else "object") or visible_objects(scene, region)
    if not things:
        return None
    thing = things[0][0]
    if words[0] in ("is", "are", "does", "do"):
        offered = [word for word in words if any(word in values for values in ATTRIBUTES.values())]
        offered = [word for word in offered if word not in nouns[:1]] or offered
        if "or" in words:
            return next((word for word in offered if has_attribute(thing, word)), None)
        return "yes" if all(has_attribute(thing, word) for word in offered) else "no"
    kinds = [word for word in words if word in ATTRIBUTES]
    return attribute(thing, kinds[0]) if kinds else None


def verify(scene: Scene, region: Region, noun: str, word: str) -> bool:
    """VERIFY: whether ``word`` is true of the ``noun`` nearest to the region's centre; False if none is seen."""
    things = visible_objects(scene, region, noun)
    return bool(things) and has_attribute(things[0][0], word)


def match(scene: Scene, region: Region, options: Sequence[str]) -> str | None:
    """MATCH: the first option that is true of the thing nearest to the region's centre."""
    things = visible_objects(scene, region)
    return next(
        (option for option in options if things and any(has_attribute(things[0][0], word) for word in option.split())), None
    )
