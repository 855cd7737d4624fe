"""The files of teaching: problems, samples and exams as JSON lines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tutelage.datasets.json_records import JsonRecord
from tutelage.errors import InputError
from tutelage.storage import read_json_lines, write_json_lines
from tutelage.systems.lbt.exams import Exam, Shot
from tutelage.systems.lbt.selection import Sample

REMEDY = 'one JSON object a line: {"id", "problem", …}'


@dataclass(frozen=True)
class Problem:
    """A problem, its right answer where that is known, and the teacher's samples."""

    id: str
    problem: str
    truth: str | None = None
    samples: tuple[Sample, ...] = field(default=())


def read_problems(path: str | Path) -> list[Problem]:
    """Problems of a JSON-lines file: ``id``, ``problem``, and where known ``truth``.

    Raises:
        InputError: no line, a field of the wrong type, or an id twice; the line is named.
    """
    found: dict[str, Problem] = {}
    for record in _records(path):
        one = _problem(record)
        if one.id in found:
            raise InputError(f"the id {one.id!r} is there twice", where=record.where, remedy="give every problem its own")
        found[one.id] = one
    return _some(list(found.values()), path)


def read_samples(paths: str | Path | Sequence[str | Path]) -> list[Problem]:
    """Problems with their samples, of JSON lines ``id``, ``problem``, ``rationale``, ``answer`` (null: none was found), and where
    known ``truth``, ``right`` and ``total``.

    Of several files, such as of several students, equal samples are one: its figures are added up.

    Raises:
        InputError: no line, a field of the wrong type, two problems under one id, or files that hold different samples.
    """
    files = [paths] if isinstance(paths, (str, Path)) else list(paths)
    found: dict[str, Problem] = {}
    for number, path in enumerate(files):
        own: dict[str, Problem] = {}
        for record in _records(path):
            problem = _problem(record)
            known = own.get(problem.id, problem)
            if (known.problem, known.truth) != (problem.problem, problem.truth):
                raise InputError(f"two problems with the id {problem.id!r}", where=record.where, remedy="give each its own id")
            right, total = (_count(record, name) for name in ("right", "total"))
            if right > total:
                raise record.error("right", "at most total")
            sample = Sample(record.text("rationale"), record.optional_text("answer"), right, total)
            own[problem.id] = replace(known, samples=(*known.samples, sample))
        _some(list(own), path)
        found = own if number == 0 else _added(found, own, path)
    return list(found.values())


def write_samples(path: str | Path, problems: Iterable[Problem]) -> Path:
    """Write samples as JSON lines, whole or not at all."""
    return write_json_lines(path, (_row(one, sample) for one in problems for sample in one.samples))


def read_exams(path: str | Path) -> dict[str, list[Exam]]:
    """Exams by problem, of JSON lines ``id`` (of the teacher's problem), ``problem``, ``answer``.

    Raises:
        InputError: no line, or a field of the wrong type.
    """
    found: dict[str, list[Exam]] = {}
    for record in _records(path):
        found.setdefault(str(record.key("id")), []).append(Exam(record.text("problem"), record.text("answer")))
    _some(list(found), path)
    return found


def read_shots(path: str | Path) -> list[Shot]:
    """Solved problems of JSON lines ``problem``, ``rationale``, ``answer``, in their order.

    Raises:
        InputError: no line, or a field of the wrong type.
    """
    names = ("problem", "rationale", "answer")
    return _some([Shot(*(record.text(name) for name in names)) for record in _records(path)], path)


def exams_of(problem: Problem, exams: Mapping[str, list[Exam]]) -> list[Exam]:
    """The exams of a problem.

    Raises:
        InputError: there is none.
    """
    if problem.id not in exams:
        raise InputError(f"no exam for the problem {problem.id!r}", where="exams", remedy="add some under its id")
    return exams[problem.id]


def _row(problem: Problem, sample: Sample) -> dict[str, Any]:
    known = {} if problem.truth is None else {"truth": problem.truth}
    return {"id": problem.id, "problem": problem.problem, **known, **vars(sample)}


def _records(path: str | Path) -> Iterator[JsonRecord]:
    return (JsonRecord(value, f"{path}:{number}") for number, value in read_json_lines(path, remedy=REMEDY))


def _problem(record: JsonRecord) -> Problem:
    return Problem(str(record.key("id")), record.text("problem"), record.optional_text("truth"))


def _count(record: JsonRecord, name: str) -> int:
    value = record.value.get(name, 0)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise record.error(name, "a whole number from 0")
    return value


def _some(found: list[Any], path: str | Path) -> list[Any]:
    if not found:
        raise InputError("the file holds no line", where=path, remedy="give at least one JSON object a line")
    return found


def _added(one: dict[str, Problem], other: dict[str, Problem], path: str | Path) -> dict[str, Problem]:
    def texts(problems: dict[str, Problem]) -> dict[str, list[tuple[str, str | None]]]:
        return {name: [(sample.rationale, sample.answer) for sample in it.samples] for name, it in problems.items()}

    if texts(one) != texts(other):
        raise InputError("other samples than in the first file", where=path, remedy="give scores of the same samples, in order")
    added = {}
    for name, problem in one.items():
        pairs = zip(problem.samples, other[name].samples, strict=True)
        samples = tuple(replace(a, right=a.right + b.right, total=a.total + b.total) for a, b in pairs)
        added[name] = replace(problem, samples=samples)
    return added
