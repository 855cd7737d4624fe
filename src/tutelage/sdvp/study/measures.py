"""How good each module is by itself, on labelled calls of the selection split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tutelage.modules.visual_module import Label, VisualModule
from tutelage.programs.answers import normalise
from tutelage.programs.language import Module
from tutelage.programs.values import Box, iou
from tutelage.sdvp.accept import Probe
from tutelage.sdvp.study.setting import Setting

Answered = Sequence[tuple[Label | None, Label]]


def measure(setting: Setting, modules: Mapping[str, Module], teachers: bool = False) -> dict[str, dict[str, float]]:
    """``{"stage MODULE": {metric: value}}`` for every module with labelled calls, or for the teachers in their place."""
    found = {}
    for stage in setting.stages:
        for name, teacher in stage.teachers.items():
            calls, module = stage.probe.get(name, []), modules[name]
            if calls and isinstance(module, VisualModule):
                said = teacher.label([call for call, _ in calls]) if teachers else _says(module, calls)
                pairs = list(zip(said, [gold for _, gold in calls], strict=True))
                found[f"{stage.name} {name}"] = located(pairs) if name == "LOC" else answered(pairs)
    return found


def _says(module: VisualModule, calls: Probe) -> list[Label | None]:
    out: list[Label | None] = []
    for start in range(0, len(calls), 256):
        said = module.run([call for call, _ in calls[start : start + 256]])
        dists = said.distributions or [None] * len(said.values)
        out += [Label(v, d, max(d.values()) if d else 1.0) for v, d in zip(said.values, dists, strict=True)]
    return out


def answered(pairs: Answered) -> dict[str, float]:
    """Accuracy and expected calibration error over ten bins (both in points)."""
    known = [(said, gold) for said, gold in pairs if said is not None]
    right = np.array([normalise(said.hard) == normalise(gold.hard) for said, gold in known], float)
    conf = np.array([said.conf for said, _ in known])
    bins = np.minimum((conf * 10).astype(int), 9)
    error = sum(abs(right[bins == b].mean() - conf[bins == b].mean()) * (bins == b).mean() for b in set(bins.tolist()))
    return {"accuracy": 100 * float(right.mean()), "calibration error": 100 * float(error)}


def located(pairs: Answered, threshold: float = 0.5) -> dict[str, float]:
    """Precision and recall at IoU 0.5 (points), and the mean absolute error of the count (boxes)."""
    hits = found = there = 0
    errors = []
    for said, gold in pairs:
        boxes: list[Box] = list(said.hard) if said is not None else []
        truth: list[Box] = list(gold.hard)
        left = list(truth)
        for box in boxes:
            best = max(left, key=lambda g: iou(box, g), default=None)
            if best is not None and iou(box, best) >= threshold:
                hits += 1
                left.remove(best)
        found, there = found + len(boxes), there + len(truth)
        errors.append(abs(len(boxes) - len(truth)))
    return {
        "precision": 100 * hits / max(1, found),
        "recall": 100 * hits / max(1, there),
        "count error": float(np.mean(errors)),
    }
