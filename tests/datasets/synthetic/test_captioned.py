"""Captioned scenes and moving shapes: pure in (seed, number), true captions, classes held out, boxes on their pixels."""

from __future__ import annotations

import numpy as np
import pytest

from tutelage.datasets.synthetic.captioned_scenes import captioned_scene
from tutelage.datasets.synthetic.captions import (
    ATTRIBUTES,
    HELD_OUT_TEMPLATES,
    UNKNOWN,
    WORDS,
    encode,
    name_thing,
    place_of,
    relation,
    split_classes,
)
from tutelage.datasets.synthetic.moving_shapes import MOTIONS, moving_shapes
from tutelage.datasets.synthetic.scene import DOMAINS
from tutelage.errors import InputError


@pytest.mark.parametrize("attributes", [("color", "shape"), ("size", "shape"), ("pattern", "color", "shape"), ("size", "pattern")])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_held_out_classes_are_new_combinations_of_known_values(attributes, seed: int) -> None:
    total = int(np.prod([len(ATTRIBUTES[name]) for name in attributes]))
    share = max(0.25, max(len(ATTRIBUTES[name]) for name in attributes) / total)
    split = split_classes(attributes, share, seed)
    assert not set(split.base) & set(split.new) and len(split.classes) == len(set(split.classes)) == total
    assert abs(len(split.new) - share * total) <= 1
    for axis, name in enumerate(attributes):
        for side in (split.base, split.new):
            assert {one[axis] for one in side} == set(ATTRIBUTES[name])
    assert split == split_classes(attributes, share, seed)
    if total > 20:
        assert split != split_classes(attributes, share, seed + 10)


def test_a_scene_shows_only_the_classes_asked_for_and_names_them() -> None:
    split = split_classes()
    for number in range(12):
        for classes, low, high in ((split.base, 0, len(split.base)), (split.new, len(split.base), len(split.classes))):
            sample = captioned_scene(1, number, count=(1, 3), classes=classes, split=split)
            assert ((sample.labels >= low) & (sample.labels < high)).all()
            for thing, label, caption in zip(sample.scene.things, sample.labels, sample.captions["things"], strict=True):
                assert split.name(int(label)) == f"{thing.color} {thing.shape}" and caption.endswith(name_thing(thing))


def test_a_sample_is_a_function_of_seed_and_number_and_looks_differ_by_domain_alone() -> None:
    first, again = captioned_scene(3, 5), captioned_scene(3, 5)
    assert (first.image == again.image).all() and first.captions == again.captions
    other = captioned_scene(3, 5, domain="B")
    assert [t.box for t in other.scene.things] == [t.box for t in first.scene.things] and other.captions[
        "places"
    ] == first.captions["places"]
    assert (other.image != first.image).any()
    faint = captioned_scene(3, 5, look=DOMAINS["B"].shifted(0.5))
    assert (faint.image != other.image).any() and faint.scene == first.scene
    assert (captioned_scene(4, 5).image != first.image).any() and (captioned_scene(3, 6).image != first.image).any()


def test_captions_are_true_and_of_known_words() -> None:
    for number in range(20):
        sample = captioned_scene(0, number, count=3)
        things = sample.scene.things
        for thing, caption, box in zip(things, sample.captions["places"], sample.boxes, strict=True):
            row, column = place_of(thing, sample.scene).split()
            assert caption == f"a {name_thing(thing)} in the {row} {column}"
            assert (row == "top") == (box[1] < 1 / 3) and (column == "right") == (box[0] >= 2 / 3)
        words = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}
        for i, caption in enumerate(sample.captions["relations"]):
            said = relation(things[i], things[i + 1])
            axis, sign = words[said]
            assert sign * (things[i].center[axis] - things[i + 1].center[axis]) >= 0 and f" {said} a " in caption
        every = [text for texts in sample.captions.values() for text in texts]
        every += captioned_scene(0, number, templates=HELD_OUT_TEMPLATES).captions["things"]
        ids, mask = encode(every, 30)
        assert (ids != UNKNOWN).all() and mask.sum(1).tolist() == [len(text.split()) for text in every]


def test_boxes_hold_the_visible_pixels() -> None:
    sample = captioned_scene(2, 1, count=1)
    rows, columns = np.nonzero(sample.masks[0])
    x, y, w, h = sample.boxes[0] * 48
    assert abs(columns.min() - (x - w / 2)) <= 1 and abs(columns.max() + 1 - (x + w / 2)) <= 1
    assert abs(rows.min() - (y - h / 2)) <= 1 and abs(rows.max() + 1 - (y + h / 2)) <= 1


def test_encode_cuts_pads_and_marks_what_it_does_not_know() -> None:
    ids, mask = encode(["a red circle", "a purple circle in the top left"], 5)
    assert ids.shape == (2, 5) and mask.sum(1).tolist() == [3, 5] and ids[1, 1] == UNKNOWN
    assert len(WORDS) == len(set(WORDS)) and (encode(["A red, circle."], 5)[0] == ids[:1]).all()


def test_a_thing_moves_as_its_caption_says() -> None:
    steps = {"left": (-2, 0), "right": (2, 0), "up": (0, -2), "down": (0, 2), "still": (0, 0)}
    seen = set()
    for number in range(16):
        clip = moving_shapes(0, number, frames=5, image_size=32)
        way = MOTIONS[int(clip.motions[0])]
        seen.add(way)
        moved = np.diff(clip.boxes[:, 0, :2] * 32, axis=0)
        assert np.allclose(moved, steps[way]) and clip.captions[0].endswith("stays still" if way == "still" else f"moves {way}")
        assert (encode(clip.captions, 12)[0] != UNKNOWN).all()
        assert clip.boxes.min() >= 0 and (clip.boxes[..., :2] + clip.boxes[..., 2:] / 2).max() <= 1
        changed = (clip.frames[0] != clip.frames[-1]).any()
        assert changed == (way != "still")
        near = np.pad(clip.masks.any((0, 1)), 1)  # the look blurs by a pixel
        near = near[1:-1, 1:-1] | near[2:, 1:-1] | near[:-2, 1:-1] | near[1:-1, 2:] | near[1:-1, :-2]
        assert (clip.frames[:, :, ~near] == clip.frames[:1, :, ~near]).mean() > 0.97
    assert len(seen) >= 4


def test_the_middle_frame_does_not_tell_the_motion() -> None:
    clips = [moving_shapes(5, number, image_size=48, motions=(way,)) for number in range(6) for way in ("left", "right")]
    for left, right in zip(clips[::2], clips[1::2], strict=True):
        assert (left.frames[4] == right.frames[4]).all() and (left.frames[0] != right.frames[0]).any()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: moving_shapes(0, 0, frames=1), "no motion"),
        (lambda: moving_shapes(0, 0, frames=40), "do not fit"),
        (lambda: moving_shapes(0, 0, motions=("lefft",)), "did you mean left"),
        (lambda: moving_shapes(0, 0, domain="Z"), "unknown domain"),
        (lambda: captioned_scene(0, 0, count=0), "count"),
        (lambda: captioned_scene(0, 0, count=(3, 1)), "count"),
        (lambda: captioned_scene(0, 0, domain="Z"), "unknown domain"),
        (lambda: captioned_scene(0, 0, classes=split_classes().base), "split"),
        (lambda: split_classes(("color",)), "at least 2"),
        (lambda: split_classes(("color", "shap")), "no attribute"),
        (lambda: split_classes(new_share=0.01), "missing on one side"),
        (lambda: encode(["a"], 0), "at least 1"),
    ],
)
def test_refusals(make, words: str) -> None:
    with pytest.raises(InputError) as caught:
        make()
    assert words in str(caught.value)
