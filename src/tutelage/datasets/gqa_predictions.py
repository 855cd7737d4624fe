"""Predictions to GQA's questions: read in the layouts that people use, kept compactly, and written as a submission."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from tutelage import storage
from tutelage.datasets.gqa import read_questions
from tutelage.datasets.json_records import JsonRecord, Progress, items, lines
from tutelage.errors import InputError

Normalization = Literal["none", "llava"]
"""How predictions are rewritten before they are compared: not at all, as the official script; or ``llava``, as LLaVA's
published conversion for GQA does: full stops at the end are removed and letters become lower case ("Red." is red)."""
ID_FIELDS, ANSWER_FIELDS = ("questionId", "question_id"), ("prediction", "text", "answer")
LAYOUT = '[{"questionId", "prediction"}], or JSON lines of {"question_id", "text"}'


class Predictions:
    """Answers by question id: 1,000,000 of them take about 200 MB.

    An id that came as an integer has lost its leading zeros; it stands for the question whose id is equal without them.
    """

    __slots__ = ("index", "integers", "answers", "duplicates", "_pool")

    def __init__(self) -> None:
        self.index: dict[str, int] = {}
        self.integers: dict[int, int] = {}
        self.answers: list[str] = []
        self.duplicates = 0
        self._pool: dict[str, str] = {}

    def add(self, question_id: str | int, answer: str) -> int:
        """Keep an answer, in place of an earlier one to the same question; returns the question's number."""
        answer = self._pool.setdefault(answer, answer)
        index: dict[Any, int] = self.integers if isinstance(question_id, int) else self.index
        number = index.setdefault(question_id, len(self.answers))
        if number == len(self.answers):
            self.answers.append(answer)
        else:
            self.answers[number] = answer
            self.duplicates += 1
        return number

    def number(self, question_id: str | int) -> int | None:
        """The number of the question; None where it has no prediction."""
        if isinstance(question_id, int):
            return self.integers.get(question_id, self.index.get(str(question_id)))
        number = self.index.get(question_id)
        if number is None and self.integers and question_id.isdecimal():
            return self.integers.get(int(question_id))
        return number

    def name(self, number: int) -> str:
        """The id of a question by its number."""
        both: dict[Any, int] = {**self.index, **self.integers}
        return str(next(key for key, other in both.items() if other == number))


def read_predictions(
    path: str | Path,
    *,
    duplicates: Literal["error", "last"] = "error",
    normalize: Normalization = "none",
    progress: Progress | None = None,
) -> Predictions:
    """Read a prediction file: the official JSON list, or JSON lines.

    A record has an id (``questionId`` or ``question_id``, text or an integer) and an answer (``prediction``, ``text`` or
    ``answer``).

    Args:
        path: The file.
        duplicates: ``last`` counts an id that is given twice and keeps its last answer.
        normalize: How answers are rewritten, see :data:`Normalization`.
        progress: Called with bytes read.

    Raises:
        InputError: a broken file, a missing field, or an id given twice; file and record are named.
    """
    predictions = Predictions()
    for where, value in _records(Path(path), progress):
        record = JsonRecord(value, where)
        question_id = record.key(_field(record, ID_FIELDS))
        answer = record.text(_field(record, ANSWER_FIELDS))
        predictions.add(question_id, answer if normalize == "none" else answer.strip().rstrip(".").lower())
        if predictions.duplicates and duplicates == "error":
            raise InputError(
                f"question {question_id!r} is answered twice",
                where=record.where,
                remedy="keep one prediction for each question, or let the last one count",
            )
    return predictions


def write_submission(
    questions: str | Path, predictions: Predictions, file: str | Path, *, missing: Literal["error", "wrong"] = "error"
) -> dict[str, int]:
    """Write the official submission ``[{"questionId", "prediction"}]``, in the order of the questions, to ``file``.

    The questions may be a hidden test split, without answers. With ``missing="wrong"`` a question without a prediction gets
    an empty one.

    Returns:
        How many questions the file answers, how many of them have no prediction, and how many predictions it leaves out.

    Raises:
        InputError: a broken file, no questions, or predictions that are missing.
        StorageError: the file cannot be written.
    """
    rows, absent = [], []
    for question in read_questions(questions, annotated=False):
        number = predictions.number(question.id)
        if number is None:
            absent.append(question.id)
        rows.append({"questionId": question.id, "prediction": "" if number is None else predictions.answers[number]})
    if not rows:
        raise InputError("there are no questions", where=questions, remedy="is it the right file?")
    if absent and missing == "error":
        message = f"{len(absent)} questions have no prediction, such as {', '.join(absent[:3])}"
        raise InputError(message, where="GQA", remedy="predict every question, or count missing ones as wrong")
    storage.write_json(Path(file), rows)
    unknown = len(predictions.answers) - (len(rows) - len(absent))
    return {"questions": len(rows), "missingPredictions": len(absent), "unknownPredictions": unknown}


def _records(path: Path, progress: Progress | None) -> Iterator[tuple[str, Any]]:
    """(where, value) of each record of a JSON list or of JSON lines."""
    try:
        with path.open("rb") as file:
            is_list = file.read(64).lstrip().startswith(b"[")
    except OSError as error:
        raise InputError(f"cannot read: {error.strerror}", where=path, remedy="check the path and its rights") from error
    if is_list:
        yield from ((f"{path}: prediction {number}", value) for number, value in items(path, progress))
    else:
        yield from ((f"{path}:{number}", value) for number, value in lines(path, progress))


def _field(record: JsonRecord, names: tuple[str, ...]) -> str:
    """The one field among ``names`` that the record has."""
    found = [name for name in names if name in record.value]
    if len(found) != 1:
        state = f"fields {' and '.join(map(repr, found))} contradict" if found else f"field {names[0]!r} is missing"
        raise InputError(f"{state}: give one of {', '.join(names)}", where=record.where, remedy=f"a file is {LAYOUT}")
    return found[0]
