"""EfficientTrain (Wang et al., 2023): small, low-frequency images first, with any method inside."""

from __future__ import annotations

from tutelage.systems.efficienttrain.crop import freq_crop, lanczos_resize
from tutelage.systems.efficienttrain.method import EfficientTrain
from tutelage.systems.efficienttrain.sizes import greedy_search, relative_cost, stage_at

__all__ = ["EfficientTrain", "freq_crop", "greedy_search", "lanczos_resize", "relative_cost", "stage_at"]
