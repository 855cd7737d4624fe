"""Averages of a network's weights over training: exponential, uniform, SWAD, and weighted by epoch."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from tutelage.errors import InputError

Buffers = Literal["copy", "average", "own"]


class ExponentialAverage:
    """``average <- d average + (1 - d) network`` of the weights (Tarvainen, Valpola, 2017).

    Examples:
        >>> ema = ExponentialAverage(network, decay=0.999)
        >>> ema.update(network)  # after each step
        >>> export(ema.network)

    Args:
        network: copied; the copy is :attr:`network`, in eval mode and without gradients.
        decay: d in 0..1, or a function of the number of updates so far.
        buffers: floating-point buffers (norm statistics) are a ``copy`` of the network's, an ``average`` like weights, or
            the copy's ``own``, which it changes itself when it runs in train mode. Integer buffers are copied unless
            they are ``own``.

    Raises:
        InputError: a decay outside 0..1, or an unknown treatment of buffers.
    """

    def __init__(
        self,
        network: nn.Module,
        decay: float | Callable[[int], float] = 0.999,
        buffers: Buffers = "copy",
    ):
        if buffers not in ("copy", "average", "own"):
            raise InputError(f"unknown treatment {buffers!r}", where="buffers", remedy="copy, average or own")
        if isinstance(decay, (int, float)) and not 0 <= decay <= 1:
            raise InputError(f"a decay lies in 0..1, this is {decay}", where="decay", remedy="such as 0.999")
        if not callable(decay) and not isinstance(decay, (int, float)):
            raise InputError(f"{decay!r} is no decay", where="decay", remedy="a number, or a function of the number of updates")
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.decay, self.buffers, self.updates = decay, buffers, 0

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Take in the network as it is now."""
        decay = float(self.decay(self.updates) if callable(self.decay) else self.decay)
        average: list[Tensor] = list(self.network.parameters())
        current: list[Tensor] = [p.detach() for p in network.parameters()]
        if self.buffers != "own":
            for buffer, other in zip(self.network.buffers(), network.buffers(), strict=True):
                if self.buffers == "average" and buffer.is_floating_point():
                    average.append(buffer)
                    current.append(other.detach())
                else:
                    buffer.copy_(other)
        if average:
            torch._foreach_lerp_(average, current, 1.0 - decay)
        self.updates += 1

    def state(self) -> dict[str, Tensor]:
        """What must be saved to resume."""
        weights = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        return weights | {"updates": torch.tensor(self.updates)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take up what :meth:`state` gave."""
        self.updates = int(state["updates"])
        rest = {name.removeprefix("network."): value for name, value in state.items() if name != "updates"}
        self.network.load_state_dict(rest)


class WeightedAverage:
    """``sum_i w_i network_i / sum_i w_i`` of parameters and floating-point buffers, one network at a time, in float64."""

    def __init__(self) -> None:
        self.total = 0.0
        self.sums: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(self, network: nn.Module, weight: float = 1.0) -> None:
        """Take in a network; a weight of 0 changes nothing.

        Raises:
            InputError: a negative or non-finite weight.
        """
        if not (math.isfinite(weight) and weight >= 0):
            raise InputError(f"a weight is 0 or more, this is {weight}", where="weight")
        if weight == 0:
            return
        self.total += weight
        for name, value in network.state_dict().items():
            if not value.is_floating_point():
                self.sums[name] = value.detach().clone()
            elif name in self.sums:
                self.sums[name] += weight * value.detach().double()
            else:
                self.sums[name] = weight * value.detach().double()

    def merge(self, other: WeightedAverage) -> None:
        """Take in all that another average took in."""
        self.total += other.total
        for name, value in other.sums.items():
            known = self.sums.get(name)
            self.sums[name] = value.clone() if known is None or not value.is_floating_point() else known + value

    def load_into(self, network: nn.Module) -> nn.Module:
        """Write the average into ``network``; integer buffers are those of the last one taken in.

        Raises:
            InputError: nothing was taken in.
        """
        if not self.total:
            raise InputError("the average is empty", where="average", remedy="add networks first")
        current = network.state_dict()
        network.load_state_dict(
            {
                name: (value / self.total if value.is_floating_point() else value).to(current[name].dtype)
                for name, value in self.sums.items()
            }
        )
        return network

    def state(self) -> dict[str, Tensor]:
        """What must be saved to resume."""
        return {"total": torch.tensor(self.total, dtype=torch.float64)} | {f"sum.{k}": v for k, v in self.sums.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take up what :meth:`state` gave."""
        self.total = float(state["total"])
        self.sums = {name.removeprefix("sum."): value.clone() for name, value in state.items() if name != "total"}


class SWAD:
    """Stochastic weight averaging, densely: all weights between convergence and overfitting (Cha et al., 2021).

    Training is cut into segments, each ended by a validation loss; the weights of every step count alike. Averaging
    begins with the first segment whose loss none of the next ``converge - 1`` beats. It ends before the first of
    ``overfit`` losses in a row above ``tolerance`` times the mean loss of those ``converge``. If the loss never settles,
    the average is that of the last ``converge`` segments.

    Args:
        converge: N_s, the window's length in validations.
        overfit: N_e, losses in a row that end it.
        tolerance: r.
    """

    def __init__(self, converge: int = 3, overfit: int = 6, tolerance: float = 1.3):
        if converge < 1 or overfit < 1 or not tolerance > 0:
            raise InputError(f"converge {converge}, overfit {overfit}, tolerance {tolerance}", where="swad")
        self.converge, self.overfit, self.tolerance = converge, overfit, tolerance
        self.segment = WeightedAverage()
        self.waiting: list[tuple[float, WeightedAverage]] = []
        self.result: WeightedAverage | None = None
        self.threshold = math.inf
        self.over: list[WeightedAverage] = []
        self.done = False

    def step(self, network: nn.Module) -> None:
        """Take in the weights after a step."""
        if not self.done:
            self.segment.add(network)

    def validate(self, loss: float) -> None:
        """End a segment with its validation loss."""
        if self.done or not self.segment.total:
            return
        segment, self.segment = self.segment, WeightedAverage()
        if self.result is None:
            self.waiting = [*self.waiting, (loss, segment)][-self.converge :]
            losses = [value for value, _ in self.waiting]
            if len(losses) == self.converge and min(losses) == losses[0]:
                self.result = WeightedAverage()
                for _, part in self.waiting:
                    self.result.merge(part)
                self.threshold = self.tolerance * sum(losses) / len(losses)
        elif loss > self.threshold:
            self.over.append(segment)
            self.done = len(self.over) == self.overfit
        else:
            for part in (*self.over, segment):
                self.result.merge(part)
            self.over = []

    def average(self) -> WeightedAverage:
        """The average so far.

        Raises:
            InputError: no segment has ended.
        """
        if self.result is not None:
            return self.result
        if not self.waiting:
            raise InputError("no segment has ended", where="swad", remedy="call validate after some steps")
        last = WeightedAverage()
        for _, part in self.waiting:
            last.merge(part)
        return last

    def state(self) -> dict[str, Tensor]:
        """What must be saved to resume."""
        parts = {"segment": self.segment, **({"result": self.result} if self.result is not None else {})}
        parts |= {f"waiting{i}": part for i, (_, part) in enumerate(self.waiting)}
        parts |= {f"over{i}": part for i, part in enumerate(self.over)}
        saved = {f"{name}/{key}": value for name, part in parts.items() for key, value in part.state().items()}
        losses = [loss for loss, _ in self.waiting]
        return saved | {
            "losses": torch.tensor(losses, dtype=torch.float64),
            "threshold": torch.tensor(self.threshold, dtype=torch.float64),
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take up what :meth:`state` gave."""
        parts: dict[str, WeightedAverage] = {}
        for name in dict.fromkeys(key.partition("/")[0] for key in state if "/" in key):
            parts[name] = WeightedAverage()
            parts[name].load({k.partition("/")[2]: v for k, v in state.items() if k.partition("/")[0] == name})
        self.segment, self.result = parts["segment"], parts.get("result")
        losses = state["losses"].tolist()
        self.waiting = [(loss, parts[f"waiting{i}"]) for i, loss in enumerate(losses)]
        self.over = [parts[f"over{i}"] for i in range(self.overfit) if f"over{i}" in parts]
        self.threshold = float(state["threshold"])
        self.done = len(self.over) == self.overfit


def gaussian_weights(count: int, mean: float, std: float) -> list[float]:
    """Weights ``exp(-(e - mean)^2 / (2 std^2))`` of epochs e = 1 … count, of sum 1 (PromptSRC, Khattak et al., 2023)."""
    raw = [math.exp(-((epoch - mean) ** 2) / (2 * std**2)) for epoch in range(1, count + 1)]
    return [weight / sum(raw) for weight in raw]
