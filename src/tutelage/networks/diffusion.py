"""Diffusion: the schedule of noise, what is predicted, DDIM steps and guidance.

``x_t = a_t x_0 + s_t noise`` with ``a_t^2 + s_t^2 = 1``; t counts from 0 (little noise) to T - 1. A network is any
callable ``predict(x_t, t) -> prediction`` with t [B] int64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from tutelage.errors import InputError, did_you_mean

Prediction = Literal["epsilon", "x0", "v"]
Predict = Callable[[Tensor, Tensor], Tensor]


def noise_betas(name: str, steps: int) -> Tensor:
    """The variances ``beta_t`` [T] in float64.

    ``linear``: 1e-4 to 0.02 for T = 1000, scaled so that other T end with as much noise (Ho et al., 2020);
    ``scaled_linear``: linear in the root, 0.00085 to 0.012 (Rombach et al., 2022); ``cosine`` (Nichol, Dhariwal, 2021).

    Raises:
        InputError: an unknown name.
    """
    if name == "linear":
        return (torch.linspace(1e-4, 0.02, steps, dtype=torch.float64) * (1000 / steps)).clamp_max(0.999)
    if name == "scaled_linear":
        roots = torch.linspace(0.00085**0.5, 0.012**0.5, steps, dtype=torch.float64)
        return (roots**2 * (1000 / steps)).clamp_max(0.999)
    if name == "cosine":
        times = torch.arange(steps + 1, dtype=torch.float64) / steps
        alphas = ((times + 0.008) / 1.008 * math.pi / 2).cos() ** 2
        return (1 - alphas[1:] / alphas[:-1]).clamp(max=0.999)
    raise InputError(
        f"unknown schedule {name!r}",
        where="schedule",
        remedy=did_you_mean(name, ["linear", "scaled_linear", "cosine"]),
    )


class DiffusionSchedule(nn.Module):
    """A schedule with T steps, and the algebra between noise, clean image and velocity.

    Args:
        name: see :func:`noise_betas`.
        steps: T.
        prediction: what the network predicts: ``epsilon`` (the noise), ``x0`` (the clean image), or ``v``
            (``a_t noise - s_t x_0``, Salimans, Ho, 2022).

    Raises:
        InputError: an unknown schedule or prediction.
    """

    def __init__(self, name: str = "scaled_linear", steps: int = 1000, prediction: Prediction = "epsilon"):
        super().__init__()
        if prediction not in ("epsilon", "x0", "v"):
            raise InputError(f"unknown prediction {prediction!r}", where="prediction", remedy="one of epsilon, x0 and v")
        self.steps, self.prediction = steps, prediction
        squared = (1 - noise_betas(name, steps)).cumprod(0)
        self.signal: Tensor
        self.noise: Tensor
        self.register_buffer("signal", squared.sqrt().float())
        self.register_buffer("noise", (1 - squared).sqrt().float())

    def scales(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """``(a_t, s_t)`` as [B, 1, …]; t = -1 means no noise at all: (1, 0)."""
        shape = (-1, *[1] * (like.ndim - 1))
        clean = t < 0
        a = torch.where(clean, 1.0, self.signal[t.clamp_min(0)]).to(like.dtype)
        s = torch.where(clean, 0.0, self.noise[t.clamp_min(0)]).to(like.dtype)
        return a.view(shape), s.view(shape)

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """``x_t``."""
        a, s = self.scales(t, x0)
        return a * x0 + s * noise

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What a perfect network predicts."""
        a, s = self.scales(t, x0)
        return {"epsilon": noise, "x0": x0, "v": a * noise - s * x0}[self.prediction]

    def split(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """(clean image, noise) that a prediction at ``x_t`` implies."""
        a, s = self.scales(t, x_t)
        if self.prediction == "epsilon":
            return (x_t - s * prediction) / a, prediction
        if self.prediction == "x0":
            return prediction, (x_t - a * prediction) / s
        return a * x_t - s * prediction, s * x_t + a * prediction

    def loss(self, predict: Predict, x0: Tensor, generator: torch.Generator) -> Tensor:
        """Squared error of each sample [B] at a random step with fresh noise, both from a CPU generator."""
        t = torch.randint(0, self.steps, (len(x0),), generator=generator).to(x0.device)
        noise = torch.randn(x0.shape, generator=generator).to(x0)
        error = predict(self.add_noise(x0, noise, t), t) - self.target(x0, noise, t)
        return error.square().flatten(1).mean(1)

    def timesteps(self, count: int) -> list[int]:
        """``count`` steps from T - 1 down to the smallest, evenly spaced; ``count`` = T: all.

        Raises:
            InputError: a count outside 1..T.
        """
        if not 1 <= count <= self.steps:
            raise InputError(f"{count} of {self.steps} steps", where="steps", remedy=f"1 to {self.steps}")
        return [round((i + 1) * self.steps / count) - 1 for i in reversed(range(count))]

    def step(self, predict: Predict, x: Tensor, t: int, to: int, clip: float | None = None) -> Tensor:
        """One deterministic DDIM step (Song, Meng, Ermon, 2021, equation 12 with sigma 0) from t to ``to``, either way;
        ``to`` = -1: the clean image. ``clip``: the clean image is kept in -clip..clip."""
        at = torch.full((len(x),), t, dtype=torch.int64, device=x.device)
        x0, noise = self.split(predict(x, at), x, at)
        if clip is not None:
            a, s = self.scales(at, x)
            x0 = x0.clamp(-clip, clip)
            noise = (x - a * x0) / s
        return self.add_noise(x0, noise, torch.full_like(at, to))

    def sample(self, predict: Predict, noise: Tensor, steps: int = 50, clip: float | None = None) -> Tensor:
        """The image [B, …] that DDIM makes of ``noise`` in so many steps."""
        times = self.timesteps(steps)
        for t, to in zip(times, [*times[1:], -1]):
            noise = self.step(predict, noise, t, to, clip)
        return noise

    def invert(self, predict: Predict, image: Tensor, steps: int = 50) -> Tensor:
        """The noise that :meth:`sample` would make the image of, by DDIM steps in the opposite direction.

        Each step predicts at the state it comes from, with the step it goes to: the inversion is exact in the limit of
        small steps, and wherever the implied noise is the same at both ends.
        """
        times = self.timesteps(steps)[::-1]
        for t, to in zip([-1, *times], times):
            at = torch.full((len(image),), max(t, to), dtype=torch.int64, device=image.device)
            start = torch.full_like(at, t)
            a, s = self.scales(start, image)
            if t < 0:
                noise = self.split(predict(image, at), image, at)[1]
                x0 = image
            else:
                x0, noise = self.split(predict(image, start), image, start)
            image = self.add_noise(x0, noise, torch.full_like(at, to))
        return image


def guided(predictions: Sequence[Tensor], scales: Sequence[float]) -> Tensor:
    """``p_0 + sum_i s_i (p_i - p_{i-1})``: guidance by one scale for each condition that is added in turn.

    With (unconditional, conditional) this is classifier-free guidance (Ho, Salimans, 2022); with (none, image, image and
    text) it is the two-scale form of InstructPix2Pix (Brooks et al., 2023, equation 3).

    Raises:
        InputError: not one scale less than predictions.
    """
    if len(scales) != len(predictions) - 1:
        raise InputError(f"{len(scales)} scales for {len(predictions)} predictions", where="scales")
    result = predictions[0]
    for scale, before, after in zip(scales, predictions, predictions[1:]):
        result = result + scale * (after - before)
    return result
