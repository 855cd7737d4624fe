"""ViT-Res: a vision transformer of three stages with residual spatial reduction (Liao, Karaman, Sze, 2021, arXiv 2109.00642)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.errors import InputError
from tutelage.networks.layers import DropPath, drop_path_rates, init_weights
from tutelage.systems._backbone import Backbone, Variant

# -- masks -----------------------------------------------------------------------------------------------------------


class BlockMasks(NamedTuple):
    """Of a block: the joined heads [B, 1, heads * head width] and MLP units [B, 1, hidden] that are kept, and whether the
    block itself is, [B, 1, 1]; 1 or 0."""

    heads: Tensor
    units: Tensor
    kept: Tensor


class Masks(NamedTuple):
    """One sub-network a sample: the channels of each stage, [B, 1, C], and the blocks of each stage."""

    widths: list[Tensor]
    blocks: list[list[BlockMasks]]


class MaskedNorm(nn.LayerNorm):
    """Layer norm of [B, N, C]; with ``mask`` [B, 1, C], of the kept channels alone, and the others 0."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The normed tokens."""
        if mask is None:
            return super().forward(x)
        count = mask.sum(-1, keepdim=True)
        centred = (x - (x * mask).sum(-1, keepdim=True) / count) * mask
        variance = centred.square().sum(-1, keepdim=True) / count
        return (centred * (variance + self.eps).rsqrt() * self.weight + self.bias) * mask


# -- parts -----------------------------------------------------------------------------------------------------------


class ViTResStem(nn.Module):
    """A 3x3 convolution of stride 2, two more added to its output, each with batch norm and ReLU, then one of kernel and
    stride patch / 2: [B, inputs, H, W] -> [B, width, H / patch, W / patch]."""

    def __init__(self, in_chans: int, dim: int, patch: int, channels: int = 24):
        super().__init__()

        def conv(inner: int, stride: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(inner, channels, 3, stride, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU())

        self.first, self.more = conv(in_chans, 2), nn.Sequential(conv(channels, 1), conv(channels, 1))
        self.patches = nn.Conv2d(channels, dim, patch // 2, patch // 2)

    def forward(self, images: Tensor) -> Tensor:
        """The map."""
        x = self.first(images)
        return self.patches(x + self.more(x))


class ViTResBlock(nn.Module):
    """Pre-norm attention of ``heads`` heads of ``head`` channels, and an MLP of ``hidden`` units; [B, N, C] -> the same."""

    def __init__(self, dim: int, heads: int, head: int, hidden: int, drop: float):
        super().__init__()
        self.heads, self.drop = heads, DropPath(drop)
        self.norm1, self.norm2 = MaskedNorm(dim, eps=1e-6), MaskedNorm(dim, eps=1e-6)
        self.qkv, self.out = nn.Linear(dim, 3 * heads * head), nn.Linear(heads * head, dim)
        self.enter, self.leave, self.act = nn.Linear(dim, hidden), nn.Linear(hidden, dim), nn.GELU()

    def forward(self, x: Tensor, width: Tensor | None = None, masks: BlockMasks | None = None) -> Tensor:
        """The next tokens; ``dim``: the mask of the stage's channels."""
        q, k, v = self.qkv(self.norm1(x, width)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        joined = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        if masks is None or width is None:
            x = x + self.drop(self.out(joined))
            return x + self.drop(self.leave(self.act(self.enter(self.norm2(x)))))
        cut = width * masks.kept
        x = x + self.drop(self.out(joined * masks.heads) * cut)
        return x + self.drop(self.leave(self.act(self.enter(self.norm2(x, width))) * masks.units) * cut)


class ResidualReduction(nn.Module):
    """Residual spatial reduction of a class token and ``grid`` x ``grid`` patches: half the side, ``out_chans`` channels.

    After a layer norm, patches go through a 3x3 convolution of stride 2 and get new positions, the class token through a
    Linear. To this the raw patches, averaged over 2x2, and the raw class token are added, zero-padded to ``out_chans`` (cut to
    it where it is smaller: ours); ``skip=False`` leaves the residual out (for comparisons).
    """

    def __init__(self, in_chans: int, out_chans: int, grid: int, skip: bool = True):
        super().__init__()
        self.norm, self.token = MaskedNorm(in_chans, eps=1e-6), nn.Linear(in_chans, out_chans)
        self.conv = nn.Conv2d(in_chans, out_chans, 3, 2, 1)
        self.positions = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, (grid // 2) ** 2, out_chans), std=0.02))
        self.grid, self.skip = grid, skip

    def forward(self, x: Tensor, before: Tensor | None = None, after: Tensor | None = None) -> Tensor:
        """[B, 1 + grid^2, inner] -> [B, 1 + (grid / 2)^2, outer]; the masks of the channels before and after."""

        def as_map(tokens: Tensor) -> Tensor:
            return tokens[:, 1:].transpose(1, 2).unflatten(2, (self.grid, self.grid))

        normed = self.norm(x, before)
        patches = self.conv(as_map(normed)).flatten(2).transpose(1, 2) + self.positions
        made = torch.cat([self.token(normed[:, :1]), patches], 1)
        if self.skip:
            raw = torch.cat([x[:, :1], F.avg_pool2d(as_map(x), 2).flatten(2).transpose(1, 2)], 1)
            made = made + F.pad(raw, (0, made.shape[2] - raw.shape[2]))
        return made if after is None else made * after


# -- the network -----------------------------------------------------------------------------------------------------


def hand_designed(depth: int) -> dict[str, Any]:
    """The hand-made design: ``depth`` blocks a stage, heads of 64 channels, MLPs four times the width."""
    return {
        "widths": (192, 384, 768),
        "heads": ((3,) * depth, (6,) * depth, (12,) * depth),
        "units": ((768,) * depth, (1536,) * depth, (3072,) * depth),
        "head": (64, 64, 64),
    }


SEARCHED_HEAD = (32, 48, 64)
"""Channels of a head in each stage of the published spaces, and so of what was found in them."""

VARIANTS = {
    "hand": Variant(hand_designed(4), 42_012_736, 1.7944e9),
    "tiny": Variant(
        {
            "widths": (176, 352, 704),
            "head": SEARCHED_HEAD,
            "heads": ((3, 3, 3, 4, 4), (10, 8, 8, 8, 10, 10), (10, 10, 10, 8, 8)),
            "units": ((704, 576, 640, 576, 704), (1408, 1408, 1280, 1408, 1280, 1024), (2560, 1792, 2816, 2816, 2560)),
        },
        40_793_552,
        1.7826e9,
    ),
    "small": Variant(
        {
            "widths": (220, 440, 880),
            "head": SEARCHED_HEAD,
            "heads": ((5, 5, 7, 5, 5, 5), (10, 10, 10, 10, 12, 12), (16, 12, 16, 12, 14)),
            "units": (
                (880, 880, 800, 720, 720, 720),
                (1760, 1440, 1920, 1600, 1600, 1440),
                (3200, 3200, 2880, 2240, 2560),
            ),
        },
        63_724_108,
        2.8455e9,
    ),
    "medium": Variant(
        {
            "widths": (240, 640, 880),
            "head": SEARCHED_HEAD,
            "heads": ((7, 6, 7, 8, 7, 8, 6), (10, 14, 14, 16, 14, 16, 16), (16, 10, 16, 12, 16, 14)),
            "units": (
                (960, 960, 800, 960, 880, 880, 800),
                (1120, 1760, 1920, 1760, 1440, 1760, 1920),
                (3200, 3840, 3840, 3200, 3520, 3520),
            ),
        },
        96_442_672,
        4.5131e9,
    ),
}


class ViTRes(Backbone):
    """ViT-Res: patches through a small convolutional stem, a class token, three stages of transformer blocks with
    :class:`ResidualReduction` between them, a layer norm and a linear head on the class token.

    ``widths`` a stage, ``heads`` and ``units`` (of the MLP) a block, ``head``: the channels of a head in each stage.
    ``patch_head``: a second linear head on every last patch, for training; :meth:`heads_of` gives both. Positions are
    learned: the network takes images of ``size`` alone, a multiple of four patches. With ``masks`` every sample runs
    through its own sub-network of this one.

    Published: see :data:`VARIANTS`; ``hand``, the default, was designed; the others were searched for.
    """

    VARIANTS = VARIANTS

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        *,
        widths: Sequence[int] = (192, 384, 768),
        heads: Sequence[Sequence[int]] = ((3,) * 4, (6,) * 4, (12,) * 4),
        units: Sequence[Sequence[int]] = ((768,) * 4, (1536,) * 4, (3072,) * 4),
        head: Sequence[int] = (64, 64, 64),
        patch: int = 14,
        size: int = 224,
        skip: bool = True,
        patch_head: bool = False,
        drop_path: float = 0.0,
    ):
        stages, grid = len(widths), size // patch
        if patch % 2 or size % (patch * 2 ** (stages - 1)):
            fits = patch * 2 ** (stages - 1)
            raise InputError(f"{size} pixels in patches of {patch}", where="size", remedy=f"an even patch, a multiple of {fits}")
        if len({stages, len(heads), len(units), len(head)}) != 1 or list(map(len, heads)) != list(map(len, units)):
            raise InputError("widths, heads and units of different lengths", where="heads", remedy="one a stage, one a block")
        super().__init__(num_classes, in_chans, [(f"stages.{i}", patch * 2**i, width) for i, width in enumerate(widths)])
        self.size = size
        self.config: dict[str, Any] = {
            "widths": tuple(widths),
            "heads": tuple(map(tuple, heads)),
            "units": tuple(map(tuple, units)),
            "head": tuple(head),
            "patch": patch,
            "size": size,
            "skip": skip,
            "patch_head": patch_head,
            "drop_path": drop_path,
        }
        self.stem = ViTResStem(in_chans, widths[0], patch)
        self.token = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, widths[0]), std=0.02))
        self.positions = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, grid**2 + 1, widths[0]), std=0.02))
        rates = drop_path_rates(drop_path, [len(stage) for stage in heads])
        self.stages = nn.ModuleList(
            nn.ModuleList(ViTResBlock(widths[i], h, head[i], m, rate) for h, m, rate in zip(heads[i], units[i], rates[i]))
            for i in range(stages)
        )
        self.reductions = nn.ModuleList(ResidualReduction(widths[i], widths[i + 1], grid // 2**i, skip) for i in range(stages - 1))
        self.norm, self.head = MaskedNorm(widths[-1], eps=1e-6), nn.Linear(widths[-1], num_classes)
        self.patch_head = nn.Linear(widths[-1], num_classes) if patch_head else None
        init_weights(self, convolutions=False)

    def check_sides(self, sides: Sequence[int]) -> None:
        """Height and width must be the size that the positions are learned for.

        Raises:
            InputError: with that size.
        """
        if tuple(sides) != (self.size, self.size):
            raise InputError(
                f"images of {sides[0]}x{sides[1]}",
                where="images",
                remedy=f"positions are learned for {self.size}x{self.size}: resize, or build with size={sides[0]}",
            )

    def forward(self, images: Tensor) -> Tensor:
        """[B, in_chans, size, size] -> logits [B, num_classes]."""
        self.check(images)
        return self.head(self.norm(self._run(images)[1])[:, 0])

    def forward_stages(self, images: Tensor) -> list[Tensor]:
        """The patches of all stages as maps, the finest first."""
        return self._run(images)[0]

    def heads_of(self, images: Tensor, masks: Masks | None = None) -> dict[str, Tensor]:
        """``logits`` [B, K] of the class token, and ``patches`` [B, places, K] where there is a patch head."""
        self.check(images)
        tokens = self.norm(self._run(images, masks)[1], None if masks is None else masks.widths[-1])
        found = {"logits": self.head(tokens[:, 0])}
        return found if self.patch_head is None else found | {"patches": self.patch_head(tokens[:, 1:])}

    def _run(self, images: Tensor, masks: Masks | None = None) -> tuple[list[Tensor], Tensor]:
        """The stages' maps, and the last tokens."""
        x = self.stem(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
        if masks is not None:
            x = x * masks.widths[0]
        found = []
        for i, stage in enumerate(self.stages):
            if i:
                x = self.reductions[i - 1](x, *(() if masks is None else masks.widths[i - 1 : i + 1]))
            for j, block in enumerate(stage):  # type: ignore[arg-type]
                x = block(x) if masks is None else block(x, masks.widths[i], masks.blocks[i][j])
            side = self.size // self.feature_info[i].stride
            found.append(x[:, 1:].transpose(1, 2).unflatten(2, (side, side)))
        return found, x
