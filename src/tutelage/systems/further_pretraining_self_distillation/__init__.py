"""Further pre-training with self-distillation. The whole account is in ``method.py``."""

from __future__ import annotations

from tutelage.systems.further_pretraining_self_distillation.method import (
    FurtherPretraining,
    adapt,
    adaptation_plan,
    feature_distance,
    linear_rounds,
    published_settings,
)
from tutelage.systems.further_pretraining_self_distillation.networks import (
    Classifier,
    ImagePretraining,
    PretrainingNetwork,
    TextPretraining,
    TransformersMAE,
)

__all__ = [
    "Classifier",
    "FurtherPretraining",
    "ImagePretraining",
    "PretrainingNetwork",
    "TextPretraining",
    "TransformersMAE",
    "adapt",
    "adaptation_plan",
    "feature_distance",
    "linear_rounds",
    "published_settings",
]
