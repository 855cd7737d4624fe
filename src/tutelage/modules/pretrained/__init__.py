"""Modules for real photographs, from networks that come inside packages: offline, no model hub (docs/photos.md)."""

from __future__ import annotations

from tutelage.programs.types import Module

REQUIRED = ("nanodet", "efficientnet-lite0", "imagenet-names")
"""The assets without which there is no packaged set; ``minilm``, ``selfie`` and the extra ``ocr`` are asked for when a call
needs them."""


def packaged_modules() -> dict[str, Module]:
    """LOC, CATEGORY, OCR, VQA, VERIFY, MATCH, CLASSIFY and SEG on photographs, by name, sharing their networks.

    Raises:
        AssetAbsent, WrongHash: a network is not here, or not the published one; see :mod:`tutelage.assets`.
    """
    from tutelage.modules.editing import classify_with
    from tutelage.modules.pretrained.vqa import Match, Verify, Vqa
    from tutelage.modules.pretrained.efficientnet import Classify
    from tutelage.modules.pretrained.nanodet import Detector, DetectorConfig
    from tutelage.modules.pretrained.text_embedding import TextEmbedding
    from tutelage.modules.pretrained.ocr import Ocr
    from tutelage.modules.pretrained.segmentation import Segment
    from tutelage.modules.pretrained.perception import Sight

    detector, classifier, ocr = Detector.build(DetectorConfig(), seed=0), Classify.pretrained(), Ocr()
    sight = Sight(detector, classifier, TextEmbedding())
    match = Match(sight)
    classify = classify_with(lambda image, categories: sight.fit([image], categories)[0].tolist(), match.version)
    made: tuple[Module, ...] = (detector, classifier, ocr, Vqa(sight, ocr), Verify(sight), match, classify, Segment(detector))
    return {module.name: module for module in made}
