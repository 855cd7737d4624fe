"""The types that signatures name, and whether a value has the type that a module declares."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from tutelage.programs.types import Value
from tutelage.programs.values import Box, Image, Object

SHOWN = 60
"""Characters of a value that a message shows."""


def _is_boxes(value: Value) -> bool:
    return isinstance(value, list) and all([isinstance(item, Box) for item in value])


def _is_objects(value: Value) -> bool:
    return isinstance(value, list) and all([isinstance(item, Object) for item in value])


def _is_number(value: Value) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating))


TYPE_CHECKS: Mapping[str, Callable[[Value], bool]] = MappingProxyType(
    {
        "image": lambda value: isinstance(value, Image),
        "boxes": _is_boxes,
        "objects": _is_objects,
        "text": lambda value: isinstance(value, str),
        "number": _is_number,
        "bool": lambda value: isinstance(value, (bool, np.bool_)),
    }
)
"""Whether a value has a type, by the type's name in a signature; ``any`` is not among them."""


def has_type(value: Value, kind: str) -> bool:
    """Whether ``value`` is of the type that signatures call ``kind``."""
    check = TYPE_CHECKS.get(kind)
    return check is None or check(value)


def describe_value(value: Value) -> str:
    """A value in a message: its type, and the value where it is short."""
    if isinstance(value, (list, tuple)) and value:
        odd = next((item for item in value if type(item) is not type(value[0])), None)
        inside = type(value[0]).__name__ + ("" if odd is None else f" and {type(odd).__name__}")
        return f"a {type(value).__name__} of {inside}"
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= SHOWN else text[: SHOWN - 1] + '…'}" if value is not None else "None"
