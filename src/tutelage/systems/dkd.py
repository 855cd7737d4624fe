"""Decoupled knowledge distillation (Zhao, Cui, Song, Qiu, Liang, 2022, arXiv 2203.08679)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tutelage.distillation import losses
from tutelage.distillation.data import Batch
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.method import Method
from tutelage.distillation.outputs import Output, Terms
from tutelage.distillation.tasks import CategoricalTask
from tutelage.registry import system
from tutelage.systems._toy import SmallCNN, build_with_seed, class_ids, toy_images


@system("dkd", kind="distillation")
class DKD(Method):
    """Decoupled knowledge distillation: target-class and non-target-class knowledge weighted apart.

    ``L = CE(z_s, y) + w(e) T^2 (alpha TCKD + beta NCKD)`` with, of probabilities at temperature T,
    ``TCKD = KL((p_y, 1 - p_y)_t || (p_y, 1 - p_y)_s)`` and ``NCKD = KL(q_t || q_s)``, q the softmax over the classes
    other than y (equations 5-7). Classic distillation is ``TCKD + (1 - p_y^t) NCKD``: there a confident teacher
    silences what it knows of the other classes. ``w(e) = min(1, e / warmup)``, e the epoch counted from 1, as in the
    authors' CIFAR schedule; ``warmup = 0`` switches it off.

    Heads: ``logits`` [B, C], C >= 2; labels [B] class ids. In segmentation and on tokens each position counts as such a row
    (our choice), but for ignored labels. Defaults: the paper's for CIFAR-100 (alpha 1, beta 8, T 4).
    ``beta`` should be small where the teacher's target logit stands little above the others (section 4.3).
    """

    needs_labels = True
    tasks = ("classification", "segmentation", "token-classification", "language-modelling")

    @dataclass(frozen=True)
    class Config:
        """``alpha``, ``beta``: weights of TCKD and NCKD; ``ce``: of the labels; ``warmup`` in epochs."""

        alpha: float = 1.0
        beta: float = 8.0
        tau: float = 4.0
        ce: float = 1.0
        warmup: int = 20

    def loss_weights(self) -> Mapping[str, float]:
        """See :class:`Method`."""
        config = self.config
        rise = min(1.0, (int(self.progress.epoch) + 1) / config.warmup) if config.warmup else 1.0
        return {"label": config.ce, "target": rise * config.alpha, "other": rise * config.beta}

    def loss_terms(self, batch: Batch, student: Output, teacher: Output) -> Terms:
        """``label``, ``target`` (T^2 TCKD) and ``other`` (T^2 NCKD)."""
        assert isinstance(self.task, CategoricalTask)
        rows = self.task.rows(student, teacher, batch.labels, batch.weights)
        assert rows.teacher is not None
        labels = class_ids(rows.labels)
        target, other = losses.decoupled(rows.student, rows.teacher, labels, self.config.tau)
        return {
            "label": losses.cross_entropy(rows.student, labels, rows.weights),
            "target": losses.average(target, rows.weights),
            "other": losses.average(other, rows.weights),
        }

    @classmethod
    def tiny_job(cls, seed: int) -> TrainingJob:
        """A training job of a second: toy images, small networks."""
        student = build_with_seed(lambda: SmallCNN(4, 4, 8), seed, "student")
        teacher = build_with_seed(lambda: SmallCNN(4, 8, 16), seed, "teacher")
        return TrainingJob(student, teacher, cls(), toy_images(seed), TrainingSettings(steps=8, batch_size=16, seed=seed), "dkd")
