"""HorNet by its order at equal operations, and beside a ConvNeXt of equal parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tutelage.experiments import Experiment, better, not_worse
from tutelage.experiments._backbones import scores, small_fashion
from tutelage.systems.convnext import ConvNeXt
from tutelage.systems.hornet import HorNet

SMALL: dict[str, Any] = {"depths": (1, 2, 1), "stem": 2, "layer_scale": 1.0}


def small_hornet(base: int, *orders: int, **changes: Any) -> HorNet:
    """A small HorNet."""
    return HorNet(10, 1, base=base, orders=orders, init_std=0.2, **SMALL | changes)


def run(seed: int, smoke: bool, all_arms: bool) -> Mapping[str, float]:
    """Equal steps on all of Fashion-MNIST at 16x16; widths make up for what a lower order saves (MACs within 5 %)."""
    networks = {
        "order 3": lambda: small_hornet(24, 2, 3, 3),
        "order 2": lambda: small_hornet(24, 2, 2, 2),
        "order 1": lambda: small_hornet(25, 1, 1, 1),
        "ConvNeXt, equal parameters": lambda: ConvNeXt(10, 1, dims=(29, 58, 116), init_std=0.1, **SMALL),
    }
    if all_arms:
        networks["order 3, global filters"] = lambda: small_hornet(24, 2, 3, 3, gf=16)
    return scores(networks, small_fashion(seed, smoke), seed, smoke, steps=200, lr=4e-3)


experiment = Experiment(
    metric="test accuracy, %",
    claims=[
        better("order 2", "order 1"),
        better("order 3", "order 1"),
        not_worse("order 3", "ConvNeXt, equal parameters", 1.0),
    ],
    run=run,
    limits="214,000 parameters, images of 16x16, 200 steps: no claim about margins over Swin or ConvNeXt at scale. Weights "
    "start at 0.2 (0.1 for ConvNeXt): products of many small numbers learn slowly, and from 0.1 order 3 lost half a point.",
)
