"""OBoW: online bags of visual words (Gidaris, Bursuc, Puy, Komodakis, Cord, Pérez, 2020, arXiv 2012.11552)."""

from __future__ import annotations

from tutelage.systems.obow.bag_of_words import (
    DynamicHead,
    LinearHead,
    Vocabulary,
    bag_divergence,
    bag_of_words,
    perplexity,
    teacher_share,
    word_codes,
    word_distances,
)
from tutelage.systems.obow.method import PRESETS, OBoW

__all__ = [
    "PRESETS",
    "DynamicHead",
    "LinearHead",
    "OBoW",
    "Vocabulary",
    "bag_divergence",
    "bag_of_words",
    "perplexity",
    "teacher_share",
    "word_codes",
    "word_distances",
]
