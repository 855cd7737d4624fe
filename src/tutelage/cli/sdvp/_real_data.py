"""How `sdvp study --task` runs on an official folder, and prints its result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tutelage.cli import _generators
from tutelage.cli._modules import load_modules, parse_teacher
from tutelage.cli._options import GeneratorName
from tutelage.terminal import console, emit, progress, run_metadata

if TYPE_CHECKING:
    from tutelage.cli._generator_settings import RealDataSettings
    from tutelage.programs.generators.base import ProgramGenerator
    from tutelage.programs.types import Module
    from tutelage.sdvp.real_data.datasets import Dataset, Item
    from tutelage.sdvp.real_data.study import Items
    from tutelage.sdvp.teachers import ModuleTeacher

GOLD = "gold"


class RealDataset(StrEnum):
    """The data sets that are read from their official folders."""

    gqa = "gqa"
    nlvr2 = "nlvr2"


@dataclass(frozen=True)
class StudyRequest:
    """The folder, the seeds, the language, and the choice of questions and images."""

    root: Path
    seeds: tuple[int, ...]
    dsl: str
    preset: str | None
    ids: Path | None
    resize: str
    skip_missing: bool
    smoke: bool


@dataclass(frozen=True)
class StudyComponents:
    """The generator (None: the data set's own), all settings, and the modules and teachers as the options name them."""

    generator: GeneratorName | None
    settings: RealDataSettings
    modules: str | None
    module: Sequence[str]
    teachers: Sequence[str]


def read_settings(file: Path | None, changes: Sequence[str]) -> RealDataSettings:
    """The settings in a TOML file, with ``a.b=value`` changes. Raises InputError as recipes do."""
    from tutelage.cli._generator_settings import RealDataSettings
    from tutelage.distillation.recipe import read_file

    return read_file(RealDataSettings, file, changes)


def run(task: RealDataset, request: StudyRequest, components: StudyComponents, out: Path, json: str | None) -> None:
    """Run the study in ``out``, print its table, write its JSON."""
    from tutelage.programs.image_cache import ResizePolicy
    from tutelage.sdvp.real_data.datasets import Gqa, Nlvr2
    from tutelage.sdvp.real_data.protocols import get_protocol
    from tutelage.sdvp.real_data.study import RealDataPlan, StudyFactories, run_study

    preset, settings = get_protocol(task.value, request.preset), components.settings.study
    if request.smoke:
        sizes = {"per_kind": 4 if settings.per_kind is None else settings.per_kind}
        sizes |= {"probe": 2 if settings.probe is None else settings.probe}
        settings = replace(settings, **sizes, steps=3, gate=0.0)
    dataset: Dataset = Gqa(request.root) if task is RealDataset.gqa else Nlvr2(request.root)
    plan = RealDataPlan(preset, settings, request.seeds, request.dsl, ResizePolicy.parse(request.resize), request.skip_missing)
    name = components.generator or (GeneratorName.semantic if task is RealDataset.gqa else GeneratorName.grammar)
    samples = name in (GeneratorName.endpoint, GeneratorName.local, GeneratorName.learned)
    made: list[ProgramGenerator] = []

    def generator(items: Sequence[Item]) -> ProgramGenerator:
        made.append(_make_generator(name, dataset, items, components, request))
        return made[0]

    wording = replace(components.settings, study=type(settings)(), prompt=replace(components.settings.prompt, cache=None))
    factories = StudyFactories(
        generator,
        wording,
        preset.runs if samples else 1,
        lambda seed: _modules(components, seed, request.smoke),
        _Teachers(dataset, components, request.smoke),
    )
    with progress(f"study of {task}", total=1) as bar:
        result = run_study(plan, dataset, factories, out, ids=request.ids, report=bar.describe, on_progress=bar)
    result |= {"smoke": request.smoke, "writing": _generators.usage_of(made[0]), **run_metadata(request.seeds)}
    _show(console(json), result, out)
    emit(result, json)


def _make_generator(
    name: GeneratorName, dataset: Dataset, items: Sequence[Item], components: StudyComponents, request: StudyRequest
) -> ProgramGenerator:
    from tutelage.errors import InputError
    from tutelage.programs.generators.base import GenerationRequest, gqa_functional_generator

    if name is GeneratorName.semantic:
        if dataset.name != RealDataset.gqa:
            raise InputError(
                "only GQA has functional programs", where="--generator", remedy="grammar, learned, endpoint, local or gold"
            )
        return gqa_functional_generator({item.id: item.record.semantic for item in items})
    requests = [GenerationRequest(item.text, request.dsl, dataset.inputs, item.id) for item in items]
    signatures = {key: module.signature for key, module in _modules(components, request.seeds[0], request.smoke).items()}
    return _generators.make_generator(
        name, _generators.GeneratorContext(components.settings, requests, signatures, request.seeds[0])
    )


def _modules(components: StudyComponents, seed: int, smoke: bool) -> dict[str, Module]:
    """The modules that the options name, and toy ones (in a smoke test: untrained ones) in place of what is missing."""
    return load_modules(components.modules, seed, components.module, quick=smoke and not components.module)


class _Teachers:
    """The teachers of a seed, by module: scene graphs, toy specialists, or saved modules."""

    def __init__(self, dataset: Dataset, components: StudyComponents, smoke: bool):
        self.dataset, self.components, self.smoke = dataset, components, smoke
        self._graphs: Any = None

    def __call__(self, seed: int, modules: Mapping[str, Module], items: Items) -> dict[str, ModuleTeacher]:
        from tutelage.modules.visual_module import VisualModule
        from tutelage.sdvp.real_data.scene_graph_teacher import graph_teacher
        from tutelage.sdvp.stages import trainable

        networks = [name for name in ("LOC", "VQA", "VERIFY") if isinstance(modules.get(name), VisualModule)]
        teachers = {}
        for text in self.components.teachers or [f"{name}={GOLD}" for name in networks]:
            name, _, source = text.partition("=")
            if source == GOLD:
                teachers[name] = graph_teacher(trainable(modules, name), self._read(items))
            else:
                name, teachers[name] = parse_teacher(text, seed, self.smoke)
        return teachers

    def _read(self, items: Items) -> Any:
        from tutelage.errors import InputError
        from tutelage.sdvp.real_data.datasets import Gqa
        from tutelage.sdvp.real_data.scene_graph_teacher import SceneGraphs, property_types

        if not isinstance(self.dataset, Gqa):
            raise InputError(
                f"{self.dataset.name} has no scene graphs", where="--teacher", remedy="name others: VQA=color, VQA=DIR"
            )
        if self._graphs is None:
            graphs = {}
            for split in ("train", "val"):  # GQA publishes none for the others
                image_ids = [item.image_id for subset in items.values() for item in subset]
                graphs |= self.dataset.scene_graphs(split, image_ids)
            self._graphs = SceneGraphs(graphs, property_types(item.record.semantic for item in items["learn"]))
        return self._graphs


def _show(screen: Any, result: Mapping[str, Any], out: Path) -> None:
    from rich.table import Table

    preset, sample = result["preset"], result["sample"]
    arms = list(result["table"][0]["arms"])
    table = Table(
        title=f"Accuracy in points on {result['task']}, {preset['name']}"
        + (" (smoke test: untrained networks)" if result["smoke"] else "")
    )
    table.add_column("type")
    table.add_column("questions", justify="right")
    for arm in arms:
        table.add_column(arm, justify="right")
    table.add_column("gain by SDVP [95 %]", justify="right")
    for row in result["table"]:
        gain = row["gain"]
        cells = [f"{row['arms'][arm]:.1f}" for arm in arms]
        table.add_row(row["group"], str(row["questions"]), *cells, f"{gain['mean']:+.1f} [{gain['lo']:+.1f}, {gain['hi']:+.1f}]")
    screen.print(table)
    records = ", ".join(f"{count} to {name}" for name, count in sample["records"].items())
    notes = [f"{records}; ids {sample['hash']} in {out / 'ids.json'}; programs by {result['writer']}; resize {result['resize']}"]
    opened = [f"{seed['pictures']:,} images opened {seed['opened']:,} times" for seed in result["per_seed"]]
    notes.append(f"{result['seconds']:.0f} s; {'; '.join(opened)}")
    labels = [f"{row.module} by {row.teacher}, {row.kept} labels" for seed in result["per_seed"] for row in seed["lessons"]]
    notes.append(f"distilled: {'; '.join(labels)}")
    if preset["runs"] != result["runs"]:
        notes.append(f"published with {preset['runs']} programs a question, voted; here {result['runs']}")
    notes += [f"unverified of this preset: {fact}" for fact in preset["unverified"]]
    missing = result["missing"]
    if missing.images:
        notes.append(
            f"{len(missing.images)} images missing, {sum(missing.records.values())} records left out: {out / 'missing.json'}"
        )
    if (cost := _generators.format_usage(result["writing"])) is not None:
        notes.append(f"generating programs took {cost}")
    lost = {name: counts for name, counts in result["unwritten"].items() if counts}
    if lost:
        notes.append(f"programs that could not be generated: {lost}")
    for arm in arms:
        health = result["per_seed"][0]["arms"][arm]
        failed = {kind: count for kind, count in health["status"].items() if kind != "ok"}
        if failed or health["fallback"]:
            notes.append(f"{arm}: programs that failed {failed}, answered by VQA instead {health['fallback']:.1%}")
    for note in notes:
        screen.print(note, markup=False, soft_wrap=True)
