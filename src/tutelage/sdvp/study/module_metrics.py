"""How good each module is by itself, on labelled calls of the selection split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tutelage.modules.visual_module import CallLabel, VisualModule
from tutelage.programs.answers import normalize_answer
from tutelage.programs.types import Module
from tutelage.programs.values import Box, iou
from tutelage.sdvp.study.setup import StudySetup
from tutelage.sdvp.teacher_check import Probe, value_matches

LabelPairs = Sequence[tuple[CallLabel | None, CallLabel]]


def measure(setup: StudySetup, modules: Mapping[str, Module], teachers: bool = False) -> dict[str, dict[str, float]]:
    """``{"stage MODULE": {metric: value}}`` for every module with labelled calls, or for the teachers in their place."""
    found = {}
    for stage in setup.stages:
        for name, teacher in stage.teachers.items():
            calls, module = stage.probe.get(name, []), modules[name]
            if calls and isinstance(module, VisualModule):
                labels_or_outputs = teacher.label([call for call, _ in calls]) if teachers else _predictions(module, calls)
                pairs = list(zip(labels_or_outputs, [gold for _, gold in calls], strict=True))
                metrics = detection_metrics(pairs) if name == "LOC" else answer_metrics(pairs)
                if name == "VERIFY":
                    metrics["area under ROC"] = roc_auc(pairs)
                labels = labels_or_outputs if teachers else teacher.label([call for call, _ in calls])
                both = [(output, label) for output, label in zip(labels_or_outputs, labels, strict=True) if output and label]
                metrics["agreement with the teacher"] = 100 * float(np.mean([value_matches(a.value, b.value) for a, b in both]))
                found[f"{stage.name} {name}"] = metrics
    return found


def _predictions(module: VisualModule, calls: Probe) -> list[CallLabel | None]:
    out: list[CallLabel | None] = []
    for start in range(0, len(calls), 256):
        outputs = module.run([call for call, _ in calls[start : start + 256]])
        dists = outputs.distributions or [None] * len(outputs.values)
        out += [CallLabel(v, d, max(d.values()) if d else 1.0) for v, d in zip(outputs.values, dists, strict=True)]
    return out


def answer_metrics(pairs: LabelPairs) -> dict[str, float]:
    """Accuracy and expected calibration error over ten bins (both in points)."""
    known = [(output, gold) for output, gold in pairs if output is not None]
    right = np.array([normalize_answer(output.value) == normalize_answer(gold.value) for output, gold in known], float)
    conf = np.array([output.confidence for output, _ in known])
    bins = np.minimum((conf * 10).astype(int), 9)
    error = sum(abs(right[bins == b].mean() - conf[bins == b].mean()) * (bins == b).mean() for b in set(bins.tolist()))
    return {"accuracy": 100 * float(right.mean()), "calibration error": 100 * float(error)}


def roc_auc(pairs: LabelPairs) -> float:
    """The area under the ROC curve, in points, of how probable "yes" was said to be: the share of (yes, no) pairs of calls
    that it ranks rightly, ties counted half."""
    scored = [
        (label.probabilities["yes"] if label.probabilities else float(label.value), bool(gold.value))
        for label, gold in pairs
        if label
    ]
    yes, no = (np.array([p for p, truth in scored if truth is wanted]) for wanted in (True, False))
    if not len(yes) or not len(no):
        return float("nan")
    ahead = (yes[:, None] > no[None]).mean() + 0.5 * (yes[:, None] == no[None]).mean()
    return 100 * float(ahead)


def average_precision(pairs: LabelPairs, threshold: float = 0.5) -> float:
    """Precision averaged over recall (0..1) as boxes are taken by falling score; a box hits a gold box that no better one
    has hit, at IoU ``threshold``. Of the boxes as answered: what lies below the module's own threshold is not seen."""
    boxes = [(box.score, number, box) for number, (predicted, _) in enumerate(pairs) if predicted for box in predicted.value]
    left = [list(gold.value) for _, gold in pairs]
    total = sum(map(len, left))
    hits = []
    for _, number, box in sorted(boxes, key=lambda row: -row[0]):
        best = max(left[number], key=lambda g: iou(box, g), default=None)
        hit = best is not None and iou(box, best) >= threshold
        if hit:
            left[number].remove(best)
        hits.append(hit)
    found = np.cumsum(hits)
    precision = found / np.arange(1, len(hits) + 1)
    best_from_here = np.maximum.accumulate(precision[::-1])[::-1]
    return float(best_from_here[np.array(hits, bool)].sum() / max(1, total))


def detection_metrics(pairs: LabelPairs, threshold: float = 0.5) -> dict[str, float]:
    """Average precision, precision and recall at IoU 0.5 (points), and the mean absolute error of the count (boxes)."""
    hits = found = there = 0
    errors = []
    for predicted, gold in pairs:
        boxes: list[Box] = list(predicted.value) if predicted is not None else []
        truth: list[Box] = list(gold.value)
        left = list(truth)
        for box in boxes:
            best = max(left, key=lambda g: iou(box, g), default=None)
            if best is not None and iou(box, best) >= threshold:
                hits += 1
                left.remove(best)
        found, there = found + len(boxes), there + len(truth)
        errors.append(abs(len(boxes) - len(truth)))
    return {
        "average precision": 100 * average_precision(pairs, threshold),
        "precision": 100 * hits / max(1, found),
        "recall": 100 * hits / max(1, there),
        "count error": float(np.mean(errors)),
    }
