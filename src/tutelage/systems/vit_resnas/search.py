"""ViT-ResNAS's evolutionary search over the sub-networks of a trained super-network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tutelage.errors import InputError
from tutelage.seeds import numpy_rng
from tutelage.systems.vit_resnas.search_space import Architecture, SearchSpace

Gene = tuple[int, int]


class EvaluatedArchitecture(NamedTuple):
    """One candidate: its architecture, cost and score, and the round that made it (0: the random start)."""

    architecture: Architecture
    macs: float
    score: float
    round: int


@dataclass(frozen=True)
class EvolutionSettings:
    """How to search; the defaults are the published ones, 3,350 evaluations.

    Attributes:
        population: random architectures at the start.
        rounds: after it; each makes ``mutants`` and ``crossovers`` from the ``parents`` best of all so far.
        rate: probability that a gene is drawn anew in a mutant; ``swap``: that a gene comes from the second parent.
        window: architectures cost between this share of the budget and all of it.
        patience: draws for one child, or cuts of one random architecture, before another begins. A round may end with
            fewer children where the space has no more (our choice; the original lets repetitions in).
    """

    population: int = 500
    rounds: int = 19
    parents: int = 75
    mutants: int = 75
    crossovers: int = 75
    rate: float = 0.3
    swap: float = 0.5
    window: float = 0.975
    patience: int = 1000


def evolve(
    space: SearchSpace,
    cost: Callable[[Architecture], float],
    score: Callable[[Architecture], float],
    budget: float,
    settings: EvolutionSettings = EvolutionSettings(),  # noqa: B008  (frozen)
    seed: int = 0,
) -> list[EvaluatedArchitecture]:
    """Every candidate in the order of its evaluation; no two are alike, and all cost within the window.

    Args:
        space: what to choose from.
        cost: of an architecture, in the unit of ``budget``.
        score: larger is better; called once a candidate.
        budget: the largest cost.
        how: sizes and rates of the evolution.
        seed: equal seeds, and scores, give equal histories.

    Raises:
        InputError: the space has no architecture, or too few, in the window.
    """
    rng = numpy_rng(seed, "evolution")
    searcher = _Searcher(space, cost, budget, settings, rng)
    history: list[EvaluatedArchitecture] = []

    def take(architecture: Architecture, number: int) -> None:
        searcher.seen.add(architecture)
        history.append(EvaluatedArchitecture(architecture, cost(architecture), score(architecture), number))

    for _ in range(settings.population):
        take(searcher.random(), 0)
    for number in range(1, settings.rounds + 1):
        parents = [one.architecture for one in sorted(history, key=lambda one: -one.score)[: settings.parents]]
        for make, count in ((searcher.mutant, settings.mutants), (searcher.crossover, settings.crossovers)):
            for _ in range(count):
                child = searcher.child(make, parents)
                if child is not None:
                    take(child, number)
    return history


def random_search(
    space: SearchSpace,
    cost: Callable[[Architecture], float],
    score: Callable[[Architecture], float],
    budget: float,
    count: int,
    settings: EvolutionSettings = EvolutionSettings(),  # noqa: B008  (frozen)
    seed: int = 0,
) -> list[EvaluatedArchitecture]:
    """``count`` different random architectures in the window: what evolution is compared with."""
    searcher = _Searcher(space, cost, budget, settings, numpy_rng(seed, "random search"))
    history = []
    for _ in range(count):
        architecture = searcher.random()
        searcher.seen.add(architecture)
        history.append(EvaluatedArchitecture(architecture, cost(architecture), score(architecture), 0))
    return history


class _Searcher:
    """Draws new architectures that fit the window."""

    def __init__(
        self,
        space: SearchSpace,
        cost: Callable[[Architecture], float],
        budget: float,
        settings: EvolutionSettings,
        rng: np.random.Generator,
    ):
        self.space, self.cost, self.budget, self.settings, self.rng = space, cost, budget, settings, rng
        self.seen: set[Architecture] = set()

    def fits(self, architecture: Architecture) -> bool:
        return self.settings.window * self.budget <= self.cost(architecture) <= self.budget

    def random(self) -> Architecture:
        """Widths and depths at random until above the budget, all else at its largest; then cut until it fits."""
        for _ in range(self.settings.patience):
            widths = tuple(self.pick(choices) for choices in self.space.widths)
            blocks = tuple(
                self.stage([(h[0], m[0])] * self.space.depth, [self.coin(0.5) for _ in range(self.space.depth)])
                for h, m in zip(self.space.heads, self.space.units)
            )
            found = Architecture(widths, blocks)
            if self.cost(found) >= self.settings.window * self.budget:
                cut = self.cut(found)
                if cut is not None and cut not in self.seen:
                    return cut
        raise InputError(
            f"no further architecture costs {self.settings.window:g} to 1 times {self.budget:.4g}",
            where="budget",
            remedy=f"architectures of this space cost {self.cost(self.space.smallest):.4g} to "
            f"{self.cost(self.space.largest):.4g}; take a budget between, or a smaller population",
        )

    def cut(self, architecture: Architecture) -> Architecture | None:
        """One random step down after the other, heads and MLPs first, after 100 of them widths and blocks too."""
        for number in range(self.settings.patience):
            if self.fits(architecture):
                return architecture
            if self.cost(architecture) < self.settings.window * self.budget:
                return None
            architecture = self.step_down(architecture, everything=number >= 100)
        return None

    def step_down(self, architecture: Architecture, everything: bool) -> Architecture:
        widths, blocks = list(architecture.widths), [list(stage) for stage in architecture.blocks]
        places: list[tuple[int, int, int]] = []
        for s, stage in enumerate(blocks):
            for j, block in enumerate(stage):
                if block is None:
                    continue
                places += [(s, j, part) for part in (0, 1) if block[part] != self.choices(s, part)[-1]]
                places += [(s, j, 2)] * (everything and j in self.space.optional)
            places += [(s, -1, 3)] * (everything and widths[s] != self.space.widths[s][-1])
        if not places:
            return architecture
        s, j, part = places[int(self.rng.integers(len(places)))]
        if part == 3:
            widths[s] = self.lower(self.space.widths[s], widths[s])
        elif part == 2:
            blocks[s][j] = None
        else:
            old = blocks[s][j]
            assert old is not None
            lowered = self.lower(self.choices(s, part), old[part])
            blocks[s][j] = (lowered, old[1]) if part == 0 else (old[0], lowered)
        settled = tuple(self.stage(stage, [block is not None for block in stage]) for stage in blocks)
        return Architecture(tuple(widths), settled)

    def child(self, make: Callable[[list[Architecture]], Architecture], parents: list[Architecture]) -> Architecture | None:
        """A new child in the window; None where patience ends."""
        for _ in range(self.settings.patience):
            found = make(parents)
            if found not in self.seen and self.fits(found):
                return found
        return None

    def mutant(self, parents: list[Architecture]) -> Architecture:
        """One parent, each gene drawn anew with probability ``rate``; a drawn existence flips."""
        parent = parents[int(self.rng.integers(len(parents)))]
        rate = self.settings.rate
        widths = tuple(self.pick(c) if self.coin(rate) else w for c, w in zip(self.space.widths, parent.widths))
        blocks = []
        for s, stage in enumerate(parent.blocks):
            genes, present = [], []
            for block in stage:
                old = block if block is not None else self.gene(s)
                genes.append(tuple(self.pick(self.choices(s, part)) if self.coin(rate) else old[part] for part in (0, 1)))
                present.append((block is not None) != self.coin(rate))
            blocks.append(self.stage(genes, present))
        return Architecture(widths, tuple(blocks))

    def crossover(self, parents: list[Architecture]) -> Architecture:
        """Two parents, each gene from the second with probability ``swap``; a block goes as one gene with its place."""
        one, two = (parents[int(self.rng.integers(len(parents)))] for _ in range(2))
        widths = tuple(b if self.coin(self.settings.swap) else a for a, b in zip(one.widths, two.widths))
        blocks = []
        for s, (first_block, second_block) in enumerate(zip(one.blocks, two.blocks)):
            mixed = [b if self.coin(self.settings.swap) else a for a, b in zip(first_block, second_block)]
            genes = [self.gene(s) if block is None else block for block in mixed]
            blocks.append(self.stage(genes, [block is not None for block in mixed]))
        return Architecture(widths, tuple(blocks))

    # -- genes

    def stage(self, genes: list[Gene | None] | list[Gene], present: list[bool]) -> tuple[Gene | None, ...]:
        return tuple(gene if there else None for gene, there in zip(genes, self.space.settled(present)))

    def gene(self, s: int) -> Gene:
        return self.pick(self.choices(s, 0)), self.pick(self.choices(s, 1))

    def choices(self, s: int, part: int) -> tuple[int, ...]:
        return self.space.units[s] if part else self.space.heads[s]

    def lower(self, choices: tuple[int, ...], value: int) -> int:
        return choices[min(choices.index(value) + 1, len(choices) - 1)]

    def pick(self, choices: tuple[int, ...]) -> int:
        return choices[int(self.rng.integers(len(choices)))]

    def coin(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)
