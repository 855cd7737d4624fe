"""SDVP one step at a time, from folder to folder: collect, label, train. Each goes on where it was stopped.

A folder belongs to one command with one set of settings; others are refused. What is finished is read back.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tutelage import environment, files
from tutelage.distill.trainer import train
from tutelage.errors import InputError, did_you_mean
from tutelage.modules.visual_module import VisualModule
from tutelage.programs.language import Call, Module
from tutelage.programs.trace import StepRecord
from tutelage.sdvp.accept import Probe, accept
from tutelage.sdvp.adapt import StepTeacher
from tutelage.sdvp.collect import Records, call_of, collect, load, save
from tutelage.sdvp.compile import Options
from tutelage.sdvp.label import Filters, calibrate, keep, label, label_of
from tutelage.sdvp.lesson import lesson
from tutelage.sdvp.questions import Question
from tutelage.seeds import derive, numpy_rng

PART = 512
"""Questions that are collected between two savings."""
VERDICTS = "verdicts.json"
"""What the probe said of each teacher, in a labelled folder."""
MADE = "made.json"
"""What the lessons of a folder of taught modules were: its card is written from it."""
BESIDE = "beside"
"""The folder, inside a labelled one, of the sibling calls that the teacher does not speak to."""
Progress = Callable[[int, int], None]


def collect_into(
    folder: str | Path,
    questions: Sequence[Question],
    modules: Mapping[str, Module],
    dsl: str = "visprog",
    *,
    stage: str = "",
    part: int = PART,
    progress: Progress | None = None,
) -> Records:
    """Collect the step records of ``questions`` into ``folder``, part by part.

    Raises:
        StaleError: the folder holds other work.
        StorageError: it cannot be written.
    """
    asked = [(q.id, q.programs.get(dsl), sorted((name, image.key) for name, image in q.images.items())) for q in questions]
    settings = {"step": "collect", "dsl": dsl, "stage": stage, "part": part, "questions": files.fingerprint(asked)}
    run = files.RunFolder(folder, settings | {"modules": _versions(modules)})
    if run.done("finished.json"):
        return load(run.root)
    total = -(-len(questions) // part)
    for number in range(total):
        place = run.root / "parts" / f"{number:05d}"
        if not (place / "finished.json").exists():
            found = collect(questions[number * part : (number + 1) * part], modules, dsl, stage=stage)
            save(found, place)
            files.write_json(place / "finished.json", _counts(found))
        if progress is not None:
            progress(number + 1, total)
    records = _merged(load(run.root / "parts" / f"{number:05d}") for number in range(total))
    save(records, run.root)
    files.write_json(run.root / "finished.json", _counts(records))
    shutil.rmtree(run.root / "parts", ignore_errors=True)
    return records


def label_into(
    folder: str | Path,
    records: Records,
    modules: Mapping[str, Module],
    teachers: Mapping[str, StepTeacher],
    filters: Filters = Filters(),  # noqa: B008  (frozen)
    probe: Mapping[str, Probe] | None = None,
) -> Records:
    """Label ``records`` by the teachers; the sibling calls they do not speak to are kept beside, for self-distillation.

    ``probe``: labelled calls by module. With them each teacher is calibrated, and one that does not beat its module labels
    nothing; a teacher without such calls is accepted unseen. The verdicts are in ``verdicts.json``. Filters that need
    questions (``final``, ``votes``) are not for this step.

    Raises:
        InputError: a teacher of a module without records or network, or a filter that needs questions.
        StaleError, StorageError: as :func:`collect_into`.
    """
    if filters.final or filters.votes:
        raise InputError("final and votes need the questions", where="filters", remedy="use sdvp.compile")
    hashes = {name: [record.input_hash for record in found] for name, found in records.items()}
    known = probe or {}
    teachers = {name: calibrate(teacher, known.get(name, [])) for name, teacher in teachers.items()}
    verdicts = {name: accept(teacher, trainable(modules, name), known.get(name, [])) for name, teacher in teachers.items()}
    who = {name: [teacher.name, teacher.version, teacher.temperature] for name, teacher in teachers.items()}
    settings = {"step": "label", "records": files.fingerprint(hashes), "teachers": who, "filters": filters}
    settings |= {"verdicts": verdicts} if known else {}
    run = files.RunFolder(folder, settings)
    if run.done("finished.json"):
        return load(run.root)
    labelled: Records = {}
    beside: Records = {}
    for name, teacher in teachers.items():
        module = trainable(modules, name)
        if name not in records:
            raise InputError(f"no records of {name}", where="teachers", remedy=did_you_mean(name, list(records)))
        found = label(records[name], module, teacher) if verdicts[name].accepted else []
        labelled[name] = keep(found, filters, (), modules, teachers, "visprog")
        beside[name] = uncovered(records[name], module, teacher)
    save(labelled, run.root)
    save(beside, run.root / BESIDE)
    files.write_json(run.root / VERDICTS, verdicts)
    files.write_json(run.root / "finished.json", _counts(labelled))
    return labelled


def uncovered(records: Sequence[StepRecord], module: VisualModule, teacher: StepTeacher) -> list[StepRecord]:
    """The siblings of the recorded calls that the teacher does not cover, each once."""
    found: dict[str, StepRecord] = {}
    for record in records:
        for call in module.siblings(call_of(record)):
            if not teacher.covers(call):
                extra = StepRecord(record.origin, record.step, record.call_no, call.module, record.module_version, call.args)
                found.setdefault(extra.input_hash, extra)
    return list(found.values())


def train_into(
    folder: str | Path,
    labelled: str | Path,
    modules: Mapping[str, Module],
    replay: Iterable[str | Path] = (),
    options: Options = Options(),  # noqa: B008  (frozen)
    progress: Progress | None = None,
) -> dict[str, VisualModule]:
    """One lesson for each module that has labelled records in the folder ``labelled``, saved as ``folder/NAME``.

    ``replay``: folders of records of earlier tasks, whose inputs keep old knowledge beside those of ``labelled`` itself.

    Raises:
        InputError: no record has a label, or a module without network.
        StaleError, StorageError: as :func:`collect_into`.
    """
    taught: dict[str, VisualModule] = {}
    verdicts = files.read_json(Path(labelled) / VERDICTS) if (Path(labelled) / VERDICTS).exists() else {}
    rows = []
    for name, records in load(labelled).items():
        module = trainable(modules, name)
        kept = [record for record in records if record.teacher is not None and record.weight > 0]
        if not kept:
            continue
        task = module.exercise([call_of(record) for record in kept], [label_of(record) for record in kept])
        old = _replayed(module, name, [*replay, Path(labelled) / BESIDE], options) if options.replay else []
        exercise = module.exercise(old, None) if old else None
        settings = replace(options.settings, seed=derive(options.seed, "train", name) % 2**31)
        given = lesson(module, task, exercise, settings, options.loss, options.retain, f"train {name}")
        result = train(given, Path(folder) / "lessons" / name, progress)
        taught[name] = module.taught(options.retain.finish(result.student))
        taught[name].save(Path(folder) / name)
        row = {"stage": "train", "module": name, "teacher": (kept[0].teacher or {})["name"], "verdict": verdicts.get(name)}
        rows.append(row | {"records": len(records), "kept": len(kept), "replayed": len(old), "share": 1.0})
    if not taught:
        raise InputError("no record has a label that passes the filters", where=labelled, remedy="lower --gate, or another teacher")
    settings_of = {"retain": repr(options.retain), "steps": options.settings.steps, "lessons": rows}
    files.write_json(Path(folder) / MADE, environment.environment([options.seed]) | settings_of)
    return taught


def trainable(modules: Mapping[str, Module], name: str) -> VisualModule:
    """The module ``name``, which must have a network.

    Raises:
        InputError: there is none.
    """
    module = modules.get(name)
    if not isinstance(module, VisualModule):
        known = [key for key, value in modules.items() if isinstance(value, VisualModule)]
        raise InputError(f"no trainable module {name!r}", where="modules", remedy=did_you_mean(name, known))
    return module


def _replayed(module: VisualModule, name: str, folders: Iterable[str | Path], options: Options) -> list[Call]:
    """Calls of the folders' records with their siblings, each folder given equal room."""
    groups = []
    for folder in folders:
        found: dict[str, Call] = {}
        for record in load(folder).get(name, []):
            for call in (call_of(record), *(module.siblings(call_of(record)) if Path(folder).name != BESIDE else ())):
                found.setdefault(StepRecord(record.origin, 0, 0, name, "", call.args).input_hash, call)
        if found:
            groups.append(list(found.values()))
    room = options.most // max(1, len(groups))
    chosen = []
    for number, calls in enumerate(groups):
        rng = numpy_rng(options.seed, "replay", name, number)
        chosen += [calls[i] for i in sorted(rng.permutation(len(calls))[:room].tolist())]
    return chosen


def _merged(parts: Iterable[Records]) -> Records:
    records: Records = {}
    seen: set[str] = set()
    for part in parts:
        for name, found in part.items():
            fresh = [record for record in found if record.input_hash not in seen]
            seen.update(record.input_hash for record in fresh)
            records.setdefault(name, []).extend(fresh)
    return records


def _versions(modules: Mapping[str, Module]) -> dict[str, Any]:
    return {name: module.version for name, module in sorted(modules.items())}


def _counts(records: Records) -> dict[str, int]:
    return {name: len(found) for name, found in records.items()}
