"""HPM: masks, the relative loss against a double loop, what gets gradients, and the teacher's two views."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.distillation.data import Batch
from tutelage.distillation.masks import hard_mask
from tutelage.distillation.method import TrainingProgress
from tutelage.distillation.teacher import EMATeacher, NetworkTeacher
from tutelage.distillation.trainer import train
from tutelage.errors import InputError
from tutelage.networks.mae import patchify, unpatchify
from tutelage.networks.vit import VisionTransformer
from tutelage.systems import hpm
from tutelage.systems._toy import toy_images
from tutelage.systems.hpm import HPM, HPMNetwork, complementary_masks, pair_agreement, published_decay, relative_loss


def network(image_size: object = 8, patch_size: object = 2, chans: int = 1) -> HPMNetwork:
    torch.manual_seed(0)
    encoder = VisionTransformer(image_size, patch_size, dim=16, depth=1, num_heads=2, in_chans=chans, positions="sincos")  # type: ignore[arg-type]
    return HPMNetwork(encoder, chans, dim=16, num_heads=2)


def batch(count: int = 4) -> Batch:
    return Batch(toy_images(0, count).inputs, ids=torch.arange(count), seeds=torch.zeros(count, dtype=torch.int64))


# -- the relative loss -------------------------------------------------------------------------------------------------


def test_the_loss_is_that_of_a_double_loop() -> None:
    torch.manual_seed(1)
    predicted, losses = torch.randn(3, 6), torch.randint(0, 4, (3, 6)).float()
    costs = []
    for row in range(3):
        for i in range(6):
            for j in range(6):
                sigma = 1 / (1 + math.exp(-float(predicted[row, i] - predicted[row, j])))
                if losses[row, i] > losses[row, j]:
                    costs.append(-math.log(sigma + 1e-6))
                elif losses[row, i] < losses[row, j]:
                    costs.append(-math.log(1 - sigma + 1e-6))
    assert relative_loss(predicted, losses).item() == pytest.approx(sum(costs) / len(costs), rel=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.floats(-3, 3))
def test_the_loss_depends_on_orders_and_differences_alone(seed: int, shift: float) -> None:
    rng = torch.Generator().manual_seed(seed)
    predicted, losses = torch.randn(2, 5, generator=rng), torch.rand(2, 5, generator=rng)
    loss = relative_loss(predicted, losses)
    assert relative_loss(predicted, losses.exp() * 3).item() == pytest.approx(loss.item())
    assert relative_loss(predicted + shift, losses).item() == pytest.approx(loss.item(), rel=1e-4, abs=1e-5)


def test_values_of_the_loss_by_hand() -> None:
    losses = torch.tensor([[1.0, 2.0, 3.0]])
    assert relative_loss(100 * losses, losses).item() == pytest.approx(0, abs=2e-6)
    assert relative_loss(torch.zeros(1, 3), losses).item() == pytest.approx(0.693145, abs=1e-6)
    assert relative_loss(-100 * losses, losses).item() == pytest.approx(-math.log(1e-6), rel=1e-5)
    assert relative_loss(losses, torch.ones(1, 3)).item() == 0
    assert (
        pair_agreement(losses, losses) == 1 and pair_agreement(-losses, losses) == 0 and pair_agreement(losses * 0, losses) == 0.5
    )


# -- gradients -----------------------------------------------------------------------------------------------------------


def test_the_difficulty_loss_reaches_the_encoder_and_not_the_reconstruction() -> None:
    student, method = network(), HPM(hard_end=0.0)
    output, _ = method(batch(), student, None)
    method.loss_terms(batch(), output, {})["difficulty"].backward()
    graded = {name for name, value in student.named_parameters() if value.grad is not None and value.grad.abs().sum() > 0}
    assert any(name.startswith("encoder.blocks") for name in graded) and any(
        name.startswith("difficulty.blocks") for name in graded
    )
    assert not any(name.startswith(("reconstruction.blocks", "reconstruction.head", "reconstruction.norm")) for name in graded)


def test_absolute_targets_are_standardised_losses() -> None:
    method, mask = HPM(prediction="absolute"), torch.ones(1, 3, dtype=torch.bool)
    pixels, target = torch.tensor([[[1.0], [2.0], [3.0]]]).sqrt(), torch.zeros(1, 3, 1)  # errors 1, 2, 3: standardised -1, 0, 1
    output = {"pixels": pixels, "target": target, "mask": mask, "difficulty": torch.tensor([[-1.0, 0.0, 1.0]])}
    terms = method.loss_terms(batch(1), output, {})
    assert terms["difficulty"].item() == pytest.approx(0, abs=1e-6) and terms["reconstruction"].item() == pytest.approx(2)


# -- masks ---------------------------------------------------------------------------------------------------------------


def test_masks_hold_the_hardest_and_draw_the_others_evenly() -> None:
    scores = torch.arange(12.0).repeat(4000, 1)
    mask = hard_mask(scores, torch.arange(4000), 12, 0.75, 0.5)
    assert (mask.sum(1) == 9).all() and mask[:, 8:].all()  # M = 9, floor(4.5) = 4 hardest
    shares = mask[:, :8].float().mean(0)
    assert (shares - 5 / 8).abs().max() < 0.04
    top = hard_mask(scores, torch.arange(4000), 12, 0.75, 1.0)
    assert top[:, 3:].all() and not top[:, :3].any()


@settings(max_examples=20, deadline=None)
@given(st.integers(4, 60), st.floats(0.5, 0.95), st.integers(0, 1000))
def test_two_masks_hide_every_patch(patches: int, ratio: float, seed: int) -> None:
    first, second = complementary_masks(torch.tensor([seed, seed + 1]), patches, ratio)
    assert (first | second).all() and (first.sum(1) == second.sum(1)).all()


def test_alpha_rises_and_masks_are_new_in_each_step() -> None:
    student = network()
    teacher, method = EMATeacher(student, 0.9), HPM()
    shares, masks = [], []
    for step in (0, 4, 9, 9):
        method.progress = TrainingProgress(step=step, steps=10)
        shares.append(method.hard_share)
        masks.append(method.draw_mask(batch(), student, teacher))
    assert shares == pytest.approx([0.05, 0.25, 0.5, 0.5])
    assert all((mask.sum(1) == 12).all() for mask in masks) and torch.equal(masks[2], masks[3])
    assert not torch.equal(masks[0], masks[1]) and not torch.equal(masks[0][0], masks[0][1])
    hardest = method.scores(batch(), torch.zeros(4), teacher).topk(6, 1).indices
    assert masks[2].gather(1, hardest).all()


def test_the_masked_view_averages_the_passes_that_hid_a_patch() -> None:
    student = network()
    teacher, seeds = EMATeacher(student, 0.9), torch.arange(4)
    found = HPM(teacher_view="masked").scores(batch(), seeds, teacher)
    first, second = complementary_masks(seeds, 16, 0.75)
    with torch.no_grad():
        passes = [teacher.network(batch().inputs, mask)["difficulty"] for mask in (first, second)]
    expected = torch.where(first & second, (passes[0] + passes[1]) / 2, torch.where(first, passes[0], passes[1]))
    torch.testing.assert_close(found, expected)


def test_tube_masks_are_the_same_at_all_times() -> None:
    student = network((4, 8, 8), (2, 4, 4))
    teacher, method = EMATeacher(student, 0.9), HPM(tube=True, mask_ratio=0.5)
    method.progress = TrainingProgress(step=9, steps=10)
    clips = replace(batch(3), inputs=torch.randn(3, 1, 4, 8, 8))
    mask = method.draw_mask(clips, student, teacher).view(3, 2, 4)
    assert torch.equal(mask[:, 0], mask[:, 1]) and (mask.sum(2) == 2).all()
    hardest = method.scores(clips, torch.zeros(3), teacher).view(3, 2, 4).mean(1).argmax(1)
    assert mask[:, 0].gather(1, hardest[:, None]).all()


# -- the network ---------------------------------------------------------------------------------------------------------


def test_predictions_come_in_raster_order() -> None:
    student = network()
    images = batch(2).inputs
    mask = hard_mask(None, torch.arange(2), 16, 0.75, 0.0)
    found = student(images, mask)
    assert found["pixels"].shape == (2, 16, 4) and found["difficulty"].shape == (2, 16)
    assert torch.equal(unpatchify(patchify(images, (2, 2)), (2, 2), (4, 4)), images)
    hidden = images.clone()
    pixel_mask = mask.view(2, 1, 4, 4).repeat_interleave(2, 2).repeat_interleave(2, 3)
    hidden[pixel_mask] = 9.0  # what is masked is never read
    again = student(hidden, mask)
    assert torch.equal(again["pixels"], found["pixels"]) and torch.equal(again["difficulty"], found["difficulty"])
    # a patch's own position decides on its prediction: marking one in the table moves that one most
    with torch.no_grad():
        place = int(mask[0].nonzero()[0])
        student.reconstruction.positions[place] += 5
    moved = (student(images, mask)["pixels"] - found["pixels"]).abs().sum(-1)[0]
    assert moved.argmax() == place
    assert student(images)["difficulty"].shape == (2, 16)


def test_the_decay_is_as_published() -> None:
    decay = published_decay(10)
    assert [decay(0), decay(500), decay(1000), decay(10**6)] == pytest.approx([0.999, 0.99945, 0.9999, 0.9999])


def test_bad_input_is_refused() -> None:
    def run(method: HPM, student: torch.nn.Module, teacher: object) -> None:
        job = HPM.tiny_job(0)
        job.method, job.student, job.teacher = method, student, teacher  # type: ignore[assignment]
        train(job)

    student = network()
    with pytest.raises(InputError, match=r"HPMNetwork\(encoder\)|second decoder|no head"):
        run(HPM(), student.encoder, EMATeacher(student.encoder, 0.9))
    with pytest.raises(InputError, match="EMATeacher"):
        run(HPM(), student, NetworkTeacher(network()))
    with pytest.raises(InputError, match="16 of 16 patches"):
        run(HPM(mask_ratio=1.0), student, EMATeacher(student, 0.9))
    with pytest.raises(InputError, match=r"0\.5 or more"):
        run(HPM(mask_ratio=0.3, teacher_view="masked"), student, EMATeacher(student, 0.9))
    with pytest.raises(InputError, match="no time"):
        run(HPM(tube=True), student, EMATeacher(student, 0.9))
    with pytest.raises(InputError, match="full or masked"):
        HPM(teacher_view="half")
    with pytest.raises(InputError, match="mask"):
        student(batch().inputs, torch.zeros(4, 9, dtype=torch.bool))
    with pytest.raises(InputError, match="not covered|do not divide"):
        student(torch.zeros(1, 1, 1, 1))


def test_the_first_lines_of_the_page_run() -> None:
    block = (hpm.__doc__ or "").split("::\n\n", 1)[1].split("\n\nIt exports", 1)[0]
    code = "\n".join(line.removeprefix("    ") for line in block.splitlines()).replace("epochs=200", "steps=2")
    names: dict[str, object] = {"images": torch.rand(8, 1, 28, 28)}
    exec(compile(code, "page", "exec"), names)
    encoder = names["encoder"]
    assert isinstance(encoder, VisionTransformer) and encoder(torch.rand(2, 1, 28, 28)).shape == (2, 64)
