"""Mamba-PKD on handwritten digits: seven small state-space classifiers against their teacher, at counted operations."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from tutelage.distillation.data import TensorData
from tutelage.experiments import Experiment, better, not_worse
from tutelage.experiments._classification import accuracy, digits, train_student
from tutelage.systems._toy import build_with_seed
from tutelage.systems.kd import KD
from tutelage.systems.mamba_pkd import ClassifierGroup, MambaClassifier, MambaPKD

MEMBERS = ((4, 1, 2), (8, 1, 4), (8, 1, 4), (10, 1, 4), (12, 1, 8), (16, 1, 8), (20, 1, 8))
"""(width, depth, states) of each member, in the order of training."""
SINGLE = (33, 1, 16)
"""One network of about the group's operations."""


def network(width: int, depth: int, states: int) -> MambaClassifier:
    """Rows of 8 pixels as 8 steps."""
    return MambaClassifier(10, 1, width, depth, states, patch=None, size=8)


def share(member: MambaClassifier, teacher: MambaClassifier) -> float:
    """Operations, % of the teacher's."""
    return 100 * member.flops(8, 8) / teacher.flops(8, 8)


def run(seed: int, smoke: bool, all_arms: bool) -> Mapping[str, float]:
    """797 training images; the seven members share as many steps as the one network gets."""
    data, test = digits(seed, 797)
    steps = 4 if smoke else 200
    settings = {"batch_size": 50, "lr": 1e-2, "seed": seed}
    teacher = train_student(
        build_with_seed(lambda: network(32, 2, 16), seed, "teacher"), data, steps=1 if smoke else 400, **(settings | {"lr": 5e-3})
    )
    arms = {"teacher": accuracy(teacher, test)}

    def group(combine: str) -> ClassifierGroup:
        made = build_with_seed(lambda: ClassifierGroup([network(*sizes) for sizes in MEMBERS], combine), seed, "student")  # type: ignore[arg-type]
        return train_student(made, data, MambaPKD(), teacher, steps=7 * steps, **settings)  # type: ignore[return-value]

    single = build_with_seed(lambda: network(*SINGLE), seed, "student")
    method = KD(tau=2.0, alpha=0.5)
    for name, combine in (("seven together", "residual"), ("seven averaged", "average")):
        if combine == "residual" or all_arms:
            made = group(combine)
            arms |= {name: accuracy(made, test)}
        if combine == "residual":
            arms["one member"] = accuracy(made.students[0], test)
            arms |= report(made, teacher, test)
    arms["one network of the same operations"] = accuracy(
        train_student(single, data, method, teacher, steps=7 * steps, **settings), test
    )
    arms["operations of it, % of the teacher's"] = share(single, teacher)
    return arms


@torch.no_grad()
def report(group: ClassifierGroup, teacher: torch.nn.Module, test: TensorData) -> dict[str, float]:
    """After 2, 4, 6 members, their share of the teacher's operations, and what anytime answers cost."""
    parts = group.partial(test.inputs)
    right = [100 * (said.argmax(1) == test.labels).double().mean().item() for said in parts]
    spent = torch.tensor([share(member, teacher) for member in group.students]).cumsum(0)  # type: ignore[arg-type]
    said, asked = group.anytime(test.inputs, 0.9)
    agree = (parts[-1].argmax(1) == teacher(test.inputs).argmax(1)).double().mean().item()
    return {f"first {k} together": right[k - 1] for k in (2, 4, 6)} | {
        "anytime at 0.9": 100 * (said.argmax(1) == test.labels).double().mean().item(),
        "agreement with the teacher": 100 * agree,
        "operations of one member, % of the teacher's": spent[0].item(),
        "operations of seven, % of the teacher's": spent[-1].item(),
        "operations of anytime, % of the teacher's": spent[asked - 1].double().mean().item(),
    }


experiment = Experiment(
    metric="test accuracy, %",
    claims=[
        better("seven together", "one member"),
        not_worse("seven together", "teacher", 2.0),
        better("seven together", "one network of the same operations"),
    ],
    run=run,
    limits="Digits of 8x8 pixels are easier than MNIST, and the sequence has 8 steps: nothing about long ones. "
    "The rows on operations are counts (a multiply-add is 2), not accuracies.",
)
