"""The box head of a two-stage detector: classes and boxes of given regions (Fast R-CNN; Girshick, 2015, arXiv 1504.08083)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tutelage.networks.roi import box_iou, encode_boxes, roi_align


class RegionClassifier(nn.Module):
    """``images`` [B, inputs, H, W] and ``boxes`` [B, R, 4] (x1, y1, x2, y2 in pixels) -> ``logits`` [B, R, num_classes + 1],
    the last class the background, and ``offsets`` [B, R, 4] of :func:`~tutelage.networks.roi.encode_boxes`, one for all
    classes (our choice).

    RoIAlign, two hidden layers, and the linear layers ``classify`` and ``locate``; the embedding [B, R, dim] goes into both.

    Args:
        backbone: from images to one map [B, in_chans, H / stride, W / stride].
        in_chans: channels of that map.
        stride: pixels of the image per pixel of the map.
        num_classes: without the background.
        dim: width of the embedding.
        bins: of a region, along each side.
    """

    def __init__(self, backbone: nn.Module, in_chans: int, stride: int, num_classes: int, dim: int = 1024, bins: int = 7):
        super().__init__()
        self.backbone, self.stride, self.bins = backbone, stride, bins
        self.hidden = nn.Sequential(nn.Linear(in_chans * bins**2, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU())
        self.classify, self.locate = nn.Linear(dim, num_classes + 1), nn.Linear(dim, 4)

    def forward(self, images: Tensor, boxes: Tensor) -> dict[str, Tensor]:
        """See the class."""
        owner = torch.arange(len(boxes), device=boxes.device).repeat_interleave(boxes.shape[1])
        bins = roi_align(self.backbone(images), boxes.flatten(0, 1), owner, self.bins, 1 / self.stride)
        embedding = self.hidden(bins.flatten(1)).unflatten(0, boxes.shape[:2])
        return {"logits": self.classify(embedding), "offsets": self.locate(embedding)}


def sample_regions(
    proposals: Tensor,
    objects: Tensor,
    labels: Tensor,
    background: int,
    generator: torch.Generator,
    count: int = 512,
    share: float = 0.25,
    overlap: float = 0.5,
) -> tuple[Tensor, Tensor, Tensor]:
    """Regions of one image to train a box head on (Girshick, 2015, section 2.3; the objects are proposals too, as is usual).

    Args:
        proposals: [P, 4].
        objects: [G, 4], G may be 0; ``labels``: their classes [G] int64.
        background: the class of regions that overlap with no object by ``overlap`` or more.
        generator: draws the regions.
        count: how many; missing ones are padding of the label -100.
        share: at most so large a part holds objects.
        overlap: intersection over union from which on a region holds an object.

    Returns:
        boxes [count, 4], labels [count], and the offsets [count, 4] of their objects (0 for the background).
    """
    boxes = torch.cat([proposals, objects])
    found = torch.full((len(boxes),), background)
    targets = boxes.clone()
    if len(objects):
        best, which = box_iou(boxes, objects).max(1)
        found, targets = torch.where(best >= overlap, labels[which], found), objects[which]
    order = torch.randperm(len(boxes), generator=generator)
    positive = order[found[order] != background][: int(count * share)]
    chosen = torch.cat([positive, order[found[order] == background][: count - len(positive)]])
    missing = count - len(chosen)
    offsets = encode_boxes(targets[chosen], boxes[chosen]) * (found[chosen] != background)[:, None]
    return (
        torch.cat([boxes[chosen], boxes.new_tensor([[0.0, 0.0, 1.0, 1.0]]).expand(missing, 4)]),
        torch.cat([found[chosen], torch.full((missing,), -100)]),
        torch.cat([offsets, offsets.new_zeros(missing, 4)]),
    )
