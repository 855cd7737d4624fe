"""One training step in seven ways, interleaved in one process of one thread. Run as a process of its own: it may put
torchdistill on its path, which no other code of ours does.

What a step is: fetch the batch, ask the teacher or its cache, student forward and backward, SGD with momentum. All ways
train equal networks on equal images (32x32, random) with classic distillation at T = 4.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from tutelage import storage
from tutelage.distillation.cache import CachedTeacher
from tutelage.distillation.cache_build import build
from tutelage.distillation.data import TensorData
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.memory import step_peak
from tutelage.distillation.method import Method
from tutelage.distillation.profiling import speed_up_teacher
from tutelage.distillation.small_models import ResNet
from tutelage.distillation.supervised import Supervised
from tutelage.distillation.teacher import NetworkTeacher, Teacher
from tutelage.distillation.trainer import Trainer
from tutelage.seeds import torch_rng
from tutelage.systems._toy import build_with_seed
from tutelage.systems.kd import KD

BATCH, TAU, ALPHA, LR, MOMENTUM, DECAY = 32, 4.0, 0.9, 0.05, 0.9, 5e-4
HAND, OTHER, ALONE, ONLINE, CACHED = "hand-written loop", "torchdistill", "student only", "online", "cached"
QUICK = ", quick"
"""Added to the name of a way: with the tricks that a timed step chose."""


class StepVariant(NamedTuple):
    """One way to take a step, and the networks whose gradients it holds."""

    step: Callable[[], object]
    networks: tuple[nn.Module, ...]
    tricks: tuple[str, ...] = ()


class StepSetup(NamedTuple):
    """What every way of one pair starts from: fresh copies are taken of the networks."""

    student: nn.Module
    teacher: nn.Module
    data: TensorData
    device: str

    def settings(self, **changes: Any) -> TrainingSettings:
        """Of all our ways; long enough that no step is the last."""
        fixed = {"steps": 1_000_000, "batch_size": BATCH, "lr": LR, "momentum": MOMENTUM, "weight_decay": DECAY}
        return TrainingSettings(**fixed, optimizer="sgd", schedule="constant", device=self.device, **changes)


def make_setup(teacher_depth: int, student_depth: int, device: str, images: int = 512) -> StepSetup:
    """Networks of 10 classes, as initialised, and CIFAR-sized noise: what a step costs does not depend on the values."""
    rng = torch_rng(0, "bench", "distill")
    data = TensorData(torch.rand(images, 3, 32, 32, generator=rng), torch.randint(0, 10, (images,), generator=rng))
    student = build_with_seed(lambda: ResNet(student_depth), 0, "bench", "student")
    teacher = build_with_seed(lambda: ResNet(teacher_depth), 0, "bench", "teacher").train()
    with torch.no_grad():
        for _ in range(30):  # batch-norm statistics as of a trained network: without them deep ones overflow
            teacher(data.inputs[:BATCH])
    return StepSetup(student, teacher.eval(), data, device)


def endless(loader: Any) -> Any:
    """Batch after batch, epoch after epoch."""
    while True:
        yield from loader


def hand_written(setup: StepSetup) -> StepVariant:
    """The loop a careful engineer writes: teacher first, without gradient."""
    student, teacher = copy.deepcopy(setup.student).to(setup.device).train(), copy.deepcopy(setup.teacher).to(setup.device)
    teacher.eval().requires_grad_(False)
    optimizer = torch.optim.SGD(student.parameters(), LR, MOMENTUM, weight_decay=DECAY)
    supply = endless(DataLoader(TensorDataset(setup.data.inputs, setup.data.labels), BATCH, shuffle=True, drop_last=True))

    def step() -> None:
        images, labels = (part.to(setup.device) for part in next(supply))
        with torch.no_grad():
            target = (teacher(images) / TAU).softmax(1)
        student_logits = student(images)
        soft = F.kl_div((student_logits / TAU).log_softmax(1), target, reduction="batchmean") * TAU**2
        loss = ALPHA * soft + (1 - ALPHA) * F.cross_entropy(student_logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return StepVariant(step, (student,))


@contextlib.contextmanager
def importable(packages: str | None) -> Iterator[None]:
    """Put the folder that holds torchdistill and torchvision on the path; once two of its operators are declared, a
    torchvision that was built for another torch can be imported (none of them is called)."""
    if packages is None:
        yield
        return
    sys.path.append(packages)
    library = torch.library.Library("torchvision", "FRAGMENT")
    for arguments in ("nms(Tensor dets, Tensor scores,", "qnms(Tensor dets, Tensor scores,"):
        library.define(f"{arguments} float iou_threshold) -> Tensor")
    yield
    del library  # its declarations live as long as it does


def torchdistill(setup: StepSetup) -> StepVariant:
    """The same by torchdistill's ``DistillationBox``, driven as its example scripts drive it."""
    from torchdistill.core.distillation import get_distillation_box

    model = {"forward_proc": "forward_batch_only", "sequential": [], "wrapper": None}
    both = {f"{who}_module_{what}": value for who in ("student", "teacher") for what, value in (("path", "."), ("io", "output"))}
    config = {
        "num_epochs": 1,
        "train_data_loader": {
            "dataset_id": "train",
            "sampler": {"class_or_func": torch.utils.data.RandomSampler, "kwargs": {}},
            "kwargs": {"batch_size": BATCH, "drop_last": True},
        },
        "teacher": model | {"requires_grad": False},
        "student": model | {"requires_grad": True},
        "optimizer": {"key": "SGD", "kwargs": {"lr": LR, "momentum": MOMENTUM, "weight_decay": DECAY}},
        "criterion": {
            "key": "WeightedSumLoss",
            "kwargs": {
                "sub_terms": {
                    "kd": {
                        "criterion": {
                            "key": "KDLoss",
                            "kwargs": both | {"temperature": TAU, "alpha": 1 - ALPHA, "reduction": "batchmean"},
                        },
                        "weight": 1.0,
                    }
                }
            },
        },
    }
    student, teacher = copy.deepcopy(setup.student), copy.deepcopy(setup.teacher)
    datasets = {"train": TensorDataset(setup.data.inputs, setup.data.labels)}
    box = get_distillation_box(teacher, student, datasets, config, torch.device(setup.device), None, False, 1.0)
    box.pre_epoch_process(epoch=0)
    supply = endless(box.train_data_loader)

    def step() -> None:
        images, labels, more = next(supply)
        box.pre_forward_process()
        loss = box.forward_process(images.to(setup.device), labels.to(setup.device), more)
        box.post_forward_process(loss=loss)

    return StepVariant(step, (student,))


def tutelage_step(
    setup: StepSetup, method: Method, teacher: Teacher | None, tricks: tuple[str, ...] = (), **changes: Any
) -> StepVariant:
    """A step of the trainer."""
    settings = setup.settings(**changes)
    training_job = TrainingJob(copy.deepcopy(setup.student), teacher, method, setup.data, settings)
    trainer = Trainer(training_job)
    training_job.student.train()
    return StepVariant(trainer.advance, (training_job.student,), tricks)


def fastest(setup: StepSetup, rounds: int = 3) -> dict[str, Any]:
    """The student's layout and precision of the fastest timed steps: the free tricks, chosen by measuring."""
    tried = [{"channels_last": layout, "precision": precision} for layout in (False, True) for precision in ("fp32", "bf16")]
    ways = [tutelage_step(setup, Supervised(), None, **changes) for changes in tried]
    times = [[timed(way.step, setup.device) for way in ways] for _ in range(rounds + 1)][1:]
    return min(zip(tried, zip(*times)), key=lambda pair: median(pair[1]))[0]


def make_variants(setup: StepSetup, folder: Path, with_torchdistill: bool) -> dict[str, StepVariant]:
    """Every way of a pair, by name; ``folder`` takes the caches, ``with_torchdistill``: torchdistill can be imported."""
    frozen = copy.deepcopy(setup.teacher).to(setup.device)
    fast = speed_up_teacher(frozen, setup.data.batch(torch.arange(BATCH), None).to(setup.device), rounds=3)
    changes = fastest(setup)
    words = tuple(["student channels_last"] * changes["channels_last"] + ["student bf16"] * (changes["precision"] == "bf16"))
    labels = tuple(f"teacher {trick}" for trick in fast.tricks) + words
    plain = NetworkTeacher(frozen)

    def cached(teacher: NetworkTeacher, name: str) -> CachedTeacher:
        training_job = TrainingJob(
            setup.student, teacher, KD(tau=TAU, alpha=ALPHA), setup.data, replace(setup.settings(), device="cpu")
        )
        return CachedTeacher(build(training_job, folder / name, storage_format="fp16" if name == "quick" else "fp32"), teacher)

    def kd() -> KD:
        return KD(tau=TAU, alpha=ALPHA)

    stored = {"plain": cached(plain.to("cpu"), "plain"), "quick": cached(fast.teacher.to("cpu"), "quick")}
    plain.to(setup.device), fast.teacher.to(setup.device)
    ways = {HAND: hand_written(setup)}
    if with_torchdistill:
        ways[OTHER] = torchdistill(setup)
    return ways | {
        ALONE: tutelage_step(setup, Supervised(), None),
        ALONE + QUICK: tutelage_step(setup, Supervised(), None, words, **changes),
        ONLINE: tutelage_step(setup, kd(), plain),
        ONLINE + QUICK: tutelage_step(setup, kd(), fast.teacher, labels, **changes),
        CACHED: tutelage_step(setup, kd(), stored["plain"]),
        CACHED + QUICK: tutelage_step(setup, kd(), stored["quick"], (*labels, "cache fp16"), **changes),
    }


def timed(step: Callable[[], object], device: str) -> float:
    """Milliseconds of a step: CPU time, or on a GPU wall time with the device awaited."""
    if device == "cpu":
        began = time.process_time()
        step()
        return 1000 * (time.process_time() - began)
    torch.cuda.synchronize()
    began = time.perf_counter()
    step()
    torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - began)


def measure(variants: Mapping[str, StepVariant], rounds: int, steps: int, device: str) -> dict[str, dict[str, Any]]:
    """For each way: ``ms`` [rounds], the median of ``steps`` steps in each round, and ``peak`` bytes of one step.

    The ways take turns within a round, each round begins with another one, and the first is thrown away.
    """
    names = list(variants)
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds + 1):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            found = median(timed(variants[name].step, device) for _ in range(steps))
            if number:
                times[name].append(found)
    return {
        name: {"ms": times[name], "peak": step_peak(way.step, way.networks, device), "tricks": way.tricks}
        for name, way in variants.items()
    }


def main() -> None:
    """``python -m tutelage.bench.distill_steps --pairs 56-20 --rounds 10 … OUT``: writes ``{pair: measure(…)}``."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--pairs", nargs="+", required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--packages")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = {}
    with importable(options.packages), tempfile.TemporaryDirectory() as folder:
        for pair in options.pairs:
            task = make_setup(*map(int, pair.split("-")), options.device)
            ways = make_variants(task, Path(folder) / pair, bool(options.packages))
            found[pair] = measure(ways, options.rounds, options.steps, options.device)
    storage.write_json(options.out, found)


if __name__ == "__main__":
    main()
