"""ViT-ResNAS on Fashion-MNIST at 16x16: the residual of the reduction, and a search in a trained super-network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from tutelage.distillation.data import TensorData
from tutelage.experiments import Experiment, better, not_worse
from tutelage.experiments._classification import accuracy, fashion, subset, train_student
from tutelage.seeds import torch_rng
from tutelage.systems._toy import build_with_seed
from tutelage.systems.vit_resnas import (
    SPACES,
    Architecture,
    EvaluatedArchitecture,
    EvolutionSettings,
    ViTRes,
    ViTResNAS,
    evolve,
    hold_out,
    macs,
    random_search,
    sliced,
)

SPACE = SPACES["mini"]
UNIFORM = Architecture((24, 40, 80), (((2, 72),) * 2, ((3, 108),) * 2, ((4, 216),) * 2))
"""The middle choice everywhere: its cost is the budget."""
IMAGES = {"patch": 4, "size": 16}


def small(data: TensorData, rows: Tensor) -> TensorData:
    """The images ``rows`` of ``data`` at 16x16: framed to 32x32, then averaged over 2x2."""
    few = subset(data, rows)
    return TensorData(F.avg_pool2d(F.pad(few.inputs, (2,) * 4), 2), few.labels)


def best(history: Sequence[EvaluatedArchitecture]) -> EvaluatedArchitecture:
    """The candidate of the highest score, the first of equals."""
    return max(history, key=lambda one: one.score)


def kendall(one: Sequence[float], other: Sequence[float]) -> float:
    """Kendall's tau-a: agreeing less disagreeing pairs, over all pairs; in -1..1."""
    a, b = (torch.tensor(values, dtype=torch.float64) for values in (one, other))
    signs = (a[:, None] - a).sign() * (b[:, None] - b).sign()
    return float(signs.sum() / (len(one) * (len(one) - 1)))


def run(seed: int, smoke: bool, all_arms: bool) -> Mapping[str, float]:
    """4,000 training images, of which 50 a class score the candidates; the winner is trained anew on all of them."""
    train, test = fashion(seed)
    everyone = small(train, torch.randperm(len(train), generator=torch_rng(seed, "few"))[: 600 if smoke else 4000])
    test = small(test, torch.arange(100 if smoke else 5000))
    rows, held = hold_out(everyone.labels, 2 if smoke else 50, torch_rng(seed, "held out"))
    settings = {"batch_size": 64, "lr": 2e-3, "weight_decay": 0.05, "warmup": 1 if smoke else 30, "seed": seed}
    alone, whole = 2 if smoke else 250, 2 if smoke else 500

    def trained(architecture: Architecture, **options: object) -> float:
        config = {**architecture.options(), "head": SPACE.head, "patch_head": True, **IMAGES, **options}
        network = build_with_seed(lambda: ViTRes(10, 1, **config), seed, "alone")
        plain = ViTResNAS(space=None, mixing=False)
        return accuracy(train_student(network, everyone, plain, steps=alone, **settings), test)

    start = build_with_seed(lambda: ViTRes(10, 1, **SPACE.options(), **IMAGES), seed, "super-network")
    method = ViTResNAS(space=SPACE, sub_batch=8, warmup=3, mixing=False)
    network = train_student(start, subset(everyone, rows), method, steps=whole, **settings)
    scored = subset(everyone, held)

    def score(architecture: Architecture) -> float:
        return accuracy(sliced(network, architecture), scored)

    def cost(architecture: Architecture) -> float:
        return macs(architecture, network)

    how = EvolutionSettings(population=24, rounds=4, parents=8, mutants=8, crossovers=8, window=0.95)
    if smoke:
        how = EvolutionSettings(population=3, rounds=1, parents=2, mutants=1, crossovers=1, window=0.9)
    budget = cost(UNIFORM)
    found = evolve(SPACE, cost, score, budget, how, seed)
    drawn = random_search(SPACE, cost, score, budget, len(found), how, seed)
    winner = best(found)
    arms = {
        "skip": trained(UNIFORM),
        "no skip": trained(UNIFORM, skip=False),
        "winner, trained anew": trained(winner.architecture),
        "evolution, held-out score": winner.score,
        "random draws, held-out score": best(drawn).score,
        "super-network, held-out score": score(SPACE.largest),
        "winner, MACs, % of uniform": 100 * winner.macs / budget,
    }
    if all_arms:
        eight = [drawn[i] for i in torch.randperm(len(drawn), generator=torch_rng(seed, "eight"))[: 3 if smoke else 8]]
        again = [trained(one.architecture) for one in eight]
        arms["rank correlation of score and training anew, %"] = 100 * kendall([one.score for one in eight], again)
    return arms


experiment = Experiment(
    metric="test accuracy, %; 'held-out score' of weights sliced from the super-network, %",
    claims=[
        better("skip", "no skip"),
        not_worse("evolution, held-out score", "random draws, held-out score", 0.5),
        better("winner, trained anew", "skip"),
    ],
    run=run,
    limits="Networks of 200,000 weights on 16x16 gray images, 500 steps for the super-network: that a search beats a "
    "uniformly scaled network (the arm 'skip', of equal MACs) by the paper's margin needs ImageNet and its 120 epochs.",
)
