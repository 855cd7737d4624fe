from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.programs.eval_expression import MAX_DEPTH, Expression, parse_literal
from tutelage.programs.types import ForbiddenSyntax, LimitExceeded, ParseFailure, RuntimeFailure, TypeFailure


def value(text: str, **values: object) -> object:
    return Expression(text).evaluate(values)


@pytest.mark.parametrize(
    ("text", "values", "expected"),
    [
        ("'yes' if {A} > 0 else 'no'", {"A": 2}, "yes"),
        ("'yes' if {A} > 0 else 'no'", {"A": 0}, "no"),
        ("{A} and {B}", {"A": "yes", "B": "no"}, False),
        ("{A} or {B}", {"A": "no", "B": True}, True),
        ("not {A}", {"A": "No"}, True),
        ("{A} == {B}", {"A": "red", "B": "red"}, True),
        ("{A} != 'red'", {"A": "blue"}, True),
        ("{A} == 'yes'", {"A": "yes"}, True),
        ("'yes' == {A}", {"A": False}, False),
        ("{A} == '2'", {"A": 2}, True),
        ("{A} + {B}", {"A": "2", "B": 3}, 5),
        ("({A} - 1) * 2 / 4", {"A": 3}, 1.0),
        ("'{A}' == 'red'", {"A": "red"}, True),
        ("'{A}' == 'yes'", {"A": "yes"}, True),
        ("'a {A} {B}'", {"A": "red", "B": True}, "a red yes"),
        ("'it is {A}'", {"A": "1 + 1"}, "it is 1 + 1"),
        ("'red' in {A}", {"A": ["red", "blue"]}, True),
        ("1 < {A} <= 3", {"A": 3}, True),
        ("A == 'red'", {"A": "red"}, True),
        ("{A}", {"A": "the man's hat"}, "the man's hat"),
    ],
)
def test_what_visprog_writes(text: str, values: dict[str, object], expected: object) -> None:
    found = value(text, **values)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize("a", [True, False])
@pytest.mark.parametrize("b", [True, False])
def test_xor_is_not_equal_and_binds_looser_than_comparisons(a: bool, b: bool) -> None:
    assert value("{A} xor {B}", A=a, B=b) is (a != b)
    assert value("{A} == 1 xor {B} == 1", A=int(a), B=int(b)) is (a != b)
    assert value("({A} xor {B}) xor {A}", A=a, B=b) is b
    assert value("{A} xor {B} xor {A}", A=a, B=b) is b
    assert value("'xor' == 'xor'") is True


def test_a_value_is_never_read_as_code() -> None:
    assert value("{A} == 'x'", A="1) or (1") is False
    assert value("'{A}' == 'x'", A="' or '1") is False
    assert value("'{A}'", A="{B}") == "{B}"


@pytest.mark.parametrize("text", ["", "1 +", "{A} {B}", "(1", "{A} = 1", "\x00", "1 if 2", "{A!r}", "{if}", "{A}1"])
def test_not_an_expression(text: str) -> None:
    with pytest.raises(ParseFailure):
        Expression(text)


@pytest.mark.parametrize(
    "text",
    ["f(1)", "{A}.x", "{A.x}", "[1][0]", "[1]", "(lambda: 1)", "f'{A}'", "2 ** 8", "7 // 2", "7 % 2", "1 << 9"]
    + ["~1", "1 is 1", "1 is not 2", "(x := 1)", "b'1'", "1j", "...", "{A: 1}", "[x for x in {A}]"],
)
def test_refused(text: str) -> None:
    with pytest.raises(ForbiddenSyntax):
        Expression(text)


@pytest.mark.parametrize(
    ("text", "values", "failure"),
    [
        ("1 / {A}", {"A": 0}, RuntimeFailure),
        ("{A} + 1", {"A": "red"}, TypeFailure),
        ("{A} < 1", {"A": "red"}, TypeFailure),
        ("{A} * {A}", {"A": 10**10}, LimitExceeded),
        ("{A} * 1000", {"A": "red"}, TypeFailure),
        ("{A} + {A}", {"A": "a" * 9_999}, LimitExceeded),
        ("'{A}{A}'", {"A": "a" * 9_999}, LimitExceeded),
        ("{A} + 1", {"A": "9" * 1_000}, LimitExceeded),
        ("{A}", {"A": "9" * 30}, LimitExceeded),
        ("{A} + 1", {"A": float("inf")}, LimitExceeded),
        ("{A} + 1", {"A": float("nan")}, LimitExceeded),
    ],
)
def test_failures_on_values(text: str, values: dict[str, object], failure: type[Exception]) -> None:
    with pytest.raises(failure):
        value(text, **values)


@pytest.mark.parametrize("text", ["1" * 30, "(" * 5_000, "not " * 400 + "1", "+".join(["1"] * 500), "-" * 1_900 + "1"])
def test_too_long_or_deep(text: str) -> None:
    with pytest.raises((LimitExceeded, ParseFailure)):
        Expression(text)


def test_depth_that_is_allowed() -> None:
    assert value("not " * (MAX_DEPTH - 2) + "1") is True


@pytest.mark.parametrize(
    ("given_value", "read"),
    [("Yes", True), ("no ", False), ("true", True), ("3", 3), ("-2", -2), ("2.5", 2.5), ("red", "red"), ("²", "²")]
    + [("3 cats", "3 cats"), (True, True), (2.5, 2.5), (None, None), ("", "")],
)
def test_coerce(given_value: object, read: object) -> None:
    assert parse_literal(given_value) == read
    assert type(parse_literal(given_value)) is type(read)


def test_an_expression_is_its_text() -> None:
    expression = Expression("{B} == {A} xor '{C}' == 'x'")
    assert expression == "{B} == {A} xor '{C}' == 'x'"
    assert expression.names == ("B", "A", "C")


_NUMBERS = st.integers(-50, 50) | st.sampled_from([0.5, 1.5, -2.25])
_WORDS = st.sampled_from(["'red'", "'blue'", "'dark red'"])


def _logic(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    numbers = _NUMBERS.map(lambda number: f"({number})")
    sums = st.builds("({} {} {})".format, numbers, st.sampled_from("+-*"), numbers)
    compare = st.sampled_from(["<", "<=", ">", ">=", "==", "!="])
    return (
        st.builds("({} {} {})".format, inner, st.sampled_from(["and", "or", "=="]), inner)
        | st.builds("(not {})".format, inner)
        | st.builds("({} {} {})".format, sums, compare, sums)
        | st.builds("({} {} {} {} {})".format, sums, compare, sums, compare, numbers)
        | st.builds("({} {} {})".format, _WORDS, st.sampled_from(["==", "!=", "in", "<"]), _WORDS)
        | st.builds("({} if {} else {})".format, inner, inner, inner)
    )


@given(st.recursive(st.sampled_from(["True", "False"]), _logic, max_leaves=8))
def test_the_same_as_python(text: str) -> None:
    assert Expression(text).evaluate({}) == eval(text)


@given(st.booleans(), st.booleans(), st.booleans())
def test_variables_are_the_same_as_python_names(a: bool, b: bool, c: bool) -> None:
    answers = {name: "yes" if truth else "no" for name, truth in zip("abc", (a, b, c), strict=True)}
    assert value("{a} and not {b} or {c}", **answers) is (a and not b or c)


@given(st.text(max_size=60) | st.text(alphabet="{}AB'\"()+-*/<>=! xorandtif0123", max_size=60))
def test_any_text_is_read_or_fails_as_it_should(text: str) -> None:
    try:
        expression = Expression(text)
        expression.evaluate(dict.fromkeys(expression.names, "yes"))
    except (ParseFailure, ForbiddenSyntax, LimitExceeded, RuntimeFailure, TypeFailure):
        pass
