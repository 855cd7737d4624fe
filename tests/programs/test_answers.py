from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.programs.answers import AnswerNormalizer, answers_match, normalize_answer


@pytest.mark.parametrize(
    ("answer", "spelling"),
    [
        ("  The  Red Circle. ", "red circle"),
        ("Two", "2"),
        ("twenty", "20"),
        (2.0, "2"),
        (2.5, "2.5"),
        ("3.5", "3.5"),
        ("3.", "3"),
        ("1,000", "1000"),
        ("-2", "-2"),
        ("t-shirt", "t shirt"),
        ("man's", "mans"),
        (True, "yes"),
        (False, "no"),
        ("True", "yes"),
        ("false.", "no"),
        (None, "no"),
        ([], "no"),
        ("", "no"),
        ("a", "a"),
        ("A car, a bus", "car bus"),
        (["Red", 2], "red, 2"),
    ],
)
def test_one_spelling(answer: object, spelling: str) -> None:
    assert normalize_answer(answer) == spelling


@pytest.mark.parametrize(
    ("rule", "answer", "kept"),
    [
        ("punctuation", "red.", "red."),
        ("articles", "the red", "the red"),
        ("digits", "two", "two"),
        ("truth", True, "true"),
        ("empty", None, ""),
    ],
)
def test_each_rule_may_be_off(rule: str, answer: object, kept: str) -> None:
    assert AnswerNormalizer(**{rule: False})(answer) == kept
    assert normalize_answer(answer) != kept


def test_same_answer() -> None:
    assert answers_match(True, "Yes")
    assert answers_match("two", 2)
    assert not answers_match("red", "blue")


@given(st.text() | st.integers() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False))
def test_a_spelling_is_its_own_spelling(answer: object) -> None:
    assert normalize_answer(normalize_answer(answer)) == normalize_answer(answer)
