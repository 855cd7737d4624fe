"""Drawing tokens from a sequence network, one position at a time: the loop and the choice of each token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from tutelage.errors import InputError


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        max_new_tokens: the most that are drawn.
        temperature: the logits are divided by it; 0 takes the most likely token.
        top_k: only the most likely ``top_k`` tokens can be drawn; 0: all.
        eos_id: the token that ends a sequence, counted in its length; None: every sequence runs to the end.
        pad_id: what stands behind the end.

    Raises:
        InputError: a negative temperature or ``top_k``, or no token to draw.
    """

    max_new_tokens: int = 32
    temperature: float = 1.0
    top_k: int = 0
    eos_id: int | None = None
    pad_id: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or not self.temperature >= 0 or self.top_k < 0:
            raise InputError(
                f"cannot draw {self.max_new_tokens} tokens at temperature {self.temperature}, top_k {self.top_k}",
                where="sampling",
                remedy="max_new_tokens >= 1, temperature >= 0, top_k >= 0",
            )


@dataclass(frozen=True)
class Sampled:
    """Sequences that were drawn.

    Attributes:
        ids: [B, T] int64, the new tokens, padded behind the end.
        log_probs: [B, T], of each token under the distribution it was drawn from; 0 behind the end.
        lengths: [B] int64, new tokens of each sequence, its end included.
    """

    ids: Tensor
    log_probs: Tensor
    lengths: Tensor

    @property
    def mask(self) -> Tensor:
        """[B, T], True for real tokens."""
        return torch.arange(self.ids.shape[1], device=self.ids.device) < self.lengths[:, None]


def log_distribution(logits: Tensor, sampling: Sampling) -> Tensor:
    """Log-probabilities [B, V] that tokens are drawn from; at temperature 0 those of temperature 1."""
    scaled = logits / sampling.temperature if sampling.temperature > 0 else logits
    if 0 < sampling.top_k < logits.shape[-1]:
        least = scaled.topk(sampling.top_k, -1).values[..., -1:]
        scaled = scaled.masked_fill(scaled < least, float("-inf"))
    return F.log_softmax(scaled, -1)


def draw_tokens(
    step: Callable[[Tensor | None], Tensor],
    sampling: Sampling,
    generator: torch.Generator | None = None,
) -> Sampled:
    """Draw sequences token by token. Gradients flow through the log-probabilities unless the caller forbids them.

    Args:
        step: given the tokens chosen last [B] (None at first), gives the next logits [B, V].
        sampling: how tokens are chosen.
        generator: a CPU generator; may be None at temperature 0 alone.

    Raises:
        InputError: no generator where tokens are drawn at random.
    """
    if sampling.temperature > 0 and generator is None:
        raise InputError("tokens are drawn at random", where="generator", remedy="give a torch.Generator")
    ids: list[Tensor] = []
    log_probs: list[Tensor] = []
    alive: Tensor | None = None
    lengths: Tensor | None = None
    chosen: Tensor | None = None
    for _ in range(sampling.max_new_tokens):
        logs = log_distribution(step(chosen), sampling)
        if alive is None or lengths is None:
            alive = torch.ones(len(logs), dtype=torch.bool, device=logs.device)
            lengths = torch.zeros(len(logs), dtype=torch.int64, device=logs.device)
        if sampling.temperature == 0:
            chosen = logs.argmax(-1)
        else:
            drawn = torch.multinomial(logs.detach().exp().cpu().float(), 1, generator=generator)[:, 0]
            chosen = drawn.to(logs.device)
        picked = logs.gather(-1, chosen[:, None])[:, 0]
        ids.append(chosen.masked_fill(~alive, sampling.pad_id))
        log_probs.append(torch.where(alive, picked, torch.zeros_like(picked)))
        lengths = lengths + alive
        if sampling.eos_id is not None:
            alive = alive & (chosen != sampling.eos_id)
            if not bool(alive.any()):
                break
        chosen = ids[-1]
    assert lengths is not None
    return Sampled(torch.stack(ids, 1), torch.stack(log_probs, 1), lengths)
