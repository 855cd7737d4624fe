"""Pictures that stand alone: SVG files of a table of colours, of a ranking with intervals, and of curves.

They load nothing, need no style sheet, and follow the reader's choice of dark or light.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from tutelage.errors import InputError
from tutelage.reports.charts import Axis, LineChart, Series
from tutelage.reports.formatting import number
from tutelage.reports.page import environment

LETTER = 7.2
"""Pixels of a letter of the labels, about."""


def heat_map(
    title: str,
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float | None]],
    *,
    digits: int = 2,
    middle: float = 0.0,
) -> str:
    """A table of colours as SVG: blue above ``middle``, orange below, the number in each cell, a dash for None.

    Args:
        title: stands above, and is read aloud.
        rows, columns: labels.
        values: ``[rows][columns]``; not finite counts as None.
        digits: decimals.
        middle: the value without colour.

    Raises:
        InputError: no value, or not one a row and column.
    """
    if not rows or not columns or len(values) != len(rows) or any(len(row) != len(columns) for row in values):
        raise InputError(f"no table of {len(rows)} rows and {len(columns)} columns", where="picture", remedy="one value for each")
    known = [abs(value - middle) for row in values for value in row if value is not None and math.isfinite(value)]
    most = max(known, default=0.0) or 1.0
    table = [[_cell(value, middle, most, digits) for value in row] for row in values]
    label = LETTER * max(map(len, rows)) + 16
    cell = max(LETTER * max(*map(len, columns), digits + 4) + 8, 34.0)
    size = max(label + cell * len(columns) + 8, LETTER * len(title) + 16), 62.0 + 26 * len(rows)
    return _drawn(
        "heat_map.svg", title=title, rows=rows, columns=columns, table=table, label=label, cell=cell, width=size[0], height=size[1]
    )


def _cell(value: float | None, middle: float, most: float, digits: int) -> dict[str, object]:
    if value is None or not math.isfinite(value):
        return {"text": number(None), "style": "none", "strength": 0.0}
    return {
        "text": number(value, digits),
        "style": "up" if value >= middle else "down",
        "strength": round(0.75 * abs(value - middle) / most, 3),
    }


def ranking(
    title: str,
    unit: str,
    names: Sequence[str],
    values: Sequence[float],
    lows: Sequence[float | None],
    highs: Sequence[float | None],
    *,
    digits: int = 2,
) -> str:
    """A ranking as SVG, the first name on top: a point a name and, where known, its interval.

    Args:
        title: stands above, and is read aloud.
        unit: what the numbers are.
        names: one a line.
        values, lows, highs: the points and the ends of their intervals; None: there is none.
        digits: decimals.

    Raises:
        InputError: no name, or not as many numbers as names.
    """
    if not names or any(len(one) != len(names) for one in (values, lows, highs)):
        raise InputError(f"no ranking of {len(names)} names", where="picture", remedy="a value for each name, and at least one")
    axis = Axis.around([*values, *lows, *highs])
    label, field = LETTER * max(map(len, names)) + 16, 360.0
    lines = [
        {
            "name": name,
            "x": axis.share(value),
            "low": None if low is None or high is None else axis.share(low),
            "high": None if low is None or high is None else axis.share(high),
            "text": number(value, digits),
        }
        for name, value, low, high in zip(names, values, lows, highs, strict=True)
    ]
    ticks = [(axis.share(tick), number(tick, axis.digits)) for tick in axis.ticks]
    width, height = max(label + field + 72, LETTER * len(title) + 16), 84.0 + 24 * len(names)
    return _drawn(
        "ranking.svg", title=title, unit=unit, lines=lines, ticks=ticks, label=label, field=field, width=width, height=height
    )


def line_chart(title: str, x_label: str, y_label: str, series: Sequence[Series]) -> str:
    """Curves as SVG, each with its band where it has one, and their names beside them.

    Args:
        title: stands above, and is read aloud.
        x_label, y_label: what the axes are.
        series: the curves; their ``style`` is not used.

    Raises:
        InputError: no curve, or one without points.
    """
    if not series or not all(one.points for one in series):
        raise InputError(f"nothing to draw in {len(series)} curves", where="picture", remedy="points of at least one curve")
    chart, field, left = LineChart(series, x_label, y_label), (420.0, 240.0), 64.0
    names = LETTER * max(len(one.name) for one in series) + 48
    width, height = max(left + field[0] + 16 + names, LETTER * len(title) + 16), max(field[1] + 96, 56.0 + 22 * len(series))
    return _drawn("line_chart.svg", title=title, chart=chart, field=field, left=left, top=40.0, width=width, height=height)


def _drawn(template: str, **context: object) -> str:
    text = environment().get_template(template).render(context)
    return "\n".join(line.rstrip() for line in text.splitlines() if line.strip()) + "\n"
