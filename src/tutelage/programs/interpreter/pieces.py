"""The parts every piece of compiled syntax is built from."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from types import GeneratorType
from typing import Any, NamedTuple

from tutelage.programs.interpreter.functions import FUNCTIONS
from tutelage.programs.interpreter.meter import Limits
from tutelage.programs.interpreter.methods import METHODS, YIELDING
from tutelage.programs.interpreter.operators import COMPARE
from tutelage.programs.interpreter.scope import Scope
from tutelage.programs.interpreter.values import (
    SCALARS,
    UNSET,
    Builtin,
    Frame,
)
from tutelage.programs.types import (
    ForbiddenSyntax,
    LimitExceeded,
    ProgramFailure,
    RuntimeFailure,
    TypeFailure,
    UndefinedVariable,
    UnknownModule,
)

BREAK, CONTINUE, RETURN = object(), object(), object()
"""What a statement gives back where the next one must not run."""


class Code(NamedTuple):
    """One compiled piece: ``run(frame)``, which is a generator function where ``yields``.

    ``slot`` is where a plain variable lives that is surely set, else -1; ``value`` is a constant's, else UNSET: with
    them, the commonest operands are read without a call.
    """

    run: Callable[[Frame], Any]
    yields: bool = False
    slot: int = -1
    value: Any = UNSET


NOTHING = Code(lambda frame: None)
"""The empty block."""

_FAST: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_FAST_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


@dataclass(frozen=True)
class Library:
    """What a program finds beside the built-in functions: names, methods and fields of host types.

    ``methods[type][name]`` and ``fields[type][name]`` are functions of (meter, object, …) and (object); the methods in
    ``yielding`` are generator functions. ``absent`` names the module that a name would need, were it registered;
    ``arguments`` gives (fewest, names) of methods whose calls are checked before running. The names and methods in ``once``
    ask a single question and change nothing.
    """

    names: dict[str, Builtin] = field(default_factory=dict)
    methods: dict[type, dict[str, Callable[..., Any]]] = field(default_factory=dict)
    fields: dict[type, dict[str, Callable[[Any], Any]]] = field(default_factory=dict)
    yielding: frozenset[str] = frozenset()
    absent: dict[str, str] = field(default_factory=dict)
    arguments: dict[str, tuple[int, tuple[str, ...]]] = field(default_factory=dict)
    once: frozenset[str] = frozenset()

    @cached_property
    def all_names(self) -> dict[str, Builtin]:
        """The built-in functions and this library's."""
        return FUNCTIONS | self.names

    @cached_property
    def all_methods(self) -> dict[str, dict[type, Callable[..., Any]]]:
        """Methods by name, then by type; those of texts, lists, tables and sets among them."""
        return _by_name([*METHODS.items(), *self.methods.items()])

    @cached_property
    def all_fields(self) -> dict[str, dict[type, Callable[[Any], Any]]]:
        """Fields by name, then by type."""
        return _by_name(list(self.fields.items()))


def _by_name(tables: list[tuple[type, dict[str, Callable[..., Any]]]]) -> dict[str, dict[type, Callable[..., Any]]]:
    found: dict[str, dict[type, Callable[..., Any]]] = {}
    for kind, table in tables:
        for name, function in table.items():
            found.setdefault(name, {})[kind] = function
    return found


def as_failure(error: Exception) -> ProgramFailure:
    """What went wrong in an operation, as a typed failure."""
    if isinstance(error, ProgramFailure):
        return error
    if isinstance(error, (RecursionError, MemoryError)):
        return LimitExceeded("nested too deeply" if isinstance(error, RecursionError) else "out of memory")
    if isinstance(error, (TypeError, AttributeError)):
        return TypeFailure(str(error))
    message = f"no key {error}" if isinstance(error, KeyError) else str(error)
    return RuntimeFailure(f"{type(error).__name__}: {message}")


def word(node: ast.AST) -> str:
    """What a node is called in a message."""
    return type(node).__name__.lower()


def at_line(failure: ProgramFailure, line: int) -> ProgramFailure:
    """``failure`` with its line, where it has none yet."""
    if failure.where is None:
        failure.where = f"line {line}"
    return failure


def unregistered(name: str, module: str) -> UnknownModule:
    """The failure of a name whose module is absent."""
    return UnknownModule(f"{name} needs the module {module}, which is not registered", remedy=f"register {module}")


def constant(value: Any) -> Code:
    """A piece that gives ``value``."""
    return Code(lambda frame: value, value=value)


def read(slot: int) -> Code:
    """A piece that reads a slot that is surely set."""
    return Code(lambda frame: frame[slot], slot=slot)


def variable(name: str, hops: int, slot: int) -> Code:
    """A piece that reads a variable ``hops`` functions outward."""

    def missing() -> UndefinedVariable:
        return UndefinedVariable(f"the variable {name!r} has no value yet")

    if hops == 0:

        def local(frame: Frame) -> Any:
            value = frame[slot]
            if value is UNSET:
                raise missing()
            return value

        return Code(local)

    def enclosing(frame: Frame) -> Any:
        value = frame[0][slot]
        if value is UNSET:
            raise missing()
        return value

    def outer(frame: Frame) -> Any:
        for _ in range(hops):
            frame = frame[0]
        value = frame[slot]
        if value is UNSET:
            raise missing()
        return value

    return Code(enclosing if hops == 1 else outer)


class Pieces:
    """What every part of the compiler stands on: the tables of names, the scope, and how pieces are put together."""

    def __init__(self, library: Library, limits: Limits, walrus: bool, marks: Mapping[str, int]):
        self.library, self.limits, self.walrus, self.marks = library, limits, walrus, marks
        self.marked: set[str] = set()
        self.names, self.methods, self.fields = library.all_names, library.all_methods, library.all_fields
        self.yielding = YIELDING | library.yielding
        self.scope = Scope(None, ())
        self.depth = 0
        self.nodes = 0
        """Expressions compiled since the statement, lambda or element now being compiled began: what it weighs."""
        self.nested = 0
        self.loops = 0
        self.quiet: set[str] = set()
        self.sure: set[int] = set()
        """Slots of this function that are set whenever the place now being compiled is reached."""

    def operands(self, parts: list[Code], combine: Callable[..., Any], yields: bool = False) -> Code:
        """Evaluate ``parts`` in order, then ``combine(meter, *values)``, which may give a generator where ``yields``."""
        if yields or any(part.yields for part in parts):

            def flow(frame: Frame) -> Generator[Any, Any, Any]:
                values = []
                for part in parts:
                    values.append((yield from part.run(frame)) if part.yields else part.run(frame))
                result = combine(frame[1], *values)
                return (yield from result) if type(result) is GeneratorType else result

            return Code(flow, True)
        runs = [part.run for part in parts]
        if len(runs) == 1:
            (one,), slot = runs, parts[0].slot
            if slot >= 0:
                return Code(lambda frame: combine(frame[1], frame[slot]))
            return Code(lambda frame: combine(frame[1], one(frame)))
        if len(runs) == 2:
            (one, two), slot = runs, parts[0].slot
            if slot >= 0:
                return Code(lambda frame: combine(frame[1], frame[slot], two(frame)))
            return Code(lambda frame: combine(frame[1], one(frame), two(frame)))
        if len(runs) == 3:
            one, two, three = runs
            return Code(lambda frame: combine(frame[1], one(frame), two(frame), three(frame)))
        return Code(lambda frame: combine(frame[1], *[run(frame) for run in runs]))

    def arithmetic(self, op: type[ast.operator], a: Code, b: Code, combine: Callable[..., Any]) -> Code:
        """``a op b``; two numbers of one type take the short way, ``combine`` does all else."""
        fast = _FAST.get(op)
        if fast is None or a.yields or b.yields:
            return self.operands([a, b], combine)
        low, high = -(1 << self.limits.bits), 1 << self.limits.bits
        one, two, slot, fixed = a.run, b.run, a.slot, b.value

        def local_and_fixed(frame: Frame) -> Any:
            x = frame[slot]
            if type(x) is int:
                value = fast(x, fixed)
                if low < value < high:
                    return value
            return combine(frame[1], x, fixed)

        def any_and_fixed(frame: Frame) -> Any:
            x = one(frame)
            if type(x) is int:
                value = fast(x, fixed)
                if low < value < high:
                    return value
            return combine(frame[1], x, fixed)

        def any_two(frame: Frame) -> Any:
            x, y = one(frame), two(frame)
            kind = type(x)
            if kind is type(y) and (kind is int or kind is float):
                value = fast(x, y)
                if low < value < high:
                    return value
            return combine(frame[1], x, y)

        if type(fixed) is int:
            return Code(local_and_fixed if slot >= 0 else any_and_fixed)
        return Code(any_two)

    def compared(self, op: type[ast.cmpop], a: Code, b: Code) -> Code:
        """``a op b``; where one side is no container, nothing needs to be measured."""
        fast, combine = _FAST_COMPARE.get(op), COMPARE[op]
        if fast is None or a.yields or b.yields:
            return self.operands([a, b], combine)
        one, two, slot, fixed = a.run, b.run, a.slot, b.value
        if type(fixed) in SCALARS:
            if slot >= 0:
                return Code(lambda frame: fast(frame[slot], fixed))
            return Code(lambda frame: fast(one(frame), fixed))

        def any_two(frame: Frame) -> Any:
            x, y = one(frame), two(frame)
            if type(x) in SCALARS or type(y) in SCALARS:
                return fast(x, y)
            return combine(frame[1], x, y)

        return Code(any_two)

    def branch(self, test: Code, then: Code, other: Code) -> Code:
        """``if`` as a statement or an expression."""
        check, yes, no = test.run, then.run, other.run
        if not (test.yields or then.yields or other.yields):
            if other is NOTHING:
                return Code(lambda frame: yes(frame) if check(frame) else None)
            return Code(lambda frame: yes(frame) if check(frame) else no(frame))

        def flow(frame: Frame) -> Generator[Any, Any, Any]:
            taken = then if ((yield from check(frame)) if test.yields else check(frame)) else other
            return (yield from taken.run(frame)) if taken.yields else taken.run(frame)

        return Code(flow, True)

    def short_circuit(self, is_and: bool, parts: list[Code]) -> Code:
        """``and`` or ``or`` of ``parts``."""
        if not any(part.yields for part in parts):
            runs = [part.run for part in parts]
            if len(runs) == 2:
                one, two = runs
                if is_and:
                    return Code(lambda frame: one(frame) and two(frame))
                return Code(lambda frame: one(frame) or two(frame))

            def plain(frame: Frame) -> Any:
                value = None
                for run in runs:
                    value = run(frame)
                    if bool(value) is not is_and:
                        break
                return value

            return Code(plain)

        def flow(frame: Frame) -> Generator[Any, Any, Any]:
            value = None
            for part in parts:
                value = (yield from part.run(frame)) if part.yields else part.run(frame)
                if bool(value) is not is_and:
                    break
            return value

        return Code(flow, True)

    def store(self, slot: int, value: Code, signal: Any = None) -> Code:
        """Put ``value`` into a slot, and give ``signal``."""
        run = value.run
        if value.yields:

            def flow(frame: Frame) -> Generator[Any, Any, Any]:
                frame[slot] = yield from run(frame)
                return signal

            return Code(flow, True)

        def plain(frame: Frame) -> Any:
            frame[slot] = run(frame)
            return signal

        return Code(plain)

    def in_turn(self, codes: Sequence[Code]) -> Code:
        """Pieces one after another, for what they do."""
        return self.operands(list(codes), lambda meter, *values: None)

    def tee(self, slot: int, value: Code) -> Code:
        """``value``, kept in a slot as well."""
        return self.operands([self.store(slot, value), read(slot)], lambda meter, _, value: value)

    def place(self, name: str) -> tuple[int, int]:
        """Where a variable of this or an enclosing function lives."""
        self.check_name(name)
        place = self.scope.find(name)
        if place is None:
            raise UndefinedVariable(f"no variable {name!r}")
        return place

    def check_name(self, name: str) -> None:
        """Refuse names with two underscores in front."""
        if name.startswith("__"):
            raise ForbiddenSyntax(f"the name {name!r} is not allowed", remedy="use a name without underscores in front")

    def is_math(self, node: ast.expr) -> bool:
        """Whether ``node`` is the name of the table ``math``."""
        return isinstance(node, ast.Name) and node.id == "math" and self.scope.find("math") is None

    def deeper(self, node: ast.stmt | ast.expr) -> None:
        """Go one level into the syntax; whoever does subtracts one from ``depth`` on leaving."""
        self.depth += 1
        if self.depth > self.limits.depth:
            self.depth -= 1
            raise LimitExceeded(f"nested more than {self.limits.depth} levels deep", where=f"line {node.lineno}")

    @contextmanager
    def weighed(self) -> Iterator[Callable[[], int]]:
        """A part that is counted apart: what is given tells the steps that one evaluation of it counts for."""
        around, self.nodes = self.nodes, 0
        yield lambda: 1 + self.nodes // 16
        self.nodes = around

    def expression(self, node: ast.expr) -> Code:
        """One expression."""
        raise NotImplementedError
