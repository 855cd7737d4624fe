"""ConvNeXt: a ResNet brought up to date (Liu, Mao, Wu, Feichtenhofer, Darrell, Xie, 2022, arXiv 2201.03545)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.distillation.job import TrainingJob
from tutelage.networks.layers import DropPath
from tutelage.registry import system
from tutelage.systems._backbone import Variant
from tutelage.systems._convnext_base import IMAGENET_1K, ConvNeXtBase


class ConvNeXtBlock(nn.Module):
    """``x + DropPath(gamma * W2 GELU(W1 LN(DW(x))))``: a depthwise convolution, then all else at each position.

    ``layer_scale``: where gamma starts; None: no gamma. The two linear maps work on channels-last memory, which is the
    same sum as 1x1 convolutions and needs no copy where the maps lie that way already.
    """

    def __init__(self, channels: int, rate: float = 0.0, *, kernel: int = 7, layer_scale: float | None = 1e-6):
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.pwconv1, self.pwconv2 = nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, channels)
        self.gamma = nn.Parameter(torch.full((channels,), layer_scale)) if layer_scale is not None else None
        self.drop_path = DropPath(rate)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> the same shape."""
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        y = self.pwconv2(F.gelu(self.pwconv1(y)))
        if self.gamma is not None:
            y = self.gamma * y
        return x + self.drop_path(y.permute(0, 3, 1, 2))


def _size(depths: tuple[int, ...], base: int, parameters: int, gmacs: float, drop_path: float, **config: Any) -> Variant:
    dims = tuple(base * 2**stage for stage in range(len(depths)))
    return Variant({"depths": depths, "dims": dims, "drop_path": drop_path, **config}, parameters, gmacs * 1e9)


ISOTROPIC: dict[str, Any] = {"stem": 16, "stem_norm": False, "layer_scale": None}


@system("convnext", kind="backbone")
class ConvNeXt(ConvNeXtBase):
    """ConvNeXt: depthwise 7x7 convolutions and inverted bottlenecks with one norm and one activation a block.

    Images [B, in_chans, H, W], sides multiples of 32, -> logits [B, num_classes]; four stages of strides 4 to 32. A
    block is ``x + DropPath(gamma * W2 GELU(W1 LN(DW7x7(x))))`` with ``W1``: C -> 4C and gamma, the layer scale, from
    1e-6. Patch stem 4x4, 2x2 downsampling after a norm, exact GELU, norms of eps 1e-6 (section 2 and appendix A).

    Sizes: ``tiny`` to ``xlarge``; ``isotropic-small`` to ``isotropic-large`` (one stage of stride 16, no layer scale,
    appendix); ``mini`` for images of 32x32 (our choice: patch 2, and the layer scale from 0.1, since 1e-6 learns slowly in a
    few hundred steps). Published training beside the settings below: decay on matrices and kernels only, Mixup, CutMix,
    RandAugment, random erasing, label smoothing 0.1.
    """

    TRAINING = {"imagenet-1k": IMAGENET_1K, "imagenet-22k": replace(IMAGENET_1K, epochs=90, warmup_epochs=5)}

    VARIANTS = {
        "tiny": _size((3, 3, 9, 3), 96, 28_589_128, 4.47, 0.1),
        "small": _size((3, 3, 27, 3), 96, 50_223_688, 8.70, 0.4),
        "base": _size((3, 3, 27, 3), 128, 88_591_464, 15.38, 0.5),
        "large": _size((3, 3, 27, 3), 192, 197_767_336, 34.4, 0.5),
        "xlarge": _size((3, 3, 27, 3), 256, 350_196_968, 60.9, 0.5),
        "isotropic-small": _size((18,), 384, 22_308_712, 4.3, 0.1, **ISOTROPIC),
        "isotropic-base": _size((18,), 768, 87_083_752, 16.9, 0.2, **ISOTROPIC),
        "isotropic-large": _size((36,), 1024, 305_905_640, 59.7, 0.5, **ISOTROPIC),
        "mini": Variant({"depths": (1, 1, 2, 1), "dims": (24, 48, 96, 192), "stem": 2, "layer_scale": 0.1}, size=32),
    }
    KEY_PATTERNS = {
        "hf": (
            (r"^convnext\.", ""),
            (r"^embeddings\.patch_embeddings\.", "downsample_layers.0.0."),
            (r"^embeddings\.layernorm\.", "downsample_layers.0.1."),
            (r"^encoder\.stages\.(\d+)\.downsampling_layer\.", r"downsample_layers.\1."),
            (r"^encoder\.stages\.(\d+)\.layers\.", r"stages.\1."),
            (r"\.layernorm\.", ".norm."),
            (r"\.layer_scale_parameter$", ".gamma"),
            (r"^layernorm\.", "norm."),
            (r"^classifier\.", "head."),
        ),
        "timm": (
            (r"^stem\.", "downsample_layers.0."),
            (r"^stages\.(\d+)\.downsample\.", r"downsample_layers.\1."),
            (r"^stages\.(\d+)\.blocks\.", r"stages.\1."),
            (r"\.conv_dw\.", ".dwconv."),
            (r"\.mlp\.fc([12])\.", r".pwconv\1."),
            (r"^head\.norm\.", "norm."),
            (r"^head\.fc\.", "head."),
        ),
    }

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        *,
        depths: Sequence[int] = (3, 3, 9, 3),
        dims: Sequence[int] = (96, 192, 384, 768),
        drop_path: float = 0.0,
        layer_scale: float | None = 1e-6,
        kernel: int = 7,
        stem: int = 4,
        stem_norm: bool = True,
        head_init_scale: float = 1.0,
        init_std: float = 0.02,
    ):
        def block(stage: int, channels: int, rate: float) -> ConvNeXtBlock:
            return ConvNeXtBlock(channels, rate, kernel=kernel, layer_scale=layer_scale)

        starts = {"head_init_scale": head_init_scale, "init_std": init_std}
        options = {"drop_path": drop_path, "stem": stem, "stem_norm": stem_norm, **starts}
        super().__init__(num_classes, in_chans, depths, dims, block, **options)

    @classmethod
    def references(cls, variant: str) -> dict[str, Callable[[int], nn.Module]]:
        """The transformers model of a pyramid, and timm's of the sizes that it knows."""
        if variant.startswith("isotropic"):
            return {}
        options = cls.options(variant)

        def hf(num_classes: int) -> nn.Module:
            from transformers import ConvNextConfig, ConvNextForImageClassification

            config = ConvNextConfig(
                depths=list(options["depths"]), hidden_sizes=list(options["dims"]), num_labels=num_classes,
                patch_size=options.get("stem", 4), layer_norm_eps=1e-6,
            )  # fmt: skip
            return ConvNextForImageClassification(config)

        def timm(num_classes: int) -> nn.Module:
            import timm

            return timm.create_model(f"convnext_{variant}", num_classes=num_classes)

        return {"hf": hf} if variant == "mini" else {"hf": hf, "timm": timm}

    @classmethod
    def tiny_job(cls, seed: int) -> TrainingJob:
        """A training job of a second: two small stages, stochastic depth on."""
        return cls.toy_job(seed, image_size=16, depths=(1, 1), dims=(8, 16), stem=2, layer_scale=0.1, drop_path=0.2)
