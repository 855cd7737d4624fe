"""ViT-ResNAS: a three-stage vision transformer, its masked super-network, and the search in it."""

from __future__ import annotations

from tutelage.systems.vit_resnas.method import ViTResNAS, hold_out, masked_forward, mixed
from tutelage.systems.vit_resnas.network import MaskedNorm, Reduction, ViTRes
from tutelage.systems.vit_resnas.search import Evaluated, Evolution, evolve, random_search
from tutelage.systems.vit_resnas.search_space import SPACES, Architecture, Space, macs, masks_of, ranks_of, reorder, sliced

__all__ = [
    "SPACES",
    "Architecture",
    "Evaluated",
    "Evolution",
    "MaskedNorm",
    "Reduction",
    "Space",
    "ViTRes",
    "ViTResNAS",
    "evolve",
    "hold_out",
    "macs",
    "masked_forward",
    "masks_of",
    "mixed",
    "random_search",
    "ranks_of",
    "reorder",
    "sliced",
]
