"""A flow or diffusion teacher becomes a one-step generator, from noise alone:

```python
import tutelage
from tutelage.distillation.data.generated import Prior
from tutelage.systems.freeflow import FlowMap

student = FlowMap(network)  # network(x, delta) -> a tensor like x; start it from the teacher's weights
result = tutelage.distill(student, teacher, Prior((3, 32, 32)), "freeflow", steps=20_000, ema=0.999)
images = result.student(noise)  # one pass
```

In a recipe: `method = "freeflow"`, and `[data]` with `kind = "prior"` and `shape = [3, 32, 32]`.

"Flow Map Distillation Without Data" (Tong, Ma, Xie, Jaakkola, 2025, arXiv 2511.19428). ``teacher(x, t)`` is the velocity
``u(x, t) = E[x_0 - noise | x_t = x]`` of ``x_t = (1 - t) x_0 + t noise``, from noise to data (:mod:`tutelage.networks.flow`;
minus the usual dx/dt). Data distillation queries the teacher at noised data, which its own paths need not pass; at t = 1
prior and paths agree by construction, so that noise alone is enough.

Inside SDVP: a one-step module for editing or inpainting in place of a diffusion model.

Limits: guidance is the teacher's own (``networks.flow.guided_velocity``); forward-mode derivatives do not pass fused attention, for
which ``derivative="difference"`` stands in; no FID figures.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tutelage.distillation.data import Batch, ReplayableData
from tutelage.distillation.data.generated import Prior
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.method import Method
from tutelage.distillation.outputs import Output, Terms
from tutelage.distillation.teacher import Teacher
from tutelage.errors import InputError
from tutelage.networks.flow import GaussianMixtureFlow, expand_time, interpolate
from tutelage.registry import system
from tutelage.systems._toy import build_with_seed


class FlowMap(nn.Module):
    """The student: ``f(z, delta) = z + delta F(z, delta)`` with ``network(z, delta) = F``, so that ``f(z, 0) = z`` exactly.

    ``f(z, delta)`` stands for the teacher's state after it has followed its flow from noise z at t = 1 to t = 1 - delta.
    Called with noise [B, ...] alone it gives one-step samples ``f(z, 1)``.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def velocity(self, noise: Tensor, delta: Tensor) -> Tensor:
        """F(z, delta), the mean velocity over the step; delta [B] in 0..1."""
        return self.network(noise, delta)

    def forward(self, noise: Tensor, delta: Tensor | None = None) -> Tensor:
        """f(z, delta), or the one-step sample."""
        if delta is None:
            delta = torch.ones(len(noise), dtype=noise.dtype, device=noise.device)
        return noise + expand_time(delta, noise) * self.velocity(noise, delta)


def velocity_and_slope(
    student: FlowMap, noise: Tensor, delta: Tensor, derivative: str = "forward", step: float = 1e-2
) -> tuple[Tensor, Tensor]:
    """``F(z, delta)``, with its graph, and ``dF / d delta``, detached; z [B, ...], delta [B].

    ``forward`` is a Jacobian-vector product in delta alone (tangent 0 for z); ``difference`` takes central differences of
    ``step``, one-sided at the ends of 0..1.
    """
    if derivative == "forward":
        value, slope = torch.func.jvp(lambda time: student.velocity(noise, time), (delta,), (torch.ones_like(delta),))
        return value, slope.detach()
    with torch.no_grad():
        low, high = (delta - step).clamp_min(0), (delta + step).clamp_max(1)
        difference = student.velocity(noise, high) - student.velocity(noise, low)
        slope = difference / expand_time(high - low, noise)
    return student.velocity(noise, delta), slope


@torch.no_grad()
def best_noise(student: nn.Module, noise: Tensor, score: Callable[[Tensor], Tensor], keep: int) -> Tensor:
    """The ``keep`` rows of ``noise`` [N, ...] whose one-step samples have the highest ``score`` [N], for the teacher."""
    return noise[score(student(noise)).topk(keep).indices]


@system("freeflow", kind="distillation")
class FreeFlow(Method):
    """FreeFlow: a one-step generator from a flow teacher, without data.

    **Prediction.** At the optimum ``F + delta dF/d delta = u(f(z, delta), 1 - delta)``. The target
    ``u(f, 1 - delta) - delta dF/d delta`` has no gradient, and ``L = w |F - target|^2`` is the mean over entries, with
    ``w = 1 / (|v_G - u|^2 + eps)^weight_power`` and ``v_G = F + delta dF/d delta``. delta is uniform, and 1 with probability
    ``full_step``.

    **Correction.** What errors add up to is seen in the law of the samples: with ``x_r = (1 - r) f(z, 1) + r n`` the
    gradient is ``F^T (v_N(x_r, r) - u(x_r, r))``, which lowers the KL divergence to the teacher's law over all times.
    ``v_N``, the velocity of the student's own samples, is learned beside it by flow matching (``online``). The term is
    weighed by ``alpha mean|v_G - u| / mean|v_N - u|``. r is logit-normal, moved by ``noise_shift`` towards noise.

    A batch is split: ``correction`` of it, at its end, for the second part (0: prediction alone). Where entries are few, weight
    power 0 and prediction alone are better (measured in two dimensions); the paper's joint training has 1 and 0.25.
    Take the moving average of the student (``ema``; 0.9999 in the paper, less for short runs).

    Args:
        config: see :class:`Config`.
        online: the network ``online(x, r)`` of the student's own velocity; None: a copy of the teacher's network.
        options: single fields of the config.

    Raises:
        InputError: a student that is no :class:`FlowMap`, options out of range, or a teacher without weights to copy.
    """

    needs_labels = False
    deterministic_teacher = False  # it is asked about the student's own states
    matched_heads = ()

    @dataclass(frozen=True)
    class Config:
        """``correction``: share of the batch; ``alpha``: weight of the correction; ``full_step``: share of delta = 1;
        ``online_lr``: the online network's rate over the student's. noise_shift and full_step are not in the paper (our choice)."""

        correction: float = 0.25
        alpha: float = 1.0
        weight_power: float = 1.0
        eps: float = 1e-3
        full_step: float = 0.25
        noise_shift: float = 1.0
        derivative: Literal["forward", "difference"] = "forward"
        online_lr: float = 1.0

        def __post_init__(self) -> None:
            for name in ("correction", "full_step"):
                if not 0 <= getattr(self, name) <= 1:
                    raise InputError(f"{getattr(self, name)} is no share", where=name, remedy="0 to 1")
            for name in ("alpha", "weight_power", "online_lr"):
                if getattr(self, name) < 0:
                    raise InputError(f"{getattr(self, name)} is below 0", where=name, remedy="0 or more")
            if self.eps <= 0:
                raise InputError(f"{self.eps} is not above 0", where="eps", remedy="the default is 1e-3")
            if self.derivative not in ("forward", "difference"):
                raise InputError(f"no derivative {self.derivative!r}", where="derivative", remedy="forward or difference")

    def __init__(self, config: Config | None = None, online: nn.Module | None = None, **options: Any):
        super().__init__(config, **options)
        self.online: nn.Module | None = online if self.config.correction else None

    def prepare(self, student: nn.Module, teacher: Teacher | None, example: Batch, data: ReplayableData) -> None:
        """Checks the student and makes the online network; see :class:`Method`."""
        if not isinstance(student, FlowMap):
            raise InputError(f"the student is a {type(student).__name__}", where="student", remedy="give FlowMap(network)")
        assert teacher is not None
        answer = self._teacher_velocity(teacher, example.inputs, example.inputs.new_ones(len(example.inputs)))
        if answer.shape != example.inputs.shape:
            shapes = f"{list(answer.shape)} for states {list(example.inputs.shape)}"
            raise InputError(f"the teacher's velocity is {shapes}", where="teacher", remedy="give a network (x, t) -> like x")
        if self.config.correction and self.online is None:
            network = teacher.uncached.network
            if network is None or not any(True for _ in network.parameters()):
                raise InputError(
                    "the teacher has no weights to start the online network from",
                    where="online",
                    remedy="FreeFlow(online=network), or correction=0",
                )
            self.online = copy.deepcopy(network).requires_grad_(True)
        self.unused_parameters = ()

    def groups(self, student: nn.Module) -> Sequence[Mapping[str, Any]] | None:
        """The online network may have a rate of its own."""
        if self.online is None or self.config.online_lr == 1:
            return None
        return [
            {"params": list(student.parameters())},
            {"params": list(self.online.parameters()), "lr_scale": self.config.online_lr},
        ]

    def _teacher_velocity(self, teacher: Teacher, x: Tensor, t: Tensor) -> Tensor:
        return teacher.uncached(Batch({"x": x, "t": t}))["logits"]

    def forward(self, batch: Batch, student: nn.Module, teacher: Teacher | None) -> tuple[Output, Output]:
        """F of both parts of the batch with the errors of its velocities, and the online network's answers."""
        assert teacher is not None and isinstance(student, FlowMap)
        noise = batch.inputs
        count = round(len(noise) * self.config.correction)
        if self.config.correction and len(noise) > 1:
            count = min(max(count, 1), len(noise))
        output: Output = {}
        if count < len(noise):
            output |= self._predicted(noise[: len(noise) - count], student, teacher)
        if count:
            output |= self._corrected(noise[len(noise) - count :], student, teacher)
        return output, {}

    def _predicted(self, noise: Tensor, student: FlowMap, teacher: Teacher) -> Output:
        delta = torch.rand(len(noise), device=noise.device)
        delta = torch.where(torch.rand_like(delta) < self.config.full_step, torch.ones_like(delta), delta)
        value, slope = velocity_and_slope(student, noise, delta, self.config.derivative)
        time = expand_time(delta, noise)
        with torch.no_grad():
            velocity = self._teacher_velocity(teacher, noise + time * value, 1 - delta)
            target = velocity - time * slope
        return {"value": value, "target": target}

    def _corrected(self, noise: Tensor, student: FlowMap, teacher: Teacher) -> Output:
        assert self.online is not None
        value = student.velocity(noise, torch.ones(len(noise), device=noise.device))
        with torch.no_grad():
            sample, other = noise + value, torch.randn_like(noise)
            r = torch.sigmoid(torch.randn(len(noise), device=noise.device) + self.config.noise_shift)
            state = interpolate(sample, other, r)
            velocity = self._teacher_velocity(teacher, state, r)
        own = self.online(state, r)
        return {"one_step": value, "error": own.detach() - velocity, "own": own, "own_target": sample - other}

    def loss_terms(self, batch: Batch, student: Output, teacher: Output) -> Terms:
        """``prediction``, ``correction`` (with its weight) and ``online``, whichever the batch has."""
        terms: Terms = {}
        config, scale = self.config, None
        if "value" in student:
            error = student["value"] - student["target"]
            weight = (error.detach().square().flatten(1).mean(1) + config.eps) ** -config.weight_power
            terms["prediction"] = (weight * error.square().flatten(1).mean(1)).mean()
            scale = error.detach().flatten(1).norm(dim=1).mean()
        if "one_step" in student:
            value, error = student["one_step"], student["error"]
            size = error.flatten(1).norm(dim=1).mean()
            factor = config.alpha if scale is None else config.alpha * scale / (size + config.eps)
            terms["correction"] = factor * (value - (value - error).detach()).square().flatten(1).mean(1).mean()
            terms["online"] = (student["own"] - student["own_target"]).square().flatten(1).mean(1).mean()
        return terms

    @classmethod
    def tiny_job(cls, seed: int) -> TrainingJob:
        """A training job of a second: a ring of Gaussians in two dimensions, an exact teacher."""
        student = FlowMap(build_with_seed(lambda: TimeMLP(2, 16, 2), seed, "student"))
        method = cls(weight_power=0.0, online=build_with_seed(lambda: TimeMLP(2, 16, 2), seed, "online"))
        settings = TrainingSettings(steps=8, batch_size=16, seed=seed)
        return TrainingJob(student, ExactFlow(ring(8)), method, Prior((2,), length=64), settings, "freeflow")


# -- small networks --------------------------------------------------------------------------------------------------


class TimeMLP(nn.Module):
    """A multilayer perceptron of a state [B, D] and a time [B] (t, and sine and cosine of pi t and 2 pi t), SiLU."""

    def __init__(self, dim: int, width: int = 128, depth: int = 3):
        super().__init__()
        sizes = [dim + 5, *[width] * depth]
        layers = [layer for a, b in zip(sizes, sizes[1:]) for layer in (nn.Linear(a, b), nn.SiLU())]
        self.layers = nn.Sequential(*layers, nn.Linear(width, dim))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """[B, D]."""
        angle = torch.pi * t[:, None]
        waves = [torch.sin(angle), torch.cos(angle), torch.sin(2 * angle), torch.cos(2 * angle)]
        return self.layers(torch.cat([x, t[:, None], *waves], 1))


class ExactFlow(nn.Module):
    """A closed-form velocity as a network without weights."""

    def __init__(self, flow: GaussianMixtureFlow):
        super().__init__()
        self.flow = flow
        self.register_buffer("means", flow.means)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """The velocity [B, D]."""
        return self.flow(x, t)


def ring(modes: int = 8, radius: float = 2.0, std: float = 0.2) -> GaussianMixtureFlow:
    """Round Gaussians on a circle."""
    angles = 2 * torch.pi * torch.arange(modes) / modes
    return GaussianMixtureFlow(radius * torch.stack([angles.cos(), angles.sin()], 1), std)
