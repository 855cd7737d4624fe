"""The comparison that ``tutelage report`` shows, from runs that are done: intervals, verdicts, loss balance, memory."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tutelage.datasets.confidence_intervals import supports_claim, t_interval
from tutelage.environment import run_metadata

if TYPE_CHECKING:
    from tutelage.cli._recipe import LoadedRecipe
    from tutelage.distillation.api import DistillationResult
    from tutelage.distillation.result import TrainingResult

CLAIMS = (("gain", "gains", "Distilled beats the student alone at equal steps"),
          ("equal_time_gain", "equal_time_gains", "Distilled beats the student alone at equal wall-clock"))  # fmt: skip


def comparison(job: LoadedRecipe, arms: Mapping[str, Sequence[TrainingResult]], done: DistillationResult) -> dict[str, Any]:
    """The whole ``tutelage-comparison`` of ``arms``, of which ``done`` is the distilled one; ``job`` has test data."""
    from tutelage.distillation.compare import assemble
    from tutelage.distillation.teacher import as_teacher
    from tutelage.storage import fingerprint

    assert job.test is not None
    recipe = job.recipe
    found = assemble(arms, as_teacher(job.teacher), job.test, recipe.settings, job.seeds, recipe.method, job.task)
    found["summary"] |= intervals(found["summary"])
    _memory(job, found)
    _balance(job, found, done.folder)
    if done.cache is not None:
        steps = recipe.settings.resolve(len(job.parts[0])).steps
        found["cache"] = cache_facts(done.cache, recipe.settings.accumulate, steps * len(job.seeds))
    return found | {"settings_hash": fingerprint(recipe), **run_metadata(job.seeds)}


def intervals(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The 95 % t-intervals over seeds of the paired gains, and a verdict on each; nothing of a summary without gains."""
    found: dict[str, Any] = {}
    for name, values, claim in CLAIMS:
        if values not in summary:
            continue
        interval = t_interval(summary[values])
        enough = interval.n > 1
        found[f"{name}_ci95"] = [interval.low, interval.high] if enough else None
        verdict = {"claim": claim, "target": "95 % interval above 0", "value": interval.mean}
        reason = "" if enough else "one seed shows nothing: give seeds = 3 or more"
        found.setdefault("verdicts", []).append(verdict | {"met": supports_claim(interval, "better"), "reason": reason})
    return found


def cache_facts(cache: Mapping[str, Any], accumulate: int, steps: int) -> dict[str, Any]:
    """A cache's figures as the report names them. A view that is not held stops a run, so there are no misses."""
    facts = {"entries": cache["rows"], "bytes": cache["bytes"], "hits": steps * accumulate * cache["order"]["batch_size"]}
    facts |= {"misses": 0, "share of dense fp32": f"{cache['bytes'] / max(1, cache['dense_fp32_bytes']):.2f}"}
    if "build_seconds" in cache:  # measured only by the call that built it
        passes = cache["break_even_passes"]  # None: never
        facts |= {"build_seconds": cache["build_seconds"], "break_even_steps": None if passes is None else passes / accumulate}
    return facts | {"teacher": cache["teacher"], "fingerprint": cache["data"]}


def _memory(job: LoadedRecipe, found: dict[str, Any]) -> None:
    """The peak of tensor memory of one step of each trained arm, on copies."""
    from tutelage.distillation.job import TrainingJob
    from tutelage.distillation.memory import job_peak
    from tutelage.distillation.supervised import Supervised

    for arm in found["arms"]:
        training_job = job.training_job(job.seeds[0])
        if arm["role"] == "student":
            data = job.labelled or job.data
            training_job = TrainingJob(training_job.student, None, Supervised(), data, training_job.settings, task=job.task)
        if arm["speed"] is not None:
            arm["speed"]["peak_tensor_mib"] = job_peak(replace(training_job, student=copy.deepcopy(training_job.student))) / 2**20


def _balance(job: LoadedRecipe, found: dict[str, Any], folder: Path | None) -> None:
    """Each loss term's share of the gradient when training begins and, from the last checkpoint, when it ends."""
    from tutelage.distillation.checkpoint import CheckpointManager, read_tensors
    from tutelage.distillation.doctor import gradient_shares

    training_job = job.training_job(job.seeds[0])
    values, shares = gradient_shares(training_job)
    terms = {term["name"]: term for term in found["losses"]["terms"]}
    for name, term in terms.items():
        term["points"].insert(0, {"step": 0, "value": values.get(name), "share": shares.get(name)})
    latest = CheckpointManager(folder / f"seed-{job.seeds[0]}").latest if folder is not None else None
    if latest is not None:
        _, shares = gradient_shares(training_job, read_tensors(latest)[0])
        for name, term in terms.items():
            term["points"][-1]["share"] = shares.get(name)
