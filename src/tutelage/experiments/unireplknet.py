"""UniRepLKNet on Fashion-MNIST: large kernels, what their dilated branches add in training, and what folding saves."""

from __future__ import annotations

import time
from collections.abc import Mapping
from statistics import median

import torch
from torch import Tensor, nn

from tutelage.distillation.augmentation import Augmentation
from tutelage.experiments import Experiment, better, not_worse
from tutelage.experiments._classification import accuracy, fashion, subset, train_student
from tutelage.seeds import torch_rng
from tutelage.systems._backbone import create
from tutelage.systems._toy import build_with_seed

SHAPE = {"depths": (1, 1, 1), "scale": 0.5}
LARGE = {"dims": (16, 32, 48), "kernels": ((3,), (13,), (7,))}
SMALL = {"dims": (16, 34, 52), "kernels": ((3,), (3,), (3,))}  # as many weights as the folded large one


@torch.inference_mode()
def times_faster(one: nn.Module, other: nn.Module, images: Tensor, rounds: int) -> float:
    """CPU time of ``other`` over that of ``one``: the median over rounds in which both take turns."""

    def seconds(network: nn.Module) -> float:
        began = time.process_time()
        network(images)
        return time.process_time() - began

    return median(seconds(other) / seconds(one) for _ in range(rounds + 1))


def run(seed: int, smoke: bool, all_arms: bool) -> Mapping[str, float]:
    """4,000 training images, shifted and mirrored; equal steps. "No branches" is the same folded network, trained as it is."""
    train, test = fashion(seed)
    rows = torch.randperm(len(train), generator=torch_rng(seed, "few"))[: 100 if smoke else 4000]
    train, test = subset(train, rows), subset(test, torch.arange(100 if smoke else 5000))
    train.views = Augmentation(crop=2, flip=0.5)
    settings = {"steps": 2 if smoke else 300, "batch_size": 64, "lr": 4e-3, "weight_decay": 0.02, "warmup": 1 if smoke else 30}
    arms, trained = {}, {}
    ways = {"dilated branches": LARGE, "no branches": LARGE | {"branches": False}, "3x3 kernels": SMALL}
    for name, config in ways.items():
        network = build_with_seed(lambda config=config: create("unireplknet", 10, 1, **SHAPE, **config), seed, "student")
        trained[name] = train_student(network, train, **settings, seed=seed)
        arms[name] = accuracy(trained[name], test)
        arms[f"{name}, weights when folded"] = sum(p.numel() for p in trained[name].folded().parameters())
    full = trained["dilated branches"]
    folded = full.folded()
    arms["dilated branches, folded"] = accuracy(folded, test)
    arms["folded, times faster"] = times_faster(folded, full, test.inputs[:64], 3 if smoke else 15)
    return arms | {"one and a half times": 1.5}


experiment = Experiment(
    metric="test accuracy, %; weights and times in their own units",
    claims=[
        not_worse("dilated branches", "no branches", 0.5),
        better("dilated branches", "3x3 kernels"),
        better("folded, times faster", "one and a half times"),
        not_worse("dilated branches, folded", "dilated branches", 0.01),
    ],
    run=run,
    limits="Images of 28 pixels: after a stem of stride 4 a kernel of 13 is larger than its map, so that what large kernels "
    "gain on large images cannot be seen; no ImageNet, detection, audio or forecasting.",
)
