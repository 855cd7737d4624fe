"""Mamba-PKD: each weak member learns what the earlier ones left, at equal operations; and what anytime answers cost."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from tutelage.distillation import losses
from tutelage.distillation.data import TensorData
from tutelage.experiments import Experiment, Figure, Metric, better, not_worse
from tutelage.experiments._classification import accuracy, digits, train_student
from tutelage.systems._toy import build_with_seed
from tutelage.systems.kd import KD
from tutelage.systems.mamba_pkd import ClassifierGroup, MambaClassifier, MambaPKD

ACCURACY, COST, RISE = (
    "test accuracy, %",
    "operations, % of the teacher's",
    "largest rise of the training loss from member to member",
)
COUNT = 7
WEAKEST = (4, 1, 2)
"""(width, depth, states) of seven equal members: each has 1.06 % of the teacher's operations."""
GROWING = ((4, 1, 2), (8, 1, 4), (8, 1, 4), (10, 1, 4), (12, 1, 8), (16, 1, 8), (20, 1, 8))
"""(width, depth, states) of members that grow, in the order of training."""
SINGLE = (33, 1, 16)
"""One network of about the growing group's operations."""
METHOD = MambaPKD.Config()


def network(width: int, depth: int, states: int) -> MambaClassifier:
    """Rows of 8 pixels as 8 steps."""
    return MambaClassifier(10, 1, width, depth, states, patch=None, size=8)


def share(member: nn.Module, teacher: MambaClassifier) -> float:
    """Operations (a multiply-add is 2), % of the teacher's."""
    assert isinstance(member, MambaClassifier)
    return 100 * member.flops(8, 8) / teacher.flops(8, 8)


def run(seed: int, smoke: bool, all_arms: bool) -> Mapping[str, Figure]:
    """797 training images; seven members together take as many steps as one network does."""
    data, test = digits(seed, 797)
    settings = {"batch_size": 50, "lr": 1e-2, "seed": seed}
    each = 4 if smoke else 100
    teacher = build_with_seed(lambda: network(32, 2, 16), seed, "teacher")
    teacher = train_student(teacher, data, steps=1 if smoke else 400, **(settings | {"lr": 5e-3}))  # type: ignore[assignment]

    def group(members: tuple[tuple[int, int, int], ...], combine: str, steps: int) -> ClassifierGroup:
        made = build_with_seed(lambda: ClassifierGroup([network(*sizes) for sizes in members], combine), seed, "student")  # type: ignore[arg-type]
        return train_student(made, data, MambaPKD(), teacher, steps=COUNT * steps, **settings)  # type: ignore[return-value]

    residual = group((WEAKEST,) * COUNT, "residual", each)
    alone = build_with_seed(lambda: network(*WEAKEST), seed, "student")
    alone = train_student(alone, data, KD(tau=METHOD.tau, alpha=1 - METHOD.a), teacher, steps=COUNT * each, **settings)  # type: ignore[assignment]
    first = partial_accuracies(residual, test)
    cost = share(residual.students[0], teacher)
    arms: dict[str, Figure] = {
        "teacher": accuracy(teacher, test),
        "seven, residual": {ACCURACY: first[6], COST: COUNT * cost, RISE: largest_rise(residual, teacher, data)},
        "seven, averaged": {ACCURACY: accuracy(group((WEAKEST,) * COUNT, "average", each), test), COST: COUNT * cost},
        "first of seven": {ACCURACY: first[0], COST: cost},
        "first 2 of seven": {ACCURACY: first[1], COST: 2 * cost},
        "first 4 of seven": {ACCURACY: first[3], COST: 4 * cost},
        "one member, all 700 steps": {ACCURACY: accuracy(alone, test), COST: cost},
    }
    arms |= growing(group(GROWING, "residual", 4 if smoke else 200), teacher, test)
    if all_arms:
        single = build_with_seed(lambda: network(*SINGLE), seed, "student")
        steps = COUNT * (4 if smoke else 200)
        single = train_student(single, data, KD(tau=METHOD.tau, alpha=1 - METHOD.a), teacher, steps=steps, **settings)  # type: ignore[assignment]
        arms["one network of the growing group's operations"] = {ACCURACY: accuracy(single, test), COST: share(single, teacher)}
    return arms


@torch.no_grad()
def partial_accuracies(group: ClassifierGroup, test: TensorData) -> list[float]:
    """Accuracy of the first 1, 2, ... members together, %."""
    return [100 * (logits.argmax(1) == test.labels).double().mean().item() for logits in group.partial(test.inputs)]


@torch.no_grad()
def largest_rise(group: ClassifierGroup, teacher: nn.Module, data: TensorData) -> float:
    """The largest change of the training loss from the first k members to the first k + 1; at or below 0 it never rises."""
    teacher_logits = teacher(data.inputs)
    found = [
        METHOD.a * losses.cross_entropy(logits, data.labels) + (1 - METHOD.a) * losses.kd(logits, teacher_logits, METHOD.tau)
        for logits in group.partial(data.inputs)
    ]
    return max(float(after - before) for before, after in zip(found, found[1:]))


@torch.no_grad()
def growing(group: ClassifierGroup, teacher: MambaClassifier, test: TensorData) -> dict[str, Figure]:
    """Members that grow: all together, the first alone, and answers that stop when they are sure."""
    spent = torch.tensor([share(member, teacher) for member in group.students]).cumsum(0)
    first = partial_accuracies(group, test)
    sure, members = group.anytime(test.inputs, 0.9)
    anytime = 100 * (sure.argmax(1) == test.labels).double().mean().item()
    return {
        "seven growing": {ACCURACY: first[-1], COST: spent[-1].item()},
        "first of seven growing": {ACCURACY: first[0], COST: spent[0].item()},
        "anytime at 0.9": {ACCURACY: anytime, COST: spent[members - 1].double().mean().item()},
        "a third of seven growing": {COST: spent[-1].item() / 3},
    }


experiment = Experiment(
    metric=ACCURACY,
    further_metrics=[Metric(COST, higher_is_better=False), Metric(RISE, higher_is_better=False)],
    claims=[
        better("seven, residual", "seven, averaged"),
        better("first 2 of seven", "first of seven"),
        better("first 4 of seven", "first 2 of seven"),
        better("seven, residual", "first 4 of seven"),
        better("seven, residual", "one member, all 700 steps"),
        not_worse("seven, residual", 0.0, 1e-6, metric=RISE),
        better("seven growing", "first of seven growing"),
        not_worse("anytime at 0.9", "seven growing", 1.0),
        better("anytime at 0.9", "a third of seven growing", metric=COST),
    ],
    run=run,
    limits="Digits of 8x8 pixels are easier than MNIST, and the sequence has 8 steps: nothing about long ones. Operations are "
    "counts. Not shown, and reported: seven growing members stay 1.6 points behind the teacher over five seeds, and behind one "
    "network of the same operations (95.5 against 97.2; behind --all). The published 63 % of the operations is 54 % here.",
)
