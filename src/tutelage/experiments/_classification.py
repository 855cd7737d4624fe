"""What the experiments on real images share: splits, training in a line, accuracy."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tutelage.datasets import digits as digit_files
from tutelage.datasets import fashion_mnist as fashion_files
from tutelage.distillation.augmentation import Augmentation
from tutelage.distillation.data import TensorData
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.method import Method
from tutelage.distillation.outputs import forward_heads
from tutelage.distillation.supervised import Supervised
from tutelage.distillation.tasks import Task
from tutelage.distillation.trainer import train
from tutelage.seeds import torch_rng

SELECTION = range(100, 110)
"""The seeds on which settings are chosen: they are scored on the selection split, all others on the report split."""


def digits(seed: int, count: int, views: Augmentation | None = None) -> tuple[TensorData, TensorData]:
    """(``count`` images to train on, in ``views``; images to score on) of the 8x8 digits, values 0..1.

    The last 700 images are the report split and the 300 before them the selection split, in a fixed random order; the
    training images are drawn from the other 797 by the seed.
    """
    images, labels = digit_files.load_8x8()
    order = torch.randperm(len(images), generator=torch_rng(0, "digits", "splits"))
    pixels, classes = torch.from_numpy(images).float()[:, None] / 16, torch.from_numpy(labels)
    chosen = order[:797][torch.randperm(797, generator=torch_rng(seed, "digits", "train"))[:count]]
    scored = order[797:1097] if seed in SELECTION else order[1097:]
    return TensorData(pixels[chosen], classes[chosen], views=views), TensorData(pixels[scored], classes[scored])


def fashion(seed: int) -> tuple[TensorData, TensorData]:
    """(images to train on, images to score on) of Fashion-MNIST, values 0..1: for selection the training images but the
    last 10,000, and these; else all 60,000, and the published test images."""
    images, labels = (torch.from_numpy(array.copy()) for array in fashion_files.load("train"))
    pixels = images[:, None].float() / 255
    if seed in SELECTION:
        return TensorData(pixels[:-10_000], labels[:-10_000]), TensorData(pixels[-10_000:], labels[-10_000:])
    tests, answers = (torch.from_numpy(array.copy()) for array in fashion_files.load("test"))
    return TensorData(pixels, labels), TensorData(tests[:, None].float() / 255, answers)


def subset(data: TensorData, rows: Tensor) -> TensorData:
    """The samples ``rows`` of ``data``, in the same augmentation."""
    return TensorData(data.inputs[rows], data.labels[rows], views=data.views)


def train_student(
    student: nn.Module,
    data: TensorData,
    method: Method | None = None,
    teacher: Any = None,
    task: Task | str | None = None,
    **settings: Any,
) -> nn.Module:
    """The exported student after a training job; without ``method``, on labels alone.

    ``task``: named where the data has no labels to infer it from.
    """
    return train(TrainingJob(student, teacher, method or Supervised(), data, TrainingSettings(**settings), task=task)).student


@torch.no_grad()
def logits(network: nn.Module, data: TensorData, head: str = "logits") -> Tensor:
    """A head of ``network``, in eval mode, for all images of ``data``: [N, ...]."""
    network.eval()
    return torch.cat([forward_heads(network, images)[head] for images in data.inputs.split(1000)])


def accuracy(network: nn.Module, data: TensorData, head: str = "logits") -> float:
    """Share of right answers, %."""
    return 100 * (logits(network, data, head).argmax(1) == data.labels).double().mean().item()
