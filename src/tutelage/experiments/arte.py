"""ARTE: a teacher that says where to look at a digit, and four students of whom each has learned to look in one way."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from tutelage.experiments import Experiment, Figure, Metric, better
from tutelage.seeds import derive
from tutelage.systems.arte.looking import (
    WAYS,
    LookingStudent,
    Pictures,
    WayPolicy,
    accuracy,
    aligned_policy,
    draw_ways,
    example_scores,
    student_of,
    way_pairs,
)

ACCURACY, SHARE = "test accuracy of the student, %", "share of the student's own way in what the teacher writes, %"
QUESTIONS, ROWS, STEPS = 60, 40, 60


def run(seed: int, smoke: bool, all_arms: bool) -> Mapping[str, Figure]:
    """Means over four students; with ``all_arms`` also 200 rows and steps in place of 40 rows and 60 steps."""
    arms = arms_of(seed, 2 if smoke else len(WAYS), ROWS, 4 if smoke else STEPS, "")
    if all_arms:
        arms |= arms_of(seed, 2 if smoke else len(WAYS), 200, 4 if smoke else 200, ", 200 rows")
    return arms


def arms_of(seed: int, count: int, rows: int, steps: int, end: str) -> dict[str, Figure]:
    """The figures of ``count`` students, each trained on ``rows`` rows that each teacher writes."""
    pictures = Pictures.of(seed, rows)
    students = [student_of(way, pictures, seed) for way in range(count)]
    policies = []
    for way, student in enumerate(students):
        scores = example_scores(student, pictures, QUESTIONS, derive(seed, "scores", way))
        policies.append(aligned_policy(way_pairs(scores)[0], seed))
    found: dict[str, list[float]] = {}
    shares: dict[str, list[float]] = {}
    for way, student in enumerate(students):
        other = (way + 1) % count
        fixed = torch.eye(len(WAYS))[(way + 1) % len(WAYS)]
        teachers = {
            "original teacher": WayPolicy().shares,
            "aligned teacher": policies[way].shares,
            "teacher aligned with another student": policies[other].shares,
            "one fixed other way": fixed,
        }
        found.setdefault("untouched student", []).append(accuracy(student, pictures, derive(seed, "test", way)))
        for name, own in teachers.items():
            found.setdefault(name, []).append(accuracy_after(student, pictures, own, rows, steps, derive(seed, "arm", way)))
            shares.setdefault(name, []).append(100 * float(own[way]))
    arms: dict[str, Figure] = {}
    for name, values in found.items():
        figure = {ACCURACY: sum(values) / len(values)}
        arms[name + end] = figure | ({SHARE: sum(shares[name]) / len(values)} if name in shares else {})
    return arms


def accuracy_after(student: LookingStudent, pictures: Pictures, shares: torch.Tensor, rows: int, steps: int, seed: int) -> float:
    """Test accuracy after training on rows whose ways are drawn from ``shares``."""
    ways = draw_ways(shares, rows, seed, "rows")
    return accuracy(student.tuned(pictures.rows, ways, steps, seed), pictures, seed)


experiment = Experiment(
    metric=ACCURACY,
    further_metrics=[Metric(SHARE)],
    claims=[
        better("aligned teacher", "original teacher", metric=SHARE),
        better("aligned teacher", "original teacher"),
        better("aligned teacher", "teacher aligned with another student"),
        better("aligned teacher", "one fixed other way"),
    ],
    run=run,
    limits="Students with four named skills are easier to please than language models, and an example is followed 9 times in 10 "
    "by construction. Small sets only: with 200 rows and steps (with --all) any one consistent way is learned anew, and the fit "
    "to the student no longer counts. Pilots with tiny language models failed: they do not learn to follow one example, so that "
    "nothing was left to prefer; questions are paired in tests alone. The paper's own comparison, BIG-Bench-Hard without "
    "examples, Gemma-2B, %: untouched 1.09, original teacher 37.55, rationales aligned 37.94, questions aligned 41.73, both 41.96.",
)
