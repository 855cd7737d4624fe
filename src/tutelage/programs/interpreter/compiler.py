"""Restricted Python to closures: every piece of syntax becomes one function of a frame.

A piece that may ask a module becomes a generator function, every other piece a plain one, so that arithmetic pays
nothing for the questions that programs ask elsewhere. No text is ever executed and no attribute is ever looked up by a
name that the program wrote: names and methods come from tables.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Callable, Generator, Sequence
from itertools import accumulate, groupby
from typing import Any

from tutelage.programs.interpreter.blocks import flow_block, plain_block
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
    NOTHING,
    RETURN,
    Code,
    at_line,
    read,
    word,
)
from tutelage.programs.interpreter.scope import Scope, bound_names, quiet_functions, walrus_names
from tutelage.programs.interpreter.together import Statement, Step, rounds, statement, together_block, worthwhile
from tutelage.programs.interpreter.values import (
    UNSET,
    Frame,
    Function,
    FunctionCode,
    iterate,
    sequence,
)
from tutelage.programs.types import (
    ForbiddenSyntax,
    LimitExceeded,
    ParseFailure,
    ProgramFailure,
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
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what a program writes oddly is no news to the one who runs it
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
        bound, _ = bound_names(tree.body, self.walrus)
        self.scope = Scope(None, sorted(bound))
        code = FunctionCode("program", (), expression=False)
        try:
            code.run, code.yields, *_ = self.block(tree.body)
        except RecursionError:
            raise LimitExceeded("the source is nested too deeply") from None
        code.blank = (UNSET,) * (self.scope.size - 3)
        functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
        return code, {node.name: (self.scope.slots[node.name], node) for node in functions}

    def block(self, body: Sequence[ast.stmt], extra: int = 0) -> Code:
        """Statements in order, counted together on entering, and ``extra`` steps with them.

        A failure among them learns its line here.
        """
        if not body:
            return NOTHING
        codes, around = [], self.nodes
        for node in body:
            self.nodes = 0
            codes.append(self.statement(node))
            extra += 1 + self.nodes // 16
        self.nodes = around
        lines = [node.lineno for node in body]
        if any(code.yields for code in codes):
            return Code(flow_block(self._gathered(body, codes), extra), True)
        return Code(plain_block([(code.run, line) for code, line in zip(codes, lines)], extra))

    def _gathered(self, body: Sequence[ast.stmt], codes: Sequence[Code]) -> list[tuple[Callable[[Frame], Any], bool, int]]:
        """Statements as :func:`flow_block` takes them; those whose questions go together have become one."""
        known = [self._looking(node) for node in body]
        steps: list[tuple[Callable[[Frame], Any], bool, int]] = []
        for looking, group in groupby(range(len(body)), lambda at: known[at] is not None):
            members = list(group)
            statements = [it for at in members if (it := known[at]) is not None]
            if looking and worthwhile(statements):
                ranks = accumulate((it.asks for it in statements), initial=0)
                parts = [Step(codes[at].run, body[at].lineno, it.asks, rank) for at, it, rank in zip(members, statements, ranks)]
                steps.append((together_block(parts, rounds(statements)), True, body[members[0]].lineno))
            else:
                steps += [(codes[at].run, codes[at].yields, body[at].lineno) for at in members]
        return steps

    def _looking(self, node: ast.stmt) -> Statement | None:
        """A statement that changes nothing but a variable of this function, and asks once at most."""
        found = statement(node, self.library, lambda name: self.scope.find(name) is not None)
        return found if found is not None and self.place(found.variable)[0] == 0 else None

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
                return self.augmented(target, type(op), value)
            case ast.Return(value=value):
                result = self.expression(value) if value else Code(lambda frame: None)
                return self.store(2, result, RETURN)
            case ast.If(test=test, body=body, orelse=orelse):
                return self.if_else(test, body, orelse)
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
        raise ForbiddenSyntax(
            f"{word.get(type(node).__name__, type(node).__name__.lower())} is not allowed",
            remedy="use def, if, for, while, assignments, return, break, continue, expressions; math needs no import",
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
        raise ForbiddenSyntax(f"{word(target)} cannot be assigned to", remedy="assign to names, tuples of names and items")

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

    def bind(self, name: str, value: Code, sure: bool = True) -> Code:
        """``name = value``, here or in the enclosing function that declares it.

        ``sure`` is False where the assignment may be skipped by the expression it stands in.
        """
        hops, slot = self.place(name)
        if hops == 0:
            if sure:
                self.sure.add(slot)
            return self.store(slot, value)

        def outward(meter: Meter, frame: Frame, value: Any) -> None:
            for _ in range(hops):
                frame = frame[0]
            frame[slot] = value

        return self.operands([Code(lambda frame: frame), value], outward)

    def augmented(self, target: ast.expr, op: type[ast.operator], value: ast.expr) -> Code:
        """``target operator= value``; the parts of an item are evaluated once."""
        operation = IN_PLACE.get(op)
        if operation is None:
            raise ForbiddenSyntax("this operator is not allowed")
        if isinstance(target, ast.Name):
            current = self._name(target.id)
            return self.bind(target.id, self.arithmetic(op, current, self.expression(value), operation))
        if not isinstance(target, ast.Subscript):
            raise ForbiddenSyntax(f"{word(target)} cannot be assigned to", remedy="assign to names and items")
        holder, index, result = self.scope.slot(), self.scope.slot(), self.scope.slot()
        item = self.operands([read(holder), read(index)], get_item)
        return self.in_turn(
            [
                self.store(holder, self.expression(target.value)),
                self.store(index, self.expression(target.slice)),
                self.store(result, self.arithmetic(op, item, self.expression(value), operation)),
                self.operands([read(result), read(holder), read(index)], set_item),
            ]
        )

    def if_else(self, test: ast.expr, body: Sequence[ast.stmt], orelse: Sequence[ast.stmt]) -> Code:
        """``if`` with its ``else``: what both set is surely set after it."""
        condition, before = self.expression(test), set(self.sure)
        then = self.block(body)
        after, self.sure = self.sure, before
        other = self.block(orelse)
        self.sure &= after
        return self.branch(condition, then, other)

    def for_loop(self, target: ast.expr, source: ast.expr, body: Sequence[ast.stmt], orelse: Sequence[ast.stmt]) -> Code:
        """A ``for`` loop with its ``else``."""
        members, before = self.operands([self.expression(source)], iterate), set(self.sure)
        slot, take = self.loop_target(target)
        inner = self._loop_body(body)
        self.sure = before
        last = self.block(orelse)
        self.sure = before
        start, store, turn, finish = members.run, take.run, inner.run, last.run
        if not (members.yields or take.yields or inner.yields or last.yields):

            def simple(frame: Frame) -> Any:
                for frame[slot] in start(frame):  # noqa: B020
                    signal = turn(frame)
                    if signal is not None:
                        if signal is BREAK:
                            return None
                        if signal is RETURN:
                            return signal
                return finish(frame)

            def plain(frame: Frame) -> Any:
                for frame[slot] in start(frame):  # noqa: B020
                    store(frame)
                    signal = turn(frame)
                    if signal is BREAK:
                        return None
                    if signal is RETURN:
                        return signal
                return finish(frame)

            return Code(simple if take is NOTHING else plain)

        def flow(frame: Frame) -> Generator[Any, Any, Any]:
            for frame[slot] in (yield from start(frame)) if members.yields else start(frame):  # noqa: B020
                _ = (yield from store(frame)) if take.yields else store(frame)
                signal = (yield from turn(frame)) if inner.yields else turn(frame)
                if signal is BREAK:
                    return None
                if signal is RETURN:
                    return signal
            return (yield from finish(frame)) if last.yields else finish(frame)

        return Code(flow, True)

    def while_loop(self, test: ast.expr, body: Sequence[ast.stmt], orelse: Sequence[ast.stmt]) -> Code:
        """A ``while`` loop with its ``else``."""
        with self.weighed() as weight:
            condition, before = self.expression(test), set(self.sure)
            turn_weight = weight()
        inner = self._loop_body(body, turn_weight)
        self.sure = before
        last = self.block(orelse)
        self.sure = before
        check, turn, finish = condition.run, inner.run, last.run
        if not (condition.yields or inner.yields or last.yields):

            def plain(frame: Frame) -> Any:
                while check(frame):
                    signal = turn(frame)
                    if signal is not None:
                        if signal is BREAK:
                            return None
                        if signal is RETURN:
                            return signal
                return finish(frame)

            return Code(plain)

        def flow(frame: Frame) -> Generator[Any, Any, Any]:
            while (yield from check(frame)) if condition.yields else check(frame):
                signal = (yield from turn(frame)) if inner.yields else turn(frame)
                if signal is BREAK:
                    return None
                if signal is RETURN:
                    return signal
            return (yield from finish(frame)) if last.yields else finish(frame)

        return Code(flow, True)

    def _loop_body(self, body: Sequence[ast.stmt], turn: int = 1) -> Code:
        self.loops += 1
        try:
            return self.block(body, extra=turn)
        finally:
            self.loops -= 1

    def define(self, node: ast.FunctionDef) -> Code:
        """``def``."""
        if node.decorator_list:
            raise ForbiddenSyntax("decorators are not allowed")
        return self.bind(node.name, self.function(node.name, node.args, node.body))

    def function(self, name: str, args: ast.arguments, body: list[ast.stmt] | ast.expr) -> Code:
        """A function value: ``def`` with statements, ``lambda`` with an expression."""
        if args.vararg or args.kwarg or args.kwonlyargs or args.posonlyargs:
            raise ForbiddenSyntax("only plain arguments are allowed, no * or / among them")
        self.check_name(name)
        params = [arg.arg for arg in args.args]
        if len(set(params)) < len(params):
            raise ParseFailure("two arguments of one name")
        for param in params:
            self.check_name(param)
        defaults = [self.expression(value) for value in args.defaults]
        bound, outer = (walrus_names(body), set()) if isinstance(body, ast.expr) else bound_names(body, self.walrus)
        for free in outer:
            self.place(free)
        code = FunctionCode(name, tuple(params), isinstance(body, ast.expr))
        around, loops, sure = self.scope, self.loops, self.sure
        self.scope, self.loops = Scope(around, [*params, *sorted(bound - set(params))]), 0
        self.sure = {self.scope.slots[param] for param in params}
        self.nested += 1
        try:
            if self.nested > MAX_FUNCTIONS_WITHIN:
                raise LimitExceeded(f"functions within functions, more than {MAX_FUNCTIONS_WITHIN} deep")
            with self.weighed() as weight:
                code.run, code.yields, *_ = self.expression(body) if isinstance(body, ast.expr) else self.block(body)
                code.weight = weight()
            code.blank = (UNSET,) * (self.scope.size - 3 - len(params))
        finally:
            self.scope, self.loops, self.sure = around, loops, sure
            self.nested -= 1
        make = lambda meter, frame, *values: Function(code, frame, values)  # noqa: E731
        return self.operands([Code(lambda frame: frame), *defaults], make)
