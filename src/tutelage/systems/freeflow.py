"""FreeFlow: a flow teacher becomes a one-step generator, from noise alone.

On your own flow model: a teacher ``velocity(x, t)`` that points from noise to data, and a student of the same form, which
may start as a copy of the teacher::

    from tutelage.distillation.data.generated import Prior
    from tutelage.systems.freeflow import generate

    done = tutelage.distill(copy.deepcopy(flow), flow, Prior((3, 32, 32), length=10**9), method="freeflow", ema=0.999)
    images = generate(done.student, torch.randn(16, 3, 32, 32))

As a recipe, with the network of points that this page defines (``VelocityMLP``; a network of your own is given in Python)::

    method = "freeflow"
    out = "runs/one-step"

    [student]
    model = "freeflow"
    options = { dim = 2, width = 128 }

    [teacher]
    model = "freeflow"
    options = { dim = 2, width = 128 }
    weights = "flow.safetensors"

    [data]
    kind = "prior"
    shape = [2]

    [settings]
    ema = 0.999

With classes to generate for, give ``Prior(…, classes=10)`` (``classes = 10``): the class ids are then the third argument of
teacher and student. Guidance is part of the teacher: ``GuidedFlow(flow, 2.0, 10)``.

A student F(z, delta) moves noise z to where the teacher's path from z is at time 1 - delta: ``f(z, delta) = z + delta F``.
Two objectives, both on noise (velocities as in ``networks/flow.py``):

- **Prediction.** Along a path ``F + delta dF/ddelta = u(f, 1 - delta)``, so F follows ``u(f, 1 - delta) - delta dF/ddelta``,
  without a gradient through it; the teacher is asked at the student's own states.
- **Correction.** Let ``x_r = (1 - r) f(z, 1) + r n``. The gradient ``F(z, 1) (v_N(x_r, r) - u(x_r, r))`` lowers the divergence of
  the student's law from the teacher's. The student's velocity v_N is learned beside it by flow matching on its samples.

Use in SDVP: an edit or inpainting module of one step in place of a diffusion one.

Limits: no data means no FID claim here. In two dimensions the correction does not help, so its share is an option; correction
alone matches the law, not the paths. Give ``Prior(shape)`` as data: nothing else tells the shape of a sample.

Flow Map Distillation Without Data (Tong, Ma, Xie, Jaakkola, 2025, arXiv 2511.19428).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tutelage.distillation.data import Batch, ReplayableData
from tutelage.distillation.data.generated import Prior
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.method import Method
from tutelage.distillation.outputs import Output, Terms
from tutelage.distillation.teacher import BlackBoxTeacher, Teacher
from tutelage.errors import InputError, did_you_mean
from tutelage.networks.flow import GaussianMixtureFlow, Velocity, expand_time, guided_velocity, interpolate
from tutelage.registry import system
from tutelage.systems._toy import build_with_seed

EPSILON = 1e-3
"""Keeps weights and ratios finite (our choice)."""


class GuidedFlow(nn.Module):
    """A conditional flow network under guidance, as a teacher: ``u = s u(x, t, c) + (1 - s) u(x, t, null)``.

    Args:
        network: ``network(x, t, classes)``, with a class that stands for no condition.
        scale: s; 1 is no guidance.
        null_class: the class for no condition.
        interval: times at which guidance acts; narrower than in sampling is better (the paper's best for the correction
            reaches from 0 to 0.7).
    """

    def __init__(self, network: nn.Module, scale: float, null_class: int, interval: tuple[float, float] = (0.0, 0.7)):
        super().__init__()
        self.network, self.scale, self.null_class, self.interval = network, scale, null_class, interval

    def forward(self, x: Tensor, t: Tensor, classes: Tensor) -> Tensor:
        """The velocity at states [B, …], times [B] and classes [B]."""
        null = torch.full_like(classes, self.null_class)
        conditional, unconditional = (lambda a, b, c=c: self.network(a, b, c) for c in (classes, null))
        return guided_velocity(conditional, unconditional, self.scale, self.interval)(x, t)


def velocity_teacher(velocity: Callable[..., Tensor], version: str | None = None) -> BlackBoxTeacher:
    """A function ``velocity(x, t)``, or ``velocity(x, t, classes)``, as a teacher; a network needs no such wrapper."""
    return BlackBoxTeacher(lambda inputs: velocity(*inputs), version)


def flow_map(student: Callable[..., Tensor], noise: Tensor, delta: Tensor, *condition: Tensor) -> Tensor:
    """``f(z, delta) = z + delta F(z, delta)`` of noise [B, …] and delta [B]: the state at time 1 - delta."""
    return noise + expand_time(delta, noise) * student(noise, delta, *condition)


@torch.no_grad()
def generate(student: Callable[..., Tensor], noise: Tensor, *condition: Tensor) -> Tensor:
    """One sample for each row of noise [B, …], in one step: ``z + F(z, 1)``."""
    return flow_map(student, noise, noise.new_ones(len(noise)), *condition)


@torch.no_grad()
def best_noise(
    student: Callable[..., Tensor], noise: Tensor, score: Callable[[Tensor], Tensor], *condition: Tensor
) -> tuple[Tensor, Tensor]:
    """Search with the one-step student, for the teacher to sample from: of N candidates the noise of the best sample.

    Args:
        student: F.
        noise: candidates [B, N, …].
        score: of samples [B N, …], higher is better: [B N].
        condition: of each of the B rows.

    Returns:
        the best noise [B, …] and its score [B].
    """
    rows, candidates = noise.shape[:2]
    repeated = [item.repeat_interleave(candidates, 0) for item in condition]
    scores = score(generate(student, noise.flatten(0, 1), *repeated)).view(rows, candidates)
    best, which = scores.max(1)
    return noise[torch.arange(rows), which], best


@torch.no_grad()
def slope(
    student: Callable[..., Tensor], noise: Tensor, delta: Tensor, *condition: Tensor, how: str = "jvp", step: float = 1e-3
) -> tuple[Tensor, Tensor]:
    """F and dF/ddelta, both [B, …] and without gradients.

    Args:
        student: F.
        noise: [B, …].
        delta: [B].
        condition: further arguments of F.
        how: ``jvp``, or ``differences``: central, for networks without forward mode (fused attention).
        step: half the distance of the differences.
    """
    if how == "differences":
        ahead, behind = student(noise, delta + step, *condition), student(noise, delta - step, *condition)
        return student(noise, delta, *condition), (ahead - behind) / (2 * step)
    return torch.func.jvp(lambda d: student(noise, d, *condition), (delta,), (torch.ones_like(delta),))


def row_norm(x: Tensor) -> Tensor:
    """The Euclidean norm of each row [B]."""
    return torch.linalg.vector_norm(x.flatten(1), dim=1)


def residual_weight(residual: Tensor, power: float) -> Tensor:
    """``1 / (mean square of the row + epsilon)^power``, [B]."""
    return (residual.square().flatten(1).mean(1) + EPSILON) ** -power


def balance(prediction: Tensor, correction: Tensor, alpha: float = 1.0) -> Tensor:
    """``alpha mean|prediction| / (mean|correction| + epsilon)``: the correction's weight, from both residuals [B, …]."""
    return alpha * row_norm(prediction).mean() / (row_norm(correction).mean() + EPSILON)


class VelocityMLP(nn.Module):
    """A velocity, or a flow map's F, of points [B, dim]: time enters as t, and sine and cosine of pi t and 2 pi t."""

    def __init__(self, dim: int = 2, width: int = 128, depth: int = 3):
        super().__init__()
        sizes = [dim + 5, *[width] * depth]
        hidden = [layer for a, b in zip(sizes, sizes[1:]) for layer in (nn.Linear(a, b), nn.SiLU())]
        self.layers = nn.Sequential(*hidden, nn.Linear(width, dim))

    def forward(self, x: Tensor, t: Tensor | None = None) -> Tensor:
        """[B, dim] at times (a flow map's F: delta) [B]; None: 1, the whole way."""
        t = x.new_ones(len(x)) if t is None else t
        angle = torch.pi * t[:, None]
        waves = [angle.sin(), angle.cos(), (2 * angle).sin(), (2 * angle).cos()]
        return self.layers(torch.cat([x, t[:, None], *waves], 1))


@system("freeflow", kind="distillation")
class FreeFlow(Method):
    """A one-step generator of a flow teacher, from noise alone: no data set is opened.

    Prediction has a share of each batch, correction the rest. The prediction's gradient is that of
    ``F (v_G - u) w``, with the student's own velocity ``v_G = F + delta dF/ddelta`` and
    ``w = 1 / (|v_G - u|^2 / d + epsilon)^k``. The correction is weighed by the ratio of both residuals' norms, the first
    with its w (our choice: so that scaling all velocities changes no direction for any k). Half of ``w |F - target|^2``
    is the loss, so that its gradient has the correction's scale. The online network starts as the teacher, or, where that
    is no network, as the student.

    Raises:
        InputError: an option out of range, data that are no tensor, or velocities of another shape than the noise.
    """

    deterministic_teacher = False
    matched_heads = ()
    Network = VelocityMLP

    @dataclass(frozen=True)
    class Config:
        """``prediction``: the share of each batch for prediction, 1: no correction and no online network, 0: correction
        alone. ``power``: k; None: 1 in joint training, 0 for prediction alone. ``at_end``: the share of delta that is 1,
        the rest is uniform (our choice: 0; a quarter did harm in two dimensions). ``noise_mean``, ``noise_std``: r is the
        sigmoid of a normal number (our choice of the two, towards high noise). ``least_time``: the teacher is asked at no
        earlier time. ``derivative``: see :func:`slope`. ``online_lr``: the online network's factor on the learning rate."""

        prediction: float = 0.75
        alpha: float = 1.0
        power: float | None = None
        at_end: float = 0.0
        noise_mean: float = 1.0
        noise_std: float = 1.5
        least_time: float = 0.0
        derivative: Literal["jvp", "differences"] = "jvp"
        online_lr: float = 1.0

        def __post_init__(self) -> None:
            for name in ("prediction", "at_end", "least_time"):
                if not 0 <= getattr(self, name) <= 1:
                    raise InputError(f"{name} is {getattr(self, name)}", where=name, remedy="a number from 0 to 1")
            for name in ("alpha", "noise_std", "online_lr"):
                if not getattr(self, name) > 0:
                    raise InputError(f"{name} is {getattr(self, name)}", where=name, remedy="a number above 0")
            if self.derivative not in ("jvp", "differences"):
                remedy = did_you_mean(str(self.derivative), ["jvp", "differences"])
                raise InputError(f"unknown derivative {self.derivative!r}", where="derivative", remedy=remedy)

    def __init__(self, config: Config | None = None, **options: object):
        super().__init__(config, **options)
        self.online: nn.Module = nn.Identity()

    @property
    def power(self) -> float:
        """k."""
        given = self.config.power
        return given if given is not None else float(0 < self.config.prediction < 1)

    def prepare(self, student: nn.Module, teacher: Teacher | None, example: Batch, data: ReplayableData) -> None:
        """Check both networks on the first batch, and make the online network."""
        assert teacher is not None
        noise, condition = inputs_of(example)
        time = noise.new_ones(len(noise))
        for who, network in (("student", student), ("teacher", self.velocity(teacher, *condition))):
            given = condition if who == "student" else []
            try:
                shape = network(noise, time, *given).shape
            except (TypeError, ValueError, RuntimeError, AttributeError) as error:
                raise InputError(
                    f"the {who} cannot be asked for a velocity: {error}"[:300],
                    where=who,
                    remedy="a network forward(x, t) or, with classes, forward(x, t, classes); a function: velocity_teacher(u)",
                ) from error
            if shape != noise.shape:
                message = f"the {who}'s velocity is {tuple(shape)}, the noise {tuple(noise.shape)}"
                raise InputError(message, where=who, remedy="give noise of the sample's shape: Prior(shape)")
        if self.config.prediction < 1:
            source = teacher.network
            source = source.network if isinstance(source, GuidedFlow) else source
            learns = source is not None and any(True for _ in source.parameters())
            self.online = copy.deepcopy(source if learns else student).train().requires_grad_(True)

    def velocity(self, teacher: Teacher, *condition: Tensor) -> Velocity:
        """The teacher's velocity as a function of states and times."""

        def ask(x: Tensor, t: Tensor) -> Tensor:
            inputs: Any = (x, t.clamp(min=self.config.least_time), *condition)
            return teacher(Batch(inputs))["logits"]

        return ask

    def groups(self, student: nn.Module) -> list[Mapping[str, Any]] | None:
        """The online network has a learning rate of its own."""
        online = [p for p in self.online.parameters() if p.requires_grad]
        if not online or self.config.online_lr == 1:
            return None
        own = [p for p in student.parameters() if p.requires_grad]
        return [{"params": own}, {"params": online, "lr_scale": self.config.online_lr}]

    def forward(self, batch: Batch, student: nn.Module, teacher: Teacher | None) -> tuple[Output, Output]:
        """The student's F on both parts of the batch, and the directions in which they go."""
        assert teacher is not None
        noise, condition = inputs_of(batch)
        count = round(self.config.prediction * len(noise))
        student_outputs: Output = {}
        targets: Output = {}
        if count:
            given = [item[:count] for item in condition]
            self._predict(noise[:count], given, student, self.velocity(teacher, *given), student_outputs, targets)
        if count < len(noise):
            given = [item[count:] for item in condition]
            self._correct(noise[count:], given, student, self.velocity(teacher, *given), student_outputs, targets)
        return student_outputs, targets

    def _predict(self, z: Tensor, given: list[Tensor], student: nn.Module, u: Velocity, outputs: Output, targets: Output) -> None:
        delta = torch.where(torch.rand(len(z)) < self.config.at_end, torch.ones(len(z)), torch.rand(len(z))).to(z)
        value, rise = slope(student, z, delta, *given, how=self.config.derivative)
        along = expand_time(delta, z)
        goal = u(z + along * value, 1 - delta)
        outputs["prediction"] = student(z, delta, *given)
        targets["prediction"], targets["residual"] = goal - along * rise, value + along * rise - goal

    def _correct(self, z: Tensor, given: list[Tensor], student: nn.Module, u: Velocity, outputs: Output, targets: Output) -> None:
        r = torch.sigmoid(self.config.noise_mean + self.config.noise_std * torch.randn(len(z))).to(z)
        n = torch.randn(z.shape).to(z)
        outputs["end"] = student(z, torch.ones_like(r), *given)
        sample = (z + outputs["end"]).detach()
        x = interpolate(sample, n, r)
        outputs["online"] = self.online(x, r, *given)
        targets["online"] = sample - n
        targets["correction"] = outputs["online"].detach() - u(x, r)

    def loss_terms(self, batch: Batch, student: Output, teacher: Output) -> Terms:
        """``prediction``, ``correction`` (its value means nothing, its gradient does) and ``online``."""
        terms: Terms = {}
        weight = torch.ones(())
        if "prediction" in student:
            weight = residual_weight(teacher["residual"], self.power)
            square = (student["prediction"] - teacher["prediction"]).square().flatten(1).mean(1)
            terms["prediction"] = (weight * square).mean() / 2
        if "end" in student:
            correction = teacher["correction"]
            factor = correction.new_tensor(self.config.alpha)
            if "prediction" in student:
                factor = balance(expand_time(weight, correction) * teacher["residual"], correction, self.config.alpha)
            terms["correction"] = factor * (student["end"] * correction).flatten(1).mean(1).mean()
            terms["online"] = (student["online"] - teacher["online"]).square().mean()
        return terms

    @classmethod
    def tiny_job(cls, seed: int, width: int = 1) -> TrainingJob:
        """A training job of a second: a round Gaussian, in closed form."""
        teacher = velocity_teacher(GaussianMixtureFlow(torch.tensor([[1.0, -0.5]]), 0.3))
        student = build_with_seed(lambda: VelocityMLP(2, 16 * width, 3 if width == 1 else 8), seed, "student")
        settings = TrainingSettings(steps=8, batch_size=16, lr=3e-3, seed=seed)
        return TrainingJob(student, teacher, cls(), Prior((2,)), settings, "freeflow")


def inputs_of(batch: Batch) -> tuple[Tensor, list[Tensor]]:
    """The noise [B, …], and the condition as a list of none or one.

    Raises:
        InputError: the inputs are no tensor.
    """
    if not isinstance(batch.inputs, Tensor) or not batch.inputs.is_floating_point():
        raise InputError("FreeFlow starts from noise", where="data", remedy="give Prior(shape) of data.generated")
    return batch.inputs, [batch.labels] if isinstance(batch.labels, Tensor) else []
