"""The verb: distil teachers, step by step, into the modules that programs call, and keep what the modules knew.

The modules of a task are taught one by one, LOC before what reads its crops. Each runs through the whole
:mod:`~tutelage.sdvp.pipeline`; after a module is taught, inputs are collected again, for later modules see other crops now.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tutelage import storage
from tutelage.errors import InputError
from tutelage.modules.visual_module import VisualModule
from tutelage.programs.types import Call, Module
from tutelage.sdvp.options import SdvpOptions
from tutelage.sdvp.pipeline import distill_module
from tutelage.sdvp.questions import Question
from tutelage.sdvp.task import CompileResult, SdvpTask
from tutelage.sdvp.teacher_check import Probe
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
        programs: questions with programs and images; answers are not needed.
        modules: by name; those with a network and a teacher are taught, none is changed in place.
        teachers: by module name: a StepTeacher, or any callable from calls to answers.
        probe: labelled calls by module; without them a teacher is accepted unseen.
        replay: questions of earlier tasks; without them only the sibling calls of the new inputs are kept.
        guarded: labelled questions whose accuracy may not fall.
        folder: where the taught modules are kept; the same call on the same folder goes on where it was stopped.
        report: called with a line of text as each module begins.

    Raises:
        InputError: no programs, or a teacher for a module that is not there or cannot be taught.
    """
    if not programs:
        raise InputError("no programs to learn from", where="programs", remedy="give at least one question with a program")
    for name in teachers:
        if not isinstance(modules.get(name), VisualModule):
            raise InputError(f"no trainable module {name!r}", where="teachers", remedy=f"modules: {', '.join(modules)}")
    ready = {name: t if isinstance(t, ModuleTeacher) else from_callable(t) for name, t in teachers.items()}
    task = SdvpTask("task", programs, ready, probe or {}, replay, guarded)
    return distill_task(modules, task, options, folder, report)


def distill_task(
    modules: Mapping[str, Module],
    task: SdvpTask,
    options: SdvpOptions = SdvpOptions(),  # noqa: B008  (frozen)
    folder: str | Path | None = None,
    report: Reporter | None = None,
) -> CompileResult:
    """Teach every module of ``task`` that has a teacher, in order."""
    if folder is not None:
        asked = storage.fingerprint([[q.id, sorted(q.programs.items())] for q in (*task.questions, *task.replay)])
        versions = {name: module.version for name, module in modules.items()}
        taught_by = {name: [teacher.version, teacher.temperature] for name, teacher in task.teachers.items()}
        storage.RunFolder(
            Path(folder) / task.name, {"options": repr(options), "modules": versions, "teachers": taught_by, "asked": asked}
        )
    current, reports = dict(modules), []
    start = {name: module for name, module in modules.items() if isinstance(module, VisualModule)}
    for name in task.module_names(options):
        if report:
            report(f"{task.name}: teaching {name}")
        place = Path(folder) / task.name / name if folder is not None else None
        current[name], taught = distill_module(current, start[name], task, name, options, place)
        reports.append(taught)
    if folder is not None:
        storage.remove_temporary_files(Path(folder) / task.name)
    return CompileResult(current, tuple(reports))
