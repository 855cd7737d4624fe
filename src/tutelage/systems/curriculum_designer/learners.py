"""What a network does against forgetting: nothing, EWC, LwF, synaptic intelligence, or a small replay memory.

A learner works on many orders side by side: parameters are stacked [O, ...], inputs are [O, B, ...]. Every penalty is a sum
over orders of terms of one order, so that its gradient is each order's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor
from torch.func import grad
from torch.nn import functional as F

from tutelage.errors import InputError

Parameters = dict[str, Tensor]
"""By name, stacked over orders: [O, ...]."""
Forward = Callable[[Mapping[str, Tensor], Tensor], Tensor]
"""Stacked parameters and inputs [O, B, ...] -> logits [O, B, N]."""


class Learner:
    """The hooks of an online run; all of them do nothing here: naive fine-tuning."""

    follows_steps: ClassVar[bool] = False
    """Whether ``after_step`` needs the weights before the step."""

    def start(self, forward: Forward, samples: Tensor, orders: Tensor, rng: torch.Generator) -> None:
        """Before the first class: samples [N, n, ...] by class, orders [O, N]."""
        self.forward, self.samples, self.orders, self.rng = forward, samples, orders, rng

    def extend(self, inputs: Tensor, labels: Tensor, stage: int) -> tuple[Tensor, Tensor]:
        """The batch [O, B, ...], [O, B] that is learned from, given that of the class of this stage."""
        return inputs, labels

    def penalty(self, params: Parameters, inputs: Tensor, logits: Tensor, stage: int) -> Tensor | None:
        """What is added to the loss, summed over orders; None: nothing."""
        return None

    def after_step(self, params: Parameters, gradients: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> None:
        """After each step: the gradients of the cross-entropy alone, and the weights before the step."""

    def after_class(self, params: Parameters, inputs: Tensor, labels: Tensor, stage: int) -> None:
        """After the last sample of a class: all its samples [O, n, ...] and labels [O, n]."""


Naive = Learner


def _strength(value: float) -> float:
    if not value >= 0:
        raise InputError(f"a strength of {value}", where="strength", remedy="0 or more")
    return value


def _copied(params: Mapping[str, Tensor]) -> Parameters:
    return {name: value.detach().clone() for name, value in params.items()}


class EWC(Learner):
    """Elastic weight consolidation (Kirkpatrick et al., 2017), a penalty for every earlier class:
    ``strength sum_k sum_i F_ki (theta_i - theta_ki)^2``.

    F is the mean over a class's samples of the squared gradient of ``log p(label)``, sample by sample (our choice).

    Args:
        strength: 0.4 as published.
    """

    def __init__(self, strength: float = 0.4):
        self.strength = _strength(strength)
        self.anchors: list[tuple[Parameters, Parameters]] = []

    def penalty(self, params: Parameters, inputs: Tensor, logits: Tensor, stage: int) -> Tensor | None:
        """See above; None before the second class."""
        if not self.anchors:
            return None
        total = torch.zeros(())
        for old, fisher in self.anchors:
            for name, value in params.items():
                total = total + (fisher[name] * (value - old[name]) ** 2).sum()
        return self.strength * total

    def after_class(self, params: Parameters, inputs: Tensor, labels: Tensor, stage: int) -> None:
        """Keeps the weights and their Fisher information."""
        fisher = {name: torch.zeros_like(value) for name, value in params.items()}
        fixed = _copied(params)

        def loss(weights: Parameters, sample: Tensor, label: Tensor) -> Tensor:
            logits = self.forward(weights, sample[:, None])[:, 0]
            return F.cross_entropy(logits, label, reduction="sum")

        for number in range(inputs.shape[1]):  # one sample of every order at a time: gradients of orders do not mix
            for name, slope in grad(loss)(fixed, inputs[:, number], labels[:, number]).items():
                fisher[name] += slope**2 / inputs.shape[1]
        self.anchors.append((fixed, fisher))


class LwF(Learner):
    """Learning without forgetting (Li, Hoiem, 2016): ``alpha_t KL(old || new)`` over the classes seen before, by the weights
    before this class.

    Args:
        strength: a factor on the published ``alpha_t = 0, 0.5, 1.333, 2.25, 3.2``, which is ``t^2 / (t + 1)``.
        temperature: 1 as published.
    """

    def __init__(self, strength: float = 1.0, temperature: float = 1.0):
        self.strength, self.temperature = _strength(strength), temperature
        if not temperature > 0:
            raise InputError(f"a temperature of {temperature}", where="temperature", remedy="above 0")
        self.old: Parameters | None = None

    def penalty(self, params: Parameters, inputs: Tensor, logits: Tensor, stage: int) -> Tensor | None:
        """See above; None before the second class."""
        if self.old is None:
            return None
        seen = self.orders[:, None, :stage].expand(-1, logits.shape[1], -1)
        with torch.no_grad():
            before = self.forward(self.old, inputs).gather(2, seen) / self.temperature
        after = logits.gather(2, seen) / self.temperature
        divergence = F.kl_div(after.log_softmax(-1), before.log_softmax(-1), reduction="none", log_target=True)
        return self.strength * stage**2 / (stage + 1) * divergence.sum(-1).mean(1).sum()

    def after_class(self, params: Parameters, inputs: Tensor, labels: Tensor, stage: int) -> None:
        """Keeps the weights."""
        self.old = _copied(params)


class SI(Learner):
    """Synaptic intelligence (Zenke, Poole, Ganguli, 2017): ``strength sum_i Omega_i (theta_i - theta_old_i)^2`` with
    ``Omega_i += max(0, sum of -g_i delta_i) / (Delta_i^2 + damping)`` after each class.

    g: the gradient of the cross-entropy in a step; delta: the step; Delta: all steps of a class together.

    Args:
        strength: 0.1, the paper's.
        damping: 1e-3, the paper's.
    """

    follows_steps = True

    def __init__(self, strength: float = 0.1, damping: float = 1e-3):
        self.strength, self.damping = _strength(strength), damping
        if not damping > 0:
            raise InputError(f"a damping of {damping}", where="damping", remedy="above 0")
        self.importance: Parameters = {}
        self.path: Parameters = {}
        self.old: Parameters = {}

    def penalty(self, params: Parameters, inputs: Tensor, logits: Tensor, stage: int) -> Tensor | None:
        """See above; None before the second class."""
        if not self.importance:
            return None
        total = torch.zeros(())
        for name, value in params.items():
            total = total + (self.importance[name] * (value - self.old[name]) ** 2).sum()
        return self.strength * total

    def after_step(self, params: Parameters, gradients: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> None:
        """Adds up what each weight did for the loss."""
        self.old = self.old or dict(before)
        for name, value in params.items():
            gain = -gradients[name].detach() * (value.detach() - before[name])
            self.path[name] = self.path[name] + gain if name in self.path else gain

    def after_class(self, params: Parameters, inputs: Tensor, labels: Tensor, stage: int) -> None:
        """Turns the sums into importances."""
        for name, value in params.items():
            own = self.path[name].clamp_min(0) / ((value.detach() - self.old[name]) ** 2 + self.damping)
            self.importance[name] = self.importance[name] + own if name in self.importance else own
        self.path, self.old = {}, _copied(params)


class Replay(Learner):
    """A small memory: in every step some stored samples of each earlier class join the batch.

    Args:
        share: of each class's samples that is stored; 10 % as published.
        per_class: samples of each earlier class that join a batch (our choice).
    """

    def __init__(self, share: float = 0.1, per_class: int = 2):
        if not 0 <= share <= 1 or per_class < 0:
            raise InputError(f"a memory of {share}, {per_class} a step", where="share", remedy="a share in 0..1, 0 or more a step")
        self.share, self.per_class = share, per_class

    def start(self, forward: Forward, samples: Tensor, orders: Tensor, rng: torch.Generator) -> None:
        """Draws which samples of every class will be stored: the same in every order."""
        super().start(forward, samples, orders, rng)
        size = min(samples.shape[1], max(1, round(self.share * samples.shape[1]))) if self.share else 0
        drawn = [torch.randperm(samples.shape[1], generator=rng)[:size] for _ in samples]
        self.memory = torch.stack([part[rows] for part, rows in zip(samples, drawn)])

    def extend(self, inputs: Tensor, labels: Tensor, stage: int) -> tuple[Tensor, Tensor]:
        """The batch, and stored samples of the classes of earlier stages."""
        size = self.memory.shape[1]
        if not stage or not size or not self.per_class:
            return inputs, labels
        rows = torch.randint(size, (stage, self.per_class), generator=self.rng)
        classes = self.orders[:, :stage, None].expand(-1, -1, self.per_class)
        stored = self.memory[classes, rows].flatten(1, 2)
        return torch.cat([inputs, stored], 1), torch.cat([labels, classes.flatten(1)], 1)


LEARNERS: Mapping[str, Callable[[], Learner]] = MappingProxyType(
    {"naive": Naive, "ewc": EWC, "lwf": LwF, "si": SI, "replay": Replay}
)
"""By name, each with its published settings."""
