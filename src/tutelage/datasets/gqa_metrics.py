"""The official metrics of GQA (Hudson and Manning 2019, section 4.4), computed in one pass over each file.

Held in memory: the predictions, one byte of state a question, and the ids that a right answer entails. All scores but
``distribution`` are percentages over the *balanced* questions:

accuracy, binary, open
    exact string match over all, over non-query, and over query questions.
validity, plausibility
    the answer is in the scope of the question; it makes sense in the world (both from the choices file).
consistency
    mean, over right balanced questions that entail others, of the accuracy on the questions they entail. Entailed questions
    that are not in the file are left out and counted (the official script stops at the first).
distribution
    with g[a] and p[a] the counts of gold and predicted answer a within a global group G:
    ``chi2(G) = sum over gold answers a of (p[a] - g[a])^2 / g[a]``, then
    ``sum over G of |G| chi2(G) / sum over G of |G| / 100``, where |G| is the number of questions; lower is better.
grounding
    attention on the annotated regions: over the objects that question and full answer point at, the sum of each
    cell's attention times the share of the cell inside the object's box.
"""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tutelage.datasets.gqa import GqaQuestion, GqaStep, SceneGraph, read_choices, read_questions, read_scene_graphs
from tutelage.datasets.gqa_predictions import Normalization, Predictions, read_predictions
from tutelage.datasets.json_records import JsonRecord, Progress, items
from tutelage.errors import InputError

METRICS = (
    "binary",
    "open",
    "accuracy",
    "consistency",
    "validity",
    "plausibility",
    "grounding",
    "distribution",
)
DETAILED_METRICS = (
    "accuracyPerStructuralType",
    "accuracyPerSemanticType",
    "accuracyPerSteps",
    "accuracyPerLength",
)

_SEEN, _RIGHT, _BALANCED, _COMMON, _CHECKED = 1, 2, 4, 8, 16  # bits of a question's state
_NO_QUERY = ("exist", "query: name", "choose name")  # operations that add no step of reasoning
_COMMON_SCOPE = ("color", "material", "shape")  # all that can be common to two things


@dataclass(slots=True)
class RunningAccuracy:
    """A running mean."""

    total: float = 0.0
    count: int = 0

    def add(self, value: float) -> None:
        """Count one more value."""
        self.total += value
        self.count += 1

    @property
    def percent(self) -> float | None:
        """The mean times 100; None where nothing was counted."""
        return 100 * self.total / self.count if self.count else None


def steps_of(semantic: Iterable[GqaStep]) -> int:
    """The reasoning steps of a functional program: its operations, those that only read off the answer left out."""
    return sum(not any(name in f"{step.operation}: {step.argument}" for name in _NO_QUERY) for step in semantic)


def chi_square(gold: dict[str, Counter[str]], predicted: dict[str, Counter[str]]) -> float | None:
    """The size-weighted chi-square over groups, not yet divided by 100; None where there are no groups."""
    weighted, size = 0.0, 0
    for group, counts in gold.items():
        questions = sum(counts.values())
        seen = predicted.get(group, Counter())
        weighted += questions * sum((seen[answer] - count) ** 2 / count for answer, count in counts.items())
        size += questions
    return weighted / size if size else None


def grounding(attention: np.ndarray, cells: np.ndarray, regions: np.ndarray) -> float:
    """Attention on regions: the sum over regions and cells of attention times the share of the cell inside the region.

    ``attention`` [C]; ``cells`` [C, 4] and ``regions`` [R, 4] are x1, y1, x2, y2 as shares of the image. A region that
    is pointed at twice counts twice, and the whole image is no region even where the question is about the scene: so
    does the official script.
    """
    low = np.maximum(cells[:, None, :2], regions[None, :, :2])
    high = np.minimum(cells[:, None, 2:], regions[None, :, 2:])
    inside = np.prod(np.clip(high - low, 0, None), axis=-1).sum(1)
    return float((attention * inside / np.prod(cells[:, 2:] - cells[:, :2], axis=-1)).sum())


class GqaScorer:
    """Adds up the metrics: all questions first, then choices, then scene graphs and attention where there are any.

    ``missing="wrong"`` counts a question without a prediction as answered wrongly. ``pointers`` keeps the objects that
    the questions point at, which :meth:`add_attention` needs.
    """

    def __init__(
        self,
        predictions: Predictions,
        *,
        consistency: bool = False,
        missing: Literal["error", "wrong"] = "error",
        pointers: bool = False,
    ):
        self.predictions, self.missing_policy = predictions, missing
        self.state = bytearray(len(predictions.answers))
        self._predicted = len(predictions.answers)  # numbers from here on are questions without a prediction
        self.running: defaultdict[str, RunningAccuracy] = defaultdict(RunningAccuracy)
        self.detailed: dict[str, defaultdict[Any, RunningAccuracy]] = {
            name: defaultdict(RunningAccuracy) for name in DETAILED_METRICS
        }
        self.gold: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.predicted: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.questions = self.missing = 0
        self.first_missing: list[str] = []
        self.has_choices = False
        self.consistency = consistency
        self._entailed, self._starts = array("i"), array("i")
        self._keeps_pointers = pointers
        self._pointers: defaultdict[str, list[tuple[int, list[str]]]] = defaultdict(list)
        self._regions: dict[int, np.ndarray] = {}

    def add(self, question: GqaQuestion) -> None:
        """Score one question.

        Raises:
            InputError: the question has no annotated answer, or came before.
        """
        if question.answer is None:
            raise InputError("no annotated answer to score against", where=f"question {question.id}")
        self.questions += 1
        needed = question.is_balanced or self.consistency
        number = self._number(question.id) if needed else self.predictions.number(question.id)
        if number is None:
            return
        if self.state[number] & _SEEN:
            remedy = "keep it once; if two ids differ in leading zeros only, predict with ids as text"
            raise InputError("the question appears twice", where=f"question {question.id}", remedy=remedy)
        if number >= self._predicted:
            self.missing += 1
            self.first_missing += [question.id] if len(self.first_missing) < 3 else []
        prediction = self.predictions.answers[number]
        right = prediction == question.answer
        common = "Common" in question.detailed
        self.state[number] |= _SEEN | _RIGHT * right | _BALANCED * question.is_balanced | _COMMON * common
        if question.is_balanced:
            self._add_balanced(question, number, prediction, right)

    def _add_balanced(self, question: GqaQuestion, number: int, prediction: str, right: bool) -> None:
        self.running["accuracy"].add(right)
        self.running["open" if question.structural == "query" else "binary"].add(right)
        self.detailed["accuracyPerStructuralType"][question.structural].add(right)
        self.detailed["accuracyPerSemanticType"][question.semantic_type].add(right)
        self.detailed["accuracyPerSteps"][steps_of(question.semantic)].add(right)
        self.detailed["accuracyPerLength"][len(question.question.split())].add(right)
        if question.global_group is not None:
            self.gold[question.global_group][question.answer or ""] += 1
            self.predicted[question.global_group][prediction] += 1
        if self.consistency and right:
            entailed = [self._number(name) for name in question.entailed if name != question.id]
            if entailed:
                self._starts.append(len(self._entailed))
                self._entailed.extend(entailed)
        if self._keeps_pointers:
            if question.annotations is None:
                remedy = "use the official questions of train or val, or leave attention out"
                raise InputError("grounding needs the field 'annotations'", where=f"question {question.id}", remedy=remedy)
            pointed = [name for field in ("question", "fullAnswer") for name in question.annotations[field].values()]
            self._pointers[question.image_id].append((number, pointed))

    def _number(self, question_id: str) -> int:
        """The question's number; one without a prediction gets an empty answer."""
        number = self.predictions.number(question_id)
        if number is None:
            number = self.predictions.add(question_id, "")
            self.state.append(0)
        return number

    def add_choices(self, question_id: str, valid: Iterable[str], plausible: Iterable[str]) -> None:
        """Score one balanced question's validity and plausibility; other questions are passed over."""
        self.has_choices = True
        number = self.predictions.number(question_id)
        if number is None or not self.state[number] & _BALANCED:
            return
        self.state[number] |= _CHECKED
        prediction = self.predictions.answers[number]
        if self.state[number] & _COMMON:
            valid = plausible = _COMMON_SCOPE
        self.running["validity"].add(prediction in valid)
        self.running["plausibility"].add(prediction in plausible)

    def add_scene_graph(self, graph: SceneGraph) -> None:
        """Turn what the questions of this image point at into regions.

        Raises:
            InputError: a question points at an object that the graph does not have.
        """
        for number, pointed in self._pointers.pop(graph.image_id, ()):
            boxes = []
            for name in pointed:
                if (thing := graph.objects.get(name)) is None:
                    raise InputError(
                        f"a question points at object {name}, which the scene graph does not have",
                        where=f"image {graph.image_id}",
                        remedy="use the scene graphs of the questions' own split",
                    )
                boxes.append((thing.x, thing.y, thing.x + thing.w, thing.y + thing.h))
            scale = np.array([graph.width, graph.height] * 2)
            self._regions[number] = np.array(boxes, np.float64).reshape(-1, 4) / scale

    def add_attention(self, record: JsonRecord, *, objects: bool = False) -> None:
        """Score the grounding of one ``{"questionId", "attention"}``; questions that are not balanced are passed over.

        The attention is a square grid, ``attention[i][j]`` being the i-th column from the left and the j-th row from
        the top, or with ``objects`` a list of ``[x1, y1, x2, y2, attention]`` in shares of the image.

        Raises:
            InputError: the attention has another shape, or holds what is no finite number.
        """
        number = self.predictions.number(record.key("questionId"))
        regions = None if number is None else self._regions.pop(number, None)
        if regions is None:
            return
        try:
            grid = np.array(record.value.get("attention"), np.float64)
        except (TypeError, ValueError):
            grid = np.empty(0)
        square = grid.ndim == 2 and grid.shape[1] == (5 if objects else grid.shape[0]) and np.isfinite(grid).all()
        if not square or (objects and (grid[:, 2:4] <= grid[:, :2]).any()):
            expected = "a list of [x1, y1, x2, y2, attention]" if objects else "a square grid of numbers"
            raise record.error("attention", expected)
        cells, attention = (grid[:, :4], grid[:, 4]) if objects else (_grid_cells(len(grid)), grid.ravel())
        self.running["grounding"].add(grounding(attention, cells, regions))

    def result(self, *, unknown: Literal["error", "count"] = "error") -> dict[str, Any]:
        """The metrics by their official names, and how many questions and predictions they come from.

        A metric is None where its input was not given. A detailed metric maps a type to accuracy and questions.

        Raises:
            InputError: predictions are missing, or (unless ``unknown="count"``) answer no question; choices, scene graphs
                or attention are missing.
        """
        state = np.array(self.state, np.uint8)
        strangers = np.flatnonzero(state[: self._predicted] & _SEEN == 0)
        self._check_complete(state, strangers if unknown == "error" else strangers[:0])
        distribution = chi_square(self.gold, self.predicted)
        scores: dict[str, Any] = {name: self.running[name].percent for name in METRICS}
        scores["consistency"], consistent = self._consistency(state)
        scores["distribution"] = None if distribution is None else distribution / 100
        for name, tallies in self.detailed.items():
            scores[name] = {
                str(key): {"accuracy": tallies[key].percent, "questions": tallies[key].count} for key in sorted(tallies)
            }
        return scores | {
            "questions": self.questions,
            "balancedQuestions": self.running["accuracy"].count,
            "missingPredictions": self.missing,
            "unknownPredictions": len(strangers),
            "duplicatePredictions": self.predictions.duplicates,
            **consistent,
        }

    def _check_complete(self, state: np.ndarray, strangers: np.ndarray) -> None:
        own = "use the file of the questions' own split"
        if self.missing and self.missing_policy == "error":
            remedy = "predict every question (for consistency: unbalanced ones too), or count missing ones as wrong"
            raise _lack(self.missing, "questions have no prediction", ", ".join(self.first_missing), remedy)
        unchecked = np.flatnonzero((state & (_BALANCED | _CHECKED)) == _BALANCED)
        if self.has_choices and len(unchecked):
            raise _lack(len(unchecked), "balanced questions have no choices", self.predictions.name(unchecked[0]), own)
        if lost := sum(map(len, self._pointers.values())):
            raise _lack(lost, "questions have no scene graph", f"those of image {next(iter(self._pointers))}", own)
        if self._regions:
            remedy = "give attention for every balanced question, or leave grounding out"
            name = self.predictions.name(next(iter(self._regions)))
            raise _lack(len(self._regions), "balanced questions have no attention", name, remedy)
        if len(strangers):
            remedy = "score against the questions that were predicted, or let unknown ones be counted"
            raise _lack(len(strangers), "predictions answer no question of the file", self.predictions.name(strangers[0]), remedy)

    def _consistency(self, state: np.ndarray) -> tuple[float | None, dict[str, int]]:
        """Consistency over the entailed questions that are in the file, and how many questions it comes from."""
        if not self.consistency:
            return None, {}
        entailed, starts = np.array(self._entailed, np.int32), np.array(self._starts, np.int32)
        absent = len(np.unique(entailed[state[entailed] & _SEEN == 0]))
        counts = {"consistencyQuestions": 0, "entailedQuestions": len(np.unique(entailed)) - absent, "entailedAbsent": absent}
        if not len(starts):
            return None, counts
        here = np.add.reduceat(state[entailed] & _SEEN > 0, starts, dtype=np.float64)
        right = np.add.reduceat(state[entailed] & _RIGHT > 0, starts, dtype=np.float64)
        counts["consistencyQuestions"] = int((here > 0).sum())
        return (100 * float((right[here > 0] / here[here > 0]).mean()) if here.any() else None), counts


def _lack(count: int, what: str, example: str, remedy: str) -> InputError:
    return InputError(f"{count} {what}, such as {example}", where="GQA", remedy=remedy)


def _grid_cells(grid_size: int) -> np.ndarray:
    edges = np.arange(grid_size) / grid_size
    corners = np.stack(np.meshgrid(edges, edges, indexing="ij"), -1).reshape(-1, 2)
    return np.concatenate([corners, corners + 1 / grid_size], 1)


def evaluate(
    questions: str | Path,
    predictions: str | Path,
    *,
    choices: str | Path | None = None,
    scene_graphs: str | Path | None = None,
    attention: str | Path | None = None,
    object_attention: bool = False,
    consistency: bool = False,
    missing: Literal["error", "wrong"] = "error",
    unknown: Literal["error", "count"] = "error",
    duplicates: Literal["error", "last"] = "error",
    normalize: Normalization = "none",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Score a prediction file with every official metric whose inputs are given; see :meth:`GqaScorer.result`.

    Raises:
        InputError: a broken file; predictions that are missing, unknown or doubled where the policies say error;
            attention without scene graphs.
    """
    if attention is not None and scene_graphs is None:
        raise InputError("grounding needs scene graphs", where="attention", remedy="give the scene graphs too (--scene-graphs)")
    read = read_predictions(predictions, duplicates=duplicates, normalize=normalize, progress=progress)
    scorer = GqaScorer(read, consistency=consistency, missing=missing, pointers=attention is not None)
    for question in read_questions(questions, progress=progress):
        scorer.add(question)
    if choices is not None:
        for question_id, valid, plausible in read_choices(choices, progress=progress):
            scorer.add_choices(question_id, valid, plausible)
    if attention is not None and scene_graphs is not None:
        for graph in read_scene_graphs(scene_graphs, progress=progress):
            scorer.add_scene_graph(graph)
        for number, value in items(attention, progress):
            scorer.add_attention(JsonRecord(value, f"{attention}: item {number}"), objects=object_attention)
    return scorer.result(unknown=unknown)
