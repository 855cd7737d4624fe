"""UniFormer on Fashion-MNIST: where convolution and attention belong; and on clips that only time can tell apart."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from tutelage.distillation.augmentation import Augmentation
from tutelage.distillation.data import TensorData
from tutelage.experiments import Experiment, better, not_worse
from tutelage.experiments._classification import accuracy, fashion, subset, train_student
from tutelage.seeds import torch_rng
from tutelage.systems._backbone import count_macs, create
from tutelage.systems._toy import build_with_seed

SHAPE = {"depths": (1, 1, 1, 1), "dims": (16, 24, 32, 48), "head": 8}
CLIP = {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16), "head": 8}


def framed(data: TensorData, rows: Tensor) -> TensorData:
    """The images ``rows`` of ``data`` in a black frame, 32x32."""
    few = subset(data, rows)
    return TensorData(F.pad(few.inputs, (2,) * 4), few.labels, views=data.views)


def clips(images: Tensor, rng: torch.Generator) -> TensorData:
    """Clips [N, 1, 8, 32, 32] of ``images``, moving by two pixels a frame to the right, left, down or up: the label.

    Each starts at a random place and leaves over one edge to come in over the other, so that no frame alone tells where
    it goes.
    """
    labels = torch.randint(4, (len(images),), generator=rng)
    starts = torch.randint(32, (len(images), 2), generator=rng)
    steps = 2 * torch.tensor([(0, 1), (0, -1), (1, 0), (-1, 0)])
    moved = [
        torch.stack([image.roll(tuple((start + time * steps[label]).tolist()), (1, 2)) for time in range(8)], 1)
        for image, label, start in zip(images, labels, starts)
    ]
    return TensorData(torch.stack(moved), labels)


def run(seed: int, smoke: bool, all_arms: bool) -> Mapping[str, float]:
    """4,000 training images, and 1,000 clips; equal steps. L: a stage with local blocks, G: with global ones."""
    train, test = fashion(seed)
    train.views = Augmentation(crop=2, flip=0.5)
    train = framed(train, torch.randperm(len(train), generator=torch_rng(seed, "few"))[: 100 if smoke else 4000])
    test = framed(test, torch.arange(100 if smoke else 5000))
    settings = {"steps": 2 if smoke else 350, "batch_size": 64, "lr": 4e-3, "weight_decay": 0.02, "warmup": 1 if smoke else 35}
    arms: dict[str, float] = {}
    for layout in ("llgg", "llll", "gggg", "ggll"):
        network = build_with_seed(lambda layout=layout: create("uniformer", 10, 1, **SHAPE, layout=layout), seed, "student")
        arms[layout.upper()] = accuracy(train_student(network, train, **settings, seed=seed), test)
        if not smoke:  # the counter takes seconds to start
            arms[f"{layout.upper()}, thousand MACs"] = count_macs(network, 32, 1) / 1000
    return arms | moving(train.inputs, test.inputs, seed, smoke)


def moving(images: Tensor, others: Tensor, seed: int, smoke: bool) -> dict[str, float]:
    """Accuracy on clips: of the video form, and of the same network that is shown the middle frame alone."""
    train = clips(images[: 64 if smoke else 1000], torch_rng(seed, "clips"))
    test = clips(others[: 64 if smoke else 1000], torch_rng(seed, "test clips"))
    settings = {"steps": 2 if smoke else 250, "batch_size": 32, "lr": 4e-3, "warmup": 1 if smoke else 25, "seed": seed}
    frames = [TensorData(data.inputs[:, :, 4].contiguous(), data.labels) for data in (train, test)]
    video = build_with_seed(lambda: create("uniformer", 4, 1, **CLIP, video=True), seed, "video")
    image = build_with_seed(lambda: create("uniformer", 4, 1, **CLIP), seed, "image")
    return {
        "clips, video form": accuracy(train_student(video, train, **settings), test),
        "clips, one frame": accuracy(train_student(image, frames[0], **settings), frames[1]),
        "chance + 10 points": 35.0,
        "90 %": 90.0,
    }


experiment = Experiment(
    metric="test accuracy, %; MACs in their own unit",
    claims=[
        not_worse("LLGG", "LLLL", 0.5),
        not_worse("LLGG", "GGGG", 0.0),
        better("LLGG", "GGLL"),
        better("clips, video form", "90 %"),
        not_worse("chance + 10 points", "clips, one frame", 0.0),
    ],
    run=run,
    limits="Maps of 8x8 at the first stage blunt the argument that early attention is redundant; made-up motion of still "
    "images is no action, and Kinetics, COCO and ADE20K are out of reach.",
)
