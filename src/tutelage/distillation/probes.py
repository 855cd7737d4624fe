"""Probes: how much a simple classifier reads from frozen features. Features are [N, D], labels [N] int64."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.errors import InputError
from tutelage.seeds import torch_rng


@torch.no_grad()
def extract_features(network: nn.Module, inputs: Tensor, batch_size: int = 256) -> Tensor:
    """What the network says of ``inputs`` [N, …], in eval mode and batch by batch: [N, D]; other shapes are flattened.

    The network is left in the mode that it was in.
    """
    training = network.training
    network.eval()
    try:
        return torch.cat([network(part).flatten(1) for part in inputs.split(batch_size)])
    finally:
        network.train(training)


def knn_predict(
    features: Tensor,
    labels: Tensor,
    queries: Tensor,
    k: int = 5,
    metric: str = "cosine",
    temperature: float | None = None,
    exclude_self: bool = False,
    chunk: int = 1024,
) -> Tensor:
    """The class of each query [M] by vote of its k nearest neighbours; of classes with equal votes, the lowest.

    Args:
        features: of the labelled samples [N, D].
        labels: [N].
        queries: [M, D].
        k: number of neighbours.
        metric: ``cosine`` or ``euclidean``.
        temperature: votes weigh ``exp(similarity / temperature)`` (Wu et al., 2018); None: all alike. For ``euclidean``
            the similarity is minus the distance.
        exclude_self: query i does not see sample i (leave one out; queries are the features).
        chunk: queries that are compared at a time.

    Raises:
        InputError: an unknown metric, or k above the number of neighbours.
    """
    available = len(features) - exclude_self
    if metric not in ("cosine", "euclidean") or not 1 <= k <= available:
        raise InputError(f"{k} of {available} neighbours by {metric!r}", where="k", remedy="cosine or euclidean; 1..N")
    classes = int(labels.max()) + 1
    base = F.normalize(features, dim=-1) if metric == "cosine" else features
    found = []
    for start in range(0, len(queries), chunk):
        part = queries[start : start + chunk]
        if metric == "cosine":
            similarity = F.normalize(part, dim=-1) @ base.T
        else:
            similarity = -torch.cdist(part, base, compute_mode="donot_use_mm_for_euclid_dist")
        if exclude_self:
            similarity[torch.arange(len(part)), torch.arange(start, start + len(part))] = float("-inf")
        near = similarity.topk(k, -1)
        weights = torch.ones_like(near.values)
        if temperature is not None:
            weights = ((near.values - near.values[:, :1]) / temperature).exp()
        votes = torch.zeros(len(part), classes, dtype=weights.dtype, device=weights.device)
        votes.scatter_add_(1, labels[near.indices].to(votes.device), weights)
        found.append(votes.argmax(1))
    return torch.cat(found)


def ridge_fit(features: Tensor, targets: Tensor, strength: float = 1.0) -> tuple[Tensor, Tensor]:
    """Weights [D, C] and bias [C] of ``min |X W + b - Y|^2 + strength |W|^2``, in closed form and float64.

    The bias is not shrunk: features and targets are centred first. ``targets`` [N, C].

    Raises:
        InputError: a strength below 0.
    """
    if strength < 0:
        raise InputError(f"a strength is 0 or more, this is {strength}", where="strength")
    x, y = features.double(), targets.double()
    x_mean, y_mean = x.mean(0), y.mean(0)
    x, y = x - x_mean, y - y_mean
    gram = x.T @ x + strength * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    weights = torch.linalg.lstsq(gram, x.T @ y).solution if strength == 0 else torch.linalg.solve(gram, x.T @ y)
    return weights, y_mean - x_mean @ weights


def ridge_predict(features: Tensor, labels: Tensor, queries: Tensor, strength: float = 1.0) -> Tensor:
    """The class of each query [M] by ridge regression on one-hot labels, features standardised by the labelled ones."""
    mean, std = features.mean(0), features.std(0).clamp_min(1e-6)
    weights, bias = ridge_fit((features - mean) / std, F.one_hot(labels), strength)
    return (((queries - mean) / std).double() @ weights + bias).argmax(1)


def linear_predict(features: Tensor, labels: Tensor, queries: Tensor, decay: float = 1e-3, steps: int = 100) -> Tensor:
    """The class of each query [M] by multinomial logistic regression, fitted by L-BFGS from zero: no randomness.

    Args:
        features: [N, D], standardised by their own mean and deviation.
        labels: [N].
        queries: [M, D].
        decay: of ``mean cross-entropy + decay / 2 |W|^2``; the bias is not shrunk.
        steps: L-BFGS iterations at most.
    """
    mean, std = features.mean(0), features.std(0).clamp_min(1e-6)
    x = ((features - mean) / std).detach().double()
    classes = int(labels.max()) + 1
    weights = torch.zeros(x.shape[1], classes, dtype=x.dtype, device=x.device, requires_grad=True)
    bias = torch.zeros(classes, dtype=x.dtype, device=x.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights, bias], max_iter=steps, tolerance_grad=1e-8, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(x @ weights + bias, labels) + decay / 2 * weights.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return (((queries - mean) / std).double() @ weights.detach() + bias.detach()).argmax(1)


def few_label_subset(labels: Tensor, per_class: int, seed: int) -> Tensor:
    """``per_class`` sample numbers of every class [C per_class], drawn without replacement from ``seed``, sorted.

    Raises:
        InputError: a class with fewer samples.
    """
    chosen = []
    for label in labels.unique().tolist():
        members = (labels == label).nonzero()[:, 0]
        if len(members) < per_class:
            message = f"class {label} has {len(members)} samples, {per_class} are wanted"
            raise InputError(message, where="labels", remedy="fewer labels a class, or more samples")
        order = torch.randperm(len(members), generator=torch_rng(seed, "few labels", label))
        chosen.append(members[order[:per_class]])
    return torch.cat(chosen).sort().values


def accuracy(predicted: Tensor, labels: Tensor) -> float:
    """Share of right answers, in percent."""
    return 100 * float((predicted == labels).double().mean())


def probe_scores(
    features: Tensor,
    labels: Tensor,
    queries: Tensor,
    answers: Tensor,
    k: int = 20,
    per_class: int = 10,
    draws: int = 5,
    seed: int = 0,
) -> dict[str, float]:
    """What simple classifiers read from features, as accuracies in percent.

    Args:
        features, labels: to learn from, [N, D] and [N].
        queries, answers: to score on, [M, D] and [M].
        k: neighbours; their votes are weighted as in :func:`knn_predict` with temperature 0.07 (Wu et al., 2018).
        per_class: labels of each class in the probe of few labels.
        draws: how many subsets of few labels; their mean counts.
        seed: of the subsets.

    Returns:
        ``kNN``; ``linear``, logistic regression on all labels; ``{per_class} labels a class``, the same on few labels.

    Raises:
        InputError: as :func:`knn_predict` and :func:`few_label_subset`.
    """
    few = []
    for draw in range(draws):
        rows = few_label_subset(labels, per_class, seed + draw)
        few.append(accuracy(linear_predict(features[rows], labels[rows], queries), answers))
    return {
        "kNN": accuracy(knn_predict(features, labels, queries, k, temperature=0.07), answers),
        "linear": accuracy(linear_predict(features, labels, queries), answers),
        f"{per_class} labels a class": sum(few) / len(few),
    }
