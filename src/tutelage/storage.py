"""Atomic files, append-only shards, fingerprints, and the one content-addressed store.

Nothing half-written ever stands under a final name: a file is written beside its place, flushed to disk, then renamed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, BinaryIO

import xxhash

from tutelage import digests
from tutelage.errors import InputError, StaleError, StorageError
from tutelage.reading import SEAL_LINE, read_json
from tutelage.reading import read_json_lines as read_json_lines


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[BinaryIO]:
    """Open a binary file that appears at ``path`` only when the block ends well.

    Raises:
        StorageError: the folder cannot be written or the disk is full; nothing is left behind.
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        temporary = Path(name)
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        raise StorageError(
            f"cannot write: {error.strerror or error}",
            where=path,
            remedy="choose a folder you can write to, with free space; run the same command again",
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def remove_temporary_files(folder: str | Path) -> None:
    """Remove what killed writers left half-written below ``folder``, where nobody writes now."""
    for left in Path(folder).rglob(".*.part"):
        if left.is_file():
            left.unlink(missing_ok=True)


def write_bytes(path: str | Path, data: bytes) -> Path:
    """Write ``data`` to ``path`` atomically."""
    with atomic_write(path) as file:
        file.write(data)
    return Path(path)


def write_text(path: str | Path, text: str) -> Path:
    """Write ``text`` to ``path`` atomically, as UTF-8."""
    return write_bytes(path, encode_text(text))


def encode_text(text: str) -> bytes:
    r"""``text`` as UTF-8; a lone surrogate, which UTF-8 does not have, is written as JSON and Python do: ``\udc80``."""
    return text.encode("utf-8", "backslashreplace")


@contextlib.contextmanager
def atomic_folder(folder: str | Path, last: str) -> Iterator[Path]:
    """A folder to write files into that appear in ``folder`` only when the block ends well, the file ``last`` after all others:
    where it stands, the others do.

    Raises:
        StorageError: the folder cannot be written or the disk is full.
    """
    folder = Path(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.", suffix=".part") as name:
            place = Path(name)
            yield place
            folder.mkdir(exist_ok=True)
            (folder / last).unlink(missing_ok=True)
            for file in sorted((p for p in place.rglob("*") if p.is_file()), key=lambda p: p.name == last):
                with file.open("rb") as handle:
                    os.fsync(handle.fileno())
                target = folder / file.relative_to(place)
                target.parent.mkdir(parents=True, exist_ok=True)
                file.replace(target)
    except OSError as error:
        raise StorageError(
            f"cannot write: {error.strerror or error}", where=folder, remedy="choose a folder you can write to, with free space"
        ) from error


def to_plain(value: Any) -> Any:
    """``value`` as what JSON can hold: dataclasses, tuples, sets, paths and numpy or torch numbers made plain."""
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: to_plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(to_plain(item) for item in value)
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    return value


def write_json(path: str | Path, value: Any, *, sealed: bool = False) -> Path:
    """Write ``value`` as indented JSON, atomically; the same value gives the same bytes. ``sealed``: an object, to which the
    file's digest is added, for :func:`tutelage.reading.read_json` to check."""
    value = to_plain(value) | {"digest": digests.BLANK} if sealed else to_plain(value)
    data = encode_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")
    return write_bytes(path, digests.seal(data) if sealed else data)


def write_json_lines(path: str | Path, rows: Iterable[Any], *, sealed: bool = False) -> Path:
    """Write one JSON value a line, atomically. ``sealed``: the last line is the file's digest, which
    :func:`tutelage.reading.read_json_lines` checks."""
    state = xxhash.xxh3_128()
    with atomic_write(path) as file:
        for row in rows:
            line = encode_text(json.dumps(to_plain(row), ensure_ascii=False) + "\n")
            state.update(line)
            file.write(line)
        if sealed:
            state.update(SEAL_LINE)
            file.write(SEAL_LINE.replace(32 * b"0", state.hexdigest().encode()))
    return Path(path)


def fingerprint(*parts: Any) -> str:
    """16 hex digits that change when any part changes; parts are bytes (or a view of them), or anything that :func:`to_plain`
    takes."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        data = part if isinstance(part, (bytes, memoryview)) else json.dumps(to_plain(part), sort_keys=True).encode()
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


def unnamed(size: int) -> mmap.mmap:
    """``size`` bytes, all 0, that lie in a file without a name in the folder for temporary files: memory holds what is in use,
    and nothing is left when nobody holds them.

    Raises:
        StorageError: there is no room for them.
    """
    with tempfile.TemporaryFile() as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            room = f"no room for {size >> 20:,} MiB: {error.strerror}"
            raise StorageError(room, where=tempfile.gettempdir(), remedy="name another folder by the variable TMPDIR") from error
        return mmap.mmap(file.fileno(), size)


def cache_home() -> Path:
    """Where trained modules and fetched assets are kept: ``$TUTELAGE_HOME``, else ``~/.cache/tutelage``."""
    return Path(os.environ.get("TUTELAGE_HOME") or Path.home() / ".cache" / "tutelage")


class ContentStore:
    """A folder of immutable blobs, found by key: the one store behind results, labels and trained modules.

    A key is a short name or fingerprint; a blob appears whole or not at all, so several processes may share a store.
    """

    def __init__(self, root: str | Path):
        self.root = Path(root)

    def path(self, key: str, suffix: str = "") -> Path:
        """Where the blob ``key`` lies, or would lie."""
        if not key or "/" in key or key.startswith("."):
            raise InputError(f"not a store key: {key!r}", where=self.root)
        return self.root / key[:2] / f"{key}{suffix}"

    def get(self, key: str, suffix: str = "") -> bytes | None:
        """The bytes of ``key``, or None."""
        try:
            return self.path(key, suffix).read_bytes()
        except FileNotFoundError:
            return None

    def put(self, key: str, data: bytes, suffix: str = "") -> Path:
        """Keep ``data`` under ``key``."""
        return write_bytes(self.path(key, suffix), data)


def differences(old: Any, new: Any, name: str = "") -> list[str]:
    """What differs between two plain values, one short text each: ``settings.lr: 0.1, now 0.2``.

    Fingerprints, and values too long to be read, are named alone.
    """
    shown = [json.dumps(value, ensure_ascii=False, sort_keys=True) for value in (old, new)]  # nan equals nan
    if shown[0] == shown[1]:
        return []
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(key for key in new if key not in old)]
        return [one for key in keys for one in differences(old.get(key), new.get(key), f"{name}.{key}" if name else key)]
    if any(len(text) > 40 or re.fullmatch(r'"[0-9a-f]{16}"', text) for text in shown):
        return [name or "everything"]
    return [f"{name or 'everything'}: {shown[0]}, now {shown[1]}"]


class RunFolder:
    """A folder that one command owns: its settings are written first, and other settings are refused.

    Args:
        root: the folder.
        settings: everything that decides the result, by name; nested dicts are compared key by key.
        remedies: what to do where one named setting alone differs, by its dotted name.

    Raises:
        StaleError: the folder holds a run of another version or of other settings; the message names what differs.
    """

    VERSION = 1

    def __init__(self, root: str | Path, settings: Any, remedies: Mapping[str, str] | None = None):
        self.root = Path(root)
        head = {"format": "tutelage-run", "version": self.VERSION, "settings": to_plain(settings)}
        file = self.root / "run.json"
        if file.exists():
            found = read_json(file)
            if not isinstance(found, dict) or found.get("format") != "tutelage-run":
                raise StaleError("not a run folder of tutelage", where=file, remedy="choose another folder")
            if found.get("version") != self.VERSION:
                raise StaleError(
                    f"a run of format {found.get('version')}, this is format {self.VERSION}",
                    where=file,
                    remedy="choose a new folder, or the tutelage that made this one",
                )
            if other := differences(found.get("settings"), json.loads(json.dumps(head["settings"]))):
                (first, _), *more = [one.partition(":")[::2] for one in other]
                remedy = "choose a new folder" if more else (remedies or {}).get(first, "choose a new folder")
                raise StaleError(f"the folder holds a run with other settings: {'; '.join(other)}", where=file, remedy=remedy)
        else:
            write_json(file, head)

    def done(self, name: str) -> Path | None:
        """The finished part ``name``, or None: a part stands under its name only when it is whole."""
        path = self.root / name
        return path if path.exists() else None
