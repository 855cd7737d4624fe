"""Expressions of EVAL: a template such as ``{ANSWER0} == 'red' xor {ANSWER1}``, compiled once, never ``eval``-ed.

Values take the place of names in the syntax tree, not of characters in the text, so no answer can add code.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tutelage.programs.metering import FREE, measure
from tutelage.programs.types import ForbiddenSyntax, LimitExceeded, ParseFailure, RuntimeFailure, TypeFailure, Value

MAX_SOURCE = 2_000
MAX_DEPTH = 64
MAX_NUMBER = 1e18
MAX_TEXT = 10_000
MAX_ITEMS = 10_000
"""Entries of a list that a variable holds, lists within it included; its texts hold 20 times as many characters at most."""
MAX_QUOTED_ITEMS = 1_000
"""Entries of a list inside quotes."""

_TRUTH = {"yes": True, "no": False, "true": True, "false": False}
_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?")
_NAME = r"\{\s*([A-Za-z_]\w*)\s*\}"
_TOKEN = re.compile(rf"(?P<text>'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\")|{_NAME}|\b(?P<word>xor|is)\b")
_PLACEHOLDER = re.compile(_NAME)

Evaluate = Callable[[Mapping[str, Value]], Any]

_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_NUMBERS = frozenset({int, float, bool})
_SIGNS = {operator.add: "+", operator.sub: "-", operator.mul: "*", operator.truediv: "/"}
_COMPARISON: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
}
_UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.Not: operator.not_,
    ast.USub: lambda number: -_number(number, operator.sub),
    ast.UAdd: lambda number: +_number(number, operator.sub),
}


class Expression(str):
    """The text of an expression, compiled: ``names`` are the variables it reads, in the order of first use.

    The language: ``and or not xor`` (xor means ``!=``), ``+ - * /``, comparisons, ``in``, ``a if c else b``, literals.
    A variable stands in braces (bare is accepted too, our choice); inside quotes it stands for its text (our choice).

    Raises:
        ParseFailure: not an expression.
        Refused: a construct outside the language.
        LimitExceeded: too long or too deeply nested.
    """

    __slots__ = ("names", "_evaluate")
    names: tuple[str, ...]
    _evaluate: Evaluate

    def __new__(cls, text: str) -> Expression:
        """Read ``text`` once."""
        if len(text) > MAX_SOURCE:
            raise LimitExceeded(f"an expression of {len(text):,} characters; at most {MAX_SOURCE:,} are read")
        self = super().__new__(cls, text)
        names: dict[str, None] = {}
        self._evaluate = _compile(_tree(text), names, 0)
        self.names = tuple(names)
        return self

    def evaluate(self, values: Mapping[str, Value]) -> Value:
        """The value of the expression where ``values`` holds every name in ``names``.

        "yes" and "no" are read as truth values and digits as numbers; the result is a bool, number, text or what a
        variable held.

        Raises:
            RuntimeFailure: division by zero.
            TypeFailure: an operator does not take these values: lists are compared and searched, not added or multiplied.
            LimitExceeded: a number above 1e18, a text above 10,000 characters or a list above 10,000 items, whether a
                variable holds it or an operator would make it.
        """
        try:
            for name in self.names:
                value = values[name]
                if type(value) not in FREE:
                    _check_operand(value)
            return self._evaluate(values)
        except ZeroDivisionError:
            raise RuntimeFailure(f"division by zero in {self!s}") from None
        except (TypeError, ValueError) as error:
            raise TypeFailure(f"{error} in {self!s}") from None


def parse_literal(value: Value) -> Value:
    """``value`` as EVAL reads it: "yes"/"no" (and "true"/"false", our choice) a bool, digits a number, all else unchanged.

    Raises:
        LimitExceeded: a number above 1e18.
    """
    if type(value) is not str:
        return value
    word = value.strip().lower()
    if word in _TRUTH:
        return _TRUTH[word]
    if len(word) < MAX_TEXT and _NUMBER.fullmatch(word):
        if len(word) > 40:
            raise LimitExceeded("a number of more than 40 digits")
        return _bounded(float(word) if "." in word else int(word))
    return value


def as_text(value: Value) -> str:
    """``value`` as it reads inside quotes: True and False are "yes" and "no".

    Raises:
        LimitExceeded: a text above 10,000 characters, or a list above 1,000 items.
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, (str, int, float)):
        measure([value], MAX_QUOTED_ITEMS, MAX_TEXT)
    return str(value)


def _tree(text: str) -> ast.expr:
    def plain(token: re.Match[str]) -> str:
        if token["word"] == "is":
            raise ForbiddenSyntax("'is' is not allowed in an expression", remedy="compare with == or !=")
        # Python has no xor; "is not" has no other use here, and _compile reads it below the comparisons.
        return token["text"] or (" is not " if token["word"] else f" {token[2]} ")

    source = _TOKEN.sub(plain, text).strip()
    try:
        return ast.parse(source, mode="eval").body
    except (SyntaxError, ValueError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else error
        raise ParseFailure(f"not an expression: {text!r} ({reason})") from None
    except (RecursionError, MemoryError):
        raise LimitExceeded(f"an expression nested too deeply; at most {MAX_DEPTH} levels are read") from None


def _check_operand(value: Value) -> None:
    """Refuse a value too large to read, before anything is made of it."""
    if type(value) is int:
        _bounded(value)
    elif isinstance(value, str):
        _check_length(len(value))
    else:
        measure([value], MAX_ITEMS, 20 * MAX_TEXT)


def _check_length(characters: int) -> None:
    if characters > MAX_TEXT:
        raise LimitExceeded(f"a text of more than {MAX_TEXT:,} characters")


def _bounded(number: Any) -> Any:
    """``number`` if it is not too large."""
    if not -MAX_NUMBER <= number <= MAX_NUMBER:
        raise LimitExceeded(f"a number above {MAX_NUMBER:g}")
    return number


def _compile(node: ast.expr, names: dict[str, None], depth: int) -> Evaluate:
    """A closure that evaluates ``node``; ``names`` collects the variables it reads."""
    if depth > MAX_DEPTH:
        raise LimitExceeded(f"an expression nested too deeply; at most {MAX_DEPTH} levels are read")

    def part(child: ast.expr) -> Evaluate:
        return _compile(child, names, depth + 1)

    match node:
        case ast.Constant(value=str(text)):
            return _quoted(text, names)
        case ast.Constant(value=bool() | int() | float() | None as value):
            constant = value if value is None else _bounded(value)
            return lambda values: constant
        case ast.Name(id=name):
            names[name] = None
            return lambda values: parse_literal(values[name])
        case ast.BoolOp(op=op, values=operands):
            return _short_circuit(isinstance(op, ast.And), [part(child) for child in operands])
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _UNARY:
            unary, inner = _UNARY[type(op)], part(operand)
            return lambda values: unary(inner(values))
        case ast.BinOp(left=a, op=op, right=b) if type(op) in _ARITHMETIC:
            return _arithmetic(_ARITHMETIC[type(op)], part(a), part(b))
        case ast.Compare(left=first, ops=ops, comparators=rest):
            return _compare([type(op) for op in ops], [part(first), *map(part, rest)])
        case ast.IfExp(test=test, body=body, orelse=orelse):
            condition, then, other = part(test), part(body), part(orelse)
            return lambda values: then(values) if condition(values) else other(values)
    raise ForbiddenSyntax(
        f"{type(node).__name__} is not allowed in an expression",
        remedy="use and or not xor, + - * /, comparisons, 'a if c else b', numbers, texts and {VARIABLES}",
    )


def _quoted(text: str, names: dict[str, None]) -> Evaluate:
    pieces = _PLACEHOLDER.split(text)
    if len(pieces) == 1:
        return lambda values: text
    names.update(dict.fromkeys(pieces[1::2]))

    def evaluate(values: Mapping[str, Value]) -> str:
        filled, length = [], 0
        for odd, piece in enumerate(pieces):
            text = as_text(values[piece]) if odd % 2 else piece
            length += len(text)
            _check_length(length)
            filled.append(text)
        return "".join(filled)

    return evaluate


def _short_circuit(is_and: bool, parts: list[Evaluate]) -> Evaluate:
    def evaluate(values: Mapping[str, Value]) -> Any:
        value = None
        for part in parts:
            value = part(values)
            if bool(value) is not is_and:
                break
        return value

    return evaluate


def _arithmetic(function: Callable[[Any, Any], Any], left: Evaluate, right: Evaluate) -> Evaluate:
    """Numbers, each within its bound, and two texts that are joined: so the result is small before it is made."""
    adds = function is operator.add

    def evaluate(values: Mapping[str, Value]) -> Any:
        a, b = left(values), right(values)
        if adds and isinstance(a, str) and isinstance(b, str):
            _check_length(len(a) + len(b))
            return a + b
        if type(a) not in _NUMBERS or type(b) not in _NUMBERS:
            a, b = _number(a, function), _number(b, function)
        return _bounded(function(a, b))

    return evaluate


def _number(value: Any, function: Callable[[Any, Any], Any]) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    if not isinstance(value, (bool, int, float)):
        taken = "numbers or two texts" if function is operator.add else "numbers"
        raise TypeError(f"{_SIGNS[function]!r} takes {taken}, not {type(value).__name__}")
    return value


def _compare(ops: list[type[ast.cmpop]], parts: list[Evaluate]) -> Evaluate:
    """A chain of comparisons; xor binds looser: ``a == b xor c == d`` compares two truths."""
    if ast.IsNot in ops:
        at = len(ops) - 1 - ops[::-1].index(ast.IsNot)
        sides = [_compare(ops[:at], parts[: at + 1]), _compare(ops[at + 1 :], parts[at + 1 :])]
        return _chain(sides, [operator.ne])
    return _chain(parts, [_COMPARISON[op] for op in ops]) if ops else parts[0]


def _chain(parts: list[Evaluate], comparisons: list[Callable[[Any, Any], bool]]) -> Evaluate:
    def evaluate(values: Mapping[str, Value]) -> bool:
        left = parts[0](values)
        for comparison, part in zip(comparisons, parts[1:], strict=True):
            right = part(values)
            if not comparison(*_loosely_equal(left, right)):
                return False
            left = right
        return True

    return evaluate


def _loosely_equal(a: Any, b: Any) -> tuple[Any, Any]:
    """Both sides in one type: ``{ANSWER0} == 'yes'`` and ``{ANSWER0} == '2'`` mean what they say (our choice)."""
    if isinstance(a, str) and isinstance(b, (bool, int, float)):
        return parse_literal(a), b
    if isinstance(b, str) and isinstance(a, (bool, int, float)):
        return a, parse_literal(b)
    return a, b
