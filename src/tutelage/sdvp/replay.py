"""Replay: the calls on which self-distillation holds a module to its old outputs. No labels are used."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence

import numpy as np

from tutelage.modules.visual_module import VisualModule
from tutelage.programs.serialization import input_key
from tutelage.programs.trace import StepRecord
from tutelage.programs.types import Call
from tutelage.sdvp.collect import call_of
from tutelage.sdvp.teachers import ModuleTeacher


def calls_with_related(records: Iterable[StepRecord], module: VisualModule) -> Iterator[Call]:
    """The call of each record, and after it the related calls about the same input."""
    for record in records:
        call = call_of(record)
        yield call
        yield from module.related_calls(call)


def unsupported_records(records: Iterable[StepRecord], module: VisualModule, teacher: ModuleTeacher) -> list[StepRecord]:
    """The related calls of ``records`` that the teacher does not support, each once, as records without an output."""
    found: dict[Hashable, StepRecord] = {}
    for record in records:
        for call in module.related_calls(call_of(record)):
            if not teacher.supports(call):
                related = StepRecord(record.origin, record.step, record.call_no, call.module, record.module_version, call.args)
                found.setdefault(_key(call), related)
    return list(found.values())


def sample_replay(groups: Sequence[Iterable[Call]], max_calls: int, rng: np.random.Generator) -> list[Call]:
    """At most about ``max_calls`` distinct calls, with equal room for each group that has any.

    A call counts in the first group that holds it. Where a group has more calls than room, whole images are drawn, so
    that calls about one image stay together.
    """
    known: set[Hashable] = set()
    distinct: list[list[Call]] = []
    for group in groups:
        calls = {key: call for call in group if (key := _key(call)) not in known}
        known |= calls.keys()
        if calls:
            distinct.append(list(calls.values()))
    room = max_calls // max(1, len(distinct))
    return [call for calls in distinct for call in _sample_by_image(calls, room, rng)]


def _sample_by_image(calls: list[Call], count: int, rng: np.random.Generator) -> list[Call]:
    """At most ``count`` calls, whole images at a time, in their order."""
    if len(calls) <= count:
        return calls
    keys = list(dict.fromkeys(map(_image_key, calls)))
    share = count / len(calls)
    chosen = {keys[i] for i in rng.permutation(len(keys))[: max(1, int(len(keys) * share))]}
    return [call for call in calls if _image_key(call) in chosen]


def _image_key(call: Call) -> Hashable:
    return getattr(call.args.get("image"), "key", None)


def _key(call: Call) -> Hashable:
    """Equal for equal calls; a call whose arguments cannot be compared equals itself alone."""
    return input_key(dict(sorted(call.args.items()))) or id(call)
