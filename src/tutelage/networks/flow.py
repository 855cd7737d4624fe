"""Flow matching (Lipman et al., 2023): the straight path between data and noise, its velocity, and ODE samplers.

``x_t = (1 - t) x_0 + t noise``: t = 0 is data, t = 1 the prior N(0, I). Velocities point **from noise to data**,
``u(x, t) = E[x_0 - noise | x_t = x]``, minus the usual dx/dt (the convention of FreeFlow, Tong et al., 2025). A velocity
is any callable ``velocity(x, t)`` with t [B].
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tutelage.errors import InputError, did_you_mean

Velocity = Callable[[Tensor, Tensor], Tensor]


def expand_time(t: Tensor, like: Tensor) -> Tensor:
    """t [B] as [B, 1, …], to be multiplied with ``like``."""
    return t.to(like.dtype).view(-1, *[1] * (like.ndim - 1))


def interpolate(x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """``x_t`` of data and noise [B, …] at times t [B]."""
    time = expand_time(t, x0)
    return (1 - time) * x0 + time * noise


def flow_matching_loss(velocity: Velocity, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """``|velocity(x_t, t) - (x_0 - noise)|^2`` of each sample [B], mean over its entries."""
    return (velocity(interpolate(x0, noise, t), t) - (x0 - noise)).square().flatten(1).mean(1)


def guided_velocity(
    conditional: Velocity, unconditional: Velocity, scale: float, interval: tuple[float, float] = (0.0, 1.0)
) -> Velocity:
    """``s u(x, t | c) + (1 - s) u(x, t)`` at times inside of ``interval``, the conditional velocity outside.

    Args:
        conditional: the velocity given the condition.
        unconditional: the velocity without it.
        scale: s; 1 is the conditional velocity alone.
        interval: times (from, to) at which guidance acts.
    """

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        with_condition, without = conditional(x, t), unconditional(x, t)
        inside = (t >= interval[0]) & (t <= interval[1])
        return torch.where(expand_time(inside, x).bool(), scale * with_condition + (1 - scale) * without, with_condition)

    return velocity


def integrate(velocity: Velocity, x: Tensor, steps: int = 50, method: str = "heun", start: float = 1.0, end: float = 0.0) -> Tensor:
    """Follow the flow from time ``start`` to time ``end`` in equal steps.

    Args:
        velocity: see the module.
        x: states at ``start`` [B, …]; noise at start 1.
        steps: number of steps.
        method: ``euler`` (1 evaluation a step), ``midpoint`` and ``heun`` (2), or ``rk4`` (4).
        start: time of ``x``.
        end: time of the result; above ``start`` the flow runs back to noise.

    Raises:
        InputError: an unknown method, or no step.
    """
    if steps < 1:
        raise InputError(f"{steps} steps", where="steps", remedy="at least 1")
    methods = ("euler", "midpoint", "heun", "rk4")
    if method not in methods:
        raise InputError(f"unknown method {method!r}", where="method", remedy=did_you_mean(method, list(methods)))
    h = (start - end) / steps  # towards data, time falls by h

    def at(state: Tensor, time: float) -> Tensor:
        return velocity(state, torch.full((len(state),), time, dtype=state.dtype, device=state.device))

    for i in range(steps):
        time = start - i * h
        first = at(x, time)
        if method == "euler":
            slope = first
        elif method == "midpoint":
            slope = at(x + h / 2 * first, time - h / 2)
        elif method == "heun":
            slope = (first + at(x + h * first, time - h)) / 2
        else:
            second = at(x + h / 2 * first, time - h / 2)
            third = at(x + h / 2 * second, time - h / 2)
            slope = (first + 2 * second + 2 * third + at(x + h * third, time - h)) / 6
        x = x + h * slope
    return x


class GaussianMixtureFlow:
    """The exact marginal velocity where data are a mixture of round Gaussians: a teacher with nothing to train.

    For one component ``u(x, t) = m + ((1 - t) s^2 - t) / v_t (x - (1 - t) m)``, ``v_t = (1 - t)^2 s^2 + t^2``; a mixture
    weighs the components by their posterior given ``x_t``.

    Args:
        means: [K, D].
        std: s, of every component.
        weights: [K], of sum 1; None: equal.
    """

    def __init__(self, means: Tensor, std: float, weights: Tensor | None = None):
        self.means, self.std = means, std
        self.weights = torch.full((len(means),), 1 / len(means)) if weights is None else weights

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """The velocity [B, D] at states [B, D] and times [B]."""
        time = t.to(x.dtype)[:, None]
        means = self.means.to(x)
        variance = (1 - time) ** 2 * self.std**2 + time**2
        apart = x[:, None] - (1 - time[..., None]) * means  # [B, K, D]
        logits = self.weights.to(x).log() - apart.square().sum(-1) / (2 * variance)
        slope = ((1 - time) * self.std**2 - time) / variance
        each = means + slope[..., None] * apart
        return (logits.softmax(-1)[..., None] * each).sum(1)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """``count`` points of the data [count, D], from a CPU generator."""
        which = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        noise = torch.randn(count, self.means.shape[1], generator=generator, dtype=self.means.dtype)
        return self.means[which] + self.std * noise
