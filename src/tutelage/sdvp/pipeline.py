"""The SDVP pipeline of one module, in the order of its data: check the teacher, collect, label, train, interpolate, save.

Each step is a function from values to values. :mod:`tutelage.sdvp.compile` runs them one after the other for every module
of a task; :mod:`tutelage.sdvp.stages` runs them one at a time, from folder to folder.

Source: Wan et al., arXiv 2309.09809; the check of the teacher, the filters and the interpolation are our choice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tutelage import storage
from tutelage.distillation.parallel import SingleProcess
from tutelage.distillation.result import TrainingResult
from tutelage.distillation.trainer import train
from tutelage.errors import InputError
from tutelage.modules.visual_module import TrainingExamples, VisualModule
from tutelage.programs.trace import StepRecord
from tutelage.programs.types import Call, Module
from tutelage.programs.value_types import describe_value, has_type
from tutelage.sdvp.attribution import attribute_errors, teacher_oracle
from tutelage.sdvp.collect import call_of, collect
from tutelage.sdvp.final_answer.data import FinalAnswerGraphs, prepare
from tutelage.sdvp.final_answer.method import StepwiseWithFinalAnswer, make_final_answer_job
from tutelage.sdvp.label import apply_filters, calibrate, label, label_of
from tutelage.sdvp.objective import make_job
from tutelage.sdvp.options import SdvpOptions
from tutelage.sdvp.questions import accuracy, language_of
from tutelage.sdvp.replay import calls_with_related, sample_replay, unsupported_records
from tutelage.sdvp.replay_sampling import ReplaySampling
from tutelage.sdvp.tally import ProgramTally
from tutelage.sdvp.task import ModuleReport, SdvpTask
from tutelage.sdvp.teacher_check import Probe, TeacherCheck, check_in_programs, check_teacher
from tutelage.sdvp.teachers import ModuleTeacher
from tutelage.sdvp.weight_interpolation import InterpolationResult, interpolate_until_safe
from tutelage.seeds import derive, numpy_rng

REPORT = "taught.json"
"""The report of a module, beside its weights."""
Progress = Callable[[int, int], None]


def distill_module(
    modules: Mapping[str, Module],
    old: VisualModule,
    task: SdvpTask,
    name: str,
    options: SdvpOptions = SdvpOptions(),  # noqa: B008  (frozen)
    folder: Path | None = None,
    tally: ProgramTally | None = None,
) -> tuple[VisualModule, ModuleReport]:
    """Distil the teacher of the module ``name`` into it: the whole pipeline.

    Args:
        modules: All modules as they are now; the programs of the task call them.
        old: The module to teach, which stays as it is.
        task: Questions, teachers, probes and replayed questions.
        name: The module's name in ``modules`` and in the task.
        options: How it is done.
        folder: Where the module and its report are kept; a finished one is read back. None keeps nothing.
        tally: Counts the programs that are run to collect calls, if given.

    Returns:
        The module to go on with, which is ``old`` where nothing was learned, and the report.

    Raises:
        InputError: a label of the teacher is not of the module's type, or not finite; an option needs answers that are
            not there.
    """
    options = task.own_options(options)
    if folder is not None and (folder / REPORT).exists():
        return old.load_weights(folder), ModuleReport.from_json(storage.read_json(folder / REPORT))
    teacher, verdict = calibrate_and_check(task.teachers[name], old, task.probe.get(name, []))
    if not verdict.calls:
        verdict = check_in_programs(teacher, name, task.probe_questions, modules, options.dsl)
    records = collect_records(modules, task, name, options, tally) if verdict.accepted else []
    labelled = label_records(records, old, teacher, modules, task, options)
    kept = kept_records(labelled)
    new, report = old, ModuleReport(task.name, name, teacher.name, verdict, len(labelled), len(kept))
    if kept:
        replay = replay_examples(modules, old, task, name, teacher, kept, options) if options.replay else None
        final = final_answers(task, modules, name, options)
        trained, run = train_module(
            old, kept, replay, options, task.name, name, folder / "lesson" if folder is not None else None, final=final
        )
        safe = interpolate_weights(modules, old, trained, task, name, options)
        new = safe.module
        report = replace(
            report,
            replayed=len(replay) if replay else 0,
            share=safe.share,
            guard_before=safe.before if task.guarded else None,
            guard_after=safe.after if task.guarded else None,
            loss=run.history[-1]["terms"] if run.history else {},
            seconds=run.seconds,
        )
    if folder is not None:
        new.save(folder)
        storage.write_json(folder / REPORT, report)
    return new, report


def calibrate_and_check(teacher: ModuleTeacher, module: VisualModule, probe: Probe) -> tuple[ModuleTeacher, TeacherCheck]:
    """The teacher with calibrated confidence, and whether it beats the module on the probe."""
    calibrated = calibrate(teacher, probe)
    return calibrated, check_teacher(calibrated, module, probe)


def collect_records(
    modules: Mapping[str, Module], task: SdvpTask, name: str, options: SdvpOptions, tally: ProgramTally | None = None
) -> list[StepRecord]:
    """Every distinct call to the module ``name`` that the task's programs make."""
    forced = None if options.on_policy else task.teachers
    found = collect(task.questions, modules, options.dsl, teacher_forced=forced, stage=task.name, only=(name,), tally=tally)
    return found[name]


def label_records(
    records: Sequence[StepRecord],
    module: VisualModule,
    teacher: ModuleTeacher,
    modules: Mapping[str, Module],
    task: SdvpTask,
    options: SdvpOptions,
) -> list[StepRecord]:
    """The records that the teacher supports, with its labels and with their weights (0: a filter drops the record)."""
    labelled = label(records, module, teacher)
    check_labels(labelled, module, teacher)
    language = options.dsl or language_of(task.questions)
    labelled = apply_filters(labelled, options.filters, task.questions, modules, task.teachers, language)
    if options.attribution_floor is not None and labelled:
        answered, oracle = task.answered_questions(), teacher_oracle(task.teachers)
        errors = attribute_errors(answered, modules, oracle, language, seed=options.seed)
        labelled = errors.weight_records(labelled, options.attribution_floor)
    return labelled


def check_labels(labelled: Sequence[StepRecord], module: VisualModule, teacher: ModuleTeacher) -> None:
    """Refuse labels from which the module cannot learn.

    Raises:
        InputError: a label has not the type that the module returns, or a confidence or probability is not finite.
    """
    returns = module.signature.returns
    for record in labelled:
        found = label_of(record)
        numbers = [found.confidence, *(found.probabilities or {}).values()]
        if isinstance(found.value, float):
            numbers.append(found.value)
        if not all(map(math.isfinite, numbers)):
            fault = f"a label with a number that is not finite: {describe_value(found.value)}"
        elif found.probabilities is None and not has_type(found.value, returns):
            fault = f"a label that is no {returns}: {describe_value(found.value)}"
        else:
            continue
        raise InputError(
            f"the teacher {teacher.name} gives {module.name} {fault}",
            where=f"question {record.id}",
            remedy=f"let it answer with {returns}, with a dict of probabilities, or with None where it cannot tell",
        )


def kept_records(labelled: Sequence[StepRecord]) -> list[StepRecord]:
    """The records that have a label and a weight."""
    return [record for record in labelled if record.teacher is not None and record.weight > 0]


def replay_examples(
    modules: Mapping[str, Module],
    module: VisualModule,
    task: SdvpTask,
    name: str,
    teacher: ModuleTeacher,
    kept: Sequence[StepRecord],
    options: SdvpOptions,
) -> TrainingExamples | None:
    """Inputs for self-distillation: the calls of earlier tasks with their related calls, and those related calls of the
    new records that the teacher does not support."""
    earlier = collect(task.replay, modules, options.dsl, stage=task.name, only=(name,))[name]
    new = unsupported_records(kept, module, teacher)
    return sampled_examples(module, [calls_with_related(earlier, module), map(call_of, new)], options, task.name, name)


def sampled_examples(
    module: VisualModule, groups: Sequence[Iterable[Call]], options: SdvpOptions, stage: str, name: str
) -> TrainingExamples | None:
    """A sample of the replayed calls as inputs of the module; None where there is no call."""
    calls = sample_replay(groups, options.max_replay, numpy_rng(options.seed, "replay", stage, name))
    return module.training_examples(calls, None) if calls else None


def final_answers(task: SdvpTask, modules: Mapping[str, Module], name: str, options: SdvpOptions) -> FinalAnswerGraphs | None:
    """A sample of the task's answered questions as graphs that teach the module ``name``.

    None where the options do not use final answers, or no program of the sample calls the module.

    Raises:
        InputError: no question has an answer and a VisProg program, whose steps are known before it runs.
    """
    config = options.loss
    if not isinstance(config, StepwiseWithFinalAnswer.Config) or config.mu == 0:
        return None
    known = [question for question in task.answered_questions() if "visprog" in question.programs]
    if not known:
        remedy = "give both programs, or set mu to 0"
        raise InputError("final answers need VisProg programs", where=f"stage {task.name}", remedy=remedy)
    order = numpy_rng(options.seed, "final", task.name).permutation(len(known))[: config.questions]
    sample = [known[i] for i in sorted(order.tolist())]
    calling = [question for question in sample if f"{name}(" in question.programs["visprog"]]
    return prepare(calling, modules, [name]) if calling else None


def train_module(
    old: VisualModule,
    kept: Sequence[StepRecord],
    replay: TrainingExamples | None,
    options: SdvpOptions,
    stage: str,
    name: str,
    folder: Path | None = None,
    *,
    final: FinalAnswerGraphs | None = None,
    progress: Progress | None = None,
    parallel: SingleProcess | None = None,
) -> tuple[VisualModule, TrainingResult]:
    """Train a copy of the module on labelled records and replayed inputs, under the continual-learning strategy.

    Args:
        old: The module, which stays as it is.
        kept: Labelled records.
        replay: Inputs whose old outputs are kept, or None.
        options: Objective, strategy and training settings.
        stage: With ``name`` it names the job and its random stream.
        name: The module's name.
        folder: Where the job keeps checkpoints, so that a stopped one resumes; None keeps none.
        final: Questions whose final answers are a further term of the objective.
        progress: Called with the steps done and their total.
        parallel: The processes that share the job, each of which makes this call.
    """
    examples = old.training_examples([call_of(record) for record in kept], [label_of(record) for record in kept])
    settings = replace(options.settings, seed=derive(options.seed, stage, name) % 2**31)
    title, sampling = f"{stage} {name}", ReplaySampling(options.replay_ratio, options.augment_replay)
    if final is not None and isinstance(options.loss, StepwiseWithFinalAnswer.Config):
        job = make_final_answer_job(old, examples, replay, final, settings, options.loss, options.strategy, title, sampling)
    else:
        job = make_job(old, examples, replay, settings, options.loss, options.strategy, title, sampling)
    run = train(job, folder, progress, parallel=parallel)
    return old.with_network(options.strategy.finish(run.student)), run


def interpolate_weights(
    modules: Mapping[str, Module], old: VisualModule, new: VisualModule, task: SdvpTask, name: str, options: SdvpOptions
) -> InterpolationResult:
    """The new module, interpolated back towards the old one as far as the guarded questions require."""
    if options.max_drop is None or not task.guarded:
        return InterpolationResult(new, 1.0, 0.0, 0.0)

    def score(module: VisualModule) -> float:
        return accuracy(task.guarded, {**modules, name: module}, options.dsl)

    return interpolate_until_safe(old, new, score, options.max_drop)
