"""A tiny world for SDVP's tests: pictures of one colour, a colour namer, and programs that ask it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from tutelage.distillation.job import TrainingSettings
from tutelage.modules.classification import Classifier, ClassifierConfig
from tutelage.modules.function_module import module
from tutelage.modules.symbolic import symbolic_modules
from tutelage.programs.types import Call, Module
from tutelage.programs.values import Box, Image
from tutelage.sdvp.questions import Question

COLORS = ("red", "green", "blue")
PROGRAM = (
    "BOX0=MIDDLE(image=IMAGE)\nIMAGE0=CROP(image=IMAGE,box=BOX0)\nANSWER0=COLOR(image=IMAGE0)\nFINAL_RESULT=RESULT(var=ANSWER0)"
)
VIPER = "def execute_command(image):\n    return color(image)"
SETTINGS = TrainingSettings(steps=60, batch_size=16, lr=2e-2, clip=5.0, checkpoint_every=7)


class Color(Classifier):
    """COLOR(image): which of three colours."""

    name = "COLOR"

    @classmethod
    def build_network(cls, config: ClassifierConfig) -> nn.Module:
        return nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, len(config.answers)))


@module
def MIDDLE(image: Image) -> list[Box]:
    """The middle of the image."""
    w, h = image.width, image.height
    return [Box(w / 4, h / 4, w * 3 / 4, h * 3 / 4)]


def color(seed: int = 0, answers: Sequence[str] = COLORS) -> Color:
    return Color.with_classes(*answers, pixels=8, seed=seed)


def modules(**others: Module) -> dict[str, Module]:
    return {**symbolic_modules(), "MIDDLE": MIDDLE, "COLOR": color(), **others}


def picture(seed: int, answer: str, size: int = 12) -> Image:
    """Noise, brighter in one channel."""
    pixels = np.random.default_rng(seed).integers(0, 120, (3, size, size), dtype=np.uint8)
    pixels[COLORS.index(answer)] += 100
    return Image(pixels)


def questions(count: int = 30, first: int = 0, **fields: object) -> list[Question]:
    found = []
    for i in range(first, first + count):
        answer = COLORS[i % 3]
        image = picture(i, answer)
        given = {"programs": {"visprog": PROGRAM}, "answer": answer, **fields}
        found.append(Question(f"q{i}", "own", {"IMAGE": image}, "What color is it?", image_id=image.root_key, **given))
    return found


def brightest(calls: Sequence[Call]) -> list[str]:
    """A black-box teacher that is always right."""
    return [COLORS[int(call.args["image"].bytes.mean((1, 2)).argmax())] for call in calls]


def write_files(folder: Path, count: int = 30) -> tuple[Path, Path]:
    """The questions as a JSON-lines file of programs and a folder of pictures."""
    images = folder / "images"
    images.mkdir(parents=True)
    lines = []
    for question in questions(count):
        question.images["IMAGE"].to_pil().save(images / f"{question.id}.png")
        line = {"id": question.id, "dsl": "visprog", "program": PROGRAM, "answer": question.answer, "question": question.text}
        lines.append(json.dumps(line | {"images": {"IMAGE": f"{question.id}.png"}}))
    (folder / "programs.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "programs.jsonl", images


def equal(a: nn.Module, b: nn.Module) -> bool:
    """Bit for bit."""
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)
