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
:func:`blend`); the predictor. They are functions to compose: :class:`MVecStrategy` clusters by component counts and runs no
rounds of mastery, for in a pilot the clusters of factorised vectors mixed the rare group with others, and the gain was gone.

Inside SDVP users or sources take the place of students and program steps that of components: the sample picks questions to be
labelled from every style of program.

Limits: the experiment's log is simulated, and its groups are built in. Nothing leaves the machine.

Source: Scalable and Equitable Math Problem Solving Strategy Prediction in Big Educational Data (Shakya, Rus and Venugopal, 2023,
arXiv 2308.03892).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tutelage.errors import InputError
from tutelage.registry import system
from tutelage.seeds import numpy_rng
from tutelage.systems.mvec_strategy.clusters import DPMeans, dp_means, purity, sample_cells
from tutelage.systems.mvec_strategy.log import Instance
from tutelage.systems.mvec_strategy.simulation import simulated_log
from tutelage.systems.mvec_strategy.vectors import component_counts


@system("mvec-strategy", kind="education")
@dataclass(frozen=True)
class MVecStrategy:
    """Clusters of the students and of the problems of a log, and samples that hold all of them alike.

    ``distance`` is that of :func:`dp_means`, between vectors of length 1 (our choice); ``seed`` decides on the first centres
    and the samples. A log without instances is refused with an InputError.
    """

    instances: Sequence[Instance]
    distance: float = 0.7
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.instances:
            raise InputError("the log has no instances", where="instances", remedy="read_log(path) gives them")

    @cached_property
    def students(self) -> tuple[list[str], DPMeans]:
        """Names of students, and their clusters by component counts."""
        return self._clusters("student")

    @cached_property
    def problems(self) -> tuple[list[str], DPMeans]:
        """Names of problems, and their clusters by component counts."""
        return self._clusters("problem")

    @property
    def cells(self) -> list[tuple[int, int]]:
        """The (student cluster, problem cluster) of each instance."""
        found = []
        for names, clusters in (self.students, self.problems):
            found.append(dict(zip(names, clusters.labels.tolist(), strict=True)))
        return [(found[0][one.student], found[1][one.problem]) for one in self.instances]

    def sample(self, count: int) -> list[int]:
        """Which ``count`` instances to train on or to label: equally many of each cell."""
        return sample_cells(self.cells, count, numpy_rng(self.seed, "sample of cells"))

    def _clusters(self, of: str) -> tuple[list[str], DPMeans]:
        counts = component_counts(self.instances, of)  # type: ignore[arg-type]
        return list(counts), dp_means(np.stack(list(counts.values())), self.distance, numpy_rng(self.seed, "first centre", of))

    @staticmethod
    def tiny_run(seed: int) -> dict[str, float]:
        """A simulated log of 40 students: clusters, their purity, and the rare group's share of a sample."""
        instances, groups = simulated_log(seed, students=40, problems=24, each=12)
        made = MVecStrategy(instances, seed=seed)
        names, clusters = made.students
        chosen = [groups[instances[i].student] for i in made.sample(60)]
        return {
            "student clusters": float(len(clusters.centres)),
            "purity": purity(clusters.labels, [groups[name] for name in names]),
            "rare share of the sample": chosen.count("rare") / len(chosen),
        }
