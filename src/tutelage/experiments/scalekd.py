"""ScaleKD on Fashion-MNIST: a small CNN copies the last map of a small hierarchical transformer."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.distillation.data import Batch, ReplayableData, TensorData
from tutelage.distillation.feature_hooks import FeatureHooks
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.method import Method
from tutelage.distillation.outputs import Output, Terms, forward_heads
from tutelage.distillation.projections import Projection
from tutelage.distillation.supervised import Supervised
from tutelage.distillation.teacher import NetworkTeacher, Teacher
from tutelage.distillation.trainer import train
from tutelage.experiments import Experiment, better, not_worse
from tutelage.experiments._classification import accuracy, fashion, subset
from tutelage.seeds import torch_rng
from tutelage.systems._toy import build_with_seed
from tutelage.systems.kd import KD
from tutelage.systems.scalekd import ScaleKD, StagedCNN, StagedTransformer, center_maps

LAST = "stages.2"


class FeatureMSE(Method):
    """Feature distillation as the baseline ("FD"): labels, soft labels, and the squared distance of projected maps."""

    needs_labels = True

    def prepare(self, student: nn.Module, teacher: Teacher | None, example: Batch, data: ReplayableData) -> None:
        """A 1x1 convolution from the student's map to the teacher's."""
        assert teacher is not None
        teacher.request_features(LAST)
        self._taps = FeatureHooks(student, ["stages.3"])
        with self._taps as taken:
            forward_heads(student, example.inputs)
        self.projection = Projection(taken["stages.3"], teacher.uncached(example)[LAST])

    def forward(self, batch: Batch, student: nn.Module, teacher: Teacher | None) -> tuple[Output, Output]:
        """The student's logits and its projected map."""
        assert teacher is not None
        taught = teacher(batch)
        with self._taps as taken:
            said = forward_heads(student, batch.inputs)
        return said | {"map": self.projection(taken["stages.3"])}, taught

    def loss_terms(self, batch: Batch, student: Output, teacher: Output) -> Terms:
        """``label``, ``kd`` and ``map``."""
        kd = KD(tau=1.0, alpha=0.5).loss_terms(batch, student, teacher)
        return {"label": 0.5 * kd["label"], "kd": 0.5 * kd["kd"], "map": F.mse_loss(student["map"], teacher[LAST])}


def cosines(student_maps: Tensor, teacher_maps: Tensor) -> tuple[float, float]:
    """Mean cosine over positions of two maps, and without each channel's mean, %."""
    whole = F.cosine_similarity(student_maps, teacher_maps, dim=1).mean().item()
    return 100 * whole, 100 * F.cosine_similarity(center_maps(student_maps), center_maps(teacher_maps), dim=1).mean().item()


def run(seed: int, smoke: bool, all_arms: bool) -> Mapping[str, float]:
    """3,000 training images for the students; the transformer has seen all; equal steps and batches.

    Alignment is measured on held-out images: of FD's projection, and of ScaleKD's last projector of the direct view
    (of the alternative one for "centred").
    """
    everyone, test = fashion(seed)
    few = subset(everyone, torch.randperm(len(everyone), generator=torch_rng(seed, "few"))[: 100 if smoke else 3000])
    if smoke:
        everyone, test = few, subset(test, torch.arange(200))

    def taught(network: nn.Module, data: TensorData, method: Method, its_teacher: object, steps: int) -> nn.Module:
        settings = TrainingSettings(steps=2 if smoke else steps, batch_size=64, lr=2e-3, warmup=1 if smoke else 50, seed=seed)
        return train(TrainingJob(network, its_teacher, method, data, settings)).student

    start = build_with_seed(lambda: StagedTransformer((16, 32, 48), 10, depth=1, first=4), seed, "teacher")
    teacher = taught(start, everyone, Supervised(), None, 800)
    common = {"heads3": 4, "heads4": 4, "teacher": LAST, "path": (LAST,)}
    methods: dict[str, Method] = {
        "CE": Supervised(),
        "KD": KD(tau=1.0, alpha=0.5),
        "FD": FeatureMSE(),
        "ScaleKD": ScaleKD(**common),
        "no alternative view": ScaleKD(alternative_weight=0.0, **common),
    }
    if all_arms:
        methods["no TPP"] = ScaleKD(perceive=False, **common)
    live, held = NetworkTeacher(teacher, taps=[LAST]), Batch(test.inputs[:1000], test.labels[:1000])
    theirs, arms = live(held)[LAST], {"teacher": accuracy(teacher, test)}
    for name, method in methods.items():
        student = build_with_seed(lambda: StagedCNN((8, 16, 24, 32), 10), seed, "student")
        exported = taught(student, few, method, None if name == "CE" else NetworkTeacher(teacher, taps=[LAST]), 400)
        arms[name] = accuracy(exported, test)
        if name in ("CE", "KD"):
            continue
        with torch.no_grad():
            ours = method.eval()(held, student.eval(), NetworkTeacher(teacher, taps=[LAST]))[0]
        if name == "FD":
            arms["FD, cosine"], arms["FD, centred"] = cosines(ours["map"], theirs)
            continue
        arms[f"{name}, cosine"] = cosines(ours["direct4"], theirs)[0]
        arms[f"{name}, centred"] = cosines(ours["alternative4" if "alternative4" in ours else "direct4"], theirs)[1]
    return arms


experiment = Experiment(
    metric="test accuracy, %; 'cosine' of projected and teacher's map, %; 'centred': without each channel's mean",
    claims=[
        better("ScaleKD, cosine", "FD, cosine"),
        better("ScaleKD, centred", "no alternative view, centred"),
        not_worse("ScaleKD", "CE", 0.0),
    ],
    run=run,
    limits="A transformer of 60,000 weights trained on the same kind of images: it has no pretraining to pass on, so that "
    "neither the ImageNet figures nor the saving of samples can be seen here.",
)
