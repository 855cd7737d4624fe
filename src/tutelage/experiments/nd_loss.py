"""ND loss: norms that grow past the teacher's and directions that turn to its class means; accuracy reported."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.distillation.data import TensorData
from tutelage.distillation.feature_hooks import FeatureHooks
from tutelage.distillation.teacher import NetworkTeacher
from tutelage.experiments import Experiment, Figure, Metric, better
from tutelage.experiments._classification import accuracy, fashion, logits, subset, train_student
from tutelage.seeds import torch_rng
from tutelage.systems._toy import SmallCNN, build_with_seed
from tutelage.systems.nd_loss import NDLoss, class_means

NORM, COSINE = "norm of the embedding, % of the teacher's", "cosine to the own class mean, %"
READ, ACCURACY = "read by the teacher's class means, %", "test accuracy, %"
HEAD = "in:head"


def run(seed: int, smoke: bool, all_arms: bool) -> Mapping[str, Figure]:
    """1,000 images of Fashion-MNIST, 6,000 for the teacher; embeddings of 32; equal steps, batches and starts."""
    whole, test = fashion(seed)
    order = torch.randperm(len(whole), generator=torch_rng(seed, "few"))
    train, more = (subset(whole, order[: 200 if smoke else count]) for count in (1000, 6000))
    test = subset(test, torch.arange(200)) if smoke else test
    settings = {"steps": 4 if smoke else 400, "batch_size": 64, "lr": 3e-3, "seed": seed}
    teacher = train_student(build_with_seed(lambda: SmallCNN(10, 24, 32, stride=2), seed, "teacher"), more, **settings)
    methods = {
        "CE": None,
        "KD": NDLoss(nd=0.0, warmup=4),
        "KD++": NDLoss(warmup=4),
        "KD + direction alone": NDLoss(feature="direction", warmup=4),
        "KD + norm alone": NDLoss(feature="norm-match", nd=0.02, warmup=4),
    }
    if all_arms:
        methods["DKD++"] = NDLoss(base="dkd", warmup=4)
    means = class_means(NetworkTeacher(teacher, taps=[HEAD]), more, HEAD, 10)
    of_teacher = embeddings(teacher, test)
    arms: dict[str, Figure] = {"teacher": measures(teacher, test, of_teacher, means)}
    for name, method in methods.items():
        student = build_with_seed(lambda: SmallCNN(10, 6, 32, stride=2), seed, "student")
        student = train_student(student, train, method, NetworkTeacher(teacher) if method else None, **settings)
        arms[name] = measures(student, test, of_teacher, means)
    return arms


def measures(network: nn.Module, test: TensorData, of_teacher: Tensor, means: Tensor) -> dict[str, float]:
    """All metrics of one network on the test images."""
    own = embeddings(network, test)
    nearest = F.normalize(own, dim=1) @ F.normalize(means, dim=1).T
    return {
        NORM: 100 * (own.norm(dim=1) / of_teacher.norm(dim=1)).mean().item(),
        COSINE: 100 * F.cosine_similarity(own, means[test.labels]).mean().item(),
        READ: 100 * (nearest.argmax(1) == test.labels).double().mean().item(),
        ACCURACY: accuracy(network, test),
    }


def embeddings(network: nn.Module, data: TensorData) -> Tensor:
    """What goes into the last layer: [N, 32]."""
    found = []
    for rows in torch.arange(len(data)).split(1000):
        with FeatureHooks(network, [HEAD]) as taken:
            logits(network, subset(data, rows))
        found.append(taken[HEAD])
    return torch.cat(found)


experiment = Experiment(
    metric=NORM,
    further_metrics=[Metric(COSINE), Metric(READ), Metric(ACCURACY)],
    claims=[
        better("KD++", "KD"),
        better("KD++", "KD + direction alone"),
        better("KD++", "teacher"),
        better("KD++", "KD", metric=COSINE),
        better("KD++", "KD + norm alone", metric=COSINE),
        better("KD++", "KD", metric=READ),
    ],
    run=run,
    limits="The claims are about what the one loss does to embeddings that neither of its halves does. Accuracy is reported, not "
    "claimed: the published gain was not reproduced on digits or Fashion-MNIST at weight 2; on selection seeds KD++ stayed 0.7 "
    "points behind KD (1,000 training images, 400 steps), and the norm term was what cost them.",
)
