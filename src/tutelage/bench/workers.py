"""How much sooner two workers label than one: local processes, and Ray's."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from tutelage.programs.types import Call
from tutelage.sdvp.stages import CALLS_PER_SHARD, label_shard
from tutelage.sdvp.teachers import ModuleTeacher
from tutelage.workers import WorkerPool, map_tasks

TARGET = 1.7
"""Two workers over one, at least (our choice)."""
READY_TIMEOUT_S = 120.0
"""Seconds that workers wait for one another before the stage."""


def bench(
    engines: Sequence[str] = ("local", "ray"),
    *,
    calls: int = 16 * CALLS_PER_SHARD,
    shard_size: int = CALLS_PER_SHARD,
    rounds: int = 3,
    seed: int = 0,
    smoke: bool = False,
    progress: Callable[[float, float], None] = lambda done, total: None,
) -> dict[str, Any]:
    """The labelling stage by one worker and by two of each engine, one thread each, taking turns over ``rounds``.

    The stage is what ``tutelage sdvp label`` hands to workers: shards of ``shard_size`` calls, answered by the toy colour
    specialist and written as files. It begins when every worker has labelled a shard, so starting them is not counted; nor is
    stopping them.

    Returns:
        ``{engines: {name: {seconds: {1, 2}, ratio, target, met, reason}}, …}``: medians, and the median of the rounds' ratios.
    """
    from tutelage import storage
    from tutelage.sdvp import toy_modules
    from tutelage.sdvp.teachers import teacher_from_module
    from tutelage.seeds import numpy_rng

    specialist = toy_modules.load_or_train(seed, "color", storage.ContentStore(storage.cache_home() / "modules"), smoke)
    calls, shard_size = (256, 32) if smoke else (calls, shard_size)
    found = toy_modules.scenes("B", 64 if smoke else calls // 4, seed, "workers")
    color_calls = toy_modules.color_examples(found, numpy_rng(seed, "workers"))[0][:calls]
    pieces = [color_calls[first : first + shard_size] for first in range(0, len(color_calls), shard_size)]
    taken: dict[str, dict[int, list[Stage]]] = {engine: {1: [], 2: []} for engine in engines}
    total = 2 * len(engines) * rounds
    for number in range(total):
        engine, count = engines[number // 2 % len(engines)], number % 2 + 1
        taken[engine][count].append(stage(WorkerPool(engine, count), {"VQA": teacher_from_module(specialist)}, pieces))
        progress(number + 1, total)
    return {
        "engines": {engine: compare_stages(stages[1], stages[2]) for engine, stages in taken.items()},
        "calls": len(color_calls),
        "calls_a_shard": shard_size,
        "rounds": rounds,
        "threads_a_worker": 1,
        "smoke": smoke,
    }


Stage = tuple[float, float, float]
"""Seconds of a stage, and the seconds and CPU seconds that its shards took in the workers."""


def stage(pool: WorkerPool, teachers: Mapping[str, ModuleTeacher], shards: Sequence[Sequence[Call]]) -> Stage:
    """Label ``shards``, a shard each, once all workers of the pool are there."""
    count = pool.workers or 1
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        waiting = [(root / "ready", count, shards[0])] * count
        tasks = [*waiting, *((root / f"{number}.jsonl", 0, piece) for number, piece in enumerate(shards))]
        results = map_tasks(timed_shard, tasks, pool, common=(teachers,))
        for _ in waiting:
            next(results)
        began = time.perf_counter()
        spent = [next(results) for _ in shards]
        seconds = time.perf_counter() - began  # before the workers are sent home
        list(results)
    return seconds, sum(wall for wall, _ in spent), sum(cpu for _, cpu in spent)


def timed_shard(teachers: Mapping[str, ModuleTeacher], path: Path, n_workers: int, calls: Sequence[Call]) -> tuple[float, float]:
    """Seconds and CPU seconds of one shard; with ``n_workers``, it goes to the folder ``path`` and so many must come there."""
    if n_workers:
        label_shard(teachers, path / str(os.getpid()), "VQA", calls)
        until = time.monotonic() + READY_TIMEOUT_S
        while len(list(path.glob("[0-9]*"))) < n_workers and time.monotonic() < until:
            time.sleep(0.005)
        return 0.0, 0.0
    wall, cpu = time.perf_counter(), time.process_time()
    label_shard(teachers, path, "VQA", calls)
    return time.perf_counter() - wall, time.process_time() - cpu


def compare_stages(one: Sequence[Stage], two: Sequence[Stage]) -> dict[str, Any]:
    """The ratio of the stage by one worker and by two; where it misses the target, why: it is twice the share of their time
    that workers were busy, over how much longer a shard took beside another."""
    ratio = median(alone[0] / both[0] for alone, both in zip(one, two, strict=True))
    longer = median(both[1] / alone[1] for alone, both in zip(one, two, strict=True))
    waited = median(1 - both[2] / both[1] for both in two)
    busy = median(both[1] / (2 * both[0]) for both in two)
    reason = (
        f"a shard took {longer:.2f} times as long beside another ({waited:.0%} of it waiting for a core), "
        f"and the workers were busy {busy:.0%} of the time; this process may use {len(os.sched_getaffinity(0))} cores"
    )
    return {
        "seconds": {1: median(stage[0] for stage in one), 2: median(stage[0] for stage in two)},
        "ratio": ratio,
        "target": TARGET,
        "met": ratio >= TARGET,
        "reason": "" if ratio >= TARGET else reason,
        "shard_time_beside_another": longer,
        "waiting": waited,
        "busy": busy,
    }
