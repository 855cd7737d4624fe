"""Generalized convolutions on handwritten digits: distances in place of the inner product, and what their start is worth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tutelage.experiments import Experiment, better, not_worse
from tutelage.experiments._classification import accuracy, digits, train_student
from tutelage.systems._toy import build_with_seed
from tutelage.systems.generalized_convolution import DISTANCES, GeneralizedCNN
from tutelage.systems.kd import KD


def run(seed: int, smoke: bool, all_arms: bool) -> Mapping[str, float]:
    """Two layers of 16 and 32 filters, all 797 training images, 12 epochs."""
    train, test = digits(seed, 100 if smoke else 797)
    settings = {"steps": 2 if smoke else 300, "batch_size": 32, "lr": 2e-2, "warmup": 1 if smoke else 20, "seed": seed}

    def start(kind: str, drawn: bool = True, **options: Any) -> GeneralizedCNN:
        network = build_with_seed(lambda: GeneralizedCNN(10, 1, kind=kind, options=options), seed, "network")
        return network.draw_templates(train.inputs, seed) if drawn and kind in (*DISTANCES, "mixed") else network

    networks = {
        "inner product": start("dot"),
        "weighted L2": start("l2"),
        "weighted L1": start("l1"),
        "weighted L2, random start": start("l2", drawn=False, sharpness=1.0),
    }
    if all_arms:
        networks |= {kind: start(kind) for kind in ("gaussian", "laplacian", "polynomial", "mixed", "sine")}
    students = {arm: train_student(network, train, **settings) for arm, network in networks.items()}
    arms = {arm: accuracy(student, test) for arm, student in students.items()}
    if all_arms:
        few, _ = digits(seed, 100)
        for arm, kind, teacher in (("L2", "l2", "inner product"), ("inner product", "dot", "weighted L2")):
            alone = train_student(start(kind), few, **settings)
            distilled = train_student(start(kind), train, KD(alpha=1.0), students[teacher], **settings)
            arms |= {f"{arm}, 100 labels": accuracy(alone, test), f"{arm}, taught by {teacher}": accuracy(distilled, test)}
    return arms


experiment = Experiment(
    metric="test accuracy, %",
    claims=[
        not_worse("weighted L2", "inner product", 1.5),
        not_worse("weighted L1", "inner product", 1.5),
        better("weighted L2", "weighted L2, random start"),
    ],
    run=run,
    limits="Digits of 8x8 pixels alone, and 797 of them to learn from: nothing about natural images. The random start has "
    "normal templates and g = 1/d; with g = 8/d random templates did as well as drawn ones.",
)
