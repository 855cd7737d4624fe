"""UniRepLKNet's training form against its folded form: time, operations, and how far their logits are apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch

from tutelage.bench.distill_steps import StepVariant, measure
from tutelage.errors import InputError, did_you_mean
from tutelage.seeds import torch_rng
from tutelage.systems._backbone import count_macs, count_parameters, create
from tutelage.systems._toy import build_with_seed

MINI = {"depths": (1, 1, 2, 1), "dims": (24, 48, 96, 192), "kernels": ((3,), (13,), (9, 3), (7,))}
"""A network for images of 32 pixels (our choice)."""

SIZES: dict[str, tuple[str, dict[str, Any], int, float]] = {
    "a": ("unireplknet:a", {}, 224, 1.1),
    "f": ("unireplknet:f", {}, 224, 1.0),
    "p": ("unireplknet:p", {}, 224, 1.0),
    "n": ("unireplknet:n", {}, 224, 1.0),
    "mini": ("unireplknet", MINI, 32, 1.5),
}
"""What to build, the side of its images, and how many times faster the folded form must be."""


def bench(
    rounds: int = 9,
    batch: int = 4,
    device: str = "cpu",
    sizes: Sequence[str] | None = None,
    progress: Callable[[float, float], object] = lambda done, total: None,
) -> dict[str, Any]:
    """``{rows, clock, threads}``; a row a size (all of :data:`SIZES`, or ``sizes``): ``{size, side, batch, ms, folded_ms,
    times_faster, target, met, macs, folded_macs, parameters, folded_parameters, difference, rounds}``.

    Inference in fp32; both forms take turns, a round's ratio is of its own two times, ``times_faster`` their median; CPU
    time, or on a GPU wall time with the device awaited. ``difference``: of the logits, relative to the largest.

    Raises:
        InputError: no such size, or no such device.
    """
    wanted = list(sizes or SIZES)
    for size in wanted:
        if size not in SIZES:
            raise InputError(f"no size {size!r}", where="--size", remedy=did_you_mean(size, list(SIZES)))
    if device != "cpu" and not torch.cuda.is_available():
        raise InputError(f"torch finds no {device} here", where="--device", remedy="--device cpu")
    threads, rows = torch.get_num_threads(), []
    torch.set_num_threads(1)
    try:
        for number, size in enumerate(wanted):
            progress(number, len(wanted))
            rows.append(row(size, rounds, batch, device))
    finally:
        torch.set_num_threads(threads)
    progress(len(wanted), len(wanted))
    return {"rows": rows, "clock": "CPU time" if device == "cpu" else "wall time, device awaited", "threads": 1}


def row(size: str, rounds: int, batch: int, device: str) -> dict[str, Any]:
    """One row of :func:`bench`."""
    name, config, side, target = SIZES[size]
    network = build_with_seed(lambda: create(name, **config, scale=1.0), 0, "bench", size).to(device)  # blocks that count
    images = torch.randn(max(batch, 4), 3, side, side, generator=torch_rng(0, "bench", "images")).to(device)
    with torch.no_grad():
        for _ in range(10):  # statistics as of a trained network
            network(images)
        images, folded = images[:batch].clone(), network.eval().folded()
        outputs, again = network(images), folded(images)
    with torch.inference_mode():
        ways = {"unfolded": StepVariant(lambda: network(images), ()), "folded": StepVariant(lambda: folded(images), ())}
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
        "difference": ((outputs - again).abs().max() / outputs.abs().max()).item(),
        "rounds": rounds,
    }
