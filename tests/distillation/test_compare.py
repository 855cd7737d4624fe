"""Side-by-side comparison, calibration, and the free speed of frozen teachers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tutelage.distillation.compare import calibration, compare
from tutelage.distillation.data import Batch, TensorData
from tutelage.distillation.job import TrainingSettings
from tutelage.distillation.profiling import fold_batchnorm, speed_up_teacher
from tutelage.distillation.teacher import NetworkTeacher
from tutelage.errors import InputError
from tutelage.reports.comparison import comparison_report

from .toy import Distil, Net, bits, samples


def test_calibration_by_hand() -> None:
    probabilities = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.45, 0.55]])
    found = calibration(probabilities, torch.tensor([0, 1, 0, 1]))
    assert found["ece"] == pytest.approx(0.5 * 0.4 + 0.25 * 0.4 + 0.25 * 0.45, abs=1e-6)
    assert sum(one["share"] for one in found["bins"]) == pytest.approx(1)


def test_a_comparison_has_all_arms_and_a_report_can_be_made_of_it() -> None:
    data = samples(120)
    test = TensorData(data.inputs[60:], data.labels[60:])
    few = TensorData(data.inputs[:12], data.labels[:12])
    pool = TensorData(data.inputs[:60], data.labels[:60])
    found = compare(
        lambda seed: Net(seed=seed), NetworkTeacher(Net(16, seed=9)), pool, test, Distil(),
        TrainingSettings(steps=20, batch_size=16, lr=0.01, log_every=5), (0, 1), few,
    )  # fmt: skip
    assert [arm["role"] for arm in found["arms"]] == ["teacher", "student", "distilled"]
    alone, taught = found["arms"][1]["equal_steps"], found["arms"][2]["equal_steps"]
    assert alone["steps"] == taught["steps"] == 20 and len(taught["seeds"]) == 2
    assert found["summary"]["gain"] == pytest.approx(taught["mean"] - alone["mean"])
    assert found["arms"][1]["equal_time"]["steps"] != 0
    assert [p["step"] for p in found["curves"][1]["points"]] == list(range(2, 21, 2))
    assert {term["name"] for term in found["losses"]["terms"]} == {"soft", "hard"}
    assert "<html" in comparison_report(found)


def test_a_comparison_needs_labels_and_seeds() -> None:
    data, unlabelled = samples(), TensorData(torch.zeros(4, 4))
    with pytest.raises(InputError, match="no labels"):
        compare(lambda seed: Net(), NetworkTeacher(Net()), data, unlabelled, Distil(), TrainingSettings(steps=1))
    with pytest.raises(InputError, match="no seed"):
        compare(lambda seed: Net(), NetworkTeacher(Net()), data, data, Distil(), TrainingSettings(steps=1), ())


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.shared = nn.BatchNorm2d(8)  # used twice: must not be folded
        self.head = nn.Linear(8, 3)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.running_mean, -1, 1)
                nn.init.uniform_(module.running_var, 0.5, 2)

    def forward(self, x):
        x = self.first(x)
        x = self.shared(x) + self.norm(self.second(x))
        return self.head(self.shared(x).mean((2, 3)))


def test_folded_batch_norm_says_the_same_and_leaves_the_network_alone() -> None:
    network = Residual().eval()
    before, x = bits(network), torch.randn(4, 3, 8, 8)
    folded, count = fold_batchnorm(network)
    assert count == 2 and isinstance(folded.shared, nn.BatchNorm2d)
    assert torch.allclose(folded(x), network(x), atol=1e-5) and bits(network) == before

    class Untraceable(Residual):
        def forward(self, x):
            return super().forward(x) if x.sum() > -1e9 else x

    assert fold_batchnorm(Untraceable())[1] == 0


def test_quicken_chooses_among_variants_that_agree() -> None:
    network = Residual().eval()
    batch = Batch(torch.randn(4, 3, 8, 8))
    found = speed_up_teacher(network, batch, rounds=2)
    assert found.error <= 0.02 and set(found.tricks) <= {"fold", "channels_last", "bf16"}
    assert {"plain", "fold"} <= set(found.milliseconds)
    said, plain = found.teacher(batch)["logits"], network(batch.inputs).detach()
    assert said.dtype == torch.float32 and torch.allclose(said, plain, atol=0.03 * float(plain.abs().max()))
    strict = speed_up_teacher(network, batch, rounds=1, tolerance=1e-4)
    assert not any("bf16" in name for name in strict.milliseconds)
