"""Answers of students to questions on concepts: read from files, cut into pieces, and made into training data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from tutelage.datasets.student_logs import MAX_LOG_BYTES, hashed_name, log_rows
from tutelage.distillation.data import TensorData
from tutelage.errors import InputError, did_you_mean
from tutelage.reading import read_text
from tutelage.systems.cakt.clips import encode

PIECE = 201
_RIGHT = {"0": 0, "1": 1, "0.0": 0, "1.0": 1}


@dataclass(frozen=True)
class Answers:
    """What one student answered, in order: the concept of each question, and 1 where the answer was right, else 0."""

    student: str
    concepts: tuple[str, ...]
    right: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.concepts)


def read_answers(
    path: str | Path,
    *,
    student: str = "user_id",
    concept: str = "skill_id",
    correct: str = "correct",
    order: str | None = "order_id",
    salt: str = "",
    encoding: str = "utf-8",
) -> list[Answers]:
    """A log in the columns of ASSISTments 2009, a row an answer, separated by commas or tabs; other columns are not looked at.

    Names of students are replaced by a hash of ``salt`` and the name, so that none is stored. Rows without a concept are left
    out, as in published work. Rows of one student with one order are one answer on several concepts: they become one answer
    on the concept that joins their names (``a + b``), for the same answer twice in a row gives itself away (Xiong, Zhao, Van
    Inwegen and Beck, 2016).

    Args:
        path: the file; its first line names the columns.
        student, concept, correct: columns. ASSISTments 2015 has its concepts in ``sequence_id`` and its order in ``log_id``;
            2017 has ``studentId``, ``skill``, ``correct`` and ``startTime``.
        order: the column of numbers by which a student's answers are sorted; None: as in the file.
        salt: what is hashed with each student's name.
        encoding: of the text; the file of 2009 is ``latin-1``.

    Raises:
        InputError: a column is missing, a row has another number of fields, a cell of student or order is empty or no
            number, an answer is neither 0 nor 1 (the message names the line), or no row has a concept.
    """
    names = [student, concept, correct] + ([order] if order is not None else [])

    def remedy(columns: list[str]) -> str:
        return (
            f"name it: student=, concept=, correct= or order= (None: as in the file); columns here: {', '.join(columns) or 'none'}"
        )

    found: dict[str, list[tuple[float, str, int, str]]] = {}
    for where, cells in log_rows(path, names, remedy, encoding):
        if not cells[0]:
            raise InputError("a row without a student", where=where, remedy=f"fill the column {student!r}, or leave the row out")
        if cells[2] not in _RIGHT:
            raise InputError(f"{cells[2]!r} is no answer", where=where, remedy="0 for wrong, 1 for right")
        place = _number(cells[3], where) if order is not None else len(found.get(cells[0], ()))
        if cells[1]:
            found.setdefault(cells[0], []).append((place, cells[1], _RIGHT[cells[2]], where))
    if not found:
        raise InputError("the log has no answer with a concept", where=path, remedy="name another column: concept=…")
    return [_joined(hashed_name(name, salt), sorted(rows, key=lambda row: row[0])) for name, rows in found.items()]


def _number(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{text!r} is no place in an order", where=where, remedy="a number, or order=None: as in the file")
    return value


def _joined(student: str, rows: Sequence[tuple[float, str, int, str]]) -> Answers:
    """The rows of a student, those of one place in the order as one answer."""
    places: dict[float, tuple[set[str], int]] = {}
    for place, concept, right, where in rows:
        names, first = places.setdefault(place, (set(), right))
        if right != first:
            raise InputError(f"two answers of the order {place:g} disagree", where=where, remedy="number each answer anew")
        names.add(concept)
    return Answers(
        student, tuple(" + ".join(sorted(names)) for names, _ in places.values()), tuple(one for _, one in places.values())
    )


def read_three_lines(path: str | Path) -> list[Answers]:
    """The layout of published data sets: three lines a student, the length, the concepts and the answers, by commas.

    Students have no names there; they are numbered.

    Raises:
        InputError: a length that is not that of the lines, or an answer that is neither 0 nor 1; the message names the line.
    """
    lines = [line.strip().rstrip(",") for line in read_text(path, MAX_LOG_BYTES).splitlines()]
    while lines and not lines[-1]:
        lines.pop()
    if not lines or len(lines) % 3:
        raise InputError(f"{len(lines)} lines are not three a student", where=path, remedy="length, concepts, answers")
    found = []
    for first in range(0, len(lines), 3):
        concepts, right = ([cell.strip() for cell in line.split(",")] for line in lines[first + 1 : first + 3])
        if lines[first] != str(len(concepts)) or len(concepts) != len(right) or not all(concepts):
            counts = f"a length of {lines[first]!r}, {len(concepts)} concepts and {len(right)} answers"
            raise InputError(counts, where=f"{path}:{first + 1}", remedy="as many concepts and answers as the length says")
        if wrong := [cell for cell in right if cell not in _RIGHT]:
            raise InputError(f"{wrong[0]!r} is no answer", where=f"{path}:{first + 3}", remedy="0 for wrong, 1 for right")
        found.append(Answers(f"student {first // 3}", tuple(concepts), tuple(_RIGHT[cell] for cell in right)))
    return found


def pieces(students: Sequence[Answers], length: int = PIECE) -> list[Answers]:
    """The answers cut into pieces of at most ``length``; a piece of one answer, which has nothing to predict, is left out."""
    cut = [
        Answers(one.student, one.concepts[start : start + length], one.right[start : start + length])
        for one in students
        for start in range(0, len(one), length)
    ]
    return [one for one in cut if len(one) > 1]


def answer_data(rows: Sequence[Answers], concepts: Sequence[str]) -> TensorData:
    """Training data of a network that predicts the next answer: task ``multi-label``.

    Inputs: ``interactions`` and ``next_concept`` [N, T] (see :class:`~tutelage.systems.cakt.network.CAKT`), T the longest row
    less 1; labels [N, T], the next answers, -1 in padding. The weight of a row is its number of steps, so that the loss is the
    mean over all steps of a batch.

    Raises:
        InputError: no row of two answers, a concept that is not among ``concepts``, or an answer that is neither 0 nor 1.
    """
    rows = [one for one in rows if len(one) > 1]
    if not rows:
        raise InputError("no student has two answers", where="answers", remedy="the second answer is the first to predict")
    places = {name: i + 1 for i, name in enumerate(concepts)}
    longest = max(map(len, rows)) - 1
    inputs = {name: torch.zeros(len(rows), longest, dtype=torch.int64) for name in ("interactions", "next_concept")}
    labels = torch.full((len(rows), longest), -1.0)
    for i, one in enumerate(rows):
        ids = torch.tensor([concept_id(places, name) for name in one.concepts])
        if not set(one.right) <= {0, 1} or len(one.right) != len(ids):
            raise InputError("an answer is neither 0 nor 1", where=f"answers of {one.student}", remedy="0 or 1, one a concept")
        right, steps = torch.tensor(one.right), len(ids) - 1
        inputs["interactions"][i, :steps] = encode(ids, right, len(places))[:-1]
        inputs["next_concept"][i, :steps] = ids[1:]
        labels[i, :steps] = right[1:].float()
    return TensorData(inputs, labels, weights=(labels >= 0).sum(1).float())


def concept_id(places: dict[str, int], name: str) -> int:
    """The number of a concept, from 1.

    Raises:
        InputError: it is unknown; the message offers the nearest names.
    """
    if name not in places:
        raise InputError(f"unknown concept {name!r}", where="concept", remedy=did_you_mean(str(name), list(places)))
    return places[name]
