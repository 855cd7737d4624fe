"""A small decoder language model with a cache of keys and values that can be read, continued and replaced."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.errors import InputError
from tutelage.networks.attention import attend
from tutelage.networks.layers import Mlp, init_weights
from tutelage.networks.positions import rotary_angles, rotate
from tutelage.networks.sampling import Sampled, Sampling, draw_tokens

KeyValues = tuple[Tensor, Tensor]
"""Keys (after rotation) and values of one layer, each [B, kv_heads, S, d]."""


@dataclass(frozen=True)
class TokenBatch:
    """Prompts and responses side by side.

    Attributes:
        ids: [B, L] int64, padded on the right.
        mask: [B, L], True for real tokens.
        response: [B, L], True for the tokens of the response: those that count in a loss.
    """

    ids: Tensor
    mask: Tensor
    response: Tensor


def join_prompts(prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], pad_id: int = 0) -> TokenBatch:
    """One :class:`TokenBatch` of prompts and their responses, each a list of token ids.

    Raises:
        InputError: an empty prompt, or different numbers of prompts and responses.
    """
    if len(prompts) != len(responses) or not all(prompts):
        raise InputError(
            f"{len(prompts)} prompts, {len(responses)} responses; every prompt needs a token",
            where="prompts",
            remedy="start prompts with a token that marks the beginning",
        )
    rows = [[*prompt, *response] for prompt, response in zip(prompts, responses)]
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[pad_id] * (longest - len(row))] for row in rows])
    slots = torch.arange(longest)
    ends = torch.tensor([len(row) for row in rows])[:, None]
    starts = torch.tensor([len(prompt) for prompt in prompts])[:, None]
    return TokenBatch(ids, slots < ends, (slots >= starts) & (slots < ends))


def token_log_probs(logits: Tensor, ids: Tensor) -> Tensor:
    """``log p(ids_t | ids_<t)`` [B, L] of logits [B, L, V] that predict the next token; the first token counts 0."""
    logs = F.log_softmax(logits[:, :-1], -1).gather(-1, ids[:, 1:, None])[..., 0]
    return F.pad(logs, (1, 0))


def response_loss(logits: Tensor, batch: TokenBatch) -> Tensor:
    """Cross-entropy of the responses' tokens, mean over all of them in the batch."""
    chosen = batch.response.to(logits.dtype)
    return -(token_log_probs(logits, batch.ids) * chosen).sum() / chosen.sum().clamp_min(1)


def response_log_prob(logits: Tensor, batch: TokenBatch) -> Tensor:
    """Log-probability of each response [B]: the sum over its tokens."""
    return (token_log_probs(logits, batch.ids) * batch.response).sum(1)


class SequenceLogProbs(nn.Module):
    """A language model as what scores responses: of each prompt K responses side by side.

    ``network``: (ids [B, L], mask [B, L]) -> logits [B, L, V] of the next token. Every row of the inputs is laid out as in
    :class:`TokenBatch`: ids, mask, response [B, K, L] -> ``{"log_probs": [B, K]}``.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, ids: Tensor, mask: Tensor, response: Tensor) -> dict[str, Tensor]:
        """``log_probs`` [B, K], the sum over a response's tokens."""
        batch = TokenBatch(ids.flatten(0, 1), mask.flatten(0, 1), response.flatten(0, 1))
        logits = self.network(batch.ids, batch.mask).float()
        return {"log_probs": response_log_prob(logits, batch).unflatten(0, ids.shape[:2])}


class CausalBlock(nn.Module):
    """A pre-norm decoder block with rotary positions and grouped keys and values; [B, L, dim] -> the same shape."""

    def __init__(self, dim: int, num_heads: int, num_kv_heads: int, mlp_ratio: float = 4):
        super().__init__()
        if dim % num_heads or num_heads % num_kv_heads or (dim // num_heads) % 2:
            raise InputError(
                f"a width of {dim} cannot be cut into {num_heads} heads with {num_kv_heads} for keys",
                where="num_heads",
                remedy="num_kv_heads divides num_heads, which divides dim into even parts",
            )
        self.num_heads, self.num_kv_heads = num_heads, num_kv_heads
        head = dim // num_heads
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.query = nn.Linear(dim, dim, bias=False)
        self.key = nn.Linear(dim, num_kv_heads * head, bias=False)
        self.value = nn.Linear(dim, num_kv_heads * head, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        self.mlp = Mlp(dim, mlp_ratio)

    def forward(
        self,
        x: Tensor,
        angles: tuple[Tensor, Tensor],
        mask: Tensor,
        past: KeyValues | None = None,
        inject: KeyValues | None = None,
    ) -> tuple[Tensor, KeyValues]:
        """The next states, and the keys and values that were read. ``mask`` [B, L, S]; see :meth:`CausalLM.forward`."""
        normed = self.norm1(x)
        q = rotate(self.query(normed).unflatten(-1, (self.num_heads, -1)).transpose(1, 2), *angles)
        if inject is not None:
            keys, values = inject
        else:
            keys = rotate(self.key(normed).unflatten(-1, (self.num_kv_heads, -1)).transpose(1, 2), *angles)
            values = self.value(normed).unflatten(-1, (self.num_kv_heads, -1)).transpose(1, 2)
            if past is not None:
                keys, values = torch.cat([past[0], keys], 2), torch.cat([past[1], values], 2)
        group = self.num_heads // self.num_kv_heads
        mixed = attend(q, keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1), mask)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x)), (keys, values)


@dataclass(frozen=True)
class CausalOutput:
    """What a :class:`CausalLM` gives: ``logits`` [B, L, V], the last states ``hidden`` [B, L, dim], and ``cache``, the
    keys and values of every layer."""

    logits: Tensor
    hidden: Tensor
    cache: list[KeyValues]


class CausalLM(nn.Module):
    """A decoder-only language model.

    A cell of the sequence is a slot. Attention is causal by slot; the rotary position of a token is the number of real
    tokens before it, so that padding on the left changes nothing.

    Args:
        vocab_size: V.
        dim: width.
        depth: number of blocks.
        num_heads: of the queries.
        num_kv_heads: of keys and values; None: as many.
        mlp_ratio: hidden width of the MLPs over ``dim``.
        tie_embeddings: the output matrix is the embedding.
    """

    def __init__(
        self,
        vocab_size: int,
        dim: int = 64,
        depth: int = 2,
        num_heads: int = 4,
        num_kv_heads: int | None = None,
        mlp_ratio: float = 4,
        tie_embeddings: bool = True,
    ):
        super().__init__()
        self.head_dim = dim // num_heads
        self.embedding = nn.Embedding(vocab_size, dim)
        self.blocks = nn.ModuleList(CausalBlock(dim, num_heads, num_kv_heads or num_heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, vocab_size, bias=False)
        init_weights(self)
        nn.init.normal_(self.embedding.weight, std=0.02)
        if tie_embeddings:
            self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Next-token logits [B, L, V] of ids [B, L]; ``mask`` [B, L], True for real tokens."""
        return self.run(self.embedding(ids), mask).logits

    def run(
        self,
        embeddings: Tensor,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
        past: Sequence[KeyValues] | None = None,
        inject: Sequence[KeyValues] | None = None,
        slots: Tensor | None = None,
    ) -> CausalOutput:
        """A pass over embeddings, with a cache.

        Args:
            embeddings: [B, L, dim], tokens or anything projected to their width.
            mask: [B, S], True for the real ones among all S slots that are read; None: all.
            positions: [B, L] rotary positions; None: counted from ``mask``.
            past: keys and values of earlier slots, which come before the L new ones; S is their sum.
            inject: keys and values of S slots that are read in place of this network's own.
            slots: [B, L], the slot of each query; None: the last L of S. Needed where queries are a part of ``inject``.

        Raises:
            InputError: both ``past`` and ``inject``, or one that has not every layer.
        """
        given = inject if inject is not None else past
        if (inject is not None and past is not None) or (given is not None and len(given) != len(self.blocks)):
            raise InputError(
                f"a cache of {len(self.blocks)} layers is needed, as past or as inject, not both",
                where="cache",
                remedy="take the cache from a network of equal depth",
            )
        batch, length = embeddings.shape[:2]
        before = 0 if given is None else given[0][0].shape[2]
        total = before if inject is not None else before + length
        device = embeddings.device
        if slots is None:
            slots = torch.arange(total - length, total, device=device).expand(batch, -1)
        real = torch.ones(batch, total, dtype=torch.bool, device=device) if mask is None else mask.bool()
        if positions is None:
            positions = (real.long().cumsum(1) - 1).clamp_min(0).gather(1, slots)
        allowed = (torch.arange(total, device=device) <= slots[..., None]) & real[:, None]
        angles = rotary_angles(positions, self.head_dim)
        states, cache = embeddings, []
        for i, block in enumerate(self.blocks):
            states, seen = block(
                states,
                angles,
                allowed,
                None if past is None else past[i],
                None if inject is None else inject[i],
            )
            cache.append(seen)
        hidden = self.norm(states)
        return CausalOutput(self.head(hidden), hidden, cache)

    def sample(
        self,
        prompts: Tensor,
        mask: Tensor | None = None,
        sampling: Sampling | None = None,
        generator: torch.Generator | None = None,
    ) -> Sampled:
        """Continue prompts [B, L], padded on the left (``mask`` [B, L], True for real tokens), through the cache.

        Gradients flow unless the caller forbids them; for a policy gradient over long responses draw under
        ``torch.no_grad()`` and take :func:`token_log_probs` of one pass instead.
        """
        real = torch.ones_like(prompts, dtype=torch.bool) if mask is None else mask.bool()
        state: dict[str, list[KeyValues]] = {}

        def step(chosen: Tensor | None) -> Tensor:
            nonlocal real
            if chosen is not None:
                real = torch.cat([real, real.new_ones(len(real), 1)], 1)
            ids = prompts if chosen is None else chosen[:, None]
            output = self.run(self.embedding(ids), real, past=state.get("cache"))
            state["cache"] = output.cache
            return output.logits[:, -1]

        return draw_tokens(step, sampling or Sampling(), generator)
