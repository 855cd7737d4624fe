from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tutelage.modules.image_batching import GREY, as_bytes, image_size_features, square_batch
from tutelage.programs.values import Image

from .networks import crops, picture, with_surroundings


def test_a_picture_of_the_networks_size_is_taken_as_it_is() -> None:
    images = [picture(seed, 16, 16) for seed in range(3)]
    assert torch.equal(square_batch(images, 16), torch.from_numpy(np.stack([image.pixels for image in images])))


@pytest.mark.parametrize(("width", "height"), [(8, 4), (4, 8), (48, 20), (7, 7), (40, 1)])
@pytest.mark.parametrize("size", [8, 16])
def test_a_region_is_letterboxed_with_grey(width: int, height: int, size: int) -> None:
    image = Image(np.full((3, 60, 60), 255, np.uint8)).crop(5, 5, 5 + width, 5 + height)
    (out,) = square_batch([image], size)
    side = max(width, height)
    expected = round(size * width / side) * round(size * height / side)
    white = int((out[0] > 0.99).sum())
    assert abs(white - expected) <= size  # a row or column of pixels may fall to either side
    assert torch.all((out > 0.99) | (out == GREY))


@pytest.mark.parametrize("size", [8, 16, 32])
def test_nothing_outside_a_region_is_ever_read(size: int) -> None:
    for image in crops(24):
        alone = square_batch([with_surroundings(image, 0), with_surroundings(image, 255)], size)
        assert torch.allclose(alone[0], alone[1], atol=1e-5), image  # up to the rounding of places to float32


def test_a_batch_gives_what_each_image_gives_alone() -> None:
    images = crops(20)
    alone = torch.cat([square_batch([image], 16) for image in images])
    assert torch.allclose(square_batch(images, 16), alone, atol=1e-6)


def test_large_pictures_are_averaged_and_pictures_of_several_sizes_go_together() -> None:
    checker = np.indices((200, 200)).sum(0) % 2 * 255
    large = Image(np.broadcast_to(checker, (3, 200, 200)).astype(np.uint8))
    out = square_batch([large, picture(0, 16, 16)], 16)
    assert out.shape == (2, 3, 16, 16) and torch.all((out[0] - 0.5).abs() < 0.05)
    assert torch.equal(out[1], torch.from_numpy(picture(0, 16, 16).pixels))


def test_an_image_is_the_same_whatever_its_neighbours() -> None:
    whole = picture(0, 40, 30)
    images = [whole.crop(0, 0, 20, 20), whole, picture(1, 200, 90), picture(2, 16, 16), picture(3, 40, 30).crop(3, 3, 9, 30)]
    together = square_batch(images, 16)
    for image, row in zip(images, together):
        assert torch.allclose(square_batch([image], 16)[0], row, atol=1e-6)


def test_bytes_are_the_same_pixels_rounded() -> None:
    images = crops(5)
    kept = as_bytes(images, 16)
    assert kept.dtype == torch.uint8
    assert torch.all((kept.float() / 255 - square_batch(images, 16)).abs() <= 0.5 / 255 + 1e-6)


@given(st.integers(0, 40), st.integers(0, 40), st.integers(1, 8), st.integers(1, 8))
def test_extent_is_the_regions_share_of_its_picture(x: int, y: int, width: int, height: int) -> None:
    image = picture(0, 48, 96).crop(x, y, x + width, y + height)
    assert torch.allclose(image_size_features([image]), torch.tensor([[width / 48, height / 96]]))
