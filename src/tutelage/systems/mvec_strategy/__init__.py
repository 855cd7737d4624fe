"""Which rows of a log to train on, or to label, so that rare kinds of users are served as well as common ones::

    from tutelage.systems.mvec_strategy import MVecStrategy, read_log

    instances = read_log("log.txt")  # columns of the KDD Cup 2010; names of students are hashed
    rows = MVecStrategy(instances).sample(500)  # equally many of each cluster of students and problems

It trains no student of its own, so there is no recipe. :class:`StrategyPredictor` is a network for any method::

    data = strategy_data([instances[i] for i in rows], vectors, components)
    tutelage.distill(StrategyPredictor(24, len(components)), None, data, "supervised", task="token-classification")

A strategy is the ordered list of knowledge components that a student uses at a problem. Training on a random part of a log
learns the strategies of the majority. MVec embeds students and problems, clusters the embeddings by DP-means, which opens a
cluster wherever a point is farther than a distance from all centres, and draws equally many rows of each pair of clusters. An
LSTM then predicts the strategy.

All parts of the paper are here: the relation corpus (:func:`relation_corpus`); vectors from it (:func:`corpus_vectors`, the
factorisation that Word2Vec approximates, as gensim is no dependency); the mastery transformer and its attention
(:func:`mastery_attention`); the symmetry of strategies in a cluster (:func:`alignment_similarity`, :func:`attention_similarity`);
the search from coarse to fine clusters (:func:`coarse_to_fine`); pruning by mastery and the blend of vectors (:func:`prune`,
:func:`blend`); the predictor. Clusters are by component counts by default: in the experiment the clusters of factorised vectors
mixed the rare group with others, and the gain was gone.

Inside SDVP users or sources take the place of students and program steps that of components: the sample picks questions to be
labelled from every style of program.

Limits: the experiment's log is simulated, and its groups are built in. Nothing leaves the machine.

Source: Scalable and Equitable Math Problem Solving Strategy Prediction in Big Educational Data (Shakya, Rus and Venugopal, 2023,
arXiv 2308.03892).
"""

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
