"""Voting: several programs a question are run, and the answer that most of them give is taken."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from tutelage.programs.answers import normalize_answer
from tutelage.programs.generators.base import Candidate, GenerationRequest, Parser
from tutelage.programs.run_context import Job, RunContext
from tutelage.programs.scheduler import stream
from tutelage.programs.trace import Trace
from tutelage.programs.types import Value


@dataclass(frozen=True)
class VoteRequest:
    """A question with the drafts that may answer it, and the images (``state``) they run on."""

    request: GenerationRequest
    candidates: Sequence[Candidate]
    state: Mapping[str, Value]


@dataclass(frozen=True)
class VoteResult:
    """The outcome of a vote.

    ``winner`` is the number of the program whose answer is taken, the first of its camp; None where no program is valid.
    ``share`` of the valid programs gave ``answer``. ``failures`` counts the others by kind. ``traces``: every run.
    """

    winner: int | None
    answer: Value = None
    share: float = 0.0
    failures: Mapping[str, int] = field(default_factory=dict)
    traces: Sequence[Trace] = ()


def majority_vote(traces: Sequence[Trace], probabilities: Sequence[float | None] | None = None) -> VoteResult:
    """The majority of the answers, compared as :func:`~tutelage.programs.answers.normalise` spells them.

    Of equally common answers the one wins whose programs have the higher mean token probability (the mean over its
    camp, 0 where none is known), then the one given first. A program that failed, whatever the failure, does not vote,
    nor does the answer that a fallback gave in its place.
    """
    known = list(probabilities or [None] * len(traces))
    camps: dict[str, list[int]] = {}
    failures: Counter[str] = Counter()
    for number, trace in enumerate(traces):
        if trace.status == "ok":
            camps.setdefault(normalize_answer(trace.answer), []).append(number)
        else:
            failures[trace.status] += 1
    if not camps:
        return VoteResult(None, failures=dict(failures), traces=traces)

    def rank(camp: list[int]) -> tuple[int, float, int]:
        return len(camp), sum(known[number] or 0.0 for number in camp) / len(camp), -camp[0]

    camp = max(camps.values(), key=rank)
    share = len(camp) / sum(map(len, camps.values()))
    return VoteResult(camp[0], traces[camp[0]].answer, share, dict(failures), traces)


def run_and_vote(requests: Iterable[VoteRequest], parser: Parser[Any], context: RunContext) -> list[VoteResult]:
    """Run every draft of every poll, all together in the scheduler's batches, and elect each poll's answer."""
    requests = list(requests)

    def jobs() -> Iterable[Job]:
        for number, poll in enumerate(requests):
            for draft in poll.candidates:
                program = draft.program(parser, poll.request.inputs)
                yield Job(poll.request.id or str(number), program, poll.state, poll.request.question)

    runs = stream(jobs(), context)
    return [
        majority_vote(list(islice(runs, len(poll.candidates))), [draft.probability for draft in poll.candidates])
        for poll in requests
    ]


def count_statuses(results: Iterable[VoteResult]) -> dict[str, int]:
    """How many programs voted (``ok``), and how many failed of each kind."""
    total: Counter[str] = Counter()
    for election in results:
        total += Counter(election.failures)
        total["ok"] += len(election.traces) - sum(election.failures.values())
    return dict(total)
