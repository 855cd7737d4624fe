"""easy-VQA: the published benchmark, its prior, and what happens when a file is not what it should be."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import PIL.Image
import pytest

from tutelage.datasets import easy_vqa
from tutelage.datasets.easy_vqa import QuestionPrior, accuracy, load, question_type, split_by_image, spread_over_images, subsample
from tutelage.errors import InputError, MissingExtra


@pytest.fixture(scope="module")
def splits():
    try:
        easy_vqa.data_folder()
    except MissingExtra as error:
        pytest.skip(str(error))
    return {name: load(name) for name in ("train", "test")}


def small(folder, rows, side=64):
    (folder / "train" / "images").mkdir(parents=True)
    (folder / "train" / "questions.json").write_text(json.dumps(rows))
    for image_id in range(2):
        PIL.Image.new("RGB", (side, side), (10 * image_id, 2, 3)).save(folder / "train" / "images" / f"{image_id}.png")
    return folder


def test_published_sizes_and_types(splits):
    assert [len(splits[name]) for name in ("train", "test")] == [38_575, 9_673]
    assert Counter(sample.qtype for sample in splits["test"]) == {"yes/no": 7136, "color": 1280, "shape": 1257}
    assert len({sample.image_id for sample in splits["train"]}) == 4000
    assert {sample.answer for sample in splits["train"]} == set(easy_vqa.ANSWERS)
    first = splits["test"][0]
    assert (first.id, first.image_id, first.question, first.answer) == (
        "easy_vqa/test/0",
        0,
        "what is the red shape?",
        "triangle",
    )
    assert first.image.shape == (3, 64, 64) and first.image.dtype == np.uint8 and not first.image.flags.writeable
    assert splits["test"][1].image is first.image


def test_answers_are_visible_in_the_pixels(splits):
    sample = next(s for s in splits["test"] if s.qtype == "color" and s.answer == "red")
    red, green, blue = sample.image.reshape(3, -1).astype(int)
    assert ((red > 150) & (green < 100) & (blue < 100)).sum() > 50


def test_question_only_prior(splits):
    test = splits["test"]
    fitted_on_train = QuestionPrior.fit(splits["train"])
    best_without_image = QuestionPrior.fit(test)
    train_fit = accuracy(test, [fitted_on_train.answer(sample.question) for sample in test])
    test_fit = accuracy(test, [best_without_image.answer(sample.question) for sample in test])
    assert train_fit["all"] == pytest.approx(0.670, abs=0.001)
    assert test_fit["all"] == pytest.approx(0.678, abs=0.001)
    assert train_fit["yes/no"] == pytest.approx(0.825, abs=0.001)


def test_prior_of_an_unseen_question_is_the_commonest_answer(tmp_path):
    samples = load("train", small(tmp_path, [["a?", "red", 0], ["a?", "blue", 0], ["a?", "red", 1], ["b?", "no", 1]]))
    prior = QuestionPrior.fit(samples)
    assert [prior.answer(question) for question in ("a?", "b?", "never asked?")] == ["red", "no", "red"]
    assert accuracy(samples, ["red", "red", "red", "no"]) == {"all": 0.75, "color": pytest.approx(2 / 3), "yes/no": 1.0}


def test_subsample_keeps_shares_and_is_seeded(splits):
    chosen = subsample(splits["test"], 1000, seed=3)
    assert Counter(sample.qtype for sample in chosen) == {"yes/no": 738, "color": 132, "shape": 130}
    assert chosen == subsample(splits["test"], 1000, seed=3) != subsample(splits["test"], 1000, seed=4)
    assert len({sample.image_id for sample in chosen}) < 130
    assert [sample.id for sample in chosen] == [sample.id for sample in splits["test"] if sample in chosen]
    with pytest.raises(InputError, match="cannot take"):
        subsample(chosen, 1001, seed=3)


def test_a_spread_takes_every_image_before_any_twice(splits):
    seen = [len(set(s.image_id for s in spread_over_images(splits["test"], count, 3))) for count in (10, 1000, 1500)]
    assert seen == [10, 1000, 1000]
    chosen = spread_over_images(splits["test"], 1500, 3)
    assert chosen == spread_over_images(splits["test"], 1500, 3) != spread_over_images(splits["test"], 1500, 4)
    assert max(Counter(s.image_id for s in chosen).values()) == 2 and len({s.id for s in chosen}) == 1500
    with pytest.raises(InputError, match="cannot take"):
        spread_over_images(splits["test"], 10_000, 3)


def test_split_by_image_is_disjoint_and_complete(splits):
    first, rest = split_by_image(splits["test"], 0.25, seed=1)
    assert not {s.image_id for s in first} & {s.image_id for s in rest}
    assert len({s.image_id for s in first}) == 250
    assert sorted(s.id for s in [*first, *rest]) == sorted(s.id for s in splits["test"])


@pytest.mark.parametrize(
    ("row", "side", "message"),
    [
        (["what?", "purple", 0], 64, "question 1"),
        (["what?", "red"], 64, "question 1"),
        (["what?", "red", 7], 64, "7.png"),
        (["what?", "red", 1], 32, "32x32"),
    ],
)
def test_bad_files_are_named(tmp_path, row, side, message):
    rows = [row] if side != 64 else [["what?", "red", 0], row]
    with pytest.raises(InputError, match=message):
        [sample.image for sample in load("train", small(tmp_path, rows, side))]


def test_a_cut_image_is_named(tmp_path):
    folder = small(tmp_path, [["what?", "red", 0]])
    picture = folder / "train" / "images" / "0.png"
    picture.write_bytes(picture.read_bytes()[:60])
    (sample,) = load("train", folder)
    with pytest.raises(InputError, match=r"0\.png"):
        _ = sample.image


def test_absent_package_names_the_extra(monkeypatch):
    def absent(name):
        raise easy_vqa.PackageNotFoundError(name)

    monkeypatch.setattr(easy_vqa, "distribution", absent)
    with pytest.raises(MissingExtra, match="tutelage\\[data\\]"):
        load("test")


def test_unknown_names():
    with pytest.raises(InputError, match="split"):
        load("validation")
    with pytest.raises(InputError, match="purple"):
        question_type("purple")
