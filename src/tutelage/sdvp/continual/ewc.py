"""Elastic weight consolidation: weights that old answers depend on are held, others may move."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from tutelage.errors import InputError
from tutelage.modules.visual_module import TrainingExamples, VisualModule
from tutelage.sdvp.continual.base import ContinualStrategy, L2Penalty
from tutelage.seeds import numpy_rng, torch_rng


@dataclass(frozen=True)
class EWC(ContinualStrategy):
    """``strength / 2 sum_i F_i (theta_i - theta_old_i)^2`` with F the diagonal Fisher information of the module's own
    answers to replayed inputs (Kirkpatrick et al., 2017, equation 3).

    The Fisher is estimated on ``rows`` rows of them (number and strength ours).
    """

    name: ClassVar[str] = "ewc"
    reads_inputs: ClassVar[bool] = True
    strength: float = 100.0
    rows: int = 256

    def penalty(self, module: VisualModule, replay: TrainingExamples | None) -> nn.Module:
        """Each weight counts by its Fisher information.

        Raises:
            InputError: no replayed inputs.
        """
        if replay is None:
            raise InputError(
                f"no old inputs of {module.name} to estimate the Fisher information on",
                where="retain.ewc",
                remedy="give replay questions, or choose l2sp, which needs none",
            )
        held = fisher(module, replay, self.rows)
        return L2Penalty({name: (p, held[name]) for name, p in module.network.named_parameters() if name in held}, self.strength)


def fisher(module: VisualModule, exercise: TrainingExamples, rows: int = 256, seed: int = 0) -> dict[str, Tensor]:
    """The diagonal Fisher information of each parameter, per row: mean over rows x of ``E_y (d log p(y|x) / d theta)^2``.

    Classes are categorical, a logit, a heat-map's cells and a set's logits Bernoulli, sizes and boxes Gaussian of variance 1.
    The expectation over y is taken by one random sign an answer: unbiased, and exact where a row has one answer of one
    number. Answers of weight 0 (padding) do not count. Parameters that no head depends on are left out.
    """
    network = module.copy_network().eval().requires_grad_(True)
    parameters = dict(network.named_parameters())
    total: dict[str, Tensor] = {}
    chosen = numpy_rng(seed, "fisher", module.name).permutation(len(exercise))[:rows].tolist()
    signs = torch_rng(seed, "fisher", "signs", module.name)
    for row in chosen:
        heads = network({key: value[row : row + 1] for key, value in exercise.inputs.items()})
        weights = exercise.weights[row : row + 1]
        likelihood = sum(_sampled(kind, heads[head], weights, signs) for head, kind in module.heads.items())
        for name, gradient in zip(parameters, torch.autograd.grad(likelihood, list(parameters.values()), allow_unused=True)):  # type: ignore[arg-type]
            if gradient is not None:
                total[name] = total.get(name, torch.zeros_like(gradient)) + gradient**2
    return {name: value / len(chosen) for name, value in total.items()}


def _sampled(kind: str, out: Tensor, weights: Tensor, signs: torch.Generator) -> Tensor:
    """A scalar whose gradient, squared, has the Fisher's diagonal as its mean: ``r^T B^T out`` with random signs r and
    ``B B^T`` the Fisher information of the head's own outputs."""
    random = torch.randint(0, 2, out.shape, generator=signs).to(out) * 2 - 1
    fixed = out.detach()
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
    per_answer = pulled * out
    counts = weights.to(out).reshape(*weights.shape, *[1] * (out.ndim - weights.ndim))
    return (per_answer * (counts > 0)).sum()
