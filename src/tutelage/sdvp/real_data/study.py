"""The study on an official folder: learn from train without answers, report on held-out questions, frozen against taught.

Arms: the whole question put to VQA in ``one call`` (one image); the programs on ``frozen`` modules; on modules in front of
which the ``teachers`` answer what they cover, if that is anything (scene graphs: not on testdev); on modules taught by
``sdvp``. All arms answer the same questions.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tutelage import storage
from tutelage.datasets.confidence_intervals import paired_bootstrap
from tutelage.datasets.sampling import SampledIds
from tutelage.errors import StaleError
from tutelage.modules.visual_module import VisualModule
from tutelage.programs.generators.base import ProgramGenerator
from tutelage.programs.image_cache import ImageCache, ResizePolicy
from tutelage.programs.types import Module
from tutelage.sdvp.collect import teacher_forcing
from tutelage.sdvp.compile import distill_task
from tutelage.sdvp.label import Filters
from tutelage.sdvp.options import SdvpOptions, with_strategy
from tutelage.sdvp.real_data.datasets import Dataset, Item
from tutelage.sdvp.real_data.evaluation import Evaluator, GeneratedPrograms, ProgramsByQuestion, StudyData, generate_programs
from tutelage.sdvp.real_data.protocols import Protocol
from tutelage.sdvp.real_data.splits import (
    LEARN,
    PROBE,
    REPORT,
    Items,
    draw_sample,
    drop_missing_images,
    read_items,
    sampling_settings,
)
from tutelage.sdvp.sources import questions_from
from tutelage.sdvp.task import SdvpTask
from tutelage.sdvp.teacher_check import answer_probe
from tutelage.sdvp.teachers import ModuleTeacher

ONE_CALL = {
    "visprog": "ANSWER0=VQA(image={view},question={question!r})\nFINAL_RESULT=RESULT(var=ANSWER0)",
    "viper": "def execute_command(image):\n    return ImagePatch(image).simple_query({question!r})",
}
"""The whole question in one call, about one image."""


@dataclass(frozen=True)
class StudySettings:
    """How much is learned from, and how.

    ``per_kind``: records of each detailed type to learn from. ``probe``: answered records of each type by which teachers are
    judged and modules guarded; 0: neither is. None: the data set's own sizes. ``lr`` and ``batch`` suit the embedded
    networks; large pretrained ones want 1e-5, or 1e-4 with ``retain = "lora"``. ``replay``: a JSON-lines file of programs
    of earlier tasks, its pictures beside it: what modules said to their calls is kept. Without one, only siblings of the new
    calls are.
    """

    per_kind: int | None = None
    probe: int | None = None
    steps: int = 300
    batch: int = 64
    lr: float = 3e-3
    gate: float = 0.8
    retain: str = "self_distill"
    replay: str | None = None

    def options(self, dsl: str, seed: int) -> SdvpOptions:
        """The options of the stage."""
        options = with_strategy(self.retain, SdvpOptions(dsl=dsl, filters=Filters(min_confidence=self.gate), seed=seed))
        settings = replace(
            options.settings,
            steps=self.steps,
            batch_size=self.batch,
            lr=self.lr,
            warmup=min(options.settings.warmup, self.steps // 10),
            checkpoint_every=100,
        )
        return replace(options, settings=settings)


@dataclass(frozen=True)
class RealDataPlan:
    """What is run: the preset, the settings, the seeds (the first also draws the sample), the language, what is done to
    pictures, and whether records without pictures are left out."""

    protocol: Protocol
    settings: StudySettings = StudySettings()
    seeds: tuple[int, ...] = (0,)
    dsl: str = "visprog"
    resize: ResizePolicy = ResizePolicy()
    skip_missing: bool = False


@dataclass(frozen=True)
class StudyFactories:
    """What a study is run with, made when it is needed: a writer from the records that it is to write for, with what shapes
    its ``wording`` and how many programs of a reported question it writes; the modules of a seed; and the teachers from a
    seed, its modules and the records of all parts."""

    generator: Callable[[Sequence[Item]], ProgramGenerator]
    wording: Any
    runs: int
    modules: Callable[[int], Mapping[str, Module]]
    teachers: Callable[[int, Mapping[str, Module], Items], Mapping[str, ModuleTeacher]]


Reporter = Callable[[str], None]
Progress = Callable[[int, int], None]


def run_study(
    plan: RealDataPlan,
    dataset: Dataset,
    factories: StudyFactories,
    root: str | Path,
    *,
    ids: str | Path | None = None,
    report: Reporter = lambda text: None,
    on_progress: Progress | None = None,
) -> dict[str, Any]:
    """Run what is not yet there, and write ``study.json``; the same call on the same folder goes on where it stopped.

    ``ids``: a sample that another run drew, instead of drawing one.

    Raises:
        InputError: a broken folder or file, or pictures that are missing.
        StaleError: the folder holds a run of other settings, data, modules or teachers.
    """
    started = time.monotonic()
    preset, settings, dsl = plan.protocol, plan.settings, plan.dsl
    learn, probe = dataset.sizes
    per_kind = learn if settings.per_kind is None else settings.per_kind
    probe = probe if settings.probe is None else settings.probe
    drawn = sampling_settings(dataset.name, preset, per_kind, probe, plan.seeds[0])
    given = SampledIds.load(ids) if ids is not None else None
    head = {"study": dataset.name, "preset": preset.to_json(), "settings": settings, "seeds": plan.seeds}
    head |= {"dsl": dsl, "resize": str(plan.resize), "skip_missing": plan.skip_missing, "ids": given.hash if given else drawn}
    run = storage.RunFolder(root, head)
    report("choosing questions")
    sample = given or _sample(run.root / "ids.json", dataset, preset, per_kind, probe, plan.seeds[0])
    sample.save(run.root / "ids.json")
    items = read_items(dataset, sample)

    def listed(names: Sequence[str]) -> Path:
        return storage.write_json(run.root / "missing.json", names)

    items, paths, missing = drop_missing_images(dataset, items, plan.skip_missing, listed)
    texts = {name: [(item.id, item.text, item.answer) for item in part] for name, part in items.items()}
    _check_unchanged(run.root / "questions.json", {"hash": storage.fingerprint(texts, missing)}, "questions")
    report("writing programs")
    everything = [item for part in items.values() for item in part]
    writer = factories.generator(everything)
    _check_unchanged(
        run.root / "writer.json", {"writer": writer.name, "wording": factories.wording, "runs": factories.runs}, "writer"
    )
    written = {
        name: generate_programs(
            run.root / "programs" / name, part, writer, dsl, dataset.inputs, factories.runs if name == REPORT else 1, on_progress
        )
        for name, part in items.items()
    }
    material = StudyData(items, paths, written)
    arms = [_run_seed(plan, dataset, factories, run.root, seed, material, report, on_progress) for seed in plan.seeds]
    result = {
        "task": dataset.name,
        "preset": head["preset"],
        "runs": factories.runs,
        "writer": writer.name,
        "settings": settings,
        "dsl": dsl,
        "resize": str(plan.resize),
        "sample": {"hash": sample.hash, "drawn": sample.drawn, "records": {name: len(part) for name, part in items.items()}},
        "missing": missing,
        "unwritten": {name: _failure_counts(texts) for name, texts in written.items()},
        **_tables(items[REPORT], arms, plan.seeds),
        "per_seed": arms,
        "seconds": time.monotonic() - started,
    }
    storage.write_json(run.root / "study.json", result)
    return result


def _sample(file: Path, dataset: Dataset, protocol: Protocol, per_kind: int, probe: int, seed: int) -> SampledIds:
    """The sample that the run drew before, or a new one."""
    return SampledIds.load(file) if file.exists() else draw_sample(dataset, protocol, per_kind, probe, seed)


def _check_unchanged(file: Path, value: dict[str, Any], what: str) -> None:
    """Keep ``value`` in the run, or see that it is what was kept.

    Raises:
        StaleError: it is not.
    """
    if file.exists() and storage.read_json(file) != storage.to_plain(value):
        raise StaleError(f"the folder holds a run with other {what}", where=file, remedy="choose a new folder")
    storage.write_json(file, value)


def _run_seed(
    plan: RealDataPlan,
    dataset: Dataset,
    factories: StudyFactories,
    root: Path,
    seed: int,
    material: StudyData,
    report: Reporter,
    on_progress: Progress | None,
) -> dict[str, Any]:
    """Every arm of one seed: {arms: {name: figures, and what was right}, lessons, modules (versions), pictures, opened}."""
    folder, dsl, pictures = root / f"seed-{seed}", plan.dsl, ImageCache(plan.resize)
    modules = dict(factories.modules(seed))
    teachers = dict(factories.teachers(seed, modules, material.items))
    versions = {name: module.version for name, module in sorted(modules.items())}
    who = {name: [teacher.name, teacher.version] for name, teacher in sorted(teachers.items())}
    _check_unchanged(folder / "modules.json", {"modules": versions, "teachers": who}, "modules or teachers")
    learn = material.questions(LEARN, pictures, dsl, answers=False)
    probe = material.questions(PROBE, pictures, dsl, answers=True)
    earlier = plan.settings.replay
    replay = questions_from(earlier, Path(earlier).parent) if earlier is not None else []
    report(f"seed {seed}: teaching")
    known = answer_probe(probe, modules, dsl) if probe else {}
    stage = SdvpTask(dataset.name, learn, teachers, known, replay, guarded=probe)
    compiled = distill_task(modules, stage, plan.settings.options(dsl, seed), folder, report)
    exam = Evaluator(material.items[REPORT], material.paths, pictures, dsl, plan.protocol, teachers)
    found: dict[str, Any] = {}

    def run(arm: str, ready: Mapping[str, Module], programs: ProgramsByQuestion = material.programs[REPORT]) -> None:
        report(f"seed {seed}: answering, {arm}")
        rows = exam.answers(folder / "answers" / arm.replace(" ", "-"), ready, programs, on_progress)
        found[arm] = _figures(dataset, exam.items, rows)

    if dataset.inputs == ("IMAGE",):
        run("one call", modules, _one_call(exam.items, dsl))
    run("frozen", modules)
    if found["frozen"]["covered_calls"]:
        run("teachers", teacher_forcing(modules, teachers))
    run("sdvp", compiled.modules)
    own_versions = {name: m.version for name, m in compiled.modules.items() if isinstance(m, VisualModule)}
    return {
        "seed": seed,
        "arms": found,
        "lessons": compiled.reports,
        "modules": versions | own_versions,
        "pictures": len({path for views in material.paths.values() for path in views.values()}),
        "opened": pictures.opened,
    }


def _one_call(items: Sequence[Item], dsl: str) -> ProgramsByQuestion:
    return {item.id: GeneratedPrograms((ONE_CALL[dsl].format(view="IMAGE", question=item.text),), (None,), {}) for item in items}


def _figures(dataset: Dataset, items: Sequence[Item], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """An arm's accuracy by the preset's rule (points), the official metrics, and how the runs went (shares in 0..1)."""
    kinds = [item.kind for item in items]
    right = np.array([row["right"] for row in rows], float)
    return {
        "accuracy": 100 * float(right.mean()),
        "official": dataset.scores(items, {row["id"]: row["answer"] for row in rows}),
        "kinds": {
            kind: {"accuracy": 100 * float(np.mean(marks)), "questions": len(marks)}
            for kind in sorted(set(kinds))
            if (marks := [mark for mark, name in zip(right, kinds, strict=True) if name == kind])
        },
        "status": dict(sorted(Counter(row["status"] for row in rows).items())),
        "fallback": float(np.mean([row["fallback"] for row in rows])),
        "unknown_words": float(np.mean([row["unknown"] for row in rows])),
        "calls_per_question": float(np.mean([row["calls"] for row in rows])),
        "covered_calls": sum(row["covered"] for row in rows) / max(1, sum(row["calls"] for row in rows)),
        "right": [int(row["right"]) for row in rows],
    }


def _tables(items: Sequence[Item], seeds: Sequence[Mapping[str, Any]], numbers: Sequence[int]) -> dict[str, Any]:
    """Rows of the table, all questions first: each arm's accuracy (points, mean over seeds) and the gain by SDVP over the
    frozen modules with its 95 % interval, images resampled."""
    groups = sorted({item.group for item in items} - {""})
    rows = []
    for group in ("all", *groups):
        places = [i for i, item in enumerate(items) if group in ("all", item.group)]
        clusters = [(number, items[i].image_id) for number in numbers for i in places]
        marks = {arm: [seed["arms"][arm]["right"][i] for seed in seeds for i in places] for arm in seeds[0]["arms"]}
        gain = paired_bootstrap(marks["sdvp"], marks["frozen"], clusters, seed=numbers[0])
        rows.append(
            {
                "group": group,
                "questions": len(places),
                "arms": {arm: 100 * float(np.mean(values)) for arm, values in marks.items()},
                "gain": {"mean": 100 * gain.mean, "lo": 100 * gain.low, "hi": 100 * gain.high},
            }
        )
    return {"table": rows}


def _failure_counts(written: ProgramsByQuestion) -> dict[str, int]:
    """How many programs could not be written, by kind of failure."""
    total: Counter[str] = Counter()
    for texts in written.values():
        total.update(texts.failures)
    return dict(sorted(total.items()))
