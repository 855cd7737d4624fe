"""Training on a dataset with third-party random transforms: to the same bits, whoever reads it and however often it is killed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from tutelage.distillation.api import distill
from tutelage.distillation.augmentation import Augmentation
from tutelage.distillation.cache import CachedTeacher
from tutelage.distillation.cache_build import build, verify
from tutelage.distillation.data import SampleOrder, flatten_tree
from tutelage.distillation.data.dataset import DatasetData, Loading
from tutelage.distillation.data.loader import BatchLoader
from tutelage.distillation.doctor import diagnose
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.trainer import train
from tutelage.errors import InputError

from ..toy import Distil, bits
from .toy_datasets import Conv, Jitter, Own, Stream, Toy


def job(workers: int = 0, transform: object = Jitter(), augment: object = None, **settings: object) -> TrainingJob:
    data = DatasetData(Toy(transform=transform), views=augment, loading=Loading(workers))
    chosen: dict = {"steps": 9, "batch_size": 8, "lr": 0.01, "log_every": 2} | settings
    return TrainingJob(Conv(0), Conv(1, 6), Distil(), data, TrainingSettings(**chosen), name="toy")


@pytest.mark.parametrize("settings", [{}, {"accumulate": 2, "views": 1}])
def test_one_worker_is_two_workers_is_none(settings) -> None:
    runs = [train(job(workers, **settings)) for workers in (0, 1, 2)]
    assert bits(runs[0].student) == bits(runs[1].student) == bits(runs[2].student)
    assert bits(runs[0].student) != bits(train(job(0, transform=None, **settings)).student)


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
from tutelage.distillation.trainer import train
from distillation.data.test_training import LONG, job
def kill(done, steps):
    if done == {step}:
        os.kill(os.getpid(), signal.SIGKILL)
train(job({workers}, **LONG), {folder!r}, kill)
"""
LONG = {"steps": 40, "checkpoint_every": 7}


def test_a_run_killed_under_two_workers_resumes_with_one_to_the_same_bits(tmp_path: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    code = KILLED.format(tests=str(Path(__file__).parents[2]), step=18, workers=2, folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr
    calls: list[int] = []
    resumed = train(job(1, **LONG), tmp_path, lambda step, steps: calls.append(step))
    assert calls[0] == 15  # from the checkpoint of step 14
    assert bits(resumed.student) == bits(train(job(0, **LONG)).student)


@pytest.mark.parametrize("settings", [{}, {"views": 2}])
@pytest.mark.parametrize("augment", [None, Augmentation(crop=1, flip=0.5)])
def test_a_cached_teacher_equals_the_live_one(tmp_path: Path, settings, augment) -> None:
    live = train(job(0, augment=augment, **settings))
    made = job(2, augment=augment, **settings)
    made.teacher = CachedTeacher(build(made, tmp_path, "fp32", shard=2), made.teacher)
    assert bits(train(made).student) == bits(live.student)
    assert verify(tmp_path, job(1, augment=augment, **settings))["largest_error"] == {"logits": 0.0}


def test_a_dataset_without_randomness_is_cached_once_a_sample(tmp_path: Path) -> None:
    made = job(0, transform=None)
    assert len(build(made, tmp_path)) == 24


def test_a_dataset_that_cannot_be_replayed_is_refused_at_the_first_look_and_by_the_doctor() -> None:
    made = job()
    made.data = DatasetData(Own())
    with pytest.raises(InputError, match="differs"):
        train(made)
    finding = diagnose(made, steps=1)[0]
    assert not finding.ok and "differs" in finding.message and "reseed" in finding.remedy


def test_the_doctor_finds_a_dataset_that_depends_on_its_process() -> None:
    class Worker(Toy):
        def __getitem__(self, number: int):
            image, label = super().__getitem__(number)
            return image + (torch.utils.data.get_worker_info() is not None), label

    made = job()
    found = {finding.check: finding for finding in diagnose(made, steps=1)}
    assert found["views replay"].ok
    made.data = DatasetData(Worker())
    found = {finding.check: finding for finding in diagnose(made, steps=1)}
    assert not found["views replay"].ok and "worker process" in found["views replay"].message


def test_the_verb_takes_datasets_loaders_and_streams(tmp_path: Path) -> None:
    settings: dict = {"steps": 4, "lr": 0.01, "method": Distil}
    plain = distill(lambda: Conv(0), Conv(1), Toy(transform=Jitter()), batch_size=6, **settings)
    loader = DataLoader(Toy(transform=Jitter()), batch_size=6, num_workers=1)
    assert bits(distill(lambda: Conv(0), Conv(1), loader, **settings).student) == bits(plain.student)
    with pytest.warns(UserWarning, match="is a stream"):
        assert distill(lambda: Conv(0), Conv(1), Stream(), batch_size=6, **settings).results[0].history
    with (
        pytest.warns(UserWarning, match="is a stream"),
        pytest.raises(InputError, match="leave the cache out|stream"),
    ):
        distill(lambda: Conv(0), Conv(1), Stream(), batch_size=6, cache=tmp_path, **settings)


def test_text_labels_are_refused_by_name() -> None:
    class Text(Toy):
        def __getitem__(self, number: int):
            return super().__getitem__(number)[0], "cat"

    with pytest.raises(InputError, match="'cat'") as caught:
        distill(lambda: Conv(0), Conv(1), Text(), method=Distil, steps=1)
    assert "labels" in str(caught.value.where)


def test_a_batch_of_every_kind_of_tensor_arrives_as_it_was_sent() -> None:
    large = torch.rand(4, 200, 200)
    extra = {
        "half": torch.ones(4).bfloat16(),
        "flags": torch.tensor([True, False, True, False]),
        "names": ("a", "b"),
        "large": large,
    }

    def views(batch):
        batch.extra, batch.partners = extra | {"nested": {"list": [torch.arange(4)], "number": 3}}, torch.arange(4) ^ 1
        return batch

    data = DatasetData(Toy(8), views=views, loading=Loading(1))
    loader = BatchLoader(data, SampleOrder(8, 4, 0), 2)
    here, there = loader.read(0), loader.take(0)
    loader.close()
    assert there.extra["names"] == ("a", "b") and there.extra["nested"]["number"] == 3
    trees = [[b.inputs, b.labels, b.ids, b.seeds, b.partners, b.extra] for b in (here, there)]
    for (name, a), (other, b) in zip(*map(flatten_tree, trees), strict=True):
        assert name == other and a.dtype == b.dtype and torch.equal(a, b)
