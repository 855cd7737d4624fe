"""UniFormer's training with several heads: token labels (Jiang et al., 2021), and the light form's second head."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.distillation import losses
from tutelage.distillation.data import Batch, ReplayableData
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.method import Method
from tutelage.distillation.outputs import Output, Terms, forward_heads
from tutelage.distillation.teacher import Teacher
from tutelage.errors import InputError
from tutelage.systems._backbone import Backbone
from tutelage.systems._toy import build_with_seed, toy_images
from tutelage.systems.uniformer.network import UniFormer


class DenseLabeler(nn.Module):
    """A classifier that also answers for each place of its last map: a teacher of token labels.

    The classifier's own head is applied to one place at a time. Images -> ``logits`` [B, K], and ``patches`` [B, places, K],
    row by row. ``network``: a backbone whose head takes the mean over places.
    """

    def __init__(self, network: Backbone):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Both heads."""
        self.network.check(images)
        maps = self.network.forward_stages(images)[-1]
        places = maps.flatten(2).transpose(1, 2)
        alone = self.network.forward_head(places.flatten(0, 1)[..., None, None])
        return {"logits": self.network.forward_head(maps), "patches": alone.unflatten(0, places.shape[:2])}


class TokenLabels(Method):
    """Labels of the image, dense labels of a teacher on every place, and the light form's second head.

    ``L = CE(z, y) + w_p mean_n CE(z_n, softmax(t_n)) + w_t CE(z_token, y)``: z the logits of the mean, z_n those of the
    student's head ``patches`` at place n, t_n the teacher's there, z_token those of the class token. Which terms there are
    is decided by the student's heads: ``patches`` with ``UniFormer(token_labels=True)``, ``token`` in the light form; both
    want ``all_heads=True``. The teacher is any network with a head ``patches`` [B, places, K], such as a
    :class:`DenseLabeler`; it sees the student's own views, so that no labels have to be cut out by their crop. A grid of
    another size is resized bilinearly.

    Published: w_p = 0.5 (S 83.4, B 85.1, L 85.6 % on ImageNet-1k). How the second head is weighted is not: 0.5 is our choice.

    Raises:
        InputError: a student with neither head, no teacher for ``patches``, or grids that cannot be matched.
    """

    tasks = ("classification",)
    needs_labels = True
    needs_teacher = False
    matched_heads = ()

    @dataclass(frozen=True)
    class Config:
        """``patches``, ``token``: the weights w_p and w_t; ``smoothing``: of the labels."""

        patches: float = 0.5
        token: float = 0.5
        smoothing: float = 0.1

    def prepare(self, student: nn.Module, teacher: Teacher | None, example: Batch, data: ReplayableData) -> None:
        """Look at the heads; see :class:`Method`."""
        heads = forward_heads(student, example.inputs)
        if not heads.keys() & {"patches", "token"}:
            remedy = "UniFormer(…, token_labels=True, all_heads=True), or the light form with all_heads=True"
            raise InputError("the student has no head for places or for a class token", where="student", remedy=remedy)
        if "patches" in heads and teacher is None:
            raise InputError("no teacher labels the places", where="teacher", remedy="give one with a head 'patches'")

    def forward(self, batch: Batch, student: nn.Module, teacher: Teacher | None) -> tuple[Output, Output]:
        """The student's heads; the teacher's ``patches`` as probabilities on the student's grid."""
        heads = forward_heads(student, batch.inputs)
        if "patches" not in heads or teacher is None:
            return heads, {}
        return heads, {"patches": _fitted(teacher(batch)["patches"], heads["patches"].shape[1]).softmax(-1)}

    def loss_weights(self) -> Mapping[str, float]:
        """See :class:`Method`."""
        return {"patches": self.config.patches, "token": self.config.token}

    def loss_terms(self, batch: Batch, student: Output, teacher: Output) -> Terms:
        """``label``, and ``patches`` and ``token`` where the student has them."""
        options = {"weights": batch.weights, "smoothing": self.config.smoothing}
        terms = {"label": losses.cross_entropy(student["logits"], batch.labels, **options)}
        if "token" in student:
            terms["token"] = losses.cross_entropy(student["token"], batch.labels, **options)
        if "patches" in student:
            dense = -(teacher["patches"].detach() * student["patches"].log_softmax(-1)).sum(-1)
            terms["patches"] = losses.average(dense.mean(1), batch.weights)
        return terms

    @classmethod
    def tiny_job(cls, seed: int) -> TrainingJob:
        """A training job of two seconds: the light form with both further heads."""
        sizes = {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16), "head": 8, "ratio": 2.0}
        light = {"light": True, "stem": "light", "token_labels": True, "all_heads": True}
        student = build_with_seed(lambda: UniFormer(4, 1, **sizes, **light), seed, "student")
        teacher = build_with_seed(lambda: DenseLabeler(UniFormer(4, 1, **sizes)), seed, "teacher")
        settings = TrainingSettings(steps=8, batch_size=16, lr=2e-3, seed=seed)
        return TrainingJob(student, teacher, cls(), toy_images(seed, 32, image_size=64), settings, "token labels")


def _fitted(patches: Tensor, places: int) -> Tensor:
    """Logits [B, M, K] of a square grid on another of ``places`` places.

    Raises:
        InputError: one of the grids is not square.
    """
    if patches.shape[1] == places:
        return patches
    sides = [math.isqrt(count) for count in (patches.shape[1], places)]
    if [side**2 for side in sides] != [patches.shape[1], places]:
        raise InputError(
            f"{patches.shape[1]} places of the teacher, {places} of the student",
            where="patches",
            remedy="give a teacher of the student's stride, or square images",
        )
    maps = patches.transpose(1, 2).unflatten(2, (sides[0], sides[0]))
    return F.interpolate(maps, sides[1], mode="bilinear", align_corners=False).flatten(2).transpose(1, 2)
