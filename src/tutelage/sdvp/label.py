"""Label: let the teacher answer the collected calls, calibrate it, and decide which labels count."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tutelage.modules.visual_module import Label, VisualModule
from tutelage.programs.answers import normalise
from tutelage.programs.types import Call, Module
from tutelage.programs.trace import StepRecord
from tutelage.sdvp.teachers import StepTeacher, tempered
from tutelage.sdvp.collect import call_of, teacher_forcing
from tutelage.sdvp.questions import Question, correct, solve
from tutelage.sdvp.votes import vote_agreement

Field = dict[str, Any]
"""The teacher field of a step record: {name, version, hard, dist, conf}."""


@dataclass(frozen=True)
class Filters:
    """Which labels are kept (all ours; each may be off).

    gate: least calibrated confidence, 0 keeps all. final: where a final answer is known, keep the samples whose
    teacher-forced run gives it. votes: keep the samples of which at least this share of programs answer as the collected
    one does, 0 is off.
    """

    gate: float = 0.8
    final: bool = False
    votes: float = 0.0


def label(records: Sequence[StepRecord], module: VisualModule, teacher: StepTeacher) -> list[StepRecord]:
    """The records the teacher covers, each with its label; with ``teacher.expand`` also the sibling calls it covers."""
    asked = to_label(records, module, teacher)
    return labelled(asked, fields(teacher, [call_of(record) for record in asked]))


def to_label(records: Sequence[StepRecord], module: VisualModule, teacher: StepTeacher) -> list[StepRecord]:
    """The records, and with ``teacher.expand`` those of their sibling calls, each once."""
    asked = list(records)
    if teacher.expand:
        known = {record.input_hash for record in records}
        seen: set[object] = set()
        for record in records:
            key = record.args["image"].key if "image" in record.args else record.input_hash
            if key in seen:
                continue
            seen.add(key)
            for call in module.siblings(call_of(record)):
                extra = StepRecord(record.origin, record.step, record.call_no, call.module, record.module_version, call.args)
                if extra.input_hash not in known:
                    known.add(extra.input_hash)
                    asked.append(extra)
    return asked


def fields(teacher: StepTeacher, calls: Sequence[Call]) -> list[Field | None]:
    """What the teacher says to each call, as the teacher field of its record; None where it has nothing to say."""
    return [None if found is None else as_field(found, teacher) for found in teacher.label(calls)]


def labelled(asked: Sequence[StepRecord], said: Sequence[Field | None]) -> list[StepRecord]:
    """The records that have a label, each with its field."""
    return [replace(record, teacher=field) for record, field in zip(asked, said, strict=True) if field is not None]


def as_field(found: Label, teacher: StepTeacher) -> Field:
    """A label as the teacher field of a step record."""
    dist = dict(found.dist) if found.dist is not None else None
    return {"name": teacher.name, "version": teacher.version, "hard": found.hard, "dist": dist, "conf": found.conf}


def label_of(record: StepRecord) -> Label:
    """The label in a record's teacher field, with the record's weight."""
    field = record.teacher or {}
    return Label(field.get("hard"), field.get("dist"), float(field.get("conf", 1.0)), record.weight)


def calibrate(teacher: StepTeacher, probe: Sequence[tuple[Call, Label]]) -> StepTeacher:
    """The teacher at the temperature, among a grid from 0.5 to 4, with the least negative log-likelihood on the probe.

    Teachers without probabilities, and probes without covered calls, leave it as it is.
    """
    raw = replace(teacher, temperature=1.0)
    said = raw.label([call for call, _ in probe])
    pairs = [(a, g) for a, (_, g) in zip(said, probe, strict=True) if a is not None and a.dist is not None]
    if not pairs:
        return teacher

    def loss(temperature: float) -> float:
        return -sum(math.log(max(1e-9, (tempered(a, temperature).dist or {}).get(normalise(g.hard), 0.0))) for a, g in pairs)

    return teacher.calibrated(min((0.5 * 2 ** (i / 4) for i in range(13)), key=loss))


def keep(
    records: Sequence[StepRecord],
    filters: Filters,
    questions: Sequence[Question],
    modules: Mapping[str, Module],
    teachers: Mapping[str, StepTeacher],
    dsl: str,
) -> list[StepRecord]:
    """Every record with its ``filters`` field and its weight: 1 where every filter passes, else 0."""
    agree: dict[str, bool] = {}
    if filters.final:
        known = [question for question in questions if question.answer is not None]
        for question, trace in zip(known, solve(known, teacher_forcing(modules, teachers), dsl), strict=True):
            agree[question.id] = correct(question, trace.answer) > 0
    votes = vote_agreement(questions, modules, dsl) if filters.votes > 0 else {}
    kept = []
    for record in records:
        marks = {
            "gate": label_of(record).conf >= filters.gate,
            "final_agree": agree.get(record.id, True),
            "vote_agree": votes.get(record.id, 1.0) >= filters.votes,
        }
        kept.append(replace(record, filters=marks, weight=float(all(marks.values()))))
    return kept
