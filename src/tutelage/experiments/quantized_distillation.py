"""Low-bit students on handwritten digits: quantised distillation, learned points, and quantising afterwards."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from tutelage.distillation.augmentation import Augmentation
from tutelage.experiments import Experiment, better, not_worse
from tutelage.experiments._classification import accuracy, digits, train_student
from tutelage.systems._toy import SmallCNN, build_with_seed
from tutelage.systems.kd import KD
from tutelage.systems.quantized_distillation import DifferentiableQuantization, QuantizedDistillation, size_report


def run(seed: int, smoke: bool, all_arms: bool) -> Mapping[str, float]:
    """At 2, 3 and 4 bits: QD; the same without a teacher; DQ; the full-precision student quantised afterwards (PM).

    60 training images, shifted at random; the teacher has seen 797. Every trained arm takes as many steps as the
    full-precision student, which was distilled too; DQ starts from that.
    """
    train, test = digits(seed, 60, Augmentation(crop=1))
    steps = {"steps": 4 if smoke else 600, "batch_size": 64, "seed": seed}
    settings = steps | {"optimizer": "sgd", "lr": 0.03, "nesterov": True}
    teacher = train_student(build_with_seed(lambda: SmallCNN(10, 24, 32), seed, "teacher"), digits(seed, 797)[0], **steps, lr=5e-3)

    def student() -> nn.Module:
        return build_with_seed(lambda: SmallCNN(10, 4, 16), seed, "student")

    full = train_student(student(), train, KD(tau=2.0, alpha=0.7), teacher, **settings)
    arms = {"teacher": accuracy(teacher, test), "full precision": accuracy(full, test)}
    for bits in (2, 3, 4):
        low = QuantizedDistillation(bits=bits)
        arms[f"PM, {bits} bits"] = accuracy(low.export(full), test)
        exported = train_student(student(), train, low, teacher, **settings)
        arms[f"QD, {bits} bits"] = accuracy(exported, test)
        plain = QuantizedDistillation(bits=bits, kd=0.0, ce=1.0)
        arms[f"quantised CE, {bits} bits"] = accuracy(train_student(student(), train, plain, teacher, **settings), test)
        points = DifferentiableQuantization(bits=bits)
        start = student()
        start.load_state_dict(full.state_dict())
        arms[f"DQ, {bits} bits"] = accuracy(train_student(start, train, points, None, **steps, lr=2e-3), test)
        arms[f"PM, {bits} bits, + 3 points"] = arms[f"PM, {bits} bits"] + 3
        arms[f"QD, {bits} bits, times smaller"] = size_report(exported.state_dict(), low.packing(exported))["gain"]
    return arms


experiment = Experiment(
    metric="test accuracy, %; 'times smaller': full size over that of the packed file",
    claims=[
        *(better(f"QD, {bits} bits", f"quantised CE, {bits} bits") for bits in (2, 3)),
        *(better(f"DQ, {bits} bits", f"PM, {bits} bits, + 3 points") for bits in (2, 3)),
        not_worse("QD, 4 bits", "full precision", 2.0),
    ],
    run=run,
    limits="A network of 1,700 weights on 8x8 digits: file heads and batch-norm weigh much, so that the ratio of sizes "
    "is below that of large networks; at 2 and 3 bits it scatters by several points from seed to seed, most of all when "
    "quantised after training. CPUs gain no time from low bits, and no ImageNet or translation model was run.",
)
