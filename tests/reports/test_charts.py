from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.reports.charts import Axis, LineChart, Series, ticks

FINITE = st.floats(-1e6, 1e6, allow_nan=False)


@given(FINITE, st.floats(1e-3, 1e6))
def test_ticks_are_few_even_and_inside(lo: float, width: float) -> None:
    hi = lo + width
    marks = ticks(lo, hi)
    assert 1 <= len(marks) <= 11
    assert all(lo - width * 1e-6 <= t <= hi + width * 1e-6 for t in marks)
    steps = [b - a for a, b in zip(marks, marks[1:])]
    assert not steps or math.isclose(min(steps), max(steps), rel_tol=1e-4, abs_tol=1e-9)


def test_ticks_are_round_numbers() -> None:
    assert ticks(0, 100) == [0, 20, 40, 60, 80, 100]
    assert ticks(-31, 12) == [-30, -20, -10, 0, 10]
    assert ticks(0, 0.03) == [0, 0.005, 0.01, 0.015, 0.02, 0.025, 0.03]


@pytest.mark.parametrize(("lo", "hi", "digits"), [(0, 100, 0), (0, 1, 1), (0.1, 0.2, 2), (0, 0.03, 3)])
def test_digits_tell_ticks_apart(lo: float, hi: float, digits: int) -> None:
    axis = Axis(lo, hi)
    assert axis.digits == digits
    assert len({f"{t:.{digits}f}" for t in axis.ticks}) == len(axis.ticks)


@given(st.lists(st.one_of(st.none(), FINITE), max_size=8))
def test_an_axis_holds_what_it_was_made_around(values: list[float | None]) -> None:
    axis = Axis.around(values, include=(0.0,))
    assert axis.lo < axis.hi
    for value in (0.0, *values):
        if value is not None:
            assert axis.lo <= value <= axis.hi


def test_places_on_an_axis_are_clipped_percentages() -> None:
    axis = Axis(-10, 30)
    assert (axis.at(-10), axis.at(10), axis.at(30)) == ("0.00%", "50.00%", "100.00%")
    assert (axis.at(-99), axis.at(99)) == ("0.00%", "100.00%")
    assert axis.wide(0, -10) == axis.wide(-10, 0) == "25.00%"


def test_a_line_runs_up_the_page_and_its_band_surrounds_it() -> None:
    rising = Series("a", "0", [(0, 0), (10, 1)], [(0, -1, 1), (10, 0, 2)])
    chart = LineChart([rising], "step", "loss")
    (x0, y0), (x1, y1) = [map(float, p.split(",")) for p in chart.path(rising).split()]
    assert (x0, x1) == (0, 100) and y1 < y0
    area = [tuple(map(float, p.split(","))) for p in chart.area(rising).split()]
    assert len(area) == 4 and area[0][1] > y0 > area[-1][1]


def test_one_point_still_has_an_axis() -> None:
    only = Series("a", "0", [(5, 2)])
    assert LineChart([only], "step", "loss").path(only) == "50.00,50.00"
