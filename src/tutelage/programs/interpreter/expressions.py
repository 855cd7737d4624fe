"""Expressions of restricted Python to closures."""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from typing import Any

from tutelage.errors import did_you_mean
from tutelage.programs.interpreter.functions import MATH
from tutelage.programs.interpreter.meter import Meter
from tutelage.programs.interpreter.methods import format_value
from tutelage.programs.interpreter.operators import (
    BINARY,
    UNARY,
    get_item,
    make_slice,
)
from tutelage.programs.interpreter.pieces import (
    Code,
    Pieces,
    at_line,
    constant,
    read,
    unregistered,
    variable,
    word,
)
from tutelage.programs.interpreter.values import (
    Builtin,
    key,
    name_of,
    sequence,
)
from tutelage.programs.types import (
    ForbiddenSyntax,
    LimitExceeded,
    ProgramFailure,
    UndefinedVariable,
)


class Expressions(Pieces):
    """Compiles expressions; calls and comprehensions come from the classes below."""

    def expression(self, node: ast.expr) -> Code:
        """One expression."""
        self.deeper(node)
        self.nodes += 1
        try:
            return self._expression(node)
        except ProgramFailure as failure:
            raise at_line(failure, node.lineno) from None
        finally:
            self.depth -= 1

    def _expression(self, node: ast.expr) -> Code:
        match node:
            case ast.Constant(value=value):
                return self._literal(value)
            case ast.Name(id=name):
                return self._name(name)
            case ast.BinOp(left=a, op=op, right=b) if type(op) in BINARY:
                return self.arithmetic(type(op), self.expression(a), self.expression(b), BINARY[type(op)])
            case ast.UnaryOp(op=op, operand=operand):
                return self.operands([self.expression(operand)], UNARY[type(op)])
            case ast.BoolOp(op=op, values=values):
                return self.short_circuit(isinstance(op, ast.And), [self.expression(value) for value in values])
            case ast.Compare():
                return self._compare(node)
            case ast.IfExp(test=test, body=body, orelse=orelse):
                return self.branch(self.expression(test), self.expression(body), self.expression(orelse))
            case ast.Call():
                return self.call(node)
            case ast.Attribute():
                return self._attribute(node)
            case ast.Subscript(value=holder, slice=index):
                return self.operands([self.expression(holder), self.expression(index)], get_item)
            case ast.Slice(lower=start, upper=stop, step=step):
                parts = [self.expression(part) if part else constant(None) for part in (start, stop, step)]
                return self.operands(parts, make_slice)
            case ast.List(elts=nodes):
                return self._display(nodes, list)
            case ast.Tuple(elts=nodes):
                return self._display(nodes, tuple)
            case ast.Set(elts=nodes):
                return self._display(nodes, set)
            case ast.Dict(keys=keys, values=values):
                return self._table(keys, values)
            case ast.JoinedStr(values=values):
                return self._joined(values)
            case ast.ListComp(elt=element, generators=loops):
                return self.comprehension(node, [element], loops, list, take_item)
            case ast.SetComp(elt=element, generators=loops):
                return self.comprehension(node, [element], loops, set, take_member)
            case ast.DictComp(key=name, value=value, generators=loops):
                return self.comprehension(node, [name, value], loops, dict, take_pair)
            case ast.Lambda(args=args, body=body):
                return self.function("lambda", args, body)
            case ast.NamedExpr(target=ast.Name(id=name), value=value):
                slot = self.scope.slot()
                bind = self.bind(name, read(slot), sure=False)
                steps = [self.store(slot, self.expression(value)), bind, read(slot)]
                return self.operands(steps, lambda meter, *values: values[-1])
            case ast.GeneratorExp():
                raise ForbiddenSyntax("a generator stands only as the argument of a function", remedy="write [… for …]")
        raise ForbiddenSyntax(f"{word(node)} is not allowed")

    def _literal(self, value: Any) -> Code:
        if type(value) not in (int, float, str, bool, type(None)):
            raise ForbiddenSyntax(f"a constant of type {type(value).__name__} is not allowed")
        if type(value) is int and abs(value) >> self.limits.bits:
            raise LimitExceeded(f"an integer of more than {self.limits.bits} bits")
        if type(value) is str and value in self.marks:
            number = self.marks[value]
            self.marked.add(value)
            return Code(lambda frame: frame[1].texts[number])
        return constant(value)

    def _name(self, name: str) -> Code:
        self.check_name(name)
        place = self.scope.find(name)
        if place is not None:
            hops, slot = place
            return read(slot) if hops == 0 and slot in self.sure else variable(name, hops, slot)
        if name in self.names:
            return constant(self.names[name])
        if name in self.library.absent:
            raise unregistered(name, self.library.absent[name])
        if name == "math":
            raise ForbiddenSyntax("math is used as math.sqrt(x) and the like")
        known = [*self.scope.visible(), *self.names]
        raise UndefinedVariable(f"no variable or function {name!r}", remedy=did_you_mean(name, known))

    def _attribute(self, node: ast.Attribute) -> Code:
        name = node.attr
        if self.is_math(node.value):
            value = self._math(name)
            return constant(value)
        self.check_attribute(name)
        fields, methods = self.fields.get(name, {}), self.methods.get(name, {})
        if not fields and name in self.yielding:
            raise ForbiddenSyntax(f"{name!r} is a method", remedy=f"call it, .{name}(…), or write a lambda")

        def read_field(meter: Meter, value: Any) -> Any:
            get = fields.get(type(value))
            return get(value) if get is not None else _bound(name, methods, value)

        return self.operands([self.expression(node.value)], read_field)

    def check_attribute(self, name: str) -> None:
        """Refuse an attribute that no value has."""
        if name.startswith("_"):
            raise ForbiddenSyntax(f"the attribute {name!r} is not allowed", remedy="it is closed")
        if name in self.library.absent:
            raise unregistered(name, self.library.absent[name])
        if name not in self.fields and name not in self.methods:
            raise ForbiddenSyntax(f"there is no attribute {name!r}", remedy=did_you_mean(name, [*self.fields, *self.methods]))

    def _math(self, name: str) -> Any:
        if name not in MATH:
            raise ForbiddenSyntax(f"there is no math.{name} here", remedy=did_you_mean(name, list(MATH)))
        return MATH[name]

    def _compare(self, node: ast.Compare) -> Code:
        """``a < b < c`` as ``a < b and b < c``, each operand evaluated once."""
        operands = [node.left, *node.comparators]
        for op, pair in zip(node.ops, zip(operands, operands[1:])):
            if isinstance(op, (ast.Is, ast.IsNot)) and not any(
                isinstance(part, ast.Constant) and type(part.value) in (bool, type(None)) for part in pair
            ):
                raise ForbiddenSyntax("'is' compares with None, True and False only", remedy="use ==")
        if len(node.ops) == 1:
            return self.compared(type(node.ops[0]), *[self.expression(part) for part in operands])
        slots = [self.scope.slot() for _ in operands[:-1]]
        left = self.tee(slots[0], self.expression(operands[0]))
        links = []
        for at, op in enumerate(node.ops):
            right = self.expression(operands[at + 1])
            right = self.tee(slots[at + 1], right) if at + 1 < len(slots) else right
            links.append(self.compared(type(op), left, right))
            left = read(slots[at + 1]) if at + 1 < len(slots) else right
        return self.short_circuit(True, links)

    def _display(self, parts: Sequence[ast.expr], kind: type) -> Code:
        starred = [isinstance(part, ast.Starred) for part in parts]
        codes = [self.expression(part.value if isinstance(part, ast.Starred) else part) for part in parts]

        def make(meter: Meter, *values: Any) -> Any:
            meter.allocate(len(values))
            if any(starred):
                values = tuple(flatten(meter, values, starred))
            if kind is set:
                meter.items -= 8 * len(values)
                for value in values:
                    key(meter, value)
            return kind(values)

        return self.operands(codes, make)

    def _table(self, keys: Sequence[ast.expr | None], values: Sequence[ast.expr]) -> Code:
        if None in keys:
            raise ForbiddenSyntax("** is not allowed in a table", remedy="use update()")
        codes = [self.expression(part) for pair in zip(keys, values) for part in pair if part is not None]

        def make(meter: Meter, *parts: Any) -> dict[Any, Any]:
            meter.allocate(4 * len(parts))
            return {key(meter, name): value for name, value in zip(parts[::2], parts[1::2])}

        return self.operands(codes, make)

    def _joined(self, values: Sequence[ast.expr]) -> Code:
        parts: list[Code] = []
        for part in values:
            if isinstance(part, ast.FormattedValue):
                conversion = {-1: None, ord("s"): "s", ord("r"): "r"}.get(part.conversion, "a")
                if conversion == "a":
                    raise ForbiddenSyntax("!a is not allowed in an f-string")
                spec = part.format_spec
                form = self._joined(spec.values) if isinstance(spec, ast.JoinedStr) else constant("")
                fill = lambda meter, value, form, how=conversion: format_value(meter, value, how, form)  # noqa: E731
                parts.append(self.operands([self.expression(part.value), form], fill))
            else:
                parts.append(self.expression(part))

        def join(meter: Meter, *pieces: str) -> str:
            meter.allocate(sum(map(len, pieces)))
            return "".join(pieces)

        return self.operands(parts, join)

    def call(self, node: ast.Call) -> Code:
        """A call."""
        raise NotImplementedError

    def comprehension(
        self,
        node: ast.expr,
        elements: Sequence[ast.expr],
        loops: Sequence[ast.comprehension],
        start: Callable[[], Any],
        take: Callable[..., bool],
    ) -> Code:
        """A comprehension; see :mod:`tutelage.programs.interpreter.calls`."""
        raise NotImplementedError

    def function(self, name: str, args: ast.arguments, body: list[ast.stmt] | ast.expr) -> Code:
        """A function value."""
        raise NotImplementedError

    def bind(self, name: str, value: Code, sure: bool = True) -> Code:
        """Give a value to a variable."""
        raise NotImplementedError

    def unpack(self, target: ast.expr, value: Code) -> Code:
        """Give a value to a target."""
        raise NotImplementedError


def _bound(name: str, methods: dict[type, Callable[..., Any]], value: Any) -> Builtin:
    """A method as a value, such as the ``table.get`` of ``max(table, key=table.get)``, or ``str.lower``."""
    if type(value) is Builtin and value.python in methods:
        return Builtin(name, methods[value.python])
    method = methods.get(type(value))
    if method is None:
        raise TypeError(f"{name_of(value)} has no field {name!r}")
    return Builtin(name, lambda meter, *args, **named: method(meter, value, *args, **named))


def flatten(meter: Meter, values: Sequence[Any], starred: Sequence[bool]) -> list[Any]:
    """``values``, with the starred ones spread out."""
    flat: list[Any] = []
    for value, star in zip(values, starred):
        flat.extend(sequence(meter, value) if star else [value])
    return flat


def take_item(meter: Meter, result: list[Any], value: Any) -> bool:
    """A list comprehension takes a value."""
    meter.items -= 2
    if meter.items < 0 or len(result) >= meter.length:
        raise LimitExceeded(f"a sequence longer than {meter.length:,}, or too many items in all")
    result.append(value)
    return False


def take_member(meter: Meter, result: set[Any], value: Any) -> bool:
    """A set comprehension takes a value."""
    meter.allocate(8)
    result.add(key(meter, value))
    return False


def take_pair(meter: Meter, result: dict[Any, Any], name: Any, value: Any) -> bool:
    """A table comprehension takes a pair."""
    meter.allocate(8)
    result[key(meter, name)] = value
    return False
