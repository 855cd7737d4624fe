from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.datasets.synthetic.render import RGB, masks, render
from tutelage.datasets.synthetic.scene import COLORS, DOMAINS, SHAPES, Scene, SceneObject, VisualDomain, make_scene

CLEAN = VisualDomain("A", color_jitter=0, background=(0.9, 0.9), background_hue=0, gain=(1, 1), texture=(0, 0), noise=(0, 0))


def one(shape: str, color: str = "red", pattern: str = "plain", digit: str | None = None, size: int = 17) -> Scene:
    return Scene("one", "A", 48, 48, (SceneObject(shape, color, pattern, "large", digit, 10, 12, size, size),), 3)


@given(st.integers(0, 10**9), st.sampled_from(sorted(DOMAINS)))
def test_the_same_scene_is_the_same_picture(index: int, domain: str) -> None:
    scene = make_scene(1, index, domain)
    picture = render(scene)
    assert picture.dtype == np.uint8 and picture.shape == (3, 48, 48)
    assert np.array_equal(picture, render(scene))
    assert not np.array_equal(picture, render(replace(scene, seed=scene.seed + 1)))


@given(st.integers(0, 10**9))
def test_masks_lie_in_their_boxes_and_apart(index: int) -> None:
    scene = make_scene(2, index, "A")
    found = masks(scene)
    assert found.shape == (len(scene.things), 48, 48) and found.sum(0).max() <= 1
    for thing, mask in zip(scene.things, found, strict=True):
        rows, columns = np.nonzero(mask)
        assert thing.x <= columns.min() and columns.max() < thing.x + thing.w
        assert thing.y <= rows.min() and rows.max() < thing.y + thing.h
        assert mask.sum() > 0.25 * thing.w * thing.h


@pytest.mark.parametrize("shape", SHAPES[:-1])
@pytest.mark.parametrize("color", COLORS)
def test_a_plain_thing_has_its_colour_and_nothing_else_changes(shape: str, color: str) -> None:
    scene = one(shape, color)
    picture, mask = render(scene, CLEAN).astype(float) / 255, masks(scene)[0]
    inner = picture[:, mask].mean(1)
    assert np.abs(inner - RGB[color]).max() < 0.12
    outside = np.ones((48, 48), bool)
    outside[12:29, 10:27] = False
    assert np.abs(picture[:, outside] - 0.9).max() < 0.01


def test_shapes_patterns_and_digits_differ() -> None:
    pictures = [render(one(shape), CLEAN) for shape in SHAPES[:-1]]
    pictures += [render(one("circle", pattern=pattern), CLEAN) for pattern in ("striped", "dotted")]
    pictures += [render(one("sign", digit=str(digit)), CLEAN) for digit in range(10)]
    for i, a in enumerate(pictures):
        for b in pictures[:i]:
            assert (np.abs(a.astype(int) - b).max(0) > 60).sum() >= 5


def test_a_pattern_keeps_the_outline() -> None:
    plain, striped = (render(one("triangle", "blue", pattern), CLEAN).astype(int) for pattern in ("plain", "striped"))
    changed = np.abs(plain - striped).max(0) > 8
    mask = masks(one("triangle"))[0]
    assert changed.any() and not (changed & ~mask).any()


def test_shift_strength_scales_the_domain() -> None:
    scene = make_scene(0, 0, "A")
    base = DOMAINS["B"]
    mild, strong = (render(scene, base.shifted(s)).astype(float) for s in (0.0, 1.0))
    assert base.shifted(0.0).noise == (0, 0) and base.shifted(0.5).tint_strength[1] == base.tint_strength[1] / 2
    assert np.abs(mild - strong).mean() > 10


def test_light_moves_hues_in_b() -> None:
    gray = render(one("rectangle", "gray"), replace(DOMAINS["B"], noise=(0, 0), texture=(0, 0)))
    red, _, blue = gray[:, masks(one("rectangle"))[0]].mean(1)
    assert red > 1.2 * blue
