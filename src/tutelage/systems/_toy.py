"""What several systems share: a check of labels; small networks and toy images for tiny training jobs and experiments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from tutelage.distillation.data import TensorData
from tutelage.distillation.small_models import SmallCNN, conv_norm
from tutelage.errors import InputError
from tutelage.networks.attention import TransformerBlock
from tutelage.networks.layers import OverlapPatchEmbed
from tutelage.seeds import derive, torch_rng

__all__ = [
    "HierarchicalTransformer",
    "SmallCNN",
    "TransformerStage",
    "build_with_seed",
    "class_ids",
    "conv_norm",
    "toy_images",
]

T = TypeVar("T")


def build_with_seed(make: Callable[[], T], seed: int, *names: object) -> T:
    """``make()`` under a global generator seeded by the stream ``names`` of ``seed``; the generator is put back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, *names))
        return make()


def class_ids(labels: Tensor | None) -> Tensor:
    """``labels`` where they are class ids [B].

    Raises:
        InputError: there are none, some are ignored (below 0), or they are probabilities: the target would not be one class.
    """
    if labels is None or labels.ndim != 1 or labels.dtype != torch.int64:
        raise InputError("the loss needs one class id a sample", where="labels", remedy="give int64 labels [B]; no mixed labels")
    if bool((labels < 0).any()):
        raise InputError(
            "a label is ignored (below 0), and this method needs every label",
            where="labels",
            remedy="leave these samples out, or use a method that ignores labels, such as kd",
        )
    return labels


def toy_images(seed: int, count: int = 64, classes: int = 4, channels: int = 1, image_size: int = 8) -> TensorData:
    """Noisy class prototypes: images [count, channels, side, side], labels [count], every class present."""
    rng = torch_rng(seed, "toy images")
    labels = torch.arange(count) % classes
    prototypes = torch.randn(classes, channels, image_size, image_size, generator=rng)
    return TensorData(prototypes[labels] + 0.5 * torch.randn(count, channels, image_size, image_size, generator=rng), labels)


class TransformerStage(nn.Module):
    """Patch embedding (a tap: ``embed``), transformer blocks, a norm; a map [B, C, H, W] to the next, smaller one."""

    def __init__(self, in_chans: int, dim: int, depth: int, heads: int, stride: int = 2):
        super().__init__()
        self.embed, self.norm, self.stride = OverlapPatchEmbed(in_chans, dim, stride), nn.LayerNorm(dim), stride
        self.blocks = nn.Sequential(*(TransformerBlock(dim, heads, 2, tap_weights=True) for _ in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        """The stage's map."""
        size = tuple(-(-side // self.stride) for side in x.shape[2:])
        tokens = self.norm(self.blocks(self.embed(x))).transpose(1, 2)
        # laid out as a stored map is, so that a cached teacher gives the same sums
        return tokens.clone(memory_format=torch.contiguous_format).unflatten(2, size)


class HierarchicalTransformer(nn.Module):
    """A pyramid of stages, the first of stride ``first``, the others of 2: [B, inputs, H, W] -> a list of maps."""

    def __init__(self, widths: Sequence[int], depths: Sequence[int], inputs: int = 3, first: int = 4, head: int = 16):
        super().__init__()
        before = [inputs, *widths]
        self.stages = nn.ModuleList(
            TransformerStage(before[i], width, depth, max(1, width // head), 2 if i else first)
            for i, (width, depth) in enumerate(zip(widths, depths))
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        """The maps of all stages, the finest first."""
        maps = []
        for stage in self.stages:
            images = stage(images)
            maps.append(images)
        return maps
