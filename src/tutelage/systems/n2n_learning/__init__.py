"""N2N learning: the layer list, two policies, the reward, and the search."""

from __future__ import annotations

from tutelage.systems.n2n_learning.candidates import Candidate, LogitRegression, SearchSettings
from tutelage.systems.n2n_learning.flattening import flatten_network, inherit_weights
from tutelage.systems.n2n_learning.layer_list import (
    Architecture,
    Block,
    InvalidNetwork,
    Layer,
    build,
    load_network,
    parameter_count,
)
from tutelage.systems.n2n_learning.policies import Policies, PolicySettings, RemovalPolicy, ShrinkagePolicy, train_policy
from tutelage.systems.n2n_learning.reward import Constraint, compression_reward, leniency, reward
from tutelage.systems.n2n_learning.search import N2NLearning, SearchResult

__all__ = [
    "Architecture",
    "Block",
    "Candidate",
    "Constraint",
    "InvalidNetwork",
    "Layer",
    "LogitRegression",
    "N2NLearning",
    "Policies",
    "PolicySettings",
    "RemovalPolicy",
    "SearchResult",
    "SearchSettings",
    "ShrinkagePolicy",
    "build",
    "compression_reward",
    "flatten_network",
    "inherit_weights",
    "leniency",
    "load_network",
    "parameter_count",
    "reward",
    "train_policy",
]
