"""Programs that are given: read from a JSON-lines file, a line a program."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tutelage.errors import InputError, did_you_mean
from tutelage.storage import read_json_lines

DSLS = ("visprog", "viper")
_INPUTS = (("IMAGE",), ("LEFT", "RIGHT"))
_REMEDY = '{"id": "1", "dsl": "visprog", "program": "…", "images": {"IMAGE": "photo.png"}}'


@dataclass(frozen=True)
class StoredProgram:
    """One line of a file of programs: ``images`` maps IMAGE, or LEFT and RIGHT, to paths; the rest is optional."""

    id: str
    dsl: str
    program: str
    images: Mapping[str, str]
    question: str | None = None
    answer: Any = None
    line: int = 0
    extra: Mapping[str, Any] = field(default_factory=dict)


def read_programs(path: str | Path) -> Iterator[StoredProgram]:
    """Yield the programs of a JSON-lines file, a line a program: {id, dsl, program, images, question?, answer?, …}.

    Paths of images are as they stand in the file; programs are not parsed here.

    Raises:
        InputError: the file is absent, a line is not JSON, or a field is missing, wrong or doubled; the line is named.
    """
    seen: dict[str, int] = {}
    for number, value in read_json_lines(path):
        where = f"{path}:{number}"
        if not isinstance(value, dict):
            raise InputError("not a JSON object", where=where, remedy=_REMEDY)
        program = _program(value, number, where)
        if program.id in seen:
            raise InputError(f"id {program.id!r} stands on line {seen[program.id]} too", where=where)
        seen[program.id] = number
        yield program


def _program(value: dict[str, Any], number: int, where: str) -> StoredProgram:
    for name in ("id", "dsl", "program"):
        if not isinstance(value.get(name), str):
            state = "is not a text" if name in value else "is missing"
            raise InputError(f"field {name!r} {state}", where=where, remedy=_REMEDY)
    if value["dsl"] not in DSLS:
        raise InputError(f"unknown dsl {value['dsl']!r}", where=where, remedy=did_you_mean(value["dsl"], list(DSLS)))
    images = value.get("images")
    if not isinstance(images, dict) or tuple(sorted(images)) not in _INPUTS:
        raise InputError("field 'images' names IMAGE, or LEFT and RIGHT", where=where, remedy=_REMEDY)
    if not all(isinstance(image, str) for image in images.values()):
        raise InputError("field 'images' maps names to paths", where=where, remedy=_REMEDY)
    question = value.get("question")
    if question is not None and not isinstance(question, str):
        raise InputError("field 'question' is not a text", where=where, remedy=_REMEDY)
    known = {"id", "dsl", "program", "images", "question", "answer"}
    extra = {name: item for name, item in value.items() if name not in known}
    return StoredProgram(value["id"], value["dsl"], value["program"], images, question, value.get("answer"), number, extra)
