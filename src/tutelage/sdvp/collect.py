"""Collect: run the programs on un-annotated questions and keep what each trainable module was asked."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from tutelage import storage
from tutelage.errors import InputError
from tutelage.modules.visual_module import VisualModule
from tutelage.programs.image_cache import FileImage, ImageCache
from tutelage.programs.run_context import USE_MODULE, Job, Override
from tutelage.programs.serialization import FindImage
from tutelage.programs.trace import StepRecord
from tutelage.programs.types import Call, Module, Value
from tutelage.programs.values import Image
from tutelage.sdvp.baselines import RoutedModule
from tutelage.sdvp.questions import Question, solve_stream
from tutelage.sdvp.tally import ProgramTally
from tutelage.sdvp.teachers import ModuleTeacher

REMEDY = "collect or label again, in a new folder"

Records = dict[str, list[StepRecord]]
"""Step records by module, never by call position: branches and loops change the order."""


def collect(
    questions: Sequence[Question],
    modules: Mapping[str, Module],
    dsl: str | None = None,
    *,
    teacher_forced: Mapping[str, ModuleTeacher] | None = None,
    stage: str = "",
    only: Collection[str] | None = None,
    tally: ProgramTally | None = None,
) -> Records:
    """Every distinct call to a trainable module, as it was first made.

    Args:
        questions: They need no answers.
        modules: By name. Later steps of a program see the modules' own outputs (on-policy).
        dsl: The language of the programs; None: that which most of the questions have a program in.
        teacher_forced: Teachers whose labels stand in for the outputs of their modules, where they support the call.
        stage: The task's name, for the records.
        only: The modules whose calls are collected; None: all that can be trained.
        tally: Counts the programs, if given.
    """
    records: Records = {
        name: [] for name, module in modules.items() if isinstance(module, VisualModule) and (only is None or name in only)
    }
    seen: set[str] = set()
    for trace in solve_stream(questions, teacher_forcing(modules, teacher_forced) if teacher_forced else modules, dsl, stage=stage):
        if tally is not None:
            tally.add(trace)
        for record in trace.steps:
            if record.module in records and record.error is None:
                name = record.input_hash
                if name not in seen:
                    seen.add(name)
                    records[record.module].append(record)
    if tally is not None:
        tally.calls += len(seen)
    return records


def teacher_forcing(modules: Mapping[str, Module], teachers: Mapping[str, ModuleTeacher]) -> dict[str, Module]:
    """The modules, with each teacher's label in place of the module's answer wherever it covers the call."""
    forced = {name: RoutedModule(modules[name], teacher, min_confidence=0.0) for name, teacher in teachers.items()}
    return {**modules, **forced}


def gold_forcing(questions: Sequence[Question], dsl: str) -> Override:
    """A substitute that gives every step its true value, where the question knows it."""
    gold = {question.id: question.gold.get(dsl, ()) for question in questions}

    def substitute(job: Job, call: Call, number: int) -> Value:
        values = gold.get(job.id, ())
        value = values[call.step] if 0 <= call.step < len(values) else None
        return USE_MODULE if value is None else value

    return substitute


def call_of(record: StepRecord) -> Call:
    """The call that a record was made from."""
    return Call(record.module, record.args, record.step)


def save_records(records: Mapping[str, Iterable[StepRecord]], folder: str | Path) -> Path:
    """Write one JSON-lines file a module, and each distinct picture once, as PNG under ``images/``."""
    folder = Path(folder)
    save_images((record for found in records.values() for record in found), folder)
    for module, found in records.items():
        rows = [record.to_json(timing=False) for record in found]
        storage.write_json_lines(folder / f"{module}.jsonl", rows, sealed=True)
    return folder


def save_images(records: Iterable[StepRecord], folder: Path) -> None:
    """Write each distinct picture that the records look at, unless it is there: its name says what it shows."""
    pictures = {value.root_key: value for record in records for value in record.args.values() if hasattr(value, "root_key")}
    for key, image in pictures.items():
        file = _image_file(folder, key)
        if not file.exists():
            storage.write_bytes(file, to_png(Image(image.root, key)))


def to_png(image: Image) -> bytes:
    """The picture as PNG at the least compression: half the time of the usual, for a seventh more bytes."""
    buffer = io.BytesIO()
    image.to_pil().save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _image_file(folder: Path, key: str) -> Path:
    return folder / "images" / f"{storage.fingerprint(key)}.png"


def image_loader(folder: Path, in_memory: Iterable[Image] = ()) -> FindImage:
    """Images of pictures: those that are ``in_memory`` in memory, others from the files that :func:`save_images` wrote; each is
    opened once, and again when it is used.

    Raises (what it returns does):
        InputError: a file is absent or no picture.
    """
    pictures, album = {image.root_key: image for image in in_memory if not isinstance(image, FileImage)}, ImageCache()

    def find(key: str, region: tuple[int, int, int, int]) -> Image:
        if key in pictures:
            return pictures[key].part(region)
        path = _image_file(folder, key)
        album.key_and_size(path)
        return FileImage(album, path, key, region)

    return find


def load_records(folder: str | Path) -> Records:
    """Read what :func:`save_records` wrote.

    Raises:
        InputError: no records there, a record or picture that cannot be read, or a bit of a file has changed.
    """
    folder = Path(folder)
    found = sorted(folder.glob("*.jsonl"))
    if not found:
        raise InputError("no step records here", where=folder, remedy="run `tutelage sdvp collect` first")
    find = image_loader(folder)
    return {file.stem: list(read_records(file, find)) for file in found}


def read_records(file: Path, find: FindImage, *, sealed: bool = False, remedy: str = REMEDY) -> Iterator[StepRecord]:
    """The records of one file; ``sealed``: one without a digest is refused. The last error comes at the file's end.

    Raises:
        InputError: a line is no record, or a bit of the file has changed; the message names file and line.
    """
    for number, row in storage.read_json_lines(file, sealed=sealed, remedy=remedy):
        try:
            yield StepRecord.from_json(row, find)
        except InputError as error:
            message = f"{error.where}: {error.message}" if error.where is not None else error.message
            raise InputError(message, where=f"{file}:{number}", remedy=error.remedy or remedy) from error
