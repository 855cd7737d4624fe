"""Several views of each sample: sizes, seeds of their own, grid cells, turns and blur; exact under resume and cache."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tutelage.distillation.augmentation import Augmentation
from tutelage.distillation.cache import CachedTeacher
from tutelage.distillation.cache_build import build
from tutelage.distillation.data import Batch, TensorData
from tutelage.distillation.data.dataset import DatasetData, Loading
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.masks import random_mask
from tutelage.distillation.method import Method
from tutelage.distillation.multi_view import MultiView, View, blur, geometry_of, subseeds
from tutelage.distillation.outputs import Output
from tutelage.distillation.teacher import Teacher, network_fingerprint
from tutelage.distillation.trainer import train
from tutelage.errors import InputError

from .data.toy_datasets import Toy
from .toy import bits

VIEWS = MultiView(
    {
        "clean": View(),
        "large": View(2, 8, Augmentation(resize=(0.4, 1.0), flip=0.5, colour=0.2), grey=0.3, blur=(0.1, 1.5), blur_probability=0.5),
        "turned": View(None, None, Augmentation(turn=True)),
        "patches": View(4, 5, Augmentation(resize=(0.6, 1.0), flip=0.5), grid=(3, 3), patch=0.375, jitter=0.05),
    }
)


def images(count: int = 6, side: int = 12) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(3))


def batch_of(ids: list[int], seeds: list[int], views: MultiView = VIEWS) -> Batch:
    return TensorData(images(), views=views).batch(torch.tensor(ids), torch.tensor(seeds))


def test_each_kind_has_its_size_and_each_view_its_own_seed() -> None:
    batch = batch_of([0, 1, 2], [5, 5, 9])
    assert {name: list(value.shape) for name, value in batch.inputs.items()} == {
        "clean": [3, 3, 12, 12], "large": [3, 2, 3, 8, 8], "turned": [3, 3, 12, 12], "patches": [3, 4, 3, 5, 5]
    }  # fmt: skip
    assert torch.equal(batch.inputs["clean"], images()[:3])
    facts = batch.extra["views"]
    seeds = torch.cat([facts[name]["seeds"].reshape(3, -1) for name in VIEWS.views], 1)
    assert seeds.shape == (3, 8) and len(seeds[0].unique()) == 8 and torch.equal(seeds[0], seeds[1])
    assert facts["large"]["seeds"][0, 1] == subseeds(torch.tensor([5]), 2)[0]
    assert random_mask(facts["large"]["seeds"][:, 0], 16, 0.5).sum(1).tolist() == [8, 8, 8]


def test_a_view_does_not_depend_on_the_rows_beside_it() -> None:
    whole, part = batch_of([0, 1, 2, 3], [4, 8, 15, 16]), batch_of([2], [15])
    for name in VIEWS.views:
        assert torch.equal(whole.inputs[name][2], part.inputs[name][0])
    other = batch_of([2], [16])
    assert all(not torch.equal(other.inputs[name], part.inputs[name]) for name in ("large", "patches"))


def test_turns_and_places_are_what_the_batch_says() -> None:
    batch = batch_of([0, 1, 2, 3, 4, 5], list(range(6)))
    turns = batch.extra["views"]["turned"]["turns"]
    assert len(turns.unique()) > 1
    for row, count in enumerate(turns.tolist()):
        assert torch.equal(batch.inputs["turned"][row], torch.rot90(images()[row], count, (-2, -1)))
    sharp = MultiView({"crops": View(2, 8, Augmentation(resize=(0.4, 1.0), flip=0.5))})
    cropped = batch_of([0, 1, 2], [1, 2, 3], sharp)
    for number in (0, 1):
        again = geometry_of(cropped, "crops", number).image(images()[:3], (8, 8))
        assert torch.allclose(again, cropped.inputs["crops"][:, number], atol=1e-5)


def test_cells_are_different_and_where_they_are_said_to_be() -> None:
    views = MultiView({"cells": View(4, 4, Augmentation(flip=0.5), grid=(2, 2))})
    places = torch.arange(64.0).reshape(1, 1, 8, 8).expand(16, -1, -1, -1)
    batch = TensorData(places, views=views).batch(torch.arange(16), torch.arange(16))
    facts = batch.extra["views"]["cells"]
    assert torch.equal(facts["cells"].sort(1).values, torch.arange(4).expand(16, -1))
    assert len(facts["cells"].unique(dim=0)) > 8 and 0 < int(facts["flip"][:, 0].sum()) < 16
    for row in range(16):
        image = places[row].flip(-1) if facts["flip"][row, 0] else places[row]
        for number, cell in enumerate(facts["cells"][row].tolist()):
            top, left = 4 * (cell // 2), 4 * (cell % 2)
            assert torch.equal(batch.inputs["cells"][row, number], image[:, top : top + 4, left : left + 4])


def test_blur_smooths_by_its_sigma_and_0_is_sharp() -> None:
    point = torch.zeros(3, 1, 21, 21)
    point[:, :, 10, 10] = 1
    found = blur(point, torch.tensor([0.0, 1.0, 2.0]), 6)
    assert torch.equal(found[0], point[0]) and torch.allclose(found.sum((1, 2, 3)), torch.ones(3), atol=1e-5)
    squares = (torch.arange(21) - 10.0) ** 2
    spread = (found[:, 0].sum(1) * squares).sum(1)
    assert spread.tolist() == pytest.approx([0, 1, 4], rel=0.03)
    assert torch.equal(blur(point[2:], torch.tensor([2.0]), 6)[0], found[2])
    assert blur(torch.rand(1, 1, 1, 1), torch.tensor([1.0]), 3).shape == (1, 1, 1, 1)


def test_another_entry_stays() -> None:
    data = TensorData({"image": images(), "text": torch.arange(6)[:, None]}, views=MultiView({"a": View(2, 4)}, field="image"))
    batch = data.batch(torch.arange(2), torch.arange(2))
    assert list(batch.inputs) == ["text", "a"] and torch.equal(batch.inputs["text"], torch.tensor([[0], [1]]))


class Net(nn.Module):
    def __init__(self, seed: int):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.layer = nn.Conv2d(1, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).mean((2, 3))


class CleanView(Teacher):
    def __init__(self) -> None:
        self.network = Net(1).eval()

    def predict(self, batch: Batch) -> Output:
        return {"embedding": self.network(batch.inputs["clean"])}

    @property
    def fingerprint(self) -> str:
        return network_fingerprint(self.network)


class Match(Method):
    def forward(self, batch, student, teacher):
        crops = batch.inputs["crops"]
        return {"embedding": student(crops.flatten(0, 1)).view(len(crops), crops.shape[1], -1)}, teacher(batch)

    def loss_terms(self, batch, student, teacher):
        return {"match": (student["embedding"] - teacher["embedding"][:, None]).pow(2).mean()}


def job(workers: int = 0, views: int = 2) -> TrainingJob:
    crops = View(2, 5, Augmentation(resize=(0.4, 1.0)), blur=(0.1, 1.0))
    data = DatasetData(Toy(20), views=MultiView({"clean": View(), "crops": crops}), loading=Loading(workers))
    chosen = TrainingSettings(steps=9, batch_size=6, lr=0.01, views=views, checkpoint_every=4)
    return TrainingJob(Net(0), CleanView(), Match(), data, chosen)


def test_workers_stop_and_cache_change_nothing(tmp_path: Path) -> None:
    whole = bits(train(job()).student)
    assert bits(train(job(2)).student) == whole

    def stop(done: int, steps: int) -> None:
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(job(), tmp_path / "run", stop)
    assert bits(train(job(), tmp_path / "run").student) == whole
    cached = job()
    cached.teacher = CachedTeacher(build(cached, tmp_path / "cache"), cached.teacher)
    assert len(cached.teacher.cache) >= 40  # two views of 20 samples
    assert bits(train(cached).student) == whole


def test_the_fingerprint_names_every_setting() -> None:
    made = [
        MultiView({"a": View(2, 8)}),
        MultiView({"a": View(2, 9)}),
        MultiView({"b": View(2, 8)}),
        MultiView({"a": View(2, 8, grey=0.1)}),
    ]
    assert len({one.fingerprint for one in made}) == 4


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: MultiView({}), "no view"),
        (lambda: View(0), "count"),
        (lambda: View(2, -3), "size"),
        (lambda: View(grey=2), "grey"),
        (lambda: View(blur=(2.0, 1.0)), "blur: 2.0 is above"),
        (lambda: View(10, grid=(3, 3)), "at most 9"),
        (lambda: View(2, grid=(3, 3), patch=0.0), "patch"),
        (lambda: View(2, grid=(3, 3), augmentation=Augmentation(turn=True)), "turn"),
        (lambda: View(augmentation=Augmentation(mixup=0.2, classes=3)), "mixed"),
        (lambda: batch_of([0], [1], MultiView({"a": View()}, field="image")), "no entry 'image'"),
        (lambda: MultiView({"a": View()})(Batch(torch.zeros(2, 3))), "[B, C, H, W]"),
        (lambda: MultiView({"a": View()})(Batch(torch.zeros(2, 3, 4, 4))), "no view seeds"),
        (lambda: batch_of([0], [1], MultiView({"a": View(augmentation=Augmentation(cut=13))})), "smaller than a crop"),
        (lambda: geometry_of(batch_of([0], [1]), "larg"), "did you mean large"),
    ],
)
def test_refusals(make, words: str) -> None:
    with pytest.raises(InputError) as caught:
        make()
    assert words in str(caught.value)
