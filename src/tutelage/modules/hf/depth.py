"""DEPTH from models that see how far things are: DPT and Depth Anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.modules.hf.base import HfModule, HfNetwork, ModelInputs, ResizedConfig, drop_batch_dim
from tutelage.modules.visual_module import CallLabel, TrainingExamples
from tutelage.programs.types import Call, ModuleOutputs, Signature
from tutelage.programs.values import Image


@dataclass(frozen=True)
class DepthConfig(ResizedConfig):
    """Beside the frame: ``inverse``: the model says how near things are (relative models: MiDaS's DPT, Depth Anything), so that
    its numbers are turned over; metric models say how far, and need ``inverse=False``."""

    inverse: bool = True


class HfDepth(HfModule):
    """DEPTH(image) -> how far away the region is, as the median over its pixels; a larger number is further.

    The whole picture is looked at and the region read from the map: the depths of two crops of one picture compare.
    A label that is a map [h, w] teaches every pixel of the picture, a number the median alone.
    """

    name = "DEPTH"
    families = ("dpt", "depth_anything")
    signature = Signature({"image": "image"}, "number")
    heads: ClassVar = {"map": "size", "median": "size"}
    Config = DepthConfig

    @classmethod
    def model_class(cls, kit: Any) -> Any:
        """AutoModelForDepthEstimation."""
        return kit.AutoModelForDepthEstimation

    @classmethod
    def build_network(cls, config: DepthConfig, model: Any, processor: Any) -> nn.Module:
        """The model's map and its median in a region."""
        return DepthNetwork(model)

    def row(self, call: Call) -> ModelInputs:
        """``pixel_values`` of the whole picture, and the region [4] as shares of it."""
        image = call.args["image"]
        picture = Image(image.root, image.root_key)
        region = torch.tensor(image.region) / torch.tensor(self.config.sides(picture) * 2)
        return drop_batch_dim(self.processor(images=self.config.resize_with_padding(picture), return_tensors="pt")) | {
            "region": region
        }

    def training_examples(self, calls: Sequence[Call], labels: Sequence[CallLabel] | None) -> TrainingExamples:
        """Targets by head: ``size``, the model's own numbers, and ``peaks``, 1 where they are known."""
        inputs = self.encode(calls)
        if labels is None:
            return TrainingExamples(inputs, {}, torch.ones(len(calls)))
        with torch.no_grad():
            shape = self.forward({key: value[:1] for key, value in inputs.items()})["map"].shape[2:]
        count = len(calls)
        targets = {
            "map": {"size": torch.zeros(count, 1, *shape), "peaks": torch.zeros(count, *shape)},
            "median": {"size": torch.zeros(count, 1, 1, 1), "peaks": torch.zeros(count, 1, 1)},
        }
        for row, label in enumerate(labels):
            head = "map" if isinstance(label.value, np.ndarray) else "median"
            value = torch.as_tensor(label.value, dtype=torch.float32)
            value = 1 / value.clamp_min(1e-6) if self.config.inverse else value
            room = targets[head]["size"][row, 0].shape
            fitted = F.interpolate(value.reshape(1, 1, *value.shape[-2:]), room, mode="area") if value.ndim else value
            targets[head]["size"][row, 0] = fitted
            targets[head]["peaks"][row] = label.weight
        return TrainingExamples(inputs, targets, torch.ones(count))

    def decode(self, heads: Mapping[str, Tensor], calls: Sequence[Call]) -> ModuleOutputs:
        """The medians."""
        near = heads["median"].float().flatten()
        return ModuleOutputs((1 / near.clamp_min(1e-6) if self.config.inverse else near).tolist(), None, None, heads)


class DepthNetwork(HfNetwork):
    """Picture and region -> a map and its median there."""

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``pixel_values`` [B, 3, H, W], ``region`` [B, 4] -> ``map`` [B, 1, h, w], ``median`` [B, 1, 1, 1]."""
        regions = batch["region"]
        found = self.model(**self.inputs({name: value for name, value in batch.items() if name != "region"})).predicted_depth
        height, width = found.shape[1:]
        medians = []
        for seen, (x1, y1, x2, y2) in zip(found, regions.tolist(), strict=True):
            left, top = min(int(x1 * width), width - 1), min(int(y1 * height), height - 1)
            part = seen[top : max(top + 1, round(y2 * height)), left : max(left + 1, round(x2 * width))]
            medians.append(part.flatten().median())
        return {"map": found[:, None], "median": torch.stack(medians).reshape(-1, 1, 1, 1)}
