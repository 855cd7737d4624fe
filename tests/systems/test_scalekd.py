from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.distillation.data import Batch
from tutelage.distillation.feature_hooks import FeatureHooks
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.teacher import BlackBoxTeacher
from tutelage.distillation.trainer import Trainer, train
from tutelage.errors import InputError
from tutelage.systems._toy import build_with_seed, toy_images
from tutelage.systems.scalekd import (
    CrossAttentionProjector,
    ScaleKD,
    StagedCNN,
    StagedTransformer,
    alternative_view_loss,
    center_maps,
    direct_view_loss,
)


def maps(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dct(n: int) -> Tensor:
    """The orthonormal DCT-II."""
    k, i = torch.arange(n, dtype=torch.float64)[:, None], torch.arange(n, dtype=torch.float64)
    rows = torch.cos(math.pi * (2 * i + 1) * k / (2 * n)) * math.sqrt(2 / n)
    rows[0] /= math.sqrt(2)
    return rows


@pytest.mark.parametrize("size", [(7, 7), (14, 14), (5, 9)])
def test_removing_the_first_coefficient_is_subtracting_the_mean(size: tuple[int, int]) -> None:
    x, (a, b) = maps(0, 2, 3, *size), (dct(size[0]), dct(size[1]))
    spectrum = a @ x @ b.T
    spectrum[..., 0, 0] = 0
    torch.testing.assert_close(a.T @ spectrum @ b, center_maps(x), atol=1e-5, rtol=0)


@given(st.integers(0, 1000), st.floats(0.01, 100))
def test_what_the_views_see(seed: int, factor: float) -> None:
    s, t = maps(seed, 2, 6, 4, 5), maps(seed + 1, 2, 6, 4, 5)
    for view in (direct_view_loss, alternative_view_loss):
        assert view(t, t).item() == pytest.approx(0, abs=1e-9)
        assert view(factor * s, t).item() == pytest.approx(view(s, t).item(), rel=1e-6)
    assert 0 <= direct_view_loss(s, t).item() <= 4 * 20
    assert direct_view_loss(s, t).item() == pytest.approx(2 * (1 - F.cosine_similarity(s, t, dim=1)).sum().item() / 2)
    shifted = s + maps(seed + 2, 1, 6, 1, 1)
    assert alternative_view_loss(shifted, t).item() == pytest.approx(alternative_view_loss(s, t).item(), rel=1e-6)
    assert direct_view_loss(shifted, t).item() != pytest.approx(direct_view_loss(s, t).item(), rel=1e-6)


def test_the_projectors_shape_is_the_queries() -> None:
    projector = CrossAttentionProjector((5, 8, 8), (16, 7, 7), heads=4)
    assert projector(torch.randn(2, 5, 8, 8)).shape == (2, 16, 7, 7)
    handed = CrossAttentionProjector((5, 14, 14), (16, 7, 7), heads=4, learned=False, norm="layer")
    assert handed(torch.randn(2, 5, 14, 14), torch.randn(2, 16, 7, 7)).shape == (2, 16, 7, 7)
    with pytest.raises(InputError, match="divide"):
        CrossAttentionProjector((5, 8, 8), (16, 7, 7), heads=3)


def test_attention_rows() -> None:
    projector = build_with_seed(lambda: CrossAttentionProjector((5, 4, 4), (16, 3, 3), heads=4), 0)
    with FeatureHooks(projector, ["weights"]) as taken:
        projector(torch.randn(2, 5, 4, 4))
    rows = taken["weights"]
    assert rows.shape == (2, 4, 9, 16)
    torch.testing.assert_close(rows.sum(-1), torch.ones(2, 4, 9))
    assert (rows - 1 / 16).abs().max() > 1e-3
    with torch.no_grad():
        projector.query.weight.zero_()
        projector.query.bias.zero_()
    with FeatureHooks(projector, ["weights"]) as taken:
        projector(torch.randn(2, 5, 4, 4))
    torch.testing.assert_close(taken["weights"], torch.full((2, 4, 9, 16), 1 / 16))


def test_the_softmax_scale_is_five_times_the_usual() -> None:
    projector = CrossAttentionProjector((5, 4, 4), (16, 3, 3), heads=4)
    assert projector.scale == pytest.approx(5 * 4**-0.5)


class DropPath(nn.Module):
    """Drops whole samples while training."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * (torch.rand(len(x), *[1] * (x.ndim - 1)) > 0.5)


def lesson(**options: object) -> TrainingJob:
    student = build_with_seed(lambda: StagedCNN((4, 8, 8, 12), 4), 0)
    teacher = build_with_seed(lambda: StagedTransformer((8, 8, 16, 16), 4, first=1), 1)
    teacher.stages[3].blocks.append(DropPath())
    method = ScaleKD(heads3=2, heads4=2, **options)
    return TrainingJob(student, teacher, method, toy_images(0, image_size=16), TrainingSettings(steps=3, batch_size=8, log_every=1))


def test_gradients_pass_through_the_frozen_stage() -> None:
    trainer = Trainer(lesson(a=0.0))
    trainer.student.train()
    trainer.method.train()
    batch = trainer.batch(0)
    network = trainer.teacher.network
    before = {name: value.clone() for name, value in network.state_dict().items()}
    ours, theirs = trainer.method(batch, trainer.student, trainer.teacher)
    terms = trainer.method.loss_terms(batch, ours, theirs)
    (terms["direct3"] + terms["alternative3"]).backward()
    assert all(p.grad is None for p in network.parameters())
    assert all(torch.equal(network.state_dict()[name], value) for name, value in before.items())
    for projector in trainer.method.third.values():
        assert all(p.grad is not None and bool(p.grad.any()) for name, p in projector.named_parameters() if name != "key.bias")
    for stage in trainer.student.stages[:3]:
        assert stage[0].weight.grad.abs().sum() > 0
    assert trainer.student.stages[3][0].weight.grad is None
    again = trainer.method(batch, trainer.student, trainer.teacher)[1]
    assert torch.equal(theirs["map"], again["map"])


def test_the_student_is_untouched() -> None:
    made = lesson()
    plain = build_with_seed(lambda: StagedCNN((4, 8, 8, 12), 4), 0)
    trainer = Trainer(made)
    image = toy_images(1, image_size=16).inputs[:2]
    assert plain.state_dict().keys() == made.student.state_dict().keys()
    assert torch.equal(plain.eval()(image), made.student.eval()(image))
    exported = trainer.run().student
    assert exported.state_dict().keys() == plain.state_dict().keys()


def test_without_soft_labels_and_features_it_is_cross_entropy() -> None:
    method = ScaleKD(a=0.0, direct_weight=0.0, alternative_weight=0.0)
    logits, labels = maps(0, 4, 3), torch.tensor([0, 1, 2, 0])
    terms = method.loss_terms(Batch(logits, labels), {"logits": logits}, {"logits": maps(1, 4, 3)})
    assert set(terms) == {"label"} and method.loss_weights() == {"label": 1.0}
    assert terms["label"].item() == F.cross_entropy(logits, labels).item()
    result = train(lesson(a=0.0, direct_weight=0.0, alternative_weight=0.0))
    assert set(result.history[-1]["terms"]) == {"label"}


def test_the_soft_term_has_the_gradient_of_the_divergence() -> None:
    ours, theirs = maps(0, 4, 3).requires_grad_(), maps(1, 4, 3)
    method = ScaleKD(tau=2.0, direct_weight=0.0, alternative_weight=0.0)
    terms = method.loss_terms(Batch(ours, torch.zeros(4).long()), {"logits": ours}, {"logits": theirs})
    (gradient,) = torch.autograd.grad(terms["kd"], ours)
    divergence = 4 * F.kl_div((ours / 2).log_softmax(1), (theirs / 2).softmax(1), reduction="batchmean")
    torch.testing.assert_close(gradient, torch.autograd.grad(divergence, ours)[0])


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({}, {"direct3", "direct4", "alternative3", "alternative4"}),
        ({"perceive": False}, {"direct4", "alternative4"}),
        ({"alternative_weight": 0.0}, {"direct3", "direct4"}),
        ({"alternative_weight": (0.06, 0.0)}, {"direct3", "direct4", "alternative3"}),
        ({"direct_weight": (0.0, 0.08), "alternative_weight": 0.0}, {"direct4"}),
        ({"self_query": True}, {"direct3", "direct4", "alternative3", "alternative4"}),
        ({"direct_weight": (0.0, 0.08), "self_query": True}, {"direct4", "alternative3", "alternative4"}),
    ],
)
def test_parts_can_be_left_out(options: dict[str, object], names: set[str]) -> None:
    trainer = Trainer(lesson(**options))
    result = trainer.run()
    assert set(result.history[-1]["terms"]) == {"label", "kd"} | names
    assert result.parameters_without_gradient == ()


def test_weights_of_the_stages() -> None:
    method = ScaleKD(direct_weight=(0.1, 0.2), alternative_weight=(0.3, 0.0), a=0.0)
    assert method.loss_weights() == {"label": 1.0, "direct3": 0.1, "direct4": 0.2, "alternative3": 0.3}
    alone = ScaleKD(direct_weight=(0.1, 0.2), alternative_weight=(0.3, 0.0), a=0.0, perceive=False)
    assert alone.loss_weights() == {"label": 1.0, "direct4": 0.2}
    trainer = Trainer(lesson(direct_weight=(0.1, 0.2), alternative_weight=(0.3, 0.0)))
    assert (set(trainer.method.third), set(trainer.method.fourth)) == ({"direct", "alternative"}, {"direct"})


def test_learned_queries_of_the_fourth_stage() -> None:
    handed, learned = Trainer(lesson()), Trainer(lesson(self_query=True))
    assert handed.method.fourth["direct"].table is None and learned.method.fourth["direct"].table is not None
    for trainer, moves in ((handed, True), (learned, False)):
        batch, method = trainer.batch(0), trainer.method.eval()
        before = method(batch, trainer.student.eval(), trainer.teacher)[0]["direct4"]
        with torch.no_grad():
            method.third["direct"].out.bias += torch.arange(16.0)
        after = method(batch, trainer.student, trainer.teacher)[0]["direct4"]
        assert torch.equal(before, after) != moves  # only handed-on queries come from the third stage


class PlainViT(nn.Module):
    """Patches, a class token, three blocks, a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.token = nn.Conv2d(1, 16, 4, 4), nn.Parameter(torch.zeros(1, 1, 16))
        layer = dict(d_model=16, nhead=2, dim_feedforward=32, dropout=0.0, batch_first=True)
        self.blocks = nn.Sequential(*(nn.TransformerEncoderLayer(**layer) for _ in range(3)))
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 4)

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(images).flatten(2).transpose(1, 2)
        return self.head(self.norm(self.blocks(torch.cat([self.token.expand(len(x), -1, -1), x], 1)))[:, 0])


def test_a_plain_transformer_teacher_shares_its_blocks_out() -> None:
    made = lesson()
    options = {"teacher": "norm", "path": ("blocks.1",), "path4": ("blocks.2", "norm"), "layout": "tokens"}
    made = TrainingJob(made.student, PlainViT(), ScaleKD(heads3=2, heads4=2, **options), made.data, made.settings)
    trainer = Trainer(made)
    ours, theirs = trainer.method(trainer.batch(0), trainer.student, trainer.teacher)
    assert ours["direct3"].shape == ours["direct4"].shape == theirs["map"].shape == (8, 16, 4, 4)
    assert trainer.run().parameters_without_gradient == ()


def test_a_teacher_that_cannot_be_run_is_refused() -> None:
    made = lesson()
    made.teacher = BlackBoxTeacher(lambda x: torch.zeros(len(x), 4), "none")
    with pytest.raises(InputError, match="live teacher"):
        Trainer(made)
