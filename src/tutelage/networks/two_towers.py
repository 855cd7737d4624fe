"""Two towers (CLIP, Radford et al., 2021): an encoder of images and one of texts that meet in one space."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.errors import InputError
from tutelage.networks.attention import TransformerBlock
from tutelage.networks.layers import Mlp, init_weights


class TextTower(nn.Module):
    """Token ids [B, L] -> one vector [B, dim]: the mean of the real tokens' states, through an MLP.

    Args:
        vocab_size: number of tokens.
        dim: width.
        depth: transformer blocks with learned positions; 0: a bag of words, whose order does not count.
        num_heads: of each block.
        max_length: the longest text, where there are blocks.
        pad_id: the token that does not count.
    """

    def __init__(
        self,
        vocab_size: int,
        dim: int = 48,
        depth: int = 0,
        num_heads: int = 4,
        max_length: int = 32,
        pad_id: int = 0,
    ):
        super().__init__()
        self.pad_id = pad_id
        self.embedding = nn.Embedding(vocab_size, dim)
        self.positions = nn.Parameter(torch.zeros(max_length, dim)) if depth else None
        self.blocks = nn.ModuleList(TransformerBlock(dim, num_heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, 2)
        init_weights(self)
        if self.positions is not None:
            nn.init.trunc_normal_(self.positions, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        """The vectors.

        Raises:
            InputError: texts longer than ``max_length``.
        """
        mask = ids != self.pad_id
        states = self.embedding(ids)
        if self.positions is not None:
            if ids.shape[1] > len(self.positions):
                raise InputError(f"{ids.shape[1]} tokens, at most {len(self.positions)}", where="ids", remedy="cut them")
            states = states + self.positions[: ids.shape[1]]
        for block in self.blocks:
            states = block(states, mask)
        weights = mask.to(states.dtype)[..., None]
        mean = (self.norm(states) * weights).sum(1) / weights.sum(1).clamp_min(1)
        return mean + self.mlp(mean)


class MiniCLIP(nn.Module):
    """An image tower and a text tower, each with a linear projection to unit vectors [B, dim].

    Args:
        image_tower: images -> [B, image_dim].
        text_tower: token ids -> [B, text_dim].
        image_dim: width of the image tower's output.
        text_dim: width of the text tower's output.
        dim: of the common space.
        temperature: at the start; the logits are cosines times ``exp(logit_scale)``, 1 / temperature at first.
    """

    def __init__(
        self,
        image_tower: nn.Module,
        text_tower: nn.Module,
        image_dim: int,
        text_dim: int,
        dim: int = 32,
        temperature: float = 0.07,
    ):
        super().__init__()
        self.image_tower = image_tower
        self.text_tower = text_tower
        self.image_projection = nn.Linear(image_dim, dim, bias=False)
        self.text_projection = nn.Linear(text_dim, dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(-math.log(temperature)))

    def encode_image(self, images: Tensor) -> Tensor:
        """Unit vectors [B, dim]."""
        return F.normalize(self.image_projection(self.image_tower(images)), dim=-1)

    def encode_text(self, ids: Tensor) -> Tensor:
        """Unit vectors [B, dim]."""
        return F.normalize(self.text_projection(self.text_tower(ids)), dim=-1)

    def forward(self, images: Tensor, ids: Tensor) -> dict[str, Tensor]:
        """``image`` and ``text`` [B, dim], and ``scale``, the factor on cosines (at most 100)."""
        scale = self.logit_scale.exp().clamp_max(100)
        return {"image": self.encode_image(images), "text": self.encode_text(ids), "scale": scale}


def contrastive_loss(
    image: Tensor,
    text: Tensor,
    scale: Tensor | float,
    same: Tensor | None = None,
) -> Tensor:
    """Mean of the two directions' cross-entropy, pair i with i (Radford et al., 2021, figure 3).

    Args:
        image: unit vectors [B, D].
        text: unit vectors [B, D].
        scale: factor on the cosines.
        same: [B, B], True where text j is right for image i too (an equal caption): no negative. None: all others are.
    """
    logits = image @ text.T * scale
    rows = columns = logits
    if same is not None:
        other = same.bool() & ~torch.eye(len(image), dtype=torch.bool, device=image.device)
        rows = columns = logits.masked_fill(other, float("-inf"))
    wanted = torch.arange(len(image), device=image.device)
    return (F.cross_entropy(rows, wanted) + F.cross_entropy(columns.T, wanted)) / 2


def class_vectors(vectors: Tensor) -> Tensor:
    """One unit vector a class [C, D] of its texts' unit vectors [C, templates, D]: the mean, normalised."""
    return F.normalize(F.normalize(vectors, dim=-1).mean(1), dim=-1)


class CosineHead(nn.Module):
    """Logits ``scale cos(x, w_c)`` [B, C] of features [B, D] against fixed class vectors [C, D], which are no parameters.

    Args:
        vectors: one row a class; they are normalised.
        scale: factor on the cosines.
        background: a further, learned first class (ViLD, Gu et al., 2022), which starts at N(0, 0.01^2).
    """

    def __init__(self, vectors: Tensor, scale: float = 100.0, background: bool = False):
        super().__init__()
        self.scale = scale
        self.vectors: Tensor
        self.register_buffer("vectors", F.normalize(vectors.detach(), dim=-1))
        self.background = nn.Parameter(0.01 * torch.randn(1, vectors.shape[1])) if background else None

    def forward(self, features: Tensor) -> Tensor:
        """The logits, the background's first where there is one."""
        rows = self.vectors
        if self.background is not None:
            rows = torch.cat([F.normalize(self.background, dim=-1), rows])
        return self.scale * F.normalize(features, dim=-1) @ rows.T
