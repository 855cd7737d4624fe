"""A program to run, and what programs run in: modules, cache, limits, stand-ins."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from tutelage.errors import InputError
from tutelage.programs.result_cache import ResultCache
from tutelage.programs.types import Call, Module, Program, ProgramFailure, Signature, Value


@dataclass(slots=True)
class Job:
    """One program to run on one state (IMAGE, or LEFT and RIGHT).

    ``program`` may be the failure of its parsing: then the trace carries that failure. ``question`` is what a fallback
    asks; ``task`` and ``stage`` go into the records.
    """

    id: str
    program: Program | ProgramFailure
    state: Mapping[str, Value]
    question: str | None = None
    task: str = ""
    stage: str = ""


class _UseModule:
    def __repr__(self) -> str:
        return "USE_MODULE"


USE_MODULE: Final = _UseModule()
"""What a substitute returns to let the module answer."""

Override = Callable[[Job, Call, int], Value]
"""From a job, its call, and the call's number in the run, to a value that stands in for the module's, or ``USE_MODULE``."""

Fallback = Callable[[Job], Call]
"""From a job whose program failed to the one call that is asked in its place."""


@dataclass(frozen=True)
class RunContext:
    """What programs run in.

    ``modules`` by name; ``cache`` of results, or none; ``batch_size`` caps every module's own (1: one at a time);
    ``window`` programs are under way at once, which bounds memory. ``deduplicate`` answers equal waiting calls once.
    ``fallback`` None makes a failed program a wrong one; :func:`direct_vqa` asks the question instead, and is counted
    in the trace. ``substitute`` may answer a call in its module's place. A program may make ``max_calls`` calls.
    """

    modules: Mapping[str, Module]
    cache: ResultCache | None = None
    batch_size: int | None = None
    window: int = 2048
    deduplicate: bool = True
    fallback: Fallback | None = None
    substitute: Override | None = None
    max_calls: int = 1000

    @property
    def signatures(self) -> dict[str, Signature]:
        """The modules' signatures, for a parser."""
        return {name: module.signature for name, module in self.modules.items()}


def direct_vqa(job: Job) -> Call:
    """The job's question, put to VQA about its first image.

    Raises:
        InputError: the job has no question.
    """
    if job.question is None:
        raise InputError("the fallback needs the question", where=f"job {job.id}", remedy="give Job.question")
    return Call("VQA", {"image": next(iter(job.state.values())), "question": job.question}, step=-1)
