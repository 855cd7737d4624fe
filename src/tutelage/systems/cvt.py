"""CvT: convolutions in a vision transformer (Wu, Xiao, Codella, Liu, Dai, Yuan, Zhang, 2021, arXiv 2103.15808)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.optim import vector_names
from tutelage.errors import InputError
from tutelage.networks.layers import DropPath, PatchEmbed, init_weights
from tutelage.registry import system
from tutelage.systems._backbone import Backbone, Variant

Size = tuple[int, int]


def quick_gelu(x: Tensor) -> Tensor:
    """``x sigmoid(1.702 x)``."""
    return x * torch.sigmoid(1.702 * x)


def tokens_of(maps: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, H W, C], row by row."""
    return maps.flatten(2).transpose(1, 2)


def maps_of(tokens: Tensor, size: Size) -> Tensor:
    """[B, H W, C] -> [B, C, H, W], a view that lies channels-last."""
    return tokens.transpose(1, 2).reshape(tokens.shape[0], -1, *size)


class ConvProjection(nn.Module):
    """Depthwise 3x3 convolution without bias, then batch norm: [B, C, H, W] -> tokens of ceil(H / stride) ceil(W / stride)."""

    def __init__(self, dim: int, stride: int):
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, stride, 1, groups=dim, bias=False)
        self.bn = nn.BatchNorm2d(dim)

    def forward(self, maps: Tensor) -> Tensor:
        """Tokens [B, N, C]."""
        return tokens_of(self.bn(self.conv(maps)))


class CvTAttention(nn.Module):
    """``softmax(q k^T D^-0.5) v`` over heads, D the full width (not the head's), then a Linear (section 3.2).

    Queries, keys and values come each from a :class:`ConvProjection` of the tokens' map, keys and values with stride
    ``kv_stride``, then a Linear; a class token skips the convolutions. ``convolutional`` off: from Linears alone.
    """

    def __init__(self, dim: int, heads: int, kv_stride: int = 2, convolutional: bool = True):
        super().__init__()
        self.heads, self.scale = heads, dim**-0.5
        if convolutional:
            self.conv_proj_q = ConvProjection(dim, 1)
            self.conv_proj_k, self.conv_proj_v = (ConvProjection(dim, kv_stride) for _ in range(2))
        self.convolutional = convolutional
        self.proj_q, self.proj_k, self.proj_v, self.proj = (nn.Linear(dim, dim) for _ in range(4))

    def project(self, x: Tensor, size: Size) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [B, N, D] before their Linears, the class token, where there is one, first in each."""
        if not self.convolutional:
            return x, x, x
        classes = x.shape[1] - size[0] * size[1]
        maps = maps_of(x[:, classes:], size)
        q, k, v = self.conv_proj_q(maps), self.conv_proj_k(maps), self.conv_proj_v(maps)
        if not classes:
            return q, k, v
        token = x[:, :classes]
        return torch.cat([token, q], 1), torch.cat([token, k], 1), torch.cat([token, v], 1)

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """Tokens [B, N, D], mixed; ``size``: of their map."""
        q, k, v = self.project(x, size)
        parts = (self.proj_q(q), self.proj_k(k), self.proj_v(v))
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        mixed = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Linear to four times the width, GELU (``quick``: its cheap form, as published), Linear back."""

    def __init__(self, dim: int, quick: bool):
        super().__init__()
        self.fc1, self.fc2, self.quick = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim), quick

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> the same shape."""
        x = self.fc1(x)
        return self.fc2(quick_gelu(x) if self.quick else F.gelu(x))


class CvTBlock(nn.Module):
    """``x + DropPath(attention(LN(x)))``, then ``x + DropPath(Mlp(LN(x)))``."""

    def __init__(self, dim: int, heads: int, rate: float, kv_stride: int, quick: bool, convolutional: bool):
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(dim), CvTAttention(dim, heads, kv_stride, convolutional)
        self.norm2, self.mlp = nn.LayerNorm(dim), Mlp(dim, quick)
        self.drop_path = DropPath(rate)

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """Tokens [B, N, D] of a map of ``size``, or with a class token before them."""
        x = x + self.drop_path(self.attn(self.norm1(x), size))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class CvTStage(nn.Module):
    """Patch embedding, then blocks; in the last stage a class token goes before the tokens."""

    def __init__(self, embedding: PatchEmbed, blocks: Sequence[CvTBlock], dim: int, classed: bool):
        super().__init__()
        self.patch_embed, self.blocks = embedding, nn.ModuleList(blocks)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim)) if classed else None
        if self.cls_token is not None:
            nn.init.trunc_normal_(self.cls_token, std=0.02)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The stage's map and, where it has one, the class token [B, D]."""
        tokens, size = self.patch_embed(x), self.patch_embed.map_size(x.shape[2:])
        if self.cls_token is not None:
            tokens = torch.cat([self.cls_token.expand(tokens.shape[0], -1, -1), tokens], 1)
        for block in self.blocks:
            tokens = block(tokens, size)
        if self.cls_token is None:
            return maps_of(tokens, size), None
        return maps_of(tokens[:, 1:], size), tokens[:, 0]


def _size(depths: tuple[int, int, int], parameters: int, gmacs: float, image_size: int = 224, wide: bool = False) -> Variant:
    config = {"dims": (192, 768, 1024), "heads": (3, 12, 16), "drop_path": 0.3} if wide else {"drop_path": 0.1}
    return Variant({"depths": depths, **config}, parameters, gmacs * 1e9, image_size)


IMAGENET_1K = TrainingSettings(epochs=300, batch_size=256, lr=2.5e-4, warmup_epochs=5, weight_decay=0.05)


@system("cvt", kind="backbone")
class CvT(Backbone):
    """CvT: a transformer in three stages whose patches and attention projections are convolutions, without positions.

    Images [B, in_chans, H, W], sides multiples of 16, -> logits [B, num_classes] from the class token, which exists in
    the last stage alone; maps of strides 4, 8, 16. Overlapping patches of 7x7, 3x3, 3x3; queries, keys and values from
    depthwise 3x3 convolutions, keys and values at half the side: about a quarter as many as there are queries. No
    parameter depends on the size of the images. Scores are scaled by the full width, the GELU is the cheap
    ``x sigmoid(1.702 x)``, stochastic depth acts in the last stage alone and rises within it: as in the authors' code.

    Sizes: ``13``, ``21``, ``w24`` (for 384x384); ``mini`` for images of 32x32 (our choice: patch 3x3 of stride 2). Published
    training beside the settings below: no decay on norms and biases, Mixup, CutMix, RandAugment, erasing, label smoothing 0.1.

    Args:
        num_classes: of the logits.
        in_chans: of the images.
        depths, dims, heads: of each stage.
        kernels, strides, paddings: of each stage's patch embedding.
        drop_path: rate of the last block.
        kv_stride: of the convolutions of keys and values.
        quick: the cheap GELU; off: the exact one.
        convolutional: off: attention projections are Linears alone, and a stage no longer sees where its tokens are.

    Raises:
        InputError: a width that its heads do not divide, or options of different lengths.
    """

    TRAINING = {"13": IMAGENET_1K, "21": replace(IMAGENET_1K, weight_decay=0.1)}
    VARIANTS = {
        "13": _size((1, 2, 10), 19_997_480, 4.57),
        "21": _size((1, 4, 16), 31_622_696, 7.18),
        "w24": _size((2, 2, 20), 277_196_392, 194.2, 384, wide=True),
        "mini": Variant(
            {"depths": (1, 1, 2), "dims": (32, 64, 128), "heads": (1, 2, 4),
             "kernels": (3, 3, 3), "strides": (2, 2, 2), "paddings": (1, 1, 1)}, size=32,
        ),
    }  # fmt: skip
    KEY_PATTERNS = {
        "hf": (
            (r"^cvt\.encoder\.stages\.(\d+)\.", r"stage\1."),
            (r"\.embedding\.convolution_embeddings\.projection\.", ".patch_embed.proj."),
            (r"\.embedding\.convolution_embeddings\.normalization\.", ".patch_embed.norm."),
            (r"\.layers\.(\d+)\.", r".blocks.\1."),
            (r"\.attention\.attention\.convolution_projection_(query|key|value)\.convolution_projection\.",
             r".attn.conv_proj_\1."),
            (r"\.attention\.attention\.projection_", ".attn.proj_"),
            (r"\.attention\.output\.dense\.", ".attn.proj."),
            (r"proj_(q|k|v)(?:uery|ey|alue)\.", r"proj_\1."),
            (r"(conv_proj_.\.)convolution\.", r"\1conv."),
            (r"(conv_proj_.\.)normalization\.", r"\1bn."),
            (r"\.intermediate\.dense\.", ".mlp.fc1."),
            (r"\.output\.dense\.", ".mlp.fc2."),
            (r"\.layernorm_before\.", ".norm1."),
            (r"\.layernorm_after\.", ".norm2."),
            (r"^layernorm\.", "norm."),
            (r"^classifier\.", "head."),
        )
    }  # fmt: skip

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        *,
        depths: Sequence[int] = (1, 2, 10),
        dims: Sequence[int] = (64, 192, 384),
        heads: Sequence[int] = (1, 3, 6),
        kernels: Sequence[int] = (7, 3, 3),
        strides: Sequence[int] = (4, 2, 2),
        paddings: Sequence[int] = (2, 1, 1),
        drop_path: float = 0.0,
        kv_stride: int = 2,
        quick: bool = True,
        convolutional: bool = True,
    ):
        parts = {"dims": dims, "heads": heads, "kernels": kernels, "strides": strides, "paddings": paddings}
        for name, values in parts.items():
            if len(values) != len(depths):
                raise InputError(f"{len(values)} {name} and {len(depths)} depths", where=name, remedy="one of each a stage")
        for width, count in zip(dims, heads):
            if width % count:
                raise InputError(f"{count} heads do not divide {width}", where="heads", remedy="published: 64 channels a head")
        info, stride = [], 1
        for number, width in enumerate(dims):
            stride *= strides[number]
            info.append((f"stage{number}", stride, width))
        super().__init__(num_classes, in_chans, info)
        last = len(depths) - 1
        for number, depth in enumerate(depths):
            inputs = dims[number - 1] if number else in_chans
            embedding = PatchEmbed(inputs, dims[number], kernels[number], strides[number], paddings[number], norm=True)
            rates = [drop_path * i / max(1, depth - 1) if number == last else 0.0 for i in range(depth)]
            blocks = [CvTBlock(dims[number], heads[number], rate, kv_stride, quick, convolutional) for rate in rates]
            self.add_module(f"stage{number}", CvTStage(embedding, blocks, dims[number], number == last))
        self.norm, self.head = nn.LayerNorm(dims[-1]), nn.Linear(dims[-1], num_classes)
        init_weights(self, convolutions=False)

    def no_weight_decay(self) -> set[str]:
        """Norms and biases, as published."""
        return vector_names(self)

    def run(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """The stages' maps and the class token [B, D]."""
        maps, token = [], None
        for stage in self.feature_info:
            images, token = self.get_submodule(stage.name)(images)
            maps.append(images)
        assert token is not None
        return maps, token

    def forward_stages(self, images: Tensor) -> list[Tensor]:
        """The stages' maps."""
        return self.run(images)[0]

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, num_classes] of the class token."""
        self.check(images)
        return self.head(self.norm(self.run(images)[1]))

    @classmethod
    def references(cls, variant: str) -> dict[str, Callable[[int], nn.Module]]:
        """The transformers model, whose GELU is the exact one."""
        options = {"dims": (64, 192, 384), "heads": (1, 3, 6), "kernels": (7, 3, 3), "strides": (4, 2, 2), "paddings": (2, 1, 1)}
        options |= cls.options(variant)

        def hf(num_classes: int) -> nn.Module:
            from transformers import CvtConfig, CvtForImageClassification

            config = CvtConfig(
                depth=list(options["depths"]), embed_dim=list(options["dims"]), num_heads=list(options["heads"]),
                patch_sizes=list(options["kernels"]), patch_stride=list(options["strides"]),
                patch_padding=list(options["paddings"]), num_labels=num_classes,
            )  # fmt: skip
            return CvtForImageClassification(config)

        return {} if variant == "mini" else {"hf": hf}  # its stochastic depth wants 3 blocks in the last stage

    @classmethod
    def tiny_job(cls, seed: int) -> TrainingJob:
        """A training job of a second: two small stages, stochastic depth on."""
        two = {"kernels": (3, 3), "strides": (2, 2), "paddings": (1, 1)}
        return cls.toy_job(seed, image_size=16, depths=(1, 2), dims=(8, 16), heads=(1, 2), drop_path=0.1, **two)
