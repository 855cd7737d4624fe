"""OBoW: whether predicting bags of words trains an encoder, and what a head that moves with its words is worth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.distillation.data import TensorData
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.probes import extract_features, probe_scores
from tutelage.distillation.small_models import BasicBlock, conv_norm
from tutelage.distillation.trainer import train
from tutelage.experiments import Experiment, Figure, Metric, better
from tutelage.experiments._classification import fashion, subset
from tutelage.seeds import torch_rng
from tutelage.systems._toy import build_with_seed
from tutelage.systems.obow import OBoW

WORDS, BATCH, LAST = 256, 64, 60
LINEAR, KNN, FEW = "linear probe, %", "nearest neighbours, %", "linear probe on 10 labels a class, %"
EXPLAINED, PERPLEXITY = "explained share of the targets", "words that a batch uses (perplexity)"


class Encoder(nn.Module):
    """A stem of 16 channels and two residual blocks of stride 2, 28 x 28 -> 7 x 7: features [B, 64], the mean over places."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second = conv_norm(1, 16), BasicBlock(16, 32, 2), BasicBlock(32, 64, 2)

    def forward(self, images: Tensor) -> Tensor:
        """Features."""
        return self.second(self.first(self.stem(images))).mean((2, 3))


def run(seed: int, smoke: bool, all_arms: bool) -> Mapping[str, Figure]:
    """Encoders of Fashion-MNIST without labels, from one start, in equal steps; probes learn from the same images with labels."""
    images, tests = fashion(seed)
    count, steps = (300, 2) if smoke else (4000, 300)
    images = subset(images, torch.randperm(len(images), generator=torch_rng(seed, "images"))[:count])
    tests = subset(tests, torch.randperm(len(tests), generator=torch_rng(seed, "tests"))[: count // 2])
    assert images.labels is not None and tests.labels is not None
    unlabelled, labels, answers = TensorData(images.inputs), images.labels, tests.labels

    def probed(encoder: nn.Module) -> dict[str, float]:
        features, queries = (extract_features(encoder, part.inputs, 500) for part in (images, tests))
        found = probe_scores(features, labels, queries, answers)
        return {LINEAR: found["linear"], KNN: found["kNN"], FEW: found["10 labels a class"]}

    def encoder() -> Encoder:
        return build_with_seed(Encoder, seed, "encoder")

    settled = encoder().train()
    with torch.no_grad():
        for part in images.inputs.split(500):  # the statistics of its batch norms
            settled(part)
    arms: dict[str, Figure] = {"untrained": probed(settled)}
    heads: dict[str, dict[str, Any]] = {"OBoW": {}, "with a linear head": {"head": "linear"}}
    if all_arms:
        heads |= {"teacher that stands still": {"teacher_decay": 1.0}, "hard codes": {"inv_delta": None}}
    for arm, options in heads.items():
        method = OBoW(
            levels="second", words=WORDS, kappa=5.0, crop_size=20, crop_area=(0.3, 0.8), patches=0,
            colour=0.0, grey=0.0, blur=0.0, **options,
        )  # fmt: skip
        settings = TrainingSettings(steps=steps, batch_size=BATCH, lr=1e-3, weight_decay=0.01, seed=seed, log_every=1)
        result = train(TrainingJob(encoder(), None, method, unlabelled, settings, "obow"))
        terms = [record["terms"] for record in result.history[-LAST:]]

        def mean(name: str, terms: list[dict[str, float]] = terms) -> float:
            return sum(one[name] for one in terms) / len(terms)

        facts = {EXPLAINED: 1 - mean("crops") / mean("information"), PERPLEXITY: mean("batch_perplexity")}
        arms[arm] = probed(result.student) | facts
    return arms | {"a quarter of the words": {PERPLEXITY: WORDS / 4}}


experiment = Experiment(
    metric=LINEAR,
    further_metrics=[Metric(KNN), Metric(FEW), Metric(EXPLAINED), Metric(PERPLEXITY)],
    claims=[
        better("OBoW", "untrained"),
        better("OBoW", "with a linear head"),
        better("OBoW", "with a linear head", metric=EXPLAINED),
        better("OBoW", "a quarter of the words", metric=PERPLEXITY),
    ],
    run=run,
    limits="Fashion-MNIST, 4,000 images, 300 steps, one level, 70,000 parameters: nothing about detection, Pascal VOC, Places or "
    "ImageNet, and no comparison with contrastive methods. The untrained network is a strong encoder here. That a teacher which "
    "moves is better than one that stands still is not claimed.",
)
