"""Decoupled distillation on handwritten digits, beside classic distillation and labels alone."""

from __future__ import annotations

from collections.abc import Mapping

from tutelage.distillation.augmentation import Augmentation
from tutelage.experiments import Experiment, better, not_worse
from tutelage.experiments._classification import accuracy, digits, train_student
from tutelage.systems._toy import SmallCNN, build_with_seed
from tutelage.systems.dkd import DKD
from tutelage.systems.kd import KD


def run(seed: int, smoke: bool, all_arms: bool) -> Mapping[str, float]:
    """100 training images, shifted at random, for all arms; the teacher has seen 797."""
    train, test = digits(seed, 100, Augmentation(crop=1))
    settings = {"steps": 4 if smoke else 600, "batch_size": 64, "lr": 3e-3, "seed": seed}
    teacher = train_student(
        build_with_seed(lambda: SmallCNN(10, 24, 32), seed, "teacher"), digits(seed, 797, train.views)[0], **settings
    )
    arms = {"teacher": accuracy(teacher, test)}
    methods = {"CE": None, "KD": KD(), "DKD": DKD(beta=2.0)}
    if all_arms:
        methods |= {f"DKD, beta {beta:g}": DKD(beta=beta) for beta in (1.0, 4.0, 8.0)}
    for name, method in methods.items():
        student = build_with_seed(lambda: SmallCNN(10, 6, 16), seed, "student")
        arms[name] = accuracy(train_student(student, train, method, teacher if method else None, **settings), test)
    return arms


experiment = Experiment(
    metric="test accuracy, %",
    claims=[better("DKD", "CE"), not_worse("DKD", "KD", 1.0)],
    run=run,
    limits="8x8 digits: ten easy classes have little non-target knowledge, so that DKD is only held level with KD, with "
    "beta = 2 (8, the paper's for CIFAR-100, is behind --all): on six selection seeds beta 1, 2 and 4 gave 0.4, 0.8 and 0.4 "
    "points more than KD, with a deviation of 2 points a seed. The published gains are on CIFAR-100 and ImageNet.",
)
