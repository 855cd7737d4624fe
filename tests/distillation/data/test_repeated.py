from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.distillation.augmentation import Augmentation
from tutelage.distillation.data import SampleOrder, TensorData
from tutelage.distillation.data.repeated import RepeatedData, RepeatedOrder
from tutelage.errors import InputError


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 50), st.integers(1, 9), st.integers(1, 5), st.integers(0, 99))
def test_an_epoch_shows_a_part_of_the_samples_several_times(length: int, batch_size: int, repeats: int, seed: int) -> None:
    order = RepeatedOrder(length, batch_size, seed, repeats=repeats)
    samples, seeds = order.epoch(3)
    assert len(samples) == len(seeds) == length
    distinct = samples.unique()
    assert len(distinct) == -(-length // repeats) and 0 <= int(distinct.min()) and int(distinct.max()) < length
    for first in range(0, length, repeats):  # copies lie side by side, in views of their own
        assert len(samples[first : first + repeats].unique()) == 1
        assert len(seeds[first : first + repeats].unique()) == len(seeds[first : first + repeats])
    assert all(torch.equal(a, b) for a, b in zip(order.epoch(3), RepeatedOrder(length, 1, seed, repeats=repeats).epoch(3)))


def test_one_view_is_the_plain_order() -> None:
    one, plain = RepeatedOrder(10, 4, 7, repeats=1), SampleOrder(10, 4, 7)
    for number in range(6):
        assert all(torch.equal(a, b) for a, b in zip(one.step(number), plain.step(number)))


def test_epochs_draw_other_samples_and_other_views() -> None:
    order = RepeatedOrder(30, 5, 0, repeats=3)
    first, second = order.epoch(0), order.epoch(1)
    assert set(first[0].tolist()) != set(second[0].tolist())
    assert not set(first[1].tolist()) & set(second[1].tolist())
    cycle = RepeatedOrder(30, 5, 0, views=3, repeats=3)
    seeds = [dict(zip(*(part.tolist()[::3] for part in cycle.epoch(number)))) for number in (0, 1)]
    both = seeds[0].keys() & seeds[1].keys()
    assert both and all(seeds[0][sample] == seeds[1][sample] for sample in both), "the views come again"


def test_a_batch_holds_copies_in_different_views() -> None:
    images = torch.randn(12, 1, 8, 8)
    data = RepeatedData(TensorData(images, torch.arange(12), views=Augmentation(crop=2, flip=0.5)), 3)
    batch = data.batch(*data.sample_order(6, seed=0).step(0))
    assert batch.labels[:3].unique().numel() == 1 and not torch.equal(batch.inputs[0], batch.inputs[1])
    assert data.fingerprint != data.source.fingerprint and data.fingerprint != RepeatedData(data.source, 2).fingerprint
    assert data.sample_order(6, seed=0).facts()["repeats"] == 3 and data.sample_order(6, 0).covering(1) is None


def test_what_cannot_be_repeated_is_refused() -> None:
    plain = TensorData(torch.zeros(3, 1))
    with pytest.raises(InputError, match="repeats"):
        RepeatedData(plain, 0)
    with pytest.raises(InputError, match="repeat its sources"):
        RepeatedData(RepeatedData(plain))
