"""SEG on photographs: everything that NanoDet finds, with a mask where that is a person (asset ``selfie``)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from tutelage import assets
from tutelage.assets import AssetNotFound
from tutelage.modules.pretrained.nanodet import NanoDet
from tutelage.modules.pretrained.tfjs_graph import TfjsNetwork, read_graph
from tutelage.programs.types import Call, ModuleOutputs, RuntimeFailure, Signature
from tutelage.programs.values import Box, Image, Object

ASSET = "selfie"
SIDE = 256
PERSON = "person"


class PersonSegmenter:
    """SEG(image) -> an object for each thing found, best first; a person's mask is the pixels of people inside its box."""

    name, symbolic, batch_size = "SEG", False, 16
    signature = Signature({"image": "image"}, "objects")

    def __init__(self, detector: NanoDet):
        self.detector = detector

    @property
    def version(self) -> str:
        """Of both networks."""
        return f"{self.detector.version}-{assets.asset(ASSET).files['selfie.bin'].sha256[:8]}"

    @cached_property
    def _network(self) -> TfjsNetwork:
        return read_graph(assets.read(ASSET, "selfie.json"), assets.read(ASSET, "selfie.bin"), ASSET).eval()

    def people(self, images: Sequence[Image]) -> list[np.ndarray]:
        """The probability that a pixel shows a person, float32 [H, W] for each image.

        Raises:
            AssetAbsent, WrongHash: see :mod:`tutelage.assets`.
        """
        pixels = [torch.from_numpy(image.pixels)[None] for image in images]
        squares = [F.interpolate(it, (SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False) for it in pixels]
        with torch.inference_mode():
            (masks,) = self._network(torch.cat(squares).permute(0, 2, 3, 1)).values()
        whole = [
            F.interpolate(mask[None], (image.height, image.width), mode="bilinear", align_corners=False)[0, 0]
            for mask, image in zip(masks.permute(0, 3, 1, 2), images, strict=True)
        ]
        return [mask.numpy() for mask in whole]

    def run(self, calls: Sequence[Call]) -> ModuleOutputs:
        """One pass of the detector over all images, and one of the other network over those with people."""
        with torch.inference_mode():
            heads = self.detector.forward(self.detector.encode(calls))
        found = [self._things({name: head[row : row + 1] for name, head in heads.items()}, call) for row, call in enumerate(calls)]
        rows = [row for row, things in enumerate(found) if any(name == PERSON for name, _ in things)]
        values: list[Any] = [_objects(things, None) for things in found]
        try:
            masks = self.people([calls[row].args["image"] for row in rows]) if rows else []
        except AssetNotFound as error:
            masks = []
            for row in rows:
                values[row] = RuntimeFailure(error.message, where=error.where, remedy=error.remedy)
        for row, mask in zip(rows, masks):
            values[row] = _objects(found[row], mask >= 0.5)
        return ModuleOutputs(values)

    def _things(self, heads: dict[str, torch.Tensor], call: Call) -> list[tuple[str, Box]]:
        """What is seen, class by class."""
        threshold, names = self.detector.config.threshold, self.detector.config.classes
        present = (heads["presence"].sigmoid().amax((0, 1)) >= threshold).nonzero()[:, 0].tolist()
        box_calls = [(names[i], Call("LOC", {"image": call.args["image"], "object": names[i]})) for i in present]
        return [(name, box) for name, one in box_calls for box in self.detector.boxes(heads, [one], threshold)[0]]


def _objects(things: Sequence[tuple[str, Box]], people: np.ndarray | None) -> list[Object]:
    objects = []
    for number, (name, box) in enumerate(sorted(things, key=lambda thing: -thing[1].score), 1):
        mask = None
        if name == PERSON and people is not None:
            mask = np.zeros_like(people)
            inside = slice(int(box.y1), int(np.ceil(box.y2))), slice(int(box.x1), int(np.ceil(box.x2)))
            mask[inside] = people[inside]
        objects.append(Object(box, mask, name, number, name, box.score))
    return objects
