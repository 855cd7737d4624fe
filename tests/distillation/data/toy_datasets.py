"""Datasets in the style of third-party libraries: their random transforms draw from the global generators."""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset


class Jitter:
    """A random transform that draws from all three generators, as a chain of transforms of several libraries does."""

    def __init__(self, strength: float = 0.5):
        self.strength = strength

    def __call__(self, image: Tensor) -> Tensor:
        if random.random() < 0.5:
            image = image.flip(-1)
        image = image * (1 + self.strength * float(np.random.uniform(-1, 1)))
        return image + 0.1 * torch.randn(image.shape)


class Toy(Dataset):
    """Images 1x6x6 of three classes, made from their number; counts how often it is read."""

    def __init__(self, count: int = 24, transform: object = None):
        self.count = count
        self.transform = transform
        self.reads = 0

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        self.reads += 1
        image = torch.arange(36.0).reshape(1, 6, 6).sin() + number % 3 + number / 100
        return image if self.transform is None else self.transform(image), number % 3


class Own(Toy):
    """Draws from a generator of its own."""

    def __init__(self, count: int = 24):
        super().__init__(count)
        self.rng = np.random.default_rng(0)

    def seed(self, value: int) -> None:
        self.rng = np.random.default_rng(value)

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        image, label = super().__getitem__(number)
        return image + float(self.rng.random()), label


class Killed(Toy):
    """Its item 7 ends the process that reads it, as a system short of memory would."""

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        if number == 7 and torch.utils.data.get_worker_info() is not None:
            import os
            import signal

            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(number)


class Stream(IterableDataset):
    def __init__(self, count: int = 10):
        self.count = count

    def __iter__(self):
        for number in range(self.count):
            yield torch.full((1, 6, 6), float(number)), number % 3


class Conv(nn.Module):
    """Dropout makes training depend on torch's global generator: reading data must leave it alone."""

    def __init__(self, seed: int, width: int = 4):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.body = nn.Conv2d(1, width, 3)
            self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = nn.functional.dropout(self.body(x).relu().mean((2, 3)), 0.3, self.training)
        return self.head(hidden)
