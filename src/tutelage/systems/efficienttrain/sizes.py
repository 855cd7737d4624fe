"""The stages of the curriculum: which size when, what it costs, and the search that finds the sizes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from tutelage.errors import InputError


def check_stages(sizes: Sequence[int], shares: Sequence[float]) -> None:
    """Refuse stages that are none.

    Raises:
        InputError: no size, a size that is odd or below 2 before the last stage, sizes that shrink, or shares that are not
            one positive number a size.
    """
    if not sizes:
        raise InputError("no stage", where="sizes", remedy="one image size a stage: (160, 160, 160, 192, 224)")
    for size in sizes:
        whole = isinstance(size, int) and not isinstance(size, bool)
        if not whole or size < 2 or (size % 2 and size != sizes[-1]):
            raise InputError(f"no image size: {size!r}", where="sizes", remedy="even numbers of pixels, at least 2")
    if any(later < earlier for earlier, later in zip(sizes, sizes[1:])):
        raise InputError(f"sizes shrink: {list(sizes)}", where="sizes", remedy="from small to the images' own size")
    if shares and (len(shares) != len(sizes) or not all(math.isfinite(share) and share > 0 for share in shares)):
        raise InputError(f"{list(shares)} for {len(sizes)} stages", where="shares", remedy="one positive number a stage")


def stage_at(fraction: float, shares: Sequence[float]) -> int:
    """The stage (from 0) at ``fraction`` (0..1) of training; stages last in proportion to ``shares``."""
    total, end = math.fsum(shares), 0.0
    for number, share in enumerate(shares):
        end += share
        if fraction * total < end * (1 - 1e-12):  # a step on the border is the next stage's
            return number
    return len(shares) - 1


def equal_compute(sizes: Sequence[int]) -> tuple[float, ...]:
    """Shares of the steps such that every stage costs the same (EfficientTrain++): ``(last / b)^2``."""
    return tuple((sizes[-1] / size) ** 2 for size in sizes)


def relative_cost(sizes: Sequence[int], shares: Sequence[float] = (), native: int | None = None) -> float:
    """Operations over those of training at ``native`` (default: the last size) with as many steps, if cost grows as b^2.

    Examples:
        >>> round(1 / relative_cost((160, 160, 160, 192, 224)), 2)
        1.53
    """
    check_stages(sizes, shares)
    parts, last = tuple(shares) or (1.0,) * len(sizes), native or sizes[-1]
    return math.fsum(part * (size / last) ** 2 for part, size in zip(parts, sizes)) / math.fsum(parts)


def greedy_search(
    evaluate: Callable[[tuple[int, ...]], float], native: int, candidates: Sequence[int], stages: int = 5, margin: float = 0.0
) -> tuple[int, ...]:
    """Sizes found stage by stage: each as small as accuracy allows, with later stages at full size (section 4 of the paper,
    our reading).

    Args:
        evaluate: the final accuracy after training with such sizes; called once for each schedule.
        native: the images' own size, and the last stage's.
        candidates: sizes to try in each stage, below ``native``.
        stages: how many.
        margin: how far accuracy may fall below that of training at full size, in the unit of ``evaluate``.

    Raises:
        InputError: candidates that are no sizes, or an accuracy that is not finite.
    """
    for size in candidates:
        check_stages((size, native), ())
    known: dict[tuple[int, ...], float] = {}

    def accuracy(schedule: tuple[int, ...]) -> float:
        if schedule not in known:
            known[schedule] = float(evaluate(schedule))
            if not math.isfinite(known[schedule]):
                raise InputError(f"{list(schedule)} gave {known[schedule]}", where="evaluate", remedy="a finite accuracy")
        return known[schedule]

    found = [native] * stages
    enough = accuracy(tuple(found)) - margin
    for stage in range(stages - 1):
        least = found[stage - 1] if stage else 0
        for size in sorted({size for size in candidates if size >= least}):
            trial = [*found[:stage], size, *found[stage + 1 :]]
            if accuracy(tuple(trial)) >= enough:
                found = trial
                break
    return tuple(found)
