"""Guard: a taught module that harms the guarded questions is drawn back towards what it was."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from tutelage.modules.visual_module import VisualModule

STEPS = (1.0, 0.9, 0.75, 0.5, 0.25, 0.1)


@dataclass(frozen=True)
class InterpolationResult:
    """The module to go on with; ``share`` b of the new weights in ``(1-b) old + b new`` (0: rolled back), and the guard
    score (0..1) before and after."""

    module: VisualModule
    share: float
    before: float
    after: float


def interpolate(old: VisualModule, new: VisualModule, share: float) -> VisualModule:
    """``(1-b) theta_old + b theta_new``."""
    if share == 1.0:
        return new
    network = new.copy_network()
    start, end = old.network.state_dict(), new.network.state_dict()
    mixed = {key: torch.lerp(start[key], end[key], share) if end[key].is_floating_point() else end[key] for key in end}
    network.load_state_dict(mixed)
    return new.with_network(network)


def interpolate_until_safe(
    old: VisualModule, new: VisualModule, score: Callable[[VisualModule], float], max_drop: float = 0.01
) -> InterpolationResult:
    """The largest step from old to new whose guard score is at most ``max_drop`` below the old one's."""
    before = score(old)
    for share in STEPS:
        module = interpolate(old, new, share)
        after = score(module)
        if after >= before - max_drop:
            return InterpolationResult(module, share, before, after)
    return InterpolationResult(old, 0.0, before, before)


def interpolation_sweep(
    old: VisualModule, new: VisualModule, scores: Mapping[str, Callable[[VisualModule], float]], shares: Sequence[float] = STEPS
) -> list[dict[str, float]]:
    """The table of an interpolation sweep: for each share b of the new weights (0, the old module, is always there), in
    rising order, ``share`` and every score by name (Wortsman et al., 2022)."""
    table = []
    for share in sorted({0.0, *shares}):
        module = interpolate(old, new, share)
        table.append({"share": share, **{name: score(module) for name, score in scores.items()}})
    return table
