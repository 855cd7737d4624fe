"""Detection: a set of boxes with classes (DETR-style heads)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tutelage.distillation import losses
from tutelage.distillation.data import Batch, Tree
from tutelage.distillation.tasks.average_precision import BoxPrecision
from tutelage.distillation.tasks.base import Fit, Task, TaskMeter, head, mismatch, task
from tutelage.distillation.tasks.metrics import Metric
from tutelage.errors import InputError


@task("detection")
@dataclass(frozen=True)
class Detection(Task):
    """A set of boxes with classes: the Hungarian set loss of DETR (Carion et al., 2020).

    Heads: ``logits`` [B, Q, C+1], the last class means "no object", and ``pred_boxes`` (or ``boxes``) [B, Q, 4] as
    centre and size in 0..1. Labels: ``{"labels": [B, N], "boxes": [B, N, 4]}``, padded to the most objects of an image;
    a row with the label -100 (any below 0) is padding.

    Distance: each query of the teacher is matched with one of the student (cross-entropy of the classes, and, as far
    as the teacher sees an object, ``5 L1 - 2 GIoU`` of the boxes); then classes by KL divergence and boxes by
    ``5 L1 + 2 (1 - GIoU)``, weighted with the teacher's probability of an object; queries without an object count
    ``no_object`` (our choice). Student and teacher may have different numbers of queries.
    """

    metrics = (Metric("AP", "%"), Metric("AP50", "%"))
    layout = (
        "logits [B, Q, C+1] (last class: no object) and pred_boxes [B, Q, 4] (centre and size in 0..1); "
        "labels {labels: [B, N], boxes: [B, N, 4]}, labels below 0 are padding"
    )

    no_object: float = 0.1

    @classmethod
    def fit(cls, output: Mapping[str, Tensor], batch: Batch) -> Fit:
        """See :class:`Task`; the heads say it."""
        logits, boxes = output.get("logits"), _boxes(output)
        if logits is None or boxes is None or logits.ndim != 3 or boxes.shape != (*logits.shape[:2], 4):
            return Fit.NO
        labelled = isinstance(batch.labels, Mapping) and {"labels", "boxes"} <= set(batch.labels)
        return Fit.CERTAIN if batch.labels is None or labelled else Fit.NO

    def check(self, output: Mapping[str, Tensor], labels: Tree) -> None:
        """See :class:`Task`."""
        logits, boxes = head(output, "logits", self), _boxes(output)
        if boxes is None or logits.ndim != 3 or boxes.shape != (*logits.shape[:2], 4):
            shape = "absent" if boxes is None else list(boxes.shape)
            raise mismatch(self, f"logits {list(logits.shape)}, boxes {shape}", "student")
        if labels is None:
            return
        if not isinstance(labels, Mapping) or not {"labels", "boxes"} <= set(labels):
            raise mismatch(self, f"labels are {type(labels).__name__}")
        ids, targets = labels["labels"], labels["boxes"]
        if ids.ndim != 2 or ids.is_floating_point() or targets.shape != (*ids.shape, 4):
            raise mismatch(self, f"labels {list(ids.shape)} with boxes {list(targets.shape)}")
        classes = logits.shape[2] - 1
        if ids.numel() and int(ids.max()) >= classes:
            raise InputError(
                f"a label is {int(ids.max())}, the student has {classes} classes (0 to {classes - 1}) and no object",
                where="labels",
                remedy="count classes from 0; the last output is the class of no object",
            )
        real = targets[ids >= 0]
        if len(real) and (real.min() < 0 or real.max() > 1):
            raise mismatch(self, "a box lies outside 0..1", remedy="divide boxes by the image's width and height")

    def check_teacher(self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> None:
        """See :class:`Task`; the numbers of queries may differ."""
        own, other = student["logits"], head(teacher, "logits", self, "teacher")
        if _boxes(teacher) is None or other.ndim != 3 or own.shape[2] != other.shape[2]:
            found = f"student's logits {list(own.shape)}, teacher's heads {', '.join(teacher)} {list(other.shape)}"
            raise mismatch(self, found, "teacher", "give both the same classes in the same order")

    def label_loss(self, output: Mapping[str, Tensor], labels: Tree, weights: Tensor | None = None) -> Tensor:
        """See :func:`losses.set_loss`."""
        boxes = _boxes(output)
        assert boxes is not None
        real = labels["labels"] >= 0
        ids = [row[mask].long() for row, mask in zip(labels["labels"], real)]
        targets = [row[mask].to(boxes.dtype) for row, mask in zip(labels["boxes"], real)]
        return losses.set_loss(output["logits"], boxes, ids, targets, weights, self.no_object)

    def distance(
        self,
        student: Mapping[str, Tensor],
        teacher: Mapping[str, Tensor],
        labels: Tree = None,
        weights: Tensor | None = None,
        tau: float = 1.0,
    ) -> Tensor:
        """See the class and :class:`Task`."""
        own, other = _boxes(student), _boxes(teacher)
        assert own is not None and other is not None
        samples = zip(student["logits"], own, teacher["logits"].detach(), other.detach())
        return losses.average(torch.stack([self._of_one(*sample, tau) for sample in samples]), weights)

    def _of_one(self, logits: Tensor, boxes: Tensor, other: Tensor, targets: Tensor, tau: float) -> Tensor:
        """The distance of one sample: logits [Q, C+1], boxes [Q, 4], and the teacher's."""
        present = 1 - other.softmax(-1)[:, -1]
        with torch.no_grad():
            classes = -F.log_softmax(logits, -1) @ other.softmax(-1).T
            overlap = losses.generalized_iou(losses.box_cxcywh_to_xyxy(boxes)[:, None], losses.box_cxcywh_to_xyxy(targets)[None])
            cost = classes + present * (5 * torch.cdist(boxes, targets, p=1) - 2 * overlap)
        pairs = torch.tensor(losses.hungarian_assignment(cost.float().cpu().numpy()), dtype=torch.long, device=logits.device)
        rows, columns = pairs.unbind(1)
        present = present[columns]
        counts = present + self.no_object * (1 - present)
        apart = losses.average(losses.kl_divergence(logits[rows], other[columns], tau), counts)
        near = (boxes[rows] - targets[columns]).abs().sum(-1)
        overlap = losses.generalized_iou(losses.box_cxcywh_to_xyxy(boxes[rows]), losses.box_cxcywh_to_xyxy(targets[columns]))
        total = apart + losses.average(5 * near + 2 * (1 - overlap), present)
        free = torch.ones(len(logits), dtype=torch.bool, device=logits.device)
        free[rows] = False
        if free.any():  # more queries than the teacher: these see nothing
            total = total - self.no_object * F.log_softmax(logits[free], -1)[:, -1].mean()
        return total

    def meter(self) -> TaskMeter:
        """See :class:`Task`."""
        return DetectionMeter()


def _boxes(output: Mapping[str, Any]) -> Tensor | None:
    return output.get("pred_boxes", output.get("boxes"))


class DetectionMeter(TaskMeter):
    """AP and AP50; each query's likeliest class but "no object" is its answer."""

    def __init__(self) -> None:
        self.precision = BoxPrecision()

    def update(self, output: Mapping[str, Tensor], labels: Tree) -> None:
        """See :class:`TaskMeter`."""
        boxes = _boxes(output)
        assert boxes is not None
        scores, classes = output["logits"].softmax(-1)[..., :-1].max(-1)
        real = labels["labels"] >= 0
        for i, mask in enumerate(real):
            goals = losses.box_cxcywh_to_xyxy(labels["boxes"][i][mask].float())
            found = losses.box_cxcywh_to_xyxy(boxes[i].float())
            self.precision.update(found, scores[i].float(), classes[i], goals, labels["labels"][i][mask])

    def compute(self) -> dict[str, float]:
        """See :class:`TaskMeter`."""
        return self.precision.compute()
