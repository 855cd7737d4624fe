"""An encoder of yours learns from your own unlabelled images, and forgets less of what it knew than by plain training::

    import tutelage
    from tutelage.systems import further_pretraining_self_distillation as further

    start = further.ImagePretraining(vit, in_chans=3)  # your VisionTransformer; or TransformersMAE(model)
    adapted = further.adapt(start, images, rounds=1, steps=2000, out="runs/adapted").student
    classifier = tutelage.distill(further.Classifier(adapted, classes=10), None, labelled, "supervised").student

``images``: a tensor [N, C, H, W], a folder or any data set; for texts ``TensorData`` of a dict of ``input_ids`` and
``attention_mask``, with ``TextPretraining(model, mask_id)``. ``adapted.encoder`` is the network that was given, adapted. ``out``
keeps each stage; the same call goes on where it was stopped. One stage alone, with any teacher of the same width::

    tutelage.distill(start, teacher, images, "further-pretraining-self-distillation", steps=2000)

There is no recipe: a recipe describes one job, and this is a plan of several from one start.

Stage A trains on: the pretext loss alone, from the start weights phi_0 (MAE on 75 % of the patches, or 15 % masked words). Stage
B starts again from phi_0, encoder and decoder, and has the encoder of stage A, frozen, as its teacher::

    L = L_pretext(theta; x) + 1/B sum_b || f_theta(x_b) - f_A(x_b) ||^2

f is the class token behind the last norm, on the whole input; the SUM over features and the mean over the batch: with a mean
over features the second term would be D times weaker. Stage B may repeat, each time from phi_0, with the last student as its
teacher. Then a linear head is fine-tuned on labels (:class:`Classifier`). A step of stage B is a masked and two whole passes, about
twice to five times a step of stage A: compare at equal time as well as at equal steps.

Why it shrinks what was learned: for linear features each round takes the step ``w_t - w_0 = (F'F + s I)^-1 F'F (w_(t-1) - w_0)``,
which is shorter in every direction, and most in those of little variance (:func:`linear_rounds`).

Published training (:func:`published_settings`): 20,000 steps a stage, batch 64, AdamW, rate 1.5e-4 linear to 0, betas (0.9, 0.95),
decay 0.01 but for vectors. Fine-tuning: 10,000 steps, batch 32, rate 1e-4, 500 steps of warm-up, clip 1, dropout 0.1, mirrored
views.

Inside SDVP: a module's encoder is fitted to a user's unlabelled crops before the module is trained, and drifts less.

Limits: the gain in accuracy of the paper, with a ViT-B/16 at 224 on six sets of images, is not repeated here; at this scale
accuracy on few labels is noise. Distances of weights are smaller than those of training twice as long, not than at equal steps.

Source: Self-Distillation for Further Pre-training of Transformers (Lee, Kang, Lee, Hwang and Kawaguchi, 2022, arXiv 2210.02871).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.distillation.data import Batch, ReplayableData
from tutelage.distillation.data.sources import as_data
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.losses import average
from tutelage.distillation.method import Method
from tutelage.distillation.optim import vector_names
from tutelage.distillation.outputs import Output, Terms, forward_heads, unwrap_model
from tutelage.distillation.plan import PlanResult, Students, TrainingPlan, train_plan
from tutelage.distillation.settings import make_settings
from tutelage.distillation.teacher import Teacher
from tutelage.distillation.weight_penalties import L2Penalty
from tutelage.errors import InputError
from tutelage.fields import check_range
from tutelage.networks.vit import VisionTransformer
from tutelage.registry import system
from tutelage.systems._toy import build_with_seed, toy_images
from tutelage.systems.further_pretraining_self_distillation.networks import ImagePretraining, PretrainingNetwork

NAME = "further-pretraining-self-distillation"


def published_settings(steps: int = 20_000, **others: Any) -> TrainingSettings:
    """The paper's training of stages A and B; ``others``: further settings, such as ``batch_size=32``."""
    base = TrainingSettings(steps=steps, batch_size=64, lr=1.5e-4, betas=(0.9, 0.95), weight_decay=0.01, schedule="linear")
    return make_settings(base, others)


def feature_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """``|| s - t ||^2`` of each row, summed over features: two [B, D] -> [B]; no gradient into the teacher."""
    return (student - teacher.detach()).square().sum(1)


@system(NAME, kind="adaptation")
class FurtherPretraining(Method):
    """Further pre-training with self-distillation: the pretext loss, and the distance to a further pre-trained copy's features.

    Without a teacher it is stage A. The student is a :class:`PretrainingNetwork`; so is the teacher, or it gives ``features``.

    Raises:
        InputError: a student without a pretext task, a teacher of another width, or a weight that is negative.
    """

    needs_teacher = False
    matched_heads = ("features",)

    @dataclass(frozen=True)
    class Config:
        """``distill``: the weight of the distance to the teacher. ``anchor``: of L2-SP, ``anchor / 2 ||theta - phi_0||^2``, the
        usual alternative (a baseline of the paper)."""

        distill: float = 1.0
        anchor: float = 0.0

        def __post_init__(self) -> None:
            for name in ("distill", "anchor"):
                check_range(name, getattr(self, name), 0.0, 1e9)

    def prepare(self, student: nn.Module, teacher: Teacher | None, example: Batch, data: ReplayableData) -> None:
        """Check the student; see whether there is something to distil; keep the start weights where they are an anchor."""
        network = unwrap_model(student)
        if not isinstance(network, PretrainingNetwork):
            remedy = "ImagePretraining(vit), TransformersMAE(model) or TextPretraining(model)"
            raise InputError(f"{type(network).__name__} has no pretext task", where="student", remedy=remedy)
        self.distilled = teacher is not None and self.config.distill > 0
        self.no_weight_decay = tuple(f"student.{name}" for name in vector_names(network))
        if self.config.anchor:
            start = {name: (value, None) for name, value in network.named_parameters() if value.requires_grad}
            self.penalty = L2Penalty(start, self.config.anchor)

    def forward(self, batch: Batch, student: nn.Module, teacher: Teacher | None) -> tuple[Output, Output]:
        """The masks of a pass come from its generator, so that weight 0 is stage A bit for bit."""
        target = teacher(batch) if teacher is not None and self.distilled else {}
        seeds = torch.randint(2**31, (len(batch),))
        inputs: Any = (batch.inputs, seeds, self.distilled)
        if isinstance(batch.inputs, Mapping):
            inputs = {**batch.inputs, "seeds": seeds, "features": self.distilled}
        output = forward_heads(student, inputs)
        if self.config.anchor:
            output["anchor"] = self.penalty(unwrap_model(student))
        return output, target

    def loss_terms(self, batch: Batch, student: Output, teacher: Output) -> Terms:
        """``pretext``; ``distance`` with a teacher; ``anchor`` where it has a weight."""
        terms = {"pretext": average(student["pretext"], batch.weights)}
        if teacher:
            own, other = student["features"], teacher["features"]
            if own.shape != other.shape:
                shapes = f"features {list(own.shape)} and {list(other.shape)}"
                raise InputError(f"student and teacher disagree: {shapes}", where="teacher", remedy="give one of the same width")
            terms["distance"] = average(feature_distance(own, other), batch.weights)
        return terms | ({"anchor": student["anchor"]} if "anchor" in student else {})

    def loss_weights(self) -> Mapping[str, float]:
        """``distill`` for the distance; the anchor holds its own."""
        return {"distance": self.config.distill} if self.distilled else {}

    @classmethod
    def tiny_job(cls, seed: int) -> TrainingJob:
        """A training job of a second: stage B of a small masked autoencoder."""
        start, teacher = (build_with_seed(_tiny_network, seed, name) for name in ("start", "teacher"))
        data = toy_images(seed, count=32)
        settings = TrainingSettings(steps=8, batch_size=16, lr=1e-3, seed=seed)
        return TrainingJob(start, teacher, cls(), data, settings)


def _tiny_network() -> ImagePretraining:
    return ImagePretraining(VisionTransformer(8, 2, dim=16, depth=1, num_heads=2, in_chans=1, positions="sincos"), 1, 16, 1, 2)


def adaptation_plan(
    start: PretrainingNetwork,
    data: Any,
    settings: TrainingSettings,
    rounds: int = 1,
    distill: float = 1.0,
) -> TrainingPlan:
    """Stage A (``further``) and ``rounds`` times stage B (``round-1``, …), each from the weights of ``start``.

    ``rounds=0`` is plain further pre-training. The teacher of a round is the student of the job before.

    Raises:
        InputError: rounds that are no number from 0, or a network without a pretext task.
    """
    check_range("rounds", rounds, 0, 1000, whole=True)
    if not isinstance(start, PretrainingNetwork):
        raise InputError(f"{type(start).__name__} has no pretext task", where="start", remedy="such as ImagePretraining(vit)")
    first, supply = copy.deepcopy(start), as_data(data)

    def stage(teacher: str | None) -> Callable[[Students], TrainingJob]:
        def build(made: Students) -> TrainingJob:
            method = FurtherPretraining(distill=distill)
            return TrainingJob(copy.deepcopy(first), None if teacher is None else made[teacher], method, supply, settings, NAME)

        return build

    names = ["further", *(f"round-{number}" for number in range(1, rounds + 1))]
    return {name: stage(before) for name, before in zip(names, [None, *names])}


def adapt(
    start: PretrainingNetwork,
    data: Any,
    rounds: int = 1,
    distill: float = 1.0,
    out: str | Path | None = None,
    settings: TrainingSettings | None = None,
    **overrides: Any,
) -> PlanResult:
    """Pre-train ``start`` further on unlabelled ``data``, with self-distillation.

    Args:
        start: the network, which is copied.
        data: inputs without labels: a tensor [N, ...], a folder of images, for texts ``TensorData`` of a dict, or what
            ``distill`` takes.
        rounds: of stage B.
        distill: the weight of the distance.
        out: a folder; the same call goes on where it was stopped.
        settings: of every stage; default: :func:`published_settings`. ``overrides``: single fields: ``steps=2000``.

    Returns:
        The plan's result: ``student`` is the adapted network, ``results["further"].student`` that of stage A.

    Raises:
        InputError: see :func:`adaptation_plan`.
    """
    chosen = make_settings(settings or published_settings(), overrides)
    return train_plan(adaptation_plan(start, data, chosen, rounds, distill), out, chosen.seed)


def linear_rounds(features: Tensor, start: Tensor, further: Tensor, strength: float, rounds: int) -> Tensor:
    """The weights of a linear model in each round of self-distillation [rounds + 1, D]; the first are ``further``.

    ``w_t = argmin 1/2 ||F (w - w_(t-1))||^2 + s/2 ||w - w_0||^2``, so ``w_t - w_0 = (F'F + s I)^-1 F'F (w_(t-1) - w_0)``: in each
    eigen-direction of variance v the way shrinks by ``v / (v + s)``.

    Args:
        features: F [N, D].
        start: w_0 [D].
        further: what stage A made of it [D].
        strength: s, from 0; at 0, with features of full rank, nothing changes.
        rounds: how many.

    Raises:
        InputError: a strength or number of rounds below 0.
    """
    check_range("strength", strength, 0.0, float("inf"))
    check_range("rounds", rounds, 0, 10**6, whole=True)
    scatter = features.T @ features
    shrink = torch.linalg.solve(scatter + strength * torch.eye(len(start), dtype=scatter.dtype), scatter)
    ways = [further - start]
    for _ in range(rounds):
        ways.append(shrink @ ways[-1])
    return start + torch.stack(ways)
