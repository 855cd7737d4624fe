"""LOC on photographs: NanoDet-g, COCO's 80 classes (asset ``nanodet``).

Input: the letterboxed square of 416 pixels, BGR, by channel (x - mean) / std of 0..255. Outputs, at strides 8, 16 and 32:
a score a class, and the distances from a cell's centre to the box's four sides, each as 11 bins (Li et al., "Generalized
Focal Loss", 2020: a distance is the bins' expectation times the stride).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from tutelage import assets
from tutelage.errors import InputError
from tutelage.modules.detection import ANY_OBJECT, HALVES, Loc, LocConfig, nms, to_image
from tutelage.modules.image_batching import square_batch
from tutelage.modules.pretrained.coco_classes import CLASSES, classes_named
from tutelage.modules.pretrained.tfjs_graph import TfjsNetwork, read_graph
from tutelage.modules.visual_module import CallLabel, TrainingExamples
from tutelage.modules.vocabulary import tokens
from tutelage.programs.types import Call, ModuleOutputs, RuntimeFailure
from tutelage.programs.values import Box

ASSET = "nanodet"
STRIDES = (8, 16, 32)
BINS = 11
GREY = 114 / 255
MEAN, STD = (103.53, 116.28, 123.675), (57.375, 57.12, 58.395)
"""Blue, green, red, of 0..255."""


@dataclass(frozen=True)
class NanoDetConfig(LocConfig):
    """As :class:`LocConfig`; the threshold is our choice (boxes are answers, not candidates), suppression as published."""

    classes: tuple[str, ...] = CLASSES
    width: int = 0
    pixels: int = 416
    threshold: float = 0.4
    nms: float = 0.6


class NanoDetNetwork(nn.Module):
    """The graph behind named heads: ``presence`` logits [B, cells, C], ``bins`` logits [B, cells, 4, 11]."""

    mean: Tensor
    std: Tensor

    def __init__(self, graph: TfjsNetwork):
        super().__init__()
        self.graph = graph
        for name, values in (("mean", MEAN), ("std", STD)):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``pixels`` RGB [B, 3, s, s] in 0..1 -> the heads, the cells of all strides one after another."""
        x = (batch["pixels"].flip(1) * 255 - self.mean) / self.std
        found = sorted(self.graph(x).values(), key=lambda output: -output.shape[1])  # the finest stride first
        bins = [output for output in found if output.shape[2] == 4 * BINS]
        scores = [output for output in found if output.shape[2] != 4 * BINS]
        return {"presence": torch.logit(torch.cat(scores, 1), 1e-6), "bins": torch.cat(bins, 1).unflatten(2, (4, BINS))}


class NanoDet(Loc):
    """LOC(image, object) -> boxes of that class, best first. A word that names no class of COCO is refused, not unseen."""

    heads: ClassVar = {"presence": "logit", "bins": "classes"}
    Config = NanoDetConfig
    batch_size = 16

    @classmethod
    def build(cls, config: LocConfig, seed: int) -> Self:
        """The published network; nothing is drawn from ``seed``.

        Raises:
            AssetAbsent, WrongHash: see :mod:`tutelage.assets`.
        """
        with torch.device("cpu"):  # its sizes are those of the package, whatever device is the default
            graph = read_graph(assets.read(ASSET, "nanodet.json"), assets.read(ASSET, "nanodet.bin"), ASSET)
        return cls(config, NanoDetNetwork(graph))

    def encode(self, calls: Sequence[Call]) -> dict[str, Tensor]:
        """pixels [B, 3, s, s], letterboxed with the grey of the published training."""
        return {"pixels": square_batch([call.args["image"] for call in calls], self.config.pixels, GREY)}

    def training_examples(self, calls: Sequence[Call], labels: Sequence[CallLabel] | None) -> TrainingExamples:
        """Not offered: the assignment of boxes to cells is not part of the package.

        Raises:
            InputError: always.
        """
        raise InputError("the pretrained detector cannot be trained", where=self.name, remedy="teach the toy LOC, or your own")

    def classes_of(self, phrase: str) -> tuple[list[int], bool]:
        """Positions of the classes that ``phrase`` names, and whether it names exactly those."""
        words = tokens(phrase)
        if words and words[-1] in ANY_OBJECT:
            return list(range(len(self.config.classes))), len(words) == 1
        found, exact = classes_named(phrase)
        return list(found), exact

    def decode(self, heads: Mapping[str, Tensor], calls: Sequence[Call]) -> ModuleOutputs:
        """Boxes in pixels of the call's image, or a refusal where the phrase names no class."""
        answers = super().decode(heads, calls)
        for i, call in enumerate(calls):
            phrase = call.args["object"]
            if phrase not in HALVES and not self.classes_of(phrase)[0]:
                answers.values[i] = RuntimeFailure(
                    f"the detector knows COCO's 80 classes, {phrase!r} is none of them",
                    where=self.name,
                    remedy="ask for one of its classes (docs/photos.md), or give an open-vocabulary LOC: extra hf, --module DIR",
                )
        return answers

    def class_scores(self, heads: Mapping[str, Tensor], calls: Sequence[Call]) -> Tensor:
        """How probable an object that the call asks for is in each cell, [B, cells]."""
        scores = heads["presence"].sigmoid()
        member = torch.zeros(len(calls), scores.shape[2], dtype=torch.bool)
        for row, call in enumerate(calls):
            member[row, self.classes_of(call.args["object"])[0]] = True
        return scores.masked_fill(~member[:, None], 0).amax(2)

    def boxes(
        self, heads: Mapping[str, Tensor], calls: Sequence[Call], threshold: float, scores: Tensor | None = None
    ) -> list[list[Box]]:
        """Boxes scoring at least ``threshold`` on a class that is asked for, best first, overlaps suppressed."""
        best, side = self.class_scores(heads, calls) if scores is None else scores, self.config.pixels
        rows, cells = (best >= threshold).nonzero(as_tuple=True)
        centers, strides = _cells(side)
        far = heads["bins"][rows, cells].softmax(-1) @ torch.arange(BINS, dtype=torch.float32) * strides[cells, None]
        corners = torch.cat([centers[cells] - far[:, :2], centers[cells] + far[:, 2:]], 1).clamp(0, side) / side
        found: list[list[Box]] = [[] for _ in calls]
        for row, (x1, y1, x2, y2), score in zip(rows.tolist(), corners.tolist(), best[rows, cells].tolist(), strict=True):
            found[row].append(to_image(calls[row].args["image"], (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1, score))
        return [nms(boxes, self.config.nms) for boxes in found]


def _cells(side: int) -> tuple[Tensor, Tensor]:
    """The centre (x, y) of every cell in pixels of the square, and its stride, in the order of the outputs."""
    centers, strides = [], []
    for stride in STRIDES:
        line = (torch.arange(side // stride) + 0.5) * stride
        y, x = torch.meshgrid(line, line, indexing="ij")
        centers.append(torch.stack([x.flatten(), y.flatten()], 1))
        strides.append(torch.full((len(centers[-1]),), float(stride)))
    return torch.cat(centers), torch.cat(strides)
