"""The report of learning task after task: what each task's accuracy became, stage by stage.

The results are one JSON object, ``continual.json`` (``distillation.continual.continual_result`` makes it). null (or NaN) means
not measured. ::

    format "tutelage-continual", version 1, title?, unit, tasks [name], command?, seeds?, machine?, versions?, seconds?
    arms [{name, matrix [[accuracy on task j after task i]],
           figures {average, learning, backward_transfer, forgetting}}]
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tutelage.errors import InputError
from tutelage.reports.page import REMEDY, check_format, load, reads_results, render, require_field

FORMAT, VERSION, FILE = "tutelage-continual", 1, "continual.json"

FIGURES = {
    "average": ("Average", "over all tasks, at the end"),
    "learning": ("Learning", "each task, just after it was learned"),
    "backward_transfer": ("Backward transfer", "from then to the end"),
    "forgetting": ("Forgetting", "the best before the last task, less the end"),
}
FULL = 20.0
"""The change in points at which a cell has its full colour."""


def heat_map(matrix: list[list[float | None]], tasks: list[str]) -> list[dict[str, Any]]:
    """A row for each task: its accuracy after each stage, and the change since the stage that taught it."""
    rows = []
    for column, task in enumerate(tasks):
        learned, cells = matrix[column][column], []
        for stage in range(len(tasks)):
            value = matrix[stage][column]
            change = value - learned if stage > column and value is not None and learned is not None else None
            strength = min(100.0, 100 * abs(change or 0.0) / FULL)
            cells.append({"value": value, "change": change, "strength": round(strength), "taught": stage == column})
        rows.append({"task": task, "cells": cells})
    return rows


@reads_results
def continual_report(source: str | Path | Mapping[str, Any]) -> str:
    """The page of a run over a task stream, as one self-contained HTML text.

    Args:
        source: the results, their JSON file, or the run's folder.

    Raises:
        InputError: no such results, or a field that is not as it must be.
    """
    data, where = load(source, FILE)
    check_format(data, FORMAT, VERSION, where)
    tasks, arms = require_field(data, "tasks", list, where), require_field(data, "arms", list, where)
    for number, arm in enumerate(arms):
        matrix = require_field(data, f"arms.{number}.matrix", list, where)
        if len(matrix) != len(tasks) or any(len(row) != len(tasks) for row in matrix):
            raise InputError(f"the matrix of {arm.get('name')!r} is not one row and column a task", where=where, remedy=REMEDY)
    maps = [{"label": arm["name"], "rows": heat_map(arm["matrix"], tasks)} for arm in arms]
    return render("continual.html", where, data=data, tasks=tasks, arms=arms, maps=maps, figures=FIGURES, full=FULL)
