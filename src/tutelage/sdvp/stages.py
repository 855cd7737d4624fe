"""SDVP one step at a time, from folder to folder: collect, label, train. Each goes on where it was stopped.

A folder belongs to one command with one set of settings; others are refused. What is finished is read back.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tutelage import environment, storage
from tutelage.distillation.parallel import SingleProcess
from tutelage.errors import InputError, StorageError, did_you_mean
from tutelage.fields import check_kind
from tutelage.modules.visual_module import VisualModule
from tutelage.programs.serialization import decode, encode
from tutelage.programs.types import Call, Module
from tutelage.sdvp.collect import Records, call_of, collect, image_loader, load_records, read_records, save_images, save_records
from tutelage.sdvp.label import Filters, TeacherField, apply_filters, attach_labels, label_calls, with_related_calls
from tutelage.sdvp.options import SdvpOptions
from tutelage.sdvp.pipeline import calibrate_and_check, check_labels, kept_records, sampled_examples, train_module
from tutelage.sdvp.questions import Question, language_of
from tutelage.sdvp.replay import calls_with_related, unsupported_records
from tutelage.sdvp.tally import ProgramTally, SdvpWarning
from tutelage.sdvp.teacher_check import Probe, warn_of_unseen
from tutelage.sdvp.teachers import ModuleTeacher
from tutelage.workers import WorkerPool, map_tasks, single_threaded

QUESTIONS_PER_SHARD, CALLS_PER_SHARD = 512, 2048
"""Questions of a shard that is collected, and calls of one that is labelled: what a kill can cost."""
SHARDS = "parts"
"""The folder of finished shards, inside one whose work is under way."""
PROGRAMS = "programs.json"
"""How many programs of a collected folder ran, and why the others failed."""
VERDICTS = "verdicts.json"
"""What the probe said of each teacher, in a labelled folder."""
TRAINING_INFO = "made.json"
"""What the training jobs of a folder of taught modules were: its card is written from it."""
UNLABELLED = "beside"
"""The folder, inside a labelled one, of the sibling calls that the teacher does not speak to."""
DELETE = "delete it and run the same command again: the other shards are kept"
Progress = Callable[[int, int], None]


def collect_to_folder(
    folder: str | Path,
    questions: Sequence[Question],
    modules: Mapping[str, Module],
    dsl: str | None = None,
    *,
    stage: str = "",
    shard_size: int = QUESTIONS_PER_SHARD,
    pool: WorkerPool | int = 1,
    progress: Progress | None = None,
) -> Records:
    """Collect the step records of ``questions`` into ``folder``, ``shard_size`` questions a shard, by the workers of ``pool``.

    The records and their order do not depend on the workers. ``dsl`` None: the language that most questions have a program
    in. ``programs.json`` counts the programs that failed, by kind.

    Raises:
        InputError: no program calls a module that can be taught; the message counts the failures, with examples.
        StaleError: the folder holds other work.
        StorageError: it cannot be written.
        WorkerLost: a worker was killed twice over the same shard, or had no memory left; the message names the shard.

    Warns:
        SdvpWarning: most programs failed.
    """
    dsl = dsl or language_of(questions)
    rows = [(q.id, q.programs.get(dsl), sorted((name, image.key) for name, image in q.images.items())) for q in questions]
    settings = {"step": "collect", "dsl": dsl, "stage": stage, "part": shard_size, "modules": _versions(modules)}
    run = storage.RunFolder(folder, settings | {"questions": storage.fingerprint(rows)})
    root = run.root.resolve()  # a worker may stand elsewhere
    if run.done("finished.json"):
        return load_records(root)
    parts = [slice(first, first + shard_size) for first in range(0, len(questions), shard_size)]
    shards = [_shard(root, settings, rows[piece]) for piece in parts]
    tasks = [(shard, questions[piece]) for shard, piece in zip(shards, parts)]
    _fill(shards, collect_shard, tasks, (root, modules, dsl, stage), pool, progress)
    find = image_loader(root, (image for question in questions for image in question.images.values()))
    records: Records = {name: [] for name, module in modules.items() if isinstance(module, VisualModule)}
    seen: set[str] = set()
    for shard in shards:
        for record in read_records(shard, find, sealed=True, remedy=DELETE):
            if (name := record.input_hash) not in seen:
                seen.add(name)
                records[record.module].append(record)
    tally = ProgramTally()
    for shard in shards:
        if (counts := _tally_file(shard)).exists():
            tally.merge(ProgramTally.from_json(storage.read_json(counts)))
    if not any(records.values()):
        remedy = "correct the programs or the modules' names, and collect into a new folder"
        raise InputError(f"no program calls a module that can be taught; {tally}", where=root, remedy=remedy)
    if tally.mostly_failed:
        warnings.warn(f"{root}: {tally}", SdvpWarning, stacklevel=2)
    save_records(records, root)
    storage.write_json(root / PROGRAMS, tally.to_json() | {"calls": len(seen)})
    _finish(root, records)
    return records


def collect_shard(
    root: Path, modules: Mapping[str, Module], dsl: str, stage: str, shard: Path, questions: Sequence[Question]
) -> None:
    """Collect one shard's questions: its file of records, and their pictures in ``root``. What a worker runs."""
    tally = ProgramTally()
    found = [record for records in collect(questions, modules, dsl, stage=stage, tally=tally).values() for record in records]
    save_images(found, root)
    storage.write_json(_tally_file(shard), tally.to_json())
    storage.write_json_lines(shard, (record.to_json(timing=False) for record in found), sealed=True)


def _shard(root: Path, settings: Any, content: Any) -> Path:
    """The file of a shard, named by all that decides what stands in it."""
    return root / SHARDS / f"{storage.fingerprint(settings, content)}.jsonl"


def _tally_file(shard: Path) -> Path:
    return shard.with_suffix(".programs.json")


def _fill(
    shards: Sequence[Path],
    function: Callable[..., None],
    tasks: Sequence[tuple[Any, ...]],
    common: tuple[Any, ...],
    pool: WorkerPool | int,
    progress: Progress | None,
) -> None:
    """Have each shard written that is not there."""
    missing = [number for number, shard in enumerate(shards) if not shard.exists()]
    names = [f"shard {number + 1} of {len(shards)}, {shards[number]}" for number in missing]
    done = len(shards) - len(missing)
    with single_threaded():  # as in every worker: the number of threads may show in a result's last bits
        for _ in map_tasks(function, [tasks[number] for number in missing], pool, common=common, names=names):
            done += 1
            if progress is not None:
                progress(done, len(shards))
    if absent := [shard for shard in shards if not shard.exists()]:
        raise StorageError(
            "a worker wrote this shard where it cannot be seen from here",
            where=absent[0],
            remedy="choose a folder on storage that every node of the cluster shares",
        )


def _finish(root: Path, records: Records) -> None:
    storage.remove_temporary_files(root)
    storage.write_json(root / "finished.json", _counts(records))
    shutil.rmtree(root / SHARDS, ignore_errors=True)


def label_to_folder(
    folder: str | Path,
    records: Records,
    modules: Mapping[str, Module],
    teachers: Mapping[str, ModuleTeacher],
    filters: Filters = Filters(),  # noqa: B008  (frozen)
    probe: Mapping[str, Probe] | None = None,
    *,
    shard_size: int = CALLS_PER_SHARD,
    pool: WorkerPool | int = 1,
    progress: Progress | None = None,
) -> Records:
    """Label ``records`` by the teachers, ``shard_size`` calls a shard, by the workers of ``pool``; the sibling calls that the
    teachers do not speak to are kept beside, for self-distillation.

    ``probe``: labelled calls by module. With them each teacher is calibrated, and one that does not beat its module labels
    nothing; a teacher without such calls is accepted unseen. The verdicts are in ``verdicts.json``. Filters that need
    questions (``final``, ``votes``) are not for this step.

    Raises:
        InputError: a teacher of a module without records or network, or a filter that needs questions.
        StaleError, StorageError, WorkerLost: as :func:`collect_to_folder`.
    """
    if filters.require_right_answer or filters.min_agreement:
        raise InputError("final and votes need the questions", where="filters", remedy="use sdvp.compile")
    hashes = {name: [record.input_hash for record in found] for name, found in records.items()}
    known = probe or {}
    checked = {
        name: calibrate_and_check(teacher, trainable(modules, name), known.get(name, [])) for name, teacher in teachers.items()
    }
    teachers = {name: teacher for name, (teacher, _) in checked.items()}
    verdicts = {name: verdict for name, (_, verdict) in checked.items()}
    who = {name: [teacher.name, teacher.version, teacher.temperature] for name, teacher in teachers.items()}
    settings = {"step": "label", "records": storage.fingerprint(hashes), "teachers": who, "filters": filters, "part": shard_size}
    settings |= {"verdicts": verdicts} if known else {}
    run = storage.RunFolder(folder, settings)
    if run.done("finished.json"):
        return load_records(run.root)
    warn_of_unseen({name: teachers[name].name for name, found in verdicts.items() if found.accepted and not found.calls}, 2)
    for name in teachers:
        if name not in records:
            raise InputError(f"no records of {name}", where="teachers", remedy=did_you_mean(name, list(records)))
    accepted = {name: teacher for name, teacher in teachers.items() if verdicts[name].accepted}
    unlabelled = {name: with_related_calls(records[name], trainable(modules, name), teacher) for name, teacher in accepted.items()}
    fields = label_shards(run.root.resolve(), unlabelled, accepted, shard_size, pool, progress)
    found: Records = {}
    beside: Records = {}
    for name, teacher in teachers.items():
        given = attach_labels(unlabelled[name], fields[name]) if name in accepted else []
        check_labels(given, trainable(modules, name), teacher)
        found[name] = apply_filters(given, filters, (), modules, teachers, "visprog")
        beside[name] = unsupported_records(records[name], trainable(modules, name), teacher)
    save_records(found, run.root)
    save_records(beside, run.root / UNLABELLED)
    storage.write_json(run.root / VERDICTS, verdicts)
    _finish(run.root, found)
    return found


def label_shards(
    root: Path,
    unlabelled: Records,
    teachers: Mapping[str, ModuleTeacher],
    shard_size: int = CALLS_PER_SHARD,
    pool: WorkerPool | int = 1,
    progress: Progress | None = None,
) -> dict[str, list[TeacherField | None]]:
    """What each module's teacher says to each record of ``unlabelled``, in order, through shards of
    ``shard_size`` calls in ``root``."""
    shards, tasks = [], []
    for name, records in unlabelled.items():
        teacher = [name, teachers[name].name, teachers[name].version, teachers[name].temperature]
        for first in range(0, len(records), shard_size):
            piece = records[first : first + shard_size]
            shards.append(_shard(root, teacher, [record.input_hash for record in piece]))
            tasks.append((shards[-1], name, [call_of(record) for record in piece]))
    _fill(shards, label_shard, tasks, (dict(teachers),), pool, progress)
    fields: dict[str, list[TeacherField | None]] = {name: [] for name in unlabelled}
    for shard, name, calls in tasks:
        read = storage.read_json_lines(shard, sealed=True, remedy=DELETE)
        rows = [row and {**row, "hard": decode(check_kind(row, dict, f"{shard}:{number}").get("hard"))} for number, row in read]
        if len(rows) != len(calls):
            raise InputError(f"{len(rows)} labels of {len(calls)} calls", where=shard, remedy=DELETE)
        fields[name] += rows
    return fields


def label_shard(teachers: Mapping[str, ModuleTeacher], shard: Path, name: str, calls: Sequence[Call]) -> None:
    """Have one shard's calls labelled: a line each, null where the teacher has nothing to say. What a worker runs."""
    fields = label_calls(teachers[name], calls)
    storage.write_json_lines(shard, (field and {**field, "hard": encode(field["hard"])} for field in fields), sealed=True)


def train_to_folder(
    folder: str | Path,
    labelled: str | Path,
    modules: Mapping[str, Module],
    replay: Iterable[str | Path] = (),
    options: SdvpOptions = SdvpOptions(),  # noqa: B008  (frozen)
    progress: Progress | None = None,
    parallel: SingleProcess | None = None,
) -> dict[str, VisualModule]:
    """One training job for each module that has labelled records in the folder ``labelled``, saved as ``folder/NAME``.

    ``replay``: folders of records of earlier tasks, whose inputs keep old knowledge beside those of ``labelled`` itself.
    ``parallel``: the processes that share each training job, each of which makes this call.

    Raises:
        InputError: no record has a label, or a module without network.
        StaleError, StorageError: as :func:`collect_to_folder`.
    """
    distilled: dict[str, VisualModule] = {}
    writes = parallel is None or parallel.main
    verdicts = storage.read_json(Path(labelled) / VERDICTS) if (Path(labelled) / VERDICTS).exists() else {}
    rows = []
    for name, records in load_records(labelled).items():
        module = trainable(modules, name)
        kept = kept_records(records)
        if not kept:
            continue
        sources = [*replay, Path(labelled) / UNLABELLED] if options.replay else []
        old = sampled_examples(module, [_replayed_calls(at, module, name) for at in sources], options, "train", name)
        place = Path(folder) / "lessons" / name
        distilled[name], _ = train_module(module, kept, old, options, "train", name, place, progress=progress, parallel=parallel)
        if writes:
            distilled[name].save(Path(folder) / name)
        row = {"stage": "train", "module": name, "teacher": (kept[0].teacher or {})["name"], "verdict": verdicts.get(name)}
        rows.append(row | {"records": len(records), "kept": len(kept), "replayed": len(old) if old else 0, "share": 1.0})
    if not distilled:
        remedy = "lower --min-confidence, or choose another teacher"
        raise InputError("no record has a label that passes the filters", where=labelled, remedy=remedy)
    settings_of = {"retain": repr(options.strategy), "steps": options.settings.steps, "lessons": rows}
    if writes:
        storage.write_json(Path(folder) / TRAINING_INFO, environment.run_metadata([options.seed]) | settings_of)
    return distilled


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


def _replayed_calls(folder: str | Path, module: VisualModule, name: str) -> Iterable[Call]:
    """The calls of a folder's records; those of an earlier task with their related calls."""
    records = load_records(folder).get(name, [])
    return map(call_of, records) if Path(folder).name == UNLABELLED else calls_with_related(records, module)


def _versions(modules: Mapping[str, Module]) -> dict[str, Any]:
    return {name: module.version for name, module in sorted(modules.items())}


def _counts(records: Records) -> dict[str, int]:
    return {name: len(found) for name, found in records.items()}
