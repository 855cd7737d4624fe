"""A learned image codec with a mean-scale hyperprior, from light to heavy, and its bitstream."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.errors import InputError, did_you_mean
from tutelage.fields import check_memory
from tutelage.networks.entropy_coder import decode, encode
from tutelage.networks.entropy_models import (
    SCALE_BOUND,
    FactorizedPrior,
    add_uniform_noise,
    gaussian_likelihood,
    gaussian_table,
    round_straight_through,
    scale_rows,
)
from tutelage.networks.window_attention import SwinBlock

_HEADER = struct.Struct(">4s4sHHIII")  # mark, weights, height, width, checksum of the symbols, of the bytes, bytes of z
_MARK = b"TGC1"

PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "teacher": {"channels": 192, "latent_channels": 320, "blocks": 3, "attention": True},
        "student": {"channels": 128, "latent_channels": 192, "blocks": 1, "attention": False},
        "small-teacher": {
            **{"channels": 24, "latent_channels": 32, "blocks": 2, "attention": True},
            **{"levels": 3, "hyper_levels": 1, "head_dim": 8},
        },
        "small-student": {"channels": 12, "latent_channels": 16, "blocks": 1, "attention": False, "levels": 3, "hyper_levels": 1},
    }
)
"""Options of :class:`ImageCodec` by name; the small ones are for crops of 32 x 32 and tests."""


def upsample(in_chans: int, out_chans: int) -> nn.Sequential:
    """Twice the size, by a convolution and a pixel shuffle."""
    return nn.Sequential(nn.Conv2d(in_chans, 4 * out_chans, 3, padding=1), nn.PixelShuffle(2))


class ResidualBlock(nn.Module):
    """``skip(x) + conv(gelu(first(x)))``; ``resize`` -1 halves the size, 1 doubles it, 0 leaves it."""

    def __init__(self, in_chans: int, out_chans: int, resize: int = 0):
        super().__init__()
        self.skip: nn.Module = nn.Identity()
        if resize > 0:
            self.first, self.skip = upsample(in_chans, out_chans), upsample(in_chans, out_chans)
        else:
            stride = 2 if resize else 1
            self.first = nn.Conv2d(in_chans, out_chans, 3, stride, 1)
            if resize or in_chans != out_chans:
                self.skip = nn.Conv2d(in_chans, out_chans, 1, stride)
        self.conv = nn.Conv2d(out_chans, out_chans, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_chans, H, W] -> [B, out_chans, H', W']."""
        return self.skip(x) + self.conv(F.gelu(self.first(x)))


class GatedAttention(nn.Module):
    """``x + a(x) sigmoid(b(x))``: a is a residual block, b two Swin blocks, the second shifted, and a 1x1 convolution."""

    def __init__(self, channels: int, head_dim: int, window: int):
        super().__init__()
        heads = channels // head_dim
        self.trunk = ResidualBlock(channels, channels)
        shifts = (0, window // 2)
        self.gate = nn.Sequential(
            *(SwinBlock(channels, heads, window, shift) for shift in shifts), nn.Conv2d(channels, channels, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, H, W] -> the same shape."""
        return x + self.trunk(x) * self.gate(x).sigmoid()


class ImageCodec(nn.Module):
    """Images to bytes and back, with the rate and the distortion that training needs.

    ``y = g_a(x)`` at stride 2^levels, ``z = h_a(y)``, ``y^ = round(y - mu) + mu`` with mu and sigma from ``h_s(z^)``,
    ``x^ = g_s(y^)``. In training, the rate is that of y and z with uniform noise, and the decoder sees rounded values
    with the gradient of the unrounded ones. GELU in place of divisive normalisation (our choice: it needs no bound).

    Args:
        channels: N, of every level and of z.
        latent_channels: M, of y.
        blocks: residual blocks a level, the one that changes the size among them.
        attention: gated Swin V2 attention at the two coarsest levels of g_a and of g_s.
        levels: halvings from x to y.
        hyper_levels: halvings from y to z.
        window: of the attention, in positions.
        head_dim: of the attention.
        in_chans: of the images.

    Sizes by name: ``ImageCodec(**ImageCodec.options("teacher"))``; in a recipe ``model = "feds:teacher"``.

    Raises:
        InputError: a number below 1, or a ``head_dim`` that does not divide the channels.
    """

    def __init__(
        self,
        channels: int = 128,
        latent_channels: int = 192,
        blocks: int = 1,
        attention: bool = False,
        levels: int = 4,
        hyper_levels: int = 2,
        window: int = 4,
        head_dim: int = 32,
        in_chans: int = 3,
    ):
        super().__init__()
        counts = {"channels": channels, "latent_channels": latent_channels, "blocks": blocks, "levels": levels}
        counts |= {"hyper_levels": hyper_levels, "window": window, "head_dim": head_dim, "in_chans": in_chans}
        for name, value in counts.items():
            if value < 1:
                raise InputError(f"{value} is too small", where=name, remedy="at least 1")
        if attention and channels % head_dim:
            raise InputError(f"{channels} channels in heads of {head_dim}", where="head_dim", remedy="choose a divisor")
        self.stride, self.channels, self.in_chans = 2 ** (levels + hyper_levels), channels, in_chans

        def level(inputs: int, resize: int, attends: bool) -> nn.Sequential:
            first = ResidualBlock(inputs, channels, resize)
            parts: list[nn.Module] = [first, *(ResidualBlock(channels, channels) for _ in range(blocks - 1))]
            return nn.Sequential(*parts, *([GatedAttention(channels, head_dim, window)] if attends else []))

        self.analysis = nn.ModuleList(level(channels if i else in_chans, -1, attention and i >= levels - 2) for i in range(levels))
        self.to_latent = nn.Conv2d(channels, latent_channels, 3, padding=1)
        self.synthesis = nn.ModuleList(
            level(channels if i else latent_channels, 1 if i else 0, attention and i < 2) for i in range(levels)
        )
        self.to_image = upsample(channels, in_chans)
        down: list[nn.Module] = [nn.Conv2d(latent_channels, channels, 3, padding=1)]
        up: list[nn.Module] = []
        for _ in range(hyper_levels):
            down += [nn.GELU(), nn.Conv2d(channels, channels, 3, 2, 1)]
            up += [upsample(channels, channels), nn.GELU()]
        self.hyper_analysis = nn.Sequential(*down)
        self.hyper_synthesis = nn.Sequential(*up, nn.Conv2d(channels, 2 * latent_channels, 3, padding=1))
        self.prior = FactorizedPrior(channels)

    @classmethod
    def options(cls, name: str) -> dict[str, Any]:
        """The arguments of a preset.

        Raises:
            InputError: no such preset; the message offers the nearest names.
        """
        if name not in PRESETS:
            raise InputError(f"no size {name!r}", where="model", remedy=did_you_mean(name, list(PRESETS)))
        return dict(PRESETS[name])

    @property
    def feature_names(self) -> tuple[str, ...]:
        """The sub-modules whose outputs are the features of each level of g_a and g_s, the finest of g_a first."""
        return tuple(f"{part}.{i}" for part in ("analysis", "synthesis") for i in range(len(self.analysis)))

    # -- the parts -------------------------------------------------------------------------------------------------------

    def analyse(self, images: Tensor) -> Tensor:
        """``y`` [B, M, H / stride_y, W / stride_y], before quantisation.

        Raises:
            InputError: no images [B, C, H, W] of sizes that the stride divides.
        """
        if images.ndim != 4 or images.shape[1] != self.in_chans or any(side % self.stride or not side for side in images.shape[2:]):
            raise InputError(
                f"images {list(images.shape)}",
                where="inputs",
                remedy=f"[B, {self.in_chans}, H, W] with H and W multiples of {self.stride}; encode() pads by itself",
            )
        for level in self.analysis:
            images = level(images)
        return self.to_latent(images)

    def distribution(self, hyper: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and scale of each latent from the quantised ``z^``; scales are at least 0.11."""
        mean, scale = self.hyper_synthesis(hyper).chunk(2, 1)
        return mean, SCALE_BOUND + F.softplus(scale)

    def synthesise(self, latent: Tensor) -> Tensor:
        """``x^`` of the quantised ``y^``."""
        for level in self.synthesis:
            latent = level(latent)
        return self.to_image(latent)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """images [B, C, H, W] in 0..1.

        Returns:
            ``logits``: the decoded images; ``bits_y``, ``bits_z`` [B]: of the whole image; ``latent``: y before
            quantisation; ``mean``, ``scale``: of its distribution.
        """
        latent = self.analyse(images)
        hyper = self.hyper_analysis(latent)
        mean, scale = self.distribution(round_straight_through(hyper))
        coded = mean + round_straight_through(latent - mean)
        noisy, noisy_hyper = coded, hyper.round()
        if self.training:
            noisy, noisy_hyper = add_uniform_noise(latent), add_uniform_noise(hyper)
        return {
            "logits": self.synthesise(coded),
            "bits_y": -gaussian_likelihood(noisy, mean, scale).log2().flatten(1).sum(1),
            "bits_z": -self.prior(noisy_hyper).log2().flatten(1).sum(1),
            "latent": latent,
            "mean": mean,
            "scale": scale,
        }

    # -- the bitstream ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, image: Tensor) -> bytes:
        """The bytes of an image [C, H, W] in 0..1, of any size up to 65,535; :meth:`decode` gives it back.

        A size that the stride does not divide is padded by its edge. 24 bytes are a header: sizes, and checks of the
        weights, of the symbols and of the bytes.

        Raises:
            InputError: no image of the codec's channels, or one that is too large.
        """
        if image.ndim != 3 or image.shape[0] != self.in_chans or not all(0 < side < 65536 for side in image.shape[1:]):
            raise InputError(f"an image {list(image.shape)}", where="image", remedy=f"[{self.in_chans}, H, W], sides up to 65,535")
        if not bool(image.isfinite().all()):
            raise InputError("a pixel is not finite", where="image", remedy="give values in 0..1")
        height, width = image.shape[1:]
        padding = (0, -width % self.stride, 0, -height % self.stride)
        latent = self.analyse(F.pad(image[None], padding, mode="replicate") if any(padding) else image[None])
        hyper = self.hyper_analysis(latent).round()
        mean, scale = self.distribution(hyper)
        symbols = (latent - mean).round().long().cpu().flatten().numpy()
        hyper_symbols = hyper.long().cpu().flatten().numpy()
        hyper_bytes = encode(hyper_symbols, self._hyper_rows(hyper.shape), self.prior.table())
        payload = hyper_bytes + encode(symbols, scale_rows(scale), gaussian_table())
        check = zlib.crc32(symbols.tobytes(), zlib.crc32(hyper_symbols.tobytes()))
        head = (_MARK, self._weights_digest(), height, width, check, zlib.crc32(payload), len(hyper_bytes))
        return _HEADER.pack(*head) + payload

    @torch.no_grad()
    def decode(self, data: bytes) -> Tensor:
        """The image [C, H, W] of what :meth:`encode` gave, on the codec's device; not cut to 0..1.

        It is the same as the eval-mode reconstruction of the (padded) image, bit for bit where both run on one machine.

        Raises:
            InputError: no such bytes, cut short, damaged, of another model, or of a machine whose arithmetic differs.
        """
        where = "bitstream"
        if len(data) < _HEADER.size or data[:4] != _MARK:
            raise InputError("these bytes are no image of this codec", where=where, remedy="give what encode() returned")
        _, weights, height, width, check, damage, length = _HEADER.unpack_from(data)
        payload = data[_HEADER.size :]
        if zlib.crc32(payload) != damage:
            raise InputError("the bytes are cut short or damaged", where=where, remedy="fetch or encode them again")
        if weights != self._weights_digest():
            raise InputError("the bytes belong to another model", where=where, remedy="decode with the weights that encoded them")
        device = self.to_latent.weight.device
        check_memory(height * width * self.channels * 4, f"an image {height} x {width}", where, "is this the right file?")
        rows, columns = (-(-side // self.stride) for side in (height, width))
        shape = torch.Size((1, self.channels, rows, columns))
        hyper_symbols = decode(payload[:length], self._hyper_rows(shape), self.prior.table())
        mean, scale = self.distribution(torch.from_numpy(hyper_symbols).to(device).view(shape).to(self.to_latent.weight.dtype))
        symbols = decode(payload[length:], scale_rows(scale), gaussian_table())
        if zlib.crc32(symbols.tobytes(), zlib.crc32(hyper_symbols.tobytes())) != check:
            raise InputError(
                "the symbols are not those that were written",
                where=where,
                remedy="decode on the kind of device that encoded, with as many threads: its arithmetic must be the same",
            )
        image = self.synthesise(torch.from_numpy(symbols).to(mean).view_as(mean) + mean)
        return image[0, :, :height, :width]

    @staticmethod
    def _hyper_rows(shape: torch.Size) -> np.ndarray:
        return np.repeat(np.arange(shape[1]), shape[2] * shape[3])

    def _weights_digest(self) -> bytes:
        state = xxhash.xxh32()
        for value in self.state_dict().values():
            state.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        return state.digest()
