"""From a table of (teacher, language) cells to PGR, z, PG and a ranking; the table and its scaler are plain files."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from tutelage.datasets.confidence_intervals import t_interval
from tutelage.datasets.rank_correlation import spearman
from tutelage.errors import InputError
from tutelage.fields import check_items
from tutelage.reading import read_json, read_text
from tutelage.storage import write_json, write_text

ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
MOST_CELLS = 100_000


@dataclass(frozen=True)
class Cell:
    """One teacher in one language: a row of the table.

    Attributes:
        teacher, language: their names.
        distinct_prompts, distinct_responses: see ``metrics.distinctness``.
        rubric: the mean score of the judge, 1..5.
        perplexity: the mean over rows.
        prompt_length, response_length: mean numbers of tokens, for the regression only.
        student, base, reference: scores of the student trained on this cell, of the model it started from, and of the
            reference model, in one unit; None where no student was trained.
        size: of the teacher, in billions of parameters, where known.
    """

    teacher: str
    language: str
    distinct_prompts: float
    distinct_responses: float
    rubric: float
    perplexity: float
    prompt_length: float | None = None
    response_length: float | None = None
    student: float | None = None
    base: float | None = None
    reference: float | None = None
    size: float | None = None

    @property
    def gain(self) -> float | None:
        """The student's score less the base's."""
        return None if self.student is None or self.base is None else self.student - self.base


NUMBERS = tuple(item.name for item in fields(Cell))[2:]
INTRINSIC, OUTCOME = NUMBERS[:4], ("student", "base", "reference")


# -- files -----------------------------------------------------------------------------------------------------------


def read_table(path: str | Path) -> list[Cell]:
    """The cells of a CSV file with a header of :class:`Cell`'s names; only the lengths, the size and the three scores of
    students may be left out, as whole columns.

    Raises:
        InputError: a column or a number is missing or wrong, a score is outside its range, or a cell stands there twice;
            the message names line and column.
    """
    reader = csv.DictReader(io.StringIO(read_text(path)), strict=True)
    names = list(reader.fieldnames or ())
    needed = ("teacher", "language", *INTRINSIC)
    if absent := [name for name in needed if name not in names]:
        raise InputError(f"no column {absent[0]!r}", where=path, remedy=f"the first line names {', '.join(needed)}")
    given = [name for name in OUTCOME if name in names]
    if given and len(given) < len(OUTCOME):
        missing = next(name for name in OUTCOME if name not in given)
        raise InputError(
            f"no column {missing!r} beside {given[0]!r}", where=path, remedy="give student, base and reference, or none"
        )
    cells, found = list[Cell](), dict[tuple[str, str], int]()
    try:
        for record in reader:
            where = f"{path}:{reader.line_num}"
            if None in record or None in record.values():
                raise InputError("not as many values as columns", where=where, remedy="a value for each column, none more")
            cell = _cell(record, where)
            key = (cell.teacher, cell.language)
            if key in found:
                message = f"{cell.teacher!r} in {cell.language!r} stands in line {found[key]} too"
                raise InputError(message, where=where, remedy="one line for each teacher and language")
            found[key] = reader.line_num
            cells.append(cell)
            if len(cells) > MOST_CELLS:
                raise InputError(f"more than {MOST_CELLS:,} cells", where=path, remedy="is this the right file?")
    except csv.Error as error:
        raise InputError(f"not CSV: {error}", where=f"{path}:{reader.line_num}", remedy="close quotes; use commas") from error
    if not cells:
        raise InputError("the table holds no cell", where=path, remedy="one line for each teacher and language")
    return cells


def _cell(record: Mapping[str, str], where: str) -> Cell:
    values: dict[str, Any] = {}
    for name in ("teacher", "language"):
        if not record[name].strip() or not record[name].isprintable():
            remedy = "name teacher and language in every line, in printable characters"
            raise InputError(f"{record[name][:40]!r} is no name", where=f"{where}: {name}", remedy=remedy)
        values[name] = record[name].strip()
    for name in (name for name in NUMBERS if name in record):
        text = record[name].strip()
        if not text and name == "size":  # which nobody may know
            continue
        if not text:
            remedy = "measure it, or leave out the line; students' scores and lengths may be left out as a whole column"
            raise InputError("a missing cell", where=f"{where}: {name}", remedy=remedy)
        try:
            values[name] = float(text)
        except ValueError:
            raise InputError(f"{text[:40]!r} is no number", where=f"{where}: {name}", remedy="write it as 0.25") from None
    cell = Cell(**values)
    check_cell(cell, where)
    return cell


def check_cell(cell: Cell, where: object) -> None:
    """Refuse numbers outside their ranges.

    Raises:
        InputError: the message names the column.
    """
    ranges = {"distinct_prompts": (0.0, 2.0), "distinct_responses": (0.0, 2.0), "rubric": (1.0, 5.0), "perplexity": (1.0, math.inf)}
    for name in NUMBERS:
        value = getattr(cell, name)
        low, high = ranges.get(name, (-math.inf, math.inf) if name in OUTCOME else (0.0, math.inf))
        if value is not None and not (math.isfinite(value) and low - 1e-9 <= value <= high + 1e-9):
            raise InputError(f"{value} is no {name} from {low:g} to {high:g}", where=f"{where}: {name}", remedy="measure it again")


def write_table(path: str | Path, cells: Sequence[Cell]) -> Path:
    """Write cells as CSV; columns that no cell has are left out. Numbers are read back to the same bits."""
    names = [item.name for item in fields(Cell) if any(getattr(cell, item.name) is not None for cell in cells)]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names)
    for cell in cells:
        values = (getattr(cell, name) for name in names)
        writer.writerow("" if value is None else repr(value) if isinstance(value, float) else value for value in values)
    return write_text(path, out.getvalue())


# -- z ---------------------------------------------------------------------------------------------------------------


def quality_columns(cells: Sequence[Cell]) -> np.ndarray:
    """[cells, 4]: distinctness of prompts and of responses, rubric, ``-log(1 + perplexity)``; more is better in each."""
    return np.array([[c.distinct_prompts, c.distinct_responses, c.rubric, -math.log1p(c.perplexity)] for c in cells])


@dataclass(frozen=True)
class Scaler:
    """Mean and population standard deviation of the four quality columns over the cells of one table.

    z depends on the cells it was made with: store the scaler beside the scores, and use it for cells that come later. A
    column that does not vary counts 0 for every cell.
    """

    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    @classmethod
    def fit(cls, cells: Sequence[Cell]) -> Scaler:
        """The scaler of these cells.

        Raises:
            InputError: fewer than two cells.
        """
        if len(cells) < 2:
            raise InputError(f"{len(cells)} cells have no spread", where="table", remedy="give two or more, or a stored scaler")
        columns = quality_columns(cells)
        spread = columns.std(0)
        spread[spread < 1e-12 * np.maximum(1, abs(columns).max(0))] = 0
        return cls(tuple(columns.mean(0).tolist()), tuple(spread.tolist()))

    @property
    def constant(self) -> list[str]:
        """The columns that do not vary."""
        return [name for name, spread in zip(INTRINSIC, self.deviation, strict=True) if not spread]

    def z(self, cells: Sequence[Cell]) -> np.ndarray:
        """The mean of the four standardised columns, for each cell [n]."""
        spread = np.array([one or math.inf for one in self.deviation])
        z: np.ndarray = ((quality_columns(cells) - np.array(self.mean)) / spread).mean(1)
        return z

    def save(self, path: str | Path) -> Path:
        """Write it as JSON."""
        return write_json(path, asdict(self))

    @classmethod
    def load(cls, path: str | Path) -> Scaler:
        """Read what :meth:`save` wrote.

        Raises:
            InputError: not such a file.
        """
        data = read_json(path)
        mean, spread = (check_items(data, name, float, least, where=path) for name, least in (("mean", None), ("deviation", 0)))
        if len(mean) != len(INTRINSIC) or len(spread) != len(INTRINSIC):
            raise InputError(f"{len(mean)} means, {len(spread)} deviations", where=path, remedy="four each, as `rank` writes them")
        return cls(tuple(mean), tuple(spread))


# -- PG --------------------------------------------------------------------------------------------------------------


def performance_gap_recovered(student: float, base: float, reference: float) -> float | None:
    """``PGR = (student - base) / (reference - base)``; None where the reference is not above the base: it would then be
    higher for a worse student.

    Examples:
        >>> performance_gap_recovered(40, 30, 50), performance_gap_recovered(40, 50, 30)
        (0.5, None)
    """
    return (student - base) / (reference - base) if reference > base else None


def polyglot_score(z: float, pgr: float, alpha: float = 0.5) -> float:
    """``PG_a = a z + (1 - a) PGR``; the published score has a = 1/2.

    Examples:
        >>> round(polyglot_score(-0.3198, 0.5384), 4)
        0.1093
    """
    return alpha * z + (1 - alpha) * pgr


@dataclass(frozen=True)
class ScoredCell:
    """A cell with its scores; ``pgr`` and ``pg`` are None where no student was trained, or the PGR is not valid."""

    cell: Cell
    z: float
    pgr: float | None
    pg: float | None


@dataclass(frozen=True)
class RankedTeacher:
    """A teacher's mean score over its languages, with the 95 % t-interval over them (None for one language), how many they
    are, and the mean gain of its students in the unit of their scores (None: none was trained)."""

    teacher: str
    score: float
    low: float | None
    high: float | None
    languages: int
    gain: float | None


@dataclass(frozen=True)
class Ranking:
    """Teachers, the best first, by PG, or by z where no cell has a valid PGR.

    Attributes:
        by: "PG" or "z".
        teachers: the ranking; teachers without any score of this kind are in ``unranked``.
        unranked: see above.
        cells: all cells with their scores.
        invalid: (teacher, language) of cells whose reference is not above their base.
        scaler: of z.
        robustness: Spearman's correlation of PG with each PG_a, by a.
        correlations: Spearman's correlation of students' scores with each measure, over cells with a student: PG holds the
            student's own score, z and its columns do not.
    """

    by: str
    teachers: list[RankedTeacher]
    unranked: list[str]
    cells: list[ScoredCell]
    invalid: list[tuple[str, str]]
    scaler: Scaler
    robustness: dict[str, float]
    correlations: dict[str, float]


def rank_teachers(cells: Sequence[Cell], scaler: Scaler | None = None, alpha: float = 0.5) -> Ranking:
    """Score all cells and rank their teachers.

    Args:
        cells: at least one; two where there is no scaler.
        scaler: of an earlier table, so that scores can be compared; None: of these cells.
        alpha: the weight of z in PG.

    Raises:
        InputError: too few cells, or an alpha outside 0..1.
    """
    if not 0 <= alpha <= 1:
        raise InputError(f"a weight of {alpha}", where="alpha", remedy="0 (PGR alone) to 1 (z alone)")
    if not cells:
        raise InputError("no cell to rank", where="table", remedy="give at least one")
    scaler = scaler or Scaler.fit(cells)
    scored = []
    for cell, z in zip(cells, scaler.z(cells).tolist(), strict=True):
        trained = cell.student is not None and cell.base is not None and cell.reference is not None
        pgr = performance_gap_recovered(cell.student, cell.base, cell.reference) if trained else None  # type: ignore[arg-type]
        scored.append(ScoredCell(cell, z, pgr, None if pgr is None else polyglot_score(z, pgr, alpha)))
    by = "PG" if any(one.pg is not None for one in scored) else "z"
    values: dict[str, list[float]] = {}
    gains: dict[str, list[float]] = {}
    for one in scored:
        own = values.setdefault(one.cell.teacher, [])
        score = one.pg if by == "PG" else one.z
        if score is not None:
            own.append(score)
            if one.cell.gain is not None:
                gains.setdefault(one.cell.teacher, []).append(one.cell.gain)
    teachers = [_ranked(name, own, gains.get(name)) for name, own in values.items() if own]
    return Ranking(
        by,
        sorted(teachers, key=lambda one: -one.score),
        [name for name, own in values.items() if not own],
        scored,
        [(c.cell.teacher, c.cell.language) for c in scored if c.cell.student is not None and c.pgr is None],
        scaler,
        _robustness(scored),
        correlations(scored),
    )


def write_ranking(path: str | Path, ranking: Ranking) -> Path:
    """Write the ranked teachers as CSV, the best first; what was not measured is empty."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(item.name for item in fields(RankedTeacher))
    writer.writerows(asdict(one).values() for one in ranking.teachers)
    return write_text(path, out.getvalue())


def _ranked(name: str, values: list[float], gains: list[float] | None) -> RankedTeacher:
    found = t_interval(values)
    known = len(values) > 1
    gain = None if gains is None else sum(gains) / len(gains)
    return RankedTeacher(name, found.mean, found.low if known else None, found.high if known else None, len(values), gain)


def _robustness(scored: Iterable[ScoredCell]) -> dict[str, float]:
    known = [(one.z, one.pgr) for one in scored if one.pgr is not None]
    if len(known) < 2:
        return {}
    published = [polyglot_score(z, pgr) for z, pgr in known]
    return {f"{a:g}": spearman(published, [polyglot_score(z, pgr, a) for z, pgr in known]) for a in ALPHAS}


def correlations(scored: Sequence[ScoredCell], outcome: Sequence[float] | None = None) -> dict[str, float]:
    """Spearman's correlation of the students' scores with PG, z, its columns and the teachers' size, over cells that have
    them.

    Args:
        scored: the cells.
        outcome: other scores of the same students, such as on test data; None: those in the table.
    """
    if outcome is not None and len(outcome) != len(scored):
        raise InputError(f"{len(outcome)} scores of {len(scored)} cells", where="outcome", remedy="one a cell")
    measures: dict[str, list[float | None]] = {"PG": [one.pg for one in scored], "z": [one.z for one in scored]}
    measures |= {name: [getattr(one.cell, name) for one in scored] for name in (*INTRINSIC, "size")}
    measures["perplexity"] = [-one.cell.perplexity for one in scored]
    results = [one.cell.student for one in scored] if outcome is None else list(outcome)
    found = {}
    for name, values in measures.items():
        pairs = [(value, result) for value, result in zip(values, results, strict=True) if value is not None and result is not None]
        if len(pairs) > 1:
            found["-perplexity" if name == "perplexity" else name] = spearman(*zip(*pairs, strict=True))
    return found
