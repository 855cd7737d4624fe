"""Collect: run the programs on un-annotated questions and keep what each trainable module was asked."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from tutelage import files
from tutelage.errors import InputError
from tutelage.modules.visual_module import VisualModule
from tutelage.programs.album import Album, FileImage
from tutelage.programs.encoding import FindImage
from tutelage.programs.language import Call, Module, Value
from tutelage.programs.scheduler import KEEP, Job, Substitute
from tutelage.programs.trace import StepRecord
from tutelage.programs.values import Image
from tutelage.sdvp.adapt import StepTeacher
from tutelage.sdvp.questions import Question, solve_stream
from tutelage.sdvp.rivals import Routed

REMEDY = "collect or label again, in a new folder"

Records = dict[str, list[StepRecord]]
"""Step records by module, never by call position: branches and loops change the order."""


def collect(
    questions: Sequence[Question],
    modules: Mapping[str, Module],
    dsl: str = "visprog",
    *,
    forced: Mapping[str, StepTeacher] | None = None,
    stage: str = "",
    only: Collection[str] | None = None,
) -> Records:
    """Every distinct call to a trainable module, or to those in ``only``, as first asked.

    On-policy by default: later steps see what the modules themselves answered. With ``forced`` teachers their labels
    stand in, where they cover the call (teacher forcing).
    """
    records: Records = {
        name: [] for name, module in modules.items() if isinstance(module, VisualModule) and (only is None or name in only)
    }
    seen: set[str] = set()
    for trace in solve_stream(questions, teacher_forcing(modules, forced) if forced else modules, dsl, stage=stage):
        for record in trace.steps:
            if record.module in records and record.error is None:
                name = record.input_hash
                if name not in seen:
                    seen.add(name)
                    records[record.module].append(record)
    return records


def teacher_forcing(modules: Mapping[str, Module], teachers: Mapping[str, StepTeacher]) -> dict[str, Module]:
    """The modules, with each teacher's label in place of the module's answer wherever it covers the call."""
    forced = {name: Routed(modules[name], teacher, gate=0.0) for name, teacher in teachers.items()}
    return {**modules, **forced}


def gold_forcing(questions: Sequence[Question], dsl: str) -> Substitute:
    """A substitute that gives every step its true value, where the question knows it."""
    gold = {question.id: question.gold.get(dsl, ()) for question in questions}

    def substitute(job: Job, call: Call, number: int) -> Value:
        values = gold.get(job.id, ())
        value = values[call.step] if 0 <= call.step < len(values) else None
        return KEEP if value is None else value

    return substitute


def call_of(record: StepRecord) -> Call:
    """The call that a record was made from."""
    return Call(record.module, record.args, record.step)


def save(records: Mapping[str, Iterable[StepRecord]], folder: str | Path) -> Path:
    """Write one JSON-lines file a module, and each distinct picture once, as PNG under ``images/``."""
    folder = Path(folder)
    save_pictures((record for found in records.values() for record in found), folder)
    for module, found in records.items():
        rows = [record.to_json(timing=False) for record in found]
        files.write_json_lines(folder / f"{module}.jsonl", rows, sealed=True)
    return folder


def save_pictures(records: Iterable[StepRecord], folder: Path) -> None:
    """Write each distinct picture that the records look at, unless it is there: its name says what it shows."""
    pictures = {value.root_key: value for record in records for value in record.args.values() if hasattr(value, "root_key")}
    for key, image in pictures.items():
        file = _picture(folder, key)
        if not file.exists():
            files.write_bytes(file, as_png(Image(image.root, key)))


def as_png(image: Image) -> bytes:
    """The picture as PNG at the least compression: half the time of the usual, for a seventh more bytes."""
    buffer = io.BytesIO()
    image.to_pil().save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _picture(folder: Path, key: str) -> Path:
    return folder / "images" / f"{files.fingerprint(key)}.png"


def find_images(folder: Path, held: Iterable[Image] = ()) -> FindImage:
    """Images of pictures: those that are ``held`` in memory, others from the files that :func:`save_pictures` wrote; each is
    opened once, and again when somebody looks.

    Raises (what it returns does):
        InputError: a file is absent or no picture.
    """
    pictures, album = {image.root_key: image for image in held if not isinstance(image, FileImage)}, Album()

    def find(key: str, region: tuple[int, int, int, int]) -> Image:
        if key in pictures:
            return pictures[key].part(region)
        path = _picture(folder, key)
        album.facts(path)
        return FileImage(album, path, key, region)

    return find


def load(folder: str | Path) -> Records:
    """Read what :func:`save` wrote.

    Raises:
        InputError: no records there, a record or picture that cannot be read, or a bit of a file has changed.
    """
    folder = Path(folder)
    found = sorted(folder.glob("*.jsonl"))
    if not found:
        raise InputError("no step records here", where=folder, remedy="run `tutelage sdvp collect` first")
    find = find_images(folder)
    return {file.stem: list(read_records(file, find)) for file in found}


def read_records(file: Path, find: FindImage, *, sealed: bool = False, remedy: str = REMEDY) -> Iterator[StepRecord]:
    """The records of one file; ``sealed``: one without a digest is refused. The last error comes at the file's end.

    Raises:
        InputError: a line is no record, or a bit of the file has changed; the message names file and line.
    """
    for number, row in files.read_json_lines(file, sealed=sealed, remedy=remedy):
        try:
            yield StepRecord.from_json(row, find)
        except InputError as error:
            message = f"{error.where}: {error.message}" if error.where is not None else error.message
            raise InputError(message, where=f"{file}:{number}", remedy=error.remedy or remedy) from error
