"""Seeded samples of a data set's records, and the ids of several samples kept in one file."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tutelage.datasets.json_records import JsonRecord
from tutelage.errors import InputError
from tutelage.seeds import derive
from tutelage.storage import fingerprint, read_json, write_json

T = TypeVar("T")
FORMAT = "tutelage-sample"


def sample_records(
    records: Iterable[T],
    *,
    seed: int,
    task: str,
    id_of: Callable[[T], str],
    kind_of: Callable[[T], str],
    per_kind: int | None = None,
    total: int | None = None,
) -> list[T]:
    """A seeded sample, sorted by id: up to ``per_kind`` records of each kind, up to ``total`` of all, or (neither) all.

    A record's rank is a hash of seed, task and id, so the sample does not depend on the order of the file, a smaller one
    is part of a larger one, and only the chosen records are held (our choice: the publications name sizes, not draws).

    Raises:
        InputError: both limits, one below 1, or an id that was chosen twice.
    """
    limit = per_kind if total is None else total
    if (per_kind is not None and total is not None) or (limit is not None and limit < 1):
        raise InputError("give one of per_kind and total, 1 or more", where="sample")
    kept: defaultdict[str, list[tuple[int, str, int, T]]] = defaultdict(list)
    for number, record in enumerate(records):
        heap = kept[kind_of(record) if per_kind is not None else ""]
        entry = (-derive(seed, task, "sample", id_of(record)), id_of(record), number, record)
        if limit is None or len(heap) < limit:
            heapq.heappush(heap, entry)
        else:
            heapq.heappushpop(heap, entry)
    chosen = sorted((entry[1:] for heap in kept.values() for entry in heap), key=lambda entry: entry[:2])
    for (name, *_), (other, *_) in zip(chosen, chosen[1:]):
        if name == other:
            raise InputError(f"the id {name!r} appears twice", where=task, remedy="the file may be joined wrongly; fetch it again")
    return [record for *_, record in chosen]


def select(records: Iterable[T], ids: Collection[str], *, id_of: Callable[[T], str], where: object) -> list[T]:
    """The records with these ids, in the order of the ids.

    Raises:
        InputError: an id that no record has, or that two have.
    """
    wanted = dict.fromkeys(ids)
    found: dict[str, T] = {}
    for record in records:
        name = id_of(record)
        if name in wanted:
            if name in found:
                raise InputError(f"the id {name!r} appears twice", where=where, remedy="fetch or make the file again")
            found[name] = record
    absent = [name for name in wanted if name not in found]
    if absent:
        raise InputError(
            f"{len(absent)} ids are not in the file, such as {', '.join(absent[:3])}",
            where=where,
            remedy="were they drawn from another split, subset or version of the data?",
        )
    return [found[name] for name in wanted]


@dataclass(frozen=True, slots=True)
class Subset:
    """Some records of a split's subset, by id."""

    split: str
    subset: str
    ids: tuple[str, ...]


@dataclass(frozen=True)
class SampledIds:
    """The records of a study: its parts by what they are for, and how they were drawn (task, seed, limits)."""

    drawn: Mapping[str, Any]
    parts: Mapping[str, Subset]

    @property
    def hash(self) -> str:
        """Names every id of every part."""
        return fingerprint({name: self.parts[name] for name in sorted(self.parts)})

    def save(self, path: str | Path) -> Path:
        """Keep it as JSON."""
        return write_json(path, {"format": FORMAT, "hash": self.hash, "drawn": self.drawn, "parts": self.parts})

    @classmethod
    def load(cls, path: str | Path) -> SampledIds:
        """What :meth:`save` kept.

        Raises:
            InputError: the file is absent, no sample, or its ids are not those that its hash names.
        """
        record = JsonRecord(read_json(path), str(path))
        record.one_of("format", (FORMAT,))
        parts = {}
        for name in record.record("parts").value:
            part = record.record("parts").record(name)
            parts[name] = Subset(part.text("split"), part.text("subset"), part.texts("ids"))
            if len(set(parts[name].ids)) < len(parts[name].ids):
                raise part.error("ids", "each id once")
        sample = cls(record.record("drawn").value, parts)
        if sample.hash != record.text("hash"):
            raise record.error("hash", f"{sample.hash}, the hash of the ids: the file was changed by hand")
        return sample
