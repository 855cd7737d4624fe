"""Metrics against scikit-learn and torchmetrics, in uneven batches."""

import math

import numpy as np
import pytest
import sklearn.metrics
import torch
import torchmetrics.functional.image
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.distillation.tasks import metrics


def batches(*tensors, sizes=(1, 7, 3, 100)):
    start = 0
    for size in sizes:
        yield tuple(t[start : start + size] for t in tensors)
        start += size


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 6), st.integers(0, 10**6))
def test_class_counts_are_those_of_scikit_learn(classes, seed):
    rng = np.random.default_rng(seed)
    found, labels = rng.integers(0, classes, 40), rng.integers(0, classes, 40)
    counts = metrics.ClassCounts()
    for one, other in batches(torch.from_numpy(found), torch.from_numpy(labels)):
        counts.update(one, other)
    assert counts.accuracy == pytest.approx(100 * sklearn.metrics.accuracy_score(labels, found))
    assert counts.f1 == pytest.approx(100 * sklearn.metrics.f1_score(labels, found, average="macro"))
    assert counts.mean_iou == pytest.approx(100 * sklearn.metrics.jaccard_score(labels, found, average="macro"))


def test_no_sample_gives_nan_and_no_error():
    assert math.isnan(metrics.ClassCounts().accuracy) and math.isnan(metrics.ClassCounts().mean_iou)
    assert math.isnan(metrics.Perplexity().compute()["perplexity"])
    assert math.isnan(metrics.RegressionErrors().compute()["R2"])


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), st.integers(0, 10**6))
def test_label_scores_are_those_of_scikit_learn(labels_count, seed):
    rng = np.random.default_rng(seed)
    logits = rng.integers(-4, 5, (40, labels_count)) / 2 + 0.25
    labels = (rng.random((40, labels_count)) < 0.4).astype(int)
    labels[:2] = [[0], [1]]  # both values occur
    scores = metrics.LabelScores()
    for one, other in batches(torch.from_numpy(logits), torch.from_numpy(labels)):
        scores.update(one, other)
    found = scores.compute()
    f1 = lambda average: 100 * sklearn.metrics.f1_score(labels, logits > 0, average=average, zero_division=0)  # noqa: E731
    each = [sklearn.metrics.average_precision_score(labels[:, c], logits[:, c]) for c in range(labels_count)]
    assert found["mAP"] == pytest.approx(100 * np.mean(each))
    if labels_count > 1:
        assert found["F1"] == pytest.approx(f1("micro")) and found["F1 macro"] == pytest.approx(f1("macro"))
    else:
        assert found["F1"] == pytest.approx(f1("binary"))


def test_unknown_labels_are_as_if_they_were_not_there():
    logits, labels = torch.randn(30, 1), torch.arange(30)[:, None] % 2
    part, whole = metrics.LabelScores(), metrics.LabelScores()
    hidden = labels.clone()
    hidden[::3] = -1
    part.update(logits, hidden)
    known = hidden[:, 0] >= 0
    whole.update(logits[known], labels[known])
    assert part.compute() == pytest.approx(whole.compute())


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3), st.integers(0, 10**6), st.sampled_from([0.0, 1e6]))
def test_regression_errors_are_those_of_scikit_learn(outputs, seed, offset):
    rng = np.random.default_rng(seed)
    targets = rng.normal(offset, 1, (40, outputs))
    found = targets + rng.normal(0, 0.5, (40, outputs))
    errors = metrics.RegressionErrors()
    for one, other in batches(torch.from_numpy(found), torch.from_numpy(targets)):
        errors.update(one, other)
    values = errors.compute()
    assert values["R2"] == pytest.approx(sklearn.metrics.r2_score(targets, found), rel=1e-6)
    assert values["MAE"] == pytest.approx(sklearn.metrics.mean_absolute_error(targets, found))
    squared = sklearn.metrics.mean_squared_error(targets, found)
    assert values["RMSE"] == pytest.approx(math.sqrt(squared))


@pytest.mark.parametrize("shape", [(3, 3, 24, 20), (2, 1, 11, 11)])
def test_image_metrics_are_those_of_torchmetrics(shape):
    rng = torch.Generator().manual_seed(0)
    targets = torch.rand(shape, generator=rng)
    images = (targets + 0.1 * torch.randn(shape, generator=rng)).clamp(0, 1)
    oracle = torchmetrics.functional.image.peak_signal_noise_ratio(images, targets, data_range=1.0, reduction="none", dim=(1, 2, 3))
    assert torch.allclose(metrics.psnr(images, targets).float(), oracle, rtol=1e-5)
    # torchmetrics mirrors the border; inside it, the window lies in the image, as here it always does
    _, whole = torchmetrics.functional.image.structural_similarity_index_measure(
        images.double(), targets.double(), data_range=1.0, reduction="none", return_full_image=True
    )
    inside = whole[..., 5 : shape[2] - 5, 5 : shape[3] - 5]
    assert torch.allclose(metrics.ssim(images, targets), inside.flatten(1).mean(1), atol=1e-6)


def test_equal_images():
    images = torch.rand(2, 3, 8, 8)  # smaller than the window
    assert metrics.psnr(images, images).tolist() == [math.inf] * 2
    assert torch.allclose(metrics.ssim(images, images), torch.ones(2, dtype=torch.float64))


def test_perplexity():
    meter = metrics.Perplexity()
    meter.update(torch.zeros(3, 5), torch.tensor([0, 1, 2]))
    meter.update(torch.zeros(0, 5), torch.zeros(0, dtype=torch.long))
    assert meter.compute()["perplexity"] == pytest.approx(5)


def test_recall_with_several_right_answers():
    similarity = torch.tensor([[0.9, 0.8, 0.1], [0.9, 0.2, 0.1], [0.3, 0.2, 0.1]])
    right = torch.tensor([[False, True, False], [False, True, True], [False, False, False]])
    assert metrics.recall_at(similarity, right, 1) == 0
    assert metrics.recall_at(similarity, right, 2) == 100
    assert metrics.recall_at(similarity, right, 50) == 100
    assert math.isnan(metrics.recall_at(similarity, torch.zeros_like(right), 1))
