"""A small student, teacher and data of each task."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.distillation.data import TensorData

N, CLASSES = 12, 5


@dataclass
class Case:
    student: nn.Module
    teacher: nn.Module
    data: TensorData


class Tagger(nn.Module):
    def __init__(self, words: int, classes: int, dim: int):
        super().__init__()
        self.embed, self.head = nn.Embedding(words, dim), nn.Linear(dim, classes)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.embed(ids).tanh())


class Detector(nn.Module):
    def __init__(self, queries: int):
        super().__init__()
        self.queries = queries
        self.logits, self.boxes = nn.Linear(8, queries * 4), nn.Linear(8, queries * 4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        shape = (len(x), self.queries, 4)
        boxes = self.boxes(x).sigmoid().view(shape)
        return {"logits": self.logits(x).view(shape), "pred_boxes": 0.1 + 0.8 * boxes}


class Towers(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.image, self.text = nn.Linear(8, dim), nn.Linear(6, dim)

    def forward(self, image: Tensor, text: Tensor) -> dict[str, Tensor]:
        return {"image_embeds": self.image(image), "text_embeds": self.text(text)}


def vectors(outputs: int) -> tuple[nn.Module, nn.Module, Tensor]:
    teacher = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, outputs))
    return nn.Linear(8, outputs), teacher, torch.randn(N, 8)


def classification() -> Case:
    student, teacher, x = vectors(CLASSES)
    labels = torch.arange(N) % CLASSES
    labels[3] = -100
    return Case(student, teacher, TensorData(x, labels))


def multi_label() -> Case:
    student, teacher, x = vectors(CLASSES)
    labels = torch.randint(0, 2, (N, CLASSES))
    labels[2, 1] = -1
    return Case(student, teacher, TensorData(x, labels))


def regression() -> Case:
    student, teacher, x = vectors(1)
    labels = x.sum(1)
    labels[4] = float("nan")
    return Case(student, teacher, TensorData(x, labels))


def segmentation() -> Case:
    labels = torch.randint(0, CLASSES, (N, 8, 8))
    labels[:, 0] = 255
    labels[:, 1, :3] = -100
    student, teacher = nn.Conv2d(3, CLASSES, 2, 2), nn.Conv2d(3, CLASSES, 3, padding=1)
    return Case(student, teacher, TensorData(torch.randn(N, 3, 8, 8), labels))


def token_classification() -> Case:
    ids = torch.randint(0, 11, (N, 7))
    labels = torch.randint(0, CLASSES, (N, 7))
    labels[:, 5:] = -100
    return Case(Tagger(11, CLASSES, 4), Tagger(11, CLASSES, 8), TensorData(ids, labels))


def language_modelling() -> Case:
    ids = torch.randint(0, 11, (N, 7))
    labels = ids.clone()
    labels[: N // 2, 5:] = -100
    return Case(Tagger(11, 11, 4), Tagger(11, 11, 8), TensorData(ids, labels))


def detection() -> Case:
    labels = torch.randint(0, 3, (N, 3))
    labels[:, 2] = -100
    labels[5] = -100  # an image without objects
    boxes = torch.cat([0.3 + 0.4 * torch.rand(N, 3, 2), 0.1 + 0.3 * torch.rand(N, 3, 2)], -1)
    return Case(Detector(5), Detector(4), TensorData(torch.randn(N, 8), {"labels": labels, "boxes": boxes}))


def keypoints() -> Case:
    labels = torch.cat([torch.rand(N, 4, 2), torch.ones(N, 4, 1)], -1)
    labels[:, 3, 2] = 0
    student, teacher = nn.Conv2d(3, 4, 2, 2), nn.Conv2d(3, 4, 3, padding=1)
    return Case(student, teacher, TensorData(torch.randn(N, 3, 8, 8), labels))


def restoration() -> Case:
    clean = torch.rand(N, 3, 8, 8)
    noisy = clean + 0.1 * torch.randn(clean.shape)
    return Case(nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 5, padding=2), TensorData(noisy, clean))


def embeddings() -> Case:
    data = TensorData({"image": torch.randn(N, 8), "text": torch.randn(N, 6)}, torch.arange(N) // 2)
    return Case(Towers(4), Towers(6), data)


MAKERS: dict[str, Callable[[], Case]] = {
    make.__name__.replace("_", "-"): make
    for make in (
        classification,
        multi_label,
        regression,
        segmentation,
        token_classification,
        language_modelling,
        detection,
        keypoints,
        restoration,
        embeddings,
    )
}


def make_case(name: str, seed: int = 0) -> Case:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MAKERS[name]()


def whole_batch(case: Case) -> Any:
    return case.data.batch(torch.arange(len(case.data)), None)
