"""Off-nadir SDA: from displaced to right masks of buildings (Neupane, Aryal, Rajabifard, 2023, arXiv 2311.03867)."""

from __future__ import annotations

from tutelage.systems.offnadir_sda.comparisons import MaskDistillation, MutualLearning, Study, settle_in_turn
from tutelage.systems.offnadir_sda.masks import LOSSES, mask_loss, mask_scores, scores_by_height
from tutelage.systems.offnadir_sda.method import OffNadirSDA, noisy_then_clean
from tutelage.systems.offnadir_sda.tiles import Tiles, displace_masks, roof_displacement, tilted_tiles

__all__ = [
    "LOSSES",
    "MaskDistillation",
    "MutualLearning",
    "OffNadirSDA",
    "Study",
    "Tiles",
    "displace_masks",
    "mask_loss",
    "mask_scores",
    "noisy_then_clean",
    "roof_displacement",
    "scores_by_height",
    "settle_in_turn",
    "tilted_tiles",
]
