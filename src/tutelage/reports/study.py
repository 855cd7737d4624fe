"""The report of a study: what training gained, what was kept, and every program step by step.

The results are one JSON object, ``study.json`` in a run folder. Accuracies, gains and changes are in points (0..100);
shares of ``health`` are in 0..1; times in seconds or milliseconds. null (or NaN) means not measured. ::

    format "tutelage-study", version 1, command, seeds [int], versions {name: text}, machine, settings_hash,
    seconds, peak_rss_mib
    summary {current_gain, current_gain_ci95 [lo, hi], gap_closed (share), previous_change, unseen_change,
        naive_forgetting (points lost, positive), replaced_unseen_change, seeds, seconds, peak_rss_mib,
        verdicts [{claim, target, value, met, reason}]}
    tables
      arms      [{task, label?, group current|previous|unseen, n, cells {arm: {mean, sd} | null}, gain {mean, lo, hi}}]
      types     [{task, type, n?, cells}]
      matrix    {stages [text], tasks [text], ARM [[accuracy of task j after stage i]] for arms such as sdvp, naive}
      continual {arm: {average, bwt, forgetting, unseen_delta}}
      modules   [{module, metric, cells}]
      health    [{arm, valid, executed, fallback, out_of_vocabulary, calls_per_sample, ms_per_sample,
          failures {kind: count}?}]
      lessons   [{stage, module, teacher, accepted, teacher_score, student_score, records, kept, guard}]
      retain    [{option, current_gain, previous_change, unseen_change}]
    samples [{id, task, stage, question, gold, program [line], images {name: data URI},
        arms {before {answer, correct}, after {answer, correct}},
        steps [{n, text, module, image (data URI or a name of images), boxes [[x1, y1, x2, y2, score]],
            before {value, dist {answer: p}, boxes?, image?, wrong?}, after {as before},
            teacher {value, dist, conf, boxes?} | null, gold, wrong}]}]

Only format, version, summary and tables.arms must be there; what else is absent is said to be not measured. A step's
``wrong`` marks where the program went wrong before training.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tutelage.errors import InputError
from tutelage.reports import formatting
from tutelage.reports.charts import Axis, ChartRow, IntervalBand, PointMark
from tutelage.reports.page import REMEDY, check_format, load, reads_results, render, require_field

FORMAT, VERSION, FILE = "tutelage-study", 1, "study.json"

GROUPS = {
    "current": ("Current tasks", "trained in this study"),
    "previous": ("Previous tasks", "known before, not to be lost"),
    "unseen": ("Unseen tasks", "never trained on"),
}
ARMS = {
    "frozen": ("Frozen", "the modules before training"),
    "replaced": ("Replaced", "each trained module swapped for its teacher"),
    "routed": ("Routed", "the teacher answers where it can and is sure, else the frozen module"),
    "naive": ("Naive", "tuned on the teachers’ labels, without protection of old tasks"),
    "sdvp": ("SDVP", "distilled step by step, with self-distillation and a guard for old tasks"),
    "teacher": ("Teacher", "the specialists alone, on the tasks they were trained for"),
    "gold": ("Gold modules", "every module answers right: the most these programs can reach"),
}
REFERENCES = ("teacher", "gold")
CONTINUAL = {
    "average": ("Average", "mean accuracy after the last stage"),
    "bwt": ("Backward transfer", "change on trained tasks since each was trained"),
    "forgetting": ("Forgetting", "best accuracy ever reached less the last"),
    "unseen_delta": ("Unseen", "change on tasks never trained on"),
}


@dataclass(frozen=True)
class ArmColumn:
    """An arm as a column: its key in the JSON, its printed name, what it is, and the style of its marks."""

    key: str
    label: str
    about: str
    style: str
    reference: bool


@dataclass(frozen=True)
class HeatCell:
    """A cell of a heat map: the accuracy, its change since the first stage, and whether this stage trained the task."""

    value: float | None
    change: float | None
    trained: bool
    strength: int = field(init=False)

    def __post_init__(self) -> None:
        # Full colour at 20 points: a change that large is beyond doubt, and one point stays visible.
        share = min(1.0, abs(self.change or 0.0) / 20) ** 0.7
        object.__setattr__(self, "strength", round(100 * share))


def arm_columns(tables: Iterable[Sequence[Mapping[str, Any]]]) -> list[ArmColumn]:
    """Every arm that some row has a cell for: the known ones in their order, then others in the order met."""
    met = {arm: None for rows in tables for row in rows for arm, cell in row["cells"].items() if cell is not None}
    order = [arm for arm in ARMS if arm in met] + [arm for arm in met if arm not in ARMS]
    return [ArmColumn(arm, *ARMS.get(arm, (arm, "")), arm if arm in ARMS else "other", arm in REFERENCES) for arm in order]


def mean(cells: Mapping[str, Any], arm: str) -> float | None:
    """The mean of ``arm`` in a row's cells, None where it was not measured."""
    cell = cells.get(arm)
    return None if cell is None else cell.get("mean")


def gain_bands(groups: Mapping[str, list[Mapping[str, Any]]], labels: Mapping[str, str]) -> tuple[list[IntervalBand], Axis]:
    """Per task, the change of SDVP from frozen as a bar with its interval, and naive tuning's change as a mark."""
    bands, values = [], []
    for group, rows in groups.items():
        lines = []
        for row in rows:
            gain, cells = row.get("gain") or {}, row["cells"]
            frozen, naive = mean(cells, "frozen"), mean(cells, "naive")
            marks = [PointMark("Naive", "naive", naive - frozen)] if naive is not None and frozen is not None else []
            bar = None
            if gain.get("mean") is not None:
                bar = PointMark("SDVP", "sdvp", gain["mean"], gain.get("lo"), gain.get("hi"))
            values += [gain.get("mean"), gain.get("lo"), gain.get("hi"), *(m.value for m in marks)]
            lines.append(ChartRow(labels[row["task"]], marks, bar, formatting.signed(gain.get("mean"))))
        bands.append(IntervalBand(GROUPS[group][0], lines))
    return bands, Axis.around(values, include=(0.0,))


def dot_bands(
    groups: Mapping[str, list[Mapping[str, Any]]], arms: Sequence[ArmColumn], labels: Mapping[str, str]
) -> tuple[list[IntervalBand], Axis]:
    """Per task, the accuracy of every arm with its spread over seeds."""
    bands, values = [], []
    for group, rows in groups.items():
        lines = []
        for row in rows:
            marks = []
            # SDVP last, so that it is drawn on top.
            for arm in sorted(arms, key=lambda a: a.key == "sdvp"):
                value = mean(row["cells"], arm.key)
                if value is None:
                    continue
                sd = row["cells"][arm.key].get("sd")
                spread = (None, None) if sd is None or arm.reference else (value - sd, value + sd)
                marks.append(PointMark(arm.label, arm.style, value, *spread))
                values += [value]
            lines.append(ChartRow(labels[row["task"]], marks))
        bands.append(IntervalBand(GROUPS[group][0], lines))
    return bands, Axis.around(values, include=(100.0,), pad=0.02)


def heat_maps(matrix: Mapping[str, Any], groups: Mapping[str, list[Mapping[str, Any]]], where: object) -> dict[str, Any]:
    """The continual matrix: per arm, tasks down and stages across, in the groups of the accuracy table."""
    stages, tasks = require_field(matrix, "stages", list, where), require_field(matrix, "tasks", list, where)
    group_of = {row["task"]: group for group, rows in groups.items() for row in rows}
    order = sorted(range(len(tasks)), key=lambda j: list(GROUPS).index(group_of.get(tasks[j], "unseen")))
    maps = []
    for arm, values in matrix.items():
        if arm in ("stages", "tasks"):
            continue
        if [len(v) for v in values] != [len(tasks)] * len(stages):
            raise InputError(
                f"field tables.matrix.{arm} must be {len(stages)} stages x {len(tasks)} tasks",
                where=where,
                remedy=REMEDY,
            )
        rows = []
        for j in order:
            start = values[0][j]
            cells = [
                HeatCell(v[j], None if v[j] is None or start is None else v[j] - start, stage == tasks[j])
                for stage, v in zip(stages, values, strict=True)
            ]
            rows.append({"task": tasks[j], "group": group_of.get(tasks[j], ""), "cells": cells})
        maps.append({"arm": arm, "label": ARMS.get(arm, (arm, ""))[0], "rows": rows})
    return {"stages": stages, "maps": maps}


def with_decimals(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of cells, each with the number of decimals that suits it: shares need more than points."""
    return [dict(row, digits=formatting.decimals(mean(row["cells"], arm) for arm in row["cells"])) for row in rows]


def sample_counts(samples: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """How many samples were fixed, broken, still wrong and right both times."""
    names = {(False, True): "fixed", (True, False): "broken", (False, False): "wrong", (True, True): "right"}
    counts = dict.fromkeys(names.values(), 0)
    for sample in samples:
        arms = sample["arms"]
        counts[names[bool(arms["before"]["correct"]), bool(arms["after"]["correct"])]] += 1
    return counts


def check(data: Mapping[str, Any], where: object) -> None:
    """Refuse results whose fields cannot be read.

    Raises:
        InputError: another format or version, or a field that is absent or of the wrong type, by its name.
    """
    check_format(data, FORMAT, VERSION, where)
    require_field(data, "summary", dict, where)
    tables = require_field(data, "tables", dict, where)
    for table in ("arms", "types", "modules"):
        if table == "arms" or tables.get(table) is not None:
            for n, _ in enumerate(require_field(data, f"tables.{table}", list, where)):
                for arm, cell in require_field(data, f"tables.{table}.{n}.cells", dict, where).items():
                    if cell is not None:
                        require_field(data, f"tables.{table}.{n}.cells.{arm}", dict, where)
    for n, row in enumerate(tables["arms"]):
        require_field(data, f"tables.arms.{n}.task", str, where)
        if row.get("group") not in GROUPS:
            known = ", ".join(GROUPS)
            raise InputError(f"field tables.arms.{n}.group must be one of {known}", where=where, remedy=REMEDY)
    for n, _ in enumerate(data.get("samples") or []):
        for name, kind in (("id", str), ("task", str), ("question", str), ("steps", list)):
            require_field(data, f"samples.{n}.{name}", kind, where)
        for side in ("before", "after"):
            require_field(data, f"samples.{n}.arms.{side}.correct", bool, where)


@reads_results
def study_report(source: str | Path | Mapping[str, Any]) -> str:
    """The page of a study, from its results: a mapping, a JSON file, or the run folder that holds ``study.json``.

    Raises:
        InputError: the results cannot be read; the message names the file and the field.
    """
    data, where = load(source, FILE)
    check(data, where)
    tables, rows = data["tables"], data["tables"]["arms"]
    labels = {row["task"]: row.get("label") or row["task"].replace("_", " ") for row in rows}
    groups = {group: [row for row in rows if row["group"] == group] for group in GROUPS}
    groups = {group: members for group, members in groups.items() if members}
    arms = arm_columns([rows])
    gains, gain_axis = gain_bands(groups, labels)
    dots, dot_axis = dot_bands(groups, arms, labels)
    samples = data.get("samples") or []
    return render(
        "study.html",
        where,
        data=data,
        summary=data["summary"],
        tables=tables,
        groups=groups,
        group_names=GROUPS,
        labels=labels,
        arms=arms,
        arm_legend=[(arm.label, arm.style, arm.about) for arm in arms],
        arm_names={arm: label for arm, (label, _) in ARMS.items()},
        gains=gains,
        gain_axis=gain_axis,
        dots=dots,
        dot_axis=dot_axis,
        heat=heat_maps(tables["matrix"], groups, where) if tables.get("matrix") else None,
        continual=CONTINUAL,
        modules=with_decimals(tables.get("modules") or []),
        module_arms=arm_columns([tables.get("modules") or []]),
        types=tables.get("types") or [],
        type_arms=arm_columns([tables.get("types") or []]),
        samples=samples,
        counts=sample_counts(samples),
    )
