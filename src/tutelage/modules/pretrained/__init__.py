"""Modules for real photographs, from networks that come inside packages: offline, no model hub (docs/photos.md)."""

from __future__ import annotations

from tutelage.programs.types import Module

REQUIRED = ("nanodet", "efficientnet-lite0", "imagenet-names")
"""The assets without which there is no pretrained set; ``minilm``, ``selfie`` and the extra ``ocr`` are asked for when a call
needs them."""


def pretrained_modules() -> dict[str, Module]:
    """LOC, CATEGORY, OCR, VQA, VERIFY, MATCH, CLASSIFY and SEG on photographs, by name, sharing their networks.

    Raises:
        AssetAbsent, WrongHash: a network is not here, or not the published one; see :mod:`tutelage.assets`.
    """
    from tutelage.modules.editing import classify_with
    from tutelage.modules.pretrained.efficientnet import ImageNetClassifier
    from tutelage.modules.pretrained.nanodet import NanoDet, NanoDetConfig
    from tutelage.modules.pretrained.ocr import Ocr
    from tutelage.modules.pretrained.perception import PhotoPerception
    from tutelage.modules.pretrained.segmentation import PersonSegmenter
    from tutelage.modules.pretrained.text_embedding import TextEmbedding
    from tutelage.modules.pretrained.vqa import PhotoMatch, PhotoVerify, PhotoVqa

    detector, classifier, ocr = NanoDet.build(NanoDetConfig(), seed=0), ImageNetClassifier.pretrained(), Ocr()
    sight = PhotoPerception(detector, classifier, TextEmbedding())
    match = PhotoMatch(sight)
    classify = classify_with(lambda image, categories: sight.conse_similarity([image], categories)[0].tolist(), match.version)
    made: tuple[Module, ...] = (
        detector,
        classifier,
        ocr,
        PhotoVqa(sight, ocr),
        PhotoVerify(sight),
        match,
        classify,
        PersonSegmenter(detector),
    )
    return {module.name: module for module in made}
