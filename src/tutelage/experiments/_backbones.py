"""What the experiments of backbones share: small real images, one way of training, networks to compare with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.distillation.data import TensorData
from tutelage.distillation.small_models import BasicBlock, conv_norm
from tutelage.experiments._classification import accuracy, fashion, subset, train_student
from tutelage.seeds import torch_rng
from tutelage.systems._toy import build_with_seed


def small_fashion(seed: int, smoke: bool, count: int | None = None) -> tuple[TensorData, TensorData]:
    """Fashion-MNIST at 16x16 (averaged over 2x2 pixels, then a border of 1), centred: (images to train on, ``count`` of
    them drawn by the seed or all; images to score on). With ``smoke`` 200 of each."""
    train, test = fashion(seed)
    if count is not None or smoke:
        train = subset(train, torch.randperm(len(train), generator=torch_rng(seed, "few"))[: 200 if smoke else count])
    if smoke:
        test = subset(test, torch.arange(200))

    def reduced(data: TensorData) -> TensorData:
        return TensorData(F.pad(F.avg_pool2d(data.inputs, 2), [1] * 4) * 3 - 1, data.labels)

    return reduced(train), reduced(test)


def scores(
    networks: Mapping[str, Callable[[], nn.Module]],
    data: tuple[TensorData, TensorData],
    seed: int,
    smoke: bool,
    **settings: Any,
) -> dict[str, float]:
    """The accuracy of every network, %, after equal steps on equal batches from its own start."""
    train, test = data
    fixed = {"batch_size": 64, "seed": seed, "warmup": 1 if smoke else 30} | settings | ({"steps": 2} if smoke else {})
    return {
        arm: accuracy(train_student(build_with_seed(build, seed, "network"), train, **fixed), test)
        for arm, build in networks.items()
    }


class StagedResNet(nn.Module):
    """A ResNet of 3x3 convolutions, batch norm and ReLU in the shape of a pyramid: a stem of stride 2, stages of
    ``depths`` blocks and ``widths`` channels, each after the first at half the side; mean over positions, a Linear."""

    def __init__(self, widths: Sequence[int], depths: Sequence[int], classes: int = 10, inputs: int = 1):
        super().__init__()
        stages = [conv_norm(inputs, widths[0], 2)]
        for number, (width, depth) in enumerate(zip(widths, depths)):
            inner = widths[max(0, number - 1)]
            stages += [BasicBlock(width if i else inner, width, 2 if number and not i else 1) for i in range(depth)]
        self.stages, self.head = nn.Sequential(*stages), nn.Linear(widths[-1], classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        return self.head(self.stages(images).mean((2, 3)))
