"""TinyViT (Wu et al., 2022, arXiv 2207.10666): fast pretraining distillation, its networks, and the search for them."""

from __future__ import annotations

from tutelage.systems.tinyvit.contraction import CandidateScorer, ContractionStep, ShrinkSteps, contract, neighbours, throughput
from tutelage.systems.tinyvit.method import PublishedLabels, TinyViT, soft_cross_entropy
from tutelage.systems.tinyvit.network import TinyViTNetwork

__all__ = [
    "CandidateScorer",
    "PublishedLabels",
    "ShrinkSteps",
    "ContractionStep",
    "TinyViT",
    "TinyViTNetwork",
    "contract",
    "neighbours",
    "soft_cross_entropy",
    "throughput",
]
