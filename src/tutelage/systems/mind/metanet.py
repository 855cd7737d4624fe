"""MetaNet, which scores several rationales of a question for one student, and the rules that make weights of scores."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.errors import InputError
from tutelage.networks.attention import SelfAttention

ABSENT = -1e9
"""The score of a path that is not there: finite, so that no gradient becomes nan, and its softmax is 0."""


class MetaNet(nn.Module):
    """Scores K paths: embeddings [B, K, in_dim] -> s [B, K], each above 0.

    ``h = W e_k + p_k`` (p: a learned vector of the perspective), one layer of self-attention over the K paths with residual
    and LayerNorm, then for each perspective its own MLP (dim -> dim -> 1, GELU) and softplus. The positive scores make the rule
    of :func:`path_set` valid (our choice).

    Args:
        in_dim: width of the embeddings.
        paths: K.
        dim: inner width.
        num_heads: of the attention.
        attention: False leaves the attention out: each path is scored by itself.
    """

    def __init__(self, in_dim: int, paths: int, dim: int = 256, num_heads: int = 4, attention: bool = True):
        super().__init__()
        self.embed = nn.Linear(in_dim, dim)
        self.perspectives = nn.Parameter(0.02 * torch.randn(paths, dim))
        self.attention = SelfAttention(dim, num_heads) if attention else None
        self.norm = nn.LayerNorm(dim)
        self.heads = nn.ModuleList(nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, 1)) for _ in range(paths))

    def forward(self, embeddings: Tensor, present: Tensor) -> Tensor:
        """Scores; ``present`` [B, K], True for the paths that are there: no path looks at another that is not."""
        x = self.embed(embeddings) + self.perspectives
        if self.attention is not None:
            x = x + self.attention(x, present)
        x = self.norm(x)
        return F.softplus(torch.cat([head(x[:, k]) for k, head in enumerate(self.heads)], 1))


def ranking_loss(scores: Tensor, losses: Tensor, present: Tensor, tau: float = 1.0, target_first: bool = False) -> Tensor:
    """``KL(pi(s) || pi(-L))`` of each item [B], with ``pi(v) = softmax(v / tau)`` over the paths that are there.

    Args:
        scores: s [B, K].
        losses: the student's loss of each path [B, K]; no gradient goes into them.
        present: [B, K].
        tau: the temperature of both sides.
        target_first: ``KL(pi(-L) || pi(s))`` instead.

    Examples:
        >>> s, loss = torch.tensor([[2.0, 1.2, 0.4]]), torch.tensor([[0.5, 1.0, 3.0]])
        >>> round(float(ranking_loss(s, loss, torch.ones(1, 3, dtype=torch.bool))), 6)
        0.050799
    """
    log_scores = (scores / tau).masked_fill(~present, ABSENT).log_softmax(1)
    log_target = (-losses.detach() / tau).masked_fill(~present, ABSENT).log_softmax(1)
    first, second = (log_target, log_scores) if target_first else (log_scores, log_target)
    return (first.exp() * (first - second)).sum(1)


def path_set(scores: Tensor, present: Tensor, beta: float) -> Tensor:
    """``I = {k : s_k >= beta max s}`` [B, K] bool, among the paths that are there. It always holds the best path.

    Raises:
        InputError: a score below 0, with which the set could be empty.
    """
    if bool((scores < 0).any()):
        raise InputError("a score is below 0", where="scores", remedy="pass scores through softplus or exp first")
    best = scores.masked_fill(~present, -1.0).amax(1, keepdim=True)
    return (scores >= beta * best) & present


def path_weights(logits: Tensor, chosen: Tensor, tau: float) -> Tensor:
    """``alpha = softmax(v / tau)`` over the chosen paths, 0 elsewhere: [B, K], without a gradient.

    Examples:
        >>> scores, every = torch.tensor([[2.0, 1.2, 0.4]]), torch.ones(1, 3, dtype=torch.bool)
        >>> [round(x, 5) for x in path_weights(scores, path_set(scores, every, 0.6), 1.0)[0].tolist()]
        [0.68997, 0.31003, 0.0]
    """
    return (logits.detach() / tau).masked_fill(~chosen, ABSENT).softmax(1).masked_fill(~chosen, 0.0)


def jensen_shannon(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Jensen-Shannon divergence (natural logarithm, at most log 2) of log-probabilities [..., V] -> [...]."""
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    return ((log_p.exp() * (log_p - log_m)).sum(-1) + (log_q.exp() * (log_q - log_m)).sum(-1)) / 2


def consistency(log_probs: Tensor, weights: Tensor, mask: Tensor) -> Tensor:
    """``sum_{i<j} alpha_i alpha_j JSD(P_i || P_j)`` of each item [B], averaged over the answer's tokens.

    Args:
        log_probs: [B, K, T, V], the student's distributions at the same T gold answer tokens after each path.
        weights: alpha [B, K].
        mask: [B, T], True for real answer tokens.
    """
    total = log_probs.sum() * 0
    share = mask / mask.sum(1, keepdim=True).clamp_min(1)
    for i in range(weights.shape[1]):
        for j in range(i + 1, weights.shape[1]):
            both = weights[:, i] * weights[:, j]
            if bool((both > 0).any()):
                total = total + both * (jensen_shannon(log_probs[:, i], log_probs[:, j]) * share).sum(1)
    return total.expand(len(weights))


def rank_agreement(one: Tensor, other: Tensor, present: Tensor) -> Tensor:
    """Spearman's correlation [B] of two rows of values [B, K] over the paths that are there; 0 where one side is all ties."""

    def ranks(values: Tensor) -> Tensor:
        above = (values[:, :, None] > values[:, None]).to(values) + 0.5 * (values[:, :, None] == values[:, None])
        found = (above * present[:, None]).sum(2)
        mean = (found * present).sum(1, keepdim=True) / present.sum(1, keepdim=True).clamp_min(1)
        return (found - mean) * present

    a, b = ranks(one.detach().float()), ranks(other.detach().float())
    spread = (a.square().sum(1) * b.square().sum(1)).sqrt()
    return torch.where(spread > 0, (a * b).sum(1) / spread.clamp_min(1e-12), 0.0)
