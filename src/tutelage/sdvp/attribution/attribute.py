"""Blame: which step made an answer wrong, by giving one step the true value, or the teacher's, and running on.

For a wrong answer and step s, ``blame_s = correct(after) - correct(before)`` where s alone is answered by the source. Where
no single step repairs the answer, and all together do, the credit is the Shapley value of the steps (Shapley, 1953):

    phi_s = sum over S without s of |S|! (n - |S| - 1)! / n! (v(S + s) - v(S)),     v(S) = correct with S answered

exact for six steps and fewer; beyond, the steps of a module are answered together and share its value (our choice). Answers that
stay wrong with every module's step true are the program's errors, and stand apart from the modules'.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations
from math import factorial
from typing import Any, TypeVar

from tutelage.datasets.confidence_intervals import Interval, paired_bootstrap
from tutelage.errors import InputError
from tutelage.programs.result_cache import ResultCache
from tutelage.programs.run_context import USE_MODULE, Job, RunContext
from tutelage.programs.scheduler import stream
from tutelage.programs.trace import StepRecord, Trace
from tutelage.programs.types import Call, Module, ProgramFailure, Value
from tutelage.sdvp.attribution.sources import StepOracle
from tutelage.sdvp.questions import ProgramParser, Question, language_of, score_answer

MAX_STEPS = 6
"""More steps than these are grouped by module before their Shapley values are taken."""

Swapped = Callable[[Call], bool]
Player = TypeVar("Player", bound=Hashable)


@dataclass(frozen=True)
class StepAttribution:
    """One step of a wrong answer. ``attribute_errors``: the answer's correctness after the swap, less before
    (its Shapley value where
    ``joint``); ``share``: its part of the error, the shares of an answer summing to 1; ``input`` names the call."""

    id: str
    kind: str
    step: int
    module: str
    blame: float
    share: float
    joint: bool
    input: str


@dataclass(frozen=True)
class ModuleErrorRow:
    """One cell of the table, module x question type. ``errors``: wrong answers that it answers for (shares added up);
    ``error_share``: of all wrong answers, in 0..1; ``recoverable``: accuracy of the type, in points, that its perfect
    answers would add, with its 95 % interval over images; it may be negative, where two wrongs made a right."""

    module: str
    kind: str
    errors: float
    error_share: float
    recoverable: float
    low: float
    high: float


@dataclass(frozen=True)
class QuestionTypeSummary:
    """One question type, in points: ``accuracy``, and the ``ceiling`` with every module's step answered by the source.
    Wrong answers are counted by fault: ``modules``, ``program`` (still wrong though every step is true), ``unresolved``
    (not repaired, and the source does not know every step, or is not the truth), ``failed`` (no program to run)."""

    kind: str
    questions: int
    accuracy: float
    ceiling: float
    wrong: int
    modules: int
    program: int
    unresolved: int
    failed: int


@dataclass(frozen=True)
class ErrorAttribution:
    """The result: ``rows`` ranked by error share, ``kinds``, every blamed step, and the ids of the program's errors.

    ``failures`` counts the programs that could not be run, by status. ``inputs`` holds, for every call that was looked
    into, the largest blame that fell on it (0 for calls of right answers).
    """

    source: str
    dsl: str
    questions: int
    accuracy: float
    ceiling: float
    rows: tuple[ModuleErrorRow, ...]
    kinds: tuple[QuestionTypeSummary, ...]
    steps: tuple[StepAttribution, ...]
    program_errors: tuple[str, ...]
    failures: Mapping[str, int]
    inputs: Mapping[str, float] = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """All but ``inputs``, as plain values; figures in points, shares in 0..1."""
        return {name: value for name, value in asdict(replace(self, inputs={})).items() if name != "inputs"}

    def weight(self, record: StepRecord, floor: float = 0.25) -> float:
        """How much a record should count in a training job, in ``floor``..1 (our choice): 1 for a call that alone spoils an answer,
        ``floor`` for one without blame, or that was not looked into."""
        return floor + (1 - floor) * min(1.0, max(0.0, self.inputs.get(record.input_hash, 0.0)))

    def weight_records(self, records: Sequence[StepRecord], floor: float = 0.25) -> list[StepRecord]:
        """``records`` with their weight times :meth:`weight`, and the factor under ``attribute_errors`` in their filters."""
        factors = [self.weight(record, floor) for record in records]
        return [
            replace(record, weight=record.weight * factor, filters={**(record.filters or {}), "blame": factor})
            for record, factor in zip(records, factors, strict=True)
        ]


def attribute_errors(
    questions: Sequence[Question],
    modules: Mapping[str, Module],
    source: StepOracle,
    dsl: str | None = None,
    *,
    cache: ResultCache | None = None,
    gold_programs: Mapping[str, str] | None = None,
    seed: int = 0,
) -> ErrorAttribution:
    """Blame the steps of ``questions``' wrong answers.

    Args:
        questions: with answers; ``dsl`` names which of their programs is run (None: the language that most have a program in).
        modules: by name; the steps of those that are not symbolic may be answered by the source.
        source: :func:`gold_oracle`, :func:`teacher_oracle`, or your own.
        cache: results of earlier runs of the same modules; what comes before a swapped step is read from it.
        gold_programs: by id, the right program, where questions may run wrong ones: such a program is at fault where the
            source cannot repair it.
        seed: of the bootstrap.

    Raises:
        InputError: no questions, or one without an answer.
    """
    if not questions:
        raise InputError("no questions to look into", where="questions", remedy="give questions with answers")
    for question in questions:
        if question.answer is None:
            raise InputError("the question has no answer, so no error", where=f"question {question.id}", remedy="leave it out")
    dsl = dsl or language_of(questions)
    inquiry = _Attributor(questions, modules, source, dsl, cache if cache is not None else ResultCache(capacity=400_000))
    return inquiry.result(gold_programs, seed)


class _Attributor:
    """The runs of one :func:`attribute_errors`: as it is, everything swapped, each module swapped, single steps, sets of steps."""

    def __init__(
        self, questions: Sequence[Question], modules: Mapping[str, Module], source: StepOracle, dsl: str, cache: ResultCache
    ):
        self.questions, self.source, self.dsl = questions, source, dsl
        self.modules, self.cache = modules, cache
        self.programs, self._known = ProgramParser(dsl, modules), dict[int, list[int]]()
        self.swappable = frozenset(name for name, module in modules.items() if not module.symbolic)
        self.base = list(self.run([(q, lambda call: False) for q in questions]))
        if source.prime is not None:
            source.prime([record for trace in self.base for record in trace.steps if record.module in self.swappable])
        self.oracle = list(self.run([(q, lambda call: True) for q in questions]))
        self.before = [score_answer(q, t.answer) for q, t in zip(questions, self.base, strict=True)]
        self.after = [score_answer(q, t.answer) for q, t in zip(questions, self.oracle, strict=True)]

    def run(self, queries: Sequence[tuple[Question, Swapped]]) -> Iterator[Trace]:
        """One trace a question, the calls that its ``swapped`` picks answered by the source."""

        def substitute(job: Job, call: Call, number: int) -> Value:
            question, swapped = queries[int(job.id)]
            return self.source.answer(question, call) if call.module in self.swappable and swapped(call) else USE_MODULE

        context = RunContext(self.modules, self.cache, substitute=substitute)
        return stream(
            (Job(str(i), self.programs.parse(q), dict(q.images), q.text, q.task) for i, (q, _) in enumerate(queries)), context
        )

    def scores(self, queries: Sequence[tuple[Question, Swapped]]) -> list[float]:
        """1 a right answer, else 0."""
        return [score_answer(q, trace.answer) for (q, _), trace in zip(queries, self.run(queries), strict=True)]

    def result(self, gold_programs: Mapping[str, str] | None, seed: int) -> ErrorAttribution:
        """Everything that the runs tell."""
        fault, steps = self._faults(gold_programs), list[StepAttribution]()
        looked = [i for i, found in fault.items() if found is None]
        single = self._singles(looked)
        joint = [i for i in looked if not any(b > 0 for b in single[i].values()) and self.after[i] > 0]
        shapley_of = self._joint(joint)
        for i in looked:
            blamed = shapley_of.get(i) or {step: b for step, b in single[i].items() if b > 0}
            fault[i] = "modules" if blamed else "unresolved"
            steps += self._steps(i, blamed or {}, i in shapley_of)
        wrong = sum(1 for right in self.before if right == 0)
        return ErrorAttribution(
            source=self.source.name,
            dsl=self.dsl,
            questions=len(self.questions),
            accuracy=_points(self.before),
            ceiling=_points(self.after),
            rows=self._rows(steps, wrong, seed),
            kinds=self._kinds(fault),
            steps=tuple(steps),
            program_errors=tuple(self.questions[i].id for i, found in fault.items() if found == "program"),
            failures=dict(Counter(self.base[i].status for i, found in fault.items() if found == "failed")),
            inputs=self._inputs(steps),
        )

    def _faults(self, gold_programs: Mapping[str, str] | None) -> dict[int, str | None]:
        """Of each wrong answer: ``failed``, ``program``, ``unresolved``; None: to be looked into."""
        faults: dict[int, str | None] = {}
        for i, right in enumerate(self.before):
            question = self.questions[i]
            if right > 0:
                continue
            if isinstance(self.programs.parse(question), ProgramFailure):
                faults[i] = "failed"
                continue
            faults[i] = None
            if self.after[i] == 0 and self.source.truth:
                known = all(r.substituted for r in self.oracle[i].steps if r.module in self.swappable)
                other = gold_programs is not None and gold_programs.get(question.id) != question.programs[self.dsl]
                if known or other:
                    faults[i] = "program"
        return faults

    def _players(self, i: int) -> list[int]:
        """The steps of a question that the source can answer, as it is and with all others answered."""
        if i in self._known:
            return self._known[i]
        question = self.questions[i]
        found = {r.step for r in self.oracle[i].steps if r.substituted}
        for record in self.base[i].steps:
            if record.module in self.swappable and record.step not in found:
                if self.source.answer(question, Call(record.module, record.args, record.step)) is not USE_MODULE:
                    found.add(record.step)
        self._known[i] = sorted(found)
        return self._known[i]

    def _singles(self, wrong: Sequence[int]) -> dict[int, dict[int, float]]:
        """By question and step: correct after the step alone was swapped, less correct before."""
        plan = [(i, step) for i in wrong for step in self._players(i)]
        found: dict[int, dict[int, float]] = {i: {} for i in wrong}
        for (i, step), right in zip(plan, self.scores([(self.questions[i], _only({step})) for i, step in plan]), strict=True):
            found[i][step] = right - self.before[i]
        return found

    def _joint(self, wrong: Sequence[int]) -> dict[int, dict[int, float]]:
        """By question and step: the Shapley value, where only several steps together repair the answer."""
        plan: list[tuple[int, frozenset[int], list[frozenset[int]]]] = []
        for i in wrong:
            groups = self._groups(i)
            for size in range(1, len(groups)):
                plan += [(i, frozenset(chosen), groups) for chosen in combinations(range(len(groups)), size)]
        jobs = [(self.questions[i], _only(frozenset().union(*(groups[g] for g in chosen)))) for i, chosen, groups in plan]
        value: dict[int, dict[frozenset[int], float]] = defaultdict(dict)
        for (i, chosen, _), right in zip(plan, self.scores(jobs), strict=True):
            value[i][chosen] = right
        found: dict[int, dict[int, float]] = {}
        for i in wrong:
            groups, values = self._groups(i), value[i]
            values[frozenset()], values[frozenset(range(len(groups)))] = self.before[i], self.after[i]
            credit = shapley(values, range(len(groups)))
            found[i] = {step: credit[g] / len(group) for g, group in enumerate(groups) for step in group}
        return found

    def _groups(self, i: int) -> list[frozenset[int]]:
        """The steps that are swapped together: each alone, or those of a module where they are many."""
        players = self._players(i)
        if len(players) <= MAX_STEPS:
            return [frozenset({step}) for step in players]
        modules = self._modules(i)
        return [frozenset(s for s in players if modules[s] == name) for name in sorted({modules[s] for s in players})]

    def _modules(self, i: int) -> dict[int, str]:
        return {r.step: r.module for trace in (self.oracle[i], self.base[i]) for r in trace.steps}

    def _steps(self, i: int, blamed: Mapping[int, float], joint: bool) -> Iterator[StepAttribution]:
        question, modules, total = self.questions[i], self._modules(i), sum(blamed.values())
        records = [r for trace in (self.oracle[i], self.base[i]) for r in trace.steps if r.module in self.swappable]
        hashes = {r.step: r.input_hash for r in records}
        for step, credit in blamed.items():
            yield StepAttribution(question.id, question.kind, step, modules[step], credit, credit / total, joint, hashes[step])

    def _rows(self, steps: Sequence[StepAttribution], wrong: int, seed: int) -> tuple[ModuleErrorRow, ...]:
        """Module x question type, the largest share of the errors first."""
        shares: defaultdict[tuple[str, str], float] = defaultdict(float)
        for step in steps:
            shares[step.module, step.kind] += step.share
        rows = []
        seen = {(r.module, q.kind) for q, t in zip(self.questions, self.base, strict=True) for r in t.steps}
        for module in sorted(self.swappable & {name for name, _ in seen}):
            perfect = self.scores([(q, _of(module)) for q in self.questions])
            for kind in sorted({k for name, k in seen if name == module}):
                gain = self._gain(perfect, kind, seed)
                errors = shares[module, kind]
                rows.append(ModuleErrorRow(module, kind, errors, errors / max(1, wrong), gain.mean, gain.low, gain.high))
        return tuple(sorted(rows, key=lambda row: (-row.errors, -row.recoverable, row.module, row.kind)))

    def _gain(self, after: Sequence[float], kind: str, seed: int) -> Interval:
        indices = [i for i, question in enumerate(self.questions) if question.kind == kind]
        images = [self.questions[i].image_id or self.questions[i].id for i in indices]
        return paired_bootstrap([100 * after[i] for i in indices], [100 * self.before[i] for i in indices], images, seed=seed)

    def _kinds(self, fault: Mapping[int, str | None]) -> tuple[QuestionTypeSummary, ...]:
        members: dict[str, list[int]] = defaultdict(list)
        for i, question in enumerate(self.questions):
            members[question.kind].append(i)
        out = []
        for kind, indices in sorted(members.items()):
            counts = Counter(fault[i] for i in indices if i in fault)
            before, after = [self.before[i] for i in indices], [self.after[i] for i in indices]
            out.append(
                QuestionTypeSummary(
                    kind,
                    len(indices),
                    _points(before),
                    _points(after),
                    sum(counts.values()),
                    *(counts[name] for name in ("modules", "program", "unresolved", "failed")),
                )
            )
        return tuple(out)

    def _inputs(self, steps: Sequence[StepAttribution]) -> dict[str, float]:
        found = {r.input_hash: 0.0 for trace in self.base for r in trace.steps if r.module in self.swappable}
        for step in steps:
            found[step.input] = max(found.get(step.input, 0.0), step.blame)
        return found


def shapley(value: Mapping[frozenset[Player], float], players: Collection[Player]) -> dict[Player, float]:
    """The Shapley value of each player: ``value`` holds every subset of ``players``, the empty one too."""
    n = len(players)
    credit = dict.fromkeys(players, 0.0)
    for size in range(n):
        weight = factorial(size) * factorial(n - size - 1) / factorial(n)
        for chosen in combinations(players, size):
            coalition = frozenset(chosen)
            for player in players:
                if player not in coalition:
                    credit[player] += weight * (value[coalition | {player}] - value[coalition])
    return credit


def _only(steps: Collection[int]) -> Swapped:
    return lambda call: call.step in steps


def _of(module: str) -> Swapped:
    return lambda call: call.module == module


def _points(right: Sequence[float]) -> float:
    return 100 * sum(right) / len(right)
