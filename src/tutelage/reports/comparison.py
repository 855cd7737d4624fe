"""The report of a distillation: teacher, student alone and distilled student side by side, and how the run went.

The results are one JSON object, ``comparison.json`` in a run folder; one run is a comparison of fewer arms. Means and
changes are in the unit of ``metric``; shares in 0..1; times in seconds or milliseconds. null (or NaN) means not
measured. ::

    format "tutelage-comparison", version 1, method, title?, command, seeds [int], versions {name: text}, machine,
    settings_hash, seconds, peak_rss_mib
    metric {name, unit, higher_is_better?}
    summary {gain, gain_ci95 [lo, hi], gap_closed (share), equal_time_gain, equal_time_gain_ci95,
        verdicts [{claim, target, value, met, reason}]}
    arms [{name, role teacher|student|distilled|other, about?, parameters?,
        equal_steps {mean, sd, seeds [value of each seed], steps, seconds} | null,
        equal_time  {as equal_steps} | null,
        speed {ms_per_step, samples_per_s, peak_tensor_mib} | null,
        calibration {ece, bins [{confidence, accuracy, share}]} | null}]
    curves [{arm, points [{step, seconds, mean, sd}]}]
    losses {arm, terms [{name, weight, points [{step, value (weighted), share (of the gradient)}]}]}
    cache {any of: entries, bytes, hits, misses, build_seconds, break_even_steps, teacher, fingerprint;
        others are shown as they are}

``equal_steps`` gives every arm the same number of steps, ``equal_time`` the same wall-clock: the student alone then
trains for as long as its distilled twin took. Only format, version, metric and arms must be there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tutelage.errors import InputError
from tutelage.reports import formatting
from tutelage.reports.charts import Axis, ChartRow, IntervalBand, LineChart, PointMark, Series
from tutelage.reports.page import REMEDY, check_format, load, reads_results, render, require_field

FORMAT, VERSION, FILE = "tutelage-comparison", 1, "comparison.json"

ROLES = ("teacher", "student", "distilled", "other")
MARKS = {"teacher": "teacher", "student": "frozen", "distilled": "sdvp", "other": "routed"}
BUDGETS = {"equal_steps": "At equal steps", "equal_time": "At equal wall-clock"}
CACHE = {
    "entries": ("Entries", lambda v: formatting.number(v, 0)),
    "bytes": ("On disk", formatting.amount),
    "hits": ("Hits", lambda v: formatting.number(v, 0)),
    "misses": ("Misses", lambda v: formatting.number(v, 0)),
    "build_seconds": ("Time to build", formatting.duration),
    "break_even_steps": ("Pays for itself after", lambda v: f"{formatting.number(v, 0)} steps"),
}


def budget_bands(arms: Sequence[Mapping[str, Any]]) -> tuple[list[IntervalBand], Axis]:
    """Per budget and arm: every seed as a small dot, their mean as the arm's mark."""
    bands, values = [], []
    for budget, title in BUDGETS.items():
        rows = []
        for arm in arms:
            result = arm.get(budget)
            if not result or result.get("mean") is None:
                continue
            mean, sd, seeds = result["mean"], result.get("sd"), result.get("seeds") or []
            marks = [PointMark("seed", "seed", value) for value in seeds if value is not None]
            marks.append(PointMark(arm["name"], MARKS[arm["role"]], mean))
            end = formatting.number(mean) + (f" ± {formatting.number(sd)}" if sd is not None else "")
            rows.append(ChartRow(arm["name"], marks, end=end))
            values += [mark.value for mark in marks]
        if rows:
            bands.append(IntervalBand(title, rows))
    return bands, Axis.around(values, pad=0.08)


def styles(arms: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The line style of each arm: its role's own, a numbered one for the others."""
    return {arm["name"]: arm["role"] if arm["role"] != "other" else str(3 + n % 3) for n, arm in enumerate(arms)}


def curve_charts(data: Mapping[str, Any], unit: str) -> list[LineChart]:
    """Learning curves against steps and against seconds, with a band of one standard deviation."""
    style = styles(data["arms"])
    charts = []
    for key, label in (("step", "step"), ("seconds", "wall-clock, s")):
        series = []
        for curve in data.get("curves") or []:
            points = [p for p in curve["points"] if p.get(key) is not None and p.get("mean") is not None]
            band = [(p[key], p["mean"] - p["sd"], p["mean"] + p["sd"]) for p in points if p.get("sd") is not None]
            if points:
                line = [(p[key], p["mean"]) for p in points]
                series.append(Series(curve["arm"], style.get(curve["arm"], "3"), line, band))
        if series:
            charts.append(LineChart(series, label, unit))
    return charts


def loss_charts(losses: Mapping[str, Any]) -> list[LineChart]:
    """The weighted loss terms over time and, where known, each term's share of the gradient."""
    charts = []
    for key, label in (("value", "weighted loss"), ("share", "share of the gradient")):
        series = []
        for n, term in enumerate(losses["terms"]):
            points = [(p["step"], p[key]) for p in term["points"] if p.get(key) is not None]
            if points:
                weight = term.get("weight")
                name = term["name"] if weight is None else f"{term['name']} × {weight:g}"
                series.append(Series(name, str(n % 6), points))
        if series:
            charts.append(LineChart(series, "step", label, include_y=(0.0,)))
    return charts


def calibration_chart(arms: Sequence[Mapping[str, Any]]) -> LineChart | None:
    """How often an arm is right against how sure it says it is; empty bins are left out."""
    style, series = styles(arms), []
    for arm in arms:
        bins = (arm.get("calibration") or {}).get("bins") or []
        points = [(b["confidence"], b["accuracy"]) for b in bins if b.get("share") and b.get("accuracy") is not None]
        if points:
            series.append(Series(arm["name"], style[arm["name"]], points))
    return LineChart(series, "confidence", "share right", diagonal=True) if series else None


def cache_facts(cache: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Cache statistics as label and text, the known ones in words."""
    facts = []
    for key, value in cache.items():
        label, words = CACHE.get(key, (key.replace("_", " ").capitalize(), str))
        facts.append((label, formatting.MISSING if value is None else words(value)))
    return facts


def check(data: Mapping[str, Any], where: object) -> None:
    """Refuse results whose fields cannot be read.

    Raises:
        InputError: another format or version, or a field that is absent or of the wrong type, by its name.
    """
    check_format(data, FORMAT, VERSION, where)
    require_field(data, "metric.name", str, where)
    for n, arm in enumerate(require_field(data, "arms", list, where)):
        require_field(data, f"arms.{n}.name", str, where)
        if arm.get("role") not in ROLES:
            raise InputError(f"field arms.{n}.role must be one of {', '.join(ROLES)}", where=where, remedy=REMEDY)
    for n, _ in enumerate(data.get("curves") or []):
        require_field(data, f"curves.{n}.arm", str, where)
        require_field(data, f"curves.{n}.points", list, where)
    if data.get("losses"):
        for n, _ in enumerate(require_field(data, "losses.terms", list, where)):
            require_field(data, f"losses.terms.{n}.points", list, where)


@reads_results
def comparison_report(source: str | Path | Mapping[str, Any]) -> str:
    """The page of a distillation, from its results: a mapping, a JSON file, or the folder of ``comparison.json``.

    Raises:
        InputError: the results cannot be read; the message names the file and the field.
    """
    data, where = load(source, FILE)
    check(data, where)
    metric = data["metric"]
    unit = metric["name"] + (f", {metric['unit']}" if metric.get("unit") else "")
    arms = sorted(data["arms"], key=lambda arm: ROLES.index(arm["role"]))
    bands, axis = budget_bands(arms)
    return render(
        "comparison.html",
        where,
        data=data,
        summary=data.get("summary") or {},
        metric=metric,
        unit=unit,
        arms=arms,
        budgets=[(key, title) for key, title in BUDGETS.items() if any(arm.get(key) for arm in arms)],
        bands=bands,
        axis=axis,
        curves=curve_charts(data, unit),
        losses=loss_charts(data["losses"]) if data.get("losses") else [],
        loss_arm=(data.get("losses") or {}).get("arm"),
        calibration=calibration_chart(arms),
        cache=cache_facts(data.get("cache") or {}),
    )
