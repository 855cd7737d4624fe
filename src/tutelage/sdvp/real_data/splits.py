"""Which records a study learns from, judges its teachers by, and reports on: drawn once, kept, and given again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tutelage.datasets.sampling import SampledIds, Subset, sample_records, select
from tutelage.errors import InputError
from tutelage.sdvp.real_data.datasets import Dataset, Item
from tutelage.sdvp.real_data.protocols import Protocol

LEARN, PROBE, REPORT = "learn", "probe", "report"
Items = dict[str, list[Item]]
"""The records of each part."""


def sampling_settings(task: str, protocol: Protocol, per_kind: int, probe: int, seed: int) -> dict[str, Any]:
    """How a sample is drawn: what must agree for an old one to be used again."""
    return {"task": task, "preset": protocol.name, "per_kind": per_kind, "probe": probe, "seed": seed}


def draw_sample(dataset: Dataset, protocol: Protocol, per_kind: int, probe: int, seed: int) -> SampledIds:
    """Up to ``per_kind`` records of each kind to learn from, up to ``probe`` (0: none) to judge teachers by, and those that
    the preset reports on. The probe comes from the learning split where its own is reported on; no part shares an image
    with another.

    Raises:
        InputError: a broken or absent file, or splits that share images.
    """
    learns = dataset.learns
    probes = learns if protocol.split == dataset.probes[0] else dataset.probes
    taken: set[str] = set()

    def part(split: str, subset: str, **limits: int | None) -> Subset:
        fresh = (item for item in dataset.items(split, subset) if item.image_id not in taken)
        chosen = sample_records(fresh, seed=seed, task=dataset.name, id_of=_id, kind_of=_kind, **limits)
        if split == learns[0]:
            taken.update(item.image_id for item in chosen)
        return Subset(split, subset, tuple(item.id for item in chosen))

    parts = {LEARN: part(*learns, per_kind=per_kind)}
    if probe:
        parts[PROBE] = part(*probes, per_kind=probe)
    parts[REPORT] = part(protocol.split, protocol.subset, per_kind=protocol.per_kind, total=protocol.total)
    return SampledIds(sampling_settings(dataset.name, protocol, per_kind, probe, seed), parts)


def read_items(dataset: Dataset, sample: SampledIds) -> Items:
    """The records of each part, those of one image side by side, so that a picture is decoded once.

    Raises:
        InputError: an id that is not in its file, a part that is not there, or two parts that share an image.
    """
    found: Items = {}
    owners: dict[str, str] = {}
    for name in (LEARN, PROBE, REPORT):
        part = sample.parts.get(name, Subset("", "", ()))
        if not part.ids and name != PROBE:
            raise InputError(f"no ids to {name}", where="sample", remedy="draw it anew, or name another file with --ids")
        where = f"{dataset.name} {part.split} {part.subset}"
        items = select(dataset.items(part.split, part.subset), part.ids, id_of=_id, where=where) if part.ids else []
        found[name] = sorted(items, key=lambda item: (item.image_id, item.id))
        for item in items:
            if owners.setdefault(item.image_id, name) != name:
                raise InputError(
                    f"image {item.image_id} is in the parts {owners[item.image_id]} and {name}",
                    where="sample",
                    remedy="what is learned from, probed and reported on must not share images",
                )
    return found


@dataclass(frozen=True)
class MissingImages:
    """The records of each part that were left out, for a picture of theirs is not there."""

    images: tuple[str, ...]
    records: Mapping[str, int]


def drop_missing_images(
    dataset: Dataset, items: Items, skip: bool, report: Callable[[Sequence[str]], Path]
) -> tuple[Items, dict[str, dict[str, Path]], MissingImages]:
    """The records whose pictures are there, the paths by record id, and what is missing.

    Raises:
        InputError: pictures are missing and ``skip`` is not set; ``report`` has then written their names to the file named.
    """
    kept: Items = {}
    paths: dict[str, dict[str, Path]] = {}
    absent: dict[str, None] = {}
    lost: dict[str, int] = {}
    for name, part in items.items():
        kept[name] = []
        for item in part:
            try:
                paths[item.id] = dataset.pictures(item)
                kept[name].append(item)
            except InputError:
                absent[item.image_id] = None
        lost[name] = len(part) - len(kept[name])
    missing = MissingImages(tuple(sorted(absent)), lost)
    if missing.images:
        file = report(missing.images)
        empty = [name for name in (LEARN, REPORT) if not kept[name]]
        if empty or not skip:
            raise InputError(
                f"{len(missing.images)} images are missing, such as {', '.join(missing.images[:3])}: "
                f"{sum(lost.values())} of {sum(map(len, items.values()))} records need them; all are listed in {file}",
                where=dataset.name,
                remedy="fetch them" + ("" if empty else ", or go on without those records: --skip-missing"),
            )
    return kept, paths, missing


def _id(item: Item) -> str:
    return item.id


def _kind(item: Item) -> str:
    return item.kind
