"""The toy LOC: class heat-maps, sizes and centre offsets, read as boxes (our choice, sized for one CPU thread)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.modules.image_batching import as_bytes, square_batch
from tutelage.modules.rows import as_float, build_with_seed, group_by_image
from tutelage.modules.visual_module import CallLabel, TrainingExamples, VisualModule
from tutelage.modules.vocabulary import tokens
from tutelage.programs.types import Call, ModuleOutputs, Signature
from tutelage.programs.values import Box, Image, iou

HALVES = {"TOP": (0, 0, 1, 0.5), "BOTTOM": (0, 0.5, 1, 1), "LEFT": (0, 0, 0.5, 1), "RIGHT": (0.5, 0, 1, 1)}
ANY_OBJECT = frozenset({"object", "objects", "thing", "things", "shape", "shapes"})


class CenterHeatmapDetector(nn.Module):
    """Image -> class heat-map logits, box sizes and centre offsets on a grid of stride 4."""

    def __init__(self, width: int, classes: int):
        super().__init__()
        w = width
        self.classes = classes
        self.down = nn.Sequential(nn.Conv2d(3, w, 3, 2, 1), nn.ReLU(), nn.Conv2d(w, 2 * w, 3, 2, 1), nn.ReLU())
        self.wide = nn.Sequential(
            nn.Conv2d(2 * w, 3 * w, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(3 * w, 3 * w, 3, 1, 1),
            nn.ReLU(),
            nn.Conv2d(3 * w, 2 * w, 1),
        )
        self.fuse = nn.Sequential(nn.Conv2d(2 * w, 3 * w, 3, 1, 1), nn.ReLU())
        self.out = nn.Conv2d(3 * w, classes + 4, 1)
        nn.init.constant_(self.out.bias[:classes], -3.0)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``pixels`` [B, 3, s, s] -> ``heat`` [B, C, s/4, s/4], ``size`` [B, 4, s/4, s/4]: width and height as shares
        of s, then the centre's offset from its cell's middle, in cells."""
        near = self.down(as_float(batch["pixels"]) - 0.5)
        far = F.interpolate(self.wide(near), scale_factor=2, mode="nearest")
        out = self.out(self.fuse(F.relu(near + far)))
        return {"heat": out[:, : self.classes], "size": out[:, self.classes :]}


@dataclass(frozen=True)
class LocConfig:
    """Size of a locating network, its classes, and how heat becomes boxes (threshold ours: the
    networks are calibrated near one half; suppression at 0.5 as in VisProg)."""

    classes: tuple[str, ...]
    width: int = 16
    pixels: int = 48
    threshold: float = 0.4
    nms: float = 0.5

    @classmethod
    def read(cls, plain: Mapping[str, Any]) -> LocConfig:
        """The configuration from what JSON held."""
        return cls(**{**plain, "classes": tuple(plain["classes"])})


class Loc(VisualModule):
    """LOC(image, object) -> boxes of that class, best first; TOP, BOTTOM, LEFT, RIGHT are that half of the image."""

    name = "LOC"
    signature = Signature({"image": "image", "object": "text"}, "boxes")
    heads: ClassVar = {"heat": "heatmap", "size": "size"}
    batch_size = 256  # calls share images, so that fewer are computed
    photometric_input = "pixels"  # it is asked for shapes, never for colours
    Config = LocConfig

    @classmethod
    def build(cls, config: LocConfig, seed: int) -> Self:
        """A freshly initialised module."""
        return cls(config, build_with_seed(seed, lambda: CenterHeatmapDetector(config.width, len(config.classes))))

    def encode(self, calls: Sequence[Call]) -> dict[str, Tensor]:
        """pixels [B, 3, s, s]: the phrase is read in :meth:`decode`, so one forward serves every phrase."""
        return {"pixels": square_batch([call.args["image"] for call in calls], self.config.pixels)}

    def run(self, calls: Sequence[Call]) -> ModuleOutputs:
        """As every module's; each distinct image is computed once, whatever is looked for in it."""
        distinct = {call.args["image"].key: call for call in calls}
        if len(distinct) == len(calls):
            return super().run(calls)
        rows = {key: row for row, key in enumerate(distinct)}
        index = torch.tensor([rows[call.args["image"].key] for call in calls])
        with torch.inference_mode():
            heads = self.forward(self.encode(list(distinct.values())))
            return self.decode({name: head[index] for name, head in heads.items()}, calls)

    def training_examples(self, calls: Sequence[Call], labels: Sequence[CallLabel] | None) -> TrainingExamples:
        """One row an image, whatever was looked for in it: targets ``heat`` [N, C, h, w] with ``asked`` [N, C], and
        ``size`` [N, 4, h, w] with ``peaks`` [N, h, w]; a label is the boxes of the call's phrase."""
        keys = [call.args["image"].key for call in calls]
        rows = group_by_image(keys, len(calls))
        images = [calls[row[0]].args["image"] for row in rows]
        inputs = {"pixels": as_bytes(images, self.config.pixels)}
        if labels is None:
            return TrainingExamples(inputs, {}, torch.ones(len(rows)))
        cells, classes = self.config.pixels // 4, len(self.config.classes)
        heat = np.zeros((len(rows), classes, cells, cells), np.float32)
        size = np.zeros((len(rows), 4, cells, cells), np.float32)
        peaks = np.zeros((len(rows), cells, cells), np.float32)
        has_label = np.zeros((len(rows), classes), np.float32)
        for n, row in enumerate(rows):
            for i in row:
                found, _ = self.classes_of(calls[i].args["object"])
                if len(found) == 1:  # "object" says where, not which class: no heat-map can be taught by it
                    has_label[n, found[0]] = labels[i].weight
                    for box in labels[i].value:
                        _mark(heat[n, found[0]], size[n], peaks[n], box, images[n])
        targets = {
            "heat": {"heat": torch.from_numpy(heat), "asked": torch.from_numpy(has_label)},
            "size": {"size": torch.from_numpy(size), "peaks": torch.from_numpy(peaks)},
        }
        return TrainingExamples(inputs, targets, torch.ones(len(rows)))

    def classes_of(self, phrase: str) -> tuple[list[int], bool]:
        """Head positions of the classes that ``phrase`` names, and whether all its words are known."""
        words = tokens(phrase)
        if words and words[-1] in ANY_OBJECT:
            return list(range(len(self.config.classes))), len(words) == 1
        found = [i for i, name in enumerate(self.config.classes) if name in words or name + "s" in words]
        return found, len(found) == len(words) and bool(found)

    def decode(self, heads: Mapping[str, Tensor], calls: Sequence[Call]) -> ModuleOutputs:
        """Boxes at the peaks of the class's heat-map, in pixels of the call's image."""
        scores = self.class_scores(heads, calls)
        boxes = self.boxes(heads, calls, self.config.threshold, scores)
        values = [half_crop(call) or found for call, found in zip(calls, boxes, strict=True)]
        best = scores.flatten(1).amax(1).tolist()  # of a call without a box: how probable the best rejected one was
        dists: list[dict[str, float] | None] = [
            {"found": found[0].score if found else score} for found, score in zip(values, best, strict=True)
        ]
        known = [call.args["object"] in HALVES or self.classes_of(call.args["object"])[1] for call in calls]
        return ModuleOutputs(values, dists, [not k for k in known], heads)

    def scored_boxes(self, calls: Sequence[Call], threshold: float = 0.05) -> list[list[Box]]:
        """Every peak above a low ``threshold``: what an observer needs to judge how sure the answers are."""
        with torch.inference_mode():
            return self.boxes(self.forward(self.encode(calls)), calls, threshold)

    def class_scores(self, heads: Mapping[str, Tensor], calls: Sequence[Call]) -> Tensor:
        """How probable an object that the call asks for is in each cell, [B, h, w]."""
        heat = heads["heat"].sigmoid()
        member = torch.zeros(heat.shape[:2], dtype=torch.bool)
        for row, call in enumerate(calls):
            member[row, self.classes_of(call.args["object"])[0]] = True
        return heat.masked_fill(~member[:, :, None, None], 0).amax(1)

    def boxes(
        self, heads: Mapping[str, Tensor], calls: Sequence[Call], threshold: float, scores: Tensor | None = None
    ) -> list[list[Box]]:
        """Boxes scoring at least ``threshold``, best first, overlaps suppressed, one list a call.

        ``scores``: the :meth:`class_scores`, where they are known.
        """
        best = self.class_scores(heads, calls) if scores is None else scores
        peaks = (best >= F.max_pool2d(best[:, None], 3, 1, 1)[:, 0]) & (best >= threshold)
        rows, ys, xs = peaks.nonzero(as_tuple=True)
        found: list[list[Box]] = [[] for _ in calls]
        size = heads["size"][rows, :, ys, xs]
        cells = best.shape[-1]
        table = torch.stack(
            [
                (xs + 0.5 + size[:, 2].clamp(-1, 1)) / cells,
                (ys + 0.5 + size[:, 3].clamp(-1, 1)) / cells,
                size[:, 0].clamp(0.02, 1),
                size[:, 1].clamp(0.02, 1),
                best[rows, ys, xs],
            ],
            1,
        ).tolist()
        for row, (cx, cy, w, h, score) in zip(rows.tolist(), table, strict=True):
            found[row].append(to_image(calls[row].args["image"], cx, cy, w, h, score))
        return [nms(boxes, self.config.nms) for boxes in found]

    def related_calls(self, call: Call) -> list[Call]:
        """Every class, looked for in the same image."""
        image = call.args["image"]
        return [Call("LOC", {"image": image, "object": name}) for name in self.config.classes]


def half_crop(call: Call) -> list[Box] | None:
    """The half of the call's image that its phrase names, if it names one."""
    half = HALVES.get(call.args["object"])
    if half is None:
        return None
    w, h = call.args["image"].width, call.args["image"].height
    return [Box(half[0] * w, half[1] * h, half[2] * w, half[3] * h)]


def to_image(image: Image, cx: float, cy: float, w: float, h: float, score: float) -> Box:
    """From shares of the letterboxed square to pixels of the region, clipped to it."""
    side = max(image.width, image.height)
    left, top = (side - image.width) / 2, (side - image.height) / 2
    x, y, w, h = cx * side - left, cy * side - top, w * side / 2, h * side / 2
    return Box(
        max(0.0, min(x - w, image.width - 1)),
        max(0.0, min(y - h, image.height - 1)),
        min(float(image.width), max(x + w, 1)),
        min(float(image.height), max(y + h, 1)),
        score,
    )


def _mark(heat: np.ndarray, size: np.ndarray, peaks: np.ndarray, box: Box, image: Image) -> None:
    """Draw one box into the targets: a bump of 0.6 cells about its centre, and its size and offset in that cell."""
    cells, side = len(heat), max(image.width, image.height)
    (cx, cy) = box.center
    x, y = (cx + (side - image.width) / 2) / side * cells, (cy + (side - image.height) / 2) / side * cells
    column, row = min(cells - 1, max(0, int(x))), min(cells - 1, max(0, int(y)))
    near = np.arange(cells) + 0.5
    bump = np.exp(-((near[None] - x) ** 2 + (near[:, None] - y) ** 2) / (2 * 0.6**2)).astype(np.float32)
    bump[row, column] = 1
    np.maximum(heat, bump, out=heat)
    size[:, row, column] = (box.x2 - box.x1) / side, (box.y2 - box.y1) / side, x - column - 0.5, y - row - 0.5
    peaks[row, column] = 1


def nms(boxes: list[Box], threshold: float) -> list[Box]:
    """Boxes by falling score, without those that overlap a better one by more than ``threshold`` (IoU)."""
    kept: list[Box] = []
    for box in sorted(boxes, key=lambda box: -box.score):
        if all(iou(box, other) <= threshold for other in kept):
            kept.append(box)
    return kept
