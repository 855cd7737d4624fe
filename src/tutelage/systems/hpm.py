"""Pretrain a vision transformer on images without labels, masking the patches that a moving average finds hard to rebuild::

    import tutelage
    from tutelage.distillation.teacher import EMATeacher
    from tutelage.networks.vit import VisionTransformer
    from tutelage.systems.hpm import HPM, HPMNetwork, published_decay

    network = HPMNetwork(VisionTransformer(28, 4, in_chans=1, positions="sincos"), in_chans=1)
    teacher = EMATeacher(network, published_decay(steps_per_epoch=47))
    encoder = tutelage.distill(network, teacher, images, HPM(teacher_view="masked"), epochs=200).student

It exports the encoder, without decoders. There is no recipe: the teacher is the average of this very student.

The network is a masked autoencoder with a second decoder, which predicts how hard each patch is. In a step

1. the teacher, the student's moving average, sees the whole image, and its second decoder scores every patch;
2. of the ``M = N - floor(N (1 - mask_ratio))`` places to mask, ``floor(M alpha)`` go to the highest scores, the others to patches
   at random; alpha rises from ``hard_start`` to ``hard_end`` over the run;
3. the student rebuilds the masked patches: ``l_i = mean (prediction - target)^2``, ``L_rec = mean l_i``;
4. its second decoder learns the order of the ``l_i`` of an image, which carry no gradient, with scores ``p``:
   ``L_pred = -mean log(sigma(p_i - p_j) + 1e-6)`` over the batch's pairs with ``l_i > l_j``; or, with
   ``prediction="absolute"``, the standardised ``l_i`` themselves.

The loss is ``L_rec + L_pred``; both reach the encoder. The decoders share the embedding of what they read, and the mask token.

``teacher_view="masked"`` is our change. The second decoder learns on masked patches alone, and is never trained on visible
ones, which it is then asked about. Here the teacher makes two passes in which every patch is masked once or twice, and a patch's
difficulty is the mean over the passes that masked it. It needs a mask ratio of 0.5 or more, and the two passes on the visible
quarter cost less than one on all. The default is as published.

Clips work as images do (``VisionTransformer((8, 32, 32), (2, 8, 8))``). With ``tube=True`` a mask is the same at all times, and
scores are the mean over time before they are ranked (our choice).

Inside SDVP: pretrain a module's ViT on the crops that programs make, for which there are no labels.

Limits: a step's alpha follows the run's steps, where the authors' code changes it once an epoch. Targets are pixels, raw or
standardised by patch; targets from another network's features are left out. On images where position tells what is hard, the
scores may hold no more than that: compare with the mean loss of each position, as the experiment does.

Source: Hard Patches Mining for Masked Image Modeling (Wang, Song, Fan, Wang, Xie and Zhang, 2023, arXiv 2304.05919), and Bootstrap
Masked Visual Modeling via Hard Patches Mining (Wang, Fan, Wang, Song, Wang, Zhang and Zhang, 2023, arXiv 2312.13714).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.distillation.data import Batch, ReplayableData, hash64
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.masks import hard_mask, masked_count, random_mask
from tutelage.distillation.method import Method
from tutelage.distillation.outputs import Output, Terms, forward_heads
from tutelage.distillation.teacher import EMATeacher, Teacher
from tutelage.errors import InputError
from tutelage.fields import check_range
from tutelage.networks.mae import MAEDecoder, patchify, reconstruction_error, standardize_patches
from tutelage.networks.vit import VisionTransformer, mask_indices
from tutelage.registry import system
from tutelage.systems._toy import build_with_seed, toy_images


class HPMNetwork(nn.Module):
    """A masked autoencoder with a second decoder for the difficulty of patches.

    Args:
        encoder: reads the visible patches.
        in_chans: channels of the images.
        dim: width of the decoders; 512 in the published model.
        depth: their blocks; 8.
        num_heads: of each block; 16.
    """

    def __init__(self, encoder: VisionTransformer, in_chans: int = 3, dim: int = 48, depth: int = 1, num_heads: int = 4):
        super().__init__()
        self.encoder = encoder
        pixels = math.prod(encoder.patch_embed.patch_size) * in_chans
        self.reconstruction = MAEDecoder(encoder.dim, encoder.grid, pixels, dim, depth, num_heads)
        self.difficulty = MAEDecoder(encoder.dim, encoder.grid, 1, dim, depth, num_heads)
        self.difficulty.embed, self.difficulty.mask_token = self.reconstruction.embed, self.reconstruction.mask_token

    @property
    def patches(self) -> int:
        """N, of an image of the size that the encoder was made for."""
        return math.prod(self.encoder.grid)

    def forward(self, images: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        """``pixels`` [B, N, P] and ``difficulty`` [B, N] of all patches in raster order.

        Args:
            images: [B, C, H, W], or clips [B, C, T, H, W].
            mask: [B, N], True: hidden from the encoder, equally many in every row; None: nothing is.

        Raises:
            InputError: a mask of another length, or rows with different numbers of masked patches.
        """
        if mask is None:
            mask = torch.zeros(len(images), self.patches, dtype=torch.bool, device=images.device)
        if mask.shape != (len(images), self.patches):
            raise InputError(f"a mask {list(mask.shape)}", where="mask", remedy=f"[{len(images)}, {self.patches}]")
        keep, _ = mask_indices(mask)
        features = self.encoder.forward_features(images, keep)
        named = [states for name, states in features.items() if name != "patches"]
        prefix = torch.cat(named, 1) if named else None
        both = (decoder(features["patches"], keep, prefix=prefix) for decoder in (self.reconstruction, self.difficulty))
        pixels, difficulty = both
        return {"pixels": pixels, "difficulty": difficulty[..., 0]}


def published_decay(steps_per_epoch: int) -> Callable[[int], float]:
    """The decay of the moving average by the number of updates: 0.999, rising linearly to 0.9999 over 100 epochs."""
    check_range("steps_per_epoch", steps_per_epoch, 1, 10**9, whole=True)

    def decay(updates: int) -> float:
        return 0.999 + 0.0009 * min(1.0, updates / (100 * steps_per_epoch))

    return decay


def relative_loss(predicted: Tensor, losses: Tensor, eps: float = 1e-6) -> Tensor:
    """``-mean log(sigma(p_i - p_j) + eps)`` over all pairs of an image with ``l_i > l_j``, one mean for the batch; scalar.

    This is the published mean over ordered pairs, in which each pair stands twice with one value. Equal losses are no pair. A
    pair that is wrong by more than about 14 costs at most 13.8, and has hardly a gradient.

    Args:
        predicted: p [B, M].
        losses: l [B, M]; they get no gradient.
        eps: keeps the logarithm finite.

    Examples:
        >>> round(relative_loss(torch.zeros(1, 2), torch.tensor([[1.0, 2.0]])).item(), 6)
        0.693145
    """
    losses = losses.detach()
    harder = losses[:, :, None] > losses[:, None]
    costs = -((predicted[:, :, None] - predicted[:, None]).sigmoid() + eps).log()
    return (costs * harder).sum() / harder.sum().clamp_min(1)


def pair_agreement(predicted: Tensor, losses: Tensor) -> float:
    """The share of pairs of one row with different losses that the scores order alike, in 0..1; equal scores count half.

    Args:
        predicted: [B, M].
        losses: [B, M].
    """
    harder = losses[:, :, None] > losses[:, None]
    gaps = predicted[:, :, None] - predicted[:, None]
    right = (gaps > 0).double() + 0.5 * (gaps == 0).double()
    return float((right * harder).sum() / harder.sum().clamp_min(1))


def complementary_masks(seeds: Tensor, patches: int, ratio: float) -> tuple[Tensor, Tensor]:
    """Two masks [B, N] of equally many patches that together hide every patch: a random one, and all that it left visible with
    random others.

    Raises:
        InputError: a ratio below 0.5, with which two masks cannot hide all.
    """
    count = masked_count(patches, ratio)
    if 2 * count < patches:
        raise InputError(f"two masks of {ratio} cannot hide all patches", where="mask_ratio", remedy="0.5 or more")
    first = random_mask(seeds, patches, ratio, stream=111)
    second = hard_mask((~first).float(), seeds, patches, ratio, (patches - count) / count, stream=112)
    return first, second


@system("hpm", kind="pretraining")
class HPM(Method):
    """Mask what a moving average finds hard to rebuild, and learn to say what is hard.

    The student is an :class:`HPMNetwork`, the teacher its :class:`EMATeacher`; labels are not read.
    """

    deterministic_teacher = False
    student_heads = ("pixels", "difficulty")
    matched_heads = ()

    @dataclass(frozen=True)
    class Config:
        """See the module. ``weight`` is that of L_pred; ``standardize``: targets are standardised by patch."""

        mask_ratio: float = 0.75
        hard_start: float = 0.0
        hard_end: float = 0.5
        prediction: Literal["relative", "absolute"] = "relative"
        weight: float = 1.0
        standardize: bool = False
        teacher_view: Literal["full", "masked"] = "full"
        tube: bool = False

        def __post_init__(self) -> None:
            for name in ("mask_ratio", "hard_start", "hard_end"):
                check_range(name, getattr(self, name), 0.0, 1.0)
            check_range("weight", self.weight, 0.0, 1e6)
            for name, known in (("prediction", ("relative", "absolute")), ("teacher_view", ("full", "masked"))):
                if getattr(self, name) not in known:
                    raise InputError(f"unknown value {getattr(self, name)!r}", where=name, remedy=" or ".join(known))

    def prepare(self, student: nn.Module, teacher: Teacher | None, example: Batch, data: ReplayableData) -> None:
        """Check that student and teacher are of this kind, and that the mask leaves and hides something.

        Raises:
            InputError: they are not, or it does not.
        """
        if not isinstance(student, HPMNetwork):
            raise InputError(f"{type(student).__name__} has no second decoder", where="student", remedy="HPMNetwork(encoder)")
        count = masked_count(student.patches, self.config.mask_ratio)
        if not 0 < count < student.patches:
            remedy = "another ratio, or smaller patches"
            raise InputError(f"{count} of {student.patches} patches masked", where="mask_ratio", remedy=remedy)
        if not isinstance(teacher, EMATeacher) and self.config.hard_end:
            raise InputError("the teacher is no average of this student", where="teacher", remedy="EMATeacher(student, 0.999)")
        if self.config.tube and len(student.encoder.grid) != 3:
            raise InputError("images have no time", where="tube", remedy="leave it off, or give clips")
        if self.config.teacher_view == "masked":
            complementary_masks(torch.zeros(1, dtype=torch.int64), student.patches, self.config.mask_ratio)

    @property
    def hard_share(self) -> float:
        """alpha of this step: ``hard_start + (hard_end - hard_start) (step + 1) / steps``."""
        config = self.config
        share = config.hard_start + (config.hard_end - config.hard_start) * (self.progress.step + 1) / self.progress.steps
        return float(share)

    def scores(self, batch: Batch, seeds: Tensor, teacher: Teacher) -> Tensor:
        """The teacher's difficulty of every patch [B, N]."""
        if self.config.teacher_view == "full":
            return teacher(batch)["difficulty"]
        network = cast(HPMNetwork, teacher.network)
        masks = [one.to(batch.inputs.device) for one in complementary_masks(seeds, network.patches, self.config.mask_ratio)]
        passes = [teacher(replace(batch, inputs=(batch.inputs, mask)))["difficulty"] for mask in masks]
        total = sum((found * mask for found, mask in zip(passes, masks, strict=True)), start=torch.zeros_like(passes[0]))
        return total / (masks[0].int() + masks[1].int())

    def draw_mask(self, batch: Batch, student: HPMNetwork, teacher: Teacher | None) -> Tensor:
        """The mask of this step [B, N]: a function of sample numbers, view seeds, step and teacher."""
        seeds = _step_seeds(batch, self.progress.step)
        grid, tube = student.encoder.grid, self.config.tube
        places = math.prod(grid[1:]) if tube else student.patches
        hard = masked_count(places, self.config.mask_ratio) * self.hard_share >= 1
        scores = self.scores(batch, seeds, teacher) if hard and teacher is not None else None
        if scores is not None and tube:
            scores = scores.unflatten(1, (grid[0], places)).mean(1)
        mask = hard_mask(scores, seeds, places, self.config.mask_ratio, self.hard_share if hard else 0.0)
        return (mask.repeat(1, grid[0]) if tube else mask).to(batch.inputs.device)

    def forward(self, batch: Batch, student: nn.Module, teacher: Teacher | None) -> tuple[Output, Output]:
        """The student's heads under the mask of this step, and the mask itself."""
        mask = self.draw_mask(batch, cast(HPMNetwork, student), teacher)
        output = forward_heads(student, (batch.inputs, mask))
        pixels = patchify(batch.inputs, cast(HPMNetwork, student).encoder.patch_embed.patch_size)
        target = standardize_patches(pixels) if self.config.standardize else pixels
        return {**output, "mask": mask, "target": target}, {}

    def loss_terms(self, batch: Batch, student: Output, teacher: Output) -> Terms:
        """``reconstruction`` and ``difficulty``, of masked patches."""
        mask = student["mask"]
        errors = reconstruction_error(student["pixels"], student["target"])[mask].view(len(mask), -1)
        predicted = student["difficulty"][mask].view(len(mask), -1)
        if self.config.prediction == "relative":
            difficulty = relative_loss(predicted, errors)
        else:
            difficulty = F.mse_loss(predicted, standardize_patches(errors.detach()))
        return {"reconstruction": errors.mean(), "difficulty": difficulty}

    def loss_weights(self) -> dict[str, float]:
        """That of ``difficulty``."""
        return {"difficulty": self.config.weight}

    def export(self, student: nn.Module) -> nn.Module:
        """The encoder."""
        return super().export(cast(HPMNetwork, student).encoder)

    @classmethod
    def tiny_job(cls, seed: int, width: int = 1) -> TrainingJob:
        """Toy images of 8x8 pixels in 16 patches."""

        def build() -> HPMNetwork:
            encoder = VisionTransformer(8, 2, dim=16 * width, depth=1, num_heads=2, in_chans=1, positions="sincos")
            return HPMNetwork(encoder, in_chans=1, dim=16 * width, num_heads=2)

        student = build_with_seed(build, seed, "student")
        settings = TrainingSettings(steps=30, batch_size=16, lr=3e-3, seed=seed)
        return TrainingJob(student, EMATeacher(student, 0.9), cls(), toy_images(seed), settings)


def _step_seeds(batch: Batch, step: int) -> Tensor:
    """Seeds [B] of this step's masks: new ones for each sample and step, of data without random views too."""
    ids = torch.arange(len(batch)) if batch.ids is None else batch.ids.cpu()
    views = torch.zeros_like(ids) if batch.seeds is None else batch.seeds.cpu()
    hashed = hash64(hash64(ids.numpy().astype(np.uint64)) ^ views.numpy().astype(np.uint64))
    return torch.from_numpy((hash64(hashed ^ np.uint64(step)) >> np.uint64(33)).astype(np.int64))
