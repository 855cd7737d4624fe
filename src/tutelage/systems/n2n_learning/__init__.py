"""N2N learning: two recurrent policies derive a small student from a trained teacher."""

from __future__ import annotations

from tutelage.systems.n2n_learning.architecture import (
    InvalidArchitecture,
    Layer,
    LayerNetwork,
    build,
    layers_of,
    parameters,
    removable,
    remove,
    shrink,
    shrinkable,
    states,
)
from tutelage.systems.n2n_learning.policies import (
    PolicySettings,
    RemovalPolicy,
    ShrinkagePolicy,
    compression_reward,
    load_policy,
    make_policy,
    optimize_policy,
    penalty_share,
    reward,
    save_policy,
)
from tutelage.systems.n2n_learning.search import Candidate, N2NLearning, SearchResult, train_candidate

__all__ = [
    "Candidate",
    "InvalidArchitecture",
    "Layer",
    "LayerNetwork",
    "N2NLearning",
    "PolicySettings",
    "RemovalPolicy",
    "SearchResult",
    "ShrinkagePolicy",
    "build",
    "compression_reward",
    "layers_of",
    "load_policy",
    "make_policy",
    "optimize_policy",
    "parameters",
    "penalty_share",
    "remove",
    "removable",
    "reward",
    "save_policy",
    "shrink",
    "shrinkable",
    "states",
    "train_candidate",
]
