"""The rows of a log that serve every kind of student: drawn evenly from clusters of students and problems."""

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

    Args:
        instances: of the training part of the log; at least one.
        distance: of :func:`dp_means`, between vectors of length 1 (our choice).
        seed: of the first centres and the samples.

    Raises:
        InputError: no instances.
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
