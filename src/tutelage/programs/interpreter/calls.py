"""Calls and comprehensions of restricted Python to closures."""

from __future__ import annotations

import ast
from collections.abc import Callable, Generator, Sequence
from typing import Any

from tutelage.programs.interpreter.expressions import Expressions, flatten, take_item
from tutelage.programs.interpreter.functions import invoke, invoke_pure
from tutelage.programs.interpreter.meter import Meter
from tutelage.programs.interpreter.pieces import (
    NOTHING,
    Code,
    constant,
    read,
)
from tutelage.programs.interpreter.scope import Scope, target_names
from tutelage.programs.interpreter.values import (
    UNSET,
    Builtin,
    Frame,
    Function,
    FunctionCode,
    iterate,
    name_of,
)
from tutelage.programs.types import (
    ForbiddenSyntax,
    ParseFailure,
    TypeFailure,
)


class Calls(Expressions):
    """Compiles calls and comprehensions."""

    def comprehension(
        self,
        node: ast.AST,
        elements: Sequence[ast.expr],
        loops: Sequence[ast.comprehension],
        start: Callable[[], Any],
        take: Callable[..., bool],
    ) -> Code:
        """Loops that give each value to ``take(meter, result, *values)``, which says whether to stop.

        The variables live in slots of the enclosing function; where a lambda could keep them, in a frame of their own.
        """
        if any(loop.is_async for loop in loops):
            raise ForbiddenSyntax("async is not allowed")
        first = self.operands([self.expression(loops[0].iter)], lambda meter, value: [iterate(meter, value)])
        if any(isinstance(part, ast.Lambda) for part in ast.walk(node)):
            code = FunctionCode("comprehension", ("members",), expression=True)
            around, sure = self.scope, self.sure
            self.scope, self.sure = Scope(around, ["members", *target_names(loop.target for loop in loops)]), set()
            try:
                code.run, code.yields, *_ = self.collect(read(3), elements, loops, start, take)
                code.blank = (UNSET,) * (self.scope.size - 4)
            finally:
                self.scope, self.sure = around, sure
            run = invoke if code.yields else invoke_pure
            call = lambda meter, frame, members: run(meter, Function(code, frame, ()), (members,), {})  # noqa: E731
            return self.operands([Code(lambda frame: frame), first], call, code.yields)
        self.scope.push(target_names(loop.target for loop in loops))
        try:
            return self.collect(first, elements, loops, start, take)
        finally:
            self.scope.pop()

    def collect(
        self,
        first: Code,
        elements: Sequence[ast.expr],
        loops: Sequence[ast.comprehension],
        start: Callable[[], Any],
        take: Callable[..., bool],
    ) -> Code:
        """The loops of a comprehension, over ``first``: the iterator of the outermost, in a box."""
        result = self.scope.slot()
        levels = []
        for at, loop in enumerate(loops):
            inner = self.operands([self.expression(loop.iter)], iterate) if at else None
            source = inner or self.operands([first], lambda meter, box: box[0])
            slot, store = self.loop_target(loop.target)
            with self.weighed() as weight:
                tests = [self.expression(test) for test in loop.ifs]
                levels.append((source, slot, store, tests, weight()))
        with self.weighed() as weight:
            code = self.operands([read(result), *[self.expression(element) for element in elements]], take)
            inside = weight()
        for source, slot, store, tests, turn in reversed(levels):
            code = self._level(source, slot, store, self._all(tests), code, turn + inside)
            inside = 0
        made = Code(lambda frame: start())
        return self.operands([self.store(result, made), code, read(result)], lambda meter, _, stopped, value: value)

    def loop_target(self, target: ast.expr) -> tuple[int, Code]:
        """The slot that a loop fills, and what then gives it to the target: nothing, for a plain variable."""
        if isinstance(target, ast.Name):
            hops, slot = self.place(target.id)
            if hops == 0:
                self.sure.add(slot)
                return slot, NOTHING
        slot = self.scope.slot()
        return slot, self.unpack(target, read(slot))

    def _all(self, tests: list[Code]) -> Code:
        return tests[0] if len(tests) == 1 else self.short_circuit(True, tests) if tests else constant(True)

    def _level(self, source: Code, slot: int, store: Code, test: Code, inner: Code, weight: int) -> Code:
        """One ``for … if …`` of a comprehension; it gives True where the collection is complete."""
        start, bind, check, go = source.run, store.run, test.run, inner.run
        binds, always = store is not NOTHING, test.value is True
        if not (source.yields or store.yields or test.yields or inner.yields):

            def plain(frame: Frame) -> bool:
                meter = frame[1]
                for frame[slot] in start(frame):  # noqa: B020
                    meter.steps -= weight
                    if meter.steps < meter.check:
                        meter.tick()
                    if binds:
                        bind(frame)
                    if (always or check(frame)) and go(frame):
                        return True
                return False

            return Code(plain)

        def flow(frame: Frame) -> Generator[Any, Any, bool]:
            meter = frame[1]
            for frame[slot] in (yield from start(frame)) if source.yields else start(frame):  # noqa: B020
                meter.steps -= weight
                if meter.steps < meter.check:
                    meter.tick()
                _ = (yield from bind(frame)) if store.yields else bind(frame)
                if (yield from check(frame)) if test.yields else check(frame):
                    if (yield from go(frame)) if inner.yields else go(frame):
                        return True
            return False

        return Code(flow, True)

    def generator_argument(self, name: str, node: ast.GeneratorExp, rest: Sequence[ast.expr]) -> Code | None:
        """``any``, ``all`` and ``next`` of a generator stop as soon as they know."""
        collect = {"any": _first_true, "all": _first_false, "next": _first}.get(name)
        if collect is None:
            return None
        found = self.comprehension(node, [node.elt], node.generators, list, collect)
        if name == "any":
            return self.operands([found], lambda meter, found: bool(found))
        if name == "all":
            return self.operands([found], lambda meter, found: not found)
        default = [self.expression(part) for part in rest]

        def take(meter: Meter, found: list[Any], *default: Any) -> Any:
            if not found and not default:
                raise ValueError("next() of nothing")
            return found[0] if found else default[0]

        return self.operands([found, *default], take)

    def call(self, node: ast.Call) -> Code:
        """A call of a built-in function, a method, or a function of the program."""
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        free = bool(name) and self.scope.find(name) is None
        lazy = [arg for arg in node.args if isinstance(arg, ast.GeneratorExp)]
        if lazy and free and not node.keywords and lazy == node.args[:1]:
            early = self.generator_argument(name, lazy[0], node.args[1:2])
            if early is not None:
                return early
        args = [self._argument(arg) for arg in node.args]
        starred = [isinstance(arg, ast.Starred) for arg in node.args]
        named = []
        for word in node.keywords:
            if word.arg is None:
                raise ForbiddenSyntax("** is not allowed in a call")
            self.check_name(word.arg)
            if word.arg in named:
                raise ParseFailure(f"two arguments {word.arg!r}")
            named.append(word.arg)
        values = [*args, *(self.expression(word.value) for word in node.keywords)]
        if isinstance(node.func, ast.Attribute) and not self.is_math(node.func.value):
            return self._method(node.func, values, starred, named)
        target = self._function(node.func, name, free)
        if type(target) is Builtin:
            builtin = target
            call = _arrange(lambda meter, args, words: builtin.run(meter, *args, **words), starred, named)
            if not named and not any(starred):
                call = builtin.run
            return self.operands(values, call, builtin.yields)
        callee = self.expression(node.func)
        pure = name in self.quiet and not free
        if pure and not named and not any(starred) and not any(value.yields for value in values):
            return Code(_quick_call(callee.run, [value.run for value in values]))
        run = invoke_pure if pure else invoke

        def apply(meter: Meter, function: Any, *values: Any) -> Any:
            if named or any(starred):
                arranged = _arrange(lambda meter, args, words: run(meter, function, args, words), starred, named)
                return arranged(meter, *values)
            return run(meter, function, values, {})

        return self.operands([callee, *values], apply, not pure)

    def _argument(self, node: ast.expr) -> Code:
        if isinstance(node, ast.Starred):
            return self.expression(node.value)
        if isinstance(node, ast.GeneratorExp):
            return self.comprehension(node, [node.elt], node.generators, list, take_item)
        return self.expression(node)

    def _function(self, node: ast.expr, name: str, free: bool) -> Any:
        """The built-in function that ``node`` names, or None."""
        if isinstance(node, ast.Attribute):
            value = self._math(node.attr)
            if type(value) is not Builtin:
                raise TypeFailure(f"math.{node.attr} is no function")
            return value
        if free and name in self.names:
            return self.names[name]
        return None

    def _method(self, node: ast.Attribute, values: list[Code], starred: list[bool], named: list[str]) -> Code:
        name = node.attr
        self.check_attribute(name)
        if name not in self.methods:
            raise TypeFailure(f"the field {name!r} cannot be called")
        if name in self.library.arguments and not any(starred):
            _check_arguments(name, *self.library.arguments[name], len(starred), named)
        by_type, yields = self.methods[name], name in self.yielding

        arrange = bool(named) or any(starred)

        def owner(meter: Meter, value: Any) -> Any:
            if type(value) not in by_type:
                raise TypeError(f"{name_of(value)} has no method {name!r}")
            return value

        def call(meter: Meter, value: Any, *args: Any) -> Any:
            method = by_type[type(value)]
            if arrange:
                bound = lambda meter, args, words: method(meter, value, *args, **words)  # noqa: E731
                return _arrange(bound, starred, named)(meter, *args)
            return method(meter, value, *args)

        # as in Python, a value without the method fails before its arguments are computed
        receiver = self.operands([self.expression(node.value)], owner)
        return self.operands([receiver, *values], call, yields)


def _quick_call(callee: Callable[[Frame], Any], args: list[Callable[[Frame], Any]]) -> Callable[[Frame], Any]:
    """Call a function of the program that asks no module, with positional arguments."""
    count = len(args)
    first = args[0] if count == 1 else None

    def call(frame: Frame) -> Any:
        function, meter = callee(frame), frame[1]
        code = function.code
        if code.yields or len(code.params) != count:
            return invoke_pure(meter, function, tuple([arg(frame) for arg in args]), {})
        if first is not None:
            inner = [function.parent, meter, None, first(frame), *code.blank]
        else:
            inner = [function.parent, meter, None, *[arg(frame) for arg in args], *code.blank]
        meter.depth += 1
        meter.steps -= code.weight
        if meter.depth > meter.deepest or meter.steps < meter.check:
            meter.entered()
        result = code.run(inner)
        meter.depth -= 1
        return result if code.expression else inner[2]

    return call


def _arrange(
    call: Callable[[Meter, tuple[Any, ...], dict[str, Any]], Any], starred: list[bool], named: list[str]
) -> Callable[..., Any]:
    """Values in the order of the source, as positional and named arguments."""
    count = len(starred)

    def run(meter: Meter, *values: Any) -> Any:
        return call(meter, tuple(flatten(meter, values[:count], starred)), dict(zip(named, values[count:])))

    return run


def _check_arguments(name: str, fewest: int, names: tuple[str, ...], given: int, named: list[str]) -> None:
    unknown = [word for word in named if word not in names]
    if unknown:
        raise TypeFailure(f"{name}() has no argument {unknown[0]!r}", remedy=f"its arguments: {', '.join(names) or 'none'}")
    covered = set(names[:given]) | set(named)
    if given > len(names) or not covered.issuperset(names[:fewest]):
        raise TypeFailure(f"{name}() takes {', '.join(names) or 'no arguments'}", remedy="give them in this order")


def _first(meter: Meter, result: list[Any], value: Any) -> bool:
    result.append(value)
    return True


def _first_true(meter: Meter, result: list[Any], value: Any) -> bool:
    return bool(value) and _first(meter, result, value)


def _first_false(meter: Meter, result: list[Any], value: Any) -> bool:
    return not value and _first(meter, result, value)
