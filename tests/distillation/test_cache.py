"""The teacher cache: exact to the view, resumable, and refused when stale, foreign or damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tutelage.distillation import cache_build
from tutelage.distillation.augmentation import Augmentation
from tutelage.distillation.cache import Cache, CachedTeacher, densify, sparsify
from tutelage.distillation.cache_build import build, estimate_break_even, verify
from tutelage.distillation.data import TensorData
from tutelage.distillation.ensemble import EnsembleTeacher
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.teacher import EMATeacher, NetworkTeacher
from tutelage.distillation.trainer import train
from tutelage.errors import InputError, StaleError

from .toy import Distil, bits, samples

MIXED = Augmentation(crop=1, flip=0.5, colour=0.2, mixup=0.8, cutmix=1.0, classes=3)


class Conv(nn.Module):
    def __init__(self, seed: int, width: int = 4):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.body = nn.Conv2d(1, width, 3)
            self.head = nn.Linear(width, 3)

    def forward(self, x):
        return self.head(self.body(x).relu().mean((2, 3)))


def lesson(augment: Augmentation | None = None, teacher: object = None, **settings: object) -> TrainingJob:
    generator = torch.Generator().manual_seed(0)
    data = TensorData(torch.rand(24, 1, 6, 6, generator=generator), torch.arange(24) % 3, views=augment)
    chosen: dict = {"steps": 9, "batch_size": 8, "lr": 0.01} | settings
    return TrainingJob(Conv(0), teacher or Conv(1, 6), Distil(), data, TrainingSettings(**chosen), name="cached")


def cached(made: TrainingJob, root: Path, store: object = "fp32", **options: object) -> TrainingJob:
    made.teacher = CachedTeacher(build(made, root, store, **options), made.teacher)
    return made


@pytest.mark.parametrize(
    ("views", "settings"),
    [(None, {}), (Augmentation(crop=1, flip=0.5), {}), (Augmentation(crop=1), {"views": 2}), (MIXED, {}), (MIXED, {"views": 1}),
     (Augmentation(flip=0.5), {"accumulate": 2}), (Augmentation(crop=1), {"batch_size": 10, "views": 2})],
)  # fmt: skip
def test_training_on_a_cache_equals_training_with_the_live_teacher_bit_for_bit(tmp_path, views, settings) -> None:
    live = train(lesson(views, **settings))
    stored = train(cached(lesson(views, **settings), tmp_path, shard=2))
    assert bits(live.student) == bits(stored.student)
    assert [r["terms"] for r in live.history] == [r["terms"] for r in stored.history]


def test_fp16_is_within_a_thousandth_and_plain_data_is_stored_once(tmp_path: Path) -> None:
    made = cached(lesson(), tmp_path, "fp16")
    batch = made.data.batch(*made.sample_order().step(5))
    live, stored = made.teacher.uncached(batch)["logits"], made.teacher(batch)["logits"]
    assert torch.allclose(live, stored, atol=1e-3) and stored.dtype == torch.float32
    assert len(made.teacher.cache) == 24


def test_tapped_features_are_stored_too(tmp_path: Path) -> None:
    made = lesson(teacher=NetworkTeacher(Conv(1), taps=("body",)))
    store = build(made, tmp_path, {"logits": "fp32", "body": "fp16"})
    batch = made.data.batch(*made.sample_order().step(0))
    assert torch.allclose(store.read(batch)["body"], made.teacher(batch)["body"], atol=1e-3)
    teacher = CachedTeacher(store)
    teacher.request_features("body")
    with pytest.raises(StaleError, match="no output of head"):
        teacher.request_features("head")


@given(st.integers(2, 60), st.integers(1, 60), st.integers(0, 1000), st.sampled_from([1.0, 20.0]))
def test_sparse_targets_are_probabilities_with_the_leftover_spread_evenly(classes, k, seed, scale) -> None:
    k = min(k, classes)
    logits = scale * torch.randn(3, classes, generator=torch.Generator().manual_seed(seed))
    ids, values = sparsify(logits, k)
    dense = densify(ids, values, classes)
    exact = logits.softmax(-1)
    assert dense.min() >= 0 and torch.allclose(dense.sum(-1), torch.ones(3), atol=1e-6)
    assert torch.equal(ids.long(), exact.topk(k, -1).indices)
    assert torch.allclose(dense.gather(1, ids.long()), values.float(), rtol=2e-3, atol=1e-6)
    if k >= classes - 1:
        assert torch.allclose(dense, exact, atol=2e-3)
    else:
        rest = dense.scatter(1, ids.long(), -1.0)
        spread = [row[row >= 0] for row in rest]
        assert all(torch.allclose(row, row[:1].expand_as(row)) for row in spread)


def test_class_ids_widen_where_int16_does_not_hold_them() -> None:
    logits = torch.zeros(1, 40_000)
    logits[0, 39_999] = 9.0
    ids, values = sparsify(logits, 1)
    assert ids.dtype == torch.int32 and ids.item() == 39_999
    assert sparsify(torch.zeros(1, 100), 1)[0].dtype == torch.int16
    assert densify(ids, values, 40_000).argmax() == 39_999


def test_a_sparse_cache_reads_as_log_probabilities(tmp_path: Path) -> None:
    made = cached(lesson(), tmp_path, "top2")
    batch = made.data.batch(*made.sample_order().step(0))
    stored, live = made.teacher(batch)["logits"].softmax(-1), made.teacher.uncached(batch)["logits"].softmax(-1)
    assert torch.allclose(stored, live, atol=1e-3)  # with K = C - 1 the leftover is the missing class
    assert verify(tmp_path, lesson())["largest_error"]["logits"] < 1e-3


def test_a_stopped_build_goes_on_and_finished_shards_are_kept(tmp_path: Path) -> None:
    def stop(done: int, count: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(lesson(MIXED), tmp_path, shard=2, progress=stop)
    kept = {p.name: p.stat().st_mtime_ns for p in tmp_path.glob("shard-*")}
    with pytest.raises(InputError, match="shard 3 of 5 is missing"):
        Cache(tmp_path)
    calls: list[tuple[int, int]] = []
    build(lesson(MIXED), tmp_path, shard=2, progress=lambda *a: calls.append(a))
    assert len(kept) == 2 and calls == [(3, 5), (4, 5), (5, 5)]
    assert all((tmp_path / name).stat().st_mtime_ns == when for name, when in kept.items())
    assert verify(tmp_path, lesson(MIXED))["asked"] > 0


def test_a_parallel_build_gives_the_same_bytes(tmp_path: Path) -> None:
    build(lesson(MIXED), tmp_path / "one", shard=5)
    build(lesson(MIXED), tmp_path / "two", shard=5, processes=2)
    for path in sorted((tmp_path / "one").iterdir()):
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda made: setattr(made.teacher.network.head.bias, "data", torch.ones(3)), "another teacher"),
        (lambda made: setattr(made, "data", samples(24)), "another data or augmentation"),
        (lambda made: setattr(made.data, "views", Augmentation(flip=1.0)), "another data or augmentation"),
    ],
)
def test_stale_and_foreign_caches_are_refused_with_the_reason(tmp_path: Path, change, message: str) -> None:
    build(lesson(), tmp_path)
    other = lesson()
    change(other)
    with pytest.raises(StaleError, match=message):
        build(other, tmp_path)
    with pytest.raises(StaleError):
        verify(tmp_path, other)


def test_a_cache_of_another_teacher_or_data_cannot_be_opened_for_this_one(tmp_path: Path) -> None:
    store = build(lesson(), tmp_path)
    with pytest.raises(StaleError, match="built from teacher"):
        CachedTeacher(store, NetworkTeacher(Conv(7)))
    with pytest.raises(StaleError, match="built from data"):
        Cache(tmp_path, samples())


def test_a_view_that_is_not_stored_is_named_and_never_recomputed(tmp_path: Path) -> None:
    store = build(lesson(Augmentation(flip=0.5)), tmp_path)
    other = lesson(Augmentation(flip=0.5), seed=5)
    with pytest.raises(StaleError, match=r"does not hold sample \d+ in the view of seed \d+"):
        store.read(other.data.batch(*other.sample_order().step(0)))


def test_one_cache_serves_other_seeds_when_the_views_are_shared(tmp_path: Path) -> None:
    shared = {"views": 2, "view_seed": 3}
    store = build(lesson(Augmentation(flip=0.5), **shared), tmp_path)
    other = lesson(Augmentation(flip=0.5), seed=5, **shared)
    other.teacher = CachedTeacher(store, other.teacher)
    assert train(other).history


def test_truncated_altered_and_foreign_shards_are_named(tmp_path: Path) -> None:
    build(lesson(), tmp_path, shard=2)
    path = tmp_path / "shard-000001.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    with pytest.raises(InputError, match="not a readable safetensors") as caught:
        Cache(tmp_path)
    assert "shard-000001" in str(caught.value) and "delete this shard" in str(caught.value)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(InputError, match="damaged"):
        verify(tmp_path)
    head = json.loads((tmp_path / "cache.json").read_text())
    (tmp_path / "cache.json").write_text(json.dumps(head | {"version": 0}))
    with pytest.raises(StaleError, match="format 0"):
        Cache(tmp_path)
    (tmp_path / "cache.json").write_text("[]")
    with pytest.raises(StaleError, match="not a teacher cache"):
        Cache(tmp_path)
    with pytest.raises(InputError, match="no such file"):
        Cache(tmp_path / "nowhere")


def test_verify_notices_a_teacher_that_says_something_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(lesson(), tmp_path)
    made = lesson()
    monkeypatch.setattr(NetworkTeacher, "fingerprint", json.loads((tmp_path / "cache.json").read_text())["teacher"])
    made.teacher.network.head.bias.data += 0.5
    with pytest.raises(StaleError, match="differs from the cache"):
        verify(tmp_path, made)


def test_what_cannot_be_cached_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="logits: cannot store a head as 'fp8'"):
        build(lesson(), tmp_path / "a", "fp8")
    with pytest.raises(InputError, match="no head logit"):
        build(lesson(), tmp_path / "b", {"logit": "fp16"})
    changing = lesson(teacher=EMATeacher(Conv(1)))
    with pytest.raises(InputError, match="changes while it teaches"):
        build(changing, tmp_path / "c")
    broken = lesson()
    broken.teacher.network.head.bias.data[0] = float("inf")
    both = lesson(teacher=EnsembleTeacher([EMATeacher(Conv(1)), Conv(2)]))
    with pytest.raises(InputError, match="changes while it teaches"):
        build(both, tmp_path / "e")
    with pytest.raises(InputError, match="'logits' is not finite"):
        build(broken, tmp_path / "d")


def test_ensembles_are_cached_like_one_teacher(tmp_path: Path) -> None:
    made = cached(lesson(teacher=EnsembleTeacher([Conv(1), Conv(2)])), tmp_path)
    batch = made.data.batch(*made.sample_order().step(1))
    assert torch.equal(made.teacher(batch)["logits"], made.teacher.uncached(batch)["logits"])


def test_info_and_break_even_count_what_is_there(tmp_path: Path) -> None:
    store = build(lesson(Augmentation(flip=0.5), views=2), tmp_path, "fp16")
    facts = store.info()
    assert facts["rows"] == 48 and facts["dense_fp32_bytes"] == 48 * 3 * 4
    assert facts["bytes"] == sum(p.stat().st_size for p in tmp_path.iterdir())
    told = estimate_break_even(lesson(Augmentation(flip=0.5), views=2), "fp16")
    assert told["build_passes"] == 6 and told["training_passes"] == 9
    assert told["bytes"] == 48 * (8 + 3 * 2) and told["break_even_passes"] > 0


def test_the_plan_stops_where_nothing_new_comes() -> None:
    made = lesson(steps=100)
    passes = [
        cache_build.plan(one.data, one.sample_order(), 100).passes
        for one in (made, lesson(Augmentation(flip=1.0), views=2), lesson(Augmentation(flip=1.0)), lesson(MIXED, views=2))
    ]
    assert passes == [3, 6, 100, 100]


def test_the_student_of_another_width_trains_from_the_same_cache(tmp_path: Path) -> None:
    build(lesson(), tmp_path)
    made = lesson()
    made.student, made.teacher = Conv(3, 2), CachedTeacher(Cache(tmp_path, made.data), made.teacher)
    assert train(made).history


def test_a_damaged_shard_says_so_and_what_to_do(tmp_path: Path) -> None:
    made = cached(lesson(), tmp_path, shard=1)
    first, second = sorted(tmp_path.glob("shard-*"))[:2]
    whole = second.read_bytes()
    second.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    with pytest.raises(InputError, match="shard is corrupted") as caught:
        Cache(tmp_path)
    assert caught.value.where == second and "build again" in caught.value.remedy and "cache verify" in caught.value.remedy
    second.write_bytes(first.read_bytes())  # whole by itself, but not this one
    with pytest.raises(InputError, match="cache is corrupted: its shards hold 16 of the 24 views") as caught:
        cached(lesson(), tmp_path)
    assert "cache verify" in caught.value.remedy
    second.write_bytes(whole)
    assert len(Cache(tmp_path)) == len(made.teacher.cache)
