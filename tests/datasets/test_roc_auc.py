"""The area under the ROC curve against scikit-learn, and its interval."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from tutelage.datasets.roc_auc import roc_auc, roc_auc_interval
from tutelage.errors import InputError


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10_000), size=st.integers(2, 60), levels=st.integers(1, 20))
def test_it_is_that_of_scikit_learn_with_ties_and_weights(seed: int, size: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    scores, labels = rng.integers(0, levels, size), rng.integers(0, 2, size)
    labels[:2] = 0, 1
    weights = rng.integers(1, 4, size)
    assert roc_auc(scores, labels) == pytest.approx(roc_auc_score(labels, scores))
    assert roc_auc(scores, labels, weights) == pytest.approx(roc_auc_score(labels, scores, sample_weight=weights))


def test_one_label_alone_has_no_area() -> None:
    assert math.isnan(roc_auc([0.1, 0.2], [1, 1]))
    assert math.isnan(roc_auc_interval([0.1, 0.2], [0, 0], [0, 1], seed=0).mean)


def test_the_interval_covers_the_truth_and_counts_clusters() -> None:
    covered = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        labels = rng.integers(0, 2, 120)
        found = roc_auc_interval(labels + rng.normal(size=120), labels, np.repeat(np.arange(40), 3), seed=seed, draws=200)
        assert found.n == 40 and found.low < found.mean < found.high
        covered += found.low < 0.7602 < found.high  # the normal distribution at 1 / sqrt(2)
    assert covered >= 34


@pytest.mark.parametrize(
    ("scores", "labels"), [([], []), ([0.1], [2]), ([math.nan, 1.0], [0, 1]), ([0.1, 0.2], [1]), ([[0.1]], [[1]])]
)
def test_wrong_input_is_refused(scores: list, labels: list) -> None:
    with pytest.raises(InputError):
        roc_auc(scores, labels)


def test_an_item_without_a_cluster_is_refused() -> None:
    with pytest.raises(InputError, match="1 clusters for 2 items"):
        roc_auc_interval([0.1, 0.2], [0, 1], [0], seed=0)
    with pytest.raises(InputError, match="at least one draw"):
        roc_auc_interval([0.1, 0.2], [0, 1], [0, 1], seed=0, draws=0)
