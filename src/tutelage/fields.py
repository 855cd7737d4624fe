"""Checks of what was read from a file: the types and ranges of fields, and whether there is memory for what they ask."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints, overload

from tutelage.errors import InputError, did_you_mean
from tutelage.reading import DAMAGED

T = TypeVar("T")
_BAD_TEXT = re.compile("[\0\ud800-\udfff]")
"""What no path, name or terminal takes."""


class _Required:
    def __repr__(self) -> str:
        return "REQUIRED"


REQUIRED = _Required()
"""The default of a field that must be there."""


def check_kind(value: Any, kind: type[T], where: object, remedy: str = DAMAGED) -> T:
    """``value`` if it is of ``kind``; a whole number passes for a float, a bool for no number.

    Raises:
        InputError: it is not; the message says what it is.
    """
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)  # type: ignore[return-value]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise InputError(f"{_shown(value)} is not {_WORDS.get(kind, kind.__name__)}", where=where, remedy=remedy)
    return value


_WORDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", list: "a list", dict: "an object"}


@overload
def check_field(
    data: Any,
    name: str,
    kind: type[T],
    least: float | None = None,
    most: float | None = None,
    *,
    where: object,
    choices: Collection[Any] | None = None,
    remedy: str = DAMAGED,
) -> T: ...
@overload
def check_field(
    data: Any,
    name: str,
    kind: type[T],
    least: float | None = None,
    most: float | None = None,
    *,
    where: object,
    default: Any,
    choices: Collection[Any] | None = None,
    remedy: str = DAMAGED,
) -> Any: ...
def check_field(
    data: Any,
    name: str,
    kind: type[T],
    least: float | None = None,
    most: float | None = None,
    *,
    where: object,
    default: Any = REQUIRED,
    choices: Collection[Any] | None = None,
    remedy: str = DAMAGED,
) -> Any:
    """A field of an object that was read from a file, of the right type and within its range.

    Args:
        data: the object; anything else is refused.
        name: of the field.
        kind: int, float (finite), str (without NUL and lone surrogates), bool, list or dict.
        least: the smallest number, or length of a text or list.
        most: the largest.
        where: the file and line, for messages.
        default: what an absent field, or null, is; without one it must be there.
        choices: the values it may have.
        remedy: what to do where it is wrong.

    Raises:
        InputError: the message names the field.

    Examples:
        >>> check_field({"width": 640}, "width", int, 1, 10**5, where="config.json")
        640
    """
    place = f"{where}: {name}"
    value = check_kind(data, dict, where, remedy).get(name)
    if value is None:
        if default is not REQUIRED:
            return default
        raise InputError(f"{name!r} is missing", where=where, remedy=remedy)
    value = check_kind(value, kind, place, remedy)
    return _checked(value, least, most, place, choices, remedy)


def check_items(
    data: Any,
    name: str,
    kind: type[T],
    least: float | None = None,
    most: float | None = None,
    *,
    where: object,
    max_items: int = 1_000_000,
    remedy: str = DAMAGED,
) -> list[T]:
    """A field that is a list of at most ``max_items`` values of one ``kind``, each checked as :func:`check_field` checks it.

    Raises:
        InputError: the message names the field and the position.
    """
    values = check_field(data, name, list, 0, max_items, where=where, remedy=remedy)
    places = (f"{where}: {name}[{number}]" for number in range(len(values)))
    return [
        _checked(check_kind(value, kind, place, remedy), least, most, place, None, remedy)
        for value, place in zip(values, places, strict=True)
    ]


def _checked(value: Any, least: float | None, most: float | None, where: str, choices: Collection[Any] | None, remedy: str) -> Any:
    if choices is not None and value not in choices:
        named = did_you_mean(str(value)[:80], sorted(map(str, choices)))
        raise InputError(f"unknown value {_shown(value)}", where=where, remedy=named)
    if isinstance(value, str) and _BAD_TEXT.search(value):
        raise InputError(f"a text with NUL or half a character: {_shown(value)}", where=where, remedy=remedy)
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{value} is not a finite number", where=where, remedy=remedy)
    size: Any = len(value) if isinstance(value, (str, list, dict)) else value
    what = "" if size is value else "its length "
    if least is not None and size < least:
        raise InputError(f"{what}{size:,} is below {least:,}", where=where, remedy=remedy)
    if most is not None and size > most:
        raise InputError(f"{what}{size:,} is above {most:,}", where=where, remedy=remedy)
    return value


def _shown(value: Any) -> str:
    text = f"{type(value).__name__} of {len(value):,} entries" if isinstance(value, (list, dict)) else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def check_range(where: object, value: Any, least: float, most: float, whole: bool = False) -> None:
    """Refuse what is no number from ``least`` to ``most``: for values that were not read from a file.

    Args:
        where: names the value.
        value: anything.
        least, most: the range, both included.
        whole: only whole numbers.

    Raises:
        InputError: ``where`` is named.
    """
    kind = int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kind) or not least <= value <= most:
        what = "whole number" if whole else "number"
        above = isinstance(value, (int, float)) and value > most
        remedy = f"at most {most:,}" if above else f"at least {least:,}"
        raise InputError(f"{_shown(value)} is no {what} from {least:,} to {most:,}", where=where, remedy=remedy)


def check_pair(where: object, value: Any, least: float, most: float) -> None:
    """Refuse what is no pair (least, most) of rising numbers in a range.

    Raises:
        InputError: ``where`` is named.
    """
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise InputError(f"{_shown(value)} is no pair", where=where, remedy="give (least, most)")
    for one in value:
        check_range(where, one, least, most)
    if value[0] > value[1]:
        raise InputError(f"{value[0]} is above {value[1]}", where=where, remedy="give (least, most)")


def check_dataclass(value: Any, where: object, least: int = 0, most: int = 100_000) -> None:
    """Check a dataclass made of what a file held: its fields, and those of dataclasses in it, are of the types declared.

    Args:
        value: the dataclass.
        where: the file, for messages.
        least: the smallest of its whole numbers, which are sizes and counts.
        most: the largest.

    Raises:
        InputError: the message names the field.
    """
    hints = get_type_hints(type(value))
    for item in dataclasses.fields(value):
        _check_hint(getattr(value, item.name), hints[item.name], f"{where}: {item.name}", least, most)


def _check_hint(value: Any, hint: Any, where: str, least: int, most: int) -> None:
    origin, inner = get_origin(hint), get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type) and isinstance(value, hint):
        check_dataclass(value, where, least, most)
    elif origin is tuple:
        kinds = [inner[0]] * len(value) if isinstance(value, tuple) and inner[-1] is Ellipsis else list(inner)
        if not isinstance(value, tuple) or len(kinds) != len(value):
            raise InputError(f"{_shown(value)} is not a list of the right length", where=where, remedy=DAMAGED)
        for number, (part, kind) in enumerate(zip(value, kinds, strict=True)):
            _check_hint(part, kind, f"{where}[{number}]", least, most)
    elif hint in (int, float, str, bool):
        bounds = (least, most) if hint is int else (None, None)
        _checked(check_kind(value, hint, where), *bounds, where, None, DAMAGED)
    elif isinstance(hint, type) and not isinstance(value, hint):
        raise InputError(f"{_shown(value)} is not a {hint.__name__}", where=where, remedy=DAMAGED)


def available_memory() -> int:
    """Bytes that this process may still take: what the machine has free, or the control group's limit leaves."""
    free = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free += [int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")]
        limit, used = (Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))
        free.append(int(limit.read_text()) - int(used.read_text()))
    except (OSError, ValueError):
        pass
    return min(free) if free else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def check_memory(number: int, what: str, where: object, remedy: str) -> None:
    """Refuse to take ``number`` bytes for ``what`` where they are not there.

    Raises:
        InputError: the message says how many, and how many there are.
    """
    if number > (free := available_memory()):
        size = f"{what} would take {number / 2**30:,.1f} GiB of memory; {free / 2**30:,.1f} are free"
        raise InputError(size, where=where, remedy=remedy)
