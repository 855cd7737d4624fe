"""The geometry and the numbers of the charts; ``templates/charts.html`` draws them.

Rows are drawn with percentages across and pixels down, so that a chart fills a desk or a phone and its text is never
scaled. Colours come from the style sheet, which knows dark and light.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


def ticks(lo: float, hi: float, about: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) inside ``lo``..``hi``, roughly ``about`` of them."""
    if not hi > lo:
        return [lo]
    raw = (hi - lo) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * min((1, 2, 5, 10), key=lambda n: abs(math.log(n * power / raw)))
    first, last = math.ceil(lo / step - 1e-9), math.floor(hi / step + 1e-9)
    return [round(n * step, 10) + 0.0 for n in range(first, last + 1)]


@dataclass(frozen=True)
class Axis:
    """A linear scale from ``lo`` to ``hi``."""

    lo: float
    hi: float
    about: int = 5

    @classmethod
    def around(cls, values: Iterable[float | None], *, include: Sequence[float] = (), pad: float = 0.04) -> Axis:
        """The scale that holds every value (None is left out) with a little room; 0..1 where there is none."""
        known = [v for v in (*values, *include) if v is not None]
        if not known:
            return cls(0.0, 1.0)
        lo, hi = min(known), max(known)
        room = (hi - lo or abs(hi) or 1.0) * pad
        return cls(lo - room, hi + room)

    def share(self, value: float) -> float:
        """Where ``value`` lies, 0 at ``lo`` and 100 at ``hi``; values outside stop at the edge."""
        return min(100.0, max(0.0, 100 * (value - self.lo) / (self.hi - self.lo)))

    def at(self, value: float) -> str:
        """:meth:`share` as a percentage for SVG and CSS."""
        return f"{self.share(value):.2f}%"

    def wide(self, a: float, b: float) -> str:
        """The distance between two values as a percentage."""
        return f"{abs(self.share(a) - self.share(b)):.2f}%"

    @property
    def ticks(self) -> list[float]:
        """Round numbers to draw."""
        return ticks(self.lo, self.hi, self.about)

    @property
    def digits(self) -> int:
        """Decimals that tell neighbouring ticks apart."""
        marks = self.ticks
        step = marks[1] - marks[0] if len(marks) > 1 else abs(marks[0]) if marks else 1.0
        return max(0, -math.floor(math.log10(step) + 1e-9)) if step else 0


@dataclass(frozen=True)
class PointMark:
    """One reading in a row: its owner (``style`` picks shape and colour), the value and, where known, its interval."""

    name: str
    style: str
    value: float
    lo: float | None = None
    hi: float | None = None


@dataclass(frozen=True)
class ChartRow:
    """One line of a row chart: a label, a bar from zero (or none), marks, and what is printed at its end."""

    label: str
    marks: Sequence[PointMark] = ()
    bar: PointMark | None = None
    end: str = ""


@dataclass(frozen=True)
class IntervalBand:
    """Rows under one heading."""

    title: str
    rows: Sequence[ChartRow]


@dataclass(frozen=True)
class Series:
    """One line of a line chart: points (x, y) in the order of x, and optionally the band (x, lo, hi) round it."""

    name: str
    style: str
    points: Sequence[tuple[float, float]]
    band: Sequence[tuple[float, float, float]] = ()


@dataclass(frozen=True)
class LineChart:
    """A line chart; both axes hold every point."""

    series: Sequence[Series]
    x_label: str
    y_label: str
    include_y: Sequence[float] = ()
    diagonal: bool = False
    x: Axis = field(init=False)
    y: Axis = field(init=False)

    def __post_init__(self) -> None:
        points = [p for s in self.series for p in s.points]
        bands = [edge for s in self.series for _, *edges in s.band for edge in edges]
        square = (0.0, 1.0) if self.diagonal else ()
        object.__setattr__(self, "x", Axis.around((x for x, _ in points), include=square, pad=0.0))
        heights = [*(y for _, y in points), *bands, *self.include_y]
        object.__setattr__(self, "y", Axis.around(heights, include=square))
        if self.x.hi == self.x.lo:
            object.__setattr__(self, "x", Axis(self.x.lo - 0.5, self.x.hi + 0.5))

    def _xy(self, x: float, y: float) -> str:
        return f"{self.x.share(x):.2f},{100 - self.y.share(y):.2f}"

    def path(self, series: Series) -> str:
        """The polyline points of ``series`` in a 100 x 100 field, y downwards."""
        return " ".join(self._xy(x, y) for x, y in series.points)

    def area(self, series: Series) -> str:
        """The polygon points of the band of ``series``; empty where it has none."""
        there, back = [(x, lo) for x, lo, _ in series.band], [(x, hi) for x, _, hi in reversed(series.band)]
        return " ".join(self._xy(x, y) for x, y in (*there, *back))
