"""Reading what others may have written: files, JSON and TOML, within limits.

Whatever is in a file, the result is a value or an :class:`~tutelage.errors.InputError` that names the file, its line, and
what to do. What a value holds is checked by :mod:`tutelage.fields`.
"""

from __future__ import annotations

import json
import os
import re
import stat
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import xxhash

from tutelage import digests
from tutelage.errors import InputError

MAX_BYTES = 512 << 20
"""Bytes of a JSON file that is read at once."""
MAX_LINE = 64 << 20
"""Bytes of one line of a JSON-lines file."""
MAX_TOML = 256 << 10
"""Bytes of a TOML file: it is written by a person."""
MAX_LEVELS = 100
"""Lists and tables within one another."""
MAX_INTEGER = 10**19
"""Integers are smaller than this, as in 64 bits."""

SEAL_LINE = f'{{"digest": "{digests.BLANK}"}}\n'.encode()
"""The last line of a sealed JSON-lines file, before its digest is there."""
_SEAL_LINE = re.compile(rb'\{"digest": "xxh3_128:([0-9a-f]{32})"\}\n')
DAMAGED = "the file may be cut or damaged; fetch or make it again"

_LONG_NUMBER = re.compile(rb"[0-9]{19}")
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_LONG_KEY = re.compile(r"(?:[\w\"'-]+\s*\.\s*){50}")


# -- files ---


def open_regular(path: str | Path) -> BinaryIO:
    """A regular file, open for reading.

    Raises:
        InputError: it is absent, cannot be read, or is no regular file (a device, a pipe, a folder).
    """
    try:
        # not blocking: else to open a pipe that nobody writes would never end
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    except FileNotFoundError:
        raise InputError("no such file", where=path, remedy="check the path") from None
    except OSError as error:
        raise InputError(f"cannot read: {error.strerror}", where=path, remedy="check the path and its rights") from error
    except ValueError as error:  # a NUL in the path
        raise InputError(f"not a path: {error}", where=repr(str(path)), remedy="check the path") from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise InputError("not a regular file", where=path, remedy="give a file, not a folder, pipe or device")
    return os.fdopen(handle, "rb")


def read_bytes(path: str | Path, max_bytes: int = MAX_BYTES) -> bytes:
    """The bytes of a regular file.

    Raises:
        InputError: as :func:`open_regular`, or it has more than ``max_bytes``.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > max_bytes:
            raise InputError(f"{size:,} bytes; at most {max_bytes:,} are read", where=path, remedy="is this the right file?")
        try:
            return file.read()
        except OSError as error:
            raise InputError(f"cannot read: {error.strerror}", where=path, remedy="check the disk") from error


def read_text(path: str | Path, max_bytes: int = MAX_BYTES) -> str:
    """The text of a UTF-8 file.

    Raises:
        InputError: as :func:`read_bytes`, or it is not UTF-8.
    """
    return _decoded(read_bytes(path, max_bytes), path)


def read_json(path: str | Path, max_bytes: int = MAX_BYTES, *, sealed: bool = False, remedy: str = DAMAGED) -> Any:
    """The value of a JSON file; ``sealed``: an object whose ``digest`` is checked and left out.

    Raises:
        InputError: as :func:`read_bytes` and :func:`parse_json`, or its bytes are not those that were written.
    """
    path = Path(path)
    data = read_bytes(path, max_bytes)
    if not sealed:
        return parse_json(data, path, remedy)
    digests.check_seal(data, path, remedy)
    value = parse_json(data, path, remedy)
    return {name: part for name, part in value.items() if name != "digest"} if isinstance(value, dict) else value


def read_json_lines(path: str | Path, *, sealed: bool = False, remedy: str = DAMAGED) -> Iterator[tuple[int, Any]]:
    """Yield (line number from 1, value) for each line of a JSON-lines file, holding one line at a time.

    Where the last line is a digest, as :func:`tutelage.storage.write_json_lines` seals a file, it is checked and not yielded.

    Args:
        path: the file.
        sealed: a file without a digest is refused.
        remedy: what to do where it is damaged.

    Raises:
        InputError: the file cannot be read, a line is not JSON (see :func:`parse_json`) or too long, or the bytes are not
            those that were sealed; the message names the line.
    """
    with open_regular(path) as file:
        state, number, digest = xxhash.xxh3_128(), 0, ""
        while line := file.readline(MAX_LINE + 1):
            number += 1
            where = f"{path}:{number}"
            if len(line) > MAX_LINE:
                raise InputError(f"a line of more than {MAX_LINE:,} bytes", where=where, remedy="is this the right file?")
            if digest:
                raise InputError("something follows the digest, which ends the file", where=where, remedy=remedy)
            if line.startswith(b'{"digest"'):
                if (found := _SEAL_LINE.fullmatch(line)) is None:
                    raise InputError("its digest is damaged", where=where, remedy=remedy)
                digest, line = found[1].decode(), SEAL_LINE
            elif line.strip():
                yield number, parse_json(line, where, remedy)
            state.update(line)
        if digest and state.hexdigest() != digest:
            raise InputError("damaged: its bytes are not those that were written", where=path, remedy=remedy)
        if sealed and not digest:
            raise InputError("its digest, the last line, is missing", where=path, remedy=remedy)


# -- JSON and TOML ---


def parse_json(text: str | bytes, where: object, remedy: str = DAMAGED) -> Any:
    """The value of JSON from outside.

    Args:
        text: what to read; bytes are UTF-8.
        where: the file and line, for messages; a path is given the number of the line.
        remedy: what to do where it is not JSON.

    Raises:
        InputError: not UTF-8, not JSON, an integer of more than 19 digits, or more than 100 levels; the message names the
            line where there are several.
    """
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    if not isinstance(text, str):
        text = _decoded(data, where)
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        lines = data.count(b"\n", 0, len(data.rstrip()))
        place = f"{where}:{error.lineno}" if lines or isinstance(where, Path) else where
        raise InputError(f"not JSON: {error.msg}", where=place, remedy=remedy) from error
    except RecursionError:
        raise _too_deep(where) from None
    except ValueError:  # Python reads integers of 4,300 digits
        raise _too_long(where) from None
    if _LONG_NUMBER.search(data) or _may_be_deep(data):
        _check_parts(value, where)
    return value


def parse_toml(text: str | bytes, where: object) -> dict[str, Any]:
    """The tables of TOML from outside.

    Raises:
        InputError: not UTF-8, not TOML, more than 256 KiB, or beyond the limits of :func:`parse_json`.
    """
    text = text if isinstance(text, str) else _decoded(text, where)
    if len(text) > MAX_TOML:
        raise InputError(f"{len(text):,} characters of TOML; at most {MAX_TOML:,} are read", where=where)
    if _LONG_KEY.search(text):
        raise _too_deep(where)
    try:
        value = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"not TOML: {error}", where=where, remedy="see the example in the documentation") from error
    except RecursionError:
        raise _too_deep(where) from None
    except ValueError as error:
        raise InputError(f"not TOML: {error}", where=where, remedy="a number or date is not as it must be") from error
    _check_parts(value, where)
    return value


def read_toml(path: str | Path) -> dict[str, Any]:
    """The tables of a TOML file.

    Raises:
        InputError: as :func:`read_bytes` and :func:`parse_toml`.
    """
    return parse_toml(read_bytes(path, 4 * MAX_TOML), path)


def _decoded(data: bytes, where: object) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"not UTF-8 text (line {line})", where=where, remedy="is this the right file?") from error


def _too_deep(where: object) -> InputError:
    return InputError(f"nested more than {MAX_LEVELS} levels deep", where=where, remedy="is this the right file?")


def _too_long(where: object) -> InputError:
    return InputError("an integer of more than 19 digits", where=where, remedy="write a smaller number")


def _may_be_deep(data: bytes) -> bool:
    """Whether brackets, those in texts among them, are left when each level of empty pairs is taken out."""
    left = data.translate(None, _NOT_BRACKETS)
    for _ in range(MAX_LEVELS):
        shorter = left.replace(b"[]", b"").replace(b"{}", b"")
        if len(shorter) == len(left):
            break
        left = shorter
    return bool(left)


def _check_parts(value: Any, where: object) -> None:
    level, depth = [value], 0
    while level:
        if depth > MAX_LEVELS:
            raise _too_deep(where)
        inner: list[Any] = []
        for part in level:
            if isinstance(part, dict):
                inner += part.values()
                inner += part
            elif isinstance(part, list):
                inner += part
            elif isinstance(part, int) and not -MAX_INTEGER < part < MAX_INTEGER:
                raise _too_long(where)
        level, depth = inner, depth + 1
