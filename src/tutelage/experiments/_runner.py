"""What an experiment is, and the one way to run it: several seeds, paired differences, a verdict."""

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
MINIMUM_SEEDS, DEFAULT_SEEDS = 3, 5

Figure = float | Mapping[str, float]
"""What one arm reached: the main metric, or ``{label: number}`` for some or all of the experiment's metrics."""


@dataclass(frozen=True)
class Metric:
    """What numbers are, with the unit ("CPU time of training, s"), and which way is good."""

    label: str
    higher_is_better: bool = True


@dataclass(frozen=True)
class Claim:
    """``arm`` against another arm or a number, in the metric's unit: better, not worse than a margin, or equal within it.

    Judged on the paired differences of the seeds: the 95 % t-interval must lie wholly above 0, above ``-margin``, or
    within ``-margin..margin``. ``metric`` is a label of the experiment; None is its main metric.
    """

    arm: str
    kind: Literal["better", "not worse", "equal"]
    than: str | float
    margin: float = 0.0
    metric: str | None = None

    def __str__(self) -> str:
        than = self.than if isinstance(self.than, str) else f"{self.than:g}"
        text = {
            "better": f"{self.arm} better than {than}",
            "not worse": f"{self.arm} not worse than {than} (margin {self.margin:g})",
            "equal": f"{self.arm} equal to {than} (margin {self.margin:g})",
        }[self.kind]
        return text if self.metric is None else f"{text} in {self.metric}"


def better(arm: str, than: str | float, *, metric: str | None = None) -> Claim:
    """The claim that ``arm`` is better than ``than``, an arm or a number."""
    return Claim(arm, "better", than, metric=metric)


def not_worse(arm: str, than: str | float, margin: float, *, metric: str | None = None) -> Claim:
    """The claim that ``arm`` is not worse than ``than`` by ``margin``, in the metric's unit."""
    return Claim(arm, "not worse", than, margin, metric)


def equal(arm: str, than: str | float, margin: float, *, metric: str | None = None) -> Claim:
    """The claim that ``arm`` and ``than`` differ by less than ``margin``, in the metric's unit."""
    return Claim(arm, "equal", than, margin, metric)


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """An experiment: one seed of it gives the figures of every arm, and the claims say how the arms compare.

    ``run(seed, smoke, all_arms)`` returns ``{arm: number}``, the same arms for every seed, each a finite number of the
    main metric. An arm with other metrics is ``{arm: {label: number}}``; the labels are those of ``metric`` and
    ``further_metrics``. With ``smoke`` it takes at most 3 s and only proves that all parts fit together; with
    ``all_arms`` it adds the arms beyond the main comparison. It is a function at the top of its module, so that worker
    processes can find it.
    """

    metric: str
    """What the numbers are, with the unit: "test accuracy, %"."""
    claims: Sequence[Claim]
    run: Callable[[int, bool, bool], Mapping[str, Figure]]
    limits: str
    """In a sentence or two, what this small scale does not show."""
    higher_is_better: bool = True
    further_metrics: Sequence[Metric] = ()

    @property
    def metrics(self) -> list[Metric]:
        """All metrics, the main one first."""
        return [Metric(self.metric, self.higher_is_better), *self.further_metrics]


def names() -> list[str]:
    """The experiments, from listing this folder: ``nd_loss.py`` is ``nd-loss``. All but ``sdvp-photos`` are of a system."""
    folder = str(Path(__file__).parent)
    found = (module.name for module in pkgutil.iter_modules([folder]))
    return sorted(name.replace("_", "-") for name in found if not name.startswith("_"))


def load_experiment(name: str) -> Experiment:
    """The experiment of the system ``name``.

    Raises:
        InputError: there is none; the message offers the nearest names.
    """
    if name not in names():
        raise InputError(f"no experiment of {name!r}", remedy=did_you_mean(name, names()))
    return importlib.import_module(f"tutelage.experiments.{name.replace('-', '_')}").experiment


def run_seed(name: str, seed: int, smoke: bool, all_arms: bool) -> dict[str, Any]:
    """One seed of one experiment: ``{"seed", "arms", "seconds", "cpu_seconds"}``.

    Raises:
        InputError: the experiment gave a figure that is not finite, or one of a metric that it does not list; the
            message names arm and seed.
    """
    begin, cpu = time.perf_counter(), time.process_time()
    experiment = load_experiment(name)
    labels = [metric.label for metric in experiment.metrics]
    arms: dict[str, Any] = {}
    for arm, figure in experiment.run(seed, smoke, all_arms).items():
        values = figure if isinstance(figure, Mapping) else {experiment.metric: figure}
        for label, value in values.items():
            where = f"arm {arm!r} of seed {seed}"
            if label not in labels:
                raise InputError(f"{where} has the metric {label!r}", where=name, remedy=did_you_mean(label, labels))
            if not math.isfinite(value):
                raise InputError(f"{where} gave {value}", where=name, remedy="a fault of the experiment")
        arms[arm] = {label: float(value) for label, value in values.items()} if isinstance(figure, Mapping) else float(figure)
    return {"seed": seed, "arms": arms, "seconds": time.perf_counter() - begin, "cpu_seconds": time.process_time() - cpu}


def judge(experiment: Experiment, claim: Claim, rows: Sequence[Mapping[str, Figure]]) -> dict[str, Any]:
    """The claim with the paired difference over seeds, good side up, its 95 % interval, and whether it is shown.

    Raises:
        InputError: the claim names an arm that was not run, or a metric that the arm does not have.
    """
    known = {metric.label: metric for metric in experiment.metrics}
    label = claim.metric or experiment.metric
    if label not in known:
        raise InputError(f"a claim names the metric {label!r}", remedy=did_you_mean(label, list(known)))

    def series(than: str | float) -> list[float]:
        if not isinstance(than, str):
            return [float(than)] * len(rows)
        columns = [_of_metric(experiment, label, row) for row in rows]
        if than not in columns[0]:
            raise InputError(f"a claim names the arm {than!r} with {label!r}", remedy=did_you_mean(than, list(columns[0])))
        return [column[than] for column in columns]

    sign = 1.0 if known[label].higher_is_better else -1.0
    after, before = ([sign * value for value in series(side)] for side in (claim.arm, claim.than))
    interval = paired_t(after, before)
    holds = len(rows) >= MINIMUM_SEEDS and supports_claim(interval, claim.kind, claim.margin)
    difference = {"mean": interval.mean, "lo": _finite(interval.low), "hi": _finite(interval.high)}
    return {"claim": str(claim), **asdict(claim), "difference": difference, "verdict": SHOWN if holds else NOT_SHOWN}


def _of_metric(experiment: Experiment, label: str, row: Mapping[str, Figure]) -> dict[str, float]:
    """The figures of one metric in one seed, by arm; arms without it are left out."""
    figures = {arm: figure if isinstance(figure, Mapping) else {experiment.metric: figure} for arm, figure in row.items()}
    return {arm: values[label] for arm, values in figures.items() if label in values}


def _summary(experiment: Experiment, label: str, rows: Sequence[Mapping[str, Figure]]) -> dict[str, dict[str, Any]]:
    """``{arm: {mean, sd, n}}`` of one metric over the seeds."""
    columns = [_of_metric(experiment, label, row) for row in rows]
    summaries = {arm: mean_sd([column[arm] for column in columns]) for arm in columns[0]}
    return {arm: {"mean": it.mean, "sd": _finite(it.sd), "n": it.n} for arm, it in summaries.items()}


def count_shown(result: Mapping[str, Any]) -> tuple[int, int]:
    """(how many claims of a result of :func:`show` were shown, how many there are)."""
    return sum(claim["verdict"] == SHOWN for claim in result["claims"]), len(result["claims"])


def show(
    name: str,
    *,
    seeds: int = DEFAULT_SEEDS,
    first_seed: int = 0,
    smoke: bool = False,
    all_arms: bool = False,
    processes: int | None = None,
    progress: Callable[[float, float], object] = lambda done, total: None,
) -> dict[str, Any]:
    """Run the experiment of ``name`` and judge its claims.

    Each seed's figures are kept as soon as they are there, so that the same call after an interruption runs only the
    seeds that are missing; they are dropped when all are done, and never used by other code than that which made them.

    Returns ``{system, verdict, arms: {name: {mean, sd, n}}, metric, higher_is_better, further_metrics, claims, per_seed,
    seconds, cpu_seconds, seeds, limits, smoke}`` and the stamp of :func:`tutelage.environment.environment`. Each of
    ``further_metrics`` is ``{metric, higher_is_better, arms}``. ``seconds`` is the wall time of this call, and of the
    seeds that were kept from an earlier one; ``cpu_seconds`` is the sum over seeds. The verdict is "shown" where every
    claim is shown on at least 3 seeds; a smoke run shows nothing.

    Raises:
        InputError: no such experiment, or fewer than one seed.
    """
    experiment, begin = load_experiment(name), time.perf_counter()
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
    claims = [judge(experiment, claim, figures) for claim in experiment.claims]
    shown = not smoke and bool(claims) and all(claim["verdict"] == SHOWN for claim in claims)
    result = {
        "system": name,
        "verdict": SHOWN if shown else NOT_SHOWN,
        "arms": _summary(experiment, experiment.metric, figures),
        "metric": experiment.metric,
        "higher_is_better": experiment.higher_is_better,
        "further_metrics": [
            {
                "metric": metric.label,
                "higher_is_better": metric.higher_is_better,
                "arms": _summary(experiment, metric.label, figures),
            }
            for metric in experiment.further_metrics
            if _summary(experiment, metric.label, figures)  # some are of further arms alone
        ],
        "claims": claims,
        "per_seed": rows,
        "seconds": time.perf_counter() - begin + earlier,
        "cpu_seconds": sum(row["cpu_seconds"] for row in rows),
        "limits": experiment.limits,
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
