from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest

from tutelage.errors import InputError
from tutelage.reports.pictures import heat_map, ranking

SVG = "{http://www.w3.org/2000/svg}"


def texts(picture: str) -> list[str]:
    return [element.text or "" for element in ET.fromstring(picture).iter(f"{SVG}text")]


def test_a_heat_map_shows_every_number_and_its_sign() -> None:
    picture = heat_map("Scores", ["a", "b"], ["x", "y"], [[1.0, -0.5], [None, 0.0]])
    assert texts(picture) == ["Scores", "x", "y", "a", "1.00", "−0.50", "b", "–", "0.00"]
    cells = [e for e in ET.fromstring(picture).iter(f"{SVG}rect") if e.get("class") != "ground"]
    assert [(e.get("class"), float(e.get("fill-opacity", 0))) for e in cells] == [
        ("up", 0.75), ("down", 0.375), ("none", 0.0), ("up", 0.0),
    ]  # fmt: skip


def test_a_ranking_orders_points_by_value() -> None:
    picture = ranking("Teachers", "PG", ["a", "b"], [2.0, 1.0], [1.5, None], [2.5, None])
    root = ET.fromstring(picture)
    points = [float(e.get("cx", 0)) for e in root.iter(f"{SVG}circle")]
    assert points[0] > points[1] and len([e for e in root.iter(f"{SVG}line") if e.get("class") == "range"]) == 1
    assert {"Teachers", "a", "b", "2.00", "1.00", "PG"} <= set(texts(picture))


def test_all_that_is_drawn_lies_inside() -> None:
    long = "a name that is as long as some are & has <marks>"
    for picture in (heat_map(long, [long], [long] * 3, [[1e6, -2, 3]]), ranking(long, "x", [long], [1.0], [-9.0], [50.0])):
        root = ET.fromstring(picture)
        width, height = float(root.get("width", 0)), float(root.get("height", 0))
        for element in root.iter():
            for name in ("x", "x1", "x2", "cx"):
                assert 0 <= float(element.get(name, 0)) <= width
            for name in ("y", "y1", "y2", "cy"):
                assert 0 <= float(element.get(name, 0)) <= height
        assert not re.search(r"(?:href|src|url\()", picture), "it loads nothing"


def test_an_empty_picture_is_refused() -> None:
    for call in (lambda: heat_map("t", [], [], []), lambda: heat_map("t", ["a"], ["b"], [[1, 2]]),
                 lambda: ranking("t", "u", [], [], [], []), lambda: ranking("t", "u", ["a"], [], [], [])):  # fmt: skip
        with pytest.raises(InputError):
            call()
