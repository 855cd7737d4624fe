"""Distillation-supervised convolutional low-rank adaptation (Chai et al., 2025, arXiv 2504.11271).

On your own pairs of small and large pictures, with a trained network that stays as small and as fast as it is:

```python
import tutelage
from tutelage.distillation.data import TensorData
from tutelage.distillation.paired_augmentation import PairedAugmentation
from tutelage.distillation.supervised import Supervised
from tutelage.systems.dsclora import SPAN

pairs = TensorData(small, large, views=PairedAugmentation(crop=48, flip=0.5, turn=True))  # [N, 3, h, w], [N, 3, 2 h, 2 w]
student, teacher = (  # where you have no trained ones: from scratch, with branches that merge
    tutelage.distill(SPAN(channels, 2, branches=True), None, pairs, Supervised(), task="restoration", steps=50_000).student.merged()
    for channels in (26, 48)
)
result = tutelage.distill(student, teacher, pairs, "dsclora", steps=20_000, lr=5e-4)
sharp = result.student(small[:1])  # a plain SPAN: the updates are merged
```

As a recipe, for `tutelage distill recipe.toml`:

```toml
method = "dsclora"
out = "runs/dsclora"
student = { model = "dsclora:x2", weights = "span.safetensors" }
teacher = { model = "dsclora:x2-wide", weights = "wide.safetensors" }
data = { file = "pairs.npz" } # inputs [N, 3, h, w], labels [N, 3, 2 h, 2 w], float32 in 0..1
settings = { steps = 20000, lr = 5e-4 }
```

In a visual program: a step that enlarges a crop before text in it is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from tutelage.distillation.data import Batch, ReplayableData, TensorData
from tutelage.distillation.feature_hooks import FeatureHooks
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.method import Method
from tutelage.distillation.outputs import Output, Terms, forward_heads, unwrap_model
from tutelage.distillation.paired_augmentation import PairedAugmentation
from tutelage.distillation.teacher import Teacher
from tutelage.errors import InputError
from tutelage.networks.lora import add_lora, merge_lora
from tutelage.registry import system
from tutelage.seeds import torch_rng
from tutelage.systems._toy import build_with_seed
from tutelage.systems.dsclora.span import SPAN


def affinity(features: Tensor, eps: float = 1e-8) -> Tensor:
    """The cosine of every pair of positions of maps [B, C, H, W]: [B, HW, HW], in -1..1.

    A position whose channels are all 0 has affinity 0 to every other, and no gradient.
    """
    unit = _unit_rows(features, eps)
    return unit.transpose(1, 2) @ unit


def _unit_rows(features: Tensor, eps: float = 1e-8) -> Tensor:
    """Maps [B, C, H, W] -> [B, C, HW], the channels of each position of length 1, or 0 where all are 0."""
    rows = features.flatten(2)
    square = rows.square().sum(1, keepdim=True)  # several times as fast as vector_norm over a middle axis
    some = square > eps**2
    return rows * torch.where(some, torch.where(some, square, 1.0).rsqrt(), 0.0)


class _MeanAffinityGap(torch.autograd.Function):
    """``mean |X^T X - Y^T Y|`` of X [B, C, N] and Y [B, C', N], with the gradient of X, ``2 X sign(X^T X - Y^T Y) / (B N^2)``.

    It is computed sample by sample, the gradient at once: so two matrices [N, N] are held, not several [B, N, N].
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        total, grad = x.new_zeros(()), torch.empty_like(x)
        gap, given = x.new_empty(2, x.shape[2], x.shape[2])
        with torch.autocast(x.device.type, enabled=False):
            for own, other, slope in zip(x, y, grad, strict=True):
                torch.mm(other.T, other, out=given)
                torch.mm(own.T, own, out=gap).sub_(given)
                total += torch.abs(gap, out=given).sum()
                torch.mm(own, gap.sign_(), out=slope)
        entries = len(x) * x.shape[2] ** 2
        ctx.save_for_backward(grad.mul_(2 / entries))
        return total / entries

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (slope,) = ctx.saved_tensors
        return slope * grad, None


def affinity_loss(student: Tensor, teacher: Tensor, max_positions: int = 48 * 48) -> Tensor:
    """``mean |A_s - A_t|`` of two maps of one size and any channels (He et al., FAKD, 2020).

    An affinity has the square of the number of positions: maps of more than ``max_positions`` are first averaged over
    squares, the smallest that suffice (our choice).
    """
    side = 1
    while (-(-student.shape[2] // side)) * (-(-student.shape[3] // side)) > max_positions:
        side += 1
    if side > 1:
        student, teacher = (F.avg_pool2d(each, side, ceil_mode=True) for each in (student, teacher))
    return _MeanAffinityGap.apply(_unit_rows(student), _unit_rows(teacher.detach()))  # type: ignore[no-any-return]


@system("dsclora", kind="adaptation")
class DSCLoRA(Method):
    """DSCLoRA: low-rank updates squeeze more out of a frozen super-resolver, distilled from a wider one, and are merged away.

    Every named convolution W [o, i, k, k] becomes ``W + alpha / r reshape(B A)``, A [r k, i k] random, B [o k, r k] zero at
    first; only A and B learn. ``L = 255 (l1 |SR_s - HR| + l2 |SR_s - SR_t|) + l3 sum_maps mean |A(F_s) - A(F_t)|`` with
    the affinity ``A(F) = F~^T F~`` of features normalised over channels: what two positions have in common, whatever the
    number of channels. The factor 255 is there because the weights are FAKD's (.5, .5, 10), which are meant for images
    in 0..255; without it affinity would outweigh the images 255 times (our choice: the paper's weights are not public).
    Export merges the updates: the same names, parameters and cost as before.

    Heads: ``logits`` [B, C, H, W], images in 0..1; labels of the same shape. Features and layers are those of SPAN, or
    the names of sub-modules in the options: any network with convolutions can be adapted.

    What it cannot do: the published gain is small (Manga109 x4: 29.56 to 29.60 dB); a teacher that is not better than
    the student teaches nothing. The affinity of large maps is that of averages. At the size of the experiment below the
    affinities come much nearer to the teacher's, and the image 0.4 dB further from the truth than by low-rank updates alone:
    try ``affinity = 0`` beside it.

    Source: "Distillation-Supervised Convolutional Low-Rank Adaptation for Efficient Image Super-Resolution" (Chai, Zhang,
    Zhang, Cheng, Qin, Yang, Song, 2025, arXiv 2504.11271).

    Raises:
        InputError: no such layers or features, features of different sizes, or no images as labels.
    """

    Network = SPAN
    tasks = ("restoration",)
    needs_labels = True

    @dataclass(frozen=True)
    class Config:
        """``rec``, ``teacher_image``, ``affinity``: l1, l2, l3. ``rank``, ``alpha``: of ``layers``; ``tail_rank``,
        ``tail_alpha``: of ``tail``. ``student``, ``teacher``: the features compared; (): the network's
        ``feature_names``. The authors' other setting is rank 2, alpha 2 everywhere."""

        rec: float = 0.5
        teacher_image: float = 0.5
        affinity: float = 10.0
        layers: tuple[str, ...] = ("blocks.*.conv?",)
        rank: int = 2
        alpha: float = 4.0
        tail: tuple[str, ...] = ("conv_2", "upsampler.0")
        tail_rank: int = 8
        tail_alpha: float = 16.0
        student: tuple[str, ...] = ()
        teacher: tuple[str, ...] = ()
        max_positions: int = 48 * 48

        def __post_init__(self) -> None:
            for name in ("rec", "teacher_image", "affinity"):
                if getattr(self, name) < 0:
                    raise InputError(f"a weight of {getattr(self, name)}", where=name, remedy="0 or more")
            if not self.layers and not self.tail:
                raise InputError("no layer to adapt", where="layers", remedy='such as "blocks.*.conv?"')
            if self.max_positions < 1:
                raise InputError(f"{self.max_positions} positions", where="max_positions", remedy="at least 1")

    def prepare(self, student: nn.Module, teacher: Teacher | None, example: Batch, data: ReplayableData) -> None:
        """Adds the updates to the student, whose other weights stop learning; see :class:`Method`."""
        assert teacher is not None
        config, network = self.config, unwrap_model(student)
        if isinstance(network, SPAN) and network.branches:
            raise InputError("this SPAN has branches", where="student", remedy="adapt span.merged(), its plain form")
        self._student_taps = self._teacher_taps = ()
        if config.affinity:
            self._student_taps = config.student or tuple(getattr(network, "feature_names", ()))
            self._teacher_taps = config.teacher or tuple(getattr(teacher.network, "feature_names", ()))
            if not self._student_taps or len(self._student_taps) != len(self._teacher_taps):
                message = f"{len(self._student_taps)} features of the student for {len(self._teacher_taps)} of the teacher"
                raise InputError(message, where="student", remedy="name as many sub-modules of both, or set affinity = 0")
        self._hooks = FeatureHooks(student, self._student_taps)
        if self._teacher_taps:
            teacher.request_features(*self._teacher_taps)
            teacher_outputs, own = teacher(example), self(example, student, teacher)[0]
            for name, goal in zip(self._student_taps, self._teacher_taps, strict=True):
                if own[name].ndim != 4 or teacher_outputs[goal].ndim != 4 or own[name].shape[2:] != teacher_outputs[goal].shape[2:]:
                    message = f"student's map {list(own[name].shape)}, teacher's {list(teacher_outputs[goal].shape)}"
                    raise InputError(message, where=name, remedy="compare maps [B, C, H, W] of one height and width")
        groups = [(config.layers, config.rank, config.alpha), (config.tail, config.tail_rank, config.tail_alpha)]
        network.requires_grad_(False)
        for number, (patterns, rank, alpha) in enumerate(groups):
            if patterns:
                generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())) + number)
                add_lora(network, patterns, rank, alpha, generator, blocked=True, freeze=False)

    def forward(self, batch: Batch, student: nn.Module, teacher: Teacher | None) -> tuple[Output, Output]:
        """One pass of each, the student's features beside its image."""
        assert teacher is not None
        teacher_outputs = teacher(batch)
        with self._hooks as features:
            output = forward_heads(student, batch.inputs)
        return output | features, teacher_outputs

    def loss_weights(self) -> Mapping[str, float]:
        """See :class:`Method`."""
        config = self.config
        weights = {"rec": 255 * config.rec, "teacher_image": 255 * config.teacher_image, "affinity": config.affinity}
        return {name: weight for name, weight in weights.items() if weight}

    def loss_terms(self, batch: Batch, student: Output, teacher: Output) -> Terms:
        """``rec``, ``teacher_image`` and ``affinity``; what weighs 0 is left out."""
        terms, wanted = {}, self.loss_weights()
        if "rec" in wanted:
            terms["rec"] = self.task.label_loss(student, batch.labels, batch.weights)
        if "teacher_image" in wanted:
            terms["teacher_image"] = self.task.distance(student, teacher, batch.labels, batch.weights)
        if "affinity" in wanted:
            pairs = zip(self._student_taps, self._teacher_taps, strict=True)
            parts = [affinity_loss(student[own], teacher[goal], self.config.max_positions) for own, goal in pairs]
            terms["affinity"] = torch.stack(parts).sum()
        return terms

    def export(self, student: nn.Module) -> nn.Module:
        """The network with its updates merged; see :class:`Method`."""
        plain = super().export(student)
        merge_lora(plain)
        return plain.requires_grad_(True)

    @classmethod
    def tiny_job(cls, seed: int, width: int = 1) -> TrainingJob:
        """A job of a second or two: smooth random pictures, twice as large."""
        names = ("tiny", "tiny-wide") if width == 1 else ("x2", "x2-wide")
        student = build_with_seed(lambda: SPAN(**SPAN.options(names[0])), seed, "student")
        teacher = build_with_seed(lambda: SPAN(**SPAN.options(names[1])), seed, "teacher")
        settings = TrainingSettings(steps=6, batch_size=4, lr=1e-3, seed=seed)
        return TrainingJob(student, teacher, cls(), smooth_pairs(seed), settings, "dsclora")


def smooth_pairs(seed: int, count: int = 8, side: int = 12) -> TensorData:
    """Random smooth pictures [count, 3, 2 side, 2 side] in 0..1 with their halves, in turns and mirrors."""
    coarse = torch.rand(count, 3, 5, 5, generator=torch_rng(seed, "smooth pictures"))
    large = F.interpolate(coarse, size=2 * side, mode="bicubic", align_corners=True).clamp(0, 1)
    return TensorData(F.avg_pool2d(large, 2), large, views=PairedAugmentation(flip=0.5, turn=True))
