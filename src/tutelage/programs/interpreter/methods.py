"""The methods of texts, lists, tables and sets: a table by name and type. A name outside it does not exist."""

from __future__ import annotations

import string
from collections.abc import Callable, Generator
from typing import Any

from tutelage.programs.interpreter.functions import sort
from tutelage.programs.interpreter.meter import Meter
from tutelage.programs.interpreter.operators import contains
from tutelage.programs.interpreter.values import SCALARS, key, measure, name_of, sequence, show, show_exactly, text
from tutelage.programs.types import ForbiddenSyntax, LimitExceeded

Method = Callable[..., Any]

MAX_FORMAT = 32
"""Characters of a format specification."""


def format_value(meter: Meter, value: Any, conversion: str | None, specification: str) -> str:
    """One field of an f-string or of ``str.format``.

    Raises:
        LimitExceeded: a width or precision beyond three digits.
    """
    if type(value) is str and conversion != "r" and not specification:
        return str(value)
    if conversion == "r":
        value = show_exactly(meter, value)
    elif conversion == "s" or not specification:
        value = show(meter, value)
    if not specification:
        return str(value)
    if type(value) not in SCALARS or value is None:
        raise TypeError(f"{name_of(value)} takes no format")
    digits = "".join(letter if letter.isdigit() else " " for letter in specification).split()
    if len(specification) > MAX_FORMAT or any(len(number) > 3 for number in digits):
        raise LimitExceeded(f"the format {specification[:MAX_FORMAT]!r} is too wide")
    return text(meter, format(value, specification))


def _format(meter: Meter, template: str, *args: Any, **named: Any) -> str:
    """``str.format`` with plain fields only: no attribute, no index, no field within a field."""
    meter.work(len(template))
    pieces, position = [], 0
    for literal, field, specification, conversion in string.Formatter().parse(template):
        pieces.append(literal)
        if field is None:
            continue
        if conversion not in (None, "s", "r") or "{" in (specification or ""):
            raise ValueError("a field of format() is {}, {0} or {name}, with a plain specification")
        if field == "":
            field, position = str(position), position + 1
        if field.isdecimal() and len(field) < 4:
            value = args[int(field)]
        elif field.isidentifier():
            value = named[field]
        else:
            raise ForbiddenSyntax(f"format() reads no part of a value: {{{field}}}", remedy="use an f-string")
        pieces.append(format_value(meter, value, conversion, specification or ""))
    return text(meter, "".join(pieces))


def _plain(function: Callable[..., Any]) -> Method:
    """A text method whose result is no longer than a few times its text."""

    def run(meter: Meter, value: str, *args: Any, **named: Any) -> Any:
        meter.work(len(value))
        result = function(value, *args, **named)
        return text(meter, result) if type(result) is str else result

    return run


def _pieces(function: Callable[..., Any]) -> Method:
    """A text method that gives a list or tuple of texts."""

    def run(meter: Meter, value: str, *args: Any, **named: Any) -> Any:
        meter.work(4 * len(value))
        result = function(value, *args, **named)
        meter.allocate(len(result))
        meter.items -= 8 * len(result) + len(value)
        return result

    return run


def _padded(function: Callable[..., str]) -> Method:
    def run(meter: Meter, value: str, width: Any, *args: Any) -> str:
        if type(width) is int and width > meter.length:
            raise LimitExceeded(f"a text longer than {meter.length:,}")
        return text(meter, function(value, width, *args))

    return run


def _replace(meter: Meter, value: str, old: str, new: str, count: int = -1) -> str:
    meter.work(2 * len(value))
    if type(old) is str and type(new) is str and type(count) is int:
        times = value.count(old) if count < 0 else min(value.count(old), count)
        meter.allocate(max(0, len(value) + times * (len(new) - len(old))))
    return value.replace(old, new, count)


def _join(meter: Meter, value: str, members: Any) -> str:
    parts = sequence(meter, members)
    if not all(type(part) is str for part in parts):
        raise TypeError("join() takes texts")
    meter.allocate(sum(map(len, parts)) + len(value) * max(0, len(parts) - 1))
    return value.join(parts)


def _room(meter: Meter, holder: list[Any], more: int) -> None:
    meter.items -= more
    if len(holder) + more > meter.length or meter.items < 0:
        raise LimitExceeded(f"a sequence longer than {meter.length:,}, or too many items in all")


def _append(meter: Meter, holder: list[Any], value: Any) -> None:
    _room(meter, holder, 1)
    holder.append(value)


def _extend(meter: Meter, holder: list[Any], values: Any) -> None:
    more = sequence(meter, values)
    _room(meter, holder, len(more))
    holder.extend(more)


def _insert(meter: Meter, holder: list[Any], at: int, value: Any) -> None:
    _room(meter, holder, 1)
    meter.work(len(holder))
    holder.insert(at, value)


def _pop(meter: Meter, holder: list[Any], at: int = -1) -> Any:
    meter.work(len(holder))
    return holder.pop(at)


def _searched(function: Callable[..., Any]) -> Method:
    """A list or tuple method that compares its argument with every member."""

    def run(meter: Meter, holder: Any, value: Any, *args: Any) -> Any:
        contains(meter, holder, value)  # counts the comparisons
        return function(holder, value, *args)

    return run


def _sort(meter: Meter, holder: list[Any], *, key: Any = None, reverse: Any = False) -> Generator[Any, Any, None]:
    holder[:] = yield from sort(meter, sequence(meter, holder), key, reverse)


def _copied(function: Callable[..., Any]) -> Method:
    def run(meter: Meter, holder: Any) -> Any:
        meter.allocate(4 * len(holder))
        return function(holder)

    return run


def _items(meter: Meter, table: dict[Any, Any]) -> list[Any]:
    meter.allocate(len(table))
    meter.items -= 8 * len(table)
    return list(table.items())


def _update(meter: Meter, table: dict[Any, Any], other: Any = None, **named: Any) -> None:
    if other is not None and type(other) is not dict:
        raise TypeError(f"a table is updated by a table, not by {name_of(other)}")
    meter.allocate(4 * (len(other or ()) + len(named)))
    table.update(other or {}, **named)


def _set_default(meter: Meter, table: dict[Any, Any], name: Any, default: Any = None) -> Any:
    meter.allocate(8)
    return table.setdefault(key(meter, name), default)


def _add(meter: Meter, holder: set[Any], value: Any) -> None:
    meter.allocate(8)
    holder.add(key(meter, value))


def _set_pop(meter: Meter, holder: set[Any]) -> Any:
    raise ForbiddenSyntax("which member pop() takes from a set is not defined", remedy="sort the set first")


def _keyed(function: Callable[..., Any]) -> Method:
    """A method of a table or set whose first argument is hashed."""

    def run(meter: Meter, holder: Any, name: Any, *args: Any) -> Any:
        return function(holder, key(meter, name), *args)

    return run


def _joined(function: Callable[..., Any]) -> Method:
    """A set method that takes other collections."""

    def run(meter: Meter, holder: set[Any], *others: Any) -> Any:
        members = [sequence(meter, other) for other in others]
        measure(meter, members)
        meter.allocate(4 * (len(holder) + sum(map(len, members))))
        return function(holder, *members)

    return run


_PLAIN = (
    *(str.lower, str.upper, str.strip, str.lstrip, str.rstrip, str.startswith, str.endswith, str.find, str.rfind),
    *(str.index, str.rindex, str.count, str.isdigit, str.isnumeric, str.isdecimal, str.isalpha, str.isalnum),
    *(str.isspace, str.islower, str.isupper, str.istitle, str.isidentifier, str.title, str.capitalize, str.casefold),
    *(str.swapcase, str.removeprefix, str.removesuffix),
)
_PIECES = (str.split, str.rsplit, str.splitlines, str.partition, str.rpartition)
_PADDED = (str.zfill, str.center, str.ljust, str.rjust)
_JOINED = (
    *(set.union, set.intersection, set.difference, set.symmetric_difference, set.issubset, set.issuperset),
    *(set.isdisjoint, set.update, set.intersection_update, set.difference_update),
)

TEXT: dict[str, Method] = {
    **{function.__name__: _plain(function) for function in _PLAIN},
    **{function.__name__: _pieces(function) for function in _PIECES},
    **{function.__name__: _padded(function) for function in _PADDED},
    "replace": _replace,
    "join": _join,
    "format": _format,
}
LIST: dict[str, Method] = {
    "append": _append,
    "extend": _extend,
    "insert": _insert,
    "pop": _pop,
    "remove": _searched(list.remove),
    "index": _searched(list.index),
    "count": _searched(list.count),
    "sort": _sort,
    "reverse": lambda meter, holder: (meter.work(len(holder)), holder.reverse())[1],
    "clear": lambda meter, holder: holder.clear(),
    "copy": _copied(list.copy),
}
TABLE: dict[str, Method] = {
    "get": _keyed(dict.get),
    "pop": _keyed(dict.pop),
    "keys": _copied(list),
    "values": _copied(lambda table: list(table.values())),
    "items": _items,
    "update": _update,
    "setdefault": _set_default,
    "clear": lambda meter, holder: holder.clear(),
    "copy": _copied(dict.copy),
}
SET: dict[str, Method] = {
    **{function.__name__: _joined(function) for function in _JOINED},
    "add": _add,
    "remove": _keyed(set.remove),
    "discard": _keyed(set.discard),
    "pop": _set_pop,
    "clear": lambda meter, holder: holder.clear(),
    "copy": _copied(set.copy),
}
METHODS: dict[type, dict[str, Method]] = {
    str: TEXT,
    list: LIST,
    tuple: {"index": _searched(tuple.index), "count": _searched(tuple.count)},
    dict: TABLE,
    set: SET,
    float: {"is_integer": lambda meter, value: value.is_integer()},
}
YIELDING = frozenset({"sort"})
