"""Literal arguments of VisProg programs: read from the syntax tree, typed, and written as programs write them."""

from __future__ import annotations

import ast
from typing import Any

from tutelage.programs.eval_expression import MAX_NUMBER
from tutelage.programs.types import LimitExceeded, Value


def read_literal(node: ast.expr) -> Value:
    """The value of a text, number, True, False, None, or a list of these.

    Raises:
        ValueError: it is no literal.
        LimitExceeded: a number above 1e18, which later steps and messages could not write.
    """
    match node:
        case ast.Constant(value=str() | bool() | int() | float() | None as value):
            return _checked_number(value) if type(value) is int else value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -_checked_number(value)
        case ast.List(elts=items) | ast.Tuple(elts=items) if not any(isinstance(item, ast.List) for item in items):
            return [read_literal(item) for item in items]
    raise ValueError


def _checked_number(value: Any) -> Any:
    if not abs(value) <= MAX_NUMBER:
        raise LimitExceeded(f"a number above {MAX_NUMBER:g}")
    return value


def type_of(value: Any) -> str:
    """The type of a literal, as signatures call it."""
    if value is None:
        return "nothing"
    if isinstance(value, str):
        return "text"
    if isinstance(value, bool):
        return "bool"
    return "number" if isinstance(value, (int, float)) else "any"


def quote(value: Value) -> str:
    """A literal as programs write it: a text that holds an apostrophe goes in double quotes."""
    return repr(str(value) if isinstance(value, str) else value)
