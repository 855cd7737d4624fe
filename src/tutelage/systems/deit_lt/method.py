"""DeiT-LT: distillation for vision transformers on long-tailed data (Rangwani et al., CVPR 2024, arXiv 2404.02900)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.distillation.augmentation import draw_mixup
from tutelage.distillation.data import Batch, ReplayableData, TensorData
from tutelage.distillation.data.repeated import RepeatedData
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.method import Method
from tutelage.distillation.outputs import Output, Terms, forward_heads
from tutelage.distillation.teacher import Teacher
from tutelage.errors import InputError
from tutelage.networks.attention import TransformerBlock
from tutelage.registry import system
from tutelage.systems._toy import SmallCNN, build_with_seed, class_ids, toy_images

# -- long-tailed data ------------------------------------------------------------------------------------------------


def long_tailed_counts(largest: int, factor: float, classes: int) -> list[int]:
    """Samples a class, ``int(largest factor^(k / (classes - 1)))``; ``factor``: smallest over largest."""
    return [int(largest * factor ** (k / (classes - 1))) for k in range(classes)]


def long_tailed_subset(labels: Tensor, counts: Sequence[int], rng: torch.Generator) -> Tensor:
    """Sorted sample numbers: ``counts[k]`` of class k, drawn without repetition.

    Raises:
        InputError: a class has fewer samples than asked.
    """
    chosen = []
    for k, count in enumerate(counts):
        of_class = (labels == k).nonzero()[:, 0]
        if len(of_class) < count:
            raise InputError(f"class {k} has {len(of_class)} samples, {count} are asked", where="counts")
        chosen.append(of_class[torch.randperm(len(of_class), generator=rng)[:count]])
    return torch.cat(chosen).sort().values


def effective_weights(counts: Sequence[int], beta: float = 0.9999) -> Tensor:
    """Class weights ``(1 - b) / (1 - b^n_k)``, scaled to sum to the classes' number K: [K] (Cui et al., 2019).

    Raises:
        InputError: a class without samples, or ``beta`` outside [0, 1).
    """
    if min(counts) < 1 or not 0 <= beta < 1:
        raise InputError(
            f"smallest count {min(counts)}, beta {beta}", where="class weights", remedy="counts from 1, beta in [0, 1)"
        )
    raw = (1 - beta) / (1 - beta ** torch.tensor(counts, dtype=torch.float64))
    return (raw / raw.sum() * len(counts)).float()


def group_accuracy(predicted: Tensor, labels: Tensor, bounds: tuple[int, int]) -> dict[str, float]:
    """``overall``, and ``head``, ``mid``, ``tail``: the mean accuracy of the classes below ``bounds[0]``, of those
    below ``bounds[1]``, and of the rest (classes sorted from the commonest). In 0..1; both tensors [N]."""
    right = (predicted == labels).double()
    by_class = torch.stack([right[labels == k].mean() for k in range(int(labels.max()) + 1)])
    head, mid, tail = by_class.tensor_split(list(bounds))
    groups = {"head": head, "mid": mid, "tail": tail}
    return {"overall": right.mean().item()} | {name: group.mean().item() for name, group in groups.items()}


# -- the student -----------------------------------------------------------------------------------------------------


class DistilledViT(nn.Module):
    """A vision transformer with two extra tokens, [CLS, DIST, patches], each with its own linear head.

    [B, inputs, side, side] -> ``{"logits": (cls + dist) / 2, "cls", "dist"}``, each [B, classes], and the final tokens
    ``z_cls`` and ``z_dist`` [B, width]. The positional table has a row for every token, extra ones too. CLS starts at
    normal(1e-6), DIST and positions at truncated normal(0.02).
    """

    def __init__(
        self,
        classes: int = 10,
        image_size: int = 8,
        patch: int = 2,
        dim: int = 64,
        depth: int = 4,
        heads: int = 4,
        inputs: int = 1,
    ):
        super().__init__()
        self.patches = nn.Conv2d(inputs, dim, patch, patch)
        self.cls_token, self.dist_token = nn.Parameter(torch.empty(1, 1, dim)), nn.Parameter(torch.empty(1, 1, dim))
        self.positions = nn.Parameter(torch.empty(1, (image_size // patch) ** 2 + 2, dim))
        self.blocks = nn.Sequential(*(TransformerBlock(dim, heads, tap_weights=True, eps=1e-6) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.cls_head, self.dist_head = nn.Linear(dim, classes), nn.Linear(dim, classes)
        nn.init.normal_(self.cls_token, std=1e-6)
        nn.init.trunc_normal_(self.dist_token, std=0.02)
        nn.init.trunc_normal_(self.positions, std=0.02)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """The heads, and the two final tokens."""
        x = self.patches(images).flatten(2).transpose(1, 2)
        extra = torch.cat([self.cls_token, self.dist_token], 1).expand(len(x), -1, -1)
        x = self.norm(self.blocks(torch.cat([extra, x], 1) + self.positions))
        z_cls, z_dist = x[:, 0], x[:, 1]
        cls, dist = self.cls_head(z_cls), self.dist_head(z_dist)
        return {"logits": (cls + dist) / 2, "cls": cls, "dist": dist, "z_cls": z_cls, "z_dist": z_dist}


# -- the method ------------------------------------------------------------------------------------------------------


def mixup_cutmix(images: Tensor, targets: Tensor, mixup: float, cutmix: float) -> tuple[Tensor, Tensor]:
    """Mixup or CutMix (chosen evenly where both are on) of a batch with itself in reverse order, one ratio a batch.

    images [B, C, H, W]; targets [B, K] probabilities; ``mixup``, ``cutmix``: the alpha of Beta(alpha, alpha), 0: off.
    Labels are mixed by the pixels really kept. The seed is drawn from the global generator, which the trainer seeds for
    every pass, so that a resumed run mixes the same.
    """
    if not (mixup or cutmix):
        return images, targets
    how = draw_mixup(int(torch.randint(2**31, ())), images.shape[2], images.shape[3], mixup, cutmix)
    other = images.flip(0)
    if how.box is None:
        images = how.lam * images + (1 - how.lam) * other
    else:
        top, bottom, left, right = how.box
        images = images.clone()
        images[:, :, top:bottom, left:right] = other[:, :, top:bottom, left:right]
    return images, how.lam * targets + (1 - how.lam) * targets.flip(0)


CIFAR = TrainingSettings(epochs=1200, batch_size=512, lr=5e-4, warmup_epochs=5, weight_decay=0.05, ema=0.99996)


@system("deit-lt", kind="distillation")
class DeiTLT(Method):
    """DeiT-LT: a DIST token learns hard labels from a CNN on strongly augmented images, with deferred re-weighting.

    ``L = (1 - a) L_cls(l_cls, y) + a CE_w(l_dist, argmax f_T(x))``, x the very images the student sees: images the
    teacher was never trained on. Before the epoch ``drw``: x is mixed (Mixup, CutMix), ``L_cls`` is the soft-target
    cross-entropy on mixed labels, smoothed before mixing, and w = 1. From it on: no mixing, plain cross-entropy, and
    w the effective-number weights, indexed by the teacher's label; ``CE_w`` is the weighted mean, divided by the sum
    of the weights of the targets present. The DIST head becomes the expert of the tail, CLS of the head.

    Student heads: ``cls``, ``dist`` [B, K], as of :class:`DistilledViT`; teacher: ``logits`` [B, K]; labels [B] class
    ids. Other augmentation is the data's part (``views``, and :class:`~tutelage.distillation.data.repeated.RepeatedData`
    for repeated augmentation). Teachers are trained with :class:`~tutelage.systems.deit_lt.teachers.LDAM` or
    :class:`~tutelage.systems.deit_lt.teachers.PaCo`, by sharpness-aware minimisation, or with
    :class:`~tutelage.systems.deit_lt.teachers.SharpnessAware` alone.
    Defaults: CIFAR. The settings below keep a moving average, as published; it is exported, while the paper's figures are the
    raw model's: ``ema=None`` gives that. The soft-distillation branch of the authors' code is left out: it weights
    log-probabilities.

    Raises:
        InputError: labels that are already mixed, or a class without samples.
    """

    TRAINING = {"cifar": CIFAR, "imagenet-lt": replace(CIFAR, epochs=1400), "inaturalist": replace(CIFAR, epochs=1000)}
    tasks = ("classification",)
    needs_labels = True
    student_heads = ("cls", "dist")
    deterministic_teacher = False  # it is asked on the mixed images

    @dataclass(frozen=True)
    class Config:
        """``a``: the weight of DIST. ``drw``: the epoch from which the loss is re-weighted (None: never).
        ``keep_mixing``: after it too, as the released ImageNet-LT and iNaturalist scripts do. ``counts``: training
        samples a class; empty: counted from the data. ``teacher_side``: its image size; None: the student's."""

        a: float = 0.5
        drw: int | None = 1100
        keep_mixing: bool = False
        beta: float = 0.9999
        mixup: float = 0.8
        cutmix: float = 1.0
        smoothing: float = 0.1
        counts: tuple[int, ...] = ()
        teacher_side: int | None = None

    def __init__(self, config: Config | None = None, **options: object):
        super().__init__(config, **options)
        self.register_buffer("class_weights", torch.empty(0))

    @property
    def deferred(self) -> bool:
        """Whether training has reached the re-weighted phase; the phase changes with the epoch."""
        return self.config.drw is not None and int(self.progress.epoch) >= self.config.drw

    def prepare(self, student: nn.Module, teacher: Teacher | None, example: Batch, data: ReplayableData) -> None:
        """The class weights; see :class:`Method`."""
        assert teacher is not None
        logits = self._teacher_logits(teacher, example, example.inputs)
        counts = list(self.config.counts) or class_counts(data, logits.shape[1])
        if len(counts) != logits.shape[1]:
            raise InputError(f"{len(counts)} counts for {logits.shape[1]} classes", where="counts")
        self.class_weights = effective_weights(counts, self.config.beta).to(logits.device)

    def forward(self, batch: Batch, student: nn.Module, teacher: Teacher | None) -> tuple[Output, Output]:
        """Teacher and student on the same images, mixed before the deferred phase; ``labels`` [B, K] beside the
        teacher's logits are the mixed ones."""
        assert teacher is not None
        images, config = batch.inputs, self.config
        targets = F.one_hot(class_ids(batch.labels), len(self.class_weights)).to(images.dtype)
        mixing = not self.deferred or config.keep_mixing
        if mixing:
            targets = targets * (1 - config.smoothing) + config.smoothing / targets.shape[1]
            images, targets = mixup_cutmix(images, targets, config.mixup, config.cutmix)
        targets_and_logits = {"logits": self._teacher_logits(teacher, batch, images), "labels": targets}
        return forward_heads(student, images), targets_and_logits

    def _teacher_logits(self, teacher: Teacher, batch: Batch, images: Tensor) -> Tensor:
        if self.config.teacher_side is not None:
            images = F.interpolate(images, size=self.config.teacher_side, mode="bicubic")  # no antialiasing: as published
        return teacher.uncached(Batch(images, batch.labels, batch.ids, batch.seeds))["logits"]

    def loss_weights(self) -> Mapping[str, float]:
        """See :class:`Method`."""
        return {"cls": 1 - self.config.a, "dist": self.config.a}

    def loss_terms(self, batch: Batch, student: Output, teacher: Output) -> Terms:
        """``cls`` and ``dist``."""
        weights = self.class_weights if self.deferred else None
        return {
            "cls": F.cross_entropy(student["cls"], teacher["labels"]),
            "dist": F.cross_entropy(student["dist"], teacher["logits"].argmax(1), weight=weights),
        }

    @classmethod
    def tiny_job(cls, seed: int, width: int = 1) -> TrainingJob:
        """A training job of a second that reaches the deferred phase."""
        student = build_with_seed(lambda: DistilledViT(4, 8, 4, dim=16 * width, depth=2, heads=2), seed, "student")
        teacher = build_with_seed(lambda: SmallCNN(4, 8 * width, 16 * width), seed, "teacher")
        settings = TrainingSettings(steps=8, batch_size=16, seed=seed)
        return TrainingJob(student, teacher, cls(drw=1), toy_images(seed, 32), settings, "deit-lt")


def class_counts(data: ReplayableData, classes: int) -> list[int]:
    """Samples a class of data in memory.

    Raises:
        InputError: of other data they are not known.
    """
    if isinstance(data, RepeatedData):
        data = data.source
    if isinstance(data, TensorData):
        return torch.bincount(class_ids(data.labels), minlength=classes).tolist()
    raise InputError("class counts are not known", where="counts", remedy="give counts=(…), training samples a class")


# -- diagnostics -----------------------------------------------------------------------------------------------------


def attention_distance(attention: Tensor, columns: int, extra: int = 2) -> Tensor:
    """Mean distance in patches between the asking and the attended patch, weighted by attention: [heads].

    attention: [B, heads, N, N] with ``extra`` leading tokens that are left out; attention over patches is renormalised.
    """
    patches = attention[:, :, extra:, extra:]
    patches = patches / patches.sum(-1, keepdim=True).clamp_min(1e-12)
    place = torch.arange(patches.shape[-1], device=attention.device)
    grid = torch.stack([place // columns, place % columns], 1).to(attention.dtype)
    return (patches * torch.cdist(grid, grid)).sum(-1).mean((0, 2))


def feature_rank(features: Tensor, energy: float = 0.99) -> int:
    """How many singular values of ``features`` [N, D] hold this share of the energy (their squares' sum)."""
    squares = torch.linalg.svdvals(features.double()) ** 2
    return int((squares.cumsum(0) < energy * squares.sum()).sum()) + 1
