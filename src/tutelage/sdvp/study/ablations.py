"""What each part of SDVP is worth: one thing changed at a time, everything else alike, paired question by question.

Smaller than the study (fewer steps, inputs and questions), the same three stages. A cell is a row of the table; every
finished cell of a seed is kept, so that a stopped run goes on cell by cell.
"""

from __future__ import annotations

import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from tutelage import environment, storage
from tutelage.datasets.synthetic.scene import DOMAINS
from tutelage.programs.types import Module
from tutelage.sdvp import toy_modules
from tutelage.sdvp.compile import distill_task
from tutelage.sdvp.continual.base import Examples
from tutelage.sdvp.final_answer import StepwiseWithFinalAnswer
from tutelage.sdvp.final_answer.baseline import distill_from_answers
from tutelage.sdvp.label import Filters
from tutelage.sdvp.options import SdvpOptions, with_strategy
from tutelage.sdvp.questions import Question, score_answer, solve_stream
from tutelage.sdvp.study import questions as study_questions
from tutelage.sdvp.study.ablation_tables import AblationTables
from tutelage.sdvp.study.noise import SIZES as NOISE_SIZES
from tutelage.sdvp.study.noise import noise_cell
from tutelage.sdvp.study.run import module_store, run_tasks
from tutelage.sdvp.study.setup import SMOKE, STEPS_FACTOR, StudySetup, StudySizes, prepare
from tutelage.sdvp.task import SdvpTask
from tutelage.sdvp.task_sequence import distill_tasks
from tutelage.seeds import numpy_rng

DSLS = ("visprog", "viper")
SIZES = StudySizes(report=800, stage_report=0, collect=1500, replay=400, probe=600, guarded=200)
BASE = SdvpOptions("visprog", settings=replace(SdvpOptions().settings, steps=100, warmup=10), max_replay=6000)
FREE = replace(BASE, max_drop=None)
"""No guard, so that a way to keep old knowledge is seen by itself."""
FINAL = StepwiseWithFinalAnswer.Config(questions=SIZES.collect)


@dataclass(frozen=True)
class Ablation:
    """One row: what differs from SDVP as it is.

    ``share`` of the inputs is collected. ``strategy`` names retain options that take the place of self-distillation.
    ``answers``: the final answers of the collected questions are known. ``probe`` False: teachers are accepted unseen.
    ``by_task``: every stage starts from the first modules and answers its own task alone. ``final_alone``: no teacher, only
    final answers. ``longer`` False: every stage is trained as long. ``train`` False: the frozen modules. ``dsls``: the languages
    of the programs it is reported in.
    """

    axis: str
    name: str
    options: SdvpOptions = BASE
    share: float = 1.0
    strategy: str = ""
    answers: bool = False
    probe: bool = True
    by_task: bool = False
    final_alone: bool = False
    longer: bool = True
    train: bool = True
    dsls: tuple[str, ...] = DSLS[:1]

    @property
    def key(self) -> str:
        """Its file name."""
        return re.sub(r"[^\w.]+", "-", f"{self.axis} {self.name}").strip("-")


FROZEN = Ablation("reference", "frozen", train=False, dsls=DSLS)
FULL = Ablation("reference", "SDVP", dsls=DSLS)
NOISE = Ablation("program noise", "voting")


def cells() -> tuple[Ablation, ...]:
    """Every row of the table, in its order."""
    filters = [
        Ablation("filters", "no confidence gate", replace(BASE, filters=Filters(min_confidence=0.0))),
        Ablation("filters", "gate 0.95", replace(BASE, filters=Filters(min_confidence=0.95))),
        Ablation("filters", "final agreement", replace(BASE, filters=Filters(require_right_answer=True)), answers=True),
        Ablation("filters", "blame as weight", replace(BASE, attribution_floor=0.25), answers=True),
        Ablation("filters", "teachers accepted unseen", probe=False),
    ]
    plain = replace(FREE, replay=False)
    retain = [
        Ablation("retain", "none (naive)", plain),
        Ablation("retain", "self_distill, no guard", FREE),
        Ablation("retain", "interpolation alone", replace(plain, max_drop=BASE.max_drop)),
        *(Ablation("retain", name, FREE, strategy=name) for name in ("ewc", "l2sp", "lora", "adapter", "freeze", "labelled")),
        Ablation("retain", "self_distill + adapter", FREE, strategy="self_distill+adapter"),
        Ablation("retain", "adapter, routed by task", FREE, strategy="adapter", by_task=True),
    ]
    light = replace(BASE, replay_ratio=1, loss=replace(BASE.loss, self_weight=BASE.loss.self_weight / BASE.replay_ratio))
    replay = [
        Ablation("replay", "one replayed row to a task row", light),
        Ablation("replay", "a quarter of the calls", replace(BASE, max_replay=BASE.max_replay // 4)),
        Ablation("replay", "no random colours", replace(BASE, augment_replay=0.0)),
    ]
    steps = [Ablation("steps", "easy-VQA no longer than the rest", longer=False)]
    gentle = replace(plain, loss=FINAL, settings=replace(BASE.settings, lr=1e-3))  # at SDVP's rate it learns by heart
    final = [
        Ablation("final labels", "alone", gentle, answers=True, final_alone=True),
        Ablation("final labels", "with self-distillation", replace(BASE, loss=replace(FINAL, mu=1.0, step=0.0)), answers=True),
        Ablation("final labels", "added to SDVP", replace(BASE, loss=FINAL), answers=True),
    ]
    return (
        FROZEN,
        FULL,
        *(Ablation("data", f"1/{part} of the inputs", share=1 / part) for part in (2, 4, 16)),
        *(Ablation("modules", f"{name} alone", replace(BASE, modules=(name,))) for name in BASE.order),
        Ablation("modules", "all but LOC", replace(BASE, modules=("VERIFY", "VQA"))),
        *filters,
        *retain,
        *replay,
        *steps,
        Ablation("collection", "teacher-forced", replace(BASE, on_policy=False)),
        Ablation("order", "LOC last", replace(BASE, order=("VQA", "VERIFY", "LOC"))),
        *final,
        Ablation("framework", "taught through ViperGPT", replace(BASE, dsl="viper"), dsls=DSLS),
        NOISE,
    )


@dataclass(frozen=True)
class AblationPlan:
    """What to run: the seeds, how much of everything, which cells (by axis; none: all), and networks that know nothing for
    smoke tests."""

    seeds: tuple[int, ...] = (0, 1, 2)
    sizes: StudySizes = SIZES
    noise: StudySizes = NOISE_SIZES
    axes: tuple[str, ...] = ()
    quick: bool = False

    @classmethod
    def smoke(cls, seed: int = 0) -> AblationPlan:
        """The plumbing alone: claims nothing."""
        tiny = replace(SMOKE, report=16, collect=40, replay=10, probe=20, guarded=8)
        return cls((seed,), tiny, tiny, quick=True)

    @property
    def cells(self) -> tuple[Ablation, ...]:
        """Those of the chosen axes; the references always."""
        return tuple(cell for cell in cells() if not self.axes or cell.axis in (*self.axes, FULL.axis))

    @property
    def settings_hash(self) -> str:
        """Names everything that was settled before the reported seeds were run."""
        return storage.fingerprint(
            dict(DOMAINS),
            self.sizes,
            self.noise,
            self.quick,
            toy_modules.TOY_TRAINING,
            [str(c) for c in cells()],
            dict(STEPS_FACTOR),
        )


@dataclass
class AblationSetup:
    """What all cells of a seed share: modules, stages with answers, reported questions, gold labels of old tasks."""

    setup: StudySetup
    questions: dict[str, list[Question]]
    examples: Examples = field(default_factory=dict)


@lru_cache(maxsize=1)
def ablation_setup(plan: AblationPlan, seed: int) -> AblationSetup:
    """Made once a process and seed."""
    setting = prepare(seed, plan.sizes, module_store(), plan.quick, DSLS, answers=True)
    tasks = (*study_questions.CURRENT, *study_questions.PREVIOUS, *study_questions.UNSEEN)
    questions = {task: study_questions.questions_of(task, seed, "report", plan.sizes.report, DSLS, gold=False) for task in tasks}
    return AblationSetup(setting, questions, labelled_calls(seed, plan.sizes.replay))


def labelled_calls(seed: int, count: int) -> Examples:
    """Gold labels of every module's old skill, from ``count`` scenes of domain A of their own stream."""
    seen = toy_modules.scenes("A", count, seed, "labelled replay")
    makers = {"LOC": toy_modules.loc_examples, "VQA": toy_modules.vqa_examples, "VERIFY": toy_modules.verify_examples}
    made = {name: make(seen, numpy_rng(seed, "labelled replay", name)) for name, make in makers.items()}
    return {name: list(zip(calls, labels, strict=True)) for name, (calls, labels) in made.items()}


def stage_of(stage: SdvpTask, cell: Ablation) -> SdvpTask:
    """The stage as the cell sees it."""
    most = max(1, round(cell.share * len(stage.questions)))
    questions = [q if cell.answers else replace(q, answer=None) for q in stage.questions[:most]]
    factor = stage.steps_factor if cell.longer else 1.0
    return replace(stage, questions=questions, probe=stage.probe if cell.probe else {}, steps_factor=factor)


def options_of(cell: Ablation, seed: int, examples: Examples, quick: bool) -> SdvpOptions:
    """The cell's options on a seed."""
    options = with_strategy(cell.strategy, cell.options, examples) if cell.strategy else cell.options
    if quick:
        options = replace(options, settings=replace(options.settings, steps=3, warmup=1))
    return replace(options, seed=seed)


def train_ablation(
    cell: Ablation, ablation_setup: AblationSetup, seed: int, quick: bool, folder: Path
) -> tuple[Callable[[str], Mapping[str, Module]], list[Any]]:
    """The modules by task after the cell's stages, and its training jobs."""
    if not cell.train:
        return lambda task: ablation_setup.setup.modules, []
    stages = [stage_of(stage, cell) for stage in ablation_setup.setup.stages]
    options = options_of(cell, seed, ablation_setup.examples, quick)
    learn = distill_from_answers if cell.final_alone else distill_task
    found = distill_tasks(ablation_setup.setup.modules, stages, options, folder, learn=learn, by_task=cell.by_task)
    return found.modules_for, list(found.reports)


def answers(
    questions: Mapping[str, Sequence[Question]], modules_of: Callable[[str], Mapping[str, Module]], dsl: str
) -> tuple[dict[str, str], dict[str, int]]:
    """By task a string of 1 (right) and 0; and how many programs failed, by kind."""
    right, failed = {}, Counter[str]()
    for task, of_task in questions.items():
        marks = []
        for question, trace in zip(of_task, solve_stream(of_task, modules_of(task), dsl), strict=True):
            failed.update([trace.status] if trace.status != "ok" else [])
            marks.append(str(int(score_answer(question, trace.answer))))
        right[task] = "".join(marks)
    return right, dict(failed)


def run_cell(root: str, plan: AblationPlan, seed: int, cell: Ablation) -> None:
    """One cell of one seed, unless it is there: its part file, whole or not at all."""
    file = part_file(root, seed, cell)
    if file.exists():
        return
    started = time.process_time()
    folder = Path(root) / "lessons" / f"seed-{seed}" / cell.key
    part: dict[str, Any] = {"seed": seed, "axis": cell.axis, "name": cell.name}
    if cell == NOISE:
        options = options_of(Ablation("", "", BASE), seed, {}, plan.quick)
        part["noise"] = noise_cell(seed, module_store(), plan.noise, options=options, quick=plan.quick, folder=folder)
    else:
        given = ablation_setup(plan, seed)
        modules_of, reports = train_ablation(cell, given, seed, plan.quick, folder)
        answered = {dsl: answers(given.questions, modules_of, dsl) for dsl in cell.dsls}
        part |= {"lessons": reports, "right": {d: right for d, (right, _) in answered.items()}}
        part["failures"] = {d: failed for d, (_, failed) in answered.items()}
        if cell == FROZEN:
            part["images"] = {task: [q.image_id for q in found] for task, found in given.questions.items()}
    part["cpu_seconds"] = time.process_time() - started
    storage.write_json(file, part)
    shutil.rmtree(folder, ignore_errors=True)


def part_file(root: str | Path, seed: int, cell: Ablation) -> Path:
    """Where a finished cell of a seed is kept."""
    return Path(root) / "parts" / f"seed-{seed}" / f"{cell.key}.json"


def run_ablations(
    plan: AblationPlan,
    root: str | Path,
    processes: int = 2,
    report: Callable[[str], None] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Run the cells that are not yet there and write ``ablations.json``; the same call on the same folder goes on.

    Raises:
        StaleError: the folder holds a run of other settings or of another version.
    """
    # the axes are left out: they may be run one after the other in the same folder
    folder = storage.RunFolder(root, {"plan": replace(plan, axes=()), "settings_hash": plan.settings_hash})
    # of one seed together, for a process keeps what the cells of a seed share
    rows = [(str(folder.root), plan, seed, cell) for seed in plan.seeds for cell in plan.cells]
    run_tasks(folder.root, plan.seeds, plan.quick, run_cell, rows, "running the cells", processes, report, on_progress)
    return assemble(plan, folder.root)


def assemble(plan: AblationPlan, root: Path) -> dict[str, Any]:
    """The parts of all cells and seeds as one result, written to ``ablations.json``."""
    spent = storage.read_json(root / "spent.json")
    parts = [[storage.read_json(part_file(root, seed, cell)) for seed in plan.seeds] for cell in plan.cells]
    tables = AblationTables(parts, study_questions.group_of)
    summary = {"seeds": len(plan.seeds), **spent, "verdicts": [] if plan.quick else tables.verdicts()}
    result = {
        "format": "tutelage-ablations",
        "version": 1,
        **environment.run_metadata(plan.seeds),
        "settings_hash": plan.settings_hash,
        **spent,
        "cpu_seconds": sum(part["cpu_seconds"] for row in parts for part in row),
        "smoke": plan.quick,
        "summary": summary,
        "tables": tables.all(),
    }
    storage.write_json(root / "ablations.json", result)
    return result
