"""SDVP on photographs: what is reported on is held out, and the arms are what they say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tutelage.experiments import sdvp_photos
from tutelage.experiments.sdvp_photos import KEPT, RIGHT, WORDS, PhotoStudy, photo_study, run
from tutelage.programs.types import ProgramFailure
from tutelage.sdvp.questions import Question

from ..modules.pretrained.needed import needs, needs_photos


@pytest.fixture(scope="module")
def study() -> PhotoStudy:
    return photo_study(0, smoke=True)


def keys(questions: list[Question]) -> set[str]:
    return {image.root_key for question in questions for image in question.images.values()}


def test_no_reported_picture_is_learned_from_or_replayed(study: PhotoStudy) -> None:
    learned = keys([*study.task.questions, *study.task.replay])
    assert not learned & keys([*study.clothes, *study.pairs, *study.other])
    assert not set(sdvp_photos.REPLAYED) & set(sdvp_photos.REPORTED)


def test_selection_seeds_see_other_photographs_and_replay_none_of_them() -> None:
    study = photo_study(100, smoke=True)
    assert {question.kind for question in study.other} == set(sdvp_photos.SELECTED) <= set(sdvp_photos.REPLAYED)
    assert not keys(study.other) & keys(list(study.task.replay))


def test_the_module_gets_no_answers(study: PhotoStudy) -> None:
    assert all(question.answer is None for question in [*study.task.questions, *study.task.replay])


def test_the_teacher_answers_about_thumbnails_alone(study: PhotoStudy) -> None:
    replaced = study.arms()["replaced by the teacher"]
    assert set(study.answers(study.clothes, replaced)) <= set(WORDS)
    calls = [question.images["IMAGE"] for question in study.other]
    assert all(answer is None for answer in study.answers(study.other, replaced)) and calls
    assert not any(isinstance(answer, ProgramFailure) for answer in study.answers(study.clothes, replaced))


def test_pairs_are_half_of_one_kind_and_compare_answers(study: PhotoStudy) -> None:
    assert {question.answer for question in study.pairs} == {True, False}
    kind = {image.key: q.answer for q in study.clothes for image in q.images.values()}
    for question in study.pairs:
        left, right = (kind[image.key] for image in question.images.values())
        assert (left == right) is question.answer


def test_thumbnails_are_dark_on_white() -> None:
    image = sdvp_photos.thumbnail(np.zeros((28, 28), np.uint8))
    assert image.bytes.min() == 255


def test_right_words_are_words_of_photographs() -> None:
    assert set(RIGHT) <= {*sdvp_photos.REPLAYED, *sdvp_photos.REPORTED}


@pytest.mark.slow
@needs_photos
@needs("fashion-mnist")
def test_sdvp_learns_the_clothes_and_keeps_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = replace(sdvp_photos.Sizes(), teacher=1500, collect=80, probe=30, replay_views=10, report_views=5, report=60)
    monkeypatch.setattr(sdvp_photos, "Sizes", lambda: sizes)
    arms = run(100, False, False)
    metric = sdvp_photos.CLOTHES
    assert arms["as packaged"][metric] < 40
    assert arms["SDVP"][metric] > arms["as packaged"][metric] + 30
    assert arms["SDVP"][KEPT] > arms["distilled without replay"][KEPT] + 20
    assert arms["as packaged"][KEPT] == 100
