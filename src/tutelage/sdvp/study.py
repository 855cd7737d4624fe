"""The study: the same modules under each arm, on previous, current and unseen tasks, over several seeds.

Arms: frozen modules; modules replaced by their teachers; routed to confident teachers; naive tuning on the same labels;
SDVP. Beside them the gold-module oracle. Teachers were trained on target labels; every table says so.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from tutelage import files
from tutelage.modules.symbolic import symbolic_modules
from tutelage.modules.visual_module import VisualModule
from tutelage.programs.cache import ResultCache
from tutelage.programs.language import Module
from tutelage.sdvp import benchmark, embedded
from tutelage.sdvp.accept import Probe, probe
from tutelage.sdvp.adapt import StepTeacher, as_judge, same_skill
from tutelage.sdvp.collect import gold_forcing
from tutelage.sdvp.compile import Options, Stage, Taught, run_stage
from tutelage.sdvp.label import calibrate
from tutelage.sdvp.questions import Question, correct, solve
from tutelage.sdvp.rivals import Routed

STAGES = ("easy_vqa", "b_gqa", "b_nlvr")


@dataclass(frozen=True)
class Sizes:
    """How much of everything: questions reported a task, collected a stage, replayed, probed and guarded."""

    report: int = 3000
    collect: int = 6000
    replay: int = 600
    probe: int = 800
    guarded: int = 250


SMOKE = Sizes(report=60, collect=120, replay=40, probe=60, guarded=20)


@dataclass
class Setting:
    """What all arms of one seed share."""

    seed: int
    modules: dict[str, Module]
    stages: list[Stage]
    teachers: dict[str, dict[str, StepTeacher]] = field(default_factory=dict)


def prepare(seed: int, sizes: Sizes, store: files.Store, quick: bool = False) -> Setting:
    """Generalists and specialists of a seed (from the store where they were trained before), and its stages."""
    networks = embedded.generalists(seed, store, quick)
    specialists = embedded.specialists(seed, store, quick)
    modules: dict[str, Module] = {**symbolic_modules(), **networks}
    color, easy, loc = specialists["color"], specialists["easy"], specialists["loc"]
    taught_by: dict[str, dict[str, StepTeacher]] = {
        "easy_vqa": {"VQA": same_skill(easy)},
        "b_gqa": {"LOC": same_skill(loc), "VERIFY": as_judge(color), "VQA": same_skill(color)},
    }
    taught_by["b_nlvr"] = taught_by["b_gqa"]
    previous = [q for task in benchmark.PREVIOUS for q in benchmark.questions_of(task, seed, "replay", sizes.replay)]
    guarded = [q for task in benchmark.PREVIOUS for q in benchmark.questions_of(task, seed, "select", sizes.guarded)]
    stages, earlier = [], previous
    for name in STAGES:
        collected = benchmark.questions_of(name, seed, "collect", sizes.collect)
        select = benchmark.questions_of(name, seed, "select", sizes.probe)
        known: dict[str, Probe] = (
            {"VQA": benchmark.easy_probe(select)} if name == benchmark.EASY else probe(select, {**modules})
        )
        unlabelled = [replace(q, answer=None, gold={}) for q in collected]
        teachers = {module: calibrate(t, known.get(module, [])) for module, t in taught_by[name].items()}
        taught_by[name] = teachers
        stages.append(Stage(name, unlabelled, teachers, known, earlier, guarded))
        earlier = [*earlier, *unlabelled[:: max(1, len(unlabelled) // (2 * sizes.replay))]]
        guarded = [*guarded, *select[: sizes.guarded]]
    return Setting(seed, modules, stages, taught_by)


class Scores:
    """Which questions of each task an arm answers rightly, and how the run went; results shared by all arms' caches."""

    def __init__(self, seed: int, sizes: Sizes, dsl: str = "visprog"):
        self.seed, self.dsl = seed, dsl
        self.questions = {
            task: benchmark.questions_of(task, seed, "report", sizes.report)
            for task in (*benchmark.CURRENT, *benchmark.PREVIOUS, *benchmark.UNSEEN)
        }
        self.cache = ResultCache(capacity=400_000)

    def of(self, modules: Mapping[str, Module], tasks: Sequence[str] | None = None, gold: bool = False) -> dict[str, Any]:
        """``{task: {"right": [0/1 …], "health": {…}}}``."""
        out = {}
        for task in tasks or self.questions:
            asked = self.questions[task]
            start = time.perf_counter()
            traces = solve(asked, modules, self.dsl, cache=self.cache, substitute=gold_forcing(asked, self.dsl) if gold else None)
            ms = (time.perf_counter() - start) * 1000 / len(asked)
            out[task] = {
                "right": [correct(q, t.answer) for q, t in zip(asked, traces, strict=True)],
                "health": {
                    "valid": float(np.mean([t.status not in ("parse", "unknown_module", "undefined_var", "type") for t in traces])),
                    "executed": float(np.mean([t.status == "ok" for t in traces])),
                    "fallback": float(np.mean([t.fallback for t in traces])),
                    "out_of_vocabulary": float(np.mean([t.out_of_vocabulary > 0 for t in traces])),
                    "calls_per_sample": float(np.mean([len(t.steps) for t in traces])),
                    "ms_per_sample": ms,
                },
            }
        return out


def chain(setting: Setting, options: Options, folder: Path | None, say: Any = None) -> list[tuple[dict[str, Module], list[Taught]]]:
    """The modules after each stage of a learning arm, and what happened in it."""
    modules, found = dict(setting.modules), []
    for stage in setting.stages:
        result = run_stage(modules, stage, options, folder, say)
        modules = result.modules
        found.append((modules, list(result.lessons)))
    return found


def rivals(setting: Setting, replaced: bool, stage: str) -> dict[str, Module]:
    """The modules with this stage's teachers in their place (``replaced``) or before them (routed)."""
    out = dict(setting.modules)
    for name, teacher in setting.teachers[stage].items():
        module = out[name]
        assert isinstance(module, VisualModule)
        out[name] = Routed(module, teacher, replaced=replaced)
    return out


NAIVE = Options(replay=False, allowed=None)
SDVP = Options()
