"""TinyViT's networks (Wu et al., 2022, section 3.2): convolutions at high resolution, attention in windows after."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.distillation.job import TrainingJob
from tutelage.distillation.optim import vector_names
from tutelage.errors import InputError
from tutelage.networks.layers import DropPath, drop_path_rates, init_weights
from tutelage.systems._backbone import Backbone, Variant


class ConvNorm(nn.Sequential):
    """Convolution without bias, then batch norm, whose gain starts at ``gain``; [B, C, H, W]."""

    def __init__(self, in_chans: int, out_chans: int, kernel: int = 1, stride: int = 1, groups: int = 1, gain: float = 1.0):
        super().__init__()
        self.conv = nn.Conv2d(in_chans, out_chans, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(out_chans)
        nn.init.constant_(self.bn.weight, gain)


class TinyViTStem(nn.Module):
    """Two 3x3 convolutions of stride 2, GELU between: [B, inputs, H, W] -> [B, width, H/4, W/4]."""

    def __init__(self, in_chans: int, dim: int):
        super().__init__()
        self.conv1, self.conv2 = ConvNorm(in_chans, dim // 2, 3, 2), ConvNorm(dim // 2, dim, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        """The map."""
        return self.conv2(F.gelu(self.conv1(x)))


class MBConv(nn.Module):
    """Inverted bottleneck: 1x1, depthwise 3x3, 1x1 (its norm's gain starts at 0), beside the input, then GELU."""

    def __init__(self, dim: int, ratio: float, rate: float):
        super().__init__()
        hidden = int(dim * ratio)
        self.conv1, self.conv2 = ConvNorm(dim, hidden), ConvNorm(hidden, hidden, 3, groups=hidden)
        self.conv3, self.drop = ConvNorm(hidden, dim, gain=0.0), DropPath(rate)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> the same shape."""
        return F.gelu(x + self.drop(self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x)))))))


class PatchMerging(nn.Module):
    """Between stages: 1x1, depthwise 3x3 of stride 2, 1x1: [B, C, H, W] -> [B, outputs, ceil(H/2), ceil(W/2)]."""

    def __init__(self, in_chans: int, out_chans: int):
        super().__init__()
        self.conv1, self.conv2 = ConvNorm(in_chans, out_chans), ConvNorm(out_chans, out_chans, 3, 2, groups=out_chans)
        self.conv3 = ConvNorm(out_chans, out_chans)

    def forward(self, x: Tensor) -> Tensor:
        """The smaller map."""
        return self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x)))))


class WindowAttention(nn.Module):
    """Attention within a window, [B, window^2, C] -> the same shape, its LayerNorm inside.

    A learned bias a head and absolute offset (|dy|, |dx|), ``attention_biases`` [heads, window^2], is added to the
    scores; query, key and value of a head lie side by side in ``qkv``.
    """

    index: Tensor

    def __init__(self, dim: int, heads: int, window: int):
        super().__init__()
        self.heads = heads
        self.norm, self.qkv, self.proj = nn.LayerNorm(dim), nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.attention_biases = nn.Parameter(torch.zeros(heads, window * window))
        rows, columns = (part.flatten() for part in torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij"))
        offsets = (rows[:, None] - rows).abs() * window + (columns[:, None] - columns).abs()
        self.register_buffer("index", offsets, persistent=False)

    def no_weight_decay(self) -> set[str]:
        """The table of biases."""
        return {"attention_biases"}

    def forward(self, x: Tensor) -> Tensor:
        """The mixed tokens."""
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (self.heads, 3, -1)).permute(3, 0, 2, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, self.attention_biases[:, self.index][None])
        return self.proj(mixed.transpose(1, 2).flatten(2))


class NormMLP(nn.Module):
    """LayerNorm, Linear, GELU, Linear on the last axis."""

    def __init__(self, dim: int, ratio: float):
        super().__init__()
        hidden = int(dim * ratio)
        self.norm, self.fc1, self.fc2 = nn.LayerNorm(dim), nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] -> the same shape."""
        return self.fc2(F.gelu(self.fc1(self.norm(x))))


class TinyViTBlock(nn.Module):
    """Attention in windows, a depthwise 3x3 with batch norm, an MLP; tokens [B, H, W, C] -> the same shape.

    Maps are padded with zeros below and right to whole windows, before the norm; padding is not masked.
    """

    def __init__(self, dim: int, heads: int, window: int, ratio: float, rate: float):
        super().__init__()
        self.window, self.drop = window, DropPath(rate)
        self.attn, self.mlp = WindowAttention(dim, heads, window), NormMLP(dim, ratio)
        self.local_conv = ConvNorm(dim, dim, 3, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        """The mixed tokens."""
        x = x + self.drop(self._attended(x))
        x = self.local_conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return x + self.drop(self.mlp(x))

    def _attended(self, x: Tensor) -> Tensor:
        _, height, width, channels = x.shape
        side = self.window
        if (height, width) == (side, side):
            return self.attn(x.flatten(1, 2)).view(x.shape)
        down, right = -height % side, -width % side
        padded = F.pad(x, (0, 0, 0, right, 0, down))
        rows, columns = (height + down) // side, (width + right) // side
        windows = padded.view(-1, rows, side, columns, side, channels).transpose(2, 3).reshape(-1, side * side, channels)
        mixed = self.attn(windows).view(-1, rows, columns, side, side, channels).transpose(2, 3)
        return mixed.reshape(padded.shape)[:, :height, :width]


class ConvStage(nn.Module):
    """The first stage: MBConv blocks."""

    def __init__(self, dim: int, ratio: float, rates: Sequence[float]):
        super().__init__()
        self.blocks = nn.Sequential(*(MBConv(dim, ratio, rate) for rate in rates))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> the same shape."""
        return self.blocks(x)


class TransformerStage(nn.Module):
    """A later stage: a smaller map, then blocks of attention; [B, inputs, H, W] -> [B, width, H/2, W/2]."""

    def __init__(self, in_chans: int, dim: int, heads: int, window: int, ratio: float, rates: Sequence[float]):
        super().__init__()
        self.downsample = PatchMerging(in_chans, dim)
        self.blocks = nn.Sequential(*(TinyViTBlock(dim, heads, window, ratio, rate) for rate in rates))

    def forward(self, x: Tensor) -> Tensor:
        """The stage's map."""
        return self.blocks(self.downsample(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class TinyViTHead(nn.Module):
    """Mean over positions, LayerNorm, Linear."""

    def __init__(self, dim: int, classes: int):
        super().__init__()
        self.norm, self.fc = nn.LayerNorm(dim), nn.Linear(dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> logits [B, classes]."""
        return self.fc(self.norm(x.mean((2, 3))))


_5M: dict[str, Any] = {"dims": (64, 128, 160, 320)}
_11M: dict[str, Any] = {"dims": (64, 128, 256, 448), "drop_path": 0.1}
_21M: dict[str, Any] = {"dims": (96, 192, 384, 576), "drop_path": 0.2}


class TinyViTNetwork(Backbone):
    """The network: stem, a stage of MBConv, three stages of attention in windows; strides 4, 8, 16, 32.

    ``dims``, ``depths``: of the four stages; ``windows``: of the last three; heads are ``head_width`` wide. Padding lets
    it take images of any size; then a map's sides are rounded up. Sub-modules and parameters are named as in timm, whose
    weights load as they are. ``drop_path`` rises linearly to its value over all blocks; published: 0, 0.1, 0.2 from
    scratch, 0, 0, 0.1 in pretraining. ``frozen_norm``: batch norms stay in eval mode when the network is trained, as in the
    paper's fine-tuning: their statistics stay, their gains and shifts learn.

    Raises:
        InputError: four stages are not what is given, or heads that do not divide a width.
    """

    KEY_PATTERNS: ClassVar[Mapping[str, Sequence[tuple[str, str]]]] = {"timm": ()}
    VARIANTS: ClassVar[Mapping[str, Variant]] = {
        "5m": Variant(_5M, 5_392_764, 1.26e9),
        "11m": Variant(_11M, 10_996_972, 2.02e9),
        "21m": Variant(_21M, 21_198_568, 4.25e9),
        "21m-384": Variant(_21M | {"windows": (12, 24, 12)}, size=384),
        "21m-512": Variant(_21M | {"windows": (16, 32, 16)}, size=512),
    }

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        dims: Sequence[int] = (64, 128, 160, 320),
        depths: Sequence[int] = (2, 2, 6, 2),
        windows: Sequence[int] = (7, 14, 7),
        mbconv_ratio: float = 4.0,
        mlp_ratio: float = 4.0,
        head_width: int = 32,
        drop_path: float = 0.0,
        frozen_norm: bool = False,
    ):
        if len(dims) != 4 or len(depths) != 4 or len(windows) != 3 or min(*dims, *depths, *windows) < 1:
            raise InputError(f"{dims}, {depths}, {windows}", where="dims, depths, windows", remedy="give 4, 4 and 3, all positive")
        if dims[0] % 2 or any(dim % head_width for dim in dims[1:]):
            raise InputError(f"widths {tuple(dims)}", where="dims", remedy=f"an even first, then multiples of {head_width}")
        super().__init__(num_classes, in_chans, [(f"stages.{i}", 4 * 2**i, dim) for i, dim in enumerate(dims)])
        first, *others = drop_path_rates(drop_path, depths)
        self.frozen_norm = frozen_norm
        self.patch_embed = TinyViTStem(in_chans, dims[0])
        later = (
            TransformerStage(before, dim, dim // head_width, window, mlp_ratio, rates)
            for before, dim, window, rates in zip(dims, dims[1:], windows, others)
        )
        self.stages = nn.Sequential(ConvStage(dims[0], mbconv_ratio, first), *later)
        self.head = TinyViTHead(dims[-1], num_classes)
        init_weights(self, convolutions=False)

    def train(self, mode: bool = True) -> Self:
        """As of every module; with ``frozen_norm`` batch norms stay in eval mode."""
        super().train(mode)
        for module in self.modules() if self.frozen_norm else ():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def no_weight_decay(self) -> set[str]:
        """Norms and biases; and, by themselves, the attention's tables."""
        return vector_names(self)

    def forward_stages(self, images: Tensor) -> list[Tensor]:
        """See :class:`Backbone`."""
        x, found = self.patch_embed(images), []
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        return found

    def forward_head(self, maps: Tensor) -> Tensor:
        """See :class:`Backbone`."""
        return self.head(maps)

    @classmethod
    def references(cls, variant: str) -> dict[str, Callable[[int], nn.Module]]:
        """timm's network of the same size."""
        name, _, side = variant.partition("-")

        def timm(num_classes: int) -> nn.Module:
            import timm

            return timm.create_model(f"tiny_vit_{name}_{side or 224}", num_classes=num_classes)

        return {"timm": timm}

    def check_sides(self, sides: Sequence[int]) -> None:
        """See :class:`Backbone`: any size fits, windows are padded."""
        if min(sides) < 1:
            raise InputError("an image without pixels", where="images", remedy="give images of 1x1 or more")

    @classmethod
    def tiny_job(cls, seed: int) -> TrainingJob:
        """See :class:`Backbone`."""
        return cls.toy_job(seed, dims=(8, 8, 16, 16), depths=(1, 1, 1, 1), windows=(4, 2, 1), head_width=8)
