"""TransKD on drawn scenes: a half-size segmenter with few labels learns from the maps and patch embeddings of a large one."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from tutelage.distillation.data import Batch, TensorData
from tutelage.distillation.losses import kl_divergence
from tutelage.distillation.method import Method
from tutelage.distillation.outputs import Output, Terms
from tutelage.distillation.teacher import NetworkTeacher
from tutelage.experiments import Experiment, Figure, Metric, better
from tutelage.experiments._classification import SELECTION, train_student
from tutelage.seeds import torch_rng
from tutelage.systems._toy import build_with_seed
from tutelage.systems.transkd import SmallSegmenter, TransKD, mean_iou, segmentation_loss

CLASSES, SIDE = 5, 64
IOU, CKA, WEIGHTS = (
    "mean intersection over union, %",
    "CKA with the teacher's last patch embeddings, %",
    "weights, % of the teacher's",
)


def scenes(rng: torch.Generator, count: int) -> TensorData:
    """Images [count, 3, 64, 64] with labels [count, 64, 64]: a plain ground (0) and five discs whose stripes are the class.

    Stripes of classes 1 to 4 lie, stand, or run along one of the diagonals; colours are random, noise 0.1. The class is
    texture alone, which the patch embeddings see first.
    """
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    waves = (y, x, (x + y) / 2**0.5, (x - y) / 2**0.5)
    images, labels = torch.empty(count, 3, SIDE, SIDE), torch.zeros(count, SIDE, SIDE, dtype=torch.long)
    for scene in range(count):
        images[scene] = torch.rand(3, 1, 1, generator=rng)
        for _ in range(5):
            kind = int(torch.randint(1, CLASSES, (), generator=rng))
            row, column = torch.randint(8, SIDE - 8, (2,), generator=rng).tolist()
            radius = int(torch.randint(8, 15, (), generator=rng))
            phase = 2 * torch.pi * float(torch.rand((), generator=rng))
            painted = torch.rand(3, 1, 1, generator=rng) + 0.3 * torch.sin(1.6 * waves[kind - 1] + phase)
            inside = (y - row) ** 2 + (x - column) ** 2 < radius**2
            images[scene] = torch.where(inside, painted, images[scene])
            labels[scene][inside] = kind
    return TensorData(images + 0.1 * torch.randn(images.shape, generator=rng), labels)


class PixelDistillation(Method):
    """Cross-entropy, and with a teacher the softened logits of every place, T = 2: the baselines."""

    needs_teacher = False

    def loss_terms(self, batch: Batch, student: Output, teacher: Output) -> Terms:
        """``label``, and ``kd`` where there is a teacher."""
        terms = {"label": segmentation_loss(student["logits"], batch.labels)}
        if "logits" in teacher:
            student_logits, teacher_logits = (outputs["logits"].movedim(1, -1) for outputs in (student, teacher))
            terms["kd"] = kl_divergence(student_logits, teacher_logits, 2.0).mean()
        return terms


@torch.no_grad()
def score(network: SmallSegmenter, data: TensorData) -> float:
    """Mean intersection over union at full size, %."""
    confusion = torch.zeros(CLASSES, CLASSES, dtype=torch.long)
    for images, labels in zip(data.inputs.split(50), data.labels.split(50)):
        guess = F.interpolate(network(images), size=SIDE, mode="bilinear").argmax(1)
        confusion += torch.bincount((CLASSES * labels + guess).flatten(), minlength=CLASSES**2).view(CLASSES, CLASSES)
    return 100 * mean_iou(confusion)


@torch.no_grad()
def alignment(student: SmallSegmenter, teacher: SmallSegmenter, images: Tensor) -> float:
    """Linear CKA of the last patch embeddings (Kornblith et al., 2019), in 0..1, %."""
    found = []
    for network in (student, teacher):
        taps = [f"encoder.stages.{i}.embed" for i in range(4)]
        outputs = NetworkTeacher(network, taps=taps)(Batch(images))
        features = outputs[taps[-1]].flatten(0, 1)
        found.append(features - features.mean(0))
    a, b = found
    return 100 * ((a.T @ b).square().sum() / ((a.T @ a).norm() * (b.T @ b).norm())).item()


def run(seed: int, smoke: bool, all_arms: bool) -> Mapping[str, Figure]:
    """12 labelled scenes for the students, 800 for the teacher, which is twice as wide and deep; equal steps and starts."""
    few, more = (scenes(torch_rng(seed, part), 8 if smoke else count) for part, count in (("train", 12), ("more", 800)))
    test = scenes(torch_rng(seed, "selection" if seed in SELECTION else "report"), 8 if smoke else 100)
    settings = {"batch_size": 8, "lr": 2e-3, "warmup": 1 if smoke else 10, "schedule": "linear", "seed": seed}
    teacher = build_with_seed(lambda: SmallSegmenter((32, 48, 64, 96), CLASSES, depth=2), seed, "teacher")
    train_student(teacher, more, PixelDistillation(), steps=2 if smoke else 200, **settings)
    methods: dict[str, Method] = {
        "CE": PixelDistillation(),
        "logit KD": PixelDistillation(),
        "TransKD": TransKD(),
        "maps alone": TransKD(embeddings=0.0),
    }
    if all_arms:
        methods["CWD"] = TransKD(feature="cwd", embeddings=0.0)
        methods["TransKD-GL"], methods["TransKD-EA"] = TransKD(variant="gl"), TransKD(variant="ea")
    arms: dict[str, Figure] = {"teacher": {IOU: score(teacher, test), WEIGHTS: 100.0}}
    weights = sum(parameter.numel() for parameter in teacher.parameters())
    for name, method in methods.items():
        student = build_with_seed(lambda: SmallSegmenter((16, 24, 32, 48), CLASSES), seed, "student")
        own = 100 * sum(parameter.numel() for parameter in student.parameters()) / weights
        steps = 2 if smoke else 150
        exported = train_student(student, few, method, None if name == "CE" else teacher, steps=steps, **settings)
        assert isinstance(exported, SmallSegmenter)
        arms[name] = {IOU: score(exported, test), CKA: alignment(exported, teacher, test.inputs[:50]), WEIGHTS: own}
    return arms


experiment = Experiment(
    metric=IOU,
    further_metrics=[Metric(CKA), Metric(WEIGHTS, higher_is_better=False)],
    claims=[
        better("TransKD", "CE"),
        better("TransKD", "logit KD"),
        better("TransKD", "maps alone"),
        better("TransKD", "CE", metric=CKA),
        better("TransKD", "maps alone", metric=CKA),
        better("maps alone", "CE"),
    ],
    run=run,
    limits="Drawn scenes of 64x64 and students of 12 labels: no Cityscapes, ACDC or NYUv2; that distillation rivals pretraining "
    "cannot be tested here. The published gap between the variants (0.3 to 0.4 points) is below this experiment's noise, and its "
    "85 % fewer operations are not met by these sizes (74 %). On scenes whose classes are shapes the teacher knows too little to "
    "teach: TransKD 30.9, CE 31.0 (seed 100). With 24 labelled scenes, seeds 0 to 4 missed one claim, TransKD better than maps "
    "alone: +3.4 [-2.8, 9.6]. Then 300 steps and 12 scenes were tried on seeds 100 to 102 (+0.9 and +4.5); with 12, new seeds, 5 "
    "to 9, were run once.",
)
