"""Self-slimmed ViT on handwritten digits: 16 patch tokens become 8, then 4, with and without what makes up for it."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.distillation.augmentation import Augmentation
from tutelage.experiments import Experiment, better, not_worse
from tutelage.experiments._classification import accuracy, digits, train_student
from tutelage.seeds import torch_rng
from tutelage.systems._backbone import count_macs
from tutelage.systems._toy import build_with_seed
from tutelage.systems.self_slimmed_vit import SelfSlimmedViT, SlimBlock, SlimViT

SIZES = {"width": 32, "heads": 2, "stages": (1, 1, 1), "size": 8, "stem": ((2, 1), (1, 2)), "auxiliary": False}


class TokenDropping(nn.Module):
    """A layer after which tokens are given up: those of least attention from the class token (``attention``), any
    (``random``), or neighbours' means take their place (``pooling``)."""

    slim = None

    def __init__(self, layer: SlimBlock, count: int, by: str):
        super().__init__()
        self.layer, self.count, self.by = layer, count, by

    def forward(self, x: Tensor) -> Tensor:
        """[B, 1 + N, C] -> [B, 1 + count, C]."""
        after = self.layer(x)
        first, rest = after[:, :1], after[:, 1:]
        if self.by == "pooling":
            kept = F.adaptive_avg_pool1d(rest.transpose(1, 2), self.count).transpose(1, 2)
        else:
            scores = torch.rand(rest.shape[:2]) if self.by == "random" and self.training else self.scores(x)
            rows = scores.topk(self.count, 1).indices.sort(1).values
            kept = rest.gather(1, rows[..., None].expand(-1, -1, rest.shape[2]))
        return torch.cat([first, kept], 1)

    def scores(self, x: Tensor) -> Tensor:
        """How much the class token attends to each patch token, or where that does not count a fixed draw: [B, N]."""
        if self.by == "random":
            return torch.rand(x.shape[1] - 1, generator=torch_rng(0, "random tokens")).expand(len(x), -1)
        attention = self.layer.attention
        q, k, _ = attention.qkv(self.layer.norm1(x)).unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return (q[:, :, :1] @ k.transpose(2, 3) * q.shape[-1] ** -0.5).softmax(-1)[:, :, 0, 1:].mean(1)


def drop_tokens(teacher: SlimViT, counts: list[int], by: str) -> SlimViT:
    """The teacher's copy, of which every layer but the last gives up tokens."""
    student = copy.deepcopy(teacher).requires_grad_(True)
    for i, count in enumerate(counts[1:]):
        student.layers[i] = TokenDropping(student.layers[i], count, by)  # type: ignore[arg-type]
    return student


def run(seed: int, smoke: bool, all_arms: bool) -> Mapping[str, float]:
    """797 shifted training images; the unslimmed teacher has seen the same; every student has its steps and token counts."""
    data, test = digits(seed, 797, Augmentation(crop=1))
    fields = {"batch_size": 50, "lr": 2e-3, "weight_decay": 0.05, "seed": seed}
    teacher = build_with_seed(lambda: SlimViT(10, 1, ratio=1.0, **SIZES), seed, "teacher")  # type: ignore[arg-type]
    teacher = train_student(teacher, data, steps=2 if smoke else 700, warmup=20, **fields)  # type: ignore[assignment]
    fields |= {"steps": 2 if smoke else 240, "lr": 2e-3}

    def slimmed(**options: float) -> SlimViT:
        student = build_with_seed(lambda: SlimViT(10, 1, **SIZES), seed, "student")  # type: ignore[arg-type]
        return train_student(student, data, SelfSlimmedViT(**options), teacher, **fields)  # type: ignore[return-value]

    whole = slimmed()
    arms = {
        "teacher, 16 tokens": accuracy(teacher, test),
        "merged, tokens recalibrated": accuracy(whole, test),
        "merged, soft labels": accuracy(slimmed(tokens=0.0), test),
        "merged, labels": accuracy(slimmed(tokens=0.0, soft=0.0), test),
    }
    for by in ("attention", "pooling", "random") if all_arms else ("attention",):
        student = drop_tokens(teacher, whole.counts, by)
        method = SelfSlimmedViT(tokens=0.0, inherit=False)
        name = {"attention": "least attended dropped", "pooling": "neighbours averaged", "random": "random ones dropped"}[by]
        arms[f"{name}, soft labels"] = accuracy(train_student(student, data, method, teacher, **fields), test)
    arms["multiply-adds of the merged, % of the teacher's"] = 100 * count_macs(whole, 8, 1) / count_macs(teacher, 8, 1)
    if all_arms:
        arms["speed of the merged, times the teacher's"] = speed(teacher, test.inputs[:200]) / speed(whole, test.inputs[:200])
    return arms


@torch.no_grad()
def speed(network: nn.Module, images: Tensor) -> float:
    """CPU seconds of a pass: the median of nine."""
    seconds = []
    for _ in range(9):
        began = time.process_time()
        network(images)
        seconds.append(time.process_time() - began)
    return sorted(seconds)[4]


experiment = Experiment(
    metric="test accuracy, %",
    claims=[
        better("merged, tokens recalibrated", "merged, soft labels"),
        better("merged, tokens recalibrated", "least attended dropped, soft labels"),
        not_worse("merged, tokens recalibrated", "teacher, 16 tokens", 2.0),
    ],
    run=run,
    limits="Digits of 8x8 pixels and 16 tokens: attention is a small part of the cost, so that time is saved less than the paper "
    "reports. The row on multiply-adds is a count, not an accuracy.",
)
