"""Inputs and labels are cut, mirrored and turned together, from the view seeds alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from tutelage.distillation.data import Batch, TensorData
from tutelage.distillation.paired_augmentation import PairedAugmentation
from tutelage.errors import InputError


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 3), st.integers(1, 6), st.booleans(), st.integers(0, 2**31 - 1))
def test_labels_move_as_their_inputs(scale: int, crop: int, turn: bool, seed: int) -> None:
    small = torch.rand(3, 2, 6, 8, generator=torch.Generator().manual_seed(seed))
    large = F.interpolate(small, scale_factor=scale, mode="nearest")
    seeds = torch.arange(3) + seed
    batch = PairedAugmentation(crop=crop, flip=0.5, turn=turn)(Batch(small, large, ids=torch.arange(3), seeds=seeds))
    assert batch.inputs.shape == (3, 2, crop, crop)
    assert torch.equal(F.interpolate(batch.inputs, scale_factor=scale, mode="nearest"), batch.labels)
    one = PairedAugmentation(crop=crop, flip=0.5, turn=turn)(Batch(small[1:2], large[1:2], ids=torch.arange(1), seeds=seeds[1:2]))
    assert torch.equal(one.inputs[0], batch.inputs[1]), "a view depends on its own seed alone"


def test_every_mirror_and_turn_comes_up_and_label_maps_follow() -> None:
    image = torch.arange(9.0).view(1, 1, 3, 3)
    data = TensorData(image.expand(200, 1, 3, 3), image[:, 0].expand(200, 3, 3), views=PairedAugmentation(flip=0.5, turn=True))
    batch = data.batch(torch.arange(200), torch.arange(200))
    assert torch.equal(batch.inputs[:, 0], batch.labels) and len(batch.inputs.flatten(1).unique(dim=0)) == 8
    assert torch.equal(data.batch(torch.arange(200), None).inputs, data.inputs)


@pytest.mark.parametrize(
    ("views", "sizes", "word"),
    [
        (PairedAugmentation(crop=7), ((6, 8), (12, 16)), "crop"),
        (PairedAugmentation(turn=True), ((6, 8), (12, 16)), "turn"),
        (PairedAugmentation(), ((6, 8), (12, 17)), "labels"),
        (PairedAugmentation(), ((6, 8), (3, 4)), "labels"),
    ],
)
def test_what_does_not_fit_is_refused(views: PairedAugmentation, sizes: tuple[tuple[int, int], ...], word: str) -> None:
    images, labels = (torch.zeros(2, 3, *size) for size in sizes)
    with pytest.raises(InputError, match=word):
        views(Batch(images, labels, ids=torch.arange(2), seeds=torch.arange(2)))
    with pytest.raises(InputError, match="labels"):
        views(Batch(images, None, ids=torch.arange(2), seeds=torch.arange(2)))
