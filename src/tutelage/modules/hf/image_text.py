"""MATCH, VERIFY and SCORE from models that embed images and texts in one space: CLIP and SigLIP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tutelage.errors import InputError
from tutelage.modules.hf.base import HfConfig, HfModule, HfNetwork, ModelInputs, drop_batch_dim
from tutelage.modules.visual_module import CallLabel, TrainingExamples
from tutelage.modules.vqa import MASKED_LOGIT
from tutelage.programs.types import Call, ModuleOutputs, Signature


@dataclass(frozen=True)
class MatchConfig(HfConfig):
    """How words become the texts that images are compared with. ``prompt``: of an option. ``holds`` and ``fails``: of a
    property that an object has and has not (all ours, after the prompts the models were trained with)."""

    prompt: str = "a photo of {option}"
    holds: str = "a photo of a {object} that is {property}"
    fails: str = "a photo of a {object} that is not {property}"


class ImageTextSimilarity(HfModule):
    """What the three share: an image beside several texts, one logit a text."""

    families = ("clip", "siglip", "siglip2", "metaclip_2")
    Config = MatchConfig

    @classmethod
    def model_class(cls, kit: Any) -> Any:
        """AutoModelForZeroShotImageClassification."""
        return kit.AutoModelForZeroShotImageClassification

    @classmethod
    def build_network(cls, config: MatchConfig, model: Any, processor: Any) -> nn.Module:
        """The two towers."""
        return ImageTextNetwork(model, cls.name)

    def texts(self, call: Call) -> list[str]:
        """What the image is compared with."""
        raise NotImplementedError

    def row(self, call: Call) -> ModelInputs:
        """``pixel_values`` [3, h, w], ``input_ids`` and ``attention_mask`` [K, L] of the call's K texts; SigLIP knows no mask:
        its texts are all as long as it was trained with."""
        longest = self.network.model.config.text_config.max_position_embeddings
        length: dict[str, Any] = {"padding": True} if self.network.masked else {"padding": "max_length", "max_length": longest}
        pictures = self.processor.image_processor(images=call.args["image"].to_pil(), return_tensors="pt")
        words = self.processor.tokenizer(self.texts(call), return_tensors="pt", return_attention_mask=True, **length)
        return drop_batch_dim(pictures) | {"input_ids": words["input_ids"], "attention_mask": words["attention_mask"]}

    def padding(self, name: str) -> tuple[str, int]:
        """On the right, as the tokenizer does."""
        return "right", self.processor.tokenizer.pad_token_id or 0 if name == "input_ids" else 0


class ImageTextNetwork(HfNetwork):
    """Image and texts -> logits: scaled cosines, as the model was trained."""

    def __init__(self, model: Any, skill: str):
        super().__init__(model)
        self.skill = skill
        self.masked = not model.config.model_type.startswith("siglip")
        self.calibrated = getattr(model, "logit_bias", None) is not None  # SigLIP: each logit is a probability of its own

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``pixel_values`` [B, 3, h, w], ``input_ids`` and ``attention_mask`` [B, K, L] -> ``answer`` [B, K], ``verdict`` [B] or
        ``score`` [B]. Equal texts are read once; a text without a word (padding) is never the answer."""
        given = self.inputs(batch)
        ids, mask = given.pop("input_ids"), given.pop("attention_mask")
        present = mask.any(2)
        texts, place = torch.unique(torch.cat([ids, mask], 2).flatten(0, 1), dim=0, return_inverse=True)
        words, attended = texts.chunk(2, 1)
        read = {"input_ids": words, "attention_mask": attended} if self.masked else {"input_ids": words}
        text = l2_normalize(self.model.get_text_features(**read))[place].unflatten(0, ids.shape[:2])
        image = l2_normalize(self.model.get_image_features(**given))
        logits = torch.einsum("bd,bkd->bk", image, text) * self.model.logit_scale.exp()
        if self.calibrated:
            logits = logits + self.model.logit_bias
        if self.skill == "MATCH":
            return {"answer": logits.masked_fill(~present, MASKED_LOGIT)}
        if self.skill == "SCORE":
            return {"score": logits[:, 0]}
        return {"verdict": logits[:, 0] if self.calibrated else logits[:, 0] - logits[:, 1]}


class HfMatch(ImageTextSimilarity):
    """MATCH(image, options) -> the option that is most like the image."""

    name = "MATCH"
    signature = Signature({"image": "image", "options": "any"}, "text")
    heads: ClassVar = {"answer": "classes"}

    def texts(self, call: Call) -> list[str]:
        """Every option in its prompt.

        Raises:
            InputError: there is none.
        """
        options = call.args["options"]
        if not isinstance(options, (list, tuple)) or not options:
            raise InputError("no options to choose from", where="MATCH", remedy="give a list of texts")
        return [self.config.prompt.format(option=option) for option in options]

    def training_examples(self, calls: Sequence[Call], labels: Sequence[CallLabel] | None) -> TrainingExamples:
        """Targets over each call's own options: ``hard`` [N], ``soft`` [N, K].

        Raises:
            InputError: a label that is none of its call's options.
        """
        inputs = self.encode(calls)
        if labels is None:
            return TrainingExamples(inputs, {}, torch.ones(len(calls)))
        hard = torch.zeros(len(calls), dtype=torch.long)
        soft = torch.zeros(inputs["input_ids"].shape[:2])
        for row, (call, label) in enumerate(zip(calls, labels, strict=True)):
            options = list(call.args["options"])
            shares = label.probabilities or {label.value: 1.0}
            for own_option in (label.value, *shares):
                if own_option not in options:
                    raise InputError(
                        f"{own_option!r} is none of the options", where="MATCH", remedy=f"options: {', '.join(options)}"
                    )
            hard[row] = options.index(label.value)
            for option, share in shares.items():
                soft[row, options.index(option)] = share
        weights = torch.tensor([label.weight for label in labels], dtype=torch.float32)
        return TrainingExamples(inputs, {"answer": {"hard": hard, "soft": soft}}, weights)

    def decode(self, heads: Mapping[str, Tensor], calls: Sequence[Call]) -> ModuleOutputs:
        """The most probable option, and the probability of each."""
        dists: list[dict[str, float] | None] = []
        for row, call in zip(heads["answer"].float(), calls, strict=True):
            options = list(call.args["options"])
            dists.append(dict(zip(options, row[: len(options)].softmax(0).tolist(), strict=True)))
        return ModuleOutputs([max(dist, key=dist.__getitem__) for dist in dists if dist], dists, None, heads)


class HfVerify(ImageTextSimilarity):
    """VERIFY(image, object, property) -> has the object in the image the property?

    SigLIP tells how probable the text is; CLIP, how much more probable than its denial.
    """

    name = "VERIFY"
    signature = Signature({"image": "image", "object": "text", "property": "text"}, "bool")
    heads: ClassVar = {"verdict": "logit"}

    def texts(self, call: Call) -> list[str]:
        """That it holds, and that it fails."""
        words = {"object": call.args["object"], "property": call.args["property"]}
        return [self.config.holds.format(**words), self.config.fails.format(**words)]

    def decode(self, heads: Mapping[str, Tensor], calls: Sequence[Call]) -> ModuleOutputs:
        """True where the probability of yes is at least one half."""
        yes = heads["verdict"].float().sigmoid().tolist()
        return ModuleOutputs([p >= 0.5 for p in yes], [{"yes": p, "no": 1 - p} for p in yes], None, heads)


class HfScore(ImageTextSimilarity):
    """SCORE(image, content) -> how like the image the words are: the model's logit, to be compared between images."""

    name = "SCORE"
    signature = Signature({"image": "image", "content": "text"}, "number")
    heads: ClassVar = {"score": "logit"}

    def texts(self, call: Call) -> list[str]:
        """The content in its prompt."""
        return [self.config.prompt.format(option=call.args["content"])]

    def decode(self, heads: Mapping[str, Tensor], calls: Sequence[Call]) -> ModuleOutputs:
        """The logits."""
        return ModuleOutputs(heads["score"].float().tolist(), None, None, heads)


def l2_normalize(features: Any) -> Tensor:
    """Embeddings [B, D] of length 1, from a tensor or the output that holds them."""
    vectors = features if isinstance(features, Tensor) else features.pooler_output
    return nn.functional.normalize(vectors, dim=-1)
