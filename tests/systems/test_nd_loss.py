from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.distillation.data import TensorData
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.losses import kd
from tutelage.distillation.map_fusion import AttentionFusion, fuse_maps
from tutelage.distillation.method import TrainingProgress
from tutelage.distillation.small_models import ResNet
from tutelage.distillation.teacher import NetworkTeacher
from tutelage.distillation.trainer import Trainer, train
from tutelage.errors import InputError
from tutelage.networks.region_classifier import RegionClassifier, sample_regions
from tutelage.networks.roi import decode_boxes
from tutelage.systems._toy import SmallCNN, build_with_seed, toy_images
from tutelage.systems.kd import KD
from tutelage.systems.nd_loss import (
    PRESETS,
    NDLoss,
    RegionNDLoss,
    as_map,
    class_means,
    correlation,
    direction_loss,
    nd_loss,
    norm_loss,
)

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


@pytest.mark.parametrize("base", ["kd", "dkd", "dist", "review"])
@pytest.mark.parametrize("feature", ["nd", "direction", "norm-step", "norm-match"])
def test_every_combination_trains(base: str, feature: str) -> None:
    lesson = NDLoss.tiny_job(0)
    maps = ("body.0", "body.1", "in:head") if base == "review" else ()
    lesson.method = NDLoss(base=base, feature=feature, warmup=0, student_maps=maps, teacher_maps=maps)
    terms = train(lesson).history[-1]["terms"]
    assert set(terms) == {"label", base, feature}
    assert all(math.isfinite(value) for value in terms.values())


def test_presets_and_unknown_words() -> None:
    assert NDLoss.preset("imagenet resnet101-resnet18").config.nd == 4.0
    assert len(PRESETS) == 17
    with pytest.raises(InputError, match="did you mean"):
        NDLoss.preset("cifar100 resnet56-resnet21")
    with pytest.raises(InputError, match="direction"):
        NDLoss(feature="directon")


def test_review_compares_every_stage_in_the_teachers_shape() -> None:
    maps = ("body.0", "body.2", "in:head")
    method = NDLoss(base="review", nd=0.0, warmup=0, student_maps=maps, teacher_maps=maps)
    job = NDLoss.tiny_job(0)
    trainer = Trainer(TrainingJob(job.student, job.teacher, method, job.data, job.settings))
    student, teacher = method(trainer.batch(0), trainer.student, trainer.teacher)
    shapes = [tuple(student[f"review{i}"].shape[1:]) for i in range(3)]
    assert shapes == [(8, 8, 8), (16, 2, 2), (16, 1, 1)]
    assert [tuple(as_map(teacher[name]).shape[1:]) for name in maps] == shapes
    same = dict(teacher) | {f"review{i}": as_map(teacher[name]) for i, name in enumerate(maps)}
    assert method.loss_terms(trainer.batch(0), same, teacher)["review"].item() == 0
    assert method.loss_weights() == {"label": 1.0, "review": 1.0}
    exported = trainer.run().student
    assert exported.state_dict().keys() == SmallCNN(4, 4, 8).state_dict().keys()
    for wrong in ({"base": "review"}, {"student_maps": maps}, {"base": "review", "student_maps": maps, "teacher_maps": maps[:2]}):
        with pytest.raises(InputError, match="maps for the base"):
            NDLoss(**wrong)


def test_the_preset_of_review_fits_residual_networks() -> None:
    data = toy_images(0, 8, image_size=8)
    method = NDLoss.preset("cifar100 resnet56-resnet20 reviewkd++", warmup=0)
    student, teacher = (build_with_seed(lambda: ResNet(8, 4, 1), seed) for seed in (0, 1))
    job = TrainingJob(student, teacher, method, data, TrainingSettings(steps=1, batch_size=8))
    terms = train(job).history[-1]["terms"]
    assert set(terms) == {"label", "review", "nd"} and method.loss_weights() == {"label": 1.0, "review": 1.2, "nd": 1.0}


def test_attention_fusion_by_hand() -> None:
    fusion = AttentionFusion(2, 3, 4, True, (4, 4)).eval()
    x, y = torch.randn(2, 2, 2, 2), torch.randn(2, 4, 1, 1)
    entered = fusion.entry(x)
    both = torch.cat([entered, y.expand(2, 4, 2, 2)], 1)
    weights = torch.sigmoid(fusion.attention(both))
    expected = entered * weights[:, :1] + y * weights[:, 1:]
    answer, passed = fusion(x, y)
    torch.testing.assert_close(passed, expected.repeat_interleave(2, 2).repeat_interleave(2, 3))
    assert answer.shape == (2, 3, 4, 4)
    first, second = AttentionFusion(2, 3, 4, True).eval(), AttentionFusion(5, 6, 4, False).eval()
    deep = torch.randn(2, 5, 1, 1)
    fused = fuse_maps([first, second], [x, deep])
    torch.testing.assert_close(fused[1], second(deep)[0])
    torch.testing.assert_close(fused[0], first(x, second(deep)[1])[0])  # the finer stage sees what the deeper one passes on


def regions(seed: int = 0) -> TensorData:
    """12 images of 16 x 16 with one bright or dark square each, five regions: two on it, two beside it, one padding."""
    rng = torch.Generator().manual_seed(seed)
    images, boxes = 0.1 * torch.randn(12, 1, 16, 16, generator=rng), torch.zeros(12, 5, 4)
    labels, offsets = torch.zeros(12, 5, dtype=torch.int64), torch.zeros(12, 5, 4)
    for i in range(12):
        x, y = (8 * torch.randint(0, 2, (2,), generator=rng)).tolist()
        images[i, :, y : y + 8, x : x + 8] += 1.0 if i % 2 else -1.0
        square = torch.tensor([[x, y, x + 8.0, y + 8.0]])
        far = torch.tensor([[8.0 - x, 8.0 - y, 16.0 - x, 16.0 - y]])
        proposals = torch.cat([square + 1, far, far - torch.tensor([0.0, 0.0, 1.0, 1.0])])
        boxes[i], labels[i], offsets[i] = sample_regions(proposals, square, torch.tensor([i % 2]), 2, rng, 5, 0.5)
    return TensorData({"images": images, "boxes": boxes}, {"labels": labels, "offsets": offsets})


def region_network(seed: int, channels: int, dim: int) -> RegionClassifier:
    def build() -> RegionClassifier:
        body = nn.Sequential(nn.Conv2d(1, channels, 3, 2, 1), nn.ReLU())
        return RegionClassifier(body, channels, 2, 2, dim, 3)

    return build_with_seed(build, seed)


def test_sampled_regions() -> None:
    data = regions()
    labels, offsets = data.labels["labels"], data.labels["offsets"]
    assert all(sorted(row.tolist()) == [-100, i % 2, i % 2, 2, 2] for i, row in enumerate(labels))
    assert not offsets[labels == 2].any() and not offsets[labels < 0].any()
    objects = decode_boxes(offsets, data.inputs["boxes"])[(labels >= 0) & (labels < 2)].view(12, 2, 4)
    torch.testing.assert_close(objects[:, 0], objects[:, 1])  # both regions lead to the one object
    none = sample_regions(torch.tensor([[0.0, 0.0, 4.0, 4.0]]), torch.empty(0, 4), torch.empty(0).long(), 2, torch.Generator(), 3)
    assert none[1].tolist() == [2, -100, -100]


def test_the_loss_on_regions() -> None:
    data, method = regions(), RegionNDLoss()
    student, teacher = region_network(0, 4, 8), region_network(1, 8, 12)
    trainer = Trainer(TrainingJob(student, teacher, method, data, TrainingSettings(steps=30, batch_size=6, lr=0.01, log_every=1)))
    batch = data.batch(torch.arange(6), None)
    real = batch.labels["labels"] >= 0
    found, other = method.eval()(batch, student.eval(), trainer.teacher)
    assert found["logits"].shape == (24, 3) and found["embedding"].shape == (24, 8) and other["in:classify"].shape == (24, 12)
    assert method.means.shape == (3, 12)
    with torch.no_grad():
        raw = teacher(**data.inputs)
        live = NetworkTeacher(teacher, ["in:classify"])(data.batch(torch.arange(12), None))["in:classify"]
    rows = data.labels["labels"]
    torch.testing.assert_close(method.means[2], live[rows == 2].mean(0))  # the background is a class
    terms = method.loss_terms(batch, found, other)
    assert set(terms) == {"label", "kd", "nd", "box"} == set(method.loss_weights())
    plain = student(**batch.inputs)
    torch.testing.assert_close(terms["label"], F.cross_entropy(plain["logits"][real], batch.labels["labels"][real]))
    torch.testing.assert_close(terms["kd"], kd(plain["logits"][real], raw["logits"][:6][real], 1.0))
    holds = (batch.labels["labels"] >= 0) & (batch.labels["labels"] < 2)
    apart = F.smooth_l1_loss(plain["offsets"][holds], batch.labels["offsets"][holds], reduction="sum") / real.sum()
    torch.testing.assert_close(terms["box"], apart)
    moved = replace(batch, inputs=batch.inputs | {"boxes": batch.inputs["boxes"] + 3 * (~real)[..., None]})
    again = method.loss_terms(moved, *method(moved, student, trainer.teacher))
    assert all(torch.equal(again[name], terms[name]) for name in terms)  # padding does not count
    history = trainer.run().history
    assert history[-1]["terms"]["nd"] < history[0]["terms"]["nd"] and history[-1]["terms"]["label"] < history[0]["terms"]["label"]


def test_regions_of_other_shapes_are_refused() -> None:
    assert RegionNDLoss.preset("coco resnet101-resnet50").config.nd == 1.0
    data = regions()
    wrong = TensorData(data.inputs, data.labels["labels"][:, 0])
    with pytest.raises(InputError, match="regions have no labels"):
        Trainer(TrainingJob(region_network(0, 4, 8), region_network(1, 4, 8), RegionNDLoss(), wrong, TrainingSettings(steps=1)))
