"""What all arms of one seed share: modules, stages with their teachers, and the reported questions.

Teachers were trained on target labels; every table says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from tutelage import storage
from tutelage.modules.symbolic import symbolic_modules
from tutelage.modules.vqa import Vqa
from tutelage.programs.types import Module
from tutelage.sdvp import toy_modules
from tutelage.sdvp.label import calibrate
from tutelage.sdvp.study import questions as study_questions
from tutelage.sdvp.task import SdvpTask
from tutelage.sdvp.teacher_check import Probe, gold_probe
from tutelage.sdvp.teachers import ModuleTeacher, teacher_from_module, verify_teacher_from_vqa

STAGES = ("easy_vqa", "b_gqa", "b_nlvr")
STEPS_FACTOR: Mapping[str, float] = MappingProxyType({"easy_vqa": 5.0})
"""How many times as long as the others a stage is trained: easy-VQA's shapes are new to the modules, the others' skills are
known to them in another look. Chosen on the selection seeds."""


@dataclass(frozen=True)
class StudySizes:
    """How much of everything: questions reported a task (and after each stage but
    the last), collected a stage, replayed, probed and guarded."""

    report: int = 1500
    stage_report: int = 600
    collect: int = 4000
    replay: int = 1000
    probe: int = 600
    guarded: int = 200


SMOKE = StudySizes(report=60, stage_report=20, collect=120, replay=40, probe=60, guarded=20)


@dataclass
class StudySetup:
    """What all arms of one seed share."""

    seed: int
    modules: dict[str, Module]
    stages: list[SdvpTask]
    teachers: dict[str, dict[str, ModuleTeacher]] = field(default_factory=dict)


def prepare(
    seed: int,
    sizes: StudySizes,
    store: storage.ContentStore,
    quick: bool = False,
    dsls: Sequence[str] = ("visprog",),
    answers: bool = False,
) -> StudySetup:
    """Generalists and specialists of a seed (from the store where they were trained before), and its stages.

    ``dsls``: the languages that collected, replayed and guarded questions have programs in. ``answers``: the collected
    questions keep their final answers, for what learns from these.
    """
    modules: dict[str, Module] = {**symbolic_modules(), **toy_modules.generalists(seed, store, quick)}
    color, easy, loc = (toy_modules.load_or_train(seed, name, store, quick) for name in ("color", "easy", "loc"))
    assert isinstance(color, Vqa)
    taught_by: dict[str, dict[str, ModuleTeacher]] = {
        "easy_vqa": {"VQA": replace(teacher_from_module(easy), label_related_calls=True)},
        "b_gqa": {"LOC": teacher_from_module(loc), "VERIFY": verify_teacher_from_vqa(color), "VQA": teacher_from_module(color)},
    }
    taught_by["b_nlvr"] = taught_by["b_gqa"]
    kept = (*study_questions.PREVIOUS, *study_questions.GENERIC)
    previous = [q for task in kept for q in study_questions.questions_of(task, seed, "replay", sizes.replay, dsls, gold=False)]
    guarded = [
        q
        for task in study_questions.PREVIOUS
        for q in study_questions.questions_of(task, seed, "select", sizes.guarded, dsls, gold=False)
    ]
    stages, earlier, both = [], previous, tuple(dict.fromkeys(("visprog", *dsls)))  # probes come from VisProg programs
    for name in STAGES:
        # pairs bring two images a question; half as many questions of easy-VQA meet every one of its images
        count = sizes.collect if name == "b_gqa" else sizes.collect // 2
        collected = study_questions.questions_of(name, seed, "collect", count, dsls, gold=False)
        select = study_questions.questions_of(name, seed, "select", sizes.probe, both)
        known: dict[str, Probe] = (
            {"VQA": study_questions.easy_probe(select)} if name == study_questions.EASY else gold_probe(select, modules)
        )
        unlabelled = collected if answers else [replace(q, answer=None) for q in collected]
        teachers = {module: calibrate(t, known.get(module, [])) for module, t in taught_by[name].items()}
        taught_by[name] = teachers
        stages.append(SdvpTask(name, unlabelled, teachers, known, earlier, guarded, steps_factor=STEPS_FACTOR.get(name, 1.0)))
        earlier = [*earlier, *unlabelled[:: max(1, len(unlabelled) // sizes.replay)]]
        guarded = [*guarded, *select[: sizes.guarded]]
    return StudySetup(seed, modules, stages, taught_by)
