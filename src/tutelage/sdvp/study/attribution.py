"""Blame for the modules of a study: frozen, or as a learning arm left them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from tutelage import storage
from tutelage.errors import InputError
from tutelage.modules.symbolic import symbolic_modules
from tutelage.modules.visual_module import VisualModule
from tutelage.programs.types import Module
from tutelage.sdvp import toy_modules
from tutelage.sdvp.attribution.attribute import ErrorAttribution, attribute_errors
from tutelage.sdvp.attribution.sources import gold_oracle, teacher_oracle
from tutelage.sdvp.study import questions as study_questions
from tutelage.sdvp.study.run import module_store
from tutelage.sdvp.study.setup import SMOKE, STAGES, prepare

TASKS = ("b_gqa", "b_nlvr")
"""The study's tasks whose steps have true values."""


def attribute_run(
    run: str | Path,
    *,
    arm: str = "frozen",
    seed: int | None = None,
    tasks: Sequence[str] = TASKS,
    count: int = 1000,
    dsl: str = "visprog",
    source: Literal["gold", "teacher"] = "gold",
    split: str = "select",
) -> ErrorAttribution:
    """Attribute errors to the steps of a study's modules: what ``tutelage sdvp attribute RUN`` does.

    Args:
        run: the study's folder.
        arm: ``frozen``, or a learning arm (``sdvp``, ``naive``): its modules after the last stage.
        seed: one of the study's; None: its first.
        tasks: names of tasks, ``count`` questions of each; easy-VQA has no true step values, only teachers.
        source: what answers a step in its module's place.
        split: the questions' split; the report split is for figures, not for decisions.

    Raises:
        InputError: not a study's folder, or one without this seed or arm.
    """
    plan = plan_of(run)
    seed = seed_of(run, seed)
    store, quick = module_store(), bool(plan.get("quick"))
    own_folder = Path(run) / "lessons" / f"seed-{seed}-{arm}"
    if arm != "frozen" and not own_folder.is_dir():
        arms = sorted(found.name.split("-", 2)[2] for found in own_folder.parent.glob(f"seed-{seed}-*"))
        raise InputError(f"the study has no arm {arm!r}", where=run, remedy=f"choose frozen {' '.join(arms)}")
    modules: dict[str, Module] = {**symbolic_modules(), **toy_modules.generalists(seed, store, quick)}
    for folder in (own_folder / stage / name for stage in STAGES for name in list(modules)):
        module = modules[folder.name]
        if isinstance(module, VisualModule) and (folder / "config.json").exists():
            modules[folder.name] = module.load_weights(folder)
    answers = gold_oracle(dsl)
    if source == "teacher":
        taught_by = prepare(seed, SMOKE, store, quick).teachers
        answers = teacher_oracle(lambda task: taught_by.get(task, {}))
    questions = [q for task in tasks for q in study_questions.questions_of(task, seed, split, count, (dsl,))]
    return attribute_errors(questions, modules, answers, dsl, seed=seed)


def plan_of(run: str | Path) -> dict[str, Any]:
    """The plan of the study in the folder ``run``.

    Raises:
        InputError: it is not a study's folder.
    """
    head = storage.read_json(Path(run) / "run.json")
    plan = head.get("settings", {}).get("plan") if isinstance(head, dict) else None
    if not isinstance(plan, dict) or not plan.get("seeds"):
        raise InputError("not the folder of a study", where=run, remedy="give the folder of `tutelage sdvp study --out`")
    return plan


def seed_of(run: str | Path, seed: int | None = None) -> int:
    """``seed``, or the study's first.

    Raises:
        InputError: it is not a study's folder, or the study has no such seed.
    """
    seeds = plan_of(run)["seeds"]
    if seed is not None and seed not in seeds:
        raise InputError(f"the study has no seed {seed}", where=run, remedy=f"its seeds are {seeds}")
    return int(seeds[0] if seed is None else seed)
