"""C-GAC: keypoints and masks in a new domain (Ohkawa, Li, Fu, Furuta, Kitani, Sato, 2022, arXiv 2203.08344)."""

from __future__ import annotations

from tutelage.systems.c_gac.hand_network import PRESETS, HandNetwork, Hourglass
from tutelage.systems.c_gac.labels import HandLabels, HandLoss, confidence, hand_labels, heat_maps
from tutelage.systems.c_gac.method import CGAC
from tutelage.systems.c_gac.pointers import PointerDomain, pointers
from tutelage.systems.c_gac.scores import HandScores, mask_iou, pck_auc
from tutelage.systems.c_gac.warp import Warp, random_warps

__all__ = [
    "CGAC",
    "PRESETS",
    "HandLabels",
    "HandLoss",
    "HandNetwork",
    "HandScores",
    "Hourglass",
    "PointerDomain",
    "Warp",
    "confidence",
    "hand_labels",
    "heat_maps",
    "mask_iou",
    "pck_auc",
    "pointers",
    "random_warps",
]
