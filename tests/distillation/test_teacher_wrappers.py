"""Wrappers: what a teacher is shown and what it says, composed, cached, and named by all that decides an answer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import tutelage
from tutelage.distillation.cache import Cache, CachedTeacher
from tutelage.distillation.cache_build import build
from tutelage.distillation.data import Batch, TensorData
from tutelage.distillation.preprocessing import Preprocessing
from tutelage.distillation.recipe import TeacherSpec, read
from tutelage.distillation.resolve import build_teacher
from tutelage.distillation.teacher import NetworkTeacher
from tutelage.distillation.teacher_wrappers import (
    AveragedViewsTeacher,
    ExtraChannelsTeacher,
    MappedClassesTeacher,
    PreprocessedTeacher,
    View,
)
from tutelage.errors import InputError, StaleError

from .toy import Distil, lesson


class Shows(nn.Module):
    """Puts out its input, and the mean of each channel as logits."""

    def __init__(self) -> None:
        super().__init__()
        self.none = nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": x.mean((2, 3)), "map": x}


class Conv(nn.Module):
    def __init__(self, channels: int = 3, classes: int = 5, seed: int = 0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.layer, self.head = nn.Conv2d(channels, 4, 3), nn.Linear(4, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layer(x).tanh().mean((2, 3)))


def images(channels: int = 3, size: int = 8) -> Batch:
    generator = torch.Generator().manual_seed(1)
    return Batch(torch.rand(6, channels, size, size, generator=generator), torch.arange(6) % 3, ids=torch.arange(6))


def test_preprocessing_by_hand() -> None:
    x = images().inputs
    seen = Preprocessing(mean=(100.0, 110.0, 120.0), std=(2.0, 4.0, 5.0), channel_order="bgr", value_range=(0, 255))(x)
    expected = (x.flip(1) * 255 - torch.tensor([100.0, 110, 120])[:, None, None]) / torch.tensor([2.0, 4, 5])[:, None, None]
    assert torch.allclose(seen, expected, atol=1e-4)
    assert Preprocessing(image_size=(4, 6))(x).shape == (6, 3, 4, 6)
    assert torch.equal(Preprocessing()(x), x) and torch.equal(Preprocessing(image_size=8)(x), x)
    gray = images(1).inputs
    assert torch.equal(Preprocessing(channels=3)(gray), gray.expand(-1, 3, -1, -1))
    normal = (x - 0.5) / 0.25
    undone = Preprocessing(data_mean=(0.5,) * 3, data_std=(0.25,) * 3, value_range=(-1.0, 1.0))(normal)
    assert torch.allclose(undone, 2 * x - 1, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"mean": (0.5,)}, "mean"),
        ({"mean": (0.5,), "std": (0.0,)}, "mean"),
        ({"mean": (float("nan"),), "std": (1.0,)}, "mean"),
        ({"value_range": (1.0, 0.0)}, "value_range"),
        ({"image_size": 0}, "image_size"),
        ({"channels": 0}, "channels"),
        ({"channel_order": "rbg"}, "channel_order"),
    ],
)
def test_impossible_preprocessing_is_refused(options: dict, where: str) -> None:
    with pytest.raises(InputError) as caught:
        Preprocessing(**options)
    assert caught.value.where == where


def test_preprocessing_that_does_not_fit_the_images_is_refused() -> None:
    for wrong in (Preprocessing(mean=(0.5,), std=(1.0,)), Preprocessing(channels=4)):
        with pytest.raises(InputError, match="channels"):
            PreprocessedTeacher(Shows(), wrong)(images())
    with pytest.raises(InputError, match=r"no images \[B, C, H, W\] among the inputs: \[4, 3\]"):
        PreprocessedTeacher(Shows(), Preprocessing())(Batch(torch.zeros(4, 3)))


def test_a_teacher_of_other_images_and_other_classes_teaches_a_student() -> None:
    """The student sees 1 x 8 x 8 and knows 3 classes; the teacher was trained on 3 x 16 x 16, normalised, with 5."""
    network = Conv()
    preprocessing = Preprocessing(image_size=16, channels=3, mean=(0.4,) * 3, std=(0.2,) * 3)
    teacher = MappedClassesTeacher(PreprocessedTeacher(network, preprocessing), [4, 0, [1, 2]])
    data = TensorData(images(1).inputs, images(1).labels)
    done = tutelage.distill(Conv(1, 3, seed=1), teacher, data, Distil, steps=2, batch_size=4)
    assert done.student(images(1).inputs).shape == (6, 3)
    logits = network(preprocessing(images(1).inputs))
    expected = torch.stack([logits[:, 4], logits[:, 0], logits[:, 1:3].logsumexp(1)], 1)
    assert torch.allclose(teacher(images(1))["logits"], expected, atol=1e-6)


@given(st.integers(1, 6), st.integers(0, 5), st.sampled_from([-1, 1]))
def test_a_slice_renormalises_and_a_merged_class_has_the_sum(kept: int, padded: int, axis: int) -> None:
    generator = torch.Generator().manual_seed(kept + 7 * padded)
    logits = torch.randn(2, kept + padded, 4, generator=generator)
    logits = logits if axis == 1 else logits.transpose(1, 2)
    sliced = MappedClassesTeacher(lambda x: logits, kept, axis=axis)(Batch(torch.zeros(2, 1)))["logits"]
    shares = logits.softmax(axis).narrow(axis, 0, kept)
    assert torch.allclose(sliced.softmax(axis), shares / shares.sum(axis, keepdim=True), atol=1e-6)
    merged = MappedClassesTeacher(lambda x: logits, [list(range(kept)), *range(kept, kept + padded)], axis=axis)
    found = merged(Batch(torch.zeros(2, 1)))["logits"].softmax(axis).narrow(axis, 0, 1)
    assert torch.allclose(found, shares.sum(axis, keepdim=True), atol=1e-6)


def test_wrong_class_maps_are_refused() -> None:
    for wrong in ([], [[]], [-1], 0):
        with pytest.raises(InputError, match="no map of classes"):
            MappedClassesTeacher(Shows(), wrong)
    with pytest.raises(InputError, match="class 3 of a teacher that has 3"):
        MappedClassesTeacher(Shows(), [0, 3])(images())


def test_an_average_over_views_moves_maps_back() -> None:
    batch = images()
    every = AveragedViewsTeacher(Shows(), ("identity", "flip", "flip_rows", "quarter_turn"), maps=("map",))
    assert torch.allclose(every(batch)["map"], batch.inputs, atol=1e-6)
    network = Conv()
    found = AveragedViewsTeacher(network)(batch)["logits"]
    assert torch.allclose(found, (network(batch.inputs) + network(batch.inputs.flip(-1))) / 2, atol=1e-6)
    shares = AveragedViewsTeacher(network, probabilities=("logits",))(batch)["logits"].softmax(1)
    expected = (network(batch.inputs).softmax(1) + network(batch.inputs.flip(-1)).softmax(1)) / 2
    assert torch.allclose(shares, expected, atol=1e-6)
    with pytest.raises(InputError, match="did you mean flip"):
        AveragedViewsTeacher(network, ("flop",))


def test_extra_channels_come_from_a_field_or_a_function() -> None:
    batch = images()
    batch.extra["depth"] = torch.rand(6, 1, 8, 8)
    seen = ExtraChannelsTeacher(Shows(), "depth")(batch)["map"]
    assert torch.equal(seen, torch.cat([batch.inputs, batch.extra["depth"]], 1))
    one_hot = ExtraChannelsTeacher(Shows(), lambda batch: nn.functional.one_hot(batch.labels, 3))(batch)["map"]
    assert torch.equal(one_hot[:, 3:].mean((2, 3)), torch.eye(3)[batch.labels])
    with pytest.raises(InputError, match="no field 'dept'") as caught:
        ExtraChannelsTeacher(Shows(), "dept")(batch)
    assert "depth" in caught.value.remedy
    with pytest.raises(InputError, match=r"\[6, 1, 4, 4\] beside images"):
        ExtraChannelsTeacher(Shows(), lambda batch: torch.rand(6, 1, 4, 4))(batch)


def test_all_that_a_wrapper_does_is_in_its_fingerprint() -> None:
    def shifted(by: float) -> View:
        return View(lambda x: x + by, lambda x: x)

    made = [
        NetworkTeacher(Conv()),
        PreprocessedTeacher(Conv(), Preprocessing()),
        PreprocessedTeacher(Conv(), Preprocessing(image_size=4)),
        PreprocessedTeacher(Conv(seed=1), Preprocessing(image_size=4)),
        PreprocessedTeacher(Conv(), lambda x: x),
        PreprocessedTeacher(Conv(), lambda x: 2 * x),
        AveragedViewsTeacher(Conv()),
        AveragedViewsTeacher(Conv(), ("identity",)),
        AveragedViewsTeacher(Conv(), (shifted(1),)),
        AveragedViewsTeacher(Conv(), (shifted(2),)),
        MappedClassesTeacher(Conv(), 2),
        MappedClassesTeacher(Conv(), [1, 0]),
        ExtraChannelsTeacher(Conv(), "a"),
        ExtraChannelsTeacher(Conv(), "b"),
        MappedClassesTeacher(AveragedViewsTeacher(Conv()), 2),
    ]
    assert len({teacher.fingerprint for teacher in made}) == len(made)
    assert AveragedViewsTeacher(Conv(), (shifted(1),)).fingerprint == made[8].fingerprint
    assert MappedClassesTeacher(Conv(), 2).fingerprint == MappedClassesTeacher(Conv(), [0, 1]).fingerprint


def cacheable(teacher: object) -> object:
    made = lesson(student=Conv(1, 3, seed=1), data=TensorData(images(1).inputs, images(1).labels), steps=4, batch_size=3)
    made.teacher = teacher
    return made


def test_a_wrapped_teacher_is_cached_and_a_changed_one_never_reads_stale_answers(tmp_path: Path) -> None:
    def wrapped(size: int = 16) -> MappedClassesTeacher:
        return MappedClassesTeacher(PreprocessedTeacher(Conv(1), Preprocessing(image_size=size)), 3)

    job = cacheable(wrapped())
    stored = CachedTeacher(build(job, tmp_path), wrapped())
    batch = job.data.batch(*job.sample_order().step(0))
    assert torch.equal(stored(batch)["logits"], wrapped()(batch)["logits"])
    with pytest.raises(StaleError):
        CachedTeacher(Cache(tmp_path), wrapped(12))
    with pytest.raises(StaleError):
        build(cacheable(wrapped(12)), tmp_path)


def test_around_a_cache_outputs_may_be_changed_but_not_inputs(tmp_path: Path) -> None:
    job = cacheable(NetworkTeacher(Conv(1)))
    stored = CachedTeacher(build(job, tmp_path), job.teacher)
    batch = job.data.batch(*job.sample_order().step(0))
    mapped = MappedClassesTeacher(stored, [2, 0, 1])
    assert torch.equal(mapped(batch)["logits"], job.teacher(batch)["logits"][:, [2, 0, 1]])
    assert mapped.uncached.teacher is job.teacher and mapped.teacher is stored
    for wrap in (
        AveragedViewsTeacher,
        lambda one: PreprocessedTeacher(one, Preprocessing()),
        lambda one: ExtraChannelsTeacher(one, "a"),
    ):
        with pytest.raises(InputError, match="cached teacher answers the views of its data alone"):
            wrap(mapped)


RECIPE = {
    "model": "small-cnn",
    "options": {"classes": 5},
    "preprocessing": {"image_size": 16, "mean": [0.4], "std": [0.2], "value_range": [0, 1]},
    "views": ["identity", "flip"],
    "classes": [4, 0, [1, 2]],
}


def test_a_recipe_says_the_same_in_plain_values() -> None:
    built = build_teacher(read(TeacherSpec, RECIPE, "recipe"))
    plain = build_teacher(read(TeacherSpec, {name: RECIPE[name] for name in ("model", "options")}, "recipe"))
    assert isinstance(plain, nn.Module)
    shown = PreprocessedTeacher(plain, Preprocessing(image_size=16, mean=(0.4,), std=(0.2,)))
    expected = MappedClassesTeacher(AveragedViewsTeacher(shown, ("identity", "flip")), [4, 0, [1, 2]])
    assert built.fingerprint == expected.fingerprint
    assert torch.equal(built(images(1))["logits"], expected(images(1))["logits"])
    assert read(TeacherSpec, {"model": "small-cnn", "classes": 3}, "recipe").classes == 3
    for wrong, where in (
        ({"preprocessing": {"mean": [0.4]}}, "mean"),
        ({"preprocessing": {"size": 3}}, "size"),
        ({"classes": "abc"}, "classes"),
        ({"classes": []}, "teacher.classes"),
        ({"views": ["flop"]}, "teacher.views"),
    ):
        with pytest.raises(InputError) as caught:
            build_teacher(read(TeacherSpec, RECIPE | wrong, "recipe"))
        assert where in str(caught.value.where)
