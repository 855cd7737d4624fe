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
from tutelage.distillation.cache_build import build
from tutelage.distillation.data import TensorData
from tutelage.distillation.job import Lesson, Settings
from tutelage.distillation.memory import step_peak
from tutelage.distillation.method import Method
from tutelage.distillation.small_models import ResNet
from tutelage.distillation.profiling import quicken
from tutelage.distillation.supervised import Supervised
from tutelage.distillation.teacher import Cached, Live, Teacher
from tutelage.distillation.trainer import Trainer
from tutelage.seeds import torch_rng
from tutelage.systems._toy import built
from tutelage.systems.kd import KD

BATCH, TAU, ALPHA, LR, MOMENTUM, DECAY = 32, 4.0, 0.9, 0.05, 0.9, 5e-4
HAND, OTHER, ALONE, ONLINE, CACHED = "hand-written loop", "torchdistill", "student only", "online", "cached"
QUICK = ", quick"
"""Added to the name of a way: with the tricks that a timed step chose."""


class Way(NamedTuple):
    """One way to take a step, and the networks whose gradients it holds."""

    step: Callable[[], object]
    networks: tuple[nn.Module, ...]
    tricks: tuple[str, ...] = ()


class Task(NamedTuple):
    """What every way of one pair starts from: fresh copies are taken of the networks."""

    student: nn.Module
    teacher: nn.Module
    data: TensorData
    device: str

    def settings(self, **changes: Any) -> Settings:
        """Of all our ways; long enough that no step is the last."""
        fixed = {"steps": 1_000_000, "batch_size": BATCH, "lr": LR, "momentum": MOMENTUM, "weight_decay": DECAY}
        return Settings(**fixed, optimizer="sgd", schedule="constant", device=self.device, **changes)


def make_task(teacher_depth: int, student_depth: int, device: str, images: int = 512) -> Task:
    """Networks of 10 classes, as initialised, and CIFAR-sized noise: what a step costs does not depend on the values."""
    rng = torch_rng(0, "bench", "distill")
    data = TensorData(torch.rand(images, 3, 32, 32, generator=rng), torch.randint(0, 10, (images,), generator=rng))
    student = built(lambda: ResNet(student_depth), 0, "bench", "student")
    teacher = built(lambda: ResNet(teacher_depth), 0, "bench", "teacher").train()
    with torch.no_grad():
        for _ in range(30):  # batch-norm statistics as of a trained network: without them deep ones overflow
            teacher(data.inputs[:BATCH])
    return Task(student, teacher.eval(), data, device)


def endless(loader: Any) -> Any:
    """Batch after batch, epoch after epoch."""
    while True:
        yield from loader


def hand_written(task: Task) -> Way:
    """The loop a careful engineer writes: teacher first, without gradient."""
    student, teacher = copy.deepcopy(task.student).to(task.device).train(), copy.deepcopy(task.teacher).to(task.device)
    teacher.eval().requires_grad_(False)
    optimizer = torch.optim.SGD(student.parameters(), LR, MOMENTUM, weight_decay=DECAY)
    supply = endless(DataLoader(TensorDataset(task.data.inputs, task.data.labels), BATCH, shuffle=True, drop_last=True))

    def step() -> None:
        images, labels = (part.to(task.device) for part in next(supply))
        with torch.no_grad():
            target = (teacher(images) / TAU).softmax(1)
        said = student(images)
        soft = F.kl_div((said / TAU).log_softmax(1), target, reduction="batchmean") * TAU**2
        loss = ALPHA * soft + (1 - ALPHA) * F.cross_entropy(said, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return Way(step, (student,))


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


def torchdistill(task: Task) -> Way:
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
    student, teacher = copy.deepcopy(task.student), copy.deepcopy(task.teacher)
    datasets = {"train": TensorDataset(task.data.inputs, task.data.labels)}
    box = get_distillation_box(teacher, student, datasets, config, torch.device(task.device), None, False, 1.0)
    box.pre_epoch_process(epoch=0)
    supply = endless(box.train_data_loader)

    def step() -> None:
        images, labels, more = next(supply)
        box.pre_forward_process()
        loss = box.forward_process(images.to(task.device), labels.to(task.device), more)
        box.post_forward_process(loss=loss)

    return Way(step, (student,))


def ours(task: Task, method: Method, teacher: Teacher | None, tricks: tuple[str, ...] = (), **changes: Any) -> Way:
    """A step of the trainer."""
    settings = task.settings(**changes)
    lesson = Lesson(copy.deepcopy(task.student), teacher, method, task.data, settings)
    trainer = Trainer(lesson)
    lesson.student.train()
    return Way(trainer.advance, (lesson.student,), tricks)


def quickest(task: Task, rounds: int = 3) -> dict[str, Any]:
    """The student's layout and precision of the fastest timed steps: the free tricks, chosen by measuring."""
    tried = [{"channels_last": layout, "precision": precision} for layout in (False, True) for precision in ("fp32", "bf16")]
    ways = [ours(task, Supervised(), None, **changes) for changes in tried]
    times = [[timed(way.step, task.device) for way in ways] for _ in range(rounds + 1)][1:]
    return min(zip(tried, zip(*times)), key=lambda pair: median(pair[1]))[0]


def make_ways(task: Task, folder: Path, other: bool) -> dict[str, Way]:
    """Every way of a pair, by name; ``folder`` takes the caches, ``other``: torchdistill can be imported."""
    frozen = copy.deepcopy(task.teacher).to(task.device)
    fast = quicken(frozen, task.data.batch(torch.arange(BATCH), None).to(task.device), rounds=3)
    changes = quickest(task)
    words = tuple(["student channels_last"] * changes["channels_last"] + ["student bf16"] * (changes["precision"] == "bf16"))
    told = tuple(f"teacher {trick}" for trick in fast.tricks) + words
    plain = Live(frozen)

    def cached(teacher: Live, name: str) -> Cached:
        lesson = Lesson(task.student, teacher, KD(tau=TAU, alpha=ALPHA), task.data, replace(task.settings(), device="cpu"))
        return Cached(build(lesson, folder / name, store="fp16" if name == "quick" else "fp32"), teacher)

    def kd() -> KD:
        return KD(tau=TAU, alpha=ALPHA)

    stored = {"plain": cached(plain.to("cpu"), "plain"), "quick": cached(fast.teacher.to("cpu"), "quick")}
    plain.to(task.device), fast.teacher.to(task.device)
    ways = {HAND: hand_written(task)}
    if other:
        ways[OTHER] = torchdistill(task)
    return ways | {
        ALONE: ours(task, Supervised(), None),
        ALONE + QUICK: ours(task, Supervised(), None, words, **changes),
        ONLINE: ours(task, kd(), plain),
        ONLINE + QUICK: ours(task, kd(), fast.teacher, told, **changes),
        CACHED: ours(task, kd(), stored["plain"]),
        CACHED + QUICK: ours(task, kd(), stored["quick"], (*told, "cache fp16"), **changes),
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


def measure(ways: Mapping[str, Way], rounds: int, steps: int, device: str) -> dict[str, dict[str, Any]]:
    """For each way: ``ms`` [rounds], the median of ``steps`` steps in each round, and ``peak`` bytes of one step.

    The ways take turns within a round, each round begins with another one, and the first is thrown away.
    """
    names = list(ways)
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds + 1):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            found = median(timed(ways[name].step, device) for _ in range(steps))
            if number:
                times[name].append(found)
    return {
        name: {"ms": times[name], "peak": step_peak(way.step, way.networks, device), "tricks": way.tricks}
        for name, way in ways.items()
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
    asked = parser.parse_args()
    torch.set_num_threads(1)
    found = {}
    with importable(asked.packages), tempfile.TemporaryDirectory() as folder:
        for pair in asked.pairs:
            task = make_task(*map(int, pair.split("-")), asked.device)
            ways = make_ways(task, Path(folder) / pair, bool(asked.packages))
            found[pair] = measure(ways, asked.rounds, asked.steps, asked.device)
    storage.write_json(asked.out, found)


if __name__ == "__main__":
    main()
