"""Peak tensor memory, and the plain networks."""

from __future__ import annotations

import os

import pytest
import torch
from torch import nn

from tutelage.distillation.memory import job_peak, step_peak
from tutelage.distillation.small_models import ResNet, SmallCNN
from tutelage.errors import InputError

from .toy import bits, lesson


def test_the_peak_is_the_worst_moment_not_the_sum() -> None:
    def step() -> None:
        first = torch.zeros(1000)
        del first
        second, third = torch.zeros(500), torch.zeros(250)
        del second, third

    assert step_peak(step) == pytest.approx(4000, rel=0.1)


def test_gradients_that_are_held_count_and_standard_error_is_given_back(capfd: pytest.CaptureFixture[str]) -> None:
    network = nn.Linear(100, 10, bias=False)
    network.weight.grad = torch.zeros(10, 100)
    assert step_peak(lambda: None, (network,)) == 4000
    os.write(2, b"still here")
    assert capfd.readouterr().err == "still here"


def test_a_lesson_is_measured_on_the_copy_it_is_given() -> None:
    small, large = lesson(batch_size=16), lesson(batch_size=32)
    before = bits(small.teacher.network)
    assert 0 < job_peak(small) < job_peak(large)
    assert bits(small.teacher.network) == before


def test_residual_networks_have_the_published_size() -> None:
    counts = {depth: sum(p.numel() for p in ResNet(depth).parameters()) for depth in (20, 56)}
    assert counts[20] == pytest.approx(0.27e6, rel=0.03) and counts[56] == pytest.approx(0.85e6, rel=0.03)
    assert ResNet(8, classes=7)(torch.zeros(2, 3, 32, 32)).shape == (2, 7)
    assert SmallCNN(5)(torch.zeros(2, 1, 28, 28)).shape == (2, 5)
    with pytest.raises(InputError, match="6n"):
        ResNet(18)
