"""The arms: frozen, replaced by the teachers, routed to confident teachers, naive tuning, SDVP; the gold oracle beside."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tutelage.modules.visual_module import VisualModule
from tutelage.programs.language import Module
from tutelage.programs.trace import Trace
from tutelage.sdvp import benchmark
from tutelage.sdvp.collect import gold_forcing
from tutelage.sdvp.compile import Options, run_stage
from tutelage.sdvp.questions import Question, correct, solve
from tutelage.sdvp.rivals import Routed
from tutelage.sdvp.study.measures import measure
from tutelage.sdvp.study.setting import STAGES, Setting, Sizes

REFUSED = frozenset({"parse", "refused", "unknown_module", "undefined_var", "type"})
TAUGHT_ARMS: Mapping[str, Options] = {"naive": Options(replay=False, allowed=None), "sdvp": Options()}
"""Naive tuning differs from SDVP in one thing: nothing holds old knowledge. Labels, steps and data are the same."""


class Scores:
    """The reported questions of a seed, and which of them a set of modules answers rightly."""

    def __init__(self, seed: int, sizes: Sizes, dsl: str = "visprog"):
        self.dsl = dsl
        tasks = (*benchmark.CURRENT, *benchmark.PREVIOUS, *benchmark.UNSEEN)
        self.questions = {task: benchmark.questions_of(task, seed, "report", sizes.report, (dsl,)) for task in tasks}

    def traces(self, task: str, modules: Mapping[str, Module], gold: bool = False, most: int | None = None) -> list[Trace]:
        """The runs of a task's questions; with ``gold`` every step is given its true value."""
        asked = self.questions[task][:most]
        return solve(asked, modules, self.dsl, substitute=gold_forcing(asked, self.dsl) if gold else None)

    def right(self, task: str, modules: Mapping[str, Module], most: int | None = None, gold: bool = False) -> list[int]:
        """1 or 0 for each of the task's first ``most`` questions."""
        traces = self.traces(task, modules, gold, most)
        return [int(correct(q, t.answer)) for q, t in zip(self.questions[task], traces, strict=False)]

    def of(self, modules_of: Callable[[str], Mapping[str, Module]]) -> dict[str, Any]:
        """Every task: ``{"right": {task: [0/1 …]}, "health": {…}}``; ``modules_of`` names the modules for a task."""
        right: dict[str, list[int]] = {}
        states = []
        for task, asked in self.questions.items():
            found = self.traces(task, modules_of(task))
            right[task] = [int(correct(q, t.answer)) for q, t in zip(asked, found, strict=True)]
            states.append(health(found))
        return {"right": right, "health": {key: float(np.mean([state[key] for state in states])) for key in states[0]}}


def health(traces: Sequence[Trace]) -> dict[str, float]:
    """Shares in 0..1: programs that pass the check, that run to their end, that fell back, that used unknown words; and
    calls and milliseconds in modules a sample."""
    return {
        "valid": float(np.mean([t.status not in REFUSED for t in traces])),
        "executed": float(np.mean([t.status == "ok" for t in traces])),
        "fallback": float(np.mean([t.fallback for t in traces])),
        "out_of_vocabulary": float(np.mean([t.out_of_vocabulary > 0 for t in traces])),
        "calls_per_sample": float(np.mean([len(t.steps) for t in traces])),
        "ms_per_sample": float(np.mean([sum(step.ms for step in t.steps) for t in traces])),
    }


def rival(setting: Setting, task: str, replaced: bool) -> dict[str, Module]:
    """The modules with the task's teachers in their place, or before them; tasks without teachers get the last stage's."""
    modules = dict(setting.modules)
    for name, teacher in setting.teachers[task if task in STAGES else STAGES[-1]].items():
        modules[name] = Routed(setting.modules[name], teacher, replaced=replaced)
    return modules


def untaught(setting: Setting, scores: Scores) -> dict[str, Any]:
    """Frozen, replaced and routed modules, and the gold oracle on the tasks whose steps are known."""
    frozen = scores.of(lambda task: setting.modules)
    gold_tasks = [task for task in scores.questions if task != benchmark.EASY]
    return {
        "frozen": frozen | {"modules": measure(setting, setting.modules)},
        "replaced": scores.of(lambda task: rival(setting, task, True)),
        "routed": scores.of(lambda task: rival(setting, task, False)),
        "gold": {"right": {task: scores.right(task, setting.modules, gold=True) for task in gold_tasks}},
        "teacher": {"modules": measure(setting, setting.modules, teachers=True)},
    }


def taught(
    arm: str,
    setting: Setting,
    scores: Scores,
    folder: Path | None,
    stage_questions: int,
    say: Callable[[str], None] | None = None,
    options: Options | None = None,
) -> tuple[dict[str, Any], dict[str, Module]]:
    """One learning arm through all stages: its results and its last modules.

    After each stage but the last, the first ``stage_questions`` of every task are answered, for the continual matrix.
    """
    options = replace(options or TAUGHT_ARMS[arm], seed=setting.seed)
    modules: dict[str, Module] = dict(setting.modules)
    lessons, matrix = [], []
    for stage in setting.stages:
        result = run_stage(modules, stage, options, folder, say)
        modules = result.modules
        lessons += list(result.lessons)
        if stage is not setting.stages[-1]:
            matrix.append({task: float(np.mean(scores.right(task, modules, stage_questions))) for task in scores.questions})
    final = scores.of(lambda task: modules)
    networks = {name: m for name, m in modules.items() if isinstance(m, VisualModule)}
    return final | {"modules": measure(setting, networks), "lessons": lessons, "matrix": matrix}, modules


def images_of(questions: Sequence[Question]) -> list[str]:
    """The unit of resampling of each question."""
    return [question.image_id for question in questions]
