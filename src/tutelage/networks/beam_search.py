"""Beam search over the tokens of a sequence network."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from tutelage.errors import InputError
from tutelage.networks.sampling import Sampled, Sampling


@torch.no_grad()
def beam_search(
    step: Callable[[Tensor, Tensor], Tensor], count: int, sampling: Sampling, beams: int = 5, bos_id: int = 1
) -> Sampled:
    """The likeliest sequence that a search with ``beams`` open prefixes finds, of each of ``count`` inputs.

    The likelihood is the sum of log-probabilities, the end token's included; lengths are not normalised.

    Args:
        step: given prefixes [N, U], the start token first, and the input [N] that each belongs to, the logits [N, V] of the
            next token.
        count: how many inputs there are.
        sampling: ``max_new_tokens``, ``eos_id`` and ``pad_id`` count; the search draws nothing.
        beams: prefixes that are kept, of each input.
        bos_id: the start token.

    Raises:
        InputError: fewer than one beam.
    """
    if beams < 1:
        raise InputError(f"{beams} beams", where="beams", remedy="1 or more")
    rows = torch.arange(count).repeat_interleave(beams)
    ids = torch.full((count, beams, 1), bos_id)
    scores = torch.full((count, beams), float("-inf"))
    scores[:, 0] = 0
    steps = torch.zeros(count, beams, 0)
    done = torch.zeros(count, beams, dtype=torch.bool)
    lengths = torch.zeros(count, beams, dtype=torch.int64)
    for _ in range(sampling.max_new_tokens):
        logs = F.log_softmax(step(ids.flatten(0, 1), rows).cpu().float(), -1).unflatten(0, (count, beams))
        # a prefix that ended goes on with padding alone, at no cost
        ended = torch.full_like(logs, float("-inf"))
        ended[..., sampling.pad_id] = 0
        logs = torch.where(done[..., None], ended, logs)
        scores, best = (scores[..., None] + logs).flatten(1).topk(beams, 1)
        before, token = best // logs.shape[-1], best % logs.shape[-1]

        def taken(kept: Tensor, before: Tensor = before) -> Tensor:
            return kept.gather(1, before.view(count, beams, *[1] * (kept.ndim - 2)).expand(-1, -1, *kept.shape[2:]))

        gained = logs.flatten(1).gather(1, best)
        done, lengths = taken(done), taken(lengths)
        ids = torch.cat([taken(ids), token[..., None]], 2)
        steps = torch.cat([taken(steps), gained[..., None]], 2)
        lengths = lengths + ~done
        if sampling.eos_id is not None:
            done = done | (token == sampling.eos_id)
            if bool(done.all()):
                break
    return Sampled(ids[:, 0, 1:], steps[:, 0], lengths[:, 0])
