"""What each speed-up does to the end accuracy: a small student is distilled to the end on Fashion-MNIST, once without
any, once with each alone, once with all, from equal starts and on equal batches."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tutelage import workers
from tutelage.bench.distill_steps import CACHED, ONLINE, QUICK
from tutelage.datasets import fashion_mnist
from tutelage.distillation.cache import Cache, CachedTeacher
from tutelage.distillation.cache_build import build
from tutelage.distillation.data import TensorData
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.memory import job_peak
from tutelage.distillation.outputs import forward_heads
from tutelage.distillation.profiling import LowPrecisionTeacher, fold_batchnorm
from tutelage.distillation.small_models import SmallCNN
from tutelage.distillation.supervised import Supervised
from tutelage.distillation.teacher import NetworkTeacher, Teacher
from tutelage.distillation.trainer import train
from tutelage.systems._toy import build_with_seed, toy_images
from tutelage.systems.kd import KD

PAIR = "small CNN 94k-7k, Fashion-MNIST"

TEACHER_TRICKS = ("teacher fold", "teacher channels_last", "teacher bf16")
STUDENT = {"student channels_last": {"channels_last": True}, "student bf16": {"precision": "bf16"}}
ARMS: dict[str, tuple[str, ...]] = {
    ONLINE: (),
    "online, teacher quick": TEACHER_TRICKS,
    "online, student channels_last": ("student channels_last",),
    "online, student bf16": ("student bf16",),
    CACHED: ("cache fp32",),
    CACHED + QUICK: (*TEACHER_TRICKS, *STUDENT, "cache fp16"),
}
"""The tricks of each arm; all are forced, whether they are faster for so small a network or not."""

Split = tuple[torch.Tensor, torch.Tensor]


def load(smoke: bool, images: int) -> tuple[TensorData, TensorData]:
    """(images to distil on, without labels; the labelled test images), values 0..1."""
    if smoke:
        return toy_images(0, 256, 10), toy_images(1, 64, 10)
    splits = []
    for split, limit in (("train", images), ("test", None)):
        pixels, labels = fashion_mnist.load(split)  # type: ignore[arg-type]
        taken = torch.from_numpy(pixels[:limit].copy()).float()[:, None] / 255
        splits.append(TensorData(taken, torch.from_numpy(labels[:limit].copy())))
    return splits[0], splits[1]


def teachers(network: nn.Module) -> tuple[NetworkTeacher, NetworkTeacher]:
    """The teacher as it is, and with every trick."""
    folded, _ = fold_batchnorm(network)
    return NetworkTeacher(copy.deepcopy(network)), LowPrecisionTeacher(folded, channels_last=True)


def run(seeds: Sequence[int], *, smoke: bool, device: str, processes: int | None, images: int = 20_000) -> dict[str, Any]:
    """For each arm ``{tricks, accuracy [seeds] in %, ms [seeds] of a step, peak bytes of a step}``."""
    train_data, _ = load(smoke, images)
    settings = TrainingSettings(steps=4 if smoke else 1000, batch_size=128, lr=5e-3, warmup=50, log_every=0)
    network = build_with_seed(lambda: SmallCNN(10, 32, 128, stride=2), 0, "bench", "accuracy teacher")
    network = train(TrainingJob(network, None, Supervised(), train_data, settings)).student
    plain, quick = teachers(network)
    with tempfile.TemporaryDirectory() as folder:
        for teacher, name, store in ((plain, "fp32", "fp32"), (quick, "fp16", "fp16")):
            build(
                TrainingJob(network, teacher, KD(alpha=1.0), TensorData(train_data.inputs), settings, task="classification"),
                f"{folder}/{name}",
                store,
            )
        tasks = [(seed, network, folder, smoke, device, images) for seed in seeds]
        found = list(workers.map_tasks(run_seed, tasks, processes))
    return {
        name: {
            "tricks": tricks,
            "accuracy": [one[name]["accuracy"] for one in found],
            "ms": [one[name]["ms"] for one in found],
            "peak": found[0][name]["peak"],
        }
        for name, tricks in ARMS.items()
    }


def run_seed(seed: int, network: nn.Module, folder: str, smoke: bool, device: str, images: int) -> dict[str, Any]:
    """Every arm of one seed; what a worker process runs."""
    data, test = load(smoke, images)
    data = TensorData(data.inputs)
    plain, quick = (teacher.to(device) for teacher in teachers(network))
    found = {}
    for name, tricks in ARMS.items():
        source: Teacher = quick if set(TEACHER_TRICKS) <= set(tricks) else plain
        for store in ("fp32", "fp16"):
            if f"cache {store}" in tricks:
                source = CachedTeacher(Cache(Path(folder) / store))
        changes: dict[str, Any] = {key: value for trick in tricks for key, value in STUDENT.get(trick, {}).items()}
        settings = TrainingSettings(
            steps=4 if smoke else 500, batch_size=128, lr=5e-3, warmup=50, seed=seed, log_every=0, device=device, **changes
        )
        student = build_with_seed(lambda: SmallCNN(10, 10, 24, stride=2), seed, "bench", "accuracy student")
        peak = (
            job_peak(TrainingJob(copy.deepcopy(student), source, KD(alpha=1.0), data, settings, task="classification"))
            if seed == 0
            else 0
        )
        began = time.process_time()
        result = train(TrainingJob(student, source, KD(alpha=1.0), data, settings, task="classification")).student
        spent = time.process_time() - began
        found[name] = {"accuracy": accuracy(result, test, device), "ms": 1000 * spent / settings.steps, "peak": peak}
    return found


@torch.no_grad()
def accuracy(network: nn.Module, data: TensorData, device: str) -> float:
    """Share of right answers, %."""
    network = network.to(device).eval()
    predictions = torch.cat(
        [forward_heads(network, images.to(device))["logits"].argmax(1).cpu() for images in data.inputs.split(1000)]
    )
    return 100 * (predictions == data.labels).double().mean().item()
