from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.distillation.data import Batch, TensorData
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.trainer import Trainer, train
from tutelage.errors import InputError
from tutelage.systems._toy import build_with_seed
from tutelage.systems.transkd import (
    CrossSelectiveFusion,
    EmbeddingAssistant,
    GlobalLocalMixer,
    SmallSegmenter,
    TransKD,
    as_map,
    channel_divergence,
    hierarchical_context,
    mean_iou,
    segmentation_loss,
)


def maps(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@given(st.integers(1, 17), st.integers(1, 17))
def test_hierarchical_context_weights_are_normalised(height: int, width: int) -> None:
    one = torch.ones(2, 3, height, width)
    assert hierarchical_context(torch.zeros_like(one), one).item() == pytest.approx(1, abs=1e-6)
    assert hierarchical_context(one, one).item() == 0


def test_hierarchical_context_by_hand() -> None:
    s, t = maps(0, 1, 1, 4, 4), torch.zeros(1, 1, 4, 4)
    # at height 4 the pool to 4 x 4 is left out; 2 x 2 has the weight 1/2, 1 x 1 has 1/4
    expected = (s.square().mean() + 0.5 * F.avg_pool2d(s, 2).square().mean() + 0.25 * s.mean() ** 2) / 1.75
    assert hierarchical_context(s, t).item() == pytest.approx(expected.item(), abs=1e-6)


def test_channel_divergence() -> None:
    s, t = maps(0, 2, 3, 4, 5), maps(1, 2, 3, 4, 5)
    assert channel_divergence(s, s).item() == pytest.approx(0, abs=1e-6)
    total = 0.0
    for b in range(2):
        for c in range(3):
            p, q = (t[b, c] / 2).flatten().softmax(0), (s[b, c] / 2).flatten().softmax(0)
            total += (p * (p / q).log()).sum().item()
    assert channel_divergence(s, t, 2.0).item() == pytest.approx(4 * total / 6, rel=1e-4)


def test_the_gate_of_the_fusion() -> None:
    fusion = build_with_seed(lambda: CrossSelectiveFusion(6, 10, 8, True), 0)
    x, y = maps(0, 3, 8, 4, 4), maps(1, 3, 8, 4, 4)
    weights = fusion.gate(x, y)
    assert weights.shape == (2, 3, 8, 1, 1)
    torch.testing.assert_close(weights.sum(0), torch.ones(3, 8, 1, 1))
    assert (weights - 0.5).abs().max() > 0.01
    fusion.branches[1].load_state_dict(fusion.branches[0].state_dict())
    features, residual = maps(2, 3, 6, 4, 4), maps(3, 3, 8, 2, 2)
    entered = fusion.entry(features)
    _, passed = fusion.eval()(features, residual)
    entered = fusion.entry(features)
    torch.testing.assert_close(passed, (entered + F.interpolate(residual, size=(4, 4))) / 2)


def test_the_deepest_block_ignores_a_residual() -> None:
    fusion = build_with_seed(lambda: CrossSelectiveFusion(6, 10, 8, False), 0).eval()
    features = maps(0, 2, 6, 3, 3)
    alone, given = fusion(features), fusion(features, maps(1, 2, 8, 1, 1))
    assert torch.equal(alone[0], given[0]) and torch.equal(alone[1], given[1])


def test_a_single_sample() -> None:
    fusion = build_with_seed(lambda: CrossSelectiveFusion(6, 10, 8, True), 0)
    features, residual = maps(0, 4, 6, 4, 4), maps(1, 4, 8, 2, 2)
    assert bool(fusion.train()(features[:1], residual[:1])[0].isfinite().all())
    fusion.eval()
    torch.testing.assert_close(fusion(features[:1], residual[:1])[0], fusion(features, residual)[0][:1])


def lesson(side: tuple[int, int] = (32, 32), batch_size: int = 4, **options: object) -> TrainingJob:
    images = maps(0, 8, 3, *side)
    labels = torch.randint(0, 3, (8, *side), generator=torch.Generator().manual_seed(1))
    student = build_with_seed(lambda: SmallSegmenter((8, 8, 16, 16), 3), 0)
    teacher = build_with_seed(lambda: SmallSegmenter((8, 16, 16, 24), 3), 1)
    method = TransKD(middle=16, mixer_heads=2, **options)
    return TrainingJob(student, teacher, method, TensorData(images, labels), TrainingSettings(steps=3, batch_size=batch_size))


@pytest.mark.parametrize("variant", ["base", "gl", "ea"])
@pytest.mark.parametrize("side", [(32, 32), (41, 67)])
def test_outputs_have_the_teachers_shapes(variant: str, side: tuple[int, int]) -> None:
    trainer = Trainer(lesson(side, variant=variant))
    ours, theirs = trainer.method(trainer.batch(0), trainer.student, trainer.teacher)
    for i in range(4):
        assert ours[f"map{i}"].shape == theirs[f"map{i}"].shape
        assert ours[f"embedding{i}"].shape == theirs[f"embedding{i}"].shape
    assert not any(value.requires_grad for value in theirs.values())
    trainer.student.train()
    trainer.advance()
    assert trainer.parameters_without_gradient == ()


def test_alignment_weights_and_where_its_gradient_goes() -> None:
    trainer = Trainer(lesson())
    batch = trainer.batch(0)
    ours, theirs = trainer.method(batch, trainer.student, trainer.teacher)
    pea = trainer.method.loss_terms(batch, ours, theirs)["pea"]
    parts = [(ours[f"embedding{i}"] - theirs[f"embedding{i}"]).square().mean() for i in range(4)]
    assert pea.item() == pytest.approx(sum(w * p.item() for w, p in zip((0.1, 0.1, 0.5, 1.0), parts)), rel=1e-5)
    pea.backward()
    for stage in trainer.student.encoder.stages:
        assert stage.embed.proj.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in trainer.teacher.network.parameters())


def test_mixer_by_its_two_parts() -> None:
    mixer = build_with_seed(lambda: GlobalLocalMixer(8, 2), 0)
    tokens, order = maps(0, 2, 9, 8), torch.randperm(9, generator=torch.Generator().manual_seed(0))
    assert mixer.alpha.item() == mixer.beta.item() == 0.5
    with torch.no_grad():
        mixer.beta.zero_()
        torch.testing.assert_close(mixer(tokens[:, order]), mixer(tokens)[:, order])
        mixer.beta.fill_(0.5)
        mixer.alpha.zero_()
        changed = tokens.clone()
        changed[:, 4] += 1
        moved = (mixer(changed) - mixer(tokens)).abs().sum((0, 2)) > 1e-7
    assert moved.nonzero()[:, 0].tolist() == [3, 4, 5]


def test_assistant_weights_begin_as_published() -> None:
    stages = [EmbeddingAssistant(3, 8, i) for i in range(4)]
    assert [a.u.item() for a in stages] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert [a.v.item() for a in stages] == pytest.approx([0.5, 0.6, 0.7, 0.8])
    assert (stages[0].conv.kernel_size, stages[0].conv.stride) == ((7, 7), (4, 4))
    assert (stages[1].conv.kernel_size, stages[1].conv.stride) == ((3, 3), (2, 2))


def test_the_export_is_the_plain_student() -> None:
    made = lesson(variant="ea")
    result = train(made)
    plain = SmallSegmenter((8, 8, 16, 16), 3)
    plain.load_state_dict(result.student.state_dict())  # strict: no key more, none less
    image = maps(5, 1, 3, 32, 32)
    assert torch.equal(plain.eval()(image), made.student.eval()(image))


def test_training_on_single_samples() -> None:
    result = train(lesson(batch_size=1))
    assert set(result.history[-1]["terms"]) == {"label", "hcl", "pea"}
    assert set(train(lesson(feature="cwd")).history[-1]["terms"]) == {"label", "cwd", "pea"}


def test_segmentation_loss() -> None:
    logits = maps(0, 2, 3, 4, 4)
    labels = torch.randint(0, 3, (2, 8, 8), generator=torch.Generator().manual_seed(0))
    weights = torch.tensor([1.0, 2.0, 0.5])
    labels[:, :2] = 255
    small = labels[:, ::2, ::2]
    expected = F.cross_entropy(logits, small, weight=weights, ignore_index=255)
    assert segmentation_loss(logits, labels, weights).item() == pytest.approx(expected.item(), abs=1e-6)
    assert segmentation_loss(logits, torch.full_like(labels, 255)).item() == 0


def test_tokens_become_maps() -> None:
    features = maps(0, 2, 5, 6, 9)
    assert torch.equal(as_map(features.flatten(2).transpose(1, 2), (44, 70)), features)
    assert as_map(features, (1, 1)) is features
    with pytest.raises(InputError):
        as_map(maps(0, 2, 7, 3), (32, 32))


def test_maps_of_other_strides_and_missing_taps_are_refused() -> None:
    with pytest.raises(InputError, match="one a stage"):
        TransKD(teacher_maps=("encoder.stages.0",))
    names = tuple(f"encoder.stages.{i}" for i in (1, 1, 2, 3))
    with pytest.raises(InputError, match="strides"):
        Trainer(lesson(teacher_maps=names))


def test_mean_iou() -> None:
    confusion = torch.tensor([[3, 1, 0], [0, 2, 0], [0, 0, 0]])
    assert mean_iou(confusion) == pytest.approx((3 / 4 + 2 / 3) / 2)


def test_the_batch_is_not_needed_beyond_its_images() -> None:
    trainer = Trainer(lesson())
    batch = trainer.batch(0)
    ours, _ = trainer.method(Batch(batch.inputs, batch.labels), trainer.student, trainer.teacher)
    assert ours["logits"].shape == (4, 3, 8, 8)


def test_a_segformer_of_transformers_teaches_another() -> None:
    transformers = pytest.importorskip("transformers")

    def segformer(widths: list[int], seed: int) -> nn.Module:
        config = transformers.SegformerConfig(
            depths=[1] * 4, hidden_sizes=widths, num_attention_heads=[1, 1, 2, 2], decoder_hidden_size=8, num_labels=3
        )
        return build_with_seed(lambda: transformers.SegformerForSemanticSegmentation(config), seed)

    student = segformer([8, 8, 16, 16], 0)
    recent = hasattr(student.segformer, "stages")
    names = {
        part: tuple(f"segformer.stages.{i}.{module}" if recent else f"segformer.encoder.{module}.{i}" for i in range(4))
        for part, module in (("maps", "layer_norm"), ("embeddings", "patch_embeddings"))
    }
    taps = {f"{whose}_{part}": found for part, found in names.items() for whose in ("student", "teacher")}
    keys, image = student.state_dict().keys(), maps(5, 1, 3, 64, 64)
    plain = lesson((64, 64))
    made = TrainingJob(student, segformer([8, 16, 16, 24], 1), TransKD(middle=16, **taps), plain.data, plain.settings)
    result = train(made)
    assert result.parameters_without_gradient == () and result.student.state_dict().keys() == keys
    assert torch.equal(result.student(image).logits, student.eval()(image).logits)
