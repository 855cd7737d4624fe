"""DSCLoRA (Chai et al., 2025, arXiv 2504.11271): low-rank updates of a super-resolver, supervised by a teacher, merged."""

from __future__ import annotations

from tutelage.systems.dsclora.method import DSCLoRA, affinity, affinity_loss
from tutelage.systems.dsclora.metrics import luma, psnr_luma, ssim_luma
from tutelage.systems.dsclora.span import PRESETS, SPAB, SPAN, RepConv

__all__ = [
    "PRESETS",
    "SPAB",
    "SPAN",
    "DSCLoRA",
    "RepConv",
    "affinity",
    "affinity_loss",
    "luma",
    "psnr_luma",
    "ssim_luma",
]
