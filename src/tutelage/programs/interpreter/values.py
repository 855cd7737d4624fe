"""The values a restricted program can hold, and what is measured before an operation touches them.

A program holds exactly these types: None, bool, int, float, str, list, tuple, dict, set, range, :class:`Builtin`,
:class:`Function` and the host types of its library. Types are compared by identity, never by inheritance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from tutelage.programs.interpreter.meter import Meter
from tutelage.programs.types import LimitExceeded

SCALARS = frozenset({int, float, str, bool, type(None)})
NUMBERS = frozenset({int, float, bool})
SEQUENCES = frozenset({list, tuple, str, range})

Frame = list[Any]
"""[frame of the enclosing function, meter, returned value, *local variables]."""


class Unset:
    """The mark of a variable that no statement has set yet."""


UNSET = Unset()


class Builtin:
    """A function of the library: ``run(meter, *args, **named)``, a generator function where ``yields``.

    ``python`` is the type that ``isinstance`` tests for, where the name is also a type. ``module`` names the perception
    module it needs.
    """

    __slots__ = ("name", "run", "yields", "python", "module")

    def __init__(
        self,
        name: str,
        run: Callable[..., Any],
        yields: bool = False,
        python: type | None = None,
        module: str | None = None,
    ):
        self.name, self.run, self.yields, self.python, self.module = name, run, yields, python, module

    def __repr__(self) -> str:
        return f"<function {self.name}>"


class FunctionCode:
    """A compiled ``def`` or ``lambda``: ``run(frame)`` gives a signal, or the value where ``expression``.

    ``weight`` is what a call counts in steps; ``blank`` fills the slots that are no arguments.
    """

    __slots__ = ("name", "params", "run", "yields", "expression", "blank", "weight")

    def __init__(self, name: str, params: tuple[str, ...], expression: bool):
        self.name, self.params, self.expression = name, params, expression
        self.run: Callable[[Frame], Any] = lambda frame: None
        self.yields = False
        self.blank: tuple[Any, ...] = ()
        self.weight = 1


class Function:
    """A function value: its code, the frame it was made in, and the values of its last parameters' defaults."""

    __slots__ = ("code", "parent", "defaults")

    def __init__(self, code: FunctionCode, parent: Frame, defaults: tuple[Any, ...]):
        self.code, self.parent, self.defaults = code, parent, defaults

    def __repr__(self) -> str:
        return f"<function {self.code.name}>"


def name_of(value: Any) -> str:
    """The type of ``value`` in a message."""
    return "function" if type(value) in (Function, Builtin) else type(value).__name__


def measure(meter: Meter, value: Any) -> int:
    """Items and characters in ``value``, shared parts counted as often as they are met; the walk is counted as steps.

    Comparing, hashing and printing nested values cost as much as this walk, and cannot be stopped once they run.
    """
    total, waiting = 0, [value]
    while waiting:
        part = waiting.pop()
        kind = type(part)
        if kind is str:
            total += len(part)
        elif kind is list or kind is tuple or kind is set or kind is dict:
            total += len(part) + 2
            meter.steps -= 1 + (len(part) >> 3)
            if meter.steps < meter.check:
                meter.tick()
            waiting.extend(part)
            if kind is dict:
                waiting.extend(part.values())
        else:
            total += 16
    return total


def key(meter: Meter, value: Any) -> Any:
    """``value``, once it is known that hashing it is cheap."""
    if type(value) is tuple:
        measure(meter, value)
    return value


def truth(value: Any) -> bool:
    """Whether ``value`` counts as true; every host object does."""
    return bool(value)


def in_order(meter: Meter, members: set[Any]) -> list[Any]:
    """A set in one order on every machine (ours): by type, then numbers by size and all else by its text."""

    def rank(member: Any) -> tuple[str, Any]:
        kind = type(member)
        return ("", member) if kind in NUMBERS else (kind.__name__, show(meter, member))

    meter.work(16 * len(members))
    return sorted(members, key=rank)


def iterate(meter: Meter, value: Any) -> Iterator[Any]:
    """The members of ``value`` one by one; the caller counts the turns."""
    kind = type(value)
    if kind in SEQUENCES or kind is dict:
        return iter(value)
    if kind is set:
        return iter(in_order(meter, value))
    raise TypeError(f"{name_of(value)} cannot be walked through")


def sequence(meter: Meter, value: Any) -> list[Any]:
    """The members of ``value`` as a new list, counted.

    Raises:
        LimitExceeded: too many.
    """
    kind = type(value)
    if kind in SEQUENCES or kind is set or kind is dict:
        meter.allocate(_length(value))
        if kind is str or kind is range:
            meter.items -= 4 * len(value)  # each member is a new object
        return in_order(meter, value) if kind is set else list(value)
    raise TypeError(f"{name_of(value)} cannot be walked through")


def _length(value: Any) -> int:
    try:
        return len(value)
    except OverflowError:
        raise LimitExceeded("a range too long to be held") from None


def text(meter: Meter, value: str) -> str:
    """A new text, counted."""
    meter.allocate(len(value))
    return value


def show(meter: Meter, value: Any) -> str:
    """``str(value)``, counted; sets are shown in order."""
    kind = type(value)
    if kind is str:
        return str(value)
    if kind in SCALARS:
        return text(meter, str(value))
    _bounded(meter, value)
    return text(meter, _shown(meter, value))


def show_exactly(meter: Meter, value: Any) -> str:
    """``repr(value)``, counted; sets are shown in order."""
    _bounded(meter, value)
    return text(meter, _shown(meter, value))


def _bounded(meter: Meter, value: Any) -> None:
    if measure(meter, value) > 4 * meter.length:
        raise LimitExceeded(f"a text longer than {meter.length:,}")


def _shown(meter: Meter, value: Any) -> str:
    kind = type(value)
    if kind is list:
        return "[" + ", ".join(_shown(meter, part) for part in value) + "]"
    if kind is tuple:
        inside = ", ".join(_shown(meter, part) for part in value)
        return f"({inside},)" if len(value) == 1 else f"({inside})"
    if kind is dict:
        return "{" + ", ".join(f"{_shown(meter, k)}: {_shown(meter, v)}" for k, v in value.items()) + "}"
    if kind is set:
        return "{" + ", ".join(_shown(meter, part) for part in in_order(meter, value)) + "}" if value else "set()"
    return repr(value)
