"""ND loss, KD++: regularise feature norm and direction (Wang et al., 2023, arXiv 2305.17007).

Detectors: :class:`RegionNDLoss` is the same loss on the embeddings of a box head, region by region. It trains a student's
backbone and box head on regions that the data brings::

    from tutelage.networks.region_classifier import RegionClassifier, sample_regions
    from tutelage.systems.nd_loss import RegionNDLoss

    # inputs {"images": [N, 3, H, W], "boxes": [N, R, 4]}; labels {"labels": [N, R], "offsets": [N, R, 4]}: see sample_regions
    student = RegionClassifier(small_backbone, in_chans=256, stride=16, num_classes=80)
    tutelage.distill(student, teacher, data, RegionNDLoss.preset("coco resnet101-resnet18"))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.distillation import losses
from tutelage.distillation.data import Batch, ReplayableData
from tutelage.distillation.feature_hooks import FeatureHooks
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.map_fusion import attention_fusions, fuse_maps, review_loss
from tutelage.distillation.method import Method
from tutelage.distillation.outputs import Output, Terms, forward_heads
from tutelage.distillation.teacher import Teacher
from tutelage.errors import InputError, did_you_mean
from tutelage.registry import system
from tutelage.systems._toy import SmallCNN, build_with_seed, class_ids, toy_images


def nd_loss(student: Tensor, teacher: Tensor, means: Tensor, labels: Tensor) -> Tensor:
    """``1 - <s, e_y> / max(||s||, ||t||)`` of each sample, [B]; ``e_y = c_y / ||c_y||``.

    student, teacher: embeddings [B, D]; means: the teacher's class means [K, D]; labels: [B]. Where ``||s|| < ||t||``
    the gradient is ``-e / ||t||`` (towards the class mean, the norm grows); elsewhere, a tie included, it is orthogonal
    to s. Both norms 0: the sample counts 1 and has no gradient (our choice).
    """
    direction = F.normalize(means.detach().to(student.dtype), dim=-1)[labels]
    own = torch.linalg.vector_norm(student, dim=-1)
    teacher_norm = torch.linalg.vector_norm(teacher.detach(), dim=-1)
    larger = torch.where(teacher_norm > own, teacher_norm, own)  # torch.maximum would split the gradient in halves at a tie
    empty = larger == 0
    along = (student * direction).sum(-1) / torch.where(empty, 1.0, larger)
    return 1.0 - torch.where(empty, 0.0, along)


def direction_loss(student: Tensor, means: Tensor, labels: Tensor) -> Tensor:
    """``1 - cos(s, c_y)`` of each sample, [B]: the direction alone."""
    return 1.0 - F.cosine_similarity(student, means.detach().to(student.dtype)[labels], dim=-1)


def norm_loss(student: Tensor, teacher: Tensor | None = None, step: float = 1.0) -> Tensor:
    """The norm alone, [B]: ``(||s||.detach() + r - ||s||)^2``, growth by steps of r; or, given ``teacher`` [B, D],
    ``(||s|| - ||t||)^2``."""
    own = torch.linalg.vector_norm(student, dim=-1)
    goal = own.detach() + step if teacher is None else torch.linalg.vector_norm(teacher.detach(), dim=-1)
    return (goal - own) ** 2


def correlation(student: Tensor, teacher: Tensor, tau: float) -> Tensor:
    """DIST's relation loss (Huang et al., 2022, equations 8-10), both weights 1: ``tau^2 (1 - mean Pearson r)`` over
    rows (classes of one sample) plus the same over columns (samples of one class). Scalar."""
    student_probabilities, teacher_probabilities = (student / tau).softmax(-1), (teacher.detach() / tau).softmax(-1)

    def distance(a: Tensor, b: Tensor) -> Tensor:
        a, b = a - a.mean(-1, keepdim=True), b - b.mean(-1, keepdim=True)
        return 1.0 - F.cosine_similarity(a, b, dim=-1).mean()

    return (
        tau
        * tau
        * (distance(student_probabilities, teacher_probabilities) + distance(student_probabilities.T, teacher_probabilities.T))
    )


Rows = Callable[[Batch, Tensor], tuple[Tensor, Tensor]]
"""From a batch and an output for it to the class [N] and the part of the output [N, ...] of all that has a class."""


def sample_rows(batch: Batch, output: Tensor) -> tuple[Tensor, Tensor]:
    """A row is a sample; labels [B]."""
    return class_ids(batch.labels), output


def region_rows(batch: Batch, output: Tensor) -> tuple[Tensor, Tensor]:
    """A row is a region; ``labels["labels"]`` [B, R], those below 0 are padding and left out; output [B, R, ...]."""
    if not isinstance(batch.labels, Mapping) or not {"labels", "offsets"} <= set(batch.labels):
        raise InputError("regions have no labels", where="labels", remedy="give {labels: [B, R], offsets: [B, R, 4]}")
    ids = batch.labels["labels"]
    if ids.shape != output.shape[:2]:
        raise InputError(f"labels {list(ids.shape)}, output {list(output.shape)}", where="labels", remedy="one a region: [B, R]")
    return ids[ids >= 0], output[ids >= 0]


@torch.no_grad()
def class_means(
    teacher: Teacher, data: ReplayableData, head: str, classes: int, batch_size: int = 512, rows: Rows = sample_rows
) -> Tensor:
    """The mean of the teacher's ``head`` [N, D] over each class of ``data``: [classes, D] float32, added up in float64.

    Samples are taken as they are, without augmentation. ``rows``: what has a class: samples, or :func:`region_rows`.

    Raises:
        InputError: a class has no sample.
    """
    sums, counts = None, torch.zeros(classes, dtype=torch.float64)
    for indices in torch.arange(len(data)).split(batch_size):
        batch = data.batch(indices, None)
        labels, features = (part.cpu() for part in rows(batch, teacher(batch)[head]))
        features = features.flatten(1).double()
        sums = torch.zeros(classes, features.shape[1], dtype=torch.float64) if sums is None else sums
        sums.index_add_(0, labels, features)
        counts += torch.bincount(labels, minlength=classes)
    if sums is None or bool((counts == 0).any()):
        absent = (counts == 0).nonzero()[:, 0].tolist()
        raise InputError(f"no sample of the classes {absent}", where="data", remedy="class means need every class")
    return (sums / counts[:, None]).float()


@system("nd-loss", kind="distillation")
class NDLoss(Method):
    """Feature norm and direction: student embeddings turn to the teacher's class means and grow to its norm.

    ``L = ce CE + kd min(1, epoch / W) KD_T + nd mean_i [1 - <s_i, e_y> / max(||s_i||, ||t_i||)]``, the epoch counted
    from 0, so that the first has no KD. ``base`` puts decoupled distillation, DIST or knowledge review in KD's place
    ("DKD++", "DIST++", "ReviewKD++"); the warm-up touches that term alone. ``feature`` chooses the baselines of the paper:
    the direction alone, or the norm alone by steps or to the teacher's.

    Review (Chen et al., 2021): ``student_maps`` and ``teacher_maps``, as many of each, the finest first, [B, C, H, W] or,
    as the deepest, an embedding; the student's, fused from the deepest on, are brought to the teacher's shapes and compared
    by hierarchical context (:mod:`tutelage.distillation.map_fusion`). The taps of the preset are those of
    :class:`~tutelage.distillation.small_models.ResNet`, behind the last ReLU (the authors': before it).

    The embeddings are taps: ``in:head`` is what goes into the sub-module ``head``. Where the student's width differs,
    the feature term sees ``BatchNorm1d -> Dropout(0.5) -> Linear`` of it, dropped at export. The class means are one
    pass of the teacher over the un-augmented training data, made in ``prepare``. ``nd = 0`` is plain KD bit for bit.

    Defaults: CIFAR-100, ResNet-56 to ResNet-20; :meth:`preset` has the paper's other weights.

    Raises:
        InputError: mixed labels, a class without samples, or no such sub-module.
    """

    tasks = ("classification",)
    needs_labels = True

    @dataclass(frozen=True)
    class Config:
        """Weights ``ce``, ``kd``, ``nd``; ``tau``: T; ``warmup``: W in epochs; ``tckd``, ``nckd``: weights inside
        ``base="dkd"``; ``step``: r of ``feature="norm-step"`` (its default is our choice)."""

        ce: float = 1.0
        kd: float = 1.0
        nd: float = 2.0
        tau: float = 4.0
        warmup: int = 20
        base: Literal["kd", "dkd", "dist", "review"] = "kd"
        feature: Literal["nd", "direction", "norm-step", "norm-match"] = "nd"
        tckd: float = 2.5
        nckd: float = 4.0
        step: float = 1.0
        student: str = "in:head"
        teacher: str = "in:head"
        student_maps: tuple[str, ...] = ()
        teacher_maps: tuple[str, ...] = ()

        def __post_init__(self) -> None:
            if (len(self.student_maps) != len(self.teacher_maps)) or (self.base == "review") != bool(self.student_maps):
                found = f"{len(self.student_maps)} and {len(self.teacher_maps)} maps for the base {self.base}"
                remedy = "as many of student and teacher for review, none for other bases"
                raise InputError(found, where="student_maps", remedy=remedy)
            for name, known in (("base", _BASES), ("feature", _FEATURES)):
                if getattr(self, name) not in known:
                    remedy = did_you_mean(str(getattr(self, name)), list(known))
                    raise InputError(f"unknown {name} {getattr(self, name)!r}", where=name, remedy=remedy)

    rows: Rows = staticmethod(sample_rows)

    def __init__(self, config: Config | None = None, **options: object):
        super().__init__(config, **options)
        self.register_buffer("means", torch.empty(0))
        self.adapter: nn.Module = nn.Identity()

    @classmethod
    def preset(cls, name: str, **changes: object) -> NDLoss:
        """The method with the paper's weights for a pair of networks, such as ``cifar100 resnet56-resnet20``.

        Raises:
            InputError: no such pair.
        """
        if name not in PRESETS:
            raise InputError(f"no preset {name!r}", remedy=did_you_mean(name, list(PRESETS)))
        return cls(**asdict(PRESETS[name]) | changes)

    def prepare(self, student: nn.Module, teacher: Teacher | None, example: Batch, data: ReplayableData) -> None:
        """Collects the class means and builds the adapter where widths differ; see :class:`Method`."""
        assert teacher is not None
        config = self.config
        own, other = ([config.student], [config.teacher]) if config.nd else ([], [])
        self._taps = FeatureHooks(student, [*own, *config.student_maps])
        for source in (teacher, teacher.uncached):
            source.request_features(*other, *config.teacher_maps)
        teacher_outputs = teacher(example)
        if config.student_maps:
            with self._taps as taken:
                forward_heads(student, example.inputs)
            goals = [as_map(teacher_outputs[name]) for name in config.teacher_maps]
            self.fusions = attention_fusions([as_map(taken[name]) for name in config.student_maps], goals)
        if config.nd == 0:
            return
        classes, device = teacher_outputs["logits"].shape[-1], teacher_outputs["logits"].device
        self.means = class_means(teacher.uncached, data, config.teacher, classes, rows=self.rows).to(device)
        student_outputs, _ = self(example, student, teacher)
        inner, outer = student_outputs["embedding"].shape[1], self.means.shape[1]
        if inner != outer:
            self.adapter = nn.Sequential(nn.BatchNorm1d(inner), nn.Dropout(0.5), nn.Linear(inner, outer))

    def forward(self, batch: Batch, student: nn.Module, teacher: Teacher | None) -> tuple[Output, Output]:
        """One pass of each; the student's ``embedding`` [B, D] beside its logits, and its fused maps ``review0`` …"""
        assert teacher is not None
        config, teacher_outputs = self.config, teacher(batch)
        if not self._taps.names:
            return forward_heads(student, batch.inputs), teacher_outputs
        with self._taps as taken:
            student_outputs = forward_heads(student, batch.inputs)
        if config.nd:
            student_outputs["embedding"] = self.rows(batch, taken[config.student])[1].flatten(1)
        if config.student_maps:
            fused = fuse_maps(self.fusions, [as_map(taken[name]) for name in config.student_maps])
            student_outputs |= {f"review{i}": value for i, value in enumerate(fused)}
        return student_outputs, teacher_outputs

    def loss_weights(self) -> Mapping[str, float]:
        """See :class:`Method`."""
        config = self.config
        rise = min(1.0, int(self.progress.epoch) / config.warmup) if config.warmup else 1.0
        weights = {"label": config.ce, config.base: config.kd * rise}
        return weights | {config.feature: config.nd} if config.nd else weights

    def loss_terms(self, batch: Batch, student: Output, teacher: Output) -> Terms:
        """``label``, the base's term under its name, and the feature's under its."""
        config, labels = self.config, class_ids(batch.labels)
        student_logits, teacher_logits = student["logits"], teacher["logits"]
        terms = {"label": losses.cross_entropy(student_logits, labels, batch.weights)}
        match config.base:
            case "kd":
                terms["kd"] = losses.kd(student_logits, teacher_logits, config.tau, batch.weights)
            case "dkd":
                terms["dkd"] = losses.dkd(
                    student_logits, teacher_logits, labels, config.tckd, config.nckd, config.tau, batch.weights
                )
            case "dist":
                terms["dist"] = correlation(student_logits, teacher_logits, config.tau)
            case "review":
                goals = [as_map(teacher[name]) for name in config.teacher_maps]
                terms["review"] = review_loss([student[f"review{i}"] for i in range(len(goals))], goals)
        if config.nd:
            feature = self._feature(self.adapter(student["embedding"]), teacher[config.teacher], labels)
            terms[config.feature] = losses.average(feature, batch.weights)
        return terms

    def _feature(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        match self.config.feature:
            case "direction":
                return direction_loss(student, self.means, labels)
            case "norm-step":
                return norm_loss(student, step=self.config.step)
            case "norm-match":
                return norm_loss(student, teacher.flatten(1))
        return nd_loss(student, teacher.flatten(1), self.means, labels)

    @classmethod
    def tiny_job(cls, seed: int) -> TrainingJob:
        """A training job of a second; the widths differ, so that the adapter is in it."""
        student = build_with_seed(lambda: SmallCNN(4, 4, 8), seed, "student")
        teacher = build_with_seed(lambda: SmallCNN(4, 8, 16), seed, "teacher")
        settings = TrainingSettings(steps=8, batch_size=16, seed=seed)
        return TrainingJob(student, teacher, cls(warmup=1), toy_images(seed), settings, "nd-loss")


class RegionNDLoss(NDLoss):
    """KD++ of a two-stage detector: the loss of :class:`NDLoss` on the regions of a box head, the background one more class.

    ``L = ce CE + kd KD_1 + nd ND + box SmoothL1``, means over all regions; the last, summed over the four offsets, counts
    regions of objects alone (Girshick, 2015). Student and teacher see the same regions. Their networks are such as
    :class:`~tutelage.networks.region_classifier.RegionClassifier`: heads ``logits`` [B, R, K + 1], the last class the
    background, and of the student ``offsets`` [B, R, 4]; taps of the embeddings [B, R, D]. Labels: ``labels`` [B, R], those
    below 0 are padding, and ``offsets`` [B, R, 4]; :func:`~tutelage.networks.region_classifier.sample_regions` makes them.
    ``base="review"`` compares maps of the backbone. The loss of a proposal network is not part of it: the data brings the
    regions, where the authors take those that the student proposes.
    """

    tasks = ()
    student_heads = ("logits", "offsets")
    rows: Rows = staticmethod(region_rows)

    @dataclass(frozen=True)
    class Config(NDLoss.Config):
        """Defaults: COCO, Faster R-CNN, ResNet-101 to ResNet-18; ``box``: weight of the offsets."""

        nd: float = 1.5
        tau: float = 1.0
        warmup: int = 0
        student: str = "in:classify"
        teacher: str = "in:classify"
        box: float = 1.0

    def forward(self, batch: Batch, student: nn.Module, teacher: Teacher | None) -> tuple[Output, Output]:
        """The heads of all regions that have a class, as rows."""
        student_outputs, teacher_outputs = super().forward(batch, student, teacher)
        for outputs, names in ((student_outputs, self.student_heads), (teacher_outputs, ("logits", self.config.teacher))):
            outputs |= {name: self.rows(batch, outputs[name])[1] for name in names if name in outputs}
        return student_outputs, teacher_outputs

    def loss_weights(self) -> Mapping[str, float]:
        """See :class:`Method`."""
        return {**super().loss_weights(), "box": self.config.box}

    def loss_terms(self, batch: Batch, student: Output, teacher: Output) -> Terms:
        """Those of :class:`NDLoss`, and ``box``."""
        assert isinstance(batch.labels, Mapping)
        labels, goals = self.rows(batch, batch.labels["offsets"])
        weights = batch.weights
        if weights is not None:
            weights = self.rows(batch, weights[:, None].expand_as(batch.labels["labels"]))[1]
        terms = super().loss_terms(Batch(None, labels, weights=weights), student, teacher)
        apart = F.smooth_l1_loss(student["offsets"], goals, reduction="none").sum(-1)
        holds_object = labels != student["logits"].shape[-1] - 1
        return terms | {"box": losses.average(apart * holds_object, weights)}


def as_map(features: Tensor) -> Tensor:
    """A map [B, C, H, W] as itself, a vector [B, C] as a map of one place.

    Raises:
        InputError: features of another kind.
    """
    if features.ndim not in (2, 4):
        raise InputError(f"no map: {list(features.shape)}", where="student_maps", remedy="tap [B, C, H, W], or [B, C]")
    return features if features.ndim == 4 else features[:, :, None, None]


_BASES = ("kd", "dkd", "dist", "review")
_RESNET_MAPS = ("layer1", "layer2", "layer3", "in:head")
_FEATURES = ("nd", "direction", "norm-step", "norm-match")
_CIFAR, _IMAGENET = NDLoss.Config(), NDLoss.Config(tau=1.0, warmup=5)
_COCO = RegionNDLoss.Config()
PRESETS: Mapping[str, NDLoss.Config] = MappingProxyType(
    {
        f"cifar100 {pair}": replace(_CIFAR, kd=kd, nd=nd)
        for pair, kd, nd in (
            ("resnet56-resnet20", 1.0, 2.0),
            ("resnet32x4-resnet8x4", 3.5, 2.0),
            ("wrn40_2-wrn40_1", 1.0, 1.5),
            ("resnet50-mobilenetv2", 3.0, 0.5),
            ("resnet32x4-shufflenetv1", 2.5, 1.5),
            ("resnet32x4-shufflenetv2", 4.0, 0.5),
        )
    }
    | {
        f"imagenet {pair}": replace(_IMAGENET, kd=kd, nd=nd)
        for pair, kd, nd in (
            ("resnet34-resnet18", 2.5, 1.0),
            ("resnet50-resnet18", 4.0, 1.0),
            ("resnet101-resnet18", 3.5, 4.0),
            ("resnet152-resnet18", 4.0, 2.0),
            ("resnet50-mobilenetv1", 4.0, 1.0),
        )
    }
    | {
        "cifar100 resnet56-resnet20 dkd++": replace(_CIFAR, base="dkd", nd=3.5),
        "cifar100 resnet56-resnet20 dist++": replace(_CIFAR, base="dist", kd=2.0, nd=1.0),
        "cifar100 resnet56-resnet20 reviewkd++": replace(
            _CIFAR, base="review", kd=1.2, nd=1.0, student_maps=_RESNET_MAPS, teacher_maps=_RESNET_MAPS
        ),
    }
    | {
        f"coco {pair}": replace(_COCO, nd=nd)
        for pair, nd in (("resnet101-resnet18", 1.5), ("resnet101-resnet50", 1.0), ("resnet50-mobilenetv2", 1.0))
    }
)
"""The paper's weights: KD++ unless the name says otherwise; ``coco``: of :class:`RegionNDLoss`."""
