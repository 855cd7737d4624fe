"""A small U-Net (Ronneberger et al., 2015) for masks, heat maps and, with a condition, for diffusion and flows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.errors import InputError
from tutelage.networks.attention import TransformerBlock


def normalization(kind: str, channels: int) -> nn.Module:
    """A norm of maps by name: ``batch``, ``group`` (of 8 channels, or all where 8 does not divide), or ``none``.

    Raises:
        InputError: another name.
    """
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    if kind == "group":
        return nn.GroupNorm(channels // 8 if channels % 8 == 0 else 1, channels)
    if kind == "none":
        return nn.Identity()
    raise InputError(f"unknown norm {kind!r}", where="norm", remedy="batch, group or none")


class ResidualConvBlock(nn.Module):
    """``skip(x) + conv(act(norm(conv(act(norm(x))) + W cond)))``: maps [B, in_chans, H, W] -> [B, out_chans, H, W].

    Args:
        in_chans: channels of the input.
        out_chans: channels of the output.
        norm: see :func:`normalization`.
        cond_dim: width of a condition [B, cond_dim] that is added between the convolutions; 0: none.
    """

    def __init__(self, in_chans: int, out_chans: int, norm: str = "batch", cond_dim: int = 0):
        super().__init__()
        self.norm1 = normalization(norm, in_chans)
        self.conv1 = nn.Conv2d(in_chans, out_chans, 3, padding=1)
        self.norm2 = normalization(norm, out_chans)
        self.conv2 = nn.Conv2d(out_chans, out_chans, 3, padding=1)
        self.skip = nn.Identity() if in_chans == out_chans else nn.Conv2d(in_chans, out_chans, 1)
        self.condition = nn.Linear(cond_dim, out_chans) if cond_dim else None

    def forward(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        """The next maps; ``cond`` [B, cond_dim] where the block was made for one."""
        h = self.conv1(F.silu(self.norm1(x)))
        if self.condition is not None and cond is not None:
            h = h + self.condition(cond)[:, :, None, None]
        return self.skip(x) + self.conv2(F.silu(self.norm2(h)))


class UNetEncoder(nn.Module):
    """Maps of every scale, the finest first; each scale is half as large as the one before."""

    def __init__(self, in_chans: int, widths: Sequence[int], norm: str, cond_dim: int):
        super().__init__()
        self.stem = nn.Conv2d(in_chans, widths[0], 3, padding=1)
        before = [widths[0], *widths]
        self.blocks = nn.ModuleList(ResidualConvBlock(before[i], w, norm, cond_dim) for i, w in enumerate(widths))

    def forward(self, x: Tensor, cond: Tensor | None = None) -> list[Tensor]:
        """[B, in_chans, H, W] -> one map per width."""
        x = self.stem(x)
        maps: list[Tensor] = []
        for block in self.blocks:
            maps.append(block(F.avg_pool2d(x, 2) if maps else x, cond))
            x = maps[-1]
        return maps


class UNetDecoder(nn.Module):
    """From the coarsest map to the finest: nearest upsampling, joined with the encoder's map of that scale."""

    def __init__(self, widths: Sequence[int], norm: str, cond_dim: int):
        super().__init__()
        pairs = list(zip(widths[-2::-1], widths[:0:-1]))
        self.blocks = nn.ModuleList(ResidualConvBlock(fine + coarse, fine, norm, cond_dim) for fine, coarse in pairs)
        self.norm = normalization(norm, widths[0])

    def forward(self, maps: Sequence[Tensor], cond: Tensor | None = None) -> Tensor:
        """[B, widths[0], H, W]."""
        x = maps[-1]
        for block, fine in zip(self.blocks, maps[-2::-1], strict=True):
            x = block(torch.cat([fine, F.interpolate(x, fine.shape[2:], mode="nearest")], 1), cond)
        return F.silu(self.norm(x))


class UNet(nn.Module):
    """Images [B, in_chans, H, W] -> maps of the same size: one tensor, or a dict of several heads.

    Sub-modules ``encoder``, ``middle``, ``decoder`` and ``heads``: a training stage can freeze each by its name.

    Examples:
        >>> unet = UNet(3, {"heatmap": 21, "mask": 1})
        >>> {name: tuple(map.shape) for name, map in unet(torch.zeros(2, 3, 32, 32)).items()}
        {'heatmap': (2, 21, 32, 32), 'mask': (2, 1, 32, 32)}

    Args:
        in_chans: channels of the images.
        out_chans: channels of the output, or of each named head.
        widths: channels of each scale, the finest first.
        norm: ``batch``, ``group`` or ``none``.
        cond_dim: width of a condition vector (a time and class embedding) that every block reads; 0: none.
        context_dim: width of context tokens that the coarsest scale reads by cross-attention; 0: none.
        num_heads: of the attention at the coarsest scale, which exists where there is a context.
    """

    def __init__(
        self,
        in_chans: int,
        out_chans: int | Mapping[str, int],
        widths: Sequence[int] = (8, 16, 32),
        norm: str = "batch",
        cond_dim: int = 0,
        context_dim: int = 0,
        num_heads: int = 4,
    ):
        super().__init__()
        self.encoder = UNetEncoder(in_chans, widths, norm, cond_dim)
        self.middle = TransformerBlock(widths[-1], num_heads, context_dim=context_dim) if context_dim else None
        self.decoder = UNetDecoder(widths, norm, cond_dim)
        named = {"out": out_chans} if isinstance(out_chans, int) else out_chans
        self.heads = nn.ModuleDict({name: nn.Conv2d(widths[0], count, 1) for name, count in named.items()})
        self.single = isinstance(out_chans, int)
        self.factor = 2 ** (len(widths) - 1)

    def forward(
        self,
        images: Tensor,
        cond: Tensor | None = None,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
    ) -> Tensor | dict[str, Tensor]:
        """The output, or one output for each head.

        Args:
            images: [B, in_chans, H, W].
            cond: [B, cond_dim], or None.
            context: tokens [B, M, context_dim], or None.
            context_mask: [B, M], True marks the tokens that may be read.

        Raises:
            InputError: sides that the scales do not divide.
        """
        if any(side % self.factor for side in images.shape[2:]):
            raise InputError(
                f"images of {tuple(images.shape[2:])} pixels cannot be halved {len(self.encoder.blocks) - 1} times",
                where="images",
                remedy=f"pad or resize the sides to multiples of {self.factor}",
            )
        maps = self.encoder(images, cond)
        if self.middle is not None:
            size = maps[-1].shape[2:]
            tokens = self.middle(maps[-1].flatten(2).transpose(1, 2), None, context, context_mask)
            maps[-1] = tokens.transpose(1, 2).unflatten(2, size)
        x = self.decoder(maps, cond)
        outputs = {name: head(x) for name, head in self.heads.items()}
        return outputs["out"] if self.single else outputs


def widen_input(convolution: nn.Conv2d, extra: int) -> nn.Conv2d:
    """A copy of an ungrouped convolution that reads ``extra`` further channels, whose weights are 0 at first: until it
    is trained, its output does not depend on them (InstructPix2Pix, Brooks et al., 2023, section 3.2).

    Raises:
        InputError: a grouped convolution.
    """
    if convolution.groups != 1:
        raise InputError("a grouped convolution cannot be widened", where="convolution")
    old = convolution
    wide = nn.Conv2d(
        old.in_channels + extra,
        old.out_channels,
        old.kernel_size,  # type: ignore[arg-type]
        old.stride,  # type: ignore[arg-type]
        old.padding,  # type: ignore[arg-type]
        old.dilation,  # type: ignore[arg-type]
        bias=old.bias is not None,
        padding_mode=old.padding_mode,
    ).to(old.weight)
    with torch.no_grad():
        wide.weight.zero_()
        wide.weight[:, : old.in_channels] = old.weight
        if old.bias is not None and wide.bias is not None:
            wide.bias.copy_(old.bias)
    return wide
