"""Drawn shapes for a first page: ten classes at 64x64 pixels, and a TinyVGG trained on them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from tutelage.datasets.synthetic.render import render
from tutelage.datasets.synthetic.scene import FLATNESS, Scene, SceneObject, VisualDomain
from tutelage.distillation.data import TensorData
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.small_models import TinyVGG
from tutelage.distillation.supervised import Supervised
from tutelage.distillation.trainer import train
from tutelage.seeds import derive, numpy_rng
from tutelage.systems._toy import build_with_seed

SHAPES, PATTERNS = ("circle", "rectangle", "triangle", "star", "cross"), ("plain", "striped")
CLASS_NAMES = tuple(f"{pattern} {shape}" for shape in SHAPES for pattern in PATTERNS)
COLORS = ("red", "green", "blue", "teal", "brown")
SIDE = 64
LIGHT = VisualDomain("light", color_jitter=0.08, background=(0.75, 0.97), background_hue=0.06)


def shape_pictures(seed: int, count: int) -> TensorData:
    """One shape a picture, of some colour, place and size on a light ground: uint8 [count, 3, 64, 64]; labels index
    :data:`CLASS_NAMES`, all classes in turn."""
    pictures, labels = [], []
    for number in range(count):
        rng, label = numpy_rng(seed, "shape", number), number % len(CLASS_NAMES)
        shape, pattern = SHAPES[label // len(PATTERNS)], PATTERNS[label % len(PATTERNS)]
        width = int(rng.integers(26, 44))
        height = round(width * FLATNESS) if shape == "rectangle" else width
        x, y = int(rng.integers(1, SIDE - width)), int(rng.integers(1, SIDE - height))
        thing = SceneObject(shape, COLORS[int(rng.integers(len(COLORS)))], pattern, "large", None, x, y, width, height)
        pictures.append(render(Scene(str(number), "A", SIDE, SIDE, (thing,), derive(seed, "picture", number)), LIGHT))
        labels.append(label)
    return TensorData(torch.from_numpy(np.stack(pictures)), torch.tensor(labels))


MIDDLE, SPREAD = 0.5, 0.25


def train_on_shapes(
    seed: int = 0, pictures: int = 2000, epochs: int = 10, progress: Callable[[int, int], None] | None = None
) -> TinyVGG:
    """A :class:`TinyVGG` trained on ``pictures`` drawn shapes by Adam (our choice: the paper's SGD needs hundreds of epochs).

    It is trained on ``(x - 0.5) / 0.25``; that step is then folded into its first convolution, so that the network takes
    pixels in 0..1.
    """
    drawn = shape_pictures(derive(seed, "train"), pictures)
    data = TensorData((drawn.inputs.float() / 255 - MIDDLE) / SPREAD, drawn.labels)
    network = build_with_seed(lambda: TinyVGG(len(CLASS_NAMES)), seed, "shapes")
    settings = TrainingSettings(steps=max(1, epochs * pictures // 32), batch_size=32, lr=4e-3, warmup=20, seed=seed)
    found = train(TrainingJob(network, None, Supervised(), data, settings), progress=progress).student
    assert isinstance(found, TinyVGG)
    fold_normalization(found.conv_1_1, MIDDLE, SPREAD)
    return found


@torch.no_grad()
def fold_normalization(conv: object, mean: float, std: float) -> None:
    """Change an unpadded convolution that was trained on ``(x - mean) / std`` to take ``x`` itself."""
    assert isinstance(conv, nn.Conv2d) and conv.bias is not None and conv.padding == (0, 0)
    conv.weight /= std
    conv.bias -= mean * conv.weight.sum((1, 2, 3))
