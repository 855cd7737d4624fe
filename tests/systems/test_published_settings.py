"""What papers publish of their training: what decay spares by default, rates by layer, and the settings themselves."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import tutelage
from tutelage import registry
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.optim import declared_exempt_names
from tutelage.distillation.supervised import Supervised
from tutelage.distillation.trainer import Trainer, train
from tutelage.errors import InputError
from tutelage.networks.segmenter import Segmenter
from tutelage.systems import create, published_settings
from tutelage.systems._backbone import Backbone
from tutelage.systems._published import trainings
from tutelage.systems._toy import build_with_seed, toy_images
from tutelage.systems.generalized_convolution import GeneralizedConv2d
from tutelage.systems.tinyvit import TinyViTNetwork

SYSTEMS = [name for name in registry.systems() if trainings(name)]
NETWORKS: dict[str, dict[str, Any]] = {
    "convnext": {"depths": (1, 1), "dims": (8, 16), "stem": 2},
    "hornet": {"base": 8, "depths": (1, 1, 1), "orders": (2, 3, 2), "stem": 2, "gf": 16},
    "cvt": {"depths": (1, 1), "dims": (8, 16), "heads": (1, 2), "kernels": (3, 3), "strides": (2, 2), "paddings": (1, 1)},
    "spartan": {"depths": (1, 1), "dims": (8, 16), "expansions": (2, 2)},
    "tinyvit": {"dims": (8, 8, 16, 16), "depths": (1, 1, 2, 1), "windows": (4, 2, 2), "head_width": 8},
    "generalized-convolution": {"kind": "l2", "options": {"monotone": "affine"}},
}


def groups_of(network: nn.Module, **settings: object) -> dict[str, tuple[float, float]]:
    """(factor on the rate, decay) of each parameter of a network whose job leaves ``decay_exempt`` as it is."""
    chosen = TrainingSettings(**{"steps": 2, "batch_size": 4, "weight_decay": 0.1, "schedule": "constant"} | settings)
    job = TrainingJob(network, None, Supervised(), toy_images(0, 8, image_size=16), chosen)
    trainer = Trainer(job, check=False)
    trainer.advance()
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    return {
        names[id(p)]: (group["lr"] / chosen.lr, group["weight_decay"])
        for group in trainer.optimizer.param_groups
        for p in group["params"]
    }


@pytest.mark.parametrize("name", list(NETWORKS))
def test_decay_spares_by_default_what_the_paper_spares(name: str) -> None:
    network = build_with_seed(lambda: create(name, 4, 1, **NETWORKS[name]), 0)
    found = groups_of(network)
    spared = {key for key, (_, decay) in found.items() if decay == 0}
    assert found.keys() == {key for key, _ in network.named_parameters()}
    assert {decay for _, decay in found.values()} == {0.0, 0.1}
    vectors = {key for key, parameter in network.named_parameters() if parameter.ndim < 2}
    if name == "generalized-convolution":
        ends = ("raw_g", "raw_gain")
        assert spared == {key for key in found if key.endswith(ends) or key in ("layers.0.0.weight", "layers.1.0.weight")}
    elif name == "spartan":
        scales = {key for key in found if ".scale1." in key or ".scale2." in key}
        assert scales and scales <= vectors and spared == vectors - scales | {key for key in found if key.endswith("contrast.gain")}
        assert all(found[key][1] == 0.1 for key in found if key.endswith("wave.weight"))
    elif name == "tinyvit":
        assert spared == vectors | {key for key in found if key.endswith("attention_biases")}
    else:
        assert spared == vectors
    assert {decay for _, decay in groups_of(network, decay_exempt=False).values()} == {0.1}


def test_templates_of_inner_products_decay() -> None:
    assert GeneralizedConv2d(1, 1, 3, kind="dot").no_weight_decay() == set()
    assert GeneralizedConv2d(1, 1, 3, kind="polynomial").no_weight_decay() == {"raw_a", "raw_c"}
    assert GeneralizedConv2d(1, 1, 3, kind="mixed", learn_mix=True).no_weight_decay() == {"weight", "raw_mix"}


def test_a_network_inside_another_is_heard() -> None:
    backbone = create("convnext", 4, 1, **NETWORKS["convnext"])
    whole = Segmenter(backbone, (8, 16), 4, 8, lambda network, images: network.forward_stages(images))
    inside = {f"backbone.{name}" for name in declared_exempt_names(backbone)}
    assert inside and declared_exempt_names(whole) == inside


def test_distill_honours_it_and_can_be_told_not_to() -> None:
    """Without a gradient only decay moves a weight."""

    class Still(Supervised):
        def loss_terms(self, batch, student, teacher):
            return {"label": 0.0 * student["logits"].sum()}

    start = build_with_seed(lambda: create("convnext", 4, 1, **NETWORKS["convnext"]), 0)
    before = {name: value.detach().clone() for name, value in start.named_parameters()}
    for exempt in (None, False):
        done = tutelage.distill(
            start, None, toy_images(0, 8, image_size=16), Still, steps=3, batch_size=4, optimizer="sgd", momentum=0.0, lr=0.1,
            weight_decay=0.5, decay_exempt=exempt, progress=False, check=False,
        )  # fmt: skip
        for name, value in done.student.named_parameters():
            kept = exempt is None and value.ndim < 2
            assert torch.equal(value, before[name]) == (kept or not before[name].any()), name


def test_layers_of_tinyvit_learn_at_their_rates() -> None:
    settings = published_settings("tinyvit:fine-tuning", schedule="constant")
    assert settings.layer_decay == 0.8
    network = build_with_seed(lambda: TinyViTNetwork(4, 1, **NETWORKS["tinyvit"]), 0)
    found = groups_of(network, layer_decay=settings.layer_decay, weight_decay=settings.weight_decay)
    assert found["stages.0.blocks.0.conv1.conv.weight"] == pytest.approx((0.8**4, 1e-8))
    assert found["patch_embed.conv1.conv.weight"] == found["stages.1.downsample.conv1.conv.weight"]
    assert found["stages.2.downsample.conv1.conv.weight"] == pytest.approx((0.8**3, 1e-8))
    assert found["stages.2.blocks.0.attn.attention_biases"] == pytest.approx((0.8**2, 0.0))
    assert found["stages.3.blocks.0.mlp.fc1.weight"] == found["head.fc.weight"] == pytest.approx((1.0, 1e-8))


# -- the settings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SYSTEMS)
def test_published_settings_are_whole(name: str) -> None:
    for which, settings in trainings(name).items():
        assert settings.epochs and settings.weight_decay, which
        resolved = settings.resolve(100_000)
        assert resolved.epochs is None and resolved.warmup_epochs is None
        assert resolved.steps == math.ceil(settings.epochs * 100_000 / settings.batch_size)
        assert resolved.warmup == round((settings.warmup_epochs or 0) * 100_000 / settings.batch_size) < resolved.steps
        target = registry.find(name).target
        if which in (variants := getattr(target, "VARIANTS", {})):
            assert issubclass(target, Backbone) and variants[which].parameters


def test_the_figures_of_the_papers() -> None:
    assert {name: published_settings(name).ema for name in ("convnext", "hornet", "volt", "deit-lt")} == {
        "convnext": 0.9999, "hornet": 0.9999, "volt": 0.999, "deit-lt": 0.99996,
    }  # fmt: skip
    assert [published_settings(f"hornet:{size}").clip for size in ("tiny-7x7", "base-7x7", "base-gf")] == [100, 5, 1]
    assert published_settings("cvt:21").weight_decay == 0.1
    assert published_settings("spartan").lr == 2.5e-3 and published_settings("tinyvit").weight_decay == 0.01
    assert published_settings("volt:nuscenes").lr == 2e-3


def test_the_rate_follows_the_batch_and_settings_can_be_changed() -> None:
    plain, small = published_settings("convnext"), published_settings("convnext", 512, epochs=20, seed=3)
    assert small == replace(plain, batch_size=512, lr=plain.lr / 8, epochs=20, seed=3)
    assert published_settings("convnext", 512, lr=1e-3).lr == 1e-3
    assert published_settings("convnext", steps=10).epochs is None
    assert published_settings("convnext", warmup=5).warmup_epochs is None


def test_warm_up_in_epochs_is_that_in_steps() -> None:
    settings = TrainingSettings(steps=40, batch_size=8, accumulate=2, warmup_epochs=2.5)
    job = TrainingJob(nn.Flatten(), None, Supervised(), toy_images(0, 64), settings)
    assert (job.settings.steps, job.settings.warmup, job.settings.warmup_epochs) == (40, 10, None)


def test_a_published_training_runs() -> None:
    """A few steps with every setting of ConvNeXt's; the exported student is the average, which barely moved."""
    settings = published_settings("convnext", 16, steps=4, warmup=1, lr=1e-2)
    start = build_with_seed(lambda: create("convnext", 4, 1, **NETWORKS["convnext"]), 0)
    before = {name: value.detach().clone() for name, value in start.named_parameters()}
    job = TrainingJob(start, None, Supervised(), toy_images(0, 32, image_size=16), settings)
    student = train(job).student
    moved = max((value - before[name]).abs().max().item() for name, value in student.named_parameters())
    raw = max((value - before[name]).abs().max().item() for name, value in job.student.named_parameters())
    assert 0 < moved < 1e-3 * raw


def test_what_is_not_published_is_refused() -> None:
    with pytest.raises(InputError, match="fine-tuning"):
        published_settings("tinyvit:finetuning")
    with pytest.raises(InputError, match="no settings"):
        published_settings("kd")
    with pytest.raises(InputError, match="lr"):
        published_settings("convnext", learning_rate=1.0)
    with pytest.raises(InputError, match="both warmup"):
        TrainingSettings(warmup=3, warmup_epochs=1.0)
