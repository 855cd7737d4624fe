"""The arms: frozen, replaced by the teachers, routed to confident teachers, naive tuning, SDVP; the gold oracle beside."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tutelage.datasets import easy_vqa
from tutelage.modules.visual_module import VisualModule
from tutelage.programs.trace import Trace
from tutelage.programs.types import Module
from tutelage.sdvp.baselines import RoutedModule
from tutelage.sdvp.collect import gold_forcing
from tutelage.sdvp.compile import distill_task
from tutelage.sdvp.options import SdvpOptions
from tutelage.sdvp.questions import Question, score_answer, solve_stream
from tutelage.sdvp.study import questions as study_questions
from tutelage.sdvp.study.module_metrics import measure
from tutelage.sdvp.study.setup import STAGES, StudySetup, StudySizes

INVALID_STATUSES = frozenset({"parse", "refused", "unknown_module", "undefined_var", "type"})
TRAINED_ARMS: Mapping[str, SdvpOptions] = {
    "naive": SdvpOptions("visprog", replay=False, max_drop=None),
    "sdvp": SdvpOptions("visprog"),
}
"""Naive tuning differs from SDVP in one thing: nothing holds old knowledge. Labels, steps and data are the same."""


SINGLE_CALL = "ANSWER0=VQA(image=IMAGE,question={question!r})\nFINAL_RESULT=RESULT(var=ANSWER0)"
"""The whole question in one call, as a VisProg program."""
ModulesOf = Callable[[str], Mapping[str, Module]]
"""From a task to the modules that answer it."""


class ArmScores:
    """The reported questions of a seed, and which of them modules answer rightly.

    Questions are drawn when they are asked, a task at a time: drawing takes less than a tenth of the time that answering
    does, and all of them at once would take as much memory as everything else.
    """

    def __init__(self, seed: int, sizes: StudySizes, dsl: str = "visprog"):
        self.seed, self.report, self.dsl = seed, sizes.report, dsl
        self.tasks = (*study_questions.CURRENT, *study_questions.PREVIOUS, *study_questions.UNSEEN)
        self.units: dict[str, dict[str, list[str]]] = {}

    def questions(self, task: str, max_questions: int | None = None, gold: bool = False) -> list[Question]:
        """The task's first ``max_questions`` questions; with ``gold`` the true values of their steps are known."""
        return study_questions.questions_of(
            task, self.seed, "report", self.report if max_questions is None else max_questions, (self.dsl,), gold
        )

    def right(self, task: str, modules: Mapping[str, Module], max_questions: int | None = None) -> list[int]:
        """1 or 0 for each of the task's first ``max_questions`` questions."""
        questions = self.questions(task, max_questions)
        return [int(score_answer(q, t.answer)) for q, t in zip(questions, solve_stream(questions, modules, self.dsl))]

    def evaluate(self, arms: Mapping[str, ModulesOf], oracle: Mapping[str, Module] | None = None) -> dict[str, dict[str, Any]]:
        """Each arm on every task: ``{"right": {task: [0/1 …]}, "health": {…}, "failures": {kind: count}}``.

        ``oracle`` are modules of which every step is given its true value, as the arm ``gold``, on tasks where it is known.
        Afterwards ``units`` holds the image and the type of every question, by task.
        """
        right: dict[str, dict[str, list[int]]] = {arm: {} for arm in (*arms, *(("gold",) if oracle else ()))}
        states: dict[str, list[ProgramHealth]] = {arm: [] for arm in arms}
        for task in self.tasks:
            questions = self.questions(task, gold=oracle is not None)
            self.units[task] = {"images": [q.image_id for q in questions], "types": [q.kind for q in questions]}
            for arm, modules_of in arms.items():
                state = ProgramHealth()
                traces = solve_stream(questions, modules_of(task), self.dsl)
                right[arm][task] = [int(score_answer(q, state.record(t).answer)) for q, t in zip(questions, traces)]
                states[arm].append(state)
            if oracle and task != study_questions.EASY:
                traces = solve_stream(questions, oracle, self.dsl, substitute=gold_forcing(questions, self.dsl))
                right["gold"][task] = [int(score_answer(q, t.answer)) for q, t in zip(questions, traces)]
        found: dict[str, dict[str, Any]] = {arm: {"right": right[arm]} for arm in right}
        for arm, seen in states.items():
            shares = [state.shares() for state in seen]
            found[arm]["health"] = {key: float(np.mean([one[key] for one in shares])) for key in shares[0]}
            found[arm]["failures"] = dict(sum((state.failed for state in seen), Counter[str]()))
        return found


class ProgramHealth:
    """How runs went: shares in 0..1 of the programs that pass the check, run to their end, fell back, and used
    unknown words; calls and milliseconds in modules a sample; and how many failed, by kind."""

    def __init__(self) -> None:
        self.rows: list[tuple[float, ...]] = []
        self.failed = Counter[str]()

    def record(self, trace: Trace) -> Trace:
        """Take note of a trace, and pass it on."""
        steps = trace.steps
        self.failed.update([trace.status] if trace.status != "ok" else [])
        self.rows.append(
            (
                trace.status not in INVALID_STATUSES,
                trace.status == "ok",
                trace.fallback,
                trace.out_of_vocabulary > 0,
                len(steps),
                sum(step.ms for step in steps),
            )
        )
        return trace

    def shares(self) -> dict[str, float]:
        """The mean of each."""
        names = ("valid", "executed", "fallback", "out_of_vocabulary", "calls_per_sample", "ms_per_sample")
        return dict(zip(names, np.mean(self.rows, axis=0).tolist(), strict=True))


def teacher_baseline(setup: StudySetup, task: str, replaced: bool) -> dict[str, Module]:
    """The modules with the task's teachers in their place, or before them; tasks without teachers get the last stage's."""
    modules = dict(setup.modules)
    for name, teacher in setup.teachers[task if task in STAGES else STAGES[-1]].items():
        modules[name] = RoutedModule(setup.modules[name], teacher, replaced=replaced)
    return modules


def run_baselines(setup: StudySetup, scores: ArmScores) -> dict[str, Any]:
    """Frozen, replaced and routed modules, and the gold oracle on the tasks whose steps are known."""
    arms: dict[str, ModulesOf] = {
        "frozen": lambda task: setup.modules,
        "replaced": lambda task: teacher_baseline(setup, task, True),
        "routed": lambda task: teacher_baseline(setup, task, False),
    }
    found = scores.evaluate(arms, oracle=setup.modules)
    found["frozen"]["modules"] = measure(setup, setup.modules)
    return found | single_call_baselines(setup, scores) | {"teacher": {"modules": measure(setup, setup.modules, teachers=True)}}


def single_call_baselines(setup: StudySetup, scores: ArmScores, distilled: Mapping[str, Module] | None = None) -> dict[str, Any]:
    """easy-VQA without a program to speak of: the whole question put to VQA in one call, and the commonest answer to each
    question of the train part, the image unseen. With ``distilled`` modules, their single call alone."""
    questions = scores.questions(study_questions.EASY)
    single = [replace(q, programs={"visprog": SINGLE_CALL.format(question=q.text)}) for q in questions]
    called = [int(score_answer(q, t.answer)) for q, t in zip(questions, solve_stream(single, distilled or setup.modules))]
    if distilled is not None:
        return {"single call, taught": {"right": {study_questions.EASY: called}}}
    prior = easy_vqa.QuestionPrior.fit(easy_vqa.load("train"))
    guessed = [int(score_answer(q, prior.answer(q.text))) for q in questions]
    return {"prior": {"right": {study_questions.EASY: guessed}}, "single call": {"right": {study_questions.EASY: called}}}


def run_training_arm(
    arm: str,
    setup: StudySetup,
    scores: ArmScores,
    folder: Path | None,
    stage_questions: int,
    report: Callable[[str], None] | None = None,
    options: SdvpOptions | None = None,
) -> tuple[dict[str, Any], dict[str, Module]]:
    """One learning arm through all stages: its results and its last modules.

    After each stage but the last, the first ``stage_questions`` of every task are answered, for the continual matrix.
    """
    options = replace(options or TRAINED_ARMS[arm], seed=setup.seed)
    modules: dict[str, Module] = dict(setup.modules)
    reports, matrix = [], []
    for stage in setup.stages:
        result = distill_task(modules, stage, options, folder, report)
        modules = result.modules
        reports += list(result.reports)
        if stage is not setup.stages[-1]:
            matrix.append({task: float(np.mean(scores.right(task, modules, stage_questions))) for task in scores.tasks})
    final = scores.evaluate({arm: lambda task: modules})[arm]
    networks = {name: m for name, m in modules.items() if isinstance(m, VisualModule)}
    return final | {"modules": measure(setup, networks), "lessons": reports, "matrix": matrix}, modules
