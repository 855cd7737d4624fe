"""Teacher, student alone and distilled student side by side: what the comparison report reads."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.distillation.data import Batch, ReplayableData, TensorData, flatten_tree
from tutelage.distillation.data.dataset import DatasetData
from tutelage.distillation.data.loader import in_order
from tutelage.distillation.evaluate import evaluate, evaluate_outputs, task_of
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.method import Method
from tutelage.distillation.outputs import forward_heads
from tutelage.distillation.result import TrainingResult
from tutelage.distillation.supervised import Supervised
from tutelage.distillation.tasks import Classification, Metric, Task, make_task
from tutelage.distillation.teacher import Teacher
from tutelage.distillation.trainer import train
from tutelage.errors import InputError

ALONE, DISTILLED, ALONE_LATE = "student alone", "distilled", "student alone, equal time"
"""The arms of a comparison; the last is the student alone again, given the wall-clock of the distilled one."""


def class_labels(test: ReplayableData) -> Tensor:
    """The class labels [N] of all of ``test``.

    Raises:
        InputError: it has none.
    """
    labels = test.labels if isinstance(test, (TensorData, DatasetData)) else test.batch(torch.arange(len(test)), None).labels
    if not isinstance(labels, Tensor) or labels.ndim != 1:
        raise InputError("the test data has no class labels", where="test", remedy="give [N] int64 labels")
    return labels


def _chunks(test: ReplayableData, predict: Callable[[Batch], Tensor]) -> Tensor:
    """The softmax of what ``predict`` says of every plain sample, [N, C]; asked in parts that fit into memory."""
    with torch.no_grad():
        parts = [predict(batch) for batch in in_order(test, _at_once(test))]
    return torch.cat(parts).softmax(-1)


def _at_once(test: ReplayableData) -> int:
    """How many samples are asked about at once: 1000, or as many as fit into 256 MiB."""
    size = sum(leaf.nbytes for _, leaf in flatten_tree(test.batch(torch.zeros(1, dtype=torch.int64), None).inputs))
    return min(1000, max(1, (256 << 20) // max(1, size)))


def probabilities(network: nn.Module, test: ReplayableData) -> Tensor:
    """What ``network``, in eval mode, says of every sample: [N, C]."""
    network.eval()
    return _chunks(test, lambda batch: forward_heads(network, batch.inputs)["logits"])


def accuracy(network: nn.Module, test: ReplayableData) -> dict[str, float]:
    """``{"accuracy": share of right answers, %}``."""
    predictions = probabilities(network, test).argmax(-1)
    return {"accuracy": 100 * float((predictions == class_labels(test)).double().mean())}


def calibration(probabilities: Tensor, labels: Tensor, bins: int = 10) -> dict[str, Any]:
    """Expected calibration error over equal-width bins of confidence (Guo et al., 2017), with the bins.

    probabilities: [N, C]; labels: [N]. Returns ``{ece, bins: [{confidence, accuracy, share}]}`` without empty bins.
    """
    sure, predictions = probabilities.max(-1)
    right = (predictions == labels).double()
    which = (sure * bins).long().clamp_max(bins - 1)
    found = []
    for number in range(bins):
        inside = which == number
        if bool(inside.any()):
            share = float(inside.double().mean())
            found.append({"confidence": float(sure[inside].mean()), "accuracy": float(right[inside].mean()), "share": share})
    ece = sum(one["share"] * abs(one["accuracy"] - one["confidence"]) for one in found)
    return {"ece": ece, "bins": found}


def compare(
    student: Callable[[int], nn.Module],
    teacher: Teacher,
    data: ReplayableData,
    test: ReplayableData,
    method: Method,
    settings: TrainingSettings,
    seeds: Sequence[int] = (0, 1, 2),
    labelled: ReplayableData | None = None,
    task: str | Task | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """Train the student alone and distilled, from equal starts, at equal steps and at equal wall-clock.

    Args:
        student: builds the student of a seed.
        teacher: a live teacher; its accuracy is the ceiling that is shown.
        data: what is distilled on. ``labelled``: what the student alone trains on (None: ``data``).
        test: labelled data; nothing is chosen on it.
        task: what is predicted; its first metric is compared. None: inferred from ``test``.
        method, settings: of the distilled arm; the student alone has the same settings.
        seeds: one pair of runs each.

    Returns:
        A ``tutelage-comparison`` of version 1: metric, summary, arms, curves and losses (see ``reports.comparison``).
        Equal wall-clock gives the student alone as many more steps as distillation took longer, by measured seconds.

    Raises:
        InputError: no seed, a test set without labels, or a task that is not clear.
    """
    if not seeds:
        raise InputError("no seed to run", where="seeds", remedy="at least 1")
    settings = settings.resolve(len(data))
    kind = task_of(student(seeds[0]), test) if task is None else make_task(task)

    def score(network: nn.Module) -> Mapping[str, float]:
        return evaluate(network, test, kind)

    arms: dict[str, list[TrainingResult]] = {ALONE: [], DISTILLED: [], ALONE_LATE: []}
    for number, seed in enumerate(seeds):
        chosen = replace(settings, seed=seed, eval_every=settings.eval_every or max(1, settings.steps // 10))
        start = student(seed)

        def run(
            name: str,
            how: Method,
            on: ReplayableData,
            arm_settings: TrainingSettings,
            start: nn.Module = start,
            number: int = number,
        ) -> TrainingResult:
            if progress is not None:
                progress(name, number, len(seeds))
            training_job = TrainingJob(copy.deepcopy(start), teacher, copy.deepcopy(how), on, arm_settings, name, score, kind)
            result = train(training_job)
            arms[name].append(result)
            return result

        own = labelled if labelled is not None else data
        distilled = run(DISTILLED, method, data, chosen)
        alone = run(ALONE, Supervised(), own, chosen)
        longer = max(1, round(settings.steps * distilled.seconds / max(alone.seconds, 1e-9)))
        run(ALONE_LATE, Supervised(), own, replace(chosen, steps=longer))
    if progress is not None:
        progress("done", len(seeds), len(seeds))
    return assemble(arms, teacher, test, settings, list(seeds), type(method).__name__.lower(), kind)


def assemble(
    arms: Mapping[str, Sequence[TrainingResult]],
    teacher: Teacher | None,
    test: ReplayableData,
    settings: TrainingSettings,
    seeds: list[int],
    method: str,
    task: Task | None = None,
) -> dict[str, Any]:
    """The comparison of runs that are done: of ``DISTILLED``, and of ``ALONE`` and ``ALONE_LATE`` where they were run.

    ``task``: of all runs (None: classification); its first metric is compared, and classes have a calibration too.

    Raises:
        InputError: a test set without labels.
    """
    task = task or Classification()
    metric, ceiling = task.metrics[0], None
    labels = class_labels(test) if isinstance(task, Classification) else None
    rows: list[dict[str, Any]] = []
    if teacher is not None:
        live = teacher.uncached
        ceiling = evaluate_outputs(live, test, task)[metric.name]
        budget = {"seeds": [ceiling], "mean": ceiling, "sd": None, "steps": None, "seconds": None}
        rows.append(
            {
                "name": "teacher",
                "role": "teacher",
                "parameters": sum(_count(network) for network in teacher.networks) or None,
                "equal_steps": budget,
                "equal_time": budget,
                "speed": None,
                "calibration": None if labels is None else calibration(_chunks(test, lambda batch: live(batch)["logits"]), labels),
            }
        )
    for name, role, late_name in ((ALONE, "student", ALONE_LATE), (DISTILLED, "distilled", DISTILLED)):
        if name not in arms:
            continue
        results = arms[name]
        rows.append(
            {
                "name": name,
                "role": role,
                "parameters": _count(results[0].student),
                "equal_steps": _budget(results, metric),
                "equal_time": _budget(arms[late_name], metric) if ALONE_LATE in arms else None,
                "speed": _speed(results, settings),
                "calibration": None if labels is None else calibration(probabilities(results[0].student, test), labels),
            }
        )
    return {
        "format": "tutelage-comparison",
        "version": 1,
        "method": method,
        "seeds": seeds,
        "metric": {"name": metric.name, "unit": metric.unit, "higher_is_better": metric.higher_is_better},
        "summary": _summary(arms, ceiling, metric) if ALONE in arms else {},
        "arms": rows,
        "curves": [_curve(name, arms[name], metric) for name in (ALONE, DISTILLED) if name in arms],
        "losses": _losses(arms[DISTILLED][0]),
        "seconds": sum(result.seconds for results in arms.values() for result in results),
    }


def _summary(arms: Mapping[str, Sequence[TrainingResult]], ceiling: float | None, metric: Metric) -> dict[str, Any]:
    better = 1 if metric.higher_is_better else -1
    scores = {name: [better * result.metrics[metric.name] for result in results] for name, results in arms.items()}
    gains = [b - a for a, b in zip(scores[ALONE], scores[DISTILLED], strict=True)]
    late = [b - a for a, b in zip(scores[ALONE_LATE], scores[DISTILLED], strict=True)]
    gap = 0.0 if ceiling is None else better * ceiling - statistics.fmean(scores[ALONE])
    return {
        "gain": statistics.fmean(gains),
        "gains": gains,
        "equal_time_gain": statistics.fmean(late),
        "equal_time_gains": late,
        "gap_closed": statistics.fmean(gains) / gap if gap > 0 else None,
        "verdicts": [],
    }


def _count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def _budget(results: Sequence[TrainingResult], metric: Metric) -> dict[str, Any]:
    values = [result.metrics[metric.name] for result in results]
    return {
        "mean": statistics.fmean(values),
        "sd": statistics.stdev(values) if len(values) > 1 else None,
        "seeds": values,
        "steps": round(statistics.fmean(result.history[-1]["step"] for result in results)),
        "seconds": statistics.fmean(result.seconds for result in results),
    }


def _speed(results: Sequence[TrainingResult], settings: TrainingSettings) -> dict[str, Any]:
    step = statistics.median(result.seconds / max(1, result.history[-1]["step"]) for result in results)
    samples = settings.batch_size * settings.accumulate
    return {"ms_per_step": 1000 * step, "samples_per_s": samples / step if step else None, "peak_tensor_mib": None}


def _curve(name: str, results: Sequence[TrainingResult], metric: Metric) -> dict[str, Any]:
    points = []
    for records in zip(*([r for r in result.history if "figures" in r] for result in results), strict=True):
        values = [record["figures"][metric.name] for record in records]
        points.append(
            {
                "step": records[0]["step"],
                "seconds": statistics.fmean(record["seconds"] for record in records),
                "mean": statistics.fmean(values),
                "sd": statistics.stdev(values) if len(values) > 1 else None,
            }
        )
    return {"arm": name, "points": points}


def _losses(result: TrainingResult) -> dict[str, Any]:
    named: dict[str, dict[str, Any]] = {}
    for record in result.history:
        for name, value in record["terms"].items():
            weight = record["weights"][name]
            term = named.setdefault(name, {"name": name, "points": []})
            term["weight"] = weight
            term["points"].append({"step": record["step"], "value": weight * value, "share": None})
    return {"arm": "distilled", "terms": list(named.values())}
