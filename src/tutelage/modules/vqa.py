"""The toy VQA and VERIFY: an image crop, some words, one head (our choice, sized for one CPU thread)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.modules.image_batching import as_bytes, image_size_features, square_batch
from tutelage.modules.rows import as_float, build_with_seed, group_by_image, hash_index, pad_ids
from tutelage.modules.visual_module import CallLabel, TrainingExamples, VisualModule, class_targets
from tutelage.modules.vocabulary import Vocabulary
from tutelage.programs.types import Call, ModuleOutputs, Signature

MASKED_LOGIT = -30.0
"""The logit of an answer that was not asked for: finite, so that divergences stay finite."""


class ConvEncoder(nn.Sequential):
    """Convolutions from [B, 3, s, s] to [B, 4w, s/8, s/8]."""

    def __init__(self, width: int):
        steps = [(3, width, 2), (width, 2 * width, 2), (2 * width, 3 * width, 1), (3 * width, 4 * width, 2)]
        layers: list[nn.Module] = []
        for inside, outside, stride in steps:
            layers += [nn.Conv2d(inside, outside, 3, stride, 1), nn.ReLU()]
        super().__init__(*layers)

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels as float in 0..1, or as the bytes that exercises keep."""
        return super().forward(as_float(pixels) - 0.5)


class FiLMClassifier(nn.Module):
    """Image crop x words -> logits: the words' mean embedding scales and shifts the crop's features (FiLM).

    Several questions about one crop share its convolutions.
    """

    def __init__(self, width: int, words: int, outputs: int, head: str):
        super().__init__()
        self.head = head
        features = 4 * width
        self.trunk = ConvEncoder(width)
        self.embed = nn.Embedding(words + 1, 32)
        self.film = nn.Linear(32, 2 * features)
        self.mix = nn.Conv2d(features, features, 1)
        self.hidden = nn.Linear(2 * features + 2 + 32, 2 * features)
        self.out = nn.Linear(2 * features, outputs)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``pixels`` [B, 3, s, s], ``extent`` [B, 2], ``words`` [B, L] or [B, K, L] for K questions a crop (padded with
        -1) and, where answers are many, ``allowed`` bool [B, (K,) A] -> {head: [B, (K,) A]} or a verdict [B, (K)]."""
        words = batch["words"]
        single = words.ndim == 2
        words = words[:, None] if single else words
        present = words >= 0
        embedded = self.embed(words.clamp(min=0)) * present[..., None]
        embedded = embedded.sum(2) / present.sum(2, keepdim=True).clamp(min=1)
        scale, shift = self.film(embedded)[..., None].chunk(2, 2)
        seen = self.mix(self.trunk(batch["pixels"])).flatten(2)[:, None]
        features = F.relu(seen * (1 + scale) + shift)
        extent = batch["extent"][:, None].expand(-1, words.shape[1], -1)
        logits = self.out(F.relu(self.hidden(torch.cat([features.amax(3), features.mean(3), extent, embedded], 2))))
        if "allowed" in batch:
            allowed = batch["allowed"]
            logits = logits.masked_fill(~(allowed[:, None] if single else allowed), MASKED_LOGIT)
        else:
            logits = logits.squeeze(2)
        return {self.head: logits.squeeze(1) if single else logits}


@dataclass(frozen=True)
class FiLMConfig:
    """Size of an asking network and the vocabulary it speaks."""

    vocabulary: Vocabulary
    width: int = 16
    pixels: int = 32

    @classmethod
    def read(cls, plain: Mapping[str, Any]) -> FiLMConfig:
        """The configuration from what JSON held."""
        vocabulary = plain["vocabulary"]
        answers = tuple((kind, tuple(group)) for kind, group in vocabulary["answers"])
        return cls(Vocabulary(answers, tuple(vocabulary["nouns"])), plain["width"], plain["pixels"])


class QuestionModule(VisualModule):
    """What VQA and VERIFY share: a crop, some words, one head."""

    Config = FiLMConfig
    max_questions_per_image = 6
    """Questions that one row of an exercise holds."""

    def _words(self, call: Call) -> tuple[tuple[int, ...], bool]:
        """Word ids of the call, and whether all words are known."""
        raise NotImplementedError

    def _allowed(self, calls: Sequence[Call]) -> Tensor | None:
        """bool [B, A]: which answers each call may get; None: one verdict."""
        return None

    def encode(self, calls: Sequence[Call]) -> dict[str, Tensor]:
        """pixels [B, 3, s, s], extent [B, 2], words [B, L] and, for VQA, allowed bool [B, A]."""
        images = [call.args["image"] for call in calls]
        batch = {
            "pixels": square_batch(images, self.config.pixels),
            "extent": image_size_features(images),
            "words": pad_ids([self._words(call)[0] for call in calls]),
        }
        allowed = self._allowed(calls)
        return batch if allowed is None else {**batch, "allowed": allowed}

    def training_examples(self, calls: Sequence[Call], labels: Sequence[CallLabel] | None) -> TrainingExamples:
        """Rows of one crop with up to ``max_questions_per_image`` questions: pixels uint8 [N, 3, s, s],
        words [N, K, L]; targets and
        weights [N, K, ...]."""
        rows = group_by_image([call.args["image"].key for call in calls], self.max_questions_per_image)
        first = [calls[row[0]] for row in rows]
        deep = max(map(len, rows))
        slots = torch.tensor([[*row, *[-1] * (deep - len(row))] for row in rows])
        index, real = slots.clamp(min=0), slots >= 0
        images = [call.args["image"] for call in first]
        inputs = {
            "pixels": as_bytes(images, self.config.pixels),
            "extent": image_size_features(images),
            "words": pad_ids([self._words(call)[0] for call in calls])[index],
        }
        allowed = self._allowed(calls)
        if allowed is not None:
            inputs["allowed"] = allowed[index]
        if labels is None:
            return TrainingExamples(inputs, {}, real.float())
        weights = torch.tensor([label.weight for label in labels], dtype=torch.float32)[index] * real
        ((head, _),) = self.heads.items()
        targets = {name: target[index] for name, target in self._targets(labels).items()}
        return TrainingExamples(inputs, {head: targets}, weights)

    def _targets(self, labels: Sequence[CallLabel]) -> dict[str, Tensor]:
        raise NotImplementedError


class Vqa(QuestionModule):
    """VQA(image, question) -> the most probable answer of the asked type."""

    name = "VQA"
    signature = Signature({"image": "image", "question": "text"}, "text")
    heads: ClassVar = {"answer": "classes"}

    @classmethod
    def build(cls, config: FiLMConfig, seed: int) -> Self:
        """A freshly initialised module."""
        words, answers = len(config.vocabulary.words), len(config.vocabulary.flat)
        return cls(config, build_with_seed(seed, lambda: FiLMClassifier(config.width, words, answers, "answer")))

    def _words(self, call: Call) -> tuple[tuple[int, ...], bool]:
        reading = self.config.vocabulary.read(call.args["question"])
        return reading.ids, reading.known

    def _allowed(self, calls: Sequence[Call]) -> Tensor:
        readings = [self.config.vocabulary.read(call.args["question"]) for call in calls]
        allowed = torch.zeros(len(calls), len(self.config.vocabulary.flat), dtype=torch.bool)
        rows = [row for row, reading in enumerate(readings) for _ in reading.allowed]
        allowed[rows, [column for reading in readings for column in reading.allowed]] = True
        return allowed

    def related_calls(self, call: Call) -> list[Call]:
        """One question of every type about the same crop, and one it may say no to."""
        image, kinds = call.args["image"], self.config.vocabulary.answers
        related = [
            Call("VQA", {"image": image, "question": f"What {kind} is the object?"}) for kind, _ in kinds if kind != "yes/no"
        ]
        flat = self.config.vocabulary.flat
        word = flat[hash_index(image.key, len(flat) - 2)]
        return [*related, Call("VQA", {"image": image, "question": f"Is the object {word}?"})]

    def _targets(self, labels: Sequence[CallLabel]) -> dict[str, Tensor]:
        hard, soft = class_targets(labels, self.config.vocabulary.flat, self.name)
        return {"hard": hard, "soft": soft}

    def decode(self, heads: Mapping[str, Tensor], calls: Sequence[Call]) -> ModuleOutputs:
        """The most probable answer, and the probabilities of those allowed."""
        names = self.config.vocabulary.flat
        readings = [self.config.vocabulary.read(call.args["question"]) for call in calls]
        probabilities = heads["answer"].softmax(1).tolist()
        dists = [{names[i]: row[i] for i in reading.allowed} for row, reading in zip(probabilities, readings, strict=True)]
        values = [max(dist, key=dist.__getitem__) for dist in dists]
        return ModuleOutputs(values, dists, [not reading.known for reading in readings], heads)


class Verify(QuestionModule):
    """VERIFY(image, object, property) -> does the object in the image have the property?"""

    name = "VERIFY"
    signature = Signature({"image": "image", "object": "text", "property": "text"}, "bool")
    heads: ClassVar = {"verdict": "logit"}

    @classmethod
    def build(cls, config: FiLMConfig, seed: int) -> Self:
        """A freshly initialised module."""
        return cls(config, build_with_seed(seed, lambda: FiLMClassifier(config.width, len(config.vocabulary.words), 1, "verdict")))

    def _words(self, call: Call) -> tuple[tuple[int, ...], bool]:
        return self.config.vocabulary.ids(f"{call.args['object']} {call.args['property']}")

    def related_calls(self, call: Call) -> list[Call]:
        """One property of every type, asked of the same crop."""
        image, kinds = call.args["image"], self.config.vocabulary.answers
        words = [group[hash_index((image.key, kind), len(group))] for kind, group in kinds if kind not in ("yes/no", "number")]
        return [Call("VERIFY", {"image": image, "object": "object", "property": word}) for word in words]

    def _targets(self, labels: Sequence[CallLabel]) -> dict[str, Tensor]:
        return {
            "probability": torch.tensor(
                [label.probabilities["yes"] if label.probabilities else float(bool(label.value)) for label in labels]
            )
        }

    def decode(self, heads: Mapping[str, Tensor], calls: Sequence[Call]) -> ModuleOutputs:
        """True where the probability of yes is at least one half."""
        yes = heads["verdict"].sigmoid().tolist()
        known = [self._words(call)[1] for call in calls]
        return ModuleOutputs([p >= 0.5 for p in yes], [{"yes": p, "no": 1 - p} for p in yes], [not k for k in known], heads)
