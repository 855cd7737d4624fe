"""A small DETR (Carion et al., 2020): a set of boxes with classes from maps, ready for a set loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tutelage.networks.attention import TransformerBlock
from tutelage.networks.layers import Mlp, init_weights
from tutelage.networks.positions import sincos_positions


@dataclass(frozen=True)
class Detections:
    """What a :class:`DetrHead` gives.

    Attributes:
        logits: [B, Q, C + 1], the last class means "no object".
        boxes: [B, Q, 4], centre x, centre y, width and height in 0..1.
        encoder: states of every encoder layer, each [B, E + N, D].
        decoder: states of every decoder layer, each [B, E + Q, D].
        extra: E, the number of extra tokens, which stand first in both.
    """

    logits: Tensor
    boxes: Tensor
    encoder: list[Tensor]
    decoder: list[Tensor]
    extra: int = 0


class DetrHead(nn.Module):
    """Maps [B, in_chans, H, W] -> :class:`Detections`.

    Each query starts at a fixed anchor of a square grid, and its box is the anchor plus a learned offset before the
    sigmoid (our choice: small sets converge in minutes). ``extra_tokens`` learned tokens can be put before the
    encoder's tokens and before the queries (the domain queries of sequence feature alignment, Wang et al., 2021).

    Args:
        in_chans: channels of the maps.
        num_classes: C.
        dim: width of tokens and queries.
        encoder_depth: number of encoder layers.
        decoder_depth: number of decoder layers.
        num_heads: of the attention.
        query_grid: queries per side: Q is its square.
        dropout: of the attention's probabilities and of each residual branch, in training.
        extra_tokens: E.
        read_extra: whether ordinary tokens and queries may attend to the extra tokens. Off: the detections are those
            of a head without them.
    """

    def __init__(
        self,
        in_chans: int,
        num_classes: int,
        dim: int = 64,
        encoder_depth: int = 2,
        decoder_depth: int = 2,
        num_heads: int = 4,
        query_grid: int = 4,
        dropout: float = 0.0,
        extra_tokens: int = 0,
        read_extra: bool = False,
    ):
        super().__init__()
        self.dim = dim
        self.extra_tokens = extra_tokens
        self.read_extra = read_extra
        queries = query_grid**2
        self.embed = nn.Conv2d(in_chans, dim, 1)
        self.queries = nn.Parameter(torch.zeros(queries, dim))
        self.encoder_token = nn.Parameter(torch.zeros(extra_tokens, dim))
        self.decoder_token = nn.Parameter(torch.zeros(extra_tokens, dim))
        self.encoder = nn.ModuleList(TransformerBlock(dim, num_heads, 2, dropout=dropout) for _ in range(encoder_depth))
        self.decoder = nn.ModuleList(
            TransformerBlock(dim, num_heads, 2, context_dim=dim, dropout=dropout) for _ in range(decoder_depth)
        )
        self.norm = nn.LayerNorm(dim)
        self.classify = nn.Linear(dim, num_classes + 1)
        offset = nn.Linear(dim, 4)
        self.box = nn.Sequential(Mlp(dim, 1, nn.ReLU), nn.ReLU(), offset)
        init_weights(self)
        nn.init.zeros_(offset.weight)
        for token in (self.queries, self.encoder_token, self.decoder_token):
            nn.init.trunc_normal_(token, std=0.02)
        centres = (torch.arange(query_grid) + 0.5) / query_grid
        y, x = torch.meshgrid(centres, centres, indexing="ij")
        anchors = torch.stack([x.flatten(), y.flatten(), *[torch.full((queries,), 1 / query_grid)] * 2], -1)
        self.anchors: Tensor
        self.register_buffer("anchors", anchors.clamp(0.01, 0.99).logit())
        self.query_positions: Tensor
        self.register_buffer("query_positions", sincos_positions((query_grid, query_grid), dim))

    def forward(self, maps: Tensor) -> Detections:
        """The set, and the states of all layers."""
        batch, extra = len(maps), self.extra_tokens
        tokens = self.embed(maps)
        positions = sincos_positions(tokens.shape[2:], self.dim).to(tokens)
        tokens = tokens.flatten(2).transpose(1, 2) + positions
        tokens = torch.cat([self.encoder_token.expand(batch, -1, -1), tokens], 1)
        encoder = []
        for block in self.encoder:
            tokens = block(tokens, self._mask(tokens))
            encoder.append(tokens)
        # a domain query of the decoder reads all ordinary tokens; none of the queries reads the encoder's extra tokens
        context = tokens if self.read_extra else tokens[:, extra:]
        states = (self.queries + self.query_positions).expand(batch, -1, -1)
        states = torch.cat([self.decoder_token.expand(batch, -1, -1), states], 1)
        decoder = []
        for block in self.decoder:
            states = block(states, self._mask(states), context)
            decoder.append(states)
        normed = self.norm(states[:, extra:])
        return Detections(self.classify(normed), (self.anchors + self.box(normed)).sigmoid(), encoder, decoder, extra)

    def _mask(self, tokens: Tensor) -> Tensor | None:
        """Pairs that may attend [1, N, N]: the extra tokens are columns that only they themselves read."""
        if not self.extra_tokens or self.read_extra:
            return None
        mask = torch.ones(1, tokens.shape[1], tokens.shape[1], dtype=torch.bool, device=tokens.device)
        mask[:, self.extra_tokens :, : self.extra_tokens] = False
        return mask


class SmallDETR(nn.Module):
    """Three 3x3 convolutions of stride 2, 2 and 1, then a :class:`DetrHead`: images [B, C, H, W] -> a dict of heads.

    Heads: ``logits`` [B, Q, C + 1] and ``boxes`` [B, Q, 4], as ``distillation.losses.set_loss`` takes them. ``detect``
    gives the states of all layers too. ``options``: those of :class:`DetrHead`.
    """

    def __init__(self, in_chans: int, num_classes: int, dim: int = 64, **options: float | bool):
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(in_chans, dim // 2, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(dim // 2, dim, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(dim, dim, 3, 1, 1),
            nn.ReLU(),
        )
        self.head = DetrHead(dim, num_classes, dim, **options)  # type: ignore[arg-type]

    def detect(self, images: Tensor) -> Detections:
        """The set with the states of all layers."""
        return self.head(self.backbone(images))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """``logits`` and ``boxes``."""
        found = self.detect(images)
        return {"logits": found.logits, "boxes": found.boxes}
