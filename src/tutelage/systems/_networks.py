"""What several systems' tiny lessons and demonstrations share: small networks, toy images, a seeded way to build."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from tutelage.distill.data import TensorData
from tutelage.seeds import derive, torch_rng

T = TypeVar("T")


def built(make: Callable[[], T], seed: int, *names: object) -> T:
    """``make()`` under a global generator seeded by the stream ``names`` of ``seed``; the generator is put back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, *names))
        return make()


def toy_images(seed: int, count: int = 64, classes: int = 4, channels: int = 1, side: int = 8) -> TensorData:
    """Noisy class prototypes: images [count, channels, side, side], labels [count], every class present."""
    rng = torch_rng(seed, "toy images")
    labels = torch.arange(count) % classes
    prototypes = torch.randn(classes, channels, side, side, generator=rng)
    return TensorData(prototypes[labels] + 0.5 * torch.randn(count, channels, side, side, generator=rng), labels)


def conv_norm(inner: int, outer: int, stride: int = 1) -> nn.Sequential:
    """3x3 convolution, batch norm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(inner, outer, 3, stride, 1, bias=False), nn.BatchNorm2d(outer), nn.ReLU(inplace=True)
    )


class SmallCNN(nn.Module):
    """Three 3x3 convolutions, the last two of stride 2, the mean over positions, a linear ``head``.

    [B, inputs, H, W] -> logits [B, classes]; the embedding [B, embedding] is what goes into ``head``.
    """

    def __init__(self, classes: int = 10, channels: int = 16, embedding: int = 32, inputs: int = 1):
        super().__init__()
        self.body = nn.Sequential(
            conv_norm(inputs, channels), conv_norm(channels, 2 * channels, 2), conv_norm(2 * channels, embedding, 2)
        )
        self.head = nn.Linear(embedding, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        return self.head(self.body(images).mean((2, 3)))
