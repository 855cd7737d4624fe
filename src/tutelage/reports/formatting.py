"""How a report writes numbers: a true minus sign, a dash where nothing was measured, units that people say."""

from __future__ import annotations

from collections.abc import Iterable

MISSING = "–"


def number(value: float | None, digits: int = 1) -> str:
    """``value`` with a fixed number of decimals, thousands apart; a dash for None."""
    if value is None:
        return MISSING
    text = f"{value:,.{digits}f}".replace(",", "\u202f")
    if not text.strip("-0.\u202f"):
        text = text.removeprefix("-")
    return text.replace("-", "−")


def signed(value: float | None, digits: int = 1) -> str:
    """As :func:`number`, with its sign always shown, but for zero."""
    text = number(value, digits)
    return text if value is None or value <= 0 or not text.strip("0.") else f"+{text}"


def interval(lo: float | None, hi: float | None, digits: int = 1) -> str:
    """``lo to hi``, signed."""
    return MISSING if lo is None or hi is None else f"{signed(lo, digits)} to {signed(hi, digits)}"


def percent(share: float | None, digits: int = 1) -> str:
    """A share in 0..1 as a percentage."""
    return MISSING if share is None else f"{number(100 * share, digits)}\u202f%"


def decimals(values: Iterable[float | None]) -> int:
    """Decimals that suit all ``values`` of one row: 3 where every one is within -1..1, else 1."""
    known = [abs(v) for v in values if v is not None]
    return 3 if known and max(known) <= 1 else 1


def duration(seconds: float | None) -> str:
    """Seconds as people say them."""
    if seconds is None:
        return MISSING
    if seconds < 90:
        return f"{number(seconds, 0 if seconds >= 10 else 1)} s"
    whole = round(seconds)
    if whole < 5400:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def amount(size: float | None) -> str:
    """Bytes in KiB, MiB or GiB."""
    if size is None:
        return MISSING
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{number(size, 0 if unit == 'B' else 1)} {unit}"
        size /= 1024
    return f"{number(size, 1)} GiB"
