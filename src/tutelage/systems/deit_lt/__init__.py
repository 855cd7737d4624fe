"""DeiT-LT: distillation for vision transformers on long-tailed data, and the teachers that it learns from."""

from __future__ import annotations

from tutelage.systems.deit_lt.method import (
    DeiTLT,
    DistilledViT,
    attention_distance,
    class_counts,
    effective_weights,
    feature_rank,
    group_accuracy,
    long_tailed_counts,
    long_tailed_subset,
    mixup_cutmix,
)
from tutelage.systems.deit_lt.teachers import LDAM, CosineClassifier, PaCo, SharpnessAware, paco_loss

__all__ = [
    "LDAM",
    "CosineClassifier",
    "DeiTLT",
    "DistilledViT",
    "PaCo",
    "SharpnessAware",
    "attention_distance",
    "class_counts",
    "effective_weights",
    "feature_rank",
    "group_accuracy",
    "long_tailed_counts",
    "long_tailed_subset",
    "mixup_cutmix",
    "paco_loss",
]
