"""Classic distillation on Fashion-MNIST: 1,000 labels alone, against a teacher's answers to unlabelled images."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from tutelage.distillation.data import TensorData
from tutelage.experiments import Experiment, better
from tutelage.experiments._classification import accuracy, fashion, subset, train_student
from tutelage.seeds import torch_rng
from tutelage.systems._toy import SmallCNN, build_with_seed
from tutelage.systems.kd import KD


def run(seed: int, smoke: bool, all_arms: bool) -> Mapping[str, float]:
    """A student of 7,000 weights: on 1,000 labels; distilled on all training images without a label; on all labels."""
    train, test = fashion(seed)
    few = subset(train, torch.randperm(len(train), generator=torch_rng(seed, "few labels"))[:1000])
    if smoke:
        train, test = subset(train, torch.arange(500)), subset(test, torch.arange(500))
    settings = {"steps": 2 if smoke else 600, "batch_size": 128, "lr": 5e-3, "warmup": 50, "seed": seed}
    teacher = train_student(
        build_with_seed(lambda: SmallCNN(10, 32, 128, stride=2), seed, "teacher"),
        train,
        **settings | {"steps": 2 if smoke else 1200},
    )

    def student() -> SmallCNN:
        return build_with_seed(lambda: SmallCNN(10, 10, 24, stride=2), seed, "student")

    unlabelled = TensorData(train.inputs)
    arms = {
        "teacher": accuracy(teacher, test),
        "1,000 labels": accuracy(train_student(student(), few, **settings), test),
        "distilled, no labels": accuracy(
            train_student(student(), unlabelled, KD(alpha=1.0), teacher, "classification", **settings), test
        ),
        "all labels": accuracy(train_student(student(), train, **settings), test),
    }
    if all_arms:
        mixed = train_student(student(), few, KD(alpha=0.9), teacher, **settings)
        arms["distilled on the 1,000"] = accuracy(mixed, test)
    return arms | {"1,000 labels + 4 points": arms["1,000 labels"] + 4}


experiment = Experiment(
    metric="test accuracy, %",
    claims=[better("distilled, no labels", "1,000 labels + 4 points")],
    run=run,
    limits="The gain is that of a teacher that saw all labels over a student that sees few; where the student has all "
    "labels too there is little left to gain, and a smaller student can even lose.",
)
