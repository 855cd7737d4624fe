"""Small embedded modules, pictures and calls for the tests."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from tutelage.modules.detection import Loc, LocConfig
from tutelage.modules.vocabulary import Vocabulary
from tutelage.modules.vqa import FiLMConfig, Verify, Vqa
from tutelage.programs.types import Call
from tutelage.programs.values import Image

VOCABULARY = Vocabulary(
    (("color", ("red", "green", "blue")), ("size", ("small", "large")), ("number", ("1", "2")), ("yes/no", ("yes", "no"))),
    ("object", "circle", "star"),
)
CLASSES = ("circle", "star")


def picture(seed: int = 0, width: int = 48, height: int = 48) -> Image:
    return Image(np.random.default_rng(seed).integers(0, 256, (3, height, width), dtype=np.uint8))


def loc(seed: int = 0) -> Loc:
    return louder(Loc.build(LocConfig(CLASSES, width=4), seed))


def louder(module: Loc) -> Loc:
    """The module with a heat-map that finds something: a fresh one is sure that nothing is there."""
    network = module.copy_network()
    torch.nn.init.constant_(network.out.bias[: len(CLASSES)], 0.0)
    torch.nn.init.normal_(network.out.weight, std=0.3, generator=torch.Generator().manual_seed(1))
    return module.with_network(network)


def vqa(seed: int = 0) -> Vqa:
    return Vqa.build(FiLMConfig(VOCABULARY, width=4, pixels=16), seed)


def verify(seed: int = 0) -> Verify:
    return Verify.build(FiLMConfig(VOCABULARY, width=4, pixels=16), seed)


def find(image: Image, phrase: str) -> Call:
    return Call("LOC", {"image": image, "object": phrase})


def ask(image: Image, question: str) -> Call:
    return Call("VQA", {"image": image, "question": question})


def check(image: Image, noun: str, word: str) -> Call:
    return Call("VERIFY", {"image": image, "object": noun, "property": word})


def crops(count: int, seed: int = 0) -> list[Image]:
    """Regions of several pictures, of all shapes."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(count):
        x, y = rng.integers(0, 30, 2)
        w, h = rng.integers(4, 18, 2)
        found.append(picture(i % 3).crop(x, y, x + w, y + h))
    return found


def with_surroundings(image: Image, value: int) -> Image:
    """The same region of a picture that holds ``value`` everywhere else."""
    root = np.full_like(image.root, value)
    x1, y1, x2, y2 = image.region
    root[:, y1:y2, x1:x2] = image.bytes
    return Image(root, region=image.region)


def close(one: Any, other: Any) -> bool:
    """Equal values, numbers up to 1e-4."""
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(close, one, other))
    return abs(one - other) < 1e-4 if isinstance(one, float) else one == other
