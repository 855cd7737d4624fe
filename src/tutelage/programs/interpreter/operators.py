"""The operators of restricted Python: each takes the meter first and never lets a result outgrow its limits."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from typing import Any

from tutelage.programs.interpreter.meter import Meter
from tutelage.programs.interpreter.values import NUMBERS, SCALARS, SEQUENCES, key, measure, name_of, sequence, text
from tutelage.programs.types import LimitExceeded

Operator = Callable[[Meter, Any, Any], Any]


def bounded(meter: Meter, value: Any) -> Any:
    """A number that may be kept.

    Raises:
        LimitExceeded: an integer of too many bits.
    """
    if type(value) is int and not meter.low < value < meter.big:
        raise LimitExceeded(f"an integer of more than {meter.limits.bits} bits")
    if type(value) is complex:
        raise ValueError("the result is no real number")
    return value


def _cannot(symbol: str, a: Any, b: Any) -> TypeError:
    return TypeError(f"{name_of(a)} {symbol} {name_of(b)} means nothing")


def _add(meter: Meter, a: Any, b: Any) -> Any:
    kind = type(a)
    if kind in NUMBERS and type(b) in NUMBERS:
        value = a + b
        return value if type(value) is float or meter.low < value < meter.big else bounded(meter, value)
    if kind is type(b) and (kind is str or kind is list or kind is tuple):
        meter.allocate(len(a) + len(b))
        return a + b
    raise _cannot("+", a, b)


def _multiply(meter: Meter, a: Any, b: Any) -> Any:
    if type(a) in NUMBERS and type(b) in NUMBERS:
        value = a * b
        return value if type(value) is float or meter.low < value < meter.big else bounded(meter, value)
    if type(a) in (int, bool):
        a, b = b, a
    if type(a) in (str, list, tuple) and type(b) in (int, bool):
        meter.allocate(len(a) * max(0, int(b)))
        return a * b
    raise _cannot("*", a, b)


def _power(meter: Meter, a: Any, b: Any) -> Any:
    if type(a) not in NUMBERS or type(b) not in NUMBERS:
        raise _cannot("**", a, b)
    if type(a) is not float and type(b) is not float and abs(a) > 1:
        if b > meter.limits.bits or int(a).bit_length() * b > 2 * meter.limits.bits:
            raise LimitExceeded(f"an integer of more than {meter.limits.bits} bits")
    return bounded(meter, a**b)


def _shift(meter: Meter, a: Any, b: Any) -> Any:
    if type(a) not in (int, bool) or type(b) not in (int, bool):
        raise _cannot("<<", a, b)
    if b > meter.limits.bits:
        raise LimitExceeded(f"an integer of more than {meter.limits.bits} bits")
    return bounded(meter, a << b)


def _modulo(meter: Meter, a: Any, b: Any) -> Any:
    if type(a) is str:
        raise TypeError("% does not fill in texts here; write an f-string")
    return _numeric("%", operator.mod)(meter, a, b)


def _numeric(symbol: str, function: Callable[[Any, Any], Any]) -> Operator:
    def run(meter: Meter, a: Any, b: Any) -> Any:
        if type(a) in NUMBERS and type(b) in NUMBERS:
            value = function(a, b)
            return value if type(value) is float else bounded(meter, value)
        raise _cannot(symbol, a, b)

    return run


def _also_sets(symbol: str, function: Callable[[Any, Any], Any]) -> Operator:
    """An operator of integers that joins sets (and ``|`` tables) too."""

    def run(meter: Meter, a: Any, b: Any) -> Any:
        kind = type(a)
        if kind in (int, bool) and type(b) in (int, bool):
            return bounded(meter, function(a, b))
        if kind is type(b) and (kind is set or (kind is dict and symbol == "|")):
            meter.allocate(4 * (len(a) + len(b)))
            return function(a, b)
        raise _cannot(symbol, a, b)

    return run


def _subtract(meter: Meter, a: Any, b: Any) -> Any:
    if type(a) in NUMBERS and type(b) in NUMBERS:
        value = a - b
        return value if type(value) is float or meter.low < value < meter.big else bounded(meter, value)
    if type(a) is set and type(b) is set:
        meter.allocate(len(a))
        return a - b
    raise _cannot("-", a, b)


BINARY: dict[type[ast.operator], Operator] = {
    ast.Add: _add,
    ast.Sub: _subtract,
    ast.Mult: _multiply,
    ast.Div: _numeric("/", operator.truediv),
    ast.FloorDiv: _numeric("//", operator.floordiv),
    ast.Mod: _modulo,
    ast.Pow: _power,
    ast.LShift: _shift,
    ast.RShift: _numeric(">>", operator.rshift),
    ast.BitOr: _also_sets("|", operator.or_),
    ast.BitAnd: _also_sets("&", operator.and_),
    ast.BitXor: _also_sets("^", operator.xor),
}


def _extend(meter: Meter, a: Any, b: Any) -> Any:
    """``a += b``: a list grows in place, by the members of anything."""
    if type(a) is not list:
        return _add(meter, a, b)
    more = sequence(meter, b)
    if len(a) + len(more) > meter.length:
        raise LimitExceeded(f"a sequence longer than {meter.length:,}")
    a.extend(more)
    return a


def _in_place(function: Operator, change: Callable[[Any, Any], Any]) -> Operator:
    def run(meter: Meter, a: Any, b: Any) -> Any:
        if type(a) is set and type(b) is set:
            meter.allocate(4 * len(b))
            change(a, b)
            return a
        return function(meter, a, b)

    return run


IN_PLACE: dict[type[ast.operator], Operator] = BINARY | {
    ast.Add: _extend,
    ast.Sub: _in_place(_subtract, set.difference_update),
    ast.BitOr: _in_place(BINARY[ast.BitOr], set.update),
    ast.BitAnd: _in_place(BINARY[ast.BitAnd], set.intersection_update),
    ast.BitXor: _in_place(BINARY[ast.BitXor], set.symmetric_difference_update),
}


def _comparison(function: Callable[[Any, Any], bool]) -> Operator:
    def run(meter: Meter, a: Any, b: Any) -> bool:
        if type(a) not in SCALARS and type(b) not in SCALARS:
            measure(meter, a)
            measure(meter, b)
        return function(a, b)

    return run


def contains(meter: Meter, container: Any, item: Any) -> bool:
    """``item in container``."""
    kind = type(container)
    if kind is str:
        meter.work(len(container))
        return item in container
    if kind is list or kind is tuple:
        measure(meter, container)
        if type(item) not in SCALARS:
            for _ in container:
                measure(meter, item)
        return item in container
    if kind is dict or kind is set:
        return key(meter, item) in container
    if kind is range:
        if type(item) is float and item.is_integer():  # Python would walk through the whole range
            item = int(item)
        return type(item) in (int, bool) and item in container
    raise TypeError(f"nothing can be in a {name_of(container)}")


COMPARE: dict[type[ast.cmpop], Operator] = {
    ast.Eq: _comparison(operator.eq),
    ast.NotEq: _comparison(operator.ne),
    ast.Lt: _comparison(operator.lt),
    ast.LtE: _comparison(operator.le),
    ast.Gt: _comparison(operator.gt),
    ast.GtE: _comparison(operator.ge),
    ast.In: lambda meter, a, b: contains(meter, b, a),
    ast.NotIn: lambda meter, a, b: not contains(meter, b, a),
    ast.Is: lambda meter, a, b: a is b,
    ast.IsNot: lambda meter, a, b: a is not b,
}


def _sign(function: Callable[[Any], Any]) -> Callable[[Meter, Any], Any]:
    def run(meter: Meter, a: Any) -> Any:
        if type(a) not in NUMBERS:
            raise TypeError(f"{name_of(a)} has no sign")
        return function(a)

    return run


def _invert(meter: Meter, a: Any) -> int:
    if type(a) not in (int, bool):
        raise TypeError(f"{name_of(a)} has no bits")
    return ~int(a)


UNARY: dict[type[ast.unaryop], Callable[[Meter, Any], Any]] = {
    ast.Not: lambda meter, a: not a,
    ast.USub: _sign(operator.neg),
    ast.UAdd: _sign(operator.pos),
    ast.Invert: _invert,
}


def get_item(meter: Meter, holder: Any, index: Any) -> Any:
    """``holder[index]``, of a list, tuple, text, range or table; a slice is a new value, counted."""
    kind = type(holder)
    if kind is dict:
        return holder[key(meter, index)]
    if kind in SEQUENCES:
        if type(index) is slice:
            part = holder[index]
            if kind is not range:
                meter.allocate(len(part))
            return part
        if kind is str:
            return text(meter, holder[index])
        return holder[index]
    raise TypeError(f"{name_of(holder)} has no parts")


def set_item(meter: Meter, value: Any, holder: Any, index: Any) -> None:
    """``holder[index] = value``, of a list or table."""
    if type(holder) is dict:
        meter.allocate(8)
        holder[key(meter, index)] = value
    elif type(holder) is list and type(index) is not slice:
        holder[index] = value
    else:
        raise TypeError(f"a part of {name_of(holder)} cannot be set so")


def make_slice(meter: Meter, start: Any, stop: Any, step: Any) -> slice:
    """``start:stop:step``, whole numbers or nothing."""
    for part in (start, stop, step):
        if part is not None and type(part) not in (int, bool):
            raise TypeError("a slice takes whole numbers")
    return slice(start, stop, step)
