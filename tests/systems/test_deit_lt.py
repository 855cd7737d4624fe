from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.distillation.data import Batch
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.method import TrainingProgress
from tutelage.distillation.teacher import NetworkTeacher
from tutelage.distillation.trainer import Trainer, train
from tutelage.errors import InputError
from tutelage.systems._toy import SmallCNN, build_with_seed, toy_images
from tutelage.systems.deit_lt import (
    DeiTLT,
    DistilledViT,
    SharpnessAware,
    attention_distance,
    effective_weights,
    feature_rank,
    group_accuracy,
    long_tailed_counts,
    long_tailed_subset,
    mixup_cutmix,
)

COUNTS = [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]


def test_counts_and_weights_of_the_paper() -> None:
    assert long_tailed_counts(5000, 0.01, 10) == COUNTS
    weights = effective_weights(COUNTS)
    expected = [0.0506, 0.0769, 0.1211, 0.1950, 0.3188, 0.5246, 0.8683, 1.4426, 2.4092, 3.9927]
    assert weights.tolist() == pytest.approx(expected, abs=5e-5)
    assert weights.sum().item() == pytest.approx(10, abs=1e-5)
    assert bool((weights.diff() > 0).all())
    assert effective_weights(COUNTS, 0.0).tolist() == pytest.approx([1.0] * 10)
    with pytest.raises(InputError):
        effective_weights([3, 0])


def test_the_subset_holds_what_was_asked() -> None:
    labels = torch.arange(60) % 3
    chosen = long_tailed_subset(labels, [20, 7, 2], torch.Generator().manual_seed(0))
    assert torch.bincount(labels[chosen]).tolist() == [20, 7, 2]
    assert len(chosen.unique()) == 29
    with pytest.raises(InputError, match="class 0"):
        long_tailed_subset(labels, [21, 1, 1], torch.Generator())


def test_group_accuracy_is_a_mean_over_classes() -> None:
    labels = torch.tensor([0, 0, 0, 0, 1, 2, 2, 3])
    predicted = torch.tensor([0, 0, 0, 1, 1, 2, 0, 0])
    found = group_accuracy(predicted, labels, (1, 3))
    assert found == pytest.approx({"overall": 5 / 8, "head": 0.75, "mid": (1 + 0.5) / 2, "tail": 0.0})


def method_at(epoch: float, **options: object) -> DeiTLT:
    method = DeiTLT(drw=2, counts=(40, 20, 10, 5), **options)
    method.class_weights = effective_weights([40, 20, 10, 5])
    method.progress = TrainingProgress(epoch=epoch)
    return method


def case() -> tuple[Batch, nn.Module, NetworkTeacher]:
    data = toy_images(0, 16)
    student = build_with_seed(lambda: DistilledViT(4, 8, 4, dim=16, depth=1, heads=2), 0, "student")
    return data.batch(torch.arange(16), None), student, NetworkTeacher(build_with_seed(lambda: SmallCNN(4, 4, 8), 0, "teacher"))


def test_weighted_loss_equals_a_hand_computation() -> None:
    method = method_at(2.0)
    dist, teacher = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.eye(4)[[0, 3, 3, 1, 2, 0]]
    output = {"cls": torch.zeros(6, 4), "dist": dist}
    terms = method.loss_terms(Batch(torch.zeros(6)), output, {"logits": teacher, "labels": torch.full((6, 4), 0.25)})
    targets = [0, 3, 3, 1, 2, 0]
    w = method.class_weights
    losses = [-w[k] * dist[i].log_softmax(0)[k] for i, k in enumerate(targets)]
    assert terms["dist"].item() == pytest.approx((sum(losses) / sum(w[k] for k in targets)).item(), abs=1e-6)
    early = method_at(1.99).loss_terms(Batch(torch.zeros(6)), output, {"logits": teacher, "labels": torch.full((6, 4), 0.25)})
    assert early["dist"].item() == pytest.approx(F.cross_entropy(dist, torch.tensor(targets)).item(), abs=1e-6)


def test_mixing_stops_when_the_deferred_phase_begins() -> None:
    batch, student, teacher = case()
    hard = F.one_hot(batch.labels, 4).float()
    _, early = method_at(1.99)(batch, student, teacher)
    assert not torch.equal(early["labels"], hard)
    torch.testing.assert_close(early["labels"].sum(1), torch.ones(16))
    _, late = method_at(2.0)(batch, student, teacher)
    assert torch.equal(late["labels"], hard)
    _, kept = method_at(2.0, keep_mixing=True)(batch, student, teacher)
    assert not torch.equal(kept["labels"], hard)
    assert not DeiTLT(drw=None).deferred


@pytest.mark.parametrize("epoch", [0.0, 3.0])
def test_the_teacher_sees_the_very_images_of_the_student(epoch: float) -> None:
    batch, student, teacher = case()
    seen: dict[str, Tensor] = {}
    student.register_forward_pre_hook(lambda module, args: seen.update(student=args[0]))
    teacher.network.register_forward_pre_hook(lambda module, args: seen.update(teacher=args[0]))
    ours, theirs = method_at(epoch)(batch, student, teacher)
    assert torch.equal(seen["student"], seen["teacher"])
    assert not theirs["logits"].requires_grad and not teacher.network.training
    method_at(epoch, teacher_side=4)(batch, student, teacher)
    assert torch.equal(seen["teacher"], F.interpolate(seen["student"], size=4, mode="bicubic"))


@pytest.mark.parametrize(("a", "silent", "learns"), [(0.0, "dist_head", "cls_head"), (1.0, "cls_head", "dist_head")])
def test_a_head_without_weight_gets_no_gradient(a: float, silent: str, learns: str) -> None:
    batch, student, teacher = case()
    method = method_at(0.0, a=a)
    terms = method.loss_terms(batch, *method(batch, student, teacher))
    sum(method.loss_weights()[name] * term for name, term in terms.items() if method.loss_weights()[name]).backward()
    assert student.get_submodule(silent).weight.grad is None
    assert student.get_submodule(learns).weight.grad.abs().sum() > 0


def test_the_phase_changes_with_the_epoch_and_after_a_resume(tmp_path: Path) -> None:
    def lesson() -> TrainingJob:
        made = DeiTLT.tiny_job(0)
        made.method = DeiTLT(drw=2)
        made.settings = TrainingSettings(steps=7, batch_size=16, checkpoint_every=3, log_every=1)
        return made

    trainer, phases = Trainer(lesson()), []
    for _ in range(7):
        trainer.advance()
        phases.append(trainer.method.deferred)
    assert phases == [False] * 4 + [True] * 3  # 32 samples, batches of 16: two steps an epoch

    def stop(done: int, steps: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    whole = train(lesson())
    with pytest.raises(KeyboardInterrupt):
        train(lesson(), tmp_path, progress=stop)
    resumed = train(lesson(), tmp_path)
    assert [r["terms"] for r in resumed.history] == [r["terms"] for r in whole.history]


def test_every_layer_norm_has_the_epsilon_of_the_published_network() -> None:
    norms = [module for module in DistilledViT().modules() if isinstance(module, nn.LayerNorm)]
    assert len(norms) == 9 and {norm.eps for norm in norms} == {1e-6}


def test_the_student_network() -> None:
    student = DistilledViT(5, 8, 2, dim=16, depth=1, heads=2)
    said = student(torch.randn(3, 1, 8, 8))
    torch.testing.assert_close(said["logits"], (said["cls"] + said["dist"]) / 2)
    assert student.positions.shape == (1, 16 + 2, 16)
    assert student.cls_head.weight is not student.dist_head.weight and student.cls_token is not student.dist_token
    assert student.cls_token.abs().max() < 1e-4 < student.dist_token.abs().max()


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_mixed_labels_weigh_what_is_left_of_each_image(mixup: float, cutmix: float) -> None:
    images = torch.tensor([0.0, 1.0])[:, None, None, None].expand(2, 1, 9, 9).contiguous()
    torch.manual_seed(0)
    for _ in range(10):
        pictures, targets = mixup_cutmix(images, torch.eye(2), mixup, cutmix)
        torch.testing.assert_close(pictures.mean((1, 2, 3)), targets[:, 1])
    assert torch.equal(images[0], torch.zeros(1, 9, 9))


def sam_lesson(rho: float | None) -> TrainingJob:
    student = build_with_seed(lambda: SmallCNN(4, 4, 8), 0)
    settings = TrainingSettings(steps=5, batch_size=16, optimizer="sgd", lr=0.1)
    return TrainingJob(student, None, SharpnessAware(rho=rho or 0.0), toy_images(0), settings)


def test_sharpness_aware_gradient_is_taken_nearby_and_weights_are_restored() -> None:
    trainer = Trainer(sam_lesson(0.5))
    batch = trainer.batch(0)
    start = {name: value.clone() for name, value in trainer.student.state_dict().items()}
    calls = []

    def loss() -> Tensor:
        calls.append([p.detach().clone() for p in trainer.student.parameters()])
        return F.cross_entropy(trainer.student(batch.inputs), batch.labels)

    trainer.student.train()
    trainer.method.backward(loss)
    gradients = [p.grad.clone() for p in trainer.student.parameters()]
    for name, parameter in trainer.student.named_parameters():
        assert torch.equal(parameter, start[name]), name
    moved = torch.cat([(b - a).flatten() for a, b in zip(*calls)])
    assert moved.norm().item() == pytest.approx(0.5, rel=1e-3)
    assert int(trainer.student.body[0][1].num_batches_tracked) == 1  # the second pass leaves no trace in buffers
    for parameter, value in zip(trainer.student.parameters(), calls[1]):
        parameter.data, parameter.grad = value.clone(), None
    loss().backward()
    for parameter, gradient in zip(trainer.student.parameters(), gradients):
        torch.testing.assert_close(parameter.grad, gradient)


def test_radius_zero_is_the_plain_optimiser() -> None:
    ours = train(sam_lesson(None)).student
    plain = build_with_seed(lambda: SmallCNN(4, 4, 8), 0)
    lesson = sam_lesson(None)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9, fused=True)
    for step in range(5):
        batch = lesson.data.batch(*lesson.sample_order().step(step))
        optimizer.param_groups[0]["lr"] = 0.1 * 0.5 * (1 + torch.cos(torch.tensor(torch.pi * step / 5)).item())
        optimizer.zero_grad()
        F.cross_entropy(plain.train()(batch.inputs), batch.labels).backward()
        optimizer.step()
    for one, other in zip(ours.parameters(), plain.parameters()):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def test_attention_distance() -> None:
    own = torch.eye(9).expand(2, 3, 9, 9)
    assert attention_distance(own, 3, extra=0).abs().max() == 0
    places = [(i // 3, i % 3) for i in range(9)]
    pairs = [((a - c) ** 2 + (b - d) ** 2) ** 0.5 for a, b in places for c, d in places]
    uniform = torch.full((2, 3, 11, 11), 1 / 11)  # two extra tokens take a share that is left out
    torch.testing.assert_close(attention_distance(uniform, 3), torch.full((3,), sum(pairs) / 81))


def test_feature_rank() -> None:
    assert feature_rank(torch.outer(torch.randn(20), torch.randn(6))) == 1
    assert feature_rank(torch.eye(8), 0.99) == 8
    assert feature_rank(torch.diag(torch.tensor([10.0, 10.0, 0.1]))) == 2
