"""LOC from detectors that read a phrase: OWL-ViT, OWLv2 and Grounding DINO."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tutelage.modules.detection import half_crop, nms
from tutelage.modules.hf.base import HfModule, HfNetwork, ModelInputs, ResizedConfig, drop_batch_dim
from tutelage.modules.visual_module import CallLabel, TrainingExamples
from tutelage.modules.vqa import MASKED_LOGIT
from tutelage.programs.types import Call, ModuleOutputs, Signature
from tutelage.programs.values import Box, Image


@dataclass(frozen=True)
class LocConfig(ResizedConfig):
    """``prompt``: the phrase as the model is asked it; empty: as its family is. A box counts from ``threshold`` on, and unless
    it overlaps a better one by more than ``nms`` (IoU); both as in VisProg."""

    prompt: str = ""
    threshold: float = 0.1
    nms: float = 0.5


class HfLoc(HfModule):
    """LOC(image, object) -> boxes of what the phrase names, best first; TOP, BOTTOM, LEFT, RIGHT are that half of the image.

    One head: a set of Q boxes [B, Q, 5], each with the logit that it is one; it is taught by the cheapest one-to-one
    assignment (DETR's loss).
    """

    name = "LOC"
    signature = Signature({"image": "image", "object": "text"}, "boxes")
    heads: ClassVar = {"boxes": "set"}
    Config = LocConfig
    prompt_template: ClassVar = "{object}"

    def text(self, call: Call) -> str:
        """The phrase as the model is asked it."""
        return (self.config.prompt or self.prompt_template).format(object=call.args["object"])

    def sides(self, image: Image) -> tuple[float, float]:
        """The width and height, in pixels of the image, that boxes are shares of."""
        return self.config.sides(image)

    def training_examples(self, calls: Sequence[Call], labels: Sequence[CallLabel] | None) -> TrainingExamples:
        """Targets ``boxes`` [N, T, 4], centre and size as shares, and ``real`` [N, T]: which of them there are."""
        inputs = self.encode(calls)
        if labels is None:
            return TrainingExamples(inputs, {}, torch.ones(len(calls)))
        most = max([1, *(len(label.value) for label in labels)])
        boxes, real = torch.zeros(len(calls), most, 4), torch.zeros(len(calls), most, dtype=torch.bool)
        for row, (call, label) in enumerate(zip(calls, labels, strict=True)):
            sx, sy = self.sides(call.args["image"])
            for at, box in enumerate(label.value):
                (cx, cy) = box.center
                boxes[row, at] = torch.tensor([cx / sx, cy / sy, (box.x2 - box.x1) / sx, (box.y2 - box.y1) / sy])
                real[row, at] = True
        weights = torch.tensor([label.weight for label in labels], dtype=torch.float32)
        return TrainingExamples(inputs, {"boxes": {"boxes": boxes, "real": real}}, weights)

    def decode(self, heads: Mapping[str, Tensor], calls: Sequence[Call]) -> ModuleOutputs:
        """Boxes in pixels of the call's image."""
        values = [
            half_crop(call) or self.boxes(found, call.args["image"]) for found, call in zip(heads["boxes"], calls, strict=True)
        ]
        rejected = heads["boxes"][..., 0].float().sigmoid().amax(1).tolist()  # the best score, where no box is returned
        dists: list[dict[str, float] | None] = [
            {"found": boxes[0].score if boxes else score} for boxes, score in zip(values, rejected, strict=True)
        ]
        return ModuleOutputs(values, dists, None, heads)

    def boxes(self, found: Tensor, image: Image) -> list[Box]:
        """The boxes of one set [Q, 5] that score enough, clipped to the image, best first, overlaps suppressed."""
        found = found.float()
        score = found[:, 0].sigmoid()
        kept = (score >= self.config.threshold).nonzero()[:, 0]
        sx, sy = self.sides(image)
        boxes = []
        for share, (cx, cy, w, h) in zip(score[kept].tolist(), found[kept, 1:].tolist(), strict=True):
            x1, y1, x2, y2 = (cx - w / 2) * sx, (cy - h / 2) * sy, (cx + w / 2) * sx, (cy + h / 2) * sy
            box = Box(max(0.0, x1), max(0.0, y1), min(image.width, x2), min(image.height, y2), share)
            boxes += [box] if box.area > 0 else []
        return nms(boxes, self.config.nms)


class Owl(HfLoc):
    """OWL-ViT: each patch of the image is compared with the phrase, and says a box."""

    families = ("owlvit",)
    prompt_template = "a photo of a {object}"

    @classmethod
    def model_class(cls, kit: Any) -> Any:
        """AutoModelForZeroShotObjectDetection."""
        return kit.AutoModelForZeroShotObjectDetection

    @classmethod
    def build_network(cls, config: LocConfig, model: Any, processor: Any) -> nn.Module:
        """One phrase an image."""
        return PhraseNetwork(model)

    def row(self, call: Call) -> ModelInputs:
        """Image and phrase as the processor gives them; its texts are all of one length."""
        return drop_batch_dim(
            self.processor(
                images=self.config.resize_with_padding(call.args["image"]), text=[[self.text(call)]], return_tensors="pt"
            )
        )


class Owlv2(Owl):
    """OWLv2: the image is padded to a square first, and boxes are shares of that."""

    families = ("owlv2",)

    def sides(self, image: Image) -> tuple[float, float]:
        """The longer side, both ways."""
        side = max(image.width, image.height)
        return side, side


class PhraseNetwork(HfNetwork):
    """Image and one phrase -> a set of boxes."""

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Inputs of the processor -> ``boxes`` [B, Q, 5]; a detector with a logit a token is as sure as of its surest token."""
        out = self.model(**self.inputs(batch))
        return {"boxes": torch.cat([self.logits(out, batch), out.pred_boxes], 2)}

    def logits(self, out: Any, batch: Mapping[str, Tensor]) -> Tensor:
        """[B, Q, 1]: of the one phrase."""
        return out.logits


class GroundingDino(Owl):
    """Grounding DINO: queries attend to the phrase's tokens, and name those they are like."""

    families = ("grounding-dino", "mm-grounding-dino")
    prompt_template = "{object}."

    @classmethod
    def build_network(cls, config: LocConfig, model: Any, processor: Any) -> nn.Module:
        """The phrase's tokens become one logit."""
        return TokenGroundingNetwork(model, processor.tokenizer)

    def row(self, call: Call) -> ModelInputs:
        """Image and phrase, in small letters and ended by a dot."""
        return drop_batch_dim(
            self.processor(
                images=self.config.resize_with_padding(call.args["image"]), text=self.text(call).lower(), return_tensors="pt"
            )
        )


class TokenGroundingNetwork(PhraseNetwork):
    """As :class:`PhraseNetwork`, from a logit a token."""

    def __init__(self, model: Any, tokenizer: Any):
        super().__init__(model)
        self.ignored_ids = tuple({*tokenizer.all_special_ids, *tokenizer.convert_tokens_to_ids([".", "?"])})

    def logits(self, out: Any, batch: Mapping[str, Tensor]) -> Tensor:
        """[B, Q, 1]: the largest over the phrase's words; ends, dots and padding count for nothing."""
        ids = batch["input_ids"].to(out.logits.device)
        phrase_mask = (
            ~torch.isin(ids, torch.tensor(self.ignored_ids, device=ids.device)) & batch["attention_mask"].to(ids.device).bool()
        )
        words = out.logits[..., : ids.shape[1]].masked_fill(~phrase_mask[:, None], -torch.inf)
        return words.amax(2, keepdim=True).clamp_min(MASKED_LOGIT)
