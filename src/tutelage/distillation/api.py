"""The verb: ``tutelage.distill(student, teacher, data, method="kd")``."""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tutelage import registry, storage
from tutelage.distillation.cache import Cache, CachedTeacher
from tutelage.distillation.cache_build import build, estimate_break_even
from tutelage.distillation.data import ReplayableData
from tutelage.distillation.data.sources import as_data, batch_size_of
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.method import Method
from tutelage.distillation.parallel import SingleProcess
from tutelage.distillation.result import TrainingResult
from tutelage.distillation.tasks import Task, make_task
from tutelage.distillation.teacher import Teacher, as_teacher
from tutelage.distillation.trainer import train
from tutelage.errors import InputError, did_you_mean
from tutelage.seeds import derive

Score = Callable[[nn.Module], Mapping[str, float]] | ReplayableData


@dataclass
class DistillationResult:
    """What :func:`distill` gives: one result a seed, and the student of the first. ``queries``: how many samples each
    black box among the teachers was asked for, over all seeds, by its version."""

    results: list[TrainingResult]
    seeds: list[int]
    folder: Path | None = None
    cache: dict[str, Any] | None = None
    queries: dict[str, int] = field(default_factory=dict)

    @property
    def student(self) -> nn.Module:
        """The plain student of the first seed, in eval mode."""
        return self.results[0].student

    @property
    def metrics(self) -> dict[str, dict[str, Any]]:
        """Each figure of ``evaluate``: ``{mean, sd, seeds: [value of each seed]}``; sd is None for one seed."""
        named = {name: [result.metrics[name] for result in self.results] for name in self.results[0].metrics}
        return {
            name: {
                "mean": statistics.fmean(values),
                "sd": statistics.stdev(values) if len(values) > 1 else None,
                "seeds": values,
            }
            for name, values in named.items()
        }

    def summary(self) -> dict[str, Any]:
        """All of it but the networks, as plain values."""
        runs = [
            {"seed": seed, "seconds": result.seconds, "figures": result.metrics, "history": result.history}
            for seed, result in zip(self.seeds, self.results, strict=True)
        ]
        head = {"format": "tutelage-distillation", "version": 1, "seeds": self.seeds, "figures": self.metrics}
        return head | {"cache": self.cache, "queries": self.queries, "runs": runs}


def make_method(method: str | Method | type[Method], options: Mapping[str, Any] | None = None) -> Method:
    """A method by its registered name, its class, or itself.

    Raises:
        InputError: an unknown name or option, or options for a method that is made already.
    """
    if isinstance(method, Method):
        if options:
            raise InputError("the method is made already; it takes no options", where="options", remedy="give its class")
        return copy.deepcopy(method)
    found = registry.find(method).target if isinstance(method, str) else method
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise InputError(f"{method!r} is a system, but no distillation method", where="method", remedy="tutelage systems")
    return found(**dict(options or {}))


def make_settings(settings: TrainingSettings | None, overrides: Mapping[str, Any]) -> TrainingSettings:
    """``settings`` with single fields replaced.

    Raises:
        InputError: a field that does not exist; the message offers the nearest names.
    """
    known = [item.name for item in fields(TrainingSettings)]
    for name in overrides:
        if name not in known:
            raise InputError(f"no setting {name!r}", where=name, remedy=did_you_mean(name, known))
    return replace(settings or TrainingSettings(), **overrides)


def distill(
    student: nn.Module | Callable[[], nn.Module],
    teacher: nn.Module | Teacher | None,
    data: Any,
    method: str | Method | type[Method] = "kd",
    *,
    options: Mapping[str, Any] | None = None,
    task: str | Task | None = None,
    task_options: Mapping[str, Any] | None = None,
    settings: TrainingSettings | None = None,
    seeds: int | Sequence[int] = 1,
    cache: str | Path | None = None,
    storage_format: Mapping[str, str] | str = "fp32",
    out: str | Path | None = None,
    evaluate: Score | None = None,
    check: bool = True,
    tensorboard: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
    parallel: SingleProcess | None = None,
    **overrides: Any,
) -> DistillationResult:
    """Teach ``student`` what ``teacher`` knows.

    Args:
        student: a network, which is copied and not changed, or a function that builds one, called under each seed.
        teacher: a network (then frozen, in eval mode) or a ``Teacher``; None for methods that need none.
        data: a torch ``Dataset`` of inputs or (input, label) pairs, read lazily; a ``DataLoader``, for its dataset,
            workers, ``collate_fn`` and, unless ``settings`` or ``batch_size`` say otherwise, its batch size; a folder
            of images of one size (else see ``image_folder``); or a ``Data``.
        method: a registered name (``tutelage systems`` lists them), a ``Method``, or its class.
        options: of the method, where it is given by name or class.
        task: what the student predicts, such as ``"segmentation"`` (:mod:`tutelage.distillation.tasks`); None: inferred where
            shapes and types leave no doubt.
        task_options: of the task, where it is given by name: ``{"ignore_index": 0}``.
        settings: how to train; single fields as keywords: ``steps=2000, lr=1e-3``.
        seeds: how many runs (from ``settings.seed`` on), or which seeds.
        cache: a folder in which the teacher's answers are kept and found again; built where it is missing.
        storage_format: how the cache keeps each head: ``fp32``, ``fp16``, ``topK``, or a dict by head.
        out: a folder for checkpoints, logs, weights and ``result.json``; the same call goes on where it was stopped.
        evaluate: scores a student: figures by name; or labelled data, on which the task's metrics are measured.
        check: look at the first batch before training.
        tensorboard: write the logs as TensorBoard events too, into ``out/seed-N/tensorboard``; needs ``out``.
        progress: called with (what, done, of all).
        parallel: the processes that share the work (``parallel.processes()``), each of which makes this call; None: this one alone.

    Raises:
        TutelageError: every refusal says where and what to do; see ``trainer.train`` and ``cache_build.build``.
    """
    if settings is None and "batch_size" not in overrides and batch_size_of(data) is not None:
        overrides["batch_size"] = batch_size_of(data)
    settings = make_settings(settings, overrides)
    chosen = list(range(settings.seed, settings.seed + seeds)) if isinstance(seeds, int) else list(seeds)
    if not chosen:
        raise InputError("no seed to run", where="seeds", remedy="at least 1")
    if isinstance(student, nn.Module):
        student = copy.deepcopy(student)  # before the teacher, which may be the same network, is frozen
    source = as_teacher(teacher)
    supply: ReplayableData = as_data(data)
    if cache is not None:
        settings = replace(settings, view_seed=chosen[0] if settings.view_seed is None else settings.view_seed)
    together = parallel or SingleProcess()
    results, facts = [], None
    chosen_task = make_task(task, task_options) if task is not None else None
    for seed in chosen:
        job = TrainingJob(
            make_student(student, seed),
            source,
            make_method(method, options),
            supply,
            replace(settings, seed=seed),
            name=method if isinstance(method, str) else type(make_method(method)).__name__.lower(),
            evaluate=evaluate,
            task=chosen_task,
        )
        if cache is not None:
            with together.main_first():
                job.teacher, facts = through_cache(job, Path(cache), storage_format, progress)
        folder = Path(out) / f"seed-{seed}" if out is not None else None
        tell = None if progress is None else _named(progress, f"seed {seed}")
        results.append(train(job, folder, tell, check, tensorboard, together))
    queries = {box.version: box.queries for box in source.black_boxes} if source is not None else {}
    done = DistillationResult(results, chosen, Path(out) if out is not None else None, facts, queries)
    if out is not None and together.main:
        storage.write_json(Path(out) / "result.json", done.summary())
    return done


def _named(progress: Callable[[str, int, int], None], name: str) -> Callable[[int, int], None]:
    return lambda done, steps: progress(name, done, steps)


def make_student(student: nn.Module | Callable[[], nn.Module], seed: int) -> nn.Module:
    """A copy of the network ``student``, or what the function gives with torch's generator seeded by ``seed``."""
    if isinstance(student, nn.Module):
        return copy.deepcopy(student)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "student"))
        return student()


def cache_folder(job: TrainingJob, root: Path) -> Path:
    """Where in ``root`` the training job's cache lies: each seed has its own where it shows views of its own.

    Raises:
        InputError: the training job has no teacher, or one whose answers cannot be known beforehand.
    """
    if job.teacher is None:
        raise InputError("nothing to cache: there is no teacher", where="cache", remedy="leave cache out")
    if not job.method.deterministic_teacher:
        raise InputError(
            f"{type(job.method).__name__} asks its teacher about inputs of its own making",
            where="cache",
            remedy="leave cache out: such answers cannot be stored beforehand",
        )
    order = job.data.batch(*job.sample_order().step(0))
    own = order.partners is not None or (order.seeds is not None and bool(order.seeds.any()) and not job.settings.views)
    return root / f"seed-{job.settings.seed}" if own else root


def through_cache(
    job: TrainingJob,
    root: Path,
    storage_format: Mapping[str, str] | str,
    progress: Callable[[str, int, int], None] | None,
    processes: int = 1,
) -> tuple[Teacher, dict[str, Any]]:
    """The training job's teacher, read from a cache that is built first where it is missing; and the cache's figures."""
    root = cache_folder(job, root)
    estimate = {} if (root / "cache.json").exists() else estimate_break_even(job, storage_format)
    if progress is not None and estimate:
        passes = estimate["break_even_passes"]
        progress(f"cache: pays off after {passes:.0f} passes" if math.isfinite(passes) else "cache: never pays off", 0, 1)
    built = build(job, root, storage_format, processes=processes, progress=None if progress is None else _named(progress, "cache"))
    known = {name: value if math.isfinite(value) else None for name, value in estimate.items()}  # JSON has no infinity
    return CachedTeacher(built, job.teacher), known | built.info()


__all__ = [
    "Cache",
    "DistillationResult",
    "cache_folder",
    "distill",
    "make_method",
    "make_settings",
    "make_student",
    "through_cache",
]
