"""The verb: ``tutelage.distill(student, teacher, data, method="kd")``."""

from __future__ import annotations

import contextlib
import copy
import inspect
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

import torch
from torch import nn

from tutelage import registry, storage
from tutelage.distillation.cache import Cache, CachedTeacher
from tutelage.distillation.cache_build import build, estimate_break_even
from tutelage.distillation.data import ReplayableData
from tutelage.distillation.data.sources import as_data, batch_size_of
from tutelage.distillation.data.subset import split_data
from tutelage.distillation.job import Score, TrainingJob, TrainingSettings, as_score
from tutelage.distillation.method import Method
from tutelage.distillation.parallel import SingleProcess
from tutelage.distillation.result import TrainingResult
from tutelage.distillation.settings import MAX_COUNT, make_settings
from tutelage.distillation.supervised import Supervised
from tutelage.distillation.tasks import Task, make_task
from tutelage.distillation.teacher import Teacher, as_teacher
from tutelage.distillation.trainer import train
from tutelage.errors import InputError, did_you_mean
from tutelage.progress import progress as progress_bar
from tutelage.seeds import derive

Progress = Callable[[str, int, int], None]


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

    @property
    def selection(self) -> list[dict[str, Any] | None]:
        """What was chosen on validation data, a run each (``Selection.summary``); None: nothing was."""
        return [result.selection for result in self.results]

    def summary(self) -> dict[str, Any]:
        """All of it but the networks, as plain values."""
        runs = [
            {"seed": seed, "seconds": result.seconds, "figures": result.metrics, "history": result.history}
            | ({} if result.selection is None else {"selection": result.selection})
            for seed, result in zip(self.seeds, self.results, strict=True)
        ]
        head = {"format": "tutelage-distillation", "version": 1, "seeds": self.seeds, "figures": self.metrics}
        return head | {"cache": self.cache, "queries": self.queries, "runs": runs}


def methods() -> dict[str, type[Method]]:
    """Every method by the name that ``method=`` and a recipe take: the registered ones, and ``supervised``, labels alone."""
    found = {entry.name: entry.target for entry in registry.systems().values()}
    trains = {name: kind for name, kind in found.items() if isinstance(kind, type) and issubclass(kind, Method)}
    return trains | {"supervised": Supervised}


def make_method(method: str | Method | type[Method], options: Mapping[str, Any] | None = None) -> Method:
    """A method by its name (:func:`methods`), its class, or itself.

    Raises:
        InputError: an unknown name or option, or options for a method that is made already.
    """
    if isinstance(method, Method):
        if options:
            raise InputError("the method is made already; it takes no options", where="options", remedy="give its class")
        return copy.deepcopy(method)
    if isinstance(method, str):
        known = methods()
        if method not in known:
            systems = registry.systems()
            subject = f"the {systems[method].kind} {method} is" if method in systems else f"{method!r} is"
            raise InputError(f"{subject} no distillation method", where="method", remedy=did_you_mean(method, list(known)))
        return known[method](**dict(options or {}))
    if not (isinstance(method, type) and issubclass(method, Method)):
        raise InputError(f"{method!r} is no distillation method", where="method", remedy="give a name, a Method, or its class")
    return method(**dict(options or {}))


def with_curriculum(method: Method, curriculum: str | None, options: Mapping[str, Any] | None = None) -> Method:
    """``method`` inside a curriculum by its name; None: ``method`` itself.

    Raises:
        InputError: an unknown name or option, or options of no curriculum.
    """
    if curriculum is None:
        if options:
            raise InputError("options of no curriculum", where="curriculum_options", remedy='name it: curriculum="efficienttrain"')
        return method
    found = {name: entry.target for name, entry in registry.systems().items() if entry.kind == "curriculum"}
    wraps = {name: kind for name, kind in found.items() if isinstance(kind, type) and issubclass(kind, Method)}
    if curriculum not in wraps:
        remedy = did_you_mean(str(curriculum), list(wraps))
        raise InputError(f"{curriculum!r} is no curriculum", where="curriculum", remedy=remedy)
    return wraps[curriculum](inner=method, **dict(options or {}))


def _with_settings(function: Callable[..., DistillationResult]) -> Callable[..., DistillationResult]:
    """``function`` with a signature that shows each training setting in place of ``**overrides``."""
    signature = inspect.signature(function, eval_str=True)
    plain = [one for one in signature.parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
    hints, defaults, named = get_type_hints(TrainingSettings), TrainingSettings(), {one.name for one in plain}
    single = [
        inspect.Parameter(
            item.name, inspect.Parameter.KEYWORD_ONLY, default=getattr(defaults, item.name), annotation=hints[item.name]
        )
        for item in fields(TrainingSettings)
        if item.name not in named
    ]
    function.__signature__ = signature.replace(parameters=[*plain, *single])  # type: ignore[attr-defined]
    return function


@_with_settings
def distill(
    student: nn.Module | Callable[[], nn.Module],
    teacher: nn.Module | Teacher | Callable[[Any], Any] | None,
    data: Any,
    method: str | Method | type[Method] = "kd",
    *,
    options: Mapping[str, Any] | None = None,
    curriculum: str | None = None,
    curriculum_options: Mapping[str, Any] | None = None,
    task: str | Task | None = None,
    task_options: Mapping[str, Any] | None = None,
    settings: TrainingSettings | None = None,
    seeds: int | Sequence[int] = 1,
    cache: str | Path | None = None,
    storage_format: Mapping[str, str] | str = "fp32",
    out: str | Path | None = None,
    evaluate: Score | None = None,
    validation: Score | float | None = None,
    check: bool = True,
    tensorboard: bool = False,
    progress: Progress | bool = True,
    parallel: SingleProcess | None = None,
    **overrides: Any,
) -> DistillationResult:
    """Teach ``student`` what ``teacher`` knows.

    Args:
        student: a network, which is copied and not changed, or a function that builds one, called under each seed.
        teacher: a network (then frozen, in eval mode), a ``Teacher``, or a function of a batch's inputs; None for methods
            that need none.
        data: a torch ``Dataset`` of inputs or (input, label) pairs, read lazily; a ``DataLoader``, for its dataset,
            workers, ``collate_fn`` and, unless ``settings`` or ``batch_size`` say otherwise, its batch size; a folder
            of images of one size (else see ``image_folder``); or a ``Data``.
        method: a name (``tutelage systems`` lists the registered ones; ``supervised``: labels alone), a ``Method``, or its
            class.
        options: of the method, where it is given by name or class.
        curriculum: the name of a system of that kind, such as ``efficienttrain``, which is put round the method.
        curriculum_options: of it.
        task: what the student predicts, such as ``"segmentation"`` (:mod:`tutelage.distillation.tasks`); None: inferred where
            shapes and types leave no doubt.
        task_options: of the task, where it is given by name: ``{"ignore_index": 0}``.
        settings: how to train; single fields as keywords: ``epochs=20, lr=1e-3, ema=0.999``.
        seeds: how many runs (from ``settings.seed`` on), or which seeds.
        cache: a folder in which the teacher's answers are kept and found again; built where it is missing.
        storage_format: how the cache keeps each head: ``fp32``, ``fp16``, ``topK``, or a dict by head.
        out: a folder for checkpoints, logs, weights and ``result.json``; the same call goes on where it was stopped.
        evaluate: scores a student: figures by name; or labelled data, on which the task's metrics are measured. Nothing
            is chosen by it: these are the figures to report.
        validation: what the student is chosen by: like ``evaluate``, or the share of ``data`` to hold out for it, such as 0.1.
            The best student is kept (``keep="last"``: not), and ``patience=n`` ends a run after n evaluations without a
            better one. ``DistillationResult.selection`` says what was chosen.
        check: look at the first batch before training.
        tensorboard: write the logs as TensorBoard events too, into ``out/seed-N/tensorboard``; needs ``out``.
        progress: a bar where standard error is a terminal; False: none; or a function, called with (what, done, of all).
        parallel: the processes that share the work (``parallel.processes()``), each of which makes this call; None: this one alone.

    Raises:
        TutelageError: every refusal says where and what to do; see ``trainer.train`` and ``cache_build.build``.
    """
    if settings is None and "batch_size" not in overrides and batch_size_of(data) is not None:
        overrides["batch_size"] = batch_size_of(data)
    settings = make_settings(settings, overrides)
    chosen = _chosen_seeds(seeds, settings.seed)
    _check_arguments(student, options, curriculum_options, task_options, cache, out, parallel)
    if isinstance(student, nn.Module):
        student = copy.deepcopy(student)  # before the teacher, which may be the same network, is frozen
    source = as_teacher(teacher)
    supply: ReplayableData = as_data(data)
    if isinstance(validation, (int, float)):
        supply, held_out = split_data(supply, validation)
        chosen_by: Score | None = held_out
    else:
        chosen_by = as_score(validation)
    if cache is not None:
        settings = replace(settings, view_seed=chosen[0] if settings.view_seed is None else settings.view_seed)
    together = parallel or SingleProcess()
    results, facts = [], None
    chosen_task = make_task(task, task_options) if task is not None else None
    name = method if isinstance(method, str) else type(make_method(method)).__name__.lower()
    with _shown(progress, name, together.main) as tell:
        for seed in chosen:
            job = TrainingJob(
                make_student(student, seed),
                source,
                with_curriculum(make_method(method, options), curriculum, curriculum_options),
                supply,
                replace(settings, seed=seed),
                name=name,
                evaluate=evaluate,
                task=chosen_task,
                validation=chosen_by,
            )
            if cache is not None:
                with together.main_first():
                    job.teacher, facts = through_cache(job, Path(cache), storage_format, tell)
            folder = Path(out) / f"seed-{seed}" if out is not None else None
            steps_done = None if tell is None else _named(tell, f"seed {seed}")
            results.append(train(job, folder, steps_done, check, tensorboard, together))
    queries = {box.version: box.queries for box in source.black_boxes} if source is not None else {}
    done = DistillationResult(results, chosen, Path(out) if out is not None else None, facts, queries)
    if out is not None and together.main:
        storage.write_json(Path(out) / "result.json", done.summary())
    return done


@contextlib.contextmanager
def _shown(progress: Progress | bool, name: str, main: bool) -> Iterator[Progress | None]:
    """What is told of each step: the caller's function, or a bar."""
    if callable(progress):
        yield progress
        return
    if not progress or not main:
        yield None
        return
    with progress_bar(name) as bar:

        def tell(what: str, done: int, of: int) -> None:
            bar.describe(f"{name} {what}")
            bar(done, of)

        yield tell


def _chosen_seeds(seeds: int | Sequence[int], first: int) -> list[int]:
    """The seeds of all runs.

    Raises:
        InputError: none, or one that is no whole number of 0 or more, or comes twice.
    """
    if isinstance(seeds, int) and not isinstance(seeds, bool) and 0 <= seeds <= MAX_COUNT:
        found = list(range(first, first + seeds))
    elif isinstance(seeds, Sequence) and not isinstance(seeds, str) or isinstance(seeds, range):
        found = [make_settings(None, {"seed": seed}).seed for seed in seeds]
    else:
        raise InputError(f"{seeds!r} says no seeds"[:200], where="seeds", remedy="how many, or which: seeds=[0, 1, 2]")
    if not found:
        raise InputError("no seed to run", where="seeds", remedy="at least 1")
    if len(set(found)) < len(found):
        raise InputError(f"a seed comes twice in {found}"[:200], where="seeds", remedy="give each seed once")
    return found


def _check_arguments(
    student: Any, options: Any, curriculum_options: Any, task_options: Any, cache: Any, out: Any, parallel: Any
) -> None:
    """Refuse arguments of another type than :func:`distill` takes."""
    wrong: list[tuple[str, Any, str]] = []
    if not isinstance(student, nn.Module) and (not callable(student) or isinstance(student, Teacher)):
        wrong.append(("student", student, "give a network, or a function that builds one"))
    for name, value in (("options", options), ("curriculum_options", curriculum_options), ("task_options", task_options)):
        if not isinstance(value, Mapping | None):
            wrong.append((name, value, "give a dict"))
    for name, value in (("cache", cache), ("out", out)):
        if not isinstance(value, str | Path | None):
            wrong.append((name, value, "give the path of a folder"))
    if not isinstance(parallel, SingleProcess | None):
        wrong.append(("parallel", parallel, "give parallel.processes(), in each process"))
    for name, value, remedy in wrong:
        raise InputError(f"{name} cannot be of type {type(value).__name__}", where=name, remedy=remedy)


def _named(progress: Callable[[str, int, int], None], name: str) -> Callable[[int, int], None]:
    return lambda done, steps: progress(name, done, steps)


def make_student(student: nn.Module | Callable[[], nn.Module], seed: int) -> nn.Module:
    """A copy of the network ``student``, or what the function gives with torch's generator seeded by ``seed``.

    Raises:
        InputError: the function gives no network.
    """
    if isinstance(student, nn.Module):
        return copy.deepcopy(student)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "student"))
        made = student()
    if not isinstance(made, nn.Module):
        raise InputError(f"the function gave {type(made).__name__}", where="student", remedy="it must return a network")
    return made


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
    own = own or job.sample_order().covering(1) is None  # which samples are shown depends on the run
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
    "with_curriculum",
]
