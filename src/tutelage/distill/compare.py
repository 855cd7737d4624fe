"""Teacher, student alone and distilled student side by side: what the comparison report reads."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.distill.data import Data
from tutelage.distill.lesson import Lesson, Settings
from tutelage.distill.method import Method, answer
from tutelage.distill.supervised import Supervised
from tutelage.distill.teacher import Teacher
from tutelage.distill.trainer import Result, train
from tutelage.errors import InputError

Predict = Callable[[nn.Module], Tensor]


def calibration(probabilities: Tensor, labels: Tensor, bins: int = 10) -> dict[str, Any]:
    """Expected calibration error over equal-width bins of confidence (Guo et al., 2017), with the bins.

    probabilities: [N, C]; labels: [N]. Returns ``{ece, bins: [{confidence, accuracy, share}]}`` without empty bins.
    """
    sure, said = probabilities.max(-1)
    right = (said == labels).double()
    which = (sure * bins).long().clamp_max(bins - 1)
    found = []
    for number in range(bins):
        inside = which == number
        if bool(inside.any()):
            share = float(inside.double().mean())
            found.append(
                {"confidence": float(sure[inside].mean()), "accuracy": float(right[inside].mean()), "share": share}
            )
    ece = sum(one["share"] * abs(one["accuracy"] - one["confidence"]) for one in found)
    return {"ece": ece, "bins": found}


def compare(
    student: Callable[[int], nn.Module],
    teacher: Teacher,
    data: Data,
    test: Data,
    method: Method,
    settings: Settings,
    seeds: Sequence[int] = (0, 1, 2),
    labelled: Data | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """Train the student alone and distilled, from equal starts, at equal steps and at equal wall-clock.

    Args:
        student: builds the student of a seed.
        teacher: a live teacher; its accuracy is the ceiling that is shown.
        data: what is distilled on. ``labelled``: what the student alone trains on (None: ``data``).
        test: labelled data, classes by ``logits``; nothing is chosen on it.
        method, settings: of the distilled arm; the student alone has the same settings.
        seeds: one pair of runs each.

    Returns:
        A ``tutelage-comparison`` of version 1: metric, summary, arms, curves and losses (see ``reports.comparison``).
        Equal wall-clock gives the student alone as many more steps as distillation took longer, by measured seconds.

    Raises:
        InputError: no seed, or a test set without class labels.
    """
    if not seeds:
        raise InputError("no seed to run", where="seeds", remedy="at least 1")
    everything = test.batch(torch.arange(len(test)), None)
    if not isinstance(everything.labels, Tensor) or everything.labels.ndim != 1:
        raise InputError("the test data has no class labels", where="test", remedy="give [N] int64 labels")

    def predict(network: nn.Module) -> Tensor:
        with torch.no_grad():
            return answer(network.eval(), everything.inputs)["logits"].softmax(-1)

    def score(network: nn.Module) -> Mapping[str, float]:
        return {"accuracy": 100 * float((predict(network).argmax(-1) == everything.labels).double().mean())}

    arms: dict[str, list[Result]] = {"student alone": [], "distilled": [], "student alone, equal time": []}
    for number, seed in enumerate(seeds):
        chosen = replace(settings, seed=seed, eval_every=settings.eval_every or max(1, settings.steps // 10))
        start = student(seed)

        def run(
            name: str, how: Method, on: Data, told: Settings, start: nn.Module = start, number: int = number
        ) -> Result:
            if progress is not None:
                progress(name, number, len(seeds))
            lesson = Lesson(copy.deepcopy(start), teacher, copy.deepcopy(how), on, told, name, score)
            result = train(lesson)
            arms[name].append(result)
            return result

        own = labelled if labelled is not None else data
        distilled = run("distilled", method, data, chosen)
        alone = run("student alone", Supervised(), own, chosen)
        longer = max(1, round(settings.steps * distilled.seconds / max(alone.seconds, 1e-9)))
        run("student alone, equal time", Supervised(), own, replace(chosen, steps=longer))
    if progress is not None:
        progress("done", len(seeds), len(seeds))
    return _written(arms, teacher, everything, predict, settings, list(seeds), type(method).__name__.lower())


def _written(
    arms: Mapping[str, list[Result]],
    teacher: Teacher,
    everything: Any,
    predict: Predict,
    settings: Settings,
    seeds: list[int],
    method: str,
) -> dict[str, Any]:
    said = teacher(everything)["logits"].softmax(-1)
    ceiling = 100 * float((said.argmax(-1) == everything.labels).double().mean())
    scores = {name: [result.figures["accuracy"] for result in results] for name, results in arms.items()}
    gains = [b - a for a, b in zip(scores["student alone"], scores["distilled"], strict=True)]
    late = [b - a for a, b in zip(scores["student alone, equal time"], scores["distilled"], strict=True)]
    gap = ceiling - statistics.fmean(scores["student alone"])
    of_teacher = {"seeds": [ceiling], "mean": ceiling, "sd": None, "steps": None, "seconds": None}
    rows = [
        {"name": "teacher", "role": "teacher", "equal_steps": of_teacher, "equal_time": of_teacher, "speed": None}
        | {"calibration": calibration(said, everything.labels), "parameters": _count(teacher.network)}
    ]
    for name, role, late_name in (
        ("student alone", "student", "student alone, equal time"),
        ("distilled", "distilled", "distilled"),
    ):
        results = arms[name]
        rows.append(
            {
                "name": name,
                "role": role,
                "parameters": _count(results[0].student),
                "equal_steps": _budget(results),
                "equal_time": _budget(arms[late_name]),
                "speed": _speed(results, settings),
                "calibration": calibration(predict(results[0].student), everything.labels),
            }
        )
    return {
        "format": "tutelage-comparison",
        "version": 1,
        "method": method,
        "seeds": seeds,
        "metric": {"name": "accuracy", "unit": "%", "higher_is_better": True},
        "summary": {
            "gain": statistics.fmean(gains),
            "gains": gains,
            "equal_time_gain": statistics.fmean(late),
            "equal_time_gains": late,
            "gap_closed": statistics.fmean(gains) / gap if gap > 0 else None,
            "verdicts": [],
        },
        "arms": rows,
        "curves": [_curve(name, arms[name]) for name in ("student alone", "distilled")],
        "losses": _losses(arms["distilled"][0]),
        "seconds": sum(result.seconds for results in arms.values() for result in results),
    }


def _count(network: nn.Module | None) -> int | None:
    return None if network is None else sum(p.numel() for p in network.parameters())


def _budget(results: Sequence[Result]) -> dict[str, Any]:
    values = [result.figures["accuracy"] for result in results]
    return {
        "mean": statistics.fmean(values),
        "sd": statistics.stdev(values) if len(values) > 1 else None,
        "seeds": values,
        "steps": round(statistics.fmean(result.history[-1]["step"] for result in results)),
        "seconds": statistics.fmean(result.seconds for result in results),
    }


def _speed(results: Sequence[Result], settings: Settings) -> dict[str, Any]:
    step = statistics.median(result.seconds / max(1, result.history[-1]["step"]) for result in results)
    samples = settings.batch_size * settings.accumulate
    return {"ms_per_step": 1000 * step, "samples_per_s": samples / step if step else None, "peak_tensor_mib": None}


def _curve(name: str, results: Sequence[Result]) -> dict[str, Any]:
    points = []
    for records in zip(*([r for r in result.history if "figures" in r] for result in results), strict=True):
        values = [record["figures"]["accuracy"] for record in records]
        points.append(
            {
                "step": records[0]["step"],
                "seconds": statistics.fmean(record["seconds"] for record in records),
                "mean": statistics.fmean(values),
                "sd": statistics.stdev(values) if len(values) > 1 else None,
            }
        )
    return {"arm": name, "points": points}


def _losses(result: Result) -> dict[str, Any]:
    named: dict[str, dict[str, Any]] = {}
    for record in result.history:
        for name, value in record["terms"].items():
            weight = record["weights"][name]
            term = named.setdefault(name, {"name": name, "points": []})
            term["weight"] = weight
            term["points"].append({"step": record["step"], "value": weight * value, "share": None})
    return {"arm": "distilled", "terms": list(named.values())}
