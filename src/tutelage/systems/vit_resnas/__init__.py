"""ViT-ResNAS: a three-stage vision transformer, its masked super-network, and the search in it."""

from __future__ import annotations

from tutelage.systems.vit_resnas.method import ViTResNAS, hold_out, masked_forward, mix_tokens
from tutelage.systems.vit_resnas.network import MaskedNorm, ResidualReduction, ViTRes
from tutelage.systems.vit_resnas.search import EvaluatedArchitecture, EvolutionSettings, evolve, random_search
from tutelage.systems.vit_resnas.search_space import SPACES, Architecture, SearchSpace, macs, masks_of, ranks_of, reorder, sliced

__all__ = [
    "SPACES",
    "Architecture",
    "EvaluatedArchitecture",
    "EvolutionSettings",
    "MaskedNorm",
    "ResidualReduction",
    "SearchSpace",
    "ViTRes",
    "ViTResNAS",
    "evolve",
    "hold_out",
    "macs",
    "masked_forward",
    "masks_of",
    "mix_tokens",
    "random_search",
    "ranks_of",
    "reorder",
    "sliced",
]
