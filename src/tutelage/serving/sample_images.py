"""Pictures with questions about them, for people who try the server and have none at hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tutelage import assets
from tutelage.datasets.synthetic.render import render
from tutelage.datasets.synthetic.scene import make_scene
from tutelage.programs.values import Image

SCENE_SEED = 2026
"""The seed of the drawn scenes (our choice)."""
PHOTOS = "photos"
"""The asset whose photographs are shown."""
MAX_SIDE = 1024
"""Pixels of the longer side of a photograph."""

Sample = Callable[[int], dict[str, Any]]
"""From a number to {picture: a file in base64, type: its media type, questions: some that the grammar reads}; the same for the
same number."""


def scene(number: int) -> dict[str, Any]:
    """A drawn picture of synthetic scenes: see :data:`SampledIds`."""
    made = make_scene(SCENE_SEED, number, "A")
    shapes = list(dict.fromkeys(thing.shape for thing in made.things))
    alone = [shape for shape in shapes if len(made.of(shape)) == 1]
    questions = [f"What color is the {shape}?" for shape in alone[:2]]
    questions += [f"How many {shape}s are there?" for shape in shapes[:1]]
    questions += [f"Is there a {shapes[-1]}?"]
    return _sample(Image(render(made)), questions)


def photograph(number: int) -> dict[str, Any]:
    """A photograph of the asset ``photos``: see :data:`SampledIds`.

    Raises:
        AssetAbsent, WrongHash: see :mod:`tutelage.assets`.
    """
    names = sorted(assets.paths(PHOTOS))
    name = names[number % len(names)]
    questions = ["How many people are there?", "What is in the picture?", "Is there a cat?", "Are there more people than cups?"]
    return _sample(Image.from_bytes(assets.read(PHOTOS, name), where=name), questions)


def _sample(image: Image, questions: list[str]) -> dict[str, Any]:
    kind, _, data = image.data_uri(MAX_SIDE).removeprefix("data:").partition(";base64,")
    return {"picture": data, "type": kind, "questions": questions}
