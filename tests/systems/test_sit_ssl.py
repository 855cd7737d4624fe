"""SiT: what corruption changes, the losses by hand, the weights' optimum, what each variant trains, and fine-tuning."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import tutelage
from tutelage.distillation.data import Batch, TensorData
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.masks import group_mask
from tutelage.distillation.trainer import Trainer, train
from tutelage.errors import InputError
from tutelage.networks.vit import VisionTransformer
from tutelage.systems.sit_ssl import (
    PatchPainter,
    SiT,
    SiTClassifier,
    SiTFineTuning,
    TaskWeights,
    block_masks,
    corrupt,
    mask_groups,
    masked_l1,
    momentum_contrast,
    nt_xent,
    replace_blocks,
    sit_vit,
    soften_rectangles,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_images(count: int = 6, channels: int = 3, side: int = 12) -> Tensor:
    return torch.rand(count, channels, side, side, generator=generator(9))


def some_vit(variant: str = "sit", **options: object) -> VisionTransformer:
    torch.manual_seed(0)
    tokens = {"sit": {"rotation": 1, "contrast": 1}, "gmml": {"class": 1}}[variant]
    return VisionTransformer(12, 4, 16, 2, 2, 3, tokens=tokens, pool=list(tokens)[-1], **options)  # type: ignore[arg-type]


def some_job(vit: nn.Module | None = None, batch_size: int = 4, **options: object) -> TrainingJob:
    variant = str(options.get("variant", "sit"))
    method = SiT(embedding=8, **({"hidden": 8} if variant == "gmml" else {}), **options)
    return TrainingJob(vit or some_vit(variant), None, method, some_images(), TrainingSettings(steps=4, batch_size=batch_size))


# -- corruption ------------------------------------------------------------------------------------------------------


@given(st.integers(0, 10_000), st.integers(8, 40))
@settings(max_examples=30, deadline=None)
def test_blocks_reach_their_share_and_not_much_more(seed: int, side: int) -> None:
    shares = 0.3 * torch.rand(5, generator=generator(seed))
    shares[0] = 0
    masks = block_masks(5, (side, side), shares, generator(seed))
    assert not masks[0].any(), "nothing is wanted, nothing is drawn"
    longest = max(1, round(0.25 * side)) ** 2
    assert (masks.sum((1, 2)) < shares * side * side + longest).all()  # overlaps count twice: fewer pixels, never a block more
    assert (masks[1:].flatten(1).any(1) == (shares[1:] > 0)).all()


def test_a_replaced_pixel_is_noise_or_the_donors_and_all_others_are_clean() -> None:
    images = torch.arange(5.0).view(5, 1, 1, 1).expand(5, 3, 16, 16) + 100  # an image is one number: noise is far from all
    changed, mask = replace_blocks(images, generator(3))
    spread = mask[:, None].expand_as(images)
    assert torch.equal(changed[~spread], images[~spread])
    found = changed[spread]
    donated = found > 50
    assert donated.any() and (~donated).any()
    assert torch.equal(found[donated], found[donated].round()), "blocks equal the donor exactly"
    assert (changed.round() != images)[spread & (changed > 50)].all(), "the donor is another image"


@pytest.mark.parametrize("change", [soften_rectangles, replace_blocks, corrupt, mask_groups])
def test_outside_the_mask_nothing_changes_and_the_generator_alone_decides(change: object) -> None:
    images = some_images()
    changed, mask = change(images, generator(1))  # type: ignore[operator]
    spread = mask[:, None].expand_as(images)
    assert torch.equal(changed[~spread], images[~spread]) and not torch.equal(changed, images)
    torch.manual_seed(5)
    again = change(images, generator(1))  # type: ignore[operator]
    assert torch.equal(changed, again[0]) and torch.equal(mask, again[1])


def test_groups_are_unions_of_patches_that_cover_their_share() -> None:
    images = some_images(40, side=32)
    changed, mask = mask_groups(images, generator(2), align=4)
    whole = mask.unflatten(2, (8, 4)).unflatten(1, (8, 4)).transpose(2, 3).flatten(3)
    assert (whole.all(-1) == whole.any(-1)).all()
    share = mask.flatten(1).double().mean(1)
    black = torch.stack([(one[:, where] == 0).all() for one, where in zip(changed, mask)])
    assert 8 <= black.sum() <= 32, "half of them are black, half show another image"
    block = (8 / 32) ** 2  # sides up to 0.3 x 32 = 9.6 pixels: two patches of 4
    assert (share[black] >= 0.5).all() and (share[black] < 0.5 + block).all()
    assert (share[~black] >= 0.3).all() and (share[~black] < 0.3 + block).all()


def test_the_last_row_is_masked_as_others_are_at_a_corner() -> None:
    often = group_mask(torch.arange(300), (8, 8), 0.5, 1).double().mean(0)
    assert often[-1, -1] > 0.25  # 0.11 where corners never start in the last row


def test_one_image_has_no_donor() -> None:
    with pytest.raises(InputError, match="at least 2"):
        replace_blocks(some_images(1), generator())


# -- losses ----------------------------------------------------------------------------------------------------------


def test_masked_pixels_alone_count() -> None:
    clean, mask = some_images(), torch.zeros(6, 12, 12, dtype=torch.bool)
    mask[:, :3, :4] = True
    painted = clean + 0.5
    assert masked_l1(painted, clean, mask).item() == pytest.approx(0.5)
    painted[:, :, 5:] = 77
    assert masked_l1(painted, clean, mask).item() == pytest.approx(0.5)
    assert masked_l1(painted, clean).item() > 1
    assert masked_l1(painted, clean, torch.zeros_like(mask)).item() == 0


def test_nt_xent_is_the_double_loop() -> None:
    z = torch.randn(8, 5, generator=generator(1), dtype=torch.float64)
    unit = z / z.norm(dim=1, keepdim=True)
    total = 0.0
    for i in range(8):
        others = [math.exp(float(unit[i] @ unit[j]) / 0.5) for j in range(8) if j != i]
        total -= math.log(math.exp(float(unit[i] @ unit[(i + 4) % 8]) / 0.5) / sum(others))
    assert nt_xent(z).item() == pytest.approx(total / 8)
    assert nt_xent(torch.cat([z[4:], z[:4]])).item() == pytest.approx(total / 8), "views may change places"
    assert nt_xent(torch.eye(4).repeat(2, 1)) < nt_xent(torch.randn(8, 4, generator=generator(2)))


def test_the_later_contrast_by_hand() -> None:
    student, teacher = torch.eye(2).repeat(2, 1), torch.eye(2).repeat(2, 1).requires_grad_()
    loss = momentum_contrast(student, teacher, 0.2)
    assert loss.item() == pytest.approx(2 * 0.2 * 2 * math.log(1 + math.exp(-5)), rel=1e-4)
    swapped = torch.cat([torch.eye(2), torch.eye(2).flip(0)])  # views 2 are of the other image
    assert momentum_contrast(student, swapped, 0.2) > loss
    assert not loss.requires_grad


@pytest.mark.parametrize("losses", [{"reconstruction": 0.2, "rotation": 1.1, "contrast": 3.7}])
def test_weights_come_to_rest_at_their_optimum(losses: dict[str, float]) -> None:
    weights = TaskWeights({"reconstruction": 0.5, "rotation": 1.0, "contrast": 1.0})
    fixed = {name: torch.tensor(value) for name, value in losses.items()}
    assert weights(fixed).item() == pytest.approx(math.exp(-1) * (0.1 + 1.1 + 3.7) + 1.5, rel=1e-5)
    for _ in range(300):
        (slope,) = torch.autograd.grad(weights(fixed), [weights.s])
        with torch.no_grad():
            weights.s -= slope
    assert weights.s.tolist() == pytest.approx([math.log(0.2), math.log(2.2), math.log(7.4)], abs=1e-3)
    assert list(weights.optimum(losses).values()) == pytest.approx(weights.s.tolist(), abs=1e-3)


def test_the_middle_revisions_weights() -> None:
    weights = TaskWeights({"a": 1.0}, "squared")
    assert weights({"a": torch.tensor(4.0)}).item() == pytest.approx(2 + math.log(2))


# -- the method ------------------------------------------------------------------------------------------------------


def test_a_token_paints_its_own_patch() -> None:
    painter, states = PatchPainter(16, 3, (4, 4)), torch.randn(1, 9, 16, generator=generator())
    before = painter(states, (3, 3))
    states[0, 5] += 1  # row 1, column 2
    changed = (painter(states, (3, 3)) - before).abs().sum((0, 1)) > 0
    assert changed[4:8, 8:12].any() and not changed[:4].any() and not changed[8:].any() and not changed[:, :8].any()


def test_views_are_turned_by_their_labels() -> None:
    images = some_images(16)
    clean, corrupted, mask, turns = SiT().two_views(images, generator(4))
    unturned = SiT(rotation=False).two_views(images, generator(4))[0]
    assert clean.shape == corrupted.shape == (32, 3, 12, 12) and mask.shape == (32, 12, 12)
    assert set(turns.tolist()) == {0, 1, 2, 3} and not torch.equal(turns[:16], turns[16:])
    for view, turn, before in zip(clean, turns.tolist(), unturned, strict=True):
        assert torch.equal(torch.rot90(view, -turn, (1, 2)), before)


def test_one_pass_and_the_weights_rate() -> None:
    trainer = Trainer(some_job(weights_lr=20.0))
    method = trainer.method
    trainer.advance()
    moved = (method.task_weights.s.detach() - 1).abs()
    assert moved.tolist() == pytest.approx([0.02] * 3, abs=1e-4), "Adam's first step is its rate"
    student, target = method(trainer.batch(0), trainer.student, None)
    assert student["rotation"].shape == (8, 4) and student["contrast"].shape == (8, 8)
    terms = method.loss_terms(trainer.batch(0), student, target)
    assert terms["total"].item() == pytest.approx(method.task_weights(terms).item())


def test_reconstruction_alone_has_no_other_head() -> None:
    trainer = Trainer(some_job(rotation=False, contrast=False))
    student, target = trainer.method(trainer.batch(0), trainer.student, None)
    assert set(student) == {"reconstruction"} and not target["turns"].any()
    assert set(trainer.method.loss_terms(trainer.batch(0), student, target)) == {"reconstruction", "total"}


def test_the_later_teacher_follows_by_its_momentum() -> None:
    trainer = Trainer(some_job(variant="gmml", momentum=0.9))
    method, name = trainer.method, "blocks.0.mlp.0.weight"
    if name not in dict(trainer.student.named_parameters()):
        name = next(n for n, p in trainer.student.named_parameters() if p.ndim == 2)
    first = dict(trainer.student.named_parameters())[name].detach().clone()
    trainer.advance()
    now = dict(trainer.student.named_parameters())[name].detach()
    teacher = dict(method.momentum_network["vit"].named_parameters())[name]
    assert torch.allclose(teacher, 0.9 * first + 0.1 * now, atol=1e-7) and not torch.equal(first, now)
    assert not any(p.requires_grad for p in method.momentum_network.parameters())
    head, own = method.momentum_network["head"][1], method.projection[1]
    assert not torch.equal(head.running_mean, own.running_mean), "batch norm keeps statistics of its own"
    trainer.run()


def test_what_a_user_types(tmp_path: object) -> None:
    images, labels = some_images(12), torch.arange(12) % 3
    vit = tutelage.distill(some_vit(), None, images, method="sit-ssl", steps=2, batch_size=4).student
    assert isinstance(vit, VisionTransformer) and vit.forward_features(images)["patches"].shape == (12, 9, 16)
    assert vit(torch.rand(2, 3, 16, 16)).shape == (2, 16), "another size"
    network = tutelage.distill(
        SiTClassifier(vit, 3), None, TensorData(images, labels), method=SiTFineTuning(), steps=2, batch_size=4
    ).student
    out = network(images)
    assert torch.allclose(out["logits"], (out["rotation"] + out["contrast"]) / 2)


def test_fine_tuning_adds_the_heads() -> None:
    network = SiTClassifier(some_vit(), 3)
    out, labels = network(some_images()), torch.tensor([0, 1, 2, 0, 1, 2])
    terms = SiTFineTuning().loss_terms(Batch(None, labels), out, {})
    for name in ("rotation", "contrast"):
        assert terms[name].item() == pytest.approx(nn.functional.cross_entropy(out[name], labels).item())
    later = SiTClassifier(some_vit("gmml"), 3)(some_images())
    assert set(later) == {"logits"}
    assert set(SiTFineTuning().loss_terms(Batch(None, labels), later, {})) == {"logits"}


def test_positions_at_their_own_size_are_the_table() -> None:
    vit = some_vit()
    images = some_images()
    assert torch.equal(vit.embed(images), vit.patch_embed(images) + vit.positions)


def test_published_sizes() -> None:
    vit = sit_vit("tiny", 32, in_chans=1)
    assert vit.patch_embed.patch_size == (4, 4) and list(vit.tokens) == ["rotation", "contrast"] and len(vit.blocks) == 12
    assert list(sit_vit("tiny", 224, variant="gmml").tokens) == ["class"]
    with pytest.raises(InputError, match="small"):
        sit_vit("smal")


@pytest.mark.parametrize(
    ("job", "message"),
    [
        (lambda: some_job(nn.Linear(2, 2)), "rotation, contrast"),
        (lambda: some_job(some_vit("gmml")), "rotation, contrast"),
        (lambda: some_job(batch_size=1), "at least 2"),
        (lambda: TrainingJob(some_vit(), None, SiT(), torch.rand(4, 3, 8, 12), TrainingSettings(steps=1, batch_size=2)), "square"),
        (lambda: TrainingJob(some_vit(), None, SiT(), torch.rand(4, 3, 6, 6), TrainingSettings(steps=1, batch_size=2)), "patch"),
        (lambda: TrainingJob(some_vit(), None, SiT(), torch.rand(4, 9), TrainingSettings(steps=1, batch_size=2)), "images"),
    ],
)
def test_bad_jobs_are_refused(job: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        train(job())  # type: ignore[operator]


@pytest.mark.parametrize(
    "options", [{"variant": "SiT"}, {"weighting": "none"}, {"mask": 1.0}, {"temperature": 0.0}, {"crop": (0.9, 0.1)}, {"flip": 2}]
)
def test_bad_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(InputError):
        SiT(**options)


def test_a_classifier_needs_tokens_to_read() -> None:
    with pytest.raises(InputError, match="sit_vit"):
        SiTClassifier(VisionTransformer(12, 4, 16, 1, 2, tokens={"register": 1}), 3)
    with pytest.raises(InputError, match="2 or more"):
        SiTClassifier(some_vit(), 1)


def test_without_softening_blocks_alone_change_a_view() -> None:
    clean, corrupted, mask, _ = SiT(soften=False).two_views(some_images(), generator(6))
    changed = (clean != corrupted).any(1)
    assert torch.equal(changed, mask), "noise and other images change every pixel that they replace"
    assert SiT().two_views(some_images(), generator(6))[2].sum() > mask.sum()
