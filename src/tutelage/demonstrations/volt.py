"""Volt on procedural rooms: a plain transformer on scarce scenes, step by step with augmentation and a weaker teacher."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tutelage.demonstrations import Demonstration, better
from tutelage.demonstrations._classify import SELECTION
from tutelage.distill.lesson import Lesson, Settings
from tutelage.distill.supervised import Supervised
from tutelage.distill.trainer import train
from tutelage.seeds import derive
from tutelage.systems._shared import built
from tutelage.systems.volt import CLASSES, ConvUNet, Points, Scenes, SceneViews, Volt, VoltNetwork, room

SIDE, OBJECTS = 20, 5
RECIPE = SceneViews(mix=0.5, crop=0.1, objects=0.1)


def rooms(seed: int, name: str, count: int) -> list[Points]:
    """Rooms that no other name or seed has."""
    return [room(derive(seed, "rooms", name, i), SIDE, OBJECTS) for i in range(count)]


def network(drop_path: float) -> VoltNetwork:
    """Patches of 4, two heads of 32."""
    return VoltNetwork(len(CLASSES), 6, width=64, heads=2, depth=3, outputs=24, patch=4, drop_path=drop_path)


@torch.no_grad()
def mean_iou(student: nn.Module, data: Scenes) -> float:
    """Mean over classes of intersection over union, %."""
    student.eval()
    matrix = torch.zeros(len(CLASSES), len(CLASSES), dtype=torch.int64)
    for rows in torch.arange(len(data)).split(10):
        batch = data.batch(rows, None)
        said: Tensor = student(batch.inputs).argmax(-1)
        matrix += torch.bincount(batch.labels * len(CLASSES) + said, minlength=len(CLASSES) ** 2).view_as(matrix)
    union = matrix.sum(0) + matrix.sum(1) - matrix.diagonal()
    return 100 * (matrix.diagonal()[union > 0] / union[union > 0]).mean().item()


def conv(network: nn.Module, data: Scenes, seed: int, steps: int) -> nn.Module:
    """The convolutional network, trained on labels alone."""
    settings = Settings(steps=steps, batch_size=4, lr=3e-3, weight_decay=0.05, warmup=steps // 20, seed=seed)
    return train(Lesson(network, None, Supervised(), data, settings, "teacher")).student


def run(seed: int, smoke: bool, everything: bool) -> Mapping[str, float]:
    """60 rooms to train on; equal steps and scenes a step for every student; 40 rooms to score on."""
    count = 4 if smoke else 60
    kept = rooms(seed, "train", count)
    test = Scenes(rooms(0, "selection" if seed in SELECTION else "report", 4 if smoke else 40))
    steps = 2 if smoke else 240

    def taught(data: Scenes, student: nn.Module | None = None, teacher: nn.Module | None = None, full: bool = True) -> nn.Module:
        student = student if student is not None else built(lambda: network(0.2 if full else 0.0), seed, "student")
        method = Volt(smoothing=0.1 if full else 0.0)
        settings = Settings(
            steps=steps, batch_size=4, lr=3e-3, weight_decay=0.05 if full else 0.0, warmup=steps // 20, clip=1.0, seed=seed
        )
        return train(Lesson(student, teacher, method, data, settings, "volt")).student

    plain, views = Scenes(kept), Scenes(kept, RECIPE)
    teacher = built(lambda: ConvUNet(len(CLASSES), 6, (8, 16)), seed, "teacher")
    teacher = conv(teacher, views, seed, steps)
    arms = {
        "convolutional teacher": mean_iou(teacher, test),
        "naive": mean_iou(taught(plain, full=False), test),
        "with augmentation": mean_iou(taught(views, full=False), test),
        "with regularisation too": mean_iou(taught(views), test),
        "distilled too": mean_iou(taught(views, teacher=teacher), test),
    }
    if everything:
        for share in (25, 50):
            fewer = kept[: count * share // 100]
            arms[f"naive, {share} % of the rooms"] = mean_iou(taught(Scenes(fewer), full=False), test)
            guide = conv(built(lambda: ConvUNet(len(CLASSES), 6, (8, 16)), seed, "teacher"), Scenes(fewer, RECIPE), seed, steps)
            arms[f"convolutional teacher, {share} % of the rooms"] = mean_iou(guide, test)
            arms[f"distilled too, {share} % of the rooms"] = mean_iou(taught(Scenes(fewer, RECIPE), teacher=guide), test)
    return arms


demonstration = Demonstration(
    metric="mean intersection over union, %",
    claims=[
        better("with augmentation", "naive"),
        better("distilled too", "naive"),
        better("distilled too", "with regularisation too"),
        better("distilled too", "convolutional teacher"),
    ],
    run=run,
    limits="Rooms of 20 voxels a side made by a program, 8 classes, minutes of training: no scans, and nothing about the "
    "published figures or about scale.",
)
