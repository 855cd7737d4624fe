from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tutelage.distillation import losses
from tutelage.distillation.data import Batch
from tutelage.distillation.method import TrainingProgress
from tutelage.errors import InputError
from tutelage.systems.dkd import DKD


@given(st.integers(0, 10_000), st.floats(0.5, 8))
def test_the_two_parts_make_up_classic_distillation(seed: int, tau: float) -> None:
    rng = torch.Generator().manual_seed(seed)
    ours, theirs = (3 * torch.randn(6, 5, generator=rng, dtype=torch.float64) for _ in range(2))
    labels = torch.randint(0, 5, (6,), generator=rng)
    target, other = losses.decoupled(ours, theirs, labels, tau)
    rest = 1 - (theirs / tau).softmax(-1).gather(1, labels[:, None])[:, 0]
    torch.testing.assert_close(target + rest * other, losses.kl_divergence(ours, theirs, tau))


def test_parts_see_only_what_is_theirs() -> None:
    theirs, labels = torch.tensor([[2.0, 1.0, -1.0]]), torch.tensor([0])
    shifted = theirs + torch.tensor([[3.0, 0.0, 0.0]])  # only the target's logit differs
    target, other = losses.decoupled(shifted, theirs, labels, 2.0)
    assert target.item() > 0.01
    assert other.item() == pytest.approx(0, abs=1e-6)


def test_terms_and_warm_up() -> None:
    method = DKD(alpha=1.0, beta=8.0, warmup=20)
    rises = []
    for epoch in (0.0, 9.5, 19.0, 40.0):
        method.progress = TrainingProgress(epoch=epoch)
        rises.append(method.loss_weights()["other"])
    assert rises == [8 / 20, 8 * 10 / 20, 8.0, 8.0]
    assert DKD(warmup=0).loss_weights() == {"label": 1.0, "target": 1.0, "other": 8.0}


def test_mixed_labels_are_refused() -> None:
    logits = {"logits": torch.zeros(2, 3)}
    with pytest.raises(InputError, match="class id"):
        DKD().loss_terms(Batch(torch.zeros(2, 1), torch.full((2, 3), 1 / 3)), logits, logits)
