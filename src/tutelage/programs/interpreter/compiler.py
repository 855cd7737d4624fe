"""Restricted Python to closures: every piece of syntax becomes one function of a frame.

A piece that may ask a module becomes a generator function, every other piece a plain one, so that arithmetic pays
nothing for the questions that programs ask elsewhere. No text is ever executed and no attribute is ever looked up by a
name that the program wrote: names and methods come from tables.
"""

from __future__ import annotations

import ast
from collections.abc import Generator, Sequence
from typing import Any

from tutelage.programs.interpreter.calls import Calls
from tutelage.programs.interpreter.meter import Limits, Meter
from tutelage.programs.interpreter.operators import (
    IN_PLACE,
    get_item,
    set_item,
)
from tutelage.programs.interpreter.pieces import (
    BREAK,
    CONTINUE,
    RETURN,
    Code,
    as_failure,
    at_line,
    read,
    weight_of,
    word,
)
from tutelage.programs.interpreter.scope import Scope, bound_names, quiet_functions
from tutelage.programs.interpreter.values import (
    UNSET,
    Frame,
    Function,
    FunctionCode,
    iterate,
    sequence,
)
from tutelage.programs.language import (
    LimitExceeded,
    ParseFailure,
    ProgramFailure,
    Refused,
)

MAX_FUNCTIONS_WITHIN = 8


def parse_tree(source: str, limits: Limits) -> ast.Module:
    """The syntax tree of ``source``.

    Raises:
        ParseFailure: not Python.
        LimitExceeded: too long, or nested too deeply to be read.
    """
    try:
        size = len(source.encode())
    except UnicodeEncodeError:
        raise ParseFailure("the text holds characters that are none (lone surrogates)") from None
    if size > limits.source:
        raise LimitExceeded(f"{size:,} bytes of source; at most {limits.source:,} are read")
    try:
        return ast.parse(source)
    except SyntaxError as error:
        raise ParseFailure(f"not Python: {error.msg}", where=f"line {error.lineno}") from None
    except ValueError as error:
        raise ParseFailure(f"not Python: {error}") from None
    except (RecursionError, MemoryError, SystemError):
        raise LimitExceeded("the source is nested too deeply") from None


class Compiler(Calls):
    """Compiles one program against a library."""

    def compile(self, tree: ast.Module) -> tuple[FunctionCode, dict[str, tuple[int, ast.FunctionDef]]]:
        """The program as one function without arguments, and its top-level functions with their slots.

        Raises:
            ProgramFailure: the program uses what the language does not have; ``where`` is its line.
        """
        quiet_names = [name for name, builtin in self.names.items() if not builtin.yields]
        self.quiet = quiet_functions(tree, self.yielding.__contains__, quiet_names)
        bound, _ = bound_names(tree.body)
        self.scope = Scope(None, sorted(bound))
        code = FunctionCode("program", (), expression=False)
        try:
            code.run, code.yields = self.block(tree.body)
        except RecursionError:
            raise LimitExceeded("the source is nested too deeply") from None
        code.blank = (UNSET,) * (self.scope.size - 3)
        functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
        return code, {node.name: (self.scope.slots[node.name], node) for node in functions}

    def block(self, body: Sequence[ast.stmt]) -> Code:
        """Statements in order; a failure among them learns its line here."""
        parts = [(self.statement(node), node.lineno, weight_of(_head(node))) for node in body]
        yields = any(code.yields for code, _, _ in parts)
        steps = [(code.run, code.yields, line, weight) for code, line, weight in parts]

        def flow(frame: Frame) -> Generator[Any, Any, Any]:
            meter, line = frame[1], 0
            try:
                for run, yields, line, weight in steps:  # noqa: B007
                    meter.steps -= weight
                    if meter.steps < meter.check:
                        meter.tick()
                    signal = (yield from run(frame)) if yields else run(frame)
                    if signal is not None:
                        return signal
            except Exception as error:
                raise at_line(as_failure(error), line) from None
            return None

        def plain(frame: Frame) -> Any:
            meter, line = frame[1], 0
            try:
                for run, _, line, weight in steps:  # noqa: B007
                    meter.steps -= weight
                    if meter.steps < meter.check:
                        meter.tick()
                    signal = run(frame)
                    if signal is not None:
                        return signal
            except Exception as error:
                raise at_line(as_failure(error), line) from None
            return None

        return Code(flow, True) if yields else Code(plain)

    def statement(self, node: ast.stmt) -> Code:
        """One statement; it gives None, or a signal."""
        self.deeper(node)
        try:
            return self._statement(node)
        except ProgramFailure as failure:
            raise at_line(failure, node.lineno) from None
        finally:
            self.depth -= 1

    def _statement(self, node: ast.stmt) -> Code:
        match node:
            case ast.Expr(value=value):
                return self.operands([self.expression(value)], lambda meter, value: None)
            case ast.Assign(targets=targets, value=value):
                return self.assign(targets, self.expression(value))
            case ast.AnnAssign(target=target, value=value):
                return self.assign([target], self.expression(value)) if value else Code(lambda frame: None)
            case ast.AugAssign(target=target, op=op, value=value):
                return self.augmented(target, IN_PLACE.get(type(op)), value)
            case ast.Return(value=value):
                result = self.expression(value) if value else Code(lambda frame: None)
                return self.store(2, result, RETURN)
            case ast.If(test=test, body=body, orelse=orelse):
                return self.branch(self.expression(test), self.block(body), self.block(orelse))
            case ast.For(target=target, iter=source, body=body, orelse=orelse):
                return self.for_loop(target, source, body, orelse)
            case ast.While(test=test, body=body, orelse=orelse):
                return self.while_loop(test, body, orelse)
            case ast.FunctionDef():
                return self.define(node)
            case ast.Break() if self.loops:
                return Code(lambda frame: BREAK)
            case ast.Continue() if self.loops:
                return Code(lambda frame: CONTINUE)
            case ast.Pass() | ast.Nonlocal():
                return Code(lambda frame: None)
            case ast.Break() | ast.Continue():
                raise ParseFailure("break and continue stand in loops only")
        word = {"Import": "import", "ImportFrom": "import", "ClassDef": "class", "AsyncFunctionDef": "async"}
        raise Refused(
            f"{word.get(type(node).__name__, type(node).__name__.lower())} is not allowed",
            remedy="use def, if, for, while, assignments, return, break, continue and expressions; math needs no import",
        )

    def assign(self, targets: Sequence[ast.expr], value: Code) -> Code:
        """``target = … = value``."""
        if len(targets) == 1 and isinstance(targets[0], ast.Name):
            return self.bind(targets[0].id, value)
        slot = self.scope.slot()
        return self.in_turn([self.store(slot, value), *(self.unpack(target, read(slot)) for target in targets)])

    def unpack(self, target: ast.expr, value: Code) -> Code:
        """Give ``value``, which is read from a slot, to one target."""
        match target:
            case ast.Name(id=name):
                return self.bind(name, value)
            case ast.Subscript(value=holder, slice=index):
                return self.operands([value, self.expression(holder), self.expression(index)], set_item)
            case ast.Tuple(elts=parts) | ast.List(elts=parts):
                return self._unpack_parts(parts, value)
        raise Refused(f"{word(target)} cannot be assigned to", remedy="assign to names, tuples of names and items")

    def _unpack_parts(self, parts: Sequence[ast.expr], value: Code) -> Code:
        stars = [at for at, part in enumerate(parts) if isinstance(part, ast.Starred)]
        if len(stars) > 1:
            raise ParseFailure("two starred targets")
        count, after = len(parts) - len(stars), len(parts) - stars[0] - 1 if stars else 0

        def split(meter: Meter, value: Any) -> list[Any]:
            members = sequence(meter, value)
            if len(members) < count or (not stars and len(members) > count):
                raise ValueError(f"{count} values were expected, there are {len(members)}")
            if stars:
                last = len(members) - after
                members[stars[0] : last] = [members[stars[0] : last]]
            return members

        slot = self.scope.slot()
        steps = [self.store(slot, self.operands([value], split))]
        for at, part in enumerate(parts):
            item = self.operands([read(slot)], lambda meter, members, at=at: members[at])
            steps.append(self.unpack(part.value if isinstance(part, ast.Starred) else part, item))
        return self.in_turn(steps)

    def bind(self, name: str, value: Code) -> Code:
        """``name = value``, here or in the enclosing function that declares it."""
        hops, slot = self.place(name)
        if hops == 0:
            return self.store(slot, value)

        def outward(meter: Meter, frame: Frame, value: Any) -> None:
            for _ in range(hops):
                frame = frame[0]
            frame[slot] = value

        return self.operands([Code(lambda frame: frame), value], outward)

    def augmented(self, target: ast.expr, operation: Any, value: ast.expr) -> Code:
        """``target operator= value``; the parts of an item are evaluated once."""
        if operation is None:
            raise Refused("this operator is not allowed")
        if isinstance(target, ast.Name):
            current = self._name(target.id)
            return self.bind(target.id, self.operands([current, self.expression(value)], operation))
        if not isinstance(target, ast.Subscript):
            raise Refused(f"{word(target)} cannot be assigned to", remedy="assign to names and items")
        holder, index, result = self.scope.slot(), self.scope.slot(), self.scope.slot()
        item = self.operands([read(holder), read(index)], get_item)
        return self.in_turn(
            [
                self.store(holder, self.expression(target.value)),
                self.store(index, self.expression(target.slice)),
                self.store(result, self.operands([item, self.expression(value)], operation)),
                self.operands([read(result), read(holder), read(index)], set_item),
            ]
        )

    def for_loop(
        self, target: ast.expr, source: ast.expr, body: Sequence[ast.stmt], orelse: Sequence[ast.stmt]
    ) -> Code:
        """A ``for`` loop with its ``else``."""
        members = self.operands([self.expression(source)], iterate)
        slot = self.scope.slot()
        take = self.unpack(target, read(slot))
        inner, last = self._loop_body(body), self.block(orelse)
        start, store, turn = members.run, take.run, inner.run
        if not (members.yields or take.yields or inner.yields or last.yields):

            def plain(frame: Frame) -> Any:
                meter = frame[1]
                for frame[slot] in start(frame):  # noqa: B020
                    meter.steps -= 1
                    if meter.steps < meter.check:
                        meter.tick()
                    store(frame)
                    signal = turn(frame)
                    if signal is BREAK:
                        return None
                    if signal is RETURN:
                        return signal
                return last.run(frame)

            return Code(plain)

        def flow(frame: Frame) -> Generator[Any, Any, Any]:
            meter = frame[1]
            for frame[slot] in (yield from start(frame)) if members.yields else start(frame):  # noqa: B020
                meter.steps -= 1
                if meter.steps < meter.check:
                    meter.tick()
                _ = (yield from store(frame)) if take.yields else store(frame)
                signal = (yield from turn(frame)) if inner.yields else turn(frame)
                if signal is BREAK:
                    return None
                if signal is RETURN:
                    return signal
            return (yield from last.run(frame)) if last.yields else last.run(frame)

        return Code(flow, True)

    def while_loop(self, test: ast.expr, body: Sequence[ast.stmt], orelse: Sequence[ast.stmt]) -> Code:
        """A ``while`` loop with its ``else``."""
        condition, inner, last = self.expression(test), self._loop_body(body), self.block(orelse)
        check, turn = condition.run, inner.run
        if not (condition.yields or inner.yields or last.yields):

            def plain(frame: Frame) -> Any:
                meter = frame[1]
                while check(frame):
                    meter.steps -= 1
                    if meter.steps < meter.check:
                        meter.tick()
                    signal = turn(frame)
                    if signal is BREAK:
                        return None
                    if signal is RETURN:
                        return signal
                return last.run(frame)

            return Code(plain)

        def flow(frame: Frame) -> Generator[Any, Any, Any]:
            meter = frame[1]
            while (yield from check(frame)) if condition.yields else check(frame):
                meter.steps -= 1
                if meter.steps < meter.check:
                    meter.tick()
                signal = (yield from turn(frame)) if inner.yields else turn(frame)
                if signal is BREAK:
                    return None
                if signal is RETURN:
                    return signal
            return (yield from last.run(frame)) if last.yields else last.run(frame)

        return Code(flow, True)

    def _loop_body(self, body: Sequence[ast.stmt]) -> Code:
        self.loops += 1
        try:
            return self.block(body)
        finally:
            self.loops -= 1

    def define(self, node: ast.FunctionDef) -> Code:
        """``def``."""
        if node.decorator_list:
            raise Refused("decorators are not allowed")
        return self.bind(node.name, self.function(node.name, node.args, node.body))

    def function(self, name: str, args: ast.arguments, body: list[ast.stmt] | ast.expr) -> Code:
        """A function value: ``def`` with statements, ``lambda`` with an expression."""
        if args.vararg or args.kwarg or args.kwonlyargs or args.posonlyargs:
            raise Refused("only plain arguments are allowed, no * or / among them")
        self.check_name(name)
        params = [arg.arg for arg in args.args]
        if len(set(params)) < len(params):
            raise ParseFailure("two arguments of one name")
        for param in params:
            self.check_name(param)
        defaults = [self.expression(value) for value in args.defaults]
        bound, outer = bound_names([body] if isinstance(body, ast.expr) else body)
        for free in outer:
            self.place(free)
        code = FunctionCode(name, tuple(params), isinstance(body, ast.expr))
        around, loops = self.scope, self.loops
        self.scope, self.loops = Scope(around, [*params, *sorted(bound - set(params))]), 0
        self.nested += 1
        try:
            if self.nested > MAX_FUNCTIONS_WITHIN:
                raise LimitExceeded(f"functions within functions, more than {MAX_FUNCTIONS_WITHIN} deep")
            code.run, code.yields = self.expression(body) if isinstance(body, ast.expr) else self.block(body)
            code.blank = (UNSET,) * (self.scope.size - 3 - len(params))
        finally:
            self.scope, self.loops = around, loops
            self.nested -= 1
        make = lambda meter, frame, *values: Function(code, frame, values)  # noqa: E731
        return self.operands([Code(lambda frame: frame), *defaults], make)


def _head(node: ast.stmt) -> ast.AST:
    """The part of a statement that runs when the statement itself is counted."""
    match node:
        case ast.If(test=head) | ast.While(test=head) | ast.For(iter=head):
            return head
        case ast.FunctionDef(args=arguments):
            return arguments
    return node
