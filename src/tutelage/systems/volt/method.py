"""Volt: a plain transformer on volumes learns from scarce scenes by augmentation, regularisation and a weaker teacher."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.distillation.data import Batch, ReplayableData
from tutelage.distillation.feature_hooks import FeatureHooks
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.method import Method
from tutelage.distillation.outputs import Output, Terms, forward_heads
from tutelage.distillation.teacher import Teacher
from tutelage.errors import InputError
from tutelage.networks.layers import init_weights
from tutelage.registry import system
from tutelage.systems._toy import build_with_seed
from tutelage.systems.volt.augment import IGNORED, SceneAugmentation, SceneDataset
from tutelage.systems.volt.network import ConvUNet, VoltNetwork
from tutelage.systems.volt.synthetic_rooms import CLASSES, room


def lovasz_softmax(probabilities: Tensor, labels: Tensor) -> Tensor:
    """The Lovász extension of the Jaccard loss (Berman, Triki, Blaschko, 2018, equation 11), mean over classes present.

    Probabilities [n, C], labels [n] in 0..C-1; 0 where there is no point.
    """
    present = labels.unique()
    if not len(present):
        return probabilities.sum() * 0
    truth = (labels[:, None] == present).to(probabilities.dtype)
    errors, order = (truth - probabilities[:, present]).abs().sort(0, descending=True)
    truth = truth.gather(0, order)
    total = truth.sum(0)
    jaccard = 1 - (total - truth.cumsum(0)) / (total + (1 - truth).cumsum(0))
    steps = torch.cat([jaccard[:1], jaccard[1:] - jaccard[:-1]])
    return (errors * steps).sum(0).mean()


@system("volt", kind="distillation")
class Volt(Method):
    """Volt: the training recipe of a volume transformer, its teacher a convolutional network that is weaker than it.

    "Volume Transformer: Revisiting Vanilla Transformers for 3D Scene Understanding" (Yilmaz, Kruse, Höfer, de Geus,
    Leibe, 2026). ``L = (1 - d) S(z, y) + d S(z', argmax t)`` with S cross-entropy of smoothed labels plus
    :func:`lovasz_softmax`, z the segmentation head, z' a second head of the same features (dropped at export), t the
    teacher's logits on the same augmented scene; the teacher labels ignored points too. Without a teacher, or with
    d = 0, only the first term remains.

    Scenes come from :class:`SceneDataset`, augmented by :class:`SceneAugmentation` (Mix3D among others); the regularisation is the
    network's ``drop_path``, the label smoothing and the weight decay. Heads: ``logits`` [n, C]; labels [n], -1: ignored.
    Published training is in the settings below (weight decay 0.1 for B); the decay of its moving average is not given in the
    paper: 0.999 is our choice. Several data sets are learned together
    by :class:`~tutelage.systems.volt.joint.JointTraining`; :class:`~tutelage.systems.volt.instances.InstanceTraining` trains an
    instance decoder on the network's voxels.
    """

    Network = VoltNetwork
    TRAINING = {
        "indoors": TrainingSettings(epochs=800, batch_size=16, lr=1e-3, warmup_epochs=40, weight_decay=0.05, ema=0.999),
        "nuscenes": TrainingSettings(epochs=50, batch_size=16, lr=2e-3, warmup_epochs=2, weight_decay=0.05, ema=0.999),
        "waymo": TrainingSettings(epochs=30, batch_size=16, lr=2e-3, warmup_epochs=1.2, weight_decay=0.05, ema=0.999),
        "semantickitti": TrainingSettings(epochs=20, batch_size=16, lr=2e-3, warmup_epochs=0.8, weight_decay=0.05, ema=0.999),
    }
    needs_labels = True
    needs_teacher = False
    deterministic_teacher = False  # a view holds a drawn second scene, and its answers have no row a sample: no cache fits

    @dataclass(frozen=True)
    class Config:
        """``distill``: weight d of the teacher's labels; ``smoothing``: of labels; ``lovasz``: weight of that term."""

        distill: float = 0.5
        smoothing: float = 0.1
        lovasz: float = 1.0

        def __post_init__(self) -> None:
            if not 0 <= self.distill < 1:
                raise InputError(f"{self.distill} leaves no weight for labels", where="distill", remedy="0 or more, below 1")

    def prepare(self, student: nn.Module, teacher: Teacher | None, example: Batch, data: ReplayableData) -> None:
        """The second head; see :class:`Method`."""
        if not isinstance(student, VoltNetwork):
            raise InputError("the student is no VoltNetwork", where="student", remedy='create("volt", …)')
        self.uses_teacher = teacher is not None and self.config.distill > 0
        self._taps = FeatureHooks(student, ["in:head"] if self.uses_teacher else [])
        if self.uses_teacher:
            self.head = nn.Linear(student.head.in_features, student.num_classes)
            init_weights(self.head)

    def forward(self, batch: Batch, student: nn.Module, teacher: Teacher | None) -> tuple[Output, Output]:
        """The logits of the student's and of the second head; the teacher's ``labels`` [n]."""
        if not self.uses_teacher or teacher is None:
            return forward_heads(student, batch.inputs), {}
        labels = teacher(batch)["logits"].argmax(-1)
        with self._taps as taken:
            student_outputs = dict(forward_heads(student, batch.inputs))
        return student_outputs | {"distilled": self.head(taken["in:head"])}, {"labels": labels}

    def loss_weights(self) -> Mapping[str, float]:
        """See :class:`Method`."""
        d = self.config.distill
        return {"label": 1 - d, "teacher": d} if self.uses_teacher else {"label": 1.0}

    def loss_terms(self, batch: Batch, student: Output, teacher: Output) -> Terms:
        """``label`` and, with a teacher, ``teacher``."""
        terms = {"label": self.criterion(student["logits"], batch.labels)}
        return terms | ({"teacher": self.criterion(student["distilled"], teacher["labels"])} if self.uses_teacher else {})

    def criterion(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of smoothed labels plus Lovász-softmax, over points with a label; 0 where there is none."""
        if not bool((labels != IGNORED).any()):
            return logits.sum() * 0
        loss = F.cross_entropy(logits, labels, ignore_index=IGNORED, label_smoothing=self.config.smoothing)
        if self.config.lovasz:
            known = labels != IGNORED
            loss = loss + self.config.lovasz * lovasz_softmax(logits[known].softmax(-1), labels[known])
        return loss

    @classmethod
    def tiny_job(cls, seed: int, width: int = 1) -> TrainingJob:
        """A training job of three seconds: eight rooms of 12 voxels a side, patches of 4."""
        options = {"width": 16 * width, "heads": 2, "depth": 2, "outputs": 8, "patch": 4, "drop_path": 0.1}
        student = build_with_seed(lambda: VoltNetwork(len(CLASSES), 6, **options), seed, "student")  # type: ignore[arg-type]
        teacher = build_with_seed(lambda: ConvUNet(len(CLASSES), 6, (4 * width, 8 * width)), seed, "teacher")
        data = SceneDataset([room(1000 * seed + i, 12, 3) for i in range(8)], SceneAugmentation())
        return TrainingJob(student, teacher, cls(), data, TrainingSettings(steps=6, batch_size=4, lr=3e-3, seed=seed), "volt")
