"""The teachers for long-tailed data: margins, parametric contrast, and sharpness-aware steps of both."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tutelage.distillation.augmentation import Augmentation
from tutelage.distillation.data import Batch, TensorData
from tutelage.distillation.data.repeated import RepeatedData
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.method import Method, TrainingProgress
from tutelage.distillation.multi_view import MultiView, View
from tutelage.distillation.trainer import train
from tutelage.errors import InputError
from tutelage.systems._toy import SmallCNN, build_with_seed, toy_images
from tutelage.systems.deit_lt import LDAM, CosineClassifier, DeiTLT, PaCo, effective_weights, paco_loss

COUNTS = (81, 16, 1)


def cosine_cnn(classes: int = 4) -> SmallCNN:
    def make() -> SmallCNN:
        network = SmallCNN(classes, 4, 8)
        network.head = CosineClassifier(8, classes)
        return network

    return build_with_seed(make, 0)


def job(method: Method, **settings: object) -> TrainingJob:
    student = cosine_cnn() if isinstance(method, LDAM) else build_with_seed(lambda: SmallCNN(4, 4, 8), 0)
    return TrainingJob(student, None, method, toy_images(0), TrainingSettings(**{"steps": 6, "batch_size": 16} | settings))


# -- LDAM ------------------------------------------------------------------------------------------------------------


def prepared(drw: int | None = 5) -> LDAM:
    method = LDAM(counts=COUNTS, drw=drw)
    data = TensorData(torch.rand(6, 1, 8, 8), torch.arange(6) % 3)
    with torch.no_grad():
        method.prepare(cosine_cnn(3).eval(), None, data.batch(torch.arange(6), None), data)
    return method


def test_margins_fall_with_the_fourth_root_of_the_count() -> None:
    assert prepared().margins.tolist() == pytest.approx([0.5 / 3, 0.5 / 2, 0.5])


def test_the_loss_by_hand_and_its_deferred_weights() -> None:
    method, cosines, labels = prepared(drw=5), torch.rand(4, 3) * 2 - 1, torch.tensor([0, 1, 2, 2])
    batch, margins = Batch(torch.zeros(4, 1), labels), [0.5 / 3, 0.5 / 2, 0.5]
    each = []
    for row, label in zip(cosines.tolist(), labels.tolist()):
        z = [30 * (value - (margins[k] if k == label else 0)) for k, value in enumerate(row)]
        each.append(math.log(sum(math.exp(value - max(z)) for value in z)) + max(z) - z[label])
    assert method.loss_terms(batch, {"logits": cosines}, {})["label"].item() == pytest.approx(sum(each) / 4, rel=1e-5)
    method.progress = TrainingProgress(epoch=5.0)
    w = effective_weights(COUNTS)[labels].tolist()
    expected = sum(a * b for a, b in zip(w, each)) / sum(w)
    assert method.loss_terms(batch, {"logits": cosines}, {})["label"].item() == pytest.approx(expected, rel=1e-5)


def test_a_margin_of_nothing_is_plain_cross_entropy() -> None:
    method = LDAM(counts=(5, 5, 5), max_margin=0.0, drw=None)
    data = TensorData(torch.rand(6, 1, 8, 8), torch.arange(6) % 3)
    method.prepare(cosine_cnn(3).eval(), None, data.batch(torch.arange(6), None), data)
    cosines, labels = torch.rand(4, 3), torch.tensor([0, 1, 2, 2])
    found = method.loss_terms(Batch(torch.zeros(4, 1), labels), {"logits": cosines}, {})["label"]
    torch.testing.assert_close(found, F.cross_entropy(30 * cosines, labels))


def test_logits_that_are_no_cosines_are_refused() -> None:
    method, images = LDAM(), toy_images(0)
    network = build_with_seed(lambda: SmallCNN(4, 4, 8), 0)
    torch.nn.init.constant_(network.head.bias, 3.0)
    with pytest.raises(InputError, match="CosineClassifier"):
        method.prepare(network.eval(), None, images.batch(torch.arange(4), None), images)


# -- PaCo ------------------------------------------------------------------------------------------------------------


def unit(*shape: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_the_contrastive_loss_by_hand() -> None:
    """Two queries of one class and one of another, two keys, an empty place of the queue."""
    query, others = unit(3, 4, seed=0), unit(3, 4, seed=1)
    labels, known = torch.tensor([0, 0, 1]), torch.tensor([0, 1, -1])
    logits = torch.randn(3, 2, generator=torch.Generator().manual_seed(2))
    losses = []
    for i in range(3):
        entries = [(logits[i, k].item(), float(k == labels[i])) for k in range(2)]
        for j in range(3):
            if j != i:
                entries.append(((query[i] @ query[j]).item() / 0.5, 0.1 * float(labels[j] == labels[i])))
        for j in range(2):
            entries.append(((query[i] @ others[j]).item() / 0.5, 0.1 * float(known[j] == labels[i])))
        total = math.log(sum(math.exp(score) for score, _ in entries))
        losses.append(-sum(w * (score - total) for score, w in entries) / sum(w for _, w in entries))
    found = paco_loss(logits, labels, query, others, known, 0.1, 0.5)
    assert found.item() == pytest.approx(sum(losses) / 3, rel=1e-5)


def test_without_other_samples_it_is_cross_entropy() -> None:
    logits, labels = torch.randn(1, 3), torch.tensor([2])
    found = paco_loss(logits, labels, unit(1, 4, seed=0), torch.zeros(2, 4), torch.tensor([-1, -1]), 0.1, 0.5)
    torch.testing.assert_close(found, F.cross_entropy(logits, labels))


def test_the_copy_follows_and_the_queue_fills() -> None:
    made = job(PaCo(rho=0.0, queue=40, momentum=0.5), steps=3)
    start = [p.detach().clone() for p in made.student.parameters()]
    result = train(made)
    keys, labels, _ = made.method.queue.entries()
    assert len(keys) == 40 and bool((labels >= 0).all())
    torch.testing.assert_close(keys.norm(dim=1), torch.ones(40))
    for copy, first, last in zip(made.method.key_network.parameters(), start, made.student.parameters()):
        assert not torch.equal(copy, first) and not torch.equal(copy, last)
        assert not copy.requires_grad
    assert not made.method.key_network.training
    assert not any("projection" in name or "key" in name for name in result.student.state_dict())


def test_two_views_are_two_views() -> None:
    views = MultiView({"query": View(augmentation=Augmentation(crop=1)), "key": View(augmentation=Augmentation(crop=1))})
    images = toy_images(0)
    made = job(PaCo(rho=0.0), steps=4)
    made.data = TensorData(images.inputs, images.labels, views=views)
    losses = [record["terms"]["paco"] for record in train(made).history]
    assert all(math.isfinite(value) for value in losses)


@pytest.mark.parametrize("method", [LDAM(drw=1, rho=0.05), PaCo(rho=0.05), PaCo(rho=0.0)], ids=["ldam", "paco-sam", "paco"])
def test_teachers_learn_and_resume_to_the_same_bits(method: Method, tmp_path: Path) -> None:
    def made(steps: int) -> TrainingJob:
        again = type(method)(method.config)
        return job(again, steps=steps, lr=1e-2, schedule="constant", checkpoint_every=10, log_every=10)

    whole = train(made(40))
    images = toy_images(0)
    with torch.no_grad():
        assert (whole.student(images.inputs).argmax(1) == images.labels).double().mean() > 0.7
    stopped = made(40)
    calls = iter(range(10**6))

    def stop(_: object) -> None:
        if next(calls) == 25:
            raise KeyboardInterrupt

    original, stopped.method.after_step = stopped.method.after_step, lambda student: (original(student), stop(None))[0]
    with pytest.raises(KeyboardInterrupt):
        train(stopped, folder=tmp_path)
    again = train(made(40), folder=tmp_path)
    for one, other in zip(whole.student.state_dict().values(), again.student.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_the_projection_gets_one_gradient() -> None:
    """With a tiny radius the two-pass gradient of the projection is the plain one, not its double."""
    found = []
    for rho in (0.0, 1e-7):
        made = job(PaCo(rho=rho, momentum=1.0), steps=1, optimizer="sgd", momentum=0.0, lr=1.0)
        train(made)
        found.append([p.detach() for p in made.method.projection.parameters()])
    for one, other in zip(*found):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)


# -- repeated augmentation for the student ---------------------------------------------------------------------------


def test_the_student_learns_on_repeated_views() -> None:
    made = DeiTLT.tiny_job(0)
    plain = made.data
    made.data = RepeatedData(TensorData(plain.inputs, plain.labels, views=Augmentation(crop=1, flip=0.5)), 3)
    made.settings = replace(made.settings, steps=4)
    train(made)
    assert made.method.class_weights.shape == (4,)
