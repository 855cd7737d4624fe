"""TinyViT's stored labels: the label must follow the crop, and the teacher is paid once."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.distillation.augmentation import Augmentation
from tutelage.distillation.cache import CachedTeacher
from tutelage.distillation.cache_build import build
from tutelage.distillation.data import Batch, TensorData
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.outputs import Output
from tutelage.distillation.supervised import Supervised
from tutelage.distillation.teacher import NetworkTeacher, Teacher
from tutelage.distillation.trainer import train
from tutelage.experiments import Experiment, Figure, Metric, better, equal
from tutelage.experiments._classification import accuracy, digits, train_student
from tutelage.seeds import torch_rng
from tutelage.systems._backbone import count_parameters
from tutelage.systems._toy import SmallCNN, build_with_seed
from tutelage.systems.tinyvit import CandidateScorer, PublishedLabels, ShrinkSteps, TinyViT, TinyViTNetwork, contract, throughput

ACCURACY, AGREEMENT = "accuracy on single digits, %", "agreement with the teacher on views, %"
SPEED, BYTES = "steps a CPU second", "bytes a stored view"
SHRUNK, SIZE, RATE = "accuracy of networks on single digits, %", "parameters", "images a second"
PARTS = Augmentation(resize=(0.22, 0.35))
"""A view is a random part of 22 to 35 % of a scene."""


class OtherViewTeacher(Teacher):
    """A teacher that answers about another view of each image than the one it is shown: labels without their seed."""

    def __init__(self, teacher: NetworkTeacher, data: TensorData):
        self.teacher, self.data = teacher, data

    def predict(self, batch: Batch) -> Output:
        """The answers to other views of the same images."""
        assert batch.ids is not None and batch.seeds is not None
        return self.teacher(self.data.batch(batch.ids, batch.seeds ^ 0x5A5A5A))

    @property
    def fingerprint(self) -> str:
        """Not the teacher's own."""
        return "stale " + self.teacher.fingerprint


def scenes(images: Tensor, count: int, rng: torch.Generator) -> TensorData:
    """``count`` unlabelled scenes [1, 16, 16] of four different 8x8 ``images``, one a quadrant."""
    chosen = torch.stack([torch.randperm(len(images), generator=rng)[:4] for _ in range(count)])
    rows = [torch.cat([images[chosen[:, 2 * row + column]] for column in (0, 1)], 3) for row in (0, 1)]
    return TensorData(torch.cat(rows, 2), None, views=PARTS)


def enlarged(data: TensorData, views: Augmentation | None = None) -> TensorData:
    """Single digits at 16x16."""
    return TensorData(F.interpolate(data.inputs, scale_factor=2.0, mode="bilinear"), data.labels, views=views)


def run(seed: int, smoke: bool, all_arms: bool) -> Mapping[str, Figure]:
    """600 scenes in eight stored rounds of views; the teacher knows single digits, the student has no label; equal steps."""
    singles, test = digits(seed, 797)
    steps = 4 if smoke else 1500
    fields = {"steps": steps, "batch_size": 64, "lr": 5e-3, "seed": seed}
    teacher = build_with_seed(lambda: SmallCNN(10, 32, 64, stride=2), seed, "teacher")
    teacher = train_student(teacher, enlarged(singles, Augmentation(crop=2, resize=(0.6, 1.0))), **fields)  # type: ignore[assignment]
    live, data = NetworkTeacher(teacher), scenes(singles.inputs, 64 if smoke else 600, torch_rng(seed, "scenes"))
    held_out = scenes(test.inputs, 64 if smoke else 1000, torch_rng(seed, "held-out scenes"))
    views = held_out.batch(torch.arange(len(held_out)), torch.arange(len(held_out)) + 1)
    settings = TrainingSettings(**fields, views=1 if smoke else 8)

    def job(its_teacher: Teacher, k: int | None = None) -> TrainingJob:
        student = build_with_seed(lambda: SmallCNN(10, 8, 32, stride=2), seed, "student")
        return TrainingJob(student, its_teacher, TinyViT(k=k), data, settings)

    def measures(student: nn.Module) -> dict[str, float]:
        shown = TensorData(views.inputs, live(views)["logits"].argmax(1))
        return {ACCURACY: accuracy(student, enlarged(test)), AGREEMENT: accuracy(student, shown)}

    arms: dict[str, Figure] = {"teacher": {ACCURACY: accuracy(teacher, enlarged(test))}}
    arms["online"] = measures(train(job(live)).student)
    with tempfile.TemporaryDirectory() as folder:
        for k in (10, 5, 2):
            cache = build(job(live, k), Path(folder) / str(k), storage_format=f"top{k}")
            arms[f"stored, K = {k}"] = measures(train(job(CachedTeacher(cache, live))).student)
    arms["without replay"] = measures(train(job(OtherViewTeacher(live, data))).student)
    arms |= speeds(seed, smoke) | {f"a record of K = {k}": {BYTES: record_bytes(k)} for k in (10, 100)}
    return arms | (contracted(seed, smoke) if all_arms else {})


def speeds(seed: int, smoke: bool) -> dict[str, Figure]:
    """Steps a CPU second beside a large teacher: labels alone, stored, and online; single digits of 8x8."""
    data, _ = digits(seed, 300, Augmentation(crop=1))
    settings = TrainingSettings(steps=2 if smoke else 120, batch_size=60, lr=3e-3, seed=seed, views=2)
    large = NetworkTeacher(build_with_seed(lambda: SmallCNN(10, 64, 128), seed, "large teacher"))

    def timed(method: object, its_teacher: Teacher | None) -> float:
        student = build_with_seed(lambda: SmallCNN(10, 8, 32), seed, "student")
        began = time.process_time()
        train(TrainingJob(student, its_teacher, method, data, settings))  # type: ignore[arg-type]
        return settings.steps / (time.process_time() - began)

    with tempfile.TemporaryDirectory() as folder:
        start = build_with_seed(lambda: SmallCNN(10, 8, 32), seed, "student")
        cache = build(TrainingJob(start, large, TinyViT(k=5), data, settings), Path(folder), storage_format="top5")
        stored = timed(TinyViT(k=None), CachedTeacher(cache, large))
    return {
        "labels alone, large teacher idle": {SPEED: timed(Supervised(), None)},
        "stored, large teacher": {SPEED: stored},
        "online, large teacher": {SPEED: timed(TinyViT(k=None), large)},
    }


LARGE: dict[str, Any] = {
    "dims": (16, 24, 32, 40), "depths": (1, 1, 2, 1), "windows": (4, 2, 1), "mbconv_ratio": 3.0, "mlp_ratio": 3.0, "head_width": 8,
}  # fmt: skip
NARROW = LARGE | {"dims": (12, 16, 24, 32)}
"""Narrower in every stage."""


def contracted(seed: int, smoke: bool) -> dict[str, Figure]:
    """A network shrunk factor by factor, to the size of one that is narrowed evenly; its speed is limited from below too.

    Windows and the width of heads stay. The search scores candidates on a fifth of the training images; the test images are
    looked at once, by each network in the end, after equal steps.
    """
    singles, test = digits(seed, 797)
    data, test = enlarged(singles), enlarged(test)
    short = TrainingSettings(steps=2 if smoke else 40, batch_size=64, lr=4e-3, seed=seed)

    def network(sizes: Mapping[str, Any]) -> TinyViTNetwork:
        return build_with_seed(lambda: TinyViTNetwork(10, 1, **sizes), seed, "network")

    def rate(made: TinyViTNetwork) -> float:
        return throughput(made, 16, batch=64)

    start = network(LARGE)
    target = count_parameters(start) - 1 if smoke else count_parameters(network(NARROW))
    path = contract(
        LARGE, CandidateScorer(data, short, 10, 1, holdout=0.2), parameters=target, min_speed=0.5 * rate(start), speed=rate,
        shrink=ShrinkSteps(dims=8, windows=0, head_width=0), classes=10, in_chans=1, seed=seed,
    )  # fmt: skip
    arms: dict[str, Figure] = {}
    for name, sizes in (("network, whole", LARGE), ("network, contracted", path[-1].sizes), ("network, narrowed", NARROW)):
        made = network(sizes)
        fields = {"steps": 2 if smoke else 300, "batch_size": 64, "lr": 4e-3, "seed": seed}
        found = {SIZE: float(count_parameters(made)), RATE: rate(made)}
        arms[name] = {SHRUNK: accuracy(train_student(made, data, **fields), test), **found}
    return arms


def record_bytes(k: int) -> float:
    """Bytes that a view takes in the published format: a seed of 4, and 2 for each class id and probability."""
    rng = torch_rng(0, "records", k)
    with tempfile.TemporaryDirectory() as folder:
        seeds, answers = torch.arange(50), torch.randn(50, 21_841, generator=rng)
        PublishedLabels.write(folder, [str(i) for i in range(50)], seeds, answers, k)
        return (Path(folder) / "rank0-values.bin").stat().st_size / 50


experiment = Experiment(
    metric=ACCURACY,
    further_metrics=[
        Metric(AGREEMENT),
        Metric(SPEED),
        Metric(BYTES, higher_is_better=False),
        Metric(SHRUNK),
        Metric(SIZE, higher_is_better=False),
        Metric(RATE),
    ],
    claims=[
        better("stored, K = 5", "without replay"),
        equal("stored, K = 10", "online", 2.0),
        equal("stored, K = 5", "online", 2.0),
        better("online", "without replay", metric=AGREEMENT),
        better("stored, large teacher", "online, large teacher", metric=SPEED),
        equal("a record of K = 10", 44.0, 1e-9, metric=BYTES),
        equal("a record of K = 100", 404.0, 1e-9, metric=BYTES),
    ],
    run=run,
    limits="Ten classes: K = 5 of 10 is no saving like 100 of 21,841. Small networks: the time saved is that of a small teacher. "
    "On whole digits, where any view has the label of its image, all arms differ by less than the spread of the seeds. The paper's "
    "network and its pre-training on ImageNet-22k are not part of this. With 500 steps, seeds 0 to 4 missed two claims: stored, "
    "K = 10 and K = 5, equal to online within 2 points, +0.4 [-1.3, 2.0] and -0.6 [-2.4, 1.2]. Then 1,500 steps were looked at "
    "on seeds 100 to 103, and new seeds, 5 to 9, were run once.",
)
