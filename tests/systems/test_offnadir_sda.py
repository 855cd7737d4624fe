"""Off-nadir SDA: losses and scores of masks, displacement, the two phases and their guard, freezing, the comparisons."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from typer.testing import CliRunner

from tutelage import distill
from tutelage.cli import main
from tutelage.distillation.data import TensorData
from tutelage.distillation.data.combined import CombinedData
from tutelage.distillation.data.mixing import InSequence, Together
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.supervised import Supervised
from tutelage.distillation.trainer import Trainer, train
from tutelage.errors import InputError
from tutelage.networks.unet import UNet
from tutelage.systems.offnadir_sda import (
    LOSSES,
    MaskDistillation,
    MutualLearning,
    OffNadirSDA,
    displace_masks,
    mask_loss,
    mask_scores,
    noisy_then_clean,
    roof_displacement,
    scores_by_height,
    settle_in_turn,
    tilted_tiles,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def unet(seed: int = 0, widths: tuple[int, ...] = (4, 8, 8)) -> UNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UNet(3, 1, widths)


def bits(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


NOISY, CLEAN = tilted_tiles(generator(), 16), tilted_tiles(generator(1), 4)


def job(
    method: OffNadirSDA | None = None, data: object = None, steps: int = 6, share: float = 0.5, **settings: object
) -> TrainingJob:
    data = noisy_then_clean(NOISY.noisy, CLEAN.clean, 0.5) if data is None else data
    fixed = {"batch_size": 4, "lr": 1e-2, "schedule": "constant"} | settings
    return TrainingJob(unet(), None, method or OffNadirSDA(), data, TrainingSettings(steps=steps, **fixed))


# -- masks -----------------------------------------------------------------------------------------------------------


def square(left: int, side: int = 4) -> Tensor:
    mask = torch.zeros(1, 1, 12, 12)
    mask[0, 0, 3 : 3 + side, left : left + side] = 1
    return mask


@given(st.integers(0, 4))
def test_a_displaced_square_has_the_scores_of_the_formula(d: int) -> None:
    moved = displace_masks(square(2), torch.tensor([[0, d]]))
    found = mask_scores(moved.bool(), square(2))
    assert found["IoU"] == pytest.approx(100 * (4 - d) / (4 + d)) and found["F1"] == pytest.approx(100 * (4 - d) / 4)
    share = found["IoU"] / 100
    assert found["F1"] == pytest.approx(100 * 2 * share / (1 + share))
    assert found["precision"] == found["recall"] == found["F1"]


def test_displacement_is_proportional_to_height() -> None:
    assert roof_displacement(10, 45, 0.5) == pytest.approx(20)
    assert roof_displacement(20, 30, 0.5) == pytest.approx(2 * roof_displacement(10, 30, 0.5))
    assert roof_displacement(0, 30, 0.5) == roof_displacement(10, 0, 0.5) == 0
    two = torch.cat([square(2), square(6)])
    assert torch.equal(displace_masks(two, torch.tensor([[0, 4], [0, -4]])), two.flip(0))
    down = displace_masks(square(2), torch.tensor([[2, 0]]))
    assert down[0, 0, 5:9, 2:6].all() and down.sum() == 16
    assert displace_masks(square(2), torch.tensor([[0, 12]])).sum() == 0
    tiles = tilted_tiles(generator(3), 8)
    for height in range(4):
        rows = tiles.heights == height
        moved = displace_masks(tiles.footprints[rows], torch.tensor([[0, 2 * height]]).expand(2, 2))
        assert torch.equal(moved, tiles.roofs[rows]) and tiles.roofs[rows].sum() >= 2 * 2 * 25


def test_losses_on_masks_drawn_by_hand() -> None:
    mask = square(2)
    sure = 200 * (mask - 0.5)
    for name in LOSSES:
        assert mask_loss(sure, mask, name).item() == pytest.approx(0, abs=1e-5), name
    other = 200 * (square(7) - 0.5)  # disjoint: 16 and 16 pixels
    assert mask_loss(other, mask, "dice").item() == pytest.approx(1 - 1 / 33)
    assert mask_loss(other, mask, "jaccard").item() == pytest.approx(1 - 1 / 33)
    half = 200 * (square(4) - 0.5)  # 8 hits, 8 false, 8 missed
    assert mask_loss(half, mask, "dice").item() == pytest.approx(1 - 17 / 33)
    assert mask_loss(half, mask, "jaccard").item() == pytest.approx(1 - 9 / 25)
    assert mask_loss(half, mask, "tversky").item() == pytest.approx(1 - 8.5 / (8 + 0.3 * 8 + 0.7 * 8 + 0.5))
    z = torch.tensor([[[[math.log(3.0)]]]])  # p = 3/4
    assert mask_loss(z, torch.zeros(1, 1, 1, 1), "focal").item() == pytest.approx(0.75**2 * math.log(4))
    assert mask_loss(z, torch.ones(1, 1, 1, 1), "bce+focal").item() == pytest.approx((1 + 0.25**2) * math.log(4 / 3))


def test_ignored_pixels_and_weights_of_samples() -> None:
    logits = torch.randn(2, 1, 4, 4, generator=generator())
    masks = (torch.rand(2, 1, 4, 4, generator=generator(1)) > 0.5).float()
    for name in LOSSES:
        first = mask_loss(logits[:1], masks[:1], name)
        assert torch.allclose(mask_loss(logits, masks, name, torch.tensor([1.0, 0.0])), first), name
        masks_off = masks.clone()
        masks_off[1] = -1
        assert torch.allclose(mask_loss(logits, masks_off, name), first), name
    assert mask_scores(torch.ones(2, dtype=torch.bool), torch.tensor([-1.0, 1.0]))["F1"] == 100
    assert mask_scores(torch.zeros(2, dtype=torch.bool), torch.zeros(2))["F1"] == 0


def test_scores_by_height_count_all_pixels() -> None:
    class Given(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images

    masks = torch.cat([square(2), square(2), square(2)])
    images = torch.cat([square(2), square(4), square(6)]) - 0.5
    found = scores_by_height(Given(), images, masks, ["low", "tall", "tall"], batch_size=2)
    assert list(found) == ["low", "tall", "all"]
    assert found["low"]["F1"] == 100 and found["tall"]["F1"] == pytest.approx(100 * 8 / 32)
    assert found["all"]["IoU"] == pytest.approx(100 * 24 / 72)
    with pytest.raises(InputError, match="2 classes"):
        scores_by_height(Given(), images, masks, [0, 1])
    with pytest.raises(InputError, match="masks"):
        scores_by_height(Given(), images, masks[..., :6], [0, 1, 1])


# -- the two phases --------------------------------------------------------------------------------------------------


def test_nothing_of_the_clean_set_is_learned_in_the_noisy_phase() -> None:
    """Other clean images and masks change no bit of the network until the clean phase begins; then they do."""
    poisoned = TensorData(CLEAN.images.flip(0), 1 - CLEAN.roofs)
    runs = [Trainer(job(data=noisy_then_clean(NOISY.noisy, clean, 0.5))) for clean in (CLEAN.clean, poisoned)]
    for step in range(4):
        assert step == 0 or same(bits(runs[0].student), bits(runs[1].student))
        for run in runs:
            run.advance()
    assert runs[0]._phase is not None and runs[0]._phase.name == "clean"
    assert not same(bits(runs[0].student), bits(runs[1].student))


def test_a_clean_row_in_the_noisy_phase_is_refused() -> None:
    trainer = Trainer(job())
    trainer.advance()
    rows = torch.arange(14, 18)  # two of each set
    with pytest.raises(InputError, match="another source"):
        trainer.method(trainer.job.data.batch(rows, None), trainer.student, None)


@given(st.integers(2, 40), st.floats(0.02, 0.98))
def test_data_and_phases_change_in_the_same_step(steps: int, share: float) -> None:
    from tutelage.distillation.schedule import boundaries

    data, method = noisy_then_clean(NOISY.noisy, CLEAN.clean, share), OffNadirSDA()
    method.lengths = dict(data.mixing.lengths)
    edges = data.mixing.edges(data.names, steps)
    assert [first for _, first, _ in boundaries(method.phases(), steps)] == edges[:-1]


def test_without_clean_steps_the_result_is_the_pretrained_network() -> None:
    data = CombinedData({"noisy": NOISY.noisy, "clean": CLEAN.clean}, InSequence({"noisy": 1000, "clean": 1}))
    adapted = train(job(data=data, steps=3)).student
    plain = train(TrainingJob(unet(), None, Supervised(), data, job(steps=3).settings, task="multi-label")).student
    assert same(bits(adapted), bits(plain))


def test_rates_and_names_of_the_phases() -> None:
    data = CombinedData({"city": NOISY.noisy, "survey": CLEAN.clean}, InSequence({"city": 2, "survey": 1}), field="domain")
    trainer = Trainer(job(OffNadirSDA(clean_lr=0.25), data, log_every=1))
    result = trainer.run()
    assert [record["stage"] for record in result.history] == ["city"] * 4 + ["survey"] * 2
    assert [record["lr"] for record in result.history] == pytest.approx([1e-2] * 4 + [2.5e-3] * 2)
    alone = train(job(data=CLEAN.clean, log_every=1))
    assert {record["lr"] for record in alone.history} == {1e-2}


# -- freezing --------------------------------------------------------------------------------------------------------


def states(freeze: str, statistics: str = "train", steps: int = 10) -> list[dict[str, Tensor]]:
    """The network after the noisy phase, and after each step of the clean one."""
    trainer = Trainer(job(OffNadirSDA(freeze=freeze, statistics=statistics), steps=steps))
    trainer._train_mode()
    found = []
    while trainer.step < steps:
        trainer.advance()
        if trainer.step >= steps // 2:
            found.append(bits(trainer.student))
    return found


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_a_frozen_encoder_keeps_weights_and_statistics() -> None:
    first, *_, last = states("encoder")
    moved = changed(first, last)
    assert moved and not any(name.startswith("encoder.") for name in moved)
    assert "decoder.norm.running_mean" in moved and "heads.out.weight" in moved
    first, *_, last = states("half")
    moved = {name for name in changed(first, last) if name.startswith("encoder.")}
    assert {name.split(".")[2] for name in moved} == {"1", "2"}, "the deeper half of three blocks, and no stem"


def test_gradual_unfreezing_frees_the_deepest_block_first() -> None:
    seen = states("gradual", steps=16)  # 8 clean steps, 3 blocks: 0, 0, 1, 1, 1, 2, 2, 3 of them free
    free = []
    for before, after in zip(seen, seen[1:]):
        moved = {name for name in changed(before, after) if name.startswith("encoder.blocks.") and name.endswith("conv1.weight")}
        free.append(sorted(int(name.split(".")[2]) for name in moved))
    assert free == [[], [], [2], [2], [1, 2], [1, 2], [0, 1, 2], [0, 1, 2]]


def test_fixed_statistics_stand_still_in_the_clean_phase_alone() -> None:
    first, *_, last = states("none", "fixed")
    moved = changed(first, last)
    assert "encoder.stem.weight" in moved and not any("running" in name for name in moved)
    start = {name: value for name, value in bits(unet()).items() if "running_mean" in name}
    assert all(not torch.equal(value, first[name]) for name, value in start.items())


# -- the comparisons -------------------------------------------------------------------------------------------------


def test_the_divergence_is_that_of_two_outcomes() -> None:
    method = MaskDistillation(tau=2.0)
    student, teacher = torch.randn(2, 1, 3, 3, generator=generator()), torch.randn(2, 1, 3, 3, generator=generator(1))
    masks = torch.zeros(2, 1, 3, 3)

    def distance(one: Tensor, other: Tensor) -> float:
        from tutelage.distillation.data import Batch

        return method.loss_terms(Batch(masks, masks), {"logits": one}, {"logits": other})["kd"].item()

    p, q = (teacher / 2).sigmoid(), (student / 2).sigmoid()
    by_hand = 4 * (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean()
    assert distance(student, teacher) == pytest.approx(by_hand.item(), rel=1e-4)
    assert distance(teacher, teacher) == pytest.approx(0, abs=1e-7) and distance(teacher, student) > 0


def test_alpha_1_is_training_on_labels_alone() -> None:
    settings = TrainingSettings(steps=3, batch_size=4, lr=1e-2)
    followed = train(TrainingJob(unet(), unet(5), MaskDistillation(alpha=1.0), CLEAN.clean, settings))
    plain = train(TrainingJob(unet(), None, OffNadirSDA(), CLEAN.clean, settings))
    assert same(bits(followed.student), bits(plain.student))


def test_mutual_learning_keeps_the_gradients_apart() -> None:
    peer = unet(5)
    start = bits(peer)
    trainer = Trainer(TrainingJob(unet(), None, MutualLearning(peer), CLEAN.clean, TrainingSettings(steps=2, batch_size=4)))
    trainer._train_mode()
    student_turn, peer_turn = trainer.updaters
    seen = []
    for updater, owner, other in ((student_turn, "student.", "method."), (peer_turn, "method.", "student.")):
        for parameter in trainer.parameters.values():
            parameter.grad = None
        trainer._run_turn(updater, trainer.phases[0][0], 0, 2)
        graded = {name for name, parameter in trainer.parameters.items() if parameter.grad is not None}
        assert graded and all(name.startswith(owner) for name in graded) and not any(name.startswith(other) for name in graded)
        seen.append(bits(trainer.student))
    assert all(torch.equal(seen[0][name], seen[1][name]) for name in seen[0] if name.endswith("weight")), "the student waits"
    assert changed(start, bits(trainer.method.peer)) and same(start, bits(peer)), "the peer is a copy"


def test_equal_networks_have_no_divergence_and_a_weight_of_0_leaves_it_out() -> None:
    method = MutualLearning(unet())
    method.eval()
    batch = CLEAN.clean.batch(torch.arange(4), None)
    terms = method.loss_terms(batch, *method(batch, unet().eval(), None))
    assert terms["mutual"].item() == pytest.approx(0, abs=1e-7)
    logits = unet().eval()(batch.inputs)
    assert terms["label"].item() == pytest.approx(F.binary_cross_entropy_with_logits(logits, batch.labels).item(), rel=1e-5)
    assert MutualLearning(unet(), weight=0.0).loss_weights() == {"mutual": 0.0}


def test_a_study_settles_one_question_after_the_other() -> None:
    table = {"bce": 1.0, "dice": 3.0, "focal": 2.0, "adam": 0.0, "sgd": -1.0, "small": 0.0, "large": 0.5}
    asked: list[dict[str, str]] = []

    def score(choice: dict[str, str]) -> float:
        asked.append(dict(choice))
        return sum(table[value] for value in choice.values())

    study = settle_in_turn({"loss": ["bce", "dice", "focal"], "optimizer": ["adam", "sgd"], "encoder": ["small", "large"]}, score)
    assert study.best == {"loss": "dice", "optimizer": "adam", "encoder": "large"}
    assert len(study.trials) == len(asked) == 5
    assert asked[3] == {"loss": "dice", "optimizer": "sgd", "encoder": "small"}
    with pytest.raises(InputError, match="no answer"):
        settle_in_turn({"loss": []}, score)


# -- use, and what is refused ----------------------------------------------------------------------------------------


def test_the_page_s_lines_run() -> None:
    data = noisy_then_clean(NOISY.noisy, CLEAN.clean, clean_share=0.25)
    options = {"loss": "bce+dice", "freeze": "encoder"}
    result = distill(unet(), None, data, "offnadir-sda", options=options, steps=4, batch_size=4, lr=1e-3, progress=False)
    found = scores_by_height(result.student, CLEAN.images, CLEAN.roofs, CLEAN.heights)
    assert set(found) == {"0", "1", "2", "3", "all"} and all(0 <= value <= 100 for value in found["all"].values())
    distill(result.student, None, CLEAN.clean, "offnadir-sda", steps=2, batch_size=4, lr=1e-5, progress=False)


RECIPE = """
method = "offnadir-sda"
out = "run"
student = { model = "offnadir-sda", options = { in_chans = 3, out_chans = 1 } }
settings = { steps = 4, batch_size = 4 }
[data]
kind = "combined"
mixing = "in-sequence"
weights = { noisy = 3, clean = 1 }
[data.sources.noisy]
file = "noisy.npz"
[data.sources.clean]
file = "clean.npz"
[options]
freeze = "none"
"""


def test_a_recipe_names_both_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, tiles, masks in (("noisy", NOISY, NOISY.footprints), ("clean", CLEAN, CLEAN.roofs)):
        np.savez(f"{name}.npz", inputs=tiles.images.numpy(), labels=masks.numpy())
    Path("recipe.toml").write_text(RECIPE)
    ran = CliRunner().invoke(main.app, ["distill", "recipe.toml"])
    assert ran.exit_code == 0, ran.output
    assert Path("run/seed-0/student.safetensors").exists()
    ran = CliRunner().invoke(main.app, ["distill", "recipe.toml", "--set", "data.mixing=together", "--set", "out=other"])
    assert ran.exit_code == 2 and "in-sequence" in ran.output


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"loss": "dise"}, "dice"),
        ({"clean_lr": 0.0}, "0.1"),
        ({"freeze": "encode"}, "encoder"),
        ({"statistics": "fix"}, "fixed"),
        ({"freeze": "half", "encoder": "encodr"}, "encoder"),
        ({"freeze": "half", "encoder": "heads"}, "blocks"),
    ],
)
def test_options_that_cannot_be(options: dict, words: str) -> None:
    with pytest.raises(InputError) as caught:
        Trainer(job(OffNadirSDA(**options)))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (CombinedData({"noisy": NOISY.noisy, "clean": CLEAN.clean}, Together()), "Together"),
        (CombinedData({"a": NOISY.noisy, "b": CLEAN.clean, "c": CLEAN.clean}, InSequence()), "3 sources"),
        (noisy_then_clean(NOISY.noisy, TensorData(CLEAN.images)), "sources.clean"),
        (noisy_then_clean(NOISY.noisy, TensorData(CLEAN.images, CLEAN.roofs[..., :12])), "sources.clean"),
        (noisy_then_clean(TensorData(NOISY.images, 255 * NOISY.roofs), CLEAN.clean), "0..1"),
    ],
)
def test_data_that_cannot_be(data: CombinedData, words: str) -> None:
    with pytest.raises(InputError) as caught:
        Trainer(job(data=data))
    assert words in str(caught.value)


def test_other_bad_input() -> None:
    for share in (0.0, 1.0):
        with pytest.raises(InputError, match="clean_share"):
            noisy_then_clean(NOISY.noisy, CLEAN.clean, share)
    for arguments in ((-1, 10, 1), (1, 90, 1), (1, 10, 0)):
        with pytest.raises(InputError, match="angle"):
            roof_displacement(*arguments)
    with pytest.raises(InputError, match="whole offsets"):
        displace_masks(square(2), torch.zeros(1, 2))
    with pytest.raises(InputError, match="of 16 pixels"):
        tilted_tiles(generator(), 4, size=12, classes=1)
    for method, options in ((MaskDistillation, {"alpha": 2.0}), (MaskDistillation, {"tau": 0.0})):
        with pytest.raises(InputError):
            method(**options)
    with pytest.raises(InputError, match="no network"):
        MutualLearning("unet")  # type: ignore[arg-type]
