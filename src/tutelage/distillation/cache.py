"""What a teacher said, on disk, exact to the view.

A row is found by its view: the sample's id and view seed, and those of its mixing partner. A cache names the data, the
augmentation and the teacher it was built from and refuses others. Shards are safetensors files, memory-mapped when
read; each appears whole or not at all, so a build that was killed goes on, and several processes may share one.

Heads are stored dense (``fp32``, ``fp16``) or sparse (``topK``: the K largest probabilities in fp16; the leftover mass
is spread evenly over the other classes when read: Wu et al., TinyViT, 2022).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tutelage import reading
from tutelage.distillation.checkpoint import read_tensors
from tutelage.distillation.data import Batch, ReplayableData, flatten_tree, hash64
from tutelage.distillation.outputs import Output
from tutelage.distillation.teacher import Teacher
from tutelage.errors import InputError, StaleError
from tutelage.fields import check_field, check_items

FORMAT = "tutelage-cache"
SHARD = "tutelage-cache-shard-1"
VERSION = 1
REBUILD = "delete this shard and build again (the others are kept); tutelage cache verify finds every damaged one"


def view_keys(batch: Batch) -> np.ndarray:
    """One uint64 a row that names its view: a hash of id and seed, and of the partner's id and seed."""
    if batch.ids is None or batch.seeds is None:
        raise InputError(
            "the batch has no sample ids or view seeds",
            where="data",
            remedy="leave the cache out: a stream, or a random collate_fn, has no views to name",
        )
    own = view_key(batch.ids.cpu().numpy(), batch.seeds.cpu().numpy())
    if batch.partners is None:
        return own
    with np.errstate(over="ignore"):
        return hash64(own * np.uint64(3) + own[batch.partners.cpu().numpy()])


def view_key(ids: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """The uint64 key of an unmixed view."""
    return hash64(hash64(ids.astype(np.uint64)) ^ seeds.astype(np.uint64))


# -- heads on disk ---


def sparsify(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(class ids [B, K] int16 or int32, probabilities [B, K] fp16) of the K most probable classes, falling."""
    values, ids = logits.float().softmax(-1).topk(k, dim=-1)
    wide = logits.shape[-1] > np.iinfo(np.int16).max
    return ids.to(torch.int32 if wide else torch.int16), values.half()


def densify(ids: Tensor, values: Tensor, classes: int) -> Tensor:
    """Probabilities [B, C] from the kept ones: the leftover mass spread evenly over the C - K others, not renormalised.

    Where rounding left the kept sum above 1, or K = C, the kept values are divided by their sum instead (our choice).
    """
    kept = values.float()
    total = kept.sum(-1, keepdim=True)
    others = classes - ids.shape[-1]
    rest = (1 - total).clamp_min(0) / max(1, others)
    kept = torch.where((total > 1) | torch.tensor(others == 0), kept / total, kept)
    return rest.repeat(1, classes).scatter(-1, ids.long(), kept)


def pack(name: str, value: Tensor, storage_format: str) -> dict[str, Tensor]:
    """One head as the columns it is stored in."""
    if storage_format == "fp32":
        return {name: value.float()}
    if storage_format == "fp16":
        return {name: value.half()}
    ids, kept = sparsify(value, min(int(storage_format.removeprefix("top")), value.shape[-1]))
    return {f"{name}.ids": ids, f"{name}.values": kept}


def difference(storage_format: str, stored: Tensor, live: Tensor) -> float:
    """The largest difference, relative to the largest value; a sparse head's: of its kept classes' probabilities."""
    if storage_format.startswith("top"):
        k = min(int(storage_format.removeprefix("top")), live.shape[-1])
        values, ids = live.float().softmax(-1).topk(k, dim=-1)
        return float((stored.exp().gather(-1, ids) - values).abs().max())
    return float((stored - live).abs().max() / live.abs().max().clamp_min(1e-12))


# -- folders ---


def shard_path(root: Path, number: int) -> Path:
    """Where shard ``number`` (from 0) lies."""
    return root / f"shard-{number:06d}.safetensors"


def read_metadata(root: Path) -> dict[str, Any]:
    """The facts a cache states about itself, checked.

    Raises:
        StaleError: it is no cache, or of another format.
        InputError: it is damaged, or a field is not as it must be.
    """
    file = root / "cache.json"
    remedy = "build the cache again in a new folder"
    head = reading.read_json(file, remedy=remedy)
    if not isinstance(head, dict) or head.get("format") != FORMAT:
        raise StaleError("not a teacher cache of tutelage", where=file, remedy="choose another folder")
    if head.get("version") != VERSION:
        raise StaleError(f"a cache of format {head.get('version')}, this is format {VERSION}", where=file, remedy=remedy)
    head = reading.read_json(file, sealed=True, remedy=remedy)
    for name in ("data", "teacher"):
        check_field(head, name, str, where=file, remedy=remedy)
    for name in ("passes", "shard"):
        check_field(head, name, int, 1, 10**9, where=file, remedy=remedy)
    for name in ("order", "covers"):
        check_field(head, name, dict, where=file, remedy=remedy)
    for name, entry in check_field(head, "heads", dict, 1, where=file, remedy=remedy).items():
        check_store(check_field(entry, "store", str, where=f"{file}: heads.{name}", remedy=remedy), f"{file}: heads.{name}")
        check_items(entry, "shape", int, 0, 10**9, where=f"{file}: heads.{name}", remedy=remedy)
    return head


def check_store(storage_format: str, where: object) -> None:
    """Refuse what is no way to store a head.

    Raises:
        InputError: it is not fp32, fp16 or topK.
    """
    if not re.fullmatch(r"fp32|fp16|top[1-9]\d{0,8}", storage_format):
        raise InputError(f"cannot store a head as {storage_format!r}", where=where, remedy="fp32, fp16, or topK such as top10")


class Cache:
    """An open cache: memory-mapped columns and an index from view to row.

    Args:
        root: the folder.
        data: if given, what the cache must have been built from.

    Raises:
        InputError: no cache there, or a shard is missing, cut short or damaged (every byte is checked, at the speed of
            reading); the message names it.
        StaleError: the cache is of another format or other data.
    """

    def __init__(self, root: str | Path, data: ReplayableData | None = None):
        self.root = Path(root)
        self.metadata = read_metadata(self.root)
        if data is not None and data.fingerprint != self.metadata["data"]:
            raise StaleError(
                f"built from data {self.metadata['data']}, these are {data.fingerprint}",
                where=self.root,
                remedy="the samples or their augmentation changed: build the cache again in a new folder",
            )
        self.shards: list[dict[str, Tensor]] = []
        count = -(-self.metadata["passes"] // self.metadata["shard"])
        for number in range(count):
            path = shard_path(self.root, number)
            if not path.exists():
                raise InputError(
                    f"shard {number + 1} of {count} is missing",
                    where=path,
                    remedy="build it again: finished shards are kept",
                )
            self.shards.append(self._fitting(self.open_shard(path)[0], path))
        keys = np.concatenate([shard["keys"].numpy().view(np.uint64) for shard in self.shards])
        starts = np.cumsum([0] + [len(shard["keys"]) for shard in self.shards])
        by_key = np.argsort(keys, kind="stable")
        self._keys, self._rows, self._starts = keys[by_key], by_key, starts
        self._check_complete()

    def __len__(self) -> int:
        return len(self._keys)

    def _check_complete(self) -> None:
        """Refuse shards that are whole each by itself, but do not hold the views that the cache says it covers."""
        views, order = self.metadata["covers"].get("views"), self.metadata["order"]
        if not all(isinstance(value, int) for value in (views, order.get("length"), order.get("batch_size"))):
            return
        held, wanted = len(np.unique(self._keys)), views * order["length"]
        if held < min(wanted, self.metadata["passes"] * order["batch_size"]):
            raise InputError(
                f"the cache is corrupted: its shards hold {held:,} of the {wanted:,} views that it covers",
                where=self.root,
                remedy="a shard was replaced by another: tutelage cache verify, or build the cache again in a new folder",
            )

    def _fitting(self, columns: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
        """``columns`` if they are those that the head names."""
        for name, entry in self.metadata["heads"].items():
            top = entry["store"].startswith("top")
            for column in (f"{name}.ids", f"{name}.values") if top else (name,):
                shape = None if column not in columns else tuple(columns[column].shape[1:])
                if (
                    shape is None
                    or (not top and shape != tuple(entry["shape"]))
                    or (top and shape[:-1] != tuple(entry["shape"][:-1]))
                ):
                    message = f"its column {column!r} is {'missing' if shape is None else f'of shape {shape}'}"
                    raise InputError(f"this shard is corrupted: {message}", where=path, remedy=REBUILD)
        return columns

    @staticmethod
    def open_shard(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The mapped columns of a shard, and its facts."""
        try:
            columns, facts = read_tensors(path, SHARD)
            if "keys" not in columns or columns["keys"].dtype != torch.int64 or columns["keys"].dim() != 1:
                raise InputError("it has no column of keys")
            if any(column.dim() == 0 or len(column) != len(columns["keys"]) for column in columns.values()):
                raise InputError("its columns are not of one length")
            return columns, facts
        except InputError as error:
            raise InputError(f"this shard is corrupted: {error.message}", where=path, remedy=REBUILD) from error

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(path.stat().st_size for path in self.root.iterdir() if path.is_file())

    def rows(self, batch: Batch) -> np.ndarray:
        """The row of each view of ``batch``, [B].

        Raises:
            StaleError: a view is not in the cache.
        """
        wanted = view_keys(batch)
        at = np.searchsorted(self._keys, wanted)
        found = self._keys[np.minimum(at, len(self._keys) - 1)] == wanted
        if not found.all():
            row = int((~found).nonzero()[0][0])
            assert batch.ids is not None and batch.seeds is not None
            raise StaleError(
                f"the cache does not hold sample {int(batch.ids[row])} in the view of seed {int(batch.seeds[row])}",
                where=self.root,
                remedy=f"it holds {self.metadata['passes']} passes of order {self.metadata['order']}: build one for this run",
            )
        return self._rows[at]

    def read(self, batch: Batch) -> Output:
        """The stored heads for ``batch``, float32; a sparse head comes as log-probabilities [B, C]."""
        rows = self.rows(batch)
        device = next(flatten_tree(batch.inputs))[1].device
        heads = {}
        for name, entry in self.metadata["heads"].items():
            if entry["store"].startswith("top"):
                ids, values = self._gather(f"{name}.ids", rows), self._gather(f"{name}.values", rows)
                dense = densify(ids, values, entry["shape"][-1])
                heads[name] = dense.clamp_min(1e-30).log().to(device)
            else:
                heads[name] = self._gather(name, rows).to(device).float()
        return heads

    def _gather(self, column: str, rows: np.ndarray) -> Tensor:
        if len(self.shards) == 1:
            return self.shards[0][column][torch.from_numpy(rows)]
        where = np.searchsorted(self._starts, rows, side="right") - 1
        first = self.shards[0][column]
        out = first.new_empty((len(rows), *first.shape[1:]))
        for number in np.unique(where):
            here = where == number
            local = torch.from_numpy(rows[here] - self._starts[number])
            out[torch.from_numpy(here)] = self.shards[number][column][local]
        return out

    def info(self) -> dict[str, Any]:
        """The head, and ``rows``, ``bytes``, ``bytes_per_row``, ``dense_fp32_bytes``."""
        dense = sum(4 * int(np.prod(entry["shape"])) for entry in self.metadata["heads"].values())
        return self.metadata | {
            "rows": len(self),
            "bytes": self.size,
            "bytes_per_row": self.size / max(1, len(self)),
            "dense_fp32_bytes": dense * len(self),
        }


class CachedTeacher(Teacher):
    """What another teacher said, read from a cache by view; a view that is not in it is an error, never recomputed.

    Args:
        cache: an open cache.
        teacher: the teacher it must have been built from; None: not checked.

    Raises:
        StaleError: the cache was built from another teacher.
    """

    cached = True

    def __init__(self, cache: Cache, teacher: Teacher | None = None):
        if teacher is not None and teacher.fingerprint != cache.metadata["teacher"]:
            raise StaleError(
                f"built from teacher {cache.metadata['teacher']}, this teacher is {teacher.fingerprint}",
                where=cache.root,
                remedy="build the cache again in a new folder",
            )
        self.cache, self.source = cache, teacher
        self.network = teacher.network if teacher is not None else None

    @property
    def uncached(self) -> Teacher:
        """See :class:`Teacher`.

        Raises:
            InputError: the cache was opened without its teacher.
        """
        if self.source is None:
            raise InputError(
                "the method asks the teacher about inputs that are not in the cache",
                where=self.cache.root,
                remedy="give the teacher beside its cache",
            )
        return self.source

    def request_features(self, *taps: str) -> None:
        """See :class:`Teacher`."""
        missing = [name for name in taps if name not in self.cache.metadata["heads"]]
        if missing:
            raise StaleError(
                f"the cache holds no output of {', '.join(missing)}",
                where=self.cache.root,
                remedy="build it again with these taps",
            )

    def predict(self, batch: Batch) -> Output:
        """See :class:`Teacher`."""
        return self.cache.read(batch)

    @property
    def fingerprint(self) -> str:
        """See :class:`Teacher`."""
        return str(self.cache.metadata["teacher"])
