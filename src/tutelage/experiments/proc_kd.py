"""ProC-KD on images of parts: a teacher of one question about patterns helps a student of another, with other classes."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from tutelage.distillation.cache import CachedTeacher
from tutelage.distillation.cache_build import build
from tutelage.distillation.data import Batch, TensorData
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.probes import accuracy, few_label_subset
from tutelage.distillation.supervised import Supervised
from tutelage.distillation.teacher import NetworkTeacher
from tutelage.distillation.trainer import train
from tutelage.experiments import Experiment, Metric, better
from tutelage.networks.vit import VisionTransformer
from tutelage.seeds import torch_rng
from tutelage.systems._toy import build_with_seed
from tutelage.systems.proc_kd import ProCKD

SIDE, CELL, PATTERNS = 16, 4, 6
BLOCKS = ("blocks.1", "blocks.2", "blocks.3")
PAIRS = ((0, 1), (2, 3), (4, 5), (0, 2), (1, 4))
ACCURACY, USAGE = "test accuracy, %", "prototype usage, % of the largest entropy"


def images_of_parts(
    count: int, patterns: Tensor, extras: Sequence[Sequence[int]], per_pattern: int, rng: torch.Generator
) -> TensorData:
    """Images of 4 x 4 cells, each with one of the ``patterns``; class y has further cells of the patterns ``extras[y]``.

    Args:
        count: images.
        patterns: [6, 4, 4] of -1 and 1.
        extras: of each class.
        per_pattern: cells that get each of these patterns.
        rng: for all of it.
    """
    labels = torch.randint(len(extras), (count,), generator=rng)
    cells = torch.randint(PATTERNS, (count, CELL * CELL), generator=rng)
    wanted = torch.tensor(extras)[labels].repeat_interleave(per_pattern, 1)
    places = torch.rand(count, CELL * CELL, generator=rng).argsort(1)[:, : wanted.shape[1]]
    grid = patterns[cells.scatter(1, places, wanted)].view(count, CELL, CELL, CELL, CELL)
    images = grid.transpose(2, 3).reshape(count, 1, SIDE, SIDE)
    return TensorData(images + 1.5 * torch.randn(images.shape, generator=rng), labels)


def network(depth: int, classes: int, seed: int, name: str) -> VisionTransformer:
    """A small vision transformer, drawn from ``seed``."""
    return build_with_seed(lambda: VisionTransformer(SIDE, CELL, 48, depth, 4, 1, num_classes=classes), seed, name)


@torch.no_grad()
def right(logits: Tensor, labels: Tensor) -> float:
    """Accuracy, %."""
    return accuracy(logits.argmax(-1), labels)


def run(seed: int, smoke: bool, all_arms: bool) -> Mapping[str, Mapping[str, float]]:
    """The student sees 30 labelled and 1,000 unlabelled images of its task, 300 steps of about 50 of each."""
    patterns = 2 * torch.randint(2, (PATTERNS, CELL, CELL), generator=torch_rng(seed, "patterns")).float() - 1
    singles = [(pattern,) for pattern in range(PATTERNS)]

    def images(name: str, count: int, extras: Sequence[Sequence[int]], per_pattern: int) -> TensorData:
        return images_of_parts(100 if smoke else count, patterns, extras, per_pattern, torch_rng(seed, name))

    known, plain, test = images("teacher", 4000, singles, 5), images("student", 1000, PAIRS, 4), images("test", 1000, PAIRS, 4)
    few = images("few", 1000, PAIRS, 4)
    chosen = few_label_subset(few.labels, 2 if smoke else 6, seed)
    again = chosen.repeat(len(plain) // len(chosen) + 1)[: len(plain)]
    hidden = torch.full_like(plain.labels, -100)
    data = TensorData(torch.cat([plain.inputs, few.inputs[again]]), torch.cat([hidden, few.labels[again]]))

    def settings(steps: int, batch_size: int) -> TrainingSettings:
        taken = 2 if smoke else steps
        return TrainingSettings(steps=taken, batch_size=batch_size, lr=2e-3, weight_decay=0.05, schedule="linear", seed=seed)

    untrained = network(4, PATTERNS, seed, "teacher")
    teacher = network(4, PATTERNS, seed, "teacher")
    known_test = images("teacher test", 1000, singles, 5)
    train(TrainingJob(teacher, None, Supervised(), known, settings(500, 64)))
    with torch.no_grad():
        figures: dict[str, dict[str, float]] = {
            "teacher, own task": {ACCURACY: right(teacher.eval()(known_test.inputs), known_test.labels)}
        }
    alone = train(TrainingJob(network(2, len(PAIRS), seed, "student"), None, Supervised(), data, settings(300, 100))).student
    with torch.no_grad():
        figures["student alone"] = {ACCURACY: right(alone(test.inputs), test.labels)}
    for name, source in {"": teacher, "random teacher, ": untrained}.items():
        figures |= {
            f"{name}{arm}": values for arm, values in distilled_students(source, data, test, settings(300, 100), seed).items()
        }
    return figures


def distilled_students(
    network_of_teacher: nn.Module, data: TensorData, test: TensorData, settings: TrainingSettings, seed: int
) -> dict[str, dict[str, float]]:
    """A student of this teacher: its two answers, those of the teacher's path, and how evenly prototypes are used."""
    teacher, student = NetworkTeacher(network_of_teacher, taps=BLOCKS), network(2, len(PAIRS), seed, "student")
    job = TrainingJob(student, teacher, ProCKD(prototypes=16, teacher=BLOCKS), data, settings)
    with tempfile.TemporaryDirectory() as folder:
        job.teacher = CachedTeacher(build(job, folder), teacher)
        train(job)
    batch, method = Batch(test.inputs, test.labels), job.method.eval()
    assert isinstance(method, ProCKD)
    with torch.no_grad():
        own, given = method(batch, student.eval(), teacher)
    usage = 100 * method.prototype_usage(batch, teacher)
    return {
        "ProC-KD": {ACCURACY: right(own["logits"], test.labels), USAGE: usage},
        "ProC-KD, augmented": {ACCURACY: right(own["augmented"], test.labels)},
        "teacher's path": {ACCURACY: right(given["augmented"], test.labels)},
    }


experiment = Experiment(
    metric=ACCURACY,
    further_metrics=[Metric(USAGE)],
    claims=[
        better("ProC-KD", "student alone"),
        better("ProC-KD", "random teacher, ProC-KD"),
        better("teacher's path", "random teacher, teacher's path"),
    ],
    run=run,
    limits="The images are made so that the teacher knows what the student's task lacks: six patterns under noise. The "
    "student has 6 labels a class and 1,000 images without; with 10 labels a class under less noise, and on digits, "
    "earlier pilots showed no gain over a random teacher. That the teacher's path is better with the trained teacher "
    "depends on the 30 images: the random teacher's accuracy varies by 7 over seeds. Two other settings were tried on"
    " other seeds, from 100 on, after these five: 12 labels a class (differences of that claim 6.4, 15.1, 3.4, 5.7) "
    "and 600 steps (11.2, 11.6, 7.3); neither is reported as the result. The augmented answer is not claimed to be "
    "better than the plain one. Prototypes are used almost evenly (near 100 % of the largest entropy), with the "
    "random teacher too: what is passed on is the teacher's features, and nothing here shows that each prototype "
    "stands for a part. Losses are partly our choice: nothing is said about the paper's figures, which its abstract "
    "does not give.",
)
