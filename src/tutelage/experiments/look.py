"""LOOK: digits labelled by parity alone; which loss keeps the ten digits apart within the two classes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.distillation.data import Batch, ReplayableData, TensorData
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.probes import knn_predict
from tutelage.distillation.teacher import Teacher
from tutelage.distillation.trainer import train
from tutelage.experiments import Experiment, Figure, Metric, better, not_worse
from tutelage.experiments._classification import digits
from tutelage.systems._toy import build_with_seed
from tutelage.systems.look import LOOK, NOTHING, NeighbourLoss, mode_ratio

MODES, TEN, PARITY = (
    "distance of digits within their class, over spread of a digit",
    "digits found by 20 neighbours, %",
    "parity, %",
)
IMAGES, STEPS, K, VOTERS = 700, 600, 5, 20


class NoisyEncoder(nn.Module):
    """64-256-128, with noise 0.1 on its input in training."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 128))

    def forward(self, images: Tensor) -> Tensor:
        """Features [B, 128]."""
        return self.layers(images + 0.1 * torch.randn_like(images) if self.training else images)


class SupervisedContrast(LOOK):
    """All entries of the class are positives, each by itself (Khosla et al., 2020, its outer sum)."""

    def sample_loss(self, z: Tensor, labels: Tensor, ids: Tensor, memory: tuple[Tensor, Tensor, Tensor]) -> NeighbourLoss:
        """See :class:`LOOK`."""
        features, classes, owners = memory
        other = ids[:, None] != owners
        same = (labels[:, None] == classes) & other
        kept = z @ features.T / self.config.sigma
        logs = kept - kept.masked_fill(~other, NOTHING).logsumexp(1, keepdim=True)
        count = same.sum(1)
        return NeighbourLoss(-(logs * same).sum(1) / count.clamp_min(1), count == 0, count / other.sum(1))


class CrossEntropy(LOOK):
    """A linear layer on 10 z: the same projection as the other losses."""

    def prepare(self, student: nn.Module, teacher: Teacher | None, example: Batch, data: ReplayableData) -> None:
        """See :class:`LOOK`."""
        super().prepare(student, teacher, example, data)
        self.classify = nn.Linear(self.config.dim, 2)

    def sample_loss(self, z: Tensor, labels: Tensor, ids: Tensor, memory: tuple[Tensor, Tensor, Tensor]) -> NeighbourLoss:
        """See :class:`LOOK`."""
        loss = F.cross_entropy(self.classify(10 * z), labels, reduction="none")
        return NeighbourLoss(loss, torch.zeros_like(labels, dtype=torch.bool), torch.zeros_like(loss))


def run(seed: int, smoke: bool, all_arms: bool) -> Mapping[str, Figure]:
    """Equal starts, heads, steps and batches; figures of held-out images in z, the space that the losses shape."""
    train_data, test = digits(seed, 64 if smoke else IMAGES)
    coarse = TensorData(train_data.inputs, train_data.labels % 2)
    methods: dict[str, LOOK] = {
        "cross-entropy": CrossEntropy(dim=32),
        "supervised contrast": SupervisedContrast(dim=32),
        "NCA, all entries": LOOK(dim=32, k=0),
        "LOOK": LOOK(dim=32, k=K),
    }
    if all_arms:
        methods |= {f"LOOK, k = {k}": LOOK(dim=32, k=k) for k in (1, 20, 50)}
    settings = TrainingSettings(steps=2 if smoke else STEPS, batch_size=64 if smoke else 128, lr=1e-3, seed=seed)
    arms: dict[str, Figure] = {}
    for name, method in methods.items():
        student = build_with_seed(NoisyEncoder, seed, "student")
        network = train(TrainingJob(student, None, method, coarse, settings, name)).student
        with torch.no_grad():
            z_train, z = (method.eval().embed(network, Batch(part.inputs)) for part in (train_data, test))
        guess, parity = (knn_predict(z_train, labels, z, VOTERS) for labels in (train_data.labels, coarse.labels))
        arms[name] = {
            MODES: mode_ratio(z, test.labels, test.labels % 2),
            TEN: 100 * (guess == test.labels).double().mean().item(),
            PARITY: 100 * (parity == test.labels % 2).double().mean().item(),
        }
    return arms


experiment = Experiment(
    metric=MODES,
    further_metrics=[Metric(TEN), Metric(PARITY)],
    claims=[
        better("LOOK", "NCA, all entries"),
        better("NCA, all entries", "supervised contrast"),
        better("LOOK", "supervised contrast", metric=TEN),
        better("LOOK", "NCA, all entries", metric=TEN),
        not_worse("LOOK", "cross-entropy", 1.0, metric=PARITY),
    ],
    run=run,
    limits="MLPs on 700 digits of 8x8 pixels; every figure is of z, the space that the losses shape: features before the "
    "projection and linear probes differ by less than a point. No claim against cross-entropy in digits. k was "
    "chosen on selection seeds 100 to 102 (distance, digits): k = 1 1.36, 92.0; k = 5 1.56, 92.2; k = 20 1.79, "
    "88.8; k = 50 1.66, 90.0; all entries 0.98, 88.2. A gain needs real hidden sub-classes and a task that is "
    "learned to the end. The published tables (ImageNet, nine downstream sets) are not reproduced.",
)
