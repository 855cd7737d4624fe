"""Regions of maps and boxes, in plain torch: RoIAlign, a box coder, overlaps, suppression. Boxes are x1, y1, x2, y2."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def roi_align(
    maps: Tensor,
    boxes: Tensor,
    images: Tensor,
    output_size: int | tuple[int, int],
    scale: float = 1.0,
    samples: int = 2,
) -> Tensor:
    """RoIAlign (He et al., 2017): each box cut into bins, each bin the mean of bilinear samples.

    Pixel (i, j) of a map has its centre at (i + 0.5, j + 0.5), the "aligned" form of most libraries. A sample outside
    of the map by more than one pixel counts 0; nearer ones are moved to the border.

    Args:
        maps: [B, C, H, W].
        boxes: [K, 4] in the images' pixels.
        images: [K] int64, which map each box lies in.
        output_size: bins (height, width), or one number for both.
        scale: pixels of the map per pixel of the image, such as 1 / stride.
        samples: sample points per bin and axis.

    Returns:
        [K, C, height, width].
    """
    rows, columns = (output_size, output_size) if isinstance(output_size, int) else output_size
    height, width = maps.shape[2:]
    x1, y1, x2, y2 = (boxes.to(maps.dtype) * scale - 0.5).unbind(-1)
    ys, valid_y = _samples(y1, y2, rows * samples, height)
    xs, valid_x = _samples(x1, x2, columns * samples, width)
    maps_by_box = maps.permute(0, 2, 3, 1)
    low_y, low_x = ys.floor(), xs.floor()
    part_y, part_x = (ys - low_y)[:, :, None, None], (xs - low_x)[:, None, :, None]
    top, left = low_y.long(), low_x.long()
    bottom, right = (top + 1).clamp_max(height - 1), (left + 1).clamp_max(width - 1)
    box = images[:, None, None]

    def at(y: Tensor, x: Tensor) -> Tensor:
        return maps_by_box[box, y[:, :, None], x[:, None, :]]

    upper = at(top, left) * (1 - part_x) + at(top, right) * part_x
    lower = at(bottom, left) * (1 - part_x) + at(bottom, right) * part_x
    values = upper * (1 - part_y) + lower * part_y
    values = values * (valid_y[:, :, None] & valid_x[:, None, :])[..., None]
    bins = values.unflatten(2, (columns, samples)).unflatten(1, (rows, samples)).mean((2, 4))
    return bins.permute(0, 3, 1, 2)


def _samples(start: Tensor, end: Tensor, count: int, size: int) -> tuple[Tensor, Tensor]:
    """Evenly spaced places [K, count] between two edges, moved into a map of ``size``, and which of them lie in it."""
    steps = (torch.arange(count, dtype=start.dtype, device=start.device) + 0.5) / count
    places = start[:, None] + (end - start)[:, None] * steps
    return places.clamp(0, size - 1), (places >= -1) & (places <= size)


def box_area(boxes: Tensor) -> Tensor:
    """[..., 4] -> [...]; 0 for an empty box."""
    return (boxes[..., 2:] - boxes[..., :2]).clamp_min(0).prod(-1)


def box_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of each pair: [n, 4], [m, 4] -> [n, m]; two empty boxes have 0."""
    low = torch.maximum(a[:, None, :2], b[None, :, :2])
    high = torch.minimum(a[:, None, 2:], b[None, :, 2:])
    inner = (high - low).clamp_min(0).prod(-1)
    union = box_area(a)[:, None] + box_area(b)[None] - inner
    return inner / union.clamp_min(torch.finfo(inner.dtype).tiny)


def nms(boxes: Tensor, scores: Tensor, threshold: float = 0.5, classes: Tensor | None = None) -> Tensor:
    """Greedy suppression: the indices that stay, the best score first; ties go to the lower index.

    Args:
        boxes: [n, 4].
        scores: [n].
        threshold: a box goes if its overlap with a better one that stays is above this.
        classes: [n], then only boxes of one class suppress each other; None: all do.
    """
    order = scores.argsort(descending=True, stable=True)
    overlaps = box_iou(boxes[order], boxes[order]) > threshold
    if classes is not None:
        overlaps &= classes[order][:, None] == classes[order][None]
    kept = torch.ones(len(order), dtype=torch.bool, device=boxes.device)
    for i in range(len(order)):
        if kept[i]:
            kept[i + 1 :] &= ~overlaps[i, i + 1 :]
    return order[kept]


def encode_boxes(boxes: Tensor, anchors: Tensor, weights: Sequence[float] = (1, 1, 1, 1)) -> Tensor:
    """Offsets ``(dx / w, dy / h, log ratio of widths, log ratio of heights)`` of boxes to anchors, both [..., 4]
    (Girshick et al., 2014, appendix C), each times its weight."""
    size, anchor = boxes[..., 2:] - boxes[..., :2], anchors[..., 2:] - anchors[..., :2]
    centre, place = (boxes[..., :2] + boxes[..., 2:]) / 2, (anchors[..., :2] + anchors[..., 2:]) / 2
    offsets = torch.cat([(centre - place) / anchor, (size / anchor).log()], -1)
    return offsets * torch.tensor(weights, dtype=offsets.dtype, device=offsets.device)


def decode_boxes(offsets: Tensor, anchors: Tensor, weights: Sequence[float] = (1, 1, 1, 1)) -> Tensor:
    """The inverse of :func:`encode_boxes`; a box grows at most 62.5 times, so that no size overflows (log(1000/16), as
    is usual)."""
    scaled = offsets / torch.tensor(weights, dtype=offsets.dtype, device=offsets.device)
    anchor, place = anchors[..., 2:] - anchors[..., :2], (anchors[..., :2] + anchors[..., 2:]) / 2
    centre = place + scaled[..., :2] * anchor
    half = anchor * scaled[..., 2:].clamp_max(4.135166556742356).exp() / 2
    return torch.cat([centre - half, centre + half], -1)
