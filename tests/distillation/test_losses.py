"""Losses against hand values, torch's own formulas, and what must hold for any input."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from tutelage.distillation import losses
from tutelage.errors import InputError

seeds = st.integers(0, 10_000)


def logits(seed: int, rows: int = 5, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(3 * torch.randn(2, rows, classes, generator=generator, dtype=torch.float64))


def test_kd_by_hand() -> None:
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(3.0), 0.0]])
    expected = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert losses.kd(student, teacher, 1.0).item() == pytest.approx(expected, rel=1e-6)
    assert losses.kd(student, 2 * teacher, 2.0).item() == pytest.approx(4 * expected, rel=1e-6)


@given(seeds, st.sampled_from([0.5, 1.0, 2.0, 4.0]))
def test_kd_equals_torch_is_zero_at_equality_and_has_the_gradient_of_soft_cross_entropy(seed: int, tau: float) -> None:
    student, teacher = logits(seed)
    student.requires_grad_(True)
    loss = losses.kd(student, teacher, tau)
    reference = F.kl_div(F.log_softmax(student / tau, 1), F.softmax(teacher / tau, 1), reduction="batchmean") * tau**2
    assert torch.allclose(loss, reference)
    assert losses.kd(teacher, teacher, tau).abs() < 1e-12
    (gradient,) = torch.autograd.grad(loss, student)
    expected = tau * (F.softmax(student / tau, 1) - F.softmax(teacher / tau, 1)) / len(student)
    assert torch.allclose(gradient, expected)


@given(seeds)
def test_weights_are_a_weighted_mean(seed: int) -> None:
    student, teacher = logits(seed)
    weights = torch.tensor([0.0, 1.0, 2.0, 0.0, 0.5], dtype=torch.float64)
    each = torch.stack([losses.kd(student[i : i + 1], teacher[i : i + 1], 2.0) for i in range(5)])
    assert torch.allclose(losses.kd(student, teacher, 2.0, weights), (each * weights).sum() / weights.sum())
    assert losses.kd(student, teacher, 2.0, torch.zeros(5, dtype=torch.float64)) == 0


@given(seeds, st.sampled_from([1.0, 4.0]))
def test_dkd_splits_kd(seed: int, tau: float) -> None:
    """KD = TCKD + (1 - p_y) NCKD, sample by sample (Zhao et al., 2022, equation 6)."""
    student, teacher = logits(seed)
    labels = torch.arange(5) % 4
    target, other = losses.decoupled(student, teacher, labels, tau)
    sure = F.softmax(teacher / tau, 1).gather(1, labels[:, None])[:, 0]
    assert torch.allclose(target + (1 - sure) * other, losses.kl_divergence(student, teacher, tau), atol=1e-10)
    expected = (target + 8 * other).mean()
    assert torch.allclose(losses.dkd(student, teacher, labels, 1.0, 8.0, tau), expected)


def test_dkd_has_finite_gradients_even_when_the_teacher_is_certain() -> None:
    student = torch.zeros(2, 3, requires_grad=True)
    teacher = torch.tensor([[200.0, 0.0, 0.0], [-200.0, 0.0, 1.0]])
    losses.dkd(student, teacher, torch.tensor([0, 0]), tau=1.0).backward()
    assert student.grad is not None and student.grad.isfinite().all() and student.grad.abs().sum() > 0


def test_cross_entropy_of_ids_and_of_probabilities_agree() -> None:
    student, _ = logits(3)
    labels = torch.tensor([0, 1, 2, 3, 0])
    hot = F.one_hot(labels, 4).double()
    weights = torch.tensor([1.0, 2.0, 0.0, 1.0, 3.0], dtype=torch.float64)
    assert torch.allclose(losses.cross_entropy(student, labels), F.cross_entropy(student, labels))
    assert torch.allclose(losses.cross_entropy(student, hot, weights), losses.cross_entropy(student, labels, weights))


@given(st.floats(-5, 5), st.floats(0, 1))
def test_binary_cross_entropy_by_hand(z: float, y: float) -> None:
    expected = -y * math.log(1 / (1 + math.exp(-z))) - (1 - y) * math.log(1 - 1 / (1 + math.exp(-z)))
    found = losses.binary_cross_entropy(torch.tensor([z], dtype=torch.float64), torch.tensor([y], dtype=torch.float64))
    assert found.item() == pytest.approx(expected, abs=1e-9)


def test_heatmap_counts_peaks_more() -> None:
    out, heat = torch.zeros(1, 1, 2, 2), torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]])
    assert losses.heatmap_bce(out, heat).item() == pytest.approx(math.log(2))
    assert losses.heatmap_bce(out, heat, positive=5.0).item() == pytest.approx(math.log(2) * (5 + 3) / 4)
    two = losses.heatmap_bce(torch.cat([out, 3 + out]), torch.cat([heat, heat]), weights=torch.tensor([1.0, 0.0]))
    assert two.item() == pytest.approx(math.log(2))


def test_size_is_measured_at_peaks_only() -> None:
    size, target = torch.zeros(1, 2, 2, 2), torch.ones(1, 2, 2, 2)
    target[0, 0, 1, 1] = 4.0
    peaks = torch.zeros(1, 2, 2)
    assert losses.size_l1(size, target, peaks) == 0
    peaks[0, 0, 0] = peaks[0, 1, 1] = 1
    assert losses.size_l1(size, target, peaks).item() == pytest.approx((2 + 5) / 2)


def test_token_losses_use_each_sequence_own_length() -> None:
    student, teacher = (torch.stack(logits(i, 3)) for i in (1, 2))
    tokens = torch.tensor([[0, 1, -100], [2, -100, -100]])
    each = [F.cross_entropy(student[0, :2], tokens[0, :2]), F.cross_entropy(student[1, :1], tokens[1, :1])]
    assert torch.allclose(losses.token_cross_entropy(student, tokens), torch.stack(each).mean())
    mask = tokens != -100
    each = [losses.kd(student[0, :2], teacher[0, :2], 2.0), losses.kd(student[1, :1], teacher[1, :1], 2.0)]
    assert torch.allclose(losses.token_kd(student, teacher, mask, 2.0), torch.stack(each).mean())


@pytest.mark.parametrize("kind", ["classes", "logit", "heatmap", "size", "features", "tokens", "set"])
def test_head_distance_has_its_least_value_at_equality_and_teaches_the_student_alone(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    shape = {"classes": (3, 4), "logit": (3,), "tokens": (3, 2, 4), "set": (3, 6, 5)}.get(kind, (3, 2, 4, 4))
    teacher = torch.randn(shape, generator=generator, requires_grad=True)
    same = teacher.detach().clone().requires_grad_(True)
    least = losses.head_distance(kind, same, teacher, tau=2.0)
    (gradient,) = torch.autograd.grad(least, same, retain_graph=True)
    assert gradient.abs().max() < 1e-6
    other = losses.head_distance(kind, same + 0.3 * torch.randn(shape, generator=generator), teacher, tau=2.0)
    assert other > least
    assert torch.autograd.grad(least, teacher, allow_unused=True)[0] is None


def test_head_distance_refuses_unknown_types_and_shapes() -> None:
    with pytest.raises(InputError, match="differ in shape"):
        losses.head_distance("classes", torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(InputError, match="did you mean classes"):
        losses.head_distance("clases", torch.zeros(2, 3), torch.zeros(2, 3))


@settings(max_examples=60)
@given(st.integers(1, 5), st.integers(1, 5), seeds)
def test_assignment_equals_brute_force(rows: int, columns: int, seed: int) -> None:
    cost = np.random.default_rng(seed).normal(size=(rows, columns)).round(1)
    pairs = losses.hungarian_assignment(cost)
    assert len(pairs) == min(rows, columns) == len({r for r, _ in pairs}) == len({c for _, c in pairs})
    if rows <= columns:
        best = min(sum(cost[r, c] for r, c in enumerate(p)) for p in itertools.permutations(range(columns), rows))
    else:
        best = min(sum(cost[r, c] for c, r in enumerate(p)) for p in itertools.permutations(range(rows), columns))
    assert sum(cost[r, c] for r, c in pairs) == pytest.approx(best)


def test_generalised_iou_by_hand() -> None:
    a = torch.tensor([0.0, 0.0, 2.0, 2.0])
    boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [1.0, 0.0, 3.0, 2.0], [3.0, 0.0, 5.0, 2.0]])
    assert losses.generalized_iou(a, boxes).tolist() == pytest.approx([1.0, 2 / 6, 0 - 2 / 10])


def test_set_loss_does_not_mind_the_order_of_targets_and_is_least_at_the_targets() -> None:
    boxes = torch.tensor([[[0.2, 0.2, 0.1, 0.1], [0.7, 0.7, 0.2, 0.2], [0.5, 0.1, 0.1, 0.1]]])
    perfect = torch.tensor([[[9.0, -9, -9], [-9, 9.0, -9], [-9, -9, 9.0]]])
    labels, targets = [torch.tensor([1, 0])], [torch.stack([boxes[0, 1], boxes[0, 0]])]
    least = losses.set_loss(perfect, boxes, labels, targets)
    assert least < 1e-6
    flipped = losses.set_loss(perfect, boxes, [labels[0].flip(0)], [targets[0].flip(0)])
    assert torch.allclose(least, flipped)
    moved = boxes.clone().requires_grad_(True)
    worse = losses.set_loss(perfect, moved + 0.05, labels, targets)
    worse.backward()
    assert worse > 0.4 and moved.grad is not None and moved.grad[0, 2].abs().sum() == 0
    none = losses.set_loss(perfect, boxes, [torch.zeros(0, dtype=torch.long)], [torch.zeros(0, 4)])
    assert none > 1


def test_feature_mse_weights_rows() -> None:
    student, teacher = torch.zeros(2, 3, 2, 2), torch.ones(2, 3, 2, 2)
    teacher[1] = 3.0
    assert losses.feature_mse(student, teacher).item() == pytest.approx(5.0)
    assert losses.feature_mse(student, teacher, torch.tensor([1.0, 0.0])).item() == pytest.approx(1.0)
