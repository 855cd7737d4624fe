"""Repair: a program that failed goes back to its writer, once, with its text and its typed failure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from tutelage.programs.types import Program, ProgramFailure, RuntimeFailure, Value
from tutelage.programs.scheduler import Context, Job, run
from tutelage.programs.trace import Trace
from tutelage.programs.generators.base import Draft, Fault, Parser, Repairer, Request, Writer


class Asked(NamedTuple):
    """A request with the draft that answers it, and the images (``state``) it runs on."""

    request: Request
    draft: Draft
    state: Mapping[str, Value]


@dataclass(frozen=True)
class Repairs:
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


class Repaired(NamedTuple):
    """The last trace and the last draft of each request, in order, and the count of what was done."""

    traces: list[Trace]
    drafts: list[Draft]
    repairs: Repairs


def can_repair(writer: Writer) -> bool:
    """Whether ``writer`` can be told its faults: those by rules cannot, they would write the same again."""
    return isinstance(writer, Repairer)


def run_and_repair(asked: Sequence[Asked], writer: Writer, parser: Parser[Any], context: Context) -> Repaired:
    """Run the drafts; what fails goes back to ``writer`` once, where it can repair, and is run again.

    A draft without a text is not sent back: there is nothing to mend. The fallback policy of ``context`` applies to what
    fails in the end, not before. A repaired program that fails keeps its own, later failure.
    """
    strict = replace(context, fallback=None)
    drafts = [item.draft for item in asked]
    programs = [item.draft.program(parser, item.request.inputs) for item in asked]
    traces = run(_jobs(asked, programs, range(len(asked))), strict)
    failed = [number for number, trace in enumerate(traces) if trace.status != "ok"]
    first = {number: traces[number].status for number in failed}
    faults = {
        number: Fault(asked[number].request, drafts[number].text, _failure(programs[number], traces[number]))
        for number in failed
        if isinstance(writer, Repairer) and drafts[number].text
    }
    if faults and isinstance(writer, Repairer):
        for number, draft in zip(faults, writer.repair(list(faults.values())), strict=True):
            drafts[number], programs[number] = draft, draft.program(parser, asked[number].request.inputs)
        for number, trace in zip(faults, run(_jobs(asked, programs, faults), strict), strict=True):
            traces[number] = trace
    left = [number for number in failed if traces[number].status != "ok"]
    if context.fallback is not None:
        for number, trace in zip(left, run(_jobs(asked, programs, left), context), strict=True):
            traces[number] = trace
    repairs = Repairs(
        dict(Counter(first.values())),
        dict(Counter(first[number] for number in faults)),
        dict(Counter(first[number] for number in faults if traces[number].status == "ok")),
        dict(Counter(traces[number].status for number in left)),
    )
    return Repaired(traces, drafts, repairs)


def _jobs(asked: Sequence[Asked], programs: Sequence[Program | ProgramFailure], numbers: Any) -> Iterator[Job]:
    for number in numbers:
        item = asked[number]
        yield Job(item.request.id or str(number), programs[number], item.state, item.request.question)


def _failure(program: Program | ProgramFailure, trace: Trace) -> ProgramFailure:
    """The failure itself where parsing met it, else one of the kind and words that the trace kept."""
    if isinstance(program, ProgramFailure):
        return program
    kinds = {kind.kind: kind for kind in ProgramFailure.__subclasses__()}
    return kinds.get(trace.status, RuntimeFailure)(trace.error or trace.status)
