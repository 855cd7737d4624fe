"""SiT: a vision transformer that learns without labels, by reconstruction, contrast and rotation in one pass."""

from __future__ import annotations

from tutelage.systems.sit_ssl.corruption import block_masks, corrupt, mask_groups, replace_blocks, soften_rectangles
from tutelage.systems.sit_ssl.fine_tuning import SiTClassifier, SiTFineTuning
from tutelage.systems.sit_ssl.losses import TaskWeights, masked_l1, momentum_contrast, nt_xent
from tutelage.systems.sit_ssl.method import PatchPainter, SiT, sit_vit

__all__ = [
    "PatchPainter",
    "SiT",
    "SiTClassifier",
    "SiTFineTuning",
    "TaskWeights",
    "block_masks",
    "corrupt",
    "mask_groups",
    "masked_l1",
    "momentum_contrast",
    "nt_xent",
    "replace_blocks",
    "sit_vit",
    "soften_rectangles",
]
