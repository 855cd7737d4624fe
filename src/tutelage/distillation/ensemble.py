"""Several teachers as one: their sum, their average, or each row answered by the one that knows it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tutelage.distillation.data import Batch, take_rows
from tutelage.distillation.data.object_hash import callable_fingerprint
from tutelage.distillation.teacher import BlackBoxTeacher, Teacher, as_teacher
from tutelage.errors import InputError
from tutelage.storage import fingerprint

if TYPE_CHECKING:
    from tutelage.distillation.outputs import Output


@dataclass(frozen=True)
class RouteByClass:
    """Routes by label: ``teachers[c]`` is the number of the teacher that knows class c. Of mixed labels [B, C] the class
    with the largest share counts (our choice).

    Raises:
        InputError: a batch without labels, or a class beyond the list.
    """

    teachers: Sequence[int]

    def __call__(self, batch: Batch) -> Tensor:
        """[B] int64."""
        labels = batch.labels
        if not isinstance(labels, Tensor):
            raise InputError("routing by class needs labels", where="route", remedy="route by sample, or give labels")
        return _looked_up(self.teachers, labels.argmax(-1) if labels.ndim == 2 else labels.long(), "class")


@dataclass(frozen=True)
class RouteBySample:
    """Routes by sample id: ``teachers[i]`` is the number of the teacher that answers sample i of the data.

    Raises:
        InputError: a batch without ids, or a sample beyond the list.
    """

    teachers: Sequence[int]

    def __call__(self, batch: Batch) -> Tensor:
        """[B] int64."""
        if batch.ids is None:
            raise InputError("a batch without sample ids cannot be routed by sample", where="route", remedy="route by class")
        return _looked_up(self.teachers, batch.ids, "sample")


@dataclass(frozen=True)
class RouteByField:
    """Routes by a field of the batch: ``batch.extra[name]`` [B] (such as ``domain``) is looked up in ``teachers``; without
    ``teachers`` it is the teacher's number itself.

    Raises:
        InputError: a batch without the field, or a value beyond the list.
    """

    name: str
    teachers: Sequence[int] = ()

    def __call__(self, batch: Batch) -> Tensor:
        """[B] int64."""
        found = batch.extra.get(self.name)
        if not isinstance(found, Tensor):
            known = ", ".join(batch.extra) or "none"
            raise InputError(f"the batch has no field {self.name!r}", where="route", remedy=f"its fields: {known}")
        return _looked_up(self.teachers, found.long(), self.name) if self.teachers else found.long()


def _looked_up(teachers: Sequence[int], rows: Tensor, what: str) -> Tensor:
    if len(rows) and (int(rows.min()) < 0 or int(rows.max()) >= len(teachers)):
        raise InputError(
            f"{what} {int(rows.max())} has no teacher, the route knows {len(teachers)}",
            where="route",
            remedy=f"give one number a {what}",
        )
    return torch.tensor(list(teachers), device=rows.device)[rows]


class EnsembleTeacher(Teacher):
    """Several teachers as one.

    Args:
        teachers: at least one; all must know the head.
        combine: ``average`` or ``sum`` of each head (weighted), or ``routed``: each row is answered by one of them.
        weights: one a teacher, for ``average`` (normalised to sum 1) and ``sum``.
        route: for ``routed``: :class:`RouteByClass`, :class:`RouteBySample`, :class:`RouteByField`, or any function from a
            batch to the teacher's number of each row, [B] int64.

    Raises:
        InputError: no teacher, an unknown way to combine, or a route that names no teacher.
    """

    def __init__(
        self,
        teachers: Sequence[Teacher | nn.Module],
        combine: str = "average",
        weights: Sequence[float] | None = None,
        route: Callable[[Batch], Tensor] | None = None,
    ):
        found = [as_teacher(teacher) for teacher in teachers]
        self.teachers = [teacher for teacher in found if teacher is not None]
        if not self.teachers or len(self.teachers) != len(found):
            raise InputError("an ensemble needs at least one teacher, and no None among them")
        if combine not in ("average", "sum", "routed") or (combine == "routed") != (route is not None):
            raise InputError(f"cannot combine by {combine!r}", remedy="average, sum, or routed together with route=…")
        if weights is not None and len(weights) != len(self.teachers):
            raise InputError(f"{len(weights)} weights for {len(self.teachers)} teachers")
        total = list(weights or [1.0] * len(self.teachers))
        self.weights = [w / sum(total) for w in total] if combine == "average" else total
        self.combine, self.route = combine, route
        self._route = None if route is None else callable_fingerprint(route, "route", getattr(route, "fingerprint", None))
        self.frozen = all(teacher.frozen for teacher in self.teachers)
        self.cached = any(teacher.cached for teacher in self.teachers)

    def predict(self, batch: Batch) -> Output:
        """See :class:`Teacher`."""
        if self.route is not None:
            return self._routed(batch, self.route(batch))
        outputs = [teacher(batch) for teacher in self.teachers]
        shared = [name for name in outputs[0] if all(name in one for one in outputs)]
        return {name: _weighted([one[name] for one in outputs], self.weights) for name in shared}

    def _routed(self, batch: Batch, route: Tensor) -> Output:
        if route.shape != (len(batch),) or bool((route < 0).any()) or bool((route >= len(self.teachers)).any()):
            raise InputError(f"a route must give each of {len(batch)} rows a teacher's number below {len(self.teachers)}")
        merged: Output = {}
        for number, teacher in enumerate(self.teachers):
            rows = (route == number).nonzero()[:, 0]
            if not len(rows):
                continue
            for name, value in teacher(take_rows(batch, rows)).items():
                if name not in merged:
                    merged[name] = value.new_zeros(len(batch), *value.shape[1:])
                merged[name][rows] = value
        return merged

    @property
    def fingerprint(self) -> str:
        """See :class:`Teacher`."""
        return fingerprint(self.combine, self.weights, [teacher.fingerprint for teacher in self.teachers], self._route)

    @property
    def black_boxes(self) -> Sequence[BlackBoxTeacher]:
        """See :class:`Teacher`."""
        return [box for teacher in self.teachers for box in teacher.black_boxes]

    @property
    def networks(self) -> Sequence[nn.Module]:
        """See :class:`Teacher`."""
        return [network for teacher in self.teachers for network in teacher.networks]

    @property
    def uncached(self) -> EnsembleTeacher:
        """See :class:`Teacher`."""
        live = copy.copy(self)
        live.teachers = [teacher.uncached for teacher in self.teachers]
        return live

    def request_features(self, *taps: str) -> None:
        """See :class:`Teacher`."""
        for teacher in self.teachers:
            teacher.request_features(*taps)

    def to(self, device: torch.device | str) -> EnsembleTeacher:
        """See :class:`Teacher`."""
        for teacher in self.teachers:
            teacher.to(device)
        return self

    def after_step(self, student: nn.Module) -> None:
        """See :class:`Teacher`."""
        for teacher in self.teachers:
            teacher.after_step(student)

    def state_dict(self) -> dict[str, Tensor]:
        """See :class:`Teacher`."""
        return {f"{i}.{name}": value for i, one in enumerate(self.teachers) for name, value in one.state_dict().items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """See :class:`Teacher`."""
        for i, teacher in enumerate(self.teachers):
            head = f"{i}."
            teacher.load_state_dict({name.removeprefix(head): value for name, value in state.items() if name.startswith(head)})


class NamedTeachers(EnsembleTeacher):
    """Teachers side by side: the first one's heads under their own names, those of each other one behind its name.

    ``NamedTeachers(host, cnn=other)`` answers ``logits`` and ``cnn.logits``. Inner outputs are those of the first; its
    ``network`` is what a method runs parts of.

    Args:
        teacher: the first.
        others: the others, by name.
    """

    def __init__(self, teacher: Teacher | nn.Module, **others: Teacher | nn.Module):
        super().__init__([teacher, *others.values()])
        self.names, self.network = tuple(others), self.teachers[0].network

    def predict(self, batch: Batch) -> Output:
        """See :class:`Teacher`."""
        first, *others = (teacher(batch) for teacher in self.teachers)
        named = zip(self.names, others, strict=True)
        return {**first, **{f"{name}.{head}": value for name, heads in named for head, value in heads.items()}}

    @property
    def fingerprint(self) -> str:
        """See :class:`Teacher`."""
        return fingerprint("named", list(self.names), [teacher.fingerprint for teacher in self.teachers])

    def request_features(self, *taps: str) -> None:
        """See :class:`Teacher`; the first one's."""
        self.teachers[0].request_features(*taps)


def _weighted(values: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    total = weights[0] * values[0]
    for weight, value in zip(weights[1:], values[1:], strict=True):
        total = total + weight * value
    return total
