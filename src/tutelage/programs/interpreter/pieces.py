"""The parts every piece of compiled syntax is built from."""

from __future__ import annotations

import ast
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tutelage.programs.interpreter.functions import FUNCTIONS
from tutelage.programs.interpreter.meter import Limits
from tutelage.programs.interpreter.methods import METHODS, YIELDING
from tutelage.programs.interpreter.scope import Scope
from tutelage.programs.interpreter.values import (
    UNSET,
    Builtin,
    Frame,
)
from tutelage.programs.language import (
    LimitExceeded,
    ProgramFailure,
    Refused,
    RuntimeFailure,
    TypeFailure,
    UndefinedVariable,
    UnknownModule,
)

BREAK, CONTINUE, RETURN = object(), object(), object()
"""What a statement gives back where the next one must not run."""


class Code(NamedTuple):
    """One compiled piece: ``run(frame)``, which is a generator function where ``yields``."""

    run: Callable[[Frame], Any]
    yields: bool = False


@dataclass(frozen=True)
class Library:
    """What a program finds beside the built-in functions: names, methods and fields of host types.

    ``methods[type][name]`` and ``fields[type][name]`` are functions of (meter, object, …) and (object); the methods in
    ``yielding`` are generator functions. ``absent`` names the module that a name would need, were it registered;
    ``arguments`` gives (fewest, names) of methods whose calls are checked before running.
    """

    names: dict[str, Builtin] = field(default_factory=dict)
    methods: dict[type, dict[str, Callable[..., Any]]] = field(default_factory=dict)
    fields: dict[type, dict[str, Callable[[Any], Any]]] = field(default_factory=dict)
    yielding: frozenset[str] = frozenset()
    absent: dict[str, str] = field(default_factory=dict)
    arguments: dict[str, tuple[int, tuple[str, ...]]] = field(default_factory=dict)


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


def weight_of(node: ast.AST) -> int:
    """Steps that one evaluation of ``node`` counts for."""
    return 1 + sum(1 for _ in ast.walk(node)) // 16


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
    return Code(lambda frame: value)


def read(slot: int) -> Code:
    """A piece that reads a slot that is surely set."""
    return Code(lambda frame: frame[slot])


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

    def outer(frame: Frame) -> Any:
        for _ in range(hops):
            frame = frame[0]
        value = frame[slot]
        if value is UNSET:
            raise missing()
        return value

    return Code(outer)


class Pieces:
    """What every part of the compiler stands on: the tables of names, the scope, and how pieces are put together."""

    def __init__(self, library: Library, limits: Limits):
        self.library, self.limits = library, limits
        self.names = FUNCTIONS | library.names
        self.methods: dict[str, dict[type, Callable[..., Any]]] = {}
        for kind, table in [*METHODS.items(), *library.methods.items()]:
            for name, method in table.items():
                self.methods.setdefault(name, {})[kind] = method
        self.fields: dict[str, dict[type, Callable[[Any], Any]]] = {}
        for kind, fields in library.fields.items():
            for name, read in fields.items():
                self.fields.setdefault(name, {})[kind] = read
        self.yielding = YIELDING | library.yielding
        self.scope = Scope(None, ())
        self.depth = 0
        self.nested = 0
        self.loops = 0
        self.quiet: set[str] = set()

    def operands(self, parts: list[Code], combine: Callable[..., Any], yields: bool = False) -> Code:
        """Evaluate ``parts`` in order, then ``combine(meter, *values)``, a generator function where ``yields``."""
        if yields or any(part.yields for part in parts):

            def flow(frame: Frame) -> Generator[Any, Any, Any]:
                values = []
                for run, asks in parts:
                    values.append((yield from run(frame)) if asks else run(frame))
                result = combine(frame[1], *values)
                return (yield from result) if yields else result

            return Code(flow, True)
        runs = [part.run for part in parts]
        if len(runs) == 1:
            (one,) = runs
            return Code(lambda frame: combine(frame[1], one(frame)))
        if len(runs) == 2:
            one, two = runs
            return Code(lambda frame: combine(frame[1], one(frame), two(frame)))
        return Code(lambda frame: combine(frame[1], *[run(frame) for run in runs]))

    def branch(self, test: Code, then: Code, other: Code) -> Code:
        """``if`` as a statement or an expression."""
        check, yes, no = test.run, then.run, other.run
        if not (test.yields or then.yields or other.yields):
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
            for run, asks in parts:
                value = (yield from run(frame)) if asks else run(frame)
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
            raise Refused(f"the name {name!r} is not allowed", remedy="use a name without underscores in front")

    def is_math(self, node: ast.expr) -> bool:
        """Whether ``node`` is the name of the table ``math``."""
        return isinstance(node, ast.Name) and node.id == "math" and self.scope.find("math") is None

    def deeper(self, node: ast.stmt | ast.expr) -> None:
        """Go one level into the syntax; whoever does subtracts one from ``depth`` on leaving."""
        self.depth += 1
        if self.depth > self.limits.depth:
            self.depth -= 1
            raise LimitExceeded(f"nested more than {self.limits.depth} levels deep", where=f"line {node.lineno}")

    def expression(self, node: ast.expr) -> Code:
        """One expression."""
        raise NotImplementedError
