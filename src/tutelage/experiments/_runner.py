"""What a demonstration is, and the one way to run it: several seeds, paired differences, a verdict."""

from __future__ import annotations

import importlib
import math
import pkgutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from tutelage import workers
from tutelage.datasets.confidence_intervals import mean_sd, paired_t, supports_claim
from tutelage.environment import run_metadata
from tutelage.errors import InputError, did_you_mean
from tutelage.storage import cache_home, fingerprint, read_json, write_json

SHOWN, NOT_SHOWN = "shown", "not shown here"
MINIMUM_SEEDS = 3


@dataclass(frozen=True)
class Claim:
    """``arm`` against ``than``, in the metric's unit: better, not worse than a margin, or equal within it.

    Judged on the paired differences of the seeds: the 95 % t-interval must lie wholly above 0, above ``-margin``, or
    within ``-margin..margin``.
    """

    arm: str
    kind: Literal["better", "not worse", "equal"]
    than: str
    margin: float = 0.0

    def __str__(self) -> str:
        return {
            "better": f"{self.arm} better than {self.than}",
            "not worse": f"{self.arm} not worse than {self.than} (margin {self.margin:g})",
            "equal": f"{self.arm} equal to {self.than} (margin {self.margin:g})",
        }[self.kind]


def better(arm: str, than: str) -> Claim:
    """The claim that ``arm`` is better than ``than``."""
    return Claim(arm, "better", than)


def not_worse(arm: str, than: str, margin: float) -> Claim:
    """The claim that ``arm`` is not worse than ``than`` by ``margin``, in the metric's unit."""
    return Claim(arm, "not worse", than, margin)


def equal(arm: str, than: str, margin: float) -> Claim:
    """The claim that ``arm`` and ``than`` differ by less than ``margin``, in the metric's unit."""
    return Claim(arm, "equal", than, margin)


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """An experiment: one seed of it gives the metric of every arm, and the claims say how the arms compare.

    ``run(seed, smoke, all_arms)`` returns ``{arm: metric}``, the same arms for every seed, each a finite number. With
    ``smoke`` it takes at most 3 s and only proves that all parts fit together; with ``all_arms`` it adds the arms
    beyond the main comparison. It is a function at the top of its module, so that worker processes can find it.
    """

    metric: str
    """What the numbers are, with the unit: "test accuracy, %"."""
    claims: Sequence[Claim]
    run: Callable[[int, bool, bool], Mapping[str, float]]
    limits: str
    """In a sentence or two, what this small scale does not show."""
    higher_is_better: bool = True


def names() -> list[str]:
    """The systems that have a demonstration, from listing this folder: ``nd_loss.py`` is ``nd-loss``."""
    folder = str(Path(__file__).parent)
    found = (module.name for module in pkgutil.iter_modules([folder]))
    return sorted(name.replace("_", "-") for name in found if not name.startswith("_"))


def load_experiment(name: str) -> Experiment:
    """The demonstration of the system ``name``.

    Raises:
        InputError: there is none; the message offers the nearest names.
    """
    if name not in names():
        raise InputError(f"no demonstration of {name!r}", remedy=did_you_mean(name, names()))
    return importlib.import_module(f"tutelage.experiments.{name.replace('-', '_')}").experiment


def run_seed(name: str, seed: int, smoke: bool, all_arms: bool) -> dict[str, Any]:
    """One seed of one demonstration: ``{"seed", "arms", "seconds", "cpu_seconds"}``.

    Raises:
        InputError: the demonstration gave a figure that is not finite; the message names arm and seed.
    """
    begin, cpu = time.perf_counter(), time.process_time()
    arms = {arm: float(value) for arm, value in load_experiment(name).run(seed, smoke, all_arms).items()}
    for arm, value in arms.items():
        if not math.isfinite(value):
            raise InputError(f"arm {arm!r} of seed {seed} gave {value}", where=name, remedy="a fault of the demonstration")
    return {"seed": seed, "arms": arms, "seconds": time.perf_counter() - begin, "cpu_seconds": time.process_time() - cpu}


def judge(experiment: Experiment, claim: Claim, rows: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """The claim with the paired difference over seeds, good side up, its 95 % interval, and whether it is shown.

    Raises:
        InputError: the claim names an arm that was not run.
    """
    for arm in (claim.arm, claim.than):
        if arm not in rows[0]:
            raise InputError(f"a claim names the arm {arm!r}", remedy=did_you_mean(arm, list(rows[0])))
    sign = 1.0 if experiment.higher_is_better else -1.0
    interval = paired_t([sign * row[claim.arm] for row in rows], [sign * row[claim.than] for row in rows])
    holds = len(rows) >= MINIMUM_SEEDS and supports_claim(interval, claim.kind, claim.margin)
    difference = {"mean": interval.mean, "lo": _finite(interval.low), "hi": _finite(interval.high)}
    return {"claim": str(claim), **asdict(claim), "difference": difference, "verdict": SHOWN if holds else NOT_SHOWN}


def show(
    name: str,
    *,
    seeds: int = MINIMUM_SEEDS,
    first_seed: int = 0,
    smoke: bool = False,
    all_arms: bool = False,
    processes: int | None = None,
    progress: Callable[[float, float], object] = lambda done, total: None,
) -> dict[str, Any]:
    """Run the demonstration of ``name`` and judge its claims.

    Each seed's figures are kept as soon as they are there, so that the same call after an interruption runs only the
    seeds that are missing; they are dropped when all are done, and never used by other code than that which made them.

    Returns ``{system, verdict, arms: {name: {mean, sd, n}}, metric, higher_is_better, claims, per_seed, seconds,
    cpu_seconds, seeds, limits, smoke}`` and the stamp of :func:`tutelage.environment.environment`. ``seconds`` is the wall
    time of this call, and of the seeds that were kept from an earlier one; ``cpu_seconds`` the sum over seeds. The
    verdict is "shown" where every claim is shown on at least 3 seeds; a smoke run shows nothing.

    Raises:
        InputError: no such demonstration, or fewer than one seed.
    """
    demonstration, begin = load_experiment(name), time.perf_counter()
    if seeds < 1:
        raise InputError(f"{seeds} seeds", where="--seeds", remedy=f"a verdict needs {MINIMUM_SEEDS} or more")
    wanted = list(range(first_seed, first_seed + seeds))
    folder = cache_home() / "demonstrations" / fingerprint(name, smoke, all_arms, _source())
    kept = {seed: folder / f"seed-{seed}.json" for seed in wanted}
    missing = [seed for seed in wanted if not kept[seed].exists()]
    earlier = sum(read_json(kept[seed])["seconds"] for seed in wanted if seed not in missing)
    progress(seeds - len(missing), seeds)
    tasks = [(name, seed, smoke, all_arms) for seed in missing]
    for done, row in enumerate(workers.map_tasks(run_seed, tasks, processes), seeds - len(missing) + 1):
        write_json(kept[row["seed"]], row)
        progress(done, seeds)
    rows = [read_json(kept[seed]) for seed in wanted]
    figures = [row["arms"] for row in rows]
    claims = [judge(demonstration, claim, figures) for claim in demonstration.claims]
    shown = not smoke and bool(claims) and all(claim["verdict"] == SHOWN for claim in claims)
    summaries = {arm: mean_sd([row[arm] for row in figures]) for arm in figures[0]}
    result = {
        "system": name,
        "verdict": SHOWN if shown else NOT_SHOWN,
        "arms": {arm: {"mean": it.mean, "sd": _finite(it.sd), "n": it.n} for arm, it in summaries.items()},
        "metric": demonstration.metric,
        "higher_is_better": demonstration.higher_is_better,
        "claims": claims,
        "per_seed": rows,
        "seconds": time.perf_counter() - begin + earlier,
        "cpu_seconds": sum(row["cpu_seconds"] for row in rows),
        "limits": demonstration.limits,
        "smoke": smoke,
        **run_metadata(wanted),
    }
    for file in kept.values():
        file.unlink(missing_ok=True)
    return result


def _finite(value: float) -> float | None:
    """JSON knows no infinity and no nan."""
    return value if math.isfinite(value) else None


def _source() -> str:
    """A fingerprint of this package's whole source."""
    root = Path(importlib.import_module("tutelage").__path__[0])
    return fingerprint(*(file.read_bytes() for file in sorted(root.rglob("*.py"))))
