"""CATEGORY on photographs: EfficientNet-Lite0, ImageNet's 1,000 classes (assets ``efficientnet-lite0``, ``imagenet-names``).

Source: Tan and Le, "EfficientNet", ICML 2019, in its Lite form: no squeeze-and-excitation, ReLU6 for swish, the first and
last stages as they are. Input: the middle square, 7/8 of the shorter side wide, at 224 pixels, (255 x - 127) / 128; padding
as TensorFlow's "SAME".
"""

from __future__ import annotations

import io
import pickle
from collections import Counter
from collections.abc import Sequence
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutelage import assets
from tutelage.errors import InputError
from tutelage.modules.classification import Classifier, ClassifierConfig, LogitsHead
from tutelage.modules.image_batching import square_batch
from tutelage.programs.types import Call
from tutelage.programs.values import Image

ASSET, NAMES = "efficientnet-lite0", "imagenet-names"
STAGES = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)
"""Expansion, channels out, blocks, stride of the first block, kernel."""

MIDDLE = 224 / (224 + 32)
"""The share of the shorter side that is looked at."""


class SamePadConv2d(nn.Conv2d):
    """A convolution without bias, padded as TensorFlow's "SAME": more at the right and bottom where the sum is odd."""

    def __init__(self, inside: int, outside: int, kernel: int, stride: int = 1, groups: int = 1):
        super().__init__(inside, outside, kernel, stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, I, h, w] -> [B, O, ceil(h / stride), ceil(w / stride)]."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        height, width = (max(0, (-(-side // stride) - 1) * stride + kernel - side) for side in x.shape[2:])
        if height or width:
            x = F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2))
        return super().forward(x)


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """Batch normalisation as published."""
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class InvertedBottleneck(nn.Module):
    """Widen, filter each channel by itself, narrow; with a short cut where the shape stays. The names are the published ones."""

    def __init__(self, inside: int, outside: int, expansion: int, stride: int, kernel: int):
        super().__init__()
        wide = inside * expansion
        self.shortcut = stride == 1 and inside == outside
        if expansion != 1:
            self._expand_conv, self._bn0 = SamePadConv2d(inside, wide, 1), batch_norm(wide)
        self._depthwise_conv, self._bn1 = SamePadConv2d(wide, wide, kernel, stride, groups=wide), batch_norm(wide)
        self._project_conv, self._bn2 = SamePadConv2d(wide, outside, 1), batch_norm(outside)

    def forward(self, x: Tensor) -> Tensor:
        """[B, I, h, w] -> [B, O, h / stride, w / stride]."""
        y = F.relu6(self._bn0(self._expand_conv(x))) if hasattr(self, "_expand_conv") else x
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.shortcut else y


class EfficientNetLite0(nn.Module):
    """Pixels [B, 3, s, s] in 0..1 -> logits [B, classes]."""

    def __init__(self, classes: int = 1000):
        super().__init__()
        self._conv_stem, self._bn0 = SamePadConv2d(3, 32, 3, 2), batch_norm(32)
        blocks, inside = [], 32
        for expansion, outside, count, stride, kernel in STAGES:
            for number in range(count):
                blocks.append(InvertedBottleneck(inside, outside, expansion, stride if number == 0 else 1, kernel))
                inside = outside
        self._blocks = nn.ModuleList(blocks)
        self._conv_head, self._bn1 = SamePadConv2d(inside, 1280, 1), batch_norm(1280)
        self._fc = nn.Linear(1280, classes)

    def forward(self, pixels: Tensor) -> Tensor:
        """The logits."""
        return self._fc(self.features(pixels))

    def features(self, pixels: Tensor) -> Tensor:
        """What the last layer reads: [B, 1280]."""
        x = F.relu6(self._bn0(self._conv_stem((pixels * 255 - 127) / 128)))
        for block in self._blocks:
            x = block(x)
        return F.relu6(self._bn1(self._conv_head(x))).mean((2, 3))

    @property
    def last_layer(self) -> nn.Linear:
        """Features [B, 1280] -> logits."""
        return self._fc


class ImageNetClassifier(Classifier):
    """CATEGORY(image) -> the most probable of ImageNet's class names."""

    name = "CATEGORY"
    batch_size = 32

    @classmethod
    def build_network(cls, config: ClassifierConfig) -> nn.Module:
        """A fresh network."""
        return EfficientNetLite0(len(config.answers))

    def encode(self, calls: Sequence[Call]) -> dict[str, Tensor]:
        """pixels [B, 3, s, s]: the middle of each image, as the published evaluation cuts it."""
        return {"pixels": square_batch([_middle(call.args["image"]) for call in calls], self.config.pixels)}

    @classmethod
    def pretrained(cls) -> Self:
        """The published network.

        Raises:
            AssetAbsent, WrongHash: see :mod:`tutelage.assets`.
            InputError: the weights are of another network.
        """
        network = EfficientNetLite0()
        try:
            state = torch.load(io.BytesIO(assets.read(ASSET, "efficientnet-lite0.pth")), map_location="cpu", weights_only=True)
            network.load_state_dict(state)
        except (RuntimeError, pickle.UnpicklingError) as error:
            raise InputError(f"weights of another network: {error}"[:300], where=ASSET) from error
        return cls(ClassifierConfig(class_names(class_words()), 224), LogitsHead(network))


def _middle(image: Image) -> Image:
    half = MIDDLE * min(image.width, image.height) / 2
    x, y = image.width / 2, image.height / 2
    return image.crop(x - half, y - half, x + half, y + half)


def class_words() -> tuple[tuple[str, ...], ...]:
    """The words of each of ImageNet's classes, in the order of the logits.

    Raises:
        AssetAbsent, WrongHash: see :mod:`tutelage.assets`.
    """
    synsets = assets.read(NAMES, "synsets.txt").decode().split()
    words = dict(line.split("\t", 1) for line in assets.read(NAMES, "words.txt").decode().splitlines())
    return tuple(tuple(word.strip() for word in words[synset].split(",")) for synset in synsets)


def class_names(words: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """A name for each class: its first word; all its words, or a number too, where several classes begin alike."""
    names: list[str] = []
    count = Counter(first for first, *_ in words)
    for number, synset in enumerate(words):
        name = synset[0] if count[synset[0]] == 1 else ", ".join(synset)
        names.append(name if name not in names else f"{name} ({number})")
    return tuple(names)
