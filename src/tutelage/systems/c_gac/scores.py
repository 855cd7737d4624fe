"""Figures of keypoints and masks: the area under the curve of PCK, the overlap of masks, and the mean of both."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tutelage.distillation.data import ReplayableData
from tutelage.distillation.outputs import forward_heads
from tutelage.errors import InputError
from tutelage.systems.c_gac.labels import HandLoss, hand_labels


def pck_auc(errors: Tensor, labelled: Tensor | None = None, limit: float = 20.0, thresholds: int = 100) -> float:
    """The area under the share of correct keypoints over thresholds from 0 to ``limit``, in %, the mean over keypoints.

    Args:
        errors: distances [N, K], in pixels.
        labelled: [N, K] bool, which of them count; None: all. A keypoint that is never labelled is left out.
        limit: the largest threshold, in pixels.
        thresholds: how many; between them the curve is straight.

    Examples:
        >>> [round(pck_auc(torch.full((3, 2), error)), 1) for error in (0.0, 10.0, 21.0)]
        [100, 50, 0]

    Raises:
        InputError: no labelled keypoint.
    """
    counted = torch.ones_like(errors, dtype=torch.bool) if labelled is None else labelled
    at = torch.linspace(0, limit, thresholds, dtype=torch.float64)
    right = (errors.double()[..., None] <= at + 1e-9) & counted[..., None]
    count = counted.sum(0)
    if not bool((count > 0).any()):
        raise InputError("no labelled keypoint", where="labels.points", remedy="give points whose third number is 1")
    curves = right.double().sum(0)[count > 0] / count[count > 0, None]
    return 100 * float(torch.trapezoid(curves, at).mean() / limit)


def mask_iou(predicted: Tensor, mask: Tensor) -> Tensor:
    """Overlap of masks [B, ..., H, W] bool, an image each: [B]. Both empty: 1. One empty: 0. No image is left out."""
    predicted, mask = predicted.flatten(1), mask.flatten(1)
    both, either = (predicted & mask).sum(1), (predicted | mask).sum(1)
    return torch.where(either > 0, both / either.clamp_min(1), 1.0)


class HandScores:
    """Scores a network on labelled images: ``distill(…, evaluate=HandScores(test_data))``.

    Figures, in %: ``AUC`` of :func:`pck_auc`, ``IoU``, the mean of :func:`mask_iou` at a probability of 0.5, and their mean
    ``score``; and ``error``, the mean distance of keypoints in pixels.

    Args:
        data: labelled images.
        limit: see :func:`pck_auc`.
        loss: how the network's maps are to be read.
        batch_size: of the passes.
    """

    def __init__(self, data: ReplayableData, limit: float = 20.0, loss: HandLoss | None = None, batch_size: int = 128):
        self.data, self.limit, self.loss, self.batch_size = data, limit, loss or HandLoss(), batch_size

    @torch.no_grad()
    def each(self, *networks: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
        """Distances [N, K] in pixels, which are labelled [N, K], and overlaps [N]; of several networks, of their mean."""
        device = next((p.device for p in networks[0].parameters()), torch.device("cpu"))
        found = []
        for rows in torch.arange(len(self.data)).split(self.batch_size):
            batch = self.data.batch(rows, None)
            labels = hand_labels(batch.labels)
            outputs = [forward_heads(network, batch.inputs.to(device)) for network in networks]
            points, mask = (one.cpu() for one in self.loss.predict(*outputs))
            sides = torch.tensor([mask.shape[3], mask.shape[2]], dtype=points.dtype)
            errors = torch.linalg.vector_norm((points - labels.points)[..., :2] * sides, dim=-1)
            counted = labels.mask >= 0
            found.append((errors, labels.points[..., 2] > 0, mask_iou((mask > 0.5) & counted, (labels.mask > 0.5) & counted)))
        errors, labelled, overlaps = (torch.cat(parts) for parts in zip(*found, strict=True))
        return errors, labelled, overlaps

    def __call__(self, network: nn.Module) -> dict[str, float]:
        """The figures of a network in eval mode."""
        errors, labelled, overlaps = self.each(network)
        auc, iou = pck_auc(errors, labelled, self.limit), 100 * float(overlaps.double().mean())
        return {"score": (auc + iou) / 2, "AUC": auc, "IoU": iou, "error": float(errors[labelled].double().mean())}
