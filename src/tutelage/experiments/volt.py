"""Volt: mixing scenes and a convolutional teacher keep a transformer on scarce scenes from a shortcut; rooms reported."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from tutelage.distillation.tasks.classification import Classification
from tutelage.experiments import Experiment, Figure, Metric, better, not_worse
from tutelage.experiments._classification import SELECTION, train_student
from tutelage.seeds import derive, numpy_rng
from tutelage.systems._toy import build_with_seed
from tutelage.systems.volt import CLASSES, ConvUNet, Points, SceneAugmentation, SceneDataset, Volt, VoltNetwork, room

CONTRADICT, AGREE = "right where the floor contradicts, %", "right where the floor agrees, %"
IOU, ERROR = "mean intersection over union on rooms, %", "largest relative change of the logits"


# -- rooms whose context lies ----------------------------------------------------------------------------------------

FLOOR, RED, BLUE, NONE = 0, 1, 2, -1
TEST_SCENES = 200
TINT = np.array((0.12, 0.0, -0.12))
MIX3D = SceneAugmentation(0.85, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
"""Two scenes in one place, in 85 % of the views; no other change."""


def cubes(seed: int, name: str, agree: bool, labelled_alone: bool = False) -> Points:
    """A red or blue floor of 12x12 voxels, and four 3x3x3 cubes above it, a little redder (class 1) or bluer (class 2).

    Two cubes are labelled: of the floor's colour where the scene agrees, else of the other. Two have no label and any
    colour; ``labelled_alone`` leaves these out.
    """
    rng = numpy_rng(seed, "cubes", name)
    red_floor = bool(rng.integers(2))
    places, colours, labels = [], [], []
    x, y = (axis.ravel() for axis in np.mgrid[0:12, 0:12])
    places.append(np.stack([x, y, 0 * x], 1))
    colours.append(np.tile((0.8, 0.2, 0.2) if red_floor else (0.2, 0.2, 0.8), (144, 1)))
    labels.append(np.full(144, FLOOR))
    known = set(rng.permutation(4)[:2].tolist())
    cube = np.stack(np.meshgrid(*[np.arange(3)] * 3, indexing="ij"), -1).reshape(-1, 3)
    for quarter in range(4):
        red = (red_floor == agree) if quarter in known else bool(rng.integers(2))
        corner = np.array((6 * (quarter // 2), 6 * (quarter % 2), 3)) + np.array((*rng.integers(0, 4, 2), rng.integers(0, 2)))
        if labelled_alone and quarter not in known:
            continue
        places.append(cube + corner)
        colours.append(np.tile(0.5 + (TINT if red else -TINT), (27, 1)))
        labels.append(np.full(27, (RED if red else BLUE) if quarter in known else NONE))
    points, colour = np.concatenate(places).astype(np.float32), np.concatenate(colours)
    colour = np.clip(colour + rng.normal(0, 0.1, colour.shape), 0, 1).astype(np.float32)
    normals = np.tile(np.array((0, 0, 1), np.float32), (len(points), 1))
    return Points(points, colour, normals, np.concatenate(labels).astype(np.int64), np.full(len(points), -1, np.int64))


@torch.no_grad()
def right_on_cubes(network: nn.Module, data: SceneDataset) -> float:
    """Share of the voxels of labelled cubes that get their label, %."""
    batch = data.batch(torch.arange(len(data)), None)
    cube = batch.labels > FLOOR
    return 100 * (network.eval()(batch.inputs).argmax(-1) == batch.labels)[cube].double().mean().item()


def lying_rooms(seed: int, smoke: bool) -> tuple[dict[str, Figure], VoltNetwork, SceneDataset]:
    """24 scenes that all agree; equal steps for every student. The teacher sees five voxels round a place: never the floor."""
    count, steps = (4, 2) if smoke else (24, 400)

    def scenes(part: str, number: int, agree: bool, **options: bool) -> list[Points]:
        return [cubes(derive(seed, part, i), part, agree, **options) for i in range(number)]

    train = scenes("train", count, True)
    part = "selection" if seed in SELECTION else "report"
    tests = {label: SceneDataset(scenes(part, TEST_SCENES, label == AGREE)) for label in (CONTRADICT, AGREE)}
    settings = {"steps": steps, "batch_size": 4, "lr": 4e-3, "warmup": 1 if smoke else 15, "clip": 1.0, "seed": seed}

    def student(data: SceneDataset, teacher: nn.Module | None = None) -> nn.Module:
        network = build_with_seed(lambda: VoltNetwork(3, 6, width=32, heads=2, depth=2, outputs=16, patch=3), seed, "student")
        return train_student(network, data, Volt(smoothing=0.0), teacher, **settings)  # type: ignore[arg-type]

    def measures(network: nn.Module) -> dict[str, float]:
        return {label: right_on_cubes(network, test) for label, test in tests.items()}

    plain = SceneDataset(train)
    teacher = build_with_seed(lambda: ConvUNet(3, 6, (8,)), seed, "teacher")
    task = Classification(ignore_index=NONE)
    teacher = train_student(teacher, plain, task=task, **settings)  # type: ignore[arg-type]
    naive = student(plain)
    alone = SceneDataset(scenes("train", count, True, labelled_alone=True))
    arms: dict[str, Figure] = {
        "convolutional teacher": measures(teacher),
        "naive": measures(naive),
        "Mix3D": measures(student(SceneDataset(train, MIX3D))),
        "distilled": measures(student(plain, teacher)),
        "distilled, no unlabelled cubes": measures(student(alone, teacher)),
    }
    assert isinstance(naive, VoltNetwork)
    return arms, naive, tests[AGREE]


@torch.no_grad()
def symmetries(network: VoltNetwork, data: SceneDataset) -> dict[str, Figure]:
    """How much the logits of one scene change, relative to the largest, by what must not change them."""
    network.eval()
    inputs = data.batch(torch.tensor([0]), None).inputs
    logits = network(inputs)

    def change(others: Tensor) -> dict[str, float]:
        return {ERROR: ((others - logits).abs().max() / logits.abs().max()).item()}

    shifted = inputs | {"coords": inputs["coords"] + torch.tensor([3, 6, 3])}
    order = torch.randperm(len(logits), generator=torch.Generator().manual_seed(0))
    permuted = network({name: value[order] for name, value in inputs.items()})
    together = network(data.batch(torch.tensor([0, 1, 2]), None).inputs)[: len(logits)]
    return {
        "a shift by whole patches": change(network(shifted)),
        "another order of the voxels": change(permuted[order.argsort()]),
        "other scenes in the batch": change(together),
    }


# -- reported: procedural rooms --------------------------------------------------------------------------------------

SIDE, OBJECTS = 14, 3
RECIPE = SceneAugmentation(0, 0, 0, 0, 0.5, 0, 0, 0, 0, 0, 0)
"""Mirror images alone: turns, Mix3D and the others slowed learning more than they gave in so few steps."""


def rooms(seed: int, name: str, count: int) -> list[Points]:
    """Rooms that no other name or seed has."""
    return [room(derive(seed, "rooms", name, i), SIDE, OBJECTS) for i in range(count)]


def network(drop_path: float = 0.0) -> VoltNetwork:
    """Patches of 2, two heads of 32."""
    return VoltNetwork(len(CLASSES), 6, width=64, heads=2, depth=3, outputs=32, patch=2, drop_path=drop_path)


@torch.no_grad()
def mean_iou(student: nn.Module, data: SceneDataset) -> float:
    """Mean over classes of intersection over union, %."""
    student.eval()
    matrix = torch.zeros(len(CLASSES), len(CLASSES), dtype=torch.int64)
    for rows in torch.arange(len(data)).split(10):
        batch = data.batch(rows, None)
        predictions: Tensor = student(batch.inputs).argmax(-1)
        matrix += torch.bincount(batch.labels * len(CLASSES) + predictions, minlength=len(CLASSES) ** 2).view_as(matrix)
    union = matrix.sum(0) + matrix.sum(1) - matrix.diagonal()
    return 100 * (matrix.diagonal()[union > 0] / union[union > 0]).mean().item()


def ladder(seed: int, smoke: bool) -> dict[str, float]:
    """24 rooms to train on; equal steps and scenes a step for every student; 40 rooms to score on."""
    count, steps = (4, 2) if smoke else (24, 400)
    kept = rooms(seed, "train", count)
    test = SceneDataset(rooms(0, "selection" if seed in SELECTION else "report", 4 if smoke else 40))
    common = {"steps": steps, "batch_size": 4, "warmup": max(1, steps // 20), "seed": seed}

    def score(data: SceneDataset, teacher: nn.Module | None = None, full: bool = False) -> float:
        student = build_with_seed(lambda: network(0.1 if full else 0.0), seed, "student")
        decay, method = (0.05, Volt()) if full else (0.0, Volt(smoothing=0.0))
        settings = {"lr": 6e-3, "weight_decay": decay, "clip": 1.0, **common}
        return mean_iou(train_student(student, data, method, teacher, **settings), test)  # type: ignore[arg-type]

    def convolutional(data: SceneDataset) -> nn.Module:
        start = build_with_seed(lambda: ConvUNet(len(CLASSES), 6, (8, 16)), seed, "teacher")
        return train_student(start, data, lr=3e-3, weight_decay=0.05, **common)  # type: ignore[arg-type]

    plain, views = SceneDataset(kept), SceneDataset(kept, RECIPE)
    teacher = convolutional(views)
    arms = {
        "rooms, convolutional teacher": mean_iou(teacher, test),
        "rooms, naive": score(plain),
        "rooms, with augmentation": score(views),
        "rooms, distilled too": score(views, teacher),
        "rooms, all three": score(views, teacher, full=True),
    }
    for share in (25, 50):
        fewer = kept[: count * share // 100]
        weak = convolutional(SceneDataset(fewer, RECIPE))
        arms[f"rooms, convolutional teacher, {share} %"] = mean_iou(weak, test)
        arms[f"rooms, distilled too, {share} %"] = score(SceneDataset(fewer, RECIPE), weak)
    return arms


def run(seed: int, smoke: bool, all_arms: bool) -> Mapping[str, Figure]:
    """Scenes whose context lies; with ``all_arms`` procedural rooms of eight classes."""
    arms, naive, test = lying_rooms(seed, smoke)
    arms |= symmetries(naive, test)
    return arms | ({arm: {IOU: value} for arm, value in ladder(seed, smoke).items()} if all_arms else {})


experiment = Experiment(
    metric=CONTRADICT,
    further_metrics=[Metric(AGREE), Metric(ERROR, higher_is_better=False), Metric(IOU)],
    claims=[
        better("Mix3D", "naive"),
        better("distilled", "naive"),
        better("distilled", "distilled, no unlabelled cubes"),
        not_worse("naive", "distilled", 1.0, metric=AGREE),
        *(
            not_worse(change, 0.0, 1e-4, metric=ERROR)
            for change in ("a shift by whole patches", "another order of the voxels", "other scenes in the batch")
        ),
    ],
    run=run,
    limits="Scenes of one floor and four cubes: what is shown is that mixing scenes, and a teacher that also labels points without "
    "a label, keep the transformer from a shortcut. That the teacher may be weaker than the student is not shown (here it is "
    "better), nor scale, nor scans. On procedural rooms (behind --all; 14 voxels a side, 8 classes, 400 steps) the ladder of the "
    "paper lies within the spread of the seeds. With 40 scenes to score on, seeds 0 to 4 missed one claim, naive not worse where "
    "the floor agrees: -0.19 [-1.06, 0.69] at a margin of 1. So 200 scenes were taken, looked at on seeds 100 to 103, and new "
    "seeds, 5 to 9, were run once.",
)
