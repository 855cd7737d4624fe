"""Generalized convolution: kernels and distances in place of the inner product (Ghiasi-Shirazi, 2017, arXiv 1707.09864)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.distillation.job import TrainingJob
from tutelage.errors import InputError, did_you_mean
from tutelage.registry import system
from tutelage.seeds import torch_rng
from tutelage.systems._backbone import Backbone, Variant

Kind = Literal["dot", "polynomial", "gaussian", "laplacian", "l2", "l1", "mixed", "sine"]
Monotone = Literal["identity", "exp", "sigmoid", "softplus", "affine"]

DISTANCES = ("gaussian", "laplacian", "l2", "l1")
"""The kinds with a positive weight g for each coordinate."""


def inverse_softplus(value: float) -> float:
    """The x with ``softplus(x) = value``."""
    return math.log(math.expm1(value))


class WeightedL1(torch.autograd.Function):
    """``sum_i g_fi |u_i - w_fi|`` of patches u [..., d] and filters w, g [F, d] -> [..., F].

    ``chunk`` filters at a time, forward and backward: the differences [..., chunk, d] are made anew and never kept.
    """

    @staticmethod
    def forward(ctx: Any, u: Tensor, w: Tensor, g: Tensor, chunk: int) -> Tensor:
        """The distances."""
        ctx.save_for_backward(u, w, g)
        ctx.chunk = chunk
        parts = zip(w.split(chunk), g.split(chunk))
        return torch.cat([((u.unsqueeze(-2) - w_).abs_() * g_).sum(-1) for w_, g_ in parts], -1)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:  # type: ignore[override]
        """Slopes of patches, templates and weights."""
        u, w, g = ctx.saved_tensors
        du, dw, dg = torch.zeros_like(u), [], []
        for w_, g_, slope_ in zip(w.split(ctx.chunk), g.split(ctx.chunk), slope.split(ctx.chunk, -1)):
            difference = u.unsqueeze(-2) - w_
            dg.append(torch.einsum("...f,...fd->fd", slope_, difference.abs()))
            signs = difference.sign_()
            dw.append(-g_ * torch.einsum("...f,...fd->fd", slope_, signs))
            du += torch.einsum("...f,...fd->...d", slope_, signs.mul_(g_))
        return du, torch.cat(dw), torch.cat(dg), None


class GeneralizedConv2d(nn.Module):
    """A 2-D convolution whose inner product of patch u and template w (d values each) is another similarity s(u, w).

    ============== ============================================== =====================================
    ``dot``        ``u.w``                                        an ordinary convolution
    ``polynomial`` ``(a u.w + c)^power``, a > 0, c >= 0           a and c a filter
    ``gaussian``   ``exp(-sum g_i (u_i - w_i)^2)``                g > 0: one a coordinate, or a filter
    ``laplacian``  ``exp(-sum g_i |u_i - w_i|)``                  g as above
    ``l2``         ``-sum g_i (u_i - w_i)^2``                     g as above
    ``l1``         ``-sum g_i |u_i - w_i|``                       g as above
    ``mixed``      ``(1 - l) u.w - l |u - w|^2``, 0 < l < 1       l fixed, or learned, one a filter
    ``sine``       ``sin(u.w + b)``                               b a filter
    ============== ============================================== =====================================

    The output is ``h(s) + bias`` with a monotonically increasing h; ``affine``: a positive gain a filter. Quadratic
    kinds are one convolution: ``sum g (u - w)^2 = conv([x^2, x], [g, -2 g w]) + sum g w^2``; where the patch is large
    against its distance that loses digits, so the distance is clamped at 0. The kinds with |.| have no such form: they
    compare unfolded patches with ``chunk`` filters at a time.

    Images [B, in_channels, H, W] -> [B, out_channels, H', W'] as of ``nn.Conv2d``. Padded zeros are compared with the
    template like any other value; ``padding_mode`` is as in torch. Templates of distances start normal, of half the unit
    scale, or from patches of data (:meth:`draw_templates`); g starts at ``sharpness / d``: from 1 they learn badly (our choice).

    Raises:
        InputError: an unknown kind or h; a mix outside 0..1; a power below 1.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        *,
        kind: Kind = "l2",
        monotone: Monotone = "identity",
        bias: bool = True,
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
        weigh_each: bool = True,
        sharpness: float = 8.0,
        power: int = 2,
        mix: float = 0.5,
        learn_mix: bool = False,
        chunk: int = 8,
    ):
        super().__init__()
        for name, value, known in (("kind", kind, get_args(Kind)), ("monotone", monotone, get_args(Monotone))):
            if value not in known:
                raise InputError(f"unknown {name} {value!r}", where=name, remedy=did_you_mean(value, list(known)))
        if power < 1 or not 0 <= mix <= 1 or (learn_mix and mix in (0, 1)):
            raise InputError(f"power {power}, mix {mix}", where="power, mix", remedy="a power of 1 or more, a mix in 0..1")
        self.kind, self.monotone, self.power, self.chunk, self.padding_mode = kind, monotone, power, chunk, padding_mode
        self.kernel_size, self.stride, self.padding, self.dilation = kernel_size, stride, padding, dilation
        shape = (out_channels, in_channels, kernel_size, kernel_size)
        self.size = in_channels * kernel_size**2
        # what is linear in the template starts as a convolution does
        self.weight = nn.Parameter(nn.Conv2d(in_channels, out_channels, kernel_size, bias=False).weight.detach().clone())
        if kind in (*DISTANCES, "mixed"):
            nn.init.normal_(self.weight, std=0.5)
        if kind in DISTANCES:
            start = inverse_softplus(sharpness / self.size)
            self.raw_g = nn.Parameter(torch.full(shape if weigh_each else (out_channels, 1, 1, 1), start))
        if kind == "polynomial":
            self.raw_a = nn.Parameter(torch.full((out_channels,), inverse_softplus(1.0)))
            self.raw_c = nn.Parameter(torch.full((out_channels,), inverse_softplus(1.0)))
        if kind == "mixed":
            self.mix = mix
            self.raw_mix = nn.Parameter(torch.logit(torch.full((out_channels,), mix))) if learn_mix else None
        if kind == "sine":
            self.phase = nn.Parameter(torch.zeros(out_channels))
        if monotone == "affine":
            self.raw_gain = nn.Parameter(torch.full((out_channels,), inverse_softplus(1.0)))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None

    def no_weight_decay(self) -> set[str]:
        """What is positive through a softplus or a sigmoid (g, gains, mixes), and the templates of distances: decay would pull
        them to the patch of zeros."""
        raw = {name for name, _ in self.named_parameters() if name.startswith("raw_")}
        return raw | ({"weight"} if self.kind in (*DISTANCES, "mixed") else set())

    @property
    def g(self) -> Tensor:
        """The positive weights of the coordinates [out_channels, in_channels, k, k], or [out_channels, 1, 1, 1]."""
        return F.softplus(self.raw_g)

    def _padded(self, x: Tensor) -> tuple[Tensor, int]:
        """The input, and what is left to pad with zeros."""
        if self.padding_mode == "zeros" or not self.padding:
            return x, self.padding
        return F.pad(x, [self.padding] * 4, mode=self.padding_mode), 0

    def _convolved(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        x, padding = self._padded(x)
        return F.conv2d(x, weight, bias, self.stride, padding, self.dilation)

    def patches(self, x: Tensor) -> Tensor:
        """[B, positions, d]."""
        x, padding = self._padded(x)
        return F.unfold(x, self.kernel_size, self.dilation, padding, self.stride).transpose(1, 2)

    def _sides(self, x: Tensor) -> list[int]:
        reach = self.dilation * (self.kernel_size - 1)
        return [(side + 2 * self.padding - reach - 1) // self.stride + 1 for side in x.shape[2:]]

    def _squared_distance(self, x: Tensor) -> Tensor:
        g, w = self.g, self.weight
        whole = g.expand_as(w)
        found = self._convolved(torch.cat([x * x, x], 1), torch.cat([whole, -2 * g * w], 1), (g * w * w).sum((1, 2, 3)))
        return found.clamp_min(0)

    def _distance(self, x: Tensor) -> Tensor:
        u, w = self.patches(x), self.weight.flatten(1)
        if self.raw_g.numel() == len(w):  # one g a filter: it factors out
            found = torch.cdist(u, w, p=1) * self.g.flatten()
        else:
            found = WeightedL1.apply(u, w, self.g.flatten(1), self.chunk)
        return found.transpose(1, 2).unflatten(2, self._sides(x))

    def _mixed(self, x: Tensor) -> Tensor:
        """``(1 + l) u.w - l |u|^2 - l |w|^2``; the local energy |u|^2 is one map for all filters."""
        share = torch.full_like(self.weight[:, 0, 0, 0], self.mix) if self.raw_mix is None else self.raw_mix.sigmoid()
        products = self._convolved(x, (1 + share).view(-1, 1, 1, 1) * self.weight, -share * self.weight.square().sum((1, 2, 3)))
        energy = self._convolved(x.square().sum(1, keepdim=True), torch.ones_like(self.weight[:1, :1]))
        return products - share.view(-1, 1, 1) * energy

    def similarity(self, x: Tensor) -> Tensor:
        """s(u, w) of every position and filter [B, out_channels, H', W']."""
        match self.kind:
            case "dot":
                return self._convolved(x, self.weight)
            case "polynomial":
                a = F.softplus(self.raw_a).view(-1, 1, 1, 1)
                return self._convolved(x, a * self.weight, F.softplus(self.raw_c)) ** self.power
            case "gaussian":
                return torch.exp(-self._squared_distance(x))
            case "laplacian":
                return torch.exp(-self._distance(x))
            case "l2":
                return -self._squared_distance(x)
            case "l1":
                return -self._distance(x)
            case "mixed":
                return self._mixed(x)
        return torch.sin(self._convolved(x, self.weight, self.phase))

    def forward(self, x: Tensor) -> Tensor:
        """``h(s) + bias``."""
        found = self.similarity(x)
        match self.monotone:
            case "exp":
                found = found.exp()
            case "sigmoid":
                found = found.sigmoid()
            case "softplus":
                found = F.softplus(found)
            case "affine":
                found = F.softplus(self.raw_gain).view(-1, 1, 1) * found
        return found if self.bias is None else found + self.bias.view(-1, 1, 1)

    @torch.no_grad()
    def draw_templates(self, x: Tensor, rng: torch.Generator, least: float = 0.05) -> None:
        """Make each template a random patch of the layer's own inputs ``x``, one with a deviation above ``least``.

        Raises:
            InputError: all patches are flat.
        """
        patches = self.patches(x).flatten(0, 1)
        patches = patches[patches.std(1) > least]
        if not len(patches):
            raise InputError("every patch is flat", where="x", remedy="give images with contrast, of values about 0..1")
        rows = torch.randint(len(patches), (len(self.weight),), generator=rng)
        self.weight.copy_(patches[rows.to(patches.device)].view_as(self.weight))


@system("generalized-convolution", kind="backbone")
class GeneralizedCNN(Backbone):
    """Generalized convolution: a LeNet whose convolutions compare patches with templates by a kernel or a distance.

    Images [B, in_chans, H, W], sides multiples of 4, -> logits [B, num_classes]. Each of two layers is a
    :class:`GeneralizedConv2d` of one ``kind``, batch norm, ReLU and 2x2 max pooling; the last map, averaged to 2x2,
    goes into a Linear. Without the norm, distances are large negative numbers, of which ReLU leaves nothing. Templates of
    distances may start from data: :meth:`draw_templates`. Weight decay spares g, gains and the templates of distances, which it
    would pull to the patch of zeros. Sizes, optimiser and error rates of the paper are not
    known to us: ``lenet`` and ``mini`` are our choice.

    Args:
        num_classes: of the logits.
        in_chans: of the images.
        kind: of the similarity, see :class:`GeneralizedConv2d`.
        widths: filters of the two layers.
        kernel: side of the patches, odd.
        options: further options of the layers.
    """

    VARIANTS = {
        "mini": Variant({"widths": (16, 32), "kernel": 3}, size=8),
        "lenet": Variant({"widths": (20, 50), "kernel": 5}, size=28),
    }

    def __init__(
        self,
        num_classes: int = 10,
        in_chans: int = 1,
        *,
        kind: Kind = "l2",
        widths: Sequence[int] = (16, 32),
        kernel: int = 3,
        options: dict[str, Any] | None = None,
    ):
        super().__init__(num_classes, in_chans, [("layers.0", 2, widths[0]), ("layers.1", 4, widths[1])])
        self.layers = nn.ModuleList(
            nn.Sequential(
                GeneralizedConv2d(inner, outer, kernel, padding=kernel // 2, kind=kind, **options or {}),
                nn.BatchNorm2d(outer),
                nn.ReLU(inplace=True),
                nn.MaxPool2d(2),
            )
            for inner, outer in zip((in_chans, *widths), widths)
        )
        self.head = nn.Linear(4 * widths[-1], num_classes)

    def forward_stages(self, images: Tensor) -> list[Tensor]:
        """The pooled maps of both layers."""
        maps = []
        for layer in self.layers:
            images = layer(images)
            maps.append(images)
        return maps

    def forward_head(self, maps: Tensor) -> Tensor:
        """Logits."""
        return self.head(F.adaptive_avg_pool2d(maps, 2).flatten(1))

    @torch.no_grad()
    def draw_templates(self, images: Tensor, seed: int) -> Self:
        """Start every layer's templates from patches of its own inputs, layer by layer; running statistics stay."""
        rng = torch_rng(seed, "templates")
        for layer in self.layers:
            convolution, norm, *rest = layer
            convolution.draw_templates(images, rng)
            images = convolution(images)
            images = F.batch_norm(images, None, None, norm.weight, norm.bias, training=True)
            for module in rest:
                images = module(images)
        return self

    @classmethod
    def tiny_job(cls, seed: int) -> TrainingJob:
        """A training job of a second: weighted L1, templates drawn from its images."""
        training_job = cls.toy_job(seed, 1, 8, kind="l1", widths=(4, 6))
        training_job.student.draw_templates(training_job.data.inputs, seed)
        return training_job
