"""Repair: a program that failed goes back to its writer, once, with its text and its typed failure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from tutelage.programs.generators.base import (
    Candidate,
    FailedProgram,
    GenerationRequest,
    Parser,
    ProgramGenerator,
    RepairingGenerator,
)
from tutelage.programs.run_context import Job, RunContext
from tutelage.programs.scheduler import run
from tutelage.programs.trace import Trace
from tutelage.programs.types import Program, ProgramFailure, RuntimeFailure, Value


class RepairRequest(NamedTuple):
    """A request with the draft that answers it, and the images (``state``) it runs on."""

    request: GenerationRequest
    candidate: Candidate
    state: Mapping[str, Value]


@dataclass(frozen=True)
class RepairStats:
    """What one round of repair did, by kind of the first failure: ``failed`` programs, those ``sent`` back, those
    ``mended``. ``after`` counts the failures that are left, by their own kind."""

    failed: Mapping[str, int] = field(default_factory=dict)
    sent: Mapping[str, int] = field(default_factory=dict)
    mended: Mapping[str, int] = field(default_factory=dict)
    after: Mapping[str, int] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """In one line."""
        failed, sent, mended = (sum(counts.values()) for counts in (self.failed, self.sent, self.mended))
        return f"{failed} programs failed, {sent} went back to their writer, {mended} were mended"


class RepairResult(NamedTuple):
    """The last trace and the last draft of each request, in order, and the count of what was done."""

    traces: list[Trace]
    candidates: list[Candidate]
    stats: RepairStats


def can_repair(generator: ProgramGenerator) -> bool:
    """Whether ``generator`` can be told its faults: those by rules cannot, they would write the same again."""
    return isinstance(generator, RepairingGenerator)


def run_and_repair(
    requests: Sequence[RepairRequest], generator: ProgramGenerator, parser: Parser[Any], context: RunContext
) -> RepairResult:
    """Run the drafts; what fails goes back to ``generator`` once, where it can repair, and is run again.

    A draft without a text is not sent back: there is nothing to mend. The fallback policy of ``context`` applies to what
    fails in the end, not before. A repaired program that fails keeps its own, later failure.
    """
    strict = replace(context, fallback=None)
    drafts = [item.candidate for item in requests]
    programs = [item.candidate.program(parser, item.request.inputs) for item in requests]
    traces = run(_jobs(requests, programs, range(len(requests))), strict)
    failed = [number for number, trace in enumerate(traces) if trace.status != "ok"]
    first = {number: traces[number].status for number in failed}
    faults = {
        number: FailedProgram(requests[number].request, drafts[number].text, _failure(programs[number], traces[number]))
        for number in failed
        if isinstance(generator, RepairingGenerator) and drafts[number].text
    }
    if faults and isinstance(generator, RepairingGenerator):
        for number, draft in zip(faults, generator.repair(list(faults.values())), strict=True):
            drafts[number], programs[number] = draft, draft.program(parser, requests[number].request.inputs)
        for number, trace in zip(faults, run(_jobs(requests, programs, faults), strict), strict=True):
            traces[number] = trace
    left = [number for number in failed if traces[number].status != "ok"]
    if context.fallback is not None:
        for number, trace in zip(left, run(_jobs(requests, programs, left), context), strict=True):
            traces[number] = trace
    repairs = RepairStats(
        dict(Counter(first.values())),
        dict(Counter(first[number] for number in faults)),
        dict(Counter(first[number] for number in faults if traces[number].status == "ok")),
        dict(Counter(traces[number].status for number in left)),
    )
    return RepairResult(traces, drafts, repairs)


def _jobs(requests: Sequence[RepairRequest], programs: Sequence[Program | ProgramFailure], numbers: Any) -> Iterator[Job]:
    for number in numbers:
        item = requests[number]
        yield Job(item.request.id or str(number), programs[number], item.state, item.request.question)


def _failure(program: Program | ProgramFailure, trace: Trace) -> ProgramFailure:
    """The failure itself where parsing met it, else one of the kind and words that the trace kept."""
    if isinstance(program, ProgramFailure):
        return program
    kinds = {kind.kind: kind for kind in ProgramFailure.__subclasses__()}
    return kinds.get(trace.status, RuntimeFailure)(trace.error or trace.status)
