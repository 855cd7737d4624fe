"""A task learned from final answers alone: the fair rival of distillation, for its labels are the teachers' own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from tutelage import storage
from tutelage.modules.visual_module import VisualModule
from tutelage.programs.types import Module
from tutelage.sdvp.final_answer.method import StepwiseWithFinalAnswer, train_jointly
from tutelage.sdvp.options import SdvpOptions
from tutelage.sdvp.task import CompileResult, ModuleReport, SdvpTask
from tutelage.sdvp.teacher_check import TeacherCheck
from tutelage.seeds import derive, numpy_rng

BATCH = 32
"""Questions a step."""


def distill_from_answers(
    modules: Mapping[str, Module],
    task: SdvpTask,
    options: SdvpOptions = SdvpOptions(),  # noqa: B008  (frozen)
    folder: str | Path | None = None,
) -> CompileResult:
    """Teach every module that has a teacher in ``task``, together, by the final answers of its questions: no teacher is
    sample, nothing is replayed and nothing guarded. The sample of questions is that of ``options.loss``.

    Raises:
        InputError: no question has an answer, or none can be reached.
    """
    names = task.module_names(options)
    place = Path(folder) / task.name if folder is not None else None
    networks = {name: module for name in names if isinstance(module := modules[name], VisualModule)}
    if place is not None and (place / "taught.json").exists():
        distilled = {name: module.load_weights(place / name) for name, module in networks.items()}
        return CompileResult(
            {**modules, **distilled}, tuple(ModuleReport.from_json(row) for row in storage.read_json(place / "taught.json"))
        )
    known = task.answered_questions()
    most = options.loss.questions if isinstance(options.loss, StepwiseWithFinalAnswer.Config) else len(known)
    chosen = sorted(numpy_rng(options.seed, "final", task.name).permutation(len(known))[:most].tolist())
    seed = derive(options.seed, task.name, "final answers") % 2**31
    settings = replace(options.settings, seed=seed, batch_size=BATCH)
    sample = [known[i] for i in chosen]
    distilled = train_jointly(sample, modules, names, settings, place / "lesson" if place is not None else None)
    verdict = TeacherCheck(True, None, None, 0)
    reports = [ModuleReport(task.name, name, "final answers", verdict, len(sample), len(sample)) for name in distilled]
    if place is not None:
        for name, module in distilled.items():
            module.save(place / name)
        storage.write_json(place / "taught.json", reports)
    return CompileResult({**modules, **distilled}, tuple(reports))
