"""A procedural task that only reach can solve: two marks in a row, at one of two distances."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from tutelage.distillation.data import TensorData
from tutelage.experiments._classification import accuracy, train_student
from tutelage.seeds import torch_rng
from tutelage.systems._toy import build_with_seed

MARK = 4
"""Pixels: the side of a mark, and the grid that marks lie on."""


def pairs_of_marks(
    count: int, side: int, rows: int, distances: Sequence[int], rng: torch.Generator, noise: float = 0.1, wrap: bool = True
) -> TensorData:
    """``count`` images [1, side, side] of two classes, half each; class k has its marks ``distances[k]`` pixels apart.

    ``rows`` of the ``side / 4`` rows of the grid each hold two bright marks of 4x4 pixels at a random place. With ``wrap``
    they go on round the edge, so that neither the number of marks nor the border tells the class; without, the border
    tells a little, since marks further apart lie nearer to it. Normal noise of deviation ``noise`` lies on top.

    Args:
        side: pixels, a multiple of 4.
        distances: pixels between the two marks, multiples of 4, one a class.
    """
    cells = side // MARK
    labels = torch.arange(count) % 2
    grid = torch.zeros(count, cells, cells)
    for n, label in enumerate(labels.tolist()):
        chosen = torch.randperm(cells, generator=rng)[:rows]
        room = cells if wrap else cells - distances[label] // MARK
        first = torch.randint(room, (rows,), generator=rng)
        grid[n, chosen, first] = 1
        grid[n, chosen, (first + distances[label] // MARK) % cells] = 1
    images = grid.repeat_interleave(MARK, 1).repeat_interleave(MARK, 2)[:, None]
    return TensorData(images + noise * torch.randn(images.shape, generator=rng), labels)


def pair_scores(
    networks: Mapping[str, Callable[[], nn.Module]],
    seed: int,
    smoke: bool,
    *,
    side: int,
    rows: int,
    distances: Sequence[int],
    noise: float = 0.1,
    wrap: bool = True,
    **settings: Any,
) -> tuple[dict[str, float], dict[str, nn.Module], TensorData]:
    """(accuracy of every network on 1,000 images, %; the networks; these images), after equal steps on 2,000 others."""
    train, test = (
        pairs_of_marks(64 if smoke else count, side, rows, distances, torch_rng(seed, "pairs", part), noise, wrap)
        for part, count in (("train", 2000), ("test", 1000))
    )
    fixed = {"batch_size": 32, "seed": seed} | settings | ({"steps": 2, "warmup": 1} if smoke else {})
    trained = {arm: train_student(build_with_seed(build, seed, "network"), train, **fixed) for arm, build in networks.items()}
    return {arm: accuracy(network, test) for arm, network in trained.items()}, trained, test
