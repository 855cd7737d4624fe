"""Self-slimmed ViT on handwritten digits: 16 patch tokens become 8, then 4, with and without what makes up for it."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.distillation.augmentation import Augmentation
from tutelage.distillation.data import Batch, TensorData
from tutelage.distillation.teacher import NetworkTeacher
from tutelage.experiments import Experiment, Figure, Metric, better, equal, not_worse
from tutelage.experiments._classification import accuracy, digits, train_student
from tutelage.seeds import torch_rng
from tutelage.systems._backbone import count_macs, create
from tutelage.systems._toy import build_with_seed
from tutelage.systems.self_slimmed_vit import SelfSlimmedViT, SlimBlock, SlimViT

ACCURACY, COST, SPEED, ERROR = "test accuracy, %", "MACs, % of the host", "times faster", "largest change of the logits"
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


def run(seed: int, smoke: bool, all_arms: bool) -> Mapping[str, Figure]:
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
    arms: dict[str, Figure] = {
        "teacher, 16 tokens": accuracy(teacher, test),
        "merged, soft labels": accuracy(slimmed(tokens=0.0), test),
        "merged, labels": accuracy(slimmed(tokens=0.0, soft=0.0), test),
    }
    for by in ("attention", "pooling", "random") if all_arms else ("attention",):
        student = drop_tokens(teacher, whole.counts, by)
        method = SelfSlimmedViT(tokens=0.0, inherit=False)
        name = {"attention": "least attended dropped", "pooling": "neighbours averaged", "random": "random ones dropped"}[by]
        arms[f"{name}, soft labels"] = accuracy(train_student(student, data, method, teacher, **fields), test)
    # the counter takes seconds to start
    host, small = (1.0 if smoke else count_macs(network, 8, 1) for network in (teacher, whole))
    arms["merged, tokens recalibrated"] = {ACCURACY: accuracy(whole, test), COST: 100 * small / host}
    return arms | published_speed(seed, smoke) | exactness(teacher, whole, data, test.inputs[:50])


def published_speed(seed: int, smoke: bool) -> dict[str, Figure]:
    """CPU time of a published host over that of its slimmed network, and the MACs of both: untrained, two images of 224."""
    images = torch.rand(2, 3, 224, 224, generator=torch_rng(seed, "images"))
    arms: dict[str, Figure] = {}
    for name, host in (("t", "host-t"), ("xs", "host-s")):
        if smoke:
            arms[f"SiT-{name.upper()}"] = {SPEED: 1.0, COST: 100.0}
            continue
        own, other = (create(f"self-slimmed-vit:{size}").eval() for size in (name, host))
        seconds = {"own": [], "other": []}  # type: dict[str, list[float]]
        for _ in range(3):  # in turns
            seconds["own"].append(cpu_seconds(own, images))
            seconds["other"].append(cpu_seconds(other, images))
        share = 100 * count_macs(own, 224, 3) / count_macs(other, 224, 3)
        arms[f"SiT-{name.upper()}"] = {SPEED: median(seconds["other"]) / median(seconds["own"]), COST: share}
    return arms


@torch.no_grad()
def exactness(teacher: SlimViT, slim: SlimViT, data: TensorData, images: Tensor) -> dict[str, Figure]:
    """Without slimming the student is the teacher; and the reverse modules of training change no answer."""
    unslimmed = build_with_seed(lambda: SlimViT(10, 1, ratio=1.0, **SIZES), 0, "unslimmed")  # type: ignore[arg-type]
    method, batch = SelfSlimmedViT(), data.batch(torch.arange(8), torch.arange(8))
    live = NetworkTeacher(teacher)
    method.prepare(unslimmed, live, batch, data)
    terms = method.loss_terms(batch, *method(batch, unslimmed.eval(), live))
    return {
        "no slimming": {ERROR: float((unslimmed(images) - teacher(images)).abs().max() + terms["tokens"])},
        "reverse modules removed": {ERROR: float((slim(images) - with_reverse(slim, teacher, data, images)).abs().max())},
    }


def with_reverse(slim: SlimViT, teacher: SlimViT, data: TensorData, images: Tensor) -> Tensor:
    """The logits of ``slim`` inside its method, whose reverse modules restore the tokens beside it."""
    method, live = SelfSlimmedViT(inherit=False), NetworkTeacher(teacher)
    batch = Batch(images)
    method.prepare(slim, live, batch, data)
    return method(batch, slim, live)[0]["logits"]


@torch.no_grad()
def cpu_seconds(network: nn.Module, images: Tensor) -> float:
    """CPU seconds of a pass."""
    began = time.process_time()
    network(images)
    return time.process_time() - began


experiment = Experiment(
    metric=ACCURACY,
    further_metrics=[Metric(COST, False), Metric(SPEED), Metric(ERROR, False)],
    claims=[
        not_worse("merged, tokens recalibrated", "teacher, 16 tokens", 2.0),
        better("merged, tokens recalibrated", "merged, soft labels"),
        better("merged, tokens recalibrated", "least attended dropped, soft labels"),
        better("SiT-XS", 2.5, metric=SPEED),
        equal("SiT-T", 100 / 3.5, 1.0, metric=COST),
        equal("SiT-XS", 100 / 3.7, 1.0, metric=COST),
        equal("no slimming", 0.0, 1e-6, metric=ERROR),
        equal("reverse modules removed", 0.0, 1e-6, metric=ERROR),
    ],
    run=run,
    limits="Digits of 8x8 pixels and 16 tokens: that merging beats dropping, and recalibration soft labels, was not seen here. "
    "Also tried: digits on a cluttered canvas of 64 tokens, where dropping wins, since the few informative tokens can be told from "
    "the rest; after so few steps every merged token is still close to the mean token. Speed and operations are those of the "
    "published sizes, untrained, on one thread.",
)
