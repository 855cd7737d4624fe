"""The attention that several networks share, and the transformer block around it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.errors import InputError
from tutelage.networks.layers import DropPath, LayerScale, Mlp


def attention_mask(mask: Tensor) -> Tensor:
    """A boolean mask in the form [B, heads or 1, queries or 1, keys]; True (or 1): may be attended to.

    [B, M] marks keys, [B, N, M] pairs of query and key, and [B, heads, N, M] is taken as it is.

    Raises:
        InputError: another number of dimensions.
    """
    mask = mask.bool()
    if mask.ndim == 2:
        return mask[:, None, None]
    if mask.ndim == 3:
        return mask[:, None]
    if mask.ndim == 4:
        return mask
    raise InputError(
        f"an attention mask has 2 to 4 dimensions, this has {mask.ndim}",
        where="mask",
        remedy="[B, M] for keys, [B, N, M] for pairs",
    )


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, dropout: float = 0.0) -> Tensor:
    """``softmax(q k^T / sqrt(d)) v`` by head: [B, heads, N, d]. A query whose keys are all masked gets their mean.

    Args:
        q: queries [B, heads, N, d].
        k: keys [B, heads, M, d].
        v: values [B, heads, M, d].
        mask: see :func:`attention_mask`, or None.
        dropout: of the weights; the caller passes 0 outside training.
    """
    bias = None
    if mask is not None:
        allowed = attention_mask(mask)
        lowest = torch.finfo(q.dtype).min  # finite: a row without any key gives no nan
        bias = torch.zeros(allowed.shape, dtype=q.dtype, device=q.device).masked_fill(~allowed, lowest)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)


class SelfAttention(nn.Module):
    """Multi-head self-attention (Vaswani et al., 2017): [B, N, dim] -> [B, N, dim].

    Args:
        dim: of the tokens.
        num_heads: number of heads; must divide ``dim``.
        qkv_bias: biases of queries, keys and values.
        fused: one Linear ``qkv`` in place of ``query``, ``key`` and ``value``.
        tap_weights: compute the probabilities step by step and pass them through the sub-module ``weights``, where
            a tap can read them, [B, heads, N, M]. Off: the fused kernel, which never holds them.
        dropout: of the probabilities, in training.

    Raises:
        InputError: ``num_heads`` does not divide ``dim``.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        qkv_bias: bool = True,
        fused: bool = False,
        tap_weights: bool = False,
        dropout: float = 0.0,
    ):
        super().__init__()
        if dim % num_heads:
            raise InputError(f"{num_heads} heads do not divide a width of {dim}", where="num_heads")
        self.num_heads = num_heads
        self.fused = fused
        self.dropout = dropout
        if fused:
            self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        else:
            self.query = nn.Linear(dim, dim, bias=qkv_bias)
            self.key = nn.Linear(dim, dim, bias=qkv_bias)
            self.value = nn.Linear(dim, dim, bias=qkv_bias)
        self.out = nn.Linear(dim, dim)
        self.weights = nn.Identity() if tap_weights else None

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [B, heads, N, d] of tokens [B, N, dim]."""
        if self.fused:
            q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
            return q, k, v
        return self.heads(self.query(x)), self.heads(self.key(x)), self.heads(self.value(x))

    def heads(self, x: Tensor) -> Tensor:
        """[B, N, dim] -> [B, heads, N, d]."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def mix(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """The weighted values, joined and projected: [B, N, dim]."""
        dropout = self.dropout if self.training else 0.0
        if self.weights is None:
            mixed = attend(q, k, v, mask, dropout)
        else:
            scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
            if mask is not None:
                scores = scores.masked_fill(~attention_mask(mask), torch.finfo(scores.dtype).min)
            weights = self.weights(scores.softmax(-1))
            mixed = (F.dropout(weights, dropout) if dropout else weights) @ v
        return self.out(mixed.transpose(1, 2).flatten(2))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The mixed tokens; ``mask``: see :func:`attention_mask`."""
        return self.mix(*self.project(x), mask)


class CrossAttention(SelfAttention):
    """Attention of tokens [B, N, dim] to ``context`` [B, M, context_dim]; the options are those of
    :class:`SelfAttention`, never fused."""

    def __init__(self, dim: int, num_heads: int, context_dim: int | None = None, dropout: float = 0.0):
        super().__init__(dim, num_heads, dropout=dropout)
        if context_dim is not None and context_dim != dim:
            self.key = nn.Linear(context_dim, dim)
            self.value = nn.Linear(context_dim, dim)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """[B, N, dim]; ``mask`` [B, M] marks the context tokens that may be read."""
        q, k, v = self.query(x), self.key(context), self.value(context)
        return self.mix(self.heads(q), self.heads(k), self.heads(v), mask)


class TransformerBlock(nn.Module):
    """A pre-norm block: ``x + attention(norm1(x))``, then ``x + mlp(norm2(x))``; tokens [B, N, dim].

    Args:
        dim: of the tokens.
        num_heads: of the attention.
        mlp_ratio: hidden width of the MLP over ``dim``.
        drop_path: rate of stochastic depth.
        layer_scale: start value of a layer scale, or None.
        eps: of the norms.
        context_dim: width of a context that a cross-attention between the two reads; None: there is none.
        dropout: of the attention's probabilities and of each branch's output, in training.
        attention: further options of :class:`SelfAttention`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
        eps: float = 1e-5,
        context_dim: int | None = None,
        dropout: float = 0.0,
        **attention: bool,
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.attention = SelfAttention(dim, num_heads, dropout=dropout, **attention)
        self.mlp = Mlp(dim, mlp_ratio)
        self.drop = nn.Dropout(dropout) if dropout else nn.Identity()
        self.drop_path = DropPath(drop_path)
        self.scale1 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.scale2 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        if context_dim is not None:
            self.cross_norm = nn.LayerNorm(dim, eps=eps)
            self.cross_attention = CrossAttention(dim, num_heads, context_dim, dropout)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
    ) -> Tensor:
        """The next tokens; ``mask``: see :func:`attention_mask`; ``context_mask`` [B, M]."""
        x = x + self.drop_path(self.drop(self.scale1(self.attention(self.norm1(x), mask))))
        if context is not None:
            x = x + self.drop_path(self.drop(self.cross_attention(self.cross_norm(x), context, context_mask)))
        return x + self.drop_path(self.drop(self.scale2(self.mlp(self.norm2(x)))))
