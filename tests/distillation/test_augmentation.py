"""Views: replayable bit for bit, one row's view independent of the others, and each operation what it says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.distillation.augmentation import (
    OPERATIONS,
    Augmentation,
    draw_mixup,
    equalize,
    erase,
    random_draws,
    resized_part,
    shift,
)
from tutelage.distillation.data import Batch, TensorData
from tutelage.errors import InputError

EVERYTHING = Augmentation(2, (0.3, 1.0), 0.5, (2, 9.0), 0.4, 0.5)


def images(rows: int = 8, size: int = 10, channels: int = 3) -> torch.Tensor:
    return torch.rand(rows, channels, size, size, generator=torch.Generator().manual_seed(0))


def view(views: Augmentation, rows: int = 8, first: int = 0) -> Batch:
    data = TensorData(images(), torch.arange(8) % 3, views=views)
    indices = torch.arange(first, first + rows)
    return data.batch(indices, 1000 + 7 * indices)


def test_draws_are_uniform_and_differ_by_row_stream_and_number() -> None:
    u = random_draws(torch.arange(2000), 1, 5)
    assert u.min() >= 0 and u.max() < 1 and abs(u.mean() - 0.5) < 0.01 and abs(u.var() - 1 / 12) < 0.005
    assert len(u.flatten().unique()) > 9_900
    assert not torch.equal(u, random_draws(torch.arange(2000), 2, 5))
    assert abs(np.corrcoef(u.T.numpy()) - np.eye(5)).max() < 0.08


@pytest.mark.parametrize(
    "views",
    [Augmentation(crop=2), Augmentation(resize=(0.2, 1)), Augmentation(flip=0.5), Augmentation(randaugment=(2, 9)),
     Augmentation(colour=0.4),
              Augmentation(erase=1.0), EVERYTHING],
)  # fmt: skip
def test_a_view_is_replayed_bit_for_bit_whatever_rows_are_beside_it(views: Augmentation) -> None:
    whole, again, part = view(views), view(views), view(views, 3, 2)
    assert torch.equal(whole.inputs, again.inputs)
    assert torch.equal(whole.inputs[2:5], part.inputs)
    other = views(Batch(images(), ids=torch.arange(8), seeds=torch.arange(8)))
    assert not torch.equal(whole.inputs, other.inputs)
    assert whole.inputs.shape == (8, 3, 10, 10) and whole.inputs.isfinite().all()


def test_without_seeds_the_sample_itself() -> None:
    data = TensorData(images(), views=EVERYTHING)
    assert torch.equal(data.batch(torch.arange(8), None).inputs, images())


@settings(max_examples=30)
@given(st.integers(0, 2**31 - 1))
def test_mixing_parameters_are_in_range_and_replayable(seed: int) -> None:
    plan = draw_mixup(seed, 8, 12, 0.8, 1.0, 0.9, 0.5)
    assert plan == draw_mixup(seed, 8, 12, 0.8, 1.0, 0.9, 0.5) and 0 <= plan.lam <= 1
    if plan.box is not None:
        top, bottom, left, right = plan.box
        assert 0 <= top <= bottom <= 8 and 0 <= left <= right <= 12
        assert plan.lam == pytest.approx(1 - (bottom - top) * (right - left) / 96)


def test_mixup_blends_pairs_and_labels_alike() -> None:
    batch = view(Augmentation(mixup=1.0, classes=3))
    kept = draw_mixup(1000 ^ 1007, 10, 10, 1.0, 0).lam
    assert torch.allclose(batch.inputs[0], kept * images()[0] + (1 - kept) * images()[1])
    assert torch.allclose(batch.inputs[1], kept * images()[1] + (1 - kept) * images()[0])
    assert batch.labels[0].tolist() == pytest.approx([kept, 1 - kept, 0])
    assert batch.partners.tolist() == [1, 0, 3, 2, 5, 4, 7, 6]


def test_the_other_share_of_mixup_is_taken_in_float64() -> None:
    batch = view(Augmentation(mixup=1.0, classes=3))
    kept = draw_mixup(1000 ^ 1007, 10, 10, 1.0, 0).lam
    own, other = (torch.tensor(share, dtype=torch.float64).float() for share in (kept, 1 - kept))
    assert torch.equal(batch.inputs[0], images()[0] * own + images()[1] * other)
    assert torch.equal(batch.labels[0], torch.stack([own, other, torch.tensor(0.0)]))


def test_cutmix_swaps_one_box_and_weighs_labels_by_area() -> None:
    batch = view(Augmentation(cutmix=1.0, classes=3))
    own = (batch.inputs == images()).all(1)
    assert 0 < own.float().mean() < 1
    for row in range(8):
        assert torch.equal(torch.where(own[row], images()[row], images()[row ^ 1]), batch.inputs[row])
        assert batch.labels[row, row % 3] == pytest.approx(float(own[row].float().mean()), abs=1e-6)


def test_wrong_use_is_a_typed_error() -> None:
    with pytest.raises(InputError, match="pairs"):
        view(Augmentation(mixup=1.0, classes=3), 3)
    with pytest.raises(InputError, match="number of classes"):
        view(Augmentation(mixup=1.0))
    with pytest.raises(InputError, match="needs images"):
        Augmentation(flip=1.0)(Batch(torch.zeros(2, 3), seeds=torch.zeros(2)))
    with pytest.raises(InputError, match="no view seeds"):
        Augmentation(flip=1.0)(Batch(images()))


def test_flip_and_shift_by_hand() -> None:
    flipped = view(Augmentation(flip=1.0)).inputs
    assert torch.equal(flipped, images().flip(-1))
    ramp = torch.arange(9.0).reshape(1, 1, 3, 3) / 9
    moved = shift(ramp, torch.tensor([[0.0, 0.999]]), 1)
    assert (moved[0, 0] * 9).tolist() == [[4, 5, 4], [1, 2, 1], [4, 5, 4]]


def test_a_resized_part_of_everything_is_the_image() -> None:
    whole = resized_part(images(), torch.tensor([[1.0, 0.5, 0.5, 0.5]]).repeat(8, 1), (1.0, 1.0))
    assert torch.allclose(whole, images(), atol=1e-5)


def test_erasing_leaves_the_rest_alone() -> None:
    u = random_draws(torch.arange(400), 5, 5)
    many = images().repeat(50, 1, 1, 1)
    hit = (erase(many, u, 0.5) != many).any(1).float().mean((1, 2))
    assert 0.4 < (hit > 0).float().mean() < 0.6 and hit.max() <= 0.5


@pytest.mark.parametrize("index", range(len(OPERATIONS)))
def test_randaugment_operations_keep_range_and_shape(index: int) -> None:
    amount = torch.linspace(-1, 1, 8)
    out = OPERATIONS[index](images(), amount)
    assert out.shape == (8, 3, 10, 10) and out.min() >= 0 and out.max() <= 1


def test_no_amount_changes_next_to_nothing() -> None:
    for index in (3, 6, 7, 8, 9, 10, 11, 12, 13):
        assert torch.allclose(OPERATIONS[index](images(), torch.zeros(8)), images(), atol=1e-5)


def test_equalize_makes_a_histogram_flat_and_keeps_constants() -> None:
    dark = images(2, 32).pow(2) * 0.5
    flat = equalize(dark, torch.zeros(2))
    assert abs(flat.mean() - 0.5) < 0.05 and flat.std() > 0.25
    constant = torch.full((1, 1, 4, 4), 0.6)
    assert torch.allclose(equalize(constant, torch.zeros(1)), constant, atol=1 / 255)


def test_images_may_be_one_field_of_many() -> None:
    batch = Batch({"pixels": images(), "words": torch.arange(8)}, ids=torch.arange(8), seeds=torch.arange(8))
    out = Augmentation(flip=1.0, field="pixels")(batch)
    assert torch.equal(out.inputs["pixels"], images().flip(-1)) and torch.equal(out.inputs["words"], torch.arange(8))
    assert Augmentation(flip=1.0).fingerprint != Augmentation(flip=0.5).fingerprint
