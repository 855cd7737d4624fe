"""CATEGORY that learns quickly on a CPU: only the last layer of the pretrained classifier is trained."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Mapping, Sequence
from typing import Self

import torch
from torch import Tensor, nn

from tutelage.modules.classification import ClassifierConfig, LogitsHead
from tutelage.modules.pretrained.efficientnet import EfficientNetLite0, ImageNetClassifier
from tutelage.programs.types import Call
from tutelage.storage import fingerprint

MAX_IMAGES = 4096
"""Images whose features are kept: 5 KB each."""
AT_ONCE = 4
"""Images that go through the frozen layers together: a CPU's caches hold so many (32 at once took twice as long for each)."""


class FeaturesHead(nn.Module):
    """A layer from features to logits, with a named input and head."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``features`` [B, F] -> ``answer`` [B, A]."""
        return {"answer": self.layer(batch["features"])}


class LastLayerClassifier(ImageNetClassifier):
    """CATEGORY(image) -> the most probable class name, where the last layer alone can be trained.

    All other layers stay as they are. They look at each image once, when a call is encoded: a training step then costs a
    matrix product. The answers of an untrained one are those of the :class:`ImageNetClassifier` that it was made of.

    Example:
        >>> module = LastLayerClassifier.pretrained()
        >>> modules = {**symbolic_modules(), "CATEGORY": module}
        >>> result = tutelage.sdvp.compile(questions, modules, {"CATEGORY": teacher})
    """

    def __init__(self, config: ClassifierConfig, network: nn.Module, whole: ImageNetClassifier):
        super().__init__(config, network)
        self._whole = whole
        self._features: dict[Hashable, Tensor] = {}

    @classmethod
    def of(cls, whole: ImageNetClassifier) -> Self:
        """The module that answers as ``whole`` does, and shares its frozen layers."""
        return cls(whole.config, FeaturesHead(copy.deepcopy(_network(whole).last_layer)), whole)

    @classmethod
    def build(cls, config: ClassifierConfig, seed: int) -> Self:
        """The published network; nothing is drawn from ``seed``.

        Raises:
            AssetAbsent, WrongHash: see :mod:`tutelage.assets`.
        """
        return cls.pretrained()

    @classmethod
    def pretrained(cls) -> Self:
        """The published network.

        Raises:
            AssetAbsent, WrongHash, InputError: as :meth:`ImageNetClassifier.pretrained`.
        """
        return cls.of(ImageNetClassifier.pretrained())

    @property
    def version(self) -> str:
        """A hash of the configuration and of all layers, frozen ones too."""
        if self._version is None:
            self._version = fingerprint(self._whole.version, super().version)
        return self._version

    def encode(self, calls: Sequence[Call]) -> dict[str, Tensor]:
        """features [B, 1280]; an image that was encoded before is not looked at again."""
        wanted = [call.args["image"].key for call in calls]
        new = list({key: call for key, call in zip(wanted, calls, strict=True) if key not in self._features}.items())
        found = {key: self._features[key] for key in wanted if key in self._features}
        with torch.no_grad():
            for start in range(0, len(new), AT_ONCE):
                part = new[start : start + AT_ONCE]
                pixels = self._whole.encode([call for _, call in part])["pixels"].contiguous(memory_format=torch.channels_last)
                rows = _network(self._whole).features(pixels)
                found |= zip([key for key, _ in part], rows.unbind(), strict=True)
        self._features |= found
        for key in list(self._features)[: max(0, len(self._features) - MAX_IMAGES)]:
            del self._features[key]
        return {"features": torch.stack([found[key] for key in wanted])}


def _network(whole: ImageNetClassifier) -> EfficientNetLite0:
    head = whole.network
    assert isinstance(head, LogitsHead) and isinstance(head.network, EfficientNetLite0)
    return head.network
