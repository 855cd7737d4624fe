"""The frame of ConvNeXt that other convolutional backbones fill with their own blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from tutelage.distillation.job import TrainingSettings
from tutelage.distillation.optim import vector_names
from tutelage.errors import InputError
from tutelage.networks.layers import LayerNorm2d, drop_path_rates, init_weights
from tutelage.systems._backbone import Backbone

IMAGENET_1K = TrainingSettings(epochs=300, batch_size=4096, lr=4e-3, warmup_epochs=20, weight_decay=0.05, ema=0.9999)
"""ConvNeXt's published training, which HorNet takes over."""


class ConvNeXtBase(Backbone):
    """Stem, stages of blocks with downsampling between them, mean over positions, layer norm, linear classifier.

    Stem: convolution ``stem`` x ``stem`` of that stride, then a norm over channels (unless ``stem_norm`` is off); before
    each further stage a norm over channels, then a 2x2 convolution of stride 2. All weights start truncated normal
    (``init_std``), biases zero, the classifier's times ``head_init_scale``. Weights are named as in the published checkpoints.

    Args:
        num_classes: of the logits.
        in_chans: of the images.
        depths: blocks a stage.
        dims: channels a stage.
        block: (stage, channels, drop rate) -> a block, [B, C, H, W] -> the same shape.
        drop_path: the last block's rate of stochastic depth; the rates rise linearly from 0.
        stem: patch size of the stem.
        stem_norm: a norm after the stem.
        head_init_scale: factor on the classifier's first weights; published: 0.001 for fine-tuning.
        init_std: deviation of the first weights; small networks learn faster from 0.1 (our choice).

    Raises:
        InputError: depths and dims of different lengths, or none.
    """

    def __init__(
        self,
        num_classes: int,
        in_chans: int,
        depths: Sequence[int],
        dims: Sequence[int],
        block: Callable[[int, int, float], nn.Module],
        *,
        drop_path: float = 0.0,
        stem: int = 4,
        stem_norm: bool = True,
        head_init_scale: float = 1.0,
        init_std: float = 0.02,
    ):
        if not depths or len(depths) != len(dims):
            raise InputError(f"{len(depths)} depths and {len(dims)} dims", where="depths, dims", remedy="one of each a stage")
        super().__init__(num_classes, in_chans, [(f"stages.{i}", stem * 2**i, width) for i, width in enumerate(dims)])
        first = [nn.Conv2d(in_chans, dims[0], stem, stem)] + ([LayerNorm2d(dims[0])] if stem_norm else [])
        self.downsample_layers = nn.ModuleList([nn.Sequential(*first)])
        for inner, outer in zip(dims, dims[1:]):
            self.downsample_layers.append(nn.Sequential(LayerNorm2d(inner), nn.Conv2d(inner, outer, 2, 2)))
        self.stages = nn.ModuleList(
            nn.Sequential(*(block(stage, dims[stage], rate) for rate in rates))
            for stage, rates in enumerate(drop_path_rates(drop_path, depths))
        )
        self.norm = nn.LayerNorm(dims[-1], eps=1e-6)
        self.head = nn.Linear(dims[-1], num_classes)
        init_weights(self, init_std)
        with torch.no_grad():
            self.head.weight.mul_(head_init_scale)

    def no_weight_decay(self) -> set[str]:
        """Norms, biases and layer scales: decay falls on matrices and kernels alone, as published."""
        return vector_names(self)

    def forward_stages(self, images: Tensor) -> list[Tensor]:
        """The stages' maps."""
        maps = []
        for downsample, stage in zip(self.downsample_layers, self.stages):
            images = stage(downsample(images))
            maps.append(images)
        return maps

    def forward_head(self, maps: Tensor) -> Tensor:
        """Logits of the mean over positions."""
        return self.head(self.norm(maps.mean((-2, -1))))
