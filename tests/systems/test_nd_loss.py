from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tutelage.distillation.data import TensorData
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.method import TrainingProgress
from tutelage.distillation.teacher import NetworkTeacher
from tutelage.distillation.trainer import Trainer, train
from tutelage.errors import InputError
from tutelage.systems._toy import SmallCNN, build_with_seed, toy_images
from tutelage.systems.kd import KD
from tutelage.systems.nd_loss import PRESETS, NDLoss, class_means, correlation, direction_loss, nd_loss, norm_loss

C = torch.tensor([[1.0, 0.0]])
ONE = torch.tensor([0])


@pytest.mark.parametrize(
    ("student", "norm", "expected"),
    [((3, 4), 10, 0.7), ((6, 8), 5, 0.4), ((-3, -4), 5, 1.6), ((0, 0), 5, 1.0), ((0, 0), 0, 1.0)],
)
def test_closed_forms(student: tuple[int, int], norm: float, expected: float) -> None:
    s = torch.tensor([student], dtype=torch.float32, requires_grad=True)
    loss = nd_loss(s, torch.tensor([[0.0, norm]]), C, ONE)
    assert loss.item() == pytest.approx(expected, abs=1e-6)
    loss.sum().backward()
    assert s.grad is not None and bool(s.grad.isfinite().all())
    if norm == 0:
        assert not s.grad.any()


def random_case(seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    s, t = (torch.randn(7, 5, generator=rng, dtype=dtype) for _ in range(2))
    return s, t, torch.randn(3, 5, generator=rng, dtype=dtype), torch.randint(0, 3, (7,), generator=rng)


@given(st.integers(0, 10_000))
def test_range_loop_and_rescaled_means(seed: int) -> None:
    s, t, c, y = random_case(seed)
    loss = nd_loss(s, t, c, y)
    assert bool((loss >= -1e-12).all() and (loss <= 2 + 1e-12).all())
    torch.testing.assert_close(nd_loss(s, t, 7.5 * c, y), loss)
    for i in range(len(s)):
        e = c[y[i]] / c[y[i]].norm()
        assert loss[i].item() == pytest.approx(1 - float(s[i] @ e) / max(float(s[i].norm()), float(t[i].norm())), abs=1e-6)


def test_zero_exactly_for_long_multiples_of_the_mean() -> None:
    c = torch.tensor([[3.0, 4.0]])
    assert nd_loss(2 * c, c, c, ONE).item() == pytest.approx(0, abs=1e-6)
    assert nd_loss(c, 2 * c, c, ONE).item() == pytest.approx(0.5, abs=1e-6)  # too short
    assert nd_loss(torch.tensor([[4.0, 3.0]]), c, c, ONE).item() > 0.01  # another direction


def test_gradient_of_both_regions() -> None:
    s = torch.tensor([[3.0, 4.0], [6.0, 8.0], [3.0, 4.0]], requires_grad=True)
    t = torch.tensor([[0.0, 10.0], [5.0, 0.0], [0.0, 5.0]])  # shorter than t, longer, a tie
    nd_loss(s, t, C, torch.zeros(3, dtype=torch.long)).mean().backward()
    assert s.grad is not None
    torch.testing.assert_close(s.grad[0], torch.tensor([-1 / 10 / 3, 0.0]), atol=1e-6, rtol=0)
    assert (s.grad[1:] * s.detach()[1:]).sum(-1).abs().max().item() < 1e-6
    assert s.grad[1:].norm(dim=1).min().item() > 0.01


@given(st.integers(0, 1000), st.floats(1.0, 20.0))
def test_in_region_b_the_student_may_be_rescaled(seed: int, factor: float) -> None:
    s, t, c, y = random_case(seed)
    s = s / s.norm(dim=1, keepdim=True) * t.norm(dim=1, keepdim=True) * 1.01
    torch.testing.assert_close(nd_loss(factor * s, t, c, y), nd_loss(s, t, c, y))


def test_no_gradient_for_teacher_and_means() -> None:
    s, t, c, y = random_case(0)
    for x in (s, t, c):
        x.requires_grad_()
    nd_loss(s, t, c, y).sum().backward()
    assert s.grad is not None and t.grad is None and c.grad is None


def test_baselines() -> None:
    s = torch.tensor([[3.0, 4.0]], requires_grad=True)
    assert direction_loss(s, C, ONE).item() == pytest.approx(0.4, abs=1e-6)
    grown = norm_loss(s, step=2.0)
    assert grown.item() == pytest.approx(4.0, abs=1e-5)
    grown.sum().backward()
    assert s.grad is not None
    torch.testing.assert_close(s.grad, torch.tensor([[-4 * 0.6, -4 * 0.8]]))  # -2 r along s: the norm grows
    assert norm_loss(s, torch.tensor([[0.0, 7.0]])).item() == pytest.approx(4.0, abs=1e-5)


def test_relation_loss_is_blind_to_scale_and_shift() -> None:
    p = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.2, 0.2, 0.6]])
    assert correlation(p.log(), p.log(), 1.0).item() == pytest.approx(0, abs=1e-5)
    assert correlation(p.flip(1).log(), p.log(), 1.0).item() > 0.5


def test_class_means_equal_numpy() -> None:
    data, teacher = toy_images(3, 50), NetworkTeacher(build_with_seed(lambda: SmallCNN(4, 4, 8), 0))
    teacher.request_features("in:head")
    means = class_means(teacher, data, "in:head", 4, batch_size=16)
    features = teacher(data.batch(torch.arange(50), None))["in:head"].double().numpy()
    for k in range(4):
        np.testing.assert_allclose(means[k], features[data.labels.numpy() == k].mean(0), rtol=1e-5, atol=1e-6)


def test_an_absent_class_is_named() -> None:
    data = toy_images(0, 12)
    absent = TensorData(data.inputs, data.labels.clamp_max(2))
    lesson = TrainingJob(SmallCNN(4, 4, 8), SmallCNN(4, 4, 8), NDLoss(), absent, TrainingSettings(steps=1, batch_size=4))
    with pytest.raises(InputError, match=r"\[3\]"):
        Trainer(lesson)


def test_without_the_feature_term_it_is_plain_distillation_bit_for_bit() -> None:
    def run(method: NDLoss | KD) -> dict[str, Tensor]:
        student, teacher = build_with_seed(lambda: SmallCNN(4, 4, 8), 0), build_with_seed(lambda: SmallCNN(4, 8, 16), 1)
        return train(
            TrainingJob(student, teacher, method, toy_images(0), TrainingSettings(steps=6, batch_size=16))
        ).student.state_dict()

    plain = run(KD(alpha=0.5))
    same = run(NDLoss(ce=0.5, kd=0.5, nd=0.0, warmup=0))
    assert all(torch.equal(plain[name], same[name]) for name in plain)
    other = run(NDLoss(ce=0.5, kd=0.5, nd=1.0, warmup=0))
    assert not all(torch.equal(plain[name], other[name]) for name in plain)


def test_the_warm_up_touches_the_base_alone() -> None:
    method = NDLoss(kd=3.0, warmup=20)
    assert method.loss_weights() == {"label": 1.0, "kd": 0.0, "nd": 2.0}
    method.progress = TrainingProgress(epoch=5.9)
    assert method.loss_weights() == {"label": 1.0, "kd": 3.0 * 5 / 20, "nd": 2.0}


@pytest.mark.parametrize("base", ["kd", "dkd", "dist"])
@pytest.mark.parametrize("feature", ["nd", "direction", "norm-step", "norm-match"])
def test_every_combination_trains(base: str, feature: str) -> None:
    lesson = NDLoss.tiny_job(0)
    lesson.method = NDLoss(base=base, feature=feature, warmup=0)
    terms = train(lesson).history[-1]["terms"]
    assert set(terms) == {"label", base, feature}
    assert all(math.isfinite(value) for value in terms.values())


def test_presets_and_unknown_words() -> None:
    assert NDLoss.preset("imagenet resnet101-resnet18").config.nd == 4.0
    assert len(PRESETS) == 13
    with pytest.raises(InputError, match="did you mean"):
        NDLoss.preset("cifar100 resnet56-resnet21")
    with pytest.raises(InputError, match="direction"):
        NDLoss(feature="directon")
