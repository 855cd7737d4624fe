"""Distillation side by side: a loop written by hand, torchdistill, ours online, ours from a cache; and whether the tricks
that make ours fast cost accuracy.

Timings are of one process with one thread (``distill_steps``): the ways take turns, a figure is the median over rounds,
a ratio the median of the rounds' own ratios, so that what else the machine does falls on both sides. torchdistill is
installed beside the project, never into it: it wants a torchvision, which has no CPU build for every torch.
"""

from __future__ import annotations

import json as json_format
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

from tutelage import storage
from tutelage.bench import _isolated_packages, distill_accuracy
from tutelage.bench.distill_steps import ALONE, CACHED, ONLINE, OTHER, QUICK
from tutelage.datasets.confidence_intervals import supports_claim, t_interval
from tutelage.environment import run_metadata
from tutelage.errors import InputError

PAIRS = ("56-20", "110-20")
"""Depths of teacher and student."""

TORCHDISTILL = "1.1.5"
MIB = 2**20


def command(
    json: str | None = None,
    rounds: int = 12,
    *,
    seeds: int = 5,
    smoke: bool = False,
    device: str = "cpu",
    processes: int | None = None,
    on_progress: Callable[[str], object] | None = None,
) -> dict[str, Any]:
    """Run the benchmark, print its table and write its JSON to ``json`` (``-``: standard output).

    ``smoke``: the plumbing alone, small networks, no torchdistill. ``device``: ``cpu`` or ``cuda``.

    Raises:
        InputError: fewer than one round or seed, or a device that is not there.
    """
    result = run(rounds, seeds, smoke=smoke, device=device, processes=processes)
    say = on_progress or (lambda text: print(text, file=sys.stderr if json == "-" else sys.stdout))
    say(table(result))
    if json == "-":
        print(json_format.dumps(storage.to_plain(result), indent=1))
    elif json is not None:
        storage.write_json(json, result)
    return result


def run(
    rounds: int = 12, seeds: int = 5, *, smoke: bool = False, device: str = "cpu", processes: int | None = None
) -> dict[str, Any]:
    """The whole result: ``{rows, summary, left_out, …}`` and the stamp of the environment.

    A row: ``{pair, variant, tricks, cpu_ms_per_step, peak_tensor_mib, accuracy}``. On a GPU ``cpu_ms_per_step`` is wall
    time with the device awaited, and ``clock`` says so. ``accuracy`` (%, mean over seeds) is measured on the pair of
    small networks that are trained to the end on Fashion-MNIST, and null for the pairs that are only timed.

    Raises:
        InputError: as :func:`command`.
    """
    if rounds < 1 or seeds < 1:
        raise InputError("nothing to measure", where="--rounds, --seeds", remedy="10 rounds or more, 5 seeds")
    if device != "cpu":
        import torch

        if not torch.cuda.is_available():
            raise InputError("there is no GPU here", where="--device", remedy="--device cpu")
    began = time.perf_counter()
    packages, reason = (None, "not in a smoke test") if smoke else fetch_torchdistill()
    pairs = ("14-8",) if smoke else PAIRS
    timings = time_steps(pairs, 1 if smoke else rounds, 1 if smoke else 2, device, packages)
    accuracy = distill_accuracy.run(list(range(seeds)), smoke=smoke, device=device, processes=processes)
    rows = [row for pair, ways in timings.items() for row in step_rows(pair_name(pair), ways)] + accuracy_rows(accuracy)
    return {
        "rows": rows,
        "summary": summary({pair_name(pair): ways for pair, ways in timings.items()}, accuracy),
        "left_out": {OTHER: reason} if packages is None else {},
        "clock": "CPU time, one thread" if device == "cpu" else "wall time, device awaited",
        "rounds": rounds,
        "batch": 32,
        "smoke": smoke,
        "seconds": time.perf_counter() - began,
        **run_metadata(range(seeds)),
    }


def pair_name(pair: str) -> str:
    """``56-20`` in words."""
    teacher, student = pair.split("-")
    return f"resnet{teacher}-resnet{student}"


def time_steps(pairs: Sequence[str], rounds: int, steps: int, device: str, packages: Path | None) -> dict[str, Any]:
    """What ``distill_steps`` measures, in a process of its own.

    Raises:
        InputError: it failed; the message ends with its last words.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "steps.json"
        words = [str(out), "--pairs", *pairs, "--rounds", str(rounds), "--steps", str(steps), "--device", device]
        words += ["--packages", str(packages)] if packages is not None else []
        threads = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        done = subprocess.run(
            [sys.executable, "-m", "tutelage.bench.distill_steps", *words],
            env=os.environ | threads, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise InputError(f"the timed process failed: {done.stderr.strip()[-2000:]}", where="bench distill")
        return storage.read_json(out)


def fetch_torchdistill() -> tuple[Path | None, str]:
    """The folder that holds torchdistill and a torchvision of this torch; or None and why it cannot be had."""
    wanted = [f"torchdistill=={TORCHDISTILL}", _isolated_packages.torchvision(), "pyyaml>=6.0"]
    return _isolated_packages.install(f"torchdistill-{TORCHDISTILL}", wanted)


def step_rows(pair: str, variants: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of a timed pair."""
    return [
        {
            "pair": pair,
            "variant": name,
            "tricks": way["tricks"],
            "cpu_ms_per_step": median(way["ms"]),
            "peak_tensor_mib": way["peak"] / MIB,
            "accuracy": None,
        }
        for name, way in variants.items()
    ]


def accuracy_rows(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of the trained pair."""
    return [
        {
            "pair": distill_accuracy.PAIR,
            "variant": name,
            "tricks": arm["tricks"],
            "cpu_ms_per_step": median(arm["ms"]),
            "peak_tensor_mib": arm["peak"] / MIB,
            "accuracy": fmean(arm["accuracy"]),
            "accuracy_seeds": arm["accuracy"],
        }
        for name, arm in found.items()
    ]


def ratio(variants: Mapping[str, Any], above: str, below: str) -> float:
    """The median over rounds of one way's time over another's."""
    return median(a / b for a, b in zip(variants[above]["ms"], variants[below]["ms"]))


def summary(timings: Mapping[str, Mapping[str, Any]], accuracy: Mapping[str, Any]) -> dict[str, Any]:
    """The figures that are promised, each with whether it is met.

    The step from the cache and memory are compared at equal precision, the worst of all pairs and precisions; speeds
    against torchdistill are those of the quick ways, null without it. Accuracy is all tricks less none, points.
    """
    same = [("", ""), (QUICK, QUICK)]
    step = max(ratio(ways, CACHED + a, ALONE + b) for ways in timings.values() for a, b in same)
    memory = max(
        ways[name + a]["peak"] / ways[ALONE + b]["peak"] for ways in timings.values() for name in (CACHED, ONLINE) for a, b in same
    )
    beside = {pair: ways for pair, ways in timings.items() if OTHER in ways}
    best = {pair: ratio(ways, OTHER, CACHED + QUICK) for pair, ways in beside.items()}
    online = {pair: ratio(ways, OTHER, ONLINE + QUICK) for pair, ways in beside.items()}
    on, off = (accuracy[name]["accuracy"] for name in (CACHED + QUICK, ONLINE))
    difference = t_interval([a - b for a, b in zip(on, off)])
    least = {pair_name("56-20"): 2.7, pair_name("110-20"): 4.0}
    verdicts = [
        _verdict("a cached step over the student alone, same precision", step, "at most 1.05", step <= 1.05),
        *(
            _verdict(f"best cached over torchdistill, {pair}", value, f"at least {least[pair]}", value >= least[pair])
            for pair, value in best.items()
        ),
        *(
            _verdict(f"online over torchdistill, {pair}", value, "at least 1.6", value >= 1.6)
            for pair, value in online.items()
        ),
        _verdict("peak tensor memory over the student alone", memory, "at most 1.02", memory <= 1.02),
        _verdict("accuracy, all tricks less none, points", difference.mean, "95 % interval inside ±1",
                 len(on) > 1 and supports_claim(difference, "equal", 1.0)),
    ]  # fmt: skip
    return {
        "cached_over_student_only": step,
        "best_over_torchdistill": best,
        "online_over_torchdistill": online,
        "memory_over_student_only": memory,
        "accuracy_difference": {"mean": difference.mean}
        | ({"lo": difference.low, "hi": difference.high} if len(on) > 1 else {"lo": None, "hi": None}),
        "verdicts": verdicts,
    }


def _verdict(claim: str, value: float, target: str, met: bool) -> dict[str, Any]:
    return {"claim": claim, "value": value, "target": target, "met": met}


def table(result: Mapping[str, Any]) -> str:
    """The rows and verdicts as plain text."""
    lines = [f"{'pair':<34}{'way':<32}{'ms/step':>9}{'peak MiB':>10}{'accuracy':>10}"]
    for row in result["rows"]:
        right = "" if row["accuracy"] is None else f"{row['accuracy']:.2f}"
        figures = f"{row['cpu_ms_per_step']:>9.1f}{row['peak_tensor_mib']:>10.1f}{right:>10}"
        lines.append(f"{row['pair']:<34}{row['variant']:<32}{figures}")
    for verdict in result["summary"]["verdicts"]:
        mark = "met   " if verdict["met"] else "missed"
        lines.append(f"{mark} {verdict['claim']}: {verdict['value']:.3f} (promised: {verdict['target']})")
    lines += [f"left out: {name}: {reason}" for name, reason in result["left_out"].items()]
    if result["smoke"]:
        lines.append("a smoke test: the figures mean nothing")
    return "\n".join(lines)
