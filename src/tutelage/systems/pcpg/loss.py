"""Rewards from the edit distance, the pooling of neighbouring steps, and the loss: functions of tensors alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tutelage.distillation.edit_distance import prefix_edit_distances
from tutelage.errors import InputError

POOLED = ("both", "rewards", "losses")


def edit_rewards(ids: Tensor, counted: Tensor, truth: Tensor, lengths: Tensor) -> Tensor:
    """``r_t = E_{t-1} - E_t`` [B, T] in {-1, 0, 1}, E_t the edit distance of the first t characters to the whole truth.

    They sum to ``|Y| - ED(hypothesis, Y) = |Y| (1 - CER)``.

    Args:
        ids: drawn characters [B, T].
        counted: bool [B, T]; False at the end token and behind it, where the reward is 0.
        truth: [B, U].
        lengths: of the truths [B], without an end token.

    Examples:
        >>> truth, drawn = torch.tensor([[1, 2, 3]]), torch.tensor([[1, 2, 3, 4]])
        >>> edit_rewards(drawn, drawn > 0, truth, torch.tensor([3])).tolist()
        [[1, 1, 1, -1]]
    """
    return -prefix_edit_distances(ids, counted, truth, lengths).diff(dim=1)


def make_kernel(k: int, weights: Sequence[float] | None = None) -> Tensor:
    """The window [k]: its weights, or ``1 / k`` each.

    Raises:
        InputError: no window, or weights that are not k finite numbers from 0, the first above 0.
    """
    if k < 1:
        raise InputError(f"a window of {k} steps", where="k", remedy="1 (plain REINFORCE), 3, …")
    if weights is None:
        return torch.full((k,), 1 / k)
    kernel = torch.tensor(list(weights), dtype=torch.float32)
    if len(kernel) != k or not bool(kernel.isfinite().all()) or bool((kernel < 0).any()) or not kernel[0] > 0:
        raise InputError(
            f"{list(weights)} is no window of {k} steps", where="kernel", remedy="k finite weights from 0, the first above 0"
        )
    return kernel


def pool_windows(values: Tensor, mask: Tensor, kernel: Tensor, stride: int = 1) -> tuple[Tensor, Tensor]:
    """``v_j = sum_i w_i v_{js + i}`` over the windows that lie within the real steps of each sequence.

    A sequence of fewer than k steps has one window over the steps that exist, whose weights are scaled to the kernel's sum.

    Args:
        values: [B, T].
        mask: [B, T], True for real steps, which come first.
        kernel: w [k].
        stride: s.

    Returns:
        The pooled values [B, J], 0 where there is no window; and bool [B, J], where there is one.

    Examples:
        >>> values = torch.tensor([[1.0, 1.0, -1.0, 0.0, 1.0]])
        >>> pool_windows(values, values.isfinite(), make_kernel(3), stride=2)[0].mul(3).tolist()
        [[1.0, 0.0]]
    """
    short = max(0, len(kernel) - values.shape[1])
    windows = torch.nn.functional.pad(values, (0, short)).unfold(1, len(kernel), stride)
    real = torch.nn.functional.pad(mask, (0, short)).unfold(1, len(kernel), stride)
    used = torch.zeros_like(real[..., 0])
    used[:, 0] = mask.any(1)
    used |= real.all(-1)
    weights = kernel.to(values) * real
    scale = torch.where(used, kernel.to(values).sum() / weights.sum(-1).clamp_min(torch.finfo(values.dtype).tiny), 0)
    # where nothing is left out the weights stay to the bit
    scale = torch.where(real.all(-1), torch.ones_like(scale), scale)
    windows = windows.masked_fill(~real, 0)  # nothing behind the end counts, whatever stands there
    return (windows * weights).sum(-1) * scale, used


def window_loss(
    log_probs: Tensor, advantage: Tensor, mask: Tensor, kernel: Tensor, stride: int = 1, pooled: str = "both"
) -> Tensor:
    """``-mean_j R_j l_j`` of each sequence [B], over windows; the gradient never passes through ``advantage``.

    With k = 1 and s = 1 it is REINFORCE's loss, the mean over steps. With k > 1 the log-probability of a step is weighted with
    the returns of its neighbours.

    Args:
        log_probs: l, of the drawn characters [B, T].
        advantage: R, the returns less a baseline [B, T].
        mask: [B, T], True for real steps.
        kernel: [k].
        stride: s.
        pooled: ``both``; or ``rewards`` or ``losses`` alone, the other read at the middle step ``js + (k - 1) // 2`` of each
            window, at most the last real step (our choice).

    Raises:
        InputError: an unknown ``pooled``.
    """
    if pooled not in POOLED:
        raise InputError(f"{pooled!r} cannot be pooled", where="pooled", remedy=", ".join(POOLED))
    returns = advantage.detach().to(log_probs.dtype)
    pooled_returns, used = pool_windows(returns, mask, kernel, stride)
    pooled_losses, _ = pool_windows(log_probs, mask, kernel, stride)
    if pooled != "both":
        middle = torch.arange(used.shape[1], device=mask.device) * stride + (len(kernel) - 1) // 2
        places = torch.minimum(middle, mask.sum(1, keepdim=True) - 1).clamp_min(0)
        if pooled == "rewards":
            pooled_losses = log_probs.gather(1, places)
        else:
            pooled_returns = returns.gather(1, places)
    products = torch.where(used, pooled_returns * pooled_losses, 0)
    return -products.sum(1) / used.sum(1).clamp_min(1)
