"""SEG from models that cut things out: CLIPSeg by a phrase, the SAM family by boxes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.errors import InputError
from tutelage.modules.connected_components import mask_to_box
from tutelage.modules.hf.base import HfConfig, HfModule, HfNetwork, ModelInputs, drop_batch_dim
from tutelage.modules.visual_module import CallLabel, TrainingExamples
from tutelage.programs.types import Call, ModuleOutputs, Signature
from tutelage.programs.values import Box, Image, Object


@dataclass(frozen=True)
class SegConfig(HfConfig):
    """A pixel belongs to a thing from probability ``threshold`` on."""

    threshold: float = 0.5


class HfSeg(HfModule):
    """What both share: heat-maps [B, K, h, w], one a thing asked for, read as objects with masks."""

    name = "SEG"
    heads: ClassVar = {"masks": "heatmap"}
    Config = SegConfig

    def requested_objects(self, call: Call) -> list[tuple[str, Box | None]]:
        """What is asked for: the category of each thing, and the box it is looked for in."""
        raise NotImplementedError

    def training_examples(self, calls: Sequence[Call], labels: Sequence[CallLabel] | None) -> TrainingExamples:
        """Targets ``heat`` [N, K, h, w], the labels' masks at the head's size, and ``requested_objects`` [N,
        K]; a label is the objects of
        the call, in the order asked for; a phrase's objects make one mask.

        Raises:
            InputError: an object without a mask of its call's image.
        """
        inputs = self.encode(calls)
        if labels is None:
            return TrainingExamples(inputs, {}, torch.ones(len(calls)))
        with torch.no_grad():
            one = {key: value[:1] for key, value in inputs.items()}
            shape = self.forward(one)["masks"].shape[1:]
        heat, has_label = torch.zeros(len(calls), *shape), torch.zeros(len(calls), shape[0])
        for row, (call, label) in enumerate(zip(calls, labels, strict=True)):
            wanted = self.requested_objects(call)
            has_label[row, : len(wanted)] = label.weight
            for at, thing in enumerate(label.value if wanted else ()):
                place = min(at, len(wanted) - 1)
                mask = self.add_padding(mask_of(thing, call.args["image"]))
                small = F.interpolate(mask[None, None], shape[1:], mode="area")[0, 0]
                heat[row, place] = torch.maximum(heat[row, place], small)
        weights = torch.tensor([label.weight for label in labels], dtype=torch.float32)
        return TrainingExamples(inputs, {"masks": {"heat": heat, "asked": has_label}}, weights)

    def add_padding(self, mask: Tensor) -> Tensor:
        """A mask [H, W] of the image as the part of the head's frame that it fills."""
        return mask

    def decode(self, heads: Mapping[str, Tensor], calls: Sequence[Call]) -> ModuleOutputs:
        """An object for each thing of which a pixel was found, with its mask, its box and its mean probability."""
        values = []
        for logits, call in zip(heads["masks"].float(), calls, strict=True):
            image, found = call.args["image"], []
            for number, (category, _) in enumerate(self.requested_objects(call)):
                heat = self.undo_padding(logits[number].sigmoid(), image)
                mask = heat >= self.config.threshold
                if mask.any():
                    share = float(heat[mask].mean())
                    found.append(Object(mask_to_box(mask)._replace(score=share), mask, category, number, class_score=share))
            values.append(found)
        return ModuleOutputs(values, None, None, heads)

    def undo_padding(self, heat: Tensor, image: Image) -> np.ndarray:
        """A heat-map [h, w] as float32 [H, W] of the image."""
        size = (image.height, image.width)
        return F.interpolate(heat[None, None], size, mode="bilinear", align_corners=False)[0, 0].numpy(force=True)


class ClipSeg(HfSeg):
    """SEG(image, object) -> what the phrase names, as one object: CLIPSeg tells pixels, not instances.

    The default phrase is "object": programs that give none ask for that.
    """

    families = ("clipseg",)
    signature = Signature({"image": "image", "object": "text"}, "objects", frozenset({"object"}))

    @classmethod
    def model_class(cls, kit: Any) -> Any:
        """CLIPSegForImageSegmentation."""
        return kit.CLIPSegForImageSegmentation

    @classmethod
    def build_network(cls, config: SegConfig, model: Any, processor: Any) -> nn.Module:
        """One phrase an image."""
        return ClipSegNetwork(model)

    def requested_objects(self, call: Call) -> list[tuple[str, Box | None]]:
        """The phrase."""
        return [(str(call.args.get("object") or "object"), None)]

    def row(self, call: Call) -> ModelInputs:
        """Image and phrase as the processor gives them."""
        text = [self.requested_objects(call)[0][0]]
        return drop_batch_dim(self.processor(images=call.args["image"].to_pil(), text=text, return_tensors="pt"))

    def padding(self, name: str) -> tuple[str, int]:
        """On the right, as the tokenizer does."""
        return "right", self.processor.tokenizer.pad_token_id or 0 if name == "input_ids" else 0


class ClipSegNetwork(HfNetwork):
    """Image and phrase -> one heat-map."""

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Inputs of the processor -> ``masks`` [B, 1, h, w]."""
        logits = self.model(**self.inputs(batch)).logits
        return {"masks": logits.reshape(-1, 1, *logits.shape[-2:])}


class Sam(HfSeg):
    """SEG(image, box) -> the thing in each box, as VisProg's LOC gives them; without boxes, the thing in the middle."""

    families = ("sam",)
    ragged = frozenset({"input_boxes"})
    signature = Signature({"image": "image", "box": "boxes"}, "objects", frozenset({"box"}))

    @classmethod
    def model_class(cls, kit: Any) -> Any:
        """SamModel."""
        return kit.SamModel

    @classmethod
    def build_network(cls, config: SegConfig, model: Any, processor: Any) -> nn.Module:
        """One mask a box."""
        return SamNetwork(model)

    def requested_objects(self, call: Call) -> list[tuple[str, Box | None]]:
        """Every box; where no list is given, the whole image."""
        boxes = call.args.get("box")
        return [("object", box) for box in ([_all(call)] if boxes is None else boxes)]

    def row(self, call: Call) -> ModelInputs:
        """``pixel_values`` [3, S, S] and ``input_boxes`` [K, 4] in pixels of the model's frame; one that nobody asked for
        where LOC found none."""
        boxes = [list(map(float, (box or _all(call))[:4])) for _, box in self.requested_objects(call) or [("", None)]]
        return drop_batch_dim(
            self.processor(images=call.args["image"].to_pil(), input_boxes=[boxes], return_tensors="pt"),
            skip=("original_sizes", "reshaped_input_sizes"),
        )

    def add_padding(self, mask: Tensor) -> Tensor:
        """In the upper left of the square that the model sees."""
        side = max(mask.shape)
        return F.pad(mask, (0, side - mask.shape[1], 0, side - mask.shape[0]))

    def undo_padding(self, heat: Tensor, image: Image) -> np.ndarray:
        """The upper left of the square."""
        side = max(image.width, image.height)
        whole_frame = F.interpolate(heat[None, None], (side, side), mode="bilinear", align_corners=False)[0, 0]
        return whole_frame[: image.height, : image.width].numpy(force=True)


class SamNetwork(HfNetwork):
    """Image and boxes -> a heat-map a box, over the whole frame."""

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``pixel_values`` [B, 3, S, S], ``input_boxes`` [B, K, 4] -> ``masks`` [B, K, h, w]."""
        return {"masks": self.model(**self.inputs(batch), multimask_output=False).pred_masks[:, :, 0]}


def mask_of(thing: Object, image: Image) -> Tensor:
    """An object's mask, float [H, W].

    Raises:
        InputError: it has none, or one of another image.
    """
    if thing.mask is None or thing.mask.shape != (image.height, image.width):
        raise InputError("an object without a mask of its image", where="SEG", remedy=f"give masks of {image.height}x{image.width}")
    return torch.from_numpy(np.ascontiguousarray(thing.mask)).float()


def _all(call: Call) -> Box:
    image = call.args["image"]
    return Box(0, 0, image.width, image.height)
