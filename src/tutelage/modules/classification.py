"""Any image classifier as a module: a network from pixels to class logits behind a call NAME(image) -> text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from tutelage.modules.image_batching import square_batch
from tutelage.modules.rows import build_with_seed
from tutelage.modules.visual_module import VisualModule
from tutelage.programs.types import Call, Capabilities, ModuleOutputs, Signature


@dataclass(frozen=True)
class ClassifierConfig:
    """The class names in the order of the logits, and the side of the square that images are brought to."""

    answers: tuple[str, ...]
    pixels: int = 32

    @classmethod
    def read(cls, plain: Mapping[str, Any]) -> ClassifierConfig:
        """The configuration from what JSON held."""
        return cls(tuple(plain["answers"]), plain["pixels"])


class LogitsHead(nn.Module):
    """A plain network, pixels [B, 3, s, s] -> logits [B, A], as one with a named input and head."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``pixels`` float in 0..1 -> ``answer``."""
        return {"answer": self.network(batch["pixels"])}


class Classifier(VisualModule):
    """A class of image, by name: a subclass states ``name`` and makes its ``build_network``; nothing else is needed.

    ``MyModule.with_classes("red", "blue")`` is a module with a fresh network.
    """

    signature = Signature({"image": "image"}, "text")
    heads: ClassVar = {"answer": "classes"}
    Config = ClassifierConfig

    def __init__(self, config: ClassifierConfig, network: nn.Module):
        super().__init__(config, network)
        self.capabilities = Capabilities(vocabulary=config.answers)

    @classmethod
    def build_network(cls, config: ClassifierConfig) -> nn.Module:
        """A fresh network from pixels [B, 3, s, s] in 0..1 to logits [B, A], A = len(config.answers)."""
        raise NotImplementedError

    @classmethod
    def build(cls, config: ClassifierConfig, seed: int) -> Self:
        """A module with a freshly initialised network."""
        return cls(config, build_with_seed(seed, lambda: LogitsHead(cls.build_network(config))))

    @classmethod
    def with_classes(cls, *answers: str, pixels: int = 32, seed: int = 0) -> Self:
        """A module that tells ``answers`` apart, with a freshly initialised network."""
        return cls.build(ClassifierConfig(answers, pixels), seed)

    def encode(self, calls: Sequence[Call]) -> dict[str, Tensor]:
        """pixels [B, 3, s, s]: each image letterboxed."""
        return {"pixels": square_batch([call.args["image"] for call in calls], self.config.pixels)}

    def decode(self, heads: Mapping[str, Tensor], calls: Sequence[Call]) -> ModuleOutputs:
        """The most probable class, and the probability of each."""
        names = self.config.answers
        dists: list[dict[str, float] | None] = [dict(zip(names, row)) for row in torch.softmax(heads["answer"], 1).tolist()]
        return ModuleOutputs([max(dist, key=dist.__getitem__) for dist in dists if dist], dists, None, heads)
