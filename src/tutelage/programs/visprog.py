"""VisProg programs: one call a line, ``VAR=MODULE(arg=value,...)``, checked before they run.

Source: Gupta and Kembhavi, "Visual Programming: Compositional visual reasoning without training", CVPR 2023.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from tutelage.errors import did_you_mean
from tutelage.programs.eval_expression import Expression
from tutelage.programs.text_cache import MAX_CHARACTERS, TextCache
from tutelage.programs.types import (
    Call,
    ForbiddenSyntax,
    LimitExceeded,
    ParseFailure,
    ProgramFailure,
    ProgramRun,
    Signature,
    TypeFailure,
    UndefinedVariable,
    UnknownModule,
    Value,
)
from tutelage.programs.visprog_literals import quote, read_literal, type_of
from tutelage.programs.visprog_source import program_lines, requoted

MAX_SOURCE = 20_000
FINAL = ("FINAL_RESULT", "FINAL_ANSWER")

_FORM = "VAR=MODULE(arg=value, ...)"


class Argument(NamedTuple):
    """One argument of a step: the name of a variable, or a literal value."""

    name: str
    variable: bool
    value: Value


class Step(NamedTuple):
    """One line: the variable it sets, the module it calls, its arguments, and the line it stands on (from 1)."""

    target: str
    module: str
    arguments: tuple[Argument, ...]
    line: int

    def __str__(self) -> str:
        shown = (f"{name}={value if variable else quote(value)}" for name, variable, value in self.arguments)
        return f"{self.target}={self.module}({','.join(shown)})"


# Plain tuples: a parser makes several for each line that it reads.
Variable = tuple[int, str, int]
"""What is known of a variable before the run: its value's place, its type, the first wave that may read it."""


Lines = dict[tuple[int, str], tuple[Step, ...]]
"""What single lines mean, by the line's number and text."""


ResolvedStep = tuple[int, str, dict[str, Value], tuple[tuple[str, int], ...], tuple[tuple[str, int], ...] | None]
"""A step made ready to run: its number and module, the literal arguments by name, with None where a variable's value belongs,
and where to find those values; last the variables of an EVAL, with their places."""


@dataclass(slots=True, eq=False)
class VisProgProgram:
    """A checked VisProg program. ``str()`` of a step is its line.

    ``waves`` is the plan: the steps of a wave read what earlier waves set, and do not need one another.
    """

    text: str
    hash: str
    inputs: tuple[str, ...]
    steps: tuple[Step, ...]
    waves: tuple[tuple[ResolvedStep, ...], ...]
    dsl: str = "visprog"

    def start(self, state: Mapping[str, Value]) -> ProgramRun:
        """Run on ``state``, which holds every name in ``inputs``; the calls of a wave are yielded together."""
        missing = [name for name in self.inputs if name not in state]
        if missing:
            raise UndefinedVariable(f"the run was not given {' and '.join(missing)}", remedy=f"give {self.inputs}")
        values = [state[name] for name in self.inputs] + [None] * len(self.steps)
        first = len(self.inputs)
        for wave in self.waves:
            calls = []
            for number, module, blank, places, reads in wave:
                args = blank.copy()
                for name, place in places:
                    args[name] = values[place]
                if reads is not None:
                    args["values"] = {name: values[place] for name, place in reads}
                calls.append(Call(module, args, number))
            if len(calls) == 1:
                values[first + number] = yield calls[0]
            else:
                for call, answer in zip(calls, (yield calls), strict=True):
                    values[first + call.step] = answer
        return values[-1]


class Parser:
    """Reads programs, each text and each line once: the same text again is the same program.

    ``signatures`` are those of the modules that programs may call, by name; at most ``keep`` texts are remembered.
    """

    def __init__(self, signatures: Mapping[str, Signature], keep: int = 50_000):
        self.signatures, self._keep = dict(signatures), keep
        self._known: TextCache[VisProgProgram | ProgramFailure] = TextCache(keep)
        self._lines: Lines = {}
        self._read = 0

    def try_parse(self, text: str, inputs: tuple[str, ...] = ("IMAGE",)) -> VisProgProgram | ProgramFailure:
        """The program, or the typed failure that :func:`parse` would raise."""
        found = self._known.get(text, inputs)
        if found is None:
            try:
                found = parse(text, self.signatures, inputs, self._lines)
            except ProgramFailure as failure:
                found = failure
            self._read += len(text)
            if len(self._lines) > self._keep or self._read > MAX_CHARACTERS:
                self._lines.clear()
                self._read = 0
            self._known.put(text, found, inputs)
        return found

    def parse(self, text: str, inputs: tuple[str, ...] = ("IMAGE",)) -> VisProgProgram:
        """The program; raises as :func:`parse` does."""
        found = self.try_parse(text, inputs)
        if isinstance(found, ProgramFailure):
            raise found.with_traceback(None)
        return found


def parse(
    text: str,
    signatures: Mapping[str, Signature],
    inputs: tuple[str, ...] = ("IMAGE",),
    lines: Lines | None = None,
) -> VisProgProgram:
    """The checked program of ``text``, which may use ``signatures``' modules and reads ``inputs``.

    ``lines`` remembers what single lines mean, from one program to the next.

    Raises:
        ParseFailure: not a VisProg program; the message names the line.
        Refused: Python, but not of the form ``VAR=MODULE(arg=value, ...)``.
        UnknownModule, UndefinedVariable, TypeFailure: found by the check, before anything runs.
        LimitExceeded: more than 20,000 characters, or nested too deeply.
    """
    steps = read(text, lines)
    waves = check(steps, signatures, inputs)
    name = hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).hexdigest()
    return VisProgProgram(text, name, inputs, steps, waves)


def read(text: str, lines: Lines | None = None) -> tuple[Step, ...]:
    """The steps of ``text`` as they stand, unchecked but for their form; ``lines`` as in :func:`parse`.

    Raises:
        ParseFailure, ForbiddenSyntax, LimitExceeded: as :func:`parse`.
    """
    if len(text) > MAX_SOURCE:
        raise LimitExceeded(f"a program of {len(text):,} characters; at most {MAX_SOURCE:,} are read")
    known: Lines = {} if lines is None else lines
    try:
        return _steps(text, known)
    except (ParseFailure, ForbiddenSyntax):
        with contextlib.suppress(ProgramFailure):
            return _steps(program_lines(text), known)
        raise


def _steps(text: str, known: Lines) -> tuple[Step, ...]:
    steps = _read_lines(text, known)
    if steps is None:
        steps = _read_whole(text)
    if not steps or steps[-1].target not in FINAL or steps[-1].module != "RESULT":
        where = f"line {steps[-1].line}" if steps else "line 1"
        remedy = "end with FINAL_RESULT=RESULT(var=X)"
        raise ParseFailure("the last line does not give the result", where=where, remedy=remedy)
    return steps


def _read_lines(text: str, cache: Lines) -> tuple[Step, ...] | None:
    """The steps where every line stands by itself, else None. Programs share most of their lines."""
    steps: list[Step] = []
    for place in enumerate(text.split("\n"), 1):
        found = cache.get(place)
        if found is None:
            number, line = place
            try:
                found = tuple([_step(statement)._replace(line=number) for statement in _tree(line.strip()).body])
            except (SyntaxError, ProgramFailure):
                return None
            cache[place] = found
        steps += found
    return tuple(steps)


def _read_whole(text: str) -> tuple[Step, ...]:
    """The steps of a text with calls over several lines or bare apostrophes, or the failure that names its line."""
    try:
        tree = _tree(text)
    except SyntaxError:
        lines = [requoted(line.strip()) for line in text.splitlines()]
        try:
            tree = _tree("\n".join(lines))
        except SyntaxError as error:
            where = f"line {error.lineno or 1}"
            raise ParseFailure(f"not a call: {error.msg}", where=where, remedy=f"write {_FORM}") from None
    return tuple([_step(statement) for statement in tree.body])


def check(
    steps: tuple[Step, ...], signatures: Mapping[str, Signature], inputs: tuple[str, ...]
) -> tuple[tuple[ResolvedStep, ...], ...]:
    """The plan of ``steps``, checked against ``signatures`` and one another: each as early as what it reads is there.

    Raises:
        UnknownModule, UndefinedVariable, TypeFailure: naming the line.
    """
    variables: dict[str, Variable] = {name: (place, "image", 0) for place, name in enumerate(inputs)}
    waves: list[list[ResolvedStep]] = []
    for number, step in enumerate(steps):
        target, module, arguments, _ = step
        signature = signatures.get(module)
        if signature is None:
            raise _unknown_module(step, signatures)
        wanted, returns, wave = signature.args, signature.returns, 0
        given: dict[str, Value] = {}
        places: list[tuple[str, int]] = []
        for name, variable, value in arguments:
            if name not in wanted:
                raise _unknown_argument(step, name, signature)
            if variable:
                if value not in variables:
                    raise _undefined(step, value, variables)
                place, found, depth = variables[value]
                if depth > wave:
                    wave = depth
                given[name] = None
                places.append((name, place))
                if module == "RESULT":
                    returns = found
            else:
                found = type_of(value)
                given[name] = value
            expected = wanted[name]
            if found != expected and found != "any" and expected != "any":
                if value is not None or name not in signature.optional:
                    raise _wrong_type(step, name, found, expected)
        if len(given) < len(wanted):
            _check_missing(step, given, signature)
        reads = None
        if module == "EVAL":
            reads = _reads(step, variables)
            wave = max([wave, *[variables[name][2] for name, _ in reads]])
        if wave == len(waves):
            waves.append([])
        blank = given  # in the signature's order: equal calls, equal keys
        if [*given] != [*wanted]:
            blank = {name: given[name] for name in wanted if name in given}
        waves[wave].append((number, module, blank, tuple(places), reads))
        variables[target] = (len(inputs) + number, returns, wave + 1)
    return tuple([tuple(wave) for wave in waves])


def _unknown_module(step: Step, signatures: Mapping[str, Signature]) -> ProgramFailure:
    remedy = did_you_mean(step.module, list(signatures))
    return UnknownModule(f"unknown module {step.module!r}", where=f"line {step.line}", remedy=remedy)


def _unknown_argument(step: Step, name: str, signature: Signature) -> ProgramFailure:
    remedy = did_you_mean(name, list(signature.args))
    return TypeFailure(f"{step.module} has no argument {name!r}", where=f"line {step.line}", remedy=remedy)


def _undefined(step: Step, name: str, variables: Mapping[str, Variable]) -> ProgramFailure:
    remedy = did_you_mean(name, list(variables))
    return UndefinedVariable(f"{name!r} is not set", where=f"line {step.line}", remedy=remedy)


def _wrong_type(step: Step, name: str, actual: str, expected: str) -> ProgramFailure:
    (shown,) = [value if variable else quote(value) for given, variable, value in step.arguments if given == name]
    return TypeFailure(f"{step.module} takes {expected} as {name!r}, {shown} is {actual}", where=f"line {step.line}")


def _check_missing(step: Step, args: Mapping[str, Any], signature: Signature) -> None:
    missing = [name for name in signature.args if name not in args and name not in signature.optional]
    if missing:
        message, remedy = f"{step.module} is not given {' and '.join(missing)}", f"add {missing[0]}=..."
        raise TypeFailure(message, where=f"line {step.line}", remedy=remedy)


def _reads(step: Step, variables: Mapping[str, Variable]) -> tuple[tuple[str, int], ...]:
    """The variables that an EVAL reads, and where their values are."""
    where, expression = f"line {step.line}", step.arguments[0].value
    if len(step.arguments) > 1:
        raise TypeFailure(f"EVAL has no argument {step.arguments[1].name!r}", where=where, remedy="give expr= alone")
    if not isinstance(expression, Expression):
        raise TypeFailure("EVAL takes its expression as a text", where=where, remedy="write expr=\"{X} == 'red'\"")
    for name in expression.names:
        if name not in variables:
            raise _undefined(step, name, variables)
    return tuple([(name, variables[name][0]) for name in expression.names])


def _tree(text: str) -> ast.Module:
    try:
        return ast.parse(text)
    except (RecursionError, MemoryError):
        raise LimitExceeded("the program is nested too deeply", remedy="one call a line, no nesting") from None
    except SyntaxError:
        raise
    except ValueError as error:
        raise ParseFailure(f"not text: {error}", where="line 1") from None


def _step(statement: ast.stmt) -> Step:
    match statement:
        case ast.Assign(targets=[ast.Name(id=target)], value=ast.Call(func=ast.Name(id=module)) as call):
            where = f"line {statement.lineno}"
            if call.args:
                raise TypeFailure(f"{module} takes its arguments by name", where=where, remedy=f"write {_FORM}")
            arguments = tuple([_argument(keyword, where) for keyword in call.keywords])
            _check_doubled(arguments, where)
            if module == "EVAL":
                arguments = tuple([_expression(argument, where) for argument in arguments])
            return Step(target, module, arguments, statement.lineno)
    raise ForbiddenSyntax("not a call of a module", where=f"line {statement.lineno}", remedy=f"write {_FORM}")


def _check_doubled(arguments: tuple[Argument, ...], where: str) -> None:
    seen: set[str] = set()
    for argument in arguments:
        if argument.name in seen:
            raise TypeFailure(f"{argument.name!r} is given more than once", where=where, remedy="give it once")
        seen.add(argument.name)


def _argument(keyword: ast.keyword, where: str) -> Argument:
    if keyword.arg is None:
        raise ForbiddenSyntax("'**' is not allowed", where=where, remedy=f"write {_FORM}")
    if isinstance(keyword.value, ast.Name):
        return Argument(keyword.arg, True, keyword.value.id)
    try:
        return Argument(keyword.arg, False, read_literal(keyword.value))
    except LimitExceeded as failure:
        raise LimitExceeded(f"{keyword.arg!r} holds {failure.message}", where=where) from None
    except ValueError:
        raise ForbiddenSyntax(
            f"the argument {keyword.arg!r} is neither a variable nor a literal",
            where=where,
            remedy="set a variable on its own line; a literal is a text, number, True, False, None or a list of these",
        ) from None


def _expression(argument: Argument, where: str) -> Argument:
    if argument.name != "expr" or not isinstance(argument.value, str) or argument.variable:
        return argument
    try:
        return Argument("expr", False, Expression(argument.value))
    except ProgramFailure as failure:
        raise type(failure)(failure.message, where=where, remedy=failure.remedy) from None
