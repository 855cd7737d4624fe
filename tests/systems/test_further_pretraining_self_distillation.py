"""Stages and rounds from one start, the distance by hand, the linear analogue, and networks of `transformers`."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import tutelage
from tutelage.distillation.data import Batch, TensorData
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.masks import random_mask
from tutelage.distillation.optim import vector_names
from tutelage.distillation.trainer import Trainer, train
from tutelage.errors import InputError
from tutelage.networks.vit import VisionTransformer
from tutelage.systems import further_pretraining_self_distillation as further
from tutelage.systems._toy import toy_images
from tutelage.systems.further_pretraining_self_distillation import (
    FurtherPretraining,
    ImagePretraining,
    feature_distance,
    linear_rounds,
)


def network(seed: int = 0, dim: int = 16, **options: Any) -> ImagePretraining:
    torch.manual_seed(seed)
    encoder = VisionTransformer(8, 2, dim=dim, depth=1, num_heads=2, in_chans=1, positions="sincos")
    return ImagePretraining(encoder, **({"in_chans": 1, "dim": 16, "num_heads": 2} | options))


IMAGES = toy_images(0, count=24).inputs
QUICK = TrainingSettings(steps=3, batch_size=8, lr=1e-3)


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def same(one: nn.Module, other: nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def job(teacher: nn.Module | None = None, **options: float) -> TrainingJob:
    return TrainingJob(network(), teacher, FurtherPretraining(**options), TensorData(IMAGES), QUICK)


# -- the loss --------------------------------------------------------------------------------------------------------


def test_the_distance_is_a_sum_over_features() -> None:
    a, b = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [0.0, 3.0]])
    assert feature_distance(a, b).tolist() == [5, 9]
    assert feature_distance(a, a).tolist() == [0, 0]
    assert torch.allclose(feature_distance(a, b).mean(), ((a - b) ** 2).sum(1).mean())


def test_the_terms_of_a_batch_and_where_their_gradients_go() -> None:
    trainer = Trainer(job(network(1)))
    batch = Batch(IMAGES[:8], ids=torch.arange(8))
    torch.manual_seed(5)
    own, target = trainer.method(batch, trainer.student, trainer.teacher)
    terms = trainer.method.loss_terms(batch, own, target)
    torch.manual_seed(5)
    seeds = torch.randint(2**31, (8,))
    student, teacher = network(), network(1).eval()
    mask = random_mask(seeds, 16, 0.75)
    expected = feature_distance(student.encoder(IMAGES[:8]), teacher.encoder(IMAGES[:8])).mean()
    assert torch.allclose(terms["pretext"], student.mae.loss(IMAGES[:8], mask).mean())
    assert torch.allclose(terms["distance"], expected)
    terms["distance"].backward()
    assert all(parameter.grad is None for parameter in trainer.student.mae.decoder.parameters())
    assert all(parameter.grad is not None for parameter in trainer.student.encoder.parameters())
    assert all(parameter.grad is None for parameter in trainer.teacher.network.parameters())


def test_a_student_equal_to_its_teacher_has_no_distance() -> None:
    trainer = Trainer(job(network()))
    batch = Batch(IMAGES[:4], ids=torch.arange(4))
    assert trainer.method.loss_terms(batch, *trainer.method(batch, trainer.student, trainer.teacher))["distance"] == 0


def test_hidden_patches_alone_count() -> None:
    made, seeds = network(), torch.arange(4)
    with torch.no_grad():
        made.mae.decoder.head.weight.zero_()
        made.mae.decoder.head.bias.zero_()  # every prediction is 0: the loss is that of the targets
    mask, target = random_mask(seeds, 16, 0.75), made.mae.target(IMAGES[:4])
    expected = torch.stack([target[i][mask[i]].square().mean() for i in range(4)])
    assert torch.allclose(made.pretext_loss(IMAGES[:4], seeds), expected)


def test_the_feature_is_the_class_token_of_the_whole_image_in_any_order() -> None:
    made = network().eval()
    order = torch.randperm(16).expand(5, -1)
    shuffled = made.encoder.forward_features(IMAGES[:5], order)["class"][:, 0]
    assert torch.allclose(made(IMAGES[:5])["features"], shuffled, atol=1e-5)
    assert torch.equal(made(IMAGES[:5])["features"], made.encoder(IMAGES[:5]))
    assert set(made(IMAGES[:5], torch.arange(5), False)) == {"pretext"}


# -- stages and rounds -----------------------------------------------------------------------------------------------


def test_every_stage_starts_from_the_same_weights_and_its_teacher_stays() -> None:
    start = network()
    before = weights(start)
    plan = further.adaptation_plan(start, IMAGES, QUICK, rounds=2)
    assert list(plan) == ["further", "round-1", "round-2"]
    done = further.adapt(start, IMAGES, rounds=2, settings=QUICK)
    first = done.results["further"].student
    assert same(start, network()) and not same(first, start)
    second = plan["round-1"]({"further": copy.deepcopy(first)})  # type: ignore[arg-type]
    assert all(torch.equal(value, before[name]) for name, value in second.student.state_dict().items())
    assert second.teacher is not None and same(second.teacher.network, first)
    train(second)
    assert same(second.teacher.network, first)
    assert same(second.student, done.results["round-1"].student)
    assert [entry["uses"] for entry in done.provenance] == [{}, {"further": ["teacher"]}, {"round-1": ["teacher"]}]
    assert len({entry["start"] for entry in done.provenance}) == 1


def test_no_round_is_further_pretraining_and_weight_zero_is_stage_a_again() -> None:
    plain = train(job()).student
    assert same(further.adapt(network(), IMAGES, rounds=0, settings=QUICK).student, plain)
    assert same(train(job(network(1), distill=0.0)).student, plain)
    assert not same(train(job(network(1))).student, plain)


def test_an_adaptation_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    done = further.adapt(network(), IMAGES, settings=QUICK, out=tmp_path / "run")
    again = further.adapt(network(), IMAGES, settings=QUICK, out=tmp_path / "run")
    assert same(done.student, again.student) and (tmp_path / "run" / "round-1").is_dir()


def test_an_anchor_is_the_distance_of_the_weights() -> None:
    trainer = Trainer(job(anchor=2.0))
    start = weights(trainer.student)
    with torch.no_grad():
        trainer.student.encoder.norm.bias += 0.5
    batch = Batch(IMAGES[:4], ids=torch.arange(4))
    terms = trainer.method.loss_terms(batch, *trainer.method(batch, trainer.student, None))
    assert terms["anchor"].item() == pytest.approx(16 * 0.25)  # 2 / 2 sum of 16 squares of 0.5
    assert start["mae.encoder.norm.bias"].abs().sum() == 0


def test_decay_spares_vectors_but_not_tokens() -> None:
    trainer = Trainer(TrainingJob(network(), None, FurtherPretraining(), TensorData(IMAGES), further.published_settings(steps=1)))
    decays = {id(p): group["weight_decay"] for group in trainer.updaters[0].optimizer.param_groups for p in group["params"]}
    for name, parameter in trainer.student.named_parameters():
        assert decays[id(parameter)] == (0.0 if name in vector_names(trainer.student) else 0.01), name
    assert "mae.encoder.tokens.class" not in vector_names(trainer.student)
    chosen = further.published_settings(batch_size=32)
    assert (chosen.steps, chosen.lr, chosen.betas, chosen.schedule) == (20_000, 1.5e-4, (0.9, 0.95), "linear")


def test_the_page_s_first_lines_run() -> None:
    vit = network().encoder
    start = further.ImagePretraining(vit, in_chans=1, dim=16, num_heads=2)
    adapted = further.adapt(start, IMAGES, rounds=1, steps=2, batch_size=8).student
    labelled = toy_images(0, count=24)
    quick = {"steps": 2, "batch_size": 8, "progress": False}
    classifier = tutelage.distill(further.Classifier(adapted, classes=4), None, labelled, "supervised", **quick).student
    assert classifier(IMAGES).shape == (24, 4) and adapted.encoder(IMAGES).shape == (24, 16)
    name = "further-pretraining-self-distillation"
    assert tutelage.distill(start, adapted, TensorData(IMAGES), name, **quick).student(IMAGES)["features"].shape == (24, 16)


# -- the linear analogue ---------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), strength=st.floats(0.05, 20))
def test_every_round_comes_nearer_to_the_start(seed: int, strength: float) -> None:
    rng = torch.Generator().manual_seed(seed)
    features = torch.randn(12, 4, generator=rng, dtype=torch.float64)
    start, first = torch.randn(2, 4, generator=rng, dtype=torch.float64)
    distances = (linear_rounds(features, start, first, strength, 4) - start).norm(dim=1)
    assert (distances.diff() < 0).all()


def test_a_round_by_hand_by_descent_and_without_a_pull() -> None:
    features = torch.diag(torch.tensor([1.0, 2.0], dtype=torch.float64))
    start, first = torch.tensor([[0.0, 1.0], [3.0, 1.0 + 5.0]], dtype=torch.float64)
    found = linear_rounds(features, start, first, 1.0, 2)
    assert torch.allclose(found[1] - start, torch.tensor([3 * 0.5, 5 * 0.8], dtype=torch.float64))  # 1/(1+1) and 4/(4+1)
    assert torch.allclose(found[2] - start, torch.tensor([3 * 0.25, 5 * 0.64], dtype=torch.float64))
    descended = first.clone()
    for _ in range(200):
        descended -= 0.1 * (features.T @ features @ (descended - first) + 1.0 * (descended - start))
    assert torch.allclose(descended, found[1], atol=1e-6)
    assert torch.allclose(linear_rounds(features, start, first, 0.0, 3), first.expand(4, -1))
    with pytest.raises(InputError):
        linear_rounds(features, start, first, -1.0, 1)


# -- other networks, and what is refused -----------------------------------------------------------------------------


def test_a_masked_autoencoder_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTMAEConfig(image_size=8, patch_size=2, num_channels=1, norm_pix_loss=True)
    for prefix in ("", "decoder_"):
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        for name, value in sizes.items():
            setattr(config, prefix + name, value)
    torch.manual_seed(0)
    model = transformers.ViTMAEForPreTraining(config).eval()
    made, seeds = further.TransformersMAE(model).eval(), torch.arange(5)
    noise = random_mask(seeds, 16, 0.75).float()
    assert made.model.vit.embeddings.position_embeddings.any()
    made.model.config.mask_ratio = 0.75
    expected = made.model(IMAGES[:5], noise=noise).loss
    assert torch.allclose(made.pretext_loss(IMAGES[:5], seeds).mean(), expected, atol=1e-5)
    made.model.config.mask_ratio = 0.0
    whole = made.model.vit(IMAGES[:5], noise=torch.rand(5, 16)).last_hidden_state[:, 0]
    assert torch.allclose(made(IMAGES[:5])["features"], whole, atol=1e-5)
    done = further.adapt(made, IMAGES, settings=QUICK)
    assert done.student.encoder(IMAGES).shape == (24, 16) and further.Classifier(done.student, 3)(IMAGES).shape == (24, 3)
    with pytest.raises(InputError, match="no masked autoencoder"):
        further.TransformersMAE(model.vit)


def test_a_masked_language_model_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.BertConfig(vocab_size=20, **sizes)
    made = further.TextPretraining(transformers.BertForMaskedLM(config), mask_id=3, special_ids=(0, 1, 2)).eval()
    ids = torch.randint(4, 20, (16, 7), generator=torch.Generator().manual_seed(0))
    ids[:, 0], ids[8:, 5:] = 1, 0
    texts = {"input_ids": ids, "attention_mask": (ids > 0).long()}
    losses = made.pretext_loss(texts, torch.arange(16))
    assert losses.shape == (16,) and (losses > 0).all()
    assert made(**texts)["features"].shape == (16, 16)
    assert made.pretext_loss({name: value[:1, :1] for name, value in texts.items()}, torch.arange(1)).tolist() == [0.0]
    done = further.adapt(made, TensorData(texts), settings=QUICK)
    history = done.results["round-1"].history[-1]["terms"]
    assert set(history) == {"pretext", "distance"} and not same(done.student, made)
    assert further.Classifier(done.student, 2)(texts).shape == (16, 2)
    with pytest.raises(InputError, match="has no encoder"):
        further.TextPretraining(nn.Linear(2, 2), 0)


@pytest.mark.parametrize("ratio", [0.0, 1.0])
def test_a_mask_that_hides_nothing_or_leaves_nothing_is_refused(ratio: float) -> None:
    with pytest.raises(InputError, match=f"hides {int(16 * ratio)} of 16 patches"):
        network(ratio=ratio)


def test_networks_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="has no pretext task"):
        train(TrainingJob(nn.Linear(8, 8), None, FurtherPretraining(), TensorData(IMAGES), QUICK))
    with pytest.raises(InputError, match="has no pretext task"):
        further.adapt(nn.Linear(8, 8), IMAGES)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="has no pretext task"):
        further.Classifier(nn.Linear(8, 8), 2)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="features"):
        train(job(network(1, dim=8)))
    with pytest.raises(InputError, match="rounds"):
        further.adapt(network(), IMAGES, rounds=-1)
    with pytest.raises(InputError, match="distill"):
        FurtherPretraining(distill=-1.0)
    with pytest.raises(InputError, match="not covered by patches"):
        further.adapt(network(), torch.randn(8, 1, 7, 7), settings=QUICK)
    headed = VisionTransformer(8, 2, dim=16, depth=1, num_heads=2, in_chans=1, num_classes=3)
    with pytest.raises(InputError, match="has a head"):
        ImagePretraining(headed, 1)
