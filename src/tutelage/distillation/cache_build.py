"""Building a teacher cache, checking it, and saying beforehand what it costs and saves."""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tutelage import storage, workers
from tutelage.distillation.cache import (
    FORMAT,
    SHARD,
    VERSION,
    Cache,
    CachedTeacher,
    check_store,
    difference,
    pack,
    read_metadata,
    shard_path,
    view_keys,
)
from tutelage.distillation.checkpoint import write_tensors
from tutelage.distillation.data import Batch, BatchOrder, ReplayableData, order_of
from tutelage.distillation.data.loader import BatchLoader
from tutelage.distillation.job import TrainingJob
from tutelage.distillation.teacher import Teacher
from tutelage.errors import InputError, StaleError


@dataclass(frozen=True)
class CachePlan:
    """The first ``passes`` passes in ``order`` show every view; ``covers`` says which views these are: the one of each
    sample, a cycle of views of each sample (whatever the order they are shown in), or those of one run alone."""

    order: BatchOrder
    passes: int
    covers: dict[str, Any]

    def batch(self, data: ReplayableData, number: int) -> Batch:
        """The batch of pass ``number``, as training will see it."""
        return data.batch(*self.order.step(number))


def plan(data: ReplayableData, order: BatchOrder, passes: int) -> CachePlan:
    """What must be asked so that ``passes`` forward passes of training in ``order`` find every view.

    Views that come again are all asked for, even if training is shorter than a cycle of them: other runs find them too.
    """
    first = data.batch(*order.step(0))
    plain = first.partners is None and (first.seeds is None or not bool(first.seeds.any()))
    if plain or (first.partners is None and order.views):
        cycle = 1 if plain else order.views
        covers = {"views": cycle} | ({} if plain else {"view_seed": order.view_seed})
        if (covering := order.covering(cycle)) is not None:
            return CachePlan(order, covering, covers)
    return CachePlan(order, passes, {"passes": passes, **order.facts()})


def build(
    job: TrainingJob,
    root: str | Path,
    storage_format: Mapping[str, str] | str = "fp32",
    shard: int = 256,
    processes: workers.WorkerPool | int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Cache:
    """Ask the training job's teacher about every view that its training will show, and keep the answers in ``root``.

    Args:
        job: gives data, teacher, order and length of training. Its teacher must be frozen.
        store: how each head is kept: ``fp32``, ``fp16`` or ``topK``; one word for all heads, or a dict that names the
            heads to keep (sub-modules tapped by the teacher too).
        shard: passes a shard; what a kill can cost.
        processes: local workers, or a pool; more than one needs a teacher and data that can be sent to another process.
        progress: called with (shards done, shards).

    Raises:
        StaleError: ``root`` holds a cache of other data, another teacher or other settings.
        InputError: a wrong ``storage_format``, or a teacher's output that is not finite.
    """
    if job.teacher is None:
        raise InputError("nothing to cache: the training job has no teacher", where=job.name)
    if isinstance(job.teacher, CachedTeacher):
        raise InputError("the training job's teacher is a cache already", where=job.name)
    if not job.teacher.frozen:
        raise InputError("this teacher changes while it teaches", where=job.name, remedy="only a frozen teacher can be cached")
    root = Path(root)
    facts = {"data": job.data.fingerprint, "teacher": job.teacher.fingerprint}
    _check_same_source(root, facts)
    todo = plan(job.data, job.sample_order(), job.settings.steps * job.settings.accumulate)
    head = facts | _metadata(job, todo, storage_format)
    _check_same_source(root, head)
    if (root / "cache.json").exists():
        head = read_metadata(root)  # the order it was begun in; another may serve as well
    else:
        head |= {"order": todo.order.facts(), "passes": todo.passes, "shard": shard}
        storage.write_json(root / "cache.json", head, sealed=True)
    todo, shard = CachePlan(order_of(job.data, **head["order"]), head["passes"], head["covers"]), head["shard"]
    count = -(-todo.passes // shard)
    missing = [number for number in range(count) if not shard_path(root, number).exists()]
    common = (root.resolve(), head, job.teacher, job.data, todo)
    names = [str(shard_path(root, number)) for number in missing]
    done = count - len(missing)
    for _ in workers.map_tasks(build_shard, [(number,) for number in missing], processes, common=common, names=names):
        done += 1
        if progress is not None:
            progress(done, count)
    return Cache(root)


def _metadata(job: TrainingJob, todo: CachePlan, storage_format: Mapping[str, str] | str) -> dict[str, Any]:
    assert job.teacher is not None
    teacher_outputs = job.teacher(todo.batch(job.data, 0))
    named = dict.fromkeys(teacher_outputs, storage_format) if isinstance(storage_format, str) else dict(storage_format)
    for name, how in named.items():
        check_store(how, f"store: {name}")
    if absent := set(named) - set(teacher_outputs):
        raise InputError(
            f"the teacher has no head {', '.join(sorted(absent))}", where="store", remedy=f"it has {', '.join(teacher_outputs)}"
        )
    return {
        "format": FORMAT,
        "version": VERSION,
        "heads": {name: {"store": how, "shape": list(teacher_outputs[name].shape[1:])} for name, how in named.items()},
        "covers": todo.covers,
    }


def _check_same_source(root: Path, facts: Mapping[str, Any]) -> None:
    """Raise StaleError at the first of ``facts`` that the cache in ``root``, if any, states otherwise."""
    if not (root / "cache.json").exists():
        return
    found = read_metadata(root)
    names = {"data": "data or augmentation", "teacher": "teacher"}
    for key, value in storage.to_plain(facts).items():
        if found.get(key) != value:
            raise StaleError(
                f"built from another {names.get(key, key)}: {_short(found.get(key))}, not {_short(value)}",
                where=root / "cache.json",
                remedy="choose a new folder, or delete this one",
            )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."


def build_shard(
    root: Path, metadata: Mapping[str, Any], teacher: Teacher, data: ReplayableData, todo: CachePlan, number: int
) -> Path:
    """Compute and write one shard; what a worker process runs."""
    columns: dict[str, list[Tensor]] = {}
    seen: set[int] = set()
    first = number * metadata["shard"]
    last = min(first + metadata["shard"], metadata["passes"])
    loader = BatchLoader(data, todo.order, last)
    for step in range(first, last):
        batch = loader.take(step)
        keys = view_keys(batch)
        fresh = [row for row, key in enumerate(keys.tolist()) if not (key in seen or seen.add(key))]  # type: ignore[func-returns-value]
        teacher_outputs = teacher(batch)
        columns.setdefault("keys", []).append(torch.from_numpy(keys.view(np.int64))[fresh])
        for name, entry in metadata["heads"].items():
            value = teacher_outputs[name]
            if not bool(value.isfinite().all()):
                raise InputError(
                    f"the teacher's output {name!r} is not finite",
                    where=f"pass {step}, samples {batch.ids.tolist()[:4] if batch.ids is not None else ''}…",
                    remedy="check the teacher's weights and the inputs",
                )
            for part, column in pack(name, value, entry["store"]).items():
                columns.setdefault(part, []).append(column[fresh].cpu())
    tensors = {name: torch.cat(parts) for name, parts in columns.items()}
    return write_tensors(shard_path(root, number), tensors, {}, SHARD)


def verify(root: str | Path, job: TrainingJob | None = None, passes: int = 8, tolerance: float | None = None) -> dict[str, Any]:
    """Read every byte of the cache (opening it does), and with a ``job`` ask its teacher again about ``passes`` of the passes.

    Returns:
        ``{shards, rows, asked, largest_error: {metadata: float}}``; a sparse head's error is of probabilities.

    Raises:
        InputError: a shard is missing, cut short or altered; the message names it.
        StaleError: other data, another teacher, or the teacher says something else now (beyond ``tolerance``, default
            1e-5 for fp32 and 1e-3 for fp16 and sparse heads, relative to the head's largest value).
    """
    cache = Cache(root, job.data if job is not None else None)
    report: dict[str, Any] = {"shards": len(cache.shards), "rows": len(cache), "asked": 0, "largest_error": {}}
    if job is None or job.teacher is None:
        return report
    stored, live = CachedTeacher(cache, job.teacher.uncached), job.teacher.uncached
    order = order_of(job.data, **cache.metadata["order"])
    for number in np.linspace(0, cache.metadata["passes"] - 1, min(passes, cache.metadata["passes"])).astype(int).tolist():
        batch = job.data.batch(*order.step(number))
        cached_outputs, live_outputs = stored(batch), live(batch)
        report["asked"] += len(batch)
        for name, entry in cache.metadata["heads"].items():
            error = difference(entry["store"], cached_outputs[name], live_outputs[name])
            report["largest_error"][name] = max(error, report["largest_error"].get(name, 0.0))
            if error > (tolerance if tolerance is not None else 1e-5 if entry["store"] == "fp32" else 1e-3):
                raise StaleError(
                    f"the teacher's {name!r} differs from the cache by {error:.2g}",
                    where=cache.root,
                    remedy="the teacher or the augmentation changed: build the cache again",
                )
    return report


def estimate_break_even(job: TrainingJob, storage_format: Mapping[str, str] | str = "fp32", rounds: int = 3) -> dict[str, float]:
    """What a cache of ``job`` costs and saves, measured on a few passes in a temporary folder.

    Returns:
        ``build_passes``, ``build_seconds`` and ``bytes`` of the build, ``teacher_ms`` and ``read_ms`` of a pass,
        ``training_passes`` of one run, and ``break_even_passes``: after how many passes of training the cache has paid
        for itself (infinite where reading is slower than asking).
    """
    if job.teacher is None:
        raise InputError("the training job has no teacher", where=job.name)
    total = job.settings.steps * job.settings.accumulate
    todo = plan(job.data, job.sample_order(), total)
    rounds = max(1, min(rounds, todo.passes))
    batches = [todo.batch(job.data, number) for number in range(rounds)]
    facts = {"data": "none", "teacher": "none", "order": todo.order.facts(), "passes": rounds, "shard": rounds}
    head = _metadata(job, todo, storage_format) | facts
    teacher = _median([_timed(job.teacher, batch) for batch in batches])
    with tempfile.TemporaryDirectory() as folder:
        storage.write_json(Path(folder) / "cache.json", head, sealed=True)
        began = time.perf_counter()
        build_shard(Path(folder), head, job.teacher, job.data, todo, 0)
        built = (time.perf_counter() - began) / rounds
        cache = Cache(folder)
        read = _median([_timed(cache.read, batch) for batch in batches])
        row = sum(column[0].nbytes for column in cache.shards[0].values())
    rows = todo.passes * todo.order.batch_size
    if "passes" not in todo.covers:
        rows = min(rows, todo.covers["views"] * todo.order.length)
    saved = teacher - read
    return {
        "build_passes": todo.passes,
        "build_seconds": todo.passes * built,
        "bytes": row * rows,
        "teacher_ms": 1000 * teacher,
        "read_ms": 1000 * read,
        "training_passes": total,
        "break_even_passes": math.ceil(todo.passes * built / saved) if saved > 0 else math.inf,
    }


def _timed(function: Callable[[Batch], Any], batch: Batch) -> float:
    began = time.perf_counter()
    function(batch)
    return time.perf_counter() - began


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]
