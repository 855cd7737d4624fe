"""Feature and entropy-based distillation of image codecs (Fu, Liang, Fang, Han, 2025, arXiv 2503.06399).

On your own photographs, a small codec that learns from a large one:

```python
import tutelage
from tutelage.distillation.data.sources import image_folder
from tutelage.systems.feds import ImageCodec, RateDistortion

teacher, student = (ImageCodec(**ImageCodec.options(name)) for name in ("teacher", "student"))
photos = image_folder("photos", image_size=256, crop_area=(0.35, 1.0), flip=0.5)
plan = {"steps": 100_000, "lr": 1e-4, "clip": 1.0, "schedule": "constant"}
teacher = tutelage.distill(teacher, None, photos, RateDistortion(trade_off=0.0483), **plan).student
student = tutelage.distill(student, teacher, photos, "feds", options={"trade_off": 0.0483}, **plan).student
data = student.encode(image)  # image [3, H, W] in 0..1 -> bytes
image = student.decode(data)  # without the teacher
```

As a recipe, for `tutelage distill recipe.toml`:

```toml
method = "feds"
out = "runs/feds"
options = { trade_off = 0.0483 }
student = { model = "feds:student" }
teacher = { model = "feds:teacher", weights = "teacher.safetensors" }
data = { kind = "folder", path = "photos", image_size = 256, crop_area = [0.35, 1.0], flip = 0.5 }
settings = { steps = 100000, lr = 1e-4, clip = 1.0, schedule = "constant" }
```

In a visual program: modules that run elsewhere are sent fewer bytes for each image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.distillation import losses
from tutelage.distillation.data import Batch, ReplayableData, TensorData
from tutelage.distillation.feature_hooks import FeatureHooks
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.method import Method, Phase
from tutelage.distillation.outputs import Output, Terms, forward_heads
from tutelage.distillation.teacher import Teacher
from tutelage.errors import InputError
from tutelage.networks.entropy_models import gaussian_likelihood
from tutelage.registry import system
from tutelage.seeds import torch_rng
from tutelage.systems._toy import build_with_seed
from tutelage.systems.feds.codec import ImageCodec

TRADE_OFFS = (0.0018, 0.0035, 0.0067, 0.013, 0.025, 0.0483)
"""The usual values of lambda for squared error, from few bits to many."""
HEADS = ("logits", "bits_y", "bits_z", "latent", "mean", "scale")


def channel_information(latent: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """``H_c``, bits a symbol: the mean of ``-log2 p(round(y - mu) + mu)`` over batch and positions; [B, M, h, w] -> [M]."""
    rounded = (latent - mean).round() + mean
    return -gaussian_likelihood(rounded, mean, scale).log2().mean((0, 2, 3))


def channel_weights(information: Tensor, selection: str = "soft", ratio: float = 0.5) -> Tensor:
    """Weights [M] that sum to 1 from ``H_c`` [M].

    ``soft``: ``H_c / sum H``. ``top``: equal for the ``ratio`` M channels of most information (at least one; of equal
    ones the first), 0 for the others. ``uniform``: equal for all, the baseline.
    """
    if selection == "top":
        kept = information.sort(descending=True, stable=True).indices[: max(1, round(ratio * len(information)))]
        return torch.zeros_like(information).index_fill(0, kept, 1 / len(kept))
    if selection == "uniform" or not bool(information.sum() > 0):
        return torch.full_like(information, 1 / len(information))
    return information / information.sum()


def feature_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """The mean over levels of ``MSE(F_s, F_t) / Var(F_t)``; maps in pairs of one shape."""
    parts = []
    for own, goal in zip(student, teacher, strict=True):
        goal = goal.detach()
        parts.append(F.mse_loss(own, goal) / goal.var(correction=0).clamp_min(1e-12))
    return torch.stack(parts).mean()


def entropy_loss(latent: Tensor, teacher_latent: Tensor, teacher_scale: Tensor, weights: Tensor, eps: float = 1e-6) -> Tensor:
    """``sum_c w_c mean((Q(y_s) - y_t)^2 / (sigma_t^2 + eps))``; maps [B, M, h, w], weights [M]."""
    error = (latent - teacher_latent.detach()).square() / (teacher_scale.detach().square() + eps)
    return (weights * error.mean((0, 2, 3))).sum()


def gaussian_divergence(mean: Tensor, scale: Tensor, other_mean: Tensor, other_scale: Tensor) -> Tensor:
    """``KL(N(mean, scale) || N(other_mean, other_scale))`` in nats, element by element."""
    gap = (scale.square() + (mean - other_mean).square()) / (2 * other_scale.square())
    return other_scale.log() - scale.log() + gap - 0.5


class RateDistortion(Method):
    """A codec alone: ``L = bpp(y) + bpp(z) + lambda 255^2 MSE(x, x^)``. The inputs are what it has to give back.

    ``phases`` as FEDS has them, so that a baseline sees the same learning rates.
    """

    needs_teacher = False

    @dataclass(frozen=True)
    class Config:
        """``trade_off``: lambda; ``last``: the share of the last phase; ``last_lr``: its factor on the learning rate."""

        trade_off: float = 0.0483
        last: float = 0.2
        last_lr: float = 0.1

        def __post_init__(self) -> None:
            _check_trade_off(self.trade_off)
            if not 0 <= self.last < 1:
                raise InputError(f"a share of {self.last}", where="last", remedy="0 to 1, such as 0.2")

    def phases(self) -> Sequence[Phase]:
        """See :class:`Method`."""
        return (Phase("train", 1 - self.config.last), Phase("fine-tune", self.config.last, lr=self.config.last_lr))

    def prepare(self, student: nn.Module, teacher: Teacher | None, example: Batch, data: ReplayableData) -> None:
        """Refuses a network that is no codec; see :class:`Method`."""
        check_codec(forward_heads(student, example.inputs), example.inputs, "student")

    def loss_weights(self) -> Mapping[str, float]:
        """See :class:`Method`."""
        return {"distortion": self.config.trade_off * 255**2}

    def loss_terms(self, batch: Batch, student: Output, teacher: Output) -> Terms:
        """``rate``, bits a pixel, and ``distortion``, the mean squared error."""
        return rate_and_distortion(student, batch)

    @classmethod
    def tiny_job(cls, seed: int) -> TrainingJob:
        """A job of a second: coloured waves."""
        student = build_with_seed(lambda: ImageCodec(**ImageCodec.options("small-student")), seed, "student")
        return TrainingJob(student, None, cls(), waves(seed), TrainingSettings(steps=4, batch_size=4, seed=seed), "codec")


def rate_and_distortion(output: Output, batch: Batch) -> Terms:
    """``rate`` in bits a pixel and ``distortion``, both means over the batch."""
    pixels = batch.inputs.shape[2] * batch.inputs.shape[3]
    rate = (output["bits_y"] + output["bits_z"]) / pixels
    return {
        "rate": losses.average(rate, batch.weights),
        "distortion": losses.feature_mse(output["logits"], batch.inputs, batch.weights),
    }


def _check_trade_off(value: float) -> None:
    if not value > 0:
        raise InputError(f"a trade-off is above 0, this is {value}", where="trade_off", remedy=f"usual: {TRADE_OFFS}")


def check_codec(output: Output, images: Tensor, whose: str) -> None:
    """Refuse heads that are not those of a codec.

    Raises:
        InputError: a head is missing, or the decoded images are not shaped as the images.
    """
    if missing := [name for name in HEADS if name not in output]:
        raise InputError(f"no head {', '.join(missing)}", where=whose, remedy=f"a codec returns {', '.join(HEADS)}: see ImageCodec")
    if not isinstance(images, Tensor) or output["logits"].shape != images.shape:
        raise InputError("its images are not shaped as the inputs", where=whose, remedy="give images [B, C, H, W] as inputs")


@system("feds", kind="compression")
class FEDS(Method):
    """Three phases teach a light image codec what a heavy one knows: its features, its richest channels, then rate alone.

    Phase ``features``: ``L = L_RD + beta1 lambda 255^2 L_feat``; ``L_feat`` is the mean over the levels of g_a and g_s of
    ``MSE(A(F_s), F_t) / Var(F_t)``, A a 1x1 convolution. Phase ``entropy``: ``L = L_RD + beta2 lambda 255^2 L_ent``,
    ``L_ent = sum_c w_c mean((Q(y_s)_c - y_t,c)^2 / (sigma_t,c^2 + eps)) + gamma sum_c w_c KL(N_t || N_Q)_c``, Q a 1x1
    convolution, ``w_c`` from the information ``H_c`` of the teacher's channels (:func:`channel_information`), averaged
    over phase 1 with decay 0.99 and then fixed. Phase ``fine-tune``: L_RD alone at a tenth of the learning rate, without
    the teacher. ``L_RD = bpp(y) + bpp(z) + lambda 255^2 MSE``. Adapters and Q are dropped at export.

    The abstract publishes the three phases; the equations are our choice. Both weights count in units of the distortion's
    weight: with ``beta1 = 1`` in the units of L_RD, which is 10 to 100 here, features changed nothing. The mean of Q's
    Gaussian is ``Q(mu_s)``, its variance ``Q^2 sigma_s^2`` with squared weights: that of independent channels.

    Heads of both networks: ``logits`` [B, C, H, W], the decoded images; ``bits_y``, ``bits_z`` [B]; ``latent``, ``mean``,
    ``scale`` [B, M, h, w]. Features: ``feature_names`` of the network, or the names of its sub-modules in the options.
    The data needs no labels. For figures give ``task="restoration"`` and data whose labels are the images themselves.

    What it cannot do: one model has one trade-off; a stream is read only where arithmetic is the same as where it was
    written (another device may round a scale otherwise: then :meth:`ImageCodec.decode` refuses, it never gives a wrong
    image). Published with figures for Kodak, Tecnick and CLIC: BD-rates within 0.55 to 1.24 % of the teacher's.

    Source: "Feature and entropy-based distillation for learned image compression" (Fu, Liang, Fang, Han, 2025,
    arXiv 2503.06399); no code is public.

    Raises:
        InputError: a network without a codec's heads or without these sub-modules, or maps of different sizes.
    """

    Network = ImageCodec

    @dataclass(frozen=True)
    class Config:
        """``trade_off``: lambda. ``beta1``, ``beta2``, ``gamma``: weights as above; ``beta1_late``: of the features in
        phase 2. ``selection``, ``ratio``: see :func:`channel_weights`. ``shares``: of the three phases."""

        trade_off: float = 0.0483
        beta1: float = 0.1
        beta2: float = 0.003
        beta1_late: float = 0.0
        gamma: float = 0.0
        selection: Literal["soft", "top", "uniform"] = "soft"
        ratio: float = 0.5
        decay: float = 0.99
        eps: float = 1e-6
        shares: tuple[float, float, float] = (0.4, 0.4, 0.2)
        last_lr: float = 0.1
        student: tuple[str, ...] = ()
        teacher: tuple[str, ...] = ()

        def __post_init__(self) -> None:
            _check_trade_off(self.trade_off)
            if self.selection not in ("soft", "top", "uniform"):
                raise InputError(f"no selection {self.selection!r}", where="selection", remedy="soft, top or uniform")
            if not 0 < self.ratio <= 1:
                raise InputError(f"a ratio of {self.ratio}", where="ratio", remedy="above 0, at most 1; such as 0.5")
            if not 0 <= self.decay < 1:
                raise InputError(f"a decay of {self.decay}", where="decay", remedy="0 to 1, such as 0.99")
            if len(self.shares) != 3 or min(self.shares) < 0 or sum(self.shares) <= 0:
                raise InputError(f"shares {self.shares}", where="shares", remedy="three numbers, such as 0.4, 0.4, 0.2")

    def phases(self) -> Sequence[Phase]:
        """See :class:`Method`."""
        lr = (1.0, 1.0, self.config.last_lr)
        return tuple(Phase(*each) for each in zip(("features", "entropy", "fine-tune"), self.config.shares, lr, strict=True))

    def prepare(self, student: nn.Module, teacher: Teacher | None, example: Batch, data: ReplayableData) -> None:
        """Adapters and Q from the observed shapes; see :class:`Method`."""
        assert teacher is not None
        config, network = self.config, teacher.network
        self._student_taps = config.student or tuple(getattr(student, "feature_names", ()))
        self._teacher_taps = config.teacher or tuple(getattr(network, "feature_names", ()))
        if not self._student_taps or len(self._student_taps) != len(self._teacher_taps):
            message = f"{len(self._student_taps)} features of the student for {len(self._teacher_taps)} of the teacher"
            raise InputError(message, where="student", remedy="name as many sub-modules of both, level by level")
        self._hooks = FeatureHooks(student, self._student_taps)
        teacher.request_features(*self._teacher_taps)
        teacher_outputs, (output, features) = teacher(example), self._run(student, example)
        check_codec(output, example.inputs, "student")
        check_codec(teacher_outputs, example.inputs, "teacher")
        pairs = [
            *(
                (name, features[name], teacher_outputs[goal])
                for name, goal in zip(self._student_taps, self._teacher_taps, strict=True)
            ),
            ("latent", output["latent"], teacher_outputs["latent"]),
        ]
        for name, own, goal in pairs:
            if own.ndim != 4 or goal.ndim != 4 or own.shape[2:] != goal.shape[2:]:
                message = f"student's map {list(own.shape)}, teacher's {list(goal.shape)}"
                raise InputError(message, where=name, remedy="both need the same strides, level by level")
        self.adapters = nn.ModuleList(nn.Conv2d(own.shape[1], goal.shape[1], 1) for _, own, goal in pairs[:-1])
        self.to_teacher_latent = nn.Conv2d(output["latent"].shape[1], teacher_outputs["latent"].shape[1], 1)
        self.register_buffer(
            "information", channel_information(teacher_outputs["latent"], teacher_outputs["mean"], teacher_outputs["scale"])
        )

    def _run(self, student: nn.Module, batch: Batch) -> tuple[Output, Output]:
        with self._hooks as features:
            output = forward_heads(student, batch.inputs)
        return output, features

    def forward(self, batch: Batch, student: nn.Module, teacher: Teacher | None) -> tuple[Output, Output]:
        """One pass of each, of the student alone in the last phase; features beside the heads."""
        assert teacher is not None
        if self.progress.phase.name == "fine-tune":
            return forward_heads(student, batch.inputs), {}
        teacher_outputs = teacher(batch)
        output, features = self._run(student, batch)
        if self.progress.phase.name == "features" and self.training:
            seen = channel_information(teacher_outputs["latent"], teacher_outputs["mean"], teacher_outputs["scale"])
            self.information = torch.lerp(seen, self.information, self.config.decay)
        return output | features, teacher_outputs

    def loss_weights(self) -> Mapping[str, float]:
        """See :class:`Method`."""
        config, distortion = self.config, self.config.trade_off * 255**2
        features = {"features": config.beta1, "entropy": config.beta1_late}.get(self.progress.phase.name, 0.0)
        entropy = config.beta2 if self.progress.phase.name == "entropy" else 0.0
        return {"distortion": distortion, "features": distortion * features, "entropy": distortion * entropy}

    def loss_terms(self, batch: Batch, student: Output, teacher: Output) -> Terms:
        """``rate``, ``distortion``, ``features`` and ``entropy``; the last two are 0 in phases that leave them out."""
        terms, weights = rate_and_distortion(student, batch), self.loss_weights()
        terms["features"] = terms["entropy"] = torch.zeros_like(terms["rate"])
        if weights["features"]:
            mapped = [adapter(student[name]) for adapter, name in zip(self.adapters, self._student_taps, strict=True)]
            terms["features"] = feature_loss(mapped, [teacher[name] for name in self._teacher_taps])
        if weights["entropy"]:
            terms["entropy"] = self._entropy_term(student, teacher)
        return terms

    def _entropy_term(self, student: Output, teacher: Output) -> Tensor:
        config, mapping = self.config, self.to_teacher_latent
        weights = channel_weights(self.information, config.selection, config.ratio)
        loss = entropy_loss(mapping(student["latent"]), teacher["latent"], teacher["scale"], weights, config.eps)
        if config.gamma:
            scale = F.conv2d(student["scale"].square(), mapping.weight.square()).clamp_min(config.eps).sqrt()
            divergence = gaussian_divergence(teacher["mean"], teacher["scale"], mapping(student["mean"]), scale)
            loss = loss + config.gamma * (weights * divergence.mean((0, 2, 3))).sum()
        return loss

    @classmethod
    def tiny_job(cls, seed: int, width: int = 1) -> TrainingJob:
        """A job of a second or two: coloured waves, small codecs."""
        sizes = [dict(ImageCodec.options(name)) for name in ("small-student", "small-teacher")]
        for size in sizes:
            size |= {name: width * size[name] for name in ("channels", "latent_channels")}
        student = build_with_seed(lambda: ImageCodec(**sizes[0]), seed, "student")
        teacher = build_with_seed(lambda: ImageCodec(**sizes[1]), seed, "teacher")
        return TrainingJob(student, teacher, cls(), waves(seed), TrainingSettings(steps=6, batch_size=4, seed=seed), "feds")


def waves(seed: int, count: int = 8, side: int = 32) -> TensorData:
    """Images [count, 3, side, side] in 0..1: two waves of random direction and colour each."""
    rng = torch_rng(seed, "waves")
    place = torch.linspace(0, 6, side)
    draws = torch.rand(count, 2, 6, 1, 1, generator=rng)
    phase = (8 * draws[:, :, 0] - 4) * place[:, None] + (8 * draws[:, :, 1] - 4) * place + 6 * draws[:, :, 2]
    return TensorData((0.5 + 0.25 * (draws[:, :, 3:6, 0, 0][..., None, None] * phase.sin()[:, :, None]).sum(1)).clamp(0, 1))
