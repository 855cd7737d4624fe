"""UniRepLKNet's training form against its folded form: time, operations, and how far their logits are apart."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from tutelage.bench.distill_steps import Way, measure
from tutelage.seeds import torch_rng
from tutelage.systems._backbone import count_macs, count_parameters, create
from tutelage.systems._shared import built

MINI = {"depths": (1, 1, 2, 1), "dims": (24, 48, 96, 192), "kernels": ((3,), (13,), (9, 3), (7,))}
"""A network for images of 32 pixels (ours)."""

SIZES: dict[str, tuple[str, dict[str, Any], int, float]] = {
    "a": ("unireplknet:a", {}, 224, 1.1),
    "f": ("unireplknet:f", {}, 224, 1.0),
    "p": ("unireplknet:p", {}, 224, 1.0),
    "n": ("unireplknet:n", {}, 224, 1.0),
    "mini": ("unireplknet", MINI, 32, 1.5),
}
"""What to build, the side of its images, and how many times faster the folded form must be."""


def folding(
    rounds: int = 9,
    batch: int = 4,
    device: str = "cpu",
    sizes: tuple[str, ...] = tuple(SIZES),
    progress: Callable[[float, float], object] = lambda done, total: None,
) -> list[dict[str, Any]]:
    """A row a size: ``{size, side, batch, ms, folded_ms, times_faster, target, met, macs, folded_macs, parameters,
    folded_parameters, difference, rounds}``.

    Inference in fp32; both forms take turns, a round's ratio is of its own two times, ``times_faster`` their median; CPU
    time, or on a GPU wall time with the device awaited. ``difference``: of the logits, relative to the largest.
    """
    rows = []
    for number, size in enumerate(sizes):
        progress(number, len(sizes))
        rows.append(row(size, rounds, batch, device))
    progress(len(sizes), len(sizes))
    return rows


def row(size: str, rounds: int, batch: int, device: str) -> dict[str, Any]:
    """One row of :func:`folding`."""
    name, config, side, target = SIZES[size]
    network = built(lambda: create(name, **config, scale=1.0), 0, "bench", size).to(device)  # blocks that count
    images = torch.randn(max(batch, 4), 3, side, side, generator=torch_rng(0, "bench", "images")).to(device)
    with torch.no_grad():
        for _ in range(10):  # statistics as of a trained network
            network(images)
        images, folded = images[:batch].clone(), network.eval().folded()
        said, again = network(images), folded(images)
    with torch.inference_mode():
        ways = {"unfolded": Way(lambda: network(images), ()), "folded": Way(lambda: folded(images), ())}
        found = measure(ways, rounds, 1, device)
    faster = median(a / b for a, b in zip(found["unfolded"]["ms"], found["folded"]["ms"]))
    return {
        "size": size,
        "side": side,
        "batch": batch,
        "ms": median(found["unfolded"]["ms"]),
        "folded_ms": median(found["folded"]["ms"]),
        "times_faster": faster,
        "target": target,
        "met": faster >= target,
        "macs": count_macs(network, side),
        "folded_macs": count_macs(folded, side),
        "parameters": count_parameters(network),
        "folded_parameters": count_parameters(folded),
        "difference": ((said - again).abs().max() / said.abs().max()).item(),
        "rounds": rounds,
    }
