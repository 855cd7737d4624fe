"""Several sources of data as one: a labelled and an unlabelled domain, images beside clips, or one task after the other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from tutelage.distillation.data import Batch, BatchOrder, ReplayableData, Tree, flatten_tree, order_of, take_rows
from tutelage.distillation.data.dataset import Loading
from tutelage.distillation.data.mixing import InSequence, MixedOrder, Mixing, Together
from tutelage.distillation.data.sources import as_data
from tutelage.errors import InputError, did_you_mean
from tutelage.seeds import derive
from tutelage.storage import fingerprint

IGNORED = -100
"""The whole-number label of a sample without one: every task leaves it out."""


class CombinedData:
    """Several sources as one :class:`ReplayableData`.

    A batch is the rows of its sources, joined. ``batch.extra[field]`` [B] int64 numbers each row's source, and
    ``batch.extra["sources"]`` names them: ``part(batch, "target")`` is one source's rows. Sources whose samples differ in
    shape are kept apart with ``parts=True``: then inputs and labels are dicts by name.

    Each source is shuffled by itself, with a seed of its own. A run resumes to the same bits, and a teacher's outputs can
    be cached: a sample's number is its number in its source plus the lengths of the sources before it.

    Args:
        sources: by name; each is data, or whatever ``as_data`` takes.
        mixing: :class:`Together` (each batch holds rows of all), :class:`InTurn` (each pass reads one), or
            :class:`InSequence` (one after the other).
        parts: keep the sources of a batch apart.
        field: the entry of ``batch.extra`` that takes the numbers, such as ``domain`` or ``task``.
        missing: the label of a row whose source has none, beside one that has. None: -100 for class numbers, nan for
            real numbers, 0 for real numbers beside class numbers (boxes).
        loading: workers; None: those of the source that has the most.

    Examples:
        >>> from tutelage.distillation.data import TensorData
        >>> photos = TensorData(torch.rand(8, 3, 4, 4), torch.arange(8) % 2)
        >>> drawings = TensorData(torch.rand(6, 3, 4, 4))
        >>> data = CombinedData({"photos": photos, "drawings": drawings}, field="domain")
        >>> batch = data.batch(torch.tensor([0, 9]), None)
        >>> batch.labels.tolist(), batch.extra["domain"].tolist(), len(part(batch, "drawings", "domain"))
        ([0, -100], [0, 1], 1)

    Raises:
        InputError: no source, or class names that differ.
    """

    def __init__(
        self,
        sources: Mapping[str, Any],
        mixing: Mixing | None = None,
        *,
        parts: bool = False,
        field: str = "source",
        missing: float | None = None,
        loading: Loading | None = None,
    ):
        if not isinstance(sources, Mapping) or not sources:
            raise InputError("no source of data", where="sources", remedy='name them: {"source": …, "target": …}')
        self.sources: dict[str, ReplayableData] = {}
        for name, source in sources.items():
            try:
                self.sources[str(name)] = as_data(source)
            except InputError as error:
                raise InputError(error.message, where=f"sources.{name}: {error.where}", remedy=error.remedy) from error
        self.names = tuple(self.sources)
        self.mixing: Mixing = mixing or Together()
        self.mixing.shares(self.names, max(len(self.names), 1), 1, 1)  # refuses names that are no source
        self.parts, self.field, self.missing = parts, field, missing
        given = [found for data in self.sources.values() if (found := getattr(data, "loading", None)) is not None]
        self.loading = loading or max(given, key=lambda one: one.workers, default=Loading())
        lengths = [len(data) for data in self.sources.values()]
        self.starts = [sum(lengths[:number]) for number in range(len(lengths))]
        self._ends = torch.tensor(lengths).cumsum(0)
        self._check_classes()

    def _check_classes(self) -> None:
        first: tuple[str, list[str]] | None = None
        for name, data in self.sources.items():
            classes = getattr(getattr(data, "dataset", None), "classes", None)
            if not isinstance(classes, (list, tuple)) or not classes:
                continue
            if first is not None and list(classes) != first[1]:
                odd = sorted(set(classes) ^ set(first[1])) or ["another order"]
                raise InputError(
                    f"the classes differ from those of {first[0]!r}: {', '.join(map(str, odd[:5]))}",
                    where=f"sources.{name}",
                    remedy="give both the same class names in the same order: image_folder(…, classes=[…])",
                )
            first = first or (name, list(classes))

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def fingerprint(self) -> str:
        """Names the sources and how they are mixed."""
        named = [[name, data.fingerprint] for name, data in self.sources.items()]
        return fingerprint("combined-1", named, type(self.mixing).__name__, self.mixing, self.parts, self.field, repr(self.missing))

    def with_sources(self, sources: Mapping[str, Any]) -> CombinedData:
        """Other sources of the same names, read in the same way: the parts of a split, say."""
        return CombinedData(sources, self.mixing, parts=self.parts, field=self.field, missing=self.missing, loading=self.loading)

    def sample_order(
        self, batch_size: int, seed: int, views: int = 0, view_seed: int | None = None, steps: int = 1, accumulate: int = 1
    ) -> BatchOrder:
        """See :func:`tutelage.distillation.data.order_of`."""
        shares = self.mixing.shares(self.names, batch_size, steps, accumulate)
        orders = []
        for (name, data), share in zip(self.sources.items(), shares, strict=True):
            seeds = [derive(one, "source", name) for one in (seed, seed if view_seed is None else view_seed)]
            orders.append(order_of(data, share.batch_size, seeds[0], views, seeds[1], share.steps, share.accumulate))
        facts = {"batch_size": batch_size, "seed": seed, "views": views, "view_seed": view_seed, "steps": steps}
        return MixedOrder(orders, self.starts, self.names, self.mixing, facts | {"accumulate": accumulate})

    def check_replay(self, indices: Tensor, seeds: Tensor) -> None:
        """Read samples twice, where their source can check itself; see ``DatasetData.check_replay``."""
        for number, data, rows in self._grouped(indices):
            check = getattr(data, "check_replay", None)
            if check is not None:
                check(indices[rows] - self.starts[number], seeds[rows])

    def _grouped(self, indices: Tensor) -> list[tuple[int, ReplayableData, Tensor]]:
        which = torch.searchsorted(self._ends, indices, right=True)
        if len(which) and (int(indices.min()) < 0 or int(which.max()) >= len(self.names)):
            wrong = int(indices.min()) if int(indices.min()) < 0 else int(indices.max())
            raise InputError(f"no sample {wrong} among {len(self)}", where="data", remedy="count samples from 0")
        data = list(self.sources.values())
        return [(number, data[number], (which == number).nonzero()[:, 0]) for number in which.unique().tolist()]

    def batch(self, indices: Tensor, seeds: Tensor | None) -> Batch:
        """See :class:`ReplayableData`. Joined rows come in the order of ``indices``, parts in the order of the sources.

        Raises:
            InputError: rows of the sources do not fit together; source and field are named.
        """
        groups = self._grouped(indices)
        found = {}
        for number, data, rows in groups:
            found[self.names[number]] = data.batch(indices[rows] - self.starts[number], None if seeds is None else seeds[rows])
        batches = list(found.values())
        positions = torch.cat([rows for _, _, rows in groups])
        known = all(batch.ids is not None and batch.seeds is not None for batch in batches)
        joined = Batch(None, ids=indices[positions] if known else None, partners=_partners(batches))
        if known:
            joined.seeds = torch.cat([batch.seeds for batch in batches if batch.seeds is not None])
        if any(batch.weights is not None for batch in batches):
            joined.weights = torch.cat([torch.ones(len(b)) if b.weights is None else b.weights for b in batches])
        numbers = torch.cat([torch.full((len(rows),), number) for number, _, rows in groups])
        extra: dict[str, Any] = {self.field: numbers, "sources": self.names}
        if self.parts:
            labels = {name: batch.labels for name, batch in found.items() if batch.labels is not None}
            inner = {name: batch.extra for name, batch in found.items() if batch.extra}
            extra |= {"parts": inner} if inner else {}
            return replace(joined, inputs={name: batch.inputs for name, batch in found.items()}, labels=labels or None, extra=extra)
        names = list(found)
        joined.inputs = _join([batch.inputs for batch in batches], names, "inputs")
        joined.labels = self._labels(batches, names)
        for key in sorted({key for batch in batches for key in batch.extra}):
            values = [batch.extra.get(key) for batch in batches]
            extra.setdefault(key, _join(values, names, f"extra.{key}"))
        joined.extra = extra
        if torch.equal(positions, torch.arange(len(positions))):
            return joined
        back = positions.argsort()
        if joined.partners is not None:
            joined.partners = positions[joined.partners]
        return take_rows(joined, back)

    @cached_property
    def _first_label(self) -> Tree:
        """The labels [1, ...] of one sample of the first source that has any; None: no source has."""
        found = (data.batch(torch.zeros(1, dtype=torch.int64), None).labels for data in self.sources.values())
        return next((labels for labels in found if labels is not None), None)

    def _labels(self, batches: Sequence[Batch], names: Sequence[str]) -> Tree:
        like = next((batch.labels for batch in batches if batch.labels is not None), self._first_label)
        if like is None:
            return None
        whole = any(not leaf.is_floating_point() for _, leaf in flatten_tree(like))
        labels = [self._unlabelled(like, len(b), whole) if b.labels is None else b.labels for b in batches]
        return _join(labels, names, "labels")

    def _unlabelled(self, like: Tree, count: int, whole: bool) -> Tree:
        if isinstance(like, Mapping):
            return {key: self._unlabelled(value, count, whole) for key, value in like.items()}
        if isinstance(like, tuple):
            return tuple(self._unlabelled(value, count, whole) for value in like)
        value = self.missing
        if value is None or not like.is_floating_point():
            value = IGNORED if not like.is_floating_point() else 0.0 if whole else math.nan
        return torch.full((count, *like.shape[1:]), value, dtype=like.dtype)


def _partners(batches: Sequence[Batch]) -> Tensor | None:
    if all(batch.partners is None for batch in batches):
        return None
    parts, start = [], 0
    for batch in batches:
        own = torch.arange(len(batch)) if batch.partners is None else batch.partners
        parts.append(start + own)
        start += len(batch)
    return torch.cat(parts)


def _join(trees: Sequence[Tree], names: Sequence[str], path: str) -> Tree:
    """The rows of equal nests of tensors, one below the other."""
    first = trees[0]
    if len(trees) == 1:
        return first
    for name, tree in zip(names, trees, strict=True):
        same = type(tree) is type(first) or isinstance(tree, Tensor) and isinstance(first, Tensor)
        if same and isinstance(first, Tensor):
            same = tree.shape[1:] == first.shape[1:] and tree.dtype == first.dtype
        elif same and isinstance(first, Mapping):
            same = list(tree) == list(first)
        elif same and isinstance(first, tuple):
            same = len(tree) == len(first)
        if not same:
            raise InputError(
                f"{_described(tree)}; the source {names[0]!r} gives {_described(first)}",
                where=f"sources.{name}: {path}",
                remedy="bring both to one shape and dtype, or keep them apart: CombinedData(…, parts=True)",
            )
    if isinstance(first, Tensor):
        return torch.cat(list(trees))
    if isinstance(first, Mapping):
        return {key: _join([tree[key] for tree in trees], names, f"{path}.{key}") for key in first}
    if isinstance(first, tuple):
        return tuple(_join([tree[i] for tree in trees], names, f"{path}.{i}") for i in range(len(first)))
    return first


def _described(tree: Tree) -> str:
    if isinstance(tree, Tensor):
        return f"rows of shape {list(tree.shape[1:])}, {str(tree.dtype).removeprefix('torch.')}"
    return ", ".join(map(str, tree)) if isinstance(tree, Mapping) else "nothing" if tree is None else type(tree).__name__


def part(batch: Batch, name: str, field: str = "source") -> Batch:
    """The rows of one source of a batch of :class:`CombinedData`; of no rows where the batch has none of it.

    Args:
        batch: joined rows, or parts.
        name: of the source.
        field: as given to :class:`CombinedData`.

    Raises:
        InputError: the batch comes from other data, or there is no such source; the message lists them.
    """
    names = batch.extra.get("sources")
    if names is None or field not in batch.extra:
        raise InputError(f"the batch has no field {field!r}", where="batch.extra", remedy="train on CombinedData(…)")
    if name not in names:
        raise InputError(f"no source {name!r}", where="part", remedy=did_you_mean(name, list(names)))
    numbers: Tensor = batch.extra[field]
    rows = (numbers == names.index(name)).nonzero()[:, 0].cpu()
    if not (isinstance(batch.inputs, Mapping) and set(batch.inputs) <= set(names)):
        return take_rows(replace(batch, partners=None), rows)
    extra = {field: numbers[rows.to(numbers.device)], "sources": names, **batch.extra.get("parts", {}).get(name, {})}
    inputs, labels = batch.inputs.get(name), (batch.labels or {}).get(name)
    keyed = take_rows(Batch(None, ids=batch.ids, seeds=batch.seeds, weights=batch.weights), rows) if batch.ids is not None else None
    if keyed is None:
        return Batch(inputs, labels, extra=extra)
    return Batch(inputs, labels, ids=keyed.ids, seeds=keyed.seeds, weights=keyed.weights, extra=extra)


def task_stream(tasks: Mapping[str, Any] | Sequence[Any], lengths: Mapping[str, float] | None = None) -> CombinedData:
    """A stream of tasks for continual learning: each is read for its share of the steps, then never again.

    ``batch.extra["task"]`` [B] int64 is the number of the task, which :class:`tutelage.distillation.continual.TaskModules`
    takes as key.

    Args:
        tasks: data by name, or a list of them (named ``task 0``, …).
        lengths: how long each task is read, relative to the others; None: equally long.
    """
    named = tasks if isinstance(tasks, Mapping) else {f"task {number}": data for number, data in enumerate(tasks)}
    return CombinedData(named, InSequence(dict(lengths or {})), field="task")
