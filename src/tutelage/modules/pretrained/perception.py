"""What the pretrained networks see in a photograph, asked in batches: the ground that VQA, VERIFY and MATCH stand on.

ConSE (Norouzi et al., "Zero-Shot Learning by Convex Combination of Semantic Embeddings", ICLR 2014): a picture's vector is the
mean of the embeddings of its ten most probable class names, weighted by their probabilities; a phrase fits as its own
embedding's cosine to that says. The cosine is no probability and nothing has calibrated it: a baseline.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from tutelage.modules.pretrained.coco_classes import classes_named
from tutelage.modules.pretrained.efficientnet import ImageNetClassifier, class_words
from tutelage.modules.pretrained.nanodet import NanoDet
from tutelage.modules.pretrained.text_embedding import TextEmbedding
from tutelage.modules.visual_module import VisualModule
from tutelage.modules.vocabulary import tokens
from tutelage.programs.types import Call
from tutelage.programs.values import Image
from tutelage.storage import fingerprint

TOP = 10
"""Class names that make a picture's vector."""
MIN_PROBABILITY = 0.5
"""The probability at which the classifier's word is taken (our choice)."""


class PresenceScore(NamedTuple):
    """How surely a thing is in an image, in 0..1; whether that is enough to say so; whether just that thing was looked for,
    not a wider class."""

    share: float
    enough: bool
    exact: bool


class PhotoPerception:
    """A detector, a classifier and a text embedding, and what follows from the three together."""

    def __init__(self, detector: NanoDet, classifier: ImageNetClassifier, embedding: TextEmbedding):
        self.detector, self.classifier, self.embedding = detector, classifier, embedding

    @cached_property
    def version(self) -> str:
        """Changes with any of the three."""
        return fingerprint(self.detector.version, self.classifier.version, self.embedding.version)

    def scores(self, images: Sequence[Image]) -> Tensor:
        """The best score of each COCO class anywhere in each image: [N, 80] in 0..1."""
        found = [heads["presence"].sigmoid().amax(1) for heads in _heads(self.detector, images)]
        return torch.cat([torch.zeros(0, len(self.detector.config.classes)), *found])

    def classes(self, images: Sequence[Image]) -> Tensor:
        """The probability of each ImageNet class: [N, 1000]."""
        found = [heads["answer"].softmax(1) for heads in _heads(self.classifier, images)]
        return torch.cat([torch.zeros(0, len(self.classifier.config.answers)), *found])

    def presence(self, images: Sequence[Image], things: Sequence[str]) -> list[PresenceScore | None]:
        """Whether each thing is in its image; None where no network knows it.

        COCO's classes are looked for; for other words the classes that carry them are summed, of which the classifier sees
        only what the picture is mainly of.
        """
        coco = [classes_named(thing) for thing in things]
        named = [[] if places else self._named(thing) for (places, _), thing in zip(coco, things)]
        scores = iter(self.scores([image for image, (places, _) in zip(images, coco) if places]))
        classes = iter(self.classes([image for image, places in zip(images, named) if places]))
        found: list[PresenceScore | None] = []
        for (seen, exact), called in zip(coco, named):
            if seen:
                score = float(next(scores)[list(seen)].max())
                found.append(PresenceScore(score, score >= self.detector.config.threshold, exact))
            elif called:
                share = float(next(classes)[called].sum())
                found.append(PresenceScore(share, share >= MIN_PROBABILITY, True))
            else:
                found.append(None)
        return found

    def in_vocabulary(self, thing: str) -> bool:
        """Whether a network has a class for it."""
        return bool(classes_named(thing)[0] or self._named(thing))

    def _named(self, thing: str) -> list[int]:
        """The ImageNet classes one of whose words is ``thing``, or ends in it as a word of its own."""
        wanted = " ".join(tokens(thing))
        return [i for i, words in enumerate(self._words) if any(f" {word.lower()}".endswith(f" {wanted}") for word in words)]

    @cached_property
    def _words(self) -> tuple[tuple[str, ...], ...]:
        return class_words()

    @cached_property
    def _names(self) -> Tensor:
        """The embeddings of the class names, [1000, 384]; computed once a machine."""
        return self.embedding.cached(self.classifier.config.answers)

    def conse_similarity(self, images: Sequence[Image], phrases: Sequence[str]) -> Tensor:
        """ConSE: the cosine of each image's vector to each phrase's, [N, P]; uncalibrated.

        Raises:
            MissingExtra, AssetAbsent, WrongHash: the text embedding cannot be had.
        """
        weights, top = self.classes(images).topk(TOP, 1)
        vectors = torch.nn.functional.normalize((weights[..., None] * self._names[top]).sum(1), dim=1)
        return vectors @ self.embedding.embed(phrases).T

    def best_match(self, images: Sequence[Image], options: Sequence[str]) -> list[str]:
        """The option that fits each image best, by :meth:`conse_similarity`."""
        return [options[row] for row in self.conse_similarity(images, options).argmax(1).tolist()]


def _heads(module: VisualModule, images: Sequence[Image]) -> Iterator[Mapping[str, Tensor]]:
    """What the module's network says of the images, batch by batch."""
    calls = [Call(module.name, {"image": image}) for image in images]
    with torch.inference_mode():
        for start in range(0, len(calls), module.batch_size):
            yield module.forward(module.encode(calls[start : start + module.batch_size]))
