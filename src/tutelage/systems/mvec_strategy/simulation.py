"""A simulated log: groups of students who solve the same problems by other strategies."""

from __future__ import annotations

import numpy as np

from tutelage.seeds import numpy_rng
from tutelage.systems.mvec_strategy.log import Instance

GROUPS = {"common": 0.80, "less common": 0.15, "rare": 0.05}
FAMILIES, COMPONENTS = 6, 30
OWN_STRATEGY, STRAY = 0.9, 0.2
"""How often a student takes the strategy of the own group, and how often a component slips in that belongs to none."""


def simulated_log(seed: int, students: int = 300, problems: int = 120, each: int = 40) -> tuple[list[Instance], dict[str, str]]:
    """(the instances, the group of each student).

    Problems come in families. In each family every group has a strategy of its own, 4 to 7 components in order.

    Args:
        seed: of everything.
        students: at least 2 are of each group.
        problems: in six families of like size.
        each: different problems that a student works on.
    """
    rng = numpy_rng(seed, "simulated log")
    strategies = {
        (family, group): rng.permutation(COMPONENTS)[: rng.integers(4, 8)].tolist()
        for family in range(FAMILIES)
        for group in GROUPS
    }
    shares = np.array(list(GROUPS.values()))
    drawn = rng.choice(len(shares), students, p=shares)
    drawn[: 2 * len(shares)] = np.repeat(np.arange(len(shares)), 2)
    group_of = {f"student {i}": list(GROUPS)[k] for i, k in enumerate(rng.permutation(drawn))}
    instances = []
    for student, group in group_of.items():
        for problem in rng.choice(problems, min(each, problems), replace=False).tolist():
            family = problem % FAMILIES
            taken = group if rng.random() < OWN_STRATEGY else list(GROUPS)[rng.integers(len(GROUPS))]
            components = list(strategies[family, taken])
            if rng.random() < STRAY:
                components.insert(int(rng.integers(len(components) + 1)), int(rng.integers(COMPONENTS)))
            steps = tuple((f"component {one:02d}",) for one in components)
            correct = tuple(int(right) for right in rng.random(len(steps)) < 0.7)
            instances.append(Instance(student, f"unit {family}", f"problem {problem}", steps, correct))
    return instances, group_of
