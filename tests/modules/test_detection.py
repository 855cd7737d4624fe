from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tutelage.modules.detection import nms
from tutelage.modules.visual_module import CallLabel, TrainingExamples
from tutelage.programs.values import Box, Image, iou

from .networks import CLASSES, close, crops, find, loc, picture, with_surroundings

LOC = loc()


def heads_of(exercise: TrainingExamples) -> dict[str, torch.Tensor]:
    """The heads that say exactly what the targets say."""
    heat = exercise.targets["heat"]["heat"].clamp(1e-4, 1 - 1e-4).logit()
    return {"heat": heat, "size": exercise.targets["size"]["size"]}


def test_the_module_under_test_finds_something() -> None:
    assert sum(map(len, LOC.run([find(picture(i), "circle") for i in range(4)]).values)) > 4


def test_a_batch_answers_each_call_as_if_it_stood_alone() -> None:
    calls = [find(image, phrase) for image in (picture(0), picture(1), *crops(5)) for phrase in ("circle", "stars", "object")]
    together = LOC.run(calls)
    assert all(close(boxes, LOC.run([call]).values[0]) for boxes, call in zip(together.values, calls, strict=True))
    assert all(len(head) == len(calls) for head in together.heads.values())


def test_boxes_lie_in_the_calls_own_image_and_come_best_first() -> None:
    for image, boxes in ((image, LOC.run([find(image, "object")]).values[0]) for image in crops(12)):
        for box in boxes:
            assert 0 <= box.x1 < box.x2 <= image.width and 0 <= box.y1 < box.y2 <= image.height
        scores = [box.score for box in boxes]
        assert scores == sorted(scores, reverse=True) and all(score >= LOC.config.threshold for score in scores)


def test_a_half_is_that_half_of_the_image() -> None:
    image = picture(0, 40, 20)
    answers = LOC.run([find(image, name) for name in ("TOP", "BOTTOM", "LEFT", "RIGHT")])
    whole = [(0, 0, 40, 10), (0, 10, 40, 20), (0, 0, 20, 20), (20, 0, 40, 20)]
    assert [boxes[0][:4] for boxes in answers.values] == whole and all(len(boxes) == 1 for boxes in answers.values)
    assert answers.out_of_vocabulary == [False] * 4


@pytest.mark.parametrize(
    ("phrase", "classes", "known"),
    [
        ("circle", ["circle"], True),
        ("stars", ["star"], True),
        ("object", ["circle", "star"], True),
        ("things", ["circle", "star"], True),
        ("red circle", ["circle"], False),
        ("red object", ["circle", "star"], False),
        ("zebra", [], False),
        ("", [], False),
    ],
)
def test_a_phrase_names_classes_and_what_is_unknown_is_counted(phrase: str, classes: list[str], known: bool) -> None:
    assert LOC.classes_of(phrase) == ([CLASSES.index(name) for name in classes], known)
    answers = LOC.run([find(picture(), phrase)])
    assert answers.out_of_vocabulary == [not known]
    assert classes or answers.values == [[]], "what is not known is not found"


def test_the_picture_around_a_crop_changes_nothing() -> None:
    for image in crops(8):
        black, white = (find(with_surroundings(image, value), "object") for value in (0, 255))
        assert close(LOC.run([black]).values, LOC.run([white]).values)


@given(
    st.lists(
        st.tuples(st.sampled_from(CLASSES), st.integers(0, 2), st.integers(0, 2), st.integers(4, 15), st.integers(4, 15)),
        min_size=1,
        max_size=4,
        unique_by=lambda thing: thing[1:3],
    ),
    st.sampled_from([(48, 48), (48, 30), (30, 48)]),
)
def test_boxes_come_back_out_of_their_targets(things: list[tuple[str, int, int, int, int]], size: tuple[int, int]) -> None:
    image: Image = picture(0, 48, 48).crop(0, 0, *size)
    cell = min(size) / 3
    boxes: dict[str, list[Box]] = {name: [] for name in CLASSES}
    for name, column, row, w, h in things:
        x, y = (column + 0.5) * cell, (row + 0.5) * cell  # centres are so far apart that no two share a cell
        w, h = min(w, cell), min(h, cell)
        boxes[name].append(Box(x - w / 2, y - h / 2, x + w / 2, y + h / 2))
    calls = [find(image, name) for name in CLASSES]
    exercise = LOC.training_examples(calls, [CallLabel(boxes[name]) for name in CLASSES])
    assert len(exercise) == 1
    found = LOC.boxes({name: head.expand(2, -1, -1, -1) for name, head in heads_of(exercise).items()}, calls, 0.9)
    for name, mine in zip(CLASSES, found, strict=True):
        assert len(mine) == len(boxes[name])
        assert all(max(iou(box, other) for other in mine) > 0.9 for box in boxes[name])


def test_only_what_was_asked_is_taught() -> None:
    image = picture()
    calls = [find(image, "star"), find(image, "object")]
    exercise = LOC.training_examples(calls, [CallLabel([Box(4, 4, 12, 12)], weight=0.5), CallLabel([Box(20, 20, 30, 30)])])
    asked = exercise.targets["heat"]["asked"]
    assert asked.tolist() == [[0, 0.5]], "'object' does not say which class"
    assert exercise.targets["size"]["peaks"].sum() == 1 and exercise.targets["heat"]["heat"][0, 0].sum() == 0


def test_replay_has_inputs_alone_one_row_an_image() -> None:
    exercise = LOC.training_examples([find(picture(i % 2), name) for i in range(4) for name in CLASSES], None)
    assert len(exercise) == 2 and not exercise.targets and exercise.inputs["pixels"].dtype == torch.uint8


def test_candidates_are_the_peaks_below_the_threshold_too() -> None:
    calls = [find(picture(i), "circle") for i in range(3)]
    for answered, all_peaks in zip(LOC.run(calls).values, LOC.scored_boxes(calls, 0.01), strict=True):
        assert len(all_peaks) >= len(answered)


def test_suppression_keeps_the_best_of_those_that_overlap() -> None:
    best, worse, apart = Box(0, 0, 10, 10, 0.9), Box(1, 0, 11, 10, 0.8), Box(30, 30, 40, 40, 0.5)
    assert nms([worse, apart, best], 0.5) == [best, apart]


def test_siblings_look_for_every_class() -> None:
    assert [call.args["object"] for call in LOC.related_calls(find(picture(), "star"))] == list(CLASSES)
