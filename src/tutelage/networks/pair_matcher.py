"""A matcher of images and texts: two encoders, layers that fuse them by cross-attention, one score a pair (as METER, Dou et
al., 2022)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.errors import InputError
from tutelage.networks.attention import TransformerBlock
from tutelage.networks.layer_copy import copy_layers
from tutelage.networks.layers import init_weights


class TokenEmbedding(nn.Module):
    """The smallest encoder of texts: a vector for each token and one for each place, [N, L] -> [N, L, dim]."""

    def __init__(self, vocab_size: int, dim: int, max_length: int):
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocab_size, dim), nn.Embedding(max_length, dim)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """The vectors; the mask is not needed."""
        if input_ids.shape[1] > self.places.num_embeddings:
            remedy = f"cut them to {self.places.num_embeddings}"
            raise InputError(f"texts of {input_ids.shape[1]} tokens", where="input_ids", remedy=remedy)
        return self.tokens(input_ids) + self.places.weight[: input_ids.shape[1]]


class PairMatcher(nn.Module):
    """Images [B, …] and C texts each [B, C, L] -> ``logits`` [B, C], one score a pair.

    An image is encoded once, whatever C is. Each modality has ``depth`` layers of self-attention, cross-attention to the other
    modality's tokens, and an MLP; the score is linear in the two first tokens after a layer and a tanh each.

    Args:
        image_encoder: images -> tokens [B, M, image_dim] or a map [B, image_dim, H, W]; a model of ``transformers`` is taken
            as it is (``last_hidden_state``).
        text_encoder: (input_ids, attention_mask), each [N, L] -> tokens [N, L, text_dim], or a model of ``transformers``.
        image_dim: width of the image tokens.
        text_dim: width of the text tokens.
        dim: of the fusion layers.
        depth: fusion layers of each modality.
        num_heads: of each layer.
        frozen_encoders: the encoders are not trained, and stay in eval mode.

    Examples:
        >>> matcher = PairMatcher(nn.Identity(), TokenEmbedding(9, 8, 6), 4, 8, dim=16, depth=1)
        >>> matcher(torch.randn(2, 5, 4), torch.ones(2, 3, 6, dtype=torch.long))["logits"].shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        image_encoder: nn.Module,
        text_encoder: nn.Module,
        image_dim: int,
        text_dim: int,
        dim: int = 64,
        depth: int = 3,
        num_heads: int = 4,
        frozen_encoders: bool = False,
    ):
        super().__init__()
        if depth < 1:
            raise InputError(f"{depth} layers fuse nothing", where="depth", remedy="at least 1")
        self.image_projection, self.text_projection = nn.Linear(image_dim, dim), nn.Linear(text_dim, dim)
        self.modality = nn.Parameter(torch.zeros(2, dim))
        blocks = ([TransformerBlock(dim, num_heads, context_dim=dim) for _ in range(depth)] for _ in range(2))
        self.image_blocks, self.text_blocks = (nn.ModuleList(one) for one in blocks)
        self.image_pool = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.Tanh())
        self.text_pool = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.Tanh())
        self.head = nn.Linear(2 * dim, 1)
        init_weights(self, std=0.02 * (768 / dim) ** 0.5)  # 0.02 is for a width of 768: narrow layers would hardly learn
        self.num_heads, self.frozen_encoders = num_heads, frozen_encoders
        self.image_encoder, self.text_encoder = image_encoder, text_encoder  # after the initialisation: they are trained already
        if frozen_encoders:
            self.image_encoder.requires_grad_(False)
            self.text_encoder.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> PairMatcher:
        """As in any module; frozen encoders stay in eval mode."""
        super().train(mode)
        if self.frozen_encoders:
            self.image_encoder.eval()
            self.text_encoder.eval()
        return self

    def forward(self, images: Tensor, input_ids: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor]:
        """The scores; ``attention_mask`` [B, C, L] marks the real tokens, None: all are.

        Raises:
            InputError: texts that are not [B, C, L], or an encoder of another width.
        """
        if input_ids.ndim != 3 or len(input_ids) != len(images):
            raise InputError(
                f"texts of shape {list(input_ids.shape)} for {len(images)} images",
                where="input_ids",
                remedy="[B, C, L]: C texts for each image",
            )
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        ids, mask = input_ids.flatten(0, 1), mask.flatten(0, 1)
        try:
            text = self.text_projection(_tokens(self.text_encoder(ids, mask))) + self.modality[1]
            image = self.image_projection(_tokens(self.image_encoder(images))) + self.modality[0]
        except RuntimeError as error:
            widths = f"image_dim={self.image_projection.in_features}, text_dim={self.text_projection.in_features}"
            raise InputError(f"an encoder does not fit: {error}", where="encoder", remedy=f"check {widths}") from error
        image = image.repeat_interleave(input_ids.shape[1], 0)
        for image_block, text_block in zip(self.image_blocks, self.text_blocks):
            image, text = image_block(image, None, text, mask), text_block(text, mask, image)
        pooled = torch.cat([self.text_pool(text[:, 0]), self.image_pool(image[:, 0])], 1)
        return {"logits": self.head(pooled).view(input_ids.shape[:2])}


def _tokens(output: Any) -> Tensor:
    """Tokens [B, N, width] of what an encoder returns."""
    tokens = getattr(output, "last_hidden_state", output)
    if not isinstance(tokens, Tensor):
        raise InputError(f"an encoder returned {type(output).__name__}", where="encoder", remedy="return tokens [B, N, width]")
    return tokens.flatten(2).transpose(1, 2) if tokens.ndim == 4 else tokens


def shallower_matcher(
    teacher: PairMatcher,
    depth: int | None = None,
    layers: Sequence[int] | None = None,
    copied: bool = True,
) -> PairMatcher:
    """A student with fewer fusion layers: frozen copies of the encoders, some of the teacher's layers, fresh poolers and head.

    Args:
        teacher: stays as it is.
        depth: of the student; None: half the teacher's, at least 1.
        layers: which teacher layers to copy, from 0; None: spread evenly (of 6 for 3: 0, 2, 5; the published choice is 0, 3, 5).
        copied: False: fusion layers and projections start at random too.

    Raises:
        InputError: layers that the teacher does not have, or too many.
    """
    text, image = copy.deepcopy(teacher.text_encoder), copy.deepcopy(teacher.image_encoder)
    widths = teacher.image_projection.in_features, teacher.text_projection.in_features, teacher.image_projection.out_features
    wanted = depth or (len(layers) if layers is not None else max(1, len(teacher.text_blocks) // 2))
    student = PairMatcher(image, text, *widths, wanted, teacher.num_heads, frozen_encoders=True)
    if copied:
        copy_layers(student.text_blocks, teacher.text_blocks, layers)
        copy_layers(student.image_blocks, teacher.image_blocks, layers)
        student.image_projection.load_state_dict(teacher.image_projection.state_dict())
        student.text_projection.load_state_dict(teacher.text_projection.state_dict())
        student.modality.data.copy_(teacher.modality.data)
    return student
