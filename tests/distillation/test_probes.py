import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier

from tutelage.distillation.probes import (
    accuracy,
    extract_features,
    few_label_subset,
    knn_predict,
    linear_predict,
    ridge_fit,
    ridge_predict,
)
from tutelage.errors import InputError


def _data(count: int = 90, classes: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    centres = torch.randn(classes, 6, generator=torch.Generator().manual_seed(9)) * 1.2
    return centres[labels] + torch.randn(count, 6, generator=rng), labels


@pytest.mark.parametrize("k", [1, 5, 8])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_neighbours_vote_as_in_scikit_learn(k, metric):
    (x, y), (queries, _) = _data(), _data(40, seed=1)
    oracle = KNeighborsClassifier(k, metric=metric, algorithm="brute").fit(x.numpy(), y.numpy())
    assert knn_predict(x, y, queries, k, metric, chunk=7).tolist() == oracle.predict(queries.numpy()).tolist()


def test_weighted_votes_and_leave_one_out():
    x = torch.tensor([[1.0, 0], [0.6, 0.8], [0.6, 0.8]])
    y = torch.tensor([1, 0, 0])
    query = torch.tensor([[1.0, 0]])
    assert knn_predict(x, y, query, 3).item() == 0 and knn_predict(x, y, query, 3, temperature=0.1).item() == 1
    features, labels = _data(30)
    left_out = knn_predict(features, labels, features, 3, exclude_self=True, chunk=4)
    for i in range(30):
        others = torch.arange(30) != i
        assert left_out[i] == knn_predict(features[others], labels[others], features[i : i + 1], 3)[0]
    with pytest.raises(InputError, match="31 of 30"):
        knn_predict(features, labels, features, 31)


def test_ridge_equals_scikit_learn_and_separates_classes():
    (x, y), (queries, truth) = _data(), _data(60, seed=1)
    targets = torch.randn(90, 2, generator=torch.Generator().manual_seed(2))
    weights, bias = ridge_fit(x, targets, 3.0)
    oracle = Ridge(alpha=3.0, solver="cholesky").fit(x.double().numpy(), targets.double().numpy())
    assert np.allclose(weights.numpy().T, oracle.coef_, atol=1e-8) and np.allclose(bias.numpy(), oracle.intercept_, atol=1e-8)
    assert accuracy(ridge_predict(x, y, queries), truth) > 75
    flat, _ = ridge_fit(torch.ones(4, 2), torch.randn(4, 1), 0.0)
    assert flat.isfinite().all()
    with pytest.raises(InputError, match="0 or more"):
        ridge_fit(x, targets, -1)


def test_logistic_regression_equals_scikit_learn_and_is_deterministic():
    (x, y), (queries, _) = _data(), _data(60, seed=1)
    scaled = (x - x.mean(0)) / x.std(0)
    oracle = LogisticRegression(C=1 / (1e-2 * len(x)), tol=1e-10, max_iter=2000).fit(scaled.numpy(), y.numpy())
    wanted = oracle.predict(((queries - x.mean(0)) / x.std(0)).numpy())
    found = linear_predict(x, y, queries, decay=1e-2)
    assert found.tolist() == wanted.tolist() and torch.equal(found, linear_predict(x, y, queries, decay=1e-2))


def test_few_labels_of_every_class_from_the_seed():
    labels = torch.tensor([0, 1, 2] * 10)
    chosen = few_label_subset(labels, 4, 7)
    assert torch.bincount(labels[chosen]).tolist() == [4, 4, 4] and len(chosen.unique()) == 12
    assert torch.equal(chosen, few_label_subset(labels, 4, 7)) and not torch.equal(chosen, few_label_subset(labels, 4, 8))
    with pytest.raises(InputError, match="class 0 has 10"):
        few_label_subset(labels, 11, 0)


def test_features_are_read_in_eval_mode_and_the_mode_comes_back():
    net = torch.nn.Sequential(torch.nn.BatchNorm1d(3), torch.nn.Dropout(0.5)).train()
    x = torch.randn(10, 3)
    assert torch.equal(extract_features(net, x, 4), extract_features(net, x, 10)) and net.training
    assert int(net[0].num_batches_tracked) == 0
