"""FreeFlow: one step from noise on a ring of eight Gaussians, against Euler, Heun, and distillation on data that do not match."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from tutelage.distillation.data import TensorData
from tutelage.distillation.data.generated import Prior
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.outputs import Output
from tutelage.distillation.trainer import train
from tutelage.experiments import Experiment, Figure, Metric, better
from tutelage.networks.flow import GaussianMixtureFlow, Velocity, expand_time, integrate, interpolate
from tutelage.seeds import torch_rng
from tutelage.systems._toy import build_with_seed
from tutelage.systems.freeflow import FreeFlow, VelocityMLP, generate, velocity_teacher

STEPS = 2000
ERROR = "distance to the teacher's end point from the same noise"
ENERGY, LEAST = "energy distance to the data", "samples at the rarest of 8 modes, %"
MISMATCH: Mapping[str, tuple[float, float]] = MappingProxyType(
    {"matched": (1.0, 0.0), "mildly mismatched": (0.8, 0.25), "strongly mismatched": (0.6, 0.5)}
)
"""Data of the data-based arm: (factor, shift along the first axis)."""


class OnData(FreeFlow):
    """The data-based arm: the same identity and network, at states of noised data instead of the student's own.

    ``F(x_t, s)`` maps the state ``x_t = (1 - t) x_0 + t n`` to its end in one step, by consistency: along the teacher's path
    the end stays where it is. ``x_t + t F`` may not change where x moves by u and t falls.
    """

    def _predict(self, z: Tensor, given: list[Tensor], student: Velocity, u: Velocity, outputs: Output, targets: Output) -> None:
        at_end = torch.rand(len(z)) < self.config.at_end
        t = torch.where(at_end, torch.ones(len(z)), torch.rand(len(z)))
        x = interpolate(z, torch.randn(z.shape), t)
        along = u(x, t)
        with torch.no_grad():  # d/dt of F along the path dx/dt = -u, forward in time
            _, change = torch.func.jvp(student, (x, t), (-along, torch.ones_like(t)))
        outputs["prediction"] = student(x, t)
        # 0 = d/dt (x + t F) = -u + F + t dF/dt
        targets["prediction"] = along - expand_time(t, x) * change
        targets["residual"] = outputs["prediction"].detach() - targets["prediction"]


def ring() -> GaussianMixtureFlow:
    """Eight Gaussians of deviation 0.2 on a circle of radius 2."""
    angles = torch.arange(8) * (2 * math.pi / 8)
    return GaussianMixtureFlow(2 * torch.stack([angles.cos(), angles.sin()], 1), 0.2)


def run(seed: int, smoke: bool, all_arms: bool) -> Mapping[str, Figure]:
    """Equal networks, steps and batches; errors over 2,000 noises that no arm has seen."""
    teacher = ring()
    rng = torch_rng(seed, "test")
    noise = torch.randn(200 if smoke else 2000, 2, generator=rng)
    ends = integrate(teacher, noise, 10 if smoke else 100)
    points = teacher.sample(1500, rng)
    settings = TrainingSettings(
        steps=4 if smoke else STEPS, batch_size=256, lr=3e-3, schedule="linear", clip=5.0, ema=0.99, seed=seed
    )
    methods: dict[str, FreeFlow] = {
        "FreeFlow": FreeFlow(prediction=1.0),
        "correction alone": FreeFlow(prediction=0.0),
    }
    methods |= {f"on data, {name}": OnData(prediction=1.0) for name in MISMATCH}
    if all_arms:
        methods["FreeFlow, joint"] = FreeFlow(power=0.0)
    arms: dict[str, Figure] = {
        "teacher, 1 Euler step": measures(integrate(teacher, noise, 1, "euler"), ends, points, teacher),
        "teacher, 2 Heun steps": measures(integrate(teacher, noise, 2), ends, points, teacher),
    }
    for name, method in methods.items():
        data: Prior | TensorData = Prior((2,), length=10**9, seed=seed)
        if isinstance(method, OnData):
            factor, shift = MISMATCH[name.removeprefix("on data, ")]
            data = TensorData(factor * teacher.sample(20_000, torch_rng(seed, "data")) + torch.tensor([shift, 0.0]))
        student = build_with_seed(VelocityMLP, seed, "student")
        train(TrainingJob(student, velocity_teacher(teacher), method, data, settings, name))
        arms[name] = measures(generate(student.eval(), noise), ends, points, teacher)
    return arms


def measures(samples: Tensor, ends: Tensor, points: Tensor, teacher: GaussianMixtureFlow) -> dict[str, float]:
    """The three metrics of samples [N, 2] from the noise whose true ends are ``ends``."""
    nearest = torch.cdist(samples, teacher.means).argmin(1)
    return {
        ERROR: (samples - ends).norm(dim=1).mean().item(),
        ENERGY: energy_distance(samples[: len(points)], points),
        LEAST: 100 * torch.bincount(nearest, minlength=8).min().item() / len(samples),
    }


def energy_distance(a: Tensor, b: Tensor) -> float:
    """``2 E|a - b| - E|a - a'| - E|b - b'|`` of two samples, without pairs of a point with itself."""

    def own(x: Tensor) -> Tensor:
        return torch.cdist(x, x).sum() / (len(x) * (len(x) - 1))

    return float(2 * torch.cdist(a, b).mean() - own(a) - own(b))


experiment = Experiment(
    metric=ERROR,
    higher_is_better=False,
    further_metrics=[Metric(ENERGY, higher_is_better=False), Metric(LEAST)],
    claims=[
        better("FreeFlow", "teacher, 1 Euler step"),
        better("FreeFlow", "teacher, 2 Heun steps"),
        better("FreeFlow", "on data, strongly mismatched"),
        better("on data, matched", "on data, strongly mismatched"),
        better("FreeFlow", "correction alone"),
        better("FreeFlow", 3.0, metric=LEAST),
    ],
    run=run,
    limits="Points in two dimensions and a teacher in closed form: no FID, no images, no trained teacher. On matched data the "
    "data-based arm is the better one, 0.12 against 0.15, and on mildly mismatched data as good: the claim is about strong "
    "mismatch. Settings were chosen on selection seeds 100 to 102. With a quarter of delta (and of the data-based arm's times) at "
    "1, seed 100 after 2,000 steps: FreeFlow 0.35, strongly mismatched data 0.33; with none at 1, as here: 0.14 and 0.24. After "
    "1,500 steps and a quarter at 1: FreeFlow 0.71; after 500 steps 0.59, learning rate 0.001 0.62, weights of power 0.5 0.70.",
)
