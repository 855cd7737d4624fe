"""REINFORCE (Williams, 1992) over sequences: returns, baselines and the loss. Rewards never get a gradient.

Masks [B, T] are True for real steps; what stands behind the end of a sequence counts nowhere.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tutelage.errors import InputError


def discounted_returns(rewards: Tensor, mask: Tensor, gamma: float = 1.0) -> Tensor:
    """``R_t = sum_{j >= t} gamma^(j - t) r_j`` [B, T] of rewards [B, T]; 0 behind the end.

    Raises:
        InputError: gamma outside 0..1.
    """
    if not 0 <= gamma <= 1:
        raise InputError(f"gamma lies in 0..1, this is {gamma}", where="gamma")
    real = rewards.detach() * mask
    returns = torch.zeros_like(real)
    after = torch.zeros_like(real[:, 0])
    for t in reversed(range(real.shape[1])):
        after = real[:, t] + gamma * after
        returns[:, t] = after
    return returns * mask


def advantages(returns: Tensor, mask: Tensor, baseline: str = "none", eps: float = 1e-8) -> Tensor:
    """Returns [B, T] less a baseline.

    ``none``: as they are. ``episode``: less the mean over each sequence's steps. ``standardized``: that, divided by the
    unbiased standard deviation of the steps (a sequence of equal returns gives zeros). ``batch``: less the mean of the
    other sequences' total returns ``R_0``, the leave-one-out baseline (Kool et al., 2019), which keeps the gradient
    unbiased.

    Raises:
        InputError: an unknown baseline, or ``batch`` with one sequence.
    """
    real = mask.to(returns.dtype)
    counts = real.sum(1, keepdim=True).clamp_min(1)
    returns = returns.detach() * real
    if baseline == "none":
        return returns
    if baseline in ("episode", "standardized"):
        centred = (returns - returns.sum(1, keepdim=True) / counts) * real
        if baseline == "episode":
            return centred
        variance = centred.square().sum(1, keepdim=True) / (counts - 1).clamp_min(1)
        return centred / (variance.sqrt() + eps)
    if baseline == "batch":
        if len(returns) < 2:
            raise InputError("a leave-one-out baseline needs two sequences", where="baseline", remedy="episode, or none")
        totals = returns[:, :1]
        return (returns - (totals.sum() - totals) / (len(totals) - 1)) * real
    raise InputError(f"unknown baseline {baseline!r}", where="baseline", remedy="none, episode, standardized or batch")


def policy_gradient_loss(log_probs: Tensor, advantage: Tensor, mask: Tensor, per_step: bool = False) -> Tensor:
    """``-sum_t A_t log p(a_t)`` of each sequence [B]; its gradient is REINFORCE's.

    Args:
        log_probs: of the chosen actions [B, T].
        advantage: [B, T], or one number a sequence [B].
        mask: [B, T].
        per_step: divide by the number of real steps.
    """
    weights = advantage.detach()
    real = mask.to(log_probs.dtype)
    loss = -((weights[:, None] if weights.ndim == 1 else weights) * log_probs * real).sum(1)
    return loss / real.sum(1).clamp_min(1) if per_step else loss


class MovingBaseline(nn.Module):
    """The exponential moving average of rewards, a baseline that is saved and resumed with the method that holds it.

    Args:
        decay: share of the old value at each update; the first update sets the value.
    """

    value: Tensor
    updates: Tensor

    def __init__(self, decay: float = 0.9):
        super().__init__()
        if not 0 <= decay < 1:
            raise InputError(f"a decay lies in 0..1, this is {decay}", where="decay")
        self.decay = decay
        self.register_buffer("value", torch.zeros(()))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def forward(self, rewards: Tensor) -> Tensor:
        """Rewards [B] less the average **before** them, which is then updated."""
        mean = rewards.detach().mean()
        before = mean if int(self.updates) == 0 else self.value.clone()
        self.value.copy_(mean if int(self.updates) == 0 else self.decay * self.value + (1 - self.decay) * mean)
        self.updates += 1
        return rewards.detach() - before
