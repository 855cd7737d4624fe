"""The built-in functions of restricted Python; those that take a function of the program are generators."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from typing import Any

from tutelage.programs.interpreter.meter import Meter
from tutelage.programs.interpreter.operators import BINARY, bounded, get_item
from tutelage.programs.interpreter.values import (
    NUMBERS,
    SCALARS,
    SEQUENCES,
    UNSET,
    Builtin,
    Frame,
    Function,
    key,
    measure,
    name_of,
    sequence,
    show,
    show_exactly,
)
from tutelage.programs.types import LimitExceeded

_ADD = next(function for kind, function in BINARY.items() if kind.__name__ == "Add")

Flow = Generator[Any, Any, Any]


def bind(meter: Meter, function: Function, args: tuple[Any, ...], named: dict[str, Any]) -> Frame:
    """The frame of a call: arguments in their places, other variables unset."""
    code = function.code
    count = len(code.params)
    if named or len(args) != count:
        values = [*args, *[UNSET] * (count - len(args))]
        for name, value in named.items():
            if name not in code.params:
                raise TypeError(f"{code.name}() has no argument {name!r}")
            at = code.params.index(name)
            if values[at] is not UNSET:
                raise TypeError(f"{code.name}() got {name!r} twice")
            values[at] = value
        first = count - len(function.defaults)
        values[:] = [
            function.defaults[at - first] if value is UNSET and first <= at < count else value for at, value in enumerate(values)
        ]
        if len(args) > count or UNSET in values:
            raise TypeError(f"{code.name}() takes {count} arguments: {', '.join(code.params) or 'none'}")
        return [function.parent, meter, None, *values, *code.blank]
    return [function.parent, meter, None, *args, *code.blank]


def invoke(meter: Meter, function: Any, args: tuple[Any, ...], named: dict[str, Any]) -> Flow:
    """Call a value; a generator, since what it calls may ask a module."""
    if type(function) is Function:
        frame = bind(meter, function, args, named)
        code = function.code
        meter.depth += 1
        meter.steps -= code.weight
        if meter.depth > meter.deepest or meter.steps < meter.check:
            meter.entered()
        result = (yield from code.run(frame)) if code.yields else code.run(frame)
        meter.depth -= 1  # not reached by a failure, which ends the program
        return result if code.expression else frame[2]
    if type(function) is Builtin:
        result = function.run(meter, *args, **named)
        return (yield from result) if function.yields else result
    raise TypeError(f"{name_of(function)} cannot be called")


def invoke_pure(meter: Meter, function: Any, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """Call a function that is known to ask no module."""
    frame = bind(meter, function, args, named)
    code = function.code
    if code.yields:
        raise AssertionError(f"{code.name} asks a module")
    meter.depth += 1
    meter.steps -= code.weight
    if meter.depth > meter.deepest or meter.steps < meter.check:
        meter.entered()
    result = code.run(frame)
    meter.depth -= 1
    return result if code.expression else frame[2]


def _length(meter: Meter, value: Any) -> int:
    if type(value) in SEQUENCES or type(value) in (dict, set):
        return len(value)
    raise TypeError(f"{name_of(value)} has no length")


def _range(meter: Meter, *args: Any) -> range:
    return range(*[bounded(meter, _whole(arg)) for arg in args])


def _whole(value: Any) -> int:
    if type(value) not in (int, bool):
        raise TypeError(f"a whole number is needed, not {name_of(value)}")
    return int(value)


def _enumerate(meter: Meter, value: Any, start: int = 0) -> list[Any]:
    members = sequence(meter, value)
    meter.items -= 8 * len(members)
    return list(enumerate(members, _whole(start)))


def _zip(meter: Meter, *values: Any) -> list[Any]:
    columns = [sequence(meter, value) for value in values]
    rows = list(zip(*columns))
    meter.items -= 8 * len(rows)
    return rows


def _reversed(meter: Meter, value: Any) -> list[Any]:
    if type(value) is set:
        raise TypeError("a set has no order to reverse")
    return sequence(meter, value)[::-1]


def _keys(meter: Meter, members: list[Any], function: Any) -> Flow:
    """What to sort by: the members, or what ``function`` makes of each."""
    keys = members
    if type(function) is Function and not function.code.yields:
        keys = [invoke_pure(meter, function, (member,), {}) for member in members]
    elif function is not None:
        keys = []
        for member in members:
            keys.append((yield from invoke(meter, function, (member,), {})))
    if not all(type(part) in SCALARS for part in keys):
        measure(meter, keys)
    return keys


def sort(meter: Meter, members: list[Any], key: Any = None, reverse: Any = False) -> Flow:
    """A sorted list of ``members``."""
    keys = yield from _keys(meter, members, key)
    meter.work(8 * len(keys))
    if key is None:
        return sorted(members, reverse=bool(reverse))
    order = sorted(range(len(keys)), key=keys.__getitem__, reverse=bool(reverse))
    return [members[at] for at in order]


def _sorted(meter: Meter, value: Any, *, key: Any = None, reverse: Any = False) -> Flow:
    return (yield from sort(meter, sequence(meter, value), key, reverse))


def _extreme(name: str, choose: Callable[..., Any]) -> Builtin:
    def run(meter: Meter, *args: Any, key: Any = None, default: Any = UNSET) -> Flow:
        members = sequence(meter, args[0]) if len(args) == 1 else list(args)
        if not members:
            if default is UNSET:
                raise ValueError(f"{name}() of nothing")
            return default
        keys = yield from _keys(meter, members, key)
        return members[choose(range(len(keys)), key=keys.__getitem__)]

    return Builtin(name, run, yields=True)


def _map(meter: Meter, function: Any, *values: Any) -> Flow:
    result = []
    for args in zip(*[sequence(meter, value) for value in values]):
        result.append((yield from invoke(meter, function, args, {})))
    return result


def _filter(meter: Meter, function: Any, value: Any) -> Flow:
    result = []
    for member in sequence(meter, value):
        if member if function is None else (yield from invoke(meter, function, (member,), {})):
            result.append(member)
    return result


def _sum(meter: Meter, value: Any, start: Any = 0) -> Any:
    total = start
    for member in sequence(meter, value):
        total = _ADD(meter, total, member)
    return total


def _round(meter: Meter, value: Any, ndigits: Any = None) -> Any:
    if type(value) not in NUMBERS:
        raise TypeError(f"{name_of(value)} cannot be rounded")
    if ndigits is not None and abs(_whole(ndigits)) > 400:
        raise LimitExceeded("rounding to more than 400 digits")
    return bounded(meter, round(value) if ndigits is None else round(value, ndigits))


def _absolute(meter: Meter, value: Any) -> Any:
    if type(value) not in NUMBERS:
        raise TypeError(f"{name_of(value)} has no absolute value")
    return abs(value)


def _integer(meter: Meter, value: Any = 0) -> int:
    if type(value) is not str and type(value) not in NUMBERS:
        raise TypeError(f"{name_of(value)} is no number")
    if type(value) is str and len(value) > 1000:
        raise LimitExceeded("a number of more than 1,000 characters")
    return int(bounded(meter, int(value)))


def _float(meter: Meter, value: Any = 0.0) -> float:
    if type(value) is not str and type(value) not in NUMBERS:
        raise TypeError(f"{name_of(value)} is no number")
    return float(value)


def _text(meter: Meter, value: Any = "") -> str:
    return show(meter, value)


def _set(meter: Meter, value: Any = ()) -> set[Any]:
    members = sequence(meter, value)
    measure(meter, members)
    meter.items -= 8 * len(members)
    return set(members)


def _dict(meter: Meter, value: Any = (), **named: Any) -> dict[Any, Any]:
    if type(value) is dict:
        meter.allocate(4 * len(value))
        return value | named
    pairs = [sequence(meter, pair) for pair in sequence(meter, value)]
    meter.items -= 8 * len(pairs)
    return {key(meter, get_item(meter, pair, 0)): pair[1] for pair in map(_pair, pairs)} | named


def _pair(value: list[Any]) -> list[Any]:
    if len(value) != 2:
        raise ValueError("a table is made of pairs")
    return value


def _is_instance(meter: Meter, value: Any, kinds: Any) -> bool:
    for kind in kinds if type(kinds) is tuple else (kinds,):
        python = kind.python if type(kind) is Builtin else None
        if python is None:
            raise TypeError("isinstance() takes a type or a tuple of types")
        if type(value) is python or (python is int and type(value) is bool):
            return True
    return False


def _print(meter: Meter, *values: Any, **named: Any) -> None:
    """Printing is allowed, and goes nowhere."""


FUNCTIONS: dict[str, Builtin] = {
    builtin.name: builtin
    for builtin in (
        Builtin("len", _length),
        Builtin("range", _range, python=range),
        Builtin("enumerate", _enumerate),
        Builtin("zip", _zip),
        Builtin("reversed", _reversed),
        Builtin("sorted", _sorted, yields=True),
        _extreme("min", min),
        _extreme("max", max),
        Builtin("map", _map, yields=True),
        Builtin("filter", _filter, yields=True),
        Builtin("sum", _sum),
        Builtin("any", lambda meter, value: any(sequence(meter, value))),
        Builtin("all", lambda meter, value: all(sequence(meter, value))),
        Builtin("abs", _absolute),
        Builtin("round", _round),
        Builtin("int", _integer, python=int),
        Builtin("float", _float, python=float),
        Builtin("str", _text, python=str),
        Builtin("repr", show_exactly),
        Builtin("bool", lambda meter, value=False: bool(value), python=bool),
        Builtin("list", lambda meter, value=(): sequence(meter, value), python=list),
        Builtin("tuple", lambda meter, value=(): tuple(sequence(meter, value)), python=tuple),
        Builtin("set", _set, python=set),
        Builtin("dict", _dict, python=dict),
        Builtin("isinstance", _is_instance),
        Builtin("print", _print),
    )
}


def _numeric(name: str, function: Callable[..., Any]) -> Builtin:
    def run(meter: Meter, *values: Any) -> Any:
        if not all(type(value) in NUMBERS for value in values):
            raise TypeError(f"math.{name}() takes numbers")
        return bounded(meter, function(*values))

    return Builtin(f"math.{name}", run)


MATH: dict[str, Any] = {"pi": math.pi, "e": math.e, "tau": math.tau, "inf": math.inf, "nan": math.nan} | {
    function.__name__: _numeric(function.__name__, function)
    for function in (
        *(math.sqrt, math.floor, math.ceil, math.trunc, math.fabs, math.hypot, math.exp, math.log),
        *(math.log2, math.log10, math.pow, math.sin, math.cos, math.tan, math.asin, math.acos, math.atan, math.atan2),
        *(math.degrees, math.radians, math.isnan, math.isinf, math.isfinite, math.copysign, math.fmod, math.gcd),
    )
}
