"""What the packaged networks see in a photograph, asked in batches: the ground that VQA, VERIFY and MATCH stand on.

ConSE (Norouzi et al., "Zero-Shot Learning by Convex Combination of Semantic Embeddings", ICLR 2014): a picture's vector is the
mean of the embeddings of its ten most probable class names, weighted by their probabilities; a phrase fits as its own
embedding's cosine to that says. The cosine is no probability and nothing has calibrated it: a baseline.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from tutelage.files import fingerprint
from tutelage.modules.packaged.classifier import Classify, class_words
from tutelage.modules.packaged.coco import classes_named
from tutelage.modules.packaged.detector import Detector
from tutelage.modules.packaged.embedding import TextEmbedding
from tutelage.modules.words import tokens
from tutelage.programs.language import Call
from tutelage.programs.values import Image

TOP = 10
"""Class names that make a picture's vector."""
SURE = 0.5
"""The probability at which the classifier's word is taken (ours)."""


class Sight:
    """A detector, a classifier and a text embedding, and what follows from the three together."""

    def __init__(self, detector: Detector, classifier: Classify, embedding: TextEmbedding):
        self.detector, self.classifier, self.embedding = detector, classifier, embedding

    @cached_property
    def version(self) -> str:
        """Changes with any of the three."""
        return fingerprint(self.detector.version, self.classifier.version, self.embedding.version)

    def scores(self, images: Sequence[Image]) -> Tensor:
        """The best score of each COCO class anywhere in each image: [N, 80] in 0..1."""
        calls = [Call("LOC", {"image": image}) for image in images]
        size, parts = self.detector.batch_size, [torch.zeros(0, len(self.detector.config.classes))]
        with torch.inference_mode():
            for start in range(0, len(calls), size):
                heads = self.detector.forward(self.detector.encode(calls[start : start + size]))
                parts.append(heads["presence"].sigmoid().amax(1))
        return torch.cat(parts)

    def classes(self, images: Sequence[Image]) -> Tensor:
        """The probability of each ImageNet class: [N, 1000]."""
        calls = [Call("CATEGORY", {"image": image}) for image in images]
        size, parts = self.classifier.batch_size, [torch.zeros(0, len(self.classifier.config.answers))]
        with torch.inference_mode():
            for start in range(0, len(calls), size):
                heads = self.classifier.forward(self.classifier.encode(calls[start : start + size]))
                parts.append(heads["answer"].softmax(1))
        return torch.cat(parts)

    def presence(self, images: Sequence[Image], things: Sequence[str]) -> list[tuple[float, bool] | None]:
        """How surely each thing is in its image, and whether that is enough to say so; None where no network knows it.

        COCO's classes are looked for; for other words the classes that carry them are summed, of which the classifier sees
        only what the picture is mainly of.
        """
        coco = [list(classes_named(thing)[0]) for thing in things]
        named = [[] if places else self._named(thing) for places, thing in zip(coco, things)]
        scores = iter(self.scores([image for image, places in zip(images, coco) if places]))
        classes = iter(self.classes([image for image, places in zip(images, named) if places]))
        found: list[tuple[float, bool] | None] = []
        for seen, called in zip(coco, named):
            if seen:
                score = float(next(scores)[seen].max())
                found.append((score, score >= self.detector.config.threshold))
            elif called:
                share = float(next(classes)[called].sum())
                found.append((share, share >= SURE))
            else:
                found.append(None)
        return found

    def knows(self, thing: str) -> bool:
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
        return self.embedding.kept(self.classifier.config.answers)

    def fit(self, images: Sequence[Image], phrases: Sequence[str]) -> Tensor:
        """ConSE: the cosine of each image's vector to each phrase's, [N, P]; uncalibrated.

        Raises:
            MissingExtra, AssetAbsent, WrongHash: the text embedding cannot be had.
        """
        weights, top = self.classes(images).topk(TOP, 1)
        vectors = torch.nn.functional.normalize((weights[..., None] * self._names[top]).sum(1), dim=1)
        return vectors @ self.embedding.embed(phrases).T

    def best(self, images: Sequence[Image], options: Sequence[str]) -> list[str]:
        """The option that fits each image best, by :meth:`fit`."""
        return [options[row] for row in self.fit(images, options).argmax(1).tolist()]
