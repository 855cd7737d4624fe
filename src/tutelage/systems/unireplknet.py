"""UniRepLKNet: large depthwise kernels, with dilated branches that fold into them (Ding et al., 2023, arXiv 2311.15599)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.distillation.job import TrainingJob
from tutelage.errors import InputError
from tutelage.networks.layers import DropPath, LayerNorm2d, LayerScale, SqueezeExcite, drop_path_rates, init_weights
from tutelage.registry import system
from tutelage.systems._backbone import Backbone, Variant

# -- the algebra of folding ------------------------------------------------------------------------------------------


def gain_and_shift(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """A batch norm in eval mode as ``gain x + shift``, both [C] float64: folding must not add rounding of its own."""
    gain = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    return gain, norm.bias.double() - norm.running_mean.double() * gain


def dense_kernel(weight: Tensor, dilation: int) -> Tensor:
    """The kernel [C, 1, k, k] of rate ``dilation`` as one of rate 1 and size (k - 1) dilation + 1, zeros between."""
    size = (weight.shape[-1] - 1) * dilation + 1
    dense = weight.new_zeros(*weight.shape[:2], size, size)
    dense[..., ::dilation, ::dilation] = weight
    return dense


def centred_kernel(weight: Tensor, size: int) -> Tensor:
    """A kernel [C, 1, k, k], k <= size and both odd, in the middle of one of ``size``."""
    return F.pad(weight, [(size - weight.shape[-1]) // 2] * 4)


@torch.no_grad()
def fold_branches(convs: Sequence[nn.Conv2d], norms: Sequence[nn.BatchNorm2d]) -> tuple[Tensor, Tensor]:
    """The sum of depthwise convolutions without bias, each with its norm, as one kernel [C, 1, K, K] and one bias [C].

    The first convolution is the largest and undilated.
    """
    size = convs[0].kernel_size[0]
    kernel, bias = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for conv, norm in zip(convs, norms):
        gain, shift = gain_and_shift(norm)
        dense = dense_kernel(conv.weight * gain[:, None, None, None], conv.dilation[0])
        kernel, bias = kernel.to(dense) + centred_kernel(dense, size), bias.to(shift) + shift
    return kernel, bias


@torch.no_grad()
def fold_norm_into_linear(linear: nn.Linear, shift: Tensor, norm: nn.BatchNorm2d, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias of a ``linear`` without bias, with the ``shift`` before it and ``norm`` and ``scale`` [C] after it."""
    gain, offset = gain_and_shift(norm)
    weight = linear.weight.double()
    return weight * (gain * scale)[:, None], (weight @ shift.double() * gain + offset) * scale


# -- the network -----------------------------------------------------------------------------------------------------

BRANCHES = {  # of a large kernel: (kernel, dilation) of each small one beside it
    17: ((5, 1), (9, 2), (3, 4), (3, 5), (3, 7)),
    15: ((5, 1), (7, 2), (3, 3), (3, 5), (3, 7)),
    13: ((5, 1), (7, 2), (3, 3), (3, 4), (3, 5)),
    11: ((5, 1), (5, 2), (3, 3), (3, 4), (3, 5)),
    9: ((5, 1), (5, 2), (3, 3), (3, 4)),
    7: ((5, 1), (3, 2), (3, 3)),
    5: ((3, 1), (3, 2)),
}
PLAIN = (3, 5)
"""Kernels that stay plain in a block, although the table has a row for 5."""


def depthwise(channels: int, kernel: int, dilation: int = 1, bias: bool = False) -> nn.Conv2d:
    """A depthwise convolution that keeps the size."""
    return nn.Conv2d(channels, channels, kernel, 1, (kernel - 1) * dilation // 2, dilation, channels, bias)


class DilatedReparam(nn.Module):
    """A large depthwise kernel, and small dilated ones beside it, each with its batch norm: their sum.

    Raises:
        InputError: a kernel that has no row in :data:`BRANCHES`.
    """

    def __init__(self, channels: int, kernel: int, branches: bool = True):
        super().__init__()
        if kernel not in BRANCHES:
            raise InputError(f"no dilated branches for kernel {kernel}", where="kernels", remedy=f"one of {sorted(BRANCHES)}")
        shapes = ((kernel, 1), *(BRANCHES[kernel] if branches else ()))
        self.convs = nn.ModuleList(depthwise(channels, k, rate) for k, rate in shapes)
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in shapes)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> the same shape."""
        parts = [norm(conv(x)) for conv, norm in zip(self.convs, self.norms)]
        return sum(parts[1:], start=parts[0])


class GlobalResponseNorm(nn.Module):
    """Of x [B, H, W, C]: ``G = ||x||_2`` over H and W, ``N = G / (mean_c G + 1e-6)``, ``(g N + 1) x + b``; g, b from 0.

    ``bias=False`` leaves b out, as the folded form does.
    """

    def __init__(self, channels: int, bias: bool = True):
        super().__init__()
        self.gain = nn.Parameter(torch.zeros(channels))
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """The normed map."""
        size = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)
        x = x * (self.gain * (size / (size.mean(-1, keepdim=True) + 1e-6)) + 1)
        return x if self.bias is None else x + self.bias


class UniRepLKNetBlock(nn.Module):
    """``x + drop(scale BN(W2 GRN(GELU(W1 SE(BN(DW(x)))))))``, [B, C, H, W] -> the same shape.

    DW is one depthwise convolution for kernels 3 and 5, :class:`DilatedReparam` for 7 and more. ``deploy``: the folded
    form, in which both BN, the scale and GRN's b have gone into their neighbours and DW is one convolution with a bias.
    """

    def __init__(self, channels: int, kernel: int, drop: float, scale: float, deploy: bool = False, branches: bool = True):
        super().__init__()
        self.kernel, self.large = kernel, kernel not in PLAIN
        plain = deploy or not self.large
        self.mix = depthwise(channels, kernel, bias=deploy) if plain else DilatedReparam(channels, kernel, branches)
        self.norm = nn.Identity() if deploy else nn.BatchNorm2d(channels)
        self.gate = SqueezeExcite(channels, channels // 4)
        self.expand, self.act = nn.Linear(channels, 4 * channels), nn.GELU()
        self.response = GlobalResponseNorm(4 * channels, bias=not deploy)
        self.shrink = nn.Linear(4 * channels, channels, bias=deploy)
        self.last = nn.Identity() if deploy else nn.Sequential(nn.BatchNorm2d(channels), LayerScale(channels, scale, 1))
        self.drop = DropPath(drop)

    def forward(self, x: Tensor) -> Tensor:
        """The next map."""
        # depthwise kernels larger than half the map are faster channels-last, large ones on large maps are not (oneDNN)
        laid = x.contiguous() if self.large and min(x.shape[2:]) > self.kernel // 2 else x
        inside = self.gate(self.norm(self.mix(laid))).permute(0, 2, 3, 1)
        inside = self.shrink(self.response(self.act(self.expand(inside))))
        return x + self.drop(self.last(inside.permute(0, 3, 1, 2)))

    @torch.no_grad()
    def folded_state(self) -> dict[str, Tensor]:
        """The state of the folded form of this block."""
        if isinstance(self.mix, DilatedReparam):
            kernel, bias = fold_branches(self.mix.convs, self.mix.norms)  # type: ignore[arg-type]
        else:
            kernel, bias = self.mix.weight.double(), torch.zeros_like(self.mix.weight[:, 0, 0, 0], dtype=torch.float64)
        gain, shift = gain_and_shift(self.norm)
        weight, offset = fold_norm_into_linear(self.shrink, self.response.bias, self.last[0], self.last[1].weight)
        kept = {name: value for name, value in self.state_dict().items() if name.startswith(("gate.", "expand."))}
        return kept | {
            "mix.weight": kernel * gain[:, None, None, None],
            "mix.bias": bias * gain + shift,
            "response.gain": self.response.gain,
            "shrink.weight": weight,
            "shrink.bias": offset,
        }


def size(base: int, depths: Sequence[int], kernels: Sequence[Sequence[int]], drop: float, counts: tuple[int, int], giga: float):
    """A published size and its folded form: parameters of both, and GMACs of the folded one at 224."""
    config = {"depths": depths, "dims": [base * 2**i for i in range(4)], "kernels": kernels, "drop_path": drop}
    return Variant(config, counts[0]), Variant(config | {"deploy": True}, counts[1], giga * 1e9)


SMALL, MIDDLE, LARGE = ((3,), (13,), (13,), (13,)), ((3,), (13,), (13, 3), (13,)), ((3,), (13,), (13, 3, 3), (13,))
SIZES = {
    "a": size(40, (2, 2, 6, 2), SMALL, 0.0, (4_649_060, 4_437_300), 0.64),
    "f": size(48, (2, 2, 6, 2), SMALL, 0.0, (6_489_328, 6_235_216), 0.91),
    "p": size(64, (2, 2, 6, 2), SMALL, 0.1, (11_080_520, 10_741_704), 1.57),
    "n": size(80, (2, 2, 8, 2), SMALL, 0.1, (18_818_880, 18_318_560), 2.77),
    "t": size(80, (3, 3, 18, 3), MIDDLE, 0.2, (31_693_420, 31_037_980), 4.90),
    "s": size(96, (3, 3, 27, 3), LARGE, 0.4, (56_456_704, 55_645_984), 9.10),
    "b": size(128, (3, 3, 27, 3), LARGE, 0.4, (99_089_416, 98_008_456), 16.06),
    "l": size(192, (3, 3, 27, 3), LARGE, 0.4, (220_076_056, 218_454_616), 35.88),
    "xl": size(256, (3, 3, 27, 3), LARGE, 0.4, (388_690_984, 386_529_064), 63.57),
}


@system("unireplknet", kind="backbone")
class UniRepLKNet(Backbone):
    """UniRepLKNet: large depthwise kernels in the middle and late stages, small dilated ones beside them while training.

    A stem of stride 4 (two 3x3 convolutions with layer norms), four stages with a 3x3 convolution of stride 2 and a
    layer norm between them, mean over places, layer norm, linear head. ``kernels`` gives a pattern a stage, repeated
    over its blocks: large ones in stages 2 to 4, and 3x3 ones where more depth is wanted.

    :meth:`folded` gives the inference form, the same function with one kernel, a gate and two Linears a block; the
    published size ``a-deploy`` is that form of ``a``. The network reads whatever is laid out as maps: a spectrogram, or a
    windowed series, as one channel.

    Published: ImageNet-1k top-1 77.0 (A), 78.6 (F), 80.2 (P), 81.6 (N), 83.2 (T), 83.9 % (S) at 224 pixels; the
    published GMACs are those of the folded form. ``scale`` starts at 1e-6; short schedules want 0.1 or more. The drop
    path of B, L and XL is that of S (our choice: unpublished).
    """

    VARIANTS = {name: both[0] for name, both in SIZES.items()} | {f"{name}-deploy": both[1] for name, both in SIZES.items()}

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        *,
        depths: Sequence[int] = (2, 2, 6, 2),
        dims: Sequence[int] = (40, 80, 160, 320),
        kernels: Sequence[Sequence[int]] = SMALL,
        drop_path: float = 0.0,
        scale: float = 1e-6,
        branches: bool = True,
        deploy: bool = False,
    ):
        """``branches=False`` leaves the dilated branches out: the same folded network, trained without them.

        Raises:
            InputError: lists of different lengths, or a kernel without a branch table.
        """
        if len({len(depths), len(dims), len(kernels)}) != 1:
            raise InputError(
                f"{len(depths)} depths, {len(dims)} widths, {len(kernels)} kernels", where="dims", remedy="one of each a stage"
            )
        super().__init__(num_classes, in_chans, [(f"stages.{i}", 4 * 2**i, width) for i, width in enumerate(dims)])
        self._config: dict[str, Any] = {"depths": depths, "dims": dims, "kernels": kernels, "drop_path": drop_path}
        self.deploy = deploy
        stem = [nn.Conv2d(in_chans, dims[0] // 2, 3, 2, 1), LayerNorm2d(dims[0] // 2), nn.GELU()]
        stages, before = [], dims[0] // 2
        for i, rates in enumerate(drop_path_rates(drop_path, depths)):
            down = nn.Sequential(*([] if i else stem), nn.Conv2d(before, dims[i], 3, 2, 1), LayerNorm2d(dims[i]))
            sizes = [kernels[i][j % len(kernels[i])] for j in range(depths[i])]
            blocks = (UniRepLKNetBlock(dims[i], kernel, rate, scale, deploy, branches) for kernel, rate in zip(sizes, rates))
            stages.append(nn.Sequential(down, *blocks))
            before = dims[i]
        self.stages = nn.ModuleList(stages)
        self.norm, self.head = nn.LayerNorm(dims[-1], eps=1e-6), nn.Linear(dims[-1], num_classes)
        init_weights(self)

    def forward_stages(self, images: Tensor) -> list[Tensor]:
        """The maps of all stages, the finest first."""
        found = []
        for stage in self.stages:
            images = stage(images)
            found.append(images)
        return found

    def forward_head(self, maps: Tensor) -> Tensor:
        """Mean over places, layer norm, linear head."""
        return self.head(self.norm(maps.mean((2, 3))))

    def check_sides(self, sides: Sequence[int]) -> None:
        """Any size: every stage rounds up."""

    @torch.no_grad()
    def folded(self) -> Self:
        """The inference form of this network, on its device and of its precision; a folded network itself.

        Raises:
            InputError: the network is in training mode: its batch norms are no fixed functions.
        """
        if self.deploy:
            return self
        if self.training:
            raise InputError("a network in training mode cannot be folded", where="folded", remedy="call eval() first")
        with torch.random.fork_rng(devices=[]):
            other = type(self)(self.num_classes, self.in_chans, **self._config, deploy=True).to(self.head.weight)
        state, blocks = self.state_dict(), [name for name, module in self.named_modules() if isinstance(module, UniRepLKNetBlock)]
        kept = {name: value for name, value in state.items() if not name.startswith(tuple(f"{block}." for block in blocks))}
        for block in blocks:
            kept |= {f"{block}.{name}": value for name, value in self.get_submodule(block).folded_state().items()}
        other.load_state_dict(kept)
        return other.eval()

    @classmethod
    def tiny_job(cls, seed: int) -> TrainingJob:
        """A training job of two seconds."""
        return cls.toy_job(seed, 1, image_size=16, depths=(1, 1), dims=(8, 16), kernels=((3,), (7,)), scale=0.5)
