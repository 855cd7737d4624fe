"""How sure a run is of its answer, as functions of its records."""

from __future__ import annotations

from tutelage.programs.trace import StepRecord, Trace


def probability(record: StepRecord) -> float | None:
    """:attr:`StepRecord.probability`."""
    return record.probability


def confidence(trace: Trace) -> float | None:
    """:attr:`Trace.confidence`."""
    return trace.confidence
