from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.reports.formatting import amount, decimals, duration, interval, number, percent, signed


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (None, 1, "–"),
        (1.25, 1, "1.2"),
        (-3.04, 1, "−3.0"),
        (-0.04, 1, "0.0"),
        (12345.6, 0, "12\u202f346"),
        (-1200, 0, "−1\u202f200"),
    ],
)
def test_number(value: float | None, digits: int, text: str) -> None:
    assert number(value, digits) == text


@pytest.mark.parametrize(
    ("value", "text"), [(2.5, "+2.5"), (-2.5, "−2.5"), (0.0, "0.0"), (0.01, "0.0"), (-0.01, "0.0"), (None, "–")]
)
def test_signed(value: float | None, text: str) -> None:
    assert signed(value) == text


@given(st.floats(-1e9, 1e9), st.integers(0, 4))
def test_a_number_reads_back_as_itself(value: float, digits: int) -> None:
    text = signed(value, digits).replace("−", "-").replace("\u202f", "")
    assert float(text) == float(f"{value:.{digits}f}")


def test_units() -> None:
    assert [duration(s) for s in (None, 4.26, 42.4, 702, 7384)] == ["–", "4.3 s", "42 s", "11 min 42 s", "2 h 3 min"]
    assert [amount(b) for b in (None, 12, 2048, 3 * 2**20, 5 * 2**30)] == ["–", "12 B", "2.0 KiB", "3.0 MiB", "5.0 GiB"]
    assert percent(0.7712, 0) == "77\u202f%"
    assert interval(-1.25, 2) == "−1.2 to +2.0"
    assert interval(None, 2) == "–"
    assert (decimals([0.4, None, -1]), decimals([0.4, 61]), decimals([])) == (3, 1, 1)
