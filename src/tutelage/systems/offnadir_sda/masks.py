"""Losses and scores of binary masks: logits [B, 1, H, W] beside masks of 0 and 1, where a label below 0 is ignored."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.distillation.outputs import forward_heads
from tutelage.errors import InputError, did_you_mean

SMOOTHING = 1.0
"""Added to numerator and denominator of the losses that are ratios: a batch without buildings has a loss too."""


@dataclass(frozen=True)
class SoftCounts:
    """Sums over all pixels of a batch, of probabilities p and labels y: ``hits`` p y, ``false`` p (1 - y), ``missed`` (1 - p) y."""

    hits: Tensor
    false: Tensor
    missed: Tensor

    def loss(self, false: float, missed: float) -> Tensor:
        """``1 - (hits + e) / (hits + a false + b missed + e)``, e = (a + b) / 2 times :data:`SMOOTHING`: Tversky's index.

        a = b = 1/2 is Dice, a = b = 1 Jaccard.
        """
        e = SMOOTHING * (false + missed) / 2
        return 1 - (self.hits + e) / (self.hits + false * self.false + missed * self.missed + e)


def _counts(logits: Tensor, masks: Tensor, weights: Tensor) -> SoftCounts:
    p = logits.sigmoid()
    return SoftCounts((weights * p * masks).sum(), (weights * p * (1 - masks)).sum(), (weights * (1 - p) * masks).sum())


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    return (weights * values).sum() / weights.sum().clamp_min(1e-12)


def _bce(logits: Tensor, masks: Tensor, weights: Tensor) -> Tensor:
    return _mean(F.binary_cross_entropy_with_logits(logits, masks, reduction="none"), weights)


def _focal(logits: Tensor, masks: Tensor, weights: Tensor) -> Tensor:
    wrong = (masks - logits.sigmoid()).abs()
    return _mean(wrong.square() * F.binary_cross_entropy_with_logits(logits, masks, reduction="none"), weights)


LOSSES: Mapping[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = MappingProxyType(
    {
        "bce": _bce,
        "dice": lambda logits, masks, weights: _counts(logits, masks, weights).loss(0.5, 0.5),
        "jaccard": lambda logits, masks, weights: _counts(logits, masks, weights).loss(1.0, 1.0),
        "focal": _focal,
        "tversky": lambda logits, masks, weights: _counts(logits, masks, weights).loss(0.3, 0.7),
    }
)
"""Losses by name: (logits, masks, weights), all [B, 1, H, W] -> scalar."""


def loss_names(loss: str) -> list[str]:
    """The parts of ``bce+dice``.

    Raises:
        InputError: an unknown name; the message offers the nearest.
    """
    names = [name.strip() for name in loss.split("+")]
    for name in names:
        if name not in LOSSES:
            raise InputError(f"no loss {name!r}", where="loss", remedy=did_you_mean(name, list(LOSSES)) + "; or a sum: bce+dice")
    return names


def mask_loss(logits: Tensor, masks: Tensor, loss: str = "bce", weights: Tensor | None = None) -> Tensor:
    """A loss of masks, by name; names joined by ``+`` are summed.

    ``bce``: binary cross-entropy, mean over pixels. ``dice``: ``1 - (2 hits + e) / (sum p + sum y + e)``, e = 1, over all pixels
    of the batch. ``jaccard``: ``1 - (hits + e) / (sum p + sum y - hits + e)``. ``tversky``: of a false pixel 0.3, of a missed one
    0.7 (Salehi et al., 2017). ``focal``: cross-entropy times the square of the error (Lin et al., 2017, gamma = 2).

    Args:
        logits: [B, 1, H, W].
        masks: of the same shape, 0 or 1; below 0: ignored.
        loss: one or several of :data:`LOSSES`.
        weights: [B] of the samples; None: equal.

    Examples:
        >>> nearly = 20 * torch.tensor([[[[1.0, -1.0]]]])
        >>> round(mask_loss(nearly, torch.tensor([[[[1.0, 0.0]]]]), "dice").item(), 4)
        0.0
    """
    known = masks >= 0
    masks, counted = masks.to(logits.dtype).masked_fill(~known, 0), known.to(logits.dtype)
    if weights is not None:
        counted = counted * weights.to(logits.dtype).reshape(-1, *[1] * (masks.ndim - 1))
    parts = [LOSSES[name](logits, masks, counted) for name in loss_names(loss)]
    return torch.stack(parts).sum()


# -- scores ----------------------------------------------------------------------------------------------------------


def mask_scores(predicted: Tensor, masks: Tensor) -> dict[str, float]:
    """``precision``, ``recall``, ``IoU`` and ``F1``, in percent, over all pixels together; 0 where nothing is to be divided.

    ``F1 = 2 hits / (2 hits + false + missed) = 2 IoU / (1 + IoU)``. Not the mean of images' F1, which differs.

    Args:
        predicted: bool, of any shape.
        masks: 0 or 1, of the same shape; below 0: left out.
    """
    known, wanted = masks >= 0, masks >= 0.5
    hits = int((predicted & wanted).sum())
    false, missed = int((predicted & known & ~wanted).sum()), int((~predicted & wanted).sum())

    def share(part: int, of: int) -> float:
        return 100 * part / of if of else 0.0

    return {
        "precision": share(hits, hits + false),
        "recall": share(hits, hits + missed),
        "IoU": share(hits, hits + false + missed),
        "F1": share(2 * hits, 2 * hits + false + missed),
    }


@torch.no_grad()
def scores_by_height(
    network: nn.Module, images: Tensor, masks: Tensor, heights: Sequence[Any] | Tensor, batch_size: int = 64
) -> dict[str, dict[str, float]]:
    """The scores of a segmenter for each class of buildings, and for ``all``: :func:`mask_scores` at a probability of 0.5.

    Args:
        network: gives ``logits`` [B, 1, H, W]; it is put into eval mode.
        images: [N, C, H, W].
        masks: [N, 1, H, W].
        heights: the class of each image, a number or a name: ``["low-rise", "skyscraper", …]``.
        batch_size: images a forward pass.

    Raises:
        InputError: not one class an image, or logits of another shape than the masks.
    """
    names = [str(height) for height in (heights.tolist() if isinstance(heights, Tensor) else heights)]
    if not len(images) == len(masks) == len(names) or not names:
        counts = f"{len(images)} images, {len(masks)} masks and {len(names)} classes"
        raise InputError(counts, where="heights", remedy="give as many of each, at least one")
    network.eval()
    logits = torch.cat([forward_heads(network, part)["logits"] for part in images.split(batch_size)])
    if logits.shape != masks.shape:
        shapes = f"logits {list(logits.shape)}, masks {list(masks.shape)}"
        raise InputError(shapes, where="masks", remedy="give masks [N, 1, H, W] of the network's output size")
    predicted, found = logits > 0, {}
    for name in [*sorted(set(names)), "all"]:
        rows = torch.tensor([name in ("all", own) for own in names])
        found[name] = mask_scores(predicted[rows], masks[rows])
    return found
