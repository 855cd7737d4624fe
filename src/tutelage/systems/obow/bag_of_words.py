"""Bags of visual words: distances, soft codes, the vocabulary as a queue, and the heads that predict a bag."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.distillation.memory_bank import FeatureQueue
from tutelage.errors import InputError


def word_distances(features: Tensor, words: Tensor) -> Tensor:
    """``|F_u|^2 + |V_k|^2 - 2 F_u V_k``, from 0: of features [..., C] to words [K, C], [..., K]."""
    squares = features.square().sum(-1, keepdim=True) + words.square().sum(-1)
    return (squares - 2 * features @ words.T).clamp_min(0)


def word_codes(distances: Tensor, scale: Tensor | float, inv_delta: float | None) -> Tensor:
    """``q = softmax_k(-(inv_delta / scale) d_k)`` of distances [..., K]; ``inv_delta`` None: the nearest word alone."""
    if inv_delta is None:
        return F.one_hot(distances.argmin(-1), distances.shape[-1]).to(distances.dtype)
    return (-(inv_delta / scale) * distances).softmax(-1)


def bag_of_words(codes: Tensor, pooling: Literal["max", "average"] = "max") -> Tensor:
    """The bags [B, K] of codes [B, U, K]: the largest value (or the mean) over locations, divided by the sum over words."""
    pooled = codes.amax(1) if pooling == "max" else codes.mean(1)
    return pooled / pooled.sum(-1, keepdim=True).clamp_min(torch.finfo(codes.dtype).tiny)


def perplexity(bags: Tensor) -> Tensor:
    """``exp(-sum_k p log(p + 1e-5))`` [...] of distributions [..., K]: about how many words a bag uses."""
    return (-(bags * (bags + 1e-5).log()).sum(-1)).exp()


def bag_divergence(bags: Tensor, logits: Tensor) -> Tensor:
    """``KL(y || softmax(logits))`` of each row [B]; bags and logits [B, K]. No gradient into the bags."""
    return F.kl_div(logits.log_softmax(-1), bags.detach(), reduction="none").sum(-1)


class Vocabulary(nn.Module):
    """The words of one level: the latest local features, and the scale of their distances. All of it is buffers.

    Words start as ``relu(normal)``: targets mean little until the queue has been filled once.

    Args:
        words: K.
        dim: C.
        inv_delta: sharpness of the codes; None: hard codes.
        pooling: of codes into a bag.
        source: what becomes a word: a ``local`` mean over 3 x 3 places, one ``point``, or the ``global`` mean.
        decay: of the running mean ``scale`` (it starts at 0.5).
    """

    scale: Tensor

    def __init__(
        self,
        words: int,
        dim: int,
        inv_delta: float | None = 15.0,
        pooling: Literal["max", "average"] = "max",
        source: Literal["local", "point", "global"] = "local",
        decay: float = 0.99,
    ):
        super().__init__()
        self.inv_delta, self.pooling, self.source, self.decay = inv_delta, pooling, source, decay
        self.queue = FeatureQueue(words, dim)
        self.queue.features.copy_(torch.randn(words, dim).relu())
        self.queue.written += words  # the random words count as held
        self.register_buffer("scale", torch.tensor(0.5))

    @property
    def words(self) -> Tensor:
        """V [K, C]."""
        return self.queue.features

    @torch.no_grad()
    def bags(self, maps: Tensor) -> Tensor:
        """The bags [B, K] of maps [B, C, h, w] without their border; updates ``scale`` first, and then the words.

        One word an image is written, from a place that torch's generator draws.

        Raises:
            InputError: maps below 5 x 5: nothing is left of them.
        """
        inner = without_border(maps).float()
        with torch.autocast(maps.device.type, enabled=False):  # small differences of large squares
            distances = word_distances(inner.flatten(2).transpose(1, 2), self.words)
        self.scale.lerp_(distances.amin(-1).mean().to(self.scale), 1 - self.decay)
        bags = bag_of_words(word_codes(distances, self.scale, self.inv_delta), self.pooling)
        self.queue.enqueue(self.new_words(inner))
        return bags

    def new_words(self, inner: Tensor) -> Tensor:
        """A word of each map [B, C, h, w]: [B, C]."""
        if self.source == "global":
            return inner.mean((2, 3))
        if self.source == "local":
            inner = F.avg_pool2d(inner, 3, 1)
        places = inner.flatten(2)
        chosen = torch.randint(places.shape[2], (len(places),)).to(places.device)
        return places[torch.arange(len(places), device=places.device), :, chosen]


def without_border(maps: Tensor) -> Tensor:
    """Maps [B, C, h, w] without one place at each side.

    Raises:
        InputError: no map, or one below 5 x 5.
    """
    if maps.ndim != 4 or min(maps.shape[2:]) < 5:
        raise InputError(
            f"words need maps of at least 5 x 5 places, these are {list(maps.shape)}",
            where="levels",
            remedy="name a layer with larger maps, or give larger images",
        )
    return maps[:, :, 1:-1, 1:-1]


class DynamicHead(nn.Module):
    """Predicts a bag with weights made from the words themselves: they may move and be renamed.

    ``G(v) = norm(W2 relu(BN(W1 norm(v))))``, of unit length; ``logits_k = kappa z G(V_k)`` for a feature z that is not
    normalised. The batch norm runs over the K words.

    Args:
        word_dim: c, of a word.
        dim: C, of a feature.
        kappa: fixed, not learned.
    """

    def __init__(self, word_dim: int, dim: int, kappa: float = 8.0):
        super().__init__()
        self.kappa = kappa
        self.inner = nn.Linear(word_dim, 2 * dim, bias=False)
        self.norm = nn.BatchNorm1d(2 * dim)
        self.outer = nn.Linear(2 * dim, dim)

    def weights(self, words: Tensor) -> Tensor:
        """Unit vectors [K, dim]."""
        return F.normalize(self.outer(self.norm(self.inner(F.normalize(words, dim=-1))).relu()), dim=-1)

    def forward(self, features: Tensor, words: Tensor) -> Tensor:
        """Logits [B, K] of features [B, dim] over words [K, c]."""
        return self.kappa * features @ self.weights(words).T


class LinearHead(nn.Module):
    """An ordinary linear layer with a weight a word, for comparison: the queue renames all words every K / B steps."""

    def __init__(self, words: int, dim: int):
        super().__init__()
        self.linear = nn.Linear(dim, words)

    def forward(self, features: Tensor, words: Tensor) -> Tensor:
        """Logits [B, K]."""
        return self.linear(features)


def teacher_share(step: int, steps: int, start: float = 0.99) -> float:
    """``1 - (1 - start) (1 + cos(pi t / T)) / 2``: how much of itself the teacher keeps in step t of T."""
    return 1 - (1 - start) * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))
