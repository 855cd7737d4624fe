from __future__ import annotations

import numpy as np
import PIL.Image
import PIL.ImageDraw
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.modules.connected_components import label
from tutelage.modules.editing import classify_with, list_with
from tutelage.modules.symbolic import symbolic_modules
from tutelage.programs.types import Call, RuntimeFailure
from tutelage.programs.values import Box, Image, Object

MODULES = symbolic_modules()


def ask(name: str, **args: object):
    return MODULES[name].run([Call(name, args)]).values[0]


@pytest.fixture
def scene() -> Image:
    """A large red square left, a blue disc right, a small green square at the bottom, on grey."""
    picture = PIL.Image.new("RGB", (60, 60), (180, 180, 180))
    draw = PIL.ImageDraw.Draw(picture)
    draw.rectangle([5, 10, 24, 29], fill=(220, 10, 10))
    draw.ellipse([38, 8, 51, 21], fill=(20, 20, 220))
    draw.rectangle([30, 45, 37, 52], fill=(10, 140, 10))
    return Image.from_pil(picture)


def test_seg_finds_what_differs_from_the_background(scene: Image) -> None:
    found = ask("SEG", image=scene)
    assert [thing.box[:4] for thing in found] == [(5, 10, 25, 30), (38, 8, 52, 22), (30, 45, 38, 53)]
    assert found[0].mask.sum() == 400
    assert [thing.inst_id for thing in found] == [0, 1, 2]
    assert ask("SEG", image=Image.from_pil(PIL.Image.new("RGB", (9, 9), "gray"))) == []


@pytest.mark.parametrize(
    ("query", "chosen"),
    [("red", [0]), ("the leftmost object", [0]), ("right", [1]), ("bottom", [2]), ("smallest thing", [2])]
    + [("blue, green", [1, 2]), ("objects", [0, 1, 2]), ("largest", [0]), ("yellow", [])],
)
def test_select(scene: Image, query: str, chosen: list[int]) -> None:
    found = ask("SEG", image=scene)
    assert [thing.inst_id for thing in ask("SELECT", image=scene, object=found, query=query)] == chosen


def test_select_by_category(scene: Image) -> None:
    found = ask("CLASSIFY", image=scene, object=ask("SEG", image=scene), categories=["red", "blue", "green"])
    assert [thing.class_name for thing in found] == ["red", "blue", "green"]
    (only,) = ask("SELECT", image=scene, object=found, query="leftmost", category="blue")
    assert only.inst_id == 1
    with pytest.raises(RuntimeFailure, match="cannot select"):
        ask("SELECT", image=scene, object=found, query="happy")


def test_what_needs_a_model_says_so_and_takes_one(scene: Image) -> None:
    found = ask("SEG", image=scene)
    with pytest.raises(RuntimeFailure, match="face detector"):
        ask("FACEDET", image=scene)
    with pytest.raises(RuntimeFailure, match="matcher"):
        ask("CLASSIFY", image=scene, object=found, categories=["cat", "dog"])
    with pytest.raises(RuntimeFailure, match="text model"):
        ask("LIST", query="planets", max=3)
    listing = list_with(lambda query, limit: ["mars", "venus", "earth"], "stub-1")
    assert listing.run([Call("LIST", {"query": "planets", "max": 2})]).values == [["mars", "venus"]]
    naming = classify_with(lambda crop, names: [crop.width == 20, crop.width == 14], "stub-1")
    named = naming.run([Call("CLASSIFY", {"image": scene, "object": found[:2], "categories": ["a", "b"]})]).values[0]
    assert [thing.class_name for thing in named] == ["a", "b"]
    assert (listing.version, naming.name, naming.symbolic) == ("stub-1", "CLASSIFY", False)


def test_list_reads_the_query() -> None:
    assert ask("LIST", query="red, green and blue", max=2) == ["red", "green"]


def test_colorpop_and_blur_leave_the_object_alone(scene: Image) -> None:
    found = ask("SEG", image=scene)[:1]
    inside = found[0].mask
    for name in ("COLORPOP", "BGBLUR"):
        edited = ask(name, image=scene, object=found)
        assert (edited.bytes[:, inside] == scene.bytes[:, inside]).all()
        assert (edited.bytes[:, ~inside] != scene.bytes[:, ~inside]).any()
    grey = ask("COLORPOP", image=scene, object=found).bytes[:, ~inside]
    assert (grey[0] == grey[1]).all()


def test_replace_fills_the_object_alone(scene: Image) -> None:
    found = ask("SEG", image=scene)[1:2]
    inside = found[0].mask
    filled = ask("REPLACE", image=scene, object=found, prompt="a yellow bus")
    assert (filled.bytes[:, inside] == np.array([[255], [255], [0]])).all()
    striped = ask("REPLACE", image=scene, object=found, prompt="a zebra")
    assert len(np.unique(striped.bytes[:, inside], axis=1).T) == 2
    for edited in (filled, striped):
        assert (edited.bytes[:, ~inside] == scene.bytes[:, ~inside]).all()
    assert ask("REPLACE", image=scene, object=found, prompt="a zebra").key == striped.key


def test_tag_and_emoji_draw_on_the_object(scene: Image) -> None:
    found = ask("SEG", image=scene)[:1]
    assert tuple(ask("TAG", image=scene, object=found).bytes[:, 10, 12]) == (255, 255, 0)
    faces = {name: ask("EMOJI", image=scene, object=found, emoji=name).key for name in ("smile", "sad", "sunglasses")}
    assert len(set(faces.values())) == 3
    face = ask("EMOJI", image=scene, object=found, emoji="smile")
    assert (face.bytes[:, :, 34:] == scene.bytes[:, :, 34:]).all()
    assert tuple(face.bytes[:, 13, 15]) == (255, 215, 0)


def test_objects_without_masks_and_masks_of_other_images(scene: Image) -> None:
    popped = ask("COLORPOP", image=scene, object=[Object(Box(5.0, 10.0, 25.0, 30.0))])
    assert (popped.bytes[:, 10:30, 5:25] == scene.bytes[:, 10:30, 5:25]).all()
    with pytest.raises(RuntimeFailure, match="another image"):
        ask("COLORPOP", image=scene, object=[Object(Box(0, 0, 1, 1), np.ones((3, 3), bool))])
    with pytest.raises(RuntimeFailure, match="no pixel"):
        ask("CLASSIFY", image=scene, object=[Object(Box(70, 70, 80, 80))], categories=["red"])


def test_no_objects_change_nothing(scene: Image) -> None:
    for name, more in {"TAG": {}, "EMOJI": {"emoji": "smile"}, "REPLACE": {"prompt": "red"}}.items():
        assert (ask(name, image=scene, object=[], **more).bytes == scene.bytes).all()
    assert ask("CLASSIFY", image=scene, object=[], categories=["red"]) == []


def flood(mask: np.ndarray) -> np.ndarray:
    """Connected regions the plain way."""
    labels, number = np.zeros(mask.shape, int), 0
    for start in zip(*np.nonzero(mask), strict=True):
        if labels[start]:
            continue
        number += 1
        todo = [start]
        while todo:
            y, x = todo.pop()
            if 0 <= y < mask.shape[0] and 0 <= x < mask.shape[1] and mask[y, x] and not labels[y, x]:
                labels[y, x] = number
                todo += [(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)]
    return labels


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 10_000), st.floats(0.2, 0.8))
def test_regions_are_the_connected_ones(height: int, width: int, seed: int, density: float) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < density
    assert (label(mask) == flood(mask)).all()
