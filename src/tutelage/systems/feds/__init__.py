"""FEDS (Fu, Liang, Fang, Han, 2025, arXiv 2503.06399): a strong image codec teaches a light one, in three phases."""

from __future__ import annotations

from tutelage.systems.feds.codec import PRESETS, ImageCodec
from tutelage.systems.feds.method import FEDS, RateDistortion, channel_information, channel_weights, entropy_loss, feature_loss
from tutelage.systems.feds.metrics import bd_rate, ms_ssim

__all__ = [
    "FEDS",
    "PRESETS",
    "ImageCodec",
    "RateDistortion",
    "bd_rate",
    "channel_information",
    "channel_weights",
    "entropy_loss",
    "feature_loss",
    "ms_ssim",
]
