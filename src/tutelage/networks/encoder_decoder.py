"""A small encoder and decoder with padding masks: sequences of vectors or tokens in, tokens out."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.networks.attention import TransformerBlock
from tutelage.networks.layers import init_weights
from tutelage.networks.positions import sincos_positions
from tutelage.networks.sampling import Sampled, Sampling, draw_tokens


def causal_mask(length: int, mask: Tensor | None = None, device: torch.device | None = None) -> Tensor:
    """[1 or B, N, N]: each position may read itself and real earlier ones; ``mask`` [B, N], True for real tokens."""
    below = torch.ones(length, length, dtype=torch.bool, device=device).tril()[None]
    return below if mask is None else below & mask.bool()[:, None]


class EncoderDecoder(nn.Module):
    """A sequence-to-sequence transformer (Vaswani et al., 2017), pre-norm, with sine positions.

    Args:
        inputs: the width of input vectors [B, S, inputs], or with ``vocab_in`` the number of input tokens.
        vocab_size: V of the output.
        dim: width.
        depth: blocks of the encoder, and of the decoder.
        num_heads: of each block.
        vocab_in: whether inputs are token ids [B, S].
        bos_id: the token that starts every output.
        dropout: in training.
    """

    def __init__(
        self,
        inputs: int,
        vocab_size: int,
        dim: int = 64,
        depth: int = 2,
        num_heads: int = 4,
        vocab_in: bool = False,
        bos_id: int = 1,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.dim, self.bos_id = dim, bos_id
        self.embed_in = nn.Embedding(inputs, dim) if vocab_in else nn.Linear(inputs, dim)
        self.embed_out = nn.Embedding(vocab_size, dim)
        self.encoder = nn.ModuleList(TransformerBlock(dim, num_heads, dropout=dropout) for _ in range(depth))
        self.decoder = nn.ModuleList(TransformerBlock(dim, num_heads, context_dim=dim, dropout=dropout) for _ in range(depth))
        self.encoder_norm = nn.LayerNorm(dim)
        self.decoder_norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, vocab_size)
        init_weights(self)

    def encode(self, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        """States [B, S, dim]; ``mask`` [B, S], True for real positions."""
        states = self.embed_in(inputs)
        states = states + sincos_positions((states.shape[1],), self.dim).to(states)
        for block in self.encoder:
            states = block(states, mask)
        return self.encoder_norm(states)

    def decode(self, ids: Tensor, memory: Tensor, mask: Tensor | None = None, ids_mask: Tensor | None = None) -> Tensor:
        """Logits [B, U, V] of the token after each of ``ids`` [B, U], given the encoder's states ``memory``."""
        states = self.embed_out(ids)
        states = states + sincos_positions((states.shape[1],), self.dim).to(states)
        causal = causal_mask(ids.shape[1], ids_mask, ids.device)
        for block in self.decoder:
            states = block(states, causal, memory, mask)
        return self.head(self.decoder_norm(states))

    def forward(self, inputs: Tensor, targets: Tensor, mask: Tensor | None = None) -> Tensor:
        """Teacher-forced logits [B, U, V] of ``targets`` [B, U]: position u reads the start token and targets before u."""
        shifted = F.pad(targets[:, :-1], (1, 0), value=self.bos_id)
        return self.decode(shifted, self.encode(inputs, mask), mask)

    def sample(
        self,
        inputs: Tensor,
        mask: Tensor | None = None,
        sampling: Sampling | None = None,
        generator: torch.Generator | None = None,
    ) -> Sampled:
        """Outputs drawn token by token; ``Sampling(temperature=0)`` decodes greedily."""
        return self.sample_from(self.encode(inputs, mask), mask, sampling, generator)

    def sample_from(
        self,
        memory: Tensor,
        mask: Tensor | None = None,
        sampling: Sampling | None = None,
        generator: torch.Generator | None = None,
    ) -> Sampled:
        """:meth:`sample`, given the encoder's states ``memory`` [B, S, dim]."""
        ids = torch.full((len(memory), 1), self.bos_id, dtype=torch.int64, device=memory.device)

        def step(chosen: Tensor | None) -> Tensor:
            nonlocal ids
            if chosen is not None:
                ids = torch.cat([ids, chosen[:, None]], 1)
            return self.decode(ids, memory, mask)[:, -1]

        return draw_tokens(step, sampling or Sampling(temperature=0.0), generator)
