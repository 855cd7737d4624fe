"""Penalties that hold weights near their old values: L2-SP (Li, Grandvalet, Davoine, 2018) and elastic weight
consolidation (EWC, Kirkpatrick et al., 2017).

Example:
    >>> weights = diagonal_fisher(network, rows, score)
    >>> ewc = L2Penalty({n: (p, weights[n]) for n, p in network.named_parameters() if n in weights}, strength=100)
    >>> loss = task_loss + ewc(network)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from tutelage.errors import InputError

Row = TypeVar("Row")


class L2Penalty(nn.Module):
    """``strength / 2 sum_i w_i (theta_i - theta_old_i)^2`` of a student.

    Args:
        anchors: by parameter name, the old value and the weights w (None: ones).
        strength: see above.
    """

    def __init__(self, anchors: Mapping[str, tuple[Tensor, Tensor | None]], strength: float):
        super().__init__()
        self.strength = strength
        self.names = list(anchors)
        for name, (old, weight) in anchors.items():
            self.register_buffer(_slot(name, "old"), old.detach().clone())
            self.register_buffer(_slot(name, "weight"), None if weight is None else weight.detach().clone())

    def forward(self, student: nn.Module) -> Tensor:
        """The penalty; a wrapped layer counts with the weight it has in effect."""
        total: Any = 0.0
        for name in self.names:
            moved = (attrgetter(name)(student) - getattr(self, _slot(name, "old"))) ** 2
            weight = getattr(self, _slot(name, "weight"))
            total = total + (moved if weight is None else weight * moved).sum()
        return 0.5 * self.strength * total


class PenaltySum(nn.Module):
    """The sum of several penalties."""

    def __init__(self, penalties: Sequence[nn.Module]):
        super().__init__()
        self.parts = nn.ModuleList(penalties)

    def forward(self, student: nn.Module) -> Tensor:
        """Added up."""
        return sum(part(student) for part in self.parts)


def _slot(name: str, kind: str) -> str:
    return f"{kind}/{name.replace('.', '/')}"


def diagonal_fisher(network: nn.Module, rows: Iterable[Row], score: Callable[[nn.Module, Row], Tensor]) -> dict[str, Tensor]:
    """The diagonal Fisher information of each parameter, per row: the mean over rows of the squared gradient of a score.

    Args:
        network: whose parameters count; those that no score depends on are left out.
        rows: samples, or whatever ``score`` reads, one at a time.
        score: a scalar whose squared gradient has the Fisher information as its mean, such as the log-probability of a
            label drawn from the network's own answer, or :func:`sampled_score`.

    Raises:
        InputError: there is no row.
    """
    parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}
    total: dict[str, Tensor] = {}
    count = 0
    for row in rows:
        gradients = torch.autograd.grad(score(network, row), list(parameters.values()), allow_unused=True)
        for name, gradient in zip(parameters, gradients):
            if gradient is not None:
                total[name] = total.get(name, torch.zeros_like(gradient)) + gradient**2
        count += 1
    if not count:
        raise InputError("there is no row to estimate the Fisher information on", where="rows", remedy="give some inputs")
    return {name: value / count for name, value in total.items()}


def sampled_score(kind: str, outputs: Tensor, weights: Tensor, generator: torch.Generator) -> Tensor:
    """A scalar whose gradient, squared, has the Fisher's diagonal as its mean: ``r^T B^T out`` with random signs r and
    ``B B^T`` the Fisher information of the head's own outputs.

    The expectation over answers is taken by one random sign an answer: unbiased, and exact where a row has one answer of
    one number.

    Args:
        kind: of the head. ``classes`` and ``tokens`` are categorical, ``logit``, ``heatmap`` and the first number of a
            ``set`` Bernoulli, everything else Gaussian of variance 1.
        outputs: of the head, [B, …].
        weights: [B, …], answers of weight 0 (padding) do not count.
        generator: of the signs.
    """
    random = torch.randint(0, 2, outputs.shape, generator=generator).to(outputs) * 2 - 1
    fixed = outputs.detach()
    if kind in ("classes", "tokens"):
        p = fixed.softmax(-1)
        root = p.sqrt()
        pulled = root * random - p * (root * random).sum(-1, keepdim=True)
    elif kind in ("logit", "heatmap"):
        p = fixed.sigmoid()
        pulled = (p * (1 - p)).sqrt() * random
    elif kind == "set":
        p = fixed[..., :1].sigmoid()
        pulled = torch.cat([(p * (1 - p)).sqrt() * random[..., :1], random[..., 1:]], -1)
    else:
        pulled = random
    per_answer = pulled * outputs
    counts = weights.to(outputs).reshape(*weights.shape, *[1] * (outputs.ndim - weights.ndim))
    return (per_answer * (counts > 0)).sum()
