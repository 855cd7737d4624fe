"""The lip reader: frames of a mouth in, characters out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from tutelage.distillation.small_models import BasicBlock
from tutelage.errors import InputError, did_you_mean
from tutelage.networks.sampling import Sampled, Sampling, draw_tokens

PAD, SOS, EOS = 0, 1, 2
Memory = tuple[Tensor, Tensor]
"""States of the frames [B, T, H], and the first state of the decoder's layers [B, layers, H]."""


class VideoFront(nn.Module):
    """Clips [B, channels, T, H, W] -> [B, T, 512]: a 3-D convolution over five frames, then ResNet-18 frame by frame.

    Only real frames enter the ResNet. Weights of convolutions start at a normal of deviation ``sqrt(2 / (kernel volume x
    output channels))``.
    """

    features = 512

    def __init__(self, channels: int = 3, dropout: float = 0.5):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv3d(channels, 64, (5, 7, 7), (1, 2, 2), (2, 3, 3), bias=False),
            nn.BatchNorm3d(64),
            nn.ReLU(inplace=True),
            nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)),
        )
        self.trunk = nn.Sequential(
            *(
                nn.Sequential(BasicBlock(inner, outer, stride), BasicBlock(outer, outer, 1))
                for inner, outer, stride in ((64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2))
            )
        )
        self.dropout = nn.Dropout(dropout)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Conv3d)):
                nn.init.normal_(module.weight, std=math.sqrt(2 / (math.prod(module.kernel_size) * module.out_channels)))

    def forward(self, clips: Tensor, mask: Tensor | None = None) -> Tensor:
        """Features of each frame; ``mask`` [B, T], True for real frames: those behind the end give 0."""
        if mask is None:
            mask = torch.ones(len(clips), clips.shape[2], dtype=torch.bool, device=clips.device)
        maps = self.stem(clips * mask.to(clips)[:, None, :, None, None]).transpose(1, 2)
        found = self.trunk(maps[mask]).mean((2, 3))
        out = torch.zeros(*mask.shape, self.features, dtype=found.dtype, device=found.device)
        out[mask] = self.dropout(found)
        return out


class FlatFront(nn.Module):
    """Clips [B, channels, T, H, W] -> [B, T, features]: one linear layer and a ReLU, frame by frame. For small pictures."""

    def __init__(self, channels: int, height: int, width: int, features: int):
        super().__init__()
        self.features = features
        self.linear = nn.Linear(channels * height * width, features)

    def forward(self, clips: Tensor, mask: Tensor | None = None) -> Tensor:
        """Features of each frame."""
        return self.linear(clips.transpose(1, 2).flatten(2)).relu()


class LipReader(nn.Module):
    """A sequence-to-sequence network: a bidirectional GRU over frames, and a GRU that writes characters with attention.

    Attention (Bahdanau et al., 2015): ``e_i = w^T tanh(W [enc_i; h])``, h the top layer's state, a softmax over real frames. The
    decoder's GRU reads ``[embedding; context]``; a linear layer on ``[state; context]`` gives the logits.

    Args:
        front: frames to features: ``front(clips, mask)`` [B, T, F], with the number F as ``front.features``.
        vocab_size: V, with padding 0, start 1, end 2.
        hidden: H of both GRUs, and of the attention.
        layers: of both GRUs.
        embedding: width of a character.
        dropout: between the layers of both GRUs, in training.
        embedding_dropout: of the embedded characters.
        max_length: the most characters that :meth:`forward` writes.
        init: the decoder's first state: ``sum``, layer by layer, of both directions' last states (our choice); ``slice``: the
            first ``layers`` of the ``2 layers`` last states, as in the first author's prototype, which mixes layers and
            directions.

    Raises:
        InputError: an unknown ``init``.
    """

    def __init__(
        self,
        front: nn.Module,
        vocab_size: int,
        hidden: int = 1024,
        layers: int = 3,
        embedding: int = 256,
        dropout: float = 0.5,
        embedding_dropout: float = 0.2,
        max_length: int = 32,
        init: Literal["sum", "slice"] = "sum",
    ):
        super().__init__()
        if init not in ("sum", "slice"):
            raise InputError(f"unknown first state {init!r}", where="init", remedy="sum or slice")
        self.front, self.init, self.max_length = front, init, max_length
        features: Any = front.features
        between = dropout if layers > 1 else 0.0
        self.encoder = nn.GRU(features, hidden, layers, batch_first=True, dropout=between, bidirectional=True)
        self.embed, self.embed_dropout = nn.Embedding(vocab_size, embedding), nn.Dropout(embedding_dropout)
        # W of the attention in two parts, so that the frames' part is computed once
        self.attend_frames, self.attend_state = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden, bias=False)
        self.score = nn.Linear(hidden, 1, bias=False)
        self.decoder = nn.GRU(embedding + hidden, hidden, layers, batch_first=True, dropout=between)
        self.head = nn.Linear(2 * hidden, vocab_size)

    def encode(self, inputs: Tensor, mask: Tensor | None = None) -> Memory:
        """The states of clips [B, C, T, H, W]; ``mask`` [B, T], True for real frames, which come first."""
        features = self.front(inputs, mask)
        if mask is None:
            states, last = self.encoder(features)
        else:
            packed = pack_padded_sequence(features, mask.sum(1).cpu(), batch_first=True, enforce_sorted=False)
            states, last = self.encoder(packed)
            states, _ = pad_packed_sequence(states, batch_first=True, total_length=mask.shape[1])
        forwards, backwards = states.chunk(2, -1)
        layers = self.decoder.num_layers
        first = last.unflatten(0, (layers, 2)).sum(1) if self.init == "sum" else last[:layers]
        return forwards + backwards, first.transpose(0, 1)

    def decode(self, ids: Tensor, memory: Memory, mask: Tensor | None = None) -> Tensor:
        """Logits [B, U, V] of the character after each of ``ids`` [B, U], the first of which is the start token."""
        write = _Writer(self, memory, mask)
        return torch.stack([write(ids[:, u]) for u in range(ids.shape[1])], 1)

    def sample_from(
        self,
        memory: Memory,
        mask: Tensor | None = None,
        sampling: Sampling | None = None,
        generator: torch.Generator | None = None,
    ) -> Sampled:
        """Characters drawn one after the other, given :meth:`encode`'s states; by default the likeliest ones."""
        write = _Writer(self, memory, mask)
        start = torch.full((len(memory[0]),), SOS, device=memory[0].device)
        sampling = sampling or Sampling(self.max_length, temperature=0.0, eos_id=EOS, pad_id=PAD)
        return draw_tokens(lambda chosen: write(start if chosen is None else chosen), sampling, generator)

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        """Log-probabilities [B, ``max_length``, V] of the characters that the reader writes itself, the likeliest each time."""
        memory = self.encode(inputs, mask)
        write, chosen = _Writer(self, memory, mask), torch.full((len(inputs),), SOS, device=inputs.device)
        logits = list[Tensor]()
        for _ in range(self.max_length):
            logits.append(write(chosen))
            chosen = logits[-1].argmax(-1)
        return torch.stack(logits, 1).log_softmax(-1)


class _Writer:
    """The decoder at work on one batch: a character [B] in, the logits [B, V] of the next one out."""

    def __init__(self, reader: LipReader, memory: Memory, mask: Tensor | None):
        self.reader, self.mask = reader, mask
        self.frames, first = memory
        self.state = first.transpose(0, 1).contiguous()
        self.keys = reader.attend_frames(self.frames)

    def __call__(self, character: Tensor) -> Tensor:
        net = self.reader
        energy = net.score((self.keys + net.attend_state(self.state[-1])[:, None]).tanh())[..., 0]
        if self.mask is not None:
            energy = energy.masked_fill(~self.mask.bool(), float("-inf"))
        context = torch.einsum("bt,bth->bh", energy.softmax(-1), self.frames)
        inputs = torch.cat([net.embed_dropout(net.embed(character)), context], -1)
        out, self.state = net.decoder(inputs[:, None], self.state)
        return net.head(torch.cat([out[:, 0], context], -1))


SIZES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "published": {"hidden": 1024, "layers": 3, "embedding": 256},
        "small": {"hidden": 64, "layers": 1, "embedding": 32, "dropout": 0.0, "embedding_dropout": 0.0},
    }
)
"""Sizes of :func:`lip_reader`: that of the first author's prototype, and a small one for small pictures."""


def lip_reader(
    size: str = "published",
    vocab_size: int = 31,
    channels: int = 3,
    height: int = 50,
    width: int = 100,
    **options: Any,
) -> LipReader:
    """A :class:`LipReader` by name.

    Args:
        size: ``published`` (:class:`VideoFront`) or ``small`` (:class:`FlatFront`, which needs height and width).
        vocab_size: V; 31 is :class:`CharacterVocabulary`'s.
        channels: of the clips.
        height, width: of a frame, in pixels.
        options: further options of :class:`LipReader`, in place of the size's.

    Raises:
        InputError: an unknown size.
    """
    if size not in SIZES:
        raise InputError(f"unknown size {size!r}", where="size", remedy=did_you_mean(size, list(SIZES)))
    chosen = {**SIZES[size], **options}
    front: nn.Module = VideoFront(channels)
    if size == "small":
        front = FlatFront(channels, height, width, chosen["hidden"])
    return LipReader(front, vocab_size, **chosen)
