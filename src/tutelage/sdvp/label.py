"""Label: let the teacher answer the collected calls, calibrate it, and decide which labels count."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tutelage.modules.visual_module import CallLabel, VisualModule
from tutelage.programs.answers import normalize_answer
from tutelage.programs.trace import StepRecord
from tutelage.programs.types import Call, Module
from tutelage.sdvp.collect import call_of, teacher_forcing
from tutelage.sdvp.questions import Question, score_answer, solve
from tutelage.sdvp.teachers import ModuleTeacher, apply_temperature
from tutelage.sdvp.votes import program_agreement

TeacherField = dict[str, Any]
"""The teacher field of a step record: {name, version, hard, dist, conf}."""


@dataclass(frozen=True)
class Filters:
    """Which labels are kept (all ours; each may be off).

    gate: least calibrated confidence, 0 keeps all. final: where a final answer is known, keep the samples whose
    teacher-forced run gives it. votes: keep the samples of which at least this share of programs answer as the collected
    one does, 0 is off.
    """

    min_confidence: float = 0.8
    require_right_answer: bool = False
    min_agreement: float = 0.0


def label(records: Sequence[StepRecord], module: VisualModule, teacher: ModuleTeacher) -> list[StepRecord]:
    """The records the teacher covers, each with its label; with ``teacher.expand`` also the sibling calls it covers."""
    unlabelled = with_related_calls(records, module, teacher)
    return attach_labels(unlabelled, label_calls(teacher, [call_of(record) for record in unlabelled]))


def with_related_calls(records: Sequence[StepRecord], module: VisualModule, teacher: ModuleTeacher) -> list[StepRecord]:
    """The records, and with ``teacher.expand`` those of their sibling calls, each once."""
    extended = list(records)
    if teacher.label_related_calls:
        known = {record.input_hash for record in records}
        seen: set[object] = set()
        for record in records:
            key = record.args["image"].key if "image" in record.args else record.input_hash
            if key in seen:
                continue
            seen.add(key)
            for call in module.related_calls(call_of(record)):
                extra = StepRecord(record.origin, record.step, record.call_no, call.module, record.module_version, call.args)
                if extra.input_hash not in known:
                    known.add(extra.input_hash)
                    extended.append(extra)
    return extended


def label_calls(teacher: ModuleTeacher, calls: Sequence[Call]) -> list[TeacherField | None]:
    """What the teacher says to each call, as the teacher field of its record; None where it has nothing to say."""
    return [None if found is None else to_field(found, teacher) for found in teacher.label(calls)]


def attach_labels(records: Sequence[StepRecord], teacher_fields: Sequence[TeacherField | None]) -> list[StepRecord]:
    """The records that have a label, each with its field."""
    return [replace(record, teacher=field) for record, field in zip(records, teacher_fields, strict=True) if field is not None]


def to_field(prediction: CallLabel, teacher: ModuleTeacher) -> TeacherField:
    """A label as the teacher field of a step record."""
    dist = dict(prediction.probabilities) if prediction.probabilities is not None else None
    return {"name": teacher.name, "version": teacher.version, "hard": prediction.value, "dist": dist, "conf": prediction.confidence}


def label_of(record: StepRecord) -> CallLabel:
    """The label in a record's teacher field, with the record's weight."""
    field = record.teacher or {}
    return CallLabel(field.get("hard"), field.get("dist"), float(field.get("conf", 1.0)), record.weight)


def calibrate(teacher: ModuleTeacher, probe: Sequence[tuple[Call, CallLabel]]) -> ModuleTeacher:
    """The teacher at the temperature, among a grid from 0.5 to 4, with the least negative log-likelihood on the probe.

    Teachers without probabilities, and probes without covered calls, leave it as it is.
    """
    raw = replace(teacher, temperature=1.0)
    labels = raw.label([call for call, _ in probe])
    pairs = [(a, g) for a, (_, g) in zip(labels, probe, strict=True) if a is not None and a.probabilities is not None]
    if not pairs:
        return teacher

    def loss(temperature: float) -> float:
        return -sum(
            math.log(max(1e-9, (apply_temperature(a, temperature).probabilities or {}).get(normalize_answer(g.value), 0.0)))
            for a, g in pairs
        )

    return teacher.calibrated(min((0.5 * 2 ** (i / 4) for i in range(13)), key=loss))


def apply_filters(
    records: Sequence[StepRecord],
    filters: Filters,
    questions: Sequence[Question],
    modules: Mapping[str, Module],
    teachers: Mapping[str, ModuleTeacher],
    dsl: str,
) -> list[StepRecord]:
    """Every record with its ``filters`` field and its weight: 1 where every filter passes, else 0."""
    agree: dict[str, bool] = {}
    if filters.require_right_answer:
        known = [question for question in questions if question.answer is not None]
        for question, trace in zip(known, solve(known, teacher_forcing(modules, teachers), dsl), strict=True):
            agree[question.id] = score_answer(question, trace.answer) > 0
    votes = program_agreement(questions, modules, dsl) if filters.min_agreement > 0 else {}
    kept = []
    for record in records:
        marks = {
            "gate": label_of(record).confidence >= filters.min_confidence,
            "final_agree": agree.get(record.id, True),
            "vote_agree": votes.get(record.id, 1.0) >= filters.min_agreement,
        }
        kept.append(replace(record, filters=marks, weight=float(all(marks.values()))))
    return kept
