"""Results of module calls, kept by (module, version, input): in memory, and on disk where a path is given.

The disk part is one SQLite file: several processes may share it, a killed process leaves it whole, and its size does
not bound memory.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import NamedTuple

from tutelage.errors import InputError, StaleError, StorageError
from tutelage.programs.serialization import decode, digest, encode, is_json_exact
from tutelage.programs.types import Module, Value
from tutelage.reading import parse_json

FORMAT = 1


class CachedResult(NamedTuple):
    """One answer: its value, its distribution, and whether the module knew the words of the call."""

    value: Value
    distribution: dict[str, float] | None = None
    out_of_vocabulary: bool = False


class ResultCache:
    """Answers already given, found again by module version and input key (see ``encoding.input_key``).

    ``capacity`` bounds the answers held in memory (the oldest leave first). With a ``path``, answers also go to that
    file, all but images and values that JSON cannot hold. ``hits`` and ``misses`` count questions. One thread at a
    time; picture keys given by hand must be unique among all pictures that share the file.

    Raises:
        StaleError: the file is not a result cache of this format.
        StorageError: the disk refuses.
    """

    def __init__(self, path: str | Path | None = None, capacity: int = 200_000):
        self.path = Path(path) if path is not None else None
        self.hits = self.misses = 0
        self._capacity = capacity
        self._memory: dict[Hashable, CachedResult] = {}
        self._new: list[tuple[bytes, str]] = []
        self._file = self._open(self.path) if self.path is not None else None

    def get(self, module: Module, key: Hashable) -> CachedResult | None:
        """The answer of this version of ``module`` to the input ``key``, or None."""
        full = (module.name, module.version, key)
        found = self._memory.get(full)
        if found is None and self._file is not None:
            found = self._read(digest(*full))
            if found is not None:
                self._remember(full, found)
        if found is None:
            self.misses += 1
        else:
            self.hits += 1
        return found

    def put(self, module: Module, key: Hashable, result: CachedResult) -> None:
        """Keep an answer; it is on disk after the next :meth:`commit`."""
        full = (module.name, module.version, key)
        self._remember(full, result)
        if self._file is not None and is_json_exact(result.value):
            line = json.dumps([encode(result.value), result.distribution, result.out_of_vocabulary])
            self._new.append((digest(*full), line))

    def commit(self) -> None:
        """Write the new answers to disk, all or none."""
        if self._file is not None and self._new:
            with self._translate_errors(), self._file:
                self._file.executemany("INSERT OR IGNORE INTO results VALUES (?, ?)", self._new)
            self._new.clear()

    def close(self) -> None:
        """Commit, and let go of the file."""
        if self._file is not None:
            self.commit()
            self._file.close()
            self._file = None

    def __enter__(self) -> ResultCache:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _remember(self, full: Hashable, result: CachedResult) -> None:
        while len(self._memory) >= self._capacity:
            del self._memory[next(iter(self._memory))]
        self._memory[full] = result

    def _read(self, name: bytes) -> CachedResult | None:
        assert self._file is not None
        with self._translate_errors():
            row = self._file.execute("SELECT answer FROM results WHERE key = ?", (name,)).fetchone()
        if row is None:
            return None
        try:
            value, distribution, unknown = parse_json(row[0], self.path)
            return CachedResult(decode(value), distribution, unknown)
        except (InputError, TypeError, ValueError, AttributeError) as error:
            raise StaleError(f"not a kept result: {error}"[:500], where=self.path, remedy="move the file away") from error

    def _open(self, path: Path) -> sqlite3.Connection:
        with self._translate_errors():
            path.parent.mkdir(parents=True, exist_ok=True)
            file = sqlite3.connect(path, timeout=60, check_same_thread=False)
            file.execute("PRAGMA journal_mode = WAL")
            file.execute("PRAGMA synchronous = NORMAL")  # a lost machine may lose the last commits, never the file
            (found,) = file.execute("PRAGMA user_version").fetchone()
            if found not in (0, FORMAT):
                raise StaleError(f"a result cache of format {found}, this is {FORMAT}", where=path, remedy="choose another file")
            with file:
                file.execute("CREATE TABLE IF NOT EXISTS results (key BLOB PRIMARY KEY, answer TEXT) WITHOUT ROWID")
                file.execute(f"PRAGMA user_version = {FORMAT}")
        return file

    @contextlib.contextmanager
    def _translate_errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.OperationalError) as error:
            remedy = "choose a place you can write to, with free space; run the same command again"
            raise StorageError(f"the result cache cannot be used: {error}", where=self.path, remedy=remedy) from error
        except sqlite3.DatabaseError as error:
            raise StaleError(f"not a result cache: {error}", where=self.path, remedy="move the file away") from error
