"""CvT with and without what it adds to a transformer, at equal parameters: convolutional projections, no positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.experiments import Experiment, better, equal
from tutelage.experiments._backbones import scores, small_fashion
from tutelage.networks.attention import TransformerBlock
from tutelage.networks.layers import PatchEmbed
from tutelage.systems.cvt import CvT, tokens_of

SMALL: dict[str, Any] = {
    "depths": (1, 1, 2), "dims": (24, 48, 96), "heads": (1, 2, 4),
    "kernels": (3, 3, 3), "strides": (2, 2, 2), "paddings": (1, 1, 1),
}  # fmt: skip
SIDE = 16


class ViT(nn.Module):
    """A plain transformer on patches of 4x4 with a class token and, unless told otherwise, learned positions."""

    def __init__(self, dim: int = 93, depth: int = 3, heads: int = 3, positions: bool = True):
        super().__init__()
        self.patches = nn.Conv2d(1, dim, 4, 4)
        self.token = nn.Parameter(0.02 * torch.randn(1, 1, dim))
        self.positions = nn.Parameter(0.02 * torch.randn(1, (SIDE // 4) ** 2 + 1, dim)) if positions else None
        self.blocks = nn.Sequential(*(TransformerBlock(dim, heads, tap_weights=True) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        x = torch.cat([self.token.expand(len(images), -1, -1), tokens_of(self.patches(images))], 1)
        if self.positions is not None:
            x = x + self.positions
        return self.head(self.norm(self.blocks(x))[:, 0])


class WithPositions(nn.Module):
    """A patch embedding with a learned vector for each position added to its tokens."""

    def __init__(self, embedding: PatchEmbed, dim: int, grid_size: int):
        super().__init__()
        self.embedding, self.positions = embedding, nn.Parameter(0.02 * torch.randn(1, grid_size * grid_size, dim))

    def map_size(self, image_size: Sequence[int]) -> tuple[int, ...]:
        """Rows and columns of the tokens."""
        return self.embedding.map_size(image_size)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [B, N, dim] with their positions."""
        return self.embedding(x) + self.positions


def small_cvt(**changes: Any) -> CvT:
    """The small CvT."""
    return CvT(10, 1, **SMALL | changes)


def cvt_with_positions() -> CvT:
    """The small CvT with a table of positions in every stage."""
    network = small_cvt()
    for name, stride, width in network.feature_info:
        stage = network.get_submodule(name)
        stage.patch_embed = WithPositions(stage.patch_embed, width, SIDE // stride)
    return network


def run(seed: int, smoke: bool, all_arms: bool) -> Mapping[str, float]:
    """Equal steps on all of Fashion-MNIST at 16x16."""
    networks = {
        "CvT": small_cvt,
        "CvT and positions": cvt_with_positions,
        "CvT, linear projections": lambda: small_cvt(convolutional=False),
        "ViT": ViT,
        "ViT, no positions": lambda: ViT(positions=False),
    }
    if all_arms:
        networks["CvT, keys at the full side"] = lambda: small_cvt(kv_stride=1)
    return scores(networks, small_fashion(seed, smoke), seed, smoke, steps=200, lr=2e-3)


experiment = Experiment(
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
