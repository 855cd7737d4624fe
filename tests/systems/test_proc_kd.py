"""ProC-KD: soft assignments and residuals against loops, the augmentation's convex hull, and who gets which gradient."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from typer.testing import CliRunner

from tutelage.cli import main
from tutelage.distillation.api import distill
from tutelage.distillation.data import TensorData
from tutelage.distillation.export import load_weights, save_weights
from tutelage.distillation.job import TrainingJob
from tutelage.distillation.supervised import Supervised
from tutelage.distillation.teacher import BlackBoxTeacher, NetworkTeacher
from tutelage.distillation.trainer import Trainer, train
from tutelage.errors import InputError
from tutelage.networks.vit import VisionTransformer
from tutelage.systems._toy import build_with_seed, toy_images
from tutelage.systems.proc_kd import (
    AugmentedClassifier,
    FeatureAugmentation,
    ProCKD,
    PrototypeModule,
    TokenAdapter,
    usage_entropy,
    vlad,
)

DIM, K = 8, 5


def vit(seed: int = 0, **options: object) -> VisionTransformer:
    chosen = {"image_size": 8, "patch_size": 2, "dim": 16, "depth": 3, "num_heads": 2, "in_chans": 1, "num_classes": 4} | options
    return build_with_seed(lambda: VisionTransformer(**chosen), seed, "vit")  # type: ignore[arg-type]


def trainer_of(method: ProCKD, student: nn.Module | None = None, teacher: object = None, **changes: object) -> Trainer:
    job = ProCKD.tiny_job(0)
    made = replace(job.settings, **changes)  # type: ignore[arg-type]
    return Trainer(TrainingJob(student or job.student, teacher or job.teacher, method, job.data, made))  # type: ignore[arg-type]


# -- modules ---------------------------------------------------------------------------------------------------------


@given(st.integers(1, 3), st.integers(1, 7), st.integers(1, 6), st.integers(1, 5), st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_residuals_equal_a_loop(batch: int, count: int, dim: int, number: int, seed: int) -> None:
    made = torch.Generator().manual_seed(seed)
    x, c = torch.randn(batch, count, dim, generator=made), torch.randn(number, dim, generator=made)
    a = torch.randn(batch, count, number, generator=made).softmax(-1)
    expected = torch.zeros(batch, number, dim)
    for b in range(batch):
        for k in range(number):
            for n in range(count):
                expected[b, k] += a[b, n, k] * (x[b, n] - c[k])
    torch.testing.assert_close(vlad(x, a, c), expected, atol=1e-5, rtol=1e-5)


def test_tokens_on_the_only_prototype_leave_nothing() -> None:
    c = F.normalize(torch.randn(1, DIM), dim=-1)
    residual = vlad(c.expand(2, 6, -1), torch.ones(2, 6, 1), c)
    assert float(residual.abs().max()) < 1e-6
    assert F.normalize(torch.zeros(2, 1, DIM), dim=-1).isfinite().all()


@pytest.mark.parametrize(
    ("batch", "count", "dim", "number", "bottleneck"), [(2, 5, 8, 3, None), (1, 17, 6, 72, 4), (3, 1, 4, 2, 1)]
)
def test_shapes(batch: int, count: int, dim: int, number: int, bottleneck: int | None) -> None:
    module, prototypes = PrototypeModule(dim, number, bottleneck), torch.randn(number, dim)
    found = module(torch.randn(batch, count, 3 * dim), prototypes)
    assert found.shape == (batch, count, dim) and found.isfinite().all() and bool((found >= 0).all())
    assert FeatureAugmentation(dim)(found, prototypes).shape == (batch, count, dim)
    shares = module.shares(found)
    torch.testing.assert_close(shares.sum(-1), torch.ones(batch, count))


def test_biases_are_those_of_the_release() -> None:
    named = {name for module in (PrototypeModule(DIM, K), FeatureAugmentation(DIM)) for name, _ in module.named_parameters()}
    assert {name for name in named if name.endswith("bias")} == {"fuse.bias", "summarize.bias"}


def test_the_summary_does_not_depend_on_the_order_of_tokens() -> None:
    module, c, hidden = PrototypeModule(DIM, K), torch.randn(K, DIM), torch.randn(2, 9, 3 * DIM)
    order = torch.randperm(9)
    torch.testing.assert_close(module(hidden[:, order], c), module(hidden, c)[:, order], atol=1e-6, rtol=1e-4)


def test_what_is_read_lies_in_the_hull_of_the_encoded_prototypes() -> None:
    module, c, y = FeatureAugmentation(DIM), torch.randn(K, DIM), torch.randn(2, 9, DIM)
    shares = module.align(y, c)
    torch.testing.assert_close(shares.sum(-1), torch.ones(2, 9))
    assert bool((shares >= 0).all())
    encoded = module.encode(c)
    read = shares @ encoded
    assert bool((read <= encoded.max(0).values + 1e-6).all() and (read >= encoded.min(0).values - 1e-6).all())


def test_without_its_branch_the_augmentation_is_a_relu() -> None:
    module, c, y = FeatureAugmentation(DIM), torch.randn(K, DIM), torch.randn(2, 9, DIM)
    for parameter in module.merge.parameters():
        parameter.data.zero_()
    assert torch.equal(module(y, c), y.relu())


def test_the_order_of_prototypes_means_nothing() -> None:
    module, c, y = FeatureAugmentation(DIM), torch.randn(K, DIM), torch.randn(2, 9, DIM)
    torch.testing.assert_close(module(y, c[torch.randperm(K)]), module(y, c))


def test_usage_is_one_where_all_are_used_alike() -> None:
    assert float(usage_entropy(torch.eye(4).expand(3, 4, 4))) == pytest.approx(1.0)
    assert float(usage_entropy(torch.eye(4)[:1].expand(3, 4, 4))) == pytest.approx(0.0, abs=1e-6)


def test_tokens_of_another_width_and_grid() -> None:
    tokens = torch.randn(2, 2 + 16, 6)
    assert TokenAdapter(6, DIM, 2, 1, 4)(tokens).shape == (2, 5, DIM)
    assert TokenAdapter(6, DIM, 2, 0, 9)(tokens).shape == (2, 9, DIM)
    same = TokenAdapter(6, 6, 2, 1, 16)(tokens)
    assert torch.equal(same, torch.cat([tokens[:, :1], tokens[:, 2:]], 1)), "nothing to adapt"


# -- the method ------------------------------------------------------------------------------------------------------


def test_gradients_reach_the_prototypes_from_both_paths_and_never_the_teacher() -> None:
    trainer = trainer_of(ProCKD(prototypes=6))
    batch = trainer.batch(0)
    for path in (0, 1):
        outputs = trainer.method(batch, trainer.student, trainer.teacher)
        trainer.method.zero_grad()
        outputs[path]["augmented"].square().sum().backward()
        assert float(trainer.method.prototypes.grad.abs().sum()) > 0
    assert all(parameter.grad is None for parameter in trainer.teacher.network.parameters())


def test_the_terms_without_labels_move_the_student_alone() -> None:
    """KL and cosine follow the teacher's path: module 1 gets no gradient from them."""
    trainer = trainer_of(ProCKD(prototypes=6))
    terms = trainer.method.loss_terms(trainer.batch(0), *trainer.method(trainer.batch(0), trainer.student, trainer.teacher))
    (terms["kl"] + terms["features"]).backward()
    assert all(parameter.grad is None for parameter in trainer.method.reader.parameters())
    assert any(parameter.grad is not None for parameter in trainer.student.parameters())


def test_images_without_labels_count_in_the_other_two_terms() -> None:
    trainer = trainer_of(ProCKD(prototypes=6))
    batch = trainer.batch(0)
    outputs = trainer.method(batch, trainer.student, trainer.teacher)
    some = trainer.method.loss_terms(batch, *outputs)
    batch.labels = torch.full_like(batch.labels, -100)
    none = trainer.method.loss_terms(batch, *outputs)
    assert float(none["label"]) == float(none["augmented"]) == 0
    assert torch.equal(none["kl"], some["kl"]) and torch.equal(none["features"], some["features"])


def test_without_the_modules_it_is_the_plain_student() -> None:
    job = ProCKD.tiny_job(0)
    results = []
    for method in (ProCKD(augmented=0.0, kl=0.0, features=0.0), Supervised()):
        student = ProCKD.tiny_job(0).student
        results.append(train(TrainingJob(student, vit(1), method, job.data, job.settings)).student.state_dict())
    assert all(torch.equal(value, results[1][name]) for name, value in results[0].items())
    student = ProCKD.tiny_job(0).student
    coupled = train(TrainingJob(student, vit(1), ProCKD(kl=0.0, features=0.0, prototypes=6), job.data, job.settings))
    assert not torch.equal(coupled.student.state_dict()["head.weight"], results[1]["head.weight"]), "head and norm are shared"


def test_the_answer_needs_no_teacher(tmp_path: Path) -> None:
    job = ProCKD.tiny_job(0)
    job.method = ProCKD(prototypes=6, keep_augmentation=True)
    kept = train(job).student
    assert isinstance(kept, AugmentedClassifier)
    images = torch.randn(3, 1, 8, 8)
    before = kept(images)
    assert before["logits"].shape == before["augmented"].shape == (3, 4)
    for parameter in job.teacher.network.parameters():
        parameter.data.zero_()
    after = kept(images)
    assert torch.equal(before["logits"], after["logits"]) and torch.equal(before["augmented"], after["augmented"])
    assert torch.equal(kept.student(images), before["logits"])
    path = save_weights(kept, tmp_path / "kept.safetensors")
    again = AugmentedClassifier(vit(7, depth=2, patch_size=4), kept.parts, FeatureAugmentation(16), torch.zeros(6, 16))
    assert torch.equal(load_weights(again, path)(images)["augmented"], before["augmented"])


def test_the_plain_export_costs_what_the_student_costs() -> None:
    job = ProCKD.tiny_job(0)
    expected = {name: value.shape for name, value in job.student.state_dict().items()}
    assert {name: value.shape for name, value in train(job).student.state_dict().items()} == expected


def test_the_teachers_classes_and_head_do_not_matter() -> None:
    """A teacher whose head is another one teaches the same, bit for bit."""
    job, results = ProCKD.tiny_job(0), []
    for classes in (2, 1000):
        teacher = vit(5, depth=4, num_classes=classes)
        trunk = {name: value for name, value in vit(6, depth=4).state_dict().items() if not name.startswith("head")}
        teacher.load_state_dict(trunk, strict=False)
        made = TrainingJob(ProCKD.tiny_job(0).student, teacher, ProCKD(prototypes=6), job.data, job.settings)
        results.append(train(made).student.state_dict())
    assert all(torch.equal(value, results[1][name]) for name, value in results[0].items())


def test_a_student_without_class_token_is_read_at_its_mean() -> None:
    student = vit(tokens={}, depth=2)
    trainer = trainer_of(ProCKD(prototypes=6, student_prefix=0), student)
    own, given = trainer.method(trainer.batch(0), student, trainer.teacher)
    assert own["features"].shape == given["features"].shape == (16, 16, 16)
    trainer.advance()


def test_networks_of_transformers_and_a_cache(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    common = {"num_attention_heads": 2, "image_size": 8, "patch_size": 4, "num_channels": 1, "intermediate_size": 32}
    student = transformers.ViTForImageClassification(
        transformers.ViTConfig(hidden_size=16, num_hidden_layers=2, num_labels=4, **common)
    )
    teacher = transformers.ViTModel(transformers.ViTConfig(hidden_size=24, num_hidden_layers=3, **common))
    names = ("layers.0", "layers.1", "layers.2")
    images = toy_images(0)
    data = TensorData(images.inputs, images.labels)
    asked = {"options": {"prototypes": 6, "teacher": names}, "steps": 3, "batch_size": 16}
    live = distill(student, NetworkTeacher(teacher, taps=names), data, "proc-kd", **asked)
    cached = distill(student, NetworkTeacher(teacher, taps=names), data, "proc-kd", cache=tmp_path, **asked)
    assert live.results[0].history[0]["terms"] == cached.results[0].history[0]["terms"]
    assert live.student(images.inputs[:2]).logits.shape == (2, 4)


def test_a_recipe(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    common = {"num_attention_heads": 2, "image_size": 8, "patch_size": 4, "num_channels": 1, "intermediate_size": 32}
    for name, dim, depth, labels in (("student", 16, 2, 4), ("teacher", 24, 3, 7)):
        config = transformers.ViTConfig(hidden_size=dim, num_hidden_layers=depth, num_labels=labels, **common)
        transformers.ViTForImageClassification(config).save_pretrained(tmp_path / name)
    images = toy_images(0)
    np.savez(tmp_path / "data.npz", inputs=images.inputs.numpy(), labels=images.labels.numpy())
    recipe = f"""
method = "proc-kd"
out = "{tmp_path}/run"
[student]
model = "hf:{tmp_path}/student"
[teacher]
model = "hf:{tmp_path}/teacher"
[data]
file = "{tmp_path}/data.npz"
[options]
prototypes = 6
[settings]
steps = 2
batch_size = 8
"""
    (tmp_path / "recipe.toml").write_text(recipe)
    ran = CliRunner().invoke(main.app, ["distill", str(tmp_path / "recipe.toml")])
    assert ran.exit_code == 0, ran.output
    assert (tmp_path / "run/seed-0/student.safetensors").exists()


def test_prototypes_that_are_drawn_from_0_to_1() -> None:
    trainer = trainer_of(ProCKD(prototypes=6, start="uniform"))
    assert 0 <= float(trainer.method.prototypes.min()) and float(trainer.method.prototypes.max()) <= 1
    assert 0 < trainer.method.prototype_usage(trainer.batch(0), trainer.teacher) <= 1
    unit = trainer_of(ProCKD(prototypes=6)).method.prototypes
    torch.testing.assert_close(unit.norm(dim=-1), torch.ones(6))


class MeanHead(nn.Module):
    """A student whose head reads something else than it seems to."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = vit(num_classes=0, depth=2)
        self.head = nn.Linear(16, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.vit.forward_features(images)["patches"].amax(1))


@pytest.mark.parametrize(
    ("student", "teacher", "options", "message"),
    [
        (MeanHead(), None, {}, "logits are not head"),
        (vit(num_classes=4), vit(depth=2), {}, "has 2 blocks"),
        (vit(num_classes=4), BlackBoxTeacher(lambda images: images, version="0"), {}, "blocks are not known"),
        (vit(num_classes=4), None, {"head": "top"}, "no top"),
        (vit(num_classes=4), None, {"teacher": ("blocks.0", "blocks.1", "blocks.9")}, "blocks.9"),
        (vit(num_classes=4), None, {"student_prefix": 0}, "student_prefix"),
        (nn.Linear(4, 4), None, {}, "found"),
    ],
)
def test_what_does_not_fit_is_refused(student: nn.Module, teacher: object, options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        trainer_of(ProCKD(**{"prototypes": 6} | options), student, teacher)  # type: ignore[arg-type]
    assert error.value.remedy


@pytest.mark.parametrize(
    "options",
    [
        {"augmented": 0.0},
        {"kl": -1.0},
        {"prototypes": 1},
        {"tau": 0.0},
        {"start": "ones"},
        {"teacher": ("blocks.0",)},
        {"teacher_prefix": 0},
        {"augmented": 0.0, "kl": 0.0, "features": 0.0, "keep_augmentation": True},
    ],
)
def test_options_that_cannot_be(options: dict[str, object]) -> None:
    with pytest.raises(InputError):
        ProCKD(**options)  # type: ignore[arg-type]


def test_labels_are_needed() -> None:
    job = ProCKD.tiny_job(0)
    with pytest.raises(InputError, match="labels"):
        train(TrainingJob(job.student, job.teacher, job.method, TensorData(job.data.inputs), job.settings))
