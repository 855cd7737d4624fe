from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tutelage.distillation.ensemble import NamedTeachers
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.teacher import NetworkTeacher
from tutelage.distillation.trainer import Trainer, train
from tutelage.errors import InputError
from tutelage.systems._backbone import count_macs, count_parameters, create_on_meta, published
from tutelage.systems._toy import SmallCNN, build_with_seed, toy_images
from tutelage.systems.self_slimmed_vit import _TINY, ReverseSlimming, SelfSlimmedViT, SlimViT, TokenSlimming

SIZES = published("self-slimmed-vit")


def network(seed: int = 0, **options: object) -> SlimViT:
    return build_with_seed(lambda: SlimViT(4, 1, **{**_TINY, **options}), seed)  # type: ignore[arg-type]


@pytest.mark.parametrize("variant", SIZES)
def test_published_sizes(variant: str) -> None:
    size, made = SIZES[variant], create_on_meta(f"self-slimmed-vit:{variant}")
    assert count_parameters(made) == size.parameters
    assert count_macs(made, size.size) == pytest.approx(size.macs, rel=0.02)


@pytest.mark.parametrize(
    ("variant", "count"), [("t", 14_015_176), ("xs", 21_782_640), ("s", 11_065_760), ("m", 25_318_284), ("l", 78_774_876)]
)
def test_parameters_of_the_reverse_modules(variant: str, count: int) -> None:
    made = create_on_meta(f"self-slimmed-vit:{variant}")
    many, width = made.side**2, made.norm.normalized_shape[0]
    with torch.device("meta"):
        reverse = [ReverseSlimming(width, few, many) for few in made.tokens if few < many]
    assert sum(count_parameters(module) for module in reverse) == count


def test_tokens_of_each_layer() -> None:
    assert create_on_meta("self-slimmed-vit:t").tokens == [98, 49] + [24] * 12
    assert create_on_meta("self-slimmed-vit:s").tokens == [196] * 8 + [98] * 3 + [49] * 2 + [24] * 3
    assert create_on_meta("self-slimmed-vit:l").tokens == [324] * 9 + [162] * 4 + [81] * 3 + [40] * 8
    assert set(create_on_meta("self-slimmed-vit:host-t").tokens) == {196}


def test_a_new_token_is_a_convex_combination_of_all() -> None:
    torch.manual_seed(0)
    slim, x = TokenSlimming(8, 3), torch.randn(2, 10, 8)
    shares = slim.shares(x)
    assert shares.shape == (2, 10, 3) and bool((shares > 0).all())
    torch.testing.assert_close(shares.sum(1), torch.ones(2, 3))
    torch.testing.assert_close(slim(x), torch.einsum("bnm,bnc->bmc", shares, x))
    assert bool((slim(x) <= x.amax(1, keepdim=True)).all())
    torch.testing.assert_close(slim(x[:, torch.randperm(10)]), slim(x))
    constant = torch.randn(1, 1, 8).expand(1, 10, 8)
    torch.testing.assert_close(slim(constant), constant[:, :3])


def test_stages_of_features() -> None:
    images = torch.randn(2, 1, 16, 16)
    slim, host = network().forward_features(images), network(ratio=1.0).forward_features(images)
    assert [tuple(f.maps.shape) for f in slim] == [(2, 16, 8, 1), (2, 16, 4, 1), (2, 16, 4, 1)]
    assert [tuple(f.maps.shape) for f in host] == [(2, 16, 4, 4)] * 3
    assert host[0].stride == 4


def lesson(ratio: float = 0.5, teacher: nn.Module | None = None, **options: object) -> TrainingJob:
    teacher = teacher if teacher is not None else network(1, ratio=1.0)
    settings = TrainingSettings(steps=4, batch_size=16, lr=1e-2)
    return TrainingJob(network(0, ratio=ratio), teacher, SelfSlimmedViT(**options), toy_images(0, image_size=16), settings)  # type: ignore[arg-type]


def test_without_slimming_the_student_is_the_teacher() -> None:
    trainer = Trainer(lesson(ratio=1.0))
    student, host = trainer.student.eval(), trainer.teacher.network
    batch = trainer.batch(0)
    assert torch.equal(student(batch.inputs), host(batch.inputs))
    ours, theirs = trainer.method(batch, student, trainer.teacher)
    terms = trainer.method.loss_terms(batch, ours, theirs)
    assert terms["tokens"].item() == 0 and terms["soft"].item() == pytest.approx(0, abs=1e-6)
    assert not list(trainer.method.parameters())


def test_the_student_starts_from_what_it_shares() -> None:
    trainer = Trainer(lesson())
    host = trainer.teacher.network.state_dict()
    for name, value in trainer.student.state_dict().items():
        assert (name in host and torch.equal(value, host[name])) or ".slim." in name
    alone = Trainer(lesson(inherit=False)).student.state_dict()
    assert not torch.equal(alone["layers.0.mlp.0.weight"], host["layers.0.mlp.0.weight"])


def test_terms_by_hand() -> None:
    trainer = Trainer(lesson(inherit=False))
    batch = trainer.batch(0)
    student, host = trainer.student.eval(), trainer.teacher.network
    with torch.no_grad():
        student.head.weight *= 30
    ours, theirs = trainer.method(batch, student, trainer.teacher)
    terms = trainer.method.loss_terms(batch, ours, theirs)
    assert [type(reverse).__name__ for reverse in trainer.method.reverse] == ["ReverseSlimming"] * 3
    x = v = None
    total = 0.0
    for i, (layer, of_host) in enumerate(zip(student.layers, host.layers, strict=True)):
        if x is None:
            x = student.embed(batch.inputs).flatten(2).transpose(1, 2)
            x = v = torch.cat([student.class_token.expand(len(x), -1, -1), x], 1) + student.positions
            v = host.embed(batch.inputs).flatten(2).transpose(1, 2)
            v = torch.cat([host.class_token.expand(len(v), -1, -1), v], 1) + host.positions
        x, v = layer(x), of_host(v)
        total += (trainer.method.reverse[i](x[:, 1:]) - v[:, 1:]).square().mean().item() / 3
    assert terms["tokens"].item() == pytest.approx(total, rel=1e-5)
    t, z = host(batch.inputs).softmax(-1), student(batch.inputs).log_softmax(-1)
    assert terms["soft"].item() == pytest.approx((t * (t.log() - z)).sum(-1).mean().item(), rel=1e-4)
    assert trainer.method.loss_weights() == {"tokens": 2.0, "soft": 2.0}


def test_layers_before_any_slimming_are_compared_as_they_are() -> None:
    made = lesson()
    made.student, host = network(0, stages=(2, 1)), network(1, stages=(2, 1), ratio=1.0)
    made.teacher = NetworkTeacher(host)
    trainer = Trainer(made)
    assert [type(module).__name__ for module in trainer.method.reverse] == ["Identity", "ReverseSlimming", "ReverseSlimming"]


def test_the_teacher_gets_no_gradient_and_the_export_no_reverse_module() -> None:
    made = lesson()
    result = train(made)
    assert all(parameter.grad is None for parameter in made.teacher.network.parameters())
    assert not any(isinstance(module, ReverseSlimming) for module in result.student.modules())
    images = toy_images(2, image_size=16).inputs
    assert torch.equal(result.student(images), made.student.eval()(images))


def test_terms_of_weight_0_need_no_reverse_module() -> None:
    made = lesson(tokens=0.0, soft=0.0)
    result = train(made)
    assert set(result.history[-1]["terms"]) == {"label"}


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="16x16"):
        network()(torch.zeros(1, 1, 20, 16))
    with pytest.raises(InputError, match="channels"):
        network()(torch.zeros(1, 3, 16, 16))
    with pytest.raises(InputError, match="does not divide 18"):
        network(size=18)
    with pytest.raises(InputError, match="leaves 0 tokens"):
        network(ratio=0.1)
    with pytest.raises(InputError, match="heads"):
        network(heads=3)
    with pytest.raises(InputError, match="SlimViT"):
        Trainer(lesson(teacher=SmallCNN(4)))
    with pytest.raises(InputError, match="ratio=1"):
        Trainer(lesson(teacher=network(1)))
    with pytest.raises(InputError, match="ratio=1"):
        Trainer(replace(lesson(), student=network(0, stages=(1, 1))))


def two_teachers(**options: object) -> TrainingJob:
    host, cnn = network(1, ratio=1.0), build_with_seed(lambda: SmallCNN(4), 2)
    made = lesson(teacher=NamedTeachers(host, cnn=cnn), **options)  # type: ignore[arg-type]
    return replace(made, student=network(0, distillation_token=True))


def test_a_second_teacher_has_a_token_of_its_own() -> None:
    trainer = Trainer(two_teachers(cnn=0.5))
    student, (_, cnn) = trainer.student.eval(), trainer.teacher.networks
    batch = trainer.batch(0)
    found, other = trainer.method(batch, student, trainer.teacher)
    terms = trainer.method.loss_terms(batch, found, other)
    answers = cnn(batch.inputs).argmax(1)
    assert terms["cnn"].item() == pytest.approx(0.5 * F.cross_entropy(found["cnn"], answers).item(), rel=1e-6)
    torch.testing.assert_close((found["logits"] + found["cnn"]) / 2, student(batch.inputs))
    assert terms["label"].item() == pytest.approx(F.cross_entropy(found["logits"], batch.labels).item(), rel=1e-6)
    assert [tuple(f.maps.shape) for f in student.forward_features(batch.inputs)] == [(16, 16, 8, 1)] + [(16, 16, 4, 1)] * 2
    gradients = torch.autograd.grad(terms["cnn"], [student.distillation_head.weight, student.head.weight], allow_unused=True)
    assert gradients[0].abs().sum() > 0 and gradients[1] is None


def test_a_student_with_two_tokens_starts_from_the_host() -> None:
    trainer = Trainer(two_teachers())
    student, host = trainer.student, trainer.teacher.network
    assert torch.equal(student.positions[:, :1], host.positions[:, :1])
    assert torch.equal(student.positions[:, 2:], host.positions[:, 1:])
    assert torch.equal(student.class_token, host.class_token)
    result = trainer.run()
    assert set(result.history[-1]["terms"]) == {"label", "tokens", "soft", "cnn"}
    images = toy_images(2, image_size=16).inputs
    assert torch.equal(result.student(images), trainer.student.eval()(images)) and result.student(images).shape == (64, 4)


def test_token_and_second_teacher_go_together() -> None:
    for wrong in (replace(two_teachers(), student=network(0)), replace(lesson(), student=network(0, distillation_token=True))):
        with pytest.raises(InputError, match="go together"):
            Trainer(wrong)
