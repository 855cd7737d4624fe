from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.datasets.synthetic.scene import COLORS, DOMAINS, PATTERNS, SHAPES, SIZES, make_scene, overlap
from tutelage.errors import InputError

seeds = st.integers(0, 2**62)


@given(seeds, st.integers(0, 10**6), st.sampled_from(sorted(DOMAINS)))
def test_scenes_are_what_they_promise(seed: int, index: int, domain: str) -> None:
    scene = make_scene(seed, index, domain)
    assert scene == make_scene(seed, index, domain)
    low, high = DOMAINS[domain].things
    assert low <= len(scene.things) <= high
    for i, thing in enumerate(scene.things):
        x1, y1, x2, y2 = thing.box
        assert 0 < x1 < x2 < scene.width and 0 < y1 < y2 < scene.height
        assert thing.shape in SHAPES and thing.color in COLORS and thing.pattern in PATTERNS and thing.size in SIZES
        assert (thing.digit is not None) == (thing.shape == "sign")
        assert thing.digit is None or thing.pattern == "plain"
        assert thing.w >= 15 if thing.size == "large" else thing.w <= 11
        assert all(overlap(thing.box, other.box) < 0.05 for other in scene.things[:i])


@given(seeds)
def test_wanted_fields_are_kept(seed: int) -> None:
    wanted = [{"shape": "sign", "digit": "7", "color": "teal"}, {"shape": "star", "size": "small"}]
    scene = make_scene(seed, 0, "B", required=wanted, name="mine")
    assert (scene.things[0].shape, scene.things[0].digit, scene.things[0].color) == ("sign", "7", "teal")
    assert (scene.things[1].shape, scene.things[1].size) == ("star", "small")
    assert scene.id == "mine" and len(scene.things) >= 3


def test_a_wanted_shape_drops_what_does_not_belong_to_it() -> None:
    scenes = [make_scene(0, i, "A", count=1, required=[{"shape": "circle"}]) for i in range(40)]
    assert all(scene.things[0].digit is None for scene in scenes)
    assert len({scene.things[0].pattern for scene in scenes}) == 3


def test_every_attribute_is_drawn_about_equally() -> None:
    things = [thing for i in range(400) for thing in make_scene(5, i, "A").things]
    for field, values in (("shape", SHAPES), ("color", COLORS), ("size", SIZES)):
        counts = Counter(getattr(thing, field) for thing in things)
        assert min(counts[value] for value in values) > 0.6 * len(things) / len(values)


def test_other_streams_give_other_scenes() -> None:
    scenes = [make_scene(seed, index, domain) for seed in (0, 1) for index in (0, 1) for domain in "AB"]
    assert len({scene.things for scene in scenes}) == len(scenes) == len({scene.seed for scene in scenes})


def test_bad_requests_are_named() -> None:
    with pytest.raises(InputError, match="unknown domain 'D'"):
        make_scene(0, 0, "D")
    with pytest.raises(InputError, match="do not fit"):
        make_scene(0, 0, "A", required=[{"size": "large"}] * 20)
