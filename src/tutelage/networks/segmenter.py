"""A small segmenter: any backbone that gives maps, and a head that joins them and labels every pixel."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.errors import InputError


class PyramidHead(nn.Module):
    """Maps of several scales -> one map at the finest scale: 1x1 convolutions to ``dim``, bilinear upsampling, a sum,
    a 3x3 convolution (the semantic branch of feature pyramids, Kirillov et al., 2019, with one convolution: our choice).

    Args:
        in_chans: channels of each map, the finest first.
        out_chans: channels of the result.
        dim: width in between.
    """

    def __init__(self, in_chans: Sequence[int], out_chans: int, dim: int = 64):
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(channels, dim, 1) for channels in in_chans)
        self.smooth = nn.Sequential(nn.Conv2d(dim, dim, 3, padding=1, bias=False), nn.BatchNorm2d(dim), nn.ReLU())
        self.classify = nn.Conv2d(dim, out_chans, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """[B, out_chans, H', W'], the size of the first map.

        Raises:
            InputError: another number of maps than the head was made for.
        """
        if len(maps) != len(self.lateral):
            raise InputError(f"{len(maps)} maps for a head of {len(self.lateral)}", where="maps")
        size = maps[0].shape[2:]
        total = torch.zeros((), device=maps[0].device, dtype=maps[0].dtype)
        for lateral, scale in zip(self.lateral, maps):
            total = total + F.interpolate(lateral(scale), size, mode="bilinear", align_corners=False)
        return self.classify(self.smooth(total))


class Segmenter(nn.Module):
    """Images [B, C, H, W] -> logits per pixel [B, num_classes, H, W].

    Args:
        backbone: a network whose output is one map [B, C', H', W'] or a sequence of maps, the finest first.
        in_chans: channels of each of its maps.
        num_classes: number of classes; 1 for a binary mask.
        dim: width of the head.
        maps: how the maps are taken from the backbone; None: by calling it.
    """

    def __init__(
        self,
        backbone: nn.Module,
        in_chans: Sequence[int],
        num_classes: int,
        dim: int = 64,
        maps: Callable[[nn.Module, Tensor], Tensor | Sequence[Tensor]] | None = None,
    ):
        super().__init__()
        self.backbone = backbone
        self.head = PyramidHead(in_chans, num_classes, dim)
        self._maps = maps

    def forward(self, images: Tensor) -> Tensor:
        """The logits, upsampled bilinearly to the images' size."""
        found = self.backbone(images) if self._maps is None else self._maps(self.backbone, images)
        logits = self.head([found] if isinstance(found, Tensor) else list(found))
        return F.interpolate(logits, images.shape[2:], mode="bilinear", align_corners=False)
