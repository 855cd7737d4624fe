"""UniFormer's local and global blocks, for images and video, and the light form's pruning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.networks.layers import DropPath, LayerScale, Mlp


class ConvForms(NamedTuple):
    """The modules of the image form, or of the video form."""

    conv: type[nn.Conv2d] | type[nn.Conv3d]
    norm: type[nn.BatchNorm2d] | type[nn.BatchNorm3d]
    video: bool

    def same(self, channels: int, kernel: int) -> nn.Module:
        """A depthwise convolution, in time too, that keeps the size."""
        return self.conv(channels, channels, kernel, 1, kernel // 2, groups=channels)

    def down(self, in_chans: int, out_chans: int, kernel: int, stride: int, time: int = 1, time_stride: int = 1) -> nn.Module:
        """A convolution that divides height and width by ``stride``; over time of kernel ``time``, in ``time_stride``."""
        padding = (kernel - stride + 1) // 2
        if not self.video:
            return self.conv(in_chans, out_chans, kernel, stride, padding)
        return self.conv(in_chans, out_chans, (time, kernel, kernel), (time_stride, stride, stride), (time // 2, padding, padding))


IMAGE, VIDEO = ConvForms(nn.Conv2d, nn.BatchNorm2d, False), ConvForms(nn.Conv3d, nn.BatchNorm3d, True)


class LocalBlock(nn.Module):
    """Position encoding, then local relations, then an MLP of 1x1 convolutions; [B, C, (T,) H, W] -> the same shape.

    ``x + DW3(x)``; ``x + drop(PW2(DW5(PW1(BN(x)))))``: a learned affinity of relative places in a window of 5;
    ``x + drop(Mlp(BN(x)))``.
    """

    def __init__(self, forms: ConvForms, channels: int, ratio: float, drop: float, scale: float | None):
        super().__init__()
        hidden = int(ratio * channels)
        self.position = forms.same(channels, 3)
        self.norm1, self.norm2 = forms.norm(channels), forms.norm(channels)
        self.mix = nn.Sequential(forms.conv(channels, channels, 1), forms.same(channels, 5), forms.conv(channels, channels, 1))
        self.mlp = nn.Sequential(forms.conv(channels, hidden, 1), nn.GELU(), forms.conv(hidden, channels, 1))
        self.drop = DropPath(drop)
        self.scale1, self.scale2 = (nn.Identity() if scale is None else LayerScale(channels, scale, 1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """The next map."""
        x = x + self.position(x)
        x = x + self.drop(self.scale1(self.mix(self.norm1(x))))
        return x + self.drop(self.scale2(self.mlp(self.norm2(x))))


class UniFormerAttention(nn.Module):
    """Multi-head self-attention ``softmax(q k^T / sqrt(d)) v``, then a Linear; tokens [..., N, C] -> the same shape."""

    def __init__(self, channels: int, head: int):
        super().__init__()
        self.head = head
        self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v, each [..., heads, N, head]."""
        q, k, v = self.qkv(x).unflatten(-1, (3, -1, self.head)).movedim(-3, 0).transpose(-2, -3).unbind(0)
        return q, k, v

    def join(self, x: Tensor) -> Tensor:
        """Heads [..., heads, N, head] to tokens."""
        return self.out(x.transpose(-2, -3).flatten(-2))

    def weighed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The mixed tokens, and the weights [..., heads, N, N], whose rows sum to 1."""
        q, k, v = self.split(x)
        weights = (q @ k.transpose(-1, -2) * self.head**-0.5).softmax(-1)
        return self.join(weights @ v), weights

    def forward(self, x: Tensor) -> Tensor:
        """The mixed tokens, without holding the weights."""
        return self.join(F.scaled_dot_product_attention(*self.split(x)))


class GlobalBlock(nn.Module):
    """Position encoding, then attention over all places (and times), then an MLP; [B, C, (T,) H, W] -> the same shape.

    ``x + DW3(x)``; ``x + drop(A(LN(x)))``; ``x + drop(Mlp(LN(x)))``. ``split`` (video): first over the times of each
    place, ``t = x + A_time(LN(x))``, then over the places of each frame, ``x + A(LN(t))``: the residual is x, not t.
    A_time starts with a projection of 0 (our choice). The published start, q, k, v at 0 and the projection at 1, cannot learn:
    all channels of A_time are then one number, which the LN behind it takes away, and its gradient with it.
    """

    def __init__(
        self, forms: ConvForms, channels: int, head: int, ratio: float, drop: float, scale: float | None, split: bool = False
    ):
        super().__init__()
        self.position = forms.same(channels, 3)
        self.norm1, self.norm2 = nn.LayerNorm(channels, eps=1e-6), nn.LayerNorm(channels, eps=1e-6)
        self.attention, self.mlp, self.drop = UniFormerAttention(channels, head), Mlp(channels, ratio), DropPath(drop)
        self.scale1, self.scale2 = (nn.Identity() if scale is None else LayerScale(channels, scale) for _ in range(2))
        self.split = split
        if split:
            self.time_norm, self.time = nn.LayerNorm(channels, eps=1e-6), UniFormerAttention(channels, head)

    def forward(self, x: Tensor) -> Tensor:
        """The next map."""
        x = x + self.position(x)
        shape = x.shape[2:]
        if not self.split:
            tokens = x.flatten(2).transpose(1, 2)
            tokens = tokens + self.drop(self.scale1(self.attention(self.norm1(tokens))))
        else:
            tokens = x.flatten(3).movedim(1, -1)  # [B, T, H W, C]
            over_time = self.time(self.time_norm(tokens).transpose(1, 2)).transpose(1, 2)
            mixed = self.attention(self.norm1(tokens + self.drop(over_time)))
            tokens = (tokens + self.drop(self.scale1(mixed))).flatten(1, 2)
        tokens = tokens + self.drop(self.scale2(self.mlp(self.norm2(tokens))))
        return tokens.transpose(1, 2).unflatten(2, shape)

    def weighed(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [B, N, C] after attention and MLP, and the attention's weights, mean over heads: [B, N, N]."""
        mixed, weights = self.attention.weighed(self.norm1(tokens))
        tokens = tokens + self.drop(self.scale1(mixed))
        return tokens + self.drop(self.scale2(self.mlp(self.norm2(tokens)))), weights.mean(1)


# -- the light form's pruning ----------------------------------------------------------------------------------------


class BlockState(NamedTuple):
    """What the light form hands from block to block: the map [B, C, H, W], the class token [B, 1, C], and the scores of
    the patches [B, H W], None before the first block of stage 3."""

    maps: Tensor
    token: Tensor
    scores: Tensor | None


def pruned(block: GlobalBlock, state: BlockState, keep: float) -> BlockState:
    """A global block on the class token, the patches of highest score, and one merged from the others.

    ``floor(keep N)`` patches are kept; merged is the mean of the others, weighed by their scores. What attention and MLP
    add to it is added to each of the others. Afterwards ``s = 0.5 s + 0.5 a`` for the kept ones, a: the class token's
    attention, mean over heads. Without scores nothing is pruned and s = a.
    """
    x = state.maps + block.position(state.maps)
    patches, shape, scores = x.flatten(2).transpose(1, 2), x.shape[2:], state.scores
    count = patches.shape[1]
    kept = count if scores is None else int(keep * count)
    if kept == count:
        tokens, weights = block.weighed(torch.cat([state.token, patches], 1))
        seen = weights[:, 0, 1:]
        after, patches = seen if scores is None else 0.5 * scores + 0.5 * seen, tokens[:, 1:]
        return BlockState(patches.transpose(1, 2).unflatten(2, shape), tokens[:, :1], after)
    assert scores is not None
    order = scores.argsort(dim=1, descending=True, stable=True)
    first, rest = order[:, :kept], order[:, kept:]

    def taken(rows: Tensor) -> Tensor:
        return patches.gather(1, rows[..., None].expand(-1, -1, patches.shape[2]))

    chosen, others = taken(first), taken(rest)
    share = scores.gather(1, rest)
    merged = (share[..., None] * others).sum(1, keepdim=True) / share.sum(1)[:, None, None]
    tokens, weights = block.weighed(torch.cat([state.token, chosen, merged], 1))
    others = others + (tokens[:, -1:] - merged)
    back = order.argsort(dim=1)[..., None].expand(-1, -1, patches.shape[2])
    patches = torch.cat([tokens[:, 1:-1], others], 1).gather(1, back)
    after = scores.scatter(1, first, 0.5 * scores.gather(1, first) + 0.5 * weights[:, 0, 1:-1])
    return BlockState(patches.transpose(1, 2).unflatten(2, shape), tokens[:, :1], after)


def pooled_scores(scores: Tensor, shape: Sequence[int]) -> Tensor:
    """Scores [B, H W] of a map averaged over 2x2 places, [B, H W / 4], and rescaled to their old sum."""
    small = F.avg_pool2d(scores.unflatten(1, tuple(shape))[:, None], 2).flatten(1)
    return small * (scores.sum(1, keepdim=True) / small.sum(1, keepdim=True))
