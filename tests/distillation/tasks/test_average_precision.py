"""Average precision of boxes against hand-made cases and the loops of the COCO tools."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.distillation.tasks.average_precision import BoxPrecision, average_precision, match_detections


def test_a_target_is_found_once():
    target = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    found = torch.tensor([[0.0, 0.0, 1.0, 0.9], [0.0, 0.0, 1.0, 1.0]])
    right = match_detections(found, torch.tensor([0.9, 0.8]), target, (0.5, 0.95))
    assert right.tolist() == [[True, False], [False, True]]


def test_the_threshold_itself_counts():
    right = match_detections(torch.tensor([[0.0, 0, 1, 1]]), torch.ones(1), torch.tensor([[0.0, 0, 2, 1]]), (0.5, 0.55))
    assert right[:, 0].tolist() == [True, False]


def coco_average_precision(scores, right, targets):
    """The accumulation of the COCO tools, as numpy loops."""
    order = np.argsort(-scores, kind="mergesort")
    hits, misses = np.cumsum(right[order]), np.cumsum(~right[order])
    recall, precision = hits / targets, (hits / (hits + misses)).tolist()
    for i in range(len(precision) - 1, 0, -1):
        precision[i - 1] = max(precision[i - 1], precision[i])
    table = np.zeros(101)
    for place, index in enumerate(np.searchsorted(recall, np.linspace(0, 1, 101), side="left")):
        if index < len(precision):
            table[place] = precision[index]
    return table.mean()


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 20), st.integers(0, 5), st.integers(0, 10**6))
def test_average_precision_is_that_of_coco(count, missed, seed):
    rng = np.random.default_rng(seed)
    scores, right = rng.integers(0, 8, count) / 8, rng.random(count) < 0.5
    targets = int(right.sum()) + missed
    if not targets:
        return
    value = average_precision(torch.from_numpy(scores), torch.from_numpy(right), targets)
    assert value == pytest.approx(coco_average_precision(scores, right, targets), abs=1e-12)


def test_average_precision_of_known_cases():
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [2.0, 2.0, 3.0, 3.0]])
    classes = torch.tensor([0, 1])
    perfect = BoxPrecision()
    perfect.update(boxes, torch.tensor([0.9, 0.8]), classes, boxes, classes)
    assert perfect.compute() == {"AP": 100.0, "AP50": 100.0}
    # a class that is not found counts 0; one that does not occur but is predicted counts nothing
    half = BoxPrecision()
    half.update(boxes, torch.tensor([0.9, 0.8]), torch.tensor([0, 2]), boxes, classes)
    assert half.compute() == {"AP": 50.0, "AP50": 50.0}
    # width 0.8 of 1: an overlap of 0.8, right at 0.50 … 0.80: 7 of 10 thresholds
    loose = BoxPrecision()
    loose.update(torch.tensor([[0.0, 0.0, 0.8, 1.0]]), torch.ones(1), classes[:1], boxes[:1], classes[:1])
    assert loose.compute()["AP"] == pytest.approx(70.0) and loose.compute()["AP50"] == 100.0
    assert str(BoxPrecision().compute()["AP"]) == "nan"
