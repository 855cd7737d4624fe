"""Probabilities of quantised latents: a Gaussian with given mean and scale, and a learned prior for each channel.

For learned compression (Ballé, Minnen, Singh, Hwang, Johnston, 2018, arXiv 1802.01436): training adds uniform noise where
coding rounds, and the likelihood of a value is the mass of its unit interval. The tables are for
:mod:`tutelage.networks.entropy_coder`.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.networks.entropy_coder import FrequencyTable

LIKELIHOOD_BOUND = 1e-9
SCALE_BOUND = 0.11
MAX_SCALE, SCALE_LEVELS = 256.0, 64
TABLE_REACH = 64
"""A row of the prior's table holds the symbols from -64 to 64."""


def bounded(likelihood: Tensor) -> Tensor:
    """At least 1e-9; the gradient passes as if there were no bound, so that a value far from its mean is still pulled."""
    return likelihood + (likelihood.clamp_min(LIKELIHOOD_BOUND) - likelihood).detach()


def round_straight_through(values: Tensor) -> Tensor:
    """Rounded values, with the gradient of the values themselves."""
    return values + (values.round() - values).detach()


def add_uniform_noise(values: Tensor) -> Tensor:
    """Plus noise in -1/2..1/2 of torch's global generator, which the trainer seeds anew for each pass."""
    return values + torch.rand_like(values) - 0.5


def gaussian_likelihood(values: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """``Phi((v - mu + 1/2) / s) - Phi((v - mu - 1/2) / s)``, at least 1e-9, with s at least 0.11; all of one shape."""
    distance, scale = (values - mean).abs(), scale.clamp_min(SCALE_BOUND)
    # by symmetry, in the lower tail: there the difference of two small numbers keeps its digits
    upper = torch.special.ndtr((0.5 - distance) / scale)
    lower = torch.special.ndtr((-0.5 - distance) / scale)
    return bounded(upper - lower)


class FactorizedPrior(nn.Module):
    """A learned distribution for each channel, the same at every position (Ballé et al., 2018, appendix 6.1).

    The cumulative ``c(x)`` is a small network of positive weights, monotone by construction; the likelihood of z is
    ``c(z + 1/2) - c(z - 1/2)``. Its table is read from it whenever something is coded, so that there is nothing to
    update and no quantile to learn (our choice).

    Args:
        channels: number of channels.
        filters: widths of the hidden layers of ``c``.
        init_scale: about how wide the distribution is at first.
    """

    def __init__(self, channels: int, filters: Sequence[int] = (3, 3, 3), init_scale: float = 10.0):
        super().__init__()
        widths = (1, *filters, 1)
        growth = init_scale ** (1 / (len(widths) - 1))
        self.matrices, self.biases, self.gates = nn.ParameterList(), nn.ParameterList(), nn.ParameterList()
        for inner, outer in zip(widths, widths[1:], strict=False):
            start = math.log(math.expm1(1 / growth / outer))
            self.matrices.append(nn.Parameter(torch.full((channels, outer, inner), start)))
            self.biases.append(nn.Parameter(torch.rand(channels, outer, 1) - 0.5))
        for width in filters:
            self.gates.append(nn.Parameter(torch.zeros(channels, width, 1)))

    def logits(self, values: Tensor) -> Tensor:
        """``c`` before its sigmoid, for values [C, 1, n]."""
        for layer, (matrix, bias) in enumerate(zip(self.matrices, self.biases, strict=True)):
            values = F.softplus(matrix) @ values + bias
            if layer < len(self.gates):
                values = values + self.gates[layer].tanh() * values.tanh()
        return values

    def forward(self, values: Tensor) -> Tensor:
        """The likelihood of each value of maps [B, C, H, W], at least 1e-9."""
        rows = values.transpose(0, 1).flatten(1)[:, None]
        lower, upper = self.logits(rows - 0.5), self.logits(rows + 0.5)
        side = -torch.sign(lower + upper).detach()  # in the tail where the sigmoid keeps its digits
        mass = ((side * upper).sigmoid() - (side * lower).sigmoid()).abs()
        return bounded(mass).view_as(values.transpose(0, 1)).transpose(0, 1)

    @torch.no_grad()
    def table(self) -> FrequencyTable:
        """One row a channel, in float64."""
        twin = copy.deepcopy(self).cpu().double()
        edges = torch.arange(-TABLE_REACH, TABLE_REACH + 2, dtype=torch.float64) - 0.5
        cumulative = twin.logits(edges.expand(len(self.matrices[0]), 1, -1)).sigmoid()[:, 0]
        mass = cumulative.diff(dim=1).clamp_min(0).numpy()
        return FrequencyTable.from_probabilities(list(mass), [-TABLE_REACH] * len(mass))


def scale_rows(scale: Tensor) -> np.ndarray:
    """The row of :func:`gaussian_table` whose scale is nearest in logarithm: int64, flat."""
    step = math.log(MAX_SCALE / SCALE_BOUND) / (SCALE_LEVELS - 1)
    scale = scale.detach().double().cpu().clamp(SCALE_BOUND, MAX_SCALE)
    return (scale / SCALE_BOUND).log().div(step).round().long().flatten().numpy()


@functools.cache
def gaussian_table() -> FrequencyTable:
    """64 rows: Gaussians of mean 0 whose scales rise by equal factors from 0.11 to 256."""
    scales = np.geomspace(SCALE_BOUND, MAX_SCALE, SCALE_LEVELS)
    rows, lowest = [], []
    for scale in scales.tolist():
        reach = math.ceil(5 * scale) + 1
        edges = (torch.arange(-reach, reach + 2, dtype=torch.float64) - 0.5) / scale
        lower, upper = torch.special.ndtr(edges[:-1]), torch.special.ndtr(edges[1:])
        mirrored = torch.special.ndtr(-edges[:-1]) - torch.special.ndtr(-edges[1:])
        rows.append(torch.where(edges[1:] > 0, mirrored, upper - lower).clamp_min(0).numpy())
        lowest.append(-reach)
    return FrequencyTable.from_probabilities(rows, lowest)
