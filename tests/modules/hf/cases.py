"""Every family as it is used: a tiny model, calls to its module, and labels to learn from."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tutelage.modules.visual_module import CallLabel
from tutelage.programs.types import Call
from tutelage.programs.values import Box, Image, Object

from . import tiny


class Case(NamedTuple):
    """A module's name, who makes its model, the settings it is opened with, calls, and what they should be answered."""

    module: str
    make: Callable[[Path], Path]
    settings: dict[str, Any]
    calls: list[Call]
    labels: list[CallLabel]


def picture(seed: int, height: int = 12, width: int = 10) -> Image:
    return Image.from_array(np.random.default_rng(seed).integers(0, 256, (3, height, width), dtype=np.uint8))


IMAGES = [picture(0), picture(1), picture(2), picture(3)]
QUESTIONS = ["what color is the circle ?", "is it red ?", "what is it ?", "what color is the star with the red circle ?"]
COLORS = ("red", "green", "blue star")


def calls(name: str, **args: list[Any]) -> list[Call]:
    rows = [dict(zip(args, values, strict=True)) for values in zip(*args.values(), strict=True)]
    return [Call(name, {"image": image, **row}) for image, row in zip(IMAGES, rows or [{}] * 4, strict=True)]


def closed(make: Callable[[Path], Path], answers: tuple[str, ...] = COLORS) -> Case:
    labels = [CallLabel(answers[0], {answers[0]: 0.75, answers[1]: 0.25}, 0.75), *(CallLabel(answers[1]) for _ in range(3))]
    return Case("VQA", make, {"answers": answers}, calls("VQA", question=QUESTIONS), labels)


def written(make: Callable[[Path], Path]) -> Case:
    labels = [CallLabel("red"), CallLabel("blue star"), CallLabel("red"), CallLabel("yes")]
    return Case("VQA", make, {"tokens": 4}, calls("VQA", question=QUESTIONS), labels)


def match(make: Callable[[Path], Path]) -> Case:
    options = [["red", "blue star"], ["a", "green", "no"], ["yes", "no"], ["a photo of star", "red", "blue"]]
    labels = [CallLabel("blue star"), CallLabel("no", {"no": 0.6, "a": 0.4}, 0.6), CallLabel("no"), CallLabel("red")]
    return Case("MATCH", make, {}, calls("MATCH", options=options), labels)


def verify(make: Callable[[Path], Path]) -> Case:
    asked = calls("VERIFY", object=["star"] * 4, property=["red", "green", "blue with one", "yes"])
    return Case(
        "VERIFY",
        make,
        {},
        asked,
        [CallLabel(True), CallLabel(False), CallLabel(True, {"yes": 0.7, "no": 0.3}, 0.7), CallLabel(False)],
    )


def score(make: Callable[[Path], Path]) -> Case:
    return Case("SCORE", make, {}, calls("SCORE", content=["red", "green", "a star", "no"]), [])


def loc(make: Callable[[Path], Path]) -> Case:
    labels = [
        CallLabel([Box(1, 1, 5, 5)]),
        CallLabel([]),
        CallLabel([Box(0, 2, 6, 9), Box(5, 5, 9, 11)]),
        CallLabel([Box(2, 2, 8, 8)]),
    ]
    return Case("LOC", make, {}, calls("LOC", object=["red", "green circle", "blue with one", "star"]), labels)


def cut(*corners: int) -> Object:
    x1, y1, x2, y2 = corners
    mask = np.zeros((12, 10), bool)
    mask[y1:y2, x1:x2] = True
    return Object(Box(x1, y1, x2, y2), mask)


def phrase(make: Callable[[Path], Path]) -> Case:
    labels = [
        CallLabel([cut(1, 1, 6, 6)]),
        CallLabel([]),
        CallLabel([cut(0, 0, 4, 4), cut(5, 5, 9, 9)]),
        CallLabel([cut(2, 2, 8, 8)]),
    ]
    return Case("SEG", make, {}, calls("SEG", object=["red", "green circle", "blue with one", "star"]), labels)


def boxed(make: Callable[[Path], Path]) -> Case:
    boxes = [[Box(1, 1, 8, 8)], [Box(0, 0, 3, 3), Box(2, 2, 9, 9)], [], None]
    labels = [
        CallLabel([cut(1, 1, 8, 8)]),
        CallLabel([cut(0, 0, 3, 3), cut(3, 3, 9, 9)]),
        CallLabel([]),
        CallLabel([cut(0, 0, 9, 9)]),
    ]
    return Case("SEG", make, {}, calls("SEG", box=boxes), labels)


def depth(make: Callable[[Path], Path]) -> Case:
    asked = [*calls("DEPTH")[:3], Call("DEPTH", {"image": IMAGES[3].crop(2, 2, 8, 8)})]
    labels = [CallLabel(2.0), CallLabel(0.5), CallLabel(np.linspace(1, 4, 120, dtype=np.float32).reshape(12, 10)), CallLabel(3.0)]
    return Case("DEPTH", make, {}, asked, labels)


encoding, instructed = partial(tiny.blip2, encoder=True), partial(tiny.blip2, instruct=True)
CASES = {
    "vilt": closed(tiny.vilt, ("red", "green")),
    "blip": closed(tiny.blip),
    "blip, open": written(tiny.blip),
    "blip-2": closed(tiny.blip2),
    "blip-2 with an encoder": closed(encoding),
    "blip-2 with an encoder, open": written(encoding),
    "instructblip": closed(instructed),
    "llava": closed(tiny.llava),
    "llava, open": written(tiny.llava),
    "clip": match(tiny.clip),
    "clip verifies": verify(tiny.clip),
    "clip scores": score(tiny.clip),
    "siglip": match(tiny.siglip),
    "siglip verifies": verify(tiny.siglip),
    "owl-vit": loc(tiny.owl),
    "owlv2": loc(partial(tiny.owl, second=True)),
    "grounding dino": loc(tiny.grounding_dino),
    "clipseg": phrase(tiny.clipseg),
    "sam": boxed(tiny.sam),
    "dpt": depth(tiny.dpt),
    "depth anything": depth(tiny.depth_anything),
}
