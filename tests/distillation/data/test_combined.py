"""Several sources of data as one: which rows a pass takes, exact resume and cache, labelled beside unlabelled."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.distillation.api import distill
from tutelage.distillation.augmentation import Augmentation
from tutelage.distillation.cache import CachedTeacher
from tutelage.distillation.cache_build import build, verify
from tutelage.distillation.data import TensorData, order_of
from tutelage.distillation.data.combined import CombinedData, part, task_stream
from tutelage.distillation.data.dataset import DatasetData, Loading
from tutelage.distillation.data.mixing import InSequence, InTurn, Together
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.method import Phase
from tutelage.distillation.schedule import boundaries
from tutelage.distillation.supervised import Supervised
from tutelage.distillation.trainer import Trainer, train
from tutelage.errors import InputError
from tutelage.systems.kd import KD

from ..toy import Net, bits, samples
from .toy_datasets import Conv, Jitter, Toy


def domains(mixing=None, **options: object) -> CombinedData:
    return CombinedData({"source": samples(40), "target": TensorData(samples(25, 5).inputs)}, mixing, **options)


def job(data: object, **changes: object) -> TrainingJob:
    chosen: dict = {"steps": 12, "batch_size": 8, "lr": 0.01, "log_every": 3, "checkpoint_every": 5} | changes
    return TrainingJob(Net(), Net(16, seed=1), KD(), data, TrainingSettings(**chosen), name="toy", task="classification")


@given(st.lists(st.floats(0.05, 20), min_size=1, max_size=5), st.integers(0, 60))
@settings(max_examples=60, deadline=None)
def test_rows_are_shared_out_whole(weights: list[float], more: int) -> None:
    names = [str(i) for i in range(len(weights))]
    size = len(weights) + more
    rows = [share.batch_size for share in Together(dict(zip(names, weights, strict=True))).shares(names, size, 5, 1)]
    assert sum(rows) == size and min(rows) >= 1
    for count, weight in zip(rows, weights, strict=True):
        assert count == 1 or count <= size * weight / sum(weights) + 1


@given(st.lists(st.integers(3, 20), min_size=1, max_size=3), st.integers(3, 9), st.sampled_from(["together", "turn", "sequence"]))
@settings(max_examples=40, deadline=None)
def test_every_source_is_shown_whole_before_any_sample_comes_again(lengths: list[int], size: int, how: str) -> None:
    mixing = {"together": Together(), "turn": InTurn(), "sequence": InSequence()}[how]
    data = CombinedData({str(i): TensorData(torch.zeros(n, 1)) for i, n in enumerate(lengths)}, mixing)
    order = order_of(data, size, 3, steps=60, accumulate=1)
    seen: dict[int, list[int]] = {}
    for number in range(60):
        ids, _ = order.step(number)
        assert len(ids) == size
        for one in ids.tolist():
            source = sum(one >= start for start in data.starts) - 1
            seen.setdefault(source, []).append(one - data.starts[source])
    for source, length in enumerate(lengths):
        for first in range(0, len(seen[source]) - length + 1, length):
            assert sorted(seen[source][first : first + length]) == list(range(length))


def test_a_batch_holds_both_domains_and_says_which_row_is_which() -> None:
    data = domains(Together({"source": 3, "target": 1}))
    batch = data.batch(*order_of(data, 8, 0).step(0))
    assert batch.extra["source"].tolist() == [0] * 6 + [1] * 2
    assert (batch.labels[6:] == -100).all() and (batch.labels[:6] >= 0).all()
    inner = data.sources["target"].inputs[batch.ids[6:] - 40]
    target = part(batch, "target")
    assert torch.equal(batch.inputs[6:], inner) and torch.equal(target.inputs, inner) and torch.equal(target.ids, batch.ids[6:])
    assert len(part(batch, "source")) == 6


def test_rows_come_in_the_order_asked_for_and_partners_follow() -> None:
    def swapped(batch):
        batch.partners = torch.arange(len(batch)) ^ 1
        return batch

    data = CombinedData(
        {"a": TensorData(torch.arange(4.0)[:, None], views=swapped), "b": TensorData(torch.arange(4.0, 8)[:, None])}
    )
    asked = torch.tensor([5, 0, 7, 3, 2, 1])
    batch = data.batch(asked, torch.zeros(6, dtype=torch.int64))
    assert batch.inputs[:, 0].tolist() == asked.tolist() == batch.ids.tolist()
    partner = batch.ids[batch.partners].tolist()
    assert partner == [5, 3, 7, 0, 1, 2]  # rows of "a" in pairs (0, 3), (2, 1); rows of "b" with themselves


def test_parts_of_unlike_shape_stay_apart() -> None:
    sources = {"clips": TensorData(torch.zeros(6, 4, 3, 5, 5)), "stills": TensorData(torch.ones(9, 3, 7, 7), torch.arange(9))}
    with pytest.raises(InputError, match="parts=True") as caught:
        CombinedData(sources).batch(torch.tensor([0, 7]), None)
    assert "stills" in str(caught.value) and "[4, 3, 5, 5]" in str(caught.value)
    batch = CombinedData(sources, parts=True).batch(torch.tensor([0, 7, 8]), None).to("cpu")
    assert batch.inputs["clips"].shape == (1, 4, 3, 5, 5) and batch.labels == {"stills": batch.labels["stills"]}
    stills = part(batch, "stills")
    assert stills.labels.tolist() == [1, 2] and stills.ids.tolist() == [7, 8]
    turns = CombinedData(sources, InTurn(("clips", "clips", "stills")))
    shapes = [turns.batch(*order_of(turns, 4, 0, steps=6).step(n)).inputs.shape for n in range(6)]
    assert [len(shape) for shape in shapes] == [5, 5, 4, 5, 5, 4]


@pytest.mark.parametrize("mixing", [Together({"source": 3, "target": 1}), InTurn(("source", "target", "source")), InSequence()])
def test_a_stopped_run_resumes_to_the_same_bits_and_a_cached_teacher_equals_the_live_one(tmp_path: Path, mixing) -> None:
    def combined() -> CombinedData:
        return CombinedData({"source": samples(40), "target": TensorData(samples(25, 5).inputs)}, mixing)

    whole = train(job(combined(), accumulate=2))
    for _ in range(2):

        def stop(done: int, steps: int) -> None:
            if done == 8:
                raise KeyboardInterrupt

        try:
            resumed = train(job(combined(), accumulate=2), tmp_path / "run", stop)
        except KeyboardInterrupt:
            resumed = train(job(combined(), accumulate=2), tmp_path / "run")
    assert bits(resumed.student) == bits(whole.student)
    cached = job(combined(), accumulate=2)
    cached.teacher = CachedTeacher(build(cached, tmp_path / "cache", shard=3), cached.teacher)
    assert bits(train(cached).student) == bits(whole.student)
    assert verify(tmp_path / "cache", job(combined(), accumulate=2))["largest_error"] == {"logits": 0.0}
    if isinstance(mixing, Together):  # nothing in these samples is random: each is asked about once or twice, not every epoch
        assert len(cached.teacher.cache) < 2 * 65


@pytest.mark.parametrize("mixing", [Together(), InTurn()])
def test_seeds_have_caches_of_their_own_where_they_show_other_samples(tmp_path: Path, mixing) -> None:
    data = CombinedData({"a": samples(10), "b": samples(9, 1)}, mixing)
    chosen: dict = {"steps": 4, "batch_size": 4, "seeds": 2, "task": "classification"}
    cached = distill(Net(), Net(16, seed=1), data, "kd", cache=tmp_path, **chosen)
    live = distill(Net(), Net(16, seed=1), data, "kd", view_seed=0, **chosen)
    assert [bits(one.student) for one in cached.results] == [bits(one.student) for one in live.results]
    other = data.with_sources({"a": samples(5), "b": samples(4)})
    assert len(other) == 9 and type(other.mixing) is type(mixing)


def test_workers_change_nothing() -> None:
    def images(workers: int) -> TrainingJob:
        loading = Loading(workers)
        sources = {"a": DatasetData(Toy(24, Jitter()), loading=loading), "b": DatasetData(Toy(10), views=Augmentation(flip=0.5))}
        made = TrainingSettings(steps=6, batch_size=6, lr=0.01)
        return TrainingJob(Conv(0), Conv(1, 6), KD(), CombinedData(sources), made, task="classification")

    assert bits(train(images(0)).student) == bits(train(images(2)).student)


def test_data_change_in_the_step_in_which_the_phase_changes() -> None:
    class TwoPhases(Supervised):
        def phases(self):
            return [Phase("one", 1), Phase("two", 2)]

    data = domains(InSequence({"source": 1, "target": 2}))
    labelled = CombinedData({"source": samples(40), "target": samples(25, 5)}, InSequence({"source": 1, "target": 2}))
    made = TrainingJob(
        Net(), None, TwoPhases(), labelled, TrainingSettings(steps=10, batch_size=4, accumulate=3), task="classification"
    )
    trainer = Trainer(made)
    for stage, first, length in boundaries(TwoPhases().phases(), 10):
        for number in range(first * 3, (first + length) * 3):
            wanted = {"one": 0, "two": 1}[stage.name]
            assert trainer.batch(number).extra["source"].unique().tolist() == [wanted]
    assert len(data) == 65


def test_sources_nest() -> None:
    both = CombinedData({"source": samples(10), "target": samples(10, 1)}, Together(), field="domain")
    data = CombinedData({"first": samples(12, 2), "then": both}, InSequence(), field="stage")
    order = order_of(data, 4, 0, steps=4)
    batches = [data.batch(*order.step(n)) for n in range(4)]
    assert [b.extra["stage"].unique().tolist() for b in batches] == [[0], [0], [1], [1]]
    assert batches[2].extra["domain"].tolist() == [0, 0, 1, 1]


def test_a_task_stream_numbers_its_tasks() -> None:
    data = task_stream([samples(10, n) for n in range(3)])
    order = order_of(data, 5, 0, steps=6)
    assert [int(data.batch(*order.step(n)).extra["task"][0]) for n in range(6)] == [0, 0, 1, 1, 2, 2]
    assert data.names == ("task 0", "task 1", "task 2")


def test_the_fingerprint_names_sources_and_mixing() -> None:
    made = [
        domains(),
        domains(Together({"source": 2, "target": 1})),
        domains(InTurn()),
        domains(parts=True),
        domains(field="domain"),
    ]
    made.append(CombinedData({"source": samples(40, 1), "target": TensorData(samples(25, 5).inputs)}))
    assert all(a.fingerprint != b.fingerprint for a, b in itertools.combinations(made, 2))
    assert domains().fingerprint == domains().fingerprint


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: CombinedData({}), "no source"),
        (lambda: CombinedData({"a": TensorData(torch.zeros(3, 1)), "b": 5}), "sources.b"),
        (lambda: domains(Together({"sorce": 1})), "did you mean source"),
        (lambda: domains(Together({"source": 1})), "'target' gets 0"),
        (lambda: domains(InTurn(("source",))), "never read"),
        (lambda: domains(InSequence({"source": 1, "target": float("nan")})), "gets nan"),
        (lambda: order_of(domains(), 1, 0), "at least 2"),
        (lambda: domains().batch(torch.tensor([65]), None), "no sample 65"),
        (lambda: domains().batch(torch.tensor([-1]), None), "no sample -1"),
        (lambda: part(samples(4).batch(torch.arange(2), None), "a"), "no field"),
        (lambda: part(domains().batch(torch.arange(2), None), "targt"), "did you mean target"),
    ],
)
def test_refusals_name_the_source_and_the_remedy(make, words: str) -> None:
    with pytest.raises(InputError) as caught:
        make()
    assert words in str(caught.value)


def test_sources_with_other_classes_are_refused(tmp_path: Path) -> None:
    from PIL import Image

    from tutelage.distillation.data.sources import image_folder

    for place, names in {"real": ("cat", "dog"), "drawn": ("cat", "horse")}.items():
        for name in names:
            (tmp_path / place / name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(tmp_path / place / name / "0.png")
    with pytest.raises(InputError, match="dog, horse"):
        CombinedData({place: image_folder(tmp_path / place, 8) for place in ("real", "drawn")})
