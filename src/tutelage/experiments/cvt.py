"""CvT with and without what it adds to a transformer, at equal parameters: convolutional projections, no positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.experiments import Demonstration, better, equal
from tutelage.experiments._backbones import scores, small_fashion
from tutelage.systems._toy import Block
from tutelage.systems.cvt import CvT, tokens_of

SMALL: dict[str, Any] = {
    "depths": (1, 1, 2), "dims": (24, 48, 96), "heads": (1, 2, 4),
    "kernels": (3, 3, 3), "strides": (2, 2, 2), "paddings": (1, 1, 1),
}  # fmt: skip
SIDE = 16


class ViT(nn.Module):
    """A plain transformer on patches of 4x4 with a class token and, unless told otherwise, learned positions."""

    def __init__(self, width: int = 93, depth: int = 3, heads: int = 3, positions: bool = True):
        super().__init__()
        self.patches = nn.Conv2d(1, width, 4, 4)
        self.token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, (SIDE // 4) ** 2 + 1, width)) if positions else None
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        x = torch.cat([self.token.expand(len(images), -1, -1), tokens_of(self.patches(images))], 1)
        if self.positions is not None:
            x = x + self.positions
        return self.head(self.norm(self.blocks(x))[:, 0])


class Placed(nn.Module):
    """A patch embedding with a learned vector for each position added to its tokens."""

    def __init__(self, embedding: nn.Module, width: int, side: int):
        super().__init__()
        self.embedding, self.positions = embedding, nn.Parameter(0.02 * torch.randn(1, side * side, width))

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Tokens and the map's size."""
        tokens, size = self.embedding(x)
        return tokens + self.positions, size


def ours(**changes: Any) -> CvT:
    """The small CvT."""
    return CvT(10, 1, **SMALL | changes)


def placed() -> CvT:
    """The small CvT with a table of positions in every stage."""
    network = ours()
    for name, stride, width in network.feature_info:
        stage = network.get_submodule(name)
        stage.patch_embed = Placed(stage.patch_embed, width, SIDE // stride)
    return network


def run(seed: int, smoke: bool, everything: bool) -> Mapping[str, float]:
    """Equal steps on all of Fashion-MNIST at 16x16."""
    networks = {
        "CvT": ours,
        "CvT and positions": placed,
        "CvT, linear projections": lambda: ours(convolutional=False),
        "ViT": ViT,
        "ViT, no positions": lambda: ViT(positions=False),
    }
    if everything:
        networks["CvT, keys at the full side"] = lambda: ours(kv_stride=1)
    return scores(networks, small_fashion(seed, smoke), seed, smoke, steps=200, lr=2e-3)


demonstration = Demonstration(
    metric="test accuracy, %",
    claims=[
        better("CvT", "ViT"),
        better("CvT", "CvT, linear projections"),
        equal("CvT and positions", "CvT", 1.0),
        better("ViT", "ViT, no positions"),
    ],
    run=run,
    limits="320,000 parameters, images of 16x16, 200 steps on garments that fill the picture: nothing about ImageNet, nor about "
    "pretraining on 22,000 classes.",
)
