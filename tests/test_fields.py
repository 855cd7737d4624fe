"""Fields of what was read are of their type and within their range."""

from __future__ import annotations

from typing import Any

import pytest

from tutelage.errors import InputError
from tutelage.fields import check_field, check_items, check_memory


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "not an object"),
        ([], "not an object"),
        ({}, "'width' is missing"),
        ({"width": None}, "'width' is missing"),
        ({"width": "7"}, "not a whole number"),
        ({"width": 7.0}, "not a whole number"),
        ({"width": True}, "not a whole number"),
        ({"width": [1]}, "list of 1 entries is not a whole number"),
        ({"width": -3}, "below 1"),
        ({"width": 10**9}, "above 1,000"),
    ],
)
def test_a_wrong_field_is_named(data: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        check_field(data, "width", int, 1, 1_000, where="config.json")
    assert "config.json" in str(caught.value.where) and caught.value.remedy


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "x", None, False])
def test_a_number_is_finite(value: Any) -> None:
    with pytest.raises(InputError):
        check_field({"alpha": value}, "alpha", float, 0, 1, where="a.toml")


def test_what_is_right_is_given_back() -> None:
    assert check_field({"a": 1}, "a", float, 0, 1, where="f") == 1.0
    assert check_field({}, "a", int, where="f", default=None) is None
    assert check_field({"a": "red"}, "a", str, 1, 3, where="f", choices=("red", "blue")) == "red"
    assert check_items({"a": [1, 2]}, "a", int, 0, where="f") == [1, 2]


def test_texts_choices_and_items_are_checked() -> None:
    for text in ("a\0b", "\ud800"):
        with pytest.raises(InputError, match="half a character"):
            check_field({"path": text}, "path", str, where="f")
    with pytest.raises(InputError, match="unknown value 'rad'") as caught:
        check_field({"a": "rad"}, "a", str, where="f", choices=("red", "blue"))
    assert "red" in str(caught.value.remedy)
    with pytest.raises(InputError, match="-7 is below 0") as caught:
        check_items({"labels": [0, -7]}, "labels", int, 0, where="f")
    assert "labels[1]" in str(caught.value.where)
    with pytest.raises(InputError, match="its length 3 is above 2"):
        check_items({"labels": [0, 1, 2]}, "labels", int, where="f", max_items=2)


def test_memory_that_is_not_there_is_refused() -> None:
    check_memory(1, "a byte", "f", "")
    with pytest.raises(InputError, match="batches would take 9,313.2 GiB") as caught:
        check_memory(10**13, "batches", "recipe.toml: settings.batch_size", "take a smaller batch")
    assert caught.value.where == "recipe.toml: settings.batch_size"
