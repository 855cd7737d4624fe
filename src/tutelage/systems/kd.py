"""Classic knowledge distillation: soft targets (Hinton, Vinyals, Dean, 2015, arXiv 1503.02531)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tutelage.distillation.data import Batch
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.method import Method
from tutelage.distillation.outputs import Output, Terms
from tutelage.distillation.tasks import tasks as every_task
from tutelage.errors import InputError
from tutelage.registry import system
from tutelage.systems._toy import SmallCNN, build_with_seed, toy_images


@system("kd", kind="distillation")
class KD(Method):
    """Classic knowledge distillation: the student matches the teacher's softened class probabilities.

    ``L = alpha T^2 KL(softmax(z_t / T) || softmax(z_s / T)) + (1 - alpha) CE(z_s, y)``, means over the batch.
    The factor T^2 keeps the gradient of the soft term the same size at every temperature (section 2). With
    ``alpha = 1`` there is no label term, and the data needs no labels.

    Heads: ``logits`` [B, C] of student and teacher; labels [B] class ids or [B, C] probabilities. The defaults
    T = 4 and alpha = 0.9 are the usual ones of later comparisons; the paper varies both.

    Any task: the two terms are the task's distance to the teacher and its label loss. Outside classes and labels these are
    no longer soft targets (our choice): real numbers, maps and images are compared by squared or absolute error, which
    ``tau`` does not touch.

    Raises:
        InputError: ``alpha`` outside 0..1 or ``tau`` not above 0.
    """

    tasks = tuple(every_task())

    @dataclass(frozen=True)
    class Config:
        """``tau``: the temperature T. ``alpha``: the weight of the soft targets."""

        tau: float = 4.0
        alpha: float = 0.9

        def __post_init__(self) -> None:
            if not 0 <= self.alpha <= 1:
                raise InputError(f"a weight lies in 0..1, this is {self.alpha}", where="alpha", remedy="the paper: 0.9")
            if self.tau <= 0:
                raise InputError(f"a temperature is above 0, this is {self.tau}", where="tau", remedy="try 4")

    def __init__(self, config: Config | None = None, **options: float):
        super().__init__(config, **options)
        self.needs_labels = self.config.alpha < 1  # type: ignore[misc]

    def loss_weights(self) -> Mapping[str, float]:
        """See :class:`Method`."""
        alpha = self.config.alpha
        return {"kd": alpha, "label": 1 - alpha} if self.needs_labels else {"kd": alpha}

    def loss_terms(self, batch: Batch, student: Output, teacher: Output) -> Terms:
        """``kd`` and, unless ``alpha`` is 1, ``label``."""
        terms = {"kd": self.task.distance(student, teacher, batch.labels, batch.weights, self.config.tau)}
        if self.needs_labels:
            terms["label"] = self.task.label_loss(student, batch.labels, batch.weights)
        return terms

    @classmethod
    def tiny_job(cls, seed: int) -> TrainingJob:
        """A training job of a second: toy images, small networks."""
        student = build_with_seed(lambda: SmallCNN(4, 4, 8), seed, "student")
        teacher = build_with_seed(lambda: SmallCNN(4, 8, 16), seed, "teacher")
        return TrainingJob(student, teacher, cls(), toy_images(seed), TrainingSettings(steps=8, batch_size=16, seed=seed), "kd")
