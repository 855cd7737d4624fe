"""How clean a vision transformer's patch features are: outliers of norms, artifacts by position, smoothness, attention.

All figures are shares or cosines between 0 and 1 (a cosine can be negative).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.distillation.probes import accuracy, knn_predict, linear_predict
from tutelage.errors import InputError
from tutelage.networks.attention import SelfAttention
from tutelage.networks.registers import RegisterViT, patch_grid, patch_tokens


def outlier_threshold(norms: Tensor, deviations: float = 4.0) -> float:
    """``median + deviations MAD`` of token norms; MAD is the median of the distances to the median."""
    median = norms.median()
    return float(median + deviations * (norms - median).abs().median())


def outlier_share(states: Tensor, threshold: float | None = None) -> float:
    """The share of tokens [..., D] whose norm is above ``threshold``; None: :func:`outlier_threshold`.

    ``states`` are those before the final norm: behind it every norm is about sqrt(D).
    """
    norms = states.norm(dim=-1)
    return float((norms > (outlier_threshold(norms) if threshold is None else threshold)).double().mean())


def norm_histogram(states: Tensor, bins: int = 50) -> tuple[Tensor, Tensor]:
    """(counts [bins], edges [bins + 1]) of the norms of tokens [..., D] before the final norm."""
    counts, edges = torch.histogram(states.norm(dim=-1).flatten().cpu().float(), bins)
    return counts, edges


def position_artifacts(patches: Tensor) -> float:
    """The share of the variance of tokens [images, N, D] that the position alone explains.

    ``var_p(mean over images) / var(all)``. Over many images without a common layout it is 1 / images for features that
    are independent of the position.
    """
    total = (patches - patches.mean((0, 1))).square().sum(-1).mean()
    by_position = (patches.mean(0) - patches.mean((0, 1))).square().sum(-1).mean()
    return float(by_position / total.clamp_min(1e-12))


def neighbour_cosine(patches: Tensor, grid: tuple[int, int]) -> float:
    """The mean cosine of patches [B, N, D] with those right and below."""
    cells = F.normalize(patches, dim=-1).unflatten(1, grid)
    right = (cells[:, :, 1:] * cells[:, :, :-1]).sum(-1).flatten()
    below = (cells[:, 1:] * cells[:, :-1]).sum(-1).flatten()
    return float(torch.cat([right, below]).mean())


def attention_mass(probabilities: Tensor, registers: int) -> float:
    """The mean attention of all other tokens to the first ``registers`` keys.

    ``probabilities`` [B, heads, N, N]: of a model of ``transformers``, ``network(images, output_attentions=True).attentions``
    under ``attn_implementation="eager"``; of a ``VisionTransformer``, :func:`attention_of`.
    """
    return float(probabilities[:, :, registers:, :registers].sum(-1).mean())


@torch.no_grad()
def attention_of(network: nn.Module, images: Tensor, block: int = -1) -> Tensor | None:
    """The attention probabilities [B, heads, N, N] of one block; None where attention is no ``SelfAttention`` of ours."""
    modules = [module for module in network.modules() if isinstance(module, SelfAttention)]
    if not modules:
        return None
    taken: list[Tensor] = []
    handle = modules[block].register_forward_pre_hook(lambda _, args: taken.append(args[0]))
    try:
        network(images)
    finally:
        handle.remove()
    q, k, _ = modules[block].project(taken[-1])
    return (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)


@torch.no_grad()
def diagnose(network: nn.Module, images: Tensor, threshold: float | None = None, batch_size: int = 16) -> dict[str, float]:
    """The figures of a network on ``images`` [n, C, H, W], in eval mode.

    Args:
        network: a ViT, with or without registers; it is left in the mode that it was in.
        images: as the network takes them; some dozens of different layout.
        threshold: of the norm of an outlier; None: median + 4 MAD.
        batch_size: images a pass.

    Returns:
        ``outlier_share``, ``outlier_threshold``, ``position_artifacts``, ``neighbour_cosine``, and, where the network has
        registers and attention of ours, ``register_attention`` of the last block.
    """
    training = network.training
    network.eval()
    try:
        parts = [patch_tokens(network, part) for part in images.split(batch_size)]
        weights = attention_of(network, images[:batch_size]) if isinstance(network, RegisterViT) else None
    finally:
        network.train(training)
    states, patches = (torch.cat([part[name] for part in parts]) for name in ("states", "patches"))
    limit = outlier_threshold(states.norm(dim=-1)) if threshold is None else threshold
    figures = {
        "outlier_share": outlier_share(states, limit),
        "outlier_threshold": limit,
        "position_artifacts": position_artifacts(patches),
        "neighbour_cosine": neighbour_cosine(patches, patch_grid(network, images[:1])),
    }
    if weights is not None and isinstance(network, RegisterViT):
        figures["register_attention"] = attention_mass(weights, network.registers.shape[1])
    return figures


@torch.no_grad()
def probe_patches(
    network: nn.Module, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], kind: str = "linear", k: int = 10
) -> Mapping[str, Any]:
    """How well a simple classifier reads the class of each patch from frozen features: segmentation by patches.

    Args:
        network: a ViT, with or without registers.
        train: images [n, C, H, W] and the class of each patch [n, N], int64.
        test: likewise.
        kind: ``linear`` (logistic regression) or ``knn``.
        k: neighbours.

    Returns:
        ``accuracy`` and ``mIoU``, %.

    Raises:
        InputError: an unknown kind.
    """
    if kind not in ("linear", "knn"):
        raise InputError(f"no probe {kind!r}", where="kind", remedy="linear or knn")
    features, queries = (patch_tokens(network.eval(), images)["patches"].flatten(0, 1) for images, _ in (train, test))
    labels, truth = train[1].flatten(), test[1].flatten()
    predicted = linear_predict(features, labels, queries) if kind == "linear" else knn_predict(features, labels, queries, k)
    return {"accuracy": accuracy(predicted, truth), "mIoU": mean_iou(predicted, truth)}


def mean_iou(predicted: Tensor, labels: Tensor) -> float:
    """The mean over the classes that occur of intersection over union, %."""
    ratios = []
    for label in torch.cat([predicted, labels]).unique():
        found, true = predicted == label, labels == label
        ratios.append((found & true).sum().double() / (found | true).sum())
    return 100 * float(torch.stack(ratios).mean())
