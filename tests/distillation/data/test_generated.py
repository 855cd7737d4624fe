"""Noise and generated samples: functions of (sample number, view seed), of any length, resumed and cached exactly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tutelage.distillation.cache import CachedTeacher
from tutelage.distillation.cache_build import build
from tutelage.distillation.data import SampleOrder, order_of
from tutelage.distillation.data.dataset import Loading
from tutelage.distillation.data.generated import MOST, CountingOrder, GeneratedData, Prior, counted_normal, counted_uniform
from tutelage.distillation.data.items import Padding
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.trainer import train
from tutelage.errors import InputError

from ..toy import Distil, Net, bits


def vectors(number: int, rng: np.random.Generator) -> tuple[np.ndarray, int]:
    point = rng.standard_normal(4).astype(np.float32)
    return point, int(point[0] > 0)


def job(data: object, **changes: object) -> TrainingJob:
    chosen: dict = {"steps": 10, "batch_size": 8, "lr": 0.01, "checkpoint_every": 3} | changes
    return TrainingJob(Net(), Net(16, seed=1), Distil(), data, TrainingSettings(**chosen), name="toy")


def test_noise_is_normal_and_independent() -> None:
    batch = Prior((10,)).batch(torch.arange(4000), torch.arange(4000) * 3)
    x = batch.inputs.double()
    assert abs(x.mean()) < 0.02 and abs(x.var() - 1) < 0.02 and abs((x**4).mean() - 3) < 0.15
    assert (np.corrcoef(x.T.numpy()) - np.eye(10)).max() < 0.08
    u = counted_uniform(np.arange(4000, dtype=np.uint64), 3)
    assert 0 < u.min() and u.max() < 1 and abs(u.mean() - 0.5) < 0.01
    assert counted_normal(np.arange(5, dtype=np.uint64), 7).shape == (5, 7)


def test_a_row_depends_on_its_number_and_seed_alone() -> None:
    prior = Prior((3, 2), classes=7)
    ids, seeds = torch.tensor([5, 9, 5, 5]), torch.tensor([1, 1, 2, 1])
    batch = prior.batch(ids, seeds)
    assert torch.equal(batch.inputs[0], batch.inputs[3]) and batch.labels[0] == batch.labels[3]
    assert not torch.equal(batch.inputs[0], batch.inputs[1]) and not torch.equal(batch.inputs[0], batch.inputs[2])
    assert torch.equal(prior.batch(ids[1:2], seeds[1:2]).inputs[0], batch.inputs[1])
    assert not torch.equal(Prior((3, 2), seed=1).batch(ids, seeds).inputs, batch.inputs)
    labels = prior.batch(torch.arange(7000), None).labels
    assert labels.min() == 0 and labels.max() == 6 and labels.bincount().min() > 850


def test_the_same_noise_on_every_machine() -> None:
    first = Prior((2,)).batch(torch.tensor([1]), torch.tensor([2])).inputs[0].tolist()
    assert first == pytest.approx([1.4491945505, 0.3565348685], abs=1e-6)


@pytest.mark.parametrize("length", [7, 10**9, MOST])
def test_any_length_costs_nothing(length: int) -> None:
    order = order_of(Prior((2,), length), 4, 0)
    ids = torch.cat([order.step(n)[0] for n in range(5)])
    assert ids.tolist() == [n % length for n in range(20)]
    far = order.step(10**9)
    assert far[0].max() < length and torch.equal(far[1], order.step(10**9)[1])


def test_view_seeds_are_those_of_shuffled_data() -> None:
    for views in (0, 2):
        shuffled, counted = SampleOrder(6, 3, 5, views), CountingOrder(6, 3, 5, views)
        for epoch in range(3):
            pairs = [{}, {}]
            for found, order in zip(pairs, (shuffled, counted), strict=True):
                for number in (2 * epoch, 2 * epoch + 1):
                    found |= dict(zip(*(column.tolist() for column in order.step(number)), strict=True))
            assert pairs[0] == pairs[1]


@pytest.mark.parametrize("data", [Prior((4,), 50, classes=2), GeneratedData(vectors, 50), GeneratedData(vectors, 50, fixed=True)])
@pytest.mark.parametrize("views", [0, 2])
def test_cached_is_live_and_a_resumed_run_ends_with_the_same_bits(tmp_path: Path, data, views: int) -> None:
    whole = train(job(data, views=views))

    def stop(done: int, steps: int) -> None:
        if done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(job(data, views=views), tmp_path / "a", stop)
    assert bits(train(job(data, views=views), tmp_path / "a").student) == bits(whole.student)
    cached = job(data, views=views)
    cached.teacher = CachedTeacher(build(cached, tmp_path / "cache"), cached.teacher)
    assert bits(train(cached).student) == bits(whole.student)


def test_workers_change_nothing() -> None:
    runs = [train(job(GeneratedData(vectors, 40, loading=Loading(workers)))) for workers in (0, 2)]
    assert bits(runs[0].student) == bits(runs[1].student)


def test_fixed_samples_are_the_same_in_every_epoch() -> None:
    ids = torch.arange(6)
    new, fixed = GeneratedData(vectors, 6), GeneratedData(vectors, 6, fixed=True)
    assert torch.equal(fixed.batch(ids, ids + 1).inputs, fixed.batch(ids, None).inputs)
    assert not torch.equal(new.batch(ids, ids + 1).inputs, new.batch(ids, None).inputs)
    assert not fixed.batch(ids, ids + 1).seeds.any()
    assert len(new.batch(ids, None).inputs.unique(dim=0)) == 6  # plain samples differ too


def test_lengths_may_differ_with_padding() -> None:
    data = GeneratedData(lambda number, rng: rng.integers(1, 9, 2 + number), 4, padding=Padding(), version="ragged")
    tokens, mask = data.batch(torch.arange(3), None).inputs
    assert tokens.shape == (3, 4) and mask.sum(1).tolist() == [2, 3, 4]


def impure(number: int, rng: np.random.Generator) -> np.ndarray:
    return np.random.default_rng().random(3)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Prior((0,)), "shape"),
        (lambda: Prior((2,), length=0), "length"),
        (lambda: Prior((2,), length=2.5), "length"),
        (lambda: Prior((2,), kind="cauchy"), "normal or uniform"),
        (lambda: Prior((2,), classes=0), "classes"),
        (lambda: GeneratedData(3, 5), "makes no samples"),
        (lambda: GeneratedData(lambda n, rng: 1 / 0, 5).batch(torch.arange(2), None), "item 0 cannot be read: ZeroDivisionError"),
        (lambda: GeneratedData(lambda n, rng: (1.0, "cat"), 5).batch(torch.arange(2), None), "number the classes"),
        (lambda: train(job(GeneratedData(impure, 20))), "no other"),
    ],
)
def test_refusals(make, words: str) -> None:
    with pytest.raises(InputError) as caught:
        make()
    assert words in str(caught.value)
