"""A dataset read lazily: views depend on their seeds alone, whoever reads them, and nothing else is changed."""

from __future__ import annotations

import contextlib
import pickle
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Subset, TensorDataset, WeightedRandomSampler

from tutelage.distillation.augmentation import Augmentation
from tutelage.distillation.data import Batch, SampleOrder, TensorData
from tutelage.distillation.data.dataset import DatasetData, Loading
from tutelage.distillation.data.loader import BatchLoader, in_order
from tutelage.distillation.data.seeding import generator_seeds, generator_states
from tutelage.distillation.data.sources import as_data, batch_size_of
from tutelage.distillation.data.stream import StreamData, StreamWarning
from tutelage.errors import InputError
from tutelage.workers import WorkerLost

from .toy_datasets import Jitter, Killed, Own, Stream, Toy


def ints(*values: int) -> torch.Tensor:
    return torch.tensor(values)


def same(a: Batch, b: Batch) -> bool:
    return torch.equal(a.inputs, b.inputs) and torch.equal(a.labels, b.labels) and torch.equal(a.seeds, b.seeds)


JITTERED = DatasetData(Toy(transform=Jitter()))


@given(st.lists(st.tuples(st.integers(0, 23), st.integers(0, 2**31 - 1)), min_size=1, max_size=6))
def test_a_view_is_its_item_and_seed_whatever_is_read_beside_it(views) -> None:
    indices, seeds = (torch.tensor(column) for column in zip(*views))
    together = JITTERED.batch(indices, seeds)
    for row in range(len(views)):
        alone = JITTERED.batch(indices[row : row + 1], seeds[row : row + 1])
        assert torch.equal(alone.inputs[0], together.inputs[row])


def test_seeds_give_different_views_and_generators_are_left_alone() -> None:
    before = generator_states()
    batch = JITTERED.batch(ints(3, 3, 3), ints(1, 2, 1))
    assert generator_states() == before
    assert torch.equal(batch.inputs[0], batch.inputs[2]) and not torch.equal(batch.inputs[0], batch.inputs[1])
    assert batch.ids.tolist() == [3, 3, 3] and batch.seeds.tolist() == [1, 2, 1]
    plain = JITTERED.batch(ints(3, 4), None)
    assert plain.seeds.tolist() == [0, 0] and torch.equal(plain.inputs, JITTERED.batch(ints(3, 4), ints(0, 0)).inputs)


def test_the_three_generators_get_seeds_of_their_own() -> None:
    seeds = np.array(generator_seeds(np.arange(1000)))
    assert seeds.shape == (1000, 3) and len(set(seeds.ravel().tolist())) > 2990 and seeds.max() < 2**32


def test_nothing_is_read_before_it_is_needed() -> None:
    dataset = Toy(10_000)
    data = DatasetData(dataset, random=False)
    assert len(data) == 10_000 and dataset.reads == 0
    assert data.batch(ints(9_999, 0), ints(5, 6)).labels.tolist() == [0, 0] and dataset.reads == 2


def test_a_dataset_without_random_numbers_has_one_view() -> None:
    data = DatasetData(Toy())
    assert not data.random and data.batch(ints(1, 2), ints(8, 9)).seeds.tolist() == [0, 0]
    viewed = DatasetData(Toy(), views=lambda batch: batch)
    assert viewed.batch(ints(1, 2), ints(8, 9)).seeds.tolist() == [8, 9]
    assert DatasetData(Toy(transform=Jitter())).random


def test_random_numbers_that_were_not_seen_at_first_are_refused_later() -> None:
    class Late(Toy):
        def __getitem__(self, number: int):
            image, label = super().__getitem__(number)
            return (image + random.random() if number == 5 else image), label

    data = DatasetData(Late(1000))
    data.batch(ints(1, 2), ints(1, 2))
    with pytest.raises(InputError, match="draws random numbers") as caught:
        data.batch(ints(4, 5), ints(1, 2))
    assert "random=True" in caught.value.remedy
    DatasetData(Late(1000), random=True).batch(ints(4, 5), ints(1, 2))


def test_tensor_views_come_on_top_of_the_datasets_own() -> None:
    views = Augmentation(crop=1, flip=0.5)
    data = DatasetData(Toy(transform=Jitter()), views=views)
    seeds = ints(7, 8)
    expected = views.apply(DatasetData(Toy(transform=Jitter())).batch(ints(0, 1), seeds).inputs, seeds)
    assert torch.equal(data.batch(ints(0, 1), seeds).inputs, expected)


def test_plain_samples_are_read_from_the_plain_dataset() -> None:
    data = DatasetData(Toy(transform=Jitter()), plain=Toy())
    assert torch.equal(data.batch(ints(2), None).inputs, DatasetData(Toy()).batch(ints(2), ints(3)).inputs)
    with pytest.raises(InputError, match="plain samples"):
        DatasetData(Toy(3), plain=Toy(4))


def test_a_generator_of_its_own_is_refused_or_reseeded() -> None:
    with pytest.raises(InputError, match="differs") as caught:
        DatasetData(Own()).check_replay(ints(4), ints(9))
    assert caught.value.where == "data: item 4" and "reseed" in caught.value.remedy
    dataset = Own()
    data = DatasetData(dataset, reseed=dataset.seed)
    data.check_replay(ints(4, 5), ints(9, 10))
    assert not torch.equal(data.batch(ints(4), ints(1)).inputs, data.batch(ints(4), ints(2)).inputs)


@pytest.mark.parametrize("transform", [None, Jitter()])
def test_workers_change_nothing(transform) -> None:
    order = SampleOrder(24, 5, seed=3)
    found = []
    for workers in (0, 1, 2):
        loader = BatchLoader(DatasetData(Toy(transform=transform), loading=Loading(workers)), order, 9)
        with contextlib.closing(loader):
            state = generator_states()
            found.append([loader.take(number) for number in range(9)])
            assert generator_states() == state
    for one, two, three in zip(*found, strict=True):
        assert same(one, two) and same(one, three)
    assert same(loader.read(4), found[0][4])


def test_a_loader_can_begin_anywhere_and_go_back() -> None:
    order = SampleOrder(24, 5, seed=3)
    loader = BatchLoader(DatasetData(Toy(transform=Jitter()), loading=Loading(1)), order, 9)
    with contextlib.closing(loader):
        for number in (4, 5, 2, 3):
            assert same(loader.take(number), loader.read(number))


def test_plain_samples_in_order_by_workers() -> None:
    for workers in (0, 2):
        data = DatasetData(Toy(transform=Jitter()), plain=Toy(), loading=Loading(workers))
        ids = [batch.ids.tolist() for batch in in_order(data, 10)]
        assert ids == [list(range(10)), list(range(10, 20)), list(range(20, 24))]


def test_errors_keep_their_place_and_remedy_across_processes() -> None:
    class Broken(Toy):
        def __getitem__(self, number: int):
            if number == 7:
                return {}["missing"]
            return super().__getitem__(number)

    messages = []
    for workers in (0, 1):
        loader = BatchLoader(DatasetData(Broken(), loading=Loading(workers)), SampleOrder(24, 24, 0), 1)
        with pytest.raises(InputError, match="item 7 cannot be read: KeyError: 'missing'") as caught:
            loader.take(0)
        messages.append(str(caught.value))
    assert messages[0] == messages[1] and "test_dataset.py" in messages[0]


def test_a_killed_worker_is_told() -> None:
    loader = BatchLoader(DatasetData(Killed(), random=False, loading=Loading(1)), SampleOrder(24, 24, 0), 1)
    with pytest.raises(WorkerLost, match="a data worker ended") as caught:
        loader.take(0)
    assert "memory" in caught.value.remedy


def test_collate_functions_run_seeded_and_own_up_to_random_numbers() -> None:
    def stack(items):
        return torch.stack([image for image, _ in items]), [label for _, label in items]

    def mixed(items):
        inputs, labels = stack(items)
        share = np.random.beta(1, 1)
        return share * inputs + (1 - share) * inputs.flip(0), labels

    plain = DatasetData(Toy(), collate_fn=stack)
    assert same(plain.batch(ints(1, 2), ints(0, 0)), DatasetData(Toy()).batch(ints(1, 2), ints(0, 0)))
    data = DatasetData(Toy(transform=Jitter()), collate_fn=mixed)
    one, two = data.batch(ints(1, 2), ints(3, 4)), data.batch(ints(1, 2), ints(3, 4))
    assert torch.equal(one.inputs, two.inputs) and one.seeds is None


def test_labels_of_all_samples() -> None:
    assert DatasetData(Toy()).labels.tolist() == [0, 1, 2] * 8
    dataset = Toy()
    dataset.targets = [0, 1, 2] * 8
    assert DatasetData(dataset).labels.tolist() == [0, 1, 2] * 8 and dataset.reads < 24
    dataset = Toy()
    dataset.targets = [2, 1, 0] * 8  # not what the items say
    assert DatasetData(dataset).labels.tolist() == [0, 1, 2] * 8
    assert DatasetData([torch.zeros(2)] * 3).labels is None


# -- fingerprints ------------------------------------------------------------------------------------------------------


def test_fingerprints_name_content_code_and_settings() -> None:
    def data(**options):
        return DatasetData(Toy(transform=Jitter()), **options).fingerprint

    class Shifted(Toy):
        def __getitem__(self, number: int):
            image, label = super().__getitem__(number)
            return image + (1.0 if number == 3 else 0.0), label  # no item that is looked at

    assert data() == data()
    others = [
        DatasetData(Toy(transform=Jitter(0.6))).fingerprint,
        DatasetData(Toy(25, Jitter())).fingerprint,
        DatasetData(Shifted(transform=Jitter())).fingerprint,
        data(views=Augmentation(flip=0.5)),
        data(version="1"),
        data(version="2"),
        data(collate_fn=lambda items: torch.stack([image for image, _ in items])),
        data(collate_fn=lambda items: torch.stack([image + 1 for image, _ in items])),
    ]
    assert len({data(), *others}) == len(others) + 1


def test_data_travel_to_other_processes_with_their_name() -> None:
    data = DatasetData(Toy(transform=Jitter()), loading=Loading(1))
    sent = pickle.loads(pickle.dumps(data))
    assert sent.fingerprint == data.fingerprint
    assert same(sent.batch(ints(1, 2), ints(3, 4)), data.batch(ints(1, 2), ints(3, 4)))


def test_what_a_dataset_keeps_while_it_is_read_does_not_change_its_name() -> None:
    class Caching(Toy):
        def __init__(self):
            super().__init__()
            self.cache = {}

        def __getitem__(self, number: int):
            self.cache[number] = True
            return super().__getitem__(number)

    one, two = DatasetData(Caching()), DatasetData(Caching())
    two.batch(ints(1, 2, 3), ints(1, 2, 3))
    assert one.fingerprint == two.fingerprint


# -- what is taken as data -----------------------------------------------------------------------------------------------


def test_tensors_stay_in_memory_and_data_stay_as_they_are() -> None:
    data = as_data(TensorDataset(torch.zeros(4, 2), torch.arange(4)))
    assert isinstance(data, TensorData) and data.labels.tolist() == [0, 1, 2, 3] and as_data(data) is data
    assert isinstance(as_data(Subset(Toy(), [3, 4])), DatasetData)


def test_a_loader_gives_its_dataset_workers_and_collate_function() -> None:
    def collate(items):
        return torch.stack([image for image, _ in items]) + 1, [label for _, label in items]

    loader = DataLoader(Toy(), batch_size=6, num_workers=2, prefetch_factor=3, collate_fn=collate, shuffle=True)
    data = as_data(loader)
    assert (data.loading.workers, data.loading.prefetch, batch_size_of(loader)) == (2, 3, 6)
    assert torch.equal(data.batch(ints(0), ints(0)).inputs, Toy()[0][0][None] + 1)
    with pytest.warns(UserWarning, match="WeightedRandomSampler of the loader is not used"):
        as_data(DataLoader(Toy(), sampler=WeightedRandomSampler([1.0] * 24, 24)))


def test_a_stream_is_taken_with_a_warning() -> None:
    with pytest.warns(StreamWarning, match="will not resume"):
        data = as_data(Stream())
    assert isinstance(data, StreamData) and len(data) == 65_536
    first, second = data.batch(torch.arange(8), torch.arange(8)), data.batch(torch.arange(8), None)
    assert first.inputs[:, 0, 0, 0].tolist() == list(range(8)) and first.ids is None and first.seeds is None
    assert second.inputs[:, 0, 0, 0].tolist() == [8, 9, 0, 1, 2, 3, 4, 5]  # it begins anew
    with pytest.warns(StreamWarning), pytest.raises(InputError, match="no sample"):
        as_data(Stream(0)).batch(torch.arange(2), None)
    with pytest.warns(StreamWarning):
        workers = as_data(DataLoader(Stream(), batch_size=4, num_workers=1))
    assert workers.batch(torch.arange(4), None).labels.tolist() == [0, 1, 2, 0]


@pytest.mark.parametrize("wrong", [3, iter([1]), [], object()])
def test_what_is_no_data_is_refused(wrong) -> None:
    with pytest.raises(InputError):
        as_data(wrong)


@pytest.mark.parametrize("wrong", [{"workers": -1}, {"prefetch": 0}, {"context": "thread"}])
def test_loading_checks_its_values(wrong) -> None:
    with pytest.raises(InputError):
        Loading(**wrong)
