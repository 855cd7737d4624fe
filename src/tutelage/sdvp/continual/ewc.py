"""Elastic weight consolidation: weights that old answers depend on are held, others may move."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from tutelage.distillation.weight_penalties import L2Penalty, diagonal_fisher, sampled_score
from tutelage.errors import InputError
from tutelage.modules.visual_module import TrainingExamples, VisualModule
from tutelage.sdvp.continual.base import ContinualStrategy
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


def fisher(module: VisualModule, examples: TrainingExamples, rows: int = 256, seed: int = 0) -> dict[str, Tensor]:
    """The diagonal Fisher information of each parameter, per row: mean over rows x of ``E_y (d log p(y|x) / d theta)^2``.

    Classes are categorical, a logit, a heat-map's cells and a set's logits Bernoulli, sizes and boxes Gaussian of variance 1.
    The expectation over y is taken by one random sign an answer: unbiased, and exact where a row has one answer of one
    number. Answers of weight 0 (padding) do not count. Parameters that no head depends on are left out.
    """
    network = module.copy_network().eval().requires_grad_(True)
    chosen = numpy_rng(seed, "fisher", module.name).permutation(len(examples))[:rows].tolist()
    signs = torch_rng(seed, "fisher", "signs", module.name)

    def score(network: nn.Module, row: int) -> Tensor:
        heads = network({key: value[row : row + 1] for key, value in examples.inputs.items()})
        weights = examples.weights[row : row + 1]
        scores = [sampled_score(kind, heads[head], weights, signs) for head, kind in module.heads.items()]
        return torch.stack(scores).sum()

    return diagonal_fisher(network, chosen, score)
