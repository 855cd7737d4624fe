"""Records of data-set files: fields checked as they are taken, and large JSON streamed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import ijson

from tutelage.errors import InputError
from tutelage.storage import read_json_lines

Progress = Callable[[int], None]
"""Called with the number of bytes read since the last call."""

REMEDY = "compare the record with the published layout; fetch or make the file again"

_ID = re.compile(r"[A-Za-z0-9_-]+")


def is_id(text: object) -> bool:
    """Whether ``text`` is an id of letters, digits, _ and -: ids become file names, so no dots and no slashes."""
    return isinstance(text, str) and _ID.fullmatch(text) is not None


class JsonRecord:
    """One JSON object of a file: its fields are taken with their types checked; errors name file, record and field."""

    __slots__ = ("value", "where")

    def __init__(self, value: Any, where: str):
        self.where = where
        if not isinstance(value, dict):
            raise InputError("not a JSON object", where=where, remedy=REMEDY)
        self.value = value

    def error(self, field: str, expected: str) -> InputError:
        """The error for a field that is absent or not ``expected``."""
        state = f"is {self.value[field]!r}"[:80] if field in self.value else "is missing"
        return InputError(f"field {field!r} {state}; expected {expected}", where=self.where, remedy=REMEDY)

    def text(self, field: str) -> str:
        """A string."""
        value = self.value.get(field)
        if not isinstance(value, str):
            raise self.error(field, "a string")
        return value

    def optional_text(self, field: str) -> str | None:
        """A string, null or nothing."""
        value = self.value.get(field)
        if value is not None and not isinstance(value, str):
            raise self.error(field, "a string or null")
        return value

    def name(self, field: str) -> str:
        """An id: letters, digits, _ and -."""
        value = self.value.get(field)
        if not is_id(value):
            raise self.error(field, "an id of letters, digits, _ and -")
        return str(value)

    def key(self, field: str) -> str | int:
        """An id, as text or as a whole number from 0."""
        value = self.value.get(field)
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return value
        return self.name(field)

    def one_of(self, field: str, allowed: tuple[str, ...]) -> str:
        """A string among ``allowed``."""
        value = self.value.get(field)
        if value not in allowed:
            raise self.error(field, f"one of {', '.join(allowed)}")
        return str(value)

    def flag(self, field: str) -> bool:
        """True or false."""
        value = self.value.get(field)
        if not isinstance(value, bool):
            raise self.error(field, "true or false")
        return value

    def number(self, field: str, above: float = float("-inf")) -> float:
        """A number greater than ``above``."""
        value = self.value.get(field)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > above:
            raise self.error(field, "a number" if above == float("-inf") else f"a number above {above:g}")
        return value

    def texts(self, field: str) -> tuple[str, ...]:
        """A list of strings."""
        value = self.value.get(field)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.error(field, "a list of strings")
        return tuple(value)

    def record(self, field: str) -> JsonRecord:
        """A JSON object."""
        if not isinstance(self.value.get(field), dict):
            raise self.error(field, "a JSON object")
        return JsonRecord(self.value[field], f"{self.where}, {field}")

    def records(self, field: str) -> list[JsonRecord]:
        """A list of JSON objects."""
        value = self.value.get(field)
        if not isinstance(value, list):
            raise self.error(field, "a list of JSON objects")
        return [JsonRecord(item, f"{self.where}, {field} {index}") for index, item in enumerate(value)]


class _CountingReader:
    """A binary file that tells ``progress`` how many bytes were read."""

    def __init__(self, file: BinaryIO, progress: Progress | None):
        self.file, self.progress, self.done = file, progress, 0

    def read(self, size: int = -1) -> bytes:
        data = self.file.read(size)
        self.done += len(data)
        if self.progress is not None and data:
            self.progress(len(data))
        return data


def chunks(path: str | Path) -> list[Path]:
    """The files behind ``path``: itself, or the JSON chunks of a folder in the order of their numbers.

    Raises:
        InputError: nothing is there, or the folder holds no JSON file.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    found = sorted(path.glob("*.json"), key=lambda chunk: (int((re.findall(r"\d+", chunk.stem) or ["0"])[-1]), chunk.name))
    if not found:
        raise InputError("no such file, and no folder of JSON chunks", where=path, remedy="check the path")
    return found


def size_of(path: str | Path) -> int:
    """Bytes behind ``path`` (a file or a folder of chunks): the total of a progress bar. Raises as :func:`chunks`."""
    return sum(chunk.stat().st_size for chunk in chunks(path))


def members(path: str | Path, progress: Progress | None = None) -> Iterator[tuple[Path, str, Any]]:
    """Yield (file, id, value) for each member of a JSON object, or of a folder of such chunks, one at a time.

    Raises:
        InputError: nothing is there, a file is cut or no JSON object (the byte reached is named), or an id is bad.
    """
    for chunk in chunks(path):
        for key, value in _stream(chunk, "{", progress):
            if not is_id(key):
                raise InputError(f"bad id {key!r}: letters, digits, _ and - only", where=chunk, remedy=REMEDY)
            yield chunk, key, value


def items(path: str | Path, progress: Progress | None = None) -> Iterator[tuple[int, Any]]:
    """Yield (index, value) for each item of a JSON list, one at a time.

    Raises:
        InputError: the file is absent, cut or no JSON list; the byte reached is named.
    """
    yield from enumerate(_stream(Path(path), "[", progress))


def lines(path: str | Path, progress: Progress | None = None) -> Iterator[tuple[int, Any]]:
    """Yield (line number, value) of a JSON-lines file, one at a time.

    Raises:
        InputError: the file is absent, or a line is no JSON; the line is named.
    """
    number = 0
    try:
        for number, value in read_json_lines(path):
            yield number, value
        if progress is not None:
            progress(Path(path).stat().st_size)
    except UnicodeDecodeError as error:
        raise InputError("not UTF-8 text", where=f"{path}, after line {number}", remedy="is it the right file?") from error


def _stream(path: Path, opening: str, progress: Progress | None) -> Iterator[Any]:
    try:
        with path.open("rb") as file:
            if not file.read(64).lstrip().startswith(opening.encode()):
                kind = "object" if opening == "{" else "list"
                raise InputError(f"not a JSON {kind}", where=path, remedy="is this the right file?")
            file.seek(0)
            counted = _CountingReader(file, progress)
            try:
                if opening == "{":
                    yield from ijson.kvitems(counted, "", use_float=True)
                else:
                    yield from ijson.items(counted, "item", use_float=True)
            except (ijson.JSONError, UnicodeDecodeError) as error:
                raise InputError(
                    f"not whole JSON, near byte {counted.done}: {str(error).strip().partition(chr(10))[0]}",
                    where=path,
                    remedy="the file may be cut; fetch or make it again",
                ) from error
    except OSError as error:
        raise InputError(f"cannot read: {error.strerror}", where=path, remedy="check the path and its rights") from error
