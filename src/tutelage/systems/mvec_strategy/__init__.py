"""MVec: which rows of a log serve every kind of student. The whole account is in ``sampler.py``."""

from __future__ import annotations

from tutelage.systems.mvec_strategy.clusters import (
    DPMeans,
    alignment_similarity,
    attention_similarity,
    coarse_to_fine,
    dp_means,
    purity,
    sample_cells,
    symmetry,
)
from tutelage.systems.mvec_strategy.log import Instance, read_log, relation_corpus
from tutelage.systems.mvec_strategy.predictor import (
    StrategyPredictor,
    edit_similarity,
    fairness,
    jaccard,
    mastery_attention,
    mastery_model,
    strategy_data,
)
from tutelage.systems.mvec_strategy.sampler import MVecStrategy
from tutelage.systems.mvec_strategy.simulation import simulated_log
from tutelage.systems.mvec_strategy.vectors import blend, component_counts, corpus_vectors, prune

__all__ = [
    "DPMeans",
    "Instance",
    "MVecStrategy",
    "StrategyPredictor",
    "alignment_similarity",
    "attention_similarity",
    "blend",
    "coarse_to_fine",
    "component_counts",
    "corpus_vectors",
    "dp_means",
    "edit_similarity",
    "fairness",
    "jaccard",
    "mastery_attention",
    "mastery_model",
    "prune",
    "purity",
    "read_log",
    "relation_corpus",
    "sample_cells",
    "simulated_log",
    "strategy_data",
    "symmetry",
]
