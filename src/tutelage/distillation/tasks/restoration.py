"""Image restoration: denoising, super-resolution, compression; an image for an image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from tutelage.distillation.data import Batch, Tree
from tutelage.distillation.tasks.base import Fit, Task, TaskMeter, head, masked_mean, mismatch, task
from tutelage.distillation.tasks.metrics import Average, Metric, psnr, ssim
from tutelage.distillation.tasks.regression import error


@task("restoration")
@dataclass(frozen=True)
class Restoration(Task):
    """An image for an image: one error, pixel by pixel, to the true image and to the teacher's alike.

    ``loss``: ``l1`` (the default of super-resolution since EDSR; Lim et al., 2017), ``mse`` or ``huber``.
    ``data_range``: the distance between black and white, for PSNR and SSIM.
    """

    metrics = (Metric("PSNR", "dB"), Metric("SSIM"))
    layout = "logits [B, C, H, W], the image; labels of the same shape"

    loss: Literal["mse", "l1", "huber"] = "l1"
    data_range: float = 1.0

    @classmethod
    def fit(cls, output: Mapping[str, Tensor], batch: Batch) -> Fit:
        """See :class:`Task`. Maps of real numbers may also be heat maps: never certain."""
        images, labels = output.get("logits"), batch.labels
        if images is None or images.ndim != 4 or images.shape[1] not in (1, 3, 4):
            return Fit.NO
        if labels is None:
            return Fit.POSSIBLE
        if not isinstance(labels, Tensor) or not labels.is_floating_point() or labels.shape != images.shape:
            return Fit.NO
        return Fit.POSSIBLE

    def check(self, output: Mapping[str, Tensor], labels: Tree) -> None:
        """See :class:`Task`."""
        images = head(output, "logits", self)
        if images.ndim != 4:
            raise mismatch(self, f"outputs {list(images.shape)}", "student")
        if labels is not None and not (isinstance(labels, Tensor) and labels.shape == images.shape):
            shape = list(labels.shape) if isinstance(labels, Tensor) else type(labels).__name__
            raise mismatch(self, f"labels {shape} with images {list(images.shape)}")

    def label_loss(self, output: Mapping[str, Tensor], labels: Tree, weights: Tensor | None = None) -> Tensor:
        """The error, mean over pixels; see :class:`Task`."""
        images = output["logits"]
        return masked_mean(error(self.loss, images, labels.to(images.dtype)), None, weights)

    def distance(
        self,
        student: Mapping[str, Tensor],
        teacher: Mapping[str, Tensor],
        labels: Tree = None,
        weights: Tensor | None = None,
        tau: float = 1.0,
    ) -> Tensor:
        """The error to the teacher's image; see :class:`Task`."""
        return masked_mean(error(self.loss, student["logits"], teacher["logits"].detach()), None, weights)

    def meter(self) -> TaskMeter:
        """See :class:`Task`."""
        return RestorationMeter(self.data_range)


class RestorationMeter(TaskMeter):
    """PSNR and SSIM, means over images."""

    def __init__(self, data_range: float) -> None:
        self.data_range, self.average = data_range, Average("PSNR", "SSIM")

    def update(self, output: Mapping[str, Tensor], labels: Tree) -> None:
        """See :class:`TaskMeter`."""
        images = output["logits"]
        figures = {"PSNR": psnr(images, labels, self.data_range), "SSIM": ssim(images, labels, self.data_range)}
        self.average.update(figures)

    def compute(self) -> dict[str, float]:
        """See :class:`TaskMeter`."""
        return self.average.compute()
