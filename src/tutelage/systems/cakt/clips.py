"""Interactions as ids, and which of them make up the clip of each step."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

HistoryKey = Literal["next", "current"]


def encode(concepts: Tensor, right: Tensor, count: int) -> Tensor:
    """Ids of interactions: concept c of 1..count answered wrong is c, answered right c + count; 0 is padding.

    Examples:
        >>> encode(torch.tensor(2), torch.tensor(1), 3).item()
        5
    """
    return concepts + count * right


def decode(interactions: Tensor, count: int) -> Tensor:
    """The concept of each interaction, ``(id - 1) mod count + 1``; 0 in padding."""
    return torch.where(interactions > 0, (interactions - 1) % count + 1, 0)


def clip_steps(
    interactions: Tensor, next_concept: Tensor, count: int, frames: int, history_key: HistoryKey = "next"
) -> tuple[Tensor, Tensor]:
    """Which steps the clip of each step is made of.

    Args:
        interactions: [B, T] ids, 0 in padding.
        next_concept: [B, T], the concept of the next question, from 1; 0 in padding.
        count: of concepts.
        frames: k.
        history_key: whose curve, see the module.

    Returns:
        (steps [B, T, k] from 0, the oldest first, -1 in front where there are fewer; how many steps each lies back [B, T, k]).
    """
    own = decode(interactions, count)
    wanted = next_concept if history_key == "next" else own
    steps = torch.arange(own.shape[1], device=own.device)
    same = (own[:, None] == wanted[:, :, None]) & (own > 0)[:, None] & (steps <= steps[:, None])
    found = F.pad(torch.where(same, steps, -1), (frames, 0), value=-1).topk(frames, -1).values.flip(-1)
    return found, steps[:, None] + (history_key == "next") - found
