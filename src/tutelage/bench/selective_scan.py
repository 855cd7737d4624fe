"""The selective scan of Mamba: each way of computing it, forward and backward, side by side."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch

from tutelage.systems.mamba_pkd.selective_scan import PATHS, example, fastest, selective_scan, time_paths


def bench(
    batches: Sequence[int] = (1, 8),
    length: int = 1024,
    width: int = 128,
    states: int = 16,
    *,
    rounds: int = 7,
    device: str = "cpu",
    smoke: bool = False,
    clock: Callable[[], float] | None = None,
) -> dict[str, Any]:
    """Time every path of :func:`selective_scan` on batches of ``length`` steps, interleaved, medians of ``rounds``.

    The clock is CPU time (wall time on a GPU) unless another is given. ``error`` is the largest difference from the loop
    in the answer and all gradients, relative to the largest value.

    Returns:
        {"rows": [{"batch", "milliseconds": {path: median}, "times_faster": {path: ratio to the loop}, "picked", "error"}],
        "length", "width", "states", "rounds", "threads", "device", "clock"}.
    """
    if smoke:
        length, width, states, rounds = 64, 8, 4, 1
    name, timer = ("wall time", time.perf_counter) if device != "cpu" else ("CPU time", time.process_time)
    rows = []
    for batch in batches:
        seconds = time_paths(batch, length, width, states, device, rounds, clock or timer)
        loop = median(seconds["loop"])
        rows.append(
            {
                "batch": batch,
                "milliseconds": {path: 1000 * median(values) for path, values in seconds.items()},
                "times_faster": {path: loop / median(values) for path, values in seconds.items()},
                "picked": fastest(seconds),
                "error": _error(batch, length, width, states, device),
            }
        )
    about = {"length": length, "width": width, "states": states, "rounds": rounds, "device": device, "smoke": smoke}
    return {"rows": rows, **about, "clock": name, "threads": torch.get_num_threads()}


def _error(batch: int, length: int, width: int, states: int, device: str) -> float:
    inputs = example(batch, length, width, states, device)

    def answers(path: Any) -> list[torch.Tensor]:
        y = selective_scan(*inputs, path=path)
        return [y.detach(), *torch.autograd.grad(y.square().sum(), inputs)]

    loop = answers("loop")
    return max(
        float((one - other).abs().max() / other.abs().max())
        for path in PATHS[1:]
        for one, other in zip(answers(path), loop, strict=True)
    )
