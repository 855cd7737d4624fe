"""Digests that notice every changed bit of a file: xxh3_128, at the speed of memory.

A sealed file names its own digest, ``xxh3_128:`` and 32 digits, computed with zeros in the digits' place. So one file, written
at once, carries what is needed to check it. The digest tells damage; it does not tell who wrote the file.
"""

from __future__ import annotations

import mmap
import os
import re
from pathlib import Path

import xxhash

from tutelage.errors import InputError

PREFIX = "xxh3_128:"
BLANK = PREFIX + 32 * "0"
"""What stands in a file before :func:`seal` puts its digest there."""

_SEAL = re.compile(rb"xxh3_128:([0-9a-f]{32})")
_ZEROS = 32 * b"0"
Bytes = bytes | bytearray | memoryview | mmap.mmap


def digest(*parts: Bytes) -> str:
    """32 hexadecimal digits that change when any bit of the bytes changes."""
    state = xxhash.xxh3_128()
    for part in parts:
        state.update(part)
    return state.hexdigest()


def seal(data: bytes, start: int = 0, end: int | None = None) -> bytes:
    """``data`` with its digest in the place of the one :data:`BLANK` between ``start`` and ``end``.

    Raises:
        ValueError: there is not exactly one.
    """
    return b"".join(seal_parts(data, start, end))


def seal_parts(data: bytes, start: int = 0, end: int | None = None) -> tuple[memoryview, bytes, memoryview]:
    """As :func:`seal`, in three parts that are written one after the other: nothing large is copied."""
    if len(_SEAL.findall(data, start, len(data) if end is None else end)) != 1:
        raise ValueError("a file is sealed where it holds one blank")
    at = data.index(BLANK.encode(), start) + len(PREFIX)
    view = memoryview(data)
    return view[:at], digest(data).encode(), view[at + 32 :]


def check_seal(data: Bytes, where: object, remedy: str, *, start: int = 0, end: int | None = None, required: bool = True) -> bool:
    """Check sealed bytes against the first digest between ``start`` and ``end``.

    Args:
        data: the whole file.
        where: its name, for the message.
        remedy: what to do where it is damaged.
        start: where the search for the digest begins.
        end: where it ends.
        required: a file without a digest is refused.

    Returns:
        Whether there is a digest.

    Raises:
        InputError: the bytes are not those that were written.
    """
    found = _SEAL.search(data, start, len(data) if end is None else end)
    if found is None:
        if required:
            raise InputError("there is no digest in it: it is damaged, or of an older version", where=where, remedy=remedy)
        return False
    view = memoryview(data)
    try:
        if digest(view[: found.start(1)], _ZEROS, view[found.end(1) :]) != found[1].decode():
            raise InputError("damaged: its bytes are not those that were written", where=where, remedy=remedy)
    finally:
        view.release()
    return True


def digest_of_file(path: str | Path) -> str:
    """The digest of a file's bytes, which are mapped, not held.

    Raises:
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            return digest()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return digest(data)
