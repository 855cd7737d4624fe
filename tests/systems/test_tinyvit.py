from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from tutelage.distillation.augmentation import Augmentation
from tutelage.distillation.cache import CachedTeacher, densify, sparsify
from tutelage.distillation.cache_build import build
from tutelage.distillation.data import TensorData
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.trainer import train
from tutelage.errors import InputError, StaleError
from tutelage.systems._toy import SmallCNN, build_with_seed, toy_images
from tutelage.systems.tinyvit import PublishedLabels, TinyViT, soft_cross_entropy


def logits(seed: int, classes: int, sharpness: float = 1.0) -> Tensor:
    return sharpness * torch.randn(5, classes, generator=torch.Generator().manual_seed(seed))


@given(st.integers(0, 10_000), st.integers(2, 20), st.sampled_from([0.1, 1.0, 30.0]), st.data())
def test_dense_labels_are_a_distribution(seed: int, classes: int, sharpness: float, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, classes))
    z = logits(seed, classes, sharpness)
    q, p = densify(*sparsify(z, k), classes), z.softmax(-1)
    assert bool((q >= 0).all())
    torch.testing.assert_close(q.sum(-1), torch.ones(5), atol=1e-6, rtol=0)
    kept = p.topk(k).indices
    torch.testing.assert_close(q.gather(1, kept), p.gather(1, kept), atol=1e-3, rtol=2e-3)
    if k >= classes - 1:
        torch.testing.assert_close(q, p, atol=1e-3, rtol=2e-3)


def test_the_leftover_is_spread_and_not_renormalised() -> None:
    z = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log()
    torch.testing.assert_close(densify(*sparsify(z, 1), 4), torch.tensor([[0.5, 1 / 6, 1 / 6, 1 / 6]]))


def test_loss_by_hand() -> None:
    z, q = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.25, 0.75]])
    log = z.log_softmax(-1)[0]
    assert soft_cross_entropy(z, q).item() == pytest.approx(-(0.25 * log[0] + 0.75 * log[1]).item())


def lesson(k: int | None, mixing: bool = False) -> TrainingJob:
    images = toy_images(0, 32)
    views = Augmentation(crop=1, flip=0.5, mixup=0.8 if mixing else 0.0, cutmix=1.0 if mixing else 0.0, classes=4)
    data = TensorData(images.inputs, images.labels, views=views)
    student, teacher = build_with_seed(lambda: SmallCNN(4, 4, 8), 0), build_with_seed(lambda: SmallCNN(4, 8, 16), 1)
    return TrainingJob(student, teacher, TinyViT(k=k), data, TrainingSettings(steps=6, batch_size=8, views=2, log_every=1))


@pytest.mark.parametrize("mixing", [False, True])
@pytest.mark.parametrize("k", [2, 4])
def test_stored_labels_are_those_of_the_live_teacher_on_the_same_views(tmp_path: Path, k: int, mixing: bool) -> None:
    live = train(lesson(k, mixing))
    cache = build(lesson(k, mixing), tmp_path, storage_format=f"top{k}")
    stored = lesson(k, mixing)
    stored.teacher = CachedTeacher(cache, stored.teacher)
    replayed = train(stored)
    ours, theirs = ([r["terms"]["soft"] for r in result.history] for result in (replayed, live))
    assert ours == pytest.approx(theirs, abs=1e-5)
    dense = [r["terms"]["soft"] for r in train(lesson(None, mixing)).history]
    if k == 4:
        assert ours == pytest.approx(dense, abs=1e-3)


def test_a_view_replays_bit_for_bit() -> None:
    one, other = lesson(2, mixing=True), lesson(2, mixing=True)
    for step in range(3):
        first, again = (made.data.batch(*made.sample_order().step(step)) for made in (one, other))
        assert torch.equal(first.inputs, again.inputs) and torch.equal(first.labels, again.labels)


def test_labels_of_another_augmentation_are_refused(tmp_path: Path) -> None:
    cache = build(lesson(2), tmp_path, storage_format="top2")
    changed = lesson(2)
    changed.settings = TrainingSettings(steps=6, batch_size=8, views=2, seed=1)
    changed.teacher = CachedTeacher(cache, changed.teacher)
    with pytest.raises(StaleError):
        train(changed)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 6))
def test_records_round_trip(tmp_path_factory: pytest.TempPathFactory, seed: int, k: int) -> None:
    folder = tmp_path_factory.mktemp("records") / f"logits_top{k}_epoch0"
    z = logits(seed, 6)
    seeds = torch.randint(0, 2**31, (5,), generator=torch.Generator().manual_seed(seed))
    PublishedLabels.write(folder, [f"n01/{i}.jpg" for i in range(3)], seeds[:3], z[:3], k, rank=0)
    PublishedLabels.write(folder, ["n02/3.jpg", "n02/4.jpg"], seeds[3:], z[3:], k, rank=1)
    records = PublishedLabels(folder, k)
    assert len(records) == 5
    assert (folder / "rank1-values.bin").stat().st_size == 2 * (4 + 4 * k)
    ids, values = sparsify(z, k)
    for i, key in enumerate(records):
        found = records[key]
        assert found[0] == int(seeds[i])
        assert torch.equal(found[1], ids[i]) and torch.equal(found[2], values[i])


def test_a_record_by_hand(tmp_path: Path) -> None:
    PublishedLabels.write(tmp_path, ["a"], torch.tensor([258]), torch.tensor([[0.25, 0.75]]).log(), 2)
    data = (tmp_path / "rank0-values.bin").read_bytes()
    assert data == bytes([2, 1, 0, 0]) + bytes([1, 0, 0, 0]) + bytes([0x00, 0x3A, 0x00, 0x34])
    assert (tmp_path / "rank0-keys.txt").read_text() == "a\n"


def test_bad_records_are_refused(tmp_path: Path) -> None:
    z, seeds = logits(0, 4), torch.arange(5)
    with pytest.raises(InputError, match="int16"):
        PublishedLabels.write(tmp_path, ["a"], seeds[:1], torch.zeros(1, 2**15 + 1), 1)
    with pytest.raises(InputError, match="unique"):
        PublishedLabels.write(tmp_path, ["a", "a"], seeds[:2], z[:2], 1)
    with pytest.raises(InputError, match="31 bits"):
        PublishedLabels.write(tmp_path, ["a"], torch.tensor([2**31]), z[:1], 1)
    with pytest.raises(InputError, match="keys"):
        PublishedLabels(tmp_path, 1)
    PublishedLabels.write(tmp_path, list("abcde"), seeds, z, 2)
    with pytest.raises(InputError, match="no record"):
        PublishedLabels(tmp_path, 2)["f"]
    with pytest.raises(InputError, match="12 bytes"):
        PublishedLabels(tmp_path, 2 + 0).__class__(_cut(tmp_path), 2)


def _cut(folder: Path) -> Path:
    file = folder / "rank0-values.bin"
    file.write_bytes(file.read_bytes()[:-3])
    return folder


@pytest.mark.parametrize("kind", [torch.int32, torch.int64])
def test_seeds_of_either_width_are_written(tmp_path: Path, kind: torch.dtype) -> None:
    seeds = torch.tensor([0, 2**31 - 1]).to(kind)
    folder = PublishedLabels.write(tmp_path, ["a", "b"], seeds, torch.randn(2, 3), 1)
    assert [PublishedLabels(folder, 1)[key][0] for key in ("a", "b")] == [0, 2**31 - 1]


def test_sparse_ids_widen_for_large_vocabularies() -> None:
    assert sparsify(torch.zeros(1, 2**15), 1)[0].dtype in (torch.int16, torch.int32)
    ids, _ = sparsify(F.one_hot(torch.tensor([2**15 + 5]), 2**15 + 10).float() * 9, 1)
    assert ids.item() == 2**15 + 5


def test_nothing_kept_is_refused() -> None:
    with pytest.raises(InputError):
        TinyViT(k=0)
