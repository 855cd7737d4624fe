"""One geometry for images, maps, boxes and points: involutions, and labels that stay with their pixels."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tutelage.distillation.augmentation import Augmentation
from tutelage.distillation.data import TensorData
from tutelage.distillation.geometry import Geometry, random_parts, random_windows
from tutelage.errors import InputError

SIDE = 24


def pictures(count: int, seed: int, size: tuple[int, int] = (SIDE, SIDE)) -> tuple[Tensor, Tensor]:
    """Black images [B, 1, H, W], each with one white rectangle on whole pixels, and its box [B, 1, 4]."""
    generator = torch.Generator().manual_seed(seed)
    images, boxes = torch.zeros(count, 1, *size), torch.zeros(count, 1, 4)
    for row in range(count):
        h, w = (int(torch.randint(3, 9, (), generator=generator)) for _ in range(2))
        y = int(torch.randint(0, size[0] - h + 1, (), generator=generator))
        x = int(torch.randint(0, size[1] - w + 1, (), generator=generator))
        images[row, 0, y : y + h, x : x + w] = 1
        boxes[row, 0] = torch.tensor([(x + w / 2) / size[1], (y + h / 2) / size[0], w / size[1], h / size[0]])
    return images, boxes


def seen(image: Tensor) -> Tensor | None:
    """The box [4] (left, top, right, bottom, in shares) around the bright pixels of [1, H, W]."""
    rows, columns = (image[0] > 0.5).any(1).nonzero()[:, 0], (image[0] > 0.5).any(0).nonzero()[:, 0]
    if not len(rows):
        return None
    return torch.tensor([columns[0] / image.shape[2], rows[0] / image.shape[1],
                         (columns[-1] + 1) / image.shape[2], (rows[-1] + 1) / image.shape[1]])  # fmt: skip


def geometry(count: int, flip: bool = False, turns: int = 0) -> Geometry:
    whole = Geometry.whole(count)
    return Geometry(whole.box, torch.full((count,), flip), torch.full((count,), turns))


def test_a_flip_twice_and_four_turns_are_the_image_itself() -> None:
    images = torch.rand(3, 2, 7, 7)
    flip, turn = geometry(3, flip=True), geometry(3, turns=1)
    assert torch.equal(flip.image(images, (7, 7)), images.flip(-1))
    assert torch.equal(flip.image(flip.image(images, (7, 7)), (7, 7)), images)
    once = turn.image(images, (7, 7))
    assert torch.equal(once, torch.rot90(images, 1, (-2, -1)))
    assert torch.equal(turn.image(turn.image(turn.image(once, (7, 7)), (7, 7)), (7, 7)), images)
    assert torch.equal(geometry(3, turns=3).image(once, (7, 7)), images)


@given(st.integers(0, 10**6), st.booleans(), st.integers(0, 3), st.sampled_from(["crop", "cut", "whole"]))
@settings(max_examples=60, deadline=None)
def test_boxes_and_points_stay_with_their_pixels(seed: int, flip: bool, turns: int, how: str) -> None:
    images, boxes = pictures(4, seed)
    u = torch.rand(4, 2, generator=torch.Generator().manual_seed(seed))
    window = (16, 16) if how == "cut" else (SIDE, SIDE)
    box = random_windows(u, (SIDE, SIDE), window, 0)
    placed = Geometry(box, torch.full((4,), flip), torch.tensor([turns, 0, turns, 1]))
    moved = placed.image(images, window)
    found, labels = placed.boxes(boxes, torch.ones(4, 1, dtype=torch.int64), least=0.0)
    corners = torch.cat([found[..., :2] - found[..., 2:] / 2, found[..., :2] + found[..., 2:] / 2], -1)
    centres = placed.points(torch.cat([boxes[..., :2], torch.ones(4, 1, 1)], -1))
    for row in range(4):
        bright = seen(moved[row])
        assert (bright is None) == (int(labels[row, 0]) == -100)
        if bright is not None:
            assert torch.allclose(corners[row, 0], bright, atol=1e-5)
        x, y, visible = centres[row, 0].tolist()
        if visible:
            assert moved[row, 0, min(window[0] - 1, int(y * window[0])), min(window[1] - 1, int(x * window[1]))] == 1
    back = placed.undo_points(centres[..., :2])
    assert torch.allclose(back, boxes[..., :2], atol=1e-5)


@given(st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_a_scaled_part_moves_map_and_boxes_as_far_as_the_image(seed: int) -> None:
    images, boxes = pictures(4, seed)
    placed = Geometry(random_parts(torch.rand(4, 4, generator=torch.Generator().manual_seed(seed)), (0.3, 0.9)),
                      torch.tensor([True, False, True, False]), torch.tensor([0, 1, 2, 3]))  # fmt: skip
    big = (8 * SIDE, 8 * SIDE)
    map_ = placed.image(images[:, 0].long(), big)
    assert map_.dtype == torch.int64 and set(map_.unique().tolist()) <= {0, 1}
    found, labels = placed.boxes(boxes, torch.zeros(4, 1, dtype=torch.int64), least=0.0)
    for row in range(4):
        bright = seen(map_[row][None].float())
        if bright is None:
            continue
        corners = torch.cat([found[row, 0, :2] - found[row, 0, 2:] / 2, found[row, 0, :2] + found[row, 0, 2:] / 2])
        assert torch.allclose(corners, bright, atol=1.5 / big[0])
        assert ((placed.image(images, big)[row, 0] > 0.5).float() - map_[row].float()).abs().mean() < 0.01


def test_a_box_of_which_little_is_seen_is_dropped() -> None:
    placed = Geometry(torch.tensor([[0.5, 0.0, 1.0, 1.0]]), torch.tensor([False]), torch.tensor([0]))
    boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.2], [0.42, 0.5, 0.2, 0.2], [0.2, 0.5, 0.2, 0.2], [0.8, 0.5, 0.1, 0.1]]])
    found, labels = placed.boxes(boxes, torch.tensor([[1, 2, 3, -100]]))
    assert labels.tolist() == [[1, -100, -100, -100]] and found[0, 0].tolist() == pytest.approx([0.1, 0.5, 0.2, 0.2])
    assert not found[0, 1:].any()


def test_parts_of_parts() -> None:
    images = torch.rand(1, 1, 16, 16)
    outer = Geometry.whole(1).part(torch.tensor([[0.25, 0.5, 0.75, 1.0]]))
    inner = outer.part(torch.tensor([[0.5, 0.0, 1.0, 0.5]]))
    assert torch.equal(inner.image(images, (4, 4)), outer.image(images, (8, 8))[:, :, :4, 4:])
    assert torch.equal(inner.image(images, (4, 4)), images[:, :, 8:12, 8:12])


@pytest.mark.parametrize(
    "augmentation", [{"crop": 2}, {"flip": 0.5}, {"cut": 8}, {"turn": True}, {"crop": 1, "cut": 8, "flip": 0.5}]
)
def test_two_sizes_of_one_picture_are_cut_in_one_place(augmentation: dict) -> None:
    small = torch.rand(6, 3, 12, 12)
    large = small.repeat_interleave(2, -1).repeat_interleave(2, -2)
    data = TensorData(small, large, views=Augmentation(labels="image", **augmentation))
    batch = data.batch(torch.arange(6), torch.arange(6) * 7)
    assert torch.equal(batch.labels[:, :, ::2, ::2][:, :, 2:-2, 2:-2], batch.inputs[:, :, 2:-2, 2:-2])  # but for the border
    assert not torch.equal(batch.inputs, small)


def test_augmentation_with_labels_moves_images_as_it_does_without() -> None:
    images = torch.rand(8, 3, 12, 12)
    ids, seeds = torch.arange(8), torch.arange(8) * 3
    maps = (images[:, 0] * 4).long()
    for settings_ in ({"crop": 2}, {"flip": 0.5}, {"crop": 3, "flip": 0.5, "colour": 0.3, "erase": 0.5}):
        plain = TensorData(images, views=Augmentation(**settings_)).batch(ids, seeds)
        moved = TensorData(images, maps, views=Augmentation(labels="map", **settings_)).batch(ids, seeds)
        assert torch.equal(plain.inputs, moved.inputs)
        if "colour" not in settings_:
            assert torch.equal(moved.labels, (moved.inputs[:, 0] * 4).long())


def test_detection_labels_move_in_a_batch() -> None:
    images, boxes = pictures(8, 1)
    labels = {"labels": torch.ones(8, 1, dtype=torch.int64), "boxes": boxes}
    data = TensorData(images, labels, views=Augmentation(cut=16, flip=0.5, turn=True, labels="boxes"))
    batch = data.batch(torch.arange(8), torch.arange(8))
    assert batch.inputs.shape == (8, 1, 16, 16)
    kept = batch.labels["labels"][:, 0] == 1
    assert 0 < int(kept.sum()) < 8
    for row in kept.nonzero()[:, 0].tolist():
        centre = batch.labels["boxes"][row, 0]
        corners = torch.cat([centre[:2] - centre[2:] / 2, centre[:2] + centre[2:] / 2])
        assert torch.allclose(corners, seen(batch.inputs[row]), atol=1e-5)
    again = data.batch(torch.tensor([3]), torch.tensor([3]))
    assert torch.equal(again.inputs[0], batch.inputs[3]) and torch.equal(again.labels["boxes"][0], batch.labels["boxes"][3])


def view(images: Tensor, targets: object = None, **settings_: object) -> None:
    TensorData(images, targets, views=Augmentation(**settings_)).batch(torch.arange(2), torch.arange(2))


SQUARE, WIDE = torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 8, 12)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Augmentation(crop=-2), "views.crop"),
        (lambda: Augmentation(flip=1.5), "views.flip"),
        (lambda: Augmentation(flip=True), "views.flip"),
        (lambda: Augmentation(flip=float("nan")), "views.flip"),
        (lambda: Augmentation(resize=(0.0, 1.0)), "views.resize"),
        (lambda: Augmentation(classes=0), "views.classes"),
        (lambda: Augmentation(randaugment=(-1, 5)), "views.randaugment"),
        (lambda: Augmentation(labels="boxs"), "views.labels"),
        (lambda: Augmentation(labels="map", mixup=0.2), "leave the map"),
        (lambda: view(SQUARE, cut=9), "smaller than a crop of 9 x 9"),
        (lambda: view(WIDE, turn=True), "square"),
        (lambda: view(SQUARE, torch.zeros(2, 3), labels="map", flip=0.5), "no map"),
        (lambda: view(SQUARE, torch.zeros(2, 3), labels="boxes", flip=0.5), "no boxes"),
        (lambda: view(SQUARE, torch.zeros(2, 3, 12, 12), labels="image", cut=5), "whole number of pixels"),
    ],
)
def test_refusals(make, words: str) -> None:
    with pytest.raises(InputError) as caught:
        make()
    assert words in str(caught.value)
