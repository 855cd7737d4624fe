"""Collect: run the programs on un-annotated questions and keep what each trainable module was asked."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from tutelage import files
from tutelage.modules.visual_module import VisualModule
from tutelage.programs.language import Call, Module, Value
from tutelage.programs.scheduler import KEEP, Job, Substitute
from tutelage.programs.trace import StepRecord
from tutelage.sdvp.adapt import StepTeacher
from tutelage.sdvp.questions import Question, solve_stream
from tutelage.sdvp.rivals import Routed

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
    import io

    from tutelage.programs.values import Image

    folder = Path(folder)
    pictures = {}
    for module, found in records.items():
        lines = []
        for record in found:
            for value in record.args.values():
                if hasattr(value, "root_key"):
                    pictures[value.root_key] = value
            lines.append(record.to_json(timing=False))
        files.write_json_lines(folder / f"{module}.jsonl", lines)
    for key, image in pictures.items():
        buffer = io.BytesIO()
        Image(image.root, key).to_pil().save(buffer, "PNG")
        files.write_bytes(folder / "images" / f"{files.fingerprint(key)}.png", buffer.getvalue())
    return folder


def load(folder: str | Path) -> Records:
    """Read what :func:`save` wrote.

    Raises:
        InputError: no records there, or a record or picture that cannot be read.
    """
    from tutelage.errors import InputError
    from tutelage.programs.values import Image

    folder = Path(folder)
    found = sorted(folder.glob("*.jsonl"))
    if not found:
        raise InputError("no step records here", where=folder, remedy="run `tutelage sdvp collect` first")
    roots: dict[str, Image] = {}

    def pixels(key: str) -> np.ndarray:
        if key not in roots:
            roots[key] = Image.from_file(folder / "images" / f"{files.fingerprint(key)}.png")
        return roots[key].root

    return {file.stem: [StepRecord.from_json(row, pixels) for _, row in files.read_json_lines(file)] for file in found}
