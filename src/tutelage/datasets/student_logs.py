"""Logs of students: rows of a table by the names of its columns, and hashes in place of students' names."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tutelage.errors import InputError
from tutelage.reading import read_bytes, read_text

MAX_LOG_BYTES = 4 << 30


def hashed_name(name: str, salt: str = "") -> str:
    """16 hex digits that stand for a student; who does not know ``salt`` cannot try out names."""
    return hashlib.blake2b(f"{salt}\x1f{name}".encode(), digest_size=8).hexdigest()


def log_rows(
    path: str | Path,
    names: Sequence[str],
    remedy: Callable[[list[str]], str] = lambda columns: f"columns here: {', '.join(columns) or 'none'}",
    encoding: str = "utf-8",
) -> Iterator[tuple[str, list[str]]]:
    """Yield (``FILE:LINE``, the cells of the columns ``names`` without outer blanks) of each row of a table.

    Columns are separated by tabs where the first line, which names them, has one, else by commas.

    Args:
        path: the file.
        names: of columns; the order of the cells is theirs.
        remedy: of the columns that there are, what to do where one is missing.
        encoding: of the text; older ASSISTments files are ``latin-1``.

    Raises:
        InputError: the file cannot be read or decoded, a column is missing, a row has another number of fields than there are
            columns, or the quotes of the table are broken; the message names the line.
    """
    text = read_text(path, MAX_LOG_BYTES) if encoding == "utf-8" else _decoded(path, encoding)
    header = text.partition("\n")[0]
    rows = csv.reader(io.StringIO(text), delimiter="\t" if "\t" in header else ",")
    try:
        columns = next(rows, [])
        for name in names:
            if name not in columns:
                raise InputError(f"no column {name!r}", where=f"{path}:1", remedy=remedy(columns))
        places = [columns.index(name) for name in names]
        for row in rows:
            where = f"{path}:{rows.line_num}"
            if len(row) != len(columns):
                raise InputError(f"{len(row)} fields under {len(columns)} columns", where=where, remedy="one field a column")
            yield where, [row[place].strip() for place in places]
    except csv.Error as error:
        raise InputError(f"no table: {error}", where=f"{path}:{rows.line_num}", remedy="is a quote left open?") from error


def _decoded(path: str | Path, encoding: str) -> str:
    try:
        return read_bytes(path, MAX_LOG_BYTES).decode(encoding)
    except (LookupError, UnicodeError) as error:
        raise InputError(f"not readable as {encoding}", where=path, remedy="name its encoding: utf-8 or latin-1") from error
