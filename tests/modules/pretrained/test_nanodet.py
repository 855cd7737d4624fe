from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tutelage.errors import InputError
from tutelage.modules.loading import load
from tutelage.modules.pretrained.coco_classes import CLASSES, GROUPS, NARROWER, SAME, classes_named
from tutelage.modules.pretrained.nanodet import BINS, STRIDES, NanoDet, NanoDetConfig
from tutelage.programs.types import Call, RuntimeFailure
from tutelage.programs.values import Image, iou

from .needed import needs_networks

CELLS = sum((416 // stride) ** 2 for stride in STRIDES)
PERSON, DOG, CAT = (CLASSES.index(name) for name in ("person", "dog", "cat"))


def blank() -> NanoDet:
    return NanoDet(NanoDetConfig(), nn.Identity())


def image(width: int = 416, height: int = 416) -> Image:
    return Image.from_array(np.zeros((3, height, width), np.uint8))


def heads(*found: tuple[int, int, float, tuple[int, int, int, int]]) -> dict[str, torch.Tensor]:
    """The heads of one picture: (class, cell, score, distances in bins to left, top, right, bottom)."""
    presence, bins = torch.full((1, CELLS, len(CLASSES)), -12.0), torch.zeros(1, CELLS, 4, BINS)
    for kind, cell, score, distances in found:
        presence[0, cell, kind] = torch.logit(torch.tensor(score))
        for side, distance in enumerate(distances):
            bins[0, cell, side] = -50.0
            bins[0, cell, side, distance] = 50.0
    return {"presence": presence, "bins": bins}


def loc(view: Image, thing: str) -> Call:
    return Call("LOC", {"image": view, "object": thing})


def test_there_are_cocos_80_classes_and_every_word_names_some_of_them() -> None:
    assert len(CLASSES) == len(set(CLASSES)) == 80
    assert {*SAME.values(), *NARROWER.values(), *(name for group in GROUPS.values() for name in group)} <= set(CLASSES)
    assert not set(SAME) & set(NARROWER)


@pytest.mark.parametrize(
    ("phrase", "names", "exact"),
    [
        ("person", ["person"], True),
        ("people", ["person"], True),
        ("the dogs", ["dog"], True),
        ("men", ["person"], False),
        ("red car", ["car"], False),
        ("cell phone", ["cell phone"], True),
        ("phone", ["cell phone"], True),
        ("stop signs", ["stop sign"], True),
        ("sign", [], False),
        ("pet", ["cat", "dog"], True),
        ("rocket", [], False),
        ("", [], False),
    ],
)
def test_everyday_words_name_classes(phrase: str, names: list[str], exact: bool) -> None:
    found, said = classes_named(phrase)
    assert [CLASSES[i] for i in found] == names and said is exact


def test_a_box_is_the_bins_expectation_times_the_stride() -> None:
    first = 10 * 52 + 20  # stride 8: row 10, column 20, so its centre is (164, 84)
    (boxes,) = blank().boxes(heads((DOG, first, 0.9, (2, 3, 4, 5))), [loc(image(), "dog")], 0.4)
    assert tuple(boxes[0]) == pytest.approx((164 - 16, 84 - 24, 164 + 32, 84 + 40, 0.9), abs=1e-2)
    coarse = 52**2 + 26**2 + 3 * 13 + 4  # stride 32: row 3, column 4, centre (144, 112)
    (boxes,) = blank().boxes(heads((DOG, coarse, 0.6, (1, 1, 2, 2))), [loc(image(), "dog")], 0.4)
    assert tuple(boxes[0]) == pytest.approx((112, 80, 208, 176, 0.6), abs=1e-2)


def test_a_box_is_told_in_the_pixels_of_its_image_without_the_letterbox() -> None:
    view = image(832, 416)  # twice as wide: the square is 832 pixels, the picture its middle band
    cell = 26 * 52 + 26  # centre (212, 212) of 416
    (boxes,) = blank().boxes(heads((DOG, cell, 0.9, (1, 1, 1, 1))), [loc(view, "dog")], 0.4)
    assert tuple(boxes[0])[:4] == pytest.approx((2 * 204, 2 * 204 - 208, 2 * 220, 2 * 220 - 208), abs=1e-2)


def test_only_what_is_asked_for_is_found_and_overlaps_are_suppressed() -> None:
    seen = heads((DOG, 100, 0.9, (5, 5, 5, 5)), (DOG, 101, 0.8, (5, 5, 5, 5)), (PERSON, 1500, 0.7, (5, 5, 5, 5)))
    answers = {thing: blank().decode(seen, [loc(image(), thing)]).values[0] for thing in ("dog", "people", "cat", "object", "pet")}
    assert [len(boxes) for boxes in answers.values()] == [1, 1, 0, 2, 1]
    assert answers["dog"][0].score == pytest.approx(0.9, abs=1e-4)
    assert all(iou(a, b) <= 0.6 for a in answers["object"] for b in answers["object"] if a is not b)


def test_an_unknown_word_is_refused_and_a_narrower_one_is_marked() -> None:
    both = {name: torch.cat([head] * 3) for name, head in heads((PERSON, 100, 0.9, (3, 3, 3, 3))).items()}
    answers = blank().decode(both, [loc(image(), "rocket"), loc(image(), "astronaut"), loc(image(), "person")])
    refused, narrower, exact = answers.values
    assert isinstance(refused, RuntimeFailure) and "'rocket'" in str(refused) and refused.remedy
    assert len(narrower) == len(exact) == 1
    assert answers.out_of_vocabulary == [True, True, False]


def test_halves_need_no_class() -> None:
    (left,) = blank().decode(heads(), [loc(image(100, 50), "LEFT")]).values
    assert tuple(left[0])[:4] == (0, 0, 50, 50)


def test_it_cannot_be_taught() -> None:
    with pytest.raises(InputError, match="cannot be trained"):
        blank().training_examples([loc(image(), "dog")], None)


@needs_networks
def test_the_published_network_sees_each_picture_alone_and_is_kept_whole(tmp_path: Path) -> None:
    real = NanoDet.build(NanoDetConfig(), seed=0)
    rng = np.random.default_rng(0)
    views = [Image.from_array(rng.integers(0, 256, (3, height, 500), dtype=np.uint8)) for height in (300, 450)]
    calls = [loc(views[0], "object"), loc(views[1], "object"), loc(views[0], "person")]
    with torch.inference_mode():
        together, alone = real.forward(real.encode(calls)), real.forward(real.encode(calls[1:2]))
    for name, head in alone.items():
        torch.testing.assert_close(together[name][1:2], head, rtol=1e-4, atol=1e-4)
    assert together["presence"].shape == (3, CELLS, 80) and together["bins"].shape == (3, CELLS, 4, BINS)
    again = load(real.save(tmp_path / "loc"))
    assert isinstance(again, NanoDet) and again.version == real.version
    assert again.run(calls).values == real.run(calls).values
