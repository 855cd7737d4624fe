"""Drawn pictures of the embedded world, for people who try the server and have none at hand."""

from __future__ import annotations

import base64
import io
from typing import Any

import PIL.Image

from tutelage.tasks.world.render import render
from tutelage.tasks.world.scene import make_scene

STREAM = 2026
"""The seed of these scenes (ours)."""


def scene(number: int) -> dict[str, Any]:
    """{picture: PNG in base64, questions: some that the grammar reads}; the same for the same number."""
    made = make_scene(STREAM, number, "A")
    file = io.BytesIO()
    PIL.Image.fromarray(render(made).transpose(1, 2, 0)).save(file, "PNG")
    shapes = list(dict.fromkeys(thing.shape for thing in made.things))
    alone = [shape for shape in shapes if len(made.of(shape)) == 1]
    questions = [f"What color is the {shape}?" for shape in alone[:2]]
    questions += [f"How many {shape}s are there?" for shape in shapes[:1]]
    questions += [f"Is there a {shapes[-1]}?"]
    return {"picture": base64.b64encode(file.getvalue()).decode(), "questions": questions}
