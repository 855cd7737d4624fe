"""The verb: distil teachers, step by step, into the modules that programs call, and keep what the modules knew.

The modules of a task are taught one by one, LOC before what reads its crops. Each runs through the whole
:mod:`~tutelage.sdvp.pipeline`; after a module is taught, inputs are collected again, for later modules see other crops now.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tutelage import storage
from tutelage.errors import InputError
from tutelage.modules.visual_module import VisualModule
from tutelage.programs.types import Call, Module
from tutelage.sdvp.options import SdvpOptions
from tutelage.sdvp.pipeline import distill_module
from tutelage.sdvp.questions import Question
from tutelage.sdvp.run_key import run_settings
from tutelage.sdvp.tally import ProgramTally, SdvpWarning
from tutelage.sdvp.task import CompileResult, SdvpTask
from tutelage.sdvp.teacher_check import Probe, answer_probe, split_off_probe, warn_of_unseen
from tutelage.sdvp.teachers import ModuleTeacher, from_callable

Reporter = Callable[[str], None]


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
        programs: questions with programs and images; answers are not needed, and used to check the teachers where they
            are there.
        modules: by name; those with a network and a teacher are taught, none is changed in place.
        teachers: by module name: a StepTeacher, or any callable from calls to answers.
        probe: labelled calls by module. For a module without, answered questions of a fifth of the images are split off and
            checked instead; where too few answers are known, its teacher is accepted unseen.
        replay: questions of earlier tasks; without them only the sibling calls of the new inputs are kept.
        guarded: labelled questions whose accuracy may not fall.
        folder: where the taught modules are kept; the same call on the same folder goes on where it was stopped.
        report: called with a line of text as each module begins.

    Raises:
        InputError: no programs, a teacher for a module that is not there or cannot be taught, or nothing was learned
            although the teachers were accepted: the message counts failed programs by kind, with an example of each.

    Warns:
        SdvpWarning: one of several modules learned nothing, a teacher was refused or accepted unseen, or most programs
            failed.
    """
    if not programs:
        raise InputError("no programs to learn from", where="programs", remedy="give at least one question with a program")
    if not teachers:
        raise InputError("no teachers to learn from", where="teachers", remedy="give at least one, by the name of its module")
    for name in teachers:
        if not isinstance(modules.get(name), VisualModule):
            raise InputError(f"no trainable module {name!r}", where="teachers", remedy=f"modules: {', '.join(modules)}")
    ready = {name: t if isinstance(t, ModuleTeacher) else from_callable(t) for name, t in teachers.items()}
    task = _with_probe(SdvpTask("task", programs, ready, probe or {}, replay, guarded), modules, options)
    result = distill_task(modules, task, options, folder, report)
    _warn_or_refuse(result, options)
    return result


def _with_probe(task: SdvpTask, modules: Mapping[str, Module], options: SdvpOptions) -> SdvpTask:
    """The task with known answers as a probe of the teachers that have none, split off by image."""
    missing = [name for name in task.module_names(options) if not task.probe.get(name)]
    if not missing:
        return task
    questions, held = split_off_probe(task.questions, options.seed)
    if not held:
        return task
    found = answer_probe(held, modules, options.for_questions(task.questions).dsl)
    probe = {**task.probe, **{name: found[name] for name in missing if name in found}}
    return replace(task, questions=questions, probe=probe, probe_questions=held)


def _warn_or_refuse(result: CompileResult, options: SdvpOptions) -> None:
    """Refuse a result without anything learned; warn of modules that learned nothing, and of programs that failed.

    A teacher that does not beat its module is a finding, not a fault of the call: that alone is warned of.
    """
    reasons = reasons_untaught(result, options)
    text = "\n".join(f"{name} learned nothing: {reason}" for name, reason in reasons.items())
    if len(reasons) == len(result.reports) and any(row.verdict.accepted for row in result.reports):
        remedy = "correct the programs, the teachers or the filters, and use a new folder"
        raise InputError(text, where="sdvp.compile", remedy=remedy)
    failing = [f"collecting for {name}: {run}" for name, run in result.runs.items() if run.mostly_failed and name not in reasons]
    for message in (text, *failing[:1]):
        if message:
            warnings.warn(message, SdvpWarning, stacklevel=3)
    warn_of_unseen({row.module: row.teacher for row in result.reports if row.verdict.accepted and not row.verdict.calls}, 3)


def distill_task(
    modules: Mapping[str, Module],
    task: SdvpTask,
    options: SdvpOptions = SdvpOptions(),  # noqa: B008  (frozen)
    folder: str | Path | None = None,
    report: Reporter | None = None,
) -> CompileResult:
    """Teach every module of ``task`` that has a teacher, in order.

    Args:
        modules: By name; none is changed in place.
        task: Questions, teachers, probes and replayed questions.
        options: How it is done.
        folder: Where the modules are kept; the same call on the same folder goes on where it was stopped.
        report: Called with a line of text as each module begins.

    Raises:
        InputError: as :func:`~tutelage.sdvp.pipeline.distill_module`.
        StaleError: the folder holds other work.
    """
    options = options.for_questions(task.questions)
    if folder is not None:
        storage.RunFolder(Path(folder) / task.name, run_settings(task, modules, options))
    current, reports, runs = dict(modules), [], dict[str, ProgramTally]()
    start = {name: module for name, module in modules.items() if isinstance(module, VisualModule)}
    for name in task.module_names(options):
        if report:
            report(f"{task.name}: teaching {name}")
        place = Path(folder) / task.name / name if folder is not None else None
        tally = ProgramTally()
        current[name], own_report = distill_module(current, start[name], task, name, options, place, tally)
        reports.append(own_report)
        if tally.programs:
            runs[name] = tally
    if folder is not None:
        storage.remove_temporary_files(Path(folder) / task.name)
    return CompileResult(current, tuple(reports), runs)


def reasons_untaught(result: CompileResult, options: SdvpOptions) -> dict[str, str]:
    """By module, why it learned nothing, where it did not."""
    reasons = {}
    for row in result.reports:
        run = result.runs.get(row.module)
        if row.kept:
            continue
        if not row.verdict.accepted:
            reasons[row.module] = (
                f"the teacher {row.teacher} is right on {row.verdict.teacher:.0%} of the {row.verdict.calls} probe calls "
                f"that it supports, the module itself on {row.verdict.student:.0%}"
            )
        elif run is not None and not run.calls:
            reasons[row.module] = f"no program calls it; {run}"
        elif not row.records:
            count = f"{run.calls} " if run is not None else ""
            reasons[row.module] = f"the teacher {row.teacher} has no answer to any of the {count}collected calls"
        else:
            least = options.filters.min_confidence
            reasons[row.module] = f"the filters drop all {row.records} labels (confidence of at least {least:g} is asked)"
    return reasons
