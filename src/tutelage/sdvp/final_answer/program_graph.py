"""A VisProg program on one image as a directed graph of discrete variables, one a step (EVPG, arXiv 2512.14257).

    p(answer | x) = sum over assignments of prod_s p(v_s | parents) 1[program(v) = answer]

A step without a network is a table of 0 and 1, filled by running it on every value of what it reads; a step with one has
a distribution for each of them. A list of boxes is one of exponentially many, but later steps ask little of it: COUNT
needs how many there are (a Poisson-binomial), CROP the first; so its variable has only the values that differ to them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product as combinations_of
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tutelage.errors import InputError
from tutelage.modules.symbolic import FRONT_OR_BEHIND
from tutelage.programs.lanes import to_failure
from tutelage.programs.serialization import input_key
from tutelage.programs.types import Call, LimitExceeded, Module, ProgramFailure, Value
from tutelage.programs.values import Box
from tutelage.programs.visprog import VisProgProgram
from tutelage.sdvp.final_answer.factors import BoxUse, Factor, elimination_order, marginal
from tutelage.sdvp.questions import Question, score_answer

MAX_ROWS = 4096
"""A step may read at most this many combinations of values."""

FIRST_BOX = frozenset({"CROP", "CROP_LEFTOF", "CROP_RIGHTOF", "CROP_ABOVE", "CROP_BELOW", *FRONT_OR_BEHIND})
"""What looks at the first box alone."""


@dataclass(slots=True)
class GraphCall:
    """A call of the graph to a module with a network, and the values that it may answer; ``detail`` is the reader's."""

    call: Call
    use: BoxUse
    outcomes: Sequence[Value]
    detail: Any = None


CallReader = Callable[[Call, BoxUse], GraphCall]
"""From a call, and what later steps ask of a list of boxes, to what it may answer."""


@dataclass(frozen=True)
class ConditionalTable:
    """The table of a step with a network: row r, for the r-th combination of its parents' values, holds the distribution
    of call ``calls[r]`` in the ``columns[r]``. A call of None has the one value in its column."""

    variables: tuple[int, ...]
    shape: tuple[int, ...]
    calls: tuple[int | None, ...]
    columns: tuple[tuple[int, ...], ...]

    def factor(self, distributions: Sequence[Tensor]) -> Factor:
        """The table, given the distribution of every call of the graph."""
        width, row = self.shape[-1], torch.arange(len(self.calls))
        parts = [distributions[call] if call is not None else torch.ones(1, dtype=torch.float64) for call in self.calls]
        place = [r * width + c for r, columns in zip(row.tolist(), self.columns, strict=True) for c in columns]
        table = torch.zeros(len(self.calls) * width, dtype=torch.float64)
        return Factor(self.variables, table.index_add(0, torch.tensor(place), torch.cat(parts)).view(self.shape))


@dataclass
class Graph:
    """A question's program on its images. ``answers`` are the values of the result (a ProgramFailure among them where the
    program may fail), ``right`` [answers] marks the correct ones; ``fixed_distributions`` holds
    distributions that stay as they are."""

    question: Question
    calls: list[GraphCall]
    fixed: tuple[Factor, ...]
    tables: tuple[ConditionalTable, ...]
    result: int
    order: tuple[int, ...]
    answers: list[Value]
    right: Tensor
    fixed_distributions: dict[int, Tensor] = field(default_factory=dict)

    def distribution(self, distributions: Sequence[Tensor]) -> Tensor:
        """The probability of each of ``answers`` [answers], float64; ``distributions[c]``: of call c's outcomes."""
        if not self.calls:
            return torch.ones(1, dtype=torch.float64)
        factors = [*self.fixed, *(spread.factor(distributions) for spread in self.tables)]
        return marginal(factors, self.result, self.order)

    def likelihood(self, distributions: Sequence[Tensor]) -> Tensor:
        """The probability of the right answer, a float64 scalar."""
        return (self.distribution(distributions) * self.right).sum()

    @property
    def reachable(self) -> bool:
        """Whether any assignment gives the right answer."""
        return bool(self.right.any())


def build_graph(question: Question, program: VisProgProgram, modules: Mapping[str, Module], call_reader: CallReader) -> Graph:
    """The graph of ``program`` on the question's images.

    Equal calls of a program are one variable; different calls are independent, given what they read.

    Raises:
        InputError: not a VisProg program, whose steps are known before it runs; or a question without an answer.
        LimitExceeded: a step reads more than 4,096 combinations of values.
    """
    if not isinstance(program, VisProgProgram):
        raise InputError("final labels need a program whose steps are known", where=question.id, remedy="use its VisProg program")
    if question.answer is None:
        raise InputError("the question has no answer", where=f"question {question.id}", remedy="leave it out")
    return _Builder(question, program, modules, call_reader).graph()


@dataclass(frozen=True, slots=True)
class _Known:
    value: Value


_Node = int | _Known
"""A variable's number, or a value that does not vary."""


class _Step(NamedTuple):
    """A step with its variables resolved: ``arguments`` are (name, place of the value, literal), the place None for a
    literal; ``reads`` are the variables of an EVAL. Places count the program's inputs, then its steps."""

    number: int
    module: str
    arguments: tuple[tuple[str, int | None, Value], ...]
    reads: tuple[tuple[str, int], ...]


def _resolved(program: VisProgProgram) -> list[_Step]:
    places = {name: place for place, name in enumerate(program.inputs)}
    found = []
    for number, step in enumerate(program.steps):
        arguments = tuple((a.name, places[a.value], None) if a.variable else (a.name, None, a.value) for a in step.arguments)
        names = step.arguments[0].value.names if step.module == "EVAL" else ()
        found.append(_Step(number, step.module, arguments, tuple((name, places[name]) for name in names)))
        places[step.target] = len(program.inputs) + number
    return found


class _Builder:
    def __init__(self, question: Question, program: VisProgProgram, modules: Mapping[str, Module], ask: CallReader):
        self.question, self.program, self.modules, self.ask = question, program, modules, ask
        self.steps = _resolved(program)
        self.inputs = len(program.inputs)
        self.nodes: list[_Node] = [_Known(question.images[name]) for name in program.inputs]
        self.domains: list[list[Value]] = []
        self.asked: list[GraphCall] = []
        self.fixed: list[Factor] = []
        self.spreads: list[ConditionalTable] = []
        self._calls: dict[Hashable, int] = {}

    def graph(self) -> Graph:
        same = self._equal_steps()
        uses = self._uses(same)
        for step in self.steps:
            place = self.inputs + step.number
            self.nodes.append(self.nodes[same[place]] if same[place] != place else self._node(step, uses.get(place, "first")))
        end = self.nodes[-1]
        answers = [end.value] if isinstance(end, _Known) else self.domains[end]
        right = [0.0 if isinstance(value, ProgramFailure) else score_answer(self.question, value) for value in answers]
        result = -1 if isinstance(end, _Known) else end
        scopes = [factor.variables for factor in self.fixed] + [spread.variables for spread in self.spreads]
        order = elimination_order(scopes, dict(enumerate(map(len, self.domains))), result) if result >= 0 else ()
        if result < 0:  # whatever the modules answer, the result is this one
            self.asked, self.fixed, self.spreads = [], [], []
        fixed, spreads = tuple(self.fixed), tuple(self.spreads)
        weight = torch.tensor(right, dtype=torch.float64)
        return Graph(self.question, self.asked, fixed, spreads, result, order, list(answers), weight)

    def _equal_steps(self) -> list[int]:
        """For each place, the first place that surely holds the same value."""
        same, seen = list(range(self.inputs)), dict[Hashable, int]()
        for step in self.steps:
            given = [(name, "literal", repr(v)) if place is None else (name, same[place]) for name, place, v in step.arguments]
            reads = [(name, same[place]) for name, place in step.reads]
            same.append(seen.setdefault((step.module, *given, *reads), self.inputs + step.number))
        return same

    def _uses(self, same: Sequence[int]) -> dict[int, BoxUse]:
        """What is asked of the value at each place, if it is a list of boxes."""
        wanted: dict[int, set[str]] = {}
        for step in self.steps:
            first = step.module in FIRST_BOX or (step.module == "RESULT" and isinstance(self.question.answer, Box))
            use = "first" if first else "count" if step.module == "COUNT" else "all"
            for place in _places(step):
                wanted.setdefault(same[place], set()).add(use)
        joined: dict[frozenset[str], BoxUse] = {frozenset({"first"}): "first", frozenset({"count"}): "count"}
        joined[frozenset({"first", "count"})] = "both"
        return {place: joined.get(frozenset(found), "all") for place, found in wanted.items()}

    def _node(self, step: _Step, use: BoxUse) -> _Node:
        """The step's value, or its variable with its table."""
        read = [self.nodes[place] for place in _places(step)]
        parents = tuple(dict.fromkeys(node for node in read if not isinstance(node, _Known)))
        shape = tuple(len(self.domains[v]) for v in parents)
        if prod(shape) > MAX_ROWS:
            raise LimitExceeded(
                f"{step.module} reads {prod(shape):,} combinations of values; at most {MAX_ROWS:,} are summed",
                where=f"question {self.question.id}, step {step.number}",
            )
        calls: list[int | None] = []
        values: list[Sequence[Value]] = []
        for combination in combinations_of(*(self.domains[v] for v in parents)):
            number, outcomes = self._outcomes(step, dict(zip(parents, combination, strict=True)), use)
            calls.append(number)
            values.append(outcomes)
        domain: dict[Hashable, int] = {}
        columns = [tuple(domain.setdefault(_name(value), len(domain)) for value in outcomes) for outcomes in values]
        held: list[Value] = [None] * len(domain)
        for outcomes, places in zip(values, columns, strict=True):
            for value, column in zip(outcomes, places, strict=True):
                held[column] = value
        if len(held) == 1:
            return _Known(held[0])
        variable = len(self.domains)
        self.domains.append(held)
        spread = ConditionalTable((*parents, variable), (*shape, len(held)), tuple(calls), tuple(columns))
        if any(call is not None for call in calls):
            self.spreads.append(spread)
        else:
            self.fixed.append(spread.factor([]))
        return variable

    def _outcomes(self, step: _Step, values: Mapping[int, Value], use: BoxUse) -> tuple[int | None, Sequence[Value]]:
        """The number of the call and what it may answer; None for a call that has one answer."""

        def at(place: int) -> Value:
            node = self.nodes[place]
            return node.value if isinstance(node, _Known) else values[node]

        for place in _places(step):
            if isinstance(at(place), ProgramFailure):
                return None, [at(place)]
        args = {name: value if place is None else at(place) for name, place, value in step.arguments}
        if step.module == "EVAL":
            args["values"] = {name: at(place) for name, place in step.reads}
        call, module = Call(step.module, args, step.number), self.modules[step.module]
        if module.symbolic:
            return None, [run_symbolic(module, call)]
        key = (step.module, use, input_key(args))
        number = self._calls.get(key)
        if number is None:
            number = self._calls[key] = len(self.asked)
            self.asked.append(self.ask(call, use))
        outcomes = self.asked[number].outcomes
        return (number if len(outcomes) > 1 else None), outcomes


def _places(step: _Step) -> Iterator[int]:
    yield from (place for _, place, _ in step.arguments if place is not None)
    yield from (place for _, place in step.reads)


def run_symbolic(module: Module, call: Call) -> Value:
    """What a module without a network answers: a value, or the failure."""
    try:
        return module.run([call]).values[0]
    except Exception as error:
        return to_failure(error, module.name)


def _name(value: Value) -> Hashable:
    """Equal for equal values; all failures are alike."""
    return "failure" if isinstance(value, ProgramFailure) else input_key({"": value}) or id(value)
