"""The verb: distil teachers, step by step, into the modules that programs call, and keep what the modules knew.

For each stage, module by module (LOC before what reads its crops): collect, label, accept, filter, training job, guard. After a
module is taught, inputs are collected again, for the later modules see other crops now.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from tutelage import storage
from tutelage.distillation.job import TrainingSettings
from tutelage.distillation.trainer import train
from tutelage.errors import InputError
from tutelage.modules.visual_module import TrainingExamples, VisualModule
from tutelage.programs.trace import StepRecord
from tutelage.programs.types import Call, Module
from tutelage.sdvp.attribution import attribute_errors, teacher_oracle
from tutelage.sdvp.collect import call_of, collect
from tutelage.sdvp.continual.base import NO_STRATEGY, ContinualStrategy
from tutelage.sdvp.final_answer.data import FinalAnswerGraphs, prepare
from tutelage.sdvp.final_answer.method import StepwiseWithFinalAnswer, make_final_answer_job
from tutelage.sdvp.label import Filters, apply_filters, calibrate, label, label_of
from tutelage.sdvp.objective import StepwiseDistillation, make_job
from tutelage.sdvp.questions import Question, score_answer, solve_stream
from tutelage.sdvp.teacher_check import Probe, TeacherCheck, check_teacher
from tutelage.sdvp.teachers import ModuleTeacher, from_callable
from tutelage.sdvp.weight_interpolation import InterpolationResult, interpolate_until_safe
from tutelage.seeds import derive, numpy_rng

Reporter = Callable[[str], None]


@dataclass(frozen=True)
class SdvpOptions:
    """How a stage is run; defaults ours.

    ``order``: modules taught first come first, others follow. ``replay``: off is naive tuning. ``on_policy``: later steps
    of the collection see the modules' own answers, else the teachers'. ``max_drop``: how far the guard score (0..1) may
    fall; None: no guard. ``max_replay``: replayed calls a training job. ``loss``: a
    ``StepwiseWithFinalAnswer.Config`` adds the final answers of
    the stage's questions, weighed by its mu. ``attribution_floor``: calls count by their blame for the stage's wrong answers, those
    without blame this much (0..1); None: all alike. Both need answers.
    """

    dsl: str = "visprog"
    order: tuple[str, ...] = ("LOC", "VERIFY", "VQA")
    modules: tuple[str, ...] = ()
    filters: Filters = Filters()
    loss: StepwiseDistillation.Config = StepwiseDistillation.Config()
    settings: TrainingSettings = TrainingSettings(steps=300, batch_size=64, lr=3e-3, warmup=30, clip=5.0, channels_last=True)
    strategy: ContinualStrategy = NO_STRATEGY
    replay: bool = True
    on_policy: bool = True
    attribution_floor: float | None = None
    max_drop: float | None = 0.005
    max_replay: int = 20_000
    seed: int = 0


@dataclass(frozen=True)
class SdvpTask:
    """One task to learn.

    ``questions`` need no answers; options that learn from final answers use those that are there. ``probe``: labelled
    calls by module, to accept and calibrate the teachers. ``replay``: questions of earlier tasks, without answers, whose
    inputs keep old knowledge. ``guarded``: labelled questions whose accuracy may not fall.
    """

    name: str
    questions: Sequence[Question]
    teachers: Mapping[str, ModuleTeacher]
    probe: Mapping[str, Probe] = field(default_factory=dict)
    replay: Sequence[Question] = ()
    guarded: Sequence[Question] = ()


@dataclass(frozen=True)
class ModuleReport:
    """What became of one module in one stage."""

    stage: str
    module: str
    teacher: str
    verdict: TeacherCheck
    records: int
    kept: int
    replayed: int = 0
    share: float = 0.0
    guard_before: float | None = None
    guard_after: float | None = None
    loss: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True)
class CompileResult:
    """The modules after all stages, and what happened on the way."""

    modules: dict[str, Module]
    reports: tuple[ModuleReport, ...]


def compile(  # noqa: A001  (the verb of the field)
    programs: Sequence[Question],
    modules: Mapping[str, Module],
    teachers: Mapping[str, ModuleTeacher | Callable[[list[Call]], Sequence[Any]]],
    *,
    probe: Mapping[str, Probe] | None = None,
    replay: Sequence[Question] = (),
    guarded: Sequence[Question] = (),
    options: SdvpOptions = SdvpOptions(),  # noqa: B008  (frozen)
    folder: str | Path | None = None,
    report: Reporter | None = None,
) -> CompileResult:
    """Distil ``teachers`` into the modules that ``programs`` call.

    Args:
        programs: questions with programs and images; answers are not needed.
        modules: by name; those with a network and a teacher are taught, none is changed in place.
        teachers: by module name: a StepTeacher, or any callable from calls to answers.
        probe: labelled calls by module; without them a teacher is accepted unseen.
        replay: questions of earlier tasks; without them only the sibling calls of the new inputs are kept.
        guarded: labelled questions whose accuracy may not fall.
        folder: where the taught modules are kept; the same call on the same folder goes on where it was stopped.
        say: called with a line of text as each part begins.

    Raises:
        InputError: no programs, or a teacher for a module that is not there or cannot be taught.
    """
    if not programs:
        raise InputError("no programs to learn from", where="programs", remedy="give at least one question with a program")
    for name in teachers:
        if not isinstance(modules.get(name), VisualModule):
            raise InputError(f"no trainable module {name!r}", where="teachers", remedy=f"modules: {', '.join(modules)}")
    ready = {name: t if isinstance(t, ModuleTeacher) else from_callable(t) for name, t in teachers.items()}
    stage = SdvpTask("task", programs, ready, probe or {}, replay, guarded)
    return distill_task(modules, stage, options, folder, report)


def distill_task(
    modules: Mapping[str, Module],
    stage: SdvpTask,
    options: SdvpOptions = SdvpOptions(),  # noqa: B008  (frozen)
    folder: str | Path | None = None,
    report: Reporter | None = None,
) -> CompileResult:
    """Teach every module of ``stage`` that has a teacher, in order."""
    if folder is not None:
        fingerprint = storage.fingerprint([[q.id, sorted(q.programs.items())] for q in (*stage.questions, *stage.replay)])
        versions = {name: module.version for name, module in modules.items()}
        taught_by = {name: [teacher.version, teacher.temperature] for name, teacher in stage.teachers.items()}
        storage.RunFolder(
            Path(folder) / stage.name, {"options": repr(options), "modules": versions, "teachers": taught_by, "asked": fingerprint}
        )
    current, reports = dict(modules), []
    start = {name: module for name, module in modules.items() if isinstance(module, VisualModule)}
    names = sorted(stage.teachers, key=lambda name: (options.order.index(name) if name in options.order else 99, name))
    for name in names:
        if options.modules and name not in options.modules:
            continue
        if report:
            report(f"{stage.name}: teaching {name}")
        place = Path(folder) / stage.name / name if folder is not None else None
        module, own_report = _distill_module(current, start[name], stage, name, options, place)
        current[name] = module
        reports.append(own_report)
    if folder is not None:
        storage.remove_temporary_files(Path(folder) / stage.name)
    return CompileResult(current, tuple(reports))


def _distill_module(
    modules: Mapping[str, Module], old: VisualModule, stage: SdvpTask, name: str, options: SdvpOptions, folder: Path | None
) -> tuple[VisualModule, ModuleReport]:
    """One module of one stage, start to end."""
    if folder is not None and (folder / "taught.json").exists():
        found = storage.read_json(folder / "taught.json")
        verdict = TeacherCheck(**found.pop("verdict"))
        return old.load_weights(folder), ModuleReport(verdict=verdict, **found)
    probe = stage.probe.get(name, [])
    teacher = calibrate(stage.teachers[name], probe)
    verdict = check_teacher(teacher, old, probe)
    forced = None if options.on_policy else stage.teachers
    records: list[StepRecord] = []
    if verdict.accepted:
        records = collect(stage.questions, modules, options.dsl, teacher_forced=forced, stage=stage.name, only=(name,))[name]
    labelled = label(records, old, teacher)
    labelled = apply_filters(labelled, options.filters, stage.questions, modules, stage.teachers, options.dsl)
    if options.attribution_floor is not None and labelled:
        found = attribute_errors(with_answers(stage), modules, teacher_oracle(stage.teachers), options.dsl, seed=options.seed)
        labelled = found.weight_records(labelled, options.attribution_floor)
    kept = [record for record in labelled if record.weight > 0]
    report = ModuleReport(stage.name, name, teacher.name, verdict, len(labelled), len(kept))
    if kept:
        old, report = _run_job(modules, old, stage, teacher, kept, options, folder, report)
    if folder is not None:
        old.save(folder)
        storage.write_json(folder / "taught.json", report)
    return old, report


def _run_job(
    modules: Mapping[str, Module],
    old: VisualModule,
    stage: SdvpTask,
    teacher: ModuleTeacher,
    accepted: Sequence[StepRecord],
    options: SdvpOptions,
    folder: Path | None,
    report: ModuleReport,
) -> tuple[VisualModule, ModuleReport]:
    task = old.training_examples([call_of(record) for record in accepted], [label_of(record) for record in accepted])
    replay = (
        replay_calls(modules, old, stage, teacher, [call_of(record) for record in accepted], options) if options.replay else None
    )
    settings = replace(options.settings, seed=derive(options.seed, stage.name, old.name) % 2**31)
    final = final_answers(stage, modules, old.name, options)
    title = f"{stage.name} {old.name}"
    if final is not None and isinstance(options.loss, StepwiseWithFinalAnswer.Config):
        given = make_final_answer_job(old, task, replay, final, settings, options.loss, options.strategy, title)
    else:
        given = make_job(old, task, replay, settings, options.loss, options.strategy, title)
    result = train(given, folder / "lesson" if folder is not None else None)
    new = old.with_network(options.strategy.finish(result.student))
    guarded = InterpolationResult(new, 1.0, 0.0, 0.0)
    if options.max_drop is not None and stage.guarded:
        guarded = interpolate_until_safe(
            old, new, lambda m: accuracy(stage.guarded, {**modules, old.name: m}, options.dsl), options.max_drop
        )
    last = result.history[-1]["terms"] if result.history else {}
    return guarded.module, replace(
        report,
        replayed=len(replay) if replay else 0,
        share=guarded.share,
        guard_before=guarded.before if stage.guarded else None,
        guard_after=guarded.after if stage.guarded else None,
        loss=last,
        seconds=result.seconds,
    )


def with_answers(stage: SdvpTask) -> list[Question]:
    """The stage's questions whose answer is known.

    Raises:
        InputError: there are none.
    """
    found = [question for question in stage.questions if question.answer is not None]
    if not found:
        raise InputError("no question has an answer", where=f"stage {stage.name}", remedy="give answers, or leave the option off")
    return found


def final_answers(stage: SdvpTask, modules: Mapping[str, Module], name: str, options: SdvpOptions) -> FinalAnswerGraphs | None:
    """The stage's answered questions as graphs to teach the module ``name``, a sample of as many as the options say; None
    where final answers do not count, or none of the sample's programs calls the module.

    Raises:
        InputError: no question has an answer and a VisProg program, whose steps are known before it runs.
    """
    c = options.loss
    if not isinstance(c, StepwiseWithFinalAnswer.Config) or c.mu == 0:
        return None
    known = [question for question in with_answers(stage) if "visprog" in question.programs]
    if not known:
        raise InputError(
            "final answers need VisProg programs", where=f"stage {stage.name}", remedy="give both programs, or set mu to 0"
        )
    order = numpy_rng(options.seed, "final", stage.name).permutation(len(known))[: c.questions]
    calls = f"{name}("
    with_call = [known[i] for i in sorted(order.tolist()) if calls in known[i].programs["visprog"]]
    return prepare(with_call, modules, [name]) if with_call else None


def replay_calls(
    modules: Mapping[str, Module],
    module: VisualModule,
    stage: SdvpTask,
    teacher: ModuleTeacher,
    new: Sequence[Call],
    options: SdvpOptions,
) -> TrainingExamples | None:
    """What self-distillation keeps: calls of earlier tasks with their siblings, and those siblings of the new calls that
    the teacher does not speak to. No labels are used."""
    distinct: dict[object, Call] = {}

    def add(call: Call) -> None:
        distinct.setdefault((tuple(sorted((k, getattr(v, "key", v)) for k, v in call.args.items())),), call)

    for record in collect(stage.replay, modules, options.dsl, stage=stage.name, only=(module.name,))[module.name]:
        add(call_of(record))
        for call in module.related_calls(call_of(record)):
            add(call)
    known = len(distinct)
    for call in new:
        for sibling in module.related_calls(call):
            if not teacher.supports(sibling):
                add(sibling)
    calls = list(distinct.values())
    # earlier tasks and new inputs get equal room
    rng = numpy_rng(options.seed, "replay", stage.name, module.name)
    halves = [calls[:known], calls[known:]]
    room = options.max_replay if not halves[0] or not halves[1] else options.max_replay // 2
    chosen = [call for half in halves for call in _sample_by_image(half, room, rng)]
    return module.training_examples(chosen, None) if chosen else None


def _sample_by_image(calls: list[Call], count: int, rng: np.random.Generator) -> list[Call]:
    """At most ``count`` calls, whole images at a time, in their order."""
    if len(calls) <= count:
        return calls
    keys = list(dict.fromkeys(getattr(call.args.get("image"), "key", None) for call in calls))
    share = count / len(calls)
    taken = {keys[i] for i in rng.permutation(len(keys))[: max(1, int(len(keys) * share))]}
    return [call for call in calls if getattr(call.args.get("image"), "key", None) in taken]


def accuracy(questions: Sequence[Question], modules: Mapping[str, Module], dsl: str = "visprog") -> float:
    """The share of the questions that their programs answer rightly, in 0..1."""
    traces = solve_stream(questions, modules, dsl)
    return sum(score_answer(q, t.answer) for q, t in zip(questions, traces, strict=True)) / max(1, len(questions))
